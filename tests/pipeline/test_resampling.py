"""Warping against ITK's own resampling, on grids that differ in everything."""

from __future__ import annotations

import numpy as np
import pytest
from examples import KINDS, blob_volume, oblique_geometry, transforms_of

from pipeline.resampling import resample, smooth, warp, warp_by_field
from pipeline.transforms import Linear, to_itk
from pipeline.volumes import Geometry, Volume
from pipeline.volumes import to_itk as volume_to_itk


def itk_warp(moving, transform, onto, interpolator):
    """The same by ITK's ResampleImageFilter."""
    import itk

    image = volume_to_itk(moving)
    reference = volume_to_itk(Volume(np.zeros(onto.shape, np.float32), onto))
    result = itk.resample_image_filter(
        image,
        transform=to_itk(transform),
        interpolator=interpolator(image),
        reference_image=reference,
        use_reference_image=True,
        default_pixel_value=-1,
    )
    return itk.array_from_image(result)


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_linear_and_nearest_agree_with_itk(kind, dimension):
    import itk

    transform = transforms_of(dimension)[kind]
    onto = Geometry.regular((17, 15, 9)[:dimension], (1.7, 2.1, 3.0)[:dimension])
    moving = blob_volume(oblique_geometry(dimension))
    linear = warp(moving, transform, onto, background=-1).array
    expected = itk_warp(moving, transform, onto, lambda i: itk.LinearInterpolateImageFunction.New(i))
    np.testing.assert_allclose(linear, expected, atol=1e-5)
    assert (expected > 0).mean() > 0.2
    labels = moving.with_array((moving.array * 9).astype(np.int16))
    nearest = warp(labels, transform, onto, interpolation="nearest", background=-1)
    same = nearest.array == itk_warp(labels, transform, onto, lambda i: itk.NearestNeighborInterpolateImageFunction.New(i))
    assert same.mean() > 0.999  # half-way ties may round either way
    assert nearest.array.dtype == np.int16


def test_a_field_known_on_the_grid_gives_the_same_as_its_transform():
    transform, onto, moving = transforms_of(3)["composition"], oblique_geometry(3), blob_volume(oblique_geometry(3))
    for interpolation in ("nearest", "linear", "cubic"):
        by_field = warp_by_field(moving, transform.displacement_mm(onto), onto, interpolation=interpolation).array
        np.testing.assert_array_equal(by_field, warp(moving, transform, onto, interpolation=interpolation).array)


@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic"])
def test_resampling_on_its_own_grid_changes_nothing(interpolation):
    volume = blob_volume(oblique_geometry(3))
    np.testing.assert_allclose(resample(volume, volume.geometry, interpolation=interpolation).array, volume.array, atol=1e-5)


def test_a_shift_by_whole_voxels_moves_samples_and_fills_the_rest():
    volume = Volume(np.arange(20.0).reshape(4, 5), Geometry.regular((5, 4), (2.0, 3.0)))
    shifted = warp(volume, Linear(np.eye(2), [2.0, 3.0]), volume.geometry, background=-7.0).array
    np.testing.assert_allclose(shifted[:3, :4], volume.array[1:, 1:])
    assert (shifted[3] == -7).all()
    assert (shifted[:, 4] == -7).all()


def test_smoothing_is_in_millimetres():
    array = np.zeros((41, 41), np.float32)
    array[20, 20] = 1.0
    smoothed = smooth(Volume(array, Geometry.regular((41, 41), (1.0, 2.0))), 3.0).array
    y, x = np.indices(array.shape) - 20
    np.testing.assert_allclose((smoothed * x**2).sum(), 9.0, rtol=0.05)
    np.testing.assert_allclose((smoothed * (2 * y) ** 2).sum(), 9.0, rtol=0.05)
