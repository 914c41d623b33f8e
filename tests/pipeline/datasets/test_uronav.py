"""The Attention-Reg layout: both kinds of registration file lead a known point of MR to its known place in the ultrasound."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from examples import rotation

from pipeline.datasets.registry import create_dataset
from pipeline.datasets.uronav import read_registration
from pipeline.errors import ConcordError
from pipeline.measures import Scored, measure_rows
from pipeline.methods import Run
from pipeline.surfaces import write_stl
from pipeline.transform_files import read_transform
from pipeline.volumes import read_volume

ORIGIN = np.array([-40.0, 20.0, -65.0])
SPACING, SIZE = (1.5, 1.5, 3.0), (40, 36, 16)
GLAND = ORIGIN + (28.13, 25.29, 22.41)
TURN, SHIFT = rotation(3, 0.25), np.array([61.0, 3.0, 90.0])
US_ORIGIN = TURN @ GLAND + SHIFT - 25  # the gland lies in the middle of a volume of 50 mm


def write_mhd(path: Path, array: np.ndarray, spacing, origin) -> None:
    array.astype("<i2").tofile(path.with_suffix(".raw"))
    size = " ".join(map(str, array.shape[::-1]))
    path.write_text(
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
        f"Offset = {' '.join(map(str, origin))}\nElementSpacing = {' '.join(map(str, spacing))}\nDimSize = {size}\n"
        f"ElementType = MET_SHORT\nElementDataFile = {path.stem}.raw\n"
    )


def octahedron(centre, half) -> np.ndarray:
    tips = np.stack([sign * half * np.eye(3)[axis] for axis in range(3) for sign in (1, -1)]) + centre
    faces = [[a, b, c] for a in (0, 1) for b in (2, 3) for c in (4, 5)]
    return tips[faces]


def coreg(turn=TURN, shift=SHIFT) -> np.ndarray:
    """As UroNav has it: MR to ultrasound, both physical; the first row and column are something else."""
    matrix = np.zeros((4, 4))
    matrix[0, 0], matrix[0, 1:], matrix[1:, 0], matrix[1:, 1:] = 1, 7.0, shift, turn
    return matrix


def refined(turn=TURN, shift=SHIFT) -> np.ndarray:
    """Ultrasound to MR measured from the origin of MR."""
    plain = np.eye(4)
    plain[:3, :3], plain[:3, 3] = turn, shift
    to_origin = np.eye(4)
    to_origin[:3, 3] = -ORIGIN
    return to_origin @ np.linalg.inv(plain)


def make(root: Path, name: str = "Case0001", **matrices: np.ndarray) -> Path:
    place = root / name
    place.mkdir()
    write_mhd(place / "MRVol.mhd", np.arange(np.prod(SIZE)).reshape(SIZE[::-1]) % 300, SPACING, ORIGIN)
    write_mhd(place / "USVol.mhd", np.ones((50, 50, 50)), (1.0, 1.0, 1.0), US_ORIGIN)
    write_stl(octahedron(GLAND, 14.0), place / "segmentationrtss.uronav.stl")
    for file, matrix in (matrices or {"coreg": coreg()}).items():
        np.savetxt(place / f"{file}.txt", matrix, fmt="%.6f")
    return place


def found_in(root: Path, folder: Path | None = None, **settings):
    return create_dataset("uronav", {"root": str(root), **settings}).cases(folder or root / "made", Run(seed=2))


@pytest.mark.parametrize("file", ["coreg", "coreg_refined"])
def test_a_point_of_mr_goes_to_its_place_in_the_ultrasound(tmp_path, file):
    make(tmp_path, **{file: coreg() if file == "coreg" else refined()})
    (case,), left_out = found_in(tmp_path)
    points = np.array([GLAND, GLAND + (10, -5, 3), ORIGIN])
    assert np.allclose(read_transform(case.true_transform).points(points), points @ TURN.T + SHIFT, atol=2e-4)
    assert read_transform(case.true_transform).kind == "rigid"
    assert (case.case, case.subject, case.fixed_modality, case.moving_modality, left_out) == ("Case0001", "Case0001", "mr", "trus", [])


def test_the_refined_registration_is_preferred(tmp_path):
    make(tmp_path, coreg=coreg(shift=SHIFT + 5), coreg_refined=refined())
    (case,) = found_in(tmp_path).cases
    assert np.allclose(read_transform(case.true_transform).points(GLAND[None]), TURN @ GLAND + SHIFT, atol=2e-4)


def test_digits_of_the_text_do_not_move_the_gland_and_leave_a_rotation(tmp_path):
    np.savetxt(tmp_path / "coreg.txt", coreg(), fmt="%.3f")
    matrix = read_registration(tmp_path / "coreg.txt", ORIGIN, GLAND)
    rounded = np.loadtxt(tmp_path / "coreg.txt")
    assert np.allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-14)
    assert np.allclose(matrix[:3, :3] @ GLAND + matrix[:3, 3], rounded[1:, 1:] @ GLAND + rounded[1:, 0], atol=1e-9)


def test_the_label_map_is_what_the_surface_encloses(tmp_path):
    make(tmp_path)
    (case,) = found_in(tmp_path).cases
    labels = read_volume(case.fixed_labels)
    assert labels.geometry.matches(read_volume(case.fixed).geometry)
    distance = np.abs(labels.geometry.grid_points() - GLAND).sum(axis=-1)
    assert np.array_equal(labels.array == 1, distance < 14)


def test_the_adjusted_volume_is_taken_where_it_stands(tmp_path):
    place = make(tmp_path)
    assert found_in(tmp_path).cases[0].fixed.name == "MRVol.mhd"
    write_mhd(place / "MRVol_adjusted.mhd", np.ones(SIZE[::-1]), SPACING, ORIGIN)
    assert found_in(tmp_path).cases[0].fixed.name == "MRVol_adjusted.mhd"
    assert found_in(tmp_path, adjusted=False).cases[0].fixed.name == "MRVol.mhd"


def test_starts_and_their_errors_follow_the_surface(tmp_path):
    for number in (1, 2, 3):
        make(tmp_path, f"Case000{number}")
    cases = found_in(tmp_path, hold_out=1, train=1, starts=[{"name": "near", "sre_mm": 8, "count": 2, "validation_count": 1}]).cases
    assert sorted(case.split for case in cases) == ["test", "test", "train", "validation"]
    case = next(case for case in cases if case.split == "test")
    assert next(measure_rows("sre_mm", Scored(case, case.start_transform)))[2] == pytest.approx(8.0, abs=2e-3)


def test_a_second_run_writes_nothing_and_a_corrected_registration_is_read_again(tmp_path):
    place = make(tmp_path)
    found = found_in(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()}
    assert found_in(tmp_path) == found
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()}
    np.savetxt(place / "coreg.txt", coreg(shift=SHIFT + 2), fmt="%.7f")
    found_in(tmp_path)
    assert np.allclose(read_transform(found.cases[0].true_transform).points(GLAND[None]), TURN @ GLAND + SHIFT + 2, atol=2e-4)


@pytest.mark.parametrize(
    ("matrices", "told"),
    [
        ({"coreg": coreg(1.02 * TURN)}, "scaled or sheared"),
        ({"coreg": coreg(TURN @ [[1, 0.1, 0], [0, 1, 0], [0, 0, 1]])}, "scaled or sheared"),
        ({"coreg": coreg(TURN @ np.diag([1.0, -1, 1]))}, "a reflection"),
        ({"coreg_refined": np.diag([1.0, 1, 0, 1])}, "scaled or sheared"),
        ({"coreg_refined": coreg()}, "last row"),
        ({"coreg": refined()[:3]}, r"shape \(3, 4\)"),
        ({"coreg": coreg() * np.nan}, "NaN"),
        ({"coreg": coreg(shift=SHIFT + 300)}, "out of the ultrasound volume"),
        ({"other": coreg()}, r"coreg\.txt: no such file"),
    ],
)
def test_a_case_with_a_wrong_registration_is_left_out_by_name(tmp_path, matrices, told):
    make(tmp_path)
    make(tmp_path, "Case0002", **matrices)
    found = found_in(tmp_path)
    assert [case.case for case in found.cases] == ["Case0001"]
    (row,) = found.left_out
    assert row.subject == "Case0002"
    assert re.search(told, row.reason)
    assert "\n" not in row.reason


def test_a_surface_in_another_frame_is_left_out_and_told(tmp_path):
    make(tmp_path)
    write_stl(octahedron(GLAND * (-1, -1, 1), 14.0), make(tmp_path, "Case0002") / "segmentationrtss.uronav.stl")
    write_stl(octahedron(GLAND - ORIGIN + (0, 80, 0), 14.0), make(tmp_path, "Case0003") / "segmentationrtss.uronav.stl")
    (make(tmp_path, "Case0004") / "USVol.raw").unlink()
    reasons = dict(found_in(tmp_path).left_out)
    assert sorted(reasons) == ["Case0002", "Case0003", "Case0004"]
    assert all("surface outside the volume" in reasons[name] and "RAS/LPS" in reasons[name] for name in ("Case0002", "Case0003"))


def test_too_few_cases_for_the_splits_and_none_at_all_are_refused(tmp_path):
    with pytest.raises(ConcordError, match="no usable subject; expected CaseNNNN"):
        found_in(tmp_path)
    make(tmp_path)
    with pytest.raises(ConcordError, match="hold_out 2 and train 0 of 1 usable cases"):
        found_in(tmp_path, hold_out=2)
