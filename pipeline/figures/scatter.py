"""Score before against score after registration (figures 2 and 4 of Simonovsky et al. 2016), or one measure against another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ConcordError
from pipeline.figures.style import GREY, MethodStyle, chosen_methods, figure_styles, new_figure, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REGISTRATION = ["subject", "case", "start"]


def paired_with_initial(scores: pd.DataFrame, metric: str, method: str, initial: str = "identity") -> tuple[np.ndarray, np.ndarray]:
    """Score before and after registration, two arrays `(n,)`: the registrations that both have. Raises `ConcordError` where there are none."""
    from pipeline.tables import sample_values

    values = sample_values(scores, metric).dropna(subset="value")
    before, after = (values[values["method"] == name].set_index(REGISTRATION)["value"] for name in (initial, method))
    both = before.rename("before").to_frame().join(after.rename("after"), how="inner")
    if both.empty:
        raise ConcordError(f"scatter of {metric}: {method!r} and {initial!r} share no registration; the study needs the method {initial!r} as well")
    return both["before"].to_numpy(dtype=float), both["after"].to_numpy(dtype=float)


@styled
def initial_against_final(
    scores: pd.DataFrame,
    *,
    metric: str = "dice",
    methods: Sequence[str] = (),
    study_methods: Sequence[str] = (),
    initial: str = "identity",
    title: str = "",
) -> Figure:
    """Scatter of `metric` after registration over before (`initial`), with the line of no change and counts in the legend.

    Empty `methods`: all but the initial one. `study_methods` fixes colours where a study has more methods than the figure.
    """
    found = [method for method in scores.loc[scores["metric"] == metric, "method"].unique() if method != initial]
    shown = chosen_methods(methods, found, f"scatter of {metric}")
    styles = figure_styles(shown, study_methods)
    figure = new_figure(5.6, 6.4)
    axis = figure.add_subplot()
    limits = []
    for method in shown:
        before, after = paired_with_initial(scores, metric, method, initial)
        _draw_points(axis, before, after, styles[method], _counted(method, before, after, metric))
        limits += [before.min(), before.max(), after.min(), after.max()]
    _equal_axes(axis, min(limits), max(limits), metric)
    figure.legend(loc="outside lower center", ncols=1, handletextpad=0.4)
    figure.suptitle(title, fontsize=11)
    return figure


@styled
def one_against_another(
    scores: pd.DataFrame, *, metric: str, against: str, methods: Sequence[str] = (), study_methods: Sequence[str] = (), title: str = ""
) -> Figure:
    """Scatter of `metric` over another measure of the same registration; the legend tells Spearman's rank correlation.

    p over registrations would hold if they were independent, which those of one subject are not: the correlation of the subjects' means
    stands beside it. Raises `ConcordError` for methods without scores of both.
    """
    from pipeline.table_settings import measure_label
    from pipeline.tables import sample_values

    x, y = (sample_values(scores, name).dropna(subset="value") for name in (against, metric))
    both = x.merge(y, on=["method", *REGISTRATION], suffixes=("_x", "_y"))
    shown = chosen_methods(methods, list(both["method"].unique()), f"scatter of {metric} against {against}")
    styles = figure_styles(shown, study_methods)
    figure = new_figure(6.0, 5.4)
    axis = figure.add_subplot()
    for method in shown:
        mine = both[both["method"] == method]
        means = mine.groupby("subject")[["value_x", "value_y"]].mean()
        told = (correlation(mine, "registrations, as if independent"), correlation(means, "means of subjects"))
        _draw_points(axis, mine["value_x"].to_numpy(), mine["value_y"].to_numpy(), styles[method], f"{method}\n" + "\n".join(told))
    axis.set(xlabel=measure_label(against)[0], ylabel=measure_label(metric)[0])
    axis.grid(True)
    figure.legend(loc="outside lower center", ncols=1, handletextpad=0.4)
    figure.suptitle(title, fontsize=11)
    return figure


def correlation(pairs: pd.DataFrame, what: str) -> str:
    """Spearman's rank correlation of the columns value_x and value_y with its two-sided p, in words; fewer than three pairs have none."""
    from scipy import stats

    from pipeline.table_formats import number, p_value

    if len(pairs) < 3 or pairs["value_x"].nunique() < 2 or pairs["value_y"].nunique() < 2:
        return f"no rank correlation over {len(pairs)} {what}"
    found = stats.spearmanr(pairs["value_x"], pairs["value_y"])
    p = p_value(float(found.pvalue))
    return f"Spearman's ρ = {number(float(found.statistic), 2)}, p {p if p.startswith('<') else f'= {p}'} over {len(pairs)} {what}"


def _draw_points(axis: Axes, x: np.ndarray, y: np.ndarray, style: MethodStyle, label: str) -> None:
    axis.scatter(x, y, s=26, c=style.colour, marker=style.marker, alpha=0.7, linewidths=0.4, edgecolors="white", label=label)


def _counted(method: str, before: np.ndarray, after: np.ndarray, metric: str) -> str:
    """The method's name, and how many registrations made the score better or worse."""
    from pipeline.measures import MEASURES

    sign = -1 if metric in MEASURES and MEASURES[metric].better == "lower" else 1
    gain = sign * (after - before)
    equal = f", {np.sum(gain == 0)} unchanged" if np.any(gain == 0) else ""
    return f"{method}: {np.sum(gain > 0)} of {gain.size} improved, {np.sum(gain < 0)} worse{equal}"


def _equal_axes(axis: Axes, low: float, high: float, metric: str) -> None:
    """The same limits and unit on both axes, and the line of no change."""
    from pipeline.table_settings import measure_label

    margin = 0.04 * (high - low) or 0.05
    limits = (low - margin, high + margin)
    axis.plot(limits, limits, color=GREY, linestyle="--", linewidth=1, label="no change", zorder=0)
    axis.set(xlim=limits, ylim=limits, aspect="equal")
    label = measure_label(metric)[0]
    axis.set_xlabel(f"{label} before registration")
    axis.set_ylabel(f"{label} after registration")
    axis.grid(True)
