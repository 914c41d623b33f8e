"""Roughness of displacements: written-out sums, and what must cost nothing."""

from __future__ import annotations

import itertools

import pytest
import torch

from metrics.similarity.regularisers import curvature, gradient_energy, mean_squared_gradient

each_dimension = pytest.mark.parametrize("dimension", [2, 3])
both = pytest.mark.parametrize("measure", [gradient_energy, curvature])


def field(dimension, batch=2):
    torch.manual_seed(0)
    return torch.randn(batch, dimension, *(4, 5, 3)[:dimension], dtype=torch.float64)


def voxels(u):
    return itertools.product(*(range(n) for n in u.shape[2:]))


def stepped(place, axis, by):
    return tuple(p + by * (a == axis) for a, p in enumerate(place))


@each_dimension
def test_the_gradient_energy_is_its_sum(dimension):
    u, total = field(dimension), 0.0
    for place in voxels(u):
        for axis in range(dimension):
            if place[axis] + 1 < u.shape[2 + axis]:
                total += (u[(..., *stepped(place, axis, 1))] - u[(..., *place)]).square().sum()
    torch.testing.assert_close(gradient_energy(u), total / 2 / 2)


@each_dimension
def test_the_mean_squared_gradient_is_the_mean_of_each_axis_own_differences(dimension):
    u, means = field(dimension), []
    for axis in range(dimension):
        inner = [place for place in voxels(u) if place[axis] + 1 < u.shape[2 + axis]]
        steps = torch.stack([u[(..., *stepped(place, axis, 1))] - u[(..., *place)] for place in inner])
        means.append(steps.square().mean())
    torch.testing.assert_close(mean_squared_gradient(u), torch.stack(means).mean())


def test_the_mean_squared_gradient_of_a_stretch_is_known():
    """u = (a x, 0) on a grid that is no square: a^2 along x in one of two components, nothing along y."""
    u = torch.zeros(1, 2, 3, 7)
    u[:, 0] = 0.5 * torch.arange(7)
    assert float(mean_squared_gradient(u)) == pytest.approx(0.25 / 4)
    with pytest.raises(ValueError, match="two voxels or more"):
        mean_squared_gradient(u[..., :1])


@each_dimension
def test_the_curvature_is_its_mean(dimension):
    u, total, count = field(dimension), 0.0, 0
    for place in voxels(u):
        laplacian = 0
        for axis, by in itertools.product(range(dimension), (1, -1)):
            there = tuple(min(max(p, 0), n - 1) for p, n in zip(stepped(place, axis, by), u.shape[2:], strict=True))
            laplacian = laplacian + u[(..., *there)] - u[(..., *place)]
        total, count = total + laplacian.square().sum(), count + 2
    torch.testing.assert_close(curvature(u), total / count / 2)


def test_one_step_by_hand():
    u = torch.zeros(1, 2, 4, 4)
    u[0, 0, :, 2:] = 3  # four rows with one step of 3
    assert gradient_energy(u).item() == 4 * 9 / 2
    assert curvature(u).item() == pytest.approx(8 * 9 / 16 / 2)


@both
def test_translations_cost_nothing(measure):
    assert measure(torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(3, 2, 6, 7)) == 0


def test_an_affine_displacement_bends_at_the_border_only():
    u = torch.arange(6.0).view(1, 1, 1, 6).repeat(1, 2, 6, 1)
    assert curvature(u).item() == pytest.approx(2 * 12 / 36 / 2)
    assert gradient_energy(u) > 0


@both
@each_dimension
def test_derivatives_agree_with_finite_differences(measure, dimension):
    assert torch.autograd.gradcheck(measure, field(dimension).requires_grad_(), fast_mode=True)


@both
def test_what_is_no_field_is_refused(measure):
    with pytest.raises(ValueError, match="expected"):
        measure(torch.zeros(1, 3, 4, 4))
