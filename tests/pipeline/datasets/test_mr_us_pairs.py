"""MR-ultrasound pairs in four folders: who is fixed, whose voxel size counts, and where a start by the volumes' centres leads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest

from pipeline.datasets.registry import create_dataset
from pipeline.errors import ConcordError
from pipeline.measures import Scored, measure_rows, read_points
from pipeline.methods import Run
from pipeline.transform_files import read_transform
from pipeline.volumes import read_volume

US_SIZE, MR_SIZE = (14, 18, 12), (20, 20, 16)
AFFINE = np.array([[0.4, 0, 0, 0.4], [0, 0.4, 0, 0.4], [0, 0, 0.4, 0.4], [0, 0, 0, 1]])
US_MARK, MR_MARK = (5, 9, 4), (9, 11, 7)


def save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)


def labels(size, mark, structures: int = 3) -> np.ndarray:
    """The gland about the middle, one landmark of one voxel, one that is missing."""
    array = np.zeros((*size, structures))
    low = np.array(size) // 2 - 4
    array[low[0] : low[0] + 8, low[1] : low[1] + 8, low[2] : low[2] + 8, 0] = 1
    if structures > 1:
        array[(*mark, 1)] = 1
    return array


def make(root: Path, name: str = "case000000", structures: int = 3) -> None:
    save(np.full(US_SIZE, 10, np.uint8), root / f"fixed_images/{name}.nii.gz")
    save(np.full(MR_SIZE, 200, np.uint8), root / f"moving_images/{name}.nii.gz")
    us, mr = labels(US_SIZE, US_MARK, structures), labels(MR_SIZE, MR_MARK, structures)
    save(us if structures > 1 else us[..., 0], root / f"fixed_labels/{name}.nii.gz")
    save(mr if structures > 1 else mr[..., 0], root / f"moving_labels/{name}.nii.gz")


def found_in(root: Path, **settings):
    return create_dataset("mr-us-pairs", {"root": str(root), **settings}).cases(root / "made", Run(seed=2))


def lps(index, spacing=0.4) -> np.ndarray:
    """The first voxel lies at 0.4 mm (RAS) whatever the spacing."""
    return (np.multiply(index, spacing) + 0.4) * (-1, -1, 1)


def test_mr_is_fixed_although_its_folder_is_called_moving(tmp_path):
    make(tmp_path)
    (case,) = found_in(tmp_path).cases
    assert (case.fixed.parent.name, case.moving.parent.name) == ("moving_images", "fixed_images")
    assert (case.fixed_modality, case.moving_modality, case.start) == ("mr", "trus", "centres")
    assert np.allclose(read_points(case.fixed_landmarks, 3), [lps(MR_MARK)], atol=1e-6)
    assert np.allclose(read_points(case.moving_landmarks, 3), [lps(US_MARK)], atol=1e-6)
    assert read_volume(case.fixed_labels).geometry.matches(read_volume(case.fixed).geometry)


def test_the_folders_may_be_taken_at_their_word(tmp_path):
    make(tmp_path)
    (case,) = found_in(tmp_path, fixed="us").cases
    assert (case.fixed.parent.name, case.fixed_modality, case.moving_modality) == ("fixed_images", "trus", "mr")
    assert np.allclose(read_points(case.fixed_landmarks, 3), [lps(US_MARK)], atol=1e-6)
    assert read_volume(case.fixed_labels).geometry.size == US_SIZE


def test_the_start_lays_the_middles_of_the_volumes_onto_each_other(tmp_path):
    make(tmp_path)
    (case,) = found_in(tmp_path).cases
    start = read_transform(case.start_transform)
    assert np.allclose(start.points(lps(np.subtract(MR_SIZE, 1) / 2)[None]), lps(np.subtract(US_SIZE, 1) / 2), atol=1e-6)
    assert np.array_equal(start.matrix, np.eye(3))
    assert next(measure_rows("dice", Scored(case, case.start_transform)))[2] == 1.0
    plain = found_in(tmp_path, start="none").cases[0]
    assert (plain.start, plain.start_transform) == ("", None)


def test_a_voxel_size_of_the_settings_replaces_that_of_the_header(tmp_path):
    make(tmp_path)
    (case,) = found_in(tmp_path, spacing_mm={"us": [0.8, 0.8, 1.2]}).cases
    assert read_volume(case.moving).geometry.spacing_mm == (0.8, 0.8, 1.2)
    assert read_volume(case.moving_labels).geometry.matches(read_volume(case.moving).geometry)
    assert read_volume(case.fixed).geometry.spacing_mm == pytest.approx((0.4,) * 3)
    assert np.allclose(read_points(case.moving_landmarks, 3), [lps(US_MARK, (0.8, 0.8, 1.2))], atol=1e-6)
    assert np.array_equal(read_volume(case.moving).array, np.full(US_SIZE[::-1], 10))


def test_a_label_file_of_three_dimensions_holds_the_gland_alone(tmp_path):
    make(tmp_path, structures=1)
    (case,) = found_in(tmp_path).cases
    assert (case.fixed_landmarks, read_volume(case.fixed_labels).array.sum()) == (None, 512)


def test_splits_are_drawn_and_bad_cases_left_out_by_name(tmp_path):
    for number in range(6):
        make(tmp_path, f"case00000{number}")
    (tmp_path / "moving_labels/case000004.nii.gz").unlink()
    save(np.zeros((*US_SIZE, 2)), tmp_path / "fixed_labels/case000005.nii.gz")
    cases, left_out = found_in(tmp_path, hold_out=1, train=2)
    assert Counter(case.split for case in cases) == {"train": 2, "validation": 1, "test": 1}
    assert [(row.subject, row.reason.split("(")[0].split(": ")[-1].strip()) for row in left_out] == [
        ("case000004", "no mr labels"),
        ("case000005", "no voxel of the gland"),
    ]


def test_another_setting_makes_the_files_again_and_the_same_does_not(tmp_path):
    make(tmp_path)
    found = found_in(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()}
    assert found_in(tmp_path) == found
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()}
    (case,) = found_in(tmp_path, spacing_mm={"mr": 0.8}).cases
    assert np.allclose(read_points(case.fixed_landmarks, 3), [lps(MR_MARK, 0.8)], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"spacing_mm": {"us": 0}}, "expected a voxel size in mm"),
        ({"spacing_mm": {"us": [1, 1]}}, "expected a voxel size in mm"),
        ({"spacing_mm": {"ct": 1}}, "spacing_mm"),
        ({"fixed": "trus"}, "'mr' or 'us'"),
    ],
)
def test_bad_settings_are_told(tmp_path, settings, told):
    with pytest.raises(ConcordError, match=told):
        found_in(tmp_path, **settings)


def test_an_empty_folder_is_told_with_the_layout(tmp_path):
    with pytest.raises(ConcordError, match=r"no usable subject; expected \{fixed,moving\}_\{images,labels\}"):
        found_in(tmp_path)


@pytest.mark.realdata
def test_twenty_real_files_give_twenty_pairs_with_glands_of_alike_size(real_data, tmp_path):
    """In voxels, glands of both images are of one size within 50 % and 5 % on average: the images have one voxel size, whatever it is."""
    root = real_data / "mr_us_simulated"
    if not root.is_dir():
        pytest.skip(f"no volumes at {root}")
    cases, left_out = create_dataset("mr-us-pairs", {"root": str(root)}).cases(tmp_path, Run(seed=1))
    assert (len(cases), left_out) == (20, [])
    assert sum(case.fixed_landmarks is not None for case in cases) == 15
    voxels = np.array([[(read_volume(path).array != 0).sum() for path in (case.fixed_labels, case.moving_labels)] for case in cases])
    ratio = np.log(voxels[:, 0] / voxels[:, 1])
    assert np.abs(ratio).max() < np.log(1.5)
    assert abs(ratio.mean()) < 0.1
    scored = Scored(cases[0], cases[0].start_transform)
    assert next(measure_rows("dice", scored))[2] > 0.3
    assert 0 < next(measure_rows("tre_mm", scored))[2] < 10
