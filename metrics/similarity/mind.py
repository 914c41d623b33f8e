"""MIND and MIND-SSC: what an image looks like around a voxel, compared with itself, so that images of two modalities can be compared.

Images are `(B, 1, [z,] y, x)`, descriptors `(B, C, [z,] y, x)` with values in (0, 1]. Everything is differentiable and treats each
image of a batch alone. A patch distance between two neighbours of a voxel is also one between two other neighbours of the voxel
next door: such differences are taken once, on a grid that reaches a little beyond the image, and smoothed one axis at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product
from typing import Any, Literal

import torch
import torch.nn.functional as F

from metrics.similarity.grid import check_image

VarianceLimits = Literal["mean", "power"]
Descriptor = Callable[[torch.Tensor], torch.Tensor]
Offset = tuple[int, ...]
_LIMITS = (1e-3, 1e3)


def mind(image: torch.Tensor, *, sigma_vx: float = 0.5, search_radius_vx: int = 0, variance_limits: VarianceLimits = "mean") -> torch.Tensor:
    """MIND of Heinrich et al. (Med Image Anal 2012, eq. 4-8): `exp(-D_r / V)` over its largest value, `(B, C, [z,] y, x)`.

    `D_r` is the squared difference to the image shifted by r (zeros come in from outside), smoothed by a Gaussian of `sigma_vx`
    cut off at `ceil(1.5 sigma)` voxels; `V` is its mean over the six-neighbourhood (four in 2-D). Channels: `search_offsets`.
    A `search_radius_vx` above 0 asks for the dense search region instead, (2 r + 1)^d - 1 channels; `V` and the largest value
    are still those of the six-neighbourhood, as published, so that values above 1 occur.

    `variance_limits` bounds `V` by its mean over the image: "mean" to [0.001, 1000] times it (the authors' 2-D code; a brighter
    image gives the same descriptor), "power" to between its root and its square (their 3-D code; depends on the intensity's unit).
    Raises `ValueError` for a shape other than `(B, 1, [z,] y, x)`, a sigma that is not positive or a negative radius.
    """
    dimension = check_image(image).ndim - 2
    if not sigma_vx > 0 or search_radius_vx < 0:
        raise ValueError(f"sigma_vx {sigma_vx}, search_radius_vx {search_radius_vx}; expected a positive sigma and a radius of 0 or more")
    taps = gaussian_taps(sigma_vx, math.ceil(1.5 * sigma_vx))
    nearest = _patch_distances(image, search_offsets(dimension), taps)
    # dividing by the largest value is subtracting the smallest distance, which cannot underflow to 0/0
    smallest, variance = nearest.amin(1, keepdim=True), _limited(nearest.mean(1, keepdim=True), variance_limits)
    if search_radius_vx:
        nearest = _patch_distances(image, search_offsets(dimension, search_radius_vx), taps)
    return _exponential(nearest, smallest, variance)


def mind_ssc(image: torch.Tensor, *, radius_vx: int = 2, dilation_vx: int = 2) -> torch.Tensor:
    """MIND-SSC of Heinrich et al. (MICCAI 2013): self-similarity context, 12 channels in 3-D, `(B, C, [z,] y, x)`.

    A channel is the mean squared difference of the patches (edge `2 radius + 1`) around two of the six neighbours at distance
    `dilation_vx` that do not lie opposite each other (`ssc_pairs`); borders are replicated. With m the distances less the
    smallest one and v their mean, limited to [0.001, 1000] times its mean over the image, the value is `exp(-m / v)`.
    In 2-D the four pairs of the four-neighbourhood are taken (ours). Raises `ValueError` as `mind` does.
    """
    dimension = check_image(image).ndim - 2
    if radius_vx < 0 or dilation_vx < 1:
        raise ValueError(f"radius_vx {radius_vx}, dilation_vx {dilation_vx}; expected a radius of 0 or more and a dilation of 1 or more")
    taps = (1 / (2 * radius_vx + 1),) * (radius_vx + 1)
    padded = F.pad(image, (dilation_vx,) * (2 * dimension), mode="replicate")
    groups = product(combinations(range(dimension), 2), (True, False))
    volumes = (volume for axes, alike in groups for volume in _pair_distances(padded, axes, alike, dilation_vx, taps))
    distances = _stacked(image, len(ssc_pairs(dimension)), volumes)
    distances = _minus(distances, distances.amin(1, keepdim=True))
    return _exponential(distances, None, _limited(distances.mean(1, keepdim=True), "mean"))


def search_offsets(dimension: int, radius_vx: int = 0) -> list[Offset]:
    """The shift r of each channel of `mind`, `([z,] y, x)` in voxels: the six-neighbourhood (four in 2-D) for radius 0."""
    if radius_vx:
        half = [o for o in product(range(-radius_vx, radius_vx + 1), repeat=dimension) if o > (0,) * dimension]
    else:
        half = [tuple(int(a == axis) for a in range(dimension)) for axis in range(dimension)]
    return [tuple(sign * o for o in offset) for offset in half for sign in (1, -1)]


def ssc_pairs(dimension: int) -> list[tuple[Offset, Offset]]:
    """The two neighbours that each channel of `mind_ssc` compares, `([z,] y, x)` in units of the dilation. The order is ours."""
    unit = [tuple(int(a == axis) for a in range(dimension)) for axis in range(dimension)]
    minus = [tuple(-o for o in offset) for offset in unit]
    pairs = []
    for i, j in combinations(range(dimension), 2):
        pairs += [(unit[i], unit[j]), (minus[i], minus[j]), (unit[i], minus[j]), (minus[i], unit[j])]
    return pairs


def mind_ssd(fixed: torch.Tensor, warped: torch.Tensor, *, descriptor: Descriptor = mind, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared difference of descriptors over channels and voxels, a scalar; 0 is a perfect match.

    `fixed` is the image `(B, 1, [z,] y, x)` or, so that nothing is computed twice, its descriptors `(B, C, [z,] y, x)`; `warped`
    is an image. `descriptor` is `mind`, `mind_ssc` or a `functools.partial` of them. `mask` `(B or 1, 1, [z,] y, x)` weights voxels.
    Raises `ValueError` for shapes that do not fit and for an empty mask.
    """
    difference = _difference(fixed, warped, descriptor)
    return _masked_mean(difference.square(), mask)


def mind_mad(fixed: torch.Tensor, warped: torch.Tensor, *, descriptor: Descriptor = mind, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean absolute difference of descriptors, the similarity of Heinrich et al. (2012, eq. 9); arguments as `mind_ssd`."""
    return _masked_mean(_difference(fixed, warped, descriptor).abs(), mask)


def smoothed(stack: torch.Tensor, taps: Sequence[float], axes: Sequence[int]) -> torch.Tensor:
    """The stack `(B, C, [z,] y, x)` filtered by symmetric `taps` (weights at distance 0, 1, ...) along spatial `axes`, borders replicated."""
    for axis in axes:
        stack = _AxisFilter.apply(stack, tuple(taps), axis + 2) if len(taps) > 1 else stack
    return stack


def gaussian_taps(sigma_vx: float, radius_vx: int) -> tuple[float, ...]:
    """Weights at distance 0, 1, ... of a Gaussian cut off at `radius_vx` and normalised."""
    weights = [math.exp(-0.5 * (k / sigma_vx) ** 2) for k in range(radius_vx + 1)]
    return tuple(w / (weights[0] + 2 * sum(weights[1:])) for w in weights)


def _patch_distances(image: torch.Tensor, offsets: Sequence[Offset], taps: Sequence[float]) -> torch.Tensor:
    """D_r of each offset, `(B, C, [z,] y, x)`. `search_offsets` lists every offset before its opposite: both share one difference."""
    return _stacked(image, len(offsets), (distance for offset in offsets[::2] for distance in _shifted_distances(image, offset, taps)))


def _stacked(image: torch.Tensor, channels: int, volumes: Iterator[torch.Tensor]) -> torch.Tensor:
    """The volumes as channels; without gradients each goes to its place as it comes, and no second stack is held."""
    if image.requires_grad and torch.is_grad_enabled():
        return torch.cat(list(volumes), 1)
    stack = image.new_empty((image.shape[0], channels, *image.shape[2:]))
    for channel, volume in enumerate(volumes):
        stack[:, channel : channel + 1] = volume
    return stack


def _shifted_distances(image: torch.Tensor, offset: Offset, taps: Sequence[float]) -> Iterator[torch.Tensor]:
    """Smoothed squared differences to the image shifted by `offset`, then by its opposite."""
    reach = [abs(o) for o in offset]
    padded = F.pad(image, [r for r in reversed(reach) for _ in range(2)])
    # the difference at q is that of voxel q with q + offset, and of voxel q + offset with q
    lengths = [n + r for n, r in zip(image.shape[2:], reach, strict=True)]
    here = _window(padded, [max(0, -o) for o in offset], lengths)
    there = _window(padded, [max(0, o) for o in offset], lengths)
    squared = (here - there).square()
    still = [axis for axis, o in enumerate(offset) if not o]
    moving = [axis for axis, o in enumerate(offset) if o]
    squared = smoothed(squared, taps, still)
    for start in ([max(0, o) for o in offset], [max(0, -o) for o in offset]):
        yield smoothed(_window(squared, start, image.shape[2:]), taps, moving)


def _pair_distances(padded: torch.Tensor, axes: tuple[int, int], alike: bool, dilation: int, taps: Sequence[float]) -> Iterator[torch.Tensor]:
    """Two channels of `ssc_pairs`: the neighbours on both `axes` lie on `alike` sides (both plus, both minus), or on different ones.

    Either way the second pair is the first one moved by a voxel step: one difference, on a grid longer by the dilation, holds both.
    """
    dimension = padded.ndim - 2
    size = [n - 2 * dilation for n in padded.shape[2:]]
    lengths = [n + dilation * (axis in axes) for axis, n in enumerate(size)]

    def corner(*forward: int) -> list[int]:
        return [dilation * (axis in forward or axis not in axes) for axis in range(dimension)]

    here, there = ((axes[0],), (axes[1],)) if alike else (axes, ())
    squared = (_window(padded, corner(*here), lengths) - _window(padded, corner(*there), lengths)).square()
    squared = smoothed(squared, taps, [axis for axis in range(dimension) if axis not in axes])
    for forward in (axes, ()) if alike else ((axes[0],), (axes[1],)):
        start = [dilation * (axis in forward) for axis in range(dimension)]
        yield smoothed(_window(squared, start, size), taps, axes)


def _window(stack: torch.Tensor, start: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
    return stack[(..., *(slice(s, s + n) for s, n in zip(start, lengths, strict=True)))]


def _limited(variance: torch.Tensor, limits: VarianceLimits) -> torch.Tensor:
    """The variance `(B, 1, ...)` kept within its range; 1 for an image without any contrast, whose distances are all 0."""
    mean = variance.mean(dim=tuple(range(1, variance.ndim)), keepdim=True)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    if limits == "mean":
        low, high = (factor * mean for factor in _LIMITS)
    else:
        low, high = torch.minimum(mean.sqrt(), mean.square()), torch.maximum(mean.sqrt(), mean.square())
    return torch.minimum(torch.maximum(variance, low), high)


def _minus(stack: torch.Tensor, volume: torch.Tensor) -> torch.Tensor:
    """`stack - volume`, in place where no gradient needs the stack."""
    return stack - volume if stack.requires_grad else stack.sub_(volume)


def _exponential(distances: torch.Tensor, smallest: torch.Tensor | None, variance: torch.Tensor) -> torch.Tensor:
    """`exp((smallest - distances) / variance)`, in place where no gradient needs the distances."""
    distances = distances if smallest is None else _minus(distances, smallest)
    if distances.requires_grad:
        return torch.exp(distances * variance.reciprocal().neg())
    return distances.mul_(variance.reciprocal().neg_()).exp_()


def _difference(fixed: torch.Tensor, warped: torch.Tensor, descriptor: Descriptor) -> torch.Tensor:
    if fixed.shape[2:] != warped.shape[2:]:
        raise ValueError(f"fixed {tuple(fixed.shape)} and warped {tuple(warped.shape)}; expected one grid: warp onto the fixed grid first")
    other = descriptor(warped)
    own = descriptor(fixed) if fixed.shape[1] == 1 else fixed
    if own.shape[1] != other.shape[1]:
        raise ValueError(f"fixed descriptors of {own.shape[1]} channels, warped ones of {other.shape[1]}; expected the same descriptor")
    return other - own


def _masked_mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return values.mean()
    if mask.shape[1] != 1 or mask.shape[2:] != values.shape[2:] or mask.shape[0] not in (1, values.shape[0]):
        raise ValueError(f"mask of shape {tuple(mask.shape)} for descriptors {tuple(values.shape)}; expected (batch or 1, 1, [z,] y, x)")
    weight = mask.to(values.dtype).expand(values.shape[0], *mask.shape[1:])
    total = weight.sum()
    if not total > 0:
        raise ValueError("the mask is empty; expected non-zero voxels where the images count")
    return (values.mean(1, keepdim=True) * weight).sum() / total


class _AxisFilter(torch.autograd.Function):
    """Filtering along one axis by adding shifted views, with its adjoint: far fewer passes than autograd's own of the same sum."""

    @staticmethod
    def forward(ctx: Any, stack: torch.Tensor, taps: tuple[float, ...], axis: int) -> torch.Tensor:
        ctx.taps, ctx.axis = taps, axis
        return _axis_filter(stack, taps, axis, adjoint=False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _axis_filter(gradient, ctx.taps, ctx.axis, adjoint=True), None, None


def _axis_filter(stack: torch.Tensor, taps: Sequence[float], axis: int, *, adjoint: bool) -> torch.Tensor:
    length, total = stack.shape[axis], stack * taps[0]
    for distance, weight in enumerate(taps[1:], start=1):
        near = min(distance, length)  # so many outer voxels reach over the border, where the outermost voxel is repeated
        if rest := length - near:
            total.narrow(axis, distance, rest).add_(stack.narrow(axis, 0, rest), alpha=weight)
            total.narrow(axis, 0, rest).add_(stack.narrow(axis, distance, rest), alpha=weight)
        for outermost, start in ((0, 0), (length - 1, length - near)):
            if adjoint:
                total.narrow(axis, outermost, 1).add_(stack.narrow(axis, start, near).sum(axis, keepdim=True), alpha=weight)
            else:
                total.narrow(axis, start, near).add_(stack.narrow(axis, outermost, 1), alpha=weight)
    return total
