"""What the parts of the hierarchical translation model are fitted by (Dai et al., eq. 1 to 3), with any of several similarities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from metrics.similarity.gradient_correlation import gradient_correlation
from metrics.similarity.gradients import normalised_gradient_fields
from metrics.similarity.local_correlation import local_correlation
from metrics.similarity.mind import mind_ssd
from metrics.similarity.mutual_information import mutual_information
from metrics.similarity.parzen import parzen_mutual_information, unit_range
from metrics.similarity.regularisers import mean_squared_gradient
from nets.fields import warp
from nets.translation import Translated

SimilarityName = Literal["nmi", "ncc", "lg", "mattes", "mind", "ngf"]
Compare = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
UNIT = (0.0, 1.0)


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


def comparison(name: SimilarityName, *, bins: int) -> Compare:
    """Dissimilarity of two images `(B, 1, [z,] y, x)` in [0, 1], of which the first is not differentiated; a scalar.

    nmi: mutual information of Gaussian Parzen windows, what the paper calls so; mattes: that of B-splines (Mattes et al.), near it and
    ten times as fast (ours); ncc: local squared correlation in windows of 9; lg: `GradientCorrelation`, in place of LG; mind, ngf: ours.
    """
    return {
        "nmi": lambda fixed, moving: parzen_mutual_information(fixed, moving, bins=bins),
        "mattes": lambda fixed, moving: mutual_information(fixed, moving, bins=bins + 4, fixed_range=UNIT, moving_range=UNIT),  # four stay empty
        "ncc": local_correlation,
        "lg": gradient_correlation,
        "mind": mind_ssd,
        "ngf": normalised_gradient_fields,
    }[name]


def coarse_loss(images: torch.Tensor, found: Translated, compare: Compare, weights: LossWeights, *, bidirectional: bool) -> torch.Tensor:
    """Eq. 1, of images `(B, 2, [z,] y, x)`, fixed and moving; without `bidirectional` the fixed image is not warped. A scalar."""
    fixed, moving = images.split(1, dim=1)
    unlike = compare(fixed, warp(moving, found.coarse.forward))
    if bidirectional:
        unlike = unlike + compare(moving, warp(fixed, found.coarse.inverse))
    return weights.coarse_smooth * mean_squared_gradient(found.coarse.forward) + weights.coarse_similarity * unlike


def translation_loss(images: torch.Tensor, found: Translated, compare: Compare, weights: LossWeights) -> torch.Tensor:
    """Eq. 2; the squares are a mean over voxels (our reading), the mask is compared scaled to [0, 1] (ours, see `unit_range`)."""
    fixed, moving = images.split(1, dim=1)
    mask, translated = compare(moving, unit_range(found.mask)), compare(moving, found.translated)
    coarse = found.translated if found.coarse is None else warp(found.translated, found.coarse.forward)
    squares = (coarse - fixed).square().mean()
    return weights.mask_similarity * mask + weights.translated_similarity * translated + weights.translated_squares * squares


def fine_loss(images: torch.Tensor, found: Translated, compare: Compare, weights: LossWeights) -> torch.Tensor:
    """Eq. 3; without a translated image there are no squares, as two modalities have none that mean anything."""
    fixed, moving = images.split(1, dim=1)
    value = weights.fine_smooth * mean_squared_gradient(found.fine)
    value = value + weights.fine_similarity * compare(fixed, warp(moving, found.displacement_vx))
    if found.translated is None:
        return value
    return value + weights.fine_squares * (warp(found.translated, found.displacement_vx) - fixed).square().mean()
