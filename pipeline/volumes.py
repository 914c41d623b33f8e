"""Volumes: samples and geometry together, 2-D or 3-D, and their files.

Arrays are `([z,] y, x)`; physical points are `(x, y[, z])` in mm, LPS as in ITK. The turn between the two
orders happens in this module and in `transforms`, nowhere else.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConcordError
from pipeline.files import whole_file
from pipeline.itk_classes import load_itk
from pipeline.metaimage import read_samples, write_samples

SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")
WRITTEN = (".nii", ".nii.gz", ".mha", ".nrrd")
"""Formats that are one file: only such a file can be renamed to its final name as a whole."""
GRID_TOLERANCE = 1e-3
"""Largest distance, in voxels, between corners of grids that count as one (ours: NIfTI stores geometry in single precision)."""


@dataclass(frozen=True)
class Geometry:
    """Where the voxels lie: size in voxels, spacing and origin in mm, direction cosines; all in `(x, y[, z])` order.

    `direction[i][j]` is component `i` of the unit vector along image axis `j`, as in ITK.
    """

    size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    origin_mm: tuple[float, ...]
    direction: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not 2 <= self.dimension <= 3:
            raise ConcordError(f"geometry of {self.dimension} dimensions; expected 2 or 3")
        if min(self.spacing_mm) <= 0 or not np.all(np.isfinite(self.spacing_mm)):
            raise ConcordError(f"spacing {self.spacing_mm} mm; expected positive numbers: repair the header")

    @classmethod
    def regular(cls, size: Sequence[int], spacing_mm: float | Sequence[float] = 1.0, origin_mm: Sequence[float] | None = None) -> Geometry:
        """An axis-aligned grid; `origin_mm` defaults to the one that puts the grid's centre at zero."""
        spacing = tuple(float(s) for s in np.broadcast_to(spacing_mm, len(size)))
        origin = origin_mm if origin_mm is not None else [-(n - 1) / 2 * s for n, s in zip(size, spacing, strict=True)]
        identity = tuple(tuple(row) for row in np.eye(len(size)).tolist())
        return cls(tuple(int(n) for n in size), spacing, tuple(float(o) for o in origin), identity)

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return len(self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array: `([z,] y, x)`."""
        return self.size[::-1]

    @cached_property
    def index_to_physical(self) -> np.ndarray:
        """Matrix `(d, d)` from a continuous index `(x, y[, z])` to mm, origin left out."""
        return np.asarray(self.direction) * np.asarray(self.spacing_mm)

    @cached_property
    def physical_to_index(self) -> np.ndarray:
        """Inverse of `index_to_physical`."""
        return np.linalg.inv(self.index_to_physical)

    @property
    def centre_mm(self) -> np.ndarray:
        """Physical centre of the grid, `(d,)`."""
        return self.points_at((np.asarray(self.size) - 1) / 2)

    @property
    def extent_mm(self) -> np.ndarray:
        """Distance between the first and the last voxel centre along each image axis, `(d,)`."""
        return (np.asarray(self.size) - 1) * np.asarray(self.spacing_mm)

    def points_at(self, index: np.ndarray) -> np.ndarray:
        """Physical points in mm, `(..., d)`, at continuous indices `(..., d)`."""
        return np.asarray(index) @ self.index_to_physical.T + np.asarray(self.origin_mm)

    def index_at(self, points_mm: np.ndarray) -> np.ndarray:
        """Continuous indices `(..., d)` of physical points `(..., d)` in mm."""
        return (np.asarray(points_mm) - np.asarray(self.origin_mm)) @ self.physical_to_index.T

    def grid_points(self) -> np.ndarray:
        """Physical position of every voxel in mm, `([z,] y, x, d)`."""
        axes = np.meshgrid(*(np.arange(n, dtype=float) for n in self.shape), indexing="ij")
        return self.points_at(np.stack(axes[::-1], axis=-1))

    def contains(self, points_mm: np.ndarray) -> np.ndarray:
        """Whether each point lies inside the grid's voxels (half a voxel beyond the outer centres, as in ITK), `(...)` bool."""
        index = self.index_at(points_mm)
        return np.all((index >= -0.5) & (index < np.asarray(self.size) - 0.5), axis=-1)

    def corners_vx(self, beyond: float = 0.0) -> np.ndarray:
        """Continuous indices `(2^d, d)` of the corners: of the outermost voxels' centres, or `beyond` them by so many voxels (0.5: faces)."""
        ends = ((-beyond, n - 1 + beyond) for n in self.size)
        return np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, self.dimension)

    def matches(self, other: Geometry, tolerance: float = GRID_TOLERANCE) -> bool:
        """Whether both describe the same grid: same size, and corners within `tolerance` voxels."""
        if self.size != other.size:
            return False
        corners = self.corners_vx()
        return bool(np.abs(self.index_at(other.points_at(corners)) - corners).max() <= tolerance)

    def resized(self, size: Sequence[int]) -> Geometry:
        """A grid of `size` voxels over the same physical box (outer voxel borders kept)."""
        factor = np.asarray(self.size) / np.asarray(size)
        spacing = np.asarray(self.spacing_mm) * factor
        origin = self.points_at((factor - 1) / 2)
        return replace(self, size=tuple(int(n) for n in size), spacing_mm=tuple(spacing.tolist()), origin_mm=tuple(origin.tolist()))

    def with_spacing(self, spacing_mm: float | Sequence[float]) -> Geometry:
        """A grid of about `spacing_mm` over the same physical box; the spacing gives way so that whole voxels fit."""
        wanted = np.broadcast_to(spacing_mm, self.dimension)
        size = np.maximum(1, np.round(np.asarray(self.size) * np.asarray(self.spacing_mm) / wanted)).astype(int)
        return self.resized(size.tolist())

    def cropped(self, lower: Sequence[int], upper: Sequence[int]) -> Geometry:
        """The sub-grid from index `lower` up to but without `upper`, both `(x, y[, z])`."""
        size = tuple(int(u - low) for low, u in zip(lower, upper, strict=True))
        return replace(self, size=size, origin_mm=tuple(self.points_at(np.asarray(lower)).tolist()))


