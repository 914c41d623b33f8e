"""Settings of the fit of CycleGAN."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class CycleGanFit(BaseModel):
    """Settings of a fit; the defaults are those of the authors' code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: int = Field(9, ge=1, le=20, description="residual blocks of a generator (the paper: 6 for images of 128 pixels)")
    width: int = Field(64, ge=1, le=256, description="features of the first convolutions, of generators and discriminators")
    cycle: float = Field(10.0, ge=0, description="lambda: weight of the mean absolute difference after going there and back")
    identity: float = Field(0.5, ge=0, description="weight of leaving an image of the wanted modality as it is, as a share of `cycle`")
    pool: int = Field(50, ge=0, description="images made earlier that discriminators are shown some of")
    epochs: int = Field(100, ge=1, description="passes over the images at the full learning rate")
    decay_epochs: int = Field(100, ge=0, description="further ones in which it falls to zero, linearly")
    batch: int = Field(1, ge=1, description="images of each modality a step")
    learning_rate: float = Field(2e-4, gt=0, description="of Adam, whose beta_1 is 0.5")
    flip: bool = Field(True, description="mirror along x in half of the draws")
    checkpoint_every: int = Field(1, ge=1, description="epochs between checkpoints")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one, else the CPU")
