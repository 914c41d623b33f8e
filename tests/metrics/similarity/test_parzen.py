"""Mutual information of Gaussian Parzen windows against the formula written out, sample by bin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from metrics.similarity.parzen import ParzenMutualInformation, parzen_mutual_information, unit_range

SHAPES = {"2-D": (2, 1, 9, 7), "3-D": (3, 1, 5, 4, 6)}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def image(shape, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=shape)).to(dtype)


def written_out(fixed, moving, bins=48, ratio=0.5, mask=None, ranges=((0, 1), (0, 1))):
    """The published formula: a weight for each sample and each bin, derivative by autograd."""
    values = []
    for item in range(len(fixed)):
        weights = []
        for given, (low, high) in zip((fixed[item], moving[item]), ranges, strict=True):
            centres = low + (high - low) * (torch.arange(bins, dtype=given.dtype) + 0.5) / bins
            sigma = ratio * (centres[1] - centres[0])
            parzen = torch.exp(-((given.clamp(low, high).flatten()[:, None] - centres) ** 2) / (2 * sigma**2))
            weights.append(parzen / parzen.sum(1, keepdim=True))
        share = torch.ones_like(weights[0][:, 0]) if mask is None else mask[item].flatten()
        share = share / share.sum()
        pa, pb = (torch.einsum("n,na->a", share, w) for w in weights)
        p = torch.einsum("n,na,nb->ab", share, *weights)
        values.append((p * torch.log(p / (torch.outer(pa, pb) + 1e-7) + 1e-7)).sum())
    return -sum(values) / len(values)


def rounded(fixed, bins=48, ratio=0.5):
    """Values in the middle of the pieces, four to a sigma, that a fixed image is read to."""
    pieces = bins * math.ceil(4 / ratio)
    return ((fixed * pieces).floor().clamp(0, pieces - 1) + 0.5) / pieces


def value_and_gradient(metric, warped):
    warped = warped.clone().requires_grad_()
    value = metric(warped)
    return value.detach(), torch.autograd.grad(value, warped)[0]


@each_shape
@pytest.mark.parametrize(("bins", "ratio"), [(48, 0.5), (16, 0.5), (32, 1.0), (2, 0.5), (5, 3.0), (20, 0.25)])
def test_value_and_gradient_are_those_of_the_formula(shape, bins, ratio):
    fixed, moving = image(shape), image(shape, 1)
    moving = 0.5 * moving + 0.5 * (1 - fixed)
    value, gradient = value_and_gradient(ParzenMutualInformation(fixed, bins, sigma_ratio=ratio), moving)
    expected, slope = value_and_gradient(lambda warped: written_out(rounded(fixed, bins, ratio), warped, bins, ratio), moving)
    assert abs(value - expected) < 1e-4
    assert (gradient - slope).abs().max() < 2.5e-2 * slope.abs().max()


@pytest.mark.parametrize("bins", [16, 48])
def test_what_rounding_of_the_fixed_image_costs(bins):
    fixed = image((1, 1, 64, 60))
    moving = (0.3 * image(fixed.shape, 1) + 0.7 * fixed.square()).clamp(0, 1)
    value, gradient = value_and_gradient(ParzenMutualInformation(fixed, bins), moving)
    expected, slope = value_and_gradient(lambda warped: written_out(fixed, warped, bins), moving)
    assert abs(value / expected - 1) < 1e-3
    assert (gradient - slope).norm() < 0.05 * slope.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bins_that_hardly_a_sample_reaches_are_finite(dtype):
    """Polynomials are a little below zero where a window has all but ended, and a logarithm would say NaN."""
    for place in np.linspace(0.3, 0.4, 23):
        fixed = torch.full((1, 1, 8, 8), 0.5, dtype=dtype)
        moving = torch.full_like(fixed, place)
        moving[..., :2], fixed[..., 4:] = 0.8, 0.2
        value, gradient = value_and_gradient(ParzenMutualInformation(fixed, 24), moving)
        assert value.isfinite() and gradient.isfinite().all()
        assert abs(value - written_out(rounded(fixed.double(), 24), moving.double(), 24)) < 1e-4


def test_the_derivative_is_that_of_the_value():
    """Not that of the formula, which is a little different: a line search would stumble."""
    fixed, moving = image((1, 1, 5, 6)), image((1, 1, 5, 6), 1)
    for bins, ratio in ((12, 0.5), (5, 2.0)):
        metric = ParzenMutualInformation(fixed, bins, sigma_ratio=ratio)
        assert torch.autograd.gradcheck(metric, moving.clone().requires_grad_(), eps=1e-7, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_image_in_single_precision_is_as_near(dtype):
    """Ours has several chunks there."""
    fixed = image((2, 1, 96, 100), dtype=dtype)
    moving = (0.3 * image(fixed.shape, 1, dtype) + 0.7 * fixed.square()).clamp(0, 1)
    value, gradient = value_and_gradient(ParzenMutualInformation(fixed), moving)
    expected, slope = value_and_gradient(lambda warped: written_out(rounded(fixed.double()), warped), moving.double())
    assert value.dtype == gradient.dtype == dtype
    assert abs(value - expected) < 1e-4
    assert (gradient - slope).abs().max() < 2.5e-2 * slope.abs().max()


def test_a_mask_weights_the_samples():
    fixed, moving, mask = image((2, 1, 9, 7)), image((2, 1, 9, 7), 1), image((2, 1, 9, 7), 2)
    mask[..., :3] = 0
    expected, slope = value_and_gradient(lambda warped: written_out(rounded(fixed), warped, mask=mask), moving)
    hole = fixed.clone()
    hole[..., :3] = math.nan
    for metric, call in ((ParzenMutualInformation(hole, mask=mask), None), (ParzenMutualInformation(fixed), mask)):
        value, gradient = value_and_gradient(lambda warped, m=metric, c=call: m(warped, c), moving)
        assert abs(value - expected) < 1e-4
        assert (gradient - slope).abs().max() < 2.5e-2 * slope.abs().max()
        assert (gradient[mask == 0] == 0).all()


def test_ranges_are_where_the_bins_lie():
    fixed, moving = image((1, 1, 9, 7)), image((1, 1, 9, 7), 1)
    found = parzen_mutual_information(100 * fixed - 50, 3 * moving + 2, bins=20, fixed_range=(-50, 50), moving_range=(2, 5))
    torch.testing.assert_close(found, parzen_mutual_information(fixed, moving, bins=20))
    outside = 3 * moving - 1
    value, gradient = value_and_gradient(ParzenMutualInformation(fixed), outside)
    torch.testing.assert_close(value, parzen_mutual_information(fixed, outside.clamp(0, 1)))
    beyond = (outside < 0) | (outside > 1)
    assert beyond.any() and (gradient[beyond] == 0).all() and (gradient[~beyond] != 0).all()


def test_two_equal_halves_hold_one_bit():
    """With windows far narrower than the bins' distance the entropy is that of two values; the bins between stay empty."""
    fixed = torch.tensor([0.25, 0.75], dtype=torch.float64).repeat(50).view(1, 1, 10, 10)
    assert float(parzen_mutual_information(fixed, fixed, bins=2, sigma_ratio=0.1)) == pytest.approx(-math.log(2), abs=1e-5)
    assert float(parzen_mutual_information(fixed, 1 - fixed, bins=2, sigma_ratio=0.1)) == pytest.approx(-math.log(2), abs=1e-5)
    assert float(parzen_mutual_information(fixed, torch.full_like(fixed, 0.4), bins=2)) == pytest.approx(0, abs=1e-5)


