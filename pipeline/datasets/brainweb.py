"""BrainWeb: simulated T1, T2 and PD images of one head, healthy or with multiple sclerosis lesions (Collins et al., IEEE Trans Med Imaging 1998).

Files such as `t1_icbm_normal_1mm_pn3_rf20.rawb.gz` (noise 3 %, 20 % inhomogeneity of the field) and the label map
`phantom_1.0mm_normal_crisp.rawb.gz`: 1 CSF, 2 grey matter, 3 white matter, 4 fat, 5 muscle and skin, 6 skin, 7 skull, 8 glial matter,
9 connective tissue. ITK reads none of its formats, so volumes are converted once to MetaImage:

- `.rawb`: one unsigned byte a voxel, no header, x fastest, 181 x 217 voxels of 1 mm a slice; grey values are stretched to 0…255 for each file.
- `.raws`: two bytes a voxel, 12 bits used. The byte order is the one in which no value exceeds 4095. Label maps are sixteen times the label there.
- `.mnc`: MINC, read by nibabel, geometry from the header.

MINC's axes point right, front and up from (-90, -126, -72) mm; ours point left, back and up, so x and y are turned.
All anatomies are the same head (with lesions or without), so that the true transform between any two images is the identity.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline.datasets.layout import FolderDataset, Subject, taken
from pipeline.datasets.pairing import PairedDataset, Pairs
from pipeline.datasets.registry import Found, LeftOut
from pipeline.errors import ConcordError
from pipeline.methods import Run
from pipeline.volumes import Geometry, Volume

SLICE_SIZE = (181, 217)
START_MM = (-90.0, -126.0, -72.0)
"""Centre of the first voxel of raw files, `(x, y, z)` to the right, front and top."""
FORMATS = ("raws", "rawb", "mnc")
"""In order of preference where a volume is there in several: 12 bits before 8."""
_IMAGE = re.compile(r"(?P<modality>t1|t2|pd)_(?:icbm|ai)_(?P<anatomy>normal|msles\d)_(?P<slice>\d)mm_pn(?P<noise>\d)_rf(?P<field>\d+)")
_LABELS = re.compile(r"phantom_1\.0mm_(?P<anatomy>normal|msles\d)_crisp")
_ENDING = re.compile(r"\.(?P<format>raws|rawb|mnc)(?:\.gz)?$")


class BrainWeb(FolderDataset, PairedDataset):
    """BrainWeb's simulated brain database: pairs of modalities of one head, true transform known."""

    layout: ClassVar[str] = (
        "{t1,t2,pd}_{icbm_normal,ai_msles2}_1mm_pn3_rf20.{rawb,raws,mnc}[.gz] and phantom_1.0mm_normal_crisp.rawb[.gz], in it or in folders below"
    )
    known_modalities: ClassVar[tuple[str, ...]] = ("t1", "t2", "pd")

    noise: Literal[0, 1, 3, 5, 7, 9] = Field(3, description="noise of the images, %")
    inhomogeneity: Literal[0, 20, 40] = Field(20, description="inhomogeneity of the field, %")
    slice_mm: Literal[1, 3, 5, 7, 9] = Field(1, description="thickness of slices")
    pairs: Pairs = Field(0, description="test cases between anatomies (healthy, lesions): 'all', or this many")
    intra: bool = Field(True, description="register the images of one anatomy to each other")

    def cases(self, folder: Path, run: Run) -> Found:
        """Pairs of images with the chosen noise, inhomogeneity and slices; converted volumes and the true transform go to `folder`."""
        from pipeline.transform_files import write_transform
        from pipeline.transforms import Linear

        subjects, left_out = self._subjects(self.found_root())
        subjects, left_out = taken(subjects, left_out, self.subjects)
        converted: list[Subject] = []
        for subject in subjects:
            try:
                converted.append(_converted(subject, folder))
            except ConcordError as error:
                left_out.append(LeftOut(subject.name, str(error)))
        if not converted:
            raise self.nothing_found(left_out)
        found = self.pair_up(converted, run)
        write_transform(Linear.identity(3), folder / "identity.tfm")
        cases = [case.model_copy(update={"true_transform": (folder / "identity.tfm").absolute()}) for case in found.cases]
        return Found(cases, left_out + found.left_out)

    def _subjects(self, root: Path) -> tuple[list[Subject], list[LeftOut]]:
        """Anatomies with the wanted images, files as they were downloaded; files that are no simulated image, by name."""
        images: dict[str, dict[str, Path]] = {}
        labels: dict[str, Path] = {}
        left_out: list[LeftOut] = []
        for path, stem in _downloads(root):
            image, label_map = _IMAGE.fullmatch(stem), _LABELS.fullmatch(stem)
            if image and self._wanted(image):
                images.setdefault(image["anatomy"], {}).setdefault(image["modality"], path)
            elif label_map:
                labels.setdefault(label_map["anatomy"], path)
            elif not image:
                left_out.append(
                    LeftOut(path.name, "neither an image of the simulated brain database nor its crisp phantom; the 20 normal brains have T1 only")
                )
        complete = []
        for anatomy, files in sorted(images.items()):
            missing = [modality for modality in self.modalities if modality not in files]
            if missing:
                left_out.append(
                    LeftOut(
                        anatomy,
                        f"no {', '.join(missing)} with noise {self.noise} %, inhomogeneity {self.inhomogeneity} %, slices of {self.slice_mm} mm",
                    )
                )
            else:
                own = dict.fromkeys(self.modalities, labels[anatomy]) if anatomy in labels else {}
                complete.append(Subject(anatomy, {modality: files[modality] for modality in self.modalities}, own))
        return complete, left_out

    def _wanted(self, image: re.Match[str]) -> bool:
        return (int(image["noise"]), int(image["field"]), int(image["slice"])) == (self.noise, self.inhomogeneity, self.slice_mm)


