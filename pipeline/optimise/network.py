"""A trained patch metric in the loop: its network, the images scaled as it was trained, and which channel is which."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConcordError
from pipeline.learned.patch_metric import load_patch_metric, normalised
from pipeline.methods import Pair

if TYPE_CHECKING:
    from nets.patch_cnn import PatchCnn
    from pipeline.optimise.method import OptimiserLoop


@dataclass(frozen=True)
class TrainedMetric:
    """The network, and whether the fixed image is its second channel."""

    network: PatchCnn
    swap: bool


def as_compared(settings: OptimiserLoop, pair: Pair) -> tuple[Pair, TrainedMetric | None]:
    """The pair as the similarity sees it, and the network where the similarity is one: then with intensities as it was trained on.

    Raises `ConcordError` for weights that are missing, changed or of another dimension, and for modalities that are not the network's.
    """
    if settings.similarity != "patch-cnn":
        return pair, None
    weights = settings.weights
    if weights is None:
        raise ConcordError("similarity patch-cnn needs `weights`: name a .safetensors file that `concord stage train` or the workflow made")
    network, card = load_patch_metric(weights)
    if network.dimension != pair.fixed.dimension:
        raise ConcordError(f"{weights}: a {network.dimension}-D network for {pair.fixed.dimension}-D images; choose weights fitted to such images")
    short = [n for n in pair.fixed.geometry.size if n < network.patch_vx]
    if short:
        raise ConcordError(
            f"{pair.fixed.name}: {pair.fixed.geometry.size} voxels, fewer than the network's patch of {network.patch_vx} along an axis"
        )
    swap = _swapped(weights, card, pair)
    first, second = card["channels"][::-1] if swap else card["channels"]
    fixed = pair.fixed.with_array(normalised(pair.fixed.array, card, first))
    moving = pair.moving.with_array(normalised(pair.moving.array, card, second))
    return replace(pair, fixed=fixed, moving=moving), TrainedMetric(network, swap)


def _swapped(weights: Path, card: dict, pair: Pair) -> bool:
    """Whether the fixed image is of the network's second modality."""
    channels, given = tuple(card["channels"]), (pair.fixed_modality, pair.moving_modality)
    if given == channels:
        return False
    if given == channels[::-1]:
        return True
    if card["settings"]["sampler"]["swap_channels"]:  # trained on both orders
        return False
    told = " and ".join(repr(name) for name in given) if any(given) else "unknown"
    raise ConcordError(
        f"{weights}: a metric of {channels[0]} and {channels[1]}, and the images' modalities are {told}; name them "
        "(--modalities FIXED,MOVING, or fixed_modality and moving_modality in the table of cases)"
    )
