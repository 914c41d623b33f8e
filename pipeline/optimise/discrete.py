"""A derivative-free start of the B-spline stage: the best of a window of translations for every control point, made smooth together.

Simonovsky et al. (2016, sec. 4) sketch it: unary costs of labels (translations) at the control points, for which the network is
only evaluated forwards. The smoothness is that of the coupled convex scheme (Siebert, Hansen and Heinrich, ConvexAdam, TMI 2024).
A label moves the whole image, so that all control points are served at once: in whole voxels of the fixed grid a move is a window
of the moving image, warped once onto the fixed grid and some voxels beyond, and nothing is interpolated again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.errors import ConcordError
from pipeline.methods import Pair
from pipeline.optimise.method import DiscreteSettings
from pipeline.optimise.models import SplineModel, fitted_coefficients
from pipeline.optimise.moving import MovingImage
from pipeline.optimise.network import TrainedMetric
from pipeline.optimise.samples import Lattice
from pipeline.optimise.similarities import descriptor_of
from pipeline.transforms import Linear
from pipeline.volumes import Geometry

LEAST_OVERLAP = 0.5
"""A label counts at a control point where this share of its neighbourhood stays inside the moving image and its mask (ours)."""
_NO_DATA = 1e-6


class Unary(Protocol):
    """The local dissimilarity of a pair, at a lattice of the fixed grid, for every move of the moving image by whole voxels."""

    lattice: Lattice

    def __call__(self, shift: Sequence[int]) -> torch.Tensor:
        """Dissimilarity of fixed(x) and moving(x + shift) at the lattice's points, in its shape; `shift` is in voxels `([z,] y, x)`."""


UnaryMaker = Callable[[torch.Tensor, "Extended", Geometry], Unary]
"""Fixed image `(1, 1, [z,] y, x)`, warped moving image with a rim, fixed grid."""


