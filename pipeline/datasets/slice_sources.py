"""Who is in a table of 3-D cases: every subject's images and label maps by modality, and the split and fold that it belongs to."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.cases import Case
from pipeline.datasets.pairing import identifier
from pipeline.datasets.registry import LeftOut
from pipeline.errors import ConcordError
from pipeline.volumes import Volume

log = logging.getLogger(__name__)
ALIGNED_MM = 1e-3
"""Images of one subject whose true transform moves a corner further than this are not aligned (ours)."""


@dataclass(frozen=True)
class Source:
    """One subject of a table of cases; `truths` are the true transforms between its own images, where the table has any."""

    name: str
    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    truths: tuple[Path, ...] = ()
    splits: tuple[str, ...] = ()
    folds: tuple[int | None, ...] = ()
    group: str = ""

    @property
    def stem(self) -> str:
        """The name as that of a file, with a number where it cannot be one as it is."""
        plain = identifier(self.name)
        return plain if plain == self.name else f"{plain}-{zlib.crc32(self.name.encode()):08x}"


def sources_of(cases: Iterable[Case], fixed: str, moving: str) -> tuple[list[Source], list[LeftOut]]:
    """Subjects that have both modalities, in order of their names; and who has not, or has several images of one.

    A volume of a case is what the case's modality columns say; where they are empty, the fixed volume is of modality `fixed` and the
    moving one of modality `moving`.
    """
    rows: dict[str, list[tuple[Case, str, str]]] = {}
    for case in cases:
        rows.setdefault(case.subject, []).append((case, "fixed", case.fixed_modality or fixed))
        rows.setdefault(case.moving_subject or case.subject, []).append((case, "moving", case.moving_modality or moving))
    found: list[Source] = []
    left_out: list[LeftOut] = []
    for name in sorted(rows):
        files = {modality: sorted({getattr(case, side) for case, side, own in rows[name] if own == modality}) for modality in (fixed, moving)}
        wrong = [f"{len(paths)} images of modality {modality}; expected one" for modality, paths in files.items() if len(paths) != 1]
        if wrong:
            left_out.append(LeftOut(name, "; ".join(wrong)))
        else:
            found.append(_source(name, {modality: paths[0] for modality, paths in files.items()}, rows[name]))
    return found, left_out


def _source(name: str, images: dict[str, Path], rows: Sequence[tuple[Case, str, str]]) -> Source:
    mine = [(case, side, modality) for case, side, modality in rows if modality in images]
    labels = {modality: getattr(case, f"{side}_labels") for case, side, modality in mine if getattr(case, f"{side}_labels") is not None}
    own = [case for case, side, _ in mine if side == "fixed" and case.subject == name]
    within = {case.true_transform for case in own if (case.moving_subject or name) == name and case.true_transform is not None}
    splits = tuple(sorted({case.split for case, _, _ in mine}))
    folds = tuple(dict.fromkeys(case.fold for case in own))
    return Source(name, images, labels, tuple(sorted(within)), splits, folds, own[0].group if own else "")


def check_aligned(source: Source, volume: Volume) -> None:
    """Raise `ConcordError` where a true transform says that the subject's two images are not aligned."""
    from pipeline.transform_files import read_transform

    corners = volume.geometry.points_at(np.array([np.zeros(3), np.subtract(volume.geometry.size, 1), np.divide(volume.geometry.size, 2)]))
    for path in source.truths:
        moved_mm = float(np.abs(read_transform(path).points(corners) - corners).max())
        if moved_mm > ALIGNED_MM:
            raise ConcordError(
                f"{path}: the true transform between the images of {source.name} moves points by {moved_mm:.3g} mm; expected aligned images"
            )


def own_split(source: Source) -> str:
    """The split of a subject. Raises `ConcordError` naming the subject where its cases stand in several."""
    if len(source.splits) > 1:
        raise ConcordError(
            f"subject {source.name}: cases in splits {', '.join(source.splits)}; expected one: give train and hold_out to draw splits anew"
        )
    return source.splits[0]


def own_fold(source: Source) -> int | None:
    """The fold of a subject, none where it has none. Raises `ConcordError` naming the subject where its cases stand in several."""
    if len(source.folds) > 1:
        raise ConcordError(f"subject {source.name}: cases in folds {', '.join(map(str, source.folds))}; expected one fold a subject")
    return source.folds[0] if source.folds else None


def check_splits(cases: Iterable[Case]) -> None:
    """Raise `ConcordError` naming the subject where slices of one stand in two splits or two folds: what is learnt would be tested."""
    first: dict[str, Case] = {}
    for case in cases:
        for subject in case.subjects:
            other = first.setdefault(subject, case)
            if (other.split, other.fold) != (case.split, case.fold):
                places = [f"{one.case} is of split {one.split}, fold {one.fold}" for one in (other, case)]
                raise ConcordError(f"subject {subject}: {' and '.join(places)}; expected all slices of a subject in one split and fold")


EXPECTED = {"t1": 1, "t2": -1}
"""Whether white matter is brighter (1) or darker (-1) than CSF, at every age: water relaxes slowest."""


def unlike(volume: Volume, labels: Volume, modality: str, tissues: tuple[int, int]) -> bool:
    """Whether the image cannot be of the modality that it is said to be: CSF against white matter, by the medians of both labels.

    Known for T1 and T2 alone, and only with label maps that name both tissues: for other modalities, or without them, the answer is
    no whatever the image is.
    """
    fluid, white = (volume.array[labels.array == label] for label in tissues)
    if modality not in EXPECTED or not fluid.size or not white.size:
        return False
    return bool(np.sign(np.median(white) - np.median(fluid)) == -EXPECTED[modality])


def warn_unlike(names: dict[str, Sequence[str]], modalities: tuple[str, str]) -> None:
    """One warning for all subjects; `names` are, by subject, the modalities that its images do not look like."""
    both = [name for name, wrong in names.items() if set(wrong) == set(modalities)]
    for wrong, told in (
        (both, f"{' and '.join(modalities)} look exchanged"),
        *((_only(names, m, both), f"the {m} does not look like one") for m in modalities),
    ):
        if wrong:
            log.warning("%s in %d subjects (%s): CSF against white matter; check the table's modalities", told, len(wrong), ", ".join(wrong[:5]))


def _only(names: dict[str, Sequence[str]], modality: str, both: Sequence[str]) -> list[str]:
    return [name for name, wrong in names.items() if modality in wrong and name not in both]
