"""Label maps without images: from each one, aligned pairs of images of random contrast, to teach a similarity from anatomy alone.

The idea is that of Billot et al. (Med Image Anal 2023) and of Hoffmann et al. (IEEE Trans Med Imaging 2022), see `phantoms/contrast.py`.
Both modalities are as random as each other: a network should be fitted with its channels swapped at random (`swap_channels`).
With `tissues` they are a T1 and a T2 instead, of tissues as the brain phantom has them: real anatomy, synthetic images.
"""

from __future__ import annotations

import glob
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.cases import Case, read_cases
from pipeline.datasets.keeping import code_digest, is_kept, keep, subject_seed
from pipeline.datasets.layout import FolderDataset, chosen_subjects, find_files
from pipeline.datasets.pairing import SPLITS, identifier
from pipeline.datasets.phantoms.brain import POPULATIONS, SEQUENCES
from pipeline.datasets.phantoms.contrast import BACKGROUND, ContrastRanges, LabelIndex, indexed, synthetic_image
from pipeline.datasets.registry import Found, LeftOut
from pipeline.errors import ConcordError
from pipeline.methods import Run
from pipeline.volumes import SUFFIXES, Volume, box_of, read_volume, write_volume

MODALITIES = ("synthetic-a", "synthetic-b")
TissueName = Literal["csf", "grey", "white", "deep white", "bone", "fat", "soft"]
MOST_LABELS = 1000
"""A map with more labels than this is taken for an image (ours)."""


class LabelMaps(FolderDataset):
    """Aligned pairs of synthetic images, made from label maps."""

    layout: ClassVar[str] = "label maps such as head_01.nii.gz or heart.mha in it (whole numbers, 0 outside), or what `pattern` says"

    root: Path = Field(description="folder of label maps, or a table of cases (.csv) whose fixed label maps are taken")

    pattern: str = Field(
        "{subject}", description="names of the label maps below root, {subject} for the map's name and globs (*, **/); any image suffix may follow"
    )
    per_map: int = Field(4, ge=1, le=1000, description="pairs of images made of each map")
    spacing_mm: float | None = Field(None, gt=0, description="voxel size of the images; left open: that of the map")
    margin_mm: float | None = Field(None, ge=0, description="keep so much around the labels and cut the rest off; left open: the whole map")
    hold_out: int = Field(0, ge=0, description="maps whose pairs are validation cases")
    train: int | None = Field(None, ge=0, description="maps whose pairs are training cases, the rest is test; left open: all that are not held out")
    seed: int | None = Field(None, ge=0, description="seed of splits and images; left open: the seed of the run")
    images: ContrastRanges = Field(ContrastRanges(), description="ranges of contrast, resolution, bias and noise from which each image is drawn")
    tissues: dict[TissueName, tuple[int, ...]] = Field(
        {},
        description="labels by tissue (csf, grey, white, deep white, bone, fat, soft): images are a T1 and a T2 of them by relaxation times of grown-ups, "
        "labels of none are without signal, and of `images` resolution, texture, bias, gamma and noise remain; empty: contrasts at random",
    )

    @model_validator(mode="after")
    def _one_tissue_a_label(self) -> LabelMaps:
        named = [label for labels in self.tissues.values() for label in labels]
        if twice := sorted({label for label in named if named.count(label) > 1}):
            raise ConcordError(f"tissues: labels {twice} in two of them; expected one tissue a label")
        return self

    @property
    def modalities(self) -> tuple[str, str]:
        """What the fixed and the moving image are."""
        return ("t1", "t2") if self.tissues else MODALITIES

    def means(self, modality: str) -> dict[int, float] | None:
        """Mean of every label in an image of a modality, the brightest tissue at 1; None where it is random."""
        if not self.tissues:
            return None
        known, sequence = POPULATIONS["adult"].tissues, SEQUENCES[modality]
        signals = {tissue: sequence.signal(known[tissue]) for tissue in self.tissues}
        return {label: float(signals[tissue] / max(signals.values())) for tissue, labels in self.tissues.items() for label in labels}

    def cases(self, folder: Path, run: Run) -> Found:
        """Make the pairs that are not yet in `folder`; one aligned case a pair, all pairs of a map in one split.

        A map that is 4-D, constant, not of whole numbers or unreadable is left out by name.
        """
        files, left_out = self._files()
        seed = run.seed if self.seed is None else self.seed
        makers: list[_Maker] = []
        wanted = min(len(files), self.subjects) if isinstance(self.subjects, int) else len(files)
        for name, path in files.items():
            if len(makers) == wanted:
                break
            maker = _Maker(name, path, self, folder.absolute(), seed)
            try:
                maker.make()
                makers.append(maker)
            except ConcordError as error:
                left_out.append(LeftOut(name, str(error)))
            run.report("label maps", len(makers) / wanted)
        if not makers:
            raise self.nothing_found(left_out)
        splits = self._splits([maker.name for maker in makers], seed)
        return Found([case for maker in makers for case in maker.cases(splits[maker.name])], left_out)

    def _files(self) -> tuple[dict[str, Path], list[LeftOut]]:
        """The chosen maps by name, and names that several files share. Raises `ConcordError` where there is nothing at all."""
        if self.root.suffix == ".csv":
            return self._maps_of_cases(), []
        root = self.found_root()
        if "{subject}" not in self.pattern:
            raise ConcordError(f"pattern: {self.pattern!r} names no map; expected {{subject}} in it, such as **/{{subject}}_dseg.nii.gz")
        patterns = [self.pattern] if self.pattern.endswith(SUFFIXES) else [self.pattern + suffix for suffix in SUFFIXES]
        found = find_files(root, patterns)
        if not found:
            raise self.nothing_found()
        by_name: dict[str, list[Path]] = {}
        for name in chosen_subjects(found, self.subjects if isinstance(self.subjects, tuple) else None):
            by_name.setdefault(identifier(name), []).extend(found[name])
        several = [
            LeftOut(name, f"{len(paths)} files ({', '.join(path.relative_to(root).as_posix() for path in paths[:3])}); expected one")
            for name, paths in by_name.items()
            if len(paths) > 1
        ]
        return {name: paths[0] for name, paths in by_name.items() if len(paths) == 1}, several

    def _maps_of_cases(self) -> dict[str, Path]:
        """The fixed label map of every subject of a table of cases. Raises `ConcordError` where no case has any."""
        maps = {identifier(case.subject): case.fixed_labels for case in read_cases(self.root.expanduser()) if case.fixed_labels is not None}
        if not maps:
            raise ConcordError(f"root {self.root}: no case has fixed_labels; expected a table of cases with label maps: choose another one")
        wanted = chosen_subjects(maps, self.subjects if isinstance(self.subjects, tuple) else None)
        return {name: maps[name] for name in wanted}

    def _splits(self, names: Sequence[str], seed: int) -> dict[str, str]:
        """The split of every map, drawn from the seed. Raises `ConcordError` where there are too few maps."""
        train = len(names) - self.hold_out if self.train is None else self.train
        if not 0 <= train <= len(names) - self.hold_out:
            raise ConcordError(
                f"{len(names)} label maps with hold_out {self.hold_out} and train {self.train}; expected as many maps as these together: "
                "add maps or lower these numbers"
            )
        counts = {"validation": self.hold_out, "train": train, "test": len(names) - self.hold_out - train}
        drawn = np.random.default_rng([seed, 0]).permutation(np.repeat(SPLITS, [counts[split] for split in SPLITS]))
        return dict(zip(sorted(names), drawn.tolist(), strict=True))


