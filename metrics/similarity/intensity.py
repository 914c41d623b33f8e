"""Similarities within one modality, sample by sample: mean squares and global normalised correlation."""

from __future__ import annotations

from typing import Any

import torch


class MeanSquares:
    """Mean of `(fixed - warped)^2`, as ITK's `MeanSquaresImageToImageMetricv4`; 0 is a perfect match.

    `fixed` holds samples of any shape; four or more axes are `(batch, 1, [z,] y, x)`: a value for each item, and their mean.
    `mask` weights the samples, here and in a call (both: their product); weight 0 leaves a sample out, whatever its value.
    Raises `ValueError` for shapes that differ and for an empty mask.
    """

    def __init__(self, fixed: torch.Tensor, *, mask: torch.Tensor | None = None) -> None:
        self._fixed = fixed.detach()
        self._weight = None if mask is None else sample_weights(mask, fixed)

    def __call__(self, warped: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The value for a warped image of the shape of `fixed`, a scalar, differentiable with respect to `warped`."""
        moving, weight = weighted_samples(warped, self._fixed.shape, self._weight, mask)
        if weight is None:
            return torch.nn.functional.mse_loss(moving, items(self._fixed))
        # what is left out may be NaN in the fixed image, too
        difference = moving - items(self._fixed).where(weight > 0, 0)
        return (difference.square() * weight).sum(1).div(weight.sum(1)).mean()


class Correlation:
    """`-Sfm^2 / (Sff Smm)`, sums of products of deviations from the mean, as ITK's `CorrelationImageToImageMetricv4`; -1 is best.

    Squared, so that it is blind to contrast inversion. An image without contrast gives 0, with zero gradient.
    Arguments and errors are those of `MeanSquares`.
    """

    def __init__(self, fixed: torch.Tensor, *, mask: torch.Tensor | None = None) -> None:
        self._fixed = fixed.detach()
        self._weight = None if mask is None else sample_weights(mask, fixed)
        self._prepared = _deviations(*weighted_samples(self._fixed, fixed.shape, self._weight, None))

    def __call__(self, warped: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The value for a warped image of the shape of `fixed`, a scalar, differentiable with respect to `warped`."""
        moving, weight = weighted_samples(warped, self._fixed.shape, self._weight, mask)
        # another mask moves the fixed mean
        fixed = self._prepared if mask is None else _deviations(items(self._fixed).where(weight > 0, 0), weight)
        return _Correlation.apply(moving, weight, *fixed).mean().to(warped.dtype)


def mean_squares(fixed: torch.Tensor, warped: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
    """`MeanSquares` of two images in one call, a scalar."""
    return MeanSquares(fixed, mask=mask)(warped)


def correlation(fixed: torch.Tensor, warped: torch.Tensor, *, mask: torch.Tensor | None = None) -> torch.Tensor:
    """`Correlation` of two images in one call, a scalar."""
    return Correlation(fixed, mask=mask)(warped)


def items(samples: torch.Tensor) -> torch.Tensor:
    """`(batch, n)`: the items of a batch of images (four or more axes), or all samples as one item."""
    return samples.reshape(len(samples) if samples.ndim >= 4 else 1, -1)


def sample_weights(mask: torch.Tensor, like: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
    """The mask as weights `(batch, n)`, times `other`. Raises `ValueError` for another shape, or an item without any weight."""
    if mask.shape != like.shape and (like.ndim < 4 or mask.shape != (1, *like.shape[1:])):
        raise ValueError(f"mask of shape {tuple(mask.shape)} for samples {tuple(like.shape)}; expected the same shape")
    weight = items(mask.detach().to(like.dtype).expand(like.shape))
    weight = weight if other is None else weight * other
    if not bool((weight.amax(1) > 0).all()):
        raise ValueError("the mask is empty; expected non-zero weights where the images count")
    return weight


def weighted_samples(
    warped: torch.Tensor, shape: torch.Size, prepared: torch.Tensor | None, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The warped samples and their weights, both `(batch, n)`: `mask` times the `prepared` weights; what has weight 0 becomes 0.

    Raises `ValueError` for a shape other than `shape`, that of the fixed image, and as `sample_weights` does.
    """
    if warped.shape != shape:
        raise ValueError(f"fixed {tuple(shape)} and warped {tuple(warped.shape)}; expected one shape: warp onto the fixed grid first")
    weight = prepared if mask is None else sample_weights(mask, warped, prepared)
    moving = items(warped)
    return (moving if weight is None else moving.where(weight > 0, 0)), weight


def _deviations(samples: torch.Tensor, weight: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples less their mean, `(batch, n)`, and the sum of the squares, `(batch, 1)` double: 0 where rounding is all there is."""
    mean = _total(samples, weight) / (samples.shape[1] if weight is None else _total(weight))
    deviation = samples - mean.to(samples.dtype)
    squares = _total(deviation.square(), weight)
    rounding = (8 * torch.finfo(samples.dtype).eps * mean).square() * (samples.shape[1] if weight is None else _total(weight))
    return deviation, squares.where(squares > rounding, 0)


def _total(samples: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    return (samples if weight is None else samples * weight).sum(1, keepdim=True, dtype=torch.float64)


class _Correlation(torch.autograd.Function):
    """The value of each item `(batch, 1)` from samples `(batch, n)`, with its derivative in three passes over the samples."""

    @staticmethod
    def forward(ctx: Any, moving: torch.Tensor, weight: torch.Tensor | None, fixed: torch.Tensor, fixed_squares: torch.Tensor) -> torch.Tensor:
        deviation, squares = _deviations(moving, weight)
        product = _total(deviation * fixed, weight)
        scale = fixed_squares * squares
        value = torch.where(scale > 0, -product.square() / scale, 0)
        ctx.weight, ctx.fixed = weight, fixed
        # the derivative is a multiple of the fixed deviations and one of the moving deviations
        ctx.save_for_backward(deviation, torch.where(scale > 0, -2 * product / scale, 0), torch.where(scale > 0, -2 * value / squares, 0))
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        deviation, by_fixed, by_moving = ctx.saved_tensors
        result = ctx.fixed * (gradient * by_fixed).to(deviation.dtype)
        result.addcmul_(deviation, (gradient * by_moving).to(deviation.dtype))
        return (result if ctx.weight is None else result.mul_(ctx.weight)), None, None, None
