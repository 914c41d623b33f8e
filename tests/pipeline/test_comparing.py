"""The tests of a study: by start, in pairs, and without measures that nobody has."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline.comparing import compare_measures
from pipeline.config import ComparisonSettings
from pipeline.statistics import COMPARISON_COLUMNS, SCORE_COLUMNS, compare


def scores_of(values: dict[str, np.ndarray], metric: str, start: str) -> pd.DataFrame:
    rows = [
        ("toy", method, 0, f"s{i}", f"c{i}", start, "", metric, value, "mm") for method, listed in values.items() for i, value in enumerate(listed)
    ]
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def some_scores() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    near, far = ({"old": rng.normal(4, 1, 9), "new": rng.normal(3, 1, 9)} for _ in range(2))
    return pd.concat([scores_of(near, "sre_mm", "near"), scores_of(far, "sre_mm", "far")])


def settings(**changes) -> ComparisonSettings:
    return ComparisonSettings(**{"reference": "old", "measures": ["sre_mm@far", "sre_mm"], "tests": ["paired-t", "one-sided-t"]} | changes)


def test_a_measure_at_a_start_is_tested_over_that_start_alone():
    scores = some_scores()
    found, untested = compare_measures(scores, settings(), seed=1)
    expected = compare(
        scores[scores["start"] == "far"], metric="sre_mm", reference="old", higher_is_better=False, tests=["paired-t", "one-sided-t"], seed=1
    )
    assert list(found["metric"]) == ["sre_mm@far"] * 2 + ["sre_mm"] * 2 and untested == ()
    pd.testing.assert_frame_equal(found[:2].assign(metric="sre_mm"), expected)
    assert found["p"][0] != found["p"][2]


def test_an_error_is_better_when_it_is_smaller():
    found, _ = compare_measures(some_scores(), settings(tests=["one-sided-t"], measures=["sre_mm"]), seed=1)
    assert found["mean_difference"][0] < 0 and found["p"][0] < 0.5


def test_what_nobody_has_scores_of_is_left_out_and_named():
    found, untested = compare_measures(some_scores(), settings(measures=["dice", "sre_mm@near", "sre_mm@nowhere"]), seed=1)
    assert set(found["metric"]) == {"sre_mm@near"} and untested == ("dice", "sre_mm@nowhere")
    nothing, untested = compare_measures(some_scores(), settings(measures=["dice"]), seed=1)
    assert list(nothing.columns) == list(COMPARISON_COLUMNS) and nothing.empty and untested == ("dice",)


def test_pairs_alone_are_compared_without_a_reference():
    found, _ = compare_measures(some_scores(), settings(reference="", pairs=[("new", "old")], measures=["sre_mm"]), seed=1)
    assert list(found["method"]) == ["new", "new"] and list(found["reference"]) == ["old", "old"]
