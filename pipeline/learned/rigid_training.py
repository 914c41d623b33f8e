"""A network of rigid registration on its way: weights, optimiser, learning curve, checkpoints."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from nets.rigid_networks import build
from pipeline.errors import ConcordError
from pipeline.files import write_text
from pipeline.learned.fitting import curve_csv, described, prefetched
from pipeline.learned.rigid_batches import Batch, RigidBatches, vertex_distance_mm
from pipeline.learned.rigid_cases import RigidCase
from pipeline.learned.rigid_pretraining import pretrain
from pipeline.learned.weights import beside, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from pipeline.learned.rigid import RigidFit

log = logging.getLogger(__name__)
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
class _Progress:
    """What a checkpoint holds beside tensors."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    pretraining_loss: float | None = None
    best_sre_mm: float | None = None
    best_row: int | None = None
    averaged: bool = False
    """Whether the best weights are the average."""
    curve: list[dict[str, Any]] = field(default_factory=list)


class RigidTraining:
    """Fits one network to cases; `run` does it, `chosen` and `scores` give what came of it."""

    def __init__(self, settings: RigidFit, train: Sequence[RigidCase], validation: Sequence[RigidCase], *, seed: int, device: torch.device) -> None:
        self.settings, self.device, self.progress = settings, device, _Progress()
        same: dict[str, Any] = {"seed": seed, "device": device}
        self.batches = RigidBatches(train, settings.perturbation, **same)
        self.held_out = RigidBatches(validation, settings.perturbation, **same) if validation else None
        self.starts = self.held_out.validation(settings.validation_draws) if self.held_out else None
        self.draws = settings.draws_per_epoch or len(train)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build(settings.network, settings.preparation.grid)
        self._layout = layout_of(network, device)
        self.network = network.to(device, memory_format=self._layout)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)
        self.average: Tensors = {}
        self.best: Tensors = {}

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return math.ceil(self.draws / self.settings.batch)

    def run(self, out: Path, key: str) -> None:
        """From the checkpoint, where there is one, to the last epoch."""
        settings, file, progress = self.settings, beside(out, ".checkpoint.safetensors"), self.progress
        if stored := load_checkpoint(file, key):
            self._restore(*stored)
            progress = self.progress
        elif settings.pretrain is not None:
            how = {"batch": settings.batch, "precision": settings.precision}
            progress.pretraining_loss = pretrain(self.network, self.batches, settings.pretrain, **how)
            self._checkpoint(file, key)
        if settings.average is not None and not self.average:
            self.average = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        log.info("fitting on %s, epochs %d to %d of %d samples", described(self.device), progress.epoch, settings.epochs, self.draws)
        with closing(prefetched(self._draw, range(progress.epoch * self.steps, settings.epochs * self.steps))) as batches:
            while progress.epoch < settings.epochs and not self._tired():
                self._epoch(batches)
                write_text(beside(out, ".csv"), curve_csv(progress.curve, CURVE))
                if progress.epoch % settings.checkpoint_every == 0 and progress.epoch < settings.epochs:
                    self._checkpoint(file, key)

    def chosen(self) -> Tensors:
        """The final weights."""
        return self.best or self.network.state_dict()

    def scores(self) -> dict[str, Any]:
        """The learning curve's row of the final weights; `averaged` tells whether they are the average."""
        progress = self.progress
        row = progress.curve[-1 if progress.best_row is None else progress.best_row]
        known = {name: value for name, value in row.items() if name not in ("seconds", "samples_per_second")}
        more = {"averaged": progress.averaged} if self.settings.average is not None else {}
        return known | more | ({} if progress.pretraining_loss is None else {"pretraining_loss": progress.pretraining_loss})

    def _draw(self, step: int) -> Batch:
        epoch, number = divmod(step, self.steps)
        return self.batches.training(epoch, number, draws=self.draws, batch=self.settings.batch)

    def _tired(self) -> bool:
        patience, best = self.settings.patience, self.progress.best_row
        return patience is not None and best is not None and self.progress.epoch - 1 - best >= patience

    def _epoch(self, batches: Iterator[Batch]) -> None:
        progress, clock = self.progress, time.perf_counter()
        self.network.train()
        losses = [self._step(batch) for batch in islice(batches, self.steps)]
        loss = float(torch.stack(losses).double().mean())
        spent = time.perf_counter() - clock
        if not math.isfinite(loss):
            raise ConcordError(
                f"the loss is {loss} in epoch {progress.epoch + 1}; expected a finite one: lower learning_rate: {self.settings.learning_rate:g}"
            )
        progress.epoch += 1
        row = {"epoch": progress.epoch, "train_loss": loss} | self._validation()
        progress.seconds += time.perf_counter() - clock
        log.info("%s", ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in row.items()))
        progress.curve.append(row | {"seconds": round(progress.seconds, 3), "samples_per_second": round(self.draws / spent, 1)})

    def _step(self, batch: Batch) -> torch.Tensor:
        settings, progress = self.settings, self.progress
        self.optimiser.param_groups[0]["lr"] = settings.rate(progress.epoch, progress.step / (settings.epochs * self.steps))
        loss = self._loss(self._predicted(batch.volumes), batch).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        progress.step += 1
        if settings.average is not None:
            # the early average forgets faster: the weights it began with are worth nothing
            self._follow(min(settings.average, (1 + progress.step) / (10 + progress.step)))
        return loss.detach()

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        now = self.network.state_dict()
        moving = [name for name, tensor in now.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.average[name] for name in moving], [now[name] for name in moving], 1 - decay)
        for name in now.keys() - set(moving):
            self.average[name].copy_(now[name])

    def _predicted(self, volumes: torch.Tensor, weights: Tensors | None = None) -> torch.Tensor:
        volumes = volumes.contiguous(memory_format=self._layout)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            found = self.network(volumes) if weights is None else functional_call(self.network, weights, (volumes,))
        return found.float()

    def _loss(self, predicted: torch.Tensor, batch: Batch) -> torch.Tensor:
        """`(b,)`: the squared error of the six numbers, mm and degrees alike (the authors'), or the distance of vertices in mm."""
        if self.settings.loss == "mse":
            return (predicted - batch.targets).square().mean(1)
        return vertex_distance_mm(predicted, batch.targets, batch.vertices_mm)

    def _validation(self) -> dict[str, float]:
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
            source = self.average if averaged else self.network.state_dict()
            self.best = {name: tensor.clone() for name, tensor in source.items()}

    def _checkpoint(self, file: Path, key: str) -> None:
        """Weights, Adam's moments, the average and the best weights so far, and the progress."""
        groups: dict[str, Mapping[str, torch.Tensor]] = {"network": self.network.state_dict(), "average": self.average, "best": self.best}
        for moment in ("exp_avg", "exp_avg_sq"):
            known = {name: self.optimiser.state[p] for name, p in self.network.named_parameters() if p in self.optimiser.state}
            groups[moment] = {name: state[moment] for name, state in known.items()}
        tensors = {f"{group}.{name}": tensor for group, members in groups.items() for name, tensor in members.items()}
        save_checkpoint(file, tensors, asdict(self.progress) | {"fingerprint": key})

    def _restore(self, tensors: Mapping[str, torch.Tensor], progress: Mapping[str, Any]) -> None:
        groups: dict[str, Tensors] = {name: {} for name in ("network", "average", "best", "exp_avg", "exp_avg_sq")}
        for name, tensor in tensors.items():
            group, _, own = name.partition(".")
            groups[group][own] = tensor.to(self.device)
        self.progress = _Progress(**{name: value for name, value in progress.items() if name != "fingerprint"})
        self.network.load_state_dict(groups["network"])
        for name, parameter in self.network.named_parameters():
            if name in groups["exp_avg"]:
                moments = {moment: torch.empty_like(parameter).copy_(groups[moment][name]).detach() for moment in ("exp_avg", "exp_avg_sq")}
                self.optimiser.state[parameter] = {"step": torch.tensor(float(self.progress.step)), **moments}
        # in the network's own memory layout, which the last bits of convolutions depend on
        now = self.network.state_dict()
        self.average = {name: torch.empty_like(now[name]).copy_(tensor) for name, tensor in groups["average"].items()}
        self.best = groups["best"]


def layout_of(network: nn.Module, device: torch.device) -> torch.memory_format:
    """How samples lie in memory: channels last makes 3-D convolutions on a CPU about twice as fast."""
    volumetric = any(parameter.ndim == 5 for parameter in network.parameters())
    return torch.channels_last_3d if volumetric and device.type == "cpu" else torch.contiguous_format
