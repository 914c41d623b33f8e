"""A run of the loop: for every stage and level the images, the model, the objective and the step rule, and the trace of it all."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.classical.pyramid import axis_factors, shrunk
from pipeline.errors import ConcordError
from pipeline.methods import Pair, Run
from pipeline.optimise.bending import BendingEnergy
from pipeline.optimise.descent import RULES, Descent
from pipeline.optimise.discrete import discrete_spline, unary_maker
from pipeline.optimise.loop import StopRule, TraceRow, minimise
from pipeline.optimise.models import Model, SplineModel, linear_model
from pipeline.optimise.moving import MovingImage
from pipeline.optimise.objective import Objective
from pipeline.optimise.plans import SamplingPlan
from pipeline.optimise.similarities import SIMILARITIES, Level
from pipeline.resampling import resample, smooth
from pipeline.transforms import Linear, Transform, compose
from pipeline.volumes import Geometry, box_of

if TYPE_CHECKING:
    from pipeline.optimise.method import OptimiserLoop
    from pipeline.optimise.network import TrainedMetric

NEIGHBOURHOOD_VX = 8
"""Voxels around a mask that descriptors and local windows may look at (ours)."""
STEP_VX = 0.25
"""Step of the farthest point in voxels of the level where no step is set (ours)."""
_PLACES = 32  # an axis, at which a starting transform is read for its linear part (ours)


def run_stages(settings: OptimiserLoop, pair: Pair, metric: TrainedMetric | None, run: Run, start: Transform | None = None) -> Transform:
    """All stages one after the other. Linear stages are merged; a B-spline comes before them, T(x) = linear(spline(x)).

    Of a `start` linear stages take over the linear part, and a B-spline what is left.
    """
    images = _Images(settings, pair, metric)
    linear: Linear = Linear.identity(pair.fixed.dimension) if start is None else nearest_linear(start, pair.fixed.geometry)
    rest = None if start is None else compose(start, linear.inverse())
    found: Transform = linear
    for stage in settings.stages:
        if stage == "bspline":
            found = compose(_spline_stage(settings, images, linear, rest, run), linear)
        else:
            linear = _linear_stage(settings, images, linear, stage, run)
            found = linear
    return found


def nearest_linear(transform: Transform, fixed: Geometry) -> Linear:
    """The linear transform that is nearest to any transform on the fixed grid, by least squares."""
    places = fixed.resized(np.minimum(fixed.size, _PLACES).tolist())
    away = places.grid_points().reshape(-1, fixed.dimension) - fixed.centre_mm
    shifts = transform.displacement_mm(places).reshape(-1, fixed.dimension)
    turn, shift = np.linalg.pinv(away) @ shifts, shifts.mean(axis=0)  # places lie evenly about the centre
    matrix = np.eye(fixed.dimension) + turn.T
    return Linear(matrix, fixed.centre_mm + shift - matrix @ fixed.centre_mm, "affine", fixed.centre_mm)


class _Images:
    """The images of each level, made once for all stages."""

    def __init__(self, settings: OptimiserLoop, pair: Pair, metric: TrainedMetric | None) -> None:
        self.settings, self.pair, self.metric = settings, pair, metric
        self._made: dict[int, Pair] = {}

    def level(self, level: int) -> Pair:
        """Images and masks; level 0 is the coarsest."""
        if level not in self._made:
            self._made[level] = self._make(2 ** (self.settings.levels - 1 - level))
        return self._made[level]

    def _make(self, factor: int) -> Pair:
        pair = self.pair
        if factor == 1:
            return self._cropped(pair)
        sigma = self.settings.smoothing_vx * factor
        fixed, moving = (smooth(v, sigma * min(v.geometry.spacing_mm)) for v in (pair.fixed, pair.moving))
        if not self.settings.shrink:
            return self._cropped(replace(pair, fixed=fixed, moving=moving))
        grid = shrunk(fixed.geometry, axis_factors(fixed.geometry, factor))
        mask = None if pair.fixed_mask is None else resample(pair.fixed_mask, grid, interpolation="nearest")
        return self._cropped(replace(pair, fixed=resample(fixed, grid), moving=moving, fixed_mask=mask))

    def _cropped(self, pair: Pair) -> Pair:
        """The pair without the fixed border that no neighbourhood of a masked voxel reaches: what is not looked at costs nothing."""
        mask = pair.fixed_mask
        if mask is None or not SIMILARITIES[self.settings.similarity].grid:
            return pair
        reach = self.metric.network.patch_vx // 2 if self.metric else NEIGHBOURHOOD_VX
        if not mask.array.any():
            raise ConcordError(
                f"{mask.name}: nothing of the mask is left on a coarse grid of {mask.geometry.size} voxels; set levels to 1 or shrink to false"
            )
        first, behind = box_of(mask.array)
        lower, upper = np.maximum(0, first - reach).tolist(), np.minimum(mask.geometry.size, behind + reach).tolist()
        return replace(pair, fixed=pair.fixed.cropped(lower, upper), fixed_mask=mask.cropped(lower, upper))


def _linear_stage(settings: OptimiserLoop, images: _Images, before: Linear, kind: str, run: Run) -> Linear:
    model = linear_model(kind, images.pair.fixed.geometry)
    parameters = model.initial()
    for level in range(settings.levels):
        parameters = _run_level(settings, images, model, parameters, after=before, stage=(kind, level), run=run)
    return before.after(model.transform(parameters))


def _spline_stage(settings: OptimiserLoop, images: _Images, after: Linear, start: Transform | None, run: Run) -> Transform:
    fixed = images.pair.fixed.geometry
    if settings.discrete is not None:
        return _discrete_stage(settings, images, after, run)
    model = SplineModel.over(fixed, settings.control_spacing_mm(fixed), halvings=settings.levels - 1)
    parameters = model.initial() if start is None else model.nearest(start, fixed)
    for level in range(settings.levels):
        if level:
            model, parameters = model.refined(parameters)
        parameters = _run_level(settings, images, model, parameters, after=after, stage=("bspline", level), run=run)
    return model.transform(parameters)


def _discrete_stage(settings: OptimiserLoop, images: _Images, after: Linear, run: Run) -> Transform:
    """Displacements of the control points chosen from a window, then the loop on the finest level."""
    grid, finest = images.pair.fixed.geometry, settings.levels - 1
    model = SplineModel.over(grid, settings.control_spacing_mm(grid))
    make = unary_maker(settings, images.metric, settings.discrete.stride_vx)
    run.report(f"{settings.similarity}, discrete", 0.5)
    parameters = discrete_spline(images.level(finest), model, after=after, make=make, how=settings.discrete)
    return model.transform(_run_level(settings, images, model, parameters, after=after, stage=("bspline", finest), run=run))


def _run_level(
    settings: OptimiserLoop, images: _Images, model: Model, parameters: np.ndarray, *, after: Linear, stage: tuple[str, int], run: Run
) -> np.ndarray:
    """One resolution of one stage."""
    name, level = stage
    at_level = images.level(level)
    objective = level_objective(settings, at_level, images.metric, model, after=after, run=run)
    iterations = settings.iteration_counts[level]
    step_mm = settings.step_mm or STEP_VX * min(at_level.fixed.geometry.spacing_mm)
    descent = _descent(settings, model, step_mm, iterations)
    done = (settings.stages.index(name) * settings.levels + level) / (len(settings.stages) * settings.levels)

    def record(iteration: int, value: float, step: float, norm: float, seconds: float) -> None:
        if run.trace is not None:
            run.trace.append(asdict(TraceRow(name, level, iteration, value, step, norm, seconds)))
        if iteration % 10 == 0:
            run.report(f"{settings.similarity} {name}", done + iteration / iterations / (len(settings.stages) * settings.levels))

    return minimise(objective, parameters, descent, StopRule(iterations, settings.window), record=record)


def level_objective(
    settings: OptimiserLoop, pair: Pair, metric: TrainedMetric | None, model: Model, *, after: Linear, run: Run, dtype: torch.dtype = torch.float32
) -> Objective:
    """The objective of one level: what the loop minimises there, and what figures of metric and derivative plot."""
    kind = SIMILARITIES[settings.similarity]
    moving = MovingImage.of(pair.moving, gradient=settings.image_gradient, dtype=dtype)
    level = Level(moving, tuple(reversed(pair.fixed.geometry.spacing_mm)), metric)
    plan = SamplingPlan(
        pair.fixed.geometry,
        "dense" if kind.grid else settings.sampling,
        settings.samples,
        fresh=settings.fresh,
        seed=run.seed,
        mask=None if pair.fixed_mask is None else pair.fixed_mask.array,
        grid=kind.grid,
        dtype=dtype,
    )
    return Objective(
        model=model,
        fixed=torch.as_tensor(pair.fixed.array.astype(np.float64 if dtype == torch.float64 else np.float32)),
        moving=moving,
        plan=plan,
        make_similarity=lambda samples: kind.make(samples, settings, level),
        after=after,
        moving_mask=None if pair.moving_mask is None else MovingImage.of(pair.moving_mask.with_array(pair.moving_mask.array != 0), dtype=dtype),
        penalty=BendingEnergy(model.grid, settings.weight_of_bending) if settings.weight_of_bending and isinstance(model, SplineModel) else None,
    )


def _descent(settings: OptimiserLoop, model: Model, step_mm: float, iterations: int) -> Descent:
    extra = {"relaxation": settings.relaxation, "minimum_step_mm": settings.minimum_step_mm} if settings.optimiser == "regular-step" else {}
    return RULES[settings.optimiser](model, step_mm, iterations, settings.learning_rate, **extra)
