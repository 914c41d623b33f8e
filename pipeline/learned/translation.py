"""Fitting the hierarchical translation model (Dai et al., ISBI 2023), VoxelMorph (a model of its coarse part alone), and what lies between.

A fit is a pure function of cases, settings, seed and threads: it can be killed at any point and goes on from its checkpoint to the
same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from nets.translation import HierarchicalTranslation
from pipeline.cases import Case, read_cases
from pipeline.errors import ConcordError
from pipeline.learned.field_cases import FieldCase, divided, named, read_field_cases
from pipeline.learned.fitting import choose_device, kept, made_of, reproducible
from pipeline.learned.translation_losses import LossWeights, SimilarityName
from pipeline.learned.translation_training import STAGES, TranslationTraining
from pipeline.learned.weights import load_network
from pipeline.methods import Run
from pipeline.provenance import fingerprint

ARCHITECTURE = "translation"
_SHAPE = ("stages", "coarse_output", "fine_output", "translate_sees")
StageName = Literal["coarse", "translate", "fine", "joint"]
Output = Literal["displacement", "velocity"]


class TranslationFit(BaseModel):
    """Settings of a fit; the defaults are the paper's where it gives them.

    Stages coarse, translate, fine are the paper's model; coarse alone with `bidirectional: false` is VoxelMorph; without translate or
    coarse they are its ablations. The weights of the losses are the paper's for its NMI and go unchanged with other similarities, whose values
    lie between -1 and 1 as well (ours).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[StageName, ...] = Field(
        ("coarse", "translate", "fine"), min_length=1, description="parts in order, each frozen after its own; joint: all of them together (ours)"
    )
    similarity: SimilarityName = Field("nmi", description="nmi is the paper's name for mutual information; mattes, mind and ngf are ours")
    bins: int = Field(48, ge=8, le=256, description="nmi, mattes: histogram bins an image (ours: public scripts')")
    bidirectional: bool = Field(True, description="the coarse part compares both images with the other one warped")
    coarse_output: Output = Field("velocity", description="what the coarse network predicts; bidirectional needs a velocity (ours)")
    fine_output: Output = Field("displacement", description="what the fine network predicts (ours)")
    translate_sees: Literal["both", "moving"] = Field(
        "both",
        description="what the translation network is given: both images (paper), or the moving one, so that it cannot copy the fixed one (ours)",
    )
    weights: LossWeights = Field(LossWeights(), description="of the losses' terms")
    iterations: int | tuple[int, ...] = Field(150_000, description="of every stage, or a number for each")
    batch: int = Field(1, ge=1, description="pairs an iteration (ours: the paper gives none)")
    learning_rate: float = Field(1e-4, gt=0, description="of Adam (VoxelMorph's: the paper gives none)")
    decay: Literal["constant", "cosine"] = Field("constant", description="learning rate within a stage: as it is, or as a cosine to zero (ours)")
    flip: bool = Field(False, description="mirror pairs along each axis in half of the draws (ours)")
    validation_every: int = Field(1000, ge=1, description="iterations between rows of the learning curve; every stage has a multiple of it")
    checkpoint_every: int = Field(1, ge=1, description="rows of the learning curve between checkpoints")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one, else the CPU")

    @model_validator(mode="after")
    def _check(self) -> TranslationFit:
        if sorted(set(self.stages), key=STAGES.index) != list(self.stages):
            raise ValueError(f"stages {list(self.stages)}: expected each once, in the order {', '.join(STAGES)}")
        if "joint" in self.stages and len(self.stages) < 3:
            raise ValueError(f"stages {list(self.stages)}: joint goes on with two parts or more: name those before it")
        if isinstance(self.iterations, tuple) and len(self.iterations) != len(self.stages):
            raise ValueError(f"iterations {list(self.iterations)}: expected one number, or {len(self.stages)}, one a stage")
        for name, count in self.iterations_of.items():
            if count < 1 or count % self.validation_every:
                raise ValueError(f"iterations {count} of {name}: expected a positive multiple of validation_every, which is {self.validation_every}")
        if self.bidirectional and self.coarse_output != "velocity" and "coarse" in self.stages:
            raise ValueError("bidirectional: the inverse needs coarse_output velocity; expected that, or bidirectional false")
        return self

    @cached_property
    def iterations_of(self) -> dict[str, int]:
        """The iterations of every stage, in order."""
        counts = self.iterations if isinstance(self.iterations, tuple) else (self.iterations,) * len(self.stages)
        return dict(zip(self.stages, counts, strict=True))

    @property
    def epochs(self) -> int:
        """Rows of the learning curve."""
        return sum(self.iterations_of.values()) // self.validation_every

    def place(self, step: int) -> tuple[str, int]:
        """Stage of a step, counted over all stages, and which of the stage's own steps it is."""
        for name, count in self.iterations_of.items():
            if step < count:
                return name, step
            step -= count
        raise IndexError(step)

    def network_of(self, dimension: int) -> HierarchicalTranslation:
        """A fresh network, from torch's generator."""
        parts = tuple(stage for stage in self.stages if stage != "joint")
        how = {"coarse_output": self.coarse_output, "fine_output": self.fine_output, "translate_sees": self.translate_sees}
        return HierarchicalTranslation(dimension, parts=parts, **how)

    def rate(self, progress: float) -> float:
        """Learning rate when `progress` of a stage is done."""
        return self.learning_rate * ((1 + math.cos(math.pi * progress)) / 2 if self.decay == "cosine" else 1)


