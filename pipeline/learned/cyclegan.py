"""Fitting CycleGAN (Zhu et al., ICCV 2017): translation of 2-D images between two modalities, learned from unpaired images.

A fit is a pure function of cases, settings, seed and threads: it can be killed at any point and goes on from its checkpoint to the
same weights, bit for bit on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel
from torch import nn

from nets.cyclegan import PatchDiscriminator, ResidualGenerator
from pipeline.cases import read_cases
from pipeline.errors import ConcordError
from pipeline.learned.epochs import EpochTraining, Groups, Progress
from pipeline.learned.field_cases import FieldCase, divided, named, read_field_cases
from pipeline.learned.fitting import choose_device, kept, made_of, reproducible, untimed
from pipeline.learned.image_pool import ImagePool
from pipeline.learned.optimisers import Adam
from pipeline.learned.settings.cyclegan import CycleGanFit
from pipeline.learned.translation import modalities_of
from pipeline.learned.weights import load_network
from pipeline.methods import Run
from pipeline.provenance import fingerprint

ARCHITECTURE = "cyclegan"
CURVE = ("epoch", "learning_rate", "train_loss", "train_discriminator", "seconds", "pairs_per_second")
FIXED, MOVING, POOL = range(3)
"""Streams of random numbers."""
SMALLEST = 32
"""Pixels along an axis that the discriminator needs."""


class CycleGan(nn.Module):
    """Generators to the fixed modality and to the moving one, and what tells their images from real ones."""

    def __init__(self, *, blocks: int, width: int) -> None:
        super().__init__()
        self.to_fixed, self.to_moving = (ResidualGenerator(blocks=blocks, width=width) for _ in range(2))
        self.fixed_critic, self.moving_critic = (PatchDiscriminator(width=width) for _ in range(2))

    @property
    def generators(self) -> nn.ModuleList:
        """Both generators."""
        return nn.ModuleList([self.to_fixed, self.to_moving])

    @property
    def critics(self) -> nn.ModuleList:
        """Both discriminators."""
        return nn.ModuleList([self.fixed_critic, self.moving_critic])


class CycleGanTraining(EpochTraining):
    """Fits the four networks; each epoch shows every case's fixed image and every case's moving one, in two orders of their own."""

    columns = CURVE
    settings: _Total

    def __init__(self, settings: CycleGanFit, train: Sequence[FieldCase], *, seed: int, device: torch.device) -> None:
        self.fit, self.seed, self.device = settings, seed, device
        # in [-1, 1], as the generators' tanh
        self.images = torch.from_numpy(2 * np.stack([case.images for case in train]) - 1).to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = CycleGan(blocks=settings.blocks, width=settings.width)
        super().__init__(_Total.of(settings), network.to(device), len(train), progress=Progress())
        parts = (network.generators, network.critics)
        self.optimiser, self.critics = (Adam(part.named_parameters(), settings.learning_rate, betas=(0.5, 0.999)) for part in parts)
        self.pools = {name: ImagePool(settings.pool) for name in ("fixed", "moving")}
        self.critic_losses: list[torch.Tensor] = []

    def scores(self) -> dict[str, Any]:
        """The learning curve's last row."""
        return untimed(self.progress.curve[-1])

    def _draw(self, step: int) -> torch.Tensor:
        """`(b, 2, y, x)`: images of both modalities that belong to different cases."""
        epoch, number = divmod(step, self.steps)
        rngs = [np.random.default_rng([self.seed, stream, epoch]) for stream in (FIXED, MOVING)]
        rows = [rng.permutation(len(self.images))[number * self.fit.batch : (number + 1) * self.fit.batch] for rng in rngs]
        drawn = torch.stack([self.images[torch.from_numpy(row).to(self.device), channel] for channel, row in enumerate(rows)], dim=1)
        if not self.fit.flip:
            return drawn
        turned = np.random.default_rng([self.seed, FIXED, epoch, number]).random(drawn.shape[:2]) < 0.5
        return torch.where(torch.from_numpy(turned).to(self.device)[..., None, None], drawn.flip(3), drawn)

    def _rate(self) -> float:
        done = self.progress.epoch - self.fit.epochs
        return self.fit.learning_rate * (1 - max(0, done) / (self.fit.decay_epochs + 1))

    def _epoch(self, batches: Iterator[torch.Tensor]) -> None:
        self.critic_losses.clear()
        super()._epoch(batches)

    def _step(self, batch: torch.Tensor) -> torch.Tensor:
        """The generators' step by the loss, then the discriminators', on what the generators had made."""
        self.network.critics.requires_grad_(False)
        loss = super()._step(batch)
        self.network.critics.requires_grad_(True)
        fixed, moving = batch.split(1, dim=1)
        rng = np.random.default_rng([self.seed, POOL, self.progress.step])
        shown = {name: pool.exchanged(made, rng) for (name, pool), made in zip(self.pools.items(), self.made, strict=True)}
        told = [(self.network.fixed_critic, fixed, shown["fixed"]), (self.network.moving_critic, moving, shown["moving"])]
        judged = sum((critic(real).sub(1).square().mean() + critic(false).square().mean()) / 2 for critic, real, false in told)
        self.critics.learning_rate = self.optimiser.learning_rate
        self.critics.zero_grad()
        judged.backward()
        self.critics.step()
        self.critic_losses.append(judged.detach())
        return loss

    def _loss_of(self, batch: torch.Tensor) -> torch.Tensor:
        """Least squares for being told from real images, there and back again, and what must stay as it is (Zhu et al., sec. 3, 5.2, 7.1)."""
        network, (fixed, moving) = self.network, batch.split(1, dim=1)
        self.made = network.to_fixed(moving), network.to_moving(fixed)
        scores = network.fixed_critic(self.made[0]), network.moving_critic(self.made[1])
        loss = sum(score.sub(1).square().mean() for score in scores)
        back = network.to_moving(self.made[0]), network.to_fixed(self.made[1])
        loss = loss + self.fit.cycle * sum((image - known).abs().mean() for image, known in zip(back, (moving, fixed), strict=True))
        if self.fit.identity:
            kept_ones = (network.to_fixed(fixed) - fixed).abs().mean() + (network.to_moving(moving) - moving).abs().mean()
            loss = loss + self.fit.cycle * self.fit.identity * kept_ones
        return loss

    def _looked(self) -> dict[str, float]:
        judged = float(torch.stack(self.critic_losses).double().mean())
        return {"learning_rate": self.optimiser.learning_rate, "train_discriminator": judged}

    def _groups(self) -> dict[str, Mapping[str, torch.Tensor]]:
        stored = {name: pool.images for name, pool in self.pools.items() if pool.images is not None}
        return {**super()._groups(), "critics": self.critics.state(), "pools": stored}

    def _restore(self, groups: Groups, progress: Mapping[str, Any]) -> None:
        super()._restore(groups, progress)
        self.critics.restore(groups["critics"])
        self.pools = {name: ImagePool(self.fit.pool, _on(groups["pools"].get(name), self.device)) for name in self.pools}


