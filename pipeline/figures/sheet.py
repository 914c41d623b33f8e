"""A sheet of pictures: a panel a column, a plane a row, all at one scale in mm, with lines of text above."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.figures.slices import Plane, View
from pipeline.figures.style import without_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panel = tuple[str, Callable[["Axes", Plane], Any]]
"""Name above the column, and what draws a plane into an axis."""
Line = tuple[str, str, str]
"""Text, colour and weight of a line above the panels."""

# inches: gap between panels, room for plane names, for column names, for a line of the header, at the border
GAP, SIDE, NAMES, LINE, BORDER = 0.1, 0.28, 0.28, 0.23, 0.1
LETTERS_AN_INCH = 11


def sheet(
    view: View, panels: Sequence[Panel], *, header: Sequence[Line] = (), panel_in: float = 2.3, right_in: float = 0.0, foot_in: float = 0.0
) -> Figure:
    """Draw every panel of every plane; `right_in` and `foot_in` inches are left free for a colour bar or a legend.

    The layout is reckoned in inches, because the shapes of all panels are known: nothing has to be fitted.
    """
    from matplotlib.figure import Figure

    shapes = [view.slice_of(np.empty(view.geometry.shape, dtype=bool), plane).shape for plane in view.planes]
    extents = [plane.extent_mm(shape) for plane, shape in zip(view.planes, shapes, strict=True)]
    inch_a_mm = panel_in / max(extent[1] for extent in extents)
    side = SIDE if view.planes[0].name else 0.0
    width = 2 * BORDER + side + len(panels) * (panel_in + GAP) - GAP + right_in
    lines = _wrapped(header, width)
    heights = [extent[2] * inch_a_mm for extent in extents]
    top = BORDER + LINE * len(lines) + NAMES
    height = top + sum(heights) + GAP * (len(heights) - 1) + foot_in + BORDER
    figure = Figure(figsize=(width, height))
    for row, (plane, extent) in enumerate(zip(view.planes, extents, strict=True)):
        bottom = 1 - (top + sum(heights[: row + 1]) + GAP * row) / height
        own = extent[1] * inch_a_mm
        for column, (name, draw) in enumerate(panels):
            left = BORDER + side + column * (panel_in + GAP) + (panel_in - own) / 2
            axis = figure.add_axes((left / width, bottom, own / width, heights[row] / height), label=f"{name} {plane.name}".strip())
            draw(axis, plane)
            axis.set(xlim=extent[:2], ylim=extent[2:], title=name if row == 0 else "")
            without_ticks(axis)
        _letters(figure.axes[row * len(panels)], plane, extent)
        figure.text((BORDER + 0.06) / width, bottom + heights[row] / height / 2, plane.name, rotation=90, ha="center", va="center")
    _scale_bar(figure.axes[-len(panels)], extents[-1])
    for number, (text, colour, weight) in enumerate(lines):
        figure.text(BORDER / width, 1 - (BORDER + LINE * number) / height, text, color=colour, weight=weight, fontsize=10.5, va="top")
    return figure


def colour_bar(figure: Figure, image: Any, label: str) -> None:
    """A colour bar right of the panels, in the 0.9 inches that `right_in` left free."""
    width = figure.get_figwidth()
    boxes = [axis.get_position() for axis in figure.axes]
    bottom, top = min(box.y0 for box in boxes), max(box.y1 for box in boxes)
    place = figure.add_axes((1 - (BORDER + 0.75) / width, bottom + 0.1 * (top - bottom), 0.16 / width, 0.8 * (top - bottom)), label="colour bar")
    figure.colorbar(image, cax=place, label=label)


def _wrapped(header: Sequence[Line], width_in: float) -> list[Line]:
    most = max(30, int(width_in * LETTERS_AN_INCH))
    return [(part, colour, weight) for text, colour, weight in header for part in textwrap.wrap(text, most)]


def _letters(axis: Axes, plane: Plane, extent: Sequence[float]) -> None:
    """Orientation letters at the four edges of a slice."""
    right, bottom = extent[1], extent[2]
    places = ((0.03 * right, bottom / 2), (0.97 * right, bottom / 2), (right / 2, 0.03 * bottom), (right / 2, 0.97 * bottom))
    aligned = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    # monospaced, because its I has serifs and is no stroke
    look = {"color": "white", "fontsize": 10, "fontweight": "bold", "family": "monospace", "path_effects": _outlined()}
    for letter, (x, y), (ha, va) in zip(plane.edges, places, aligned, strict=False):
        axis.text(x, y, letter, ha=ha, va=va, **look)


def _scale_bar(axis: Axes, extent: Sequence[float]) -> None:
    """A bar of 1, 2 or 5 times a power of ten mm, at most a third of the slice."""
    wanted = extent[1] / 3
    power = 10.0 ** np.floor(np.log10(wanted))
    length = max(n * power for n in (1, 2, 5) if n * power <= wanted)
    x, y = 0.04 * extent[1], 0.95 * extent[2]
    axis.plot([x, x + length], [y, y], color="white", linewidth=2.5, solid_capstyle="butt", path_effects=_outlined())
    axis.text(x, y - 0.02 * extent[2], f"{length:g} mm", ha="left", va="bottom", color="white", fontsize=9, path_effects=_outlined())


def _outlined() -> list[Any]:
    """White with a dark rim: readable on any grey."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2, foreground="black")]
