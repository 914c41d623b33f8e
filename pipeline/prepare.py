"""Prepared volumes: what every method of a study is given, the same for all of them.

3-D volumes may be brought to a voxel size and an intensity range; stacks may be cut into 2-D cases, one a labelled slice, as
the ReSAtt paper does. Label maps and masks follow with nearest neighbour. Files are uncompressed MetaImage, which keeps the
geometry in double precision and can be read without ITK.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.cases import Case
from pipeline.errors import ConcordError
from pipeline.files import write_text
from pipeline.volumes import Geometry, Volume

IMAGES = ("fixed", "moving", "moving_counterpart")
LABEL_MAPS = ("fixed_labels", "moving_labels", "fixed_mask", "moving_mask")
LEVELS = ("base", "mid", "apex")


class PrepareSettings(BaseModel):
    """What is done to every volume of a study before registration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slices: Literal["none", "labelled", "stack"] = Field(
        "none",
        description="labelled: a stack becomes one 2-D case for each slice with all required labels in both images; "
        "stack: it stays whole, and keeps its label maps in those slices alone",
    )
    required_labels: tuple[int, ...] = Field(
        (1, 2, 3), description="labels that both images of a slice must hold (ACDC: right ventricle, myocardium, left ventricle)"
    )
    size: tuple[int, ...] | None = Field(
        None, description="voxels (x, y[, z]) to resample to, over the same physical box; (x, y) of a stack keeps its slices"
    )
    spacing_mm: float | None = Field(None, gt=0, description="voxel size to resample to, all axes")
    interpolation: Literal["linear", "cubic"] = Field("linear", description="interpolation of images; label maps and masks are nearest neighbour")
    region: float | None = Field(
        None,
        ge=0,
        description="give the box of the fixed labels, so much of its own size larger on each side, as the fixed mask: what all methods compare",
    )
    intensity: Literal["none", "min-max"] = Field("none", description="min-max: each volume (each slice, where stacks are cut) scaled to [0, 1]")

    @model_validator(mode="after")
    def _no_region_of_slices(self) -> PrepareSettings:
        if self.region is not None and self.slices != "none":
            raise ValueError("region: a slice has no box of its own; expected slices: none beside it")
        return self

    @property
    def resamples(self) -> bool:
        """Whether the volumes themselves are changed."""
        return self.model_copy(update={"region": None}) != PrepareSettings()


class Exclusion(NamedTuple):
    """Something that was left out, by name, and why."""

    case: str
    stage: str
    reason: str


def prepare_cases(cases: Iterable[Case], settings: PrepareSettings, folder: Path) -> tuple[list[Case], list[Exclusion]]:
    """Prepare every case; volumes go to `folder`. A bad case is left out alone and comes back as an `Exclusion`."""
    prepared: list[Case] = []
    excluded: list[Exclusion] = []
    for case in cases:
        try:
            ready, dropped = _prepare_case(case, settings, folder)
        except ConcordError as error:
            excluded.append(Exclusion(case.case, "prepare", str(error)))
            continue
        prepared += ready
        excluded += dropped
    return prepared, excluded


