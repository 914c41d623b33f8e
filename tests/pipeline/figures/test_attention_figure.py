"""The figure of attention: colours where the map is, each image cut through its own point, scales that are shared by maps of a kind."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import ConcordError
from pipeline.figures.attention import MOST_OPAQUE, Overlay, draw_attention, heat_colours
from pipeline.figures.style import save
from pipeline.volumes import Geometry, Volume

GRID = Geometry.regular((12, 10, 8), (1.0, 2.0, 3.0))


def overlay(name: str, kind: str, hot: tuple[int, int, int], point: tuple[int, int, int], value: float = 50.0) -> Overlay:
    """One hot voxel (x, y, z) over a ramp, cut through another voxel."""
    heat = np.zeros(GRID.shape, np.float32)
    heat[hot[::-1]] = value
    outline = np.zeros(GRID.shape, bool)
    outline[2:6, 3:8, 3:9] = True
    image = Volume(np.indices(GRID.shape).sum(0).astype(np.float32), GRID, name)
    return Overlay(name, image, heat, point_mm=GRID.points_at(np.array(point)), outline=outline, kind=kind, note=f"about {name}")


def panel(figure, name: str):
    return next(axis for axis in figure.axes if axis.get_label() == name)


def shown(axis) -> np.ndarray:
    """The map as it lies on the page."""
    return np.asarray(axis.images[1].get_array())


def test_a_map_is_shown_in_the_slice_through_its_own_point():
    figure = draw_attention([overlay("one", "cam", (3, 4, 5), (3, 4, 5)), overlay("two", "cam", (3, 4, 5), (6, 4, 2))], header=["title"])
    axial = shown(panel(figure, "one axial"))
    assert axial.shape == (10, 12) and np.argwhere(axial).tolist() == [[4, 3]]
    # superior is up
    assert np.argwhere(shown(panel(figure, "one coronal"))).tolist() == [[8 - 1 - 5, 3]]
    # the second is cut at z 2 and x 6, past the voxel, but at its y
    assert not shown(panel(figure, "two axial")).any() and not shown(panel(figure, "two sagittal")).any()
    assert shown(panel(figure, "two coronal")).any()


def test_attention_is_shown_along_the_whole_line_of_sight():
    figure = draw_attention([overlay("one", "attention", (3, 4, 5), (6, 7, 2))], header=[])
    assert np.argwhere(shown(panel(figure, "one axial"))).tolist() == [[4, 3]]
    assert np.argwhere(shown(panel(figure, "one coronal"))).tolist() == [[2, 3]]
    assert np.argwhere(shown(panel(figure, "one sagittal"))).tolist() == [[2, 4]]


def test_the_cross_stands_on_the_point_in_mm():
    figure = draw_attention([overlay("one", "cam", (3, 4, 5), (6, 7, 2))], header=[])
    places = {"axial": (6.5, 15.0), "coronal": (6.5, 16.5), "sagittal": (15.0, 16.5)}
    for plane, (x, y) in places.items():
        cross = next(line for line in panel(figure, f"one {plane}").lines if line.get_marker() == "+")
        assert (cross.get_xdata()[0], cross.get_ydata()[0]) == pytest.approx((x, y))


def test_maps_of_a_kind_share_a_scale_that_a_bar_below_them_tells():
    maps = [
        overlay("a", "cam", (1, 1, 1), (1, 1, 1), 100),
        overlay("b", "cam", (1, 1, 1), (1, 1, 1), 60),
        overlay("c", "attention", (1, 1, 1), (1, 1, 1), 7),
    ]
    figure = draw_attention(maps, header=["title", "text"])
    limits = [panel(figure, f"{name} axial").images[1].get_clim() for name in "abc"]
    assert limits == [(0, 100), (0, 100), (0, 7)]
    bars = [axis for axis in figure.axes if axis.get_label().startswith("bar")]
    assert [axis.get_xlabel().split()[0] for axis in bars] == ["Grad-CAM", "attention"]
    assert [axis.get_xlim()[1] for axis in bars] == [100, 7]
    written = [text.get_text() for text in figure.texts]
    assert {"title", "text", "about a", "about b", "about c"} <= set(written)
    left, right = bars[0].get_position(), bars[1].get_position()
    assert left.x1 < right.x0 and left.x1 < panel(figure, "c axial").get_position().x0


def test_low_values_let_the_image_through():
    colours = heat_colours()([0.0, 0.5, 1.0])
    assert colours[:, 3] == pytest.approx([0, MOST_OPAQUE / 2, MOST_OPAQUE], abs=0.01)


def test_an_empty_map_and_an_unknown_gland_are_drawn_and_other_grids_refused(tmp_path):
    bare = overlay("bare", "cam", (1, 1, 1), (1, 1, 1), 0.0)
    save(draw_attention([Overlay("bare", bare.image, bare.heat, point_mm=bare.point_mm)], header=[]), tmp_path / "bare.png")
    assert (tmp_path / "bare.png").stat().st_size > 1000
    other = Volume(bare.image.array, Geometry.regular(GRID.size, 1.0), "other")
    with pytest.raises(ConcordError, match="other: not on the grid of bare; resample it first"):
        draw_attention([bare, Overlay("other", other, bare.heat, point_mm=bare.point_mm)], header=[])
