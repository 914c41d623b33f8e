"""Random motion of slices: the inverse undoes it, ranges are kept, nothing folds, the file holds it."""

from __future__ import annotations

import numpy as np
import pytest

from metrics.accuracy.folding import folding_fraction
from pipeline.datasets.phantoms.slice_motion import Motion, random_motion
from pipeline.transform_files import read_transform, write_transform
from pipeline.transforms import Composite, Field, Linear
from pipeline.volumes import Geometry

GRID = Geometry.regular((64, 48), 3.0)
STILL = {"shift_mm": 0, "rotation_deg": 0, "scale": 0, "deformation_mm": 0}


def moved(seed: int = 0, grid: Geometry = GRID, **settings):
    return random_motion(grid, Motion(**settings), np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(5))
def test_the_truth_sends_what_the_inverse_brings(seed):
    motion = moved(seed)
    places = GRID.grid_points().reshape(-1, 2)
    sources = places + motion.inverse_mm.reshape(-1, 2)
    wide = np.all(np.abs(sources) < np.asarray(GRID.extent_mm) * 0.7, axis=1)  # the stored field ends a quarter of the slice beyond it
    assert wide.mean() > 0.95
    error = np.linalg.norm(motion.truth.points(sources) - places, axis=1)[wide]
    assert error.max() < 0.2  # mm: a fifteenth of a voxel
    assert error.mean() < 0.02


def test_without_deformation_it_is_a_similarity_about_the_middle_within_its_ranges():
    for seed in range(30):
        truth = moved(seed, deformation_mm=0, shift_mm=5, rotation_deg=10, scale=0.1).truth.parts[1]
        assert isinstance(truth, Linear)
        assert truth.kind == "similarity"
        scale = np.sqrt(np.linalg.det(truth.matrix))
        assert 0.9 <= scale <= 1.1
        assert abs(np.degrees(np.arctan2(truth.matrix[1, 0], truth.matrix[0, 0]))) <= 10
        assert np.abs(truth.points(GRID.centre_mm[None]) - GRID.centre_mm).max() <= 5


def test_ranges_are_used_up_and_zero_moves_nothing():
    shifts = np.array([moved(seed, **{**STILL, "shift_mm": 5}).truth.points(np.zeros((1, 2)))[0] for seed in range(200)])
    assert np.abs(shifts).max() > 4.8
    assert np.abs(shifts.mean(axis=0)).max() < 0.6
    still = moved(**STILL)
    np.testing.assert_allclose(still.truth.displacement_mm(GRID), 0, atol=1e-9)
    np.testing.assert_allclose(still.inverse_mm, 0, atol=1e-9)


def test_the_deformation_is_as_large_as_asked_and_folds_nowhere():
    fields = [moved(seed, **{**STILL, "deformation_mm": 4}).truth.displacement_mm(GRID) for seed in range(20)]
    assert np.sqrt(np.mean(np.sum(np.square(fields), axis=-1))) == pytest.approx(4.0, rel=0.15)
    assert max(folding_fraction(field / 3.0) for field in fields) == 0


def test_the_deformation_fades_out_where_its_field_ends():
    flow = moved(2, **{**STILL, "deformation_mm": 6}).truth
    border = np.ones(flow.geometry.shape, bool)
    border[1:-1, 1:-1] = False
    assert np.abs(flow.field_mm[border]).max() < 1e-6
    assert np.abs(flow.field_mm).max() > 5


def test_the_true_transform_survives_its_file(tmp_path):
    motion = moved(3)
    write_transform(motion.truth, tmp_path / "true.h5")
    found = read_transform(tmp_path / "true.h5")
    assert isinstance(found, Composite)
    assert isinstance(found.parts[0], Field)
    np.testing.assert_allclose(found.displacement_mm(GRID), motion.truth.displacement_mm(GRID), atol=1e-4)


def test_equal_seeds_move_alike_and_the_box_not_the_voxels_makes_the_motion():
    np.testing.assert_array_equal(moved(4).inverse_mm, moved(4).inverse_mm)
    assert np.abs(moved(4).inverse_mm - moved(5).inverse_mm).max() > 1
    fine = moved(4, Geometry.regular((128, 96), 1.5))
    points = np.array([[0.0, 0.0], [20.0, -30.0], [-40.0, 10.0]])
    np.testing.assert_allclose(fine.truth.points(points), moved(4).truth.points(points), atol=0.4)
