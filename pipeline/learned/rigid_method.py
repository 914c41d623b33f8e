"""Networks of rigid registration as a method: one prediction a stage, each from where the stage before has come to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from pipeline.errors import ConcordError
from pipeline.learned.network_method import RefinedNetwork, trace_network
from pipeline.methods import Pair, Run
from pipeline.optimise.method import OptimiserLoop
from pipeline.region import outer_corners_mm, region_grid, region_mask, touches_border
from pipeline.rigid_motion import draw_motions, linear_of, motion_matrix, motion_parameters, rigid_matrix
from pipeline.transforms import Linear, Transform
from pipeline.volumes import Volume

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.learned.settings.rigid import Preparation

JITTER_MM = (1.0, 2.0)
"""SRE, at the region's corners, of the motions whose predictions are averaged (ours)."""


class RigidNetwork(RefinedNetwork):
    """Attention-Reg and its peers (Song et al., MICCAI 2021): rigid registration of an organ by networks, 3-D.

    The paper has two stages, the second fitted to small errors. Averages, and a rigid run of the loop afterwards, are ours.
    """

    learner: ClassVar[str] = "rigid-network"
    refinement: ClassVar[Mapping[str, Any]] = {"stages": ("rigid",), "initialise": "none"}

    weights: tuple[Path, ...] = Field((), description="trained weights (.safetensors), one file a stage, in order")
    enlarge: float = Field(
        0.3, ge=0, description="the fixed mask is the organ's; the region is its box, so much larger on each side. 0: it is the region"
    )
    averages: int = Field(1, ge=1, le=256, description="predictions a stage, each from a start moved by 1 to 2 mm, averaged (ours)")

    @field_validator("weights", mode="before")
    @classmethod
    def _one_stage(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str | Path) else given

    @field_validator("refine")
    @classmethod
    def _only_rigid(cls, given: OptimiserLoop | None) -> OptimiserLoop | None:
        if given is not None and given.stages != ("rigid",):
            raise ValueError(f"stages {list(given.stages)}: expected [rigid], as the result is a rigid transform")
        return given

    @property
    def uses_labels(self) -> bool:
        """Whether one of the networks sees the label map in place of the fixed image."""
        return any(_card(file).get("input") == "label" for file in self.weights)

    @property
    def files(self) -> dict[str, Path]:
        """The trained weights of every stage, and what the loop reads."""
        return {f"weights_{number}": file for number, file in enumerate(self.found(self.weights), start=1)} | super().files

    def load(self) -> None:
        """torch, the networks with their weights, and a first run of each on zeros: what follows is warm."""
        from pipeline.learned import rigid  # noqa: F401

        if all(file.exists() for file in self.weights):  # what is wrong with the request is told by the registration
            for network, how in self.networks:
                _warm_up(network, how, self.averages, self.chosen_device)
        super().load()

    @cached_property
    def networks(self) -> tuple[tuple[nn.Module, Preparation], ...]:
        """The network of every stage on its device, and how its input is made; read once."""
        from pipeline.learned.rigid import load_rigid
        from pipeline.learned.rigid_training import layout_of

        loaded = [load_rigid(file)[:2] for file in self.weights]
        device = self.chosen_device
        return tuple((network.to(device, memory_format=layout_of(network, device)), how) for network, how in loaded)

    def register(self, pair: Pair, run: Run) -> Transform:
        """The rigid transform from fixed to moving points. `run.trace` gains a row a stage; `spread_mm` is how far the averages disagree.

        The row's `inference_ms` is `resampling_ms`, the moving volume seen from where the stage starts, and `network_ms`; `prepare_ms`, reading
        the fixed region and moving both volumes to the device, is told beside it. They are warm after `load`.

        Raises `ConcordError` for no weights, weights that do not fit, 2-D pairs, and masks that are missing, empty or cut off by the border.
        """
        from pipeline.learned.fitting import reproducible

        self._check(pair)
        found = np.eye(4)
        with reproducible(run.threads):
            for number in range(1, len(self.weights) + 1):
                run.report(f"network, stage {number} of {len(self.weights)}", (number - 1) / len(self.weights))
                found = self._stage(number, pair, found, run)
        region = self._region(pair)
        result = linear_of(found, _centre(region))
        return result if self.refine is None else _rigid(self.refined(replace(pair, fixed_mask=region), result, run), _centre(region))

    def _stage(self, number: int, pair: Pair, before: np.ndarray, run: Run) -> np.ndarray:
        """The transform after one network, from the one before it."""
        from pipeline.learned.laps import Laps
        from pipeline.learned.rigid_cases import RigidVolumes, rigid_case

        network, how = self.networks[number - 1]
        laps = Laps(self.chosen_device)
        how = how.cut_from(self.enlarge, self.weights[number - 1])
        case = rigid_case(pair.fixed, pair.moving, pair.fixed_mask, how, labels=self._labels(pair) if how.input == "label" else None)
        corners = outer_corners_mm(case.region)
        jitter = self._jitter(corners, case.centre_mm, np.random.default_rng([run.seed, number]))
        starts = before @ np.linalg.inv(jitter)
        volumes = RigidVolumes([case], laps.device)
        laps.mark("prepare_ms")
        inputs = volumes.inputs(np.zeros(len(starts), int), starts)
        laps.mark("resampling_ms")
        answers = _answers(network, inputs)
        laps.mark("network_ms")
        answers = motion_matrix(answers, case.centre_mm) @ jitter
        # averaged about the region's centre, where translation and rotation hang together least
        motion = motion_matrix(motion_parameters(answers, case.region.centre_mm).mean(0), case.region.centre_mm)
        ways = _moved(np.linalg.inv(answers), corners) - _moved(np.linalg.inv(motion), corners)
        step = _moved(np.linalg.inv(motion), corners) - corners
        distances = {"step_mm": _length(step), "spread_mm": _length(ways) if self.averages > 1 else np.nan}
        parts = ("resampling_ms", "network_ms")
        trace_network(run, network, laps, stage=f"network {number}", inference=parts, value=np.nan, gradient_norm=np.nan, **distances)
        return before @ np.linalg.inv(motion)

    def _jitter(self, corners: np.ndarray, centre_mm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Motions `(averages, 4, 4)` that starts are moved by; the first is none."""
        motions = draw_motions(rng, rng.uniform(*JITTER_MM, self.averages - 1), corners, centre_mm)
        return motion_matrix(np.concatenate([np.zeros((1, 6)), motions]), centre_mm)

    def _check(self, pair: Pair) -> None:
        if not self.weights:
            raise self.missing()
        if pair.fixed.dimension != 3:
            raise ConcordError(f"{pair.fixed.name}: {pair.fixed.dimension}-D; expected 3-D volumes: choose another method")
        if pair.moving_mask is not None and self.refine is None:
            raise ConcordError(f"{pair.moving_mask.name}: the networks take no moving mask and would ignore it; leave it out, or set refine")
        if (mask := pair.fixed_mask) is None:
            raise ConcordError(f"{pair.fixed.name}: no mask; expected the organ's, from which the region is cut: give --fixed-mask")
        if not mask.array.any():
            raise ConcordError(f"{mask.name}: the mask is empty; expected the organ's voxels to be non-zero: outline it first")
        if self.enlarge and touches_border(mask):
            raise ConcordError(
                f"{mask.name}: the mask reaches the volume's border, so the organ may be cut off; expected a margin: take a larger field of view, or "
                "set enlarge to 0 where the mask is the region itself"
            )

    def _labels(self, pair: Pair) -> Volume:
        """The organ's label map: the pair's own, or the mask where that is the organ's."""
        known = pair.fixed_mask if pair.fixed_labels is None and self.enlarge else pair.fixed_labels
        if known is None:
            raise ConcordError(
                f"{pair.fixed.name}: no label map, which these weights need; expected the fixed labels, or the organ's mask and enlarge above 0"
            )
        if not known.geometry.matches(pair.fixed.geometry):
            raise ConcordError(f"{known.name}: labels are not on the grid of {pair.fixed.name}; resample them (nearest)")
        return known

    def _region(self, pair: Pair) -> Volume:
        return region_mask(pair.fixed_mask, self.enlarge)


def _warm_up(network: nn.Module, how: Preparation, averages: int, device: torch.device) -> None:
    """One run on zeros, resampling and all: libraries choose their kernels and claim memory at the first."""
    import torch

    from pipeline.learned.rigid_cases import resampled

    shape = torch.tensor(how.size, dtype=torch.float32, device=device).expand(averages, 3)
    maps = torch.eye(4, device=device)[:3].expand(averages, 3, 4)
    volumes, _ = resampled(
        torch.zeros((1, 1, *how.grid), device=device), torch.zeros(averages, dtype=torch.long, device=device), maps, shape, how.grid
    )
    _answers(network, volumes.expand(-1, 2, -1, -1, -1))


def _answers(network: nn.Module, volumes: torch.Tensor) -> np.ndarray:
    """The network's parameters `(n, 6)`, a few samples at a time."""
    import torch

    from pipeline.learned.rigid_training import layout_of

    layout = layout_of(network, volumes.device)
    with torch.no_grad():
        parts = [network(part.contiguous(memory_format=layout)).float() for part in volumes.split(8)]
    return torch.cat(parts).double().cpu().numpy()


def _card(weights: Path) -> Mapping[str, Any]:
    """The card beside the weights, without torch; nothing where there is none, which loading the weights tells better."""
    try:
        card = json.loads(weights.with_name(weights.name.removesuffix(".safetensors") + ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def _centre(region: Volume) -> np.ndarray:
    return region_grid(region, (1, 1, 1)).centre_mm


def _moved(matrices: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ np.swapaxes(matrices[..., :3, :3], -1, -2) + matrices[..., None, :3, 3]


def _length(ways: np.ndarray) -> float:
    """Root mean square length."""
    return float(np.sqrt(np.square(ways).sum(-1).mean()))


def _rigid(found: Transform, centre_mm: np.ndarray) -> Linear:
    return linear_of(rigid_matrix(found, "refine"), centre_mm)
