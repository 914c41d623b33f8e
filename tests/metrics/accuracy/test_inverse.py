"""Inverse consistency: by hand, and for maps whose inverse is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.accuracy.inverse import inverse_error_mm


def everywhere(size: tuple[int, ...], *shift_vx: float) -> np.ndarray:
    return np.broadcast_to(np.array(shift_vx), (*size, len(shift_vx))).copy()


def test_a_shift_and_another_one_back_miss_by_their_difference():
    # 2 voxels of 3 mm along x and 1 of 4 mm along y come back a voxel short along each: 5 mm in all
    there, back = everywhere((6, 7), 2.0, 1.0), everywhere((6, 7), -1.0, 0.0)
    assert inverse_error_mm(there, back, spacing_mm=(3.0, 4.0)) == pytest.approx(5.0)


def test_the_map_is_read_where_the_inverse_leads_and_between_voxels():
    # u(x) = 0, 1, 2, 3 along x; half a voxel on it is 0.5, 1.5, 2.5, and beyond the last voxel it is not known
    growing = np.zeros((3, 4, 2))
    growing[..., 0] = np.arange(4)
    assert inverse_error_mm(growing, everywhere((3, 4), 0.5, 0.0), spacing_mm=(2.0, 1.0)) == pytest.approx(2 * np.mean([1, 2, 3]))


def test_a_mask_chooses_the_voxels():
    field = np.zeros((4, 5, 6, 3))
    field[2:, ..., 2] = 1.0  # along z, in the upper half
    mask = np.zeros((4, 5, 6))
    mask[1:3] = 1
    nothing = np.zeros_like(field)
    assert inverse_error_mm(field, nothing, spacing_mm=(1, 1, 2.5)) == pytest.approx(1.25)
    mask[1] = 0
    assert inverse_error_mm(field, nothing, spacing_mm=(1, 1, 2.5), mask=mask) == pytest.approx(2.5)


def test_where_everything_leaves_the_grid_there_is_no_number():
    assert np.isnan(inverse_error_mm(everywhere((5, 5), 9, 0), everywhere((5, 5), -9, 0), spacing_mm=(1, 1)))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 3), st.integers(0, 2**32 - 1))
def test_an_affine_map_and_its_inverse_bring_every_point_back_whatever_the_voxels(dimension, seed):
    rng = np.random.default_rng(seed)
    matrix, shift = np.eye(dimension) + rng.uniform(-0.1, 0.1, (dimension, dimension)), rng.uniform(-0.5, 0.5, dimension)
    size = tuple(rng.integers(6, 10, dimension).tolist())
    index = np.stack(np.indices(size)[::-1], axis=-1).astype(float)
    there = index @ matrix.T + shift - index
    back = (index - shift) @ np.linalg.inv(matrix).T - index
    spacing = rng.uniform(0.5, 3, dimension).tolist()
    assert inverse_error_mm(there, back, spacing_mm=spacing) == pytest.approx(0, abs=1e-9)
    assert inverse_error_mm(there, np.zeros_like(there), spacing_mm=spacing) == pytest.approx(
        np.linalg.norm(there * spacing, axis=-1).mean()
    )  # by no inverse at all it is the map's own length


@pytest.mark.parametrize(
    ("forward", "inverse", "more", "told"),
    [
        ((4, 4, 2), (4, 5, 2), {}, "expected two of"),
        ((4, 4, 3), (4, 4, 3), {}, "expected two of"),
        ((4, 4, 2), (4, 4, 2), {"spacing_mm": (1, 1, 1)}, "3 axes"),
        ((4, 4, 2), (4, 4, 2), {"mask": np.ones((4, 5))}, "same grid"),
    ],
)
def test_what_does_not_fit_is_refused(forward, inverse, more, told):
    with pytest.raises(ValueError, match=told):
        inverse_error_mm(np.zeros(forward), np.zeros(inverse), **{"spacing_mm": (1, 1)} | more)
