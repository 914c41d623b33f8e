"""Slices of another dataset's volumes: 2-D cases of a T1 and a T2 slice, within a subject or between two.

The protocol of Dai et al. (hierarchical translation, 3.1): slices of 3-D volumes, cropped; of one subject with a random motion between them
(`intra`, as they do with BrainWeb), or of two subjects (as with BraTS). Which levels, which ranges of motion and how the levels of two
subjects are brought together they do not say: all that is ours, see `phantoms/slice_cutting.py` and `phantoms/slice_motion.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from pipeline.cases import Case, read_cases
from pipeline.datasets.layout import FolderDataset, chosen_subjects
from pipeline.datasets.pairing import SPLITS, drawn_splits, identifier
from pipeline.datasets.phantoms.slice_cutting import Axis
from pipeline.datasets.phantoms.slice_motion import Motion
from pipeline.datasets.registry import Found, LeftOut
from pipeline.datasets.slice_making import Made, SliceFolder, SliceMaker
from pipeline.datasets.slice_sources import Source, check_splits, own_fold, own_split, sources_of, warn_unlike
from pipeline.errors import ConcordError
from pipeline.methods import Run


class Slices(FolderDataset):
    """2-D cases cut from the volumes of a table of 3-D cases; `of: NAME` takes those of another dataset."""

    layout: ClassVar[str] = "a table of 3-D cases (.csv) with a fixed and a moving modality of its subjects, such as aligned pairs"

    root: Path = Field(description="table of 3-D cases (.csv) whose volumes are cut")
    fixed: str = Field("t1", description="modality of the fixed slices")
    moving: str = Field("t2", description="modality of the moving slices")
    intra: bool = Field(
        True,
        description="true: both slices are of one subject and the moving one is moved at random, so that the true transform is known; false: of two",
    )
    partners: int = Field(1, ge=1, le=1000, description="of two subjects: to each one's slices so many others' are registered, drawn from the seed")
    axis: Axis = Field("axial", description="how slices lie in the patient, whatever the order of the volume's axes")
    heights: tuple[float, float] = Field(
        (0.45, 0.85), description="where slices are cut, lowest and highest: shares of the way from the bottom of the head (front, right) to its top"
    )
    slices: int = Field(6, ge=1, le=1000, description="slices a subject, evenly spaced")
    slice_spacing_mm: float | None = Field(
        None, gt=0, description="instead: distance between a subject's slices, as many as there are; for intra alone"
    )
    draws: int = Field(1, ge=1, le=1000, description="motions drawn for every slice of one subject, a case each")
    size: tuple[int, int] = Field((128, 128), description="voxels (x, y) of a slice; what lies outside is cropped")
    spacing_mm: float = Field(1.5, gt=0, le=20, description="voxel size of a slice")
    min_share: float = Field(0.1, ge=0, lt=1, description="slices that the head fills less of are left out")
    motion: Motion = Field(
        Motion(), description="largest random shift, rotation, change of size, and deformation of the moving slice; for intra alone"
    )
    labels: tuple[int, ...] = Field((), description="labels that are kept, the others become background; empty: all")
    tissues: tuple[int, int] | None = Field(
        None, description="labels of CSF and white matter, where there are any: a T1 and a T2 that look exchanged are warned of"
    )
    hold_out: int | None = Field(None, ge=0, description="subjects whose slices are validation cases; this and train left open: as in the table")
    train: int | None = Field(None, ge=0, description="subjects whose slices are training cases, the rest is test")
    seed: int | None = Field(None, ge=0, description="seed of splits, partners and motions; left open: the seed of the run")

    @model_validator(mode="after")
    def _check(self) -> Slices:
        if not 0 <= self.heights[0] <= self.heights[1] <= 1:
            raise ConcordError(f"heights: {list(self.heights)}; expected two shares from 0 to 1, the lower one first")
        if min(self.size) < 8 or max(self.size) > 4096:
            raise ConcordError(f"size: {list(self.size)}; expected 8 to 4096 voxels along x and y")
        if self.slice_spacing_mm is not None and not self.intra:
            raise ConcordError("slice_spacing_mm: with intra: false slices of two subjects correspond by number; expected slices: give their number")
        if self.fixed == self.moving:
            raise ConcordError(f"moving: {self.moving!r} is the fixed modality too; expected another one")
        return self

    def cases(self, folder: Path, run: Run) -> Found:
        """Cut the slices that are not yet in `folder`. What cannot be used is left out by name: a subject, or a single slice.

        All slices of a subject are of one split and fold, and a pair of subjects is drawn within one. Raises `ConcordError` where the table
        gives nothing, where a subject of it stands in two splits, or where there are too few subjects for the splits.
        """
        sources, left_out = self._sources()
        self._check_splits_of(sources)
        seed = run.seed if self.seed is None else self.seed
        ready = self._cut(sources, left_out, SliceFolder(folder.absolute(), seed), run)
        if not ready:
            raise self.nothing_found(left_out)
        warn_unlike({source.name: made.unlike for source, made in ready}, (self.fixed, self.moving))
        left_out += [LeftOut(f"{source.name}, slice {number}", reason) for source, made in ready for number, reason in made.dropped.items()]
        placed = self._placed(ready, seed)
        cases = list(self._within(placed) if self.intra else self._between(placed, seed, left_out))
        if not cases:
            told = left_out[0].reason if left_out else "none cut"
            raise ConcordError(f"root {self.root}: {len(ready)} subjects and no slice of use ({told}); change heights, min_share or the splits")
        check_splits(cases)
        return Found(cases, left_out)

    def _cut(self, sources: Sequence[Source], left_out: list[LeftOut], to: SliceFolder, run: Run) -> list[tuple[Source, Made]]:
        """The slices of every subject; who gives none goes to `left_out`."""
        ready: list[tuple[Source, Made]] = []
        for number, source in enumerate(sources):
            try:
                ready.append((source, SliceMaker(source, self, to).made()))
            except ConcordError as error:
                left_out.append(LeftOut(source.name, str(error)))
            run.report("slices", (number + 1) / len(sources))
        return ready

    def _sources(self) -> tuple[list[Source], list[LeftOut]]:
        """The chosen subjects that have both modalities; a listed one that has not is told."""
        root = self.root.expanduser().absolute()
        if not root.exists():
            raise ConcordError(f"root {root}: no such file; expected {self.layout}: make that dataset first or correct `root`")
        if root.is_dir():
            raise self.nothing_found()
        found, left_out = sources_of(read_cases(root), self.fixed, self.moving)
        by_name = {source.name: source for source in found}
        known = [*by_name, *(row.subject for row in left_out)] if isinstance(self.subjects, tuple) else [*by_name]
        return [by_name[name] for name in chosen_subjects(known, self.subjects) if name in by_name], left_out

    def _placed(self, ready: Sequence[tuple[Source, Made]], seed: int) -> list[_Placed]:
        """The subjects with their split and fold."""
        if self._draws_splits:
            self._check_counts(len(ready))
            splits = drawn_splits(len(ready), hold_out=self.hold_out or 0, train=self.train or 0, seed=seed)
        else:
            splits = [own_split(source) for source, _ in ready]
        return [_Placed(source, made, split, own_fold(source)) for (source, made), split in zip(ready, splits, strict=True)]

    @property
    def _draws_splits(self) -> bool:
        return self.hold_out is not None or self.train is not None

    def _check_splits_of(self, sources: Sequence[Source]) -> None:
        """What can be told of splits and folds before anything is cut."""
        for source in sources:
            own_fold(source)
            if not self._draws_splits:
                own_split(source)
        if sources:
            self._check_counts(len(sources))

    def _check_counts(self, subjects: int) -> None:
        hold_out, train = self.hold_out or 0, self.train or 0
        if hold_out + train > subjects:
            raise ConcordError(f"hold_out {hold_out} and train {train} of {subjects} usable subjects; expected at most as many: lower these numbers")

    def _within(self, placed: Sequence[_Placed]) -> Iterator[Case]:
        for subject in placed:
            for number, files in subject.made.slices.items():
                for draw, moved in enumerate(subject.made.moved[number], start=1):
                    name = f"{subject.source.stem}_{number:02d}" + f"-{draw}" * (self.draws > 1)
                    yield self._case(name, subject, subject, {**files, **moved})

    def _between(self, placed: Sequence[_Placed], seed: int, left_out: list[LeftOut]) -> Iterator[Case]:
        """Slices of the same number of two subjects of one split and fold, dealt in a circle so that each is fixed and moving as often."""
        rng = np.random.default_rng([seed, 3])
        for split, fold in dict.fromkeys((split, subject.fold) for split in SPLITS for subject in placed if subject.split == split):
            members = [subject for subject in placed if (subject.split, subject.fold) == (split, fold)]
            circle = [members[i] for i in rng.permutation(len(members))]
            if len(members) <= self.partners:
                reason = f"one of {len(members)} subjects of the {split} split; expected more than partners {self.partners}: no pair is made of it"
                left_out += [LeftOut(subject.source.name, reason) for subject in members]
                continue
            for place, fixed in enumerate(circle):
                for step in range(1, self.partners + 1):
                    yield from self._pair(fixed, circle[(place + step) % len(circle)])

    def _pair(self, fixed: _Placed, moving: _Placed) -> Iterator[Case]:
        for number in sorted(fixed.made.slices.keys() & moving.made.slices.keys()):
            of_moving = {column: file for column, file in moving.made.slices[number].items() if column.startswith("moving")}
            of_fixed = {column: file for column, file in fixed.made.slices[number].items() if column.startswith("fixed")}
            name = f"{fixed.source.stem}_{self.fixed}-{moving.source.stem}_{self.moving}_{number:02d}"
            yield self._case(name, fixed, moving, of_fixed | of_moving)

    def _case(self, name: str, fixed: _Placed, moving: _Placed, files: dict[str, Path]) -> Case:
        return Case(
            case=identifier(name),
            subject=fixed.source.name,
            moving_subject="" if fixed is moving else moving.source.name,
            fixed_modality=self.fixed,
            moving_modality=self.moving,
            split=fixed.split,
            fold=fixed.fold,
            group=fixed.source.group,
            slice_spacing_mm=fixed.made.between_mm,
            **files,
        )


@dataclass(frozen=True)
class _Placed:
    """A subject's slices with the split and fold that they belong to."""

    source: Source
    made: Made
    split: str
    fold: int | None
