"""Similarity and derivative while one parameter is perturbed around the truth: figure 3 of Simonovsky et al. 2016."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ConcordError
from pipeline.figures.style import GREY, PALETTE, chosen_methods, new_figure, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {"rigid": "rigid transform", "bspline": "B-spline transform"}
VALUE, SLOPE, OTHER = {"linewidth": 2.0}, {"linewidth": 1.4, "linestyle": (0, (4, 1.6))}, {"linewidth": 0.7, "alpha": 0.75}


@styled
def draw_landscape(tables: pd.DataFrame, *, methods: Sequence[str] = (), title: str = "") -> Figure:
    """A column a method, a row a transform: value (scaled to [0, 1], left axis) and derivatives of the scaled value (right axis).

    `tables`: landscapes of `pipeline.optimise.landscape`, one after the other. Of the rigid parameters the first translation and the
    last rotation are drawn, of the B-spline's the first control point; thin lines are the derivatives by other parameters. Empty
    `methods`: all. Raises `ConcordError` for methods and transforms that the tables do not have.
    """
    shown = chosen_methods(methods, list(tables["method"].unique()), "landscape")
    kinds = [kind for kind in TITLES if kind in set(tables["transform"])]
    if not kinds:
        raise ConcordError(f"landscape: no curves of a transform; expected rows of {' or '.join(TITLES)}")
    figure = new_figure(1.6 + 3.0 * len(shown), 1.5 + 2.6 * len(kinds))
    panels = figure.subplots(len(kinds), len(shown), squeeze=False)
    for row, kind in zip(panels, kinds, strict=True):
        parts = [tables[(tables["method"] == method) & (tables["transform"] == kind)] for method in shown]
        slopes = [_panel(axis, part, _drawn(part)) for axis, part in zip(row, parts, strict=True)]
        _share_limits(slopes)
        row[0].set_ylabel(f"{TITLES[kind]}\nvalue, scaled to [0, 1]")
        slopes[-1].set_ylabel("derivative of the\nscaled value (1/mm)")
    for axis, method in zip(panels[0], shown, strict=True):
        axis.set_title(method)
    for axis in panels[-1]:
        axis.set_xlabel("perturbation (mm)")
    _legend(figure, [name for kind in kinds for name in _drawn(tables[tables["transform"] == kind])])
    figure.suptitle(title)
    return figure


def _drawn(part: pd.DataFrame) -> dict[str, str]:
    """The parameters whose curves are drawn, each with its colour."""
    names = list(part["perturbed"].unique())
    translations, rotations = ([name for name in names if name.startswith(kind)] for kind in ("translation", "rotation"))
    if translations or rotations:
        return dict(zip([*translations[:1], *rotations[-1:]], PALETTE, strict=False))
    return dict(zip(names[:1], PALETTE[2:], strict=False))


def _panel(axis: Axes, part: pd.DataFrame, drawn: dict[str, str]) -> Axes:
    """Values on `axis`, derivatives on a second axis, which is returned."""
    slopes = axis.twinx()
    slopes.spines["right"].set_visible(True)
    slopes.axhline(0, color=GREY, linewidth=0.8)
    axis.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
    for perturbed, colour in drawn.items():
        curve = part[part["perturbed"] == perturbed]
        own = curve[~curve["other"].astype(bool)].sort_values("perturbation_mm")
        low, extent = own["value"].min(), np.ptp(own["value"]) or 1.0
        axis.plot(own["perturbation_mm"], (own["value"] - low) / extent, color=colour, **VALUE)
        for _, other in curve[curve["other"].astype(bool)].groupby("parameter", sort=False):
            slopes.plot(other["perturbation_mm"], other["derivative"] / extent, color=colour, **OTHER)
        slopes.plot(own["perturbation_mm"], own["derivative"] / extent, color=colour, **SLOPE)
    axis.set_ylim(-0.04, 1.04)
    axis.margins(x=0.01)
    return slopes


def _share_limits(slopes: list[Axes]) -> None:
    """Zero in the middle and one scale for a row; ticks on the last axis only."""
    largest = max(float(np.abs(line.get_ydata()).max()) for axis in slopes for line in axis.lines)
    for axis in slopes:
        axis.set_ylim(-1.08 * largest, 1.08 * largest)
        axis.tick_params(labelright=axis is slopes[-1])


def _legend(figure: Figure, drawn: list[str]) -> None:
    pass
