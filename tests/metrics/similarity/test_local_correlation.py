from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metrics.similarity.local_correlation import LocalCorrelation, local_correlation

SHAPES = {"2-D": (2, 1, 9, 7), "3-D": (2, 1, 5, 4, 6)}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def image(shape, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=shape)).to(dtype)


def value_and_gradient(metric, warped, mask=None):
    warped = warped.clone().requires_grad_()
    value = metric(warped, mask)
    return value.detach(), torch.autograd.grad(value, warped)[0]


# ---- a second implementation: window by window


def window_by_window(fixed, warped, radius, eps):
    """The map of local values, `(B, 1, [z,] y, x)`."""
    result = np.zeros(fixed.shape)
    for item, (f, m) in enumerate(zip(fixed[:, 0].numpy(), warped[:, 0].numpy(), strict=True)):
        for centre in product(*map(range, f.shape)):
            window = tuple(slice(max(0, c - radius), c + radius + 1) for c in centre)
            (ff, fm), (_, mm) = np.cov(f[window].ravel(), m[window].ravel(), bias=True)
            result[(item, 0, *centre)] = fm**2 / (ff * mm + eps * f.var() * m.var())
    return result


@each_shape
@pytest.mark.parametrize("radius", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.3])
def test_the_value_is_that_of_window_by_window(shape, radius, eps):
    fixed, warped, weight = image(shape), image(shape, 1), image(shape, 2)
    local = window_by_window(fixed, warped, radius, eps)
    assert local_correlation(fixed, warped, radius_vx=radius, eps=eps) == pytest.approx(-local.mean(), rel=1e-10)
    expected = -np.average(local, weights=weight)
    assert local_correlation(fixed, warped, radius_vx=radius, eps=eps, mask=weight) == pytest.approx(expected, rel=1e-10)


def plain(fixed, warped, radius=4):
    """The published loss: convolutions with ones, differentiated by autograd; border windows hold zeros."""
    dimension = fixed.ndim - 2
    ones, count = torch.ones(1, 1, *[2 * radius + 1] * dimension, dtype=fixed.dtype), (2 * radius + 1) ** dimension

    def summed(volume):
        return (F.conv3d if dimension == 3 else F.conv2d)(volume, ones, padding=radius)

    f, m = summed(fixed), summed(warped)
    cross = summed(fixed * warped) - f * m / count
    variances = (summed(fixed**2) - f**2 / count) * (summed(warped**2) - m**2 / count)
    return -(cross**2 / (variances + 1e-5)).mean()


@pytest.mark.parametrize("shape", [(1, 1, 24, 26), (1, 1, 20, 21, 22)])
def test_the_gradient_far_from_the_border_is_that_of_the_published_loss(shape):
    fixed, warped = image(shape), image(shape, 1)
    _, expected = value_and_gradient(lambda moving, _: plain(fixed, moving, 2), warped)
    _, gradient = value_and_gradient(LocalCorrelation(fixed, 2, eps=0.0), warped)
    inner = (..., *[slice(4, -4)] * (len(shape) - 2))
    np.testing.assert_allclose(gradient[inner], expected[inner], atol=1e-4 * expected.abs().max())


# ---- by hand


def test_three_pixels_by_hand():
    # windows (0 1), (0 1 3), (1 3) against (0 1), (0 1 0), (1 0): 1, then deviations (-4 -1 5), (-1 2 -1): 9 / (42 * 6), then 1
    fixed, warped = torch.tensor([[[[0.0, 1.0, 3.0]]]]), torch.tensor([[[[0.0, 1.0, 0.0]]]])
    assert local_correlation(fixed, warped, radius_vx=1, eps=0.0) == pytest.approx(-(1 + 9 / 252 + 1) / 3)
    assert local_correlation(fixed, warped, radius_vx=1, eps=0.0, mask=torch.tensor([[[[0.0, 5.0, 0.0]]]])) == pytest.approx(-9 / 252)


# ---- gradients


@each_shape
@pytest.mark.parametrize("settings", [{"radius_vx": 1}, {"radius_vx": 2, "eps": 0.3}, {"radius_vx": 4}])
def test_the_gradient_is_that_of_finite_differences(shape, settings):
    fixed, warped, weight = image(shape), image(shape, 1).requires_grad_(), image(shape, 2)
    weight = weight.where(weight > 0.5, 0)
    assert torch.autograd.gradcheck(LocalCorrelation(fixed, **settings), warped)
    assert torch.autograd.gradcheck(LocalCorrelation(fixed, mask=weight, **settings), warped)
    assert torch.autograd.gradcheck(lambda moving: 3 * LocalCorrelation(fixed, **settings)(moving, weight), warped)


def test_the_fixed_image_gets_no_gradient():
    assert not LocalCorrelation(image((1, 1, 5, 5)).requires_grad_())(image((1, 1, 5, 5), 1)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, 0.37, 1000.3])
def test_flat_windows_give_zero_with_zero_gradient(dtype, level):
    flat, textured = torch.full((1, 1, 12, 12, 40), level, dtype=dtype), image((1, 1, 12, 12, 40), dtype=dtype)
    half = torch.cat([flat[..., :20], level + textured[..., 20:]], -1)
    for fixed, warped in ((flat, textured), (textured, flat), (flat, flat)):
        value, gradient = value_and_gradient(LocalCorrelation(fixed, 2), warped)
        assert value == 0
        assert not gradient.any()
    for fixed, warped in ((half, textured), (textured, half), (half, half)):
        where = torch.zeros_like(flat)
        where[..., :18] = 1
        value, gradient = value_and_gradient(LocalCorrelation(fixed, 2), warped, where)
        assert value == 0
        assert not gradient.any()


