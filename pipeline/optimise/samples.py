"""Where a similarity looks: points of the fixed grid, and the products with transform bases that make a dense loop cheap.

On a regular lattice the cubic B-spline basis is a tensor product: displacements at all points are three small matrix products,
and so is the Jacobian-transpose product of equation (5) of Simonovsky et al. (2016). Scattered points weigh 4^d coefficients each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from pipeline.transforms import cubic_basis, cubic_weights
from pipeline.volumes import Geometry


class Samples(Protocol):
    """Points of a grid, `n` of them, and the two products with transform bases; coordinates come back as `(n, d)`."""

    geometry: Geometry

    @property
    def value_shape(self) -> tuple[int, ...]:
        """The shape of `values`."""

    def values(self, volume: torch.Tensor) -> torch.Tensor:
        """The volume `([z,] y, x)` at the points, in the shape that a similarity takes: `(1, 1, [z,] y, x)` or `(n,)`."""

    def affine(self, matrix: np.ndarray, offset: np.ndarray) -> torch.Tensor:
        """`matrix @ index + offset` at every point's voxel index `(x, y[, z])`."""

    def affine_adjoint(self, gradient: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives by matrix `(d, d)` and offset `(d,)` from those by the points' coordinates `(n, d)`."""

    def spline(self, coefficients: torch.Tensor, grid: Geometry) -> torch.Tensor:
        """The cubic B-spline of coefficients `(k, [z,] y, x)` on `grid`, at every point, `(n, k)`."""

    def spline_adjoint(self, gradient: torch.Tensor, grid: Geometry) -> torch.Tensor:
        """Derivatives by the coefficients `(k, [z,] y, x)` from those by the points' values `(n, k)`."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """Every `stride`-th voxel of a grid from `offset` on, both `(x, y[, z])`; optionally only the points `select` (flat, array order)."""

    geometry: Geometry
    stride: tuple[int, ...]
    offset: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    select: torch.Tensor | None = None
    _known: dict[Geometry, tuple[torch.Tensor, ...]] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Points along each axis, `([z,] y, x)`."""
        return tuple(len(axis) for axis in reversed(self.axes))

    @property
    def value_shape(self) -> tuple[int, ...]:
        """`(1, 1, [z,] y, x)`, or `(n,)` where only some points are selected."""
        return (1, 1, *self.shape) if self.select is None else tuple(self.select.shape)

    @cached_property
    def axes(self) -> tuple[np.ndarray, ...]:
        """Voxel indices along `(x, y[, z])`."""
        return tuple(np.arange(o, n, s) for o, n, s in zip(self.offset, self.geometry.size, self.stride, strict=True))

    def window(self, volume: torch.Tensor) -> torch.Tensor:
        """The volume `([z,] y, x)` at all lattice points, `([z,] y, x)`, a view."""
        return volume[tuple(slice(o, None, s) for o, s in zip(self.offset[::-1], self.stride[::-1], strict=True))]

    def values(self, volume: torch.Tensor) -> torch.Tensor:
        """The volume at the points: `(1, 1, [z,] y, x)`, or `(n,)` where only some points are selected."""
        return self._selected(self.window(volume).reshape(-1)).reshape(self.value_shape)

    def affine(self, matrix: np.ndarray, offset: np.ndarray) -> torch.Tensor:
        """`matrix @ index + offset` at every point, `(n, d)`."""
        d = self.geometry.dimension
        total: torch.Tensor | None = None
        for axis in reversed(range(d)):  # z, y, x: small sums first, the large one last
            column = np.multiply.outer(self.axes[axis], matrix[:, axis]) + (offset if total is None else 0.0)
            part = self._tensor(column).reshape(*(-1 if a == d - 1 - axis else 1 for a in range(d)), d)
            total = part if total is None else total + part
        return self._selected(total.reshape(-1, d))

    def affine_adjoint(self, gradient: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives by matrix and offset."""
        d = self.geometry.dimension
        dense = self._dense(gradient)
        by_matrix = np.empty((d, d))
        for axis in range(d):
            where = d - 1 - axis
            sums = dense.sum(dim=[a for a in range(d) if a != where], dtype=torch.float64).cpu().numpy()
            by_matrix[:, axis] = self.axes[axis] @ sums
        return by_matrix, sums.sum(axis=0)

    def spline(self, coefficients: torch.Tensor, grid: Geometry) -> torch.Tensor:
        """The spline at every point, `(n, k)`: one small matrix product an axis, the last one writes the points in order."""
        dense = coefficients.movedim(0, -1).contiguous()
        for axis, basis in enumerate(self._bases(grid)):
            where = self.geometry.dimension - 1 - axis
            dense = _along(basis, dense, where)
        return self._selected(dense.reshape(-1, coefficients.shape[0]))

    def spline_adjoint(self, gradient: torch.Tensor, grid: Geometry) -> torch.Tensor:
        """Derivatives by the coefficients, the same products transposed, largest first."""
        dense = self._dense(gradient)
        for axis, basis in reversed(list(enumerate(self._bases(grid)))):
            dense = _along(basis.T, dense, self.geometry.dimension - 1 - axis)
        return dense.movedim(-1, 0)

    def _bases(self, grid: Geometry) -> tuple[torch.Tensor, ...]:
        """The basis along `(x, y[, z])`, `(points, control points)` each; the axes of both grids are parallel."""
        if grid not in self._known:
            start = grid.index_at(self.geometry.points_at(np.zeros(self.geometry.dimension)))
            step = np.divide(self.geometry.spacing_mm, grid.spacing_mm)
            self._known[grid] = tuple(self._tensor(cubic_basis(start[a] + step[a] * axis, grid.size[a])) for a, axis in enumerate(self.axes))
        return self._known[grid]

    def _selected(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self.select is None else rows[self.select]

    def _dense(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient `(n, k)` on the whole lattice `([z,] y, x, k)`, zero where no point was selected."""
        if self.select is None:
            return gradient.reshape(*self.shape, -1)
        dense = gradient.new_zeros((int(np.prod(self.shape)), gradient.shape[1]))
        dense[self.select] = gradient
        return dense.reshape(*self.shape, -1)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array, dtype=self.dtype)


@dataclass(frozen=True, eq=False)
class Scattered:
    """Some voxels of a grid, `index` `(n, d)` in `(x, y[, z])`."""

    geometry: Geometry
    index: np.ndarray
    dtype: torch.dtype = torch.float32
    _known: dict[Geometry, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False)

    @property
    def value_shape(self) -> tuple[int, ...]:
        """`(n,)`."""
        return (len(self.index),)

    def values(self, volume: torch.Tensor) -> torch.Tensor:
        """The volume at the points, `(n,)`."""
        return volume.reshape(-1)[torch.as_tensor(np.ravel_multi_index(tuple(self.index.T[::-1]), self.geometry.shape))]

    def affine(self, matrix: np.ndarray, offset: np.ndarray) -> torch.Tensor:
        """`matrix @ index + offset`, `(n, d)`."""
        return torch.as_tensor(self.index @ matrix.T + offset, dtype=self.dtype)

    def affine_adjoint(self, gradient: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives by matrix and offset."""
        rows = gradient.cpu().numpy().astype(float)
        return rows.T @ self.index, rows.sum(axis=0)

    def spline(self, coefficients: torch.Tensor, grid: Geometry) -> torch.Tensor:
        """The spline at every point, `(n, k)`."""
        where, weights = self._neighbours(grid)
        table = coefficients.reshape(coefficients.shape[0], -1).T.contiguous()
        return torch.nn.functional.embedding_bag(where, table, mode="sum", per_sample_weights=weights)

    def spline_adjoint(self, gradient: torch.Tensor, grid: Geometry) -> torch.Tensor:
        """Derivatives by the coefficients."""
        where, weights = self._neighbours(grid)
        by = [torch.bincount(where.reshape(-1), (weights * g[:, None]).reshape(-1), int(np.prod(grid.size))) for g in gradient.T]
        return torch.stack(by).reshape(-1, *grid.shape).to(gradient.dtype)

    def _neighbours(self, grid: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
        """Flat control points `(n, 4^d)` and their weights."""
        if grid not in self._known:
            size, d = np.asarray(grid.size), grid.dimension
            index = np.clip(grid.index_at(self.geometry.points_at(self.index)), 1, size - 2)
            first = np.clip(np.floor(index).astype(int) - 1, 0, size - 4)
            weights = cubic_weights(index - first)  # (n, d, 4)
            where, weight = np.zeros((len(index), 1), dtype=np.int64), np.ones((len(index), 1))
            for axis in reversed(range(d)):  # z first: flat positions are built like digits
                where = (where[:, :, None] * grid.size[axis] + first[:, axis, None, None] + np.arange(4)).reshape(len(index), -1)
                weight = (weight[:, :, None] * weights[:, axis, None, :]).reshape(len(index), -1)
            self._known[grid] = torch.from_numpy(where), torch.as_tensor(weight, dtype=self.dtype)
        return self._known[grid]


def _along(matrix: torch.Tensor, stack: torch.Tensor, axis: int) -> torch.Tensor:
    """`matrix` applied along an axis of `(…, k)`: a plain matrix product for the first axis, a batch of them for the others."""
    shape = stack.shape
    flat = stack.reshape(int(np.prod(shape[:axis], initial=1)), shape[axis], -1)
    return torch.matmul(matrix, flat).reshape(*shape[:axis], matrix.shape[0], *shape[axis + 1 :])