class _Total(BaseModel):
    """What `EpochTraining` asks of settings: all epochs together."""

    epochs: int
    batch: int
    learning_rate: float
    checkpoint_every: int

    @classmethod
    def of(cls, settings: CycleGanFit) -> _Total:
        """Both kinds of epochs as one number."""
        same = {name: getattr(settings, name) for name in ("batch", "learning_rate", "checkpoint_every")}
        return cls(epochs=settings.epochs + settings.decay_epochs, **same)


def fit_cyclegan(
    train: Sequence[FieldCase], settings: CycleGanFit, *, seed: int, threads: int, out: Path, modalities: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Fit, write `OUT.safetensors` (both generators), its card `OUT.json` and the learning curve `OUT.csv`, and return the card.

    Raises `ConcordError` for no cases, images of fewer than 32 pixels, CUDA asked for and absent, and a loss that is not finite.
    """
    if not train:
        raise ConcordError("no training case; expected one or more: give the table more subjects")
    if min(train[0].images.shape[1:]) < SMALLEST:
        raise ConcordError(f"images of {train[0].images.shape[:0:-1]} pixels; expected {SMALLEST} or more an axis: set prepare.size")
    device = choose_device(settings.device)
    source = made_of(settings, seed=seed, threads=threads, data={"train": [case.data for case in train]})
    with reproducible(threads):
        training = CycleGanTraining(settings, train, seed=seed, device=device)
        training.run(out, fingerprint(source))
    generators = {
        f"{name}.{key}": tensor for name in ("to_fixed", "to_moving") for key, tensor in getattr(training.network, name).state_dict().items()
    }
    card = {
        "architecture": ARCHITECTURE,
        "blocks": settings.blocks,
        "width": settings.width,
        "dimension": 2,
        "size": list(train[0].images.shape[:0:-1]),
        "modalities": dict(modalities or {}),
        "subjects": {"train": sorted(named(train)), "validation": []},
        "parameters": sum(p.numel() for p in training.network.to_fixed.parameters()),
        "scores": training.scores(),
        **source,
    }
    return kept(out, generators, card, device)


def fit_to_cases(settings: CycleGanFit, cases: Path, *, run: Run, out: Path) -> dict[str, Any]:
    """Fit to the 2-D images of the cases of split train, whose pairing is not used.

    Raises `ConcordError` as `divided`, `read_field_cases`, `modalities_of` and `fit_cyclegan` do.
    """
    train, _ = divided(read_cases(cases), folds=2, fold=None, seed=run.seed)
    read = read_field_cases(train, labels=False)
    return fit_cyclegan(read, settings, seed=run.seed, threads=run.threads, out=out, modalities=modalities_of(train))


def load_cyclegan(weights: Path | str) -> tuple[nn.ModuleDict, dict[str, Any]]:
    """Generators "to_fixed" and "to_moving", for evaluation only, and the card.

    Raises `ConcordError` for files that are missing or changed (see `load_network`), and weights of another architecture.
    """
    names = ("to_fixed", "to_moving")
    return load_network(
        weights, ARCHITECTURE, lambda card, _: nn.ModuleDict({name: ResidualGenerator(blocks=card["blocks"], width=card["width"]) for name in names})
    )


def translate(weights: Path | str, images: np.ndarray, *, to: Literal["fixed", "moving"] = "fixed", device: str = "auto") -> np.ndarray:
    """Images `(n, y, x)`, each scaled to [0, 1], as the other modality has them, in [0, 1] too: moving ones as fixed, or the other way.

    Raises `ConcordError` as `load_cyclegan`.
    """
    generators, _ = load_cyclegan(weights)
    place = choose_device(device)
    given = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))[:, None].to(place)
    generator = generators[f"to_{to}"].to(place)
    parts = [generator(2 * part - 1) for part in given.split(8)]
    return ((torch.cat(parts)[:, 0] + 1) / 2).cpu().numpy()


def _on(images: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    return None if images is None else images.to(device)
