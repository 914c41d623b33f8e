"""Diffeomorphic Demons by ITK: one kind of image, differences of grey values drive a dense field."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field as Setting
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.classical.linear_stage import AfterLinearStage
from pipeline.classical.pyramid import (
    axis_factors,
    check_lengths,
    itk_reason,
    itk_threads,
    level_smoothing_mm,
    refined,
    shrunk,
    zero_field,
)
from pipeline.errors import ConcordError
from pipeline.itk_classes import itk_class, load_itk
from pipeline.methods import Pair, Run
from pipeline.resampling import resample, smooth, warp
from pipeline.transforms import Field, Transform, compose
from pipeline.volumes import Geometry, Volume
from pipeline.volumes import to_itk as image_of

GREY_RANGE = 1000.0
"""Both images are put on this range before they meet: ITK takes differences under 0.001 for none, whatever the images' unit (ours)."""
FIELD_SIGMA_VX = 1.5
"""Sigma of the field's smoothing unless told in mm (ours; ITK's is 1)."""
KERNEL_ERROR = 0.01
"""What a smoothing kernel may leave out of its Gaussian (ours; ITK's 0.1 cuts the tails off)."""
_HISTOGRAM_BINS, _MATCH_POINTS = 256, 15


class Demons(AfterLinearStage):
    """Diffeomorphic Demons (Vercauteren et al., NeuroImage 2009), coarse to fine. The images must be of one kind: grey values are subtracted.

    The moving image is brought onto the fixed grid first (through the linear stage, where there is one), so the two may have any grids.
    """

    takes_masks: ClassVar[bool] = False

    shrink_factors: tuple[PositiveInt, ...] = Setting((4, 2, 1), description="shrink factor of each level, coarse to fine")
    iterations: tuple[NonNegativeInt, ...] = Setting((100, 70, 30), description="iterations at each level")
    smoothing_mm: tuple[NonNegativeFloat, ...] | None = Setting(
        None, description="sigma of the images' smoothing at each level, mm; null: log2(shrink factor) finest voxels"
    )
    field_sigma_mm: NonNegativeFloat | None = Setting(
        None, description="sigma of the field's smoothing at full resolution, mm; coarser levels smooth by their shrink factor more; null: 1.5 voxels"
    )
    update_sigma_mm: NonNegativeFloat = Setting(0.0, description="sigma of the update's smoothing, as above: fluid-like where positive")
    maximum_step_vx: PositiveFloat = Setting(0.5, description="longest update of one iteration, voxels of the level")
    histogram_matching: bool = Setting(
        True, description="match the moving grey values to the fixed ones by quantiles first: for two scans of one sequence"
    )

    @model_validator(mode="after")
    def _levels_agree(self) -> Demons:
        check_lengths(shrink_factors=self.shrink_factors, iterations=self.iterations, smoothing_mm=self.smoothing_mm)
        return self

    def load(self) -> None:
        """ITK's Demons, and elastix where there is a linear stage."""
        itk = load_itk()

        _ = itk.image_from_array, itk_class("DiffeomorphicDemonsRegistrationFilter", "IF3IF3IVF33")
        super().load()

    def register(self, pair: Pair, run: Run) -> Transform:
        """The field on the fixed grid, followed by the linear stage."""
        grid, levels = pair.fixed.geometry, len(self.shrink_factors)
        start = self.linear_start(pair, run)
        field = zero_field(grid)
        with itk_threads(run.threads):
            fixed, moving = self._comparable(pair.fixed, warp(pair.moving, start, grid, background=float(pair.moving.array.min())))
            for level in range(levels):
                field = self._level(fixed, moving, field if level else None, level)
                run.report("demons", (level + 1) / levels)
        return compose(refined(field, grid), start)

    def _level(self, fixed: Volume, moving: Volume, before: Field | None, level: int) -> Field:
        grid = shrunk(fixed.geometry, axis_factors(fixed.geometry, self.shrink_factors[level]))
        before = zero_field(grid) if before is None else refined(before, grid)
        if not self.iterations[level]:
            return before
        sigma_mm = level_smoothing_mm(self.smoothing_mm, self.shrink_factors, fixed.geometry)[level]
        images = [image_of(resample(smooth(v, sigma_mm) if sigma_mm else v, grid), np.float32) for v in (fixed, moving)]
        method = self._method(images, before, level)
        try:
            method.Update()
        except RuntimeError as error:
            raise ConcordError(
                f"{fixed.name} and {moving.name}: Demons stopped at level {level + 1} ({itk_reason(error)}); start closer or smooth more"
            ) from error
        itk = load_itk()

        return Field(np.array(itk.array_view_from_image(method.GetOutput()), dtype=float), grid)

    def _method(self, images: list[Any], before: Field, level: int) -> Any:
        """ITK's filter for one level, ready to run."""
        grid = before.geometry
        kinds = 2 * f"IF{grid.dimension}" + f"IVF{2 * str(grid.dimension)}"
        method = itk_class("DiffeomorphicDemonsRegistrationFilter", kinds).New()
        method.SetFixedImage(images[0])
        method.SetMovingImage(images[1])
        method.SetInitialDisplacementField(_vector_image(before))
        method.SetNumberOfIterations(self.iterations[level])
        method.SetMaximumUpdateStepLength(self.maximum_step_vx)
        method.SetMaximumError(KERNEL_ERROR)
        field_vx, update_vx = (self._sigma_vx(sigma_mm, grid, level) for sigma_mm in (self.field_sigma_mm, self.update_sigma_mm))
        method.SetSmoothDisplacementField(max(field_vx) > 0)
        method.SetSmoothUpdateField(max(update_vx) > 0)
        method.SetStandardDeviations(field_vx)
        method.SetUpdateFieldStandardDeviations(update_vx)
        return method

    def _sigma_vx(self, sigma_mm: float | None, grid: Geometry, level: int) -> list[float]:
        """Sigma along each axis in voxels of a level's grid."""
        if sigma_mm is None:
            return [FIELD_SIGMA_VX] * grid.dimension
        return [sigma_mm * self.shrink_factors[level] / spacing for spacing in grid.spacing_mm]

    def _comparable(self, fixed: Volume, moving: Volume) -> tuple[Volume, Volume]:
        """Both volumes in the fixed one's grey values, put on `GREY_RANGE`."""
        if self.histogram_matching:
            moving = _histogram_matched(moving, fixed)
        low, high = float(fixed.array.min()), float(fixed.array.max())
        return tuple(v.with_array((v.array.astype(np.float32) - low) * (GREY_RANGE / (high - low))) for v in (fixed, moving))  # type: ignore[return-value]


