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

TITLES = {"rigid": "Rigid", "bspline": "B-spline"}
INK = "#1d232b"
LINES = {
    "value (scaled to [0, 1], left axis)": {"color": INK, "linewidth": 2.2},
    "its analytic derivative (right axis)": {"color": PALETTE[1], "linewidth": 1.6},
    "derivatives by other parameters": {"color": PALETTE[5], "linewidth": 0.8},
    "truth, and derivative zero": {"color": GREY, "linewidth": 0.9, "linestyle": (0, (2, 2))},
}
VALUE, SLOPE, OTHER, TRUTH = LINES.values()


@styled
def draw_landscape(tables: pd.DataFrame, *, methods: Sequence[str] = (), title: str = "") -> Figure:
    """A column a method; a rigid translation, a rotation and a B-spline's control point below each other: value and derivatives.

    `tables`: landscapes of `pipeline.optimise.landscape`, one after the other. Drawn are the first translation, the last rotation and
    the first control point. The value is scaled to [0, 1] (the paper's is not to scale either), and the derivatives are those of the
    scaled value. Empty `methods`: all. Raises `ConcordError` for methods that the tables do not have.
    """
    shown = chosen_methods(methods, list(tables["method"].unique()), "landscape")
    curves = drawn_curves(tables)
    figure = new_figure(1.2 + 3.5 * len(shown), 1.4 + 2.1 * len(curves))
    panels = figure.subplots(len(curves), len(shown), squeeze=False, sharex=True)
    for row, (kind, perturbed) in zip(panels, curves, strict=True):
        part = tables[(tables["transform"] == kind) & (tables["perturbed"] == perturbed)]
        slopes = [_panel(axis, part[part["method"] == method]) for axis, method in zip(row, shown, strict=True)]
        row[0].set_ylabel(f"{TITLES.get(kind, kind)}\n{perturbed}")
        slopes[-1].set_ylabel("derivative (1/mm)")
    for axis, method in zip(panels[0], shown, strict=True):
        axis.set_title(method)
    for axis in panels[-1]:
        axis.set_xlabel("perturbation (mm)")
    _legend(figure, columns=4 if len(shown) > 2 else len(shown))
    figure.suptitle(title)
    return figure


def drawn_curves(tables: pd.DataFrame) -> list[tuple[str, str]]:
    """Transform and perturbed parameter of each curve to draw, in order of the rows. Raises `ConcordError` where there is none."""
    curves = []
    for kind in TITLES:
        names = list(tables.loc[tables["transform"] == kind, "perturbed"].unique())
        chosen = [name for name in names if name.startswith("translation")][:1] + [name for name in names if name.startswith("rotation")][-1:]
        curves += [(kind, name) for name in chosen or names[:1]]
    if not curves:
        raise ConcordError(f"landscape: no curves in the table; expected rows of transform {' or '.join(TITLES)}")
    return curves


def _panel(axis: Axes, curve: pd.DataFrame) -> Axes:
    """The value on `axis`, derivatives on a second axis behind it, which is returned."""
    curve = curve.sort_values("perturbation_mm", kind="stable")
    others = curve["other"].astype(bool)
    own = curve[~others]
    low, extent = own["value"].min(), np.ptp(own["value"]) or 1.0
    slopes = axis.twinx()
    slopes.spines["right"].set_visible(True)
    slopes.axhline(0, **TRUTH)
    axis.axvline(0, **TRUTH)
    for _, other in curve[others].groupby("parameter", sort=False):
        slopes.plot(other["perturbation_mm"], other["derivative"] / extent, **OTHER)
    slopes.plot(own["perturbation_mm"], own["derivative"] / extent, **SLOPE)
    axis.plot(own["perturbation_mm"], (own["value"] - low) / extent, **VALUE)
    _limits(axis, slopes, 1.08 * np.abs(curve["derivative"]).max() / extent)
    return slopes


def _limits(axis: Axes, slopes: Axes, largest: float) -> None:
    """Zero of the derivative in the middle of the panel, the value over all of it and in front."""
    slopes.set_ylim(-largest or -1.0, largest or 1.0)
    slopes.locator_params(axis="y", nbins=5)
    axis.set_ylim(-0.04, 1.04)
    axis.margins(x=0.01)
    axis.set_zorder(slopes.get_zorder() + 1)
    axis.patch.set_visible(False)


def _legend(figure: Figure, *, columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=label, **style) for label, style in LINES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
