"""Transforms: fixed physical points to moving physical points, in mm, LPS; evaluated with numpy, stored as ITK's.

Every method ends in one of these; `transform_files` reads and writes them as ITK's own files. The evaluation follows
ITK's conventions (a displacement field is linear between its samples and zero outside, a cubic B-spline is zero outside
its valid region) and is tested against ITK point by point.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pipeline.errors import ConcordError
from pipeline.itk_classes import itk_class, load_itk
from pipeline.volumes import Geometry

INVERSE_TOLERANCE_MM = 1e-3
_CHUNK = 1 << 20  # points evaluated at a time: bounds the memory of a dense evaluation
LinearKind = Literal["translation", "rigid", "similarity", "affine"]


class Transform(ABC):
    """Maps fixed physical points to moving physical points, in mm."""

    dimension: int

    @abstractmethod
    def points(self, points_mm: np.ndarray) -> np.ndarray:
        """Moving points `(n, d)` in mm of fixed points `(n, d)` in mm."""

    @property
    def is_linear(self) -> bool:
        """Whether the map is affine everywhere."""
        return False

    def displacement_mm(self, geometry: Geometry) -> np.ndarray:
        """Displacement at every voxel of `geometry`, `([z,] y, x, d)`, components `(x, y[, z])` in mm."""
        moved = np.empty((*geometry.shape, self.dimension))
        for slab, points in slabs(geometry):
            moved[slab] = (self.points(points) - points).reshape(moved[slab].shape)
        return moved

    def displacement_vx(self, geometry: Geometry) -> np.ndarray:
        """Displacement at every voxel of `geometry` in its own voxels and axes, `([z,] y, x, d)`: what folding is counted on."""
        return self.displacement_mm(geometry) @ geometry.physical_to_index.T


@dataclass(frozen=True, eq=False)
class Linear(Transform):
    """`matrix @ p + offset_mm`; `kind` and `centre_mm` say how ITK is to store it."""

    matrix: np.ndarray
    offset_mm: np.ndarray
    kind: LinearKind = "affine"
    centre_mm: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", np.asarray(self.matrix, dtype=float))
        object.__setattr__(self, "offset_mm", np.asarray(self.offset_mm, dtype=float))
        if not (np.isfinite(self.matrix).all() and np.isfinite(self.offset_mm).all()):
            raise ConcordError("linear transform with NaN or infinite parameters; the registration that made it diverged")

    @classmethod
    def identity(cls, dimension: int) -> Linear:
        """The transform that leaves every point where it is."""
        return cls(np.eye(dimension), np.zeros(dimension), "translation")

    @property
    def dimension(self) -> int:  # type: ignore[override]
        """2 or 3."""
        return len(self.offset_mm)

    @property
    def is_linear(self) -> bool:
        """True."""
        return True

    def points(self, points_mm: np.ndarray) -> np.ndarray:
        """Moving points `(n, d)` in mm."""
        return np.asarray(points_mm) @ self.matrix.T + self.offset_mm

    def inverse(self) -> Linear:
        """The exact inverse, of the same kind. Raises `ConcordError` where the matrix is singular."""
        try:
            matrix = np.linalg.inv(self.matrix)
        except np.linalg.LinAlgError as error:
            raise ConcordError("linear transform with a singular matrix; it has no inverse") from error
        centre = None if self.centre_mm is None else self.points(self.centre_mm)
        return Linear(matrix, -matrix @ self.offset_mm, self.kind, centre)

    def after(self, first: Linear) -> Linear:
        """The single linear transform that applies `first`, then this one."""
        kinds = ("translation", "rigid", "similarity", "affine")
        kind = kinds[max(kinds.index(self.kind), kinds.index(first.kind))]
        return Linear(self.matrix @ first.matrix, self.matrix @ first.offset_mm + self.offset_mm, kind, first.centre_mm)


@dataclass(frozen=True, eq=False)
class BSpline(Transform):
    """Cubic B-spline displacement: coefficients `(d, [z,] y, x)` in mm on a control-point grid (borders included, as in ITK)."""

    coefficients_mm: np.ndarray
    grid: Geometry

    def __post_init__(self) -> None:
        if not np.isfinite(self.coefficients_mm).all():
            raise ConcordError("B-spline with NaN or infinite coefficients; the registration that made it diverged")
        if self.coefficients_mm.shape != (self.grid.dimension, *self.grid.shape):
            raise ConcordError(f"B-spline coefficients {self.coefficients_mm.shape} on a grid of {self.grid.shape}; expected (d, [z,] y, x)")

    @property
    def dimension(self) -> int:  # type: ignore[override]
        """2 or 3."""
        return self.grid.dimension

    def points(self, points_mm: np.ndarray) -> np.ndarray:
        """Moving points `(n, d)` in mm: the tensor product of cubic B-splines over 4 control points an axis."""
        from scipy.ndimage import map_coordinates

        points_mm = np.asarray(points_mm, dtype=float)
        index, size = self.grid.index_at(points_mm), np.asarray(self.grid.size)
        inside = np.all((index >= 1) & (index <= size - 2), axis=-1)
        where = np.clip(index, 1, size - 2).T[::-1]
        # coefficients are given, so that nothing is to be filtered before
        moved = [map_coordinates(part, where, order=3, mode="nearest", prefilter=False) for part in self.coefficients_mm]
        return points_mm + np.stack(moved, axis=-1) * inside[:, None]

    def displacement_mm(self, geometry: Geometry) -> np.ndarray:
        """Displacement on `geometry`; separable (one small matrix an axis) where the axes of both grids are parallel."""
        if not np.allclose(geometry.direction, self.grid.direction, atol=1e-9):
            return super().displacement_mm(geometry)
        start, step = self.grid.index_at(geometry.points_at(np.zeros(self.dimension))), np.divide(geometry.spacing_mm, self.grid.spacing_mm)
        dense = np.moveaxis(self.coefficients_mm, 0, -1)
        for axis in range(self.dimension):  # image axis x, y[, z]
            basis = cubic_basis(start[axis] + step[axis] * np.arange(geometry.size[axis]), self.grid.size[axis])
            where = self.dimension - 1 - axis
            dense = np.moveaxis(np.tensordot(basis, dense, axes=(1, where)), 0, where)
        return dense


@dataclass(frozen=True, eq=False)
class Field(Transform):
    """Displacements `([z,] y, x, d)` in mm on a grid, linear in between, zero outside (as ITK's `DisplacementFieldTransform`)."""

    field_mm: np.ndarray
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.field_mm.shape != (*self.geometry.shape, self.geometry.dimension):
            raise ConcordError(f"displacement field {self.field_mm.shape} on a grid of {self.geometry.shape}; expected ([z,] y, x, d)")
        if not np.isfinite(self.field_mm).all():
            raise ConcordError("displacement field with NaN or infinite vectors; the registration that made it diverged")

    @property
    def dimension(self) -> int:  # type: ignore[override]
        """2 or 3."""
        return self.geometry.dimension

    def points(self, points_mm: np.ndarray) -> np.ndarray:
        """Moving points `(n, d)` in mm."""
        from scipy.ndimage import map_coordinates

        points_mm = np.asarray(points_mm, dtype=float)
        index = self.geometry.index_at(points_mm)
        inside = np.all((index >= -0.5) & (index < np.asarray(self.geometry.size) - 0.5), axis=-1)
        where = index.T[::-1]
        moved = np.stack([map_coordinates(self.field_mm[..., c], where, order=1, mode="nearest") for c in range(self.dimension)], axis=-1)
        return points_mm + moved * inside[:, None]

    def displacement_mm(self, geometry: Geometry) -> np.ndarray:
        """Displacement on `geometry`: the stored samples where it is the field's own grid."""
        return self.field_mm if geometry.matches(self.geometry, 1e-6) else super().displacement_mm(geometry)


@dataclass(frozen=True, eq=False)
class Composite(Transform):
    """Transforms in order of application: `parts[0]` moves the fixed point first."""

    parts: tuple[Transform, ...] = field(default_factory=tuple)

    @property
    def dimension(self) -> int:  # type: ignore[override]
        """2 or 3."""
        return self.parts[0].dimension

    @property
    def is_linear(self) -> bool:
        """Whether every part is."""
        return all(part.is_linear for part in self.parts)

    def points(self, points_mm: np.ndarray) -> np.ndarray:
        """Moving points `(n, d)` in mm."""
        for part in self.parts:
            points_mm = part.points(points_mm)
        return points_mm

    def displacement_mm(self, geometry: Geometry) -> np.ndarray:
        """Displacement on `geometry`; the first part may use its own fast evaluation."""
        first, rest = self.parts[0].displacement_mm(geometry), self.parts[1:]
        if not rest:
            return first
        total = np.array(first, dtype=float)
        for slab, points in slabs(geometry):
            moved = points + total[slab].reshape(points.shape)
            for part in rest:
                moved = part.points(moved)
            total[slab] = (moved - points).reshape(total[slab].shape)
        return total


def compose(*parts: Transform) -> Transform:
    """The transform that applies `parts` in order, flattened; neighbouring linear parts are merged into one, identities dropped.

    Raises `ConcordError` when dimensions differ or nothing is given.
    """
    if not parts or len({part.dimension for part in parts}) != 1:
        raise ConcordError(f"cannot compose transforms of dimensions {[part.dimension for part in parts]}; expected all 2-D or all 3-D")
    merged: list[Transform] = []
    for part in (inner for outer in parts for inner in (outer.parts if isinstance(outer, Composite) else (outer,))):
        if isinstance(part, Linear) and merged and isinstance(merged[-1], Linear):
            merged[-1] = part.after(merged[-1])
        else:
            merged.append(part)
    kept = [p for p in merged if not (isinstance(p, Linear) and np.array_equal(p.matrix, np.eye(p.dimension)) and not p.offset_mm.any())]
    if not kept:
        return Linear.identity(parts[0].dimension)
    return kept[0] if len(kept) == 1 else Composite(tuple(kept))


def inverse_points(transform: Transform, points_mm: np.ndarray, *, tolerance_mm: float = INVERSE_TOLERANCE_MM, iterations: int = 100) -> np.ndarray:
    """Fixed points `(n, d)` that `transform` sends to `points_mm`: exact for linear parts, by fixed point for the others.

    The residual |T(x) − y| falls below `tolerance_mm` at every point, or a warning tells the share that did not get there
    (a folded field has no inverse in its folds).
    """
    if isinstance(transform, Linear):
        return transform.inverse().points(points_mm)
    if isinstance(transform, Composite):
        for part in reversed(transform.parts):
            points_mm = inverse_points(part, points_mm, tolerance_mm=tolerance_mm, iterations=iterations)
        return points_mm
    target = np.asarray(points_mm, dtype=float)
    found, open_ = target.copy(), np.arange(len(target))
    for iteration in range(iterations):
        residual = target[open_] - transform.points(found[open_])
        worst = np.linalg.norm(residual, axis=-1)
        open_, residual = open_[worst > tolerance_mm], residual[worst > tolerance_mm]
        if not len(open_):
            return found
        # steps are halved late on: the plain iteration circles where the field contracts by more than half
        found[open_] += residual * (1.0 if iteration < iterations // 2 else 0.5)
    warnings.warn(f"no inverse within {tolerance_mm} mm at {len(open_) / len(target):.2%} of the points: the transform folds there", stacklevel=2)
    return found


def invert(transform: Transform, geometry: Geometry, *, tolerance_mm: float = INVERSE_TOLERANCE_MM) -> Transform:
    """The inverse: exact for linear transforms, else a field on `geometry` (usually the moving volume's grid) by fixed point."""
    if transform.is_linear:
        parts = transform.parts if isinstance(transform, Composite) else (transform,)
        return compose(*(part.inverse() for part in reversed(parts)))
    points = geometry.grid_points().reshape(-1, geometry.dimension)
    found = inverse_points(transform, points, tolerance_mm=tolerance_mm)
    return Field((found - points).reshape(*geometry.shape, geometry.dimension), geometry)


def cubic_basis(index: np.ndarray, control_points: int) -> np.ndarray:
    """Cubic B-spline basis `(n, control_points)` at continuous indices `(n,)` of one axis; zero rows outside the valid region [1, c − 2]."""
    inside = (index >= 1) & (index <= control_points - 2)
    clipped = np.clip(index, 1, control_points - 2)
    first = np.clip(np.floor(clipped).astype(int) - 1, 0, control_points - 4)
    basis = np.zeros((len(index), control_points))
    basis[np.arange(len(index))[:, None], first[:, None] + np.arange(4)] = cubic_weights(clipped - first)
    return basis * inside[:, None]


def cubic_weights(distance: np.ndarray) -> np.ndarray:
    """Weights of the 4 control points at 0, 1, 2, 3 for positions `distance` in [1, 2]; a new last axis of length 4."""
    t = np.abs(distance[..., None] - np.arange(4))
    return np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.where(t < 2, (2 - t) ** 3 / 6, 0.0))


def slabs(geometry: Geometry) -> Iterator[tuple[slice, np.ndarray]]:
    """Slabs along the array's first axis and their physical points `(n, d)`: a dense evaluation in bounded memory."""
    rows = max(1, _CHUNK // int(np.prod(geometry.shape[1:])))
    inner = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in geometry.size[:-1]), indexing="xy"), axis=-1)
    if geometry.dimension == 3:
        inner = inner.reshape(geometry.shape[1], geometry.shape[2], 2)
    else:
        inner = np.arange(geometry.size[0], dtype=float)[:, None]
    for start in range(0, geometry.shape[0], rows):
        last = np.arange(start, min(start + rows, geometry.shape[0]), dtype=float)
        shape = (len(last), *inner.shape[:-1])
        index = np.concatenate(
            [np.broadcast_to(inner, (*shape, inner.shape[-1])), np.broadcast_to(last.reshape(-1, *[1] * (inner.ndim - 1), 1), (*shape, 1))], -1
        )
        yield slice(start, start + len(last)), geometry.points_at(index.reshape(-1, geometry.dimension))


