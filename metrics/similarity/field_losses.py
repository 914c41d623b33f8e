"""What networks that predict a displacement are fitted by: a similarity of fixed and warped image, and the roughness of the field."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metrics.similarity.gradients import normalised_gradient_fields
from metrics.similarity.grid import check_pair
from metrics.similarity.regularisers import curvature, gradient_energy
from metrics.similarity.structural import structural_similarity


@dataclass(frozen=True)
class CompositeWeights:
    """Weights of `composite_loss`; the defaults are the paper's lambda_S, lambda_L and lambda_R."""

    structure: float = 1e6
    squares: float = 5e2
    gradient: float = 150.0


@dataclass(frozen=True)
class LabelDrivenWeights:
    """Weights of `label_driven_loss` beside the 1 of the images; ours, as the paper's were not available to us."""

    curvature: float = 10.0
    labels: float = 10.0


def composite_loss(
    fixed: torch.Tensor, warped: torch.Tensor, displacement_vx: torch.Tensor, weights: CompositeWeights = CompositeWeights()
) -> torch.Tensor:
    """The loss of the ReSAtt paper, eq. 1: `lambda_S (1 - SSIM) + lambda_L / 2 sum (F - W)^2 + lambda_R / 2 sum |grad u|^2`, a scalar.

    SSIM is a mean over voxels, the others are sums; mean over the batch. Images are `(B, 1, [z,] y, x)` in [0, 1]. Raises `ValueError`
    for shapes that do not fit.
    """
    check_pair(fixed.shape, warped.shape)
    squares = (fixed - warped).square().sum() / (2 * len(fixed))
    structure = 1 - structural_similarity(fixed, warped)
    return weights.structure * structure + weights.squares * squares + weights.gradient * gradient_energy(displacement_vx)


def label_driven_loss(
    images: tuple[torch.Tensor, torch.Tensor],
    displacement_vx: torch.Tensor,
    labels: tuple[torch.Tensor, torch.Tensor],
    weights: LabelDrivenWeights = LabelDrivenWeights(),
) -> torch.Tensor:
    """Normalised gradient fields plus weighted `curvature` and `label_difference`, a scalar: after Hering et al. (BVM 2019).

    `images` are fixed and warped, `(B, 1, [z,] y, x)`, `labels` the same as one-hot maps `(B, L, [z,] y, x)`. The paper itself was not
    available to us: terms and weights are our reading of its abstract. Raises `ValueError` for shapes that do not fit.
    """
    similarity = normalised_gradient_fields(*images)
    return similarity + weights.curvature * curvature(displacement_vx) + weights.labels * label_difference(*labels)


def label_difference(fixed: torch.Tensor, warped: torch.Tensor) -> torch.Tensor:
    """Mean over batch, structures and voxels of the squared difference of one-hot maps `(B, L, [z,] y, x)`, a scalar."""
    check_pair(fixed.shape, warped.shape)
    return (fixed - warped).square().mean()


def one_hot(labels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Label maps `(B, 1, [z,] y, x)` as maps of 0 and 1 for each of `values` `(L,)`, `(B, L, [z,] y, x)` float32."""
    return (labels == values.view(1, -1, *[1] * (labels.ndim - 2))).float()
