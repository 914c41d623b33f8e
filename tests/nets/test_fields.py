"""Displacement fields: warping, composition and exponentials, against scipy and against what must hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.ndimage import map_coordinates

from nets.fields import compose, exponential, forward_and_inverse, identity_grid, warp

each_dimension = pytest.mark.parametrize("dimension", [2, 3])
SHAPE = (9, 13, 11)


def smooth(dimension, amplitude, *, edge=24, batch=1):
    """A velocity that vanishes at the border."""
    grid = identity_grid(torch.zeros(batch, 1, *[edge] * dimension, dtype=torch.float64)) / (edge - 1)
    bump = (torch.sin(torch.pi * grid) ** 2).prod(1, keepdim=True)
    waves = [torch.sin(4 * grid.roll(axis, 1)[:, :1] + axis) for axis in range(dimension)]
    return amplitude * (bump * torch.cat(waves, 1)).expand(batch, -1, *[-1] * dimension)


@each_dimension
@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("nearest", 0)])
@pytest.mark.parametrize(("border", "mode"), [("repeat", "nearest"), ("zero", "grid-constant")])
def test_warping_agrees_with_scipy(dimension, interpolation, order, border, mode, rng):
    shape = SHAPE[:dimension]
    image, displacement = rng.normal(size=(2, 3, *shape)), rng.uniform(-4, 4, size=(2, dimension, *shape))
    found = warp(*map(torch.from_numpy, (image, displacement)), interpolation=interpolation, border=border).numpy()
    for item in range(2):
        where = np.indices(shape) + displacement[item, ::-1]
        for channel in range(3):
            expected = map_coordinates(image[item, channel], where, order=order, mode=mode)
            np.testing.assert_allclose(found[item, channel], expected, atol=1e-12)


@each_dimension
def test_whole_voxel_shifts_move_along_x_first(dimension):
    image = torch.arange(float(np.prod(SHAPE[:dimension])), dtype=torch.float64).view(1, 1, *SHAPE[:dimension])
    for component, axis in enumerate(reversed(range(2, 2 + dimension))):
        shift = torch.zeros(1, dimension, *SHAPE[:dimension], dtype=torch.float64)
        shift[:, component] = 2
        found, inner = warp(image, shift), image.shape[axis] - 2
        torch.testing.assert_close(found.narrow(axis, 0, inner), image.narrow(axis, 2, inner), rtol=0, atol=1e-9)
        torch.testing.assert_close(found.narrow(axis, inner, 1), image.narrow(axis, inner + 1, 1), rtol=0, atol=1e-9)


def test_one_image_goes_with_many_displacements_and_the_other_way_round(rng):
    image, displacement = torch.rand(1, 2, 6, 7), torch.rand(3, 2, 6, 7)
    torch.testing.assert_close(warp(image, displacement), warp(image.expand(3, -1, -1, -1), displacement))
    torch.testing.assert_close(warp(image.expand(3, -1, -1, -1), displacement[:1])[2:], warp(image, displacement[:1]))


@each_dimension
def test_derivatives_agree_with_finite_differences(dimension):
    torch.manual_seed(0)
    image = torch.rand(1, 2, *(5, 4, 6)[:dimension], dtype=torch.float64, requires_grad=True)
    displacement = (torch.rand(1, dimension, *(5, 4, 6)[:dimension], dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(warp, (image, displacement), fast_mode=True)
    assert torch.autograd.gradcheck(lambda v: exponential(v, steps=3), (displacement,), fast_mode=True)


@each_dimension
def test_a_composition_goes_first_by_the_first(dimension):
    first, then = smooth(dimension, 1.5), smooth(dimension, -2.0).flip(1)
    image = identity_grid(first)  # interpolation of these grey values is exact
    twice = warp(warp(image, then), first)
    torch.testing.assert_close(warp(image, compose(first, then)), twice)
    assert (warp(image, compose(then, first)) - twice).abs().max() > 0.1


def test_translations_add_up_and_their_exponential_is_themselves():
    shift = torch.tensor([1.5, -2.25], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    torch.testing.assert_close(compose(shift, 2 * shift), 3 * shift)
    torch.testing.assert_close(exponential(shift), shift)


def test_the_exponential_of_a_linear_velocity_is_the_matrix_exponential():
    matrix = torch.tensor([[0.05, -0.3], [0.25, -0.1]], dtype=torch.float64)
    grid = identity_grid(torch.zeros(1, 1, 41, 41, dtype=torch.float64)) - 20
    velocity = torch.einsum("ij,bjyx->biyx", matrix, grid)
    expected = torch.einsum("ij,bjyx->biyx", torch.from_numpy(expm(matrix.numpy())) - torch.eye(2), grid)
    inner = (..., slice(13, 28), slice(13, 28))  # from here no path leaves the grid
    assert (exponential(velocity, steps=12) - expected)[inner].abs().max() < 2e-3


@each_dimension
def test_the_exponentials_of_a_velocity_and_its_negative_undo_each_other(dimension):
    velocity = smooth(dimension, 3.0)
    forward, inverse = forward_and_inverse(velocity)
    assert forward.abs().max() > 2
    torch.testing.assert_close(inverse, exponential(-velocity))
    for left in (compose(forward, inverse), compose(inverse, forward)):
        assert left.abs().max() < 0.1  # of 3, what linear interpolation of the field costs
    assert compose(forward, -forward).abs().max() > 0.2


def test_more_squarings_converge(rng):
    velocity = smooth(2, 3.0)
    best = exponential(velocity, steps=12)
    errors = [(exponential(velocity, steps=steps) - best).abs().max().item() for steps in (1, 3, 5, 7)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.05


@pytest.mark.parametrize(
    ("image", "field", "told"),
    [
        ((1, 1, 4, 4), (1, 3, 4, 4), "expected .batch, 2, y, x"),
        ((1, 1, 4, 4, 4), (1, 2, 4, 4), "both 2-D or both 3-D"),
        ((1, 1, 4), (1, 1, 4), "field"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(image, field, told):
    with pytest.raises(ValueError, match=told):
        warp(torch.zeros(image), torch.zeros(field))
    with pytest.raises(ValueError, match="steps -1"):
        exponential(torch.zeros(1, 2, 4, 4), steps=-1)
