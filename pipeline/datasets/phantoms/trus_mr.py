"""The phantom's T2-weighted MR: thick axial slices of the pelvis with partial volume, texture, coil bias and Rician noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from pipeline.datasets.phantoms.acquisition import bias_field, rician
from pipeline.datasets.phantoms.trus_anatomy import Pelvis
from pipeline.datasets.phantoms.trus_tissue import Tissue, column
from pipeline.volumes import Geometry

SUBSLICE_MM = 1.0
"""Thickness of the layers whose mean is a slice (ours)."""
POINT_SPREAD_MM = 0.3
"""Standard deviation of the in-plane point spread (ours)."""
BIAS_SCALE_MM = 70.0
STRANDS = 0.25
"""How much darker than fat the strands within it are (ours)."""


def mr_image(pelvis: Pelvis, geometry: Geometry, to_anatomy: np.ndarray, *, noise: float, bias: float, rng: np.random.Generator) -> np.ndarray:
    """Image `(z, y, x)`, float32, about 0 to 1000. `to_anatomy` `(4, 4)` takes its physical points to the anatomy; `noise` is in units of the image."""
    layers = sublayers(geometry)
    greys = column("t2") / len(layers) * np.exp(0.06 * rng.standard_normal(len(Tissue))).astype(np.float32)
    textures = column("texture") * greys
    signal, spread, fat = (np.zeros(geometry.shape, dtype=np.float32) for _ in range(3))
    is_fat = (np.arange(len(Tissue)) == Tissue.FAT).astype(np.float32) / len(layers)
    for number, layer in np.ndindex(geometry.size[2], len(layers)):  # layer by layer: its arrays fit the processor's cache
        tissue = pelvis.tissue(moved(slice_points(geometry, number, layers[layer : layer + 1])[0], to_anatomy))
        for sums, values in ((signal, greys), (spread, textures), (fat, is_fat)):
            sums[number] += values[tissue]
    spacing = np.asarray(geometry.spacing_mm)
    fine, medium, coarse = (_noise(rng, geometry.shape, scale / spacing[::-1]) for scale in (0.9, 2.5, 6.0))
    texture = 0.7 * fine + 0.6 * medium + 0.25 * coarse
    signal *= 1 - STRANDS * fat * np.exp(-((medium / 0.1) ** 2))
    signal = ndimage.gaussian_filter(signal + texture * spread, (0, POINT_SPREAD_MM / spacing[1], POINT_SPREAD_MM / spacing[0]))
    signal = np.maximum(signal, 0) * bias_field(geometry.shape, spacing_mm=geometry.spacing_mm, sigma_mm=BIAS_SCALE_MM, fraction=bias, rng=rng)
    return rician(signal, noise, rng)


def sublayers(geometry: Geometry) -> np.ndarray:
    """Offsets in slices of the layers of which a slice consists."""
    count = max(1, round(geometry.spacing_mm[2] / SUBSLICE_MM))
    return (np.arange(count) + 0.5) / count - 0.5


def slice_points(geometry: Geometry, number: int, offsets: np.ndarray) -> np.ndarray:
    """Physical points `(layer, y, x, 3)`, float32, of one slice of an axis-aligned grid, at `offsets` in slices from its middle."""
    x, y = (np.arange(geometry.size[axis]) * geometry.spacing_mm[axis] + geometry.origin_mm[axis] for axis in (0, 1))
    z = (number + offsets) * geometry.spacing_mm[2] + geometry.origin_mm[2]
    points = np.empty((len(z), len(y), len(x), 3), dtype=np.float32)
    points[..., 0], points[..., 1], points[..., 2] = x, y[:, None], z[:, None, None]
    return points


def moved(points_mm: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points `(..., 3)` through a homogeneous matrix `(4, 4)`, dtype kept."""
    matrix = np.asarray(matrix, dtype=points_mm.dtype)
    return points_mm @ matrix[:3, :3].T + matrix[:3, 3]


def _noise(rng: np.random.Generator, shape: tuple[int, ...], sigma_vx: np.ndarray) -> np.ndarray:
    """Smooth noise of unit variance; neighbouring slices share little of it."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma_vx, mode="wrap", truncate=3)
    return noise / noise.std()