# ---- properties


@each_shape
def test_linear_maps_of_either_image_and_their_sign_change_nothing(shape):
    fixed, warped = image(shape), image(shape, 1)
    value = local_correlation(fixed, warped, radius_vx=2, eps=1e-2)
    for own, other in ((fixed, 4 - 900 * warped), (7 - 1e-4 * fixed, warped)):
        assert local_correlation(own, other, radius_vx=2, eps=1e-2) == pytest.approx(value.item(), rel=1e-9)


@each_shape
def test_an_image_is_most_similar_to_itself(shape):
    fixed = image(shape)
    values = [local_correlation(fixed, fixed + amount * image(shape, 1)).item() for amount in (0, 0.3, 1, 4)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(-1, abs=1e-4)


def test_the_sign_may_change_within_the_image():
    fixed = image((1, 1, 8, 40))
    warped = torch.cat([fixed[..., :20], 1 - fixed[..., 20:]], -1)
    apart = torch.ones_like(fixed)
    apart[..., 18:22] = 0
    assert local_correlation(fixed, warped, radius_vx=2, mask=apart) == pytest.approx(-1, abs=1e-3)


def test_single_precision_stays_close_to_double_far_from_zero():
    fixed, warped = image((1, 1, 20, 20, 20)), image((1, 1, 20, 20, 20), 1)
    expected, slopes = value_and_gradient(LocalCorrelation(fixed), warped)
    value, gradient = value_and_gradient(LocalCorrelation(fixed.float() + 100), warped.float() + 100)
    assert value == pytest.approx(expected.item(), rel=1e-3)
    assert (gradient - slopes).abs().max() < 1e-3 * slopes.abs().max()
    assert value.dtype == gradient.dtype == torch.float32


@each_shape
def test_a_batch_gives_the_mean_of_its_items(shape):
    fixed, warped = image(shape), image(shape, 1) * torch.tensor([1.0, 5.0]).view(2, *[1] * (len(shape) - 1))
    value, gradient = value_and_gradient(LocalCorrelation(fixed), warped)
    alone = [value_and_gradient(LocalCorrelation(fixed[i : i + 1]), warped[i : i + 1]) for i in range(2)]
    assert value == pytest.approx(np.mean([v for v, _ in alone]))
    np.testing.assert_allclose(gradient, torch.cat([g for _, g in alone]) / 2, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("voxels", [1, 50])
def test_a_part_at_a_time_is_the_whole(voxels, monkeypatch):
    fixed, warped, weight = (image((2, 1, 4, 6, 7), seed) for seed in range(3))
    expected, slopes = value_and_gradient(LocalCorrelation(fixed, 2, mask=weight), warped)
    monkeypatch.setattr("metrics.similarity.local_correlation._PART", voxels)
    value, gradient = value_and_gradient(LocalCorrelation(fixed, 2, mask=weight), warped)
    assert value == pytest.approx(expected.item())
    torch.testing.assert_close(gradient, slopes)
    assert LocalCorrelation(fixed, 2, mask=weight)(warped).item() == value.item()


def test_masks_of_fixed_image_and_call_multiply():
    fixed, warped, first, second = (image((2, 1, 6, 7), seed) for seed in range(4))
    value = LocalCorrelation(fixed, 2, mask=first)(warped, second[:1])
    assert value == pytest.approx(local_correlation(fixed, warped, radius_vx=2, mask=first * second[:1]).item())


@pytest.mark.slow
def test_value_and_gradient_take_a_fifth_of_the_time_of_the_published_loss():
    shape = (1, 1, 40, 40, 40)
    fixed, warped = image(shape, dtype=torch.float32), image(shape, 1, dtype=torch.float32)
    metric = LocalCorrelation(fixed)

    def seconds(function):
        start = time.perf_counter()
        value_and_gradient(function, warped)
        return time.perf_counter() - start

    ours, theirs = (min(seconds(function) for _ in range(3)) for function in (metric, lambda moving, _: plain(fixed, moving)))
    assert 5 * ours < theirs


# ---- errors


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"radius_vx 0, eps 1e-05; expected a radius of 1 voxel or more"):
        LocalCorrelation(image((1, 1, 5, 5)), 0)
    with pytest.raises(ValueError, match=r"radius_vx 4, eps -1; expected"):
        LocalCorrelation(image((1, 1, 5, 5)), eps=-1)


def test_shapes_that_do_not_fit_are_refused():
    metric = LocalCorrelation(image((2, 1, 5, 5)))
    with pytest.raises(ValueError, match=r"image of shape \(5, 5\); expected \(batch, 1, \[z,\] y, x\)"):
        LocalCorrelation(image((5, 5)))
    with pytest.raises(ValueError, match=r"fixed \(2, 1, 5, 5\) and warped \(2, 1, 5, 6\); expected one shape"):
        metric(image((2, 1, 5, 6)))
    with pytest.raises(ValueError, match=r"mask of shape \(3, 1, 5, 5\) for images \(2, 1, 5, 5\)"):
        metric(image((2, 1, 5, 5)), image((3, 1, 5, 5)))


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="the mask is empty"):
        local_correlation(image((1, 1, 5, 5)), image((1, 1, 5, 5)), mask=torch.zeros(1, 1, 5, 5))
