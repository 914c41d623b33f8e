"""Fitting the networks of rigid registration (Attention-Reg and Feature-Reg, Song et al., MICCAI 2021; MSReg; DVNet).

A fit is a pure function of cases, settings, seed and threads: it can be killed at any point and goes on from its checkpoint to the
same weights, bit for bit on a CPU. On a GPU the gradients of pooling and attention are summed in no fixed order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nets.rigid_networks import build
from nets.shapes import LEAST_GRIDS
from pipeline.cases import read_cases
from pipeline.errors import ConcordError, choices
from pipeline.learned.fitting import choose_device, kept, made_of, reproducible
from pipeline.learned.rigid_cases import RigidCase, read_rigid_cases
from pipeline.learned.rigid_training import RigidTraining
from pipeline.learned.settings.rigid import Preparation, RigidFit
from pipeline.learned.weights import load_network, load_weights
from pipeline.methods import Run
from pipeline.provenance import fingerprint

ARCHITECTURE = "rigid-network"


def fit_rigid(
    train: Sequence[RigidCase], validation: Sequence[RigidCase], settings: RigidFit, *, seed: int, threads: int, out: Path
) -> dict[str, Any]:
    """Fit, write `OUT.safetensors`, its card `OUT.json` and the learning curve `OUT.csv`, and return the card.

    The weights are those of the lowest validation SRE, or the last ones where `validation` is empty. A checkpoint of the same settings,
    seed, threads and data beside OUT is gone on from, and removed at the end. Raises `ConcordError` for no cases, CUDA asked for and
    absent, weights to begin with that are missing or another network's, and a loss that is not finite.
    """
    if not train:
        raise ConcordError("no training case; expected one or more: give cases the split train")
    for case in (*train, *validation):
        if case.how != settings.preparation:
            raise ConcordError(f"case {case.name}: prepared as {case.how}; expected {settings.preparation}, as the settings say: prepare it so")
    device = choose_device(settings.device)
    data = {"train": [case.data for case in train], "validation": [case.data for case in validation]}
    start, begun_with = load_weights(settings.warm_start) if settings.warm_start else (None, {})
    data |= {"warm_start": begun_with["sha256"]} if begun_with else {}
    source = made_of(settings, seed=seed, threads=threads, data=data)
    with reproducible(threads):
        training = RigidTraining(settings, train, validation, seed=seed, device=device, start=start)
        training.run(out, fingerprint(source))
    card = {
        "architecture": ARCHITECTURE,
        "network": settings.network,
        **settings.preparation.card(),
        "sre_mm": list(settings.sre_mm),
        "parameters": sum(p.numel() for p in training.network.parameters()),
        "scores": training.scores(),
        **source,
    }
    return kept(out, training.chosen(), card, device)


def fit_to_cases(settings: RigidFit, cases: Path, *, run: Run, out: Path) -> dict[str, Any]:
    """Fit to the cases of split train; validation cases, where there are any, choose the weights.

    Every case needs a label map of the organ, a true transform (rigid) and a surface mesh. Raises `ConcordError` where one has not.
    """
    table = read_cases(cases)
    train = read_rigid_cases(table, "train", settings.preparation)
    held_out = read_rigid_cases(table, "validation", settings.preparation) if any(case.split == "validation" for case in table) else []
    return fit_rigid(train, held_out, settings, seed=run.seed, threads=run.threads, out=out)


def load_rigid(weights: Path | str) -> tuple[nn.Module, Preparation, dict[str, Any]]:
    """The fitted network, for evaluation only, how its input is made, and its card.

    Raises `ConcordError` for files that are missing or changed (see `load_network`), and weights of another architecture or size.
    """
    network, card = load_network(weights, ARCHITECTURE, partial(_built, weights))
    return network, _prepared(card), card


def _built(weights: Path | str, card: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> nn.Module:
    if (name := card.get("network")) not in LEAST_GRIDS:
        raise ConcordError(f"{weights}: no network {name!r}{choices(name, LEAST_GRIDS)}")
    return build(name, _prepared(card).grid)


def _prepared(card: Mapping[str, Any]) -> Preparation:
    return Preparation(**{key: card[key] for key in ("input", "enlarge", "centre", "cut")}, size=tuple(int(n) for n in card["size"]))
