"""Bland-Altman plots of clinical read-outs: a row a quantity, a column a method, bias and limits of agreement drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.clinical import LIMITS, QUANTITIES, agreement, drawn_methods
from pipeline.figures.style import GREY, figure_styles, new_figure, styled
from pipeline.table_formats import number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipeline.clinical import ClinicalSettings

INK = "#1a1a1a"
MARGIN = 0.08
"""Of a panel's range, free on each side (ours)."""


@styled
def bland_altman(settings: ClinicalSettings, values: pd.DataFrame, *, study_methods: Sequence[str] = (), source: str = "") -> Figure:
    """A point is a subject: mean of the two values across, warped minus own labels up. `values` are those of `ReadOuts`.

    Panels of a row have one scale, so that methods can be compared by eye; numbers above a panel are its bias and limits.
    """
    methods = drawn_methods(settings, values)
    styles = figure_styles(methods, study_methods)
    values = values.assign(across=(values["found"] + values["reference"]) / 2, up=values["found"] - values["reference"])
    found = {(row["method"], row["quantity"]): row for row in agreement(values).to_dict("records")}
    figure = new_figure(2.5 * max(2, len(methods)) + 1.2, 2.5 * len(QUANTITIES) + 1.1)
    panels = figure.subplots(len(QUANTITIES), len(methods), squeeze=False, sharex="row", sharey="row")
    for row, name in zip(panels, QUANTITIES, strict=True):
        for axis, method in zip(row, methods, strict=True):
            mine = values[(values["method"] == method) & (values["quantity"] == name)]
            axis.scatter(mine["across"], mine["up"], s=26, c=styles[method].colour, marker=styles[method].marker, linewidths=0, alpha=0.8, zorder=3)
            _draw_lines(axis, found[method, name])
        _label(row, name)
        _scale(row[0], values[(values["quantity"] == name) & values["method"].isin(methods)], [found[method, name] for method in methods])
    for axis, method in zip(panels[0], methods, strict=True):
        axis.set_title(f"{settings.labels.get(method, method)}\n{axis.get_title()}", fontsize=9.5)
    _legend(figure)
    figure.suptitle("\n".join(part for part in (settings.title, source) if part))
    return figure


def _draw_lines(axis: Axes, row: dict[str, float]) -> None:
    """Zero, bias and limits (where there are any: of one subject there are none), and their numbers above."""
    axis.axhline(0, color=GREY, linewidth=0.8, zorder=1)
    axis.axhline(row["bias"], color=INK, linewidth=1.4, zorder=2)
    told = f"bias {number(row['bias'], 1)}"
    if np.isfinite(row["sd"]):
        axis.axhspan(row["lower"], row["upper"], color=GREY, alpha=0.08, linewidth=0, zorder=0)
        for name in ("lower", "upper"):
            axis.axhline(row[name], color=INK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=2)
        told += f", limits {number(row['lower'], 1)} to {number(row['upper'], 1)}"
    axis.set_title(told, fontsize=9)


def _label(row: Sequence[Axes], name: str) -> None:
    quantity = QUANTITIES[name]
    row[0].set_ylabel(f"{quantity.name}:\nwarped − own ({'% points' if quantity.unit == '%' else quantity.unit})")
    for axis in row:
        axis.set_xlabel(f"mean of both ({quantity.unit})")


def _scale(axis: Axes, values: pd.DataFrame, rows: Sequence[dict[str, float]]) -> None:
    """The scale of a row of panels: all points, zero, biases and limits are inside."""
    limits = [row[name] for row in rows for name in ("bias", "lower", "upper") if np.isfinite(row[name])]
    for reach, found in ((axis.set_xlim, values["across"]), (axis.set_ylim, [*values["up"], *limits, 0.0])):
        low, high = float(np.min(found)), float(np.max(found))
        free = MARGIN * (high - low) or 1.0
        reach(low - free, high + free)


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], color=GREY, marker="o", linestyle="", label="a subject"),
        Line2D([], [], color=INK, linewidth=1.4, label="bias (mean difference)"),
        Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (5, 3)), label=f"limits of agreement (bias ± {LIMITS} SD)"),
        Line2D([], [], color=GREY, linewidth=0.8, label="no difference"),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=len(entries))
