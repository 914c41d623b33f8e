"""Tables of a study: methods by measures, beside the figures that papers print; every number can be traced to its scores.

Mean and standard deviation are taken over registrations (a case from one start), as the papers print them; the tests that
the marks stand for are those of `statistics`, over subjects unless their name says otherwise.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.breakdown import FROM_CASES, in_part
from pipeline.errors import ConcordError
from pipeline.files import write_text
from pipeline.table_formats import DASH, Cell, Grid, Heading, number, p_value, to_html, to_latex, to_markdown
from pipeline.table_settings import TEST_LABELS, ColumnSettings, TableSettings, measure_label

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.prepare import Exclusion

STATISTICS = ("mean", "sd", "variance", "median", "q1", "q3")
COMPARED = ("mean_difference", "p", "p_holm")
REGISTRATION = ["subject", "case", "start"]


@dataclass(frozen=True)
class TableContext:
    """What made the scores. `failed`: registrations without scores by method, where known; else counted against the other methods."""

    study: str
    dataset: str
    scale: str
    methods: tuple[str, ...] = ()
    failed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One method by one measure: unscaled statistics over registrations, the test against the reference, the published figure."""

    method: str
    column: ColumnSettings
    n: int
    unit: str
    statistics: Mapping[str, float]
    compared: Mapping[str, float]
    published: str = ""
    mark: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table's entries, row by row, and the grid that is written."""

    settings: TableSettings
    context: TableContext
    rows: tuple[tuple[Entry, ...], ...]
    grid: Grid


def sample_values(scores: pd.DataFrame, metric: str, **part: str) -> pd.DataFrame:
    """A measure's value of every registration: columns method, subject, case, start, value, in order of appearance.

    `part` keeps the rows with these values (structure, start, and where the scores have them group and level). Structures are averaged
    within a registration, and folds that share it; what is not finite counts as missing (nan).
    """
    rows = in_part(scores[scores["metric"] == metric], part)
    values = rows["value"].astype(float)
    keys = {name: rows[name].astype("string").fillna("") for name in ("method", *REGISTRATION)}
    rows = rows.assign(**keys, value=values.where(values.abs() < math.inf))
    return rows.groupby(list(keys), sort=False)["value"].mean().reset_index()


def registrations(scores: pd.DataFrame) -> dict[str, int]:
    """How many registrations every method has scores of, and all together under the empty name."""
    found = scores[["method", *REGISTRATION]].astype("string").fillna("").drop_duplicates()
    return {**found["method"].value_counts().to_dict(), "": len(found.drop_duplicates(REGISTRATION))}


def build_table(settings: TableSettings, scores: pd.DataFrame, comparisons: pd.DataFrame | None, context: TableContext) -> Table:
    """Fill a table from scores and, for the marks, comparisons (None: no test was made).

    Bold is the best row of a column, with all that print the same. Marks: `*` better and `†` worse than the reference
    (`‡` different, where no direction is better). Raises `ConcordError` for a row that is no method of the study and has
    no published figure, and for a measure that nobody knows.
    """
    from pipeline.table_captions import caption_of

    _check_names(settings, scores, context)
    columns = [_column(settings, column, scores, comparisons) for column in settings.all_columns]
    rows = tuple(zip(*columns, strict=True))
    counts = _counts(settings, scores, context)
    grid = Grid(settings.title, _headings(settings, counts), tuple(_cells(row, settings, counts) for row in rows))
    table = Table(settings, context, rows, grid)
    return replace(table, grid=replace(grid, caption=caption_of(table, scores, comparisons)))


def write_table(table: Table, stem: Path | str) -> None:
    """Write stem.csv (unscaled numbers, a row a method and measure), .md, .tex and .html."""
    import pandas as pd

    frame = pd.DataFrame([_record(entry, table) for row in table.rows for entry in row])
    write_text(f"{stem}.csv", frame.to_csv(index=False))
    write_text(f"{stem}.md", to_markdown(table.grid))
    write_text(f"{stem}.tex", to_latex(table.grid, f"{table.context.study}-{Path(stem).name}"))
    write_text(f"{stem}.html", to_html(table.grid))


