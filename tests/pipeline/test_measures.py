"""Measures of a known transform: every one gives the value worked out by hand, and what is missing is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from examples import rotation

from pipeline.cases import Case
from pipeline.errors import ConcordError
from pipeline.measures import MEASURES, Scored, measure_rows, read_points
from pipeline.rigid_motion import motion_matrix
from pipeline.transform_files import write_transform
from pipeline.transforms import Linear
from pipeline.volumes import Geometry, Volume, write_volume


def values_of(name: str, case: Case, transform: str) -> dict[str, float]:
    return {structure: value for structure, _, value, _ in measure_rows(name, Scored(case, case.fixed.parent / transform))}


def test_a_transform_that_is_one_millimetre_short_scores_so(boxes_case):
    """Boxes of 8 and 4 voxels along x, one voxel (1 mm) of shift left over."""
    assert values_of("dice", boxes_case, "found.h5") == pytest.approx({"1": 7 / 8, "2": 3 / 4})
    assert values_of("jaccard", boxes_case, "found.h5") == pytest.approx({"1": 7 / 9, "2": 3 / 5})
    assert values_of("displacement_error_mm", boxes_case, "found.h5") == pytest.approx({"": 1.0})
    assert values_of("tre_mm", boxes_case, "found.h5") == pytest.approx({"": 1.0})
    assert values_of("hd95_mm", boxes_case, "found.h5") == pytest.approx({"1": 1.0, "2": 1.0})
    assert values_of("folding", boxes_case, "found.h5") == {"": 0.0}
    assert values_of("sdlogj", boxes_case, "found.h5") == pytest.approx({"": 0.0}, abs=1e-9)


def test_a_shift_is_an_error_of_the_surface_and_no_rotation(boxes_case):
    assert values_of("sre_mm", boxes_case, "found.h5") == pytest.approx({"": 1.0})
    assert values_of("translation_error_mm", boxes_case, "found.h5") == pytest.approx({"": 1.0})
    assert values_of("rotation_error_deg", boxes_case, "found.h5") == pytest.approx({"": 0.0}, abs=1e-5)


def test_a_turn_about_the_surface_is_a_rotation_and_no_shift(boxes_case, tmp_path):
    """The corners stand at the origin twice, at 9 on x twice, at 9 on y and on z once: their centroid is (3, 1.5, 1.5)."""
    turn, centroid = rotation(3, 0.2), np.array([3.0, 1.5, 1.5])
    truth = Linear(rotation(3, 1.1), [10.0, -20, 30], "rigid")
    write_transform(truth, boxes_case.true_transform)
    about = Linear(turn, centroid - turn @ centroid, "rigid")
    write_transform(truth.after(about), tmp_path / "turned.tfm")
    angle = np.rad2deg(np.arccos((np.trace(turn) - 1) / 2))
    assert values_of("rotation_error_deg", boxes_case, "turned.tfm") == pytest.approx({"": angle})
    assert values_of("translation_error_mm", boxes_case, "turned.tfm") == pytest.approx({"": 0.0}, abs=1e-5)
    corners = np.array([[0.0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 0], [9, 0, 0], [0, 0, 9]])
    expected = np.linalg.norm(about.points(corners) - corners, axis=1).mean()
    assert values_of("sre_mm", boxes_case, "turned.tfm") == pytest.approx({"": expected})


def test_the_error_of_a_start_is_that_of_its_motion_alone(boxes_case, tmp_path):
    """A start is the truth after the inverse of a motion M: its error is the mean of |M v - v|, whatever the truth."""
    truth = Linear(rotation(3, 0.9), [5.0, 6, -70], "rigid")
    motion = motion_matrix(np.array([4.0, -3, 2, 5, -4, 3]), np.array([-50.0, 20, 10]))
    inverse = np.linalg.inv(motion)
    write_transform(truth, boxes_case.true_transform)
    write_transform(truth.after(Linear(inverse[:3, :3], inverse[:3, 3], "rigid")), tmp_path / "start.tfm")
    corners = np.array([[0.0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 0], [9, 0, 0], [0, 0, 9]])
    expected = np.linalg.norm(corners @ motion[:3, :3].T + motion[:3, 3] - corners, axis=1).mean()
    assert values_of("sre_mm", boxes_case, "start.tfm") == pytest.approx({"": expected}, rel=1e-6)


def test_a_case_without_a_surface_is_named(boxes_case):
    with pytest.raises(ConcordError, match="case a: no fixed_surface or no true_transform"):
        values_of("sre_mm", boxes_case.model_copy(update={"fixed_surface": None}), "found.h5")


def test_the_true_transform_scores_perfectly(boxes_case):
    assert values_of("dice", boxes_case, "true.h5") == {"1": 1.0, "2": 1.0}
    assert values_of("surface_distance_mm", boxes_case, "true.h5") == {"1": 0.0, "2": 0.0}
    assert values_of("tre_mm", boxes_case, "true.h5") == pytest.approx({"": 0.0}, abs=1e-9)
    assert values_of("ssim", boxes_case, "true.h5")[""] > values_of("ssim", boxes_case, "found.h5")[""]


@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if measure.compute is not None])
def test_every_measure_gives_finite_numbers(name, boxes_case):
    values = values_of(name, boxes_case, "found.h5")
    assert values
    assert all(np.isfinite(value) for value in values.values())


def test_labels_on_another_grid_are_refused(boxes_case):
    write_volume(Volume(np.ones((3, 3, 3), np.uint8), Geometry.regular((3, 3, 3))), boxes_case.moving_labels)
    with pytest.raises(ConcordError, match=r"moving_labels\.mha: label map"):
        values_of("dice", boxes_case, "found.h5")


def test_bad_landmarks_are_refused(tmp_path):
    (tmp_path / "p.csv").write_text("x,y\n1,2\n")
    assert read_points(Path(tmp_path / "p.csv"), 2).tolist() == [[1.0, 2.0]]
    with pytest.raises(ConcordError, match="columns x, y, z"):
        read_points(tmp_path / "p.csv", 3)
    (tmp_path / "p.csv").write_text("x,y\n1,far\n")
    with pytest.raises(ConcordError, match="numeric"):
        read_points(tmp_path / "p.csv", 2)
