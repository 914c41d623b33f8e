"""Cardiac phantoms as a data set: hearts of five groups at end-diastole and end-systole, made from a seed, true transforms known."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pydantic import Field, model_validator

from pipeline.datasets.acdc import PHASES, CineSubject, Direction, cine_cases
from pipeline.datasets.keeping import code_digest, is_kept, keep, subject_seed
from pipeline.datasets.phantoms.cardiac import GROUPS, CardiacPhantom, make_subject
from pipeline.datasets.registry import Dataset, Found
from pipeline.methods import Run
from pipeline.volumes import Volume


class CardiacPhantoms(Dataset):
    """Cardiac phantoms in the protocol of ACDC: one case a subject and direction, folds by subject."""

    subjects: int = Field(100, ge=1, description="number of subjects, spread evenly over the five groups of ACDC")
    size: int = Field(CardiacPhantom.size, description="voxels in x and y")
    slices: int = Field(CardiacPhantom.slices, description="slices of the stack")
    spacing_mm: float = Field(CardiacPhantom.spacing_mm, description="voxel size in x and y")
    slice_spacing_mm: float = Field(CardiacPhantom.slice_spacing_mm, description="distance of slices")
    noise: float = Field(CardiacPhantom.noise, description="standard deviation of the noise in units of the image, 0 to 1000")
    bias: float = Field(CardiacPhantom.bias, description="log-ratio of the coil's sensitivity over 200 mm")
    breathing_mm: float = Field(CardiacPhantom.breathing_mm, description="standard deviation of the in-plane shift between slices")
    direction: Direction = Field("ed-es", description="ed-es: fixed is end-diastole, moving end-systole; es-ed: the other way round; both: two cases")
    folds: int = Field(10, ge=0, description="folds of the cross-validation, by subject and evenly over the groups; 0: none")
    seed: int | None = Field(None, ge=0, description="seed of subjects and folds; left open: the seed of the run")

    @model_validator(mode="after")
    def _check_phantom(self) -> CardiacPhantoms:
        self.phantom()
        return self

    def phantom(self) -> CardiacPhantom:
        """The settings of one subject. Raises `ConcordError` where they are out of range."""
        return CardiacPhantom(**{name: getattr(self, name) for name in CardiacPhantom.__dataclass_fields__})

    def cases(self, folder: Path, run: Run) -> Found:
        """Make the subjects that are not yet in `folder`; one case a subject and direction."""
        seed = run.seed if self.seed is None else self.seed
        subjects = []
        for number in range(self.subjects):
            subjects.append(written(folder.absolute(), self.phantom(), number, seed))
            run.report("subjects", (number + 1) / self.subjects)
        return Found(cine_cases(subjects, self.direction, folds=self.folds, seed=seed), [])


def written(folder: Path, phantom: CardiacPhantom, number: int, seed: int) -> CineSubject:
    """The files of subject `number`, made unless they are there; groups take turns."""
    name, group, own_seed = f"sub-{number + 1:03d}", GROUPS[number % len(GROUPS)], subject_seed(seed, number)
    subject = CineSubject(
        name,
        group,
        {phase: folder / f"{name}_{phase}.mha" for phase in PHASES},
        {phase: folder / f"{name}_{phase}_labels.mha" for phase in PHASES},
        {pair: folder / f"{name}_true_{'-'.join(pair)}.h5" for pair in (PHASES, PHASES[::-1])},
    )
    made_from = {"phantom": asdict(phantom), "group": group, "seed": own_seed, "code": code_digest("cardiac")}
    products = [*subject.images.values(), *subject.labels.values(), *subject.truth.values()]
    if not is_kept(folder / f"{name}.json", made_from, products):
        _write(subject, phantom, own_seed)
        keep(folder / f"{name}.json", made_from)
    return subject


def _write(subject: CineSubject, phantom: CardiacPhantom, seed: int) -> None:
    from pipeline.transform_files import write_transform
    from pipeline.transforms import Field as DisplacementField
    from pipeline.volumes import write_volume

    made = make_subject(phantom, seed, subject.group)
    for phase in PHASES:
        write_volume(Volume(made.images[phase], made.geometry, f"{subject.name} {phase}"), subject.images[phase])
        write_volume(Volume(made.labels[phase], made.geometry, f"{subject.name} {phase} labels"), subject.labels[phase])
    for pair, path in subject.truth.items():
        write_transform(DisplacementField(made.displacement_mm[pair], made.geometry), path)
