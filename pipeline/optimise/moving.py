"""The moving image: its values at the mapped points, and the pull of a change of these values on the points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.transforms import Linear
from pipeline.volumes import Geometry, Volume

ImageGradient = Literal["exact", "central"]
_BORDER = 1  # torch's number for border padding: points outside see the nearest border voxel and pull nothing
_CHUNK = 1 << 15  # points at a time: what is reckoned of them stays in a core's cache, and torch does not call for other threads (ours)
Axis = tuple[int, torch.Tensor]


@dataclass(frozen=True)
class MovingImage:
    """A volume as torch samples it: points are `(n, d)` in units in which its outer voxel borders lie at -1 and 1.

    `gradient`: "exact" is the derivative of the linear interpolation, which fits the values to the last digit; "central" is the
    difference of the interpolated image half a voxel to either side along the axes of space, smoother, as in ITK's v4 metrics without
    gradient filter (ITK takes the spacing of image axis i along axis i of space, whatever the direction, and so does this).
    """

    samples: torch.Tensor
    geometry: Geometry
    gradient: ImageGradient = "exact"

    @classmethod
    def of(cls, volume: Volume, *, gradient: ImageGradient = "exact", dtype: torch.dtype = torch.float32) -> MovingImage:
        """The volume as a tensor."""
        return cls(torch.as_tensor(volume.array.astype(np.float64 if dtype == torch.float64 else np.float32)), volume.geometry, gradient)

    def units(self, after: Linear) -> tuple[np.ndarray, np.ndarray]:
        """Matrix and offset from points in mm, through the transform `after`, to this image's units."""
        size = np.asarray(self.geometry.size)
        matrix = self.geometry.physical_to_index * (2 / size)[:, None]
        offset = (1 - size) / size - matrix @ np.asarray(self.geometry.origin_mm)
        return matrix @ after.matrix, matrix @ after.offset_mm + offset

    def at(self, points: torch.Tensor) -> torch.Tensor:
        """Linearly interpolated values `(n,)`; outside those of the nearest border point."""
        if points.shape[1] == 2:
            image, grid = self.samples[None, None], points[None, None]
            return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False).reshape(-1)
        values = points.new_empty(len(points))
        for part in _parts(len(points)):
            first, axes, _ = self._located(points[part])
            values[part] = interpolated(self.samples.view(-1), first, axes)
        return values

    def seen(self, points: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        """The values `(n,)`, and what makes of a change by these values `(n,)` that by the points `(n, d)`.

        In 3-D one look at the eight voxels about a point gives value and exact derivative; torch's own functions look twice, one point at a
        time, which takes three times as long. In 2-D they are the faster ones.
        """
        if self.gradient == "central":
            return self.at(points), partial(self._central, points)
        if points.shape[1] == 2:
            return self.at(points), partial(self._planar, points)
        values, slopes = points.new_empty(len(points)), torch.empty_like(points)
        for part in _parts(len(points)):
            first, axes, clamped = self._located(points[part])
            values[part], along = _interpolated_with_slopes(self.samples.view(-1), first, axes)
            for axis, (slope, moved, size) in enumerate(zip(along[::-1], clamped, self.geometry.size, strict=True)):
                slopes[part, axis] = slope.mul_(size / 2) if moved is None else slope.mul_(size / 2).masked_fill_(moved, 0)
        return values, lambda by_value: slopes * by_value.reshape(-1, 1)

    def inside(self, points: torch.Tensor) -> torch.Tensor:
        """Whether each point lies within the voxels of this image, `(n,)` bool."""
        low, high = torch.aminmax(points)
        if low >= -1 and high <= 1:  # most often; one pass instead of several
            return torch.ones(len(points), dtype=torch.bool)
        return (points.abs() <= 1).all(dim=1)

    def _planar(self, points: torch.Tensor, by_value: torch.Tensor) -> torch.Tensor:
        image, grid, weights = self.samples[None, None], points[None, None], by_value.reshape(1, 1, 1, -1)
        return torch.ops.aten.grid_sampler_2d_backward(weights, image, grid, 0, _BORDER, False, (False, True))[1].reshape(-1, 2)

    def _central(self, points: torch.Tensor, by_value: torch.Tensor) -> torch.Tensor:
        to_units, _ = self.units(Linear.identity(points.shape[1]))
        columns = []
        for axis, spacing in enumerate(self.geometry.spacing_mm):
            half = torch.as_tensor(to_units[:, axis] * spacing / 2, dtype=points.dtype)
            columns.append((self.at(points + half) - self.at(points - half)) / spacing)
        to_mm = torch.as_tensor(np.linalg.inv(to_units), dtype=points.dtype)
        return (torch.stack(columns, dim=1) * by_value.reshape(-1, 1)) @ to_mm

    def _located(self, points: torch.Tensor) -> tuple[torch.Tensor, list[Axis], list[torch.Tensor | None]]:
        """The first of the voxels about each point, step and share of the way to the next one for z, y, x, and for x, y, z what lay outside."""
        first, axes, clamped = None, [], []
        for axis, (size, stride) in enumerate(zip(self.geometry.size, self.samples.stride()[::-1], strict=True)):
            index = points[:, axis].mul(size / 2).add_((size - 1) / 2)
            low, high = index.aminmax()
            inside = low >= 0 and high <= size - 1  # most often
            clamped.append(None if inside else (index < 0) | (index > size - 1))
            # clamped as whole numbers as well: NaN is told of later, by the value
            voxel = index.clamp_(0, size - 1).int().clamp_(0, max(0, size - 2))
            axes.append((stride if size > 1 else 0, index.sub_(voxel)))
            first = voxel.mul_(stride) if first is None else first.add_(voxel, alpha=stride)
        return first, axes[::-1], clamped


def _parts(count: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, count, _CHUNK)]


def interpolated(flat: torch.Tensor, first: torch.Tensor, axes: Sequence[Axis]) -> torch.Tensor:
    """Between the samples at `first` and those a step further along each axis, by the share of the way there; single precision but of double samples."""
    if not axes:
        values = flat.index_select(0, first.flatten()).view(first.shape)
        return values if values.dtype == torch.float64 else values.float()
    (step, share), *others = axes
    return torch.lerp(interpolated(flat, first, others), interpolated(flat, first + step, others), share)


def _interpolated_with_slopes(flat: torch.Tensor, first: torch.Tensor, axes: Sequence[Axis]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The same, and the derivative by the share of each axis."""
    if not axes:
        return flat.index_select(0, first), []
    (step, share), *others = axes
    (low, below), (high, above) = (_interpolated_with_slopes(flat, start, others) for start in (first, first + step))
    along = high.sub_(low)
    return torch.addcmul(low, along, share), [along, *(torch.lerp(one, other, share) for one, other in zip(below, above, strict=True))]
