"""What readers of prostate data share: structures of four-dimensional label files, landmarks, surfaces as label maps, files that stand for others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import ConcordError
from pipeline.files import write_text
from pipeline.volumes import Geometry, Volume

PRESENT = 0.5
"""A structure is where its channel exceeds this: channels are 0 and 1, or shares."""


class Structures(NamedTuple):
    """The gland `(z, y, x)`, uint8, and the centroids of the other structures by channel, `(3,)` in mm."""

    gland: np.ndarray
    centroids_mm: dict[int, np.ndarray]


def read_structures(path: Path, geometry: Geometry) -> Structures:
    """Structures of a NIfTI label file whose last axis are structures, the gland first; a 3-D file holds the gland alone.

    Voxels are those of the image's grid, whatever the label file's own header says. Raises `ConcordError` naming the file for: unreadable,
    another size than the image's, no gland in it.
    """
    array = _label_array(path)
    if array.shape[:3] != geometry.size:
        raise ConcordError(f"{path}: label map of size {array.shape[:3]} on an image of {geometry.size}; expected the image's grid")
    gland, *others = np.moveaxis(array > PRESENT, -1, 0)
    if not gland.any():
        raise ConcordError(f"{path}: no voxel of the gland (first structure); expected values of 1 in it")
    places = {number: geometry.points_at(np.argwhere(other).mean(axis=0)) for number, other in enumerate(others, start=1) if other.any()}
    return Structures(np.ascontiguousarray(gland.T).astype(np.uint8), places)


def _label_array(path: Path) -> np.ndarray:
    """The samples `(x, y, z, structure)`."""
    import zlib

    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        array = np.asarray(nibabel.load(path).dataobj)
    except (OSError, EOFError, ImageFileError, ValueError, zlib.error) as error:
        raise ConcordError(f"{path}: not a NIfTI file or truncated ({' '.join(str(error).split())[:150]}); fetch it again") from error
    if array.ndim == 5 and array.shape[3] == 1:  # NIfTI's own place for several values a voxel
        array = array[:, :, :, 0]
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4:
        raise ConcordError(f"{path}: label map of {array.ndim} dimensions; expected x, y, z and structures")
    return array


def write_points(points_mm: Iterable[Iterable[float]], path: Path) -> None:
    """Write landmarks `(n, 3)` in mm as a CSV with columns x, y, z, a whole file."""
    write_text(path, "x,y,z\n" + "".join(",".join(map(repr, map(float, point))) + "\n" for point in points_mm))


def write_gland(gland: np.ndarray, geometry: Geometry, path: Path) -> None:
    """Write a gland's label map `(z, y, x)`."""
    from pipeline.volumes import write_volume

    write_volume(Volume(gland, geometry, path.name), path)


def write_pair_structures(fixed: Structures, moving: Structures, grids: tuple[Geometry, Geometry], paths: Mapping[str, Path]) -> None:
    """Write both glands, and as landmarks the structures that both have, in the same order; `paths` are by column of a case."""
    shared = sorted(fixed.centroids_mm.keys() & moving.centroids_mm.keys())
    for side, found, grid in zip(("fixed", "moving"), (fixed, moving), grids, strict=True):
        write_gland(found.gland, grid, paths[f"{side}_labels"])
        write_points([found.centroids_mm[number] for number in shared], paths[f"{side}_landmarks"])


def with_landmarks(paths: Mapping[str, Path]) -> dict[str, Path]:
    """The files of a pair's structures without landmark files that hold none."""
    empty = paths["fixed_landmarks"].read_text(encoding="utf-8").count("\n") < 2
    return {column: path for column, path in paths.items() if not (empty and column.endswith("landmarks"))}


def fingerprint(*paths: Path) -> dict[str, list[int]]:
    """Size and time of change of files (of all in it, for a folder): what was made from them is outdated when these change."""
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path]) if file.is_file()]
    return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def require_files(paths: Iterable[Path]) -> None:
    """Raise `ConcordError` naming the first file that is not there."""
    for path in paths:
        if not path.is_file():
            raise ConcordError(f"{path}: no such file")
