"""UCLA's Prostate-MRI-US-Biopsy collection of TCIA (doi 10.7937/TCIA.2020.A61IOC1A): DICOM of MR and ultrasound, and the gland's surface in both.

The frame of an MR surface is the patient's (LPS, as DICOM has it). The ultrasound is one multi-frame file without a place in space: of its samples
(frame, row, column) the columns run against x, the frames against y and the rows along z, about a centre at zero. No transform between MR and ultrasound
comes with the images; `truth: surfaces` makes an approximate one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from pipeline.cases import Case
from pipeline.datasets.keeping import is_kept, keep
from pipeline.datasets.layout import FolderDataset, chosen_subjects
from pipeline.datasets.pairing import split_cases
from pipeline.datasets.registry import Found, LeftOut
from pipeline.datasets.starts import Starts, rigid_transform, with_starts
from pipeline.datasets.structures import fingerprint, write_gland
from pipeline.errors import ConcordError
from pipeline.methods import Run
from pipeline.volumes import Geometry, Volume

SURFACE_NAME = re.compile(r"(?P<patient>Prostate-MRI-US-Biopsy-\d+)-ProstateSurface-seriesUID-(?P<series>[\d.]+)\.stl", re.IGNORECASE)
VOXEL_SIZE = (0x1129, 0x1016)
"""Private tag of the ultrasound's voxel size in mm, all axes."""
UNEVEN = 0.05
"""Largest departure of a distance of slices from the usual one, as a share (ours): a missing slice doubles it."""
MADE = {"fixed": "mr.mha", "moving": "us.mha", "fixed_labels": "mr_gland.mha", "moving_labels": "us_gland.mha"}


class Series(NamedTuple):
    """A DICOM series with the surface of the gland in it."""

    folder: Path
    modality: str
    date: str
    uid: str
    surface: Path


class UclaProstate(FolderDataset):
    """UCLA's collection: one case a patient, MR fixed and ultrasound moving, label maps made of the surfaces."""

    layout: ClassVar[str] = (
        "[Prostate-MRI-US-Biopsy/]Prostate-MRI-US-Biopsy-NNNN/STUDY/SERIES/*.dcm and "
        "STLs/STLs/Prostate-MRI-US-Biopsy-NNNN-ProstateSurface-seriesUID-UID.STL"
    )

    truth: Literal["none", "surfaces"] = Field(
        "none", description="surfaces: a rigid true transform that lays the gland's surfaces onto each other (ours, approximate)"
    )
    hold_out: int = Field(0, ge=0, description="patients for validation")
    train: int = Field(0, ge=0, description="patients for training; the rest are for the test")
    starts: tuple[Starts, ...] = Field((), description="sets of starting positions of test and validation cases; they need `truth: surfaces`")
    seed: int | None = Field(None, ge=0, description="seed of splits and starts; left open: the seed of the run")

    @model_validator(mode="after")
    def _check_starts(self) -> UclaProstate:
        if self.starts and self.truth == "none":
            raise ConcordError("starts: starting positions are drawn about a true transform; expected `truth: surfaces` with them")
        return self

    def cases(self, folder: Path, run: Run) -> Found:
        """One case a patient (or a start); volumes and label maps go to `folder`. A patient who is not right is left out by name."""
        root, folder = self.found_root(), folder.absolute()
        surfaces = surfaces_of(root)
        if not surfaces:
            raise self.nothing_found()
        _pydicom()
        seed, names = run.seed if self.seed is None else self.seed, chosen_subjects(surfaces, self.subjects)
        cases: list[Case] = []
        left_out: list[LeftOut] = []
        for number, name in enumerate(names):
            try:
                cases.append(self._case(name, *pair_of(series_of(root, name, surfaces[name])), folder))
            except ConcordError as error:
                left_out.append(LeftOut(name, str(error)))
            run.report("patients", (number + 1) / len(names))
        if not cases:
            raise self.nothing_found(left_out)
        return Found(with_starts(split_cases(cases, hold_out=self.hold_out, train=self.train, seed=seed), self.starts, folder, seed), left_out)

    def _case(self, name: str, mr: Series, us: Series, folder: Path) -> Case:
        made = {column: folder / f"{name}_{ending}" for column, ending in MADE.items()}
        made |= {"true_transform": folder / f"{name}_true.tfm"} if self.truth == "surfaces" else {}
        files = fingerprint(mr.folder, us.folder, mr.surface, us.surface)
        made_from = {"files": files, "truth": self.truth, "layout": 1}
        if not is_kept(folder / f"{name}.json", made_from, made.values()):
            _write(mr, us, made)
            keep(folder / f"{name}.json", made_from)
        return Case(case=name, subject=name, fixed_modality="mr", moving_modality="trus", fixed_surface=mr.surface, **made)


def surfaces_of(root: Path) -> dict[str, dict[str, Path]]:
    """Surfaces of the gland by patient and series."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(root.rglob("*ProstateSurface-seriesUID-*")):
        match = SURFACE_NAME.fullmatch(path.name)
        if match and path.is_file():
            found.setdefault(match["patient"], {})[match["series"]] = path
    return found


def series_of(root: Path, patient: str, surfaces: dict[str, Path]) -> list[Series]:
    """The patient's series that have a surface. Raises `ConcordError` where there is no folder of the patient or a header cannot be read."""
    places = [place / patient for place in (root / "Prostate-MRI-US-Biopsy", root) if (place / patient).is_dir()]
    if not places:
        raise ConcordError(f"no folder {patient}, which surfaces belong to")
    found = []
    for folder in sorted(path for path in places[0].glob("*/*") if path.is_dir()):
        first = next(iter(sorted(folder.glob("*.dcm"))), None)
        header = _header(first) if first else {}
        uid = str(header.get("SeriesInstanceUID", ""))
        if uid in surfaces:
            found.append(Series(folder, str(header.get("Modality", "")), str(header.get("StudyDate", "")), uid, surfaces[uid]))
    return found


