"""Fitting the networks of rigid registration (Attention-Reg and Feature-Reg, Song et al., MICCAI 2021; MSReg; DVNet).

A fit is a pure function of cases, settings, seed and threads: it can be killed at any point and goes on from its checkpoint to the
same weights, bit for bit on a CPU. On a GPU the gradients of pooling and attention are summed in no fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from nets.rigid_networks import LEAST_GRIDS, build, checked_grid
from pipeline.cases import read_cases
from pipeline.errors import ConcordError, choices
from pipeline.learned.fitting import choose_device, kept, made_of, reproducible
from pipeline.learned.rigid_batches import Perturbation
from pipeline.learned.rigid_cases import Centre, Input, Preparation, RigidCase, read_rigid_cases
from pipeline.learned.rigid_pretraining import Pretraining
from pipeline.learned.rigid_training import RigidTraining
from pipeline.learned.weights import load_network
from pipeline.methods import Run
from pipeline.provenance import fingerprint

ARCHITECTURE = "rigid-network"


class RigidFit(BaseModel):
    """Settings of a fit; the defaults are the paper's where it gives them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Literal["attention-reg", "feature-reg", "msreg", "dvnet"] = Field("attention-reg", description="which network")
    input: Input = Field("image", description="first channel: the fixed image, or the organ's label map")
    size: tuple[int, int, int] = Field((96, 96, 32), description="voxels (x, y, z) into which the region is divided")
    enlarge: float = Field(0.3, ge=0, description="the region is the organ's box, larger by this share of its size on each side")
    cut: float = Field(0.001, ge=0, lt=1, description="share of the fixed image's voxels brighter than the grey value that becomes the largest")
    sre_mm: tuple[float, float] = Field((0.0, 20.0), description="SRE of the starting positions, uniform (paper: 0 to 20, second stage 0 to 8)")
    translation_mm: float = Field(5.0, gt=0, description="bound of each translation before scaling to the SRE")
    rotation_deg: float = Field(6.0, gt=0, description="bound of each angle before scaling to the SRE")
    centre: Centre = Field("origin", description="the parameters' rotation is about the fixed volume's origin, or the gland's centre (ours)")
    loss: Literal["mse", "sre"] = Field("mse", description="squared error of the six numbers, or mean distance of 512 surface vertices (ours)")
    epochs: int = Field(300, ge=1, description="passes over the draws")
    batch: int = Field(8, ge=1, description="samples a step")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam")
    decay: Literal["steps", "cosine"] = Field("steps", description="learning rate: falls at the milestones, or as a cosine to zero (ours)")
    milestones: tuple[int, ...] | int = Field(
        (120, 170, 250), description="first epochs, counted from 1, of a lower learning rate; one number: lower after every so many epochs"
    )
    factor: float = Field(0.3, gt=0, le=1, description="of the learning rate at a milestone")
    draws_per_epoch: int | None = Field(None, ge=1, description="samples an epoch; default one a training case")
    validation_draws: int = Field(5, ge=1, description="starting positions of each validation case, always the same ones")
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without a better validation SRE; default never")
    average: float | None = Field(None, gt=0, lt=1, description="decay a step of an average of the weights, taken where it is better (ours)")
    pretrain: Pretraining | None = Field(None, description="contrastive pre-training of the extractors (ours)")
    checkpoint_every: int = Field(1, ge=1, description="epochs between checkpoints")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic of the network; weights are always single precision")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one, else the CPU")

    @model_validator(mode="after")
    def _check(self) -> RigidFit:
        if not 0 <= self.sre_mm[0] <= self.sre_mm[1] or not self.sre_mm[1] > 0:
            raise ValueError(f"sre_mm {self.sre_mm}: expected two numbers in mm, 0 <= low <= high, high above 0")
        if isinstance(self.milestones, int) and self.milestones < 1:
            raise ValueError(f"milestones {self.milestones}: expected epochs, or one number of 1 or more")
        if self.pretrain is not None and self.network not in ("attention-reg", "feature-reg"):
            raise ValueError(f"pretrain: {self.network} has no extractors; expected attention-reg or feature-reg, or no pretraining")
        checked_grid(self.preparation.grid, self.network)
        return self

    @property
    def preparation(self) -> Preparation:
        """How pairs become inputs."""
        return Preparation(self.input, self.size, self.enlarge, self.centre, self.cut)

    @property
    def perturbation(self) -> Perturbation:
        """How starting positions are drawn."""
        return Perturbation(self.sre_mm, self.translation_mm, self.rotation_deg)

    def rate(self, epoch: int, progress: float) -> float:
        """Learning rate in `epoch`, counted from 0, when `progress` of all steps are done.

        The authors step their scheduler at the start of an epoch, so that the one called 120 when counting from 1 is the first lower one.
        """
        if self.decay == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2
        every = isinstance(self.milestones, int)
        times = epoch // self.milestones if every else sum(milestone <= epoch + 1 for milestone in self.milestones)
        return self.learning_rate * self.factor**times


