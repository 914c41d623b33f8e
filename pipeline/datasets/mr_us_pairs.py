"""MR-ultrasound pairs of the prostate as NIfTI in four folders: `fixed_images` (ultrasound) and `moving_images` (MR) and their labels.

Labels are 4-D or 3-D; the first structure is the gland, the others are landmarks. No transform between the two is
known: the gland's overlap and the distance of landmarks are what can be scored.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, WrapValidator
from pydantic_core import PydanticCustomError

from pipeline.cases import Case
from pipeline.datasets.keeping import is_kept, keep
from pipeline.datasets.layout import FolderDataset, collect, taken
from pipeline.datasets.muregpro import STRUCTURE_FILES
from pipeline.datasets.pairing import identifier, split_cases
from pipeline.datasets.registry import Found, LeftOut
from pipeline.datasets.structures import fingerprint, read_structures, with_landmarks, write_pair_structures
from pipeline.errors import ConcordError
from pipeline.methods import Run
from pipeline.volumes import Geometry, Volume

Modality = Literal["mr", "us"]
PLACES = {"us": "fixed", "mr": "moving"}
"""Modality: how its folders begin in this layout."""


def _positive(value: Any, handler: Any) -> Any:
    try:
        checked = handler(value)
    except ValueError:
        checked = None
    if checked is None or not all(0.01 <= size <= 100 for size in (checked if isinstance(checked, tuple) else (checked,))):
        raise PydanticCustomError("spacing_mm", "expected a voxel size in mm, 0.01 to 100, or three of them: x, y, z")
    return checked


Spacing = Annotated[float | tuple[float, float, float], WrapValidator(_positive)]


class MrUsPairs(FolderDataset):
    """MR-ultrasound pairs: MR fixed and ultrasound moving unless told otherwise."""

    layout: ClassVar[str] = "{fixed,moving}_{images,labels}/caseNNNNNN.nii.gz, fixed the ultrasound and moving the MR, the same names in all four"

    fixed: Modality = Field("mr", description="modality that is fixed, whatever the folders call it")
    spacing_mm: dict[Modality, Spacing] = Field(
        {}, description="voxel sizes that replace those of the headers: a number or x, y, z for mr, us or both"
    )
    start: Literal["centres", "none"] = Field("centres", description="centres: a translation that lays the middles of both volumes onto each other")
    hold_out: int = Field(0, ge=0, description="cases for validation")
    train: int = Field(0, ge=0, description="cases for training; the rest are for the test")
    seed: int | None = Field(None, ge=0, description="seed of the splits; left open: the seed of the run")

    def cases(self, folder: Path, run: Run) -> Found:
        """One case a name; label maps, landmarks, starts (and images of another voxel size) go to `folder`. A bad case is left out by name."""
        root, folder = self.found_root(), folder.absolute()
        patterns = {
            f"{modality} {what}": (f"{place}_{what}/{{subject}}.nii*",) for modality, place in PLACES.items() for what in ("images", "labels")
        }
        complete, left_out = collect(root, patterns)
        complete, left_out = taken(complete, left_out, self.subjects if complete else None)
        cases: list[Case] = []
        for number, subject in enumerate(complete):
            try:
                cases.append(self._case(subject.name, dict(subject.images), folder))
            except ConcordError as error:
                left_out.append(LeftOut(subject.name, str(error)))
            run.report("cases", (number + 1) / len(complete))
        if not cases:
            raise self.nothing_found(left_out)
        seed = run.seed if self.seed is None else self.seed
        return Found(split_cases(cases, hold_out=self.hold_out, train=self.train, seed=seed), left_out)

    def _case(self, name: str, files: dict[str, Path], folder: Path) -> Case:
        name, moving = identifier(name), "us" if self.fixed == "mr" else "mr"
        files = {side: (files[f"{modality} images"], files[f"{modality} labels"]) for side, modality in (("fixed", self.fixed), ("moving", moving))}
        sides = {"fixed": self.fixed, "moving": moving}
        structures = {column: folder / f"{name}_{_of_side(ending, column, sides)}" for column, ending in STRUCTURE_FILES.items()}
        images = {side: folder / f"{name}_{modality}.mha" for side, modality in sides.items() if modality in self.spacing_mm}
        start = {"start_transform": folder / f"{name}_centres.tfm"} if self.start == "centres" else {}
        made = {**structures, **images, **start}
        made_from = {
            "files": fingerprint(*(path for pair in files.values() for path in pair)),
            "settings": self.model_dump(mode="json", include={"fixed", "spacing_mm", "start"}),
            "layout": 1,
        }
        if not is_kept(folder / f"{name}.json", made_from, made.values()):
            self._write(files, made)
            keep(folder / f"{name}.json", made_from)
        paths = {side: images.get(side, files[side][0]) for side in sides} | with_landmarks(structures) | start
        modalities = {f"{side}_modality": {"us": "trus"}.get(modality, modality) for side, modality in sides.items()}
        return Case(case=name, subject=name, start=self.start if start else "", **modalities, **paths)

    def _write(self, files: dict[str, tuple[Path, Path]], made: dict[str, Path]) -> None:
        from pipeline.volumes import write_volume

        volumes = {side: self._read(files[side][0], side) for side in files}
        grids = (volumes["fixed"].geometry, volumes["moving"].geometry)
        fixed, moving = (read_structures(files[side][1], volumes[side].geometry) for side in ("fixed", "moving"))
        write_pair_structures(fixed, moving, grids, made)
        for side in files:
            if side in made:
                write_volume(volumes[side], made[side])
        if "start_transform" in made:
            _write_centres(*grids, made["start_transform"])

    def _read(self, path: Path, side: str) -> Volume:
        """An image, with the voxel size that the settings give; its first voxel stays where it is."""
        from pipeline.volumes import read_volume

        volume, modality = read_volume(path), self.fixed if side == "fixed" else {"mr": "us", "us": "mr"}[self.fixed]
        if volume.dimension != 3:
            raise ConcordError(f"{path}: a {volume.dimension}-D image; expected 3-D")
        if modality not in self.spacing_mm:
            return volume
        spacing = self.spacing_mm[modality]
        sizes = spacing if isinstance(spacing, tuple) else (spacing,) * 3
        return replace(volume, geometry=replace(volume.geometry, spacing_mm=sizes))


def _of_side(ending: str, column: str, sides: dict[str, str]) -> str:
    """The name of a made file after the modality that stands on its side."""
    return f"{sides[column.partition('_')[0]]}_{ending.partition('_')[2]}"


def _write_centres(fixed: Geometry, moving: Geometry, path: Path) -> None:
    import numpy as np

    from pipeline.transform_files import write_transform
    from pipeline.transforms import Linear

    write_transform(Linear(np.eye(3), moving.centre_mm - fixed.centre_mm, "rigid"), path)
