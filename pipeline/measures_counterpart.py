"""What registration of two modalities is worth within one: the moving subject's other image, warped as the moving one, against the fixed image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ConcordError
from pipeline.volumes import Volume, read_volume

if TYPE_CHECKING:
    from pipeline.measures import Scored


def counterpart_mse_percent(scored: Scored) -> float:
    """100 times the mean squared difference between fixed image and warped counterpart, each scaled to [0, 1] by its own minimum and maximum.

    Dai et al., 3.1 and Table 2: the field found between T1 and T2 is applied to the moving subject's T1. The counterpart is the case's
    `moving_counterpart`, linear, zero (its minimum) outside its grid; all voxels of the fixed grid count. Raises `ConcordError` where the
    case has none, or one that is not on the moving grid, or an image of one value.
    """
    from pipeline.resampling import warp_by_field

    path = scored.case.moving_counterpart
    if path is None:
        raise ConcordError(f"case {scored.case.case}: no moving_counterpart; this measure needs the moving subject's image in the fixed modality")
    counterpart, moving = read_volume(path), read_volume(scored.case.moving)
    if not counterpart.geometry.matches(moving.geometry):
        raise ConcordError(f"{path}: size {counterpart.geometry.size} is not on the grid of {moving.name} {moving.geometry.size}; resample it")
    warped = warp_by_field(_unit(counterpart), scored.displacement_mm, scored.fixed.geometry)
    return 100 * float(np.mean((_unit(scored.fixed).array - warped.array) ** 2))


def _unit(volume: Volume) -> Volume:
    """The volume scaled to [0, 1]."""
    low, high = float(volume.array.min()), float(volume.array.max())
    if low == high:
        raise ConcordError(f"{volume.name}: every sample is {low:g}; expected an image")
    return volume.with_array((volume.array.astype(float) - low) / (high - low))
