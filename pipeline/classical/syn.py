"""SyN: symmetric diffeomorphic registration by ITK, after a linear stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field as Setting
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.classical.pyramid import (
    LinearStage,
    axis_factors,
    check_lengths,
    field_on,
    itk_field,
    itk_mask,
    itk_reason,
    itk_threads,
    level_smoothing_mm,
    linear_start,
    refined,
    shrunk,
    zero_field,
)
from pipeline.errors import ConcordError
from pipeline.methods import Method, Pair, Run
from pipeline.transforms import Field, Linear, Transform, compose, from_itk, to_itk
from pipeline.volumes import Geometry
from pipeline.volumes import to_itk as image_of

UPDATE_SIGMA_VX = 3**0.5
"""Sigma of the update's smoothing unless told in mm: variance 3 voxels, ITK's and ANTs' default."""


@dataclass(frozen=True)
class Halves:
    """SyN's state: the two half-way maps and their inverses, on one level's grid."""

    fixed_to_middle: Field
    middle_to_fixed: Field
    moving_to_middle: Field
    middle_to_moving: Field

    def fields(self) -> tuple[Field, Field, Field, Field]:
        """The four fields, in the order of the constructor."""
        return self.fixed_to_middle, self.middle_to_fixed, self.moving_to_middle, self.middle_to_moving


class SyN(Method):
    """Symmetric normalisation (Avants et al., Med Image Anal 2008): both images are warped to a middle, and the halves joined.

    ITK runs one level at a time: Python has no adaptor for carrying fields between levels, so a level starts from the halves
    of the one before it as initial transforms, and the composed fields go on.
    """

    linear: LinearStage = Setting(
        "affine", description="linear stage before SyN: mutual information by elastix; 'none' starts from the given position"
    )
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
        1e-6, description="a level ends when the windowed slope of the metric falls below this; 0: never"
    )
    convergence_window: PositiveInt = Setting(10, description="iterations in that window")

    @model_validator(mode="after")
    def _levels_agree(self) -> SyN:
        check_lengths(shrink_factors=self.shrink_factors, iterations=self.iterations, smoothing_mm=self.smoothing_mm)
        return self

    def register(self, pair: Pair, run: Run) -> Transform:
        """The field on the fixed grid, followed by the linear stage."""
        start = linear_start(self.linear, pair, run)
        halves = Halves(*[zero_field(pair.fixed.geometry)] * 4)
        with itk_threads(run.threads):
            for level in range(len(self.shrink_factors)):
                halves = self._level(pair, start, halves, level)
                run.report("syn", (level + 1) / len(self.shrink_factors))
        fixed_to_middle, middle_to_moving = (refined(f, pair.fixed.geometry) for f in (halves.fixed_to_middle, halves.middle_to_moving))
        return compose(field_on(compose(fixed_to_middle, middle_to_moving), pair.fixed.geometry), start)

    def _level(self, pair: Pair, start: Linear, halves: Halves, level: int) -> Halves:
        factors = axis_factors(pair.fixed.geometry, self.shrink_factors[level])
        grid = shrunk(pair.fixed.geometry, factors)
        before = Halves(*(refined(f, grid) for f in halves.fields()))
        if not self.iterations[level]:
            return before
        method = self._method(pair, start, before, level)
        try:
            method.Update()
        except RuntimeError as error:
            raise ConcordError(
                f"{pair.fixed.name} and {pair.moving.name}: SyN stopped at level {level + 1} ({itk_reason(error)}); start closer or check the masks"
            ) from error
        return _continued(before, _halves_of(method))

    def _method(self, pair: Pair, start: Linear, before: Halves, level: int) -> Any:
        """ITK's method for one level, ready to run: images seen through the halves so far, new halves at zero."""
        import itk

        d, geometry = pair.fixed.dimension, pair.fixed.geometry
        factors, grid = axis_factors(geometry, self.shrink_factors[level]), before.fixed_to_middle.geometry
        kind = itk.Image[itk.F, d]
        method = itk.SyNImageRegistrationMethod[kind, kind].New()
        method.SetFixedImage(image_of(pair.fixed, np.float32))
        method.SetMovingImage(image_of(pair.moving, np.float32))
        method.SetMetric(self._metric(pair))
        method.SetNumberOfLevels(1)
        shrink = itk.FixedArray[itk.UI, d]()
        for axis, factor in enumerate(factors):
            shrink.SetElement(axis, factor)
        method.SetShrinkFactorsPerDimension(0, shrink)
        # plain lists: ITK's Python layer crashes on the Array[D] that the C++ signature names
        method.SetSmoothingSigmasPerLevel([level_smoothing_mm(self.smoothing_mm, self.shrink_factors, geometry)[level]])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        method.SetNumberOfIterationsPerLevel([self.iterations[level]])
        method.SetLearningRate(self.gradient_step)
        method.SetConvergenceThreshold(self.convergence_threshold or -np.inf)
        method.SetConvergenceWindowSize(self.convergence_window)
        update_vx, total_vx = self._field_sigmas_vx(geometry)
        method.SetGaussianSmoothingVarianceForTheUpdateField(update_vx**2)
        method.SetGaussianSmoothingVarianceForTheTotalField(total_vx**2)
        method.SetFixedInitialTransform(to_itk(before.middle_to_fixed))
        method.SetMovingInitialTransform(to_itk(compose(before.middle_to_moving, start)))
        method.SetInitialTransform(itk_field(zero_field(grid), zero_field(grid)))
        method.InPlaceOn()
        return method

    def _metric(self, pair: Pair) -> Any:
        import itk

        kind = itk.Image[itk.F, pair.fixed.dimension]
        if self.metric == "mi":
            metric = itk.MattesMutualInformationImageToImageMetricv4[kind, kind].New()
            metric.SetNumberOfHistogramBins(self.bins)
        else:
            metric = itk.ANTSNeighborhoodCorrelationImageToImageMetricv4[kind, kind].New()
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


def _halves_of(method: Any) -> Halves:
    """What one level found, each field on the level's grid."""
    fields = []
    for half in (method.GetModifiableFixedToMiddleTransform(), method.GetModifiableMovingToMiddleTransform()):
        forward = from_itk(half)
        inverse = from_itk(half.GetInverseTransform())
        fields += [forward, inverse]
    return Halves(*fields)


def _continued(before: Halves, found: Halves) -> Halves:
    """The halves so far and what the next level found beyond them, joined on that level's grid.

    The new middle lies beyond the old one: towards it the old map is applied first, from it the new one.
    """
    grid = found.fixed_to_middle.geometry
    return Halves(
        field_on(compose(before.fixed_to_middle, found.fixed_to_middle), grid),
        field_on(compose(found.middle_to_fixed, before.middle_to_fixed), grid),
        field_on(compose(before.moving_to_middle, found.moving_to_middle), grid),
        field_on(compose(found.middle_to_moving, before.middle_to_moving), grid),
    )
