"""Score before against score after registration, a point a registration: figures 2 and 4 of Simonovsky et al. 2016."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ConcordError
from pipeline.figures.style import GREY, chosen_methods, method_styles, new_figure, styled

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
    styles = method_styles(study_methods or shown)
    figure = new_figure(5.6, 6.4)
    axis = figure.add_subplot()
    limits = []
    for method in shown:
        before, after = paired_with_initial(scores, metric, method, initial)
        style = styles.get(method) or method_styles([method])[method]
        axis.scatter(
            before,
            after,
            s=26,
            c=style.colour,
            marker=style.marker,
            alpha=0.7,
            linewidths=0.4,
            edgecolors="white",
            label=_counted(method, before, after, metric),
        )
        limits += [before.min(), before.max(), after.min(), after.max()]
    _equal_axes(axis, min(limits), max(limits), metric)
    figure.legend(loc="outside lower center", ncols=1, handletextpad=0.4)
    figure.suptitle(title, fontsize=11)
    return figure


def _counted(method: str, before: np.ndarray, after: np.ndarray, metric: str) -> str:
    """The method's name, and how many registrations made the score better or worse."""
    from pipeline.scoring import MEASURES

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
