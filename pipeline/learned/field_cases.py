"""Pairs of 2-D images for networks that predict a displacement, and who is held out from a fit. Without ITK."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cases import Case
from pipeline.datasets.pairing import folds_of
from pipeline.errors import ConcordError
from pipeline.provenance import file_sha256
from pipeline.volumes import Volume, read_volume


@dataclass(frozen=True, eq=False)
class FieldCase:
    """Two images `(2, [z,] y, x)` in [0, 1] on one grid, channel 0 fixed and 1 moving; `labels`, of that shape, their label maps, where known."""

    name: str
    subjects: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray | None = None
    files: tuple[tuple[str, str], ...] = ()

    @property
    def data(self) -> dict[str, Any]:
        """What a card says about it."""
        return {"name": self.name, "files": dict(self.files)}


def divided(cases: Sequence[Case], *, folds: int, fold: int | None, seed: int) -> tuple[list[Case], list[Case]]:
    """Training cases and held-out ones; no subject is in both, and every pair of images is there once, whatever its direction.

    With a `fold` its subjects are held out, by the cases' own folds (modulo `folds`) where all have one, else by folds drawn from the
    seed, and evenly over the groups. Without one, training and validation are the cases' splits. A pair of a held-out subject and another
    is left out of both. Raises `ConcordError` for a fold that does not exist, a subject in two folds or splits, and nothing to train on.
    """
    cases = list({frozenset((case.fixed, case.moving)): case for case in reversed(cases)}.values())[::-1]
    if fold is None:
        train, held_out = ([case for case in cases if case.split == split] for split in ("train", "validation"))
    else:
        held = _subjects_in(_folds(cases, folds, seed), fold, folds)
        train = [case for case in cases if held.isdisjoint(case.subjects)]
        held_out = [case for case in cases if held.issuperset(case.subjects)]
    if not train:
        wanted = "cases of split train, or a fold of the cross-validation" if fold is None else "subjects outside the fold"
        raise ConcordError(f"no case to train on; expected {wanted}: set fold, or give the table more subjects")
    if both := named(train) & named(held_out):
        raise ConcordError(f"subjects {', '.join(sorted(both))}: to train on and held out; expected one of them: give all their cases one split")
    return train, held_out


def named(cases: Iterable[Case | FieldCase]) -> set[str]:
    """All their subjects."""
    return {name for case in cases for name in case.subjects}


def read_field_cases(cases: Iterable[Case], *, labels: bool, volumes: bool = False) -> list[FieldCase]:
    """The images, each scaled to [0, 1], and the label maps where a case has both and `labels` asks for them.

    Raises `ConcordError` for images that are not 2-D (or with `volumes` 3-D), two grids in a case, constant images, and sizes that differ
    among the cases.
    """
    read = [_read(case, labels, volumes) for case in cases]
    for case in read:
        if case.images.shape != read[0].images.shape:
            sizes = f"{_size(case)} voxels, {read[0].name} has {_size(read[0])}"
            raise ConcordError(f"case {case.name}: {sizes}; expected one size for all cases of a batch: set prepare.size")
    return read


def scaled(volume: Volume, *, whole: bool = False) -> np.ndarray:
    """The samples between 0 and 1, float32: in 2-D by the image's own ends, in 3-D slice by slice, or as a `whole`; what is constant becomes 0.

    It is how `prepare` with intensity min-max makes slices: to them it does nothing.
    """
    samples = volume.array.astype(np.float32)
    low, high = (end(axis=None if whole else (-2, -1), keepdims=True) for end in (samples.min, samples.max))
    return (samples - low) / np.where(high > low, high - low, 1)


def _folds(cases: Sequence[Case], folds: int, seed: int) -> dict[str, int]:
    """The fold of every subject."""
    if any(case.fold is None for case in cases):
        groups = {name: case.group for case in cases for name in case.subjects}
        return {name: place or 0 for name, place in folds_of(groups, folds, seed).items()}
    found: dict[str, int] = {}
    for case in cases:
        if found.setdefault(case.subject, case.fold) != case.fold:
            raise ConcordError(f"case {case.case}: fold {case.fold}, subject {case.subject} is in fold {found[case.subject]} too; expected one")
    for case in cases:  # a moving subject that is never a fixed one goes with the first case it is in
        found.setdefault(case.moving_subject or case.subject, case.fold)
    return {name: fold % folds for name, fold in found.items()}


def _subjects_in(places: dict[str, int], fold: int, folds: int) -> set[str]:
    held = {name for name, place in places.items() if place == fold}
    if fold >= folds or not held:
        raise ConcordError(f"fold {fold}: no subject is in it; expected one of {sorted(set(places.values()))}: choose fold and folds so")
    return held


def _read(case: Case, labels: bool, volumes: bool) -> FieldCase:
    images = [read_volume(path) for path in (case.fixed, case.moving)]
    _check(case, images, volumes)
    known = labels and case.fixed_labels is not None and case.moving_labels is not None
    paths: list[Path] = [case.fixed, case.moving, *([case.fixed_labels, case.moving_labels] if known else [])]
    maps = [read_volume(path) for path in paths[2:]]
    for volume in maps:
        if not volume.geometry.matches(images[0].geometry):
            raise ConcordError(f"{volume.name}: labels are not on the grid of {images[0].name}; expected the same one: resample them (nearest)")
    return FieldCase(
        name=case.case,
        subjects=case.subjects,
        images=np.stack([scaled(volume, whole=True) for volume in images]),
        labels=np.stack([volume.array for volume in maps]).astype(np.int16) if maps else None,
        files=tuple((path.name, file_sha256(path)) for path in paths),
    )


def _check(case: Case, images: Sequence[Volume], volumes: bool) -> None:
    for volume in images:
        if volume.dimension != 2 and not volumes:
            raise ConcordError(f"case {case.case}: {volume.name} is {volume.dimension}-D; expected 2-D images: set prepare.slices to labelled")
        if volume.array.size == 0 or volume.array.min() == volume.array.max():
            raise ConcordError(f"case {case.case}: {volume.name} is constant; expected an image to learn from: leave the case out")
    if not images[0].geometry.matches(images[1].geometry):
        sizes = f"fixed {images[0].geometry.size} and moving {images[1].geometry.size} voxels"
        raise ConcordError(f"case {case.case}: {sizes} are on different grids; expected one: resample the moving one")


def _size(case: FieldCase) -> str:
    return "x".join(str(n) for n in case.images.shape[:0:-1])