def write_exclusions(rows: Iterable[Exclusion], path: Path) -> None:
    """Write exclusions as CSV with columns case, stage, reason."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(Exclusion._fields)
    writer.writerows(rows)
    write_text(path, stream.getvalue())


def read_exclusions(path: Path) -> list[Exclusion]:
    """Read what `write_exclusions` wrote."""
    with path.open(encoding="utf-8") as stream:
        return [Exclusion(**row) for row in csv.DictReader(stream)]


def _prepare_case(case: Case, settings: PrepareSettings, folder: Path) -> tuple[list[Case], list[Exclusion]]:
    from pipeline.volumes import read_volume

    for column, path in case.paths.items():
        if not path.exists():
            raise ConcordError(f"{path}: no such file, named as {column} of case {case.case}; check the table or fetch the data again")
    if settings == PrepareSettings():
        return [case], []
    volumes = {name: read_volume(path) for name, path in case.paths.items() if name in IMAGES + LABEL_MAPS}
    if settings.slices == "labelled":
        return _labelled_slices(case, volumes, settings, folder)
    if settings.slices == "stack":
        volumes |= _labels_of_complete_slices(case, volumes, settings)
    files = {
        name: _write_once(_prepared(volume, name, settings), settings, path=case.paths[name], part="", folder=folder)
        for name, volume in volumes.items()
        if settings.resamples
    }
    if settings.region is not None:
        files["fixed_mask"] = _region_file(case, files.get("fixed_labels", case.fixed_labels), settings, folder)
    return [case.model_copy(update=files)], []


def _region_file(case: Case, labels: Path | None, settings: PrepareSettings, folder: Path) -> Path:
    """The mask of the region that is compared, written once a label map."""
    from pipeline.region import region_mask
    from pipeline.volumes import read_volume, write_volume

    if labels is None:
        raise ConcordError(f"case {case.case}: no fixed_labels; prepare.region cuts a box around them: give labels, or leave region out")
    target = folder / f"{_digest(labels, settings)}-{labels.name.split('.')[0]}-region.mha"
    if not target.exists():
        write_volume(region_mask(read_volume(labels), settings.region), target)
    return target


def _labelled_slices(case: Case, volumes: dict[str, Volume], settings: PrepareSettings, folder: Path) -> tuple[list[Case], list[Exclusion]]:
    """One 2-D case a slice in which both label maps hold every required label; why the others were dropped."""
    _check_stack(case, volumes)
    sliced, dropped = [], []
    for z in range(volumes["fixed"].array.shape[0]):
        part = f"z{z:02d}"
        if missing := _missing_labels(volumes, z, settings):
            dropped.append(Exclusion(f"{case.case}_{part}", "prepare", f"slice without all required labels: {missing}"))
            continue
        files = {
            name: _write_once(_prepared(slice_of(volume, z), name, settings), settings, path=case.paths[name], part=part, folder=folder)
            for name, volume in volumes.items()
        }
        if case.true_transform is not None:
            files["true_transform"] = _true_slice(case, volumes["fixed"], z, folder, settings)
        sliced.append((z, case.model_copy(update={**files, "case": f"{case.case}_{part}"})))
    between_mm = volumes["fixed"].geometry.spacing_mm[2]  # a slice of its own does not know it any more
    levels = levels_of([sum(np.count_nonzero(volumes[name].array[z]) for name in ("fixed_labels", "moving_labels")) for z, _ in sliced])
    known = [{"level": level, "slice_spacing_mm": between_mm} for level in levels]
    return [ready.model_copy(update=update) for (_, ready), update in zip(sliced, known, strict=True)], dropped


def _missing_labels(volumes: dict[str, Volume], z: int, settings: PrepareSettings) -> str:
    """Which required labels slice `z` lacks in either image, in words; empty where it lacks none."""
    missing = {name: set(settings.required_labels) - set(np.unique(volumes[name].array[z]).tolist()) for name in ("fixed_labels", "moving_labels")}
    return "; ".join(f"{name} lacks {sorted(labels)}" for name, labels in missing.items() if labels)


def _labels_of_complete_slices(case: Case, volumes: dict[str, Volume], settings: PrepareSettings) -> dict[str, Volume]:
    """The label maps of a stack, empty in every slice that lacks a required label: what is scored is what the 2-D cases are scored on."""
    _check_stack(case, volumes)
    complete = [not _missing_labels(volumes, z, settings) for z in range(volumes["fixed"].array.shape[0])]
    if not any(complete):
        raise ConcordError(
            f"case {case.case}: no slice holds all of the labels {list(settings.required_labels)} in both images; change required_labels"
        )
    keep = np.asarray(complete)[:, None, None]
    return {name: volumes[name].with_array(volumes[name].array * keep) for name in ("fixed_labels", "moving_labels")}


def levels_of(areas: Sequence[int]) -> list[str]:
    """Base, mid and apex: thirds of a stack's slices, in order, the base at the end where the labels of both images are larger.

    A ventricle tapers to its apex; whether a stack begins there or at the base differs from scanner to scanner (thirds and rule: ours).
    """
    from_middle = np.arange(len(areas)) - (len(areas) - 1) / 2
    tapers = float(from_middle @ np.asarray(areas, dtype=float)) <= 0
    order = range(len(areas)) if tapers else range(len(areas))[::-1]
    return [LEVELS[int(len(LEVELS) * (place + 0.5) / len(areas))] for place in order]


def slice_of(volume: Volume, z: int) -> Volume:
    """Slice `z` of a stack as a 2-D volume: its own plane, in mm, first voxel at the origin."""
    geometry = Geometry.regular(volume.geometry.size[:2], volume.geometry.spacing_mm[:2], (0.0, 0.0))
    return Volume(volume.array[z], geometry, f"{volume.name} slice {z}")


def _true_slice(case: Case, fixed: Volume, z: int, folder: Path, settings: PrepareSettings) -> Path:
    """The in-plane part of the true displacement in slice `z`, in the plane's own axes."""
    from pipeline.transform_files import read_transform, write_transform
    from pipeline.transforms import Field

    path = folder / f"{_digest(case.true_transform, settings)}-z{z:02d}.h5"
    if not path.exists():
        plane = fixed.geometry.cropped((0, 0, z), (*fixed.geometry.size[:2], z + 1))
        in_axes_mm = read_transform(case.true_transform).displacement_vx(plane)[0] * np.asarray(plane.spacing_mm)
        write_transform(Field(in_axes_mm[..., :2], slice_of(fixed, z).geometry), path)
    return path


