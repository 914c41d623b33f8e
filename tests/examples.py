"""Small volumes, grids and transforms of every kind that several tests share."""

from __future__ import annotations

import numpy as np

from pipeline.transforms import BSpline, Composite, Field, Linear, Transform
from pipeline.volumes import Geometry, Volume


def rotation(dimension: int, angle: float = 0.3) -> np.ndarray:
    """A rotation in the x-y plane, in 3-D followed by one in y-z."""
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.eye(dimension)
    matrix[:2, :2] = [[cosine, -sine], [sine, cosine]]
    if dimension == 3:
        matrix = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ matrix
    return matrix


def oblique_geometry(dimension: int) -> Geometry:
    """Anisotropic, off-centre, rotated."""
    direction = tuple(tuple(row) for row in rotation(dimension, 0.2).tolist())
    return Geometry((20, 18, 12)[:dimension], (1.5, 2.0, 3.0)[:dimension], (-12.0, -20.0, -15.0)[:dimension], direction)


def smooth_field(geometry: Geometry, amplitude_mm: float, seed: int = 0) -> Field:
    """A random displacement field without folds, zero-mean, of about `amplitude_mm`."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=(*geometry.shape, geometry.dimension))
    smoothed = np.stack([gaussian_filter(noise[..., c], 3) for c in range(geometry.dimension)], axis=-1)
    return Field(smoothed / np.abs(smoothed).max() * amplitude_mm, geometry)


def transforms_of(dimension: int) -> dict[str, Transform]:
    """One transform of every kind."""
    rng = np.random.default_rng(3)
    turn, shift, centre = rotation(dimension), np.array([1.0, -2.0, 3.0])[:dimension], np.full(dimension, 4.0)
    grid = Geometry.regular((9, 8, 7)[:dimension], (6.0, 7.0, 9.0)[:dimension])
    kinds: dict[str, Transform] = {
        "translation": Linear(np.eye(dimension), shift, "translation"),
        "rigid": Linear(turn, shift, "rigid", centre),
        "similarity": Linear(1.1 * turn, shift, "similarity", centre),
        "affine": Linear(np.eye(dimension) + 0.1 * rng.normal(size=(dimension, dimension)), shift, "affine", centre),
        "b-spline": BSpline(rng.uniform(-1, 1, size=(dimension, *grid.shape)), grid),
        "field": smooth_field(oblique_geometry(dimension), 3.0),
    }
    kinds["composition"] = Composite((kinds["field"], kinds["b-spline"], kinds["similarity"]))
    return kinds


KINDS = ("translation", "rigid", "similarity", "affine", "b-spline", "field", "composition")


def blob_volume(geometry: Geometry, seed: int = 0) -> Volume:
    """A smooth random image in [0, 1]."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=geometry.shape), 2)
    return Volume(((noise - noise.min()) / np.ptp(noise)).astype(np.float32), geometry, "blobs")
