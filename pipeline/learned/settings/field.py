"""Settings of the fit of a displacement network."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nets.shapes import CELL_CHANNELS, UNET_WIDTHS

if TYPE_CHECKING:
    from torch import nn


class Augmentation(BaseModel):
    """What is done to a pair at random, to both images alike. The paper names all of it and gives numbers for the crops only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    swap: bool = Field(True, description="fixed and moving image change places in half of the draws")
    flip: bool = Field(True, description="mirror along x, and along y, in half of the draws each")
    rotation_deg: float = Field(30.0, ge=0, le=180, description="bound of the rotation about the centre (ours)")
    crop: tuple[float, float] = Field(
        (0.8, 1.0), description="edge of a random part that is enlarged to the whole, as a share of the image's (paper)"
    )
    deform_vx: float = Field(1.0, ge=0, description="root mean square of each component of a random displacement, low-pass filtered noise (ours)")
    deform_sigma_vx: float = Field(8.0, gt=0, description="sigma of that filter, a Gaussian (ours)")

    @model_validator(mode="after")
    def _check(self) -> Augmentation:
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop {self.crop}: expected two shares, 0 < low <= high <= 1")
        return self


NO_AUGMENTATION = Augmentation(swap=False, flip=False, rotation_deg=0, crop=(1, 1), deform_vx=0)


class FieldFit(BaseModel):
    """Settings of a fit; the defaults are the ReSAtt paper's where it gives them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Literal["resatt", "unet"] = Field("resatt", description="U-Net with convolutive attention on its skip connections, or without")
    widths: tuple[int, ...] = Field(UNET_WIDTHS, min_length=2, description="features of the contracting stages (ours)")
    channels: int = Field(CELL_CHANNELS, ge=1, description="resatt: features within each attention cell (ours)")
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
        from nets.unet import build

        scales = (self.score_scale, self.output_scale)
        return build(self.network, widths=self.widths, channels=self.channels, scales=scales, svf=self.svf)

    def rate(self, progress: float) -> float:
        """Learning rate when `progress` of all steps are done."""
        return self.learning_rate * ((1 + math.cos(math.pi * progress)) / 2 if self.decay == "cosine" else 1)