def _downloads(root: Path) -> list[tuple[Path, str]]:
    """Files with one of BrainWeb's endings and their names without it, the preferred format first."""
    found = [(path, ending) for path in sorted(root.rglob("*")) if path.is_file() and (ending := _ENDING.search(path.name)) and path.name[0] != "."]
    found.sort(key=lambda row: FORMATS.index(row[1]["format"]))
    return [(path, path.name[: ending.start()]) for path, ending in found]


def _converted(subject: Subject, folder: Path) -> Subject:
    """The subject with its volumes as MetaImage in `folder`, label maps on the grid of the images."""
    images = {modality: convert(path, folder) for modality, path in subject.images.items()}
    if not subject.labels:
        return Subject(subject.name, images)
    path = next(iter(subject.labels.values()))
    target = convert(path, folder, like=next(iter(images.values())))
    return Subject(subject.name, images, dict.fromkeys(images, target))


def convert(path: Path, folder: Path, *, like: Path | None = None) -> Path:
    """Convert a download to `.mha` in `folder`, unless that is done; label maps are brought to the grid of the volume `like`, nearest neighbour."""
    from pipeline.resampling import resample
    from pipeline.volumes import read_volume, write_volume

    stem = _ENDING.sub("", path.name)
    target = (folder / (f"{stem}.mha" if like is None else f"{stem}_on_{like.name}")).absolute()
    if target.exists() and target.stat().st_mtime >= path.stat().st_mtime:
        return target
    volume = read_download(path, is_labels=like is not None)
    if like is not None:
        onto = read_volume(like).geometry
        volume = volume if onto.matches(volume.geometry) else resample(volume, onto, interpolation="nearest")
    write_volume(volume, target)
    return target


def read_download(path: Path, *, is_labels: bool = False) -> Volume:
    """A volume as BrainWeb stores it. Raises `ConcordError` naming the file where it is damaged or of another size."""
    match = _ENDING.search(path.name)
    if match is None:
        raise ConcordError(f"{path}: unknown ending; expected .rawb, .raws or .mnc, with .gz or without")
    volume = _read_minc(path) if match["format"] == "mnc" else _read_raw(path, match["format"])
    return volume.with_array(_label_values(volume.array, path)) if is_labels else volume


def _read_raw(path: Path, kind: str) -> Volume:
    data = _bytes_of(path)
    voxels, size = (len(data) // 2, 2) if kind == "raws" else (len(data), 1)
    slices = voxels // (SLICE_SIZE[0] * SLICE_SIZE[1])
    if slices == 0 or len(data) != slices * SLICE_SIZE[0] * SLICE_SIZE[1] * size:
        raise ConcordError(f"{path}: {len(data)} bytes are no whole slices of {SLICE_SIZE[0]} x {SLICE_SIZE[1]} voxels; download it again")
    thickness = re.search(r"_(\d)(?:\.0)?mm_", path.name)
    spacing_mm = (1.0, 1.0, float(thickness[1]) if thickness else 1.0)
    array = np.frombuffer(data, np.uint8) if kind == "rawb" else _twelve_bits(data, path)
    return Volume(array.reshape(slices, *SLICE_SIZE[::-1]), _turned((*SLICE_SIZE, slices), np.diag(spacing_mm), np.array(START_MM)), str(path))


def _bytes_of(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.name.endswith(".gz") else data
    except (OSError, EOFError, zlib.error) as error:
        raise ConcordError(f"{path}: cannot be read or unpacked ({error}); download it again") from error


def _twelve_bits(data: bytes, path: Path) -> np.ndarray:
    for order in ("<u2", ">u2"):
        array = np.frombuffer(data, order)
        if array.max(initial=0) <= 4095:
            return array.astype(np.uint16)
    raise ConcordError(f"{path}: values above 4095 in either byte order; expected 12 bits a voxel: download it again as raw short")


def _label_values(array: np.ndarray, path: Path) -> np.ndarray:
    """Labels 0 to 10 from bytes or from sixteen times that."""
    labels = np.rint(array).astype(np.int64)
    if labels.max(initial=0) > 11 and not (labels % 16).any():
        labels //= 16
    if labels.max(initial=0) > 11:
        raise ConcordError(f"{path}: values up to {labels.max()}; expected labels 0 to 10 of the crisp phantom")
    return labels.astype(np.uint8)


def _read_minc(path: Path) -> Volume:
    import nibabel

    try:
        image = nibabel.load(path)
        array = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, TypeError, nibabel.filebasedimages.ImageFileError) as error:
        raise ConcordError(f"{path}: not a MINC file or damaged ({' '.join(str(error).split())[:120]}); download it again") from error
    if array.ndim != 3:
        raise ConcordError(f"{path}: {array.ndim}-D; expected 3-D")
    # nibabel keeps MINC's order of axes, slowest first: turned round, its columns are those of (x, y, z)
    array = array.astype(np.float32) if array.dtype.kind == "f" else array
    return Volume(array, _turned(array.shape[::-1], image.affine[:3, :3][:, ::-1], image.affine[:3, 3]), str(path))


def _turned(size: tuple[int, ...], axes_mm: np.ndarray, start_mm: np.ndarray) -> Geometry:
    """Geometry in LPS of a grid told in RAS: columns of `axes_mm` are the steps along x, y and z."""
    turn = np.array([-1.0, -1.0, 1.0])
    spacing = np.linalg.norm(axes_mm, axis=0)
    direction = turn[:, None] * axes_mm / spacing
    return Geometry(tuple(size), tuple(spacing.tolist()), tuple((turn * start_mm).tolist()), tuple(tuple(row) for row in direction.tolist()))
