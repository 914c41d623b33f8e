"""Translated images of one case beside the true one, a row a method; figure 4 of Dai et al., the hierarchical translation model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.cases import Case
from pipeline.errors import ConcordError, choices
from pipeline.figures.deformation import middle_case, transform_of
from pipeline.figures.pictures import show_plane
from pipeline.figures.sheet import Panel, colour_bar, sheet
from pipeline.figures.slices import Plane, view_of, window
from pipeline.figures.style import styled
from pipeline.measures import Scored

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipeline.translation_figures import TranslatedSettings
    from pipeline.volumes import Volume

MEASURE = "translation_psnr_db"


@dataclass(frozen=True, eq=False)
class Translation:
    """A row: moving image, its translation and the true image of that modality in [0, 1], on one grid."""

    name: str
    moving: Volume
    translated: Volume
    true: Volume


def translated_figure(
    settings: TranslatedSettings, cases: Sequence[Case], scores: pd.DataFrame, manifests: Mapping[str, pd.DataFrame], *, source: str = ""
) -> Figure:
    """The figure of `settings` from a study's files; `manifests` are those of its methods, `source` says in words where it comes from.

    Raises `ConcordError` where there is no such test case, no counterpart of its moving image, or no translation of it by one of the methods.
    """
    name = settings.case or middle_case(scores, settings.methods, MEASURE)
    tested = {case.case: case for case in cases if case.split == "test"}
    if name not in tested:
        raise ConcordError(f"translated: no test case {name!r}{choices(name, tested)}")
    rows = [_row(method, Scored(tested[name], transform_of(manifests[method], name, method))) for method in settings.methods]
    numbers = [_numbers(row.name, scores[(scores["method"] == row.name) & (scores["case"] == name)]) for row in rows]
    header = [settings.title, ", ".join(part for part in (f"case {name}", source) if part), *numbers]
    return draw_translations(rows, header=header)


@styled
def draw_translations(rows: Sequence[Translation], *, header: Sequence[str]) -> Figure:
    """A row a method: moving image, translated image, the true one, and their difference, on one scale; of 3-D the middle axial slice."""
    whole, named = view_of(rows[0].moving.geometry), {row.name: row for row in rows}
    view = replace(whole, planes=tuple(replace(whole.planes[0], name=name) for name in named))
    differences = {name: row.translated.array - row.true.array for name, row in named.items()}
    largest = float(np.percentile(np.abs(list(differences.values())), 99.5)) or 1.0
    grey, bars = window(rows[0].true), []

    def moving(axis: Axes, plane: Plane) -> Any:
        image = named[plane.name].moving
        return show_plane(axis, plane, view.slice_of(image.array, plane), window(image))

    def translated(axis: Axes, plane: Plane) -> Any:
        return show_plane(axis, plane, view.slice_of(named[plane.name].translated.array, plane), grey)

    def true(axis: Axes, plane: Plane) -> Any:
        return show_plane(axis, plane, view.slice_of(named[plane.name].true.array, plane), grey)

    def difference(axis: Axes, plane: Plane) -> None:
        bars.append(show_plane(axis, plane, view.slice_of(differences[plane.name], plane), (-largest, largest), cmap="RdBu_r"))

    panels: list[Panel] = [("moving", moving), ("translated", translated), ("true", true), ("translated − true", difference)]
    lines = [(line, "black", "bold" if number == 0 else "normal") for number, line in enumerate(header)]
    figure = sheet(view, panels, header=lines, right_in=1.0)
    colour_bar(figure, bars[0], "difference (range of the true image: 1)")
    return figure


def _row(method: str, scored: Scored) -> Translation:
    from pipeline.measures_counterpart import unit_counterpart
    from pipeline.resampling import resample
    from pipeline.volumes import read_volume

    translated = scored.translated
    if translated is None:
        raise ConcordError(f"translated: {method} handed over no translated image of {scored.case.case}; choose methods that translate")
    moving, true = read_volume(scored.case.moving), unit_counterpart(scored)
    on_its_grid = [image if image.geometry.matches(translated.geometry) else resample(image, translated.geometry) for image in (moving, true)]
    return Translation(method, on_its_grid[0], translated, on_its_grid[1])


def _numbers(method: str, mine: pd.DataFrame) -> str:
    from pipeline.table_formats import number
    from pipeline.table_settings import measure_label

    told = []
    for metric in (MEASURE, "translation_ssim"):
        value = mine.loc[mine["metric"] == metric, "value"].mean()
        label, factor, digits = measure_label(metric)
        told += [f"{label.replace(' of the translation', '')} {number(factor * value, digits)}"] if np.isfinite(value) else []
    return f"{method}: {', '.join(told)}" if told else method
