"""Mutual information of two Gaussian Parzen windows: the "NMI" of VoxelMorph and of models after it, which is not normalised.

A moving sample's weights in the bins are read from polynomials of degree five over a bin or less, a fixed sample's at the middle of a small
piece of one: see `joint_histogram`. The windows are so smooth that this is hardly seen, and it is many times faster.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from metrics.similarity.grid import ValueWithGradient, check_image
from metrics.similarity.joint_histogram import JointHistogram, Range

LEAST = 1e-7
"""Added to both sides of the ratio in the logarithm (Guo's number)."""
_ROWS = 4
"""Pieces of the fixed axis in a sigma of the windows (ours)."""
_DEGREE = 5


class ParzenMutualInformation:
    """Negative mutual information in nats, `-sum p log(p / (pF pM + eps) + eps)`, after C. Guo (MIT, 2019) and VoxelMorph's code.

    A sample adds to each of `bins` equal bins of its range what a Gaussian about the bin's centre has at its value, normalised over the
    bins; p is the mean over the samples of the products, pF and pM its marginals, eps 1e-7. Sigma is `sigma_ratio` times the bins'
    distance (Guo: 0.5; the number of bins is the caller's: public scripts have 48). Values beyond a range count as its ends, with zero
    gradient.

    `fixed` holds samples of any shape; four or more axes are `(batch, 1, [z,] y, x)`: a histogram for each item, and the mean of the
    values. `mask` weights the samples, here and in a call (both: their product). Raises `ValueError` for fewer than 2 bins, a ratio
    that is not positive, an empty range or mask, shapes that differ, and NaN.

    Moving weights are within 1e-3 of the formula's, and the derivative is that of these weights; fixed values are read to 1 / 8 of a bin
    (sigma_ratio 0.5), a grey scale of 384 steps for 48 bins.
    """

    def __init__(
        self,
        fixed: torch.Tensor,
        bins: int = 48,
        *,
        sigma_ratio: float = 0.5,
        fixed_range: Range = (0.0, 1.0),
        moving_range: Range = (0.0, 1.0),
        mask: torch.Tensor | None = None,
    ) -> None:
        if bins < 2 or not sigma_ratio > 0:
            raise ValueError(f"{bins} bins, sigma_ratio {sigma_ratio}; expected 2 bins or more and a positive ratio")
        self._histogram = JointHistogram(fixed, _Gaussians(bins, sigma_ratio), fixed_range=fixed_range, moving_range=moving_range, mask=mask)

    def __call__(self, warped: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The value for a warped image of the shape of `fixed`, a scalar, differentiable with respect to `warped`."""
        return ValueWithGradient.apply(self._histogram(warped, mask), _value_and_gradient)


def _value_and_gradient(joint: torch.Tensor, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """From joint probabilities `(batch, fixed bins, moving bins)`; the fixed marginal does not depend on the warped image."""
    # polynomials are a little below zero where a window has all but ended
    p = joint.double().clamp_min(0)
    fixed, moving = p.sum(2, keepdim=True), p.sum(1, keepdim=True)
    independent = (fixed * moving).add_(LEAST)
    ratio = p / independent
    beyond = ratio + LEAST
    logarithm = beyond.log()
    value = -torch.vdot(p.flatten(), logarithm.flatten()) / len(p)
    if not with_gradient:
        return value.to(joint.dtype), None
    # of p log(ratio + eps): by p itself, and through the moving marginal in `independent`
    share = ratio.div_(beyond)
    through = (share * p).div_(independent).mul_(fixed).sum(1, keepdim=True)
    gradient = logarithm.add_(share).sub_(through).mul_(joint > 0).div_(-len(p))
    return value.to(joint.dtype), gradient.to(joint.dtype)


def parzen_mutual_information(
    fixed: torch.Tensor,
    warped: torch.Tensor,
    *,
    bins: int = 48,
    sigma_ratio: float = 0.5,
    fixed_range: Range = (0.0, 1.0),
    moving_range: Range = (0.0, 1.0),
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`ParzenMutualInformation` of two images in one call, a scalar."""
    how = {"sigma_ratio": sigma_ratio, "fixed_range": fixed_range, "moving_range": moving_range}
    return ParzenMutualInformation(fixed, bins, **how, mask=mask)(warped)


def unit_range(image: torch.Tensor, *, least: float = 1e-6) -> torch.Tensor:
    """Each item of `(B, 1, [z,] y, x)` between 0 and 1 by its own ends, differentiable; a constant one, within `least`, stays finite.

    Mutual information knows no scale, but `ParzenMutualInformation` has a range, beyond which there is no gradient: an image of another
    range, such as one with negative values, has to be brought into it (ours).
    """
    axes = tuple(range(1, check_image(image).ndim))
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    return (image - low) / (high - low).clamp_min(least)


class _Gaussians:
    """Gaussians of `ratio` bins about the centres of `bins` bins, on both axes."""

    powers = _DEGREE + 1
    double = False  # tables of this size take longer than the samples of a small image

    def __init__(self, bins: int, ratio: float) -> None:
        self._bins, self._ratio = bins, ratio
        self.rows = bins * math.ceil(_ROWS / ratio)
        # windows that are narrow beside the bins change hands within a small part of a bin, once normalised
        self.cells = bins * math.ceil(max(0.5 / ratio, 0.25 / ratio**2))

    def spread(self, sums: torch.Tensor) -> torch.Tensor:
        """The histogram `(batch, bins, bins)`."""
        fixed, moving = self._tables(sums)
        rows = torch.bmm(sums.flatten(1, 2), moving).sum(0)
        return fixed.mT @ rows.view(*sums.shape[1:3], -1)

    def slopes(self, gradient: torch.Tensor) -> torch.Tensor:
        """Coefficients of 1, s, s^2, s^3."""
        fixed, moving = self._tables(gradient)
        rows = (fixed @ gradient).flatten(0, 1)
        derivative = moving[1:] * torch.arange(1, self.powers, device=gradient.device).view(-1, 1, 1)
        return torch.bmm(rows.expand(_DEGREE, *rows.shape), derivative.mT).flatten(1)

    def _tables(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _tables(self._bins, self._ratio, self.rows, self.cells, like.dtype, like.device)


@lru_cache(maxsize=4)
def _tables(bins: int, ratio: float, rows: int, cells: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights `(rows, bins)` at the middle of each row, and coefficients `(powers, cells + 2, bins)` of 1, s, s^2, ... in each cell.

    A cell's polynomial goes through the weights at Chebyshev's points, both ends among them: neighbours meet, and all weights add up to 1.
    """

    def weights(places: np.ndarray) -> np.ndarray:
        exponent = -((places[..., None] - np.arange(bins)) ** 2) / (2 * ratio**2)
        weight = np.exp(exponent - exponent.max(-1, keepdims=True))  # against the largest, so that narrow windows do not vanish altogether
        return weight / weight.sum(-1, keepdims=True)

    points = -0.5 * np.cos(np.pi * np.arange(_DEGREE + 1) / _DEGREE)
    at_points = weights((np.arange(cells)[:, None] + 0.5 + points) * (bins / cells) - 0.5)
    inner = np.einsum("jk,ckb->jcb", np.linalg.inv(np.vander(points, increasing=True)), at_points)
    outer = np.zeros((2, _DEGREE + 1, 1, bins))  # samples beyond the range count as its ends, whatever their position
    outer[:, 0, 0] = weights(np.array([-0.5, bins - 0.5]))
    tables = weights((np.arange(rows) + 0.5) * (bins / rows) - 0.5), np.concatenate([outer[0], inner, outer[1]], axis=1)
    return tuple(torch.as_tensor(table, dtype=dtype, device=device) for table in tables)
