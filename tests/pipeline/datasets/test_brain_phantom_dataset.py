"""Brain phantoms as a data set: files, true transforms, and nothing made twice. Two-dimensional where it can be, for speed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.datasets import brain_phantom
from pipeline.datasets.keeping import subject_seed
from pipeline.datasets.phantoms.brain import make_subject, true_displacement_mm
from pipeline.datasets.registry import create_dataset
from pipeline.methods import Run
from pipeline.transform_files import read_transform
from pipeline.volumes import read_volume

FLAT = {"subjects": 3, "spacing_mm": 4.0, "slice_mm": 5.0, "population": "neonate"}


def dataset(**settings):
    return create_dataset("brain-phantom", {**FLAT, **settings})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    return folder, dataset(intra=True).cases(folder, Run(seed=4))


def test_cases_point_to_whole_files_on_one_grid(made):
    folder, (cases, left_out) = made
    assert (len(cases), left_out) == (3 * 2 + 6 * 2, [])
    for path in {path for case in cases for path in case.paths.values() if path.suffix == ".mha"}:
        assert path.is_relative_to(folder)
        assert read_volume(path).geometry.matches(dataset().phantom().geometry)


def test_files_hold_what_the_phantom_made(made):
    _, (cases, _) = made
    case = next(case for case in cases if case.case == "sub-02_t2-sub-03_t1")
    fixed, moving = (make_subject(dataset().phantom(), subject_seed(4, number)) for number in (1, 2))
    assert np.array_equal(read_volume(case.fixed).array, fixed.images["t2"])
    assert np.array_equal(read_volume(case.moving).array, moving.images["t1"])
    assert np.array_equal(read_volume(case.moving_labels).array, moving.regions)
    truth = read_transform(case.true_transform).displacement_mm(fixed.geometry)
    assert np.allclose(truth, true_displacement_mm(fixed, moving), atol=1e-5)


def test_both_directions_of_a_pair_share_one_truth_and_a_subject_has_the_identity(made):
    _, (cases, _) = made
    truths = {(case.subject, case.moving_subject): case.true_transform for case in cases}
    assert all(truths[case.subject, case.moving_subject] == case.true_transform for case in cases)
    points = np.array([[3.0, -8.0]])
    assert np.allclose(read_transform(truths["sub-01", ""]).points(points), points)
    there, back = (read_transform(truths[pair]) for pair in (("sub-01", "sub-02"), ("sub-02", "sub-01")))
    assert np.abs(there.points(points) - points).max() > 0.3
    assert np.allclose(back.points(there.points(points)), points, atol=0.4)  # a tenth of a voxel


def test_nothing_is_made_twice_and_what_is_missing_is_made_again(made, monkeypatch):
    folder, found = made
    calls = []
    monkeypatch.setattr(brain_phantom, "make_subject", lambda settings, seed: calls.append(seed) or make_subject(settings, seed))
    assert dataset(intra=True).cases(folder, Run(seed=4)) == found
    assert calls == []
    (folder / "sub-02_t1.mha").unlink()
    assert dataset(intra=True).cases(folder, Run(seed=4)) == found
    assert calls == [subject_seed(4, 1)]
    assert (folder / "sub-02_t1.mha").exists()


def test_another_setting_or_seed_makes_the_subjects_again(tmp_path):
    few = {"subjects": 2, "directions": ["t1-t2"]}
    first = dataset(**few).cases(tmp_path, Run(seed=4)).cases[0]
    contents = {}
    for name, settings, seed in (("first", {}, 4), ("noisy", {"noise": 0.2}, 4), ("other", {}, 5)):
        assert dataset(**few, **settings).cases(tmp_path, Run(seed=seed)).cases[0] == first
        contents[name] = (first.fixed.read_bytes(), first.true_transform.read_bytes())
    assert len({image for image, _ in contents.values()}) == 3
    assert contents["first"][1] != contents["other"][1]


def test_label_maps_are_regions_or_tissue(made):
    folder, (cases, _) = made
    tissue = dataset(labels="tissue", intra=True).cases(folder, Run(seed=4)).cases
    assert (cases[0].fixed_labels.name, tissue[0].fixed_labels.name) == ("sub-01_regions.mha", "sub-01_tissue.mha")
    assert read_volume(tissue[0].fixed_labels).array.max() <= 6


def test_progress_is_told(tmp_path):
    told = []
    dataset(subjects=2).cases(tmp_path, Run(progress=lambda stage, fraction: told.append((stage, fraction))))
    assert told == [("subjects", 0.5), ("subjects", 1.0), ("true transforms", 0.5), ("true transforms", 1.0)]


def test_the_stored_truth_of_fine_images_is_coarser_and_as_good():
    phantom = dataset(spacing_mm=1.0).phantom()
    fixed, moving = (make_subject(phantom, seed) for seed in (1, 2))
    grid = brain_phantom.truth_grid(phantom.geometry)
    assert grid.spacing_mm == (2.0, 2.0)
    corners = np.array([[-0.5, -0.5], np.array(phantom.geometry.size) - 0.501])
    assert grid.contains(phantom.geometry.points_at(corners)).all()
    from pipeline.transforms import Field

    stored = Field(true_displacement_mm(replace(fixed, geometry=grid), moving), grid).displacement_mm(phantom.geometry)
    error = np.linalg.norm(stored - true_displacement_mm(fixed, moving), axis=-1)
    assert error.max() < 0.15
    assert error.mean() < 0.02


def test_in_three_dimensions_the_truth_carries_the_regions(tmp_path):
    settings = {"subjects": 2, "spacing_mm": 6.0, "directions": ["t1-t2"]}
    case = create_dataset("brain-phantom", settings).cases(tmp_path, Run(seed=2)).cases[0]
    from pipeline.resampling import warp_by_field

    fixed, moving = read_volume(case.fixed_labels), read_volume(case.moving_labels)
    truth = read_transform(case.true_transform).displacement_mm(fixed.geometry)
    warped = warp_by_field(moving, truth, fixed.geometry, interpolation="nearest").array
    inside = fixed.array > 0

    def agreement(other):
        return (other == fixed.array)[inside].mean()

    assert agreement(warped) > agreement(moving.array) + 0.1
