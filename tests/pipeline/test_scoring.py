"""Scores of a known transform: every measure gives the value worked out by hand, and what is missing is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from examples import blob_volume, rotation

from pipeline.cases import Case
from pipeline.errors import ConcordError
from pipeline.rigid_motion import motion_matrix
from pipeline.scoring import COLUMNS, MEASURES, Scored, measure_rows, read_points, read_scores, score_cases
from pipeline.surfaces import write_stl
from pipeline.transform_files import write_transform
from pipeline.transforms import Linear
from pipeline.volumes import Geometry, Volume, write_volume

GRID = Geometry.regular((30, 24, 16), (1.0, 2.0, 3.0))


@pytest.fixture
def case(tmp_path) -> Case:
    """Two boxes, and the moving volume three voxels further along x; landmarks and the true transform with it."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[4:12, 6:16, 8:16], labels[4:12, 6:16, 16:20] = 1, 2
    image = blob_volume(GRID)
    files = {"fixed": image, "moving": image.with_array(np.roll(image.array, 3, axis=2))}
    files |= {"fixed_labels": image.with_array(labels), "moving_labels": image.with_array(np.roll(labels, 3, axis=2))}
    for name, volume in files.items():
        write_volume(volume, tmp_path / f"{name}.mha")
    pd.DataFrame([[0.0, 0, 0], [5, 6, 7]], columns=list("xyz")).to_csv(tmp_path / "fixed.csv", index=False)
    pd.DataFrame([[3.0, 0, 0], [8, 6, 7]], columns=list("xyz")).to_csv(tmp_path / "moving.csv", index=False)
    write_stl(np.array([[[0.0, 0, 0], [9, 0, 0], [0, 9, 0]], [[0, 0, 0], [9, 0, 0], [0, 0, 9]]]), tmp_path / "surface.stl")
    write_transform(Linear(np.eye(3), [3.0, 0, 0], "translation"), tmp_path / "true.h5")
    write_transform(Linear(np.eye(3), [2.0, 0, 0], "translation"), tmp_path / "found.h5")
    paths = {name: tmp_path / f"{name}.mha" for name in files}
    landmarks = {"fixed_landmarks": tmp_path / "fixed.csv", "moving_landmarks": tmp_path / "moving.csv"}
    truth = {"true_transform": tmp_path / "true.h5", "fixed_surface": tmp_path / "surface.stl"}
    return Case(case="a", subject="s", **truth, **paths, **landmarks)


def values_of(name: str, case: Case, transform: str) -> dict[str, float]:
    return {structure: value for structure, _, value, _ in measure_rows(name, Scored(case, case.fixed.parent / transform))}


def test_a_transform_that_is_one_millimetre_short_scores_so(case):
    """Boxes of 8 and 4 voxels along x, one voxel (1 mm) of shift left over."""
    assert values_of("dice", case, "found.h5") == pytest.approx({"1": 7 / 8, "2": 3 / 4})
    assert values_of("jaccard", case, "found.h5") == pytest.approx({"1": 7 / 9, "2": 3 / 5})
    assert values_of("displacement_error_mm", case, "found.h5") == pytest.approx({"": 1.0})
    assert values_of("tre_mm", case, "found.h5") == pytest.approx({"": 1.0})
    assert values_of("hd95_mm", case, "found.h5") == pytest.approx({"1": 1.0, "2": 1.0})
    assert values_of("folding", case, "found.h5") == {"": 0.0}
    assert values_of("sdlogj", case, "found.h5") == pytest.approx({"": 0.0}, abs=1e-9)


def test_a_shift_is_an_error_of_the_surface_and_no_rotation(case):
    assert values_of("sre_mm", case, "found.h5") == pytest.approx({"": 1.0})
    assert values_of("translation_error_mm", case, "found.h5") == pytest.approx({"": 1.0})
    assert values_of("rotation_error_deg", case, "found.h5") == pytest.approx({"": 0.0}, abs=1e-5)


def test_a_turn_about_the_surface_is_a_rotation_and_no_shift(case, tmp_path):
    """The corners stand at the origin twice, at 9 on x twice, at 9 on y and on z once: their centroid is (3, 1.5, 1.5)."""
    turn, centroid = rotation(3, 0.2), np.array([3.0, 1.5, 1.5])
    truth = Linear(rotation(3, 1.1), [10.0, -20, 30], "rigid")
    write_transform(truth, case.true_transform)
    about = Linear(turn, centroid - turn @ centroid, "rigid")
    write_transform(truth.after(about), tmp_path / "turned.tfm")
    angle = np.rad2deg(np.arccos((np.trace(turn) - 1) / 2))
    assert values_of("rotation_error_deg", case, "turned.tfm") == pytest.approx({"": angle})
    assert values_of("translation_error_mm", case, "turned.tfm") == pytest.approx({"": 0.0}, abs=1e-5)
    corners = np.array([[0.0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 0], [9, 0, 0], [0, 0, 9]])
    expected = np.linalg.norm(about.points(corners) - corners, axis=1).mean()
    assert values_of("sre_mm", case, "turned.tfm") == pytest.approx({"": expected})


