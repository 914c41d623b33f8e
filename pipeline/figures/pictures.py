"""Pictures of one case: before and after registration, the quality sheet of `concord register`, and the displacement field.

Volumes are 2-D or 3-D and on the fixed grid. 3-D is shown as three orthogonal slices in radiological view, one a row,
through the labels' centroid where there are labels, else through the middle of the grid; 2-D as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ConcordError
from pipeline.figures.quality import quality_summary
from pipeline.figures.sheet import Line, Panel, colour_bar, sheet
from pipeline.figures.slices import Plane, View, centroid, view_of, window
from pipeline.figures.style import styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipeline.volumes import Geometry, Volume

__all__ = [
    "before_after",
    "checkerboard",
    "contour_legend",
    "deformed_grid",
    "displacement_picture",
    "mark_folds",
    "outlined",
    "qc_picture",
    "quality_summary",
    "show_plane",
]

FIXED_COLOUR, WARPED_COLOUR = "#F0E442", "#56B4E9"
VERDICTS = {"pass": ("#00704f", "PASS"), "warn": ("#b06f00", "WARN: look at it"), "fail": ("#b3261e", "FAIL: do not use")}
FOLD_COLOUR = "#ff2a2a"
TILES = 8
"""Squares of a checkerboard along the shorter side of a slice (ours)."""
LEGEND_IN = 0.36
"""Inches below the panels that the legend of contours needs."""
GRID_LINES = 28
"""Lines of a deformed grid along the longer side of a slice (ours)."""


def checkerboard(first: np.ndarray, second: np.ndarray, tile: int | Sequence[int]) -> np.ndarray:
    """Two arrays of one shape in alternating tiles of `tile` samples (one number, or one an axis); the first corner shows `first`."""
    if first.shape != second.shape:
        raise ConcordError(f"checkerboard of shapes {first.shape} and {second.shape}; expected the same: resample one onto the other's grid")
    sizes = np.broadcast_to(tile, first.ndim)
    if sizes.min() < 1:
        raise ConcordError(f"checkerboard with tiles of {tile} samples; expected at least 1")
    odd = sum(index // size for index, size in zip(np.indices(first.shape, sparse=True), sizes, strict=True)) % 2
    return np.where(odd == 0, first, second)


@styled
def before_after(
    fixed: Volume, before: Volume, warped: Volume, *, fixed_labels: Volume | None = None, warped_labels: Volume | None = None, title: str = ""
) -> Figure:
    """Fixed, moving (`before`, resampled on the fixed grid) and warped image, checkerboards before and after, label contours where given.

    Each image has its own grey window, that of the moving one is kept after warping.
    """
    return _before_after_sheet((fixed, before, warped), (fixed_labels, warped_labels), [(title, "black", "bold")])


@styled
def qc_picture(fixed: Volume, before: Volume, warped: Volume, *, summary: Mapping[str, Any], title: str = "") -> Figure:
    """`before_after` with the numbers and the verdict of `quality_summary` above it."""
    colour, word = VERDICTS[summary["verdict"]]
    numbers = (
        f"NMI {summary['nmi_before']:.3f} → {summary['nmi_after']:.3f}    NCC {summary['ncc_before']:.3f} → {summary['ncc_after']:.3f}    "
        f"folding {summary['folding_percent']:.3g} %    largest displacement {summary['largest_displacement_mm']:.1f} mm"
    )
    header = [(title, "black", "bold"), (numbers, "black", "normal"), (f"{word} ({summary['reasons']})", colour, "bold")]
    return _before_after_sheet((fixed, before, warped), (None, None), header)


@styled
def displacement_picture(displacement_mm: np.ndarray, geometry: Geometry, *, title: str = "") -> Figure:
    """Length of the displacement in mm and the deformed grid; folded voxels (determinant of the Jacobian not positive) in red.

    `displacement_mm` is `([z,] y, x, d)`, LPS components (x, y[, z]). The grid is that of the fixed image after the transform,
    within the plane: in 3-D the part of the displacement across the slice is left out.
    """
    from metrics.accuracy.folding import jacobian_determinant

    displacement_vx = displacement_mm @ geometry.physical_to_index.T
    view = view_of(geometry)
    folded = jacobian_determinant(displacement_vx) <= 0
    length = np.linalg.norm(displacement_mm, axis=-1)
    longest = float(length.max()) or 1.0
    images = []

    def draw_length(axis: Axes, plane: Plane) -> None:
        images.append(show_plane(axis, plane, view.slice_of(length, plane), (0.0, longest), cmap="viridis"))
        mark_folds(axis, plane, view.slice_of(folded, plane))

    def draw_grid(axis: Axes, plane: Plane) -> None:
        deformed_grid(axis, plane, view.in_plane_mm(displacement_vx, plane), view.slice_of(folded, plane))

    percent = f"{100 * folded.mean():.3g} % of all voxels folded" + (" (red)" if folded.any() else "")
    told = f"largest displacement {length.max():.2f} mm, mean {length.mean():.2f} mm; {percent}"
    header = [(title, "black", "bold"), (told, "black", "normal")]
    figure = sheet(view, [("displacement", draw_length), ("deformed grid", draw_grid)], header=header, panel_in=3.4, right_in=1.0)
    colour_bar(figure, images[0], "length of the displacement (mm)")
    return figure


def _before_after_sheet(volumes: tuple[Volume, Volume, Volume], labels: tuple[Volume | None, Volume | None], header: list[Line]) -> Figure:
    fixed, before, _ = volumes
    fixed_labels, warped_labels = labels
    _check_grids([*volumes, *(volume for volume in labels if volume is not None)])
    view = view_of(fixed.geometry, None if fixed_labels is None else centroid(fixed_labels.array))
    windows = (window(fixed), window(before), window(before))

    def grey(index: int) -> Callable[[Axes, Plane], Any]:
        return lambda axis, plane: show_plane(axis, plane, view.slice_of(volumes[index].array, plane), windows[index])

    def board(index: int) -> Callable[[Axes, Plane], Any]:
        return lambda axis, plane: show_plane(axis, plane, _board(view, plane, volumes, windows, index), (0.0, 1.0))

    panels: list[Panel] = [
        ("fixed", grey(0)),
        ("moving", grey(1)),
        ("warped", grey(2)),
        ("checkerboard before", board(1)),
        ("checkerboard after", board(2)),
    ]
    if fixed_labels is not None:
        given = [volume.array for volume in labels if volume is not None]
        panels += [("labels on warped", lambda axis, plane: outlined(axis, plane, [view.slice_of(a, plane) for a in given], background=grey(2)))]
    figure = sheet(view, panels, header=header, foot_in=0.0 if fixed_labels is None else LEGEND_IN)
    if fixed_labels is not None:
        contour_legend(figure, both=warped_labels is not None)
    return figure


def _check_grids(volumes: Sequence[Volume]) -> None:
    for volume in volumes[1:]:
        if not volume.geometry.matches(volumes[0].geometry):
            raise ConcordError(
                f"{volume.name}: grid {volume.geometry.size} is not that of the fixed image {volumes[0].geometry.size}; resample it first"
            )


def show_plane(axis: Axes, plane: Plane, samples: np.ndarray, limits: tuple[float, float], cmap: str = "gray") -> Any:
    """Samples `(rows, columns)` of a slice in mm, between two values."""
    extent = plane.extent_mm(samples.shape)
    return axis.imshow(samples, cmap=cmap, vmin=limits[0], vmax=limits[1], extent=extent, interpolation="nearest")


def _board(view: View, plane: Plane, volumes: Sequence[Volume], windows: Sequence[tuple[float, float]], index: int) -> np.ndarray:
    """Checkerboard of the fixed image and volume `index`, each scaled to 0..1 by its window, in tiles that are square in mm."""
    scaled = [(view.slice_of(volumes[i].array, plane).astype(float) - windows[i][0]) / (windows[i][1] - windows[i][0]) for i in (0, index)]
    edge_mm = min(n * s for n, s in zip(scaled[0].shape, plane.spacing_mm, strict=True)) / TILES
    return checkerboard(scaled[0], scaled[1], [max(1, round(edge_mm / spacing)) for spacing in plane.spacing_mm])


def outlined(axis: Axes, plane: Plane, labels: Sequence[np.ndarray], *, background: Callable[[Axes, Plane], Any]) -> None:
    """The background, and over it the borders of one or two label maps, `(rows, columns)` each: the fixed one, then the warped one."""
    background(axis, plane)
    for samples, colour, style in zip(labels, (FIXED_COLOUR, WARPED_COLOUR), ("solid", (0, (3, 1.5))), strict=False):
        _outline(axis, plane, samples, colour=colour, linestyle=style)


def _outline(axis: Axes, plane: Plane, labels: np.ndarray, *, colour: str, linestyle: Any) -> None:
    """The border of every label of a slice, along the voxels' centres."""
    rows, columns = (np.arange(n) * s + s / 2 for n, s in zip(labels.shape, plane.spacing_mm, strict=True))
    for label in np.unique(labels)[np.unique(labels) != 0]:
        if min(labels.shape) > 1:
            axis.contour(columns, rows, labels == label, levels=[0.5], colors=colour, linewidths=1.0, linestyles=[linestyle])


