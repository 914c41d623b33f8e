"""Boxes of every method, a panel a measure: figure 4 of Parbs et al., the ReSAtt U-Net paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.figures.style import GREY, chosen_methods, figure_styles, new_figure, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 400
"""Points drawn over a box at most, taken evenly along the sorted values (ours)."""
JITTER = 0.16


@styled
def boxplots(
    scores: pd.DataFrame,
    *,
    measures: Sequence[str],
    methods: Sequence[str] = (),
    study_methods: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """One panel a measure: red median, box from the first to the third quartile, whiskers to the extremes, points, n below each name.

    Values are those of registrations, structures averaged. Raises `ConcordError` where a method has no scores.
    """
    shown = chosen_methods(methods, list(scores.loc[scores["metric"].isin(measures), "method"].unique()), f"boxplots of {', '.join(measures)}")
    styles = figure_styles(shown, study_methods)
    columns = min(3, len(measures))
    rows = -(-len(measures) // columns)
    figure = new_figure(max(3.6, 0.75 * len(shown) + 1.1) * columns, 4.1 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axis, measure in zip(panels.flat, measures, strict=False):
        _draw_panel(axis, _values(scores, measure, shown), measure, [styles[method].colour for method in shown])
    for axis in list(panels.flat)[len(measures) :]:
        axis.set_axis_off()
    figure.suptitle(title)
    return figure


def _values(scores: pd.DataFrame, measure: str, methods: Sequence[str]) -> dict[str, np.ndarray]:
    """Values as shown (percent where the measure is) of each method, `(n,)`, finite ones only."""
    from pipeline.table_settings import measure_label
    from pipeline.tables import sample_values

    values = sample_values(scores, measure).dropna(subset="value")
    factor = measure_label(measure)[1]
    return {method: factor * values.loc[values["method"] == method, "value"].to_numpy(dtype=float) for method in methods}


def _draw_panel(axis: Axes, values: dict[str, np.ndarray], measure: str, colours: Sequence[str]) -> None:
    from pipeline.table_settings import measure_label

    places = np.arange(1, len(values) + 1)
    # whis=(0, 100): "whiskers reach to the extremes of the range", so that no point is called an outlier
    drawn = axis.boxplot(list(values.values()), positions=places, widths=0.56, whis=(0, 100), showfliers=False, patch_artist=True, zorder=2)
    for box, colour in zip(drawn["boxes"], colours, strict=True):
        box.set(facecolor=(colour, 0.22), edgecolor=colour, linewidth=1.2)
    for line in [*drawn["whiskers"], *drawn["caps"]]:
        line.set(color=GREY, linewidth=1)
    for line in drawn["medians"]:
        line.set(color="#d11919", linewidth=2)
    for place, colour, found in zip(places, colours, values.values(), strict=True):
        _draw_points(axis, place, found, colour)
    long_names = max(map(len, values)) > 9
    named = [f"{method}\nn = {found.size:,}" for method, found in values.items()]
    axis.set_xticks(places, named, rotation=35 if long_names else 0, ha="right" if long_names else "center", rotation_mode="anchor")
    axis.set_ylabel(measure_label(measure)[0])
    axis.set_xlim(0.4, len(values) + 0.6)
    axis.grid(True, axis="y")


def _draw_points(axis: Axes, place: float, values: np.ndarray, colour: str) -> None:
    """Points beside each other, so that they are seen: spread evenly to and fro in the order of their values."""
    ordered = np.sort(values)
    if ordered.size > MOST_POINTS:
        ordered = ordered[np.linspace(0, ordered.size - 1, MOST_POINTS).astype(int)]
    # multiples of the golden ratio fill the width evenly and are the same in every run
    spread = JITTER * (2 * np.mod(np.arange(ordered.size) * 0.618034, 1) - 1)
    axis.scatter(place + spread, ordered, s=7, c=colour, alpha=0.45, linewidths=0, zorder=3)
