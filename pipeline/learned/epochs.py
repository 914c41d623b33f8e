"""A network that is fitted in epochs: optimiser, learning curve, checkpoints. What it learns from, and how, its subclasses say."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from pipeline.files import write_text
from pipeline.learned.fitting import check_loss, curve_csv, described, log_row, prefetched
from pipeline.learned.optimisers import Adam
from pipeline.learned.weights import beside, load_checkpoint, save_checkpoint

log = logging.getLogger(__name__)
Groups = Mapping[str, Mapping[str, torch.Tensor]]


class EpochSettings(Protocol):
    """What the settings of such a fit have at least."""

    epochs: int
    batch: int
    learning_rate: float
    checkpoint_every: int


@dataclass
class Progress:
    """What a checkpoint holds beside tensors."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)


class EpochTraining(ABC):
    """Fits a network with Adam, `samples` an epoch; `run` does it, `network` and `progress` are what came of it.

    The last of the curve's `columns` is the number of samples a second, whatever they are called.
    """

    columns: ClassVar[tuple[str, ...]]

    def __init__(self, settings: EpochSettings, network: nn.Module, samples: int, *, progress: Progress) -> None:
        self.settings, self.network, self.samples, self.progress = settings, network, samples, progress
        self.optimiser = Adam(network.named_parameters(), settings.learning_rate)

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return math.ceil(self.samples / self.settings.batch)

    def run(self, out: Path, key: str) -> None:
        """From the checkpoint, where there is one, to the last epoch."""
        settings, file = self.settings, beside(out, ".checkpoint.safetensors")
        if stored := load_checkpoint(file, key):
            self._restore(*stored)
        elif self._begin():
            self._checkpoint(file, key)
        progress, device = self.progress, next(self.network.parameters()).device
        log.info("fitting on %s, epochs %d to %d of %d samples", described(device), progress.epoch, settings.epochs, self.samples)
        with closing(prefetched(self._draw, range(progress.epoch * self.steps, settings.epochs * self.steps))) as batches:
            while progress.epoch < settings.epochs and not self._tired():
                self._epoch(batches)
                write_text(beside(out, ".csv"), curve_csv(progress.curve, self.columns))
                if progress.epoch % settings.checkpoint_every == 0 and progress.epoch < settings.epochs:
                    self._checkpoint(file, key)

    @abstractmethod
    def _draw(self, step: int) -> Any:
        """The batch of a step, in the background."""

    @abstractmethod
    def _loss_of(self, batch: Any) -> torch.Tensor:
        """The batch's mean loss."""

    @abstractmethod
    def _rate(self) -> float:
        """Learning rate of the next step."""

    @abstractmethod
    def _looked(self) -> dict[str, float]:
        """What the curve says of the epoch beside its training loss."""

    def _begin(self) -> bool:
        """What comes before the first epoch; whether it was long enough to be kept in a checkpoint."""
        return False

    def _tired(self) -> bool:
        """Whether to stop before the last epoch."""
        return False

    def _epoch(self, batches: Iterator[Any]) -> None:
        progress, clock = self.progress, time.perf_counter()
        self.network.train()
        losses = [self._step(batch) for batch in islice(batches, self.steps)]
        loss = float(torch.stack(losses).double().mean())
        spent = time.perf_counter() - clock
        check_loss(loss, f"in epoch {progress.epoch + 1}", self.settings.learning_rate)
        progress.epoch += 1
        row = {"epoch": progress.epoch, "train_loss": loss} | self._looked()
        progress.seconds += time.perf_counter() - clock
        log_row(row)
        progress.curve.append(row | {"seconds": round(progress.seconds, 3), self.columns[-1]: round(self.samples / spent, 1)})

    def _step(self, batch: Any) -> torch.Tensor:
        self.optimiser.learning_rate = self._rate()
        loss = self._loss_of(batch)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.progress.step += 1
        return loss.detach()

    def _groups(self) -> dict[str, Mapping[str, torch.Tensor]]:
        """Tensors of a checkpoint: weights and Adam's moments."""
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state()}

    def _checkpoint(self, file: Path, key: str) -> None:
        save_checkpoint(file, self._groups(), asdict(self.progress), key=key)

    def _restore(self, groups: Groups, progress: Mapping[str, Any]) -> None:
        self.progress = type(self.progress)(**progress)
        self.network.load_state_dict(dict(groups["network"]))
        self.optimiser.restore(groups["optimiser"])
