"""Instance optimisation: a network's displacement of one pair, improved on that pair itself."""

from __future__ import annotations

import torch

from metrics.similarity.regularisers import mean_squared_gradient
from nets.fields import warp
from nets.voxelmorph import resized, shrunk
from pipeline.learned.optimisers import Adam
from pipeline.learned.settings.translation import Refinement, SimilarityName
from pipeline.learned.translation_losses import Compare, comparison


def refined(images: torch.Tensor, displacement_vx: torch.Tensor, how: Refinement, similarity: SimilarityName) -> tuple[torch.Tensor, list[float]]:
    """The displacement `(b, d, [z,] y, x)` of pairs `(b, 2, [z,] y, x)` plus the correction with the lowest loss that was met, and each step's loss."""
    compare: Compare = comparison(how.similarity or similarity, bins=how.bins)
    fixed, moving = images.split(1, dim=1)
    size = displacement_vx.shape[2:]
    correction = torch.zeros(*displacement_vx.shape[:2], *shrunk(size, how.shrink), device=images.device, requires_grad=True)
    adam = Adam([("correction", correction)], how.learning_rate)
    losses: list[float] = []
    best = displacement_vx
    with torch.enable_grad():
        for iteration in range(how.iterations + 1):
            found = displacement_vx.detach() + resized(correction, size)
            loss = compare(fixed, warp(moving, found)) + how.smooth * mean_squared_gradient(found)
            losses.append(float(loss.detach()))
            if losses[-1] <= min(losses):
                best = found.detach()
            if iteration < how.iterations:
                adam.zero_grad()
                loss.backward()
                adam.step()
    return best, losses
