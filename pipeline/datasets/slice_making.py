"""Makes the slices of one subject: cuts them from its volumes, moves them, and keeps the files until what they come from changes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.datasets.keeping import code_digest, is_kept, keep, subject_seed
from pipeline.datasets.pairing import identifier
from pipeline.datasets.phantoms.slice_cutting import Head, Plane, for_spacing, head_of, planes_of
from pipeline.datasets.phantoms.slice_motion import random_motion
from pipeline.datasets.slice_sources import Source, check_aligned, unlike
from pipeline.datasets.structures import fingerprint
from pipeline.errors import ConcordError
from pipeline.files import write_json
from pipeline.transform_files import write_transform
from pipeline.volumes import Volume, read_volume, write_volume

if TYPE_CHECKING:
    from pipeline.datasets.slices import Slices

OF_THE_TABLE = {"root", "subjects", "partners", "hold_out", "train", "seed"}
"""Settings that change no file: who is paired with whom, and which split is whose."""


@dataclass(frozen=True)
class Made:
    """What was made of a subject.

    `slices` are files by slice's number and column of a case: `fixed`, `fixed_labels`, and between subjects `moving`, `moving_labels` and
    `moving_counterpart` for where this one is the moving subject; `moved` those of each motion. `dropped` slices have a reason.
    """

    slices: dict[int, dict[str, Path]]
    moved: dict[int, list[dict[str, Path]]]
    dropped: dict[int, str]
    between_mm: float | None
    unlike: tuple[str, ...]


class SliceFolder(NamedTuple):
    """Where slices go, and the seed of their motion."""

    path: Path
    seed: int


class SliceMaker:
    """Makes the files of one subject; equal makers make equal files, whoever else is in the table."""

    def __init__(self, source: Source, settings: Slices, to: SliceFolder) -> None:
        self._source, self._settings, self._folder = source, settings, to.path / source.stem
        self._seed = subject_seed(to.seed, zlib.crc32(source.name.encode()))

    def made(self) -> Made:
        """The slices, cut unless they are there. Raises `ConcordError` for a subject that none can be cut from."""
        told, record = self._folder / "slices.json", self._folder / "made_from.json"
        made_from = self._made_from()
        if is_kept(record, made_from, [told]):
            made = _read(told, self._folder)
            if all(path.is_file() for path in _files(made)):
                return made
        record.unlink(missing_ok=True)  # files that are about to be overwritten are no longer what it says
        made = self._make()
        write_json(told, _plain(made))
        keep(record, made_from)
        return made

    def _made_from(self) -> dict[str, Any]:
        settings = self._settings.model_dump(mode="json", exclude=OF_THE_TABLE)
        files = [*self._source.images.values(), *self._source.labels.values(), *self._source.truths]
        for path in files:
            if not path.exists():
                raise ConcordError(f"{path}: no such file")
        return {"settings": settings, "files": fingerprint(*files), "seed": self._seed, "code": code_digest("slice_")}

    def _make(self) -> Made:
        settings, axis = self._settings, self._settings.axis
        images = {modality: read_volume(path) for modality, path in self._source.images.items()}
        labels = {modality: _labels(path, images[modality]) for modality, path in self._source.labels.items()}
        head = head_of(images[settings.fixed], axis)
        check_aligned(self._source, images[settings.fixed])
        wrong = tuple(m for m in labels if settings.tissues and unlike(images[m], labels[m], m, settings.tissues))
        heights, between_mm = self._heights(head)
        kept = self._kept(labels)
        smoothed = {modality: for_spacing(image, axis, settings.spacing_mm) for modality, image in images.items()}
        made = Made({}, {}, {}, between_mm, wrong)
        for number, plane in enumerate(planes_of(head, axis, heights, size=settings.size, spacing_mm=settings.spacing_mm), start=1):
            if reason := self._complaint(plane, head, smoothed):
                made.dropped[number] = reason
                continue
            made.slices[number] = self._written(number, plane, smoothed, kept)
            if settings.intra:
                made.moved[number] = [self._moved(number, draw, plane, smoothed, kept) for draw in range(1, settings.draws + 1)]
        return made

    def _heights(self, head: Head) -> tuple[np.ndarray, float | None]:
        """Shares of the head's height, and the distance between slices."""
        (low, high), whole_mm, settings = self._settings.heights, head.top_mm - head.bottom_mm, self._settings
        if settings.slice_spacing_mm is not None:
            return low + np.arange(0.0, (high - low) * whole_mm + 1e-6, settings.slice_spacing_mm) / whole_mm, settings.slice_spacing_mm
        if settings.slices == 1:
            return np.array([(low + high) / 2]), None
        return np.linspace(low, high, settings.slices), (high - low) * whole_mm / (settings.slices - 1) or None

    def _complaint(self, plane: Plane, head: Head, images: dict[str, Volume]) -> str:
        """Why a slice is of no use, empty where it is."""
        inside = plane.where(head.mask)
        if inside.mean() < max(self._settings.min_share, 1e-9):
            return f"head in {100 * inside.mean():.0f} % of it; expected {100 * self._settings.min_share:.0f} %"
        for modality, image in images.items():
            if plane.misses(image, inside):
                return f"the {modality} ends within it"
            if np.ptp(plane.cut(image).array[inside]) == 0:
                return f"the {modality} is of one value in it"
        return ""

    def _kept(self, labels: dict[str, Volume]) -> dict[str, Volume]:
        wanted = self._settings.labels
        return {m: volume.with_array(np.where(np.isin(volume.array, wanted), volume.array, 0)) for m, volume in labels.items()} if wanted else labels

    def _written(self, number: int, plane: Plane, images: dict[str, Volume], labels: dict[str, Volume]) -> dict[str, Path]:
        """The slices where they lie: the fixed one and, for pairs of subjects, the moving one."""
        fixed, moving = self._settings.fixed, self._settings.moving
        stem = f"{self._source.stem}_{number:02d}"
        files = {"fixed": self._image(plane.cut(images[fixed]), f"{stem}_{fixed}")}
        if fixed in labels:
            files["fixed_labels"] = self._image(plane.cut(labels[fixed], interpolation="nearest"), f"{stem}_{fixed}_labels")
        if self._settings.intra:
            return files
        files |= {"moving": self._image(plane.cut(images[moving]), f"{stem}_{moving}"), "moving_counterpart": files["fixed"]}
        if moving in labels:
            files["moving_labels"] = self._image(plane.cut(labels[moving], interpolation="nearest"), f"{stem}_{moving}_labels")
        return files

    def _moved(self, number: int, draw: int, plane: Plane, images: dict[str, Volume], labels: dict[str, Volume]) -> dict[str, Path]:
        """The slices through a random motion, sampled once from the volumes, and that motion."""
        fixed, moving = self._settings.fixed, self._settings.moving
        motion = random_motion(plane.grid, self._settings.motion, np.random.default_rng([self._seed, number, draw]))
        stem = f"{self._source.stem}_{number:02d}-{draw}"
        files = {
            "moving": self._image(plane.cut(images[moving], motion.inverse_mm), f"{stem}_{moving}"),
            "moving_counterpart": self._image(plane.cut(images[fixed], motion.inverse_mm), f"{stem}_{fixed}"),
            "true_transform": self._folder / f"{stem}_true.h5",
        }
        write_transform(motion.truth, files["true_transform"])
        if moving in labels:
            files["moving_labels"] = self._image(plane.cut(labels[moving], motion.inverse_mm, interpolation="nearest"), f"{stem}_labels")
        return files

    def _image(self, volume: Volume, name: str) -> Path:
        path = self._folder / f"{identifier(name)}.mha"
        write_volume(volume, path)
        return path


