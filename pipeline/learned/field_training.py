"""A network that predicts displacements on its way: weights, optimiser, learning curve, checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from metrics.similarity.field_losses import CompositeWeights, LabelDrivenWeights, composite_loss, label_driven_loss, one_hot
from nets.fields import warp
from pipeline.learned.epochs import EpochTraining, Progress
from pipeline.learned.field_batches import FieldBatch, FieldBatches
from pipeline.learned.field_cases import FieldCase
from pipeline.learned.fitting import untimed

if TYPE_CHECKING:
    from pipeline.learned.settings.field import FieldFit

CURVE = ("epoch", "learning_rate", "train_loss", "validation_loss", "validation_dice", "validation_start_dice", "seconds", "pairs_per_second")


class FieldTraining(EpochTraining):
    """Fits one network to cases; `run` does it, `network` and `scores` are what came of it."""

    columns = CURVE
    settings: FieldFit

    def __init__(self, settings: FieldFit, train: Sequence[FieldCase], validation: Sequence[FieldCase], *, seed: int, device: torch.device) -> None:
        same: dict[str, Any] = {"seed": seed, "device": device}
        self.batches = FieldBatches(train, labels=settings.uses_labels, **same)
        known = settings.uses_labels or all(case.labels is not None for case in validation)
        self.held_out = FieldBatches(validation, labels=known, **same) if validation else None
        self.structures = self.batches.structures
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = settings.network_of()
        super().__init__(settings, network.to(device), len(train), progress=Progress())

    def scores(self) -> dict[str, Any]:
        """The learning curve's last row."""
        return untimed(self.progress.curve[-1])

    def _draw(self, step: int) -> FieldBatch:
        epoch, number = divmod(step, self.steps)
        return self.batches.training(epoch, number, batch=self.settings.batch, augmentation=self.settings.augmentation)

    def _rate(self) -> float:
        return self.settings.rate(self.progress.step / (self.settings.epochs * self.steps))

    def _loss_of(self, batch: FieldBatch) -> torch.Tensor:
        return self._loss(batch, self.network(batch.images))

    def _looked(self) -> dict[str, float]:
        due = self.progress.epoch % self.settings.validation_every == 0 or self.progress.epoch == self.settings.epochs
        return {"learning_rate": self.optimiser.learning_rate} | (self._validation() if due else {})

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


def mean_dice(labels: torch.Tensor, displacement_vx: torch.Tensor, structures: torch.Tensor) -> torch.Tensor:
    """Dice coefficient, mean over the structures that either map holds, of each item, `(b,)`.

    Label maps `(b, 2, y, x)` are fixed and moving, the second warped by nearest neighbour. A pair without any structure scores nan.
    """
    fixed = one_hot(labels[:, :1], structures)
    warped = one_hot(warp(labels[:, 1:], displacement_vx, interpolation="nearest"), structures)
    shared, both = ((maps).flatten(2).sum(2) for maps in (fixed * warped, fixed + warped))
    return (2 * shared / both).nanmean(1)  # 0/0 where a structure is in neither
