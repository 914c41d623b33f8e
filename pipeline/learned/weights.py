"""Weights of fitted networks: safetensors with a JSON card beside them, so that nothing is pickled and everything can be traced."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import ConcordError
from pipeline.files import whole_file, write_json

log = logging.getLogger(__name__)
SUFFIX = ".safetensors"
Network = TypeVar("Network", bound=nn.Module)


def weights_file(path: Path | str) -> Path:
    """`NAME.safetensors` for `NAME` or `NAME.safetensors`."""
    return beside(path, SUFFIX)


def card_file(path: Path | str) -> Path:
    """`NAME.json`, the card of `NAME.safetensors`."""
    return beside(path, ".json")


def beside(path: Path | str, suffix: str) -> Path:
    """A file named after the weights, with another suffix; dots within the name stay."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(SUFFIX) + suffix)


def save_weights(path: Path | str, state: Mapping[str, torch.Tensor], card: Mapping[str, Any]) -> dict[str, Any]:
    """Write `NAME.safetensors` and its card, each whole or absent; the card gains `bytes` and `sha256` and is returned.

    The card should say what made the weights: architecture, configuration, seed, data, scores, versions. It holds no date, so
    that the same fit writes the same bytes.
    """
    target = weights_file(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with whole_file(target) as temporary:
        save_file(tensors, temporary)
    whole = {**card, "bytes": target.stat().st_size, "sha256": _sha256(target)}
    write_json(card_file(path), whole)
    return whole


def load_weights(path: Path | str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors by name, on the CPU, and the card.

    Raises `ConcordError` for a missing file or card, a card that is no JSON object, and weights that are truncated or not those
    that the card describes.
    """
    target = weights_file(path)
    if not target.is_file():
        raise ConcordError(f"{target}: no such file; expected the weights of a fitted network: fit it first")
    card = _read_card(card_file(path), target)
    if (size := target.stat().st_size) < card["bytes"]:
        raise ConcordError(f"{target}: truncated, {size} of {card['bytes']} bytes; copy it again or fit again")
    if _sha256(target) != card["sha256"]:
        raise ConcordError(f"{target}: sha256 is not the one in {card_file(path).name}; the file was changed: copy both again or fit again")
    try:
        return load_file(target), card
    except SafetensorError as error:
        raise ConcordError(f"{target}: no safetensors file ({error}); copy it again or fit again") from error


def load_network(
    path: Path | str, architecture: str, build: Callable[[Mapping[str, Any], Mapping[str, torch.Tensor]], Network]
) -> tuple[Network, dict[str, Any]]:
    """A fitted network, for evaluation only, and its card; `build(card, tensors)` makes it, and its fresh weights are replaced.

    Raises `ConcordError` as `load_weights` and `load_into`, for weights of another architecture, and a card from which nothing can be built.
    """
    state, card = load_weights(path)
    if (found := card.get("architecture")) != architecture:
        raise ConcordError(f"{path}: weights of architecture {found!r}; expected {architecture!r}: choose weights that a {architecture} fit wrote")
    try:
        with torch.random.fork_rng(devices=[]):
            network = build(card, state)
    except (KeyError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ConcordError(f"{path}: its card describes no network ({told}); expected the card that the fit wrote: copy it again") from error
    try:
        load_into(network, state, path)
    except ConcordError as error:
        said = ", ".join(f"{name} {card[name]}" for name in ("network", "configuration", "dimension", "size") if name in card)
        raise ConcordError(f"{error} (its card says {said})") from error
    return network.eval().requires_grad_(False), card


def load_into(network: nn.Module, state: Mapping[str, torch.Tensor], path: Path | str) -> None:
    """Put weights into a network. Raises `ConcordError` saying which tensor is missing, unknown or of another shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            found, wanted = given.get(name, "missing"), expected.get(name, "no such tensor")
            raise ConcordError(f"{path}: weights of another architecture: {name} is {found}, {type(network).__name__} expects {wanted}; fit again")
    network.load_state_dict(dict(state))


def save_checkpoint(path: Path, groups: Mapping[str, Mapping[str, torch.Tensor]], progress: Mapping[str, Any], *, key: str) -> None:
    """Write a fit's state as one whole file: groups of named tensors, and everything else as JSON in its header.

    `key` says which fit it is; names of groups hold no dot.
    """
    tensors = {f"{group}.{name}": tensor.detach().cpu().contiguous() for group, members in groups.items() for name, tensor in members.items()}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, {"key": key, "groups": json.dumps(list(groups)), "progress": json.dumps(progress)})


def load_checkpoint(path: Path, key: str) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]] | None:
    """The groups, on the CPU, and the progress of a checkpoint of the same key; None where there is none, or one that cannot be used."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as stored:
            header = stored.metadata() or {}
            if header.get("key") == key:
                groups: dict[str, dict[str, torch.Tensor]] = {group: {} for group in json.loads(header["groups"])}
                for whole in stored.keys():  # noqa: SIM118 (no mapping)
                    group, _, name = whole.partition(".")
                    groups[group][name] = stored.get_tensor(whole)
                return groups, json.loads(header["progress"])
    except (SafetensorError, ValueError) as error:
        log.warning("%s: no checkpoint (%s); starting anew", path, error)
        return None
    log.info("%s: checkpoint of other settings or data; starting anew", path)
    return None


def _read_card(path: Path, weights: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConcordError(f"{path}: no such file; expected the card of {weights.name} beside it: copy it too or fit again") from error
    except ValueError as error:
        raise ConcordError(f"{path}: no JSON ({error}); expected the card of {weights.name}: copy it again or fit again") from error
    if not isinstance(card, dict) or not isinstance(card.get("sha256"), str) or not isinstance(card.get("bytes"), int):
        raise ConcordError(f"{path}: not the card of {weights.name}; expected an object with sha256 and bytes: copy it again or fit again")
    return card


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