def _labels(path: Path, image: Volume) -> Volume:
    labels = read_volume(path)
    if not labels.geometry.matches(image.geometry):
        raise ConcordError(
            f"{path}: label map of size {labels.geometry.size} is not on the grid of {image.name} {image.geometry.size}; resample it (nearest)"
        )
    return labels if labels.array.dtype.kind in "ui" else labels.with_array(np.rint(labels.array).astype(np.int32))


def _files(made: Made) -> Iterator[Path]:
    for number, files in made.slices.items():
        yield from files.values()
        for moved in made.moved.get(number, []):
            yield from moved.values()


def _plain(made: Made) -> dict[str, Any]:
    """As JSON: names of files without their folder."""

    def names(files: dict[str, Path]) -> dict[str, str]:
        return {column: path.name for column, path in files.items()}

    moved = {number: [names(files) for files in draws] for number, draws in made.moved.items()}
    slices = {number: names(files) for number, files in made.slices.items()}
    return {"slices": slices, "moved": moved, "dropped": made.dropped, "between_mm": made.between_mm, "unlike": made.unlike}


def _read(path: Path, folder: Path) -> Made:
    told = json.loads(path.read_text(encoding="utf-8"))

    def paths(names: dict[str, str]) -> dict[str, Path]:
        return {column: folder / name for column, name in names.items()}

    slices = {int(number): paths(names) for number, names in told["slices"].items()}
    moved = {int(number): [paths(names) for names in draws] for number, draws in told["moved"].items()}
    return Made(slices, moved, {int(n): reason for n, reason in told["dropped"].items()}, told["between_mm"], tuple(told["unlike"]))
