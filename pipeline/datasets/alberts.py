"""ALBERTs: 20 newborn brains with 50 regions drawn by hand (Gousias et al., NeuroImage 2012).

What is known of the files: the copy that comes with the dHCP structural pipeline has `T2/`, `segmentations-v3/` and more, each
with `ALBERT_NN.nii.gz`; it has no T1, and its label maps are modified. The first release has T1 and T2, but the names of its files
could not be established: the default pattern for T1 is ours, by analogy. All patterns are settings.

Labels are 1 to 50, odd ones on the left and even ones on the right, but for 19 (brainstem) and 48 (corpus callosum).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from pipeline.datasets.layout import FolderDataset, Subject, collect, taken
from pipeline.datasets.pairing import PairedDataset
from pipeline.datasets.registry import Found, LeftOut
from pipeline.errors import ConcordError
from pipeline.methods import Run


class Alberts(FolderDataset, PairedDataset):
    """ALBERTs, or any data set with one file a subject and modality: the files' names are patterns."""

    layout: ClassVar[str] = "T1/ALBERT_01.nii.gz, T2/ALBERT_01.nii.gz, segmentations-v3/ALBERT_01.nii.gz, or what `images` and `label_maps` say"

    images: dict[str, str] = Field(
        {"t1": "T1/ALBERT_{subject}.nii*", "t2": "T2/ALBERT_{subject}.nii*"},
        description="modality: pattern of its files below the root, with {subject} where the subject's name stands, and globs (*, **/)",
    )
    label_maps: str = Field("segmentations-v3/ALBERT_{subject}.nii*", description="pattern of the label maps; empty: none")

    @model_validator(mode="after")
    def _check_patterns(self) -> Alberts:
        for modality in self.modalities:
            if modality not in self.images:
                raise ConcordError(f"images: no pattern for modality {modality!r}; given: {', '.join(self.images)}")
        for key, pattern in [*((f"images.{name}", pattern) for name, pattern in self.images.items()), ("label_maps", self.label_maps)]:
            if pattern and ("{subject}" not in pattern or pattern.startswith("/")):
                raise ConcordError(
                    f"{key}: {pattern!r} is no pattern; expected a path below the root with {{subject}} in it, such as T2/ALBERT_{{subject}}.nii.gz"
                )
        return self

    def cases(self, folder: Path, run: Run) -> Found:
        """Pairs of the subjects that have all modalities and, where a pattern is given, a label map.

        A label map is brought to the grid of each image by header, nearest neighbour, where the two differ; such copies go to `folder`.
        """
        images = {modality: [self.images[modality]] for modality in self.modalities}
        subjects, left_out = collect(self.found_root(), images, [self.label_maps] if self.label_maps else ())
        if self.label_maps:
            left_out += [LeftOut(subject.name, f"no label map like {self.label_maps}") for subject in subjects if not subject.labels]
            subjects = [subject for subject in subjects if subject.labels]
        subjects, left_out = taken(subjects, left_out, self.subjects)
        if not subjects:
            raise self.nothing_found(left_out)
        ready, unread = labels_on_grids(subjects, folder)
        found = self.pair_up(ready, run)
        return Found(found.cases, left_out + unread + found.left_out)


def labels_on_grids(subjects: list[Subject], folder: Path) -> tuple[list[Subject], list[LeftOut]]:
    """Subjects whose label maps lie on the grids of their images; who has a damaged file, by name."""
    ready: list[Subject] = []
    left_out: list[LeftOut] = []
    for subject in subjects:
        try:
            labels = {modality: _on_grid(path, subject.images[modality], folder) for modality, path in subject.labels.items()}
            ready.append(Subject(subject.name, subject.images, labels))
        except ConcordError as error:
            left_out.append(LeftOut(subject.name, str(error)))
    return ready, left_out


def _on_grid(labels: Path, image: Path, folder: Path) -> Path:
    """The label map itself where the headers tell one grid, else a copy on the image's grid, written once."""
    if _same_grid(labels, image):
        return labels
    from pipeline.resampling import resample
    from pipeline.volumes import read_volume, write_volume

    digest = hashlib.sha256(f"{labels} {image}".encode()).hexdigest()[:8]
    target = folder / f"labels_{image.name.split('.')[0]}_{digest}.mha"
    if not target.exists() or target.stat().st_mtime < max(labels.stat().st_mtime, image.stat().st_mtime):
        write_volume(resample(read_volume(labels), read_volume(image).geometry, interpolation="nearest"), target)
    return target


def _same_grid(first: Path, second: Path) -> bool:
    """Whether two headers tell the same grid, to a thousandth of a voxel; samples are not read."""
    import nibabel

    try:
        one, other = (nibabel.load(path) for path in (first, second))
        return one.shape[:3] == other.shape[:3] and bool(np.allclose(np.linalg.solve(other.affine, one.affine), np.eye(4), atol=1e-3))
    except (OSError, EOFError, ValueError, np.linalg.LinAlgError, nibabel.filebasedimages.ImageFileError) as error:
        raise ConcordError(f"{first} or {second}: not a NIfTI file or damaged ({' '.join(str(error).split())[:120]}); fetch it again") from error
