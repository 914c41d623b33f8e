"""Fitting networks that predict a displacement between two 2-D images (ReSAtt U-Net, Parbs et al.; U-Net, after Hering et al. 2019).

A fit is a pure function of cases, settings, seed and threads: it can be killed at any point and goes on from its checkpoint to the
same weights, bit for bit on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.cases import read_cases
from pipeline.errors import ConcordError
from pipeline.learned.field_cases import FieldCase, divided, named, read_field_cases
from pipeline.learned.field_training import FieldTraining
from pipeline.learned.fitting import choose_device, kept, made_of, reproducible
from pipeline.learned.settings.field import FieldFit
from pipeline.learned.weights import load_network
from pipeline.methods import Run
from pipeline.provenance import fingerprint

ARCHITECTURE = "field-network"
_SHAPE = ("network", "widths", "channels", "score_scale", "output_scale", "svf")


def fit_fields(
    train: Sequence[FieldCase], validation: Sequence[FieldCase], settings: FieldFit, *, seed: int, threads: int, out: Path
) -> dict[str, Any]:
    """Fit, write `OUT.safetensors`, its card `OUT.json` and the learning curve `OUT.csv`, and return the card.

    The weights are the last ones, as in the paper: held-out pairs are looked at and choose nothing, because it is on them that the network
    is reported. A checkpoint of the same settings, seed, threads and data beside OUT is gone on from, and removed at the end.
    Raises `ConcordError` for no cases, a subject on both sides, missing labels, CUDA asked for and absent, and a loss that is not finite.
    """
    if not train:
        raise ConcordError("no training case; expected one or more: give the table more subjects")
    if both := named(train) & named(validation):
        raise ConcordError(f"subjects {', '.join(sorted(both))}: to train on and held out; expected one of them")
    device = choose_device(settings.device)
    data = {"train": [case.data for case in train], "validation": [case.data for case in validation]}
    source = made_of(settings, seed=seed, threads=threads, data=data)
    with reproducible(threads):
        training = FieldTraining(settings, train, validation, seed=seed, device=device)
        training.run(out, fingerprint(source))
    card = {
        "architecture": ARCHITECTURE,
        **{name: source["settings"][name] for name in _SHAPE},
        "size": list(train[0].images.shape[:0:-1]),
        "subjects": {"train": sorted(named(train)), "validation": sorted(named(validation))},
        "parameters": sum(p.numel() for p in training.network.parameters()),
        "scores": training.scores(),
        **source,
    }
    return kept(out, training.network.state_dict(), card, device)


def fit_to_cases(settings: FieldFit, cases: Path, *, run: Run, out: Path) -> dict[str, Any]:
    """Fit to prepared 2-D cases, each pair of images once; those of the held-out subjects are reported in the learning curve.

    Raises `ConcordError` as `divided`, `read_field_cases` and `fit_fields` do.
    """
    train, held_out = divided(read_cases(cases), folds=settings.folds, fold=settings.fold, seed=run.seed)
    together = read_field_cases([*train, *held_out], labels=True) if settings.uses_labels else None
    if together is None:
        together = read_field_cases(train, labels=False) + read_field_cases(held_out, labels=True)
    return fit_fields(together[: len(train)], together[len(train) :], settings, seed=run.seed, threads=run.threads, out=out)


def load_field(weights: Path | str) -> tuple[nn.Module, dict[str, Any]]:
    """The fitted network, for evaluation only, and its card.

    Raises `ConcordError` for files that are missing or changed (see `load_network`), and weights of another architecture.
    """
    return load_network(weights, ARCHITECTURE, lambda card, _: FieldFit(**{name: card[name] for name in _SHAPE}).network_of())
