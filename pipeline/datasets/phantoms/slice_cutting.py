"""Two-dimensional slices through volumes: planes in the patient's own axes, sampled once, whatever the order of the volume's axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from pipeline.errors import ConcordError
from pipeline.resampling import Interpolation, smooth, warp_by_field
from pipeline.starting import in_mask, threshold_mask
from pipeline.volumes import Geometry, Volume

Axis = Literal["axial", "coronal", "sagittal"]
DIRECTIONS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "axial": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "coronal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1), (1, 0, 0)),
}
"""In the patient's axes (LPS): where a slice's x and y axes point, and where its heights run. The face looks up, the crown of the head lies on top."""
HEAD_THRESHOLD = 0.1
"""Share of the range of intensities above which a voxel is head (ours)."""
OUTLIERS_PERCENT = 0.5
"""So many of the brightest voxels, vessels and artefacts, do not count for that range (ours)."""
TAIL_PERCENT = 1.0
"""Bottom and top of a head are the heights below and above which so much of it lies (ours)."""


@dataclass(frozen=True)
class Plane:
    """A slice of `size` voxels `(x, y)` around a point in space."""

    axis: Axis
    centre_mm: tuple[float, float, float]
    size: tuple[int, int]
    spacing_mm: float

    @property
    def grid(self) -> Geometry:
        """The slice as a 2-D grid: its own axes, zero in its middle."""
        return Geometry.regular(self.size, self.spacing_mm)

    @property
    def in_space(self) -> Geometry:
        """The same voxels as a 3-D grid, one voxel thick."""
        directions = np.array(DIRECTIONS[self.axis])
        origin = np.asarray(self.centre_mm) + np.asarray(self.grid.origin_mm) @ directions[:2]
        columns = tuple(tuple(row) for row in directions.T.tolist())
        return Geometry((*self.size, 1), (self.spacing_mm,) * 3, tuple(origin.tolist()), columns)

    def cut(self, volume: Volume, displacement_mm: np.ndarray | None = None, *, interpolation: Interpolation = "linear") -> Volume:
        """The volume at the slice's voxels, each moved by `displacement_mm` `(y, x, 2)` in the plane; around the volume what is at its border."""
        moved = np.zeros((*self.grid.shape, 2)) if displacement_mm is None else displacement_mm
        in_space = moved @ np.array(DIRECTIONS[self.axis][:2], dtype=float)
        background = 0.0 if interpolation == "nearest" else border_value(volume)
        found = warp_by_field(volume, in_space[None], self.in_space, interpolation=interpolation, background=background)
        return Volume(found.array[0], self.grid, f"{volume.name} slice")

    def misses(self, volume: Volume, wanted: np.ndarray) -> bool:
        """Whether the volume ends before one of the wanted voxels `(y, x)` bool of the slice."""
        return not bool(volume.geometry.contains(self.in_space.grid_points()[0][wanted]).all())

    def where(self, mask: Volume) -> np.ndarray:
        """Which of the slice's voxels lie in the mask, `(y, x)` bool."""
        return in_mask(mask, self.in_space.grid_points()[0].reshape(-1, 3)).reshape(self.grid.shape)


class Head(NamedTuple):
    """Where the head is in a volume: its mask, the points of it `(n, 3)` in mm, their heights along the slices' axis, and its bottom and top."""

    mask: Volume
    points_mm: np.ndarray
    heights_mm: np.ndarray
    bottom_mm: float
    top_mm: float


def head_of(volume: Volume, axis: Axis) -> Head:
    """What is brighter than air. Raises `ConcordError` for an image of one value, and for one that is no volume."""
    if volume.dimension != 3:
        raise ConcordError(f"{volume.name}: {volume.dimension}-D; expected a 3-D volume to cut slices from")
    array = np.minimum(volume.array, np.percentile(volume.array, 100 - OUTLIERS_PERCENT))
    if array.min() == array.max():
        raise ConcordError(f"{volume.name}: nearly every sample is {array.min():g}; expected an image of a head")
    mask = threshold_mask(volume.with_array(array), HEAD_THRESHOLD)
    points = volume.geometry.points_at(np.argwhere(mask.array)[:, ::-1])
    heights = points @ np.array(DIRECTIONS[axis][2], dtype=float)
    bottom, top = np.percentile(heights, [TAIL_PERCENT, 100 - TAIL_PERCENT])
    return Head(mask, points, heights, float(bottom), float(top))


def planes_of(head: Head, axis: Axis, heights: np.ndarray, *, size: tuple[int, int], spacing_mm: float) -> list[Plane]:
    """Slices at `heights`, shares of the way from the bottom of the head to its top, in the middle of the part of the head between them.

    Bottom and top are where the first and the last hundredth of the head's voxels lie, the middle is their centre: heads differ in size and
    place, and equal shares are about the same level of two of them (a crude alignment, ours).
    """
    levels = head.bottom_mm + heights * (head.top_mm - head.bottom_mm)
    between = (head.heights_mm >= levels.min() - spacing_mm) & (head.heights_mm <= levels.max() + spacing_mm)
    middle = (head.points_mm[between] if between.any() else head.points_mm).mean(axis=0)
    across = np.array(DIRECTIONS[axis][2], dtype=float)
    centres = middle + (levels - middle @ across)[:, None] * across
    return [Plane(axis, tuple(centre), size, spacing_mm) for centre in centres.tolist()]


def border_value(volume: Volume) -> float:
    """The median of the outermost samples: of air, where the volume is that of a head. The least one may be an artefact far below."""
    faces = [np.take(volume.array, (0, -1), axis=axis).ravel() for axis in range(volume.dimension)]
    return float(np.median(np.concatenate(faces)))


def for_spacing(volume: Volume, axis: Axis, spacing_mm: float) -> Volume:
    """The volume smoothed in the plane of the slices where these are coarser, so that sampling it does not alias; across it as it is."""
    own = np.asarray(volume.geometry.spacing_mm)
    sigma = 0.5 * np.sqrt(np.maximum(spacing_mm**2 - own**2, 0.0))
    sigma[np.abs(np.array(DIRECTIONS[axis][2]) @ np.asarray(volume.geometry.direction)).argmax()] = 0.0
    return smooth(volume, tuple(sigma.tolist())) if (sigma > 0.07 * own).any() else volume
