"""Mutual information of two Gaussian Parzen windows: the "NMI" of VoxelMorph and of models after it, which is not normalised.

A sample's windows are narrow: with a sigma of half a bin seven bins hold all but 1e-10 of it. Only these are evaluated and kept;
the product of both images' windows is taken a few samples at a time, so that no array has a value for each sample and bin of a whole image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from metrics.similarity.grid import check_image
from metrics.similarity.intensity import items, sample_weights, weighted_samples

Range = tuple[float, float]
LEAST = 1e-7
"""Added to both sides of the ratio in the logarithm (Guo's number). Bins whose weight is below that share of the largest are left out (ours)."""
_CHUNK = 1 << 12  # samples at a time: their rows of the windows stay in a core's cache (ours)


class ParzenMutualInformation:
    """Negative mutual information in nats, `-sum p log(p / (pF pM + eps) + eps)`, after C. Guo (MIT, 2019) and VoxelMorph's code.

    A sample adds to each of `bins` equal bins of its range what a Gaussian about the bin's centre has at its value, normalised over the
    bins; p is the mean over the samples of the products, pF and pM its marginals, eps 1e-7. Sigma is `sigma_ratio` times the bins'
    distance (Guo: 0.5; the number of bins is the caller's: public scripts have 48). Values beyond a range count as its ends, with zero
    gradient. Bins that are left out change the value by less than 1e-5.

    `fixed` holds samples of any shape; four or more axes are `(batch, 1, [z,] y, x)`: a histogram for each item, and the mean of the
    values. `mask` weights the samples, here and in a call (both: their product). Raises `ValueError` for fewer than 2 bins, a ratio
    that is not positive, an empty range or mask, shapes that differ, and NaN.
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
        for name, given in (("fixed_range", fixed_range), ("moving_range", moving_range)):
            if not given[0] < given[1]:
                raise ValueError(f"{name} {tuple(given)}; expected (low, high) with low below high")
        self._windows, self._shape, self._moving_range = _Windows(bins, sigma_ratio), fixed.shape, moving_range
        self._weight = None if mask is None else sample_weights(mask, fixed)
        known = items(fixed.detach())
        self._fixed = _in_bins(known if self._weight is None else known.where(self._weight > 0, 0), fixed_range, bins)

    def __call__(self, warped: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The value for a warped image of the shape of `fixed`, a scalar, differentiable with respect to `warped`."""
        samples, weight = weighted_samples(warped, self._shape, self._weight, mask)
        moving = _in_bins(samples, self._moving_range, self._windows.bins)
        joint = _JointHistogram.apply(moving, self._fixed, weight, self._windows)
        independent = joint.sum(2, keepdim=True).detach() * joint.sum(1, keepdim=True)
        return -(joint * (joint / (independent + LEAST) + LEAST).log()).sum((1, 2)).mean().to(warped.dtype)


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


def _in_bins(samples: torch.Tensor, given: Range, bins: int) -> torch.Tensor:
    """Values `(batch, n)` clipped to the range, in bins from the centre of the first one."""
    if bool(samples.detach().sum().isnan()):
        raise ValueError("an image holds NaN; expected numbers: leave such samples out by a mask of weight 0")
    low, high = given
    return (samples.clamp(low, high) - low) * (bins / (high - low)) - 0.5


@dataclass(frozen=True)
class _Windows:
    """Gaussians of `ratio` bins about the centres of `bins` bins."""

    bins: int
    ratio: float

    @property
    def reach(self) -> int:
        """Bins to either side of the nearest one, beyond which a weight is below `LEAST` of the largest: 3 for a ratio of 0.5."""
        # weights at distances reach + 1/2 or more, against one at 1/2 or less
        return min(self.bins - 1, math.ceil(math.sqrt(0.25 - 2 * self.ratio**2 * math.log(LEAST)) - 0.5))

    def around(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each window the bins, in a row that has `reach` more at either end; their weights; and distances from the centres, in bins.

        All are `(b, n, k)`; weights of bins that do not exist are 0.
        """
        steps = torch.arange(2 * self.reach + 1, device=places.device)
        nearest = places.round().clamp_(0, self.bins - 1)[..., None]
        index = nearest.long() + steps
        beside = places[..., None] - nearest
        distance = beside - (steps - self.reach)
        # against the largest exponent, so that narrow windows do not vanish altogether
        exponent = (distance * distance).sub_(beside * beside).mul_(-0.5 / self.ratio**2)
        weight = exponent.exp_().mul_((index >= self.reach) & (index < self.reach + self.bins))
        return index, weight.div_(weight.sum(-1, keepdim=True)), distance

    def rows(self, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The weights of all bins, `(b, n, bins)`."""
        row = weight.new_zeros(*weight.shape[:2], self.bins + 2 * self.reach)
        return row.scatter_(2, index, weight)[..., self.reach : self.reach + self.bins]


class _JointHistogram(torch.autograd.Function):
    """From places in bins `(batch, n)`, moving and fixed, to joint probabilities `(batch, fixed bins, moving bins)` in double precision."""

    @staticmethod
    def forward(ctx: Any, moving: torch.Tensor, fixed: torch.Tensor, weight: torch.Tensor | None, windows: _Windows) -> torch.Tensor:
        joint = torch.zeros(len(moving), windows.bins, windows.bins, dtype=torch.float64, device=moving.device)
        kept: list[torch.Tensor] = []
        for part in _chunks(moving):
            index, share, distance = windows.around(moving[:, part])
            known, known_share, _ = windows.around(fixed[:, part])
            rows = windows.rows(known, known_share if weight is None else known_share * weight[:, part, None])
            joint += torch.bmm(rows.mT, windows.rows(index, share))
            kept += [index, share, distance, known, known_share]
        total = joint.sum((1, 2), keepdim=True)
        ctx.save_for_backward(weight, total, *(kept if ctx.needs_input_grad[0] else []))
        ctx.windows = windows
        return joint / total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (weight, total), kept = ctx.saved_tensors[:2], ctx.saved_tensors[2:]
        windows: _Windows = ctx.windows
        # the sum over bins of the weights' slopes is zero, so that the total does not change with a sample
        table = torch.nn.functional.pad((gradient / total).to(kept[1].dtype), (windows.reach, windows.reach))
        parts = []
        for index, share, distance, known, known_share in zip(*(kept[k::5] for k in range(5)), strict=True):
            by_bin = torch.bmm(windows.rows(known, known_share), table).gather(2, index)
            slope = by_bin.mul_(share)
            # the derivative of a share is share / ratio^2 times how much farther than the mean its bin is
            parts.append(slope.sum(-1) * (share * distance).sum(-1) - slope.mul_(distance).sum(-1))
        result = torch.cat(parts, dim=1) / windows.ratio**2
        return (result if weight is None else result * weight), None, None, None


def _chunks(samples: torch.Tensor) -> list[slice]:
    """Columns of `(batch, n)` to work on at a time; on a GPU more of them, as it is the number of calls that costs."""
    step = max(1, _CHUNK * (32 if samples.is_cuda else 1) // len(samples))
    return [slice(start, start + step) for start in range(0, samples.shape[1], step)]
