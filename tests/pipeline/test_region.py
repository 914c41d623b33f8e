from __future__ import annotations

import numpy as np
import pytest
from examples import oblique_geometry

from pipeline.errors import ConcordError
from pipeline.region import outer_corners_mm, region_grid, region_mask, touches_border
from pipeline.volumes import Geometry, Volume, box_of


def labelled(lower, upper, geometry=None):
    """A volume whose voxels from index `lower` up to `upper`, (x, y, z), hold the labels 3 and 7."""
    geometry = geometry or Geometry.regular((60, 50, 40), (1.0, 2.0, 3.0))
    array = np.zeros(geometry.shape, np.int16)
    array[tuple(slice(a, b) for a, b in zip(lower[::-1], upper[::-1], strict=True))] = 3
    array[lower[2], lower[1], lower[0]] = 7
    return Volume(array, geometry, "labels.mha")


@pytest.mark.parametrize(
    ("enlarge", "lower", "upper"),
    [
        (0.0, (20, 15, 12), (40, 30, 22)),
        (0.3, (14, 10, 9), (46, 35, 25)),  # 6, 4.5 and 3 voxels
        (0.1, (18, 13, 11), (42, 32, 23)),  # 2, 1.5 and 1 voxels: 0.1 times 10 is 1, not a trifle more
        (1.0, (0, 0, 2), (60, 45, 32)),  # ends at the volume
    ],
)
def test_the_region_is_the_box_enlarged_by_a_share_of_its_size_on_each_side(enlarge, lower, upper):
    mask = region_mask(labelled((20, 15, 12), (40, 30, 22)), enlarge)
    assert mask.array.dtype == np.uint8 and set(np.unique(mask.array)) == {0, 1}
    first, behind = box_of(mask.array)
    assert (tuple(first), tuple(behind)) == (lower, upper)
    assert mask.array.sum() == np.prod(np.subtract(upper, lower))


def test_the_grid_divides_the_box_between_outer_voxel_faces():
    grid = region_grid(labelled((20, 15, 12), (40, 30, 22)), (96, 96, 32))
    source = Geometry.regular((60, 50, 40), (1.0, 2.0, 3.0))
    assert grid.size == (96, 96, 32)
    np.testing.assert_allclose(grid.spacing_mm, [20 / 96, 15 * 2 / 96, 10 * 3 / 32])
    np.testing.assert_allclose(grid.points_at(np.full(3, -0.5)), source.points_at(np.array([19.5, 14.5, 11.5])))
    np.testing.assert_allclose(grid.points_at(np.array(grid.size) - 0.5), source.points_at(np.array([39.5, 29.5, 21.5])))


def test_the_grid_of_an_oblique_volume_is_turned_with_it():
    geometry = oblique_geometry(3)
    grid = region_grid(labelled((5, 4, 3), (15, 12, 9), geometry), (20, 16, 12))
    assert grid.direction == geometry.direction
    np.testing.assert_allclose(geometry.index_at(grid.points_at(np.array([0.0, 0, 0]))), [4.75, 3.75, 2.75])  # half as wide voxels


def test_whether_a_mask_reaches_the_border():
    assert not touches_border(labelled((1, 1, 1), (59, 49, 39)))
    assert touches_border(labelled((0, 1, 1), (59, 49, 39))) and touches_border(labelled((1, 1, 1), (59, 49, 40)))


def test_nothing_to_enclose_and_a_negative_share_are_told():
    empty = Volume(np.zeros((4, 5, 6)), Geometry.regular((6, 5, 4)), "gland.mha")
    for call in (lambda: region_mask(empty), lambda: region_grid(empty, (2, 2, 2))):
        with pytest.raises(ConcordError, match=r"^gland.mha: every voxel is zero"):
            call()
    with pytest.raises(ConcordError, match=r"^enlarge -0.1; expected 0 or more"):
        region_mask(labelled((1, 1, 1), (5, 5, 5)), -0.1)


def test_the_outer_corners_are_those_of_the_outermost_voxels_faces():
    grid = Geometry.regular((4, 3, 2), (1.0, 2.0, 5.0), (10.0, 20.0, 30.0))
    corners = outer_corners_mm(grid)
    assert len(np.unique(corners, axis=0)) == 8
    assert (corners.min(axis=0).tolist(), corners.max(axis=0).tolist()) == ([9.5, 19.0, 27.5], [13.5, 25.0, 37.5])
