"""SyN: finds a known deformation across contrasts, after a linear stage, with masks; and the grids that both dense methods share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pipeline.classical.linear_stage import AfterLinearStage
from pipeline.classical.pyramid import axis_factors, field_on, itk_reason, itk_threads, refined, shrunk, zero_field
from pipeline.classical.syn import SyN
from pipeline.errors import ConcordError
from pipeline.methods import Pair, Run, create_method, run_method
from pipeline.resampling import warp
from pipeline.transforms import Composite, Field, Linear
from pipeline.volumes import Geometry, Volume, to_itk

QUICK = SyN(linear="none", shrink_factors=(2, 1), iterations=(25, 8))
FLAT, DEEP = Geometry.regular((64, 64), 1.0), Geometry.regular((32, 30, 34), 2.0)
SMALL = Geometry.regular((18, 20, 16), 3.5)


def anatomy(points_mm, seed=1):
    """Grey values of a made-up anatomy of blobs, anywhere in space."""
    rng = np.random.default_rng(seed)
    d = points_mm.shape[-1]
    blobs = 40 if d == 2 else 250
    centres, widths, heights = rng.uniform(-26, 26, (blobs, d)), rng.uniform(3, 7, blobs), rng.uniform(-1, 1, blobs)
    distance = ((points_mm[..., None, :] - centres) ** 2).sum(-1)
    head = 1 / (1 + np.exp(np.linalg.norm(points_mm, axis=-1) - 26))
    return head * (3 + (heights * np.exp(-distance / (2 * widths**2))).sum(-1))


def bend(points_mm):
    """A smooth displacement of up to 4 mm that dies away outside the head."""
    x = points_mm
    waves = np.stack([np.sin(x[..., (axis + 1) % x.shape[-1]] / 9 + axis) for axis in range(x.shape[-1])], axis=-1)
    return x + 3.5 * waves * np.exp(-((np.linalg.norm(x, axis=-1, keepdims=True) / 28) ** 4))


def pose(dimension):
    """A rotation, a scale and a shift."""
    turn = Rotation.from_euler("z", 8, degrees=True).as_matrix()[:dimension, :dimension]
    return Linear(1.05 * turn, np.arange(1, dimension + 1, dtype=float))


def pair_on(fixed: Geometry, moving: Geometry, *, truth=bend, other_contrast: bool = True) -> Pair:
    grey = anatomy(truth(fixed.grid_points()))
    if other_contrast:
        grey = np.where(grey > 0.3, 6 - grey, 2 * grey)
    return Pair(Volume(grey.astype(np.float32), fixed, "fixed"), Volume(anatomy(moving.grid_points()).astype(np.float32), moving, "moving"))


def errors_mm(transform, grid: Geometry, truth=bend) -> tuple[float, float]:
    """Mean error within the head, before and after."""
    points = grid.grid_points().reshape(-1, grid.dimension)
    points = points[np.linalg.norm(points, axis=-1) < 24]
    return np.linalg.norm(truth(points) - points, axis=-1).mean(), np.linalg.norm(transform.points(points) - truth(points), axis=-1).mean()


@pytest.mark.parametrize("grid", [FLAT, DEEP], ids=["2-D", "3-D"])
def test_mutual_information_recovers_a_known_deformation_across_contrasts(grid):
    found = run_method(SyN(linear="none"), pair_on(grid, grid), Run(threads=2))
    before, after = errors_mm(found, grid)
    assert isinstance(found, Field)
    assert found.geometry == grid
    assert after < 0.42 * before


def test_correlation_recovers_a_known_deformation():
    found = run_method(SyN(linear="none", metric="cc"), pair_on(FLAT, FLAT, other_contrast=False), Run(threads=2))
    before, after = errors_mm(found, FLAT)
    assert after < 0.35 * before


def test_grids_of_other_size_and_spacing_meet_in_physical_space():
    fixed, moving = Geometry.regular((60, 50), (1.0, 1.3)), Geometry.regular((80, 90), (0.9, 0.8), (-36.0, -34.0))
    before, after = errors_mm(run_method(SyN(linear="none"), pair_on(fixed, moving), Run()), fixed)
    assert after < 0.4 * before


def test_the_field_comes_first_and_the_linear_stage_after(monkeypatch):
    """Given the true pose as the linear stage, only the bend is left for SyN to find; in the other order it would be off."""
    turn = Linear(np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([2.0, 1.0]))
    monkeypatch.setattr(AfterLinearStage, "linear_start", lambda self, pair, run: turn)

    def truth(points):
        return turn.points(bend(points))

    found = SyN().register(pair_on(FLAT, FLAT, truth=truth), Run(threads=2))
    assert [type(part) for part in found.parts] == [Field, Linear]
    unbent, after = errors_mm(turn, FLAT, truth)[1], errors_mm(found, FLAT, truth)[1]
    assert after < 0.35 * unbent
    assert errors_mm(Composite(found.parts[::-1]), FLAT, truth)[1] > unbent


def test_the_linear_stage_is_found_by_mutual_information():
    def truth(points):
        return pose(2).points(bend(points))

    pair = pair_on(FLAT, FLAT, truth=truth)
    found = run_method(SyN(linear="affine"), pair, Run(threads=2))
    before, after = errors_mm(found, FLAT, truth)
    assert after < 0.35 * before
    same = warp(pair.moving, found, FLAT).array, anatomy(truth(FLAT.grid_points()))
    inside = np.linalg.norm(FLAT.grid_points(), axis=-1) < 22
    assert np.corrcoef(same[0][inside], same[1][inside])[0, 1] > 0.95


def test_identical_images_stay_about_where_they_are():
    pair = pair_on(FLAT, FLAT)
    found = SyN(linear="none", metric="cc").register(Pair(pair.fixed, pair.fixed), Run())
    assert np.abs(found.displacement_mm(FLAT)).max() < 1e-3
    found = QUICK.register(Pair(pair.fixed, pair.fixed), Run())
    inside = np.linalg.norm(FLAT.grid_points(), axis=-1) < 24
    assert np.linalg.norm(found.displacement_mm(FLAT)[inside], axis=-1).mean() < 0.2


def test_a_turned_scanner_gives_the_turned_field():
    turn = Rotation.from_euler("zyx", [25, -15, 35], degrees=True).as_matrix()
    oblique = replace(DEEP, direction=tuple(map(tuple, turn.tolist())), origin_mm=tuple((turn @ DEEP.origin_mm).tolist()))
    pair = pair_on(DEEP, DEEP)
    turned = Pair(Volume(pair.fixed.array, oblique), Volume(pair.moving.array, oblique))
    straight = QUICK.register(pair, Run()).field_mm
    assert np.abs(straight).max() > 2
    assert np.abs(QUICK.register(turned, Run()).field_mm - straight @ turn.T).mean() < 0.15 * np.abs(straight).mean()


def test_a_mask_shuts_out_what_lies_beyond_it():
    pair = pair_on(FLAT, FLAT)
    spoiled = pair.fixed.array.copy()
    spoiled[:, 38:] = np.random.default_rng(0).uniform(0, 8, spoiled[:, 38:].shape)
    mask = np.ones(FLAT.shape, np.uint8)
    mask[:, 36:] = 0
    bad = replace(pair, fixed=pair.fixed.with_array(spoiled))
    points = FLAT.grid_points()[:, 8:34].reshape(-1, 2)
    points = points[np.linalg.norm(points, axis=-1) < 24]
    after = []
    for masked in (replace(bad, fixed_mask=Volume(mask, FLAT)), bad):
        found = run_method(SyN(linear="none"), masked, Run())
        after.append(np.linalg.norm(found.points(points) - bend(points), axis=-1).mean())
    assert after[0] < after[1]
    right = FLAT.grid_points()[:, 50:].reshape(-1, 2)
    found = run_method(QUICK, replace(bad, fixed_mask=Volume(mask, FLAT)), Run())
    assert np.abs(found.points(right) - right).max() < 0.2


def test_a_moving_mask_counts_too():
    pair = pair_on(FLAT, FLAT)
    mask = np.ones(FLAT.shape, np.uint8)
    mask[:, 36:] = 0
    found = run_method(QUICK, replace(pair, moving_mask=Volume(mask, FLAT)), Run())
    right = FLAT.grid_points()[:, 50:].reshape(-1, 2)
    assert np.abs(found.points(right) - right).max() < 0.2 < np.abs(QUICK.register(pair, Run()).points(right) - right).max()


@pytest.mark.parametrize("threads", [1, 2])
def test_two_runs_give_the_same_bits(threads):
    first, second = (QUICK.register(pair_on(SMALL, SMALL), Run(threads=threads)) for _ in range(2))
    assert np.array_equal(first.field_mm, second.field_mm)


def test_nothing_folds():
    field = SyN(linear="none").register(pair_on(FLAT, FLAT), Run()).field_mm
    gradient = np.stack([np.gradient(field, axis=axis) for axis in (1, 0)], axis=-1)
    assert (np.linalg.det(np.eye(2) + gradient) > 0).all()


def test_levels_carry_on_where_the_last_one_ended():
    """A last level without iterations hands on what the one before it found."""
    one, two = (SyN(linear="none", shrink_factors=s, iterations=n) for s, n in (((2,), (20,)), ((2, 1), (20, 0))))
    pair = pair_on(FLAT, FLAT)
    first, second = (m.register(pair, Run()).displacement_mm(FLAT) for m in (one, two))
    np.testing.assert_allclose(first, second, atol=1e-9)
    assert np.abs(first).max() > 1


def test_progress_is_told_when_levels_begin_and_at_the_end():
    told = []
    QUICK.register(pair_on(FLAT, FLAT), Run(progress=lambda stage, fraction: told.append((stage, fraction))))
    assert told == [("syn", 0.0), ("syn", 0.5), ("syn", 1.0)]


def test_smoothing_in_mm_is_turned_into_voxels():
    settings = SyN(update_field_sigma_mm=3.0, total_field_sigma_mm=1.0)
    assert settings._field_sigmas_vx(Geometry.regular((8, 8), 2.0)) == pytest.approx((1.5, 0.5))
    assert SyN()._field_sigmas_vx(FLAT)[0] ** 2 == pytest.approx(3.0)


def test_lists_of_unequal_length_are_told_in_one_line():
    with pytest.raises(ConcordError, match=r"one entry a level.*'shrink_factors': 3") as told:
        create_method("syn", {"iterations": [10, 10]})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("size", [(33, 20), (31, 17, 22)])
def test_coarse_grids_lie_as_itk_lays_them(size):
    import itk

    grid = Geometry.regular(size, (1.0, 1.5, 3.0)[: len(size)], (5.0, -7.0, 2.0)[: len(size)])
    turn = Rotation.from_euler("z", 30, degrees=True).as_matrix()[: len(size), : len(size)]
    grid = replace(grid, direction=tuple(map(tuple, turn.tolist())))
    factors = (4, 3, 2)[: len(size)]
    ours = shrunk(grid, factors)
    theirs = itk.shrink_image_filter(to_itk(Volume(np.zeros(grid.shape, np.float32), grid)), shrink_factors=factors)
    assert tuple(theirs.GetLargestPossibleRegion().GetSize()) == ours.size
    np.testing.assert_allclose(tuple(theirs.GetOrigin()), ours.origin_mm, atol=1e-9)
    np.testing.assert_allclose(tuple(theirs.GetSpacing()), ours.spacing_mm)


def test_coarse_axes_shrink_less_and_short_axes_keep_voxels():
    assert axis_factors(Geometry.regular((128, 128, 30), (1.0, 1.0, 4.0)), 4) == (4, 4, 1)
    assert axis_factors(Geometry.regular((128, 12), 1.0), 8) == (8, 3)


def test_a_refined_field_keeps_a_linear_map():
    coarse, fine = Geometry.regular((9, 8, 7), 4.0), Geometry.regular((17, 15, 13), 2.0)
    scaled = Linear(1.1 * np.eye(3), np.array([1.0, 0.0, -2.0]))
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(refined(field_on(scaled, coarse), fine).field_mm[inner], scaled.displacement_mm(fine)[inner], atol=0.02)
    assert not refined(zero_field(coarse), fine).field_mm.any()


def test_the_number_of_threads_is_put_back():
    import itk

    before = itk.MultiThreaderBase.GetGlobalDefaultNumberOfThreads()
    with pytest.raises(ValueError, match="inside"), itk_threads(before + 1):
        assert itk.MultiThreaderBase.GetGlobalDefaultNumberOfThreads() == before + 1
        raise ValueError("inside")
    assert itk.MultiThreaderBase.GetGlobalDefaultNumberOfThreads() == before


def test_a_complaint_of_itk_is_told_in_one_line():
    error = RuntimeError("/src/itkFilter.hxx:215:\nITK ERROR: Filter(0x55): Inputs do not occupy the same physical space!\n\tTolerance: 1e-6\n")
    assert itk_reason(error) == "Filter(0x55): Inputs do not occupy the same physical space! Tolerance: 1e-6"
