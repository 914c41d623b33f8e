"""Settings of the fit of a patch metric."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nets.shapes import CONFIGURATIONS
from pipeline.errors import choices


class PatchPairSettings(BaseModel):
    """How patches are drawn. The paper varies position, scale, rotation and mirroring; it does not give the ranges."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: int = Field(
        17,
        ge=3,
        description="edge of a sampled cube in voxels; 17 in the paper, one patch. A larger one holds many, which share most of their computation (ours)",
    )
    batch: int = Field(128, ge=2, description="pairs of cubes in a batch, half of them aligned; 128 in the paper")
    scale: tuple[float, float] = Field((0.8, 1.25), description="range of the edge of the sampled cube over that of the patch (ours)")
    rotation_degrees: float = Field(10.0, ge=0, le=180, description="largest rotation about a random axis (ours; the author's later default)")
    mirror: bool = Field(True, description="mirror each axis with probability one half")
    contrast: float = Field(
        0.0, ge=0, le=2, description="intensities v in [0, 1] become gain v^gamma, log of both uniform within this bound, each channel alone (ours)"
    )
    swap_channels: bool = Field(False, description="swap the channels of half of the pairs, for a metric that does not depend on their order (ours)")

    @model_validator(mode="after")
    def _check(self) -> PatchPairSettings:
        if self.batch % 2:
            raise ValueError("batch must be even: half of it is aligned, half is not")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError("scale must be two positive numbers, the smaller one first")
        return self


class PatchMetricFit(BaseModel):
    """Settings of a fit; the defaults are the paper's where it gives them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    configuration: str = Field("B", description=f"layers of the network: {', '.join(CONFIGURATIONS)}")
    pairs: int | Literal["all"] = Field("all", description="fit to so many pairs, the first in a seeded random order (the paper's k)")
    sampler: PatchPairSettings = Field(PatchPairSettings(), description="how patches are drawn, and how many a batch")
    steps: int = Field(100_000, ge=1, description="batches to fit to (ours; the paper does not say)")
    optimiser: Literal["sgd", "adam"] = Field("sgd", description="stochastic gradient descent with momentum (paper), or Adam (ours)")
    learning_rate: float = Field(0.01, gt=0, description="0.01 of stochastic gradient descent in the paper; Adam wants a tenth of it")
    decay: Literal["constant", "cosine"] = Field("constant", description="learning rate over the steps: as in the paper, or to zero (ours)")
    momentum: float = Field(0.9, ge=0, lt=1, description="0.9 in the paper")
    dampening: float = Field(0.9, ge=0, lt=1, description="of the momentum; Torch 7, which the paper used, takes the momentum by default")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty; the paper names none")
    validation_every: int = Field(1000, ge=1, description="steps between rows of the learning curve")
    validation_patches: int = Field(2048, ge=2, description="patch pairs of a validation, always the same ones")
    checkpoint_every: int = Field(1000, ge=1, description="steps between checkpoints")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic of the convolutions; weights are always single precision")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one, else the CPU")

    @model_validator(mode="after")
    def _check(self) -> PatchMetricFit:
        if self.configuration not in CONFIGURATIONS:
            raise ValueError(f"no configuration {self.configuration!r}{choices(self.configuration, CONFIGURATIONS)}")
        layout = CONFIGURATIONS[self.configuration]
        if self.sampler.patch < layout.patch_vx or (self.sampler.patch - layout.patch_vx) % layout.stride_vx:
            raise ValueError(
                f"sampler.patch {self.sampler.patch}: expected {layout.patch_vx}, the patch of configuration {self.configuration}, or that and a "
                f"multiple of its stride, {layout.stride_vx}"
            )
        if self.pairs != "all" and self.pairs < 1:
            raise ValueError("pairs must be 1 or more, or all")
        return self
