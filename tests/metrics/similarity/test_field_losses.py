"""The losses of networks that predict displacements: each is the weighted sum of terms that are tested on their own."""

from __future__ import annotations

import pytest
import torch

from metrics.similarity.field_losses import CompositeWeights, LabelDrivenWeights, composite_loss, label_difference, label_driven_loss, one_hot
from metrics.similarity.gradients import normalised_gradient_fields
from metrics.similarity.regularisers import curvature, gradient_energy
from metrics.similarity.structural import structural_similarity


def tensors(batch=2):
    torch.manual_seed(0)
    return torch.rand(2, batch, 1, 12, 13, dtype=torch.float64), torch.randn(batch, 2, 12, 13, dtype=torch.float64)


def test_a_constant_difference_by_hand():
    """Flat images of 0.2 and 0.6: SSIM 0.2401 / 0.4001, 144 pixels of 0.4^2 / 2, and one step of 2 voxels in 12 rows."""
    fixed, warped = (torch.full((1, 1, 12, 12), grey, dtype=torch.float64) for grey in (0.2, 0.6))
    u = torch.zeros(1, 2, 12, 12, dtype=torch.float64)
    u[:, 1, :, 6:] = 2
    expected = 1e6 * (1 - 0.2401 / 0.4001) + 5e2 * 144 * 0.16 / 2 + 150 * 12 * 4 / 2
    assert composite_loss(fixed, warped, u).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", [CompositeWeights(), CompositeWeights(0, 3, 0), CompositeWeights(7, 0, 0), CompositeWeights(0, 0, 2)])
def test_the_composite_loss_is_the_weighted_sum_and_the_mean_over_the_batch(weights):
    (fixed, warped), u = tensors(3)
    each = [
        weights.structure * (1 - structural_similarity(f[None], w[None]))
        + weights.squares * 0.5 * ((f - w) ** 2).sum()
        + weights.gradient * gradient_energy(v[None])
        for f, w, v in zip(fixed, warped, u, strict=True)
    ]
    torch.testing.assert_close(composite_loss(fixed, warped, u, weights), torch.stack(each).mean())


def test_the_label_driven_loss_is_the_weighted_sum():
    (fixed, warped), u = tensors()
    maps = torch.rand(2, 2, 3, 12, 13, dtype=torch.float64)
    expected = normalised_gradient_fields(fixed, warped) + 3 * curvature(u) + 5 * ((maps[0] - maps[1]) ** 2).mean()
    torch.testing.assert_close(label_driven_loss((fixed, warped), u, tuple(maps), LabelDrivenWeights(3, 5)), expected)


def test_derivatives_agree_with_finite_differences():
    (fixed, warped), u = tensors()
    maps = torch.rand(2, 2, 3, 12, 13, dtype=torch.float64)
    inputs = [tensor.clone().requires_grad_() for tensor in (warped, u, maps[1])]
    small = CompositeWeights(1, 1, 1)
    assert torch.autograd.gradcheck(lambda w, v: composite_loss(fixed, w, v, small), inputs[:2], fast_mode=True)
    ngf = {"eta": 0.2, "eta_moving": 0.2}
    assert torch.autograd.gradcheck(lambda w: normalised_gradient_fields(fixed, w, **ngf), inputs[:1], fast_mode=True)
    assert torch.autograd.gradcheck(lambda v, m: label_driven_loss((fixed, warped), v, (maps[0], m)), inputs[1:], fast_mode=True)


def test_label_maps_become_one_map_a_structure():
    labels = torch.tensor([[[[0, 1], [3, 1]]]], dtype=torch.uint8)
    found = one_hot(labels, torch.tensor([1, 3], dtype=torch.uint8))
    assert found.tolist() == [[[[0, 1], [0, 1]], [[0, 0], [1, 0]]]]
    assert label_difference(found, one_hot(torch.zeros_like(labels), torch.tensor([1, 3]))).item() == pytest.approx(3 / 8)


def test_shapes_that_differ_are_refused():
    (fixed, warped), u = tensors()
    with pytest.raises(ValueError, match="expected one shape"):
        composite_loss(fixed, warped[..., 1:], u)
    with pytest.raises(ValueError, match="expected one shape"):
        label_difference(fixed, warped[..., 1:])
