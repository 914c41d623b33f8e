"""Fitting networks that predict a displacement between two 2-D images (ReSAtt U-Net, Parbs et al.; U-Net, after Hering et al. 2019).

A fit is a pure function of cases, settings, seed and threads: it can be killed at any point and goes on from its checkpoint to the
same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from nets.unet import CHANNELS, WIDTHS, build
from pipeline.cases import read_cases
from pipeline.errors import ConcordError
from pipeline.learned.field_batches import Augmentation
from pipeline.learned.field_cases import FieldCase, divided, named, read_field_cases
from pipeline.learned.field_training import FieldTraining
from pipeline.learned.fitting import choose_device, kept, made_of, reproducible
from pipeline.learned.weights import load_network
from pipeline.methods import Run
from pipeline.provenance import fingerprint

ARCHITECTURE = "field-network"
_SHAPE = ("network", "widths", "channels", "score_scale", "output_scale", "svf")


class FieldFit(BaseModel):
    """Settings of a fit; the defaults are the ReSAtt paper's where it gives them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Literal["resatt", "unet"] = Field("resatt", description="U-Net with convolutive attention on its skip connections, or without")
    widths: tuple[int, ...] = Field(WIDTHS, min_length=2, description="features of the contracting stages (ours)")
    channels: int = Field(CHANNELS, ge=1, description="resatt: features within each attention cell (ours)")
    score_scale: float = Field(1.0, gt=0, description="resatt: factor of the attention's scores (paper: none, that is 1)")
    output_scale: float = Field(1.0, gt=0, description="resatt: factor of the attention's sum of overlapping patches (paper: 1; 0.04 is their mean)")
    svf: bool = Field(False, description="the output is a stationary velocity, of which the field is the exponential (ours)")
    loss: Literal["composite", "label-driven"] = Field(
        "composite", description="the ReSAtt paper's, or normalised gradients, curvature and labels after Hering et al."
    )
    structure_weight: float = Field(1e6, ge=0, description="composite: weight of 1 - SSIM")
    squares_weight: float = Field(5e2, ge=0, description="composite: weight of half the sum of squared differences")
    gradient_weight: float = Field(150.0, ge=0, description="composite: weight of half the sum of squared differences of the displacement in voxels")
    curvature_weight: float = Field(10.0, ge=0, description="label-driven: weight of the curvature, the images' term having 1 (ours)")
    label_weight: float = Field(10.0, ge=0, description="label-driven: weight of the mean squared difference of one-hot labels (ours)")
    folds: int = Field(10, ge=2, description="folds of the cross-validation, by subject; the cases' own, modulo this number, where they have some")
    fold: int | None = Field(None, ge=0, description="the fold that is held out; null: training and validation are the cases' splits")
    epochs: int = Field(700, ge=1, description="passes over the training pairs")
    batch: int = Field(10, ge=1, description="pairs a step")
    learning_rate: float = Field(1e-5, gt=0, description="of Adam")
    decay: Literal["constant", "cosine"] = Field("constant", description="learning rate: as it is, or as a cosine to zero (ours)")
    augmentation: Augmentation = Field(Augmentation(), description="what is done to pairs at random")
    validation_every: int = Field(1, ge=1, description="epochs between looks at the held-out pairs")
    checkpoint_every: int = Field(1, ge=1, description="epochs between checkpoints")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one, else the CPU")

    @model_validator(mode="after")
    def _check(self) -> FieldFit:
        if self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold}: expected one of 0 to {self.folds - 1}, as folds is {self.folds}")
        if min(self.widths) < 1:
            raise ValueError(f"widths {self.widths}: expected 1 or more")
        return self

    @property
    def uses_labels(self) -> bool:
        """Whether the loss needs label maps to train."""
        return self.loss == "label-driven"

    def network_of(self) -> nn.Module:
        """A fresh network, from torch's generator."""
        scales = (self.score_scale, self.output_scale)
        return build(self.network, widths=self.widths, channels=self.channels, scales=scales, svf=self.svf)

    def rate(self, progress: float) -> float:
        """Learning rate when `progress` of all steps are done."""
        return self.learning_rate * ((1 + math.cos(math.pi * progress)) / 2 if self.decay == "cosine" else 1)


def fit_fields(
    train: Sequence[FieldCase], validation: Sequence[FieldCase], settings: FieldFit, *, seed: int, threads: int, out: Path
) -> dict[str, Any]:
    """Fit, write `OUT.safetensors`, its card `OUT.json` and the learning curve `OUT.csv`, and return the card.

    The weights are the last ones, as in the paper: held-out pairs are looked at and choose nothing, because it is on them that the network
    is reported. A checkpoint of the same settings, seed, threads and data beside OUT is gone on from, and removed at the end.
    Raises `ConcordError` for no cases, a subject on both sides, missing labels, CUDA asked for and absent, and a loss that is not finite.
    """
    if not train:
        raise ConcordError("no training case; expected one or more: give the table more subjects")
    if both := named(train) & named(validation):
        raise ConcordError(f"subjects {', '.join(sorted(both))}: to train on and held out; expected one of them")
    device = choose_device(settings.device)
    data = {"train": [case.data for case in train], "validation": [case.data for case in validation]}
    source = made_of(settings, seed=seed, threads=threads, data=data)
    with reproducible(threads):
        training = FieldTraining(settings, train, validation, seed=seed, device=device)
        training.run(out, fingerprint(source))
    card = {
        "architecture": ARCHITECTURE,
        **{name: source["settings"][name] for name in _SHAPE},
        "size": list(train[0].images.shape[:0:-1]),
        "subjects": {"train": sorted(named(train)), "validation": sorted(named(validation))},
        "parameters": sum(p.numel() for p in training.network.parameters()),
        "scores": training.scores(),
        **source,
    }
    return kept(out, training.network.state_dict(), card, device)


def fit_to_cases(settings: FieldFit, cases: Path, *, run: Run, out: Path) -> dict[str, Any]:
    """Fit to prepared 2-D cases, each pair of images once; those of the held-out subjects are reported in the learning curve.

    Raises `ConcordError` as `divided`, `read_field_cases` and `fit_fields` do.
    """
    train, held_out = divided(read_cases(cases), folds=settings.folds, fold=settings.fold, seed=run.seed)
    together = read_field_cases([*train, *held_out], labels=True) if settings.uses_labels else None
    if together is None:
        together = read_field_cases(train, labels=False) + read_field_cases(held_out, labels=True)
    return fit_fields(together[: len(train)], together[len(train) :], settings, seed=run.seed, threads=run.threads, out=out)


def load_field(weights: Path | str) -> tuple[nn.Module, dict[str, Any]]:
    """The fitted network, for evaluation only, and its card.

    Raises `ConcordError` for files that are missing or changed (see `load_network`), and weights of another architecture.
    """
    return load_network(weights, ARCHITECTURE, lambda card, _: FieldFit(**{name: card[name] for name in _SHAPE}).network_of())