def to_itk(transform: Transform) -> Any:
    """The equivalent `itk` transform, double precision."""
    itk = load_itk()

    d = transform.dimension
    if isinstance(transform, Composite):
        composite = itk_class("CompositeTransform", f"D{d}").New()
        for part in reversed(transform.parts):  # ITK applies the transform added last first
            composite.AddTransform(to_itk(part))
        return composite
    if isinstance(transform, Linear):
        return _linear_to_itk(transform)
    if isinstance(transform, BSpline):
        spline = itk_class("BSplineTransform", f"D{d}3").New()
        grid = transform.grid
        spline.SetFixedParameters(_parameters([*grid.size, *grid.origin_mm, *grid.spacing_mm, *np.ravel(grid.direction)]))
        spline.SetParameters(_parameters(transform.coefficients_mm.ravel()))
        return spline
    if isinstance(transform, Field):
        grid = transform.geometry
        result = itk_class("DisplacementFieldTransform", f"D{d}").New()
        result.SetFixedParameters(_parameters([*grid.size, *grid.origin_mm, *grid.spacing_mm, *np.ravel(grid.direction)]))
        itk.array_view_from_image(result.GetDisplacementField())[...] = transform.field_mm
        return result
    raise ConcordError(f"{type(transform).__name__} has no ITK counterpart")