class _Maker:
    """Makes the files of one map; equal makers make equal files, whatever other maps there are."""

    def __init__(self, name: str, path: Path, settings: LabelMaps, folder: Path, seed: int) -> None:
        self.name, self._path, self._settings, self._folder = name, path, settings, folder
        self._seed = subject_seed(seed, zlib.crc32(name.encode()))
        self._labels = folder / f"{self.name}_labels.mha"

    def make(self) -> None:
        """Write what is missing. Raises `ConcordError` for a map that is none."""
        grid = {"map": _content_sha256(self._path), "code": code_digest("contrast")}
        grid |= {key: getattr(self._settings, key) for key in ("spacing_mm", "margin_mm")}
        means = [self._settings.means(modality) for modality in self._settings.modalities]
        drawn = grid | {"images": self._settings.images.model_dump(mode="json"), "seed": self._seed}
        drawn |= {"means": [{str(label): mean for label, mean in known.items()} for known in means if known]}
        missing = [pair for pair in self._pairs() if not is_kept(self._record(pair), drawn | {"pair": pair}, self._images(pair))]
        labels_kept = is_kept(self._labels.with_suffix(".json"), grid, [self._labels])
        if labels_kept and not missing:
            return
        index, on_grid = _prepared(self._path, self._settings)
        if not labels_kept:
            write_volume(on_grid, self._labels)
            keep(self._labels.with_suffix(".json"), grid)
        for pair in missing:
            for side, path in enumerate(self._images(pair)):
                rng = np.random.default_rng([self._seed, pair, side])
                image = synthetic_image(index, on_grid.array.shape, self._settings.images, rng, mean_of=means[side])
                if image.min() == image.max():
                    raise ConcordError(
                        f"{self._path}: pair {pair} came out constant; widen `images.mean`, lower `images.merge_share`, or give `tissues` the map's own labels"
                    )
                write_volume(on_grid.with_array(image), path)
            keep(self._record(pair), drawn | {"pair": pair})

    def cases(self, split: str) -> Iterator[Case]:
        """An aligned case a pair."""
        truth = _identity(self._folder, read_volume(self._labels).dimension)
        for pair in self._pairs():
            fixed, moving = self._images(pair)
            yield Case(
                case=f"{self.name}_{pair:02d}",
                fixed=fixed,
                moving=moving,
                subject=self.name,
                fixed_modality=self._settings.modalities[0],
                moving_modality=self._settings.modalities[1],
                split=split,
                group="-".join(self._settings.modalities),
                fixed_labels=self._labels,
                moving_labels=self._labels,
                true_transform=truth,
            )

    def _pairs(self) -> range:
        return range(1, self._settings.per_map + 1)

    def _images(self, pair: int) -> list[Path]:
        return [self._folder / f"{self.name}_{pair:02d}_{side}.mha" for side in "ab"]

    def _record(self, pair: int) -> Path:
        return self._folder / f"{self.name}_{pair:02d}.json"


