"""The region that a network of rigid registration sees: a box around the organ, divided into a fixed number of voxels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.errors import ConcordError
from pipeline.volumes import Geometry, Volume, box_of

_EXACT = 1e-9


def region_mask(labels: Volume, enlarge: float = 0.3) -> Volume:
    """1 inside the box of what is not zero, enlarged on each side by `enlarge` of its own size along that axis; uint8 on the labels' grid.

    The box follows the voxel axes, ends at whole voxels (rounded outward) and within the volume. 0.3 is what the group of Song et al.
    (MICCAI 2021) has wherever it writes its volumes. Raises `ConcordError` for labels without any voxel and a negative `enlarge`.
    """
    if enlarge < 0:
        raise ConcordError(f"enlarge {enlarge}; expected 0 or more, a share of the box's size: 0.3 is usual")
    lower, upper = _box(labels)
    extra = enlarge * (upper - lower)
    lower = np.maximum(0, np.floor(lower - extra + _EXACT)).astype(int)
    upper = np.minimum(labels.geometry.size, np.ceil(upper + extra - _EXACT)).astype(int)
    inside = np.zeros(labels.array.shape, np.uint8)
    inside[tuple(slice(low, up) for low, up in zip(lower[::-1], upper[::-1], strict=True))] = 1
    return labels.with_array(inside)


def region_grid(mask: Volume, size: Sequence[int]) -> Geometry:
    """The mask's bounding box, outer voxel faces, divided into exactly `size` voxels `(x, y[, z])`.

    The spacing differs from axis to axis and from case to case; directions are the mask's. Raises `ConcordError` for an empty mask.
    """
    lower, upper = _box(mask)
    return mask.geometry.cropped(lower.tolist(), upper.tolist()).resized(size)


def outer_corners_mm(region: Geometry) -> np.ndarray:
    """The corners `(2^d, d)` in mm of a grid's box, outer voxel faces."""
    return region.points_at(region.corners_vx(beyond=0.5))


def touches_border(mask: Volume) -> bool:
    """Whether the box of what is not zero reaches the volume's outermost voxels: what it covers may go on outside."""
    lower, upper = _box(mask)
    return bool((lower == 0).any() or (upper == mask.geometry.size).any())


def _box(mask: Volume) -> tuple[np.ndarray, np.ndarray]:
    if not mask.array.any():
        raise ConcordError(f"{mask.name}: every voxel is zero; expected the organ's voxels to be non-zero: outline it first")
    return box_of(mask.array != 0)
