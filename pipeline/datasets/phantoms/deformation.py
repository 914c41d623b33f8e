"""Random diffeomorphic deformations: stationary velocity fields, their exponentials and sampling.

A field is an array `([z,] y, x, d)` of vectors in voxels, components in `(x, y[, z])` order. A displacement `u` stands for
the map `x -> x + u(x)`; beyond its grid it goes on with the value at the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import map_coordinates

from pipeline.volumes import Geometry

FINEST_STEP_VX = 0.1
"""Longest displacement, in voxels, of the first step of scaling and squaring when the number of steps is left open (ours)."""


def random_velocity(
    shape: Sequence[int], *, spacing_mm: float | Sequence[float], sigma_mm: float, amplitude_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """A smooth random vector field `([z,] y, x, d)` in voxels, float32, of scale `sigma_mm` (see `random_field`).

    At every voxel the expected length is `amplitude_mm` (root mean square over all seeds), with all directions alike.
    """
    dimension = len(shape)
    field = random_field(shape, spacing_mm=spacing_mm, sigma_mm=sigma_mm, channels=dimension, rng=rng)
    return (field * (amplitude_mm / np.sqrt(dimension) / np.broadcast_to(spacing_mm, dimension))).astype(np.float32)


def random_field(
    shape: Sequence[int], *, spacing_mm: float | Sequence[float], sigma_mm: float, channels: int, rng: np.random.Generator
) -> np.ndarray:
    """Smooth random fields `([z,] y, x, channel)`, float32, of mean 0 and variance 1 at every voxel (over all seeds).

    White noise on a lattice of knots `sigma_mm` apart, smoothed by a Gaussian of standard deviation `sigma_mm`. `shape` is
    `([z,] y, x)`, `spacing_mm` one number or `(x, y[, z])`. The draw depends on the box in mm only: another grid over the same
    box samples the same field.
    """
    spacing = np.broadcast_to(np.asarray(spacing_mm, dtype=float), len(shape))
    kernels = [_knot_weights(n, s, sigma_mm) for n, s in zip(shape, spacing[::-1], strict=True)]
    field = rng.standard_normal((*(kernel.shape[1] for kernel in kernels), channels))
    for axis, kernel in enumerate(kernels):
        field = np.moveaxis(_contract(kernel, np.moveaxis(field, axis, 0)), 0, axis)
    return field.astype(np.float32)


def _knot_weights(size: int, spacing_mm: float, sigma_mm: float) -> np.ndarray:
    """Gaussian weights `(voxel, knot)` along one axis, each row of unit length, so that unit noise stays of unit variance."""
    half_extent = size * spacing_mm / 2
    reach = int(np.ceil(half_extent / sigma_mm - 1e-9)) + 4
    position = (np.arange(size) + 0.5) * spacing_mm - half_extent
    weights = np.exp(-0.5 * (position[:, None] / sigma_mm - np.arange(-reach, reach + 1)) ** 2)
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def _contract(kernel: np.ndarray, field: np.ndarray) -> np.ndarray:
    """`kernel @ field` over the first axis; plain summation, so that the bits do not hang on the number of BLAS threads."""
    return np.einsum("ik,k...->i...", kernel, np.ascontiguousarray(field), optimize=False)


def taper(shape: Sequence[int], margin_vx: float) -> np.ndarray:
    """Weights `([z,] y, x, 1)`, float32: zero on the grid's border, one from `margin_vx` inwards, a smooth step between.

    A velocity times this weight leaves the border where it is, so its exponential maps the box onto itself.
    """
    weight = np.ones((1,) * len(shape), dtype=np.float32)
    for axis, size in enumerate(shape):
        depth = np.minimum(np.arange(size), np.arange(size)[::-1]) / max(margin_vx, 1e-9)
        ramp = np.sin(np.pi / 2 * np.clip(depth, 0, 1)) ** 2
        weight = weight * np.expand_dims(ramp, [i for i in range(len(shape)) if i != axis]).astype(np.float32)
    return weight[..., None]


def exponential(velocity_vx: np.ndarray, steps: int | None = None) -> np.ndarray:
    """Displacement `([z,] y, x, d)` in voxels of the flow of a stationary velocity at time one, by scaling and squaring.

    Arsigny et al., MICCAI 2006. `exponential(-v)` is the inverse of `exponential(v)`. `steps` squarings; left open, as many as
    bring the first step below `FINEST_STEP_VX`. The first step is second order (midpoint rule), which costs one more
    interpolation and makes each of the two flows exact to a few hundredths of a voxel. In torch, which takes less than half
    of scipy's time; it is loaded here.
    """
    import torch

    from nets import fields

    if steps is None:
        longest = float(np.sqrt(np.einsum("...c,...c->...", velocity_vx, velocity_vx).max(initial=0.0)))
        steps = max(0, int(np.ceil(np.log2(max(longest, FINEST_STEP_VX) / FINEST_STEP_VX))))
    first = torch.from_numpy(np.moveaxis(velocity_vx, -1, 0) / np.float32(2**steps))[None]
    displacement = fields.warp(first, first / 2)
    for _ in range(steps):
        displacement = fields.compose(displacement, displacement)
    return np.ascontiguousarray(np.moveaxis(displacement[0].numpy(), 0, -1))


def sample(array: np.ndarray, index: np.ndarray, *, order: int = 1, outside: float | None = None) -> np.ndarray:
    """`array` `([z,] y, x[, channel])` at continuous indices `(..., d)` in `(x, y[, z])` order: `(...[, channel])`, dtype kept.

    `order` is the spline order (0 for labels). Beyond the grid: the value `outside`, or that at the border when it is None.
    """
    coordinates = np.moveaxis(index, -1, 0)[::-1]
    mode, value = ("nearest", 0.0) if outside is None else ("constant", outside)
    if array.ndim == len(coordinates):
        return map_coordinates(array, coordinates, order=order, mode=mode, cval=value)
    # one channel at a time: spline interpolation in scipy knows scalars only
    channels = [map_coordinates(np.ascontiguousarray(c), coordinates, order=order, mode=mode, cval=value) for c in np.moveaxis(array, -1, 0)]
    return np.stack(channels, axis=-1)


@dataclass(frozen=True, eq=False)
class TemplateMap:
    """From a subject's points to the template's and back, in mm: an affine map first, then the flow of a velocity.

    `affine` is `(d + 1, d + 1)`; `velocity_vx` is `([z,] y, x, d)` on `geometry`, a grid in the template's space.
    """

    geometry: Geometry
    affine: np.ndarray
    velocity_vx: np.ndarray

    def to_template(self, points_mm: np.ndarray) -> np.ndarray:
        """Where points `(..., d)` of the subject lie in the template."""
        return self._moved(_affine(self.affine, points_mm), self._flow_vx)

    def from_template(self, points_mm: np.ndarray) -> np.ndarray:
        """Where points `(..., d)` of the template lie in the subject."""
        return _affine(np.linalg.inv(self.affine), self._moved(points_mm, self._inverse_flow_vx))

    def _moved(self, points_mm: np.ndarray, flow_vx: np.ndarray) -> np.ndarray:
        index = self.geometry.index_at(points_mm)
        return points_mm + sample(flow_vx, index) @ self.geometry.index_to_physical.T

    @cached_property
    def _flow_vx(self) -> np.ndarray:
        return exponential(self.velocity_vx)

    @cached_property
    def _inverse_flow_vx(self) -> np.ndarray:
        return exponential(-self.velocity_vx)


def _affine(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:-1, :-1].T + matrix[:-1, -1]
