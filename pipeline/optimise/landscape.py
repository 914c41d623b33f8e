"""What the loop sees near the truth: similarity and analytic derivative along single parameters (Simonovsky et al. 2016, sec. 3.3 and fig. 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.errors import ConcordError
from pipeline.linear_parameters import linear_from_parameters
from pipeline.methods import Pair, Run
from pipeline.resampling import warp
from pipeline.starting import in_mask, masked_by_threshold, mass_centre, threshold_mask
from pipeline.transforms import Linear, Transform
from pipeline.volumes import Geometry

if TYPE_CHECKING:
    from pipeline.optimise.method import OptimiserLoop
    from pipeline.optimise.models import Model
    from pipeline.optimise.objective import Evaluation

COLUMNS = ("method", "transform", "perturbed", "parameter", "other", "perturbation_mm", "value", "derivative", "voxel_mm")
NUMBERS = ("basin_mm", "offset_mm", "correct_sign_percent", "correct_sign_mm", "derivative_correlation")
TURN_RAD = 0.1
"""Angle between grids that are to have no voxel in common (ours)."""
CURVE = ["method", "transform", "perturbed"]


class Probe(BaseModel):
    """How the surroundings of the truth are looked at; all ours, the paper's figure bears no scale.

    One parameter is perturbed at a time. Perturbations are in mm of the point that moves farthest: a corner of the fixed box for a
    rotation, the point at the control point for a B-spline's coefficient (which is (3/2)^d as large).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reach_mm: float = Field(15.0, gt=0, description="largest perturbation to either side of the truth")
    points: int = Field(61, ge=5, description="perturbations, the truth in the middle: an odd number")
    control_points: int = Field(8, ge=1, description="control points inside the object, one coefficient of each")
    others: int = Field(4, ge=0, description="derivatives by so many other parameters, those that change most")
    iterations: int = Field(8, ge=1, description="patch-cnn: mean over so many iterations of the loop; the others are the same in each")
    off_grid: bool = Field(True, description="a moving image whose grid is that of the fixed one is first resampled onto one that is turned")

    @field_validator("points")
    @classmethod
    def _odd(cls, points: int) -> int:
        if points % 2 == 0:
            raise ValueError(f"points {points}: expected an odd number, so that the truth is one of them")
        return points

    @property
    def perturbations_mm(self) -> np.ndarray:
        """The perturbations in order, exactly 0 in the middle."""
        half = self.points // 2
        return np.arange(-half, half + 1) * (self.reach_mm / half)


def landscape(
    settings: OptimiserLoop, pair: Pair, *, run: Run, method: str = "", true: Transform | None = None, probe: Probe | None = None
) -> pd.DataFrame:
    """Value and derivatives (eq. 5) of the loop's finest level around the truth, a row a perturbation and derivative: `COLUMNS`.

    All translations and rotations of a rigid transform, and a coefficient of some control points of a B-spline: the one nearest to
    the fixed image's centre of mass first. Rows with `other` are the derivatives by parameters that are not perturbed but change
    most. Derivatives are by mm of perturbation. `true` maps fixed to moving points, None where the pair is aligned; one that is not
    linear is first undone by resampling the moving image.

    Between two aligned images on one grid every sample falls on a voxel. There linear interpolation has its kinks, so that
    all derivatives are those of one side, and mutual information its well-known artefacts. No other place that a descent passes is
    like this: with `probe.off_grid` (ours) such a moving image is resampled once (cubic) onto a grid that is turned by some degrees.

    Every voxel is compared, whatever `sampling` says. patch-cnn looks at another grid of patches in each iteration of the loop, with
    the network and its mirror image in turn: its values are means over the first `probe.iterations`, what a descent follows on average.
    Raises `ConcordError` for weights that are missing or unfit, and where images hardly overlap any more within the reach.
    """
    from pipeline.optimise.models import SplineModel, linear_model
    from pipeline.optimise.network import as_compared
    from pipeline.optimise.stages import level_objective
    from pipeline.threads import torch_threads

    probe = probe or Probe()
    pair, after = _aligned(masked_by_threshold(pair, settings.mask_threshold), true, probe.off_grid)
    fixed = pair.fixed.geometry
    settings = settings.model_copy(update={"sampling": "dense"})
    points = nearby_control_points(pair, spline := SplineModel.over(fixed, settings.control_spacing_mm(fixed)), probe.control_points)
    seen, metric = as_compared(settings, pair)
    iterations = probe.iterations if settings.similarity == "patch-cnn" else 1
    tables = []
    with torch_threads(run.threads):
        for kind, model, parameters in (("rigid", linear_model("rigid", fixed), rigid_parameters(fixed.dimension)), ("bspline", spline, points)):
            objective = averaged(level_objective(settings, seen, metric, model, after=after, run=run), iterations)
            names = spline_names(spline.grid) if kind == "bspline" else rigid_names(fixed.dimension).__getitem__
            for done, (name, place) in enumerate(parameters.items()):
                run.report(f"{method} {kind}: {name}", done / len(parameters))
                curve = perturbed(objective, model, place, probe=probe, names=names)
                tables.append(curve.assign(transform=kind, perturbed=name))
    table = pd.concat(tables, ignore_index=True).assign(method=method, voxel_mm=min(fixed.spacing_mm))
    return table[list(COLUMNS)]


