"""The cases that a patch metric is fitted to: aligned volumes of one subject, a modality a channel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from pipeline.cases import Case
from pipeline.errors import ConcordError
from pipeline.learned.patch_pairs import AlignedPair
from pipeline.provenance import file_sha256
from pipeline.volumes import read_volume


def modalities_of(cases: Sequence[Case]) -> tuple[str, str]:
    """The two modalities of these cases, in alphabetical order: the channels of the network. Raises `ConcordError` for others than two."""
    found = sorted({case.fixed_modality for case in cases} | {case.moving_modality for case in cases})
    if len(found) != 2 or "" in found:
        told = ", ".join(repr(name) for name in found)
        raise ConcordError(f"a metric compares two modalities, these cases have {told}; choose `modalities` (or `directions`) of the dataset")
    return found[0], found[1]


def turned(cases: Sequence[Case], channels: tuple[str, str]) -> list[Case]:
    """The cases with the first modality as the fixed one, each pair of volumes once."""
    straight = [
        case if case.fixed_modality == channels[0] else case.model_copy(update={"fixed": case.moving, "moving": case.fixed}) for case in cases
    ]
    return list({(case.fixed, case.moving): case for case in straight}.values())


def read_pairs(cases: Iterable[Case], split: str) -> list[AlignedPair]:
    """The volumes of a split's cases, fixed as `a` and moving as `b`.

    Raises `ConcordError` for a split without cases, volumes on two grids, and constant ones.
    """
    pairs = [_read_pair(case) for case in cases if case.split == split]
    if not pairs:
        raise ConcordError(f"no case of split {split!r}; expected one or more: give cases that split in the table of cases")
    return pairs


def first_pairs(pairs: Sequence[AlignedPair], count: int | Literal["all"], seed: int) -> list[AlignedPair]:
    """The first `count` pairs in a random order of `seed`: a smaller choice is part of every larger one."""
    if count == "all":
        return list(pairs)
    if count > len(pairs):
        raise ConcordError(f"pairs: {count} of {len(pairs)} training pairs asked for; expected at most all of them")
    return [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))[:count]]


def _read_pair(case: Case) -> AlignedPair:
    fixed, moving = read_volume(case.fixed), read_volume(case.moving)
    if not fixed.geometry.matches(moving.geometry):
        sizes = f"fixed {fixed.geometry.size} and moving {moving.geometry.size} voxels"
        raise ConcordError(f"case {case.case}: {sizes} are on different grids; expected aligned volumes on one grid: resample the moving one")
    for volume in (fixed, moving):
        if volume.array.size == 0 or volume.array.min() == volume.array.max():
            raise ConcordError(f"case {case.case}: {volume.name} is constant; expected an image to learn from: leave the case out")
    files = tuple((path.name, file_sha256(path)) for path in (case.fixed, case.moving))
    return AlignedPair(fixed.array, moving.array, case.case, files)
