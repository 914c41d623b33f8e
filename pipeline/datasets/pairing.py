"""Pairs of subjects: who is registered to whom, in which direction, for which split; and folds of cross-validation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, ValidationError, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

from pipeline.cases import Case
from pipeline.datasets.layout import Subject
from pipeline.datasets.registry import Dataset, Found, LeftOut
from pipeline.errors import ConcordError
from pipeline.methods import Run

MOST_CASES = 20_000
"""More cases than this are refused (ours): `pairs: all` of a few hundred subjects is a slip, not a plan."""
SPLITS = ("test", "validation", "train")


def _all_or_number(value: Any, handler: Any) -> Any:
    try:
        return handler(value)
    except ValidationError as error:
        raise PydanticCustomError("pairs", "expected 'all' or a number of pairs, 0 or more") from error


Pairs = Annotated[Literal["all"] | Annotated[int, Field(ge=0)], WrapValidator(_all_or_number)]


class PairedDataset(Dataset):
    """A dataset whose cases are pairs of subjects, or of two images of one subject.

    The deep-metric protocol is `hold_out: 2, pairs: 68` with both directions: 2 subjects to tune on, 34 pairs each way among
    the other 18 (Simonovsky et al., MICCAI 2016). Which pairs those were is not published: here they are drawn from the seed.
    """

    known_modalities: ClassVar[tuple[str, ...]] = ()
    """Modalities that the layout has names for; empty: whatever the user names."""

    modalities: tuple[str, ...] = Field(("t1", "t2"), min_length=1, description="modalities that every subject must have")
    directions: tuple[str, ...] = Field(
        (), description="FIXED-MOVING modalities, such as t1-t2; empty: every ordered pair of two modalities (one modality: with itself)"
    )
    pairs: Pairs = Field(
        "all",
        description="test cases between subjects: all ordered pairs in every direction, or this many, drawn from the seed without repetition "
        "and shared out evenly over the directions; other splits get at most as many",
    )
    intra: bool = Field(False, description="also register the images of one subject to each other")
    hold_out: int = Field(0, ge=0, description="subjects whose pairs are validation cases; no test pair holds one of them")
    train: int = Field(0, ge=0, description="subjects whose pairs are training cases; no other pair holds one of them")
    seed: int | None = Field(None, ge=0, description="seed of splits and pairs; left open: the seed of the run")

    @model_validator(mode="after")
    def _check_modalities(self) -> PairedDataset:
        for modality in self.modalities:
            if self.known_modalities and modality not in self.known_modalities:
                raise ConcordError(f"modalities: no {modality!r}; choose from {', '.join(self.known_modalities)}")
        for direction in self.directions:
            if direction not in [f"{fixed}-{moving}" for fixed in self.modalities for moving in self.modalities]:
                raise ConcordError(
                    f"directions: {direction!r} is none; expected FIXED-MOVING of the modalities {', '.join(self.modalities)}, such as "
                    f"{self.modalities[0]}-{self.modalities[-1]}"
                )
        return self

    def all_directions(self) -> list[tuple[str, str]]:
        """Fixed and moving modality of every direction."""
        if self.directions:
            named = {f"{fixed}-{moving}": (fixed, moving) for fixed in self.modalities for moving in self.modalities}
            return [named[direction] for direction in self.directions]
        return [(f, m) for f in self.modalities for m in self.modalities if f != m] or [(self.modalities[0],) * 2]

    def pair_up(self, subjects: Sequence[Subject], run: Run) -> Found:
        """Cases of these subjects as the settings want them; a held-out subject that has no partner is told.

        Raises `ConcordError` when there are not enough subjects or pairs.
        """
        seed = run.seed if self.seed is None else self.seed
        groups = self._splits(subjects, seed)
        cases: list[Case] = []
        left_out: list[LeftOut] = []
        for number, split in enumerate(SPLITS):
            found = list(self._intra(groups[split], split)) + list(self._inter(groups[split], split, np.random.default_rng([seed, 1 + number])))
            if not found and split != "test":
                left_out += [LeftOut(subject.name, f"alone in the {split} split, so that no pair can be made") for subject in groups[split]]
            cases += found
        return Found(cases, left_out)

    def _splits(self, subjects: Sequence[Subject], seed: int) -> dict[str, list[Subject]]:
        """Subjects by split, each in one only: drawn from the seed, listed in order of their names."""
        least = 2 if self.pairs != 0 else 1
        if len(subjects) < self.hold_out + self.train + least:
            raise ConcordError(
                f"{len(subjects)} subjects with hold_out {self.hold_out} and train {self.train}; expected at least {least} more for the test cases: "
                "add subjects or lower these numbers"
            )
        ordered = sorted(subjects, key=lambda subject: subject.name)
        drawn = np.random.default_rng([seed, 0]).permutation(len(ordered))
        ends = {"validation": drawn[: self.hold_out], "train": drawn[self.hold_out : self.hold_out + self.train]}
        ends["test"] = drawn[self.hold_out + self.train :]
        return {split: [ordered[i] for i in sorted(numbers)] for split, numbers in ends.items()}

    def _intra(self, subjects: Sequence[Subject], split: str) -> Iterator[Case]:
        for subject in subjects if self.intra else ():
            for fixed, moving in self.all_directions():
                if fixed != moving:
                    yield pair_case(subject, subject, (fixed, moving), split)

    def _inter(self, subjects: Sequence[Subject], split: str, rng: np.random.Generator) -> Iterator[Case]:
        directions = self.all_directions()
        possible = len(subjects) * (len(subjects) - 1)
        for number, direction in enumerate(directions):
            wanted = self._share(number, possible * len(directions), split)
            if split == "test" and wanted > possible:
                raise ConcordError(
                    f"pairs: {self.pairs} among {len(subjects)} test subjects; "
                    f"at most {possible * len(directions)} exist: lower `pairs` or write 'all'"
                )
            drawn = np.sort(rng.choice(possible, size=min(wanted, possible), replace=False)) if wanted < possible else np.arange(possible)
            for fixed, moving in zip(*_ordered_pair(drawn, len(subjects)), strict=True):
                yield pair_case(subjects[fixed], subjects[moving], direction, split)

    def _share(self, number: int, possible: int, split: str) -> int:
        """How many pairs direction `number` gets: the first ones get the odd pair."""
        count = len(self.all_directions())
        if self.pairs == "all":
            if possible > MOST_CASES:
                raise ConcordError(f"pairs: all makes {possible} {split} cases; expected at most {MOST_CASES}: give a number of pairs")
            return possible // count
        return self.pairs // count + (number < self.pairs % count)


def _ordered_pair(numbers: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """Numbers 0 … n(n-1)-1 as ordered pairs of two different subjects."""
    fixed, moving = np.divmod(numbers, max(count - 1, 1))
    return fixed.tolist(), (moving + (moving >= fixed)).tolist()


def pair_case(fixed: Subject, moving: Subject, direction: tuple[str, str], split: str) -> Case:
    """The case that registers an image of `moving` to one of `fixed`; its group is the direction."""
    first, second = direction
    return Case(
        case=identifier(f"{fixed.name}_{first}-{moving.name}_{second}"),
        fixed=fixed.images[first],
        moving=moving.images[second],
        subject=fixed.name,
        moving_subject=moving.name if moving.name != fixed.name else "",
        split=split,
        group=f"{first}-{second}",
        fixed_modality=first,
        moving_modality=second,
        fixed_labels=fixed.labels.get(first),
        moving_labels=moving.labels.get(second),
    )


def identifier(name: str) -> str:
    """`name` with everything that a file name should not hold turned into a hyphen."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-") or "case"


