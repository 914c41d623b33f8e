"""MIND and MIND-SSC through elastix: every descriptor channel is an image of its own, and elastix sums their squared differences."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Literal

import numpy as np
from pydantic import Field

from pipeline.classical.elastix import ElastixMethod
from pipeline.classical.elastix_run import ParameterMap
from pipeline.methods import Pair
from pipeline.volumes import Geometry, Volume


class MindElastix(ElastixMethod):
    """Sum of squared differences of MIND (Heinrich et al. 2012) or MIND-SSC (2013) descriptors, optimised by elastix.

    The descriptors are computed once and warped like images: they look along the axes of the moving volume however far the
    transform turns it (ours; a good approximation for small rotations). A moving volume with other axes or voxels than the fixed
    one is first brought to them, since a channel is a direction in the voxel grid (ours).
    """

    descriptor: Literal["mind", "mind-ssc"] = Field(
        "mind-ssc", description="mind: six-neighbourhood (2012); mind-ssc: self-similarity context (2013)"
    )
    sigma_vx: float = Field(0.5, gt=0, description="mind: Gaussian weighting of patches in voxels (validated by Simonovsky et al.: 0.5)")
    radius_vx: int = Field(2, ge=0, le=8, description="mind-ssc: patches have an edge of 2 radius + 1 voxels")
    dilation_vx: int = Field(2, ge=1, le=8, description="mind-ssc: distance of the neighbours in voxels")

    def load(self) -> None:
        """elastix and torch."""
        import torch  # noqa: F401

        super().load()

    def prepared(self, pair: Pair) -> Pair:
        """The pair with the moving volume on the axes of the fixed one; what lies outside its own box is masked out."""
        from pipeline.resampling import resample

        grid = grid_like(pair.moving.geometry, pair.fixed.geometry)
        if grid is pair.moving.geometry:
            return pair
        mask = pair.moving_mask or pair.moving.with_array(np.ones(pair.moving.array.shape, np.uint8))
        moving = resample(pair.moving, grid, background=float(pair.moving.array.min()))
        return replace(pair, moving=moving, moving_mask=resample(mask, grid, interpolation="nearest"))

    def images(self, pair: Pair) -> list[tuple[Volume, Volume]]:
        """One pair of images a descriptor channel."""
        return list(zip(self._channels(pair.fixed), self._channels(pair.moving), strict=True))

    def metric(self) -> ParameterMap:
        """Mean squared difference, a term a channel."""
        return {"Metric": ["AdvancedMeanSquares"]}

    def _channels(self, volume: Volume) -> list[Volume]:
        import torch

        from metrics.similarity.mind import mind, mind_ssc

        image = torch.from_numpy(np.ascontiguousarray(volume.array, dtype=np.float32))[None, None]
        with torch.no_grad():
            if self.descriptor == "mind":
                stack = mind(image, sigma_vx=self.sigma_vx)
            else:
                stack = mind_ssc(image, radius_vx=self.radius_vx, dilation_vx=self.dilation_vx)
        return [volume.with_array(channel) for channel in stack[0].numpy()]


def grid_like(geometry: Geometry, like: Geometry) -> Geometry:
    """A grid with the axes and voxel size of `like` that covers the box of `geometry`; `geometry` itself where it has them already."""
    if np.allclose(geometry.direction, like.direction, atol=1e-4) and np.allclose(geometry.spacing_mm, like.spacing_mm, rtol=1e-3):
        return geometry
    corners = np.array(list(product(*((-0.5, n - 0.5) for n in geometry.size))))
    index = like.index_at(geometry.points_at(corners))
    lower, upper = np.floor(index.min(axis=0) + 0.5), np.ceil(index.max(axis=0) - 0.5)
    size = tuple((upper - lower + 1).astype(int).tolist())
    return replace(like, size=size, origin_mm=tuple(like.points_at(lower).tolist()))