@dataclass(frozen=True, eq=False)
class Extended:
    """A tensor `(1, C, [z,] y, x)` on a grid that reaches `rim` voxels `([z,] y, x)` beyond another on every side."""

    tensor: torch.Tensor
    rim: tuple[int, ...]
    _phases: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict, repr=False)

    def on(self, lattice: Lattice, shift: Sequence[int]) -> torch.Tensor:
        """The values at the lattice's points moved by `shift`, `(1, C, [z,] y, x)`; points of one stride lie together in memory."""
        steps = lattice.stride[::-1]
        first = [r + s + o for r, s, o in zip(self.rim, shift, lattice.offset[::-1], strict=True)]
        phase = tuple(f % s for f, s in zip(first, steps, strict=True))
        if phase not in self._phases:
            self._phases[phase] = self.tensor[(..., *(slice(p, None, s) for p, s in zip(phase, steps, strict=True)))].contiguous()
        return self._phases[phase][(..., *(slice(f // s, f // s + n) for f, s, n in zip(first, steps, lattice.shape, strict=True)))]


class FeatureDifference:
    """Squared difference of features `(1, C, [z,] y, x)`, the mean over channels: intensities, or descriptors computed once."""

    def __init__(self, fixed: torch.Tensor, moving: Extended, geometry: Geometry, stride_vx: int) -> None:
        stride = tuple(min(stride_vx, n) for n in geometry.size)
        self.lattice = Lattice(geometry, stride, tuple((s - 1) // 2 for s in stride), fixed.dtype)
        self.moving, still = moving, (0,) * geometry.dimension
        self.fixed = Extended(fixed, still).on(self.lattice, still)

    def __call__(self, shift: Sequence[int]) -> torch.Tensor:
        """The mean over channels."""
        return (self.moving.on(self.lattice, shift) - self.fixed).square_().mean(1)[0]


class PatchDissimilarity:
    """Output of the patch network and of its mirror image, the mean: both err by the same distance in opposite directions."""

    def __init__(self, fixed: torch.Tensor, moving: Extended, geometry: Geometry, *, metric: TrainedMetric, **extra: Any) -> None:
        from metrics.similarity.patch_cnn import PatchCnnSimilarity

        network = metric.network
        self.similarities = [PatchCnnSimilarity(fixed, n, swap=metric.swap, grid="fixed", **extra) for n in (network, network.mirrored())]
        first, self.moving, d = network.patch_vx // 2, moving, geometry.dimension
        self.dense = Lattice(geometry, (1,) * d, (0,) * d)
        covered = geometry.cropped((0,) * d, [n - first for n in geometry.size])  # no patch is centred nearer to the border
        self.lattice = Lattice(covered, (network.stride_vx,) * d, (first,) * d, fixed.dtype)

    def __call__(self, shift: Sequence[int]) -> torch.Tensor:
        """The mean of both networks."""
        warped = self.moving.on(self.dense, shift).contiguous()
        return torch.stack([similarity.output_map(warped)[0, 0] for similarity in self.similarities]).mean(0)


def unary_maker(settings: Any, metric: TrainedMetric | None, stride_vx: int) -> UnaryMaker:
    """The local dissimilarity that belongs to the settings' `similarity`.

    Raises `ConcordError` for a similarity that is a number for the whole image and no mean over places.
    """

    def of_features(features: Callable[[torch.Tensor], torch.Tensor]) -> UnaryMaker:
        return lambda fixed, moving, geometry: FeatureDifference(features(fixed), Extended(features(moving.tensor), moving.rim), geometry, stride_vx)

    if settings.similarity == "patch-cnn":
        extra = {"most_outputs": settings.most_patches, "precision": settings.precision}
        return lambda fixed, moving, geometry: PatchDissimilarity(fixed, moving, geometry, metric=metric, **extra)
    if settings.similarity in ("mind", "mind-ssc"):
        return of_features(descriptor_of(settings))
    if settings.similarity == "mean-squares":
        return of_features(lambda image: image)
    raise ConcordError(f"similarity {settings.similarity!r} has no local value; the discrete start takes mean-squares, mind, mind-ssc or patch-cnn")


def discrete_spline(pair: Pair, model: SplineModel, *, after: Linear, make: UnaryMaker, how: DiscreteSettings) -> np.ndarray:
    """Parameters of `model` that bring the moving image, seen through the linear transform `after`, near to the fixed one.

    Labels are chosen at the control points of the model's grid, refined until they are about `node_vx` voxels apart; the model's spline is
    then fitted to them (least squares, ours). The images are those of a level; masks weigh.
    Raises `ConcordError` where masks and images leave no control point any data.
    """
    geometry, nodes = pair.fixed.geometry, node_grid(model, pair.fixed.geometry, how.node_vx)
    steps = even_steps_vx(geometry, how.step_vx)
    rim = tuple(how.half_width * s for s in steps[::-1])
    with torch.no_grad():
        warped, inside = _warped(pair, after, rim)
        unary = make(torch.as_tensor(pair.fixed.array.astype(np.float32))[None, None], warped, geometry)
        mask = None if pair.fixed_mask is None else torch.as_tensor(pair.fixed_mask.array != 0)
        cost, support = displacement_costs(unary, nodes, shifts_vx(how.half_width, steps), fixed_mask=mask, inside=inside)
        if not (support > _NO_DATA).any():
            raise ConcordError(f"{pair.fixed.name}: no control point has data inside both images and masks; enlarge the masks or start closer")
        found = coupled_convex(cost, support, how).double().numpy()
    return fitted_coefficients(np.tensordot(geometry.index_to_physical * np.asarray(steps, float), found, axes=1), nodes, model.grid).ravel()


def node_grid(model: SplineModel, fixed: Geometry, node_vx: int) -> Geometry:
    """The model's grid, every cell halved until control points are about `node_vx` voxels of the fixed grid apart, by less than √2."""
    while max(np.divide(model.grid.spacing_mm, fixed.spacing_mm) / even_steps_vx(fixed, node_vx)) > np.sqrt(2):
        model, _ = model.refined(model.initial())
    return model.grid


def even_steps_vx(geometry: Geometry, step_vx: int) -> tuple[int, ...]:
    """Whole voxels along `(x, y[, z])`: `step_vx` on the finest axis, about as many mm on the others."""
    return tuple(max(1, round(step_vx * min(geometry.spacing_mm) / s)) for s in geometry.spacing_mm)


def shifts_vx(half_width: int, steps: Sequence[int]) -> list[tuple[int, ...]]:
    """The move of every label in voxels `([z,] y, x)`, x fastest."""
    return list(product(*(range(-half_width * s, half_width * s + 1, s) for s in reversed(steps))))


def displacement_costs(
    unary: Unary, grid: Geometry, shifts: Sequence[Sequence[int]], *, fixed_mask: torch.Tensor | None = None, inside: Extended | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cost of every label at every control point, `(labels, [z,] y, x)`, and how much data each has, `([z,] y, x)` in [0, 1].

    A control point's cost is the mean of the local dissimilarity with the weights of its cubic B-spline, `fixed_mask` (`([z,] y, x)`)
    and `inside` (where the moving image and its mask are, `(1, 1, …)`). A label that leaves a control point less than `LEAST_OVERLAP`
    of its neighbourhood costs as much there as the worst other one; a control point without data has cost 0 throughout.
    """
    lattice = unary.lattice
    ones = torch.ones(lattice.shape, dtype=lattice.dtype)
    own = ones if fixed_mask is None else ones * lattice.window(fixed_mask[tuple(slice(n) for n in lattice.geometry.shape)])
    share, most = _pooled(own, lattice, grid), _pooled(ones, lattice, grid).max()
    cost = ones.new_empty((len(shifts), *grid.shape))
    for label, shift in enumerate(shifts):
        weight = own if inside is None else own * inside.on(lattice, shift)[0, 0]
        there = share if inside is None else _pooled(weight, lattice, grid)
        known = (there >= LEAST_OVERLAP * share) & (there > _NO_DATA * most)
        cost[label] = torch.where(known, _pooled(unary(shift) * weight, lattice, grid) / there, -torch.inf)
    worst = cost.amax(0)
    some = torch.isfinite(worst)
    return torch.where(some, torch.where(cost.isneginf(), worst, cost), 0.0), torch.where(some, share / most, 0.0)


def coupled_convex(cost: torch.Tensor, support: torch.Tensor, how: DiscreteSettings) -> torch.Tensor:
    """Displacements `(d, [z,] y, x)` in labels, components `(x, y[, z])`, from costs `(labels, [z,] y, x)` of `shifts_vx`' order.

    Each round takes the label of least cost plus coupling times its squared distance to the smooth field, then smooths by a box of
    three control points an axis; `support` weighs what is smoothed, so that control points without data take their neighbours'
    mean. The result is the last smooth field.
    """
    weight = support.clamp(min=_NO_DATA)
    cost = cost * (how.depth / _depth(cost, support))
    for _ in range(how.cost_smoothings):
        cost = _smooth(cost, weight)
    smooth = _smooth(_lowest(cost, how), weight)
    for coupling in how.coupling:
        smooth = _smooth(_lowest(_coupled(cost, smooth, coupling), how), weight)
    return smooth


def _warped(pair: Pair, after: Linear, rim: tuple[int, ...]) -> tuple[Extended, Extended | None]:
    """The moving image on the fixed grid and `rim` voxels beyond; where it and its mask are, or None for everywhere."""
    fixed, moving = pair.fixed.geometry, MovingImage.of(pair.moving)
    wide = fixed.cropped([-r for r in rim[::-1]], np.add(fixed.size, rim[::-1]))
    matrix, offset = moving.units(after)
    lattice = Lattice(wide, (1,) * fixed.dimension, (0,) * fixed.dimension)
    points = lattice.affine(matrix @ wide.index_to_physical, matrix @ np.asarray(wide.origin_mm) + offset)
    inside = moving.inside(points)
    if pair.moving_mask is not None:  # on the moving image's grid, so that its units are the same
        inside &= MovingImage.of(pair.moving_mask.with_array(pair.moving_mask.array != 0)).at(points) >= 0.5
    image = moving.at(points).reshape(1, 1, *wide.shape)
    return Extended(image, rim), None if inside.all() else Extended(inside.reshape(1, 1, *wide.shape).to(image.dtype), rim)


def _pooled(values: torch.Tensor, lattice: Lattice, grid: Geometry) -> torch.Tensor:
    """Sums with the B-spline weight of every control point, `([z,] y, x)`."""
    return lattice.spline_adjoint(values.reshape(-1, 1), grid)[0]


def _depth(cost: torch.Tensor, support: torch.Tensor) -> float:
    """How far the lowest cost lies under the mean over labels, the mean over control points by their data."""
    depth = float(((cost.mean(0) - cost.amin(0)) * support).sum() / support.sum())
    return depth if depth > 0 else 1.0


def _smooth(stack: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean over 3 control points an axis of each `(k, [z,] y, x)`."""
    pool = F.avg_pool3d if weight.ndim == 3 else F.avg_pool2d
    return (pool((stack * weight)[None], 3, 1, 1) / pool(weight[None, None], 3, 1, 1))[0]


def _coupled(cost: torch.Tensor, smooth: torch.Tensor, coupling: float) -> torch.Tensor:
    """The cost plus `coupling` times every label's squared distance to the smooth field."""
    d, edge = len(smooth), round(cost.shape[0] ** (1 / len(smooth)))
    axis = torch.arange(edge, dtype=cost.dtype).reshape(-1, *[1] * d) - edge // 2
    total = cost.reshape(*[edge] * d, *cost.shape[1:]).clone()
    for component, place in zip(smooth, reversed(range(d)), strict=True):  # x is the last of the labels' axes
        total += (coupling * (axis - component).square()).reshape(*(edge if a == place else 1 for a in range(d)), *cost.shape[1:])
    return total.reshape(cost.shape)


def _lowest(cost: torch.Tensor, how: DiscreteSettings) -> torch.Tensor:
    """Label of least cost at every control point, `(d, [z,] y, x)` in `(x, y[, z])`; between labels by a parabola an axis."""
    d, edge = cost.ndim - 1, 2 * how.half_width + 1
    best = cost.argmin(0, keepdim=True)
    least = cost.gather(0, best)[0]
    found = []
    for stride in (edge**a for a in range(d)):  # x first
        place = (best // stride) % edge
        offset = torch.zeros_like(least)
        if how.refine:
            before, behind = (cost.gather(0, (best + side * stride).clamp(0, cost.shape[0] - 1))[0] for side in (-1, 1))
            curvature = before + behind - 2 * least
            inner = ((place > 0) & (place < edge - 1))[0] & (curvature > 0)
            offset = torch.where(inner, (before - behind) / (2 * curvature.clamp(min=1e-30)), 0.0).clamp(-0.5, 0.5)
        found.append(place[0] - how.half_width + offset)
    return torch.stack(found)
