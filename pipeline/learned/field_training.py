"""A network that predicts displacements on its way: weights, optimiser, learning curve, checkpoints."""

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

import torch

from metrics.similarity.field_losses import CompositeWeights, LabelDrivenWeights, composite_loss, label_driven_loss, one_hot
from nets.fields import warp
from pipeline.errors import ConcordError
from pipeline.files import write_text
from pipeline.learned.field_batches import FieldBatch, FieldBatches
from pipeline.learned.field_cases import FieldCase
from pipeline.learned.fitting import curve_csv, described, prefetched
from pipeline.learned.weights import beside, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from pipeline.learned.field import FieldFit

log = logging.getLogger(__name__)
CURVE = ("epoch", "learning_rate", "train_loss", "validation_loss", "validation_dice", "validation_start_dice", "seconds", "pairs_per_second")
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class _Progress:
    """What a checkpoint holds beside tensors."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)


class FieldTraining:
    """Fits one network to cases; `run` does it, `network` and `scores` are what came of it."""

    def __init__(self, settings: FieldFit, train: Sequence[FieldCase], validation: Sequence[FieldCase], *, seed: int, device: torch.device) -> None:
        self.settings, self.device, self.progress = settings, device, _Progress()
        same: dict[str, Any] = {"seed": seed, "device": device}
        self.batches = FieldBatches(train, labels=settings.uses_labels, **same)
        known = settings.uses_labels or all(case.labels is not None for case in validation)
        self.held_out = FieldBatches(validation, labels=known, **same) if validation else None
        self.structures = self.batches.structures
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = settings.network_of()
        self.network = network.to(device)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return math.ceil(len(self.batches.cases) / self.settings.batch)

    def run(self, out: Path, key: str) -> None:
        """From the checkpoint, where there is one, to the last epoch."""
        settings, file = self.settings, beside(out, ".checkpoint.safetensors")
        if stored := load_checkpoint(file, key):
            self._restore(*stored)
        progress = self.progress
        log.info("fitting on %s, epochs %d to %d of %d pairs", described(self.device), progress.epoch, settings.epochs, len(self.batches.cases))
        with closing(prefetched(self._draw, range(progress.epoch * self.steps, settings.epochs * self.steps))) as batches:
            while progress.epoch < settings.epochs:
                self._epoch(batches)
                write_text(beside(out, ".csv"), curve_csv(progress.curve, CURVE))
                if progress.epoch % settings.checkpoint_every == 0 and progress.epoch < settings.epochs:
                    self._checkpoint(file, key)

    def scores(self) -> dict[str, Any]:
        """The learning curve's last row."""
        return {name: value for name, value in self.progress.curve[-1].items() if name not in ("seconds", "pairs_per_second")}

    def _draw(self, step: int) -> FieldBatch:
        epoch, number = divmod(step, self.steps)
        return self.batches.training(epoch, number, batch=self.settings.batch, augmentation=self.settings.augmentation)

    def _epoch(self, batches: Iterator[FieldBatch]) -> None:
        settings, progress, clock = self.settings, self.progress, time.perf_counter()
        self.network.train()
        losses = [self._step(batch) for batch in islice(batches, self.steps)]
        loss = float(torch.stack(losses).double().mean())
        spent = time.perf_counter() - clock
        if not math.isfinite(loss):
            raise ConcordError(
                f"the loss is {loss} in epoch {progress.epoch + 1}; expected a finite one: lower learning_rate: {settings.learning_rate:g}"
            )
        progress.epoch += 1
        row = {"epoch": progress.epoch, "learning_rate": self.optimiser.param_groups[0]["lr"], "train_loss": loss}
        if progress.epoch % settings.validation_every == 0 or progress.epoch == settings.epochs:
            row |= self._validation()
        progress.seconds += time.perf_counter() - clock
        log.info("%s", ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in row.items()))
        speed = round(len(self.batches.cases) / spent, 1)
        progress.curve.append(row | {"seconds": round(progress.seconds, 3), "pairs_per_second": speed})

    def _step(self, batch: FieldBatch) -> torch.Tensor:
        settings, progress = self.settings, self.progress
        self.optimiser.param_groups[0]["lr"] = settings.rate(progress.step / (settings.epochs * self.steps))
        loss = self._loss(batch, self.network(batch.images))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        progress.step += 1
        return loss.detach()

    def _loss(self, batch: FieldBatch, displacement_vx: torch.Tensor) -> torch.Tensor:
        settings, (fixed, moving) = self.settings, batch.images.split(1, dim=1)
        warped = warp(moving, displacement_vx)
        if settings.loss == "composite":
            weights = CompositeWeights(settings.structure_weight, settings.squares_weight, settings.gradient_weight)
            return composite_loss(fixed, warped, displacement_vx, weights)
        fixed_maps, moving_maps = (one_hot(maps, self.structures) for maps in batch.labels.split(1, dim=1))
        weights = LabelDrivenWeights(settings.curvature_weight, settings.label_weight)
        return label_driven_loss((fixed, warped), displacement_vx, (fixed_maps, warp(moving_maps, displacement_vx)), weights)

    @torch.no_grad()
    def _validation(self) -> dict[str, float]:
        """Loss of the held-out pairs in both directions, and where labels are known their mean Dice, and that of the unregistered ones."""
        if self.held_out is None:
            return {}
        self.network.eval()
        structures, sums, dices = self.held_out.structures, [], []
        for batch in self.held_out.both_directions(self.settings.batch):
            found = self.network(batch.images)
            sums.append(self._loss(batch, found) * len(found))
            if batch.labels is not None:
                dices.append(torch.stack([mean_dice(batch.labels, u, structures) for u in (found, torch.zeros_like(found))]))
        row = {"validation_loss": float(torch.stack(sums).double().sum() / (2 * len(self.held_out.cases)))}
        if dices:
            scores = torch.cat(dices, dim=1).double().nanmean(1).tolist()
            row |= dict(zip(("validation_dice", "validation_start_dice"), scores, strict=True))
        return row

    def _checkpoint(self, file: Path, key: str) -> None:
        """Weights, Adam's moments and the progress."""
        groups: dict[str, Mapping[str, torch.Tensor]] = {"network": self.network.state_dict()}
        for moment in MOMENTS:
            groups[moment] = {name: self.optimiser.state[p][moment] for name, p in self.network.named_parameters()}
        tensors = {f"{group}.{name}": tensor for group, members in groups.items() for name, tensor in members.items()}
        save_checkpoint(file, tensors, asdict(self.progress) | {"fingerprint": key})

    def _restore(self, tensors: Mapping[str, torch.Tensor], progress: Mapping[str, Any]) -> None:
        groups: dict[str, dict[str, torch.Tensor]] = {name: {} for name in ("network", *MOMENTS)}
        for name, tensor in tensors.items():
            group, _, own = name.partition(".")
            groups[group][own] = tensor.to(self.device)
        self.progress = _Progress(**{name: value for name, value in progress.items() if name != "fingerprint"})
        self.network.load_state_dict(groups["network"])
        for name, parameter in self.network.named_parameters():
            moments = {moment: groups[moment][name] for moment in MOMENTS}
            self.optimiser.state[parameter] = {"step": torch.tensor(float(self.progress.step)), **moments}


def mean_dice(labels: torch.Tensor, displacement_vx: torch.Tensor, structures: torch.Tensor) -> torch.Tensor:
    """Dice coefficient, mean over the structures that either map holds, of each item, `(b,)`.

    Label maps `(b, 2, y, x)` are fixed and moving, the second warped by nearest neighbour. A pair without any structure scores nan.
    """
    fixed = one_hot(labels[:, :1], structures)
    warped = one_hot(warp(labels[:, 1:], displacement_vx, interpolation="nearest"), structures)
    shared, both = ((maps).flatten(2).sum(2) for maps in (fixed * warped, fixed + warped))
    return (2 * shared / both).nanmean(1)  # 0/0 where a structure is in neither
