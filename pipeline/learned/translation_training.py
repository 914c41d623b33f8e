"""The hierarchical translation model on its way: its parts one after the other, each frozen after its own stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nets.translation import PARTS, HierarchicalTranslation, Translated
from pipeline.errors import ConcordError
from pipeline.learned.epochs import EpochTraining, Progress
from pipeline.learned.field_batches import FieldBatches
from pipeline.learned.field_cases import FieldCase
from pipeline.learned.field_training import mean_dice
from pipeline.learned.fitting import untimed
from pipeline.learned.translation_losses import coarse_loss, comparison, fine_loss, translation_loss

if TYPE_CHECKING:
    from pipeline.learned.settings.translation import TranslationFit

CURVE = (
    "epoch",
    "stage",
    "step",
    "learning_rate",
    "train_loss",
    "validation_loss",
    "validation_dice",
    "validation_start_dice",
    "seconds",
    "pairs_per_second",
)
STAGES = (*PARTS, "joint")
ORDER, FLIP = range(2)
"""Streams of random numbers."""
FARTHEST = 1000
"""Lengths of the image beyond which a displacement is told to be one no more (ours): torch ends the process on places too large for an integer."""


class TranslationTraining(EpochTraining):
    """Fits the parts to cases; `run` does it, `network` and `scores` are what came of it.

    An "epoch" is the iterations between two rows of the learning curve. Adam holds all parts; it moves those that have a gradient, which
    are those of the stage. What a part starts from and which pairs it sees are functions of the seed and of the stage's name alone, so
    that a coarse part is the same whether others follow it or not.
    """

    columns = CURVE
    settings: TranslationFit

    def __init__(
        self, settings: TranslationFit, train: Sequence[FieldCase], validation: Sequence[FieldCase], *, seed: int, device: torch.device
    ) -> None:
        same: dict[str, Any] = {"seed": seed, "device": device}
        self.seed, self.batches = seed, FieldBatches(train, labels=False, **same)
        known = bool(validation) and all(case.labels is not None for case in validation)
        self.held_out = FieldBatches(validation, labels=known, **same) if validation else None
        network = seeded_network(settings, train[0].images.ndim - 1, seed)
        # on the CPU a fifth faster in two dimensions
        self._format = torch.channels_last if network.dimension == 2 and device.type == "cpu" else torch.contiguous_format
        self.compare = comparison(settings.similarity, bins=settings.bins)
        super().__init__(settings, network.to(device, memory_format=self._format), settings.validation_every * settings.batch, progress=Progress())

    def scores(self) -> dict[str, Any]:
        """The learning curve's last row of every stage."""
        return {row["stage"]: {name: value for name, value in untimed(row).items() if name != "stage"} for row in self.progress.curve}

    @property
    def stage(self) -> str:
        """The stage of the running epoch."""
        return self.settings.place(self.progress.epoch * self.steps)[0]

    def _draw(self, step: int) -> torch.Tensor:
        """Images `(b, 2, [z,] y, x)`: every pair comes once, in a new order, before one comes again."""
        stage, own = self.settings.place(step)
        count, number = len(self.batches.cases), STAGES.index(stage)
        wanted = np.arange(own * self.settings.batch, (own + 1) * self.settings.batch)
        orders = {turn: np.random.default_rng([self.seed, ORDER, number, turn]).permutation(count) for turn in np.unique(wanted // count).tolist()}
        rows = [orders[turn][place] for turn, place in zip(*(part.tolist() for part in np.divmod(wanted, count)), strict=True)]
        images = self.batches.images[torch.from_numpy(np.array(rows)).to(self.batches.device)]
        if not self.settings.flip:
            return images.contiguous(memory_format=self._format)
        drawn = np.random.default_rng([self.seed, FLIP, number, own]).random((images.ndim - 2, len(images)))
        for axis, turned in enumerate(torch.from_numpy(drawn < 0.5).to(images.device), start=2):
            images = torch.where(turned.view(-1, *[1] * (images.ndim - 1)), images.flip(axis), images)
        return images.contiguous(memory_format=self._format)

    def _rate(self) -> float:
        stage, own = self.settings.place(self.progress.step)
        return self.settings.rate(own / self.settings.iterations_of[stage])

    def _epoch(self, batches: Iterator[torch.Tensor]) -> None:
        stage = self.stage
        for part in self.network.parts:
            getattr(self.network, part).requires_grad_(stage in (part, "joint"))
        super()._epoch(batches)
        self.progress.curve[-1]["stage"] = stage

    def _loss_of(self, batch: torch.Tensor) -> torch.Tensor:
        found = self.network(batch, until=None if self.stage == "joint" else self.stage)
        farthest = float(found.displacement_vx.detach().abs().max())
        if not farthest < FARTHEST * max(batch.shape[2:]):  # nan too
            stage, own = self.settings.place(self.progress.step)
            lower = f"lower learning_rate, which is {self.settings.learning_rate:g}"
            raise ConcordError(f"displacements reach {farthest:.3g} voxels in iteration {own + 1} of stage {stage}; expected less: {lower}")
        return self._loss(batch, found, self.stage)

    def _loss(self, images: torch.Tensor, found: Translated, stage: str) -> torch.Tensor:
        """The stage's own loss; that of the joint stage is the sum of all (ours)."""
        losses = {"coarse": partial(coarse_loss, bidirectional=self.settings.bidirectional), "translate": translation_loss, "fine": fine_loss}
        wanted = self.network.parts if stage == "joint" else (stage,)
        return sum(losses[part](images, found, self.compare, self.settings.weights) for part in wanted)

    @torch.no_grad()
    def _looked(self) -> dict[str, float]:
        """Loss of the held-out pairs, and where labels are known their mean Dice, and that of the unregistered ones."""
        # the epoch that has just ended is counted already
        stage, own = self.settings.place(self.progress.step - 1)
        row = {"step": own + 1, "learning_rate": self.optimiser.learning_rate}
        if self.held_out is None:
            return row
        self.network.eval()
        sums, dices, labels = [], [], self.held_out.labels
        until = None if stage == "joint" else stage
        for rows in torch.arange(len(self.held_out.cases)).split(self.settings.batch):
            images = self.held_out.images[rows]
            found = self.network(images, until=until)
            sums.append(self._loss(images, found, stage) * len(rows))
            if labels is not None:
                both = (found.displacement_vx, torch.zeros_like(found.displacement_vx))
                dices.append(torch.stack([mean_dice(labels[rows], u, self.held_out.structures) for u in both]))
        row["validation_loss"] = float(torch.stack(sums).double().sum() / len(self.held_out.cases))
        if dices:
            row |= dict(zip(("validation_dice", "validation_start_dice"), torch.cat(dices, dim=1).double().nanmean(1).tolist(), strict=True))
        return row


def seeded_network(settings: TranslationFit, dimension: int, seed: int) -> HierarchicalTranslation:
    """A fresh network, each part from a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        network = settings.network_of(dimension)
        for part in network.parts:
            torch.manual_seed(int(np.random.default_rng([seed, STAGES.index(part)]).integers(2**62)))
            fresh = getattr(settings.network_of(dimension), part)
            getattr(network, part).load_state_dict(fresh.state_dict())
    return network
