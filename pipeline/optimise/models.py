"""Transform models of the loop: parameters, the points they make, the product with their Jacobian, and the size of a step in mm.

The state is an ITK transform in numbers: `transform` gives it as one. The optimised transform comes first and `after`, a
linear transform, is applied to its result, T(x) = after(model(x)), as ITK's v4 registration does with an initial moving transform.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch

from pipeline.linear_parameters import linear_from_parameters
from pipeline.optimise.samples import Samples
from pipeline.transforms import BSpline, Linear, LinearKind, Transform, cubic_basis
from pipeline.volumes import Geometry

SMALL_VARIATION = 0.01
"""Change of a parameter by which its physical shift is measured (ITK's RegistrationParameterScalesFromPhysicalShift)."""
SAMPLES_A_CONTROL_POINT = 4
"""Places an axis at which a transform is read to find the nearest B-spline, at most one a voxel (ours)."""
_BEND = 1e-4


class Model(ABC):
    """A parametric transform; parameters are a float64 vector."""

    @abstractmethod
    def transform(self, parameters: np.ndarray) -> Transform:
        """The transform itself."""

    @abstractmethod
    def points(self, parameters: np.ndarray, samples: Samples, units: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
        """The samples' points `(n, d)`, mapped and then turned by the matrix and offset of `units`."""

    @abstractmethod
    def pull(self, parameters: np.ndarray, samples: Samples, units: tuple[np.ndarray, np.ndarray], by_point: torch.Tensor) -> np.ndarray:
        """Derivatives by the parameters `(p,)` from those by the points `(n, d)`: the Jacobian-transpose product of eq. (5)."""

    @abstractmethod
    def scales(self, parameters: np.ndarray) -> np.ndarray:
        """Squared shift in mm per unit of each parameter, `(p,)`; a gradient is divided by it (ITK's physical-shift scales)."""

    @abstractmethod
    def shift_mm(self, parameters: np.ndarray, step: np.ndarray) -> float:
        """How far the farthest point of the fixed box moves when the parameters change by `step`, in mm."""


@dataclass(frozen=True, eq=False)
class LinearModel(Model):
    """Translation, rigid (Euler angles as in ITK), similarity or affine about `centre_mm`, over the box of the grid `fixed`.

    Parameters are ITK's: translation t; rigid angles, t; similarity 2-D scale, angle, t; affine matrix by rows, t. The similarity in
    3-D has Euler angles, t, scale (ours: ITK's versor is updated by composition, which no plain gradient step does).
    """

    kind: LinearKind
    fixed: Geometry
    centre_mm: np.ndarray

    def initial(self) -> np.ndarray:
        """Parameters of the identity."""
        d = self.fixed.dimension
        if self.kind == "affine":
            return np.concatenate([np.eye(d).ravel(), np.zeros(d)])
        angles, similar = (1, 3)[d - 2] * (self.kind != "translation"), self.kind == "similarity"
        ones = [1.0] * similar
        return np.array([*(ones if d == 2 else []), *[0.0] * (angles + d), *(ones if d == 3 else [])])

    def transform(self, parameters: np.ndarray) -> Linear:
        """The linear transform."""
        d = self.fixed.dimension
        if self.kind == "similarity" and d == 3:
            rigid = linear_from_parameters("Euler3DTransform", parameters[:6], np.zeros(3), where="similarity")
            return self._about_centre(parameters[6] * rigid.matrix, parameters[3:6])
        names = {"translation": "TranslationTransform", "rigid": f"Euler{d}DTransform", "similarity": "Similarity2DTransform"}
        linear = linear_from_parameters(names.get(self.kind, "AffineTransform"), parameters, np.zeros(d), where=self.kind)
        return self._about_centre(linear.matrix, linear.offset_mm)

    def points(self, parameters: np.ndarray, samples: Samples, units: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
        """One affine map from voxel indices."""
        linear, (matrix, offset), grid = self.transform(parameters), units, samples.geometry
        return samples.affine(matrix @ linear.matrix @ grid.index_to_physical, matrix @ linear.points(np.asarray(grid.origin_mm)) + offset)

    def pull(self, parameters: np.ndarray, samples: Samples, units: tuple[np.ndarray, np.ndarray], by_point: torch.Tensor) -> np.ndarray:
        """Moments of the pull, then the derivative of matrix and offset by the parameters."""
        by_matrix, by_offset = samples.affine_adjoint(by_point)
        grid = samples.geometry
        by_matrix = units[0].T @ (by_matrix @ grid.index_to_physical.T + np.outer(by_offset, grid.origin_mm))
        by_offset = units[0].T @ by_offset
        matrices, offsets = self._derivatives(parameters)
        return np.einsum("pij,ij->p", matrices, by_matrix) + offsets @ by_offset

    def scales(self, parameters: np.ndarray) -> np.ndarray:
        """Largest shift of a corner of the fixed box for `SMALL_VARIATION`, squared."""
        steps = SMALL_VARIATION * np.eye(len(parameters))
        shifts = np.array([self.shift_mm(parameters, step) for step in steps]) / SMALL_VARIATION
        return np.maximum(shifts, np.finfo(float).eps) ** 2

    def shift_mm(self, parameters: np.ndarray, step: np.ndarray) -> float:
        """Largest shift of a corner."""
        corners = self.fixed.points_at(np.array(list(product(*((0, n - 1) for n in self.fixed.size)))))
        return float(np.linalg.norm(self.transform(parameters + step).points(corners) - self.transform(parameters).points(corners), axis=1).max())

    def _about_centre(self, matrix: np.ndarray, translation: np.ndarray) -> Linear:
        return Linear(matrix, translation + self.centre_mm - matrix @ self.centre_mm, self.kind, self.centre_mm)

    def _derivatives(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Matrix `(p, d, d)` and offset `(p, d)` by each parameter; central differences of a function this smooth err by 1e-10."""
        steps = 1e-5 * np.eye(len(parameters))
        pairs = [(self.transform(parameters + step), self.transform(parameters - step)) for step in steps]
        return (
            np.stack([(ahead.matrix - behind.matrix) / 2e-5 for ahead, behind in pairs]),
            np.stack([(ahead.offset_mm - behind.offset_mm) / 2e-5 for ahead, behind in pairs]),
        )


@dataclass(frozen=True, eq=False)
class SplineModel(Model):
    """Cubic B-spline displacements on a control-point grid whose axes are those of the fixed grid; parameters are ITK's coefficients in mm."""

    grid: Geometry
    dtype: torch.dtype = torch.float32

    @classmethod
    def over(cls, fixed: Geometry, spacing_mm: tuple[float, ...], *, halvings: int = 0, dtype: torch.dtype = torch.float32) -> SplineModel:
        """The grid whose `spacing_mm` control points cover `fixed`, borders included, coarsened by `halvings`.

        Cells are as many as the finest of `halvings + 1` levels needs, rounded up to a multiple of 2^halvings and laid about
        the middle, so that each level's grid refines the one before exactly.
        """
        box = np.asarray(fixed.size) * np.asarray(fixed.spacing_mm)
        cells = np.maximum(1, np.ceil(box / spacing_mm / 2**halvings - 1e-6)).astype(int)
        coarse = np.asarray(spacing_mm) * 2**halvings
        return cls(_control_grid(fixed, cells, coarse), dtype)

    def initial(self) -> np.ndarray:
        """Coefficients of the identity."""
        return np.zeros(self.grid.dimension * int(np.prod(self.grid.size)))

    def nearest(self, transform: Transform, fixed: Geometry) -> np.ndarray:
        """Coefficients of the spline whose displacements on the fixed grid are nearest to those of any transform, by least squares."""
        places = fixed.resized(np.minimum(fixed.size, SAMPLES_A_CONTROL_POINT * np.asarray(self.grid.size)).tolist())
        return fitted_coefficients(np.moveaxis(transform.displacement_mm(places), -1, 0), places, self.grid).ravel()

    def transform(self, parameters: np.ndarray) -> BSpline:
        """The B-spline transform."""
        return BSpline(parameters.reshape(self._shape), self.grid)

    def points(self, parameters: np.ndarray, samples: Samples, units: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
        """Displaced points. A cubic B-spline reproduces linear maps, so the map to units is put into the coefficients and costs nothing."""
        matrix, offset = units
        places = self._places + parameters.reshape(self._shape)
        coefficients = np.tensordot(matrix, places, axes=1) + offset.reshape(-1, *[1] * self.grid.dimension)
        return samples.spline(torch.as_tensor(coefficients, dtype=self.dtype), self.grid)

    def pull(self, parameters: np.ndarray, samples: Samples, units: tuple[np.ndarray, np.ndarray], by_point: torch.Tensor) -> np.ndarray:
        """The transposed products."""
        by_coefficient = samples.spline_adjoint(by_point, self.grid).cpu().numpy().astype(float)
        return np.tensordot(units[0].T, by_coefficient, axes=1).ravel()

    def scales(self, parameters: np.ndarray) -> np.ndarray:
        """All alike: the largest shift of one coefficient is (2/3)^d."""
        return np.full(len(parameters), (2 / 3) ** (2 * self.grid.dimension))

    def shift_mm(self, parameters: np.ndarray, step: np.ndarray) -> float:
        """The longest coefficient: the displacement is a mean of coefficients, so no point moves farther."""
        return float(np.sqrt(np.square(step.reshape(self.grid.dimension, -1)).sum(axis=0).max()))

    def refined(self, parameters: np.ndarray) -> tuple[SplineModel, np.ndarray]:
        """The same displacements on the grid of half the spacing, exactly (two-scale relation of cubic B-splines)."""
        cells = np.asarray(self.grid.size) - 3
        spacing = np.asarray(self.grid.spacing_mm) / 2
        first = self.grid.points_at(np.full(self.grid.dimension, 0.5))
        grid = Geometry(tuple((2 * cells + 3).tolist()), tuple(spacing.tolist()), tuple(first.tolist()), self.grid.direction)
        dense = parameters.reshape(self._shape)
        for axis, size in enumerate(reversed(self.grid.size), start=1):
            dense = np.moveaxis(np.tensordot(_subdivision(size), dense, axes=(1, axis)), 0, axis)
        return SplineModel(grid, self.dtype), dense.ravel()

    @cached_property
    def _places(self) -> np.ndarray:
        """The control points in mm, `(d, [z,] y, x)`."""
        return np.moveaxis(self.grid.grid_points(), -1, 0)

    @property
    def _shape(self) -> tuple[int, ...]:
        return (self.grid.dimension, *self.grid.shape)


def linear_model(kind: LinearKind, fixed: Geometry) -> LinearModel:
    """A linear model about the centre of the fixed grid."""
    return LinearModel(kind, fixed, fixed.centre_mm)


def fitted_coefficients(displacements_mm: np.ndarray, nodes: Geometry, grid: Geometry) -> np.ndarray:
    """Coefficients `(d, [z,] y, x)` on `grid` of the spline that is nearest to displacements `(d, [z,] y, x)` at `nodes`.

    The axes of both are parallel. What lies beyond the spline's valid box is not looked at; a trace of second differences in the sum
    settles coefficients that hardly matter (ours).
    """
    found, starts = displacements_mm, grid.index_at(np.asarray(nodes.origin_mm))
    for axis, (start, step) in enumerate(zip(starts, np.divide(nodes.spacing_mm, grid.spacing_mm), strict=True)):
        basis = cubic_basis(np.round(start + step * np.arange(nodes.size[axis]), 9), grid.size[axis])
        bends = _BEND * np.diff(np.eye(grid.size[axis]), n=2, axis=0)
        solve = np.linalg.pinv(np.vstack([basis, bends]))[:, : len(basis)]
        found = np.moveaxis(np.tensordot(solve, found, axes=(1, grid.dimension - axis)), 0, grid.dimension - axis)
    return found


def _control_grid(fixed: Geometry, cells: np.ndarray, spacing_mm: np.ndarray) -> Geometry:
    """The grid of `cells + 3` control points an axis whose cells lie about the centre of the fixed grid."""
    direction = np.asarray(fixed.direction)
    start = fixed.centre_mm - direction @ ((cells / 2 + 1) * spacing_mm)
    return Geometry(tuple((cells + 3).tolist()), tuple(np.asarray(spacing_mm, float).tolist()), tuple(start.tolist()), fixed.direction)


def _subdivision(size: int) -> np.ndarray:
    """Coefficients on the refined axis `(2 size - 3, size)`: means of two neighbours and (1 6 1)/8 in turn."""
    matrix = np.zeros((2 * size - 3, size))
    half = np.arange(size - 1)
    matrix[2 * half, half], matrix[2 * half, half + 1] = 0.5, 0.5
    whole = np.arange(size - 2)
    matrix[2 * whole + 1, whole], matrix[2 * whole + 1, whole + 1], matrix[2 * whole + 1, whole + 2] = 1 / 8, 6 / 8, 1 / 8
    return matrix
