"""Demons: finds a known deformation in 2-D and 3-D, on any grids and directions, and refuses what it would ignore."""

from __future__ import annotations

from dataclasses import replace

import itk
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pipeline.classical.demons import Demons, _histogram_matched
from pipeline.errors import ConcordError
from pipeline.itk_classes import itk_class
from pipeline.methods import Pair, Run, create_method, run_method
from pipeline.transforms import Field
from pipeline.volumes import Geometry, Volume, to_itk

QUICK = Demons(iterations=(30, 20, 10))
SLOW = Demons()


def anatomy(points_mm, seed=1):
    """Grey values of a made-up anatomy of blobs, anywhere in space."""
    rng = np.random.default_rng(seed)
    d = points_mm.shape[-1]
    blobs = 40 if d == 2 else 250
    centres, widths, heights = rng.uniform(-26, 26, (blobs, d)), rng.uniform(3, 7, blobs), rng.uniform(-1, 1, blobs)
    distance = ((points_mm[..., None, :] - centres) ** 2).sum(-1)
    head = 1 / (1 + np.exp(np.linalg.norm(points_mm, axis=-1) - 26))
    return head * (3 + (heights * np.exp(-distance / (2 * widths**2))).sum(-1))


def truth(points_mm):
    """The true transform: a smooth displacement of up to 4 mm that dies away outside the head."""
    x = points_mm
    waves = np.stack([np.sin(x[..., (axis + 1) % x.shape[-1]] / 9 + axis) for axis in range(x.shape[-1])], axis=-1)
    return x + 3.5 * waves * np.exp(-((np.linalg.norm(x, axis=-1, keepdims=True) / 28) ** 4))


def pair_on(fixed: Geometry, moving: Geometry) -> Pair:
    return Pair(
        Volume(anatomy(truth(fixed.grid_points())).astype(np.float32), fixed, "fixed"),
        Volume(anatomy(moving.grid_points()).astype(np.float32), moving, "moving"),
    )


def errors_mm(transform, grid: Geometry, truth=truth) -> tuple[float, float]:
    """Mean error within the head, before and after."""
    points = grid.grid_points().reshape(-1, grid.dimension)
    points = points[np.linalg.norm(points, axis=-1) < 24]
    return np.linalg.norm(truth(points) - points, axis=-1).mean(), np.linalg.norm(transform.points(points) - truth(points), axis=-1).mean()


FLAT, DEEP = Geometry.regular((64, 64), 1.0), Geometry.regular((32, 30, 34), 2.0)
SMALL = Geometry.regular((18, 20, 16), 3.5)


@pytest.mark.parametrize("grid", [FLAT, DEEP], ids=["2-D", "3-D"])
def test_a_known_deformation_is_recovered(grid):
    found = run_method(SLOW, pair_on(grid, grid), Run())
    before, after = errors_mm(found, grid)
    assert isinstance(found, Field)
    assert found.geometry == grid
    assert after < 0.42 * before


def test_grids_of_other_size_and_spacing_meet_in_physical_space():
    fixed, moving = Geometry.regular((60, 50), (1.0, 1.3)), Geometry.regular((80, 90), (0.9, 0.8), (-36.0, -34.0))
    before, after = errors_mm(run_method(SLOW, pair_on(fixed, moving), Run()), fixed)
    assert after < 0.3 * before


def test_thick_slices_are_registered_too():
    grid = Geometry.regular((40, 40, 13), (1.5, 1.5, 5.0))
    before, after = errors_mm(run_method(SLOW, pair_on(grid, grid), Run()), grid)
    assert after < 0.5 * before


def test_identical_images_stay_where_they_are():
    pair = pair_on(FLAT, FLAT)
    found = QUICK.register(Pair(pair.fixed, pair.fixed), Run())
    assert np.abs(found.field_mm).max() < 1e-3


def test_a_turned_scanner_gives_the_turned_field():
    turn = Rotation.from_euler("zyx", [25, -15, 35], degrees=True).as_matrix()
    oblique = replace(DEEP, direction=tuple(map(tuple, turn.tolist())), origin_mm=tuple((turn @ DEEP.origin_mm).tolist()))
    pair = pair_on(DEEP, DEEP)
    turned = Pair(Volume(pair.fixed.array, oblique), Volume(pair.moving.array, oblique))
    straight = QUICK.register(pair, Run()).field_mm
    assert np.abs(straight).max() > 2
    np.testing.assert_allclose(QUICK.register(turned, Run()).field_mm, straight @ turn.T, atol=0.02)