def from_itk(transform: Any) -> Transform:
    """Our counterpart of an `itk` transform."""
    name, d = transform.GetNameOfClass(), transform.GetInputSpaceDimension()
    fixed = np.array([transform.GetFixedParameters().GetElement(i) for i in range(transform.GetFixedParameters().GetSize())])
    if name == "CompositeTransform":
        parts = [from_itk(transform.GetNthTransform(i)) for i in range(transform.GetNumberOfTransforms())]
        return compose(*reversed(parts))
    if transform.IsLinear():
        offset = np.array(transform.TransformPoint([0.0] * d))
        matrix = np.stack([np.array(transform.TransformPoint(e.tolist())) - offset for e in np.eye(d)], axis=1)
        kind = {"TranslationTransform": "translation", "IdentityTransform": "translation"}.get(name, "affine")
        kind = "rigid" if name.startswith(("Euler", "Versor", "Rigid")) else "similarity" if name.startswith("Similarity") else kind
        return Linear(matrix, offset, kind, fixed[:d] if len(fixed) >= d else None)
    if name not in ("BSplineTransform", "DisplacementFieldTransform"):
        raise ConcordError(f"ITK's {name} has no counterpart here; expected linear, B-spline, displacement field or a composition of them")
    grid = Geometry(
        tuple(int(n) for n in fixed[:d]),
        tuple(fixed[2 * d : 3 * d].tolist()),
        tuple(fixed[d : 2 * d].tolist()),
        tuple(tuple(row) for row in fixed[3 * d : 3 * d + d * d].reshape(d, d).tolist()),
    )
    values = _array_of(transform.GetParameters())
    if name == "BSplineTransform":
        return BSpline(values.reshape(d, *grid.shape), grid)
    return Field(values.reshape(*grid.shape, d), grid)