def folds_of(groups: Mapping[str, str], folds: int, seed: int) -> dict[str, int | None]:
    """A fold for every subject, given the group (diagnosis) of each; fold and group sizes differ by one at most.

    Subjects are shuffled within their group and dealt out like cards, so that every fold holds every group (ours: the paper
    says only that there are ten folds over patients). Fewer subjects than folds: a fold each. `folds` 0: none.
    """
    if folds == 0:
        return dict.fromkeys(groups)
    rng = np.random.default_rng([seed, 2])
    dealt: list[str] = []
    for group in sorted(set(groups.values())):
        members = sorted(name for name, own in groups.items() if own == group)
        dealt += [members[i] for i in rng.permutation(len(members))]
    return {name: place % min(folds, len(dealt)) for place, name in enumerate(dealt)}


def drawn_splits(subjects: int, *, hold_out: int, train: int, seed: int) -> list[str]:
    """The split of every subject, drawn from the seed: `hold_out` for validation, `train` for training, the rest for the test."""
    order = np.random.default_rng([seed, 0]).permutation(subjects)
    splits = np.full(subjects, "test", dtype=object)
    splits[order[:hold_out]], splits[order[hold_out : hold_out + train]] = "validation", "train"
    return splits.tolist()


def split_cases(cases: list[Case], *, hold_out: int, train: int, seed: int) -> list[Case]:
    """The cases with their splits, drawn from the seed. Raises `ConcordError` where there are not enough."""
    if hold_out + train > len(cases):
        raise ConcordError(f"hold_out {hold_out} and train {train} of {len(cases)} usable cases; expected at most as many: lower these numbers")
    splits = drawn_splits(len(cases), hold_out=hold_out, train=train, seed=seed)
    return [case.model_copy(update={"split": split}) for case, split in zip(cases, splits, strict=True)]
