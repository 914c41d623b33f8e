"""IXI: T1, T2 and PD of about 600 healthy adults from three hospitals of London (Guys, HH, IOP); CC BY-SA 3.0.

Flat folders of files such as `IXI002-Guys-0828-T1.nii.gz`; the subject is all that stands before the last hyphen. T1 and T2 of a
subject lie on different grids and are brought together by their headers alone, without registration, as the deep-metric paper
does for its training pairs. There are no label maps.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.datasets.layout import FolderDataset, collect, taken
from pipeline.datasets.pairing import PairedDataset, Pairs
from pipeline.datasets.registry import Found
from pipeline.methods import Run

Site = Literal["Guys", "HH", "IOP"]


class Ixi(FolderDataset, PairedDataset):
    """IXI: the T1 and T2 of each subject, and pairs between subjects where `pairs` asks for them."""

    layout: ClassVar[str] = "IXI002-Guys-0828-T1.nii.gz, IXI002-Guys-0828-T2.nii.gz, … in it or in folders below it (IXI-T1/, IXI-T2/)"
    known_modalities: ClassVar[tuple[str, ...]] = ("t1", "t2", "pd")

    pairs: Pairs = Field(0, description="test cases between subjects: 'all', or this many, drawn from the seed and shared out over the directions")
    intra: bool = Field(True, description="register the images of one subject to each other")
    sites: tuple[Site, ...] = Field(("Guys", "HH", "IOP"), min_length=1, description="hospitals: Guys and IOP scan at 1.5 T, HH at 3 T")

    def cases(self, folder: Path, run: Run) -> Found:
        """Pairs of the subjects that have all modalities; a T1 without T2, or the other way round, is left out by name."""
        suffixes = {modality: [f"**/{{subject}}-{modality.upper()}.nii*"] for modality in self.modalities}
        subjects, left_out = collect(self.found_root(), suffixes)
        subjects = [subject for subject in subjects if _site(subject.name) in self.sites]
        left_out = [row for row in left_out if _site(row.subject) in self.sites]
        subjects, left_out = taken(subjects, left_out, self.subjects)
        if not subjects:
            raise self.nothing_found(left_out)
        found = self.pair_up(subjects, run)
        return Found(found.cases, left_out + found.left_out)


def _site(subject: str) -> str:
    """Guys of `IXI002-Guys-0828`."""
    return subject.split("-")[1] if subject.count("-") >= 2 else ""
