"""Before a registration starts: masks by threshold, what the images have in common, and a first shift of one onto the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from pipeline.errors import ConcordError
from pipeline.methods import Pair
from pipeline.volumes import Volume

Initialise = Literal["auto", "none", "centre", "mass"]
FEWEST_SAMPLES = 100
"""Voxels to compare under which no similarity is worth optimising (ours)."""
OVERLAPPING = 0.25
"""Share of the smaller box inside the other from which the header's geometry is trusted (ours)."""
FULL_PART = 0.1
"""Share of the largest connected part from which another one belongs to a mask by threshold (ours)."""
PROBES = 20_000
"""Points on which overlaps are measured."""


def masked_by_threshold(pair: Pair, threshold: float | None) -> Pair:
    """The pair with masks by threshold (where one is given) laid over its own."""
    if threshold is None:
        return pair
    fixed, moving = threshold_mask(pair.fixed, threshold), threshold_mask(pair.moving, threshold)
    return replace(pair, fixed_mask=both_masks(fixed, pair.fixed_mask), moving_mask=both_masks(moving, pair.moving_mask))


def common_voxels(pair: Pair) -> tuple[float, int]:
    """`overlap`, refused where it is too little to register. Raises `ConcordError`."""
    share, voxels = overlap(pair)
    if share * voxels < FEWEST_SAMPLES:
        here = " inside their masks" if pair.fixed_mask is not None or pair.moving_mask is not None else ""
        raise ConcordError(
            f"{pair.fixed.name} and {pair.moving.name}: {share * voxels:.0f} voxels in common{here}, expected {FEWEST_SAMPLES}; "
            "enlarge the masks, or set initialise to 'centre' or 'mass'"
        )
    return share, voxels


def overlap(pair: Pair) -> tuple[float, int]:
    """Share of the fixed voxels (of its mask) that stand inside the moving grid (and its mask), and the number of fixed voxels."""
    shape = pair.fixed.array.shape
    voxels = np.flatnonzero(pair.fixed_mask.array) if pair.fixed_mask is not None else np.arange(pair.fixed.array.size)
    probes = voxels[:: max(1, len(voxels) // PROBES)]
    index = np.stack(np.unravel_index(probes, shape)[::-1], axis=-1)
    points = pair.fixed.geometry.points_at(index)
    inside = pair.moving.geometry.contains(points) if pair.moving_mask is None else in_mask(pair.moving_mask, points)
    return float(inside.mean()) if len(probes) else 0.0, len(voxels)


def starting_shift(pair: Pair, how: str) -> np.ndarray:
    """Translation in mm, `(d,)`, that lays the moving image onto the fixed one before the first stage: "auto", "none", "centre" or "mass".

    Mass is the intensity above the image's minimum, inside the mask where there is one.
    """
    if how == "mass":
        return mass_centre(pair.moving, pair.moving_mask) - mass_centre(pair.fixed, pair.fixed_mask)
    plain = Pair(pair.fixed, pair.moving)
    if how == "none" or (how == "auto" and max(overlap(plain)[0], overlap(Pair(pair.moving, pair.fixed))[0]) >= OVERLAPPING):
        return np.zeros(pair.fixed.dimension)
    return pair.moving.geometry.centre_mm - pair.fixed.geometry.centre_mm


def threshold_mask(volume: Volume, threshold: float) -> Volume:
    """Where the intensity, scaled to [0, 1] by minimum and maximum, exceeds `threshold`.

    Ours: holes are filled, as they lie in the head, and connected parts under a tenth of the largest are dropped, as they are noise.
    """
    from scipy.ndimage import binary_fill_holes, label

    low, high = float(volume.array.min()), float(volume.array.max())
    parts, _ = label(volume.array > low + threshold * (high - low))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return volume.with_array(binary_fill_holes((sizes >= max(1.0, FULL_PART * sizes.max()))[parts]).astype(np.uint8))


def both_masks(mask: Volume, other: Volume | None) -> Volume:
    """Where both masks count."""
    return mask if other is None else mask.with_array(((mask.array != 0) & (other.array != 0)).astype(np.uint8))


def mass_centre(volume: Volume, mask: Volume | None = None) -> np.ndarray:
    """Centre of the intensity above the image's minimum, inside the mask where there is one, `(d,)` in mm."""
    from scipy.ndimage import center_of_mass

    weight = volume.array.astype(float) - float(volume.array.min())
    return volume.geometry.points_at(np.array(center_of_mass(weight if mask is None else weight * (mask.array != 0))[::-1]))


def in_mask(mask: Volume, points_mm: np.ndarray) -> np.ndarray:
    """Whether the voxel nearest to each point `(n, d)` is in the mask, `(n,)` bool; points outside its grid are not."""
    inside = mask.geometry.contains(points_mm)
    nearest = np.floor(mask.geometry.index_at(points_mm[inside]) + 0.5).astype(int)
    nearest = np.clip(nearest, 0, np.asarray(mask.geometry.size) - 1)
    inside[inside] = mask.array[tuple(nearest.T[::-1])] != 0
    return inside


def placed_earlier(volume: Volume | None, shift_mm: np.ndarray) -> Any:
    """The volume placed `shift_mm` earlier, so that a transform onto it lacks just that translation."""
    if volume is None:
        return None
    origin = tuple((np.asarray(volume.geometry.origin_mm) - shift_mm).tolist())
    return replace(volume, geometry=replace(volume.geometry, origin_mm=origin))
