"""What a table's caption says: the data and the scale, what the numbers are, what was tested how, what the marks mean, what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.breakdown import in_part
from pipeline.table_settings import STATISTIC_LABELS, TEST_LABELS, measure_label

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.tables import Entry, Table

UNITS = {"subject": "subjects (mean of each one's registrations)", "sample": "registrations"}


def caption_of(table: Table, scores: pd.DataFrame, comparisons: pd.DataFrame | None) -> tuple[str, ...]:
    """The sentences of a table's caption."""
    from pipeline.tables import registrations

    found = registrations(scores)
    sentences = [
        _data(table, scores),
        _statistic(table),
        *_parts(table),
        *_best(table),
        *_tests(table, comparisons),
        *_published(table),
        *_times(table),
        *_missing(table, scores, found),
    ]
    return tuple([*sentences, table.settings.note] if table.settings.note else sentences)


def comparisons_caption(confidence: float, untested: Sequence[str] = ()) -> tuple[str, ...]:
    """The sentences below the table of comparisons."""
    named = ", ".join(measure_label(measure)[0] for measure in untested)
    return (
        *((f"Not tested, as no case has what the measure needs: {named}.",) if untested else ()),
        "Mean difference: method minus reference, in the measure's unit, with a percentile bootstrap interval "
        f"({100 * confidence:g} %) over the paired units.",
        "d_z: mean of the paired differences over their standard deviation.",
        "p (Holm): corrected by Holm's method over all comparisons of one test and measure.",
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
    """What the cells are: one statistic, or which one in which columns."""
    columns = table.settings.all_columns
    averaged = "; structures are averaged within a registration" if not all(column.structure for column in columns) else ""
    used = dict.fromkeys(str(column.statistic) for column in columns)
    if len(used) == 1:
        return f"Cells: {STATISTIC_LABELS[next(iter(used))]} over registrations{averaged}."
    named = {name: ", ".join(column.shown[0].split(" (")[0] for column in columns if column.statistic == name) for name in used}
    return f"Cells, over registrations: {'; '.join(f'{STATISTIC_LABELS[name]} of {heads}' for name, heads in named.items())}{averaged}."


def _parts(table: Table) -> Iterator[str]:
    """How many registrations the columns of groups and levels are made of, and what a level is."""
    columns = [(place, column) for place, column in enumerate(table.settings.all_columns) if column.group or column.level]
    most = {column.shown[0]: max(row[place].n for row in table.rows) for place, column in columns}
    if most:
        yield f"Registrations: {', '.join(f'{head} {n:,}' for head, n in most.items() if n)}."
    if any(column.level for _, column in columns):
        yield "Base, mid and apex: thirds of a subject's labelled slices, the base where the labels are larger (ours)."


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
    wholes = {column.key for column in settings.all_columns if column.whole}
    made = None if comparisons is None else comparisons[(comparisons["reference"] == settings.reference) & (comparisons["test"] == settings.test)]
    made = None if made is None else made[made["metric"].isin(wholes)]
    if made is None or made.empty:
        yield f"Not tested: there is no {label} against {reference}."
        return
    sizes = f"{made['n'].min()}" if made["n"].nunique() == 1 else f"{made['n'].min()} to {made['n'].max()}"
    marks = {entry.mark for row in table.rows for entry in row} - {""}
    meaning = ", ".join(text for mark, text in (("*", "* better"), ("†", "† worse"), ("‡", "‡ different")) if mark in marks or mark in "*†")
    tested = _names(wholes & set(made["metric"]), table)
    family, over = _family(made, comparisons), "" if "over registrations" in label else f" over {UNITS[made['unit_paired'].iloc[0]]}"
    yield (
        f"{meaning} than {reference} with corrected p < {settings.alpha:g}: {label}{over}, n = {sizes}, "
        f"p corrected by Holm's method over the {family}; tested: {tested}."
    )
    if settings.test == "wilcoxon" and 2 ** (1 - int(made["n"].max())) >= settings.alpha:
        yield f"So few pairs cannot reach p < {settings.alpha:g}, whatever the difference."
    elif not marks:
        yield "No difference is significant."


def _family(made: pd.DataFrame, comparisons: pd.DataFrame) -> str:
    """Over what the p-values of one measure are corrected: the methods, or more comparisons where there are pairs beside."""
    first = made.iloc[0]
    whole = ((comparisons["test"] == first["test"]) & (comparisons["metric"] == first["metric"])).sum()
    methods = made["method"].nunique()
    return f"{_count(methods, 'method')} compared" if whole == methods else f"{_count(int(whole), 'comparison')} of a measure"


def _published(table: Table) -> Iterator[str]:
    settings = table.settings
    if settings.published:
        source = f" ({settings.source})" if settings.source else ""
        yield f"Published: as printed in the paper{source}, on its own data and protocol; they stand beside ours and take no part in bold or tests."


def _times(table: Table) -> Iterator[str]:
    """What the milliseconds of networks are, and where they were measured."""
    units = sorted({entry.unit.removeprefix("ms on ") for row in table.rows for entry in row if entry.column.metric == "inference_ms" and entry.n})
    if units:
        what = "milliseconds a pair and stage, the network itself and where it has one the moving volume's resampling, warm"
        yield f"Inference: {what}, on {'; '.join(units)}; other jobs at the same time make it longer."


def _missing(table: Table, scores: pd.DataFrame, found: dict[str, int]) -> Iterator[str]:
    """Registrations that failed, single values that are missing, and columns without any."""
    from pipeline.tables import registrations

    settings, told, short = table.settings, [], []
    of_part = {column.key: registrations(in_part(scores, column.part)) if column.part else found for column in settings.all_columns}
    for row in table.rows:
        method, ours = row[0].method, found.get(row[0].method, 0)
        if not ours and method not in table.context.methods:
            continue
        name = settings.labels.get(method, method)
        failed = table.context.failed.get(method, found[""] - ours)
        told += [f"{name} {failed}"] if failed else []
        short += [(entry, name, of_part[entry.column.key].get(method, 0)) for entry in row]
    scored = sum(bool(found.get(row[0].method)) for row in table.rows)
    yield from _short([(entry, name, wanted) for entry, name, wanted in short if 0 < entry.n < wanted], scored)
    nobody = [column.shown[0] for place, column in enumerate(settings.all_columns) if not any(row[place].n for row in table.rows)]
    if nobody:
        yield f"Without a single score, as no case has what they need or no method has such a cost: {', '.join(nobody)}."
    if told:
        yield f"Registrations that failed: {', '.join(told)}; they are not in the means."


def _short(missing: list[tuple[Entry, str, int]], rows: int) -> Iterator[str]:
    """Columns in which some registrations have no value: a sentence a row, or one where all rows miss as many."""
    for key in dict.fromkeys(entry.column.key for entry, _, _ in missing):
        mine = [(entry, name, wanted) for entry, name, wanted in missing if entry.column.key == key]
        counts = {(entry.n, wanted) for entry, _, wanted in mine}
        shown = mine[:1] if len(mine) == rows > 1 and len(counts) == 1 else mine
        for entry, name, wanted in shown:
            who = "Every row" if len(shown) < len(mine) else name
            yield f"{who}: {entry.column.shown[0]} over {entry.n} of {wanted} (the others have no finite value)."


def _names(metrics: set[str], table: Table) -> str:
    """Heads of columns without their units."""
    return ", ".join(column.shown[0].split(" (")[0] for column in table.settings.all_columns if column.key in metrics and column.whole)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
