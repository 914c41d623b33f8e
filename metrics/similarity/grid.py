"""What similarities of whole images share: checks of shape, weights of a map, and a value that brings its derivative along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def check_image(image: torch.Tensor) -> torch.Tensor:
    """The image itself. Raises `ValueError` if it is not `(B, 1, [z,] y, x)`."""
    if image.ndim not in (4, 5) or image.shape[1] != 1 or 0 in image.shape:
        raise ValueError(f"image of shape {tuple(image.shape)}; expected (batch, 1, [z,] y, x)")
    return image


def check_pair(fixed: torch.Size, warped: torch.Size) -> None:
    """Raises `ValueError` if the two shapes differ."""
    if fixed != warped:
        raise ValueError(f"fixed {tuple(fixed)} and warped {tuple(warped)}; expected one shape: warp onto the fixed grid first")


def map_weights(mask: torch.Tensor, like: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
    """The mask as weights of a map `(B, 1, [z,] y, x)`, times `other`, with sum 1. Raises `ValueError` for another shape or no weight."""
    if mask.shape[1:] != like.shape[1:] or len(mask) not in (1, len(like)):
        raise ValueError(f"mask of shape {tuple(mask.shape)} for images {tuple(like.shape)}; expected (batch or 1, 1, [z,] y, x)")
    weight = mask.detach().to(like.dtype).expand(like.shape)
    weight = weight if other is None else weight * other
    total = weight.sum(dtype=torch.float64)
    if not total > 0:
        raise ValueError("the mask is empty; expected non-zero weights where the images count")
    return weight / total.to(like.dtype)


class ValueWithGradient(torch.autograd.Function):
    """A scalar whose derivative is computed together with it, so that nothing in between has to be kept.

    `evaluate(image, with_gradient)` gives the value and its derivative with respect to the image, which is not used where none is asked for.
    """

    @staticmethod
    def forward(ctx: Any, image: torch.Tensor, evaluate: Callable[[torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor | None]]) -> torch.Tensor:
        """The value."""
        value, gradient = evaluate(image, ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The derivative that came with it."""
        return outer * ctx.saved_tensors[0], None
