"""Fitting the patch network of the deep metric (Simonovsky et al., MICCAI 2016, sec. 2.2), and applying its card to volumes.

A fit is a pure function of pairs, settings, seed and threads: it can be killed at any point and goes on from its checkpoint to the
same weights, bit for bit.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nets.patch_cnn import PatchCnn
from nets.shapes import CONFIGURATIONS
from pipeline.cases import read_cases
from pipeline.errors import ConcordError, choices
from pipeline.files import write_text
from pipeline.learned.aligned_cases import first_pairs, modalities_of, read_pairs, turned
from pipeline.learned.fitting import (
    check_loss,
    choose_device,
    curve_csv,
    described,
    kept,
    log_row,
    made_of,
    prefetched,
    reproducible,
    untimed,
)
from pipeline.learned.optimisers import Adam, GradientDescent, Optimiser
from pipeline.learned.patch_pairs import AlignedPair, PatchSampler, data_of, normalisation_card, unit_range
from pipeline.learned.settings.patch_metric import PatchMetricFit
from pipeline.learned.weights import beside, load_checkpoint, load_network, save_checkpoint
from pipeline.methods import Run
from pipeline.provenance import fingerprint

log = logging.getLogger(__name__)
ARCHITECTURE = "patch-cnn"
CURVE = ("step", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds", "patches_per_second")


def fit_patch_metric(
    pairs_train: Sequence[AlignedPair],
    pairs_validation: Sequence[AlignedPair],
    settings: PatchMetricFit,
    *,
    seed: int,
    threads: int,
    out: Path,
    channels: tuple[str, str] = ("t1", "t2"),
) -> dict[str, Any]:
    """Fit, write `OUT.safetensors`, its card `OUT.json` and the learning curve `OUT.csv`, and return the card.

    The weights are the last ones where the learning rate falls to zero or `pairs_validation` is empty, else those of the lowest
    validation loss: before the rate has come to rest they are better at held-out patches by chance, and worse at registration (ours).
    `channels` are the modalities of `a` and `b`. A checkpoint of the same settings, seed, threads and data beside OUT is gone on from, and removed
    at the end. Raises `ConcordError` for too few pairs, constant volumes, CUDA asked for and absent, and a loss that is not finite.
    """
    device, pairs = choose_device(settings.device), first_pairs(pairs_train, settings.pairs, seed)
    data = {"train": data_of(pairs), "validation": data_of(pairs_validation)}
    source = made_of(settings, seed=seed, threads=threads, channels=list(channels), data=data)
    with reproducible(threads):
        fit = _Fit(settings, pairs, pairs_validation, seed=seed, device=device)
        fit.run(out, fingerprint(source))
    card = {
        "architecture": ARCHITECTURE,
        "configuration": settings.configuration,
        "dimension": fit.sampler.dimension,
        "patch_vx": fit.network.patch_vx,
        "normalisation": normalisation_card(channels, fit.sampler.normalisation),
        "scores": fit.scores(),
        **source,
    }
    return kept(out, fit.chosen(), card, device)


def fit_to_cases(settings: PatchMetricFit, cases: Path, *, run: Run, out: Path) -> dict[str, Any]:
    """Fit to the aligned cases of a table, those of split train; validation cases, where there are any, choose the weights.

    Cases between subjects are left out: their volumes are not aligned. Fixed volumes are the first channel; cases of the other
    direction are turned round, so that a channel is a modality. Raises `ConcordError` where nothing is left to fit to.
    """
    aligned = [case for case in read_cases(cases) if not case.moving_subject]
    if not any(case.split == "train" for case in aligned):
        raise ConcordError(
            f"{cases}: no aligned case of split train; expected two images of one subject: set intra: true and train: N for the dataset of the fit"
        )
    channels = modalities_of(aligned)
    held_out = read_pairs(turned(aligned, channels), "validation") if any(case.split == "validation" for case in aligned) else []
    train = read_pairs(turned(aligned, channels), "train")
    return fit_patch_metric(train, held_out, settings, seed=run.seed, threads=run.threads, out=out, channels=channels)


def load_patch_metric(weights: Path | str) -> tuple[PatchCnn, dict[str, Any]]:
    """The fitted network, for evaluation only, and its card.

    Raises `ConcordError` for files that are missing or changed (see `load_network`), and weights of another network.
    """
    return load_network(weights, ARCHITECTURE, partial(_built, weights))


def _built(weights: Path | str, card: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> PatchCnn:
    if (configuration := card.get("configuration")) not in CONFIGURATIONS:
        raise ConcordError(f"{weights}: no configuration {configuration!r}{choices(configuration, CONFIGURATIONS)}")
    if (dimension := card.get("dimension")) not in (2, 3):
        raise ConcordError(f"{weights}: dimension {dimension!r} in its card; expected 2 or 3: fit again")
    return PatchCnn(configuration, dimension)


def normalised(array: np.ndarray, card: Mapping[str, Any], channel: str, mask: np.ndarray | None = None) -> np.ndarray:
    """Intensities as the network was trained on, float32: to [0, 1] by minimum and maximum, then by the channel's mean and deviation.

    With a mask, minimum and maximum are those within it and values outside are clipped to them (ours). Raises `ConcordError` for
    a channel that the card does not know, a constant image and an empty mask.
    """
    known = card.get("normalisation", {})
    if channel not in known:
        raise ConcordError(f"channel {channel!r} is not one of the network's{choices(channel, known)}")
    return (unit_range(array, f"{channel} volume", mask) - np.float32(known[channel]["mean"])) / np.float32(known[channel]["std"])


@dataclass
class _Progress:
    """What a checkpoint holds beside tensors."""

    step: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    best_row: int | None = None
    since: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0])
    """Sums since the last row: loss, accuracy, batches, seconds."""
    curve: list[dict[str, Any]] = field(default_factory=list)


class _Fit:
    """A network on its way: weights, optimiser, curve."""

    def __init__(
        self, settings: PatchMetricFit, train: Sequence[AlignedPair], validation: Sequence[AlignedPair], *, seed: int, device: torch.device
    ) -> None:
        self.settings, self.device, self.progress = settings, device, _Progress()
        self.sampler = PatchSampler(train, settings.sampler, seed=seed, device=device)
        same = {"seed": seed, "normalisation": self.sampler.normalisation, "device": device}
        self.held_out = PatchSampler(validation, settings.sampler, **same) if validation else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = PatchCnn(settings.configuration, self.sampler.dimension)
        last = torch.channels_last_3d if self.sampler.dimension == 3 else torch.channels_last
        self._format = last if device.type == "cpu" else torch.contiguous_format  # on the CPU twice as fast
        self.network = network.to(device, memory_format=self._format)
        self._patches = ((settings.sampler.patch - network.patch_vx) // network.stride_vx + 1) ** self.sampler.dimension
        self.best: dict[str, torch.Tensor] = {}
        descent = partial(GradientDescent, momentum=settings.momentum, dampening=settings.dampening)
        make = Adam if settings.optimiser == "adam" else descent
        self.optimiser: Optimiser = make(self.network.named_parameters(), settings.learning_rate, weight_decay=settings.weight_decay)

    def run(self, out: Path, key: str) -> None:
        """From the checkpoint, where there is one, to the last step."""
        settings, file = self.settings, beside(out, ".checkpoint.safetensors")
        if stored := load_checkpoint(file, key):
            self._restore(*stored)
        progress = self.progress
        log.info("fitting on %s, steps %d to %d", described(self.device), progress.step, settings.steps)
        with closing(prefetched(self.sampler.batch, range(progress.step, settings.steps))) as batches:
            clock = time.perf_counter()
            for patches, labels in batches:
                self._step(patches, labels)
                progress.since[3] += time.perf_counter() - clock
                if progress.step % settings.validation_every == 0 or progress.step == settings.steps:
                    self._add_row()
                    write_text(beside(out, ".csv"), curve_csv(progress.curve, CURVE))
                if progress.step % settings.checkpoint_every == 0 and progress.step < settings.steps:
                    self._checkpoint(file, key)
                clock = time.perf_counter()

    def chosen(self) -> dict[str, torch.Tensor]:
        """The final weights."""
        return self.best or self.network.state_dict()

    def scores(self) -> dict[str, Any]:
        """The learning curve's row of the final weights."""
        return untimed(self.progress.curve[-1 if self.progress.best_row is None else self.progress.best_row])

    def _step(self, patches: torch.Tensor, labels: torch.Tensor) -> None:
        settings, progress = self.settings, self.progress
        cosine = (1 + math.cos(math.pi * progress.step / settings.steps)) / 2
        self.optimiser.learning_rate = settings.learning_rate * (cosine if settings.decay == "cosine" else 1)
        loss, accuracy = self._loss(patches, labels)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        check_loss(value := loss.item(), f"at step {progress.step}", settings.learning_rate)
        progress.step += 1
        progress.since = [total + one for total, one in zip(progress.since, (value, accuracy.item(), 1, 0), strict=True)]

    def _loss(self, patches: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hinge loss, mean of `max(0, 1 - y N)` (paper, sec. 2.2; the mean is ours), and the share of patches on their side of 0.

        A cube larger than the patch gives a map of dissimilarities, one a patch in it; all of them have the cube's label.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            dissimilarity = self.network(patches.contiguous(memory_format=self._format))
        agreement = labels[:, None] * dissimilarity.flatten(1).float()
        return (1 - agreement).clamp(min=0).mean(), (agreement > 0).float().mean()

    def _add_row(self) -> None:
        """A row of the learning curve; at a constant learning rate the weights are kept where they are the best so far."""
        progress, at_rest = self.progress, self.settings.decay == "cosine"
        loss, accuracy, batches, seconds = progress.since
        progress.since, progress.seconds = [0.0] * 4, progress.seconds + seconds
        row = {"step": progress.step, "train_loss": loss / batches, "train_accuracy": accuracy / batches} | self._validation()
        held_out = None if at_rest else row.get("validation_loss")
        if held_out is not None and (progress.best_loss is None or held_out <= progress.best_loss):
            progress.best_loss, progress.best_row = held_out, len(progress.curve)
            self.best = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        log_row(row)
        speed = batches * self.settings.sampler.batch * self._patches / seconds
        progress.curve.append(row | {"seconds": round(progress.seconds, 3), "patches_per_second": round(speed, 1)})

    def _validation(self) -> dict[str, float]:
        """Loss and accuracy on the held-out patches, or nothing where there are none."""
        if self.held_out is None:
            return {}
        batches = math.ceil(self.settings.validation_patches / self.settings.sampler.batch)
        with torch.no_grad():
            parts = [torch.stack(self._loss(*self.held_out.batch(i, "validation"))) for i in range(batches)]
        loss, accuracy = torch.stack(parts).double().mean(0).tolist()
        return {"validation_loss": loss, "validation_accuracy": accuracy}

    def _checkpoint(self, file: Path, key: str) -> None:
        """Weights, momentum, the best weights so far, and the progress."""
        groups = {"network": self.network.state_dict(), "optimiser": self.optimiser.state(), "best": self.best}
        save_checkpoint(file, groups, asdict(self.progress), key=key)

    def _restore(self, groups: Mapping[str, dict[str, torch.Tensor]], progress: Mapping[str, Any]) -> None:
        self.network.load_state_dict(groups["network"])
        self.optimiser.restore(groups["optimiser"])
        self.best, self.progress = groups["best"], _Progress(**progress)