def fit_translation(
    train: Sequence[FieldCase], validation: Sequence[FieldCase], settings: TranslationFit, *, seed: int, threads: int, out: Path, **more: Any
) -> dict[str, Any]:
    """Fit, write `OUT.safetensors`, its card `OUT.json` and the learning curve `OUT.csv`, and return the card, which gains `more`.

    The weights are the last ones, as in the paper. A checkpoint of the same settings, seed, threads and data beside OUT is gone on from,
    within a stage or between two, and removed at the end. Raises `ConcordError` for no cases, a subject on both sides, CUDA asked for and
    absent, and a loss that is not finite.
    """
    if not train:
        raise ConcordError("no training case; expected one or more: give the table more subjects")
    if both := named(train) & named(validation):
        raise ConcordError(f"subjects {', '.join(sorted(both))}: to train on and held out; expected one of them")
    device = choose_device(settings.device)
    data = {"train": [case.data for case in train], "validation": [case.data for case in validation]}
    source = made_of(settings, seed=seed, threads=threads, data=data)
    with reproducible(threads):
        training = TranslationTraining(settings, train, validation, seed=seed, device=device)
        training.run(out, fingerprint(source))
    network = training.network
    card = {
        "architecture": ARCHITECTURE,
        **{name: source["settings"][name] for name in (*_SHAPE, "similarity")},
        "dimension": network.dimension,
        "size": list(train[0].images.shape[:0:-1]),
        **more,
        "subjects": {"train": sorted(named(train)), "validation": sorted(named(validation))},
        "parameters": {part: sum(p.numel() for p in getattr(network, part).parameters()) for part in network.parts},
        "scores": training.scores(),
        **source,
    }
    return kept(out, network.state_dict(), card, device)


def fit_to_cases(settings: TranslationFit, cases: Path, *, run: Run, out: Path) -> dict[str, Any]:
    """Fit to the cases of split train, 2-D or 3-D; those of split validation are reported in the learning curve.

    Raises `ConcordError` as `divided`, `read_field_cases`, `modalities_of` and `fit_translation` do.
    """
    train, held_out = divided(read_cases(cases), folds=2, fold=None, seed=run.seed)
    modalities = modalities_of([*train, *held_out])
    together = read_field_cases(train, labels=False, volumes=True) + read_field_cases(held_out, labels=True, volumes=True)
    check_sizes(together)
    sides = together[: len(train)], together[len(train) :]
    return fit_translation(*sides, settings, seed=run.seed, threads=run.threads, out=out, modalities=modalities)


def modalities_of(cases: Sequence[Case]) -> dict[str, str]:
    """What is fixed and what moves, the same in all cases: a translation has a direction. Raises `ConcordError` for several."""
    found = sorted({(case.fixed_modality, case.moving_modality) for case in cases})
    if len(found) > 1:
        told = ", ".join(f"{moving or 'unknown'} to {fixed or 'unknown'}" for fixed, moving in found)
        raise ConcordError(f"cases go from {told}; expected one direction, as one network translates one way: choose `directions` of the dataset")
    return dict(zip(("fixed", "moving"), found[0], strict=True))


def check_sizes(cases: Sequence[FieldCase]) -> None:
    """Raises `ConcordError` for held-out images of another size than those to train on."""
    for case in cases:
        if case.images.shape != cases[0].images.shape:
            sizes = f"{case.images.shape[:0:-1]} voxels, {cases[0].name} has {cases[0].images.shape[:0:-1]}"
            raise ConcordError(f"case {case.name}: {sizes}; expected one size for all cases: set prepare.size")


def load_translation(weights: Path | str) -> tuple[HierarchicalTranslation, dict[str, Any]]:
    """The fitted network, for evaluation only, and its card.

    Raises `ConcordError` for files that are missing or changed (see `load_network`), weights of another architecture, and a stage whose
    weights are missing.
    """
    return load_network(weights, ARCHITECTURE, partial(_built, weights))


def _built(weights: Path | str, card: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> HierarchicalTranslation:
    # how long each stage was does not matter here, and `bidirectional` only to the loss
    network = TranslationFit(**{name: card[name] for name in _SHAPE}, bidirectional=False).network_of(card["dimension"])
    if missing := [part for part in network.parts if not any(name.startswith(f"{part}.") for name in state)]:
        raise ConcordError(f"{weights}: no weights of stage {', '.join(missing)}; expected those of {', '.join(network.parts)}: fit it again")
    return network