def read_label_map(path: Path) -> Volume:
    """A label map as integers. Raises `ConcordError` for unreadable, 4-D, fractional, negative and constant ones, and for images."""
    volume = read_volume(path)
    array = volume.array
    if array.dtype.kind == "f":
        whole = np.rint(array)
        if fractions := int((whole != array).sum()):
            raise ConcordError(f"{path}: {fractions} samples are no whole numbers; expected a label map: choose the file of the labels")
        array = whole
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    if low == high:
        raise ConcordError(f"{path}: every sample is {low:g}; expected two labels or more")
    if low < 0 or high >= 2**31:
        raise ConcordError(f"{path}: samples from {low:g} to {high:g}; expected labels from 0 to 2147483647")
    return volume.with_array(array.astype(np.int32))


def _prepared(path: Path, settings: LabelMaps) -> tuple[LabelIndex, Volume]:
    """The label map, cut to its margin, ready for synthesis; and on the grid of the images (nearest neighbour, same box)."""
    volume = read_label_map(path)
    if settings.margin_mm is not None:
        volume = _cut(volume, settings.margin_mm)
    own = volume.geometry
    index = indexed(volume.array, own.spacing_mm)
    if (count := len(index.labels)) > MOST_LABELS:
        raise ConcordError(f"{path}: {count} different values; expected a label map of at most {MOST_LABELS}, this looks like an image")
    grid = own if settings.spacing_mm is None else own.with_spacing(settings.spacing_mm)
    if min(grid.size) < 2:
        raise ConcordError(f"{path}: {grid.size} voxels at {settings.spacing_mm} mm; expected 2 or more along each axis: lower spacing_mm")
    nearest = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(grid.shape, own.shape, strict=True)]
    return index, Volume(volume.array[np.ix_(*nearest)], grid, volume.name)


def _cut(volume: Volume, margin_mm: float) -> Volume:
    """The box of all that is not background, and `margin_mm` around it where there is so much."""
    first, behind = box_of(volume.array != BACKGROUND)
    margin = np.ceil(margin_mm / np.asarray(volume.geometry.spacing_mm)).astype(int)
    lower, upper = np.maximum(0, first - margin).tolist(), np.minimum(volume.geometry.size, behind + margin).tolist()
    return volume.cropped(lower, upper)


def _content_sha256(path: Path) -> str:
    """Of the file; where its header names others (.mhd, .nhdr), of all beside it that share its stem. Never remembered: a map may change."""
    detached = path.name.endswith((".mhd", ".nhdr"))
    files = sorted(file for file in path.parent.glob(f"{glob.escape(path.stem)}.*") if file.is_file()) if detached else [path]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _identity(folder: Path, dimension: int) -> Path:
    """The file of the true transform of aligned images."""
    from pipeline.transform_files import write_transform
    from pipeline.transforms import Linear

    path = folder / f"true_identity_{dimension}d.tfm"
    if not is_kept(path.with_suffix(".json"), {"dimension": dimension}, [path]):
        write_transform(Linear.identity(dimension), path)
        keep(path.with_suffix(".json"), {"dimension": dimension})
    return path
