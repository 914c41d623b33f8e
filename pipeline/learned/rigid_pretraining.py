"""Contrastive pre-training of the two extractors of Attention-Reg on aligned pairs: what lies at one place is to look alike (ours).

The method's extension (Song et al., Med Image Anal 2022) pre-trains its extractors; its loss and its pairs are not known to us.
"""

from __future__ import annotations

import logging
from contextlib import closing

import numpy as np
import torch

from metrics.similarity.contrastive import symmetric_info_nce
from nets.attention_reg import AttentionReg
from pipeline.errors import ConcordError
from pipeline.learned.fitting import check_loss, prefetched
from pipeline.learned.optimisers import Adam
from pipeline.learned.rigid_batches import RigidBatches
from pipeline.learned.settings.rigid import Pretraining

log = logging.getLogger(__name__)
REPORTED = 50


def pretrain(network: AttentionReg, batches: RigidBatches, settings: Pretraining, *, batch: int, precision: str) -> float:
    """Fit the extractors in place; returns the mean loss of the last 50 steps.

    Compared are places of the extractors' maps that both volumes know. Raises `ConcordError` for a loss that is not finite and pairs
    with hardly any place in common.
    """
    optimiser = Adam(network.extractors.named_parameters(), settings.learning_rate)
    network.train()
    losses: list[torch.Tensor] = []

    def draw(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return batches.aligned(step, batch=batch, sre_mm=settings.jitter_mm)

    with closing(prefetched(draw, range(settings.steps))) as drawn:
        for step, (volumes, known) in enumerate(drawn):
            chosen = _places(known, network, settings.positions, np.random.default_rng([batches.seed, step]))
            with torch.autocast(volumes.device.type, torch.bfloat16, enabled=precision == "bf16"):
                maps = network.features(volumes)
            first, second = (part.float().movedim(1, -1).flatten(0, 3)[chosen] for part in maps)
            loss = symmetric_info_nce(first, second, temperature=settings.temperature)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
            if (step + 1) % REPORTED == 0 or step + 1 == settings.steps:
                mean = float(torch.stack(losses[-REPORTED:]).mean())
                log.info("pretraining step %d of %d, loss %.4g", step + 1, settings.steps, mean)
                check_loss(mean, f"at step {step + 1} of the pretraining", settings.learning_rate)
    return mean


def _places(known: torch.Tensor, network: AttentionReg, positions: int, rng: np.random.Generator) -> torch.Tensor:
    """Indices of `positions` random places over all maps of a batch (all where there are fewer) that both volumes know."""
    z, y, x = (torch.arange(n, device=known.device) * stride for n, stride in zip(network.map_grid, (2, 4, 4), strict=True))
    z, y, x = (place.clamp(max=n - 1) for place, n in zip((z, y, x), known.shape[1:], strict=True))
    usable = torch.nonzero(known[:, z][:, :, y][:, :, :, x].flatten())[:, 0]
    if len(usable) < 2:
        raise ConcordError("pretrain: hardly any place is inside both volumes; expected regions that the moving volumes cover: check the truth")
    drawn = rng.permutation(len(usable))[:positions]
    return usable[torch.from_numpy(drawn).to(usable.device)]
