"""A user's own cases: a CSV with one line a case, in the columns of `pipeline.cases.Case`."""

from __future__ import annotations

import csv
import difflib
import io
from collections import Counter
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import Field, ValidationError

from pipeline.cases import Case
from pipeline.datasets.pairing import identifier
from pipeline.datasets.registry import Dataset, Found, LeftOut
from pipeline.errors import ConcordError
from pipeline.methods import Run

REQUIRED = ("fixed", "moving", "subject")


class Table(Dataset):
    """Cases from a CSV (comma, semicolon or tab). Required columns: fixed, moving, subject; every other column of a case may follow.

    Paths are relative to the folder of the CSV. Cases without a name are named after their subjects.
    """

    file: Path = Field(description="the CSV; a relative path starts at the current directory")

    def cases(self, folder: Path, run: Run) -> Found:
        """One case a line; a line that names a missing file is left out, told by its number.

        Raises `ConcordError` naming line, column and valid choices for everything else that is wrong.
        """
        path = self.file.expanduser().absolute()
        rows = read_rows(path)
        names = case_names([row for _, row in rows])
        _check_names(path, rows, names)
        cases: list[Case] = []
        left_out: list[LeftOut] = []
        for (line, row), name in zip(rows, names, strict=True):
            case = _case(path, line, {**row, "case": name})
            missing = [f"{column} {file}" for column, file in case.paths.items() if not file.exists()]
            if missing:
                left_out.append(LeftOut(name, f"{path.name} line {line}: no such file: {', '.join(missing)}"))
            else:
                cases.append(case)
        return Found(cases, left_out)


def read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Lines of the CSV by number, empty cells and empty lines dropped.

    Raises `ConcordError` for a missing, empty or undecodable file, unknown or missing columns, and lines of another length.
    """
    if not path.is_file():
        raise ConcordError(f"file {path}: no such file; expected a CSV with columns {', '.join(REQUIRED)} and more: correct `file`")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConcordError(f"{path}: not UTF-8 at byte {error.start}; save the table as CSV UTF-8") from error
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=head.count))
    columns = [column.strip() for column in next(reader, [])]
    _check_columns(path, columns)
    rows = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(columns):
            raise ConcordError(
                f"{path}: line {reader.line_num}: {len(cells)} cells under {len(columns)} columns; quote cells that hold the separator"
            )
        rows.append((reader.line_num, {column: cell.strip() for column, cell in zip(columns, cells, strict=True) if cell.strip()}))
    if not rows:
        raise ConcordError(f"{path}: no line below the columns; expected one line a case")
    return rows


def _check_columns(path: Path, columns: list[str]) -> None:
    for column in columns:
        if column not in Case.model_fields:
            near = difflib.get_close_matches(column, Case.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConcordError(f"{path}: line 1: unknown column {column!r}{hint} Valid columns: {', '.join(Case.model_fields)}")
        if columns.count(column) > 1:
            raise ConcordError(f"{path}: line 1: column {column!r} stands {columns.count(column)} times; expected once")
    for column in REQUIRED:
        if column not in columns:
            raise ConcordError(f"{path}: line 1: no column {column!r}; required: {', '.join(REQUIRED)}")


def case_names(rows: list[dict[str, str]]) -> list[str]:
    """The names in column `case`; where empty, one made of subject, moving subject and start, numbered where several are alike."""
    made = [row.get("case") or identifier("-".join(row[key] for key in ("subject", "moving_subject", "start") if key in row)) for row in rows]
    given = {row["case"] for row in rows if "case" in row}
    counts, seen, names = Counter(made), Counter(), []
    for row, name in zip(rows, made, strict=True):
        if "case" not in row and counts[name] > 1:
            seen[name] += 1
            name = f"{name}_{seen[name]}"
            while name in given:
                name += "x"
        names.append(name)
    return names


def _check_names(path: Path, rows: list[tuple[int, dict[str, str]]], names: list[str]) -> None:
    first: dict[str, int] = {}
    for (line, _), name in zip(rows, names, strict=True):
        if first.setdefault(name, line) != line:
            raise ConcordError(f"{path}: line {line}, column case: {name!r} stands in line {first[name]} too; expected once")


def _case(path: Path, line: int, row: dict[str, str]) -> Case:
    try:
        case = Case.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        column = str(first["loc"][0]) if first["loc"] else "?"
        raise ConcordError(f"{path}: line {line}, column {column}: {_told(column, first['type'], row)}") from error
    return case.model_copy(update={name: path.parent / file for name, file in case.paths.items()})


def _told(column: str, kind: str, row: dict[str, str]) -> str:
    """What is wrong with a cell, and what may stand there."""
    if kind == "missing":
        return "empty; this column is required on every line"
    annotation = Case.model_fields[column].annotation
    if get_origin(annotation) is Literal:
        return f"{row[column]!r}; choose one of {', '.join(get_args(annotation))}"
    expected = {
        "fold": "a whole number, 0 or more",
        "case": "letters, digits, dots, hyphens and underscores, a letter or digit first",
    }
    return f"{row[column]!r}; expected {expected.get(column, Case.model_fields[column].description)}"
