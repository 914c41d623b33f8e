"""Batches of image pairs, augmented on the device, all items at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from metrics.similarity.mind import gaussian_taps, smoothed
from nets.fields import identity_grid, warp
from pipeline.errors import ConcordError
from pipeline.learned.field_cases import FieldCase
from pipeline.learned.settings.field import Augmentation

ORDER, AUGMENT = range(2)
"""Streams of random numbers, so that none depends on how much another has drawn."""


@dataclass(frozen=True, eq=False)
class FieldBatch:
    """`images` `(b, 2, y, x)`, channel 0 fixed and 1 moving, and their `labels` `(b, 2, y, x)` where known, float32."""

    images: torch.Tensor
    labels: torch.Tensor | None


class FieldBatches:
    """Batches from cases on a device. What is drawn is a function of the seed and of the place in the training alone.

    `labels` says whether batches have them. Raises `ConcordError` for a case without, where they are asked for.
    """

    def __init__(self, cases: Sequence[FieldCase], *, labels: bool, seed: int, device: torch.device) -> None:
        self.cases, self.seed, self.device = cases, seed, device
        self.images = torch.from_numpy(np.stack([case.images for case in cases])).to(device)
        self.labels = torch.from_numpy(_labels_of(cases)).to(device) if labels else None

    @property
    def structures(self) -> torch.Tensor:
        """Labels other than 0 that occur, ascending, `(L,)`; empty without label maps."""
        found = torch.zeros(0) if self.labels is None else self.labels.unique()
        return found[found != 0].to(self.device)

    def training(self, epoch: int, number: int, *, batch: int, augmentation: Augmentation) -> FieldBatch:
        """Batch `number` of an epoch in which every pair is shown once, augmented, in a new order each epoch."""
        order = np.random.default_rng([self.seed, ORDER, epoch]).permutation(len(self.cases))
        rows = torch.from_numpy(order[number * batch : (number + 1) * batch]).to(self.device)
        rng = np.random.default_rng([self.seed, AUGMENT, epoch, number])
        return augmented(FieldBatch(self.images[rows], None if self.labels is None else self.labels[rows]), augmentation, rng)

    def both_directions(self, batch: int) -> Iterator[FieldBatch]:
        """Every pair as it is and with the images exchanged, in batches."""
        for tensors in zip(*(stack.split(batch) for stack in (self.images, self.labels) if stack is not None), strict=True):
            for turned in (tensors, tuple(tensor.flip(1) for tensor in tensors)):
                yield FieldBatch(turned[0], turned[1] if len(turned) > 1 else None)


def augmented(batch: FieldBatch, how: Augmentation, rng: np.random.Generator) -> FieldBatch:
    """The batch under random maps and exchanges: one map an item, drawn on the CPU, applied on the batch's device.

    Images are interpolated linearly and label maps not; beyond the border stands the outermost voxel.
    """
    displacement = drawn_maps(batch.images, how, rng)
    swapped = torch.from_numpy(rng.random(len(batch.images)) < 0.5 * how.swap).to(batch.images.device).view(-1, 1, 1, 1)
    moved = [warp(batch.images, displacement)]
    if batch.labels is not None:
        moved.append(warp(batch.labels, displacement, interpolation="nearest"))
    moved = [torch.where(swapped, maps.flip(1), maps) for maps in moved]
    return FieldBatch(moved[0], moved[1] if len(moved) > 1 else None)


def drawn_maps(images: torch.Tensor, how: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """Displacements `(b, 2, y, x)` in voxels: deform, then mirror, rotate, and shrink to a random part of the image."""
    count, (y, x) = len(images), images.shape[2:]
    angle = np.radians(how.rotation_deg) * rng.uniform(-1, 1, count)
    edge = rng.uniform(*how.crop, count)
    signs = np.where(rng.random((2, count)) < 0.5 * how.flip, -1, 1)
    centre = np.array([x - 1, y - 1]) / 2
    shift = rng.uniform(-1, 1, (count, 2)) * (1 - edge[:, None]) * centre
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * signs * edge  # (2, 2, b)
    noise = rng.standard_normal((count, 2, y, x), dtype=np.float32)

    matrix, shift, middle, noise = (
        torch.from_numpy(np.asarray(a, dtype=np.float32)).to(images.device) for a in (np.moveaxis(turn, -1, 0), shift, centre, noise)
    )
    grid, middle = identity_grid(images), middle.view(1, 2, 1, 1)
    about = grid - middle + how.deform_vx * low_passed(noise, how.deform_sigma_vx)
    return torch.einsum("bij,bjyx->biyx", matrix, about) + middle + shift[:, :, None, None] - grid


def low_passed(noise: torch.Tensor, sigma_vx: float) -> torch.Tensor:
    """White noise `(b, c, [z,] y, x)` of variance 1 after a Gaussian, brought back to variance 1 away from the border."""
    dimension = noise.ndim - 2
    taps = gaussian_taps(sigma_vx, int(np.ceil(3 * sigma_vx)))
    gain = prod([(taps[0] ** 2 + 2 * sum(tap**2 for tap in taps[1:])) ** 0.5] * dimension)
    return smoothed(noise, taps, range(dimension)) / gain


def _labels_of(cases: Sequence[FieldCase]) -> np.ndarray:
    for case in cases:
        if case.labels is None:
            raise ConcordError(f"case {case.name}: no label maps; expected fixed_labels and moving_labels: choose another loss or dataset")
    return np.stack([case.labels for case in cases]).astype(np.float32)
