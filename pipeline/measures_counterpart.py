"""Measures by the moving subject's other image, its image in the fixed modality: of a registration within one modality, and of translations."""

from __future__ import annotations

from collections.abc import Callable
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

    warped = warp_by_field(unit_counterpart(scored), scored.displacement_mm, scored.fixed.geometry)
    return 100 * float(np.mean((_unit(scored.fixed).array - warped.array) ** 2))


def translation_quality(name: str) -> Callable[[Scored], float | dict[int, float]]:
    """PSNR ("psnr_db") or SSIM ("ssim") of the translated moving image that the method handed over, against the counterpart.

    Dai et al., 3.3 and Table 3. The counterpart is scaled to [0, 1] by its own minimum and maximum, the range is 1; the translated image is in
    the units of the fixed one, scaled likewise, and taken as it is. A method that hands over none has no number. Raises `ConcordError` as
    `counterpart_mse_percent` does.
    """

    def compute(scored: Scored) -> float | dict[int, float]:
        from metrics.accuracy import quality
        from pipeline.resampling import resample

        if scored.translated is None:
            return {}
        true = unit_counterpart(scored)
        if not true.geometry.matches(scored.translated.geometry):
            true = resample(true, scored.translated.geometry)
        return float(getattr(quality, name)(true.array.astype(float), scored.translated.array.astype(float), data_range=1.0))

    return compute


def unit_counterpart(scored: Scored) -> Volume:
    """The moving subject's image in the fixed modality, scaled to [0, 1]. Raises `ConcordError` as `counterpart_mse_percent` does."""
    path = scored.case.moving_counterpart
    if path is None:
        raise ConcordError(f"case {scored.case.case}: no moving_counterpart; this measure needs the moving subject's image in the fixed modality")
    counterpart, moving = read_volume(path), read_volume(scored.case.moving)
    if not counterpart.geometry.matches(moving.geometry):
        raise ConcordError(f"{path}: size {counterpart.geometry.size} is not on the grid of {moving.name} {moving.geometry.size}; resample it")
    return _unit(counterpart)


def _unit(volume: Volume) -> Volume:
    """The volume scaled to [0, 1]."""
    low, high = float(volume.array.min()), float(volume.array.max())
    if low == high:
        raise ConcordError(f"{volume.name}: every sample is {low:g}; expected an image")
    return volume.with_array((volume.array.astype(float) - low) / (high - low))
