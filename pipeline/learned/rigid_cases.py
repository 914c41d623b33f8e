"""Volumes for networks of rigid registration: the fixed region of each case, and the moving volume seen through any rigid transform.

What the network is trained on and what it is applied to are made by the same functions here, without ITK.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.cases import Case
from pipeline.errors import ConcordError
from pipeline.learned.settings.rigid import Preparation
from pipeline.optimise.moving import interpolated
from pipeline.provenance import file_sha256
from pipeline.region import region_grid, region_mask
from pipeline.resampling import resample
from pipeline.rigid_motion import rigid_matrix
from pipeline.transform_files import read_transform
from pipeline.volumes import Geometry, Volume, read_volume

NEEDED = ("fixed_labels", "true_transform", "fixed_surface")


@dataclass(frozen=True, eq=False)
class RigidCase:
    """A case as a network needs it.

    `fixed` `(z, y, x)` is channel 0 on `region`, in units of the moving volume's largest value; `moving` holds that volume's samples,
    uint8 or float16, and `scale` takes them to the same unit. `truth` `(4, 4)` maps fixed to moving points.
    """

    name: str
    how: Preparation
    region: Geometry
    fixed: np.ndarray
    moving: Volume
    scale: float
    truth: np.ndarray
    origin_mm: np.ndarray
    centre_mm: np.ndarray
    vertices_mm: np.ndarray
    files: tuple[tuple[str, str], ...] = ()

    @property
    def data(self) -> dict[str, Any]:
        """What a card says about it."""
        return {"name": self.name, "files": dict(self.files)}


def read_rigid_cases(cases: Iterable[Case], split: str, how: Preparation) -> list[RigidCase]:
    """The cases of a split, each pair of volumes once (a table may hold a pair with several starts).

    Raises `ConcordError` for a split without cases, cases without labels, truth or surface, and whatever `rigid_case` refuses.
    """
    once: dict[tuple[Path, Path], Case] = {}
    for case in cases:
        if case.split == split:
            once.setdefault((case.fixed, case.moving), case)
    if not once:
        raise ConcordError(f"no case of split {split!r}; expected one or more: give cases that split in the table of cases")
    return [_read(case, how) for case in once.values()]


def rigid_case(
    fixed: Volume, moving: Volume, mask: Volume, how: Preparation, *, labels: Volume | None = None, truth: np.ndarray | None = None
) -> RigidCase:
    """A case from volumes, `mask` being what the region is made from; surface and files are left empty.

    `labels` are channel 0 for the input "label". Raises `ConcordError` for constant volumes, an empty mask and others than 3-D ones.
    """
    for volume in (fixed, moving):
        if volume.dimension != 3:
            raise ConcordError(f"{volume.name}: {volume.dimension}-D; expected 3-D volumes: choose another method")
        if volume.array.size == 0 or volume.array.min() == volume.array.max():
            raise ConcordError(f"{volume.name}: every sample is the same; expected an image to register: leave the case out")
    region = region_grid(region_mask(mask, how.enlarge), how.size)
    stored, scale = _stored(moving)
    return RigidCase(
        name=fixed.name,
        how=how,
        region=region,
        fixed=_channel(fixed, labels, region, how),
        moving=stored,
        scale=scale,
        truth=np.eye(4) if truth is None else truth,
        origin_mm=np.asarray(fixed.geometry.origin_mm),
        centre_mm=np.asarray(fixed.geometry.origin_mm) if how.centre == "origin" else region.centre_mm,
        vertices_mm=np.zeros((0, 3)),
    )


class RigidVolumes:
    """The volumes of all cases on a device, from which inputs are resampled in batches; moving volumes are padded to a common size."""

    def __init__(self, cases: Sequence[RigidCase], device: torch.device) -> None:
        plain = all(case.moving.array.dtype == np.uint8 for case in cases)
        largest = np.max([case.moving.geometry.shape for case in cases], axis=0).tolist()
        self.device, self.grid = device, cases[0].fixed.shape
        self.fixed = torch.stack([torch.from_numpy(case.fixed) for case in cases])[:, None].to(device)
        self.moving = torch.zeros((len(cases), 1, *largest), dtype=torch.uint8 if plain else torch.float16, device=device)
        for row, case in enumerate(cases):
            z, y, x = case.moving.geometry.shape
            self.moving[row, 0, :z, :y, :x] = torch.from_numpy(case.moving.array).to(self.moving.dtype).to(device)
        self.sizes = torch.tensor([case.moving.geometry.size for case in cases], dtype=torch.float32, device=device)
        self.scales = torch.tensor([case.scale for case in cases], dtype=torch.float32, device=device).view(-1, 1, 1, 1, 1)
        self._to_mm = np.stack([_index_to_mm(case.region) for case in cases])
        self._to_moving = np.stack([np.linalg.inv(_index_to_mm(case.moving.geometry)) for case in cases])

    def inputs(self, rows: np.ndarray, transforms: np.ndarray) -> torch.Tensor:
        """Network input `(b, 2, z, y, x)` of the cases `rows` `(b,)`: the moving volumes are those seen through `transforms` `(b, 4, 4)`.

        Transforms map fixed to moving points in mm. Each sample is scaled to [0, 1] by one minimum and one maximum over both channels.
        """
        where = self._on_device(rows)
        return scaled_jointly(torch.cat([self.fixed[where].float(), self._seen(rows, transforms)[0]], dim=1))

    def aligned(self, rows: np.ndarray, transforms: np.ndarray, moved: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs in which both volumes are moved alike, and where both are known, `(b, z, y, x)` bool.

        Channel 0 is sampled at `moved` x, channel 1 at `transforms` `moved` x, both `(b, 4, 4)`.
        """
        where = self._on_device(rows)
        shape = torch.tensor(self.grid[::-1], dtype=torch.float32, device=self.device).expand(len(rows), 3)
        maps = np.linalg.inv(self._to_mm[rows]) @ moved @ self._to_mm[rows]
        fixed, known = resampled(self.fixed, where, self._maps(maps), shape, self.grid)
        seen, known_too = self._seen(rows, transforms @ moved)
        return scaled_jointly(torch.cat([fixed, seen], dim=1)), known & known_too

    def _seen(self, rows: np.ndarray, transforms: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        where = self._on_device(rows)
        maps = self._maps(self._to_moving[rows] @ transforms @ self._to_mm[rows])
        values, inside = resampled(self.moving, where, maps, self.sizes[where], self.grid)
        return values * self.scales[where], inside

    def _maps(self, matrices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(matrices[:, :3].astype(np.float32)).to(self.device)

    def _on_device(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(self.device)


def resampled(
    volumes: torch.Tensor, rows: torch.Tensor, maps: torch.Tensor, sizes: torch.Tensor, grid: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(b, 1, *grid)` float32, linear, 0 outside, and which samples are inside, `(b, *grid)`.

    Sample (x, y, z) is taken at index `maps` (x, y, z, 1) of the volume `rows` `(b,)` of `(n, 1, Z, Y, X)`, of which only `sizes` `(b, 3)`
    `(x, y, z)` counts, the rest being padding. As in ITK a point within half a voxel beyond the outer voxel centres is inside and takes
    the border's value. Volumes are read where samples lie alone: there are far fewer of these than voxels.
    """
    z, y, x = (torch.arange(n, dtype=torch.float32, device=maps.device).view(n, *[1] * (2 - axis)) for axis, n in enumerate(grid))
    volumes = volumes.contiguous()
    first, inside, axes = volumes.stride(0) * rows.view(-1, 1, 1, 1), True, []
    # axis by axis: three numbers side by side a sample would be far slower to reckon with
    for axis, stride in enumerate(volumes.stride()[:1:-1]):
        by_x, by_y, by_z, shift = maps[:, axis, :, None, None, None].unbind(1)
        size = sizes[:, axis, None, None, None]
        index = (shift + z * by_z) + (y * by_y + x * by_x)
        inside = (index >= -0.5) & (index < size - 0.5) & inside
        place = torch.minimum(index.clamp_(min=0), size - 1)
        low = torch.minimum(place.floor(), (size - 2).clamp(min=0))
        first = first + low.long() * stride
        axes.append((stride * (size > 1), place.sub_(low)))  # a single voxel has no neighbour
    return (interpolated(volumes.flatten(), first, axes) * inside)[:, None], inside


def scaled_jointly(volumes: torch.Tensor) -> torch.Tensor:
    """`(b, 2, z, y, x)` to [0, 1] by one minimum and one maximum a sample, as the authors do; a constant sample becomes 0."""
    flat = volumes.flatten(1)
    low, high = (end.view(-1, 1, 1, 1, 1) for end in torch.aminmax(flat, dim=1))
    return (volumes - low) / (high - low).clamp(min=1e-6)


def _channel(fixed: Volume, labels: Volume | None, region: Geometry, how: Preparation) -> np.ndarray:
    """Channel 0 on the region, float16, from 0 to 1: the moving volume's largest value."""
    if how.input == "label":
        if labels is None:
            raise ConcordError(f"{fixed.name}: no label map; expected the organ's: this network sees labels instead of the fixed image")
        source = labels.with_array((labels.array != 0).astype(np.float32))
    else:
        low, high = _window(fixed.array, how.cut)
        source = fixed.with_array(np.clip((fixed.array.astype(np.float32) - low) / (high - low), 0, 1))
    return resample(source, region).array.astype(np.float16)


def _window(array: np.ndarray, cut: float) -> tuple[float, float]:
    """The least value, and the one that a share of `cut` exceeds; the largest where hardly anything is brighter than the rest."""
    rank = min(array.size - 1, int((1 - cut) * array.size))
    low, high = float(array.min()), float(np.partition(array, rank, axis=None)[rank])
    return low, high if high > low else float(array.max())


def _stored(moving: Volume) -> tuple[Volume, float]:
    """Samples as they are kept on the device, and their unit."""
    peak = max(abs(float(moving.array.min())), abs(float(moving.array.max())))
    if moving.array.dtype == np.uint8:
        return moving, 1 / peak
    return moving.with_array((moving.array / np.float32(peak)).astype(np.float16)), 1.0


def _index_to_mm(geometry: Geometry) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = geometry.index_to_physical, geometry.origin_mm
    return matrix


def _read(case: Case, how: Preparation) -> RigidCase:
    from pipeline.surfaces import read_stl, require_inside

    for column in NEEDED:
        if getattr(case, column) is None:
            raise ConcordError(f"case {case.case}: no {column}; expected the column to be filled for training: choose another dataset or split")
    fixed, moving, labels = (read_volume(path) for path in (case.fixed, case.moving, case.fixed_labels))
    if not labels.geometry.matches(fixed.geometry):
        sizes = f"labels of size {labels.geometry.size} are not on the grid of {fixed.name} {fixed.geometry.size}"
        raise ConcordError(f"{labels.name}: {sizes}; expected the same grid: resample them (nearest)")
    truth = rigid_matrix(read_transform(case.true_transform), str(case.true_transform))
    made = rigid_case(fixed, moving, labels, how, labels=labels, truth=truth)
    paths: list[Path] = [case.fixed, case.moving, *(getattr(case, column) for column in NEEDED)]
    triangles = read_stl(case.fixed_surface)
    require_inside(triangles, fixed.geometry, str(case.fixed_surface))
    return replace(made, name=case.case, vertices_mm=triangles.reshape(-1, 3), files=tuple((path.name, file_sha256(path)) for path in paths))
