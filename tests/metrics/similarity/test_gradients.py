from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from metrics.similarity.gradients import NormalisedGradientFields, mean_gradient_magnitude, normalised_gradient_fields

SHAPES = {"2-D": (2, 1, 7, 6), "3-D": (2, 1, 3, 5, 4), "one voxel thick": (1, 1, 1, 5, 4)}
SPACING = (0.5, 2.0, 1.5)
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def image(shape, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=shape)).to(dtype)


def spacing_of(shape):
    return SPACING[5 - len(shape) :]


def value_and_gradient(metric, warped, mask=None):
    warped = warped.clone().requires_grad_()
    value = metric(warped, mask)
    return value.detach(), torch.autograd.grad(value, warped)[0]


# ---- a second implementation


def field(volume, spacing):
    """Central differences of `([z,] y, x)`, border voxels repeated, `(d, [z,] y, x)`."""
    padded = np.pad(np.asarray(volume), 1, mode="edge")
    inner = (slice(1, -1),) * volume.ndim
    return np.stack([np.gradient(padded, step, axis=axis)[inner] for axis, step in enumerate(spacing)])


def local_values(fixed, warped, spacing, eta, eta_moving):
    result = []
    for f, m in zip(fixed[:, 0].numpy(), warped[:, 0].numpy(), strict=True):
        f, m = field(f, spacing), field(m, spacing)
        own = np.sqrt((f**2).sum(0)).mean() if eta is None else eta
        other = np.sqrt((m**2).sum(0)).mean() if eta_moving is None else eta_moving
        result.append(1 - (np.abs((f * m).sum(0)) + own * other) ** 2 / (((f**2).sum(0) + own**2) * ((m**2).sum(0) + other**2)))
    return np.stack(result)[:, None]


@each_shape
@pytest.mark.parametrize("etas", [(None, None), (0.3, None), (None, 0.2), (0.3, 2.0)])
def test_the_value_is_that_of_the_formula(shape, etas):
    fixed, warped, weight = image(shape), image(shape, 1), image(shape, 2)
    settings = {"eta": etas[0], "eta_moving": etas[1], "spacing_mm": spacing_of(shape)}
    local = local_values(fixed, warped, spacing_of(shape), *etas)
    assert normalised_gradient_fields(fixed, warped, **settings) == pytest.approx(local.mean(), rel=1e-10)
    expected = np.average(local, weights=weight)
    assert normalised_gradient_fields(fixed, warped, mask=weight, **settings) == pytest.approx(expected, rel=1e-10)


# ---- by hand


def test_edges_at_45_degrees_by_hand():
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    inner = torch.zeros(1, 1, 6, 6)
    inner[..., 1:-1, 1:-1] = 1
    # <(0, 2), (1, 1)> = 2 with eta 1 and 1: 1 - (2 + 1)^2 / ((4 + 1) (2 + 1))
    value = normalised_gradient_fields((2 * x)[None, None], (x + y)[None, None], eta=1.0, eta_moving=1.0, mask=inner)
    assert value == pytest.approx(1 - 9 / 15)


def test_mean_gradient_magnitude_by_hand():
    row = torch.tensor([0.0, 2.0, 8.0]).repeat(2, 1)[None, None]
    # differences over 2 mm a voxel, half a step at the border: 2 / 4, 8 / 4, 6 / 4
    assert mean_gradient_magnitude(torch.cat([row, 3 * row]), spacing_mm=(1.0, 2.0)).tolist() == pytest.approx([4 / 3, 4])


# ---- gradients


@each_shape
def test_the_gradient_is_that_of_finite_differences(shape):
    fixed, warped, weight = image(shape), image(shape, 1).requires_grad_(), image(shape, 2)
    weight = weight.where(weight > 0.5, 0)
    settings = {"eta_moving": 0.4, "spacing_mm": spacing_of(shape)}
    assert torch.autograd.gradcheck(NormalisedGradientFields(fixed, **settings), warped)
    assert torch.autograd.gradcheck(NormalisedGradientFields(fixed, mask=weight, eta=2.0, **settings), warped)
    assert torch.autograd.gradcheck(lambda moving: 3 * NormalisedGradientFields(fixed, **settings)(moving, weight), warped)


def test_the_default_eta_of_the_warped_image_is_a_constant_to_the_derivative():
    fixed, warped = image((1, 1, 6, 7)), image((1, 1, 6, 7), 1)
    eta = mean_gradient_magnitude(warped).item()
    value, gradient = value_and_gradient(NormalisedGradientFields(fixed), warped)
    same, slopes = value_and_gradient(NormalisedGradientFields(fixed, eta_moving=eta), warped)
    assert value == pytest.approx(same.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-9, atol=1e-15)


