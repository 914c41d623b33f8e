"""muRegPro: MR and ultrasound of the prostate with the gland and up to five landmarks in both, of the 2023 challenge (Zenodo 7870104).

Four folders hold files of the same names: images, and labels whose last axis are six structures, the gland first. No transform between the two
images is known: the gland's overlap and the distance of landmarks (centroids of the other structures) are what can be scored. The challenge registers
the ultrasound to MR.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.cases import Case
from pipeline.datasets.keeping import is_kept, keep
from pipeline.datasets.layout import FolderDataset, chosen_subjects, find_files
from pipeline.datasets.pairing import identifier
from pipeline.datasets.registry import Found, LeftOut
from pipeline.datasets.structures import fingerprint, read_structures, with_landmarks, write_pair_structures
from pipeline.errors import ConcordError
from pipeline.methods import Run

FOLDERS = {"fixed": "mr_images", "moving": "us_images", "fixed_labels": "mr_labels", "moving_labels": "us_labels"}
PARTS = {"train": "train", "val": "test"}
"""Part of the challenge: the split of its cases (ours: its validation part is the test here, and validation cases are held out of its train part)."""
STRUCTURE_FILES = {
    "fixed_labels": "mr_gland.mha",
    "moving_labels": "us_gland.mha",
    "fixed_landmarks": "mr_landmarks.csv",
    "moving_landmarks": "us_landmarks.csv",
}


class MuRegPro(FolderDataset):
    """muRegPro: MR fixed, ultrasound moving; label maps of the gland, landmarks of the other structures that both images have."""

    layout: ClassVar[str] = "[nifti_data/]{train,val}/{mr_images,mr_labels,us_images,us_labels}/NAME.nii.gz, the same names in all four"

    part: Literal["train", "val", "all"] = Field("all", description="parts to take; cases of train are training cases, those of val test cases")
    hold_out: int = Field(0, ge=0, description="cases of the train part for validation: its last ones by name")

    def cases(self, folder: Path, run: Run) -> Found:
        """One case a name; label maps and landmarks go to `folder`. A case that is not right is left out by name."""
        root = self.found_root()
        base = root / "nifti_data" if (root / "nifti_data").is_dir() else root
        found, left_out = self._files(base)
        names = chosen_subjects({*found, *(row.subject for row in left_out)}, self.subjects) if found else []
        cases, left_out = [], [row for row in left_out if row.subject in names or not isinstance(self.subjects, tuple)]
        for number, name in enumerate(name for name in names if name in found):
            try:
                cases.append(_case(name, *found[name], folder.absolute()))
            except ConcordError as error:
                left_out.append(LeftOut(name, str(error)))
            run.report("cases", (number + 1) / len(names))
        if not cases:
            raise self.nothing_found(left_out)
        return Found(self._with_validation(cases), left_out)

    def _files(self, base: Path) -> tuple[dict[str, tuple[str, dict[str, Path]]], list[LeftOut]]:
        """Split and files of every complete case, by name; who lacks one, or stands in both parts."""
        complete: dict[str, tuple[str, dict[str, Path]]] = {}
        left_out: list[LeftOut] = []
        for part, split in PARTS.items() if self.part == "all" else [(self.part, PARTS[self.part])]:
            by_column = {
                column: find_files(base / part, [f"{place}/{{subject}}.nii.gz", f"{place}/{{subject}}.nii"]) for column, place in FOLDERS.items()
            }
            for name in sorted(set().union(*by_column.values())):
                missing = [FOLDERS[column] for column, files in by_column.items() if name not in files]
                if missing or name in complete:
                    left_out.append(
                        LeftOut(name, f"no {name}.nii.gz in {part}/{', '.join(missing)}" if missing else f"{part}: stands in train as well")
                    )
                else:
                    complete[name] = (split, {column: files[name][0] for column, files in by_column.items()})
        return complete, left_out

    def _with_validation(self, cases: list[Case]) -> list[Case]:
        training = [number for number, case in enumerate(cases) if case.split == "train"]
        if self.hold_out > len(training):
            raise ConcordError(f"hold_out {self.hold_out} of {len(training)} usable cases of the train part; lower it")
        held = set(training[len(training) - self.hold_out :])
        return [case.model_copy(update={"split": "validation"}) if number in held else case for number, case in enumerate(cases)]


def _case(name: str, split: str, files: dict[str, Path], folder: Path) -> Case:
    name = identifier(name)
    made = {column: folder / f"{name}_{ending}" for column, ending in STRUCTURE_FILES.items()}
    made_from = {"files": fingerprint(*files.values()), "layout": 1}
    if not is_kept(folder / f"{name}.json", made_from, made.values()):
        write_structures(files, made)
        keep(folder / f"{name}.json", made_from)
    images = {"fixed": files["fixed"], "moving": files["moving"]}
    return Case(case=name, subject=name, split=split, fixed_modality="mr", moving_modality="trus", **images, **with_landmarks(made))


def write_structures(files: dict[str, Path], made: dict[str, Path]) -> None:
    """Glands and landmarks of a pair whose files are given by column. Raises `ConcordError` for a bad image or label file."""
    from pipeline.volumes import read_volume

    grids = (read_volume(files["fixed"]).geometry, read_volume(files["moving"]).geometry)
    fixed, moving = (read_structures(files[f"{side}_labels"], grid) for side, grid in zip(("fixed", "moving"), grids, strict=True))
    write_pair_structures(fixed, moving, grids, made)