def perturbed(objective: Callable[[np.ndarray], Evaluation], model: Model, place: int, *, probe: Probe, names: Callable[[int], str]) -> pd.DataFrame:
    """One curve: the parameter number `place` perturbed around the identity, its derivative, and those that change most beside it."""
    start = model.initial()
    per_mm = 1 / np.sqrt(model.scales(start))
    at = probe.perturbations_mm
    step = np.eye(1, len(start), place)[0] * per_mm
    values, gradients = zip(*(objective(start + shift * step) for shift in at), strict=True)
    by_mm = np.stack(gradients) * per_mm
    change = np.ptp(by_mm, axis=0)
    change[place] = np.inf
    shown = np.argsort(-change, kind="stable")[: 1 + min(probe.others, len(start) - 1)]
    columns = {"perturbation_mm": at, "value": np.asarray(values)}
    return pd.concat(
        [pd.DataFrame({"parameter": names(k), "other": k != place, **columns, "derivative": by_mm[:, k]}) for k in shown.tolist()], ignore_index=True
    )


def averaged(objective: Callable[[np.ndarray, int], Evaluation], iterations: int) -> Callable[[np.ndarray], Evaluation]:
    """Mean of the first iterations of the loop, for similarities that look at something else in each."""
    from pipeline.optimise.objective import Evaluation

    def mean(parameters: np.ndarray) -> Evaluation:
        values, gradients = zip(*(objective(parameters, iteration) for iteration in range(iterations)), strict=True)
        return Evaluation(float(np.mean(values)), np.mean(gradients, axis=0))

    return mean


def rigid_names(dimension: int) -> list[str]:
    """The names of a rigid transform's parameters in ITK's order: rotations first."""
    axes = "xyz"[:dimension]
    turns = ["rotation"] if dimension == 2 else [f"rotation about {axis}" for axis in axes]
    return [*turns, *(f"translation along {axis}" for axis in axes)]


def rigid_parameters(dimension: int) -> dict[str, int]:
    """Name and place of each parameter of a rigid transform, translations first."""
    names = rigid_names(dimension)
    return {names[place]: place for place in np.roll(np.arange(len(names)), dimension).tolist()}


def nearby_control_points(pair: Pair, spline: Any, count: int) -> dict[str, int]:
    """Name and place of one coefficient, along x, y[, z] in turn, of `count` control points, from the centre of mass outwards.

    They are every k-th of those inside the object, in the order of their distance from the fixed image's centre of mass. The object
    is the fixed mask, or what is brighter than the mean, holes filled (ours). Raises `ConcordError` where it holds no control point.
    """
    grid, name = spline.grid, spline_names(spline.grid)
    brightness = pair.fixed.array.astype(float) - float(pair.fixed.array.min())
    inside = pair.fixed_mask or threshold_mask(pair.fixed, float(brightness.mean() / max(brightness.max(), 1e-300)))
    places = grid.grid_points().reshape(-1, grid.dimension)
    held = np.flatnonzero(in_mask(inside, places))
    if not len(held):
        raise ConcordError(f"{pair.fixed.name}: no control point lies inside the object; expected one or more: take more control points")
    distance = np.linalg.norm(places[held] - mass_centre(pair.fixed, inside), axis=1)
    chosen = held[np.argsort(distance, kind="stable")][np.linspace(0, len(held), min(count, len(held)), endpoint=False).astype(int)]
    coefficients = [turn % grid.dimension * len(places) + int(point) for turn, point in enumerate(chosen)]
    return {name(k): k for k in coefficients}


def spline_names(grid: Geometry) -> Callable[[int], str]:
    """The name of coefficient number k: index of its control point, and axis."""

    def name(k: int) -> str:
        axis, *index = np.unravel_index(k, (grid.dimension, *grid.shape))
        return f"control point ({', '.join(str(int(i)) for i in reversed(index))}), {'xyz'[axis]}"

    return name


def landscape_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """`curve_numbers` as means over the curves of each method and transform, and how many `curves` these are; offsets without sign."""
    numbers = curve_numbers(table)
    numbers["offset_mm"] = numbers["offset_mm"].abs()
    groups = numbers.groupby(CURVE[:2], sort=False)
    return groups[list(NUMBERS)].mean().assign(curves=groups.size()).reset_index()


def curve_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """What a curve of a landscape is worth to a descent, a row a curve. All definitions are ours; p is the perturbation.

    - `basin_mm`: width of the widest interval about the minimum nearest to the truth in which every sampled value is above that of its
      neighbour nearer to the minimum; at most twice the reach. 0 where no value within the reach is below both its neighbours.
    - `offset_mm`: where that minimum is: vertex of the parabola through its sample and the two beside it; NaN without a minimum.
    - `correct_sign_percent`: share of the samples with |p| of half a voxel or more whose derivative points uphill away from the truth.
    - `correct_sign_mm`: width of the widest interval about the truth that holds no sample of wrong sign among these.
    - `derivative_correlation`: Pearson's, of the derivative with central differences of the value; NaN where either is constant.
    """
    perturbed_ones = table[~table["other"].astype(bool)]
    rows = [dict(zip(CURVE, key, strict=True)) | _numbers_of(curve) for key, curve in perturbed_ones.groupby(CURVE, sort=False)]
    return pd.DataFrame(rows, columns=[*CURVE, *NUMBERS])


