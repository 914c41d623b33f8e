"""MR-TRUS pairs in the layout of the Attention-Reg studies: a folder a case with MR, ultrasound, the gland's surface and the registration.

Song et al., MICCAI 2021. The registration stands in one of two files. `coreg_refined.txt` is a plain 4 x 4 matrix from ultrasound to MR, whose points are
measured from the MR origin. `coreg.txt`, as UroNav exports it, maps MR to ultrasound points, both physical; its first row and column are no part
of the rotation: the rotation is in rows and columns 2 to 4, the translation in column 1. The surface lies in physical MR coordinates.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from pipeline.cases import Case
from pipeline.datasets.keeping import is_kept, keep
from pipeline.datasets.layout import FolderDataset, chosen_subjects
from pipeline.datasets.pairing import identifier, split_cases
from pipeline.datasets.registry import Found, LeftOut
from pipeline.datasets.starts import Starts, rigid_transform, with_starts
from pipeline.datasets.structures import fingerprint, require_files, write_gland
from pipeline.errors import ConcordError
from pipeline.methods import Run

SURFACE = "segmentationrtss.uronav.stl"
MATRIX_TOLERANCE = 1e-3
"""Largest departure from a rotation of a matrix that is one but for the digits of its text (ours)."""


class Files(NamedTuple):
    """Files of one case."""

    mr: Path
    us: Path
    surface: Path
    registration: Path


class UroNav(FolderDataset):
    """MR-TRUS pairs with a rigid registration: MR fixed, ultrasound moving, the gland's label map made of its surface."""

    layout: ClassVar[str] = "CaseNNNN/{MRVol.mhd, USVol.mhd, segmentationrtss.uronav.stl, coreg.txt or coreg_refined.txt}"

    adjusted: bool = Field(True, description="take MRVol_adjusted.mhd (brightest 0.1 % cut, as the paper has it) where it stands, else MRVol.mhd")
    hold_out: int = Field(0, ge=0, description="cases for validation")
    train: int = Field(0, ge=0, description="cases for training; the rest are for the test")
    starts: tuple[Starts, ...] = Field((), description="sets of starting positions of test and validation cases; none: every case once")
    seed: int | None = Field(None, ge=0, description="seed of splits and starts; left open: the seed of the run")

    def cases(self, folder: Path, run: Run) -> Found:
        """One case a folder (or a start); label maps and true transforms go to `folder`. A case that is not right is left out by name."""
        places = {path.name: path for path in sorted(self.found_root().glob("[Cc]ase*")) if path.is_dir()}
        if not places:
            raise self.nothing_found()
        seed, cases, left_out = run.seed if self.seed is None else self.seed, [], []
        names = chosen_subjects(places, self.subjects)
        for number, name in enumerate(names):
            try:
                cases.append(self._case(places[name], folder.absolute()))
            except ConcordError as error:
                left_out.append(LeftOut(name, str(error)))
            run.report("cases", (number + 1) / len(names))
        if not cases:
            raise self.nothing_found(left_out)
        return Found(
            with_starts(split_cases(cases, hold_out=self.hold_out, train=self.train, seed=seed), self.starts, folder.absolute(), seed), left_out
        )

    def _case(self, place: Path, folder: Path) -> Case:
        files, name = files_of(place, self.adjusted), identifier(place.name)
        made = {"fixed_labels": folder / f"{name}_gland.mha", "true_transform": folder / f"{name}_true.tfm"}
        made_from = {"files": fingerprint(*files), "layout": 1}
        if not is_kept(folder / f"{name}.json", made_from, made.values()):
            _write(files, made)
            keep(folder / f"{name}.json", made_from)
        paths = {"fixed": files.mr, "moving": files.us, "fixed_surface": files.surface, **made}
        return Case(case=name, subject=name, fixed_modality="mr", moving_modality="trus", **paths)


def files_of(place: Path, adjusted: bool) -> Files:
    """The files of a case's folder; the refined registration is preferred. Raises `ConcordError` naming the one that is missing."""
    windowed, refined = place / "MRVol_adjusted.mhd", place / "coreg_refined.txt"
    mr = windowed if adjusted and windowed.is_file() else place / "MRVol.mhd"
    files = Files(mr, place / "USVol.mhd", place / SURFACE, refined if refined.is_file() else place / "coreg.txt")
    require_files(files)
    return files


def _write(files: Files, made: dict[str, Path]) -> None:
    from pipeline.surfaces import enclosed, read_stl, require_inside
    from pipeline.transform_files import write_transform
    from pipeline.volumes import read_volume

    mr, us, surface = read_volume(files.mr).geometry, read_volume(files.us).geometry, read_stl(files.surface)
    require_inside(surface, mr, str(files.surface))
    matrix = read_registration(files.registration, np.array(mr.origin_mm), surface.mean(axis=(0, 1)))
    if not us.contains(surface.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]).any():
        raise ConcordError(f"{files.registration}: carries the gland out of the ultrasound volume; expected the registration of this pair")
    write_gland(enclosed(surface, mr, str(files.surface)), mr, made["fixed_labels"])
    write_transform(rigid_transform(matrix), made["true_transform"])


def read_registration(path: Path, mr_origin_mm: np.ndarray, centre_mm: np.ndarray) -> np.ndarray:
    """The rigid matrix `(4, 4)` from physical MR points to physical ultrasound points (mm, LPS) of either kind of file.

    What the digits of the text leave of a scale or shear is taken away so that `centre_mm` `(3,)` (a point of the gland) goes where it went. Raises
    `ConcordError` for a file that is not 4 x 4 numbers or not rigid.
    """
    told = _read_matrix(path)
    if path.name == "coreg.txt":
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = told[1:, 1:], told[1:, 0]
    else:
        if not np.allclose(told[3], [0, 0, 0, 1], atol=MATRIX_TOLERANCE):
            raise ConcordError(f"{path}: last row {told[3].tolist()}; expected 0 0 0 1 (UroNav's own layout belongs in coreg.txt)")
        _require_rigid(told[:3, :3], path)
        matrix = np.linalg.inv(told)
        matrix[:3, 3] -= matrix[:3, :3] @ mr_origin_mm  # MR points are measured from the origin there
    _require_rigid(matrix[:3, :3], path)
    exact = rigid_transform(matrix).matrix
    matrix[:3, 3] += (matrix[:3, :3] - exact) @ centre_mm
    matrix[:3, :3] = exact
    return matrix


def _read_matrix(path: Path) -> np.ndarray:
    try:
        matrix = np.loadtxt(path)
    except (OSError, ValueError) as error:
        raise ConcordError(f"{path}: not a matrix of numbers ({error}); expected 4 rows of 4") from error
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ConcordError(f"{path}: a matrix of shape {matrix.shape} or with NaN; expected 4 rows of 4 numbers")
    return matrix


def _require_rigid(rotation: np.ndarray, path: Path) -> None:
    error, determinant = np.abs(rotation @ rotation.T - np.eye(3)).max(), np.linalg.det(rotation)
    if error > MATRIX_TOLERANCE or determinant < 0:
        kind = "a reflection" if determinant < 0 else "scaled or sheared"
        raise ConcordError(f"{path}: not rigid but {kind} (off by {error:.2g}, determinant {determinant:.3f}); expected a rotation and a translation")
