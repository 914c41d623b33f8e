"""What an attention network looks at, laid over MR and TRUS: figure 4 of Song et al., MICCAI 2021, and single rows of the attention beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.errors import ConcordError
from pipeline.figures.sheet import BORDER, GAP, SIDE, sheet
from pipeline.figures.slices import Plane, View, view_of, window
from pipeline.figures.style import styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    from pipeline.volumes import Volume

GLAND_COLOUR, POINT_COLOUR = "#56B4E9", "white"
PANEL, FOOT = 2.6, 1.0
MOST_OPAQUE = 0.65
"""How much of the grey value the largest map value hides; smaller values hide proportionally less (ours)."""
BARS = {
    "cam": "Grad-CAM in the slice (% of each map's largest value)",
    "attention": "attention (% a place of the map), largest along the line of sight",
}


@dataclass(frozen=True, eq=False)
class Overlay:
    """A column: an image, a map on its grid `(z, y, x)`, the gland as bool where it is known, and the point that the slices pass through.

    `kind` says which colour bar it shares, and whether the slice's own values are shown ("cam") or the largest along the line of sight
    ("attention", which may be a single place off the slice); `note` is printed below the column.
    """

    name: str
    image: Volume
    heat: np.ndarray
    point_mm: np.ndarray
    outline: np.ndarray | None = None
    kind: Literal["cam", "attention"] = "cam"
    note: str = ""


@styled
def draw_attention(overlays: Sequence[Overlay], *, header: Sequence[str]) -> Figure:
    """A column an overlay, a row a plane: the map in colour over the grey image, the gland's outline, the point marked.

    All images lie on one grid, and each is cut through its own point, so that all slices show the same anatomy. Maps of a kind are
    neighbours and share one scale of colours, from 0. Raises `ConcordError` for images on several grids.
    """
    geometry = overlays[0].image.geometry
    for overlay in overlays:
        if not overlay.image.geometry.matches(geometry):
            raise ConcordError(f"{overlay.image.name}: not on the grid of {overlays[0].image.name}; resample it first")
    limits = {kind: max((float(o.heat.max()) for o in overlays if o.kind == kind), default=1.0) or 1.0 for kind in BARS}
    panels = [(overlay.name, _drawn(overlay, limits[overlay.kind])) for overlay in overlays]
    lines = [(line, "black", "bold" if number == 0 else "normal") for number, line in enumerate(header)]
    figure = sheet(view_of(geometry), panels, header=lines, panel_in=PANEL, foot_in=FOOT)
    for number, overlay in enumerate(overlays):
        _note(figure, number, overlay.note)
    for kind, limit in limits.items():
        columns = [number for number, overlay in enumerate(overlays) if overlay.kind == kind]
        if columns:
            _bar(figure, columns, limit, BARS[kind])
    return figure


def _drawn(overlay: Overlay, limit: float) -> Callable[[Axes, Plane], Any]:
    """What draws a plane of an overlay: the plane of that name through the overlay's own point."""
    geometry = overlay.image.geometry
    index = np.clip(geometry.index_at(overlay.point_mm), 0, np.asarray(geometry.size) - 1)
    view, grey = view_of(geometry, index[::-1]), window(overlay.image)

    def draw(axis: Axes, named: Plane) -> None:
        plane = next(own for own in view.planes if own.name == named.name)
        _picture(axis, view, plane, overlay, (grey, limit))
        _mark(axis, view, plane, index)

    return draw


def _picture(axis: Axes, view: View, plane: Plane, overlay: Overlay, limits: tuple[tuple[float, float], float]) -> None:
    values = overlay.heat if overlay.kind == "cam" else _along_sight(overlay.heat, view, plane)
    grey, heat = view.slice_of(overlay.image.array, plane), view.slice_of(values, plane)
    extent, ((low, high), most) = plane.extent_mm(grey.shape), limits
    axis.imshow(grey, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear")
    axis.imshow(heat, cmap=heat_colours(), vmin=0, vmax=most, extent=extent, interpolation="bilinear")
    if overlay.outline is not None:
        inside = view.slice_of(overlay.outline, plane)
        rows, columns = (np.arange(n) * s + s / 2 for n, s in zip(inside.shape, plane.spacing_mm, strict=True))
        if inside.any() and not inside.all():
            axis.contour(columns, rows, inside, levels=[0.5], colors=GLAND_COLOUR, linewidths=1.4)


def _along_sight(heat: np.ndarray, view: View, plane: Plane) -> np.ndarray:
    """The largest value along the plane's normal, everywhere along it."""
    return np.broadcast_to(heat.max(axis=view.axes[plane.normal], keepdims=True), heat.shape)


def _mark(axis: Axes, view: View, plane: Plane, index: np.ndarray) -> None:
    """A cross where the point is, on the page."""
    where = np.zeros(view.geometry.shape, dtype=bool)
    where[tuple(np.round(index[::-1]).astype(int))] = True
    row, column = (place[0] for place in np.nonzero(view.slice_of(where, plane)))
    at = (column + 0.5) * plane.spacing_mm[1], (row + 0.5) * plane.spacing_mm[0]
    axis.plot(*at, "+", color="black", markersize=12, markeredgewidth=3.2)
    axis.plot(*at, "+", color=POINT_COLOUR, markersize=11, markeredgewidth=1.6)


def heat_colours() -> ListedColormap:
    """From transparent to opaque, so that low values show the image."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    colours = colormaps["plasma"](np.linspace(0, 1, 256))
    colours[:, 3] = np.linspace(0, MOST_OPAQUE, 256)
    return ListedColormap(colours, name="heat")


def _left(column: int) -> float:
    """Where a column begins, in inches."""
    return BORDER + SIDE + column * (PANEL + GAP)


def _note(figure: Figure, column: int, text: str) -> None:
    width, height = figure.get_size_inches()
    figure.text((_left(column) + PANEL / 2) / width, (BORDER + FOOT - 0.06) / height, text, ha="center", va="top", fontsize=8.5)


def _bar(figure: Figure, columns: Sequence[int], limit: float, label: str) -> None:
    """A horizontal colour bar below its columns; the grey behind it is that of an image."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    width, height = figure.get_size_inches()
    left, right = _left(columns[0]) + 0.2, _left(columns[-1]) + PANEL - 0.2
    box = (left / width, (BORDER + 0.48) / height, (right - left) / width, 0.15 / height)
    place = figure.add_axes(box, label=f"bar {columns[0]}", facecolor="#808080")
    bar = figure.colorbar(ScalarMappable(Normalize(0, limit), heat_colours()), cax=place, orientation="horizontal")
    bar.solids.set(edgecolor="none", antialiased=False)  # cells of transparent colours would overlap as stripes
    bar.set_label(label)