def _numbers_of(curve: pd.DataFrame) -> dict[str, float]:
    curve = curve.sort_values("perturbation_mm")
    at, value, derivative = (curve[name].to_numpy(dtype=float) for name in ("perturbation_mm", "value", "derivative"))
    basin, offset = _basin(at, value)
    share, width = _correct_sign(at, derivative, float(curve["voxel_mm"].iloc[0]) / 2)
    slope = (value[2:] - value[:-2]) / (at[2:] - at[:-2])
    alike = np.nan if not (np.ptp(slope) and np.ptp(derivative[1:-1])) else float(np.corrcoef(slope, derivative[1:-1])[0, 1])
    return dict(zip(NUMBERS, (basin, offset, share, width, alike), strict=True))


def _basin(at: np.ndarray, value: np.ndarray) -> tuple[float, float]:
    """Width of the basin about the minimum nearest to 0, and where the minimum is."""
    lowest = 1 + np.flatnonzero((value[1:-1] < value[:-2]) & (value[1:-1] < value[2:]))
    if not len(lowest):
        return 0.0, np.nan
    bottom = int(lowest[np.argmin(np.abs(at[lowest]))])
    rises, falls = np.diff(value) > 0, np.diff(value) < 0
    right = bottom + _run_length(rises[bottom:])
    left = bottom - _run_length(falls[:bottom][::-1])
    behind, ahead = value[bottom - 1] - value[bottom], value[bottom + 1] - value[bottom]
    return float(at[right] - at[left]), float(at[bottom] + (at[1] - at[0]) * (behind - ahead) / (behind + ahead) / 2)


def _correct_sign(at: np.ndarray, derivative: np.ndarray, least_mm: float) -> tuple[float, float]:
    """Percentage of the samples at `least_mm` or farther with the right sign, and the width of the interval about 0 that has no other."""
    judged = np.abs(at) >= least_mm - 1e-9
    if not judged.any():
        return np.nan, np.nan
    right = derivative * np.sign(at) > 0
    passed = right | ~judged
    ahead, behind = np.flatnonzero(at >= 0), np.flatnonzero(at <= 0)[::-1]
    last, first = (side[_run_length(passed[side]) - 1] for side in (ahead, behind))
    return 100 * float(right[judged].mean()), float(at[last] - at[first])


def _run_length(flags: np.ndarray) -> int:
    """How many are true before the first that is not."""
    return int(np.argmin(flags)) if len(flags) and not flags.all() else len(flags)


def _aligned(pair: Pair, true: Transform | None, off_grid: bool) -> tuple[Pair, Linear]:
    """A pair, and the linear transform that aligns it; the moving image is resampled where there is none, or voxels fall on voxels."""
    identity = Linear.identity(pair.fixed.dimension)
    true = true or identity
    if isinstance(true, Linear) and not (off_grid and _in_step(pair, true)):
        return pair, true
    grid = turned_grid(pair.fixed.geometry)
    covered = pair.moving_mask or pair.moving.with_array(np.ones(pair.moving.array.shape, np.uint8))
    low, high = float(pair.moving.array.min()), float(pair.moving.array.max())
    moved = warp(pair.moving, true, grid, interpolation="cubic", background=low)
    moved = moved.with_array(moved.array.clip(low, high))  # networks scale by the extremes
    return replace(pair, moving=moved, moving_mask=warp(covered, true, grid, interpolation="nearest")), identity


def _in_step(pair: Pair, true: Linear) -> bool:
    """Whether all fixed voxels fall on the same place between moving voxels."""
    step = pair.moving.geometry.physical_to_index @ true.matrix @ pair.fixed.geometry.index_to_physical
    return bool(np.allclose(step, np.eye(len(step)), atol=1e-6))


def turned_grid(grid: Geometry) -> Geometry:
    """A grid of the same spacing that covers the same box, turned about its centre by `TURN_RAD` about each axis."""
    turns = [TURN_RAD] * (1, 3)[grid.dimension - 2]
    turn = linear_from_parameters(
        f"Euler{grid.dimension}DTransform", [*turns, *[0.0] * grid.dimension], np.zeros(grid.dimension), where="turn"
    ).matrix
    spacing = np.asarray(grid.spacing_mm)
    size = np.ceil(np.abs(turn.T) @ (grid.size * spacing) / spacing)
    direction = np.asarray(grid.direction) @ turn
    origin = grid.centre_mm - direction @ ((size - 1) / 2 * spacing)
    return Geometry(tuple(size.astype(int).tolist()), grid.spacing_mm, tuple(origin.tolist()), tuple(map(tuple, direction.tolist())))
