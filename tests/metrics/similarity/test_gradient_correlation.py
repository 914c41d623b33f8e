"""Local correlation of gradients against windows written out, and what it is blind to."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from metrics.similarity.gradient_correlation import GradientCorrelation, gradient_correlation

SHAPES = {"2-D": (2, 1, 9, 7), "3-D": (2, 1, 5, 4, 6)}
SPACING = {"2-D": (1.5, 0.7), "3-D": (2.0, 1.5, 0.7)}
each_shape = pytest.mark.parametrize("kind", SHAPES)


def image(shape, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=shape)).to(dtype)


def gradients(image, spacing):
    """Central differences of one image, border repeated, `(d, [z,] y, x)`."""
    padded = np.pad(image, 1, mode="edge")
    inner = tuple(slice(1, -1) for _ in image.shape)
    return np.stack([((np.roll(padded, -1, axis) - np.roll(padded, 1, axis)) / (2 * step))[inner] for axis, step in enumerate(spacing)])


def window_by_window(fixed, warped, radius, eps, spacing):
    """The map of local values, `(B, 1, [z,] y, x)`."""
    result = np.zeros(fixed.shape)
    for item, pair in enumerate(zip(fixed[:, 0].numpy(), warped[:, 0].numpy(), strict=True)):
        f, m = (gradients(one, spacing) for one in pair)
        whole = (f**2).sum(0).mean() * (m**2).sum(0).mean()
        for centre in product(*map(range, f.shape[1:])):
            window = (slice(None), *(slice(max(0, c - radius), c + radius + 1) for c in centre))
            ff, mm, fm = ((a * b)[:].sum(0).mean() for a, b in ((f[window], f[window]), (m[window], m[window]), (f[window], m[window])))
            result[(item, 0, *centre)] = fm**2 / (ff * mm + eps * whole)
    return result


@each_shape
@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.3])
def test_the_value_is_that_of_window_by_window(kind, radius, eps):
    fixed, warped, weight = (image(SHAPES[kind], seed) for seed in range(3))
    local = window_by_window(fixed, warped, radius, eps, SPACING[kind])
    how = {"radius_vx": radius, "eps": eps, "spacing_mm": SPACING[kind]}
    assert gradient_correlation(fixed, warped, **how) == pytest.approx(1 - local.mean(), rel=1e-10)
    assert gradient_correlation(fixed, warped, mask=weight, **how) == pytest.approx(1 - np.average(local, weights=weight), rel=1e-10)


@each_shape
@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_is_that_of_finite_differences(kind, eps, masked):
    fixed, warped, weight = (image(SHAPES[kind], seed) for seed in range(3))
    metric = GradientCorrelation(fixed, 2, eps=eps, spacing_mm=SPACING[kind], mask=weight if masked else None)
    assert torch.autograd.gradcheck(metric, warped.requires_grad_(), eps=1e-6, atol=1e-8)


@each_shape
def test_it_is_blind_to_offset_scale_and_sign(kind):
    fixed, warped = image(SHAPES[kind]), image(SHAPES[kind], 1)
    value = gradient_correlation(fixed, warped)
    torch.testing.assert_close(gradient_correlation(20 * fixed - 3, 5 - 7 * warped), value)
    torch.testing.assert_close(gradient_correlation(warped, fixed), value)
    assert float(gradient_correlation(fixed, 4 - 2 * fixed, eps=0.0)) == pytest.approx(0, abs=1e-12)
    assert 0.2 < float(value) < 1


def test_a_flat_image_says_nothing_and_pulls_nowhere():
    fixed = image((1, 1, 9, 7))
    flat = torch.full_like(fixed, 0.3).requires_grad_()
    value = gradient_correlation(fixed, flat)
    assert float(value) == 1
    assert torch.equal(torch.autograd.grad(value, flat)[0], torch.zeros_like(fixed))
    assert float(gradient_correlation(torch.zeros_like(fixed), fixed)) == 1


def test_it_finds_a_shift_between_images_of_opposite_contrast():
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(44.0), indexing="ij")
    blob = torch.exp(-((rows - 20) ** 2 / 60 + (columns - 22) ** 2 / 30))[None, None]
    values = [float(gradient_correlation(blob, -blob.roll(shift, 3))) for shift in range(-4, 5)]
    assert values.index(min(values)) == 4 and values == sorted(values[:4], reverse=True) + sorted(values[4:])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda f: GradientCorrelation(f, 0), "radius_vx 0"),
        (lambda f: GradientCorrelation(f, eps=-1), "eps -1"),
        (lambda f: GradientCorrelation(f, spacing_mm=0), "spacing_mm"),
        (lambda f: gradient_correlation(f, f[..., 1:]), "expected one shape"),
        (lambda f: gradient_correlation(f, f, mask=0 * f), "mask is empty"),
        (lambda f: GradientCorrelation(f[0]), "expected"),
    ],
)
def test_what_does_not_fit_is_told(call, told):
    with pytest.raises(ValueError, match=told):
        call(image((1, 1, 6, 5)))
