"""What methods do to one case: images, displacement and deformed grid, a row a method; figure 5 of Parbs et al., the ReSAtt U-Net paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.cases import Case
from pipeline.errors import ConcordError, choices
from pipeline.figures.pictures import LEGEND_IN, contour_legend, deformed_grid, mark_folds, outlined, show_plane
from pipeline.figures.sheet import Panel, colour_bar, sheet
from pipeline.figures.slices import Plane, view_of, window
from pipeline.figures.style import styled
from pipeline.measures import Scored
from pipeline.scoring import first_scored
from pipeline.volumes import Volume, box_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipeline.config import DeformationSettings

MARGIN = 0.5
"""Around the box of the fixed labels so much of its own size is shown on each side (ours; the paper shows the heart only, too)."""


@dataclass(frozen=True, eq=False)
class Deformation:
    """A row: fixed, moving and warped image on one grid, the displacement `([z,] y, x, d)` in mm, folded voxels `([z,] y, x)` as bool.

    `labels` are the fixed label map and the warped one, `([z,] y, x)`, where structures are shown.
    """

    name: str
    images: tuple[Volume, Volume, Volume]
    displacement_mm: np.ndarray
    folded: np.ndarray
    labels: tuple[np.ndarray, np.ndarray] | None = None


def deformation_figure(
    settings: DeformationSettings,
    cases: Sequence[Case],
    scores: pd.DataFrame,
    manifests: Mapping[str, pd.DataFrame],
    *,
    measures: Sequence[str],
    source: str = "",
) -> Figure:
    """The figure of `settings` from a study's files; `manifests` are those of its methods.

    `measures` are the study's: the first with scores chooses the case where none is named. `source` says in words where it comes from.
    Raises `ConcordError` where there is no such test case, or not of all the methods.
    """
    measure = first_scored(scores, settings.methods, measures)
    name = settings.case or middle_case(scores, settings.methods, measure)
    tested = {case.case: case for case in cases if case.split == "test"}
    if name not in tested:
        raise ConcordError(f"deformations: no test case {name!r}{choices(name, tested)}")
    rows = [Scored(tested[name], transform_of(manifests[method], name, method)) for method in settings.methods]
    told = [_numbers(method, row, _value(scores, method, name, measure)) for method, row in zip(settings.methods, rows, strict=True)]
    header = [settings.title, ", ".join(part for part in (f"case {name}", source) if part), *told]
    shown = [_shown(method, row, settings) for method, row in zip(settings.methods, rows, strict=True)]
    return draw_deformations(shown, header=header)


def middle_case(scores: pd.DataFrame, methods: Sequence[str], measure: str) -> str:
    """The case in the middle when all that every method has registered are ranked by the methods' mean of a measure (the lower of two)."""
    rows = scores[scores["method"].isin(methods) & (scores["metric"] == measure)]
    table = rows.groupby(["case", "method"])["value"].mean().unstack().reindex(columns=list(methods)).dropna()
    if table.empty:
        raise ConcordError(f"deformations: no case has scores of all of {', '.join(methods)}; choose methods that have registered one")
    ranked = table.mean(axis=1).sort_values(kind="stable")
    return str(ranked.index[(len(ranked) - 1) // 2])


@styled
def draw_deformations(rows: Sequence[Deformation], *, header: Sequence[str]) -> Figure:
    """A row a method, all on one grid: fixed, moving, warped, length of the displacement in mm (one scale for all), deformed grid.

    Where the rows have labels, those of the fixed image and the warped ones are outlined on the fixed image. 3-D is shown by its middle axial slice, the displacement by its whole length, and the grid within the slice. Folds are red.
    """
    whole, named = view_of(rows[0].images[0].geometry), {row.name: row for row in rows}
    view = replace(whole, planes=tuple(replace(whole.planes[0], name=name) for name in named))
    lengths = {name: np.linalg.norm(row.displacement_mm, axis=-1) for name, row in named.items()}
    longest = max(float(view.slice_of(length, whole.planes[0]).max()) for length in lengths.values()) or 1.0
    bars: list[Any] = []

    def image(number: int) -> Callable[[Axes, Plane], Any]:
        # the moving image keeps its grey values when it is warped
        limits = {name: window(row.images[min(number, 1)]) for name, row in named.items()}
        return lambda axis, plane: show_plane(axis, plane, view.slice_of(named[plane.name].images[number].array, plane), limits[plane.name])

    def length(axis: Axes, plane: Plane) -> None:
        bars.append(show_plane(axis, plane, view.slice_of(lengths[plane.name], plane), (0.0, longest), cmap="viridis"))
        mark_folds(axis, plane, view.slice_of(named[plane.name].folded, plane))

    def grid(axis: Axes, plane: Plane) -> None:
        row = named[plane.name]
        moved_mm = view.in_plane_mm(row.displacement_mm @ view.geometry.physical_to_index.T, plane)
        deformed_grid(axis, plane, moved_mm, view.slice_of(row.folded, plane))

    def structures(axis: Axes, plane: Plane) -> None:
        labels = [view.slice_of(array, plane) for array in named[plane.name].labels]
        outlined(axis, plane, labels, background=image(0))

    panels: list[Panel] = [
        ("fixed (reference)", image(0)),
        ("moving", image(1)),
        ("warped", image(2)),
        ("displacement", length),
        ("deformed grid", grid),
    ]
    known = all(row.labels is not None for row in rows)
    if known:
        panels.insert(3, ("structures", structures))
    lines = [(line, "black", "bold" if number == 0 else "normal") for number, line in enumerate(header)]
    figure = sheet(view, panels, header=lines, right_in=1.0, foot_in=LEGEND_IN * known)
    colour_bar(figure, bars[0], "length of the displacement (mm)")
    if known:
        contour_legend(figure)
    return figure


def transform_of(manifest: pd.DataFrame, name: str, method: str) -> Any:
    """The file of the transform that a method found of a case. Raises `ConcordError` where it has none."""
    done = manifest[(manifest["case"] == name) & (manifest["status"] == "done")]
    if done.empty:
        raise ConcordError(f"deformations: {method} has not registered case {name!r}; choose a case that it has")
    return done["transform"].iloc[0]


def _value(scores: pd.DataFrame, method: str, name: str, measure: str) -> str:
    """The measure of a case in words, structures averaged."""
    from pipeline.table_formats import number
    from pipeline.table_settings import measure_label

    mine = scores[(scores["method"] == method) & (scores["case"] == name) & (scores["metric"] == measure)]["value"].mean()
    label, factor, digits = measure_label(measure)
    return f"{label} {number(factor * mine, digits)}, " if np.isfinite(mine) else ""


def _numbers(method: str, row: Scored, value: str) -> str:
    from metrics.accuracy.folding import folding_fraction

    length = np.linalg.norm(row.displacement_mm, axis=-1)
    folded = 100 * folding_fraction(row.displacement_vx)
    folds = f"{folded:.3g} % of the voxels folded (red)" if folded else "no voxel folded"
    return f"{method}: {value}displacement up to {length.max():.1f} mm, mean {length.mean():.1f} mm; {folds}"


def _shown(method: str, row: Scored, settings: DeformationSettings) -> Deformation:
    """The part of a case that is shown: the surroundings of its labels, or all of it where there are none."""
    from metrics.accuracy.folding import jacobian_determinant
    from pipeline.region import region_mask
    from pipeline.resampling import resample, warp_by_field

    grid, moving = row.fixed.geometry, _moving(row.case, settings)
    known = row.case.fixed_labels is not None and row.fixed_labels.array.any()
    lower, upper = np.zeros(grid.dimension, int), np.asarray(grid.size)
    if known:
        lower, upper = box_of(region_mask(row.fixed_labels, MARGIN).array != 0)
    part = tuple(slice(low, up) for low, up in zip(lower[::-1], upper[::-1], strict=True))
    images = (row.fixed, resample(moving, grid), warp_by_field(moving, row.displacement_mm, grid))
    folded = jacobian_determinant(row.displacement_vx) <= 0
    labels = (row.fixed_labels.array[part], row.warped_labels[part]) if known and settings.structures else None
    return Deformation(method, tuple(image.cropped(lower, upper) for image in images), row.displacement_mm[part], folded[part], labels)


def _moving(case: Case, settings: DeformationSettings) -> Volume:
    """The image that is warped: the one that was registered, or the same subject's in the fixed modality."""
    from pipeline.volumes import read_volume

    if settings.image == "counterpart" and case.moving_counterpart is None:
        raise ConcordError(f"deformations: case {case.case} has no moving_counterpart; choose image: moving")
    return read_volume(case.moving_counterpart if settings.image == "counterpart" else case.moving)
