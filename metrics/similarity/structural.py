"""Structural similarity (SSIM) as a loss: differentiable, for images of one modality, 2-D and 3-D."""

from __future__ import annotations

import torch

from metrics.similarity.grid import check_image, check_pair
from metrics.similarity.mind import gaussian_taps, smoothed

SIGMA_VX = 1.5
"""Width of the Gaussian window (Wang et al. 2004)."""
RADIUS_VX = 5
"""The window is cut off here: 11 voxels wide."""
K1, K2 = 0.01, 0.03


def structural_similarity(fixed: torch.Tensor, warped: torch.Tensor, *, data_range: float = 1.0) -> torch.Tensor:
    """Mean SSIM of Wang et al. (IEEE TIP 2004) over voxels and batch, a scalar; 1 for equal images.

    Images are `(B, 1, [z,] y, x)`. The window is a Gaussian of 1.5 voxels, 11 wide, K1 0.01, K2 0.03, and only windows that lie inside
    count: TensorFlow's `tf.image.ssim`, which the ReSAtt paper used. `data_range` is the largest possible sample less the smallest.
    3-D with 11^3 windows (ours). Raises `ValueError` for shapes that differ, fewer than 11 voxels along an axis, or a range not positive.
    """
    check_pair(check_image(fixed).shape, warped.shape)
    if min(fixed.shape[2:]) <= 2 * RADIUS_VX:
        raise ValueError(f"images of shape {tuple(fixed.shape)}; expected at least {2 * RADIUS_VX + 1} voxels along each axis")
    if not data_range > 0:
        raise ValueError(f"data_range {data_range}; expected a positive number: largest minus smallest possible sample")
    mean1, mean2, square1, square2, product = _windowed(torch.cat([fixed, warped, fixed**2, warped**2, fixed * warped], dim=1)).split(1, dim=1)
    luminance, structure = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    means, squares = mean1 * mean2, mean1**2 + mean2**2
    local = (2 * means + luminance) / (squares + luminance) * (2 * (product - means) + structure) / (square1 + square2 - squares + structure)
    return local.mean()


def _windowed(stack: torch.Tensor) -> torch.Tensor:
    """Weighted means `(B, C, [z,] y, x)` over the windows that lie inside."""
    dimension = stack.ndim - 2
    inside = (..., *(slice(RADIUS_VX, -RADIUS_VX),) * dimension)
    return smoothed(stack, gaussian_taps(SIGMA_VX, RADIUS_VX), range(dimension))[inside]
