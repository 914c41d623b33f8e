"""Which modalities a network's weights were fitted to: one that translates has a direction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ConcordError
from pipeline.methods import Pair


def check_modalities(pair: Pair, card: Mapping[str, Any], weights: Path | None) -> None:
    """Raises `ConcordError` for an image whose modality is known and another than the card says of the fit, where that is known."""
    for side, given in (("fixed", pair.fixed_modality), ("moving", pair.moving_modality)):
        known = card.get("modalities", {}).get(side, "")
        if given and known and given != known:
            raise ConcordError(f"{side} image: {given}, and {weights} was fitted with {known} there; expected that: exchange the two images")
