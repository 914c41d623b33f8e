"""A network of rigid registration on its way: weights, optimiser, learning curve, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from nets.rigid_networks import build
from pipeline.learned.epochs import EpochTraining, Groups, Progress
from pipeline.learned.fitting import untimed
from pipeline.learned.rigid_batches import Batch, RigidBatches, vertex_distance_mm
from pipeline.learned.rigid_cases import RigidCase
from pipeline.learned.rigid_pretraining import pretrain
from pipeline.learned.weights import load_into

if TYPE_CHECKING:
    from pipeline.learned.settings.rigid import RigidFit

CURVE = (
    "epoch",
    "train_loss",
    "validation_loss",
    "validation_sre_mm",
    "validation_average_sre_mm",
    "validation_start_sre_mm",
    "seconds",
    "samples_per_second",
)
Tensors = dict[str, torch.Tensor]


@dataclass
class _Progress(Progress):
    pretraining_loss: float | None = None
    best_sre_mm: float | None = None
    best_row: int | None = None
    averaged: bool = False
    """Whether the best weights are the average."""


class RigidTraining(EpochTraining):
    """Fits one network to cases; `run` does it, `chosen` and `scores` give what came of it."""

    columns = CURVE
    settings: RigidFit
    progress: _Progress

    def __init__(
        self,
        settings: RigidFit,
        train: Sequence[RigidCase],
        validation: Sequence[RigidCase],
        *,
        seed: int,
        device: torch.device,
        start: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        same: dict[str, Any] = {"seed": seed, "device": device}
        self.batches = RigidBatches(train, settings.perturbation, **same)
        self.held_out = RigidBatches(validation, settings.perturbation, **same) if validation else None
        self.starts = self.held_out.validation(settings.validation_draws) if self.held_out else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build(settings.network, settings.preparation.grid, attention_scale=settings.attention_scale)
        if start is not None:
            load_into(network, start, settings.warm_start)
        self._layout = layout_of(network, device)
        self.average: Tensors = {}
        self.best: Tensors = {}
        network = network.to(device, memory_format=self._layout)
        super().__init__(settings, network, settings.draws_per_epoch or len(train), progress=_Progress())

    def chosen(self) -> Tensors:
        """The final weights."""
        return self.best or self.network.state_dict()

    def scores(self) -> dict[str, Any]:
        """The learning curve's row of the final weights; `averaged` tells whether they are the average."""
        progress = self.progress
        row = progress.curve[-1 if progress.best_row is None else progress.best_row]
        more = {"averaged": progress.averaged} if self.settings.average is not None else {}
        return untimed(row) | more | ({} if progress.pretraining_loss is None else {"pretraining_loss": progress.pretraining_loss})

    def _begin(self) -> bool:
        how = self.settings.pretrain
        if how is not None:
            self.progress.pretraining_loss = pretrain(self.network, self.batches, how, batch=self.settings.batch, precision=self.settings.precision)
        if self.settings.average is not None:
            self.average = self._copied()
        return how is not None

    def _draw(self, step: int) -> Batch:
        epoch, number = divmod(step, self.steps)
        return self.batches.training(epoch, number, draws=self.samples, batch=self.settings.batch)

    def _tired(self) -> bool:
        patience, best = self.settings.patience, self.progress.best_row
        return patience is not None and best is not None and self.progress.epoch - 1 - best >= patience

    def _rate(self) -> float:
        return self.settings.rate(self.progress.epoch, self.progress.step / (self.settings.epochs * self.steps))

    def _loss_of(self, batch: Batch) -> torch.Tensor:
        return self._loss(self._predicted(batch.volumes), batch).mean()

    def _step(self, batch: Batch) -> torch.Tensor:
        loss = super()._step(batch)
        if self.settings.average is not None:
            # the early average forgets faster: the weights it began with are worth nothing
            step = self.progress.step
            self._follow(min(self.settings.average, (1 + step) / (10 + step)))
        return loss

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        now = self.network.state_dict()
        moving = [name for name, tensor in now.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.average[name] for name in moving], [now[name] for name in moving], 1 - decay)
        for name in now.keys() - set(moving):
            self.average[name].copy_(now[name])

    def _predicted(self, volumes: torch.Tensor, weights: Tensors | None = None) -> torch.Tensor:
        volumes = volumes.contiguous(memory_format=self._layout)
        with torch.autocast(volumes.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            found = self.network(volumes) if weights is None else functional_call(self.network, weights, (volumes,))
        return found.float()

    def _loss(self, predicted: torch.Tensor, batch: Batch) -> torch.Tensor:
        """`(b,)`: the squared error of the six numbers, mm and degrees alike (the authors'), or the distance of vertices in mm."""
        if self.settings.loss == "mse":
            return (predicted - batch.targets).square().mean(1)
        return vertex_distance_mm(predicted, batch.targets, batch.vertices_mm)

    def _looked(self) -> dict[str, float]:
        """Loss and SRE on the held-out starting positions, or nothing where there are none; keeps the best weights."""
        if self.held_out is None:
            return {}
        self.network.eval()
        loss, sre = self._held_out_scores(None)
        row = {"validation_loss": loss, "validation_sre_mm": sre}
        self._keep_if_best(sre, averaged=False)
        if self.settings.average is not None:
            row["validation_average_sre_mm"] = self._held_out_scores(self.average)[1]
            self._keep_if_best(row["validation_average_sre_mm"], averaged=True)
        return row | {"validation_start_sre_mm": float(self.held_out.sre_mm(self.starts, np.zeros((len(self.starts.rows), 6))).mean())}

    @torch.no_grad()
    def _held_out_scores(self, weights: Tensors | None) -> tuple[float, float]:
        held_out, starts = self.held_out, self.starts
        losses, answers = [], []
        for first in range(0, len(starts.rows), self.settings.batch):
            batch = held_out.batch(starts.part(first, first + self.settings.batch))
            predicted = self._predicted(batch.volumes, weights)
            losses.append(self._loss(predicted, batch))
            answers.append(predicted)
        sre = held_out.sre_mm(starts, torch.cat(answers).double().cpu().numpy())
        return float(torch.cat(losses).double().mean()), float(sre.mean())

    def _keep_if_best(self, sre: float, *, averaged: bool) -> None:
        progress = self.progress
        if progress.best_sre_mm is None or sre < progress.best_sre_mm:
            progress.best_sre_mm, progress.best_row, progress.averaged = sre, len(progress.curve), averaged
            self.best = self._copied(self.average if averaged else None)

    def _copied(self, weights: Tensors | None = None) -> Tensors:
        return {name: tensor.clone() for name, tensor in (weights or self.network.state_dict()).items()}

    def _groups(self) -> dict[str, Mapping[str, torch.Tensor]]:
        return super()._groups() | {"average": self.average, "best": self.best}

    def _restore(self, groups: Groups, progress: Mapping[str, Any]) -> None:
        super()._restore(groups, progress)
        # in the network's own memory layout, which the last bits of convolutions depend on
        now = self.network.state_dict()
        self.average = {name: torch.empty_like(now[name]).copy_(tensor) for name, tensor in groups["average"].items()}
        self.best = dict(groups["best"])


def layout_of(network: nn.Module, device: torch.device) -> torch.memory_format:
    """How samples lie in memory: channels last makes 3-D convolutions on a CPU about twice as fast."""
    volumetric = any(parameter.ndim == 5 for parameter in network.parameters())
    return torch.channels_last_3d if volumetric and device.type == "cpu" else torch.contiguous_format
