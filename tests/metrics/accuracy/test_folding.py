"""Jacobian determinants, folds and SDlogJ: affine fields by hand, one dense second implementation a measure."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.accuracy.folding import (
    folding_fraction,
    folding_fraction_any_scheme,
    jacobian_determinant,
    non_diffeomorphic_volume_vx,
    sdlogj,
    sdlogj_learn2reg,
)


def affine_field(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Displacements of `x -> matrix x`, components and matrix in (x, y[, z]) order."""
    positions = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij")[::-1], axis=-1)
    return positions @ np.asarray(matrix).T - positions


def random_field(shape: tuple[int, ...], seed: int, size: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, (*shape, len(shape)))


@pytest.mark.parametrize("scheme", ["forward", "backward", "central"])
@pytest.mark.parametrize(("matrix", "shape"), [([[1.5, 0.3], [-0.2, 0.7]], (5, 6)), ([[1.5, 0.3, 0], [-0.2, 0.7, 0.4], [0.1, 0, 2]], (4, 5, 6))])
def test_an_affine_field_has_its_own_determinant_up_to_the_border(matrix, shape, scheme):
    determinant = jacobian_determinant(affine_field(matrix, shape), scheme)
    assert determinant.shape == shape
    np.testing.assert_allclose(determinant, np.linalg.det(matrix))


def test_components_and_axes_are_not_mixed_up():
    # stretch along x only, at one place only: the determinant changes between columns 2 and 3 of every row
    field = np.zeros((4, 6, 2))
    field[:, 3:, 0] = 0.5
    forward, backward = jacobian_determinant(field), jacobian_determinant(field, "backward")
    np.testing.assert_allclose(forward, np.tile([1, 1, 1.5, 1, 1, 1], (4, 1)))
    np.testing.assert_allclose(backward, np.tile([1, 1, 1, 1.5, 1, 1], (4, 1)))
    np.testing.assert_allclose(jacobian_determinant(field, "central"), np.tile([1, 1, 1.25, 1.25, 1, 1], (4, 1)))


@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 6)])
def test_central_determinants_agree_with_numpy_gradient(shape):
    field = random_field(shape, 4)
    dimension = len(shape)
    gradients = np.stack([np.gradient(field, axis=dimension - 1 - j)[...] for j in range(dimension)], axis=-1)
    np.testing.assert_allclose(jacobian_determinant(field, "central"), np.linalg.det(np.eye(dimension) + gradients))


def test_a_reflection_folds_everywhere_and_the_identity_nowhere():
    mirror = affine_field(np.diag([-1.0, 1.0, 1.0]), (4, 5, 6))
    assert folding_fraction(mirror) == folding_fraction_any_scheme(mirror) == 1.0
    assert folding_fraction(np.zeros((4, 5, 6, 3))) == folding_fraction_any_scheme(np.zeros((4, 5, 6, 3))) == 0.0


@pytest.mark.parametrize("degrees", [100, 179])
def test_a_large_rotation_does_not_fold_even_at_the_border(degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    field = affine_field([[c, -s, 0], [s, c, 0], [0, 0, 1]], (4, 5, 6))
    assert folding_fraction_any_scheme(field) == 0
    assert non_diffeomorphic_volume_vx(field) == 0


def test_one_voxel_that_jumps_over_its_neighbour_by_hand():
    # x maps 0 1 2 3 4 -> 0 1 3.5 3 4: the step from 2 to 3 is -0.5, all others are positive
    field = np.zeros((3, 5, 2))
    field[:, 2, 0] = 1.5
    assert folding_fraction(field) == pytest.approx(1 / 5)
    # seen from 2 by forward and from 3 by backward differences
    assert folding_fraction_any_scheme(field) == pytest.approx(2 / 5)


def test_an_exact_collapse_counts_unless_strict():
    field = np.zeros((3, 4, 2))
    field[:, 1, 0] = 1.0
    assert folding_fraction(field) == pytest.approx(1 / 4)
    assert folding_fraction(field, strict=True) == 0


def test_central_differences_do_not_see_a_checkerboard_that_any_scheme_sees():
    field = np.zeros((8, 8, 2))
    field[:, ::2, 0] = 0.7
    field[:, 1::2, 0] = -0.7
    assert np.all(jacobian_determinant(field, "central")[:, 1:-1] > 0)
    assert folding_fraction_any_scheme(field) == 1.0


def test_the_mask_restricts_the_share():
    field = np.zeros((3, 5, 2))
    field[:, 2, 0] = 1.5
    mask = np.zeros((3, 5), bool)
    mask[:, 2:4] = True
    assert folding_fraction(field, mask) == pytest.approx(1 / 2)
    assert folding_fraction_any_scheme(field, mask) == 1.0


def ndv_voxel_by_voxel(field: np.ndarray) -> tuple[float, float]:
    """NDV and share of folded voxels in the grid's inside, each simplex by LAPACK."""
    dimension = field.shape[-1]
    positions = affine_field(2 * np.eye(dimension), field.shape[:-1]) + field
    corners = [np.diag(s).tolist() for s in product((1, -1), repeat=dimension)]
    if dimension == 3:
        corners += [[[-1, -1, 0], [-1, 0, -1], [0, -1, -1]], [[1, 1, 0], [0, 1, 1], [1, 0, 1]]]
    volume, folded = 0.0, 0
    inside = list(product(*(range(1, n - 1) for n in field.shape[:-1])))
    for at in inside:
        edges = [[positions[tuple(np.add(at, o[::-1]))] - positions[at] for o in simplex] for simplex in corners]
        determinants = np.linalg.det(edges) * np.sign(np.linalg.det(corners))
        volume += 0.5 * np.maximum(-determinants, 0).sum() / (2 if dimension == 2 else 6)
        folded += bool((determinants <= 0).any())
    return volume, folded / len(inside)


@pytest.mark.parametrize("shape", [(7, 8), (5, 6, 7)])
def test_non_diffeomorphic_volume_and_share_agree_with_a_loop_over_voxels(shape):
    field = random_field(shape, 8, 0.4)
    mask = np.zeros(shape, bool)
    mask[(slice(1, -1),) * len(shape)] = True
    volume, share = ndv_voxel_by_voxel(field)
    assert volume > 0
    assert non_diffeomorphic_volume_vx(field, mask) == pytest.approx(volume)
    assert folding_fraction_any_scheme(field, mask) == pytest.approx(share)


@pytest.mark.parametrize("shape", [(6, 7), (5, 6, 7)])
def test_the_simplices_of_a_mirrored_grid_fill_it_once(shape):
    # a mirror turns every simplex over, and together they have the volume of the grid
    field = affine_field(np.diag([-1.0] + [1.0] * (len(shape) - 1)), shape)
    assert non_diffeomorphic_volume_vx(field) == pytest.approx(np.prod(shape))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.floats(0.01, 1.0), dimension=st.integers(2, 3))
