"""Brain phantoms as a data set: heads of one population, made from a seed, with T1, T2 and PD, label maps and true transforms."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.cases import Case
from pipeline.datasets.keeping import code_digest, is_kept, keep, subject_seed
from pipeline.datasets.layout import Subject
from pipeline.datasets.pairing import PairedDataset
from pipeline.datasets.phantoms.brain import BrainPhantom, displacement_between_mm, make_map, make_subject
from pipeline.datasets.phantoms.deformation import TemplateMap
from pipeline.datasets.registry import Found
from pipeline.methods import Run
from pipeline.volumes import Geometry, Volume

TRUTH_SPACING_MM = 2.0
"""True transforms of finer images are stored at this spacing (ours). The deformation has no detail below 6 mm: interpolation costs 0.02 mm on
average and 0.15 mm at worst, where a registration errs by a millimetre, and files are an eighth."""
MAPS_BYTES = 2_000_000_000
"""Room for the maps of subjects that are kept while their true transforms are written (ours)."""


class BrainPhantoms(PairedDataset):
    """Brain phantoms: pairs between subjects with the true transform, aligned pairs within a subject."""

    known_modalities: ClassVar[tuple[str, ...]] = ("t1", "t2", "pd")

    population: Literal["adult", "neonate"] = Field(
        BrainPhantom.population, description="adult: T1 and T2 of grown-ups; neonate: the contrasts of newborns"
    )
    subjects: int = Field(20, ge=1, description="number of subjects")
    spacing_mm: float = Field(BrainPhantom.spacing_mm, description="voxel size, 0.5 to 8 mm")
    deformation_mm: float = Field(BrainPhantom.deformation_mm, description="root mean square length of the random velocity, 0 to 12 mm")
    pose: float = Field(BrainPhantom.pose, description="differences of position and size; 1: about 3 degrees, 2.5 mm, 2 %")
    noise: float = Field(BrainPhantom.noise, description="standard deviation of the noise as a share of the brightest brain tissue")
    bias: float = Field(BrainPhantom.bias, description="range of the coil profile as a share of the signal")
    slice_mm: float | None = Field(BrainPhantom.slice_mm, description="make 2-D subjects: the axial slice at this height in MNI space")
    tumour: bool = Field(
        BrainPhantom.tumour, description="every subject has a tumour with oedema: tissue labels 7 and 8; regions keep the structures beneath"
    )
    skull_strip: bool = Field(BrainPhantom.skull_strip, description="the brain alone, zero around it")
    labels: Literal["regions", "tissue"] = Field("regions", description="label maps of the cases: regions of the brain, or tissue classes")

    @model_validator(mode="after")
    def _check_phantom(self) -> BrainPhantoms:
        self.phantom()
        return self

    def phantom(self) -> BrainPhantom:
        """The settings of one subject. Raises `ConcordError` where they are out of range."""
        return BrainPhantom(**{name: getattr(self, name) for name in BrainPhantom.__dataclass_fields__})

    def cases(self, folder: Path, run: Run) -> Found:
        """Make the subjects and true transforms that are not yet in `folder`, and pair the subjects."""
        makers = [
            _Maker(f"sub-{n + 1:02d}", self.phantom(), subject_seed(run.seed if self.seed is None else self.seed, n)) for n in range(self.subjects)
        ]
        subjects = []
        for number, maker in enumerate(makers):
            subjects.append(maker.written(folder.absolute(), self.labels))
            run.report("subjects", (number + 1) / len(makers))
        found = self.pair_up(subjects, run)
        return Found(_with_truth(found.cases, {maker.name: maker for maker in makers}, folder.absolute(), run), found.left_out)


class _Maker:
    """Makes one subject; equal makers make equal subjects."""

    def __init__(self, name: str, phantom: BrainPhantom, seed: int) -> None:
        self.name, self.phantom, self.seed = name, phantom, seed

    @property
    def made_from(self) -> dict[str, object]:
        """All that the subject depends on."""
        return {"phantom": asdict(self.phantom), "seed": self.seed, "code": code_digest("brain")}

    def written(self, folder: Path, labels: str) -> Subject:
        """The subject's files, made unless they are there."""
        names = ("t1", "t2", "pd", "regions", "tissue")
        paths = {name: folder / f"{self.name}_{name}.mha" for name in names}
        record = folder / f"{self.name}.json"
        if not is_kept(record, self.made_from, paths.values()):
            self._write(paths)
            keep(record, self.made_from)
        images = {name: paths[name] for name in names[:3]}
        return Subject(self.name, images, dict.fromkeys(images, paths[labels]))

    def _write(self, paths: dict[str, Path]) -> None:
        from pipeline.volumes import write_volume

        subject = make_subject(self.phantom, self.seed)
        for name, array in (subject.images | {"regions": subject.regions, "tissue": subject.tissue}).items():
            write_volume(Volume(array, subject.geometry, f"{self.name} {name}"), paths[name])

    def map(self) -> TemplateMap:
        """The subject's map to the template and back."""
        return make_map(self.phantom, self.seed)


def _with_truth(cases: list[Case], makers: dict[str, _Maker], folder: Path, run: Run) -> list[Case]:
    """The cases with their true transforms: one file for all directions of an ordered pair, the identity within a subject."""
    from pipeline.transform_files import write_transform
    from pipeline.transforms import Field as DisplacementField
    from pipeline.transforms import Linear

    phantom = next(iter(makers.values())).phantom
    grid = truth_grid(phantom.geometry)
    map_of = lru_cache(maxsize=max(2, MAPS_BYTES // (36 * int(np.prod(phantom.geometry.size)))))(lambda name: makers[name].map())
    pairs = sorted({(case.subject, case.moving_subject or case.subject) for case in cases})
    truth = {}
    for number, (fixed, moving) in enumerate(pairs):
        path = folder / (f"true_{fixed}_{moving}.h5" if fixed != moving else "true_identity.tfm")
        made_from = {"fixed": makers[fixed].made_from, "moving": makers[moving].made_from} if fixed != moving else {"dimension": grid.dimension}
        if not is_kept(path.with_suffix(".json"), made_from, [path]):
            if fixed == moving:
                write_transform(Linear.identity(grid.dimension), path)
            else:
                write_transform(DisplacementField(displacement_between_mm(map_of(fixed), map_of(moving), grid), grid), path)
            keep(path.with_suffix(".json"), made_from)
        truth[fixed, moving] = path
        run.report("true transforms", (number + 1) / len(pairs))
    return [case.model_copy(update={"true_transform": truth[case.subject, case.moving_subject or case.subject]}) for case in cases]


def truth_grid(geometry: Geometry) -> Geometry:
    """The grid of the true transform: that of the images, or a coarser one of `TRUTH_SPACING_MM` that covers it, border included."""
    if min(geometry.spacing_mm) >= TRUTH_SPACING_MM:
        return geometry
    size = np.ceil((geometry.extent_mm + geometry.spacing_mm) / TRUTH_SPACING_MM).astype(int) + 1
    origin = geometry.centre_mm - (size - 1) / 2 * TRUTH_SPACING_MM
    return Geometry.regular(size.tolist(), TRUTH_SPACING_MM, origin.tolist())
