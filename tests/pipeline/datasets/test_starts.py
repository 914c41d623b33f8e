"""Starting positions: of the wanted size, the same whatever else is drawn, written once, and only where a rigid truth and a surface are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from examples import oblique_geometry, rotation
from pydantic import ValidationError
from scipy.spatial.transform import Rotation

from pipeline.cases import Case
from pipeline.datasets.starts import Starts, centre_of, with_starts
from pipeline.errors import ConcordError
from pipeline.rigid_motion import motion_parameters
from pipeline.rigid_motion import rigid_matrix as matrix_of
from pipeline.surfaces import read_stl, write_stl
from pipeline.transform_files import read_transform, write_transform
from pipeline.transforms import Linear
from pipeline.volumes import Volume, write_volume

GRID = oblique_geometry(3)
TRUTH = Linear(rotation(3, 0.4), [5.0, -60.0, 12.0], "rigid")
FOLDER_SEED = 11


def case_in(folder: Path, name: str = "one", split: str = "test", truth=TRUTH) -> Case:
    write_volume(Volume(np.zeros(GRID.shape, np.uint8), GRID), folder / "mr.mha")
    write_stl(GRID.centre_mm + np.random.default_rng(0).normal(size=(40, 3, 3)) * 12, folder / "gland.stl")
    write_transform(truth, folder / "true.tfm")
    files = {"fixed": "mr.mha", "moving": "mr.mha", "fixed_surface": "gland.stl", "true_transform": "true.tfm"}
    return Case(case=name, subject=name, split=split, **{column: folder / file for column, file in files.items()})


@pytest.fixture
def case(tmp_path) -> Case:
    return case_in(tmp_path)


def sre_of(case: Case) -> float:
    corners = read_stl(case.fixed_surface).reshape(-1, 3)
    moved = [read_transform(path).points(corners) for path in (case.start_transform, case.true_transform)]
    return float(np.linalg.norm(moved[0] - moved[1], axis=1).mean())


def rigid_matrix(path: Path) -> np.ndarray:
    return matrix_of(read_transform(path), str(path))


def motion_of(case: Case, centre: str = "origin") -> np.ndarray:
    """The drawn six numbers: M is the inverse of S after T_true: T_true = S M."""
    matrix = np.linalg.inv(rigid_matrix(case.start_transform)) @ rigid_matrix(case.true_transform)
    return motion_parameters(matrix, centre_of(case, centre, read_stl(case.fixed_surface).reshape(-1, 3)))


def test_every_start_has_the_wanted_error_and_its_own_name(case, tmp_path):
    found = with_starts([case], Starts(name="far", sre_mm=16, count=12), tmp_path, FOLDER_SEED)
    assert [item.case for item in found[:2]] + [found[-1].case] == ["one_far-01", "one_far-02", "one_far-12"]
    assert {(item.start, item.subject, item.split) for item in found} == {("far", "one", "test")}
    assert [sre_of(item) for item in found] == pytest.approx([16.0] * 12, abs=2e-3)
    assert len({tuple(motion_of(item).round(6)) for item in found}) == 12


def test_errors_of_a_range_are_spread_evenly_over_it(case, tmp_path):
    errors = np.sort([sre_of(item) for item in with_starts([case], Starts(name="any", sre_mm=(4, 20), count=60), tmp_path, FOLDER_SEED)])
    assert errors[0] > 4 - 2e-3
    assert errors[-1] < 20 + 2e-3
    assert np.abs(errors - np.linspace(4, 20, 60)).max() < 3  # Kolmogorov-Smirnov at 1 %: 3.3 mm


@pytest.mark.parametrize("centre", ["origin", "gland"])
def test_the_start_is_the_truth_after_the_inverse_of_a_motion_of_drawn_proportions(case, tmp_path, centre):
    """All six numbers are scaled alike, so that their ratios stay within those of the draw: translations in units of 5 mm, angles of 6 degrees."""
    starts = Starts(name="a", sre_mm=8, count=30, centre=centre)
    numbers = np.array([motion_of(item, centre) for item in with_starts([case], starts, tmp_path, FOLDER_SEED)])
    drawn = numbers / (5, 5, 5, 6, 6, 6)
    assert np.abs(drawn).max() < 3.0
    assert 0.2 < np.std(drawn[:, :3]) / np.std(drawn[:, 3:]) < 5


@pytest.mark.parametrize("centre", ["origin", "gland"])
def test_a_known_motion_is_undone_before_the_truth_and_turns_about_the_chosen_point(case, tmp_path, monkeypatch, centre):
    numbers = np.array([4.0, -3, 2, 5, -8, 10])
    monkeypatch.setattr("pipeline.rigid_motion.draw_motions", lambda *given, **options: numbers[None])
    (found,) = with_starts([case], Starts(name="a", sre_mm=8, count=1, centre=centre), tmp_path, FOLDER_SEED)
    corners = read_stl(case.fixed_surface).reshape(-1, 3)
    middle = np.array(GRID.origin_mm) if centre == "origin" else (corners.min(axis=0) + corners.max(axis=0)) / 2
    moved = Rotation.from_euler("xyz", numbers[3:], degrees=True).apply(corners - middle) + middle + numbers[:3]
    assert np.allclose(read_transform(found.start_transform).points(moved), TRUTH.points(corners), atol=1e-9)


def test_a_start_depends_on_seed_case_and_names_alone(case, tmp_path):
    starts = Starts(name="a", sre_mm=8, count=3)
    (tmp_path / "other").mkdir()
    other = case_in(tmp_path / "other", "two")
    few = [rigid_matrix(item.start_transform) for item in with_starts([case], starts, tmp_path / "x", FOLDER_SEED)]
    more = [starts.model_copy(update={"count": 5}), Starts(name="b", sre_mm=3, count=1)]
    among = with_starts([other, case], more, tmp_path / "y", FOLDER_SEED)
    assert [item.case for item in among] == [*(f"two_a-0{n}" for n in range(1, 6)), "two_b-01", *(f"one_a-0{n}" for n in range(1, 6)), "one_b-01"]
    again = {item.case: rigid_matrix(item.start_transform) for item in among}
    assert all(np.array_equal(matrix, again[f"one_a-0{n}"]) for n, matrix in enumerate(few, start=1))
    assert not np.allclose(again["two_a-01"], again["one_a-01"])
    assert not np.allclose(few[0], rigid_matrix(with_starts([case], starts, tmp_path / "z", FOLDER_SEED + 1)[0].start_transform))


def test_a_second_run_writes_nothing_and_a_changed_truth_draws_again(case, tmp_path):
    starts = Starts(name="a", sre_mm=8, count=3)
    found = with_starts([case], starts, tmp_path, FOLDER_SEED)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "starts").rglob("*")}
    assert len(times) == 1 + 3 + 1
    assert with_starts([case], starts, tmp_path, FOLDER_SEED) == found
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "starts").rglob("*")}
    write_transform(Linear(np.eye(3), [1.0, 2, 3], "rigid"), case.true_transform)
    with_starts([case], starts, tmp_path, FOLDER_SEED)
    assert sre_of(found[0]) == pytest.approx(8.0, abs=2e-3)


def test_validation_has_its_own_number_and_training_cases_stay_as_they_are(case, tmp_path):
    cases = [case, case.model_copy(update={"case": "v", "split": "validation"}), case.model_copy(update={"case": "t", "split": "train"})]
    found = with_starts(cases, Starts(name="a", sre_mm=8, count=2, validation_count=1), tmp_path, FOLDER_SEED)
    assert [item.case for item in found] == ["one_a-01", "one_a-02", "v_a-01", "t"]
    assert found[-1] == cases[-1]
    assert with_starts(cases, [], tmp_path, FOLDER_SEED) == cases


def test_a_case_without_truth_or_surface_stays_as_it_is(case, tmp_path):
    for column in ("true_transform", "fixed_surface"):
        plain = case.model_copy(update={column: None})
        assert with_starts([plain], Starts(name="a", count=2), tmp_path, FOLDER_SEED) == [plain]


def test_the_starts_file_is_a_rigid_transform_of_itk(case, tmp_path):
    (found,) = with_starts([case], Starts(name="a", sre_mm=8, count=1), tmp_path, FOLDER_SEED)
    assert "Euler3DTransform" in found.start_transform.read_text()
    assert read_transform(found.start_transform).kind == "rigid"


@pytest.mark.parametrize("truth", [Linear(1.01 * rotation(3), np.zeros(3)), Linear(np.diag([1.0, 1, -1]), np.zeros(3))])
def test_a_truth_that_is_not_rigid_is_refused(tmp_path, truth):
    with pytest.raises(ConcordError, match=r"true\.tfm.*(rigid 3-D transform|matrix is not rigid)"):
        with_starts([case_in(tmp_path, truth=truth)], Starts(name="a", count=1), tmp_path, 0)


def test_two_sets_of_one_name_are_refused(case, tmp_path):
    with pytest.raises(ConcordError, match="starts: a, a: each name is expected once"):
        with_starts([case], [Starts(name="a"), Starts(name="a", sre_mm=3)], tmp_path, 0)


@pytest.mark.parametrize("given", [-1, 0, [5, 2], [0, 0], [1, 2, 3], "far", float("nan"), [0, 200]])
def test_a_size_that_is_none_is_told_with_what_is_expected(given):
    with pytest.raises(ValidationError, match="expected a number of mm above 0, or a range"):
        Starts(name="a", sre_mm=given)


def test_a_name_must_be_safe_in_a_file():
    with pytest.raises(ValidationError, match="name"):
        Starts(name="so far/away")