@dataclass(frozen=True, eq=False)
class Volume:
    """Samples `([z,] y, x)` on a geometry; `name` is what an error calls it (usually its file)."""

    array: np.ndarray
    geometry: Geometry
    name: str = "volume"

    def __post_init__(self) -> None:
        if self.array.shape != self.geometry.shape:
            raise ConcordError(f"{self.name}: array of shape {self.array.shape} on a grid of {self.geometry.shape} ([z,] y, x)")
        # ITK silently transposes Fortran-ordered arrays
        object.__setattr__(self, "array", np.ascontiguousarray(self.array))

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return self.geometry.dimension

    def with_array(self, array: np.ndarray) -> Volume:
        """The same geometry with other samples."""
        return replace(self, array=array)

    def cropped(self, lower: Sequence[int], upper: Sequence[int]) -> Volume:
        """The part from index `lower` up to but without `upper`, both `(x, y[, z])`."""
        window = tuple(slice(low, up) for low, up in zip(lower[::-1], upper[::-1], strict=True))
        return Volume(self.array[window], self.geometry.cropped(lower, upper), self.name)


def box_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First index, and one past the last, of what is not zero in `([z,] y, x)`, both `(d,)` in `(x, y[, z])`; it must not be empty."""
    axes = range(mask.ndim)
    used = [np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in reversed(axes)]
    return np.array([axis[0] for axis in used]), np.array([axis[-1] + 1 for axis in used])


def read_volume(path: Path | str) -> Volume:
    """Read a scalar 2-D or 3-D image: NIfTI, MetaImage, NRRD, or a folder that holds one DICOM series.

    Raises `ConcordError` naming the file for: missing, unreadable or truncated, 4-D or vector-valued, NaN or infinite
    samples, zero or negative spacing. A fourth axis of length one is dropped.
    """
    path = Path(path)
    if not path.exists():
        raise ConcordError(f"{path}: no such file; check the path")
    if path.is_file() and not path.name.endswith(SUFFIXES):
        raise ConcordError(f"{path}: unknown image suffix; expected {', '.join(SUFFIXES)}, or a folder with one DICOM series")
    if path.name.endswith((".nii", ".nii.gz")):
        volume = _read_nifti(path)
    else:
        _check_metaimage_spacing(path)
        volume = _read_plain(path) or from_itk(_itk_read(path), str(path))
    if volume.array.dtype.kind == "f" and not np.isfinite(volume.array).all():
        bad = int((~np.isfinite(volume.array)).sum())
        raise ConcordError(f"{path}: {bad} samples are NaN or infinite; expected finite numbers: replace them first")
    return volume


def write_volume(volume: Volume, path: Path | str) -> None:
    """Write a volume in the format of its suffix, as a whole file; NIfTI with `.gz` is compressed."""
    path, geometry = Path(path), volume.geometry
    if path.suffix == ".mha":
        array = volume.array.astype(_narrow(volume.array.dtype), copy=False)
        with whole_file(path) as temporary:
            place = {"spacing_mm": geometry.spacing_mm, "origin_mm": geometry.origin_mm, "direction": np.asarray(geometry.direction)}
            if write_samples(array, path=temporary, **place):
                return
    _itk_write(to_itk(volume), path)


def write_vector_field(field_mm: np.ndarray, geometry: Geometry, path: Path | str) -> None:
    """Write displacements `([z,] y, x, d)` in mm, LPS components, as a vector image of float32."""
    _itk_write(_with_geometry(_itk_image_from_array(np.ascontiguousarray(field_mm, dtype=np.float32), is_vector=True), geometry), Path(path))


def read_vector_field(path: Path | str) -> tuple[np.ndarray, Geometry]:
    """Read a vector image as `([z,] y, x, d)`, float32, and its geometry. Raises `ConcordError` where it is no displacement field."""
    if not Path(path).exists():
        raise ConcordError(f"{path}: no such file; check the path")
    itk = load_itk()

    image = _itk_read(Path(path))
    array = np.array(itk.array_view_from_image(image))
    geometry = _geometry_of(image, str(path))
    if array.ndim != geometry.dimension + 1 or array.shape[-1] != geometry.dimension:
        raise ConcordError(
            f"{path}: array of shape {array.shape} is no displacement field; expected one vector of {geometry.dimension} numbers a voxel"
        )
    return array, geometry


def to_itk(volume: Volume, dtype: type | None = None) -> Any:
    """An `itk.Image` of the volume, cast to `dtype` where given (a copy: ITK never sees our buffer)."""
    array = volume.array.astype(dtype or _narrow(volume.array.dtype), copy=False)
    return _with_geometry(_itk_image_from_array(array), volume.geometry)


def from_itk(image: Any, name: str = "volume") -> Volume:
    """A volume from a scalar `itk.Image`, samples copied in native byte order."""
    itk = load_itk()

    geometry = _geometry_of(image, name)
    array = np.array(itk.array_view_from_image(image))
    if array.ndim != geometry.dimension:
        raise ConcordError(f"{name}: {array.shape[-1]} values a voxel; expected a scalar image")
    return Volume(array, geometry, name)


def _itk_image_from_array(array: np.ndarray, is_vector: bool = False) -> Any:
    itk = load_itk()

    return itk.image_from_array(np.ascontiguousarray(array), is_vector=is_vector)


def _narrow(dtype: np.dtype) -> np.dtype:
    """The sample type that image files and ITK's wrapping have for one of numpy's."""
    known = {"bool": "u1", "int8": "i2", "int64": "i4", "uint64": "u4", "float16": "f4"}
    return np.dtype(known.get(dtype.name, dtype.name))


def _with_geometry(image: Any, geometry: Geometry) -> Any:
    itk = load_itk()

    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(itk.matrix_from_array(np.asarray(geometry.direction)))
    return image


def _geometry_of(image: Any, name: str) -> Geometry:
    itk = load_itk()

    direction = itk.array_from_matrix(image.GetDirection())
    size = tuple(int(n) for n in image.GetLargestPossibleRegion().GetSize())
    spacing, origin = tuple(map(float, image.GetSpacing())), tuple(map(float, image.GetOrigin()))
    if len(size) > 3:
        raise ConcordError(f"{name}: {len(size)}-D, size {size}; expected 2-D or 3-D: extract one frame first")
    return Geometry(size, spacing, origin, tuple(tuple(row) for row in direction.tolist()))


def _itk_read(path: Path, pixel_type: Any = None) -> Any:
    itk = load_itk()

    try:
        if path.is_dir():
            return itk.imread(_dicom_files(path))
        return itk.imread(str(path), pixel_type)
    except (RuntimeError, TypeError, KeyError, itk.support.extras.TemplateTypeError) as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise ConcordError(f"{path}: no image or truncated ({reason}); expected a whole {', '.join(SUFFIXES)} file or a DICOM folder") from error


def _dicom_files(folder: Path) -> list[str]:
    itk = load_itk()

    names = itk.GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(True)
    names.SetDirectory(str(folder))
    series = list(names.GetSeriesUIDs())
    if len(series) != 1:
        raise ConcordError(f"{folder}: {len(series)} DICOM series; expected a folder with exactly one")
    return list(names.GetFileNames(series[0]))


def _itk_write(image: Any, path: Path) -> None:
    itk = load_itk()

    if not path.name.endswith(WRITTEN):
        raise ConcordError(f"{path}: cannot write this suffix; choose one of {', '.join(WRITTEN)}")
    with whole_file(path) as temporary:
        try:
            itk.imwrite(image, str(temporary), compression=path.name.endswith(".gz"))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:200]
            raise ConcordError(f"{path}: cannot be written ({reason}); is the disk full or the folder read-only?") from error
        expected = itk.array_view_from_image(image).nbytes
        if _stored_bytes(temporary, expected) < expected:  # ITK's NIfTI writer says nothing when the disk is full
            raise ConcordError(f"{path}: the disk took less than was written; free some space and run again")


def _stored_bytes(path: Path, most: int) -> int:
    """Bytes of samples that a file gives back, unpacked where it is packed; counted up to `most`."""
    if not path.name.endswith(".gz"):
        return path.stat().st_size
    found = 0
    try:
        with gzip.open(path) as stream:
            while found < most and (chunk := stream.read(1 << 24)):
                found += len(chunk)
    except (EOFError, OSError, zlib.error):
        return 0
    return found


def _read_nifti(path: Path) -> Volume:
    """NIfTI with ITK's geometry and nibabel's samples: ITK turns NaN into zero and fills up truncated files, both in silence."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        nibabel.imageglobals.logger.setLevel("CRITICAL")  # it tells of mending headers; what matters is refused below
        image = nibabel.load(path)
        with nibabel.openers.ImageOpener(path) as stream:  # the header as it stands: nibabel's own copy is mended already
            header = type(image.header).from_fileobj(stream, check=False)
        spacing = tuple(float(s) for s in header["pixdim"][1 : min(4, 1 + len(image.shape))])
        if not all(s > 0 and np.isfinite(s) for s in spacing):
            raise ConcordError(f"{path}: spacing {spacing} mm in the header; expected positive numbers: repair the header")
        if len(image.shape) > 3 and max(image.shape[3:]) > 1:
            raise ConcordError(f"{path}: {len(image.shape)}-D, size {image.shape}; expected 2-D or 3-D: extract one frame first")
        scaled = (image.dataobj.slope, image.dataobj.inter) != (1, 0)
        array = np.asarray(image.dataobj, dtype=np.float32 if scaled else None)
    except (OSError, EOFError, ImageFileError, ValueError, zlib.error, nibabel.spatialimages.HeaderDataError) as error:
        raise ConcordError(f"{path}: not a NIfTI file or truncated ({' '.join(str(error).split())[:150]}); fetch it again") from error
    geometry = _header_geometry(path)
    array = array.reshape(geometry.size, order="F").T
    return Volume(array.astype(array.dtype.newbyteorder("="), copy=False), geometry, str(path))


