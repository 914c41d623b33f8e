"""muRegPro: the gland and the centroids of shared structures come to stand where the voxels of a tiny tree lie."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from pipeline.datasets.registry import create_dataset
from pipeline.errors import ConcordError
from pipeline.measures import Scored, measure_rows, read_points
from pipeline.methods import Run
from pipeline.transform_files import write_transform
from pipeline.transforms import Linear
from pipeline.volumes import read_volume

MR_SIZE, US_SIZE = (20, 24, 16), (18, 22, 14)
MR_AFFINE = np.array([[-0.8, 0, 0, 12], [0, -0.8, 0, 30], [0, 0, 0.8, -7], [0, 0, 0, 1]])  # RAS: the image is LPS
US_AFFINE = np.array([[0.8, 0, 0, -4], [0, 0.8, 0, 5], [0, 0, 0.8, 6], [0, 0, 0, 1]])
SHIFT_VX = (2, -1, 1)
LANDMARKS = {1: (5, 6, 7), 2: (12, 8, 5), 3: (9, 15, 9)}


def save(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def labels(size, shift=(0, 0, 0), without=()) -> np.ndarray:
    """The gland as a box, and blobs of three voxels along x around the landmarks."""
    array = np.zeros((*size, 6), np.uint8)
    x, y, z = shift
    array[4 + x : 14 + x, 5 + y : 16 + y, 3 + z : 11 + z, 0] = 1
    for number, (i, j, k) in LANDMARKS.items():
        if number not in without:
            array[i + x - 1 : i + x + 2, j + y, k + z, number] = 1
    return array


def make(root: Path, name: str = "case000001", part: str = "train", *, mr_labels=None, us_labels=None) -> None:
    base = root / part
    save(np.random.default_rng(0).integers(0, 255, MR_SIZE).astype(np.uint8), MR_AFFINE, base / f"mr_images/{name}.nii.gz")
    save(np.random.default_rng(1).integers(0, 255, US_SIZE).astype(np.uint8), US_AFFINE, base / f"us_images/{name}.nii.gz")
    save(labels(MR_SIZE) if mr_labels is None else mr_labels, MR_AFFINE, base / f"mr_labels/{name}.nii.gz")
    save(labels(US_SIZE, SHIFT_VX) if us_labels is None else us_labels, US_AFFINE, base / f"us_labels/{name}.nii.gz")


def found_in(root: Path, **settings):
    return create_dataset("muregpro", {"root": str(root), **settings}).cases(root / "made", Run(seed=2))


def lps(affine: np.ndarray, index) -> np.ndarray:
    return (affine[:3, :3] @ index + affine[:3, 3]) * (-1, -1, 1)


def test_landmarks_are_the_centroids_in_physical_coordinates(tmp_path):
    make(tmp_path)
    (case,) = found_in(tmp_path).cases
    assert np.allclose(read_points(case.fixed_landmarks, 3), [lps(MR_AFFINE, place) for place in LANDMARKS.values()], atol=1e-5)
    assert np.allclose(read_points(case.moving_landmarks, 3), [lps(US_AFFINE, np.add(place, SHIFT_VX)) for place in LANDMARKS.values()], atol=1e-5)
    assert (case.fixed.parent.name, case.moving.parent.name, case.true_transform) == ("mr_images", "us_images", None)


def test_the_map_between_both_images_scores_perfectly(tmp_path):
    """Turned by 180 degrees about z (one header is LPS, the other RAS), and shifted by what the voxels are."""
    make(tmp_path)
    (case,) = found_in(tmp_path).cases
    turn = np.diag([-1.0, -1.0, 1.0])
    shift = lps(US_AFFINE, np.array(SHIFT_VX)) - turn @ lps(MR_AFFINE, np.zeros(3))
    write_transform(Linear(turn, shift, "rigid"), tmp_path / "found.tfm")
    scored = Scored(case, tmp_path / "found.tfm")
    assert next(measure_rows("tre_mm", scored))[2] == pytest.approx(0, abs=1e-5)
    assert list(measure_rows("dice", scored)) == [("1", "dice", 1.0, "")]


def test_the_gland_lies_on_the_grid_of_its_image(tmp_path):
    make(tmp_path)
    (case,) = found_in(tmp_path).cases
    for image, label in ((case.fixed, case.fixed_labels), (case.moving, case.moving_labels)):
        assert read_volume(label).geometry.matches(read_volume(image).geometry)
        assert read_volume(label).array.sum() == 10 * 11 * 8


def test_only_structures_that_both_images_have_are_landmarks_and_in_the_same_order(tmp_path):
    make(tmp_path, mr_labels=labels(MR_SIZE, without=(2,)), us_labels=labels(US_SIZE, SHIFT_VX, without=(1,)))
    (case,) = found_in(tmp_path).cases
    assert np.allclose(read_points(case.fixed_landmarks, 3), [lps(MR_AFFINE, LANDMARKS[3])], atol=1e-5)
    assert np.allclose(read_points(case.moving_landmarks, 3), [lps(US_AFFINE, np.add(LANDMARKS[3], SHIFT_VX))], atol=1e-5)


def test_a_pair_without_shared_structures_has_no_landmarks(tmp_path):
    make(tmp_path, mr_labels=labels(MR_SIZE)[..., 0])
    (case,) = found_in(tmp_path).cases
    assert (case.fixed_landmarks, case.moving_landmarks) == (None, None)
    assert read_volume(case.fixed_labels).array.sum() == 880


def test_structures_in_niftis_fifth_dimension_are_the_same(tmp_path):
    make(tmp_path, mr_labels=labels(MR_SIZE)[:, :, :, None, :])
    (case,) = found_in(tmp_path).cases
    assert np.allclose(read_points(case.fixed_landmarks, 3)[0], lps(MR_AFFINE, LANDMARKS[1]), atol=1e-5)


def test_train_cases_train_and_val_cases_are_the_test(tmp_path):
    for number in range(4):
        make(tmp_path / "nifti_data", f"case{number:06d}", "train" if number < 3 else "val")
    splits = {case.case: case.split for case in found_in(tmp_path, hold_out=1).cases}
    assert splits == {"case000000": "train", "case000001": "train", "case000002": "validation", "case000003": "test"}
    assert [case.case for case in found_in(tmp_path, part="val").cases] == ["case000003"]
    with pytest.raises(ConcordError, match="hold_out 4 of 3 usable cases"):
        found_in(tmp_path, hold_out=4)


def test_a_second_run_writes_nothing(tmp_path):
    make(tmp_path)
    found = found_in(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()}
    assert len(times) == 5
    assert found_in(tmp_path) == found
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()}


def test_bad_cases_are_left_out_by_name(tmp_path):
    make(tmp_path, "good")
    make(tmp_path, "nogland", mr_labels=labels(MR_SIZE) * np.array([0, 1, 1, 1, 1, 1], np.uint8))
    make(tmp_path, "othersize", us_labels=labels((18, 22, 15)))
    make(tmp_path, "cut")
    make(tmp_path, "lonely")
    (tmp_path / "train/us_labels/lonely.nii.gz").unlink()
    cut = tmp_path / "train/mr_labels/cut.nii.gz"
    cut.write_bytes(cut.read_bytes()[:80])
    make(tmp_path, "good", "val")
    found = found_in(tmp_path)
    reasons = dict(found.left_out)
    assert [case.case for case in found.cases] == ["good"]
    assert sorted(reasons) == ["cut", "good", "lonely", "nogland", "othersize"]
    told = {
        "cut": "truncated",
        "good": "stands in train as well",
        "lonely": "us_labels",
        "nogland": "no voxel of the gland",
        "othersize": "image's grid",
    }
    assert all(text in reasons[name] and "\n" not in reasons[name] for name, text in told.items())


def test_an_empty_folder_and_an_unknown_subject_are_told(tmp_path):
    with pytest.raises(ConcordError, match="no usable subject; expected"):
        found_in(tmp_path)
    make(tmp_path)
    with pytest.raises(ConcordError, match="no subject 'case000002'; did you mean 'case000001'"):
        found_in(tmp_path, subjects=["case000002"])