def contour_legend(figure: Figure, *, both: bool = True) -> None:
    """What the contours are, at the foot of the figure."""
    from matplotlib.lines import Line2D

    entries = [("fixed labels", FIXED_COLOUR, "solid"), ("warped labels", WARPED_COLOUR, (0, (3, 1.5)))][: 2 if both else 1]
    handles = [Line2D([], [], color=colour, linestyle=style, linewidth=2, label=name) for name, colour, style in entries]
    figure.legend(handles=handles, loc="lower right", ncols=2, facecolor="#303030", labelcolor="white", frameon=True)


def mark_folds(axis: Axes, plane: Plane, folded: np.ndarray) -> None:
    """Folded voxels of a slice, `(rows, columns)` bool, in red."""
    from matplotlib.colors import ListedColormap

    if folded.any():
        marked = np.ma.masked_equal(folded.astype(float), 0)
        axis.imshow(marked, cmap=ListedColormap([FOLD_COLOUR]), extent=plane.extent_mm(folded.shape), interpolation="nearest")


def deformed_grid(axis: Axes, plane: Plane, moved_mm: np.ndarray, folded: np.ndarray) -> None:
    """Lines of the fixed grid after the transform, and its folded voxels, in mm."""
    from matplotlib.collections import LineCollection

    rows, columns = (np.arange(n) * s + s / 2 for n, s in zip(moved_mm.shape[:2], plane.spacing_mm, strict=True))
    points = moved_mm + np.stack(np.meshgrid(columns, rows), axis=-1)
    step_mm = max(rows[-1], columns[-1]) / GRID_LINES
    steps = [max(1, round(step_mm / spacing)) for spacing in plane.spacing_mm]
    shown = [np.append(np.arange(0, n - 1, step), n - 1) for n, step in zip(moved_mm.shape[:2], steps, strict=True)]
    lines = [*points[shown[0]], *np.swapaxes(points, 0, 1)[shown[1]]]
    axis.add_collection(LineCollection(lines, colors="#30343a", linewidths=0.6))
    axis.plot(*points[folded].T, "s", color=FOLD_COLOUR, markersize=2.5, markeredgewidth=0)