def _header_of(path: Path) -> Any:
    """ITK's reader of a file with its header read, samples left alone."""
    itk = load_itk()

    reader = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if reader is None:
        raise ConcordError(f"{path}: cannot be read as an image; it is damaged or no image at all")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _header_geometry(path: Path) -> Geometry:
    """Geometry as ITK reads it from a file's header."""
    reader = _header_of(path)
    d = max(2, min(3, reader.GetNumberOfDimensions()))
    direction = np.array([list(reader.GetDirection(axis))[:d] for axis in range(d)]).T
    if abs(np.linalg.det(direction)) < 1e-6:  # a 2-D slice that stands upright in space has no in-plane direction: as ITK, use none
        direction = np.eye(d)
    size, spacing, origin = (tuple(getattr(reader, name)(axis) for axis in range(d)) for name in ("GetDimensions", "GetSpacing", "GetOrigin"))
    return Geometry(tuple(map(int, size)), tuple(map(float, spacing)), tuple(map(float, origin)), tuple(tuple(row) for row in direction.tolist()))


def _read_plain(path: Path) -> Volume | None:
    """An uncompressed MetaImage without ITK; None for every other file."""
    found = read_samples(path) if path.suffix == ".mha" else None
    if found is None:
        return None
    samples, place = found
    direction = np.reshape(place["direction"], (samples.ndim, samples.ndim)).T
    geometry = Geometry(samples.shape[::-1], tuple(place["spacing"]), tuple(place["origin"]), tuple(tuple(row) for row in direction.tolist()))
    return Volume(samples, geometry, str(path))


def _check_metaimage_spacing(path: Path) -> None:
    """ITK takes the absolute value of a negative MetaImage spacing in silence; we refuse it."""
    if not path.name.endswith((".mha", ".mhd")):
        return
    with path.open("rb") as stream:
        found = re.search(rb"Element(?:Spacing|Size)\s*=\s*([^\r\n]+)", stream.read(8192))
    numbers = [float(number) for number in found.group(1).split()] if found else []
    if not all(number > 0 for number in numbers):
        raise ConcordError(f"{path}: spacing {tuple(numbers)} mm in the header; expected positive numbers: repair the header")
