"""Cases: one fixed and one moving volume and all that is known about them; a row of `cases.csv` each."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ConcordError
from pipeline.files import write_text

IDENTIFIER = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Case(BaseModel):
    """One pair of volumes. Paths are absolute or relative to the folder of `cases.csv`; an empty cell means unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: str = Field(pattern=IDENTIFIER, description="name of the case, unique in its dataset, safe as a file name")
    fixed: Path = Field(description="fixed volume: a file, or a folder with one DICOM series")
    moving: Path = Field(description="moving volume")
    subject: str = Field(description="subject of the fixed volume: the unit of the statistics and of the splits")
    moving_subject: str = Field("", description="subject of the moving volume where it is another one")
    fixed_modality: str = Field("", description="what made the fixed volume (t1, t2, …), for metrics that must know")
    moving_modality: str = Field("", description="what made the moving volume")
    split: Literal["train", "validation", "test"] = Field(
        "test", description="settings are chosen on validation cases, tables are made of test cases"
    )
    fold: int | None = Field(None, ge=0, description="fold of the cross-validation in which the case is scored")
    group: str = Field("", description="diagnosis, site, direction: whatever a table may be split by")
    level: Literal["", "base", "mid", "apex"] = Field("", description="third of the stack in which a slice lies; empty: no slice, or unknown")
    slice_spacing_mm: float | None = Field(
        None, gt=0, description="distance of a 2-D slice from the next one of its stack: with it areas are volumes"
    )
    fixed_phase: Literal["", "ED", "ES"] = Field(
        "", description="phase of the heart in the fixed volume: end-diastole or end-systole; empty: unknown"
    )
    moving_phase: Literal["", "ED", "ES"] = Field("", description="phase of the heart in the moving volume")
    start: str = Field("", description="name of the starting position where a case has several")
    fixed_labels: Path | None = Field(None, description="label map on the fixed grid")
    moving_labels: Path | None = Field(None, description="label map on the moving grid")
    fixed_mask: Path | None = Field(None, description="mask on the fixed grid, non-zero where it counts")
    moving_mask: Path | None = Field(None, description="mask on the moving grid")
    moving_counterpart: Path | None = Field(
        None,
        description="the moving subject's image in the fixed volume's modality, on the moving grid: what a translation should give, and what the "
        "error of registering two modalities is measured on",
    )
    fixed_landmarks: Path | None = Field(None, description="CSV with columns x,y[,z]: physical points in mm, LPS")
    moving_landmarks: Path | None = Field(None, description="the corresponding points of the moving volume, same order")
    fixed_surface: Path | None = Field(
        None, description="surface mesh (.stl, mm, LPS) of the structure of the fixed volume whose points the surface registration error follows"
    )
    true_transform: Path | None = Field(None, description="the true transform from fixed to moving points (ITK .h5 or .tfm)")
    start_transform: Path | None = Field(None, description="rigid transform to start from (ITK .h5 or .tfm)")

    @property
    def subjects(self) -> tuple[str, ...]:
        """Whose volumes these are: one subject, or two."""
        return tuple(dict.fromkeys((self.subject, self.moving_subject or self.subject)))

    @property
    def paths(self) -> dict[str, Path]:
        """The files that are given, by column."""
        return {name: value for name, value in self if isinstance(value, Path)}


def read_cases(path: Path | str) -> list[Case]:
    """Read and check `cases.csv`; paths come back joined to its folder.

    Raises `ConcordError` naming file, line, column and value for: missing file or column, unknown column, bad value, a case
    named twice.
    """
    path = Path(path)
    if not path.exists():
        raise ConcordError(f"{path}: no such file; expected a table of cases")
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))
    unknown = set(reader.fieldnames or []) - set(Case.model_fields)
    if unknown:
        raise ConcordError(f"{path}: unknown column {', '.join(sorted(map(str, unknown)))}; valid columns: {', '.join(Case.model_fields)}")
    cases: list[Case] = []
    for number, row in enumerate(reader, start=2):
        try:
            case = Case.model_validate({key: value for key, value in row.items() if value not in ("", None)})
        except ValidationError as error:
            first = error.errors()[0]
            raise ConcordError(f"{path}: line {number}, column {'.'.join(map(str, first['loc']))}: {first['input']!r}: {first['msg']}") from error
        cases.append(case.model_copy(update={name: path.parent / value for name, value in case.paths.items()}))
    for name, count in Counter(case.case for case in cases).items():
        if count > 1:
            raise ConcordError(f"{path}: case {name!r} stands {count} times; expected once")
    return cases


def write_cases(cases: Iterable[Case], path: Path | str) -> None:
    """Write `cases.csv`, a whole file; paths below its folder are stored relative to it, so that the folder can move."""
    path = Path(path)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(Case.model_fields), lineterminator="\n")
    writer.writeheader()
    for case in cases:
        writer.writerow({name: "" if value is None else _stored(value, path.parent) if isinstance(value, Path) else value for name, value in case})
    write_text(path, stream.getvalue())


def _stored(file: Path, folder: Path) -> str:
    absolute, base = file.resolve(), folder.resolve()
    return str(absolute.relative_to(base)) if absolute.is_relative_to(base) else str(absolute)
