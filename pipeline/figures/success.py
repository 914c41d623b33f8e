"""How many registrations end below an error: the distribution of a measure by method, with the limits that count as success marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ConcordError
from pipeline.figures.style import GREY, chosen_methods, figure_styles, new_figure, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

INITIAL = "identity"
SHOWN_QUANTILE = 0.98
"""Errors above this quantile of all shown may lie beyond the right edge (ours): one lost registration would squeeze the rest."""


def success_shares(scores: pd.DataFrame, metric: str, methods: Sequence[str], limits: Sequence[float]) -> dict[str, np.ndarray]:
    """Share of registrations of each method with a value of at most each limit, `(limits,)`.

    Of all registrations that any method of the study has: one that failed, or has no finite value, is no success.
    """
    values, total = _values(scores, metric, methods)
    return {method: (found[:, None] <= np.asarray(limits, dtype=float)).sum(axis=0) / total for method, found in values.items()}


@styled
def success_curves(
    scores: pd.DataFrame,
    *,
    metric: str,
    limits: Sequence[float],
    methods: Sequence[str] = (),
    study_methods: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Cumulative share of registrations over an error, a curve a method; dashed lines at the limits, the shares there in the legend.

    Raises `ConcordError` for a measure of which more is better, and for methods without scores.
    """
    from pipeline.measures import MEASURES
    from pipeline.table_settings import measure_label

    if metric in MEASURES and MEASURES[metric].better != "lower":
        raise ConcordError(f"success of {metric}: more of it is better; expected an error, such as sre_mm or tre_mm")
    shown = chosen_methods(methods, list(scores.loc[scores["metric"] == metric, "method"].unique()), f"success of {metric}")
    styles, (values, total) = figure_styles(shown, study_methods), _values(scores, metric, shown)
    shares = success_shares(scores, metric, shown, limits)
    label = measure_label(metric)[0]
    end = max(*limits, float(np.quantile(np.concatenate(list(values.values())), SHOWN_QUANTILE)))
    figure = new_figure(6.6, 4.6 + 0.19 * len(shown))
    axis = figure.add_subplot()
    for method, found in values.items():
        places = np.concatenate([[0.0], np.sort(found), [max(end * 1.05, found.max(initial=0.0))]])
        heights = 100 * np.concatenate([[0], np.arange(1, found.size + 1), [found.size]]) / total
        told = ", ".join(f"{100 * share:.0f} %" for share in shares[method])
        look = {"color": styles[method].colour, "linestyle": ":" if method == INITIAL else "-"}
        axis.step(places, heights, where="post", linewidth=1.8, label=f"{method}: {told}", **look)
    for limit in limits:
        axis.axvline(limit, color=GREY, linestyle="--", linewidth=1, zorder=1.5)
        axis.annotate(f"{limit:g}", (limit, 101), ha="center", va="bottom", color=GREY, fontsize=9, annotation_clip=False)
    axis.set(xlim=(0, end * 1.05), ylim=(0, 101), xlabel=label, ylabel="Registrations with at most this error (%)")
    axis.grid(True)
    under = ", ".join(f"{limit:g}" for limit in limits)
    figure.legend(loc="outside lower center", ncols=2 if len(shown) > 3 else 1, title=f"Share of {total:,} registrations with {label} up to {under}")
    figure.suptitle(title, fontsize=11)
    return figure


def _values(scores: pd.DataFrame, metric: str, methods: Sequence[str]) -> tuple[dict[str, np.ndarray], int]:
    """Finite values of each method, and the number of registrations of the study."""
    from pipeline.tables import REGISTRATION, sample_values

    values = sample_values(scores, metric)
    total = len(values[REGISTRATION].drop_duplicates())
    known = values.dropna(subset="value")
    return {method: known.loc[known["method"] == method, "value"].to_numpy(dtype=float) for method in methods}, total