def test_grey_values_of_any_unit_give_the_same_field():
    pair = pair_on(FLAT, FLAT)
    faint = Pair(pair.fixed.with_array(pair.fixed.array * 1e-5), pair.moving.with_array(pair.moving.array * 1e-5))
    plain = Demons(iterations=(30, 20, 10), histogram_matching=False)
    np.testing.assert_allclose(plain.register(faint, Run()).field_mm, plain.register(pair, Run()).field_mm, atol=0.02)


def test_histogram_matching_makes_up_for_another_gain():
    pair = pair_on(FLAT, FLAT)
    louder = replace(pair, moving=pair.moving.with_array(2.5 * pair.moving.array))
    after = [errors_mm(Demons(histogram_matching=matched).register(louder, Run()), FLAT)[1] for matched in (True, False)]
    assert after[0] < 0.5 * after[1]


def test_histograms_are_matched_as_by_itk():
    fixed, moving = (Volume(anatomy(SMALL.grid_points(), seed).astype(np.float32), SMALL, "made") for seed in (1, 2))
    moving = moving.with_array((3 * moving.array**1.5 + 7).astype(np.float32))
    matcher = itk_class("HistogramMatchingImageFilter", "IF3IF3").New()
    matcher.SetReferenceImage(to_itk(fixed, np.float32))
    matcher.SetSourceImage(to_itk(moving, np.float32))
    matcher.SetNumberOfHistogramLevels(256)
    matcher.SetNumberOfMatchPoints(15)
    matcher.ThresholdAtMeanIntensityOn()
    matcher.Update()
    np.testing.assert_allclose(
        _histogram_matched(moving, fixed).array, itk.array_view_from_image(matcher.GetOutput()), atol=1e-4 * np.ptp(fixed.array)
    )


def test_constant_and_nearly_constant_images_are_matched_too():
    """What the linear stage has moved out of sight is one value everywhere."""
    fixed = Volume(anatomy(SMALL.grid_points()).astype(np.float32), SMALL, "made")
    for size in range(3, 400):
        grid = Geometry.regular((size, 37), 1.0)
        constant = Volume(np.full(grid.shape, 0.1), grid, "constant")
        assert np.ptp(_histogram_matched(constant, fixed).array) == 0
    faint = Volume(np.nextafter(np.float32(1000), np.float32(2000) * (anatomy(SMALL.grid_points()) > 3)).astype(np.float32), SMALL, "nearly constant")
    assert np.ptp(faint.array) > 0
    assert np.isfinite(_histogram_matched(faint, fixed).array).all()


def test_smoothing_in_mm_means_the_same_at_any_spacing():
    roughness = []
    for sigma in (1.0, 4.0):
        field = Demons(field_sigma_mm=sigma, iterations=(30, 20, 10)).register(pair_on(FLAT, FLAT), Run()).field_mm
        roughness.append(np.abs(np.gradient(field, axis=0)).mean())
    assert roughness[1] < 0.8 * roughness[0]
    assert QUICK._sigma_vx(None, FLAT, 0) == [1.5, 1.5]
    coarse = Geometry.regular((16, 16, 8), (4.0, 4.0, 5.0))
    assert Demons(field_sigma_mm=2.0)._sigma_vx(2.0, coarse, 0) == [2.0, 2.0, 1.6]


@pytest.mark.parametrize("threads", [1, 2])
def test_two_runs_give_the_same_bits(threads):
    first, second = (QUICK.register(pair_on(SMALL, SMALL), Run(threads=threads)) for _ in range(2))
    assert np.array_equal(first.field_mm, second.field_mm)


def test_nothing_folds():
    field = SLOW.register(pair_on(FLAT, FLAT), Run()).field_mm
    gradient = np.stack([np.gradient(field, axis=axis) for axis in (1, 0)], axis=-1)
    assert (np.linalg.det(np.eye(2) + gradient) > 0).all()


def test_masks_are_refused_not_ignored():
    pair = pair_on(FLAT, FLAT)
    with pytest.raises(ConcordError, match="takes no masks"):
        run_method(QUICK, replace(pair, fixed_mask=pair.fixed.with_array(np.ones(FLAT.shape, np.uint8))), Run())


def test_progress_is_told_at_every_level():
    told = []
    QUICK.register(pair_on(FLAT, FLAT), Run(progress=lambda stage, fraction: told.append((stage, round(fraction, 2)))))
    assert told == [("demons", 0.33), ("demons", 0.67), ("demons", 1.0)]


def test_lists_of_unequal_length_are_told_in_one_line():
    with pytest.raises(ConcordError, match=r"one entry a level.*'iterations': 2") as told:
        create_method("demons", {"iterations": [10, 10]})
    assert "\n" not in str(told.value)