def write_comparisons(
    comparisons: pd.DataFrame, stem: Path | str, *, title: str = "Comparisons", confidence: float = 0.95, untested: Sequence[str] = ()
) -> None:
    """Write every test as stem.csv (as given), .md and .html: tests over subjects first, those over registrations named so.

    `untested` are the measures that nobody has scores of; the caption names them.
    """
    from pipeline.table_captions import comparisons_caption

    heads = ("Measure", "Method", "Reference", "Test", "Unit", "n", f"Mean difference [{100 * confidence:g} % CI]", "d_z", "p", "p (Holm)", "Note")
    kinds = ("text",) * 5 + ("number",) * 5 + ("long",)
    order = {"metric": [], "unit_paired": ["subject", "sample"], "test": list(TEST_LABELS)}
    known = {name: list(dict.fromkeys([*first, *comparisons[name]])) for name, first in order.items()}
    ordered = comparisons.sort_values(list(order), key=lambda column: column.map(known[column.name].index), kind="stable")
    rows = tuple(_comparison_cells(row) for row in ordered.to_dict("records"))
    grid = Grid(title, tuple(Heading(*pair) for pair in zip(heads, kinds, strict=True)), rows, comparisons_caption(confidence, untested))
    write_text(f"{stem}.csv", comparisons.to_csv(index=False))
    write_text(f"{stem}.md", to_markdown(grid))
    write_text(f"{stem}.html", to_html(grid))