def _check_stack(case: Case, volumes: dict[str, Volume]) -> None:
    for name in ("fixed_labels", "moving_labels"):
        if name not in volumes:
            raise ConcordError(f"case {case.case}: no {name}; labelled slices need the label maps of both images")
    reference = volumes["fixed"]
    for name, volume in volumes.items():
        if volume.dimension != 3:
            raise ConcordError(f"{volume.name}: {volume.dimension}-D; expected a 3-D stack to cut into slices")
        if not volume.geometry.matches(reference.geometry):
            raise ConcordError(
                f"{volume.name}: grid {volume.geometry.size} is not that of {reference.name} {reference.geometry.size}; slices need one grid ({name})"
            )


def _prepared(volume: Volume, name: str, settings: PrepareSettings) -> Volume:
    from pipeline.resampling import resample, smooth

    is_image = name in IMAGES
    onto = volume.geometry
    if settings.size is not None:
        size = settings.size
        if settings.slices == "stack" and len(size) == 2:
            size = (*size, onto.size[-1])
        if len(size) != volume.dimension:
            raise ConcordError(
                f"prepare.size: {settings.size} has {len(settings.size)} axes and {volume.name} {volume.dimension}; expected one number an axis"
            )
        onto = onto.resized(size)
    elif settings.spacing_mm is not None:
        onto = onto.with_spacing(settings.spacing_mm)
    if onto != volume.geometry:
        if is_image and settings.interpolation == "linear":
            # half the new voxel where it is coarser: a plain linear sample of a finer grid would alias
            ratio = np.asarray(onto.spacing_mm) / np.asarray(volume.geometry.spacing_mm)
            volume = smooth(volume, tuple(np.where(ratio > 1.01, 0.5 * np.sqrt(np.maximum(ratio**2 - 1, 0)) * volume.geometry.spacing_mm, 0.0)))
        volume = resample(volume, onto, interpolation=settings.interpolation if is_image else "nearest")
    return volume.with_array(_min_max(volume)) if is_image and settings.intensity == "min-max" else volume


def _min_max(volume: Volume) -> np.ndarray:
    low, high = float(volume.array.min()), float(volume.array.max())
    if low == high:
        raise ConcordError(f"{volume.name}: every sample is {low}; nothing to register in a constant image")
    return ((volume.array.astype(np.float32) - low) / (high - low)).astype(np.float32)


def _write_once(volume: Volume, settings: PrepareSettings, *, path: Path, part: str, folder: Path) -> Path:
    """Write a prepared volume under a name made of its source, once however many cases use it."""
    from pipeline.volumes import write_volume

    target = folder / f"{_digest(path, settings)}-{path.name.split('.')[0]}{'-' + part if part else ''}.mha"
    if not target.exists():
        write_volume(volume, target)
    return target


def _digest(path: Path, settings: PrepareSettings) -> str:
    return hashlib.sha256(f"{path.resolve()} {settings.model_dump_json()}".encode()).hexdigest()[:8]
