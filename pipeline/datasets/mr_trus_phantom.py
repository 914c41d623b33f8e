"""MR-TRUS phantoms as a data set: pelves with a T2 image and a swept ultrasound of the prostate, rigid true transforms, and starts to register from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pydantic import Field, model_validator

from pipeline.cases import Case
from pipeline.datasets.keeping import code_digest, is_kept, keep, subject_seed
from pipeline.datasets.pairing import drawn_splits
from pipeline.datasets.phantoms.trus import ProbeKind, TrusPhantom, make_subject
from pipeline.datasets.registry import Dataset, Found
from pipeline.datasets.starts import Starts, with_starts
from pipeline.errors import ConcordError
from pipeline.methods import Run

COLUMNS = {
    "fixed": "mr.mha",
    "moving": "trus.mha",
    "fixed_labels": "mr_gland.mha",
    "moving_labels": "trus_gland.mha",
    "fixed_landmarks": "mr_landmarks.csv",
    "moving_landmarks": "trus_landmarks.csv",
    "fixed_surface": "mr_gland.stl",
    "true_transform": "true.tfm",
}
"""Column of a case: how the file of a subject ends."""


class MrTrusPhantoms(Dataset):
    """MR-TRUS phantoms: one case a subject (or one a start), MR fixed and ultrasound moving."""

    subjects: int = Field(24, ge=1, description="number of subjects")
    mr_spacing_mm: tuple[float, float, float] = Field(TrusPhantom.mr_spacing_mm, description="voxel size of MR: x, y, and the distance of slices")
    mr_field_mm: tuple[float, float, float] = Field(TrusPhantom.mr_field_mm, description="field of view of MR: x, y, z")
    us_spacing_mm: float = Field(TrusPhantom.us_spacing_mm, description="voxel size of the ultrasound volume")
    us_field_mm: tuple[float, float, float] = Field(TrusPhantom.us_field_mm, description="field of view of the ultrasound volume: x, y, z")
    geometry: ProbeKind = Field(TrusPhantom.geometry, description="how the probe looks: end-fire fans that turn, or side-fire planes")
    noise: float = Field(TrusPhantom.noise, description="standard deviation of MR's noise in units of the image, about 0 to 1000")
    bias: float = Field(TrusPhantom.bias, description="range of MR's coil profile as a share of the signal")
    frequency_mhz: float = Field(TrusPhantom.frequency_mhz, description="centre frequency of the ultrasound")
    depth_mm: float = Field(TrusPhantom.depth_mm, description="depth of the ultrasound's planes")
    jitter: float = Field(TrusPhantom.jitter, description="unevenness of the sweep's planes, as a share of their distance")
    pose_mm: float = Field(TrusPhantom.pose_mm, description="largest coordinate of the gland in the MR scanner's frame")
    pose_deg: float = Field(TrusPhantom.pose_deg, description="largest angle between the frames of MR and ultrasound")
    deformation_mm: float = Field(TrusPhantom.deformation_mm, description="how far the probe presses the tissue; then no rigid transform is exact")
    hold_out: int = Field(0, ge=0, description="subjects whose cases are validation cases")
    train: int = Field(0, ge=0, description="subjects whose cases are training cases; the rest are test cases")
    starts: tuple[Starts, ...] = Field((), description="sets of starting positions of test and validation cases; none: one case a subject")
    seed: int | None = Field(None, ge=0, description="seed of subjects, splits and starts; left open: the seed of the run")

    @model_validator(mode="after")
    def _check(self) -> MrTrusPhantoms:
        self.phantom()
        if self.hold_out + self.train > self.subjects:
            raise ConcordError(
                f"subjects: {self.subjects} with hold_out {self.hold_out} and train {self.train}; expected at least as many as both together"
            )
        return self

    def phantom(self) -> TrusPhantom:
        """The settings of one subject. Raises `ConcordError` where they are out of range."""
        return TrusPhantom(**{name: getattr(self, name) for name in TrusPhantom.__dataclass_fields__})

    def cases(self, folder: Path, run: Run) -> Found:
        """Make the subjects that are not yet in `folder`, split them and give each its starts."""
        seed, folder = run.seed if self.seed is None else self.seed, folder.absolute()
        splits = drawn_splits(self.subjects, hold_out=self.hold_out, train=self.train, seed=seed)
        cases: list[Case] = []
        for number, split in enumerate(splits):
            cases.append(written(folder, self.phantom(), number, seed).model_copy(update={"split": split}))
            run.report("subjects", (number + 1) / self.subjects)
        return Found(with_starts(cases, self.starts, folder, seed), [])


def written(folder: Path, phantom: TrusPhantom, number: int, seed: int) -> Case:
    """The case of subject `number`, its files made unless they are there."""
    name, own_seed = f"sub-{number + 1:03d}", subject_seed(seed, number)
    paths = {column: folder / f"{name}_{ending}" for column, ending in COLUMNS.items()}
    made_from = {"phantom": asdict(phantom), "seed": own_seed, "code": code_digest("trus")}
    if not is_kept(folder / f"{name}.json", made_from, paths.values()):
        _write(paths, phantom, own_seed)
        keep(folder / f"{name}.json", made_from)
    return Case(case=name, subject=name, fixed_modality="mr", moving_modality="trus", group=phantom.geometry, **paths)


def _write(paths: dict[str, Path], phantom: TrusPhantom, seed: int) -> None:
    from pipeline.datasets.starts import rigid_transform
    from pipeline.datasets.structures import write_points
    from pipeline.surfaces import write_stl
    from pipeline.transform_files import write_transform
    from pipeline.volumes import Volume, write_volume

    made = make_subject(phantom, seed)
    volumes = {"fixed": (made.mr, made.mr_geometry), "moving": (made.us, made.us_geometry)}
    volumes |= {"fixed_labels": (made.mr_gland, made.mr_geometry), "moving_labels": (made.us_gland, made.us_geometry)}
    for column, (array, geometry) in volumes.items():
        write_volume(Volume(array, geometry, paths[column].name), paths[column])
    write_points(made.landmarks_mr_mm, paths["fixed_landmarks"])
    write_points(made.landmarks_us_mm, paths["moving_landmarks"])
    write_stl(made.surface_mm, paths["fixed_surface"])
    write_transform(rigid_transform(made.true_matrix), paths["true_transform"])
