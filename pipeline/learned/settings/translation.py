"""Settings of the fit of the hierarchical translation model."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from nets.translation import HierarchicalTranslation

StageName = Literal["coarse", "translate", "fine", "joint"]
STAGES: tuple[str, ...] = get_args(StageName)
Output = Literal["displacement", "velocity"]
SimilarityName = Literal["nmi", "ncc", "lg", "mattes", "mind", "ngf"]


class LossWeights(BaseModel):
    """Weights of the terms; the defaults are the paper's for its NMI. For other similarities it has found others, which it does not name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    coarse_smooth: float = Field(0.02, ge=0, description="alpha_1: mean squared gradient of the coarse displacement in voxels")
    coarse_similarity: float = Field(0.15, ge=0, description="beta_1: fixed and warped moving image, in each direction")
    mask_similarity: float = Field(0.02, ge=0, description="alpha_2: mask and moving image")
    translated_similarity: float = Field(0.02, ge=0, description="beta_2: translated and moving image")
    translated_squares: float = Field(2.5, ge=0, description="lambda_2: mean squared difference of the warped translated image and the fixed one")
    fine_smooth: float = Field(0.02, ge=0, description="alpha_3: mean squared gradient of the fine displacement in voxels")
    fine_similarity: float = Field(0.1, ge=0, description="beta_3: fixed image and moving one, warped by the whole displacement")
    fine_squares: float = Field(1.5, ge=0, description="lambda_3: the same of the translated image, squared difference")


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
        from nets.translation import HierarchicalTranslation

        parts = tuple(stage for stage in self.stages if stage != "joint")
        how = {"coarse_output": self.coarse_output, "fine_output": self.fine_output, "translate_sees": self.translate_sees}
        return HierarchicalTranslation(dimension, parts=parts, **how)

    def rate(self, progress: float) -> float:
        """Learning rate when `progress` of a stage is done."""
        return self.learning_rate * ((1 + math.cos(math.pi * progress)) / 2 if self.decay == "cosine" else 1)
