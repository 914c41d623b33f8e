"""Networks that predict a dense displacement as a method: one pass, by a network that has not seen the subject."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field as Setting
from pydantic import field_validator

from pipeline.errors import ConcordError
from pipeline.learned.network_method import RefinedNetwork, trace_network
from pipeline.methods import Pair, Run
from pipeline.resampling import resample
from pipeline.transforms import Field, Transform
from pipeline.volumes import GRID_TOLERANCE, Volume

if TYPE_CHECKING:
    import torch
    from torch import nn

SLICES_AT_ONCE = 8
"""Slices of a stack that go through the network together (ours)."""


class FieldNetwork(RefinedNetwork):
    """ReSAtt U-Net and its peers (Parbs et al.): a dense field of 2-D images of one modality, predicted in one pass.

    With the weights of a cross-validation, one file a fold, a pair is registered by a network that was not fitted to its subject. The network
    is convolutional and runs on the fixed image's grid, whatever its size, but what it has learned of shapes is in voxels: images should
    have about the voxel size that it was fitted to. Each image is scaled to [0, 1], as in training.

    `refine` is for 2-D pairs, and a B-spline by correlation unless told otherwise.
    """

    takes_masks: ClassVar[bool] = False
    learner: ClassVar[str] = "field-network"
    refinement: ClassVar[Mapping[str, Any]] = {"stages": ("bspline",), "similarity": "ncc"}

    weights: tuple[Path, ...] = Setting((), description="trained weights (.safetensors), one file, or one a fold of a cross-validation")
    slicewise: bool = Setting(
        False, description="register 3-D stacks on a common set of slices slice by slice, with no displacement across them (ours)"
    )

    @field_validator("weights", mode="before")
    @classmethod
    def _one_file(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str | Path) else given

    @property
    def files(self) -> dict[str, Path]:
        """The trained weights of every fold, and what the loop reads."""
        return {f"weights_{number}": file for number, file in enumerate(self.found(self.weights), start=1)} | super().files

    def load(self) -> None:
        """torch, the networks with their weights, and a first run of each on zeros: what follows is warm."""
        import torch

        super().load()
        if not self.weights:  # none given, which the registration tells better
            return
        for network, _ in self.networks:
            _predicted(network, torch.zeros((1, 2, 16, 16), device=self.chosen_device))

    @cached_property
    def networks(self) -> tuple[tuple[nn.Module, frozenset[str]], ...]:
        """The network of every file on the device, and the subjects that it was fitted to; read once."""
        from pipeline.learned.field import load_field

        loaded = [load_field(file) for file in self.weights]
        return tuple((network.to(self.chosen_device), frozenset(card["subjects"]["train"])) for network, card in loaded)

    def register(self, pair: Pair, run: Run) -> Transform:
        """The field on the fixed grid, from fixed to moving points. `run.trace` gains a row with `inference_ms`, warm after `load`.

        A moving image on another grid is resampled onto the fixed one first. Raises `ConcordError` for no weights, weights that do not fit or
        have all seen the subject, and 3-D pairs without `slicewise` or with other slices.
        """
        import torch

        from pipeline.learned.field_cases import scaled
        from pipeline.learned.fitting import reproducible
        from pipeline.learned.laps import Laps

        self._check(pair)
        network, laps, grid = self._unseen(pair.subjects), Laps(self.chosen_device), pair.fixed.geometry
        moving = pair.moving.with_array(scaled(pair.moving))
        stacks = (scaled(pair.fixed), moving.array if moving.geometry.matches(grid) else resample(moving, grid).array)
        with reproducible(run.threads):
            images = torch.from_numpy(np.stack([stack.reshape(-1, *grid.shape[-2:]) for stack in stacks], axis=1)).to(laps.device)
            laps.mark("prepare_ms")
            displacement_vx = _predicted(network, images)
            laps.mark("network_ms")
        trace_network(run, network, laps)
        in_plane = displacement_vx.reshape(*grid.shape, 2)
        still = _constant(stacks)
        in_plane[still] = 0
        return self.refined(pair, Field(in_plane @ grid.index_to_physical[:, :2].T, grid), run)

    def _unseen(self, subjects: Iterable[str]) -> nn.Module:
        """The first network that was fitted to none of the subjects: for a subject of no fold, or of no name, the first of all (ours)."""
        subjects = tuple(subjects)
        for network, known in self.networks:
            if known.isdisjoint(subjects):
                return network
        raise ConcordError(
            f"weights: every network was fitted to subject {' or '.join(subjects)}; expected one that was not: give the weights of the fold that holds it out"
        )

    def _check(self, pair: Pair) -> None:
        if not self.weights:
            raise self.missing()
        if pair.fixed.dimension == 2:
            return
        if self.refine is not None:
            raise ConcordError(f"{pair.fixed.name}: 3-D, and refine is for 2-D pairs; leave it out")
        if not self.slicewise:
            raise ConcordError(
                f"{pair.fixed.name}: 3-D, and the networks are 2-D; set slicewise to register slice by slice, or choose another method"
            )
        if not _same_slices(pair.fixed, pair.moving):
            raise ConcordError(
                f"{pair.moving.name}: its slices are not those of {pair.fixed.name}; expected stacks that match along z: resample the moving one"
            )


def _predicted(network: nn.Module, images: torch.Tensor) -> np.ndarray:
    """Displacements `(n, y, x, 2)` in voxels of pairs `(n, 2, y, x)`, a few at a time."""
    import torch

    with torch.no_grad():
        parts = [network(part).float() for part in images.split(SLICES_AT_ONCE)]
    return torch.cat(parts).movedim(1, -1).double().cpu().numpy()


def _constant(stacks: Iterable[np.ndarray]) -> np.ndarray:
    """Slices without contrast in one of the images, which say nothing about where they belong, `([z])` bool."""
    return np.any([stack.max(axis=(-2, -1)) == stack.min(axis=(-2, -1)) for stack in stacks], axis=0)


def _same_slices(fixed: Volume, moving: Volume) -> bool:
    """Whether slice k of one lies in the plane of slice k of the other."""
    if fixed.geometry.size[2] != moving.geometry.size[2]:
        return False
    corners = fixed.geometry.corners_vx()
    seen = moving.geometry.index_at(fixed.geometry.points_at(corners))
    return bool(np.abs(seen[:, 2] - corners[:, 2]).max() <= GRID_TOLERANCE)
