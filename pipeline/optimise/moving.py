"""The moving image: its values at the mapped points, and the pull of a change of these values on the points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.transforms import Linear
from pipeline.volumes import Geometry, Volume

ImageGradient = Literal["exact", "central"]
_BORDER = 1  # torch's number for border padding: points outside see the nearest border voxel and pull nothing


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
    threads: int = 1

    @classmethod
    def of(cls, volume: Volume, *, gradient: ImageGradient = "exact", threads: int = 1, dtype: torch.dtype = torch.float32) -> MovingImage:
        """The volume as a tensor."""
        return cls(torch.as_tensor(volume.array.astype(np.float64 if dtype == torch.float64 else np.float32)), volume.geometry, gradient, threads)

    def units(self, after: Linear) -> tuple[np.ndarray, np.ndarray]:
        """Matrix and offset from points in mm, through the transform `after`, to this image's units."""
        size = np.asarray(self.geometry.size)
        matrix = self.geometry.physical_to_index * (2 / size)[:, None]
        offset = (1 - size) / size - matrix @ np.asarray(self.geometry.origin_mm)
        return matrix @ after.matrix, matrix @ after.offset_mm + offset

    def at(self, points: torch.Tensor) -> torch.Tensor:
        """Linearly interpolated values `(n,)`; outside those of the nearest border point."""
        image, grid, count = self._batched(points)
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False).reshape(-1)[:count]

    def pull(self, points: torch.Tensor, by_value: torch.Tensor) -> torch.Tensor:
        """Derivatives by the points `(n, d)` of something whose derivatives by the values are `by_value` `(n,)`."""
        if self.gradient == "exact":
            return self._exact(points, by_value)
        to_units, _ = self.units(Linear.identity(points.shape[1]))
        columns = []
        for axis, spacing in enumerate(self.geometry.spacing_mm):
            half = torch.as_tensor(to_units[:, axis] * spacing / 2, dtype=points.dtype)
            columns.append((self.at(points + half) - self.at(points - half)) / spacing)
        to_mm = torch.as_tensor(np.linalg.inv(to_units), dtype=points.dtype)
        return (torch.stack(columns, dim=1) * by_value[:, None]) @ to_mm

    def inside(self, points: torch.Tensor) -> torch.Tensor:
        """Whether each point lies within the voxels of this image, `(n,)` bool."""
        low, high = torch.aminmax(points)
        if low >= -1 and high <= 1:  # most often; one pass instead of several
            return torch.ones(len(points), dtype=torch.bool)
        return (points.abs() <= 1).all(dim=1)

    def _exact(self, points: torch.Tensor, by_value: torch.Tensor) -> torch.Tensor:
        image, grid, count = self._batched(points)
        missing = grid.numel() // points.shape[1] - count
        weights = F.pad(by_value.reshape(-1), (0, missing)).reshape(image.shape[0], 1, *grid.shape[1:-1])
        backward = torch.ops.aten.grid_sampler_3d_backward if points.shape[1] == 3 else torch.ops.aten.grid_sampler_2d_backward
        return backward(weights, image, grid, 0, _BORDER, False, (False, True))[1].reshape(-1, points.shape[1])[:count]

    def _batched(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Image and points as batches, a thread each: torch spreads sampling over the batch only."""
        count, d = points.shape
        batches = min(self.threads, max(1, count))
        if count % batches:
            points = F.pad(points, (0, 0, 0, batches - count % batches))
        image = self.samples[None, None].expand(batches, *[-1] * (d + 1))
        return image, points.reshape(batches, *[1] * (d - 1), -1, d), count
