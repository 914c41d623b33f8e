"""Fitting the hierarchical translation model (Dai et al., ISBI 2023), VoxelMorph (a model of its coarse part alone), and what lies between.

A fit is a pure function of cases, settings, seed and threads: it can be killed at any point and goes on from its checkpoint to the
same weights, bit for bit on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nets.translation import HierarchicalTranslation
from pipeline.cases import Case, read_cases
from pipeline.errors import ConcordError
from pipeline.learned.field_cases import FieldCase, divided, named, read_field_cases
from pipeline.learned.fitting import choose_device, kept, made_of, reproducible
from pipeline.learned.settings.translation import TranslationFit
from pipeline.learned.translation_training import TranslationTraining
from pipeline.learned.weights import load_network
from pipeline.methods import Run
from pipeline.provenance import fingerprint

ARCHITECTURE = "translation"
_SHAPE = ("stages", "coarse_output", "fine_output", "translate_sees")


def fit_translation(
    train: Sequence[FieldCase], validation: Sequence[FieldCase], settings: TranslationFit, *, seed: int, threads: int, out: Path, **more: Any
) -> dict[str, Any]:
    """Fit, write `OUT.safetensors`, its card `OUT.json` and the learning curve `OUT.csv`, and return the card, which gains `more`.

    The weights are the last ones, as in the paper. A checkpoint of the same settings, seed, threads and data beside OUT is gone on from,
    within a stage or between two, and removed at the end. Raises `ConcordError` for no cases, a subject on both sides, CUDA asked for and
    absent, and a loss that is not finite.
    """
    if not train:
        raise ConcordError("no training case; expected one or more: give the table more subjects")
    if both := named(train) & named(validation):
        raise ConcordError(f"subjects {', '.join(sorted(both))}: to train on and held out; expected one of them")
    device = choose_device(settings.device)
    data = {"train": [case.data for case in train], "validation": [case.data for case in validation]}
    source = made_of(settings, seed=seed, threads=threads, data=data)
    with reproducible(threads):
        training = TranslationTraining(settings, train, validation, seed=seed, device=device)
        training.run(out, fingerprint(source))
    network = training.network
    card = {
        "architecture": ARCHITECTURE,
        **{name: source["settings"][name] for name in (*_SHAPE, "similarity")},
        "dimension": network.dimension,
        "size": list(train[0].images.shape[:0:-1]),
        **more,
        "subjects": {"train": sorted(named(train)), "validation": sorted(named(validation))},
        "parameters": {part: sum(p.numel() for p in getattr(network, part).parameters()) for part in network.parts},
        "scores": training.scores(),
        **source,
    }
    return kept(out, network.state_dict(), card, device)


def fit_to_cases(settings: TranslationFit, cases: Path, *, run: Run, out: Path) -> dict[str, Any]:
    """Fit to the cases of split train, 2-D or 3-D; those of split validation are reported in the learning curve.

    Raises `ConcordError` as `divided`, `read_field_cases`, `modalities_of` and `fit_translation` do.
    """
    train, held_out = divided(read_cases(cases), folds=2, fold=None, seed=run.seed)
    modalities = modalities_of([*train, *held_out])
    together = read_field_cases(train, labels=False, volumes=True) + read_field_cases(held_out, labels=True, volumes=True)
    check_sizes(together)
    sides = together[: len(train)], together[len(train) :]
    return fit_translation(*sides, settings, seed=run.seed, threads=run.threads, out=out, modalities=modalities)


def modalities_of(cases: Sequence[Case]) -> dict[str, str]:
    """What is fixed and what moves, the same in all cases: a translation has a direction. Raises `ConcordError` for several."""
    found = sorted({(case.fixed_modality, case.moving_modality) for case in cases})
    if len(found) > 1:
        told = ", ".join(f"{moving or 'unknown'} to {fixed or 'unknown'}" for fixed, moving in found)
        raise ConcordError(f"cases go from {told}; expected one direction, as one network translates one way: choose `directions` of the dataset")
    return dict(zip(("fixed", "moving"), found[0], strict=True))


def check_sizes(cases: Sequence[FieldCase]) -> None:
    """Raises `ConcordError` for held-out images of another size than those to train on."""
    for case in cases:
        if case.images.shape != cases[0].images.shape:
            sizes = f"{case.images.shape[:0:-1]} voxels, {cases[0].name} has {cases[0].images.shape[:0:-1]}"
            raise ConcordError(f"case {case.name}: {sizes}; expected one size for all cases: set prepare.size")


def load_translation(weights: Path | str) -> tuple[HierarchicalTranslation, dict[str, Any]]:
    """The fitted network, for evaluation only, and its card.

    Raises `ConcordError` for files that are missing or changed (see `load_network`), weights of another architecture, and a stage whose
    weights are missing.
    """
    return load_network(weights, ARCHITECTURE, partial(_built, weights))


def _built(weights: Path | str, card: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> HierarchicalTranslation:
    # how long each stage was does not matter here, and `bidirectional` only to the loss
    network = TranslationFit(**{name: card[name] for name in _SHAPE}, bidirectional=False).network_of(card["dimension"])
    if missing := [part for part in network.parts if not any(name.startswith(f"{part}.") for name in state)]:
        raise ConcordError(f"{weights}: no weights of stage {', '.join(missing)}; expected those of {', '.join(network.parts)}: fit it again")
    return network