def test_a_mask_of_negative_values_has_a_gradient_once_it_is_in_range():
    """Additive masks have either sign: as they are, their negative values would say nothing."""
    moving = image((2, 1, 12, 10))
    mask = (0.4 * image(moving.shape, 1) - 0.3 * moving).requires_grad_()
    (plain,) = torch.autograd.grad(parzen_mutual_information(moving, mask), mask)
    (scaled,) = torch.autograd.grad(parzen_mutual_information(moving, unit_range(mask)), mask)
    negative = mask < 0
    assert negative.float().mean() > 0.1
    assert (plain[negative] == 0).all() and (scaled[negative] != 0).float().mean() > 0.95


@each_shape
def test_the_unit_range_is_that_of_each_item(shape):
    given = 5 * image(shape) - 3
    found = unit_range(given)
    assert torch.equal(found.flatten(1).amin(1), torch.zeros(len(given))) and torch.equal(found.flatten(1).amax(1), torch.ones(len(given)))
    torch.testing.assert_close(unit_range(-2 * given + 7), 1 - found)
    assert torch.autograd.gradcheck(unit_range, given[:1, ..., :3, :4].clone().requires_grad_())
    assert torch.equal(unit_range(torch.full(shape, 3.0)), torch.zeros(shape))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda f: ParzenMutualInformation(f, 1), "1 bins"),
        (lambda f: ParzenMutualInformation(f, sigma_ratio=0), "a positive ratio"),
        (lambda f: ParzenMutualInformation(f, moving_range=(1, 1)), r"moving_range \(1, 1\)"),
        (lambda f: ParzenMutualInformation(f, mask=0 * f), "mask is empty"),
        (lambda f: parzen_mutual_information(f, f[..., 1:]), "expected one shape"),
        (lambda f: parzen_mutual_information(f, f * math.nan), "NaN"),
        (lambda f: ParzenMutualInformation(f * math.nan)(f), "the fixed image holds NaN"),
    ],
)
def test_what_does_not_fit_is_told(call, told):
    with pytest.raises(ValueError, match=told):
        call(image((1, 1, 6, 5)))