def _linear_to_itk(transform: Linear) -> Any:
    itk = load_itk()

    d = transform.dimension
    if transform.kind == "translation":
        result = itk_class("TranslationTransform", f"D{d}").New()
        result.SetParameters(_parameters(transform.offset_mm))
        return result
    types = {"rigid": (f"Euler{d}DTransform", "D"), "similarity": (f"Similarity{d}DTransform", "D"), "affine": ("AffineTransform", f"D{d}")}
    result = itk_class(*types[transform.kind]).New()
    centre = np.zeros(d) if transform.centre_mm is None else np.asarray(transform.centre_mm, dtype=float)
    result.SetCenter(centre.tolist())
    if transform.kind == "affine":
        result.SetMatrix(itk.matrix_from_array(transform.matrix))
    else:
        result.SetMatrix(itk.matrix_from_array(transform.matrix), 1e-6)
    result.SetTranslation((transform.matrix @ centre + transform.offset_mm - centre).tolist())
    return result


def _parameters(values: Sequence[float] | np.ndarray) -> Any:
    flat = np.ascontiguousarray(values, dtype=np.float64)
    parameters = itk_class("OptimizerParameters", "D")(len(flat))
    for index, value in enumerate(flat.tolist()):
        parameters.SetElement(index, value)
    return parameters


def _array_of(parameters: Any) -> np.ndarray:
    itk = load_itk()

    return np.array(itk.array_from_vnl_vector(parameters))
