"""Scores joined with what is known of their cases."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pipeline.breakdown import in_part, with_cases
from pipeline.cases import Case

SCORES = pd.DataFrame({"case": ["a", "b", "a", "gone"], "method": ["m", "m", "n", "n"], "value": [1.0, 2.0, 3.0, 4.0]})
CASES = [
    Case(case=name, fixed=Path("f"), moving=Path("m"), subject="s", group=group, level=level)
    for name, group, level in (("a", "DCM", "base"), ("b", "", ""), ("c", "NOR", "apex"))
]


def test_every_score_has_the_group_and_level_of_its_case():
    joined = with_cases(SCORES, CASES)
    assert joined["group"].tolist() == ["DCM", "", "DCM", ""]
    assert joined["level"].tolist() == ["base", "", "base", ""]
    assert joined["value"].tolist() == SCORES["value"].tolist()


def test_a_part_has_all_the_values_asked_for():
    joined = with_cases(SCORES, CASES)
    assert in_part(joined, {"group": "DCM", "method": "n"})["value"].tolist() == [3.0]
    assert in_part(joined, {"level": "apex"}).empty
    assert len(in_part(joined, {})) == 4
