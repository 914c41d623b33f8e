"""Scores: every measure of every case; one tidy row a number."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from pipeline.cases import Case
from pipeline.errors import ConcordError
from pipeline.measures import FROM_MANIFEST, MEASURES, Scored, measure_rows
from pipeline.prepare import Exclusion

log = logging.getLogger(__name__)
COLUMNS = ("study", "method", "fold", "subject", "case", "start", "structure", "metric", "value", "unit")


def score_cases(
    cases: Iterable[Case], manifest: pd.DataFrame, *, study: str, method: str, measures: Iterable[str]
) -> tuple[pd.DataFrame, list[Exclusion]]:
    """Scores of one method's cases, and the cases that could not be registered or scored, with the reason.

    A measure for which no case has the files (a true transform, landmarks) is left out with a warning; where only some lack
    them, it is left out of those cases, which are named with it.
    """
    rows, excluded = [], []
    outcome = manifest.set_index("case")
    cases, measures = list(cases), list(measures)
    beyond = [name for name in measures if not any(MEASURES[name].possible(case) for case in cases)]
    if beyond:  # a real dataset has no true transform: the measure is left out, its column stays empty
        log.warning("no case has what these measures need, they are left out: %s", ", ".join(beyond))
    measures = [name for name in measures if name not in beyond]
    for case in cases:
        if case.case not in outcome.index:
            excluded.append(Exclusion(case.case, method, "not in any manifest; run the registration again"))
            continue
        result = outcome.loc[case.case]
        if result["status"] != "done":
            excluded.append(Exclusion(case.case, method, result["reason"]))
            continue
        try:
            scored = Scored(case, result["transform"])
            head = (study, method, case.fold, case.subject, case.case, case.start)
            lacking = {name: reason for name in measures if (reason := MEASURES[name].missing(case))}
            excluded += [Exclusion(case.case, f"{method} ({name})", reason) for name, reason in lacking.items()]
            able = [name for name in measures if name not in lacking]
            mine = [(*head, *row) for name in able for row in (_cost_rows(name, result) if name in FROM_MANIFEST else measure_rows(name, scored))]
        except (ConcordError, ValueError) as error:
            excluded.append(Exclusion(case.case, f"{method} (scoring)", str(error)))
            continue
        rows += mine
    return pd.DataFrame(rows, columns=list(COLUMNS)), excluded


def _cost_rows(name: str, result: pd.Series) -> list[tuple[str, str, float, str]]:
    """One row, or none where the method has no such cost."""
    value, device = result.get(name), result.get("device")
    # milliseconds mean nothing without their device, and those of two devices must not be pooled
    unit = MEASURES[name].unit + (f" on {device}" if name == "inference_ms" and device else "")
    return [] if pd.isna(value) else [("", name, float(value), unit)]


def read_scores(path: Path) -> pd.DataFrame:
    """Read `scores.csv` with the types that the tests and tables expect: structures and names are text."""
    text = dict.fromkeys(("study", "method", "subject", "case", "start", "structure", "metric", "unit"), str)
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values={"value": ["", "nan"], "fold": [""]})


def first_scored(scores: pd.DataFrame, methods: Sequence[str], measures: Sequence[str]) -> str:
    """The first of a study's measures of which any of the methods has a number, by which cases are ranked; the first of all where none has."""
    known = set(scores.loc[scores["method"].isin(methods) & scores["value"].notna(), "metric"])
    return next((name for name in measures if name in known), measures[0])
