"""Scores by what is known of their cases: the group of a subject, and where along the stack a slice lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pipeline.cases import Case

if TYPE_CHECKING:
    import pandas as pd

FROM_CASES = ("group", "level")
"""Columns of the cases by which a table may be split."""


def with_cases(scores: pd.DataFrame, cases: Iterable[Case]) -> pd.DataFrame:
    """The scores with the columns `group` and `level` of their cases; empty for a case that is not among them."""
    known = {case.case: case for case in cases}
    values = {name: {named: getattr(case, name) for named, case in known.items()} for name in FROM_CASES}
    return scores.assign(**{name: scores["case"].map(of_case).fillna("") for name, of_case in values.items()})


def in_part(scores: pd.DataFrame, part: Mapping[str, str]) -> pd.DataFrame:
    """The rows that have all these values, by column, as text."""
    for name, wanted in part.items():
        scores = scores[scores[name].astype("string") == wanted]
    return scores
