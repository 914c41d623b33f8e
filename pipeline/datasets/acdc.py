"""ACDC: cine MR of the heart at end-diastole (ED) and end-systole (ES), 150 patients in five diagnostic groups.

Bernard et al., IEEE Trans Med Imaging 2018. Labels: 1 right ventricle, 2 myocardium, 3 left ventricle. The frames of ED and
ES stand in `Info.cfg`; the order of the files says nothing about them. The four-dimensional series is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.cases import Case
from pipeline.datasets.layout import FolderDataset, chosen_subjects
from pipeline.datasets.pairing import folds_of, identifier
from pipeline.datasets.registry import Found, LeftOut
from pipeline.errors import ConcordError
from pipeline.methods import Run

Direction = Literal["ed-es", "es-ed", "both"]
PHASES = ("ED", "ES")
LAST_TRAINING_PATIENT = 100


@dataclass(frozen=True)
class CineSubject:
    """Files of one heart by phase (`ED`, `ES`), and the true transforms by fixed and moving phase where they are known."""

    name: str
    group: str
    images: Mapping[str, Path]
    labels: Mapping[str, Path]
    truth: Mapping[tuple[str, str], Path] = field(default_factory=dict)


class Acdc(FolderDataset):
    """ACDC in its official layout: one case a patient and direction, folds by patient."""

    layout: ClassVar[str] = "[database/]{training,testing}/patientNNN/{Info.cfg, patientNNN_frameFF.nii.gz, patientNNN_frameFF_gt.nii.gz}"

    part: Literal["training", "testing", "all"] = Field(
        "training", description="patients to take: the papers use the training part; without part folders, patients 1 to 100 are it"
    )
    direction: Direction = Field("ed-es", description="ed-es: fixed is end-diastole, moving end-systole; es-ed: the other way round; both: two cases")
    folds: int = Field(10, ge=0, description="folds of the cross-validation, by patient and evenly over the diagnoses; 0: none")
    seed: int | None = Field(None, ge=0, description="seed of the folds; left open: the seed of the run")

    def cases(self, folder: Path, run: Run) -> Found:
        """One case a patient and direction; patients with missing files are left out by name.

        Where `subjects` is a number, every diagnosis gets its share of it.
        """
        subjects, left_out = self._subjects(self.found_root())
        if not subjects:
            raise self.nothing_found(left_out or self._other_part())
        if isinstance(self.subjects, tuple):
            names = chosen_subjects([*subjects, *(row.subject for row in left_out)], self.subjects)
            left_out = [row for row in left_out if row.subject in names]
        else:
            names = evenly({name: subject.group for name, subject in subjects.items()})[: self.subjects]
        taken = [subjects[name] for name in sorted(names) if name in subjects]
        return Found(cine_cases(taken, self.direction, folds=self.folds, seed=run.seed if self.seed is None else self.seed), left_out)

    def _subjects(self, root: Path) -> tuple[dict[str, CineSubject], list[LeftOut]]:
        complete: dict[str, CineSubject] = {}
        left_out: list[LeftOut] = []
        for patient in self._patients(root):
            try:
                if patient.name in complete:
                    raise ConcordError(f"stands twice, also in {patient.parent}; the first one is used")
                complete[patient.name] = read_patient(patient)
            except ConcordError as error:
                left_out.append(LeftOut(patient.name, str(error)))
        return complete, left_out

    def _other_part(self) -> list[LeftOut]:
        """What to tell where patients exist, but none of the wanted part."""
        others = self.model_copy(update={"part": "all"})._patients(self.found_root())
        return [LeftOut(f"part {self.part}", f"the {len(others)} patients here belong to the other part: set `part: all`")] if others else []

    def _patients(self, root: Path) -> list[Path]:
        """Folders of the wanted patients at every place where archives of the data set put them."""
        parts = ("training", "testing")
        places = [root, *(root / part for part in parts), root / "database", *(root / "database" / part for part in parts)]
        folders = [path for place in places for path in sorted(place.glob("patient[0-9]*")) if path.is_dir()]
        return [path for path in folders if self.part in ("all", _part_of(path))]


def _part_of(patient: Path) -> str:
    """`training` or `testing`: from the folder around the patient, else from the number."""
    if patient.parent.name in ("training", "testing"):
        return patient.parent.name
    digits = patient.name.removeprefix("patient")
    return "testing" if digits.isdigit() and int(digits) > LAST_TRAINING_PATIENT else "training"


def read_patient(patient: Path) -> CineSubject:
    """The files of one patient. Raises `ConcordError` for a missing or damaged `Info.cfg` and for missing frames or label maps."""
    info = read_info(patient / "Info.cfg")
    images, labels = {}, {}
    for phase in PHASES:
        if not info.get(phase, "").isdigit():
            raise ConcordError(f"{patient / 'Info.cfg'}: {phase} is {info.get(phase)!r}; expected a line '{phase}: <frame number>'")
        stem = f"{patient.name}_frame{int(info[phase]):02d}"
        images[phase], labels[phase] = _volume(patient, stem), _volume(patient, f"{stem}_gt")
    return CineSubject(patient.name, info.get("Group", ""), images, labels)


def read_info(path: Path) -> dict[str, str]:
    """`Info.cfg` as keys and values, one `key: value` a line."""
    if not path.is_file():
        raise ConcordError(f"{path}: no such file; it says which frames are end-diastole and end-systole")
    pairs = (line.partition(":") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs if key.strip()}


def _volume(patient: Path, stem: str) -> Path:
    for suffix in (".nii.gz", ".nii"):
        if (patient / f"{stem}{suffix}").is_file():
            return patient / f"{stem}{suffix}"
    raise ConcordError(f"no {stem}.nii.gz, which Info.cfg names")


def evenly(groups: Mapping[str, str]) -> list[str]:
    """Names in turn from every group, each group in order: any beginning of the list is spread evenly.

    The patients of ACDC are sorted by diagnosis, so the first twenty would all have the same.
    """
    members = [sorted(name for name, own in groups.items() if own == group) for group in sorted(set(groups.values()))]
    return [name for turn in zip_longest(*members) for name in turn if name is not None]


def cine_cases(subjects: Iterable[CineSubject], direction: Direction, *, folds: int, seed: int) -> list[Case]:
    """The cases of these hearts: every direction, the same fold for all cases of a subject, the diagnosis as group."""
    subjects = list(subjects)
    fold = folds_of({subject.name: subject.group for subject in subjects}, folds, seed)
    directions = {"ed-es": [PHASES], "es-ed": [PHASES[::-1]], "both": [PHASES, PHASES[::-1]]}[direction]
    return [
        Case(
            case=identifier(f"{subject.name}_{fixed}-{moving}"),
            fixed=subject.images[fixed],
            moving=subject.images[moving],
            subject=subject.name,
            fold=fold[subject.name],
            group=subject.group,
            fixed_phase=fixed,
            moving_phase=moving,
            fixed_labels=subject.labels[fixed],
            moving_labels=subject.labels[moving],
            true_transform=subject.truth.get((fixed, moving)),
        )
        for subject in subjects
        for fixed, moving in directions
    ]
