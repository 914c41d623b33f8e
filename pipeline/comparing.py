"""The tests of a study: its methods against the reference and in pairs, on every measure that has scores."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pipeline.measures import MEASURES
from pipeline.table_settings import split_key

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.config import ComparisonSettings

log = logging.getLogger(__name__)


def compare_measures(scores: pd.DataFrame, settings: ComparisonSettings, *, seed: int) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """One table of all tests (see `statistics.compare`), and the measures that nobody has scores of, which are not tested.

    A measure `name@start` is tested over the registrations from that start; the column `metric` holds the whole key.
    """
    import pandas as pd

    from pipeline.statistics import COMPARISON_COLUMNS, compare

    found, untested = [], []
    for key in settings.measures:
        metric, start = split_key(key)
        rows = rows_of(scores, metric, start)
        if rows.empty:
            untested.append(key)
            continue
        higher = MEASURES[metric].better == "higher"
        asked = {"reference": settings.reference, "pairs": settings.pairs, "tests": settings.tests}
        found.append(compare(rows, metric=metric, higher_is_better=higher, seed=seed, **asked).assign(metric=key))
    if untested:
        log.warning("no scores of %s: not tested", ", ".join(untested))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(COMPARISON_COLUMNS)), tuple(untested)


def rows_of(scores: pd.DataFrame, metric: str, start: str = "") -> pd.DataFrame:
    """The scores of a measure, from one start where it is named, that are numbers."""
    rows = scores[(scores["metric"] == metric) & scores["value"].notna()]
    return rows[rows["start"].astype("string") == start] if start else rows
