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
    """Loss and score over the fit, training and validation.

    Columns `step` and `accuracy` are those of the patch metric, `epoch` and `sre_mm` those of rigid networks, `epoch` and `dice` those of
    networks that predict a field, `epoch` and `discriminator` those of CycleGAN, each as `train_…` and, where there was any, `validation_…`.
    """
    time, score, labels = _kind(curve)
    figure = new_figure(8.0, 3.4)
    figure.suptitle(title)
    axes = figure.subplots(1, 2)
    for axis, name in zip(axes, ("loss", score), strict=True):
        for part, label, colour, line in _PARTS:
            values = curve.get(f"{part}_{name}")
            if values is not None and values.notna().any():
                axis.plot(curve.loc[values.notna(), time], values.dropna(), line, marker="." if line == "-" else "", color=colour, label=label)
        axis.set_xlabel("step (batches)" if time == "step" else "epoch")
        axis.set_ylabel(labels[name])
        axis.grid(axis="y")
    if not (curve[[name for name in ("train_loss", "validation_loss") if name in curve]] <= 0).any(axis=None):
        axes[0].set_yscale("log")  # negative mutual information is shown as it is
    _mark_best(axes, curve, time, score)
    named = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    axes[0 if score == "accuracy" else 1].legend(named.values(), named.keys())
    return figure


def _kind(curve: pd.DataFrame) -> tuple[str, str, dict[str, str]]:
    """Column of the time, name of the score, labels."""
    if "epoch" not in curve:
        return "step", "accuracy", _PATCHES
    if "train_discriminator" in curve:
        return "epoch", "discriminator", _CYCLEGAN
    return ("epoch", "dice", _FIELDS) if "validation_dice" in curve else ("epoch", "sre_mm", _RIGID)


_PATCHES = {"loss": "hinge loss", "accuracy": "share of patches classified right"}
_RIGID = {"loss": "loss", "sre_mm": "surface registration error (mm)"}
_FIELDS = {"loss": "loss", "dice": "Dice"}
_CYCLEGAN = {"loss": "loss of the generators", "discriminator": "loss of the discriminators"}
_PARTS = (
    ("train", "train", PALETTE[0], "-"),
    ("validation", "validation", PALETTE[1], "-"),
    ("validation_average", "validation, averaged weights", PALETTE[2], "-"),
    ("validation_start", "validation, starting positions", GREY, "--"),
)


def _mark_best(axes: tuple[Axes, Axes], curve: pd.DataFrame, time: str, score: str) -> None:
    """Rings around the row whose weights are kept: lowest validation loss, lowest SRE, or of networks that predict a field the last one."""
    columns = ("validation_sre_mm", "validation_average_sre_mm") if score == "sre_mm" else ("validation_loss",)
    chosen = curve[[name for name in columns if name in curve]].min(axis=1)
    if not chosen.notna().any():
        return
    best = curve.iloc[-1] if score == "dice" else curve.loc[chosen.idxmin()]
    for axis, name in zip(axes, ("loss", score), strict=True):
        axis.plot(best[time], best[f"validation_{name}"], "o", mfc="none", mec=GREY, ms=11, label="kept weights")


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