def test_the_error_of_a_start_is_that_of_its_motion_alone(case, tmp_path):
    """A start is the truth after the inverse of a motion M: its error is the mean of |M v - v|, whatever the truth."""
    truth = Linear(rotation(3, 0.9), [5.0, 6, -70], "rigid")
    motion = motion_matrix(np.array([4.0, -3, 2, 5, -4, 3]), np.array([-50.0, 20, 10]))
    inverse = np.linalg.inv(motion)
    write_transform(truth, case.true_transform)
    write_transform(truth.after(Linear(inverse[:3, :3], inverse[:3, 3], "rigid")), tmp_path / "start.tfm")
    corners = np.array([[0.0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 0], [9, 0, 0], [0, 0, 9]])
    expected = np.linalg.norm(corners @ motion[:3, :3].T + motion[:3, 3] - corners, axis=1).mean()
    assert values_of("sre_mm", case, "start.tfm") == pytest.approx({"": expected}, rel=1e-6)


def test_a_case_without_a_surface_is_named(case):
    with pytest.raises(ConcordError, match="case a: no fixed_surface or no true_transform"):
        values_of("sre_mm", case.model_copy(update={"fixed_surface": None}), "found.h5")


def test_the_true_transform_scores_perfectly(case):
    assert values_of("dice", case, "true.h5") == {"1": 1.0, "2": 1.0}
    assert values_of("surface_distance_mm", case, "true.h5") == {"1": 0.0, "2": 0.0}
    assert values_of("tre_mm", case, "true.h5") == pytest.approx({"": 0.0}, abs=1e-9)
    assert values_of("ssim", case, "true.h5")[""] > values_of("ssim", case, "found.h5")[""]


@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if measure.compute is not None])
def test_every_measure_gives_finite_numbers(name, case):
    values = values_of(name, case, "found.h5")
    assert values
    assert all(np.isfinite(value) for value in values.values())


def test_scores_are_tidy_and_failures_are_named(case, tmp_path):
    others = [case.model_copy(update={"case": name}) for name in ("failed", "absent", "unlabelled")]
    others[2] = others[2].model_copy(update={"fixed_labels": None})
    found = tmp_path / "found.h5"
    manifest = pd.DataFrame(
        [("a", "done", found, 2.5, 100.0, ""), ("failed", "failed", None, None, None, "it diverged"), ("unlabelled", "done", found, 1.0, 90.0, "")],
        columns=["case", "status", "transform", "seconds", "peak_memory_mib", "reason"],
    )
    scores, excluded = score_cases([case, *others], manifest, study="x", method="mi", measures=["dice", "seconds"])
    assert tuple(scores.columns) == COLUMNS
    assert scores[["case", "structure", "metric", "value"]].to_numpy().tolist() == [
        ["a", "1", "dice", 7 / 8],
        ["a", "2", "dice", 3 / 4],
        ["a", "", "seconds", 2.5],
        ["unlabelled", "", "seconds", 1.0],  # what needs no labels is known of it all the same
    ]
    assert [(row.case, row.stage, row.reason.split(";")[0]) for row in excluded] == [
        ("failed", "mi", "it diverged"),
        ("absent", "mi", "not in any manifest"),
        ("unlabelled", "mi (dice)", "no fixed_labels: without this measure"),
    ]
    scores.to_csv(tmp_path / "scores.csv", index=False)
    pd.testing.assert_frame_equal(
        read_scores(tmp_path / "scores.csv")[["case", "structure", "value"]], scores[["case", "structure", "value"]], check_dtype=False
    )


def test_what_networks_cost_is_scored_and_milliseconds_name_their_device(case, tmp_path):
    costs = {"seconds": 1.0, "inference_ms": 12.5, "parameters": 96777.0, "spread_mm": np.nan, "device": "cpu (toy), 1 thread"}
    manifest = pd.DataFrame([{"case": "a", "status": "done", "transform": tmp_path / "found.h5"} | costs])
    scores, _ = score_cases([case], manifest, study="x", method="mi", measures=["inference_ms", "parameters", "spread_mm", "seconds"])
    assert scores[["metric", "value", "unit"]].to_numpy().tolist() == [
        ["inference_ms", 12.5, "ms on cpu (toy), 1 thread"],
        ["parameters", 96777.0, ""],
        ["seconds", 1.0, "s"],
    ]


def test_a_measure_that_no_case_allows_is_left_out_and_not_the_cases(case, tmp_path, caplog):
    real = case.model_copy(update={"true_transform": None})
    manifest = pd.DataFrame(
        [("a", "done", tmp_path / "found.h5", 1.0, 90.0, "")], columns=["case", "status", "transform", "seconds", "peak_memory_mib", "reason"]
    )
    scores, excluded = score_cases([real], manifest, study="x", method="mi", measures=["dice", "displacement_error_mm"])
    assert scores["metric"].unique().tolist() == ["dice"]
    assert excluded == []
    assert "displacement_error_mm" in caplog.text


def test_labels_on_another_grid_are_refused(case):
    write_volume(Volume(np.ones((3, 3, 3), np.uint8), Geometry.regular((3, 3, 3))), case.moving_labels)
    with pytest.raises(ConcordError, match=r"moving_labels\.mha: label map"):
        values_of("dice", case, "found.h5")


def test_bad_landmarks_are_refused(tmp_path):
    (tmp_path / "p.csv").write_text("x,y\n1,2\n")
    assert read_points(Path(tmp_path / "p.csv"), 2).tolist() == [[1.0, 2.0]]
    with pytest.raises(ConcordError, match="columns x, y, z"):
        read_points(tmp_path / "p.csv", 3)
    (tmp_path / "p.csv").write_text("x,y\n1,far\n")
    with pytest.raises(ConcordError, match="numeric"):
        read_points(tmp_path / "p.csv", 2)