def fit_rigid(
    train: Sequence[RigidCase], validation: Sequence[RigidCase], settings: RigidFit, *, seed: int, threads: int, out: Path
) -> dict[str, Any]:
    """Fit, write `OUT.safetensors`, its card `OUT.json` and the learning curve `OUT.csv`, and return the card.

    The weights are those of the lowest validation SRE, or the last ones where `validation` is empty. A checkpoint of the same settings,
    seed, threads and data beside OUT is gone on from, and removed at the end. Raises `ConcordError` for no cases, CUDA asked for and
    absent, and a loss that is not finite.
    """
    if not train:
        raise ConcordError("no training case; expected one or more: give cases the split train")
    for case in (*train, *validation):
        if case.how != settings.preparation:
            raise ConcordError(f"case {case.name}: prepared as {case.how}; expected {settings.preparation}, as the settings say: prepare it so")
    device = choose_device(settings.device)
    data = {"train": [case.data for case in train], "validation": [case.data for case in validation]}
    source = made_of(settings, seed=seed, threads=threads, data=data)
    with reproducible(threads):
        training = RigidTraining(settings, train, validation, seed=seed, device=device)
        training.run(out, fingerprint(source))
    card = {
        "architecture": ARCHITECTURE,
        "network": settings.network,
        **settings.preparation.card(),
        "sre_mm": list(settings.sre_mm),
        "parameters": sum(p.numel() for p in training.network.parameters()),
        "scores": training.scores(),
        **source,
    }
    return kept(out, training.chosen(), card, device)


def fit_to_cases(settings: RigidFit, cases: Path, *, run: Run, out: Path) -> dict[str, Any]:
    """Fit to the cases of split train; validation cases, where there are any, choose the weights.

    Every case needs a label map of the organ, a true transform (rigid) and a surface mesh. Raises `ConcordError` where one has not.
    """
    table = read_cases(cases)
    train = read_rigid_cases(table, "train", settings.preparation)
    held_out = read_rigid_cases(table, "validation", settings.preparation) if any(case.split == "validation" for case in table) else []
    return fit_rigid(train, held_out, settings, seed=run.seed, threads=run.threads, out=out)


def load_rigid(weights: Path | str) -> tuple[nn.Module, Preparation, dict[str, Any]]:
    """The fitted network, for evaluation only, how its input is made, and its card.

    Raises `ConcordError` for files that are missing or changed (see `load_network`), and weights of another architecture or size.
    """
    network, card = load_network(weights, ARCHITECTURE, partial(_built, weights))
    return network, _prepared(card), card


def _built(weights: Path | str, card: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> nn.Module:
    if (name := card.get("network")) not in LEAST_GRIDS:
        raise ConcordError(f"{weights}: no network {name!r}{choices(name, LEAST_GRIDS)}")
    return build(name, _prepared(card).grid)


def _prepared(card: Mapping[str, Any]) -> Preparation:
    return Preparation(**{key: card[key] for key in ("input", "enlarge", "centre", "cut")}, size=tuple(int(n) for n in card["size"]))