def _histogram_matched(moving: Volume, fixed: Volume) -> Volume:
    """The moving volume with the grey-value quantiles of the fixed one, those under the mean (background) set aside (Nyul et al., 2000)."""
    known, wanted = (_quantiles(volume.array) for volume in (moving, fixed))
    return moving.with_array(np.interp(moving.array, known, wanted).astype(np.float32))


def _quantiles(array: np.ndarray) -> np.ndarray:
    """Least value, mean, 15 quantiles of what lies above the mean, and largest value.

    As ITK's `HistogramMatchingImageFilter` has them from 256 bins; loading that takes four seconds, ten times what registering small images does.
    """
    array = array.astype(np.float32).astype(np.float64)  # so the mean of equal values is exact, and any range holds the bins
    low, high = float(array.mean()), float(array.max())
    counts, edges = np.histogram(array, bins=_HISTOGRAM_BINS, range=(low, high))
    shares = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
    inside = np.interp(np.linspace(0.0, 1.0, _MATCH_POINTS + 2)[1:-1], shares, edges)
    return np.concatenate([[float(array.min()), low], inside, [high]])


def _vector_image(field: Field) -> Any:
    """The field as an ITK image of single-precision vectors."""
    itk = load_itk()

    d = field.dimension
    image = itk.image_from_array(np.ascontiguousarray(field.field_mm, dtype=np.float32), ttype=itk.Image[itk.Vector[itk.F, d], d])
    image.SetSpacing(field.geometry.spacing_mm)
    image.SetOrigin(field.geometry.origin_mm)
    image.SetDirection(itk.matrix_from_array(np.asarray(field.geometry.direction)))
    return image
