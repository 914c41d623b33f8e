"""SyN: symmetric diffeomorphic registration by ITK, after a linear stage."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field as Setting
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.classical.linear_stage import AfterLinearStage, LinearStage
from pipeline.classical.pyramid import (
    axis_factors,
    check_lengths,
    field_on,
    itk_field,
    itk_mask,
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
from pipeline.transforms import Field, Linear, Transform, compose, from_itk, to_itk
from pipeline.volumes import Geometry
from pipeline.volumes import to_itk as image_of

METRICS = {"mi": "MattesMutualInformationImageToImageMetricv4", "cc": "ANTSNeighborhoodCorrelationImageToImageMetricv4"}
UPDATE_SIGMA_VX = 3**0.5
"""Sigma of the update's smoothing unless told in mm: variance 3 voxels, ITK's and ANTs' default."""


class SyN(AfterLinearStage):
    """Symmetric normalisation (Avants et al., Med Image Anal 2008): both images are warped to a middle, and the halves joined.

    The halves and their inverses go from level to level as ITK's adaptors would carry them: Python has none of these, so an
    observer refines the fields when a level begins (see `_carry`).
    """

    linear: LinearStage = Setting("affine", description="linear stage before: mutual information by elastix; 'none' starts from the given position")
    metric: Literal["mi", "cc"] = Setting("mi", description="'mi': Mattes mutual information; 'cc': squared local correlation")
    bins: PositiveInt = Setting(32, description="histogram bins of the mutual information")
    radius_vx: PositiveInt = Setting(4, description="radius of the correlation's window, voxels of the level's grid")
    shrink_factors: tuple[PositiveInt, ...] = Setting((4, 2, 1), description="shrink factor of each level, coarse to fine")
    iterations: tuple[NonNegativeInt, ...] = Setting((60, 40, 20), description="most iterations at each level")
    smoothing_mm: tuple[NonNegativeFloat, ...] | None = Setting(
        None, description="sigma of the images' smoothing at each level, mm; null: log2(shrink factor) finest voxels"
    )
    gradient_step: PositiveFloat = Setting(0.2, description="largest update of one iteration, voxels of the level's grid")
    update_field_sigma_mm: NonNegativeFloat | None = Setting(
        None,
        description="sigma of the update's smoothing at full resolution, mm; coarser levels smooth by their shrink factor more; null: sqrt(3) voxels",
    )
    total_field_sigma_mm: NonNegativeFloat = Setting(
        0.0, description="sigma of the smoothing of a level's whole field, mm at full resolution, as above"
    )
    convergence_threshold: NonNegativeFloat = Setting(
        0.0, description="a level ends when the windowed slope of the metric falls below this; 0: never"
    )
    convergence_window: PositiveInt = Setting(10, description="iterations in that window")

    @model_validator(mode="after")
    def _levels_agree(self) -> SyN:
        check_lengths(shrink_factors=self.shrink_factors, iterations=self.iterations, smoothing_mm=self.smoothing_mm)
        return self

    def load(self) -> None:
        """ITK's SyN, and elastix where there is a linear stage."""
        itk = load_itk()

        _ = itk.image_from_array, itk_class("SyNImageRegistrationMethod", "F3F3"), itk_class(METRICS[self.metric], "IF3IF3")
        super().load()

    def register(self, pair: Pair, run: Run) -> Transform:
        """The field on the fixed grid, followed by the linear stage."""
        start = self.linear_start(pair, run)
        with itk_threads(run.threads):
            method = self._method(pair, start)
            self._run(method, pair, run)
        from_fixed, from_moving = method.GetModifiableFixedToMiddleTransform(), method.GetModifiableMovingToMiddleTransform()
        halves = (from_itk(from_fixed), from_itk(from_moving.GetInverseTransform()))
        field = field_on(compose(*(refined(half, pair.fixed.geometry) for half in halves)), pair.fixed.geometry)
        return compose(field, start)

    def _run(self, method: Any, pair: Pair, run: Run) -> None:
        """Run all levels; at the start of each the fields are brought onto its grid."""
        itk = load_itk()

        levels, begun = len(self.shrink_factors), []

        def begin() -> None:
            level = method.GetCurrentLevel()
            if level in begun:  # ITK tells of every iteration under the same name
                return
            begun.append(level)
            run.report("syn", level / levels)
            if level:
                _carry(method, shrunk(pair.fixed.geometry, axis_factors(pair.fixed.geometry, self.shrink_factors[level])))

        method.AddObserver(itk.IterationEvent(), begin)
        try:
            method.Update()
        except RuntimeError as error:
            reason = f"level {method.GetCurrentLevel() + 1}: {itk_reason(error)}"
            raise ConcordError(f"{pair.fixed.name} and {pair.moving.name}: SyN stopped at {reason}; start closer or check the masks") from error
        finally:
            method.RemoveAllObservers()
        run.report("syn", 1.0)

    def _method(self, pair: Pair, start: Linear) -> Any:
        """ITK's method, ready to run."""
        geometry, levels = pair.fixed.geometry, len(self.shrink_factors)
        method = itk_class("SyNImageRegistrationMethod", 2 * f"F{geometry.dimension}").New()
        method.SetFixedImage(image_of(pair.fixed, np.float32))
        method.SetMovingImage(image_of(pair.moving, np.float32))
        method.SetMovingInitialTransform(to_itk(start))
        method.SetMetric(self._metric(pair))
        method.SetNumberOfLevels(levels)
        for level, factor in enumerate(self.shrink_factors):
            method.SetShrinkFactorsPerDimension(level, _per_axis(axis_factors(geometry, factor)))
        # plain lists: ITK's Python layer crashes on the Array[D] that the C++ signature names
        method.SetSmoothingSigmasPerLevel(list(level_smoothing_mm(self.smoothing_mm, self.shrink_factors, geometry)))
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        method.SetNumberOfIterationsPerLevel(list(self.iterations))
        method.SetLearningRate(self.gradient_step)
        method.SetConvergenceThreshold(self.convergence_threshold or -np.inf)
        method.SetConvergenceWindowSize(self.convergence_window)
        update_vx, total_vx = self._field_sigmas_vx(geometry)
        method.SetGaussianSmoothingVarianceForTheUpdateField(update_vx**2)
        method.SetGaussianSmoothingVarianceForTheTotalField(total_vx**2)
        grid = shrunk(geometry, axis_factors(geometry, self.shrink_factors[0]))
        method.SetInitialTransform(itk_field(zero_field(grid), zero_field(grid)))
        method.InPlaceOn()
        return method

    def _metric(self, pair: Pair) -> Any:
        metric = itk_class(METRICS[self.metric], 2 * f"IF{pair.fixed.dimension}").New()
        if self.metric == "mi":
            metric.SetNumberOfHistogramBins(self.bins)
        else:
            metric.SetRadius([self.radius_vx] * pair.fixed.dimension)
        # gradients of the warped images by central differences, not by a recursive Gaussian over the whole image at every iteration
        metric.SetUseFixedImageGradientFilter(False)
        metric.SetUseMovingImageGradientFilter(False)
        if pair.fixed_mask is not None:
            metric.SetFixedImageMask(itk_mask(pair.fixed_mask))
        if pair.moving_mask is not None:
            metric.SetMovingImageMask(itk_mask(pair.moving_mask))
        return metric

    def _field_sigmas_vx(self, geometry: Geometry) -> tuple[float, float]:
        """Sigmas in voxels: ITK's kernel has the same number of voxels along every axis and at every level."""
        voxel_mm = float(np.prod(geometry.spacing_mm) ** (1 / geometry.dimension))
        update = UPDATE_SIGMA_VX if self.update_field_sigma_mm is None else self.update_field_sigma_mm / voxel_mm
        return update, self.total_field_sigma_mm / voxel_mm


def _carry(method: Any, grid: Geometry) -> None:
    """Bring both halves, their inverses and ITK's (still empty) result onto the grid of the level that begins."""
    for half in (method.GetModifiableFixedToMiddleTransform(), method.GetModifiableMovingToMiddleTransform()):
        _put(half, refined(from_itk(half), grid), refined(from_itk(half.GetInverseTransform()), grid))
    _put(method.GetModifiableTransform(), zero_field(grid), zero_field(grid))


def _put(transform: Any, field: Field, inverse: Field) -> None:
    """Give an ITK displacement-field transform new fields, on a new grid."""
    transform.SetDisplacementField(to_itk(field).GetDisplacementField())
    transform.SetInverseDisplacementField(to_itk(inverse).GetDisplacementField())


def _per_axis(factors: tuple[int, ...]) -> Any:
    shrink = itk_class("FixedArray", f"UI{len(factors)}")()
    for axis, factor in enumerate(factors):
        shrink.SetElement(axis, factor)
    return shrink