def test_the_fixed_image_gets_no_gradient():
    assert not NormalisedGradientFields(image((1, 1, 5, 5)).requires_grad_())(image((1, 1, 5, 5), 1)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_without_edges_have_finite_values_and_gradients(dtype):
    flat, textured = torch.full((1, 1, 6, 7), 0.3, dtype=dtype), image((1, 1, 6, 7), dtype=dtype)
    value, gradient = value_and_gradient(NormalisedGradientFields(flat), flat)
    assert value == 0
    assert not gradient.any()
    value, gradient = value_and_gradient(NormalisedGradientFields(textured), flat)
    assert 0 < value < 1
    assert not gradient.any()
    value, gradient = value_and_gradient(NormalisedGradientFields(flat), textured)
    assert 0 < value < 1
    assert gradient.isfinite().all()
    assert gradient.any()


# ---- properties


@each_shape
def test_an_image_with_itself_gives_zero_and_others_more(shape):
    fixed = image(shape)
    values = [normalised_gradient_fields(fixed, fixed + amount * image(shape, 1)).item() for amount in (0, 0.3, 1, 4)]
    assert values[0] == pytest.approx(0, abs=1e-12)
    assert values == sorted(values)
    assert 0.1 < values[-1] < 1


@each_shape
def test_contrast_and_its_inversion_change_nothing(shape):
    fixed, warped = image(shape), image(shape, 1)
    value = normalised_gradient_fields(fixed, warped)
    for other in (-warped, 4 - 900 * warped):
        assert normalised_gradient_fields(fixed, other) == pytest.approx(value.item(), rel=1e-9)
    with_eta = normalised_gradient_fields(fixed, warped, eta=0.2, eta_moving=0.3)
    assert normalised_gradient_fields(5 * fixed, -7 * warped, eta=1.0, eta_moving=2.1) == pytest.approx(with_eta.item(), rel=1e-9)


def test_voxels_of_another_size_are_the_same_image_sampled_anew():
    x = torch.linspace(0, 6, 121, dtype=torch.float64)
    both = [torch.sin(a * x[:, None] + b * x[None])[None, None] for a, b in ((1, 1), (3, -1))]
    coarse = [volume[..., ::2, :] for volume in both]
    inner = [F.pad(torch.ones(v.shape[2] - 4, 117), (2, 2, 2, 2))[None, None] for v in (both[0], coarse[0])]
    settings = {"eta": 1.0, "eta_moving": 1.0}
    fine_value = normalised_gradient_fields(*both, spacing_mm=0.05, mask=inner[0], **settings)
    coarse_value = normalised_gradient_fields(*coarse, spacing_mm=(0.1, 0.05), mask=inner[1], **settings)
    assert coarse_value == pytest.approx(fine_value.item(), rel=0.02)
    assert normalised_gradient_fields(*coarse, spacing_mm=0.05, mask=inner[1], **settings) != pytest.approx(fine_value.item(), rel=0.1)


@each_shape
def test_a_batch_gives_the_mean_of_its_items(shape):
    fixed, warped = torch.cat([image(shape), 4 * image(shape, 3)]), torch.cat([image(shape, 1), image(shape, 2) / 9])
    value, gradient = value_and_gradient(NormalisedGradientFields(fixed), warped)
    alone = [value_and_gradient(NormalisedGradientFields(fixed[i : i + 1]), warped[i : i + 1]) for i in range(len(fixed))]
    assert value == pytest.approx(np.mean([v for v, _ in alone]))
    np.testing.assert_allclose(gradient, torch.cat([g for _, g in alone]) / len(fixed), rtol=1e-9, atol=1e-15)


def test_masks_of_fixed_image_and_call_multiply():
    fixed, warped, first, second = (image((2, 1, 6, 7), seed) for seed in range(4))
    value = NormalisedGradientFields(fixed, mask=first)(warped, second[:1])
    assert value == pytest.approx(normalised_gradient_fields(fixed, warped, mask=first * second[:1]).item())


def test_single_precision_stays_close_to_double():
    fixed, warped = image((1, 1, 12, 13, 14)), image((1, 1, 12, 13, 14), 1)
    expected, slopes = value_and_gradient(NormalisedGradientFields(fixed), warped)
    value, gradient = value_and_gradient(NormalisedGradientFields(fixed.float()), warped.float())
    assert value == pytest.approx(expected.item(), rel=1e-5)
    assert (gradient - slopes).abs().max() < 1e-4 * slopes.abs().max()
    assert value.dtype == gradient.dtype == torch.float32


# ---- errors


@pytest.mark.parametrize("name", ["eta", "eta_moving"])
def test_an_eta_that_is_not_positive_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} 0.0; expected a positive gradient magnitude"):
        NormalisedGradientFields(image((1, 1, 5, 5)), **{name: 0.0})


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 1.0, 1.0), (1.0, 0.0)])
def test_a_spacing_that_does_not_fit_is_refused(spacing):
    with pytest.raises(ValueError, match="expected one positive number, or 2 of them"):
        NormalisedGradientFields(image((1, 1, 5, 5)), spacing_mm=spacing)


def test_shapes_that_do_not_fit_are_refused():
    metric = NormalisedGradientFields(image((2, 1, 5, 5)))
    with pytest.raises(ValueError, match=r"image of shape \(5, 5\); expected \(batch, 1, \[z,\] y, x\)"):
        NormalisedGradientFields(image((5, 5)))
    with pytest.raises(ValueError, match=r"fixed \(2, 1, 5, 5\) and warped \(2, 1, 5, 6\); expected one shape"):
        metric(image((2, 1, 5, 6)))
    with pytest.raises(ValueError, match=r"mask of shape \(5, 5\) for images \(2, 1, 5, 5\)"):
        metric(image((2, 1, 5, 5)), image((5, 5)))


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="the mask is empty"):
        normalised_gradient_fields(image((1, 1, 5, 5)), image((1, 1, 5, 5)), mask=torch.zeros(1, 1, 5, 5))