def pair_of(series: list[Series]) -> tuple[Series, Series]:
    """The earliest ultrasound, and the latest MR that is not later, else the earliest MR (ours). Raises `ConcordError` where one is missing."""
    by_date = sorted(series, key=lambda one: (one.date, one.uid))
    mr, us = ([one for one in by_date if one.modality == modality] for modality in ("MR", "US"))
    if not mr or not us:
        raise ConcordError(f"{len(mr)} MR and {len(us)} ultrasound series with a surface; expected one of each at least")
    before = [one for one in mr if one.date <= us[0].date]
    return (before[-1] if before else mr[0]), us[0]


def _write(mr: Series, us: Series, made: dict[str, Path]) -> None:
    from pipeline.surfaces import aligned_surfaces, enclosed, read_stl, require_inside
    from pipeline.transform_files import write_transform
    from pipeline.volumes import write_volume

    volumes, meshes = {"fixed": read_mr(mr.folder), "moving": read_us(us.folder)}, {"fixed": read_stl(mr.surface), "moving": read_stl(us.surface)}
    for side, series in (("fixed", mr), ("moving", us)):
        grid = volumes[side].geometry
        require_inside(meshes[side], grid, str(series.surface))
        write_gland(enclosed(meshes[side], grid, str(series.surface)), grid, made[f"{side}_labels"])
        write_volume(volumes[side], made[side])
    if "true_transform" in made:
        write_transform(rigid_transform(aligned_surfaces(meshes["fixed"], meshes["moving"]).matrix), made["true_transform"])


def read_mr(folder: Path) -> Volume:
    """The MR series of a folder. Raises `ConcordError` where slices are missing, doubled or unevenly spaced."""
    from pipeline.volumes import read_volume

    headers = [_header(path) for path in sorted(folder.glob("*.dcm"))]
    try:
        orientation = np.array(headers[0]["ImageOrientationPatient"].value, dtype=float)
        places = np.array([header["ImagePositionPatient"].value for header in headers], dtype=float)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ConcordError(f"{folder}: slices without position or orientation; expected an MR series of single slices") from error
    across = np.sort(places @ np.cross(orientation[:3], orientation[3:]))
    numbers = np.sort([int(header["InstanceNumber"].value) for header in headers if header.get("InstanceNumber") is not None])
    for what, steps in (("positions", np.diff(across)), ("instance numbers", np.diff(numbers))):
        if len(steps) and np.abs(steps - np.median(steps)).max() > UNEVEN * np.median(steps):
            raise ConcordError(
                f"{folder}: {len(headers)} slices at uneven {what} (steps {steps.min():g} to {steps.max():g}); a slice is missing or doubled"
            )
    return read_volume(folder)


def read_us(folder: Path) -> Volume:
    """The ultrasound of a folder in the frame of its surface. Raises `ConcordError` where it is not one grey multi-frame file with a voxel size."""
    files = sorted(folder.glob("*.dcm"))
    if len(files) != 1:
        raise ConcordError(f"{folder}: {len(files)} files of ultrasound; expected one with many frames")
    content = _dicom(files[0])
    try:
        samples = content.pixel_array
    except (AttributeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ConcordError(
            f"{files[0]}: samples cannot be read ({' '.join(str(error).split())[:150]}); expected an uncompressed, whole file"
        ) from error
    if samples.ndim != 3:
        raise ConcordError(f"{files[0]}: samples of shape {samples.shape}; expected frames, rows and columns of grey values")
    array = samples.transpose(1, 0, 2)[:, ::-1, ::-1]  # (row, frame, column): z, y, x
    return Volume(array, Geometry.regular(array.shape[::-1], us_spacing_mm(content, files[0])), str(files[0]))


def us_spacing_mm(header: Any, path: Path) -> tuple[float, float, float]:
    """Voxel size (x, y, z) in mm: of columns, frames and rows, else the private tag's. Raises `ConcordError` where neither is there."""
    pixel, thickness, private = (header.get(key) for key in ("PixelSpacing", "SliceThickness", VOXEL_SIZE))
    if pixel is not None and thickness is not None:
        return float(pixel[1]), float(thickness), float(pixel[0])
    if private is None:
        raise ConcordError(f"{path}: no PixelSpacing with SliceThickness and no private tag (1129,1016); expected a voxel size")
    told = private.value.decode("ascii", errors="replace") if isinstance(private.value, bytes) else str(private.value)
    try:
        size = float(re.split(r"[\\,\s]+", told.strip("[]\0 "))[0])
    except ValueError as error:
        raise ConcordError(f"{path}: private tag (1129,1016) holds {told[:20]!r}; expected a voxel size in mm") from error
    return size, size, size


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise ConcordError("ucla-prostate: pydicom is not installed, and the headers of DICOM files need it: pip install pydicom") from error
    return pydicom


def _header(path: Path) -> Any:
    return _dicom(path, stop_before_pixels=True)


def _dicom(path: Path, **options: bool) -> Any:
    pydicom = _pydicom()
    try:
        return pydicom.dcmread(path, **options)
    except (pydicom.errors.InvalidDicomError, OSError, EOFError) as error:
        raise ConcordError(f"{path}: no DICOM file or truncated ({error}); fetch it again") from error
