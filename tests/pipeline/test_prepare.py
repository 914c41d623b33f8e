"""Preparation: slices, sizes and intensities, and what is left out by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from examples import oblique_geometry

from pipeline.cases import Case
from pipeline.prepare import Exclusion, PrepareSettings, levels_of, prepare_cases, read_exclusions, write_exclusions
from pipeline.resampling import warp
from pipeline.transform_files import read_transform, write_transform
from pipeline.transforms import Field
from pipeline.volumes import Geometry, Volume, read_volume, write_volume


def stack_case(folder: Path, name: str = "p1", **changes) -> Case:
    """A stack of 4 slices: slices 1 and 2 hold labels 1, 2, 3 in both images, slice 3 lacks 2 in the moving one."""
    geometry = changes.pop("geometry", Geometry.regular((12, 10, 4), (1.5, 1.5, 8.0)))
    rng = np.random.default_rng(0)
    labels = np.zeros(geometry.shape, np.uint8)
    labels[1:, 2, 2], labels[1:, 3, 3], labels[1:, 4, 4] = 1, 2, 3
    moving_labels = labels.copy()
    moving_labels[3][moving_labels[3] == 2] = 0
    arrays = {
        "fixed": rng.uniform(5, 9, geometry.shape),
        "moving": rng.uniform(0, 700, geometry.shape),
        "fixed_labels": labels,
        "moving_labels": moving_labels,
    }
    files = {}
    for part, array in (arrays | changes).items():
        files[part] = folder / f"{name}-{part}.mha"
        write_volume(Volume(array, geometry), files[part])
    return Case(case=name, subject=name, **files)


SLICES = PrepareSettings(slices="labelled", size=(24, 20), interpolation="cubic", intensity="min-max")


def test_labelled_slices_become_cases_and_the_others_are_named(tmp_path):
    ready, dropped = prepare_cases([stack_case(tmp_path)], SLICES, tmp_path / "out")
    assert [case.case for case in ready] == ["p1_z01", "p1_z02"]
    assert [(row.case, row.stage) for row in dropped] == [("p1_z00", "prepare"), ("p1_z03", "prepare")]
    assert "moving_labels lacks [2]" in dropped[1].reason
    fixed, labels = read_volume(ready[0].fixed), read_volume(ready[0].fixed_labels)
    assert fixed.geometry.size == labels.geometry.size == (24, 20)
    np.testing.assert_allclose(fixed.geometry.spacing_mm, (0.75, 0.75))
    assert set(np.unique(labels.array)) == {0, 1, 2, 3}
    assert [case.slice_spacing_mm for case in ready] == [8.0, 8.0]  # of the stack, which a slice does not know
    assert fixed.array.min() == 0
    assert fixed.array.max() == 1


def test_a_whole_stack_keeps_its_slices_and_the_labels_of_those_that_would_be_cut_out(tmp_path):
    whole = SLICES.model_copy(update={"slices": "stack"})
    (ready,), dropped = prepare_cases([stack_case(tmp_path)], whole, tmp_path / "out")
    assert ready.case == "p1" and dropped == []
    fixed, labels = read_volume(ready.fixed), read_volume(ready.moving_labels)
    assert fixed.geometry.size == labels.geometry.size == (24, 20, 4)
    np.testing.assert_allclose(fixed.geometry.spacing_mm, (0.75, 0.75, 8.0))
    cut, _ = prepare_cases([stack_case(tmp_path)], SLICES, tmp_path / "slices")
    for z, slices in zip((1, 2), cut, strict=True):
        np.testing.assert_array_equal(labels.array[z], read_volume(slices.moving_labels).array)
    assert not labels.array[[0, 3]].any() and read_volume(stack_case(tmp_path).moving_labels).array[3].any()


def test_a_stack_without_a_slice_to_score_is_left_out(tmp_path):
    whole = SLICES.model_copy(update={"slices": "stack", "required_labels": (1, 9)})
    ready, (row,) = prepare_cases([stack_case(tmp_path)], whole, tmp_path / "out")
    assert ready == [] and "no slice holds all of the labels [1, 9]" in row.reason


@pytest.mark.parametrize(
    ("areas", "levels"),
    [
        ([9, 8, 7, 5, 3, 2], ["base"] * 2 + ["mid"] * 2 + ["apex"] * 2),
        ([2, 3, 5, 7, 8, 9], ["apex"] * 2 + ["mid"] * 2 + ["base"] * 2),
        ([4, 9, 8, 7, 2], ["base"] * 2 + ["mid"] + ["apex"] * 2),
        ([9, 5, 3, 1], ["base", "mid", "mid", "apex"]),
        ([1, 9], ["apex", "base"]),
        ([5], ["mid"]),
        ([], []),
    ],
)
def test_levels_are_thirds_from_the_end_where_the_labels_are_larger(areas, levels):
    assert levels_of(areas) == levels


def test_slices_are_told_their_level_by_the_labels_of_both_images(tmp_path):
    geometry = Geometry.regular((12, 10, 4), (1.5, 1.5, 8.0))
    labels = np.zeros(geometry.shape, np.uint8)
    labels[:, 2, 2], labels[:, 3, 3], labels[:, 4, 4] = 1, 2, 3
    moving = labels.copy()
    labels[0, 6:8, 6:8] = 3  # the fixed map is larger at one end, the moving one still more at the other
    moving[3, 5:9, 5:9] = 3
    case = stack_case(tmp_path, fixed_labels=labels, moving_labels=moving)
    ready, _ = prepare_cases([case], SLICES, tmp_path / "out")
    assert [case.level for case in ready] == ["apex", "mid", "mid", "base"]
    turned = case.model_copy(update={"fixed_labels": case.moving_labels, "moving_labels": case.fixed_labels})
    assert [case.level for case in prepare_cases([turned], SLICES, tmp_path / "out")[0]] == ["apex", "mid", "mid", "base"]
    assert prepare_cases([case], PrepareSettings(intensity="min-max"), tmp_path / "out")[0][0].level == ""


def test_slicing_takes_the_right_slice(tmp_path):
    case = stack_case(tmp_path)
    ready, _ = prepare_cases([case], PrepareSettings(slices="labelled"), tmp_path / "out")
    np.testing.assert_allclose(read_volume(ready[1].moving).array, read_volume(case.moving).array[2])


def test_a_volume_used_by_two_cases_is_written_once(tmp_path):
    case = stack_case(tmp_path)
    twin = case.model_copy(update={"case": "p2", "fixed": case.moving, "moving": case.fixed})
    ready, _ = prepare_cases([case, twin], PrepareSettings(intensity="min-max"), tmp_path / "out")
    assert ready[0].fixed == ready[1].moving
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_nothing_asked_means_nothing_copied(tmp_path):
    case = stack_case(tmp_path)
    ready, _ = prepare_cases([case], PrepareSettings(), tmp_path / "out")
    assert ready == [case]
    assert not (tmp_path / "out").exists()


def test_a_bad_case_is_left_out_alone(tmp_path):
    flat = stack_case(tmp_path, "flat", fixed=np.ones((4, 10, 12)))
    gone = stack_case(tmp_path, "gone")
    gone.moving.unlink()
    shifted = stack_case(tmp_path, "shifted")
    write_volume(Volume(np.ones((4, 10, 11), np.uint8), Geometry.regular((11, 10, 4))), shifted.moving_labels)
    unlabelled = stack_case(tmp_path, "unlabelled").model_copy(update={"fixed_labels": None})
    ready, dropped = prepare_cases([flat, gone, shifted, unlabelled, stack_case(tmp_path, "good")], SLICES, tmp_path / "out")
    assert {case.subject for case in ready} == {"good"}
    reasons = {row.case: row.reason for row in dropped}
    assert "constant" in reasons["flat"]
    assert "gone-moving.mha: no such file" in reasons["gone"]
    assert "grid" in reasons["shifted"]
    assert "no fixed_labels" in reasons["unlabelled"]


@pytest.mark.parametrize("geometry", [Geometry.regular((12, 10, 4), (1.5, 1.5, 8.0)), oblique_geometry(3).cropped((0, 0, 0), (12, 10, 4))])
def test_the_true_transform_follows_into_the_slice(geometry, tmp_path):
    """A shift by whole voxels in the plane, known in 3-D, pulls the moving slice onto the fixed one in 2-D."""
    rng = np.random.default_rng(0)
    fixed = rng.uniform(size=geometry.shape)
    moving = np.roll(fixed, (1, 2), axis=(1, 2))  # fixed voxel (x, y) stands at (x + 2, y + 1)
    field = np.broadcast_to(geometry.index_to_physical @ [2.0, 1.0, 0.0], (*geometry.shape, 3))
    case = stack_case(tmp_path, geometry=geometry, fixed=fixed, moving=moving)
    write_transform(Field(np.array(field), geometry), tmp_path / "true.h5")
    case = case.model_copy(update={"true_transform": tmp_path / "true.h5"})
    ready, _ = prepare_cases([case], PrepareSettings(slices="labelled"), tmp_path / "out")
    image = read_volume(ready[0].fixed)
    warped = warp(read_volume(ready[0].moving), read_transform(ready[0].true_transform), image.geometry)
    np.testing.assert_allclose(warped.array[:-1, :-2], image.array[:-1, :-2], atol=1e-5)


def test_resampling_to_a_voxel_size_does_not_alias(tmp_path):
    geometry = Geometry.regular((64, 64, 8), 1.0)
    stripes = np.broadcast_to(np.indices(geometry.shape)[2] % 2, geometry.shape).astype(float)
    case = stack_case(tmp_path, geometry=geometry, fixed=stripes)
    ready, _ = prepare_cases([case], PrepareSettings(spacing_mm=3.0), tmp_path / "out")
    coarse = read_volume(ready[0].fixed)
    assert coarse.geometry.size == (21, 21, 3)
    assert np.ptp(coarse.array[:, :, 3:-3]) < 0.2


def test_exclusions_survive_commas_quotes_and_newlines(tmp_path):
    rows = [Exclusion("a", "prepare", 'a "bad", thing'), Exclusion("b", "mi", "über")]
    write_exclusions(rows, tmp_path / "x.csv")
    assert read_exclusions(tmp_path / "x.csv") == rows


def test_a_region_is_the_enlarged_box_of_the_labels_and_changes_no_volume(tmp_path):
    case = stack_case(tmp_path)
    ready, dropped = prepare_cases([case, case.model_copy(update={"case": "p2"})], PrepareSettings(region=0.5), tmp_path / "out")
    assert dropped == []
    assert (ready[0].fixed, ready[0].fixed_labels) == (case.fixed, case.fixed_labels)
    assert ready[0].fixed_mask == ready[1].fixed_mask
    mask = np.argwhere(read_volume(ready[0].fixed_mask).array)
    # labels fill slices 1 to 3, rows and columns 2 to 4: a box of 3, and half of it more on each side, rounded outward, as far as there are voxels
    assert (mask.min(0).tolist(), mask.max(0).tolist()) == ([0, 0, 0], [3, 6, 6])
    without = case.model_copy(update={"fixed_labels": None})
    assert "no fixed_labels" in prepare_cases([without], PrepareSettings(region=0.5), tmp_path / "out")[1][0].reason


def test_the_moving_counterpart_is_prepared_as_an_image(tmp_path):
    case = stack_case(tmp_path)
    counterpart = tmp_path / "counterpart.mha"
    moving = read_volume(case.moving)
    write_volume(moving.with_array(100 + 50 * moving.array.astype(float)), counterpart)
    (ready, *_), _ = prepare_cases([case.model_copy(update={"moving_counterpart": counterpart})], SLICES, tmp_path / "out")
    np.testing.assert_allclose(read_volume(ready.moving_counterpart).array, read_volume(ready.moving).array, atol=1e-5)
