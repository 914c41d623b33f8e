"""MIND through elastix: it finds what mutual information finds, its channels are the descriptors, and masks count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import blob_volume, oblique_geometry, rotation

from metrics.similarity.mind import mind, mind_ssc
from pipeline.classical.mind import MindElastix, grid_like
from pipeline.errors import ConcordError
from pipeline.methods import Pair, Run, create_method, run_method
from pipeline.resampling import warp
from pipeline.transforms import BSpline, Field, Linear, Transform
from pipeline.volumes import Geometry, Volume

both_dimensions = pytest.mark.parametrize("dimension", [2, 3])
both_descriptors = pytest.mark.parametrize("descriptor", ["mind", "mind-ssc"])


def textured(dimension: int, edge: int = 36) -> Volume:
    return blob_volume(Geometry.regular((edge, edge + 4, edge - 4)[:dimension], (1.0, 1.1, 1.3)[:dimension]), seed=1)


def motion(dimension: int) -> Linear:
    return Linear(rotation(dimension, 0.06), np.array([2.0, -1.5, 1.0])[:dimension], "rigid")


def inverted(moving: Volume, transform: Transform) -> Volume:
    """The moving volume through `transform`, bright for dark."""
    return Volume((1 - warp(moving, transform, moving.geometry, interpolation="cubic", background=0.5).array) ** 2, moving.geometry, "fixed")


def error_mm(found: Transform, true: Transform, volume: Volume) -> float:
    """Mean distance of both maps, the outer quarter of the grid left out."""
    points = volume.geometry.grid_points()[tuple(slice(n // 8, -(n // 8)) for n in volume.array.shape)].reshape(-1, volume.dimension)
    return float(np.linalg.norm(found.points(points) - true.points(points), axis=-1).mean())


@both_descriptors
@both_dimensions
def test_a_rigid_motion_is_found_across_contrasts(dimension, descriptor):
    moving, true = textured(dimension), motion(dimension)
    settings = MindElastix(stages=["rigid"], descriptor=descriptor, iterations=50, samples=1000)
    found = run_method(settings, Pair(inverted(moving, true), moving), Run())
    assert isinstance(found, Linear)
    assert error_mm(Linear.identity(dimension), true, moving) > 2
    assert error_mm(found, true, moving) < 0.3


@both_dimensions
def test_a_deformation_is_found_across_contrasts(dimension):
    moving = textured(dimension)
    phase = np.pi * (moving.geometry.grid_points() / moving.geometry.extent_mm + 0.5)
    bump = np.prod(np.sin(phase), axis=-1)
    true = Field(3 * np.stack([bump * np.cos(phase[..., a]) for a in range(dimension)], axis=-1), moving.geometry)
    settings = MindElastix(stages=["bspline"], descriptor="mind", iterations=50, samples=1000)
    found = run_method(settings, Pair(inverted(moving, true), moving), Run())
    assert isinstance(found, BSpline)
    assert error_mm(found, true, moving) < 0.5 * error_mm(Linear.identity(dimension), true, moving)


@pytest.mark.parametrize(("dimension", "descriptor", "channels"), [(2, "mind", 4), (3, "mind", 6), (2, "mind-ssc", 4), (3, "mind-ssc", 12)])
def test_the_channels_are_the_descriptors_of_both_volumes(dimension, descriptor, channels):
    fixed, moving = textured(dimension), textured(dimension, 30)
    images = MindElastix(descriptor=descriptor, sigma_vx=0.7, radius_vx=1).images(Pair(fixed, moving))
    assert len(images) == channels
    for which, volume in enumerate((fixed, moving)):
        image = torch.from_numpy(volume.array)[None, None]
        expected = mind(image, sigma_vx=0.7) if descriptor == "mind" else mind_ssc(image, radius_vx=1)
        for channel, pair in enumerate(images):
            np.testing.assert_array_equal(pair[which].array, expected[0, channel].numpy())
            assert pair[which].geometry == volume.geometry


def test_every_channel_is_a_metric_of_equal_weight():
    volume = textured(3)
    (values,) = MindElastix(stages=["bspline"]).parameter_maps(Pair(volume, volume), channels=12)
    assert values["Metric"] == ["AdvancedMeanSquares"] * 12
    assert [values[f"Metric{i}Weight"] for i in range(12)] == [[str(1 / 12)]] * 12
    assert values["Registration"] == ["MultiMetricMultiResolutionRegistration"]


def test_a_moving_volume_with_other_axes_is_brought_to_those_of_the_fixed_one():
    fixed = textured(3)
    # the same anatomy, stored with its axes in another order: without a turn every channel would meet a wrong one
    direction = ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    geometry = Geometry((46, 34, 40), (1.0, 1.3, 0.9), (0.0, 0.0, 0.0), direction)
    geometry = replace(geometry, origin_mm=tuple((fixed.geometry.centre_mm - geometry.centre_mm).tolist()))
    true = motion(3)
    moving = warp(fixed, true.inverse(), geometry, interpolation="cubic", background=0.5)
    settings = MindElastix(stages=["rigid"], descriptor="mind", iterations=50, samples=1000)
    found = run_method(settings, Pair(fixed, moving), Run())
    assert error_mm(found, true, fixed) < 0.3


@both_dimensions
def test_the_new_grid_covers_the_old_box_along_the_new_axes(dimension):
    old, like = oblique_geometry(dimension), Geometry.regular((30,) * dimension, 1.7)
    grid = grid_like(old, like)
    assert (grid.spacing_mm, grid.direction) == (like.spacing_mm, like.direction)
    assert grid.contains(old.grid_points()).all()
    assert np.abs(like.index_at(np.asarray(grid.origin_mm)) % 1.0).round(9).max() % 1.0 == 0
    assert grid_like(old, old) is old
    prepared = MindElastix().prepared(Pair(blob_volume(like), blob_volume(old)))
    outside = ~old.contains(prepared.moving.geometry.grid_points())
    assert outside.any()
    assert not prepared.moving_mask.array[outside].any()
    assert prepared.moving_mask.array[~outside].all()


def test_what_lies_outside_the_masks_does_not_matter():
    moving, true = textured(2, 56), motion(2)
    fixed = inverted(moving, true)
    halves, wide = np.zeros(fixed.array.shape, np.uint8), np.zeros(fixed.array.shape, np.uint8)
    halves[:, :26], wide[:, :34] = 1, 1
    masks = {"fixed_mask": fixed.with_array(halves), "moving_mask": moving.with_array(wide)}

    def spoilt(volume: Volume) -> Volume:
        array = volume.array.copy()
        array[:, 42:] = array[:, :14]  # something that matches, in the wrong place
        return volume.with_array(array)

    settings = MindElastix(stages=["rigid"], descriptor="mind", iterations=50, samples=1000)
    found = run_method(settings, Pair(spoilt(fixed), spoilt(moving), **masks), Run())
    assert error_mm(found, true, moving) < 0.3
    assert not np.array_equal(found.matrix, run_method(settings, Pair(spoilt(fixed), spoilt(moving)), Run()).matrix)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_and_threads_give_the_same_bits(threads):
    moving = textured(2)
    pair, settings = Pair(inverted(moving, motion(2)), moving), MindElastix(iterations=20, samples=500)
    points = moving.geometry.grid_points().reshape(-1, 2)
    first, again = (run_method(settings, pair, Run(threads=threads, seed=3)).points(points) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(("key", "value"), [("descriptor", "hog"), ("sigma_vx", 0.0), ("radius_vx", -1), ("bins", 32)])
def test_settings_are_checked(key, value):
    with pytest.raises(ConcordError, match=f"methods.mind.{key}"):
        create_method("mind", {key: value})
