"""BraTS: brain tumours in T1, contrast-enhanced T1, T2 and FLAIR, skull-stripped, a subject's images on one grid of 1 mm.

Menze et al., IEEE Trans Med Imaging 2015. The names differ from year to year: `BraTS20_Training_001_t1ce` (2018 to 2021, below
HGG/ and LGG/ in the first years), `BraTS-GLI-00000-000-t1c` (2023), or plain `t1` in a folder for each subject. Label maps hold
the tumour, which is another one in every subject: overlap of tumours says little between subjects, and much within one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from pipeline.datasets.layout import FolderDataset, Subject, collect, taken
from pipeline.datasets.pairing import PairedDataset
from pipeline.datasets.registry import Found, LeftOut
from pipeline.methods import Run

NAMES = {"t1": ("t1", "t1n"), "t1ce": ("t1ce", "t1c"), "t2": ("t2", "t2w"), "flair": ("flair", "t2f")}
"""Modality: how files of different years call it."""
LABELS = ("seg", "tumour")
STRAY_LABELS = ("**/{subject}/*_Segm.nii*",)
"""In the 2020 release the label map of one subject (355) kept the name that it had before."""


class Brats(FolderDataset, PairedDataset):
    """BraTS of any year: pairs between subjects, or of two modalities of one subject (`intra`)."""

    layout: ClassVar[str] = (
        "[…/]SUBJECT/SUBJECT_{t1,t1ce,t2,flair,seg}.nii.gz (2018 to 2021), SUBJECT/SUBJECT-{t1n,t1c,t2w,t2f,seg}.nii.gz (2023) "
        "or SUBJECT/{t1,t2,tumour}.nii.gz"
    )
    known_modalities: ClassVar[tuple[str, ...]] = tuple(NAMES)

    labels: bool = Field(True, description="give the tumour's label map where there is one; it counts for all modalities of its subject")

    def cases(self, folder: Path, run: Run) -> Found:
        """Pairs of the subjects that have all modalities; of several examinations of one patient the first is taken."""
        root = self.found_root()
        subjects, left_out = collect(root, {m: _patterns(NAMES[m]) for m in self.modalities}, _patterns(LABELS) if self.labels else ())
        strays, _ = collect(root, {"seg": STRAY_LABELS})
        stray = {subject.name: subject.images["seg"] for subject in strays} if self.labels else {}
        subjects = [_with_labels(subject, stray) for subject in subjects]
        subjects, repeated = one_examination(subjects)
        subjects, left_out = taken(subjects, left_out + repeated, self.subjects)
        if not subjects:
            raise self.nothing_found(left_out)
        found = self.pair_up(subjects, run)
        return Found(found.cases, left_out + found.left_out)


def _patterns(names: tuple[str, ...]) -> list[str]:
    """Where a file may stand, whatever lies above its subject's folder."""
    return [
        pattern
        for name in names
        for pattern in (f"**/{{subject}}/{{subject}}_{name}.nii*", f"**/{{subject}}/{{subject}}-{name}.nii*", f"**/{{subject}}/{name}.nii*")
    ]


def _with_labels(subject: Subject, stray: dict[str, Path]) -> Subject:
    if subject.labels or subject.name not in stray:
        return subject
    return Subject(subject.name, subject.images, dict.fromkeys(subject.images, stray[subject.name]))


def one_examination(subjects: list[Subject]) -> tuple[list[Subject], list[LeftOut]]:
    """The first examination of every patient: since 2023 the last three digits of a name number a patient's examinations.

    Two of one patient are no pair of subjects, and in two splits they would leak from one to the other.
    """
    first: dict[str, Subject] = {}
    left_out: list[LeftOut] = []
    for subject in sorted(subjects, key=lambda subject: subject.name):
        patient = re.sub(r"^(BraTS-.+)-\d{3}$", r"\1", subject.name)
        if first.setdefault(patient, subject) is not subject:
            left_out.append(LeftOut(subject.name, f"another examination of the patient of {first[patient].name}"))
    return list(first.values()), left_out
