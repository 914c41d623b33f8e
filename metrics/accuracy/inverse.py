"""Inverse consistency: how far from where it began a point comes back to that goes by a map's inverse and then by the map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import map_coordinates


def inverse_error_mm(forward_vx: np.ndarray, inverse_vx: np.ndarray, *, spacing_mm: Sequence[float], mask: np.ndarray | None = None) -> float:
    """Mean of `|phi(phi^-1(p)) - p|` over the voxels p of a grid, in mm; 0 where the second field is the first one's inverse.

    Both fields are displacements `([z,] y, x, d)` in voxels of one grid, components `(x, y[, z])`, `spacing_mm` likewise; between voxels the
    first one is interpolated linearly. Points that the inverse takes beyond the outermost voxels, where the map is not known, are left out
    (ours), and with a `mask` `([z,] y, x)` all where it is 0: not a number where none is left. Raises `ValueError` for shapes that do not fit.
    """
    forward, inverse = (np.asarray(field, dtype=float) for field in (forward_vx, inverse_vx))
    size, dimension = forward.shape[:-1], forward.ndim - 1
    if forward.shape != inverse.shape or forward.shape[-1:] != (dimension,) or len(spacing_mm) != dimension:
        raise ValueError(f"fields {forward.shape} and {inverse.shape}, spacing of {len(spacing_mm)} axes; expected two of ([z,] y, x, d) and d axes")
    if mask is not None and np.shape(mask) != size:
        raise ValueError(f"mask of shape {np.shape(mask)} for fields on a grid of {size}; expected the same grid")
    places = np.indices(size, dtype=float) + np.moveaxis(inverse[..., ::-1], -1, 0)
    inside = np.all([(at >= 0) & (at <= n - 1) for at, n in zip(places, size, strict=True)], axis=0)
    if mask is not None:
        inside &= np.asarray(mask) != 0
    onwards = np.stack([map_coordinates(component, places[:, inside], order=1) for component in np.moveaxis(forward, -1, 0)], axis=-1)
    lengths = np.linalg.norm((inverse[inside] + onwards) * np.asarray(spacing_mm, dtype=float), axis=-1)
    return float(lengths.mean()) if lengths.size else float("nan")
