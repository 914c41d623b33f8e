"""Slices through volumes: the patient's axes whatever the order of the volume's, levels by the head's height, sampled once."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.datasets.phantoms.slice_cutting import Plane, border_value, for_spacing, head_of, planes_of
from pipeline.errors import ConcordError
from pipeline.volumes import Geometry, Volume

GRIDS = {
    "LPS": Geometry.regular((40, 44, 36), (4.0, 4.0, 4.0), (-70.0, -90.0, -60.0)),
    # x of the array runs up, y to the right, z to the front: a sagittal stack as scanners store it
    "permuted": Geometry((36, 40, 44), (4.0, 4.0, 4.0), (86.0, 82.0, -60.0), ((0.0, -1.0, 0.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0))),
}


def linear_image(geometry: Geometry) -> Volume:
    """A value that tells where in the patient it is: 1000 + 3 x - 2 y + 5 z."""
    return Volume((1000 + geometry.grid_points() @ [3.0, -2.0, 5.0]).astype(np.float32), geometry)


def egg(geometry: Geometry, centre=(4.0, -6.0, 8.0), radii=(50.0, 60.0, 40.0)) -> Volume:
    """A bright ellipsoid in noisy air."""
    away = ((geometry.grid_points() - np.array(centre)) / radii) ** 2
    noise = np.random.default_rng(0).uniform(0, 4, geometry.shape)
    return Volume(np.where(away.sum(axis=-1) < 1, 100.0, noise).astype(np.float32), geometry)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    ("axis", "value_at"),
    [
        ("axial", lambda u, v: 1000 + 3 * (2 + u) - 2 * (-5 + v) + 5 * 7),
        ("coronal", lambda u, v: 1000 + 3 * (2 + u) - 2 * -5 + 5 * (7 - v)),
        ("sagittal", lambda u, v: 1000 + 3 * 2 - 2 * (-5 + u) + 5 * (7 - v)),
    ],
)
def test_a_plane_lies_in_the_patients_axes_however_the_volume_is_stored(grid, axis, value_at):
    plane = Plane(axis, (2.0, -5.0, 7.0), (10, 8), 3.0)
    cut = plane.cut(linear_image(GRIDS[grid]))
    u, v = np.moveaxis(plane.grid.grid_points(), -1, 0)
    assert (cut.geometry, cut.array.shape) == (plane.grid, (8, 10))
    np.testing.assert_allclose(cut.array, value_at(u, v), atol=1e-3)


def test_a_displacement_moves_the_samples_within_the_plane():
    plane = Plane("coronal", (2.0, -5.0, 7.0), (10, 8), 3.0)
    moved = np.random.default_rng(1).uniform(-8, 8, (8, 10, 2))
    cut = plane.cut(linear_image(GRIDS["LPS"]), moved)
    u, v = np.moveaxis(plane.grid.grid_points() + moved, -1, 0)
    np.testing.assert_allclose(cut.array, 1000 + 3 * (2 + u) + 10 + 5 * (7 - v), atol=1e-3)


def test_labels_keep_their_values_and_type():
    labels = Volume((GRIDS["LPS"].grid_points()[..., 0] > 1).astype(np.uint8) * 7, GRIDS["LPS"])
    cut = Plane("axial", (0.0, 0.0, 0.0), (20, 20), 2.5).cut(labels, interpolation="nearest")
    assert cut.array.dtype == np.uint8
    assert set(np.unique(cut.array)) == {0, 7}


def test_around_a_volume_is_what_is_at_its_border_not_its_least_sample():
    array = np.full((6, 6, 6), 5.0, np.float32)
    array[3, 3, 3], array[0, 0, 0] = 90.0, -52.0
    volume = Volume(array, Geometry.regular((6, 6, 6), 4.0))
    assert border_value(volume) == 5.0
    cut = Plane("axial", (0.0, 0.0, 0.0), (20, 20), 4.0).cut(volume)
    assert cut.array[0, 0] == 5.0


@pytest.mark.parametrize("grid", GRIDS)
def test_levels_are_shares_of_the_heads_height_and_slices_lie_in_its_middle(grid):
    head = head_of(egg(GRIDS[grid]), "axial")
    planes = planes_of(head, "axial", np.array([0.0, 0.5, 1.0]), size=(16, 16), spacing_mm=4.0)
    centres = np.array([plane.centre_mm for plane in planes])
    # of an ellipsoid 98 % of the volume lie within 0.885 of the radius: t with (1 + t)^2 (2 - t) / 4 = 0.01
    np.testing.assert_allclose(centres[:, 2], [8 - 0.885 * 40, 8, 8 + 0.885 * 40], atol=3.0)
    np.testing.assert_allclose(centres[:, :2], [[4.0, -6.0]] * 3, atol=0.5)


def test_two_heads_of_other_size_and_place_are_cut_at_the_same_level():
    small, large = (egg(GRIDS["LPS"], centre, radii) for centre, radii in (((0, 0, 0), (40, 50, 30)), ((10, -8, 12), (60, 70, 60))))
    share = np.array([0.25])
    one, other = (planes_of(head_of(volume, "axial"), "axial", share, size=(8, 8), spacing_mm=4.0)[0].centre_mm for volume in (small, large))
    assert one[2] / 30 == pytest.approx((other[2] - 12) / 60, abs=0.05)


def test_a_plane_knows_where_the_head_is_and_where_a_volume_ends():
    volume = egg(GRIDS["LPS"])
    head = head_of(volume, "axial")
    plane = Plane("axial", (4.0, -6.0, 8.0), (40, 40), 4.0)
    inside = plane.where(head.mask)
    assert inside.sum() * 16 == pytest.approx(np.pi * 50 * 60, rel=0.03)
    assert not plane.misses(volume, inside)
    assert plane.misses(volume.cropped((0, 0, 0), (20, 44, 36)), inside)
    assert plane.misses(volume.cropped((0, 0, 0), (40, 44, 15)), inside)  # ends at z = -4


def test_an_image_of_one_value_or_of_two_dimensions_is_no_head():
    with pytest.raises(ConcordError, match="every sample is 3"):
        head_of(Volume(np.full((4, 5, 6), 3.0), Geometry.regular((6, 5, 4))), "axial")
    with pytest.raises(ConcordError, match="2-D; expected a 3-D volume"):
        head_of(Volume(np.zeros((5, 6)), Geometry.regular((6, 5))), "axial")


def test_coarser_slices_are_smoothed_for_in_their_plane_and_not_across():
    geometry = GRIDS["permuted"]
    point = np.zeros(geometry.shape, np.float32)
    point[22, 20, 18] = 1.0
    smoothed = for_spacing(Volume(point, geometry), "axial", 8.0).array
    # the array's x runs up
    assert np.count_nonzero(smoothed.sum(axis=(0, 1))) == 1
    # variance (8^2 - 4^2) / 4 mm^2 along both other axes
    for axis in (0, 1):
        profile = smoothed.sum(axis=tuple(other for other in range(3) if other != axis))
        assert (profile * (np.arange(len(profile)) - profile @ np.arange(len(profile))) ** 2).sum() * 16 == pytest.approx(12.0, rel=0.1)
    assert for_spacing(Volume(point, geometry), "axial", 4.0).array is point