def test_the_share_by_any_scheme_is_never_below_the_forward_share(seed, size, dimension):
    field = random_field((5, 4, 6)[:dimension], seed, size)
    assert folding_fraction(field) <= folding_fraction_any_scheme(field)
    assert (non_diffeomorphic_volume_vx(field) > 0) <= (folding_fraction_any_scheme(field) > 0)


def test_sdlogj_is_zero_for_affine_fields_and_by_hand_for_a_step():
    assert sdlogj(affine_field([[1.2, 0.1], [0, 0.8]], (6, 6))) == pytest.approx(0, abs=1e-12)
    field = np.zeros((4, 4, 2))
    field[:, 2:, 0] = 1.0
    # forward determinants of each row: 1 2 1 1
    assert sdlogj(field, scheme="forward") == pytest.approx(np.std(np.log([1, 2, 1, 1])))


def test_sdlogj_limits_folds_to_a_determinant_of_1e_9():
    field = np.zeros((3, 5, 2))
    field[:, 2, 0] = 1.5
    # forward determinants of each row: 1, 2.5, -0.5, 1, 1
    assert sdlogj(field, scheme="forward") == pytest.approx(np.std(np.log([1, 2.5, 1e-9, 1, 1])))


@pytest.mark.parametrize("shape", [(9, 8), (7, 8, 9)])
def test_learn2reg_adds_three_and_cuts_the_border(shape):
    field = random_field(shape, 5)
    dimension = len(shape)
    gradients = np.stack([np.gradient(field, axis=dimension - 1 - j) for j in range(dimension)], axis=-1)
    determinant = np.linalg.det(np.eye(dimension) + gradients)[(slice(2, -2),) * dimension]
    assert sdlogj_learn2reg(field) == pytest.approx(np.log((determinant + 3).clip(1e-9, 1e9)).std())


def test_learn2reg_does_not_see_the_folding_that_sdlogj_sees():
    field = np.zeros((9, 9, 2))
    field[:, ::3, 0] = 2.0
    assert folding_fraction(field) > 0.2
    assert sdlogj_learn2reg(field) < 0.5 < sdlogj(field)


def test_a_single_slice_is_a_3d_field_too():
    field = np.zeros((1, 5, 5, 3))
    field[..., 0] = affine_field([[1.5, 0], [0, 1]], (1, 5, 5)[1:])[..., 0]
    np.testing.assert_allclose(jacobian_determinant(field), 1.5)


def test_what_is_no_field_is_refused():
    with pytest.raises(ValueError, match="expected one of forward, backward, central"):
        jacobian_determinant(np.zeros((4, 4, 2)), "sideways")
    with pytest.raises(ValueError, match="displacement field of shape"):
        folding_fraction(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="1 values that are NaN"):
        field = np.zeros((4, 4, 2))
        field[1, 1, 1] = np.nan
        folding_fraction_any_scheme(field)
    with pytest.raises(ValueError, match="without a voxel"):
        folding_fraction(np.zeros((4, 4, 2)), np.zeros((4, 4)))
    with pytest.raises(ValueError, match="mask of shape"):
        sdlogj(np.zeros((4, 4, 2)), np.ones((4, 5)))
    with pytest.raises(ValueError, match="at least 5"):
        sdlogj_learn2reg(np.zeros((4, 9, 2)))
