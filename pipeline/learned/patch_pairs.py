"""Pairs of patches drawn online from aligned volumes: the training data of the deep metric (Simonovsky et al., MICCAI 2016, sec. 2.2).

A batch depends on the seed and its own number alone, never on the batches before it: a fit can stop and go on, and batches can be
drawn ahead, without a bit of difference. All volumes of a channel stand on each other in one tall volume, so that a single
interpolation draws the whole batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.errors import ConcordError
from pipeline.learned.settings.patch_metric import PatchPairSettings

ALIGNED, MISALIGNED = -1.0, 1.0
_STREAMS = {"train": 0, "validation": 1}
Normalisation = tuple[tuple[float, float], tuple[float, float]]
"""Mean and standard deviation of both channels, of intensities in [0, 1]."""


@dataclass(frozen=True, eq=False)
class AlignedPair:
    """Intensities of two aligned volumes `([z,] y, x)` on one grid; `files` are their names and SHA-256, where they come from files."""

    a: np.ndarray
    b: np.ndarray
    name: str
    files: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.a.shape != self.b.shape or self.a.ndim not in (2, 3):
            raise ConcordError(
                f"{self.name}: volumes of shape {self.a.shape} and {self.b.shape}; expected one grid, 2-D or 3-D: resample one of them"
            )

    def sha256(self) -> str:
        """Of the samples of both volumes."""
        digest = hashlib.sha256(str((self.a.shape, self.a.dtype.str, self.b.dtype.str)).encode())
        for volume in (self.a, self.b):
            digest.update(np.ascontiguousarray(volume).data)
        return digest.hexdigest()


def unit_range(array: np.ndarray, name: str, mask: np.ndarray | None = None) -> np.ndarray:
    """Intensities mapped to [0, 1] by minimum and maximum (within the mask; values outside it are clipped), float32.

    Raises `ConcordError` where they are all the same.
    """
    counted = array if mask is None else array[mask != 0]
    if counted.size == 0:
        raise ConcordError(f"{name}: the mask is empty; expected non-zero voxels where the image counts")
    low, high = float(counted.min()), float(counted.max())
    if not high > low:
        raise ConcordError(f"{name}: every sample is {low:g}; a constant image cannot be normalised: leave the case out")
    unit = ((array.astype(np.float64) - low) / (high - low)).astype(np.float32)
    return unit if mask is None else np.clip(unit, 0, 1)


class PatchSampler:
    """Draws batches of patch pairs from aligned volumes.

    `normalisation` is that of the training volumes; by default it is measured on the given ones. Raises `ConcordError` for no pairs,
    2-D among 3-D, and constant volumes.
    """

    def __init__(
        self,
        pairs: Sequence[AlignedPair],
        settings: PatchPairSettings,
        *,
        seed: int,
        normalisation: Normalisation | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not pairs:
            raise ConcordError("no pairs to draw patches from; expected one aligned pair or more: is the split empty?")
        if len({pair.a.ndim for pair in pairs}) > 1:
            odd = next(pair for pair in pairs if pair.a.ndim != pairs[0].a.ndim)
            raise ConcordError(f"{odd.name} is {odd.a.ndim}-D, {pairs[0].name} is {pairs[0].a.ndim}-D; expected one dimension: fit them apart")
        self.settings, self._seed, self._device = settings, seed, torch.device(device)
        self.dimension = pairs[0].a.ndim
        self._shapes = torch.tensor([pair.a.shape for pair in pairs])
        self._last = self._shapes - 1.0
        channels = [[unit_range(volume, pair.name) for pair in pairs for volume in [getattr(pair, side)]] for side in ("a", "b")]
        self.normalisation = normalisation or tuple(_mean_and_deviation(volumes) for volumes in channels)
        self._tall = torch.cat([_tall_volume(volumes) for volumes in channels], 1).to(self._device)
        self._floor = 2 + int(self._shapes[:, 0].max())

    def batch(self, step: int, stream: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
        """Patches `(batch, 2, [z,] y, x)` and labels `(batch,)`, first the aligned half (-1), then the other (1); the same for the same step.

        Aligned channels share one draw of position, scale, rotation and mirroring; misaligned ones are drawn apart in the same pair
        of volumes, without restriction (the paper found any harmful).
        """
        state = np.random.SeedSequence((self._seed, step, _STREAMS[stream])).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        half = self.settings.batch // 2
        aligned, misaligned = torch.randint(len(self._shapes), (2, half), generator=generator)
        patches = [self._values(aligned, generator, slice(0, 2))]
        patches += [torch.cat([self._values(misaligned, generator, slice(side, side + 1)) for side in (0, 1)], 1)]
        labels = torch.tensor([ALIGNED, MISALIGNED], device=self._device).repeat_interleave(half)
        return self._finished(torch.cat(patches), generator), labels

    def _values(self, volume: torch.Tensor, generator: torch.Generator, sides: slice) -> torch.Tensor:
        """Patches `(n, sides, [z,] y, x)` in [0, 1] at one independent draw for each of the given volumes."""
        grid = self._grid(volume, generator).to(self._device)
        values = F.grid_sample(self._tall[:, sides], grid.flatten(0, 1)[None], mode="bilinear", align_corners=True)
        return values.unflatten(2, (len(volume), -1))[0].movedim(1, 0)

    def _grid(self, volume: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Sampled positions `(n, [z,] y, x, d)` as `grid_sample` wants them: in the tall volume, [-1, 1], last axis first."""
        matrix, centre, fits = self._draw(volume, generator)
        size = torch.tensor(self._tall.shape[2:]) - 1
        first = torch.ones(len(volume), self.dimension)
        first[:, 0] += self._floor * volume
        axis = torch.arange(self.settings.patch) - (self.settings.patch - 1) / 2
        grid = (2 * (first + centre) / size - 1).flip(-1).view(-1, *[1] * self.dimension, self.dimension)
        # innermost axis last: the sums before it are small
        for d in range(self.dimension):
            column = (2 * matrix[:, :, d] / size).flip(-1).view(-1, *[1] * self.dimension, self.dimension)
            grid = grid + axis.view(*[-1 if e == d else 1 for e in range(self.dimension)], 1) * column
        if fits:
            return grid
        low, high = ((2 * (first + end) / size - 1).flip(-1).view(-1, *[1] * self.dimension, self.dimension) for end in (0, self._last[volume]))
        return torch.minimum(torch.maximum(grid, low), high)

    def _draw(self, volume: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """Matrices `(n, d, d)` and centres `(n, d)` in voxels, array order, and whether every rotated cube lies within its volume.

        Where a cube is larger than the volume its centre is the volume's, and the border is repeated outside (ours; the paper is silent).
        """
        settings, dimension, count = self.settings, self.dimension, len(volume)
        low, high = settings.scale
        matrix = _rotations(count, dimension, settings.rotation_degrees, generator)
        matrix = matrix * (low + (high - low) * torch.rand(count, 1, 1, generator=generator))
        if settings.mirror:
            matrix = matrix * (2.0 * torch.randint(2, (count, 1, dimension), generator=generator) - 1)
        reach, last = (settings.patch - 1) / 2 * matrix.abs().sum(-1), self._last[volume]
        room = last - 2 * reach
        centre = torch.minimum(reach, last / 2) + room.clamp(min=0) * torch.rand(count, dimension, generator=generator)
        return matrix, centre, bool((room >= 0).all())

    def _finished(self, values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Patches `(batch, 2, [z,] y, x)` in [0, 1] with another contrast where asked for, normalised, and swapped where asked for."""
        shape = (len(values), 2, *[1] * self.dimension)
        if bound := self.settings.contrast:
            gain, gamma = (bound * (2 * torch.rand(2, *shape, generator=generator) - 1)).exp().to(self._device)
            values = gain * values.clamp(min=0) ** gamma
        mean, deviation = torch.tensor(self.normalisation, device=self._device).T.reshape(2, 1, *shape[1:])
        values = (values - mean) / deviation
        if self.settings.swap_channels:
            values[1::2] = values[1::2].flip(1)
        return values


def data_of(pairs: Iterable[AlignedPair]) -> list[dict[str, Any]]:
    """What a card says about the data: name, files with their SHA-256, and the SHA-256 of the samples."""
    return [{"name": pair.name, "files": dict(pair.files), "sha256": pair.sha256()} for pair in pairs]


def normalisation_card(channels: Sequence[str], normalisation: Normalisation) -> dict[str, Mapping[str, float]]:
    """The normalisation by the channels' names, as the card holds it."""
    return {name: {"mean": mean, "std": deviation} for name, (mean, deviation) in zip(channels, normalisation, strict=True)}


def _mean_and_deviation(volumes: Sequence[np.ndarray]) -> tuple[float, float]:
    """Over all voxels of all volumes (the authors estimate the same constants from sampled patches)."""
    count = sum(volume.size for volume in volumes)
    mean = sum(float(volume.sum(dtype=np.float64)) for volume in volumes) / count
    squares = sum(float(np.square(volume - np.float32(mean)).sum(dtype=np.float64)) for volume in volumes)
    return mean, (squares / count) ** 0.5


def _tall_volume(volumes: Sequence[np.ndarray]) -> torch.Tensor:
    """All volumes stacked along their first axis, `(1, 1, n [z,] y, x)`, each padded to the largest and by one voxel all round.

    Borders are repeated: rounding of coordinates in a tall volume must not let a neighbour shine through.
    """
    most = np.max([volume.shape for volume in volumes], axis=0)
    widths = ([(1, int(m - n) + 1) for m, n in zip(most, volume.shape, strict=True)] for volume in volumes)
    padded = [np.pad(volume, width, mode="edge") for volume, width in zip(volumes, widths, strict=True)]
    return torch.from_numpy(np.concatenate(padded))[None, None]


def _rotations(count: int, dimension: int, most_degrees: float, generator: torch.Generator) -> torch.Tensor:
    """Rotation matrices `(count, d, d)` by a uniform angle about a uniform axis (Rodrigues); in 2-D in the plane."""
    angle = np.radians(most_degrees) * (2 * torch.rand(count, 1, 1, generator=generator) - 1)
    axis = F.normalize(torch.randn(count, 3, generator=generator), dim=-1) if dimension == 3 else torch.tensor([[0.0, 0.0, 1.0]]).expand(count, 3)
    zero = torch.zeros(count)
    x, y, z = axis.unbind(-1)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(count, 3, 3)
    matrix = torch.eye(3) + angle.sin() * cross + (1 - angle.cos()) * cross @ cross
    return matrix[:, :dimension, :dimension]
