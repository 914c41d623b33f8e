"""What a table's caption says: the data and the scale, what the numbers are, what was tested how, what the marks mean, what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.table_settings import TEST_LABELS

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.tables import Table

UNITS = {"subject": "subjects (mean of each one's registrations)", "sample": "registrations"}


def caption_of(table: Table, scores: pd.DataFrame, comparisons: pd.DataFrame | None) -> tuple[str, ...]:
    """The sentences of a table's caption."""
    from pipeline.tables import registrations

    found = registrations(scores)
    sentences = [_data(table, scores), _statistic(table), *_best(table), *_tests(table, comparisons), *_published(table), *_missing(table, found)]
    return tuple([*sentences, table.settings.note] if table.settings.note else sentences)


def comparisons_caption(confidence: float) -> tuple[str, ...]:
    """The sentences below the table of comparisons."""
    return (
        "Mean difference: method minus reference, in the measure's unit, with a percentile bootstrap interval "
        f"({100 * confidence:g} %) over the paired units.",
        "d_z: mean of the paired differences over their standard deviation.",
        "p (Holm): corrected by Holm's method over the methods of one test and measure.",
        "Unit: subject, every subject's registrations averaged first; registration, every registration by itself, as papers test: registrations of "
        "one subject are not independent, so that such a test overstates the evidence (the mixed model accounts for it).",
    )


def _data(table: Table, scores: pd.DataFrame) -> str:
    rows = scores[scores["method"].isin(table.settings.rows)].astype({"start": "string"}).fillna({"start": ""})
    total = len(rows[["subject", "case", "start"]].drop_duplicates())
    cases, subjects = (_count(len(rows[keys].drop_duplicates()), word) for keys, word in ((["subject", "case"], "case"), (["subject"], "subject")))
    counted = cases if cases.split()[0] == str(total) else f"{_count(total, 'registration')} of {cases}"
    context = table.context
    return f"Dataset {context.dataset}, study {context.study}, scale {context.scale}: {counted} from {subjects}."


def _statistic(table: Table) -> str:
    averaged = "; structures are averaged within a registration" if not all(column.structure for column in table.settings.all_columns) else ""
    what = "mean ± standard deviation" if table.settings.statistic == "mean ± SD" else "median [first to third quartile]"
    return f"Cells: {what} over registrations{averaged}."


def _best(table: Table) -> Iterator[str]:
    if any(entry.best for row in table.rows for entry in row):
        left_out = [table.settings.labels.get(row, row) for row in table.settings.unranked if row in table.settings.rows]
        yield f"Bold: best{' but for ' + ', '.join(left_out) if left_out else ''}, with ties as printed."


def _tests(table: Table, comparisons: pd.DataFrame | None) -> Iterator[str]:
    """Which test the marks stand for, or that there was none."""
    settings = table.settings
    if not settings.reference:
        return
    reference, label = settings.labels.get(settings.reference, settings.reference), TEST_LABELS[settings.test]
    wholes = {column.metric for column in settings.all_columns if not column.structure and not column.start}
    made = None if comparisons is None else comparisons[(comparisons["reference"] == settings.reference) & (comparisons["test"] == settings.test)]
    made = None if made is None else made[made["metric"].isin(wholes)]
    if made is None or made.empty:
        yield f"Not tested: there is no {label} against {reference}."
        return
    sizes = f"{made['n'].min()}" if made["n"].nunique() == 1 else f"{made['n'].min()} to {made['n'].max()}"
    marks = {entry.mark for row in table.rows for entry in row} - {""}
    meaning = ", ".join(text for mark, text in (("*", "* better"), ("†", "† worse"), ("‡", "‡ different")) if mark in marks or mark in "*†")
    tested = _names(wholes & set(made["metric"]), table)
    unit, methods = UNITS[made["unit_paired"].iloc[0]], _count(made["method"].nunique(), "method")
    yield (
        f"{meaning} than {reference} with corrected p < {settings.alpha:g}: {label} over {unit}, n = {sizes}, "
        f"p corrected by Holm's method over the {methods} compared; tested: {tested}."
    )
    if settings.test == "wilcoxon" and 2 ** (1 - int(made["n"].max())) >= settings.alpha:
        yield f"So few pairs cannot reach p < {settings.alpha:g}, whatever the difference."
    elif not marks:
        yield "No difference is significant."


def _published(table: Table) -> Iterator[str]:
    settings = table.settings
    if settings.published:
        source = f" ({settings.source})" if settings.source else ""
        yield f"Published: as printed in the paper{source}, on its own data and protocol; they stand beside ours and take no part in bold or tests."


def _missing(table: Table, found: dict[str, int]) -> Iterator[str]:
    """Registrations that failed, and single values that are missing."""
    settings, told = table.settings, []
    for row in table.rows:
        method, ours = row[0].method, found.get(row[0].method, 0)
        if not ours and method not in table.context.methods:
            continue
        name = settings.labels.get(method, method)
        failed = table.context.failed.get(method, found[""] - ours)
        told += [f"{name} {failed}"] if failed else []
        for entry in row:
            if ours and 0 < entry.n < ours:
                yield f"{name}: {entry.column.shown[0]} over {entry.n} of {ours} (the others have no finite value)."
    if told:
        yield f"Registrations that failed: {', '.join(told)}; they are not in the means."


def _names(metrics: set[str], table: Table) -> str:
    """Heads of columns without their units."""
    return ", ".join(column.shown[0].split(" (")[0] for column in table.settings.all_columns if column.metric in metrics and not column.structure)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
