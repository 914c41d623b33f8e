"""Sums over cubic windows around every voxel, separable, a few planes at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_SLAB = 1 << 18  # voxels at a time: their sums stay in a core's cache (ours)


def box_sum(image: torch.Tensor, radius: int, times: torch.Tensor | None = None) -> torch.Tensor:
    """Sum of an image `(B, C, [z,] y, x)`, or its product with `times`, over windows of edge `2 radius + 1`, zeros outside: its own adjoint."""
    if image.ndim == 4:
        return _axis_sum(_axis_sum(image if times is None else image * times, radius, 3), radius, 2)
    result = torch.empty_like(image)
    planes, rows = (max(1, _SLAB * image.shape[axis] // image.numel()) for axis in (2, 3))
    factors = image if times is None else times
    for into, part, factor in zip(*(array.split(planes, 2) for array in (result, image, factors)), strict=True):
        into.copy_(_axis_sum(_axis_sum(part if times is None else part * factor, radius, 4), radius, 3))
    for part in result.split(rows, 3):
        part.copy_(_axis_sum(part, radius, 2))
    return result


def box_shares(image: torch.Tensor, radius: int) -> torch.Tensor:
    """The share `1 / n` of a voxel in a window of the n voxels that lie inside the image, `(1, 1, [z,] y, x)`."""
    shares = image.new_ones(1, 1, *[1] * (image.ndim - 2))
    for axis in range(2, image.ndim):
        place = torch.arange(image.shape[axis], device=image.device)
        inside = (place + radius).clamp(max=image.shape[axis] - 1) - (place - radius).clamp(min=0) + 1
        shares = shares / inside.to(image.dtype).view(-1, *[1] * (image.ndim - 1 - axis))
    return shares


def _axis_sum(volume: torch.Tensor, radius: int, axis: int) -> torch.Tensor:
    """A window is made of pieces of 1, 2, 4, ... voxels, each the sum of two shorter ones: fewer additions than voxels in the window."""
    length, edge = volume.shape[axis], 2 * radius + 1
    pieces = F.pad(volume, (0, 0) * (volume.ndim - 1 - axis) + (radius, radius))
    total, start, size = pieces.narrow(axis, 0, length), 1, 1
    while 2 * size <= edge:
        kept = pieces.shape[axis] - size
        pieces = pieces.narrow(axis, 0, kept) + pieces.narrow(axis, size, kept)
        size *= 2
        if edge & size:
            total = total + pieces.narrow(axis, start, length)
            start += size
    return total
