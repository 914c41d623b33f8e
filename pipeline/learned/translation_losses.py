"""What the parts of the hierarchical translation model are fitted by (Dai et al., eq. 1 to 3), with any of several similarities."""

from __future__ import annotations

from collections.abc import Callable

import torch

from metrics.similarity.gradient_correlation import gradient_correlation
from metrics.similarity.gradients import normalised_gradient_fields
from metrics.similarity.local_correlation import local_correlation
from metrics.similarity.mind import mind_ssd
from metrics.similarity.mutual_information import mutual_information
from metrics.similarity.parzen import parzen_mutual_information, unit_range
from metrics.similarity.regularisers import mean_squared_gradient
from nets.fields import warp
from nets.translation import Translated
from pipeline.learned.settings.translation import LossWeights, SimilarityName

Compare = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
UNIT = (0.0, 1.0)


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
