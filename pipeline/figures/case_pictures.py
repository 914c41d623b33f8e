"""One before/after picture a case, from the worst to the best of a method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.cases import Case
from pipeline.figures.pictures import before_after
from pipeline.figures.style import save
from pipeline.measures import MEASURES, Scored
from pipeline.scoring import first_scored


def spread_cases(scores: pd.DataFrame, method: str, measures: Sequence[str], most: int) -> list[str]:
    """At most `most` cases of a method, evenly from its worst to its best by the mean over structures of the first measure with scores."""
    measure = first_scored(scores, [method], measures)
    mine = scores[(scores["method"] == method) & (scores["metric"] == measure)]
    ranked = mine.groupby("case")["value"].mean().sort_values(ascending=MEASURES[measure].better == "higher", kind="stable")
    chosen = np.unique(np.linspace(0, len(ranked) - 1, min(most, len(ranked))).round().astype(int)) if len(ranked) else []
    return [str(ranked.index[place]) for place in chosen]


def draw_cases(cases: Sequence[Case], manifest: pd.DataFrame, names: Sequence[str], *, method: str, folder: Path) -> None:
    """Write CASE.png for each named case to `folder`: fixed, moving, warped, checkerboards, label contours where there are labels."""
    transforms = dict(zip(manifest["case"], manifest["transform"], strict=True))
    wanted = {case.case: case for case in cases if case.case in names}
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        save(_picture(Scored(wanted[name], transforms[name]), f"{name}, {method}"), folder / f"{name}.png")


def _picture(scored: Scored, title: str) -> object:
    from pipeline.resampling import resample
    from pipeline.volumes import read_volume

    before = resample(read_volume(scored.case.moving), scored.fixed.geometry)
    labels = {}
    if scored.case.fixed_labels is not None and scored.case.moving_labels is not None:
        labels = {"fixed_labels": scored.fixed_labels, "warped_labels": scored.fixed_labels.with_array(scored.warped_labels)}
    return before_after(scored.fixed, before, scored.warped, title=title, **labels)
