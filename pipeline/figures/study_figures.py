"""The figures that a study declares, drawn from its scores by their kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.figures.style import new_figure, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pipeline.config import FigureSettings


def study_figure(settings: FigureSettings, scores: pd.DataFrame, study_methods: Sequence[str], title: str) -> Figure:
    """Draw one figure; a measure that nobody has scores of leaves a sheet that says so, as a dataset without truth has no SRE."""
    if settings.start:
        scores = scores[scores["start"].astype("string") == settings.start]
        title = f"{title}, from {settings.start}"
    known = {"", *scores.loc[scores["value"].notna(), "metric"]}
    needed = (*(settings.measures if settings.kind == "boxplots" else settings.measures[:1]), settings.against)
    measures, missing = ([name for name in needed if name and (name in known) == there] for there in (True, False))
    if missing and (settings.kind != "boxplots" or not measures):
        return _without_scores(missing, title)
    methods = settings.methods or [name for name in study_methods if settings.kind != "scatter" or name != "identity"]
    return _drawn(settings, scores, measures, title=title, methods=methods, study_methods=study_methods)


def _drawn(
    settings: FigureSettings, scores: pd.DataFrame, measures: Sequence[str], *, title: str, methods: Sequence[str], study_methods: Sequence[str]
) -> Figure:
    from pipeline.figures.boxplots import boxplots
    from pipeline.figures.scatter import initial_against_final, one_against_another
    from pipeline.figures.success import success_curves

    same = {"methods": methods, "study_methods": study_methods, "title": title}
    if settings.kind == "boxplots":
        return boxplots(scores, measures=measures, **same)
    if settings.kind == "success":
        return success_curves(scores, metric=measures[0], limits=settings.limits, **same)
    if settings.against:
        return one_against_another(scores, metric=measures[0], against=settings.against, **same)
    return initial_against_final(scores, metric=measures[0], **same)


@styled
def _without_scores(missing: Sequence[str], title: str) -> Figure:
    from pipeline.table_settings import measure_label

    figure = new_figure(5.6, 1.8)
    named = ", ".join(measure_label(measure)[0] for measure in missing)
    figure.text(0.5, 0.35, f"No scores of {named}:\nno case of this dataset has what the measure needs.", ha="center", va="center")
    figure.suptitle(title, fontsize=11)
    return figure
