"""Which samples an iteration looks at: all of them, a regular lattice, or random voxels, all from a seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from pipeline.errors import ConcordError
from pipeline.optimise.samples import Lattice, Samples, Scattered
from pipeline.volumes import Geometry

Sampling = Literal["dense", "regular", "random"]


@dataclass(frozen=True, eq=False)
class SamplingPlan:
    """`samples` points of `geometry`, inside `mask` where one is given; `fresh`: others each iteration, from `seed`.

    "regular" takes every s-th voxel along each axis; fresh ones start at another voxel each time, in a shuffled order that visits all
    starts before one comes again (ours). "random" draws voxels with replacement. `grid` plans keep the whole lattice, for similarities
    that look at neighbourhoods: a mask then weighs, it does not select.
    """

    geometry: Geometry
    sampling: Sampling = "dense"
    samples: int | None = None
    fresh: bool = False
    seed: int = 0
    mask: np.ndarray | None = None
    grid: bool = False
    dtype: torch.dtype = torch.float32
    _made: dict[int, Samples] = field(default_factory=dict, repr=False)

    def draw(self, iteration: int) -> tuple[int, Samples]:
        """The samples of an iteration, and a number that equal draws share."""
        key = self._key(iteration)
        if key not in self._made:
            if self.sampling == "random" and self.fresh:
                self._made.clear()
            self._made[key] = self._random(key) if self.sampling == "random" else self._lattice(key)
        return key, self._made[key]

    @cached_property
    def stride(self) -> tuple[int, ...]:
        """Voxels between lattice points along `(x, y[, z])`, as even in mm as whole numbers allow."""
        if self.sampling == "dense" or self.samples is None:
            return (1,) * self.geometry.dimension
        voxels = int(np.prod(self.geometry.size)) if self.mask is None or self.grid else int(np.count_nonzero(self.mask))
        size, stride = np.asarray(self.geometry.size), np.ones(self.geometry.dimension, dtype=int)
        while voxels / np.prod(stride) > self.samples:  # lengthen the shortest stride, step by step
            gaps = np.where(stride < size, stride * np.asarray(self.geometry.spacing_mm), np.inf)
            if not np.isfinite(gaps).any():
                break
            stride[int(np.argmin(gaps))] += 1
        return tuple(stride.tolist())

    def _key(self, iteration: int) -> int:
        if not self.fresh or self.sampling == "dense":
            return 0
        if self.sampling == "random":
            return iteration
        starts = int(np.prod(self.stride))
        order = np.random.default_rng([self.seed, iteration // starts]).permutation(starts)
        return int(order[iteration % starts])

    def _lattice(self, key: int) -> Lattice:
        stride = self.stride
        middle = tuple((min(s, n) - 1) // 2 for s, n in zip(stride, self.geometry.size, strict=True))
        offset = tuple(int(o) for o in np.unravel_index(key, stride)) if self.fresh else middle
        lattice = Lattice(self.geometry, stride, offset, self.dtype)
        if self.mask is None or self.grid:
            return lattice
        select = torch.from_numpy(np.flatnonzero(lattice.window(torch.from_numpy(self.mask != 0)).numpy()))
        if not len(select):
            raise ConcordError(f"the mask holds none of every {stride}-th voxel; enlarge the mask or ask for more samples than {self.samples}")
        return Lattice(self.geometry, stride, offset, self.dtype, select)

    def _random(self, key: int) -> Scattered:
        rng = np.random.default_rng([self.seed, 1, key])
        allowed = None if self.mask is None else np.flatnonzero(self.mask)
        count = self.samples or 10_000
        flat = rng.integers(int(np.prod(self.geometry.size)), size=count) if allowed is None else rng.choice(allowed, size=count)
        return Scattered(self.geometry, np.stack(np.unravel_index(flat, self.geometry.shape)[::-1], axis=-1), self.dtype)
