"""MR-TRUS phantoms as a data set: files hold what the phantom made, splits are drawn, starts are of the wanted size, nothing is made twice."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pipeline.datasets import mr_trus_phantom
from pipeline.datasets.keeping import subject_seed
from pipeline.datasets.pairing import drawn_splits
from pipeline.datasets.phantoms.trus import make_subject
from pipeline.datasets.registry import create_dataset
from pipeline.errors import ConcordError
from pipeline.measures import Scored, measure_rows, read_points
from pipeline.methods import Run
from pipeline.surfaces import enclosed, read_stl
from pipeline.transform_files import read_transform
from pipeline.volumes import read_volume

SMALL = {"subjects": 3, "mr_spacing_mm": [2.0, 2.0, 4.0], "us_spacing_mm": 2.5, "hold_out": 1, "train": 1}
STARTS = [{"name": "far", "sre_mm": 16.0, "count": 2, "validation_count": 1}]


def dataset(**settings):
    return create_dataset("mr-trus-phantom", {**SMALL, **settings})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pelves")
    return folder, dataset(starts=STARTS).cases(folder, Run(seed=4))


def test_subjects_are_split_and_test_and_validation_have_their_starts(made):
    _, (cases, left_out) = made
    assert Counter(case.split for case in cases) == {"test": 2, "validation": 1, "train": 1}
    assert (len({case.subject for case in cases}), left_out) == (3, [])
    assert [case.start_transform is None for case in cases if case.split == "train"] == [True]
    assert {(case.fixed_modality, case.moving_modality, case.group) for case in cases} == {("mr", "trus", "end-fire")}


def test_files_hold_what_the_phantom_made(made):
    _, (cases, _) = made
    case = next(case for case in cases if case.subject == "sub-002")
    subject = make_subject(dataset().phantom(), subject_seed(4, 1))
    for path, array, geometry in (
        (case.fixed, subject.mr, subject.mr_geometry),
        (case.moving, subject.us, subject.us_geometry),
        (case.fixed_labels, subject.mr_gland, subject.mr_geometry),
        (case.moving_labels, subject.us_gland, subject.us_geometry),
    ):
        assert np.array_equal(read_volume(path).array, array)
        assert read_volume(path).geometry.matches(geometry)
    assert np.allclose(read_stl(case.fixed_surface), subject.surface_mm, atol=1e-4)
    assert np.allclose(read_points(case.moving_landmarks, 3), subject.landmarks_us_mm)
    truth = read_transform(case.true_transform)
    assert np.allclose(truth.points(read_points(case.fixed_landmarks, 3)), subject.landmarks_us_mm, atol=1e-9)
    assert truth.kind == "rigid"


def test_the_surface_encloses_the_label_map(made):
    _, (cases, _) = made
    labels = read_volume(cases[0].fixed_labels)
    filled = enclosed(read_stl(cases[0].fixed_surface), labels.geometry)
    assert 2 * (filled & labels.array).sum() / (filled.sum() + labels.array.sum()) > 0.93


def test_measures_of_truth_and_of_start_are_what_the_draw_says(made):
    _, (cases, _) = made
    case = next(case for case in cases if case.start == "far")
    value = {
        file: {n: next(measure_rows(n, Scored(case, file)))[2] for n in ("sre_mm", "tre_mm", "dice")}
        for file in (case.true_transform, case.start_transform)
    }
    assert value[case.true_transform]["sre_mm"] == 0
    assert value[case.true_transform]["tre_mm"] == pytest.approx(0, abs=1e-6)
    assert value[case.true_transform]["dice"] > 0.9
    assert value[case.start_transform]["sre_mm"] == pytest.approx(16, abs=2e-3)
    assert value[case.start_transform]["dice"] < value[case.true_transform]["dice"]


def test_nothing_is_made_twice_and_what_is_missing_is_made_again(made, monkeypatch):
    folder, found = made
    calls = []
    monkeypatch.setattr(mr_trus_phantom, "make_subject", lambda *given: calls.append(given[1]) or make_subject(*given))
    assert dataset(starts=STARTS).cases(folder, Run(seed=4)) == found
    assert calls == []
    (folder / "sub-002_true.tfm").unlink()
    assert dataset(starts=STARTS).cases(folder, Run(seed=4)) == found
    assert calls == [subject_seed(4, 1)]


def test_without_starts_every_subject_is_one_case(made):
    folder, _ = made
    cases = dataset(hold_out=0, train=0).cases(folder, Run(seed=4)).cases
    assert [(case.case, case.split, case.start_transform) for case in cases] == [(f"sub-00{n}", "test", None) for n in (1, 2, 3)]


def test_splits_are_drawn_from_the_seed_and_do_not_follow_the_order():
    splits = [tuple(drawn_splits(20, hold_out=4, train=10, seed=seed)) for seed in (1, 1, 2)]
    assert splits[0] == splits[1] != splits[2]
    assert Counter(splits[0]) == {"validation": 4, "train": 10, "test": 6}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"hold_out": 2, "train": 2}, "subjects: 3 with hold_out 2 and train 2|subjects.*3 with hold_out 2"),
        ({"us_spacing_mm": 90.0}, "us_spacing_mm 90.0; expected 0.25 to 3"),
        ({"geometry": "sideways"}, "geometry"),
        ({"starts": [{"name": "a", "sre_mm": -3}]}, "expected a number of mm above 0"),
        ({"starts": [{"sre_mm": 3}]}, r"starts\.0\.name: missing"),
    ],
)
def test_bad_settings_are_told_in_one_line(settings, told):
    with pytest.raises(ConcordError, match=told) as caught:
        dataset(**settings)
    assert "\n" not in str(caught.value)
