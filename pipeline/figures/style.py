"""One look for all figures: fonts, a colour and a marker a method that stay the same from figure to figure, and saving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConcordError
from pipeline.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
SUFFIXES = (".png", ".svg", ".pdf")
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#e3e5e8",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.08,
    "svg.hashsalt": "concord",
    "savefig.dpi": DPI,
}
GREY = "#5f6670"
# Okabe and Ito's eight colours without black and yellow (too pale on white), then Tol's "muted" ones: told apart with any colour vision
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#882255",
    "#332288",
    "#999933",
    "#AA4499",
    "#117733",
    "#661100",
    "#88CCEE",
    "#44AA99",
    "#CC6677",
    "#77AADD",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d", "H", "8", ".")
PLACES = (
    "mi",
    "mind",
    "demons",
    "syn",
    "affine",
    "symgn",
    "mi-masked",
    "mind-ssc",
    "syn-cc",
    "rigid-mi",
    "rigid-mind",
    "loop",
    "attention-reg",
    "resatt",
    "translation",
    "cyclegan",
)
"""Methods whose place in the palette is fixed; others take the next one in the order of the study's methods."""


@dataclass(frozen=True)
class MethodStyle:
    """Colour and marker of a method."""

    colour: str
    marker: str


def method_styles(methods: Sequence[str]) -> dict[str, MethodStyle]:
    """A style a method: `identity` grey, the known ones as always, the others by the palette's free places in the order given."""
    known = {method: place for place, method in enumerate(PLACES) if method in methods}
    free = [place for place in range(len(PALETTE)) if place not in known.values()] or [0]
    others = [method for method in dict.fromkeys(methods) if method not in known and method != "identity"]
    places = known | {method: free[index % len(free)] for index, method in enumerate(others)}
    styles = {method: MethodStyle(PALETTE[place], MARKERS[place]) for method, place in places.items()}
    return {method: styles.get(method, MethodStyle(GREY, "o")) for method in dict.fromkeys(methods)}


def figure_styles(shown: Sequence[str], study_methods: Sequence[str] = ()) -> dict[str, MethodStyle]:
    """The study's styles of one figure's methods; of two that share a colour, as happens beyond the palette, the later takes a free one."""
    known = method_styles([*study_methods, *shown])
    styles: dict[str, MethodStyle] = {}
    for method in shown:
        # colours that nobody in this figure has by right go first, so that as few methods as possible change theirs
        wanted = {known[name].colour for name in shown} | {style.colour for style in styles.values()}
        taken = known[method].colour in {style.colour for style in styles.values()} - {GREY}
        free = [place for place, colour in enumerate(PALETTE) if colour not in wanted] if taken else []
        place = max(free, key=lambda place: min(_apart(PALETTE[place], colour) for colour in wanted), default=None)
        styles[method] = known[method] if place is None else MethodStyle(PALETTE[place], MARKERS[place])
    return styles


def _apart(one: str, other: str) -> float:
    """Squared distance of two colours `#rrggbb` as red, green and blue."""
    return sum((int(one[k : k + 2], 16) - int(other[k : k + 2], 16)) ** 2 for k in (1, 3, 5))


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under the house's style, and leave matplotlib's own settings as they were."""

    @wraps(draw)
    def inner(*args: Any, **options: Any) -> Figure:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **options)

    return inner


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure that belongs to no window and no global list."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG (150 dpi), SVG or PDF, whole: the same figure gives the same bytes. Raises `ConcordError` for another suffix."""
    from matplotlib import rc_context

    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConcordError(f"{path}: cannot draw this suffix; choose one of {', '.join(SUFFIXES)}")
    undated = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with rc_context(STYLE), whole_file(path) as temporary:
        figure.savefig(temporary, metadata=undated[path.suffix])


def without_ticks(axis: Axes) -> None:
    """Hide ticks and frame, as for a picture."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def chosen_methods(methods: Sequence[str], found: Sequence[str], what: str) -> list[str]:
    """`methods`, or all that were found where none is named. Raises `ConcordError` for a method without scores."""
    missing = [method for method in methods if method not in found]
    if missing or not len(found):
        raise ConcordError(f"{what}: no scores of {', '.join(missing) or 'any method'}; there are those of: {', '.join(found) or 'none'}")
    return list(dict.fromkeys(methods or found))
