"""Which slices of a volume are shown, and how they lie on the page: three orthogonal ones in radiological view, or the one of a 2-D image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ConcordError
from pipeline.volumes import Geometry, Volume

PLANES = ("axial", "coronal", "sagittal")
LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))
"""Ends of the LPS axes x, y, z: where the coordinate is small, and where it is large."""
MOST_SAMPLES = 500_000
"""Samples that a window is measured on at most (ours)."""


@dataclass(frozen=True)
class Plane:
    """One slice of a grid, as it lies on the page.

    `normal` is the physical axis (0 x, 1 y, 2 z) that the slice cuts, None in 2-D; `spacing_mm` is (row, column); `edges` are the
    letters left, right, top, bottom, empty in 2-D, where nothing is known of the patient's position.
    """

    name: str
    normal: int | None
    index: int
    spacing_mm: tuple[float, float]
    edges: tuple[str, ...] = ()

    def extent_mm(self, shape: Sequence[int]) -> tuple[float, float, float, float]:
        """Left, right, bottom, top of a slice of `shape` (rows, columns), for `imshow`; mm from its upper left corner."""
        rows, columns = shape
        return 0.0, columns * self.spacing_mm[1], rows * self.spacing_mm[0], 0.0


@dataclass(frozen=True)
class View:
    """How arrays on a geometry are turned to slices: array axes and signs along physical x, y[, z], and the planes."""

    geometry: Geometry
    axes: tuple[int, ...]
    signs: tuple[int, ...]
    planes: tuple[Plane, ...]

    def slice_of(self, array: np.ndarray, plane: Plane) -> np.ndarray:
        """The plane's samples `(rows, columns)` of an array `([z,] y, x)`, as they lie on the page."""
        if array.shape[: self.geometry.dimension] != self.geometry.shape:
            raise ConcordError(f"array of shape {array.shape} for a picture on a grid of {self.geometry.shape} ([z,] y, x); resample it first")
        if plane.normal is None:
            return array
        # the slice is cut first: turning the whole volume would copy it
        axis = self.axes[plane.normal]
        cut = np.take(array, plane.index, axis=axis)
        row, column = _in_plane(plane.normal)
        left = [a - (a > axis) for a in (self.axes[row], self.axes[column])]
        turned = np.moveaxis(cut, left, (0, 1))
        return turned[:: self._row_sign(row), :: self.signs[column]]

    def in_plane_mm(self, displacement_vx: np.ndarray, plane: Plane) -> np.ndarray:
        """Displacement `(rows, columns, 2)` to the right and downwards on the page, in mm, from a field `([z,] y, x, d)` in voxels."""
        d = self.geometry.dimension
        field = self.slice_of(displacement_vx, plane) * np.asarray(self.geometry.spacing_mm)
        if plane.normal is None:
            return field
        row, column = _in_plane(plane.normal)
        # an array axis (z, y, x) has the component (x, y, z) of the opposite number
        right, down = (field[..., d - 1 - self.axes[physical]] for physical in (column, row))
        return np.stack([self.signs[column] * right, self._row_sign(row) * down], axis=-1)

    def _row_sign(self, row: int) -> int:
        """Rows run down the page: posterior and inferior are below."""
        return -self.signs[row] if row == 2 else self.signs[row]


def view_of(geometry: Geometry, centre: Sequence[float] | None = None) -> View:
    """The view of a geometry through `centre`, a continuous index in array order `([z,] y, x)`; None: the middle of the grid.

    A volume that lies obliquely is not resampled: every array axis is shown as the anatomical axis that it is nearest to.
    """
    if geometry.dimension == 2:
        return View(geometry, (1, 0), (1, 1), (Plane("", None, 0, (geometry.spacing_mm[1], geometry.spacing_mm[0])),))
    from scipy.optimize import linear_sum_assignment

    direction = np.asarray(geometry.direction)
    physical, image = linear_sum_assignment(-np.abs(direction))
    signs = tuple(1 if direction[p, i] > 0 else -1 for p, i in zip(physical, image, strict=True))
    axes = tuple(int(2 - i) for i in image)
    middle = [(n - 1) / 2 for n in geometry.shape] if centre is None else list(centre)
    spacing = [geometry.spacing_mm[2 - axis] for axis in axes]
    planes = [
        Plane(name, normal, round(middle[axes[normal]]), (spacing[_in_plane(normal)[0]], spacing[_in_plane(normal)[1]]), _edges(normal))
        for name, normal in zip(PLANES, (2, 1, 0), strict=True)
    ]
    return View(geometry, axes, signs, tuple(planes))


def centroid(labels: np.ndarray) -> tuple[float, ...] | None:
    """Centroid of all non-zero voxels as a continuous index in array order; None where there are none."""
    inside = np.nonzero(labels)
    return tuple(float(index.mean()) for index in inside) if inside[0].size else None


def window(volume: Volume, low: float = 1.0, high: float = 99.0) -> tuple[float, float]:
    """Grey values shown black and white: percentiles of the samples that are not background (the smallest value), so that outliers do not count."""
    samples = volume.array.reshape(-1)
    samples = samples[:: max(1, samples.size // MOST_SAMPLES)].astype(float)
    samples = samples[np.isfinite(samples)]
    if not samples.size or samples.min() == samples.max():
        return (0.0, 1.0) if not samples.size else (float(samples[0]) - 0.5, float(samples[0]) + 0.5)
    inside = samples[samples > samples.min()]
    bottom, top = float(samples.min()), float(np.percentile(inside, high))
    if np.mean(samples == bottom) < 0.05:  # no background to keep black
        bottom = float(np.percentile(samples, low))
    return (bottom, top) if top > bottom else (float(samples.min()), float(samples.max()))


def _in_plane(normal: int) -> tuple[int, int]:
    """Physical axes of rows and columns: axial y x, coronal z x, sagittal z y."""
    return {2: (1, 0), 1: (2, 0), 0: (2, 1)}[normal]


def _edges(normal: int) -> tuple[str, str, str, str]:
    """Letters left, right, top, bottom."""
    row, column = _in_plane(normal)
    top, bottom = LETTERS[row] if row == 1 else LETTERS[row][::-1]
    return (*LETTERS[column], top, bottom)
