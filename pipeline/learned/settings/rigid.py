"""Settings of the fit of a network of rigid registration."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nets.shapes import checked_grid
from pipeline.errors import ConcordError

Input = Literal["image", "label"]
Centre = Literal["origin", "gland"]


@dataclass(frozen=True)
class Preparation:
    """How a pair becomes a network's input; part of the weights' card.

    `size` is `(x, y, z)`. Channel 0 is the fixed image or, for the input "label", the organ's label map. `cut` is the share of the fixed
    volume's voxels above the grey value that becomes the moving volume's largest. Rotations are about `centre`: the fixed volume's origin,
    as in the paper, or the centre of the region, which is the gland's (ours).
    """

    input: Input = "image"
    size: tuple[int, int, int] = (96, 96, 32)
    enlarge: float = 0.3
    centre: Centre = "origin"
    cut: float = 0.001

    @property
    def grid(self) -> tuple[int, int, int]:
        """The size as (z, y, x)."""
        x, y, z = self.size
        return z, y, x

    def card(self) -> dict[str, Any]:
        """As the card holds it."""
        return asdict(self) | {"size": list(self.size)}

    def cut_from(self, enlarge: float, weights: Path) -> Preparation:
        """The same for regions cut with `enlarge`, where 0 says that the mask is the region already.

        Raises `ConcordError` for another share than the network behind `weights` was fitted to.
        """
        if enlarge and abs(enlarge - self.enlarge) > 1e-9:
            raise ConcordError(f"enlarge {enlarge}; {weights} was fitted to regions enlarged by {self.enlarge}: set enlarge to that, or fit again")
        return replace(self, enlarge=enlarge)


@dataclass(frozen=True)
class Perturbation:
    """How starting positions are drawn: SRE between two bounds in mm, and the box of translations and angles before scaling."""

    sre_mm: tuple[float, float] = (0.0, 20.0)
    translation_mm: float = 5.0
    rotation_deg: float = 6.0


class Pretraining(BaseModel):
    """Settings; all are ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(1000, ge=1, description="batches")
    positions: int = Field(512, ge=2, description="places compared a batch, each with all the others")
    temperature: float = Field(0.1, gt=0, description="of the softmax over cosines")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam")
    jitter_mm: float = Field(4.0, ge=0, description="both volumes are moved alike by motions of up to this SRE, so that no place is always the same")


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
    attention_scale: float = Field(
        1.0,
        ge=0,
        description="of the batch norm with which fresh attention blocks begin: 1 as in the authors' code once it runs, 0 as its block means to: the "
        "identity (ours)",
    )
    pretrain: Pretraining | None = Field(None, description="contrastive pre-training of the extractors (ours)")
    warm_start: Path | None = Field(
        None,
        description="weights to begin with, such as a second stage of the first one's (ours); in config.yaml the name of a fit; default random ones",
    )
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
        if self.pretrain is not None and self.warm_start is not None:
            raise ValueError(
                f"pretrain and warm_start ({self.warm_start}) both say where weights come from; expected one of them: leave the other out"
            )
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