def write_failures(excluded: Sequence[Exclusion], *, title: str, stem: Path | str) -> None:
    """Write what was left out of a study, and why, as stem.csv (case, stage, reason) and stem.html, which counts them by stage."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([("case", "stage", "reason"), *excluded])
    counts = Counter(row.stage for row in excluded)
    told = f"{len(excluded)} left out: {', '.join(f'{stage} {count}' for stage, count in counts.items())}." if excluded else "Nothing was left out."
    headings = (Heading("Case", "text"), Heading("Stage", "text"), Heading("Reason", "long"))
    grid = Grid(f"Left out: {title}", headings, tuple(tuple(map(Cell, row)) for row in excluded), (told,))
    write_text(f"{stem}.csv", stream.getvalue())
    write_text(f"{stem}.html", to_html(grid))


def _check_names(settings: TableSettings, scores: pd.DataFrame, context: TableContext) -> None:
    from pipeline.measures import MEASURES

    methods = {*scores["method"], *context.methods}
    for row in settings.rows:
        if row not in methods and row not in settings.published:
            known = ", ".join(sorted(methods)) or "none"
            raise ConcordError(f"table {settings.title!r}: row {row!r} is no method of the study and has no published figure; methods: {known}")
    published = {key for figures in settings.published.values() for key in figures}
    for column in settings.all_columns:
        if unknown := [name for name in FROM_CASES if name in column.part and name not in scores]:
            raise ConcordError(f"table {settings.title!r}: column {column.key} by {unknown[0]}, and the scores have none; give the table of cases")
        if column.metric not in {*scores["metric"], *MEASURES} and column.key not in published:
            raise ConcordError(f"table {settings.title!r}: no measure {column.metric!r}; valid: {', '.join(MEASURES)}")


def _column(settings: TableSettings, column: ColumnSettings, scores: pd.DataFrame, comparisons: pd.DataFrame | None) -> list[Entry]:
    """The entries of one measure, from the first row to the last, ranked."""
    units = scores[scores["metric"] == column.metric].groupby("method")["unit"].first()
    values = sample_values(scores, column.metric, **column.part, **({"structure": column.structure} if column.structure else {}))
    entries = []
    for method in settings.rows:
        mine = values.loc[values["method"] == method, "value"].dropna()
        compared = _compared(settings, column, method, comparisons)
        published = settings.published.get(method, {}).get(column.key, "")
        mark = _mark(compared, column.direction, settings.alpha)
        entries.append(Entry(method, column, len(mine), units.get(method, ""), _statistics(mine), compared, published, mark))
    return _ranked(entries, settings)


def _statistics(values: pd.Series) -> dict[str, float]:
    """Mean, standard deviation and variance (n - 1), median, quartiles. Values equal but for rounding have none (ours: 1e-9 of the largest)."""
    spread = values.std(ddof=1) if len(values) < 2 or values.max() - values.min() > 1e-9 * values.abs().max() else 0.0
    found = (values.mean(), spread, spread**2, values.median(), values.quantile(0.25), values.quantile(0.75))
    return dict(zip(STATISTICS, map(float, found), strict=True))


def _compared(settings: TableSettings, column: ColumnSettings, method: str, comparisons: pd.DataFrame | None) -> dict[str, float]:
    """The test that decides on the mark; nan where none was made, as for a single structure, group or level."""
    if comparisons is not None and settings.reference:
        wanted = {"metric": column.key, "method": method, "reference": settings.reference, "test": settings.test}
        for row in comparisons.to_dict("records"):
            if all(row[key] == value for key, value in wanted.items()):
                return {key: float(row[key]) for key in COMPARED}
    return dict.fromkeys(COMPARED, math.nan)


def _mark(compared: Mapping[str, float], direction: str, alpha: float) -> str:
    if not compared["p_holm"] < alpha:
        return ""
    if direction == "neither":
        return "‡"
    return "*" if (compared["mean_difference"] > 0) == (direction == "higher") else "†"


def _ranked(entries: list[Entry], settings: TableSettings) -> list[Entry]:
    """Entries with the best of the rows that are ranked marked so, ties as printed; a single row is not best."""
    direction, centre = entries[0].column.direction, _centre(entries[0].column)
    ranked = [entry for entry in entries if entry.n and entry.method not in settings.unranked]
    if direction == "neither" or len(ranked) < 2:
        return entries
    wanted = _printed((max if direction == "higher" else min)(ranked, key=lambda entry: entry.statistics[centre]), centre)
    return [replace(entry, best=entry in ranked and _printed(entry, centre) == wanted) for entry in entries]


def _centre(column: ColumnSettings) -> str:
    return str(column.statistic).split()[0]


def _printed(entry: Entry, name: str) -> str:
    _, factor, digits = entry.column.shown
    return number((factor**2 if name == "variance" else factor) * entry.statistics[name], digits)


def _text(entry: Entry) -> str:
    if not entry.n:
        return DASH
    counted = not entry.column.shown[2] and not entry.statistics["sd"]  # whole numbers that are all the same: a count needs no ± 0
    spread = "" if counted or entry.n < 2 else entry.column.statistic
    around = {
        "mean ± SD": lambda: f" ± {_printed(entry, 'sd')}",
        "mean (variance)": lambda: f" ({_printed(entry, 'variance')})",
        "median [IQR]": lambda: f" [{_printed(entry, 'q1')}–{_printed(entry, 'q3')}]",
    }
    return _printed(entry, _centre(entry.column)) + (around[spread]() if spread in around else "")


def _counts(settings: TableSettings, scores: pd.DataFrame, context: TableContext) -> dict[str, int]:
    """Registrations of every row where they differ; nothing where all rows have the same and none failed."""
    found = registrations(scores)
    ours = {row: found.get(row, 0) for row in settings.rows if row in found or row in context.methods}
    differ = len({*ours.values(), found[""]}) > 1 or any(context.failed.get(row, 0) for row in ours)
    return ours if differ else {}


def _has_published(column: ColumnSettings, settings: TableSettings) -> bool:
    return any(column.key in figures for figures in settings.published.values())


def _headings(settings: TableSettings, counts: Mapping[str, int]) -> tuple[Heading, ...]:
    headings = [Heading("Method", "text")] + ([Heading("n")] if counts else [])
    for column in settings.all_columns:
        label = column.shown[0]
        headings += [Heading(label)] + ([Heading(f"{label}, published", "aside")] if _has_published(column, settings) else [])
    return tuple(headings)


def _cells(row: Iterable[Entry], settings: TableSettings, counts: Mapping[str, int]) -> tuple[Cell, ...]:
    entries = list(row)
    method = entries[0].method
    cells = [Cell(settings.labels.get(method, method))] + ([Cell(str(counts.get(method, DASH)))] if counts else [])
    for entry in entries:
        cells += [Cell(_text(entry), entry.best, entry.mark)]
        cells += [Cell(entry.published or DASH)] if _has_published(entry.column, settings) else []
    return tuple(cells)


def _record(entry: Entry, table: Table) -> dict[str, object]:
    """An entry as a row of the CSV, unscaled."""
    settings, context = table.settings, table.context
    head = {"study": context.study, "dataset": context.dataset, "scale": context.scale, "method": entry.method}
    part = {name: getattr(entry.column, name) for name in ("structure", "group", "level", "start")}
    measure = {"metric": entry.column.metric, **part, "unit": entry.unit, "n": entry.n}
    test = {"reference": settings.reference, "test": settings.test if settings.reference else "", "alpha": settings.alpha}
    return (
        head | measure | dict(entry.statistics) | test | dict(entry.compared) | {"mark": entry.mark, "best": entry.best, "published": entry.published}
    )


def _comparison_cells(row: Mapping[str, object]) -> tuple[Cell, ...]:
    label, factor, digits = measure_label(str(row["metric"]))
    difference, low, high = (number(factor * float(row[key]), digits + 1) for key in ("mean_difference", "ci_low", "ci_high"))
    tested = TEST_LABELS.get(str(row["test"]), str(row["test"]))
    unit = {"subject": "subject", "sample": "registration"}.get(str(row["unit_paired"]), str(row["unit_paired"]))
    texts = (label, row["method"], row["reference"], tested, unit, int(row["n"]), f"{difference} [{low}, {high}]")
    figures = (number(float(row["effect_size"]), 2), p_value(float(row["p"])), p_value(float(row["p_holm"])))
    note = row["note"] if isinstance(row["note"], str) else ""
    return tuple(Cell(str(text)) for text in (*texts, *figures, note))
