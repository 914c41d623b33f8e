"""Curves over steps: of a fit, and of a run of the optimiser loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from pipeline.figures.style import GREY, PALETTE, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def learning_curve(curve: pd.DataFrame, *, title: str) -> Figure:
    """Loss and accuracy over steps, training and validation; columns `step`, `train_…` and, where there was any, `validation_…`."""
    figure = new_figure(8.0, 3.4)
    figure.suptitle(title)
    axes = figure.subplots(1, 2)
    for axis, name, label in zip(axes, ("loss", "accuracy"), ("hinge loss", "share of patches classified right"), strict=True):
        for part, colour in (("train", PALETTE[0]), ("validation", PALETTE[1])):
            values = curve.get(f"{part}_{name}")
            if values is not None and values.notna().any():
                axis.plot(curve["step"], values, marker=".", color=colour, label=part)
        axis.set_xlabel("step (batches)")
        axis.set_ylabel(label)
        axis.grid(axis="y")
    axes[0].set_yscale("log")
    _mark_best(axes, curve)
    axes[0].legend()
    return figure


def _mark_best(axes: tuple[Axes, Axes], curve: pd.DataFrame) -> None:
    losses = curve.get("validation_loss")
    if losses is None or not losses.notna().any():
        return
    best = curve.loc[losses.idxmin()]
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        axis.plot(best["step"], best[f"validation_{name}"], "o", mfc="none", mec=GREY, ms=11, label="kept weights")


@styled
def run_trace(trace: pd.DataFrame, *, title: str) -> Figure:
    """Value, step and gradient norm of every iteration of the loop, all stages and levels one after the other, and seconds an iteration."""
    figure = new_figure(9.0, 5.6)
    figure.suptitle(title)
    axes = figure.subplots(2, 2, sharex=True)
    columns = {
        "value": "dissimilarity",
        "step_mm": "step of the farthest point (mm)",
        "gradient_norm": "norm of the derivatives",
        "seconds": "seconds",
    }
    number = pd.Series(range(1, len(trace) + 1), index=trace.index)
    for axis, (column, label) in zip(axes.flat, columns.items(), strict=True):
        for place, ((stage, level), part) in enumerate(trace.groupby(["stage", "level"], sort=False)):
            axis.plot(number[part.index], part[column], lw=1, color=PALETTE[place % len(PALETTE)], label=f"{stage}, level {level + 1}")
        axis.set_ylabel(label)
        axis.grid(axis="y")
        if column in ("step_mm", "gradient_norm") and (trace[column] > 0).all():
            axis.set_yscale("log")
    for axis in axes[1]:
        axis.set_xlabel("iteration")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure
