"""Distances between the surfaces of structures: HD95 and mean surface distance in mm, and the Learn2Reg evaluator's own HD95."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from scipy import ndimage

from metrics.accuracy.overlap import label_indices


@dataclass(frozen=True)
class SurfaceDistance:
    """Distances between the two surfaces of one structure, in mm."""

    hd95_mm: float
    mean_mm: float


NO_SURFACE = SurfaceDistance(float("nan"), float("nan"))
ONE_SURFACE = SurfaceDistance(float("inf"), float("inf"))


def surface_distances(
    fixed_labels: np.ndarray, warped_labels: np.ndarray, *, spacing_mm: Sequence[float], labels: Sequence[int] | None = None
) -> dict[int, SurfaceDistance]:
    """HD95 and mean symmetric surface distance of each structure, in mm.

    The surface of a structure is its voxels that share a face with a voxel outside it (beyond the image is outside); the
    distance of a surface voxel is the one from its centre to the nearest surface voxel's centre in the other map. HD95 is
    the larger of the two directed 95th percentiles (linear interpolation), the mean is taken over the voxels of both
    surfaces together: the definitions of MONAI's `compute_hausdorff_distance` and symmetric `compute_average_surface_distance`.

    Label maps are `([z,] y, x)`, `spacing_mm` is in the same order; `labels` defaults to the non-zero labels of the fixed
    map. A structure that is empty in both maps has nan, one that is empty in only one of them infinite distances. Raises
    `ValueError` for unequal shapes, labels that are no whole numbers, a spacing of the wrong length or not positive.
    """
    spacing = _checked_spacing(spacing_mm, np.ndim(fixed_labels))
    pairs = _cropped_masks(fixed_labels, warped_labels, labels)
    return {label: _surface_distance(fixed, warped, spacing) for label, fixed, warped in pairs}


def hd95_learn2reg_vx(fixed_labels: np.ndarray, warped_labels: np.ndarray, labels: Sequence[int] | None = None) -> dict[int, float]:
    """HD95 as the Learn2Reg evaluator reports it: in **voxels** (spacing 1 whatever the true one), surface elements weighted by area.

    It stands beside the true HD95 in mm only to be compared with published numbers. Surface elements lie at the corners
    between voxels; each weighs as much as the marching-cubes surface through its 2 x 2 x 2 neighbourhood, and the directed
    percentile is the smallest distance that 95 % of the area does not exceed (google-deepmind/surface-distance, which
    Learn2Reg calls). In 2-D the weight is the contour's length. A structure that is empty in the fixed map scores nan,
    one that is empty in the warped map only scores inf. Raises `ValueError` as `surface_distances` does.
    """
    pairs = _cropped_masks(fixed_labels, warped_labels, labels)
    return {label: _weighted_hd95(fixed, warped) for label, fixed, warped in pairs}


def _checked_spacing(spacing_mm: Sequence[float], dimension: int) -> np.ndarray:
    spacing = np.asarray(spacing_mm, dtype=float)
    if spacing.shape != (dimension,) or not np.all(spacing > 0) or not np.all(np.isfinite(spacing)):
        raise ValueError(f"spacing {tuple(spacing.ravel().tolist())} mm; expected {dimension} positive numbers, in the order ([z,] y, x)")
    return spacing


def _cropped_masks(fixed_labels: np.ndarray, warped_labels: np.ndarray, labels: Sequence[int] | None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each label with its two masks, cropped to the box that holds both."""
    wanted, fixed, warped = label_indices(fixed_labels, warped_labels, labels)
    boxes = zip(ndimage.find_objects(fixed, max_label=wanted.size), ndimage.find_objects(warped, max_label=wanted.size), strict=True)
    nothing = (slice(0, 0),) * fixed.ndim
    for index, (label, (first, second)) in enumerate(zip(wanted.tolist(), boxes, strict=True), start=1):
        box = _union(first or second or nothing, second or first or nothing)
        yield label, fixed[box] == index, warped[box] == index


def _union(first: tuple[slice, ...], second: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))


def _surface_distance(fixed: np.ndarray, warped: np.ndarray, spacing: np.ndarray) -> SurfaceDistance:
    if not (fixed.any() and warped.any()):
        return ONE_SURFACE if fixed.any() or warped.any() else NO_SURFACE
    # the crop holds the whole structure, so that what lies beyond it is background
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (fixed, warped)]
    directed = [ndimage.distance_transform_edt(~there, sampling=spacing)[here] for here, there in (surfaces, surfaces[::-1])]
    return SurfaceDistance(float(max(np.percentile(d, 95) for d in directed)), float(np.concatenate(directed).mean()))


def _weighted_hd95(fixed: np.ndarray, warped: np.ndarray) -> float:
    if not (fixed.any() and warped.any()):
        return float("inf") if fixed.any() else float("nan")
    areas = [_corner_areas(mask) for mask in (fixed, warped)]
    return max(_directed_weighted_percentile(here, there) for here, there in (areas, areas[::-1]))


def _directed_weighted_percentile(here: np.ndarray, there: np.ndarray, percent: float = 95.0) -> float:
    on_surface = here > 0
    distances, weights = ndimage.distance_transform_edt(there == 0)[on_surface], here[on_surface]
    order = np.argsort(distances)
    share = np.cumsum(weights[order]) / weights.sum()
    return float(distances[order][min(np.searchsorted(share, percent / 100), distances.size - 1)])


def _corner_areas(mask: np.ndarray) -> np.ndarray:
    """Area (2-D: length) of the surface through each corner between voxels, zero off the surface; one longer than the mask along each axis."""
    padded = np.pad(mask, 1).astype(np.uint8)
    code = np.zeros([n + 1 for n in mask.shape], dtype=np.uint8)
    for bit, corner in enumerate(product((0, 1), repeat=mask.ndim)):
        code |= padded[tuple(slice(c, c + n) for c, n in zip(corner, code.shape, strict=True))] << bit
    return _area_table(mask.ndim)[code]


@lru_cache(maxsize=2)
def _area_table(dimension: int) -> np.ndarray:
    """Surface area in a unit cell for each of the `2^(2^d)` patterns of inside and outside corners."""
    bits = 2**dimension
    patterns = (np.arange(2**bits)[:, None] >> np.arange(bits)) & 1
    cells = patterns.reshape(-1, *(2,) * dimension)
    areas = np.array([0.0, *(_cell_area(cell) for cell in cells[1:-1]), 0.0])
    # inside and outside have the same surface; of the two ways that marching cubes joins an ambiguous pattern the smaller counts
    return np.minimum(areas, areas[::-1])


def _cell_area(cell: np.ndarray) -> float:
    if cell.ndim == 2:
        facing = cell[0, 0] == cell[1, 1] and cell[0, 1] == cell[1, 0]
        corners_cut = 2 if facing else 1
        return 1.0 if cell.sum() == 2 and not facing else corners_cut * np.sqrt(0.5)
    from skimage.measure import marching_cubes, mesh_surface_area

    vertices, faces, *_ = marching_cubes(cell.astype(np.float32), 0.5, method="lorensen")
    return float(mesh_surface_area(vertices, faces))
