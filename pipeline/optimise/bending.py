"""Bending energy of a cubic B-spline displacement: exact, by one small Gram matrix an axis and order of derivative."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement

import numpy as np

from pipeline.optimise.objective import Evaluation
from pipeline.volumes import Geometry


@dataclass(frozen=True, eq=False)
class BendingEnergy:
    """`weight` times the mean over the grid's valid box of Σ_ij |∂²u/∂x_i∂x_j|², displacements in mm: 1/mm² (Rueckert et al. 1999, eq. 8)."""

    grid: Geometry
    weight: float

    def __call__(self, parameters: np.ndarray) -> Evaluation:
        """Value and derivatives; a quadratic form, so one product gives both."""
        coefficients = parameters.reshape(self.grid.dimension, *self.grid.shape)
        product = sum(factor * self._applied(coefficients, orders) for orders, factor in self._terms)
        return Evaluation(self.weight * float((coefficients * product).sum()), 2 * self.weight * product.ravel())

    @cached_property
    def _terms(self) -> list[tuple[tuple[int, ...], float]]:
        """Order of derivative along each axis, and how often the term stands in the sum."""
        terms = []
        for i, j in combinations_with_replacement(range(self.grid.dimension), 2):
            orders = tuple(int(axis == i) + int(axis == j) for axis in range(self.grid.dimension))
            terms.append((orders, 1.0 if i == j else 2.0))
        return terms

    @cached_property
    def _grams(self) -> list[list[np.ndarray]]:
        """Gram matrix of the derivatives of order 0, 1, 2 for each axis `(x, y[, z])`, divided by the axis' length."""
        return [[gram_matrix(size, spacing, order) for order in range(3)] for size, spacing in zip(self.grid.size, self.grid.spacing_mm, strict=True)]

    def _applied(self, coefficients: np.ndarray, orders: tuple[int, ...]) -> np.ndarray:
        for axis, order in enumerate(orders):
            where = self.grid.dimension - axis
            coefficients = np.moveaxis(np.tensordot(self._grams[axis][order], coefficients, axes=(1, where)), 0, where)
        return coefficients


def gram_matrix(size: int, spacing_mm: float, order: int) -> np.ndarray:
    """Mean over the valid range of the products of all pairs of basis functions' derivatives, `(size, size)`.

    Four Gauss-Legendre points a cell integrate the sixth-degree products exactly.
    """
    places, weights = np.polynomial.legendre.leggauss(4)
    t = (places + 1) / 2
    pieces = {
        0: [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6],
        1: [-((1 - t) ** 2) / 2, (3 * t**2 - 4 * t) / 2, (-3 * t**2 + 2 * t + 1) / 2, t**2 / 2],
        2: [1 - t, 3 * t - 2, 1 - 3 * t, t],
    }[order]
    cell = (np.stack(pieces) * (weights / 2)) @ np.stack(pieces).T / spacing_mm ** (2 * order)
    gram = np.zeros((size, size))
    cells = size - 3
    for i in range(4):  # the 16 products of a cell, all cells at once
        for j in range(4):
            first = np.arange(cells)
            gram[first + i, first + j] += cell[i, j] / cells
    return gram
