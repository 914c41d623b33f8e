"""The figure of landscapes draws what the table holds: columns, rows, scaling, the truth, and derivatives of the scaled value."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import ConcordError
from pipeline.figures.landscape import LINES, OTHER, SLOPE, VALUE, draw_landscape, drawn_curves
from pipeline.figures.style import save
from pipeline.optimise.landscape import COLUMNS

AT = np.linspace(-6, 6, 13)
PERTURBED = {
    "rigid": ["translation along x", "translation along y", "rotation about x", "rotation about z"],
    "bspline": ["control point (1, 1, 1), x", "control point (2, 1, 1), y"],
}


def toy(methods: tuple[str, ...] = ("mi", "mind")) -> pd.DataFrame:
    """Parabolas of another height for every method, 3 + height p², and one derivative by another parameter."""
    parts = []
    for height, method in enumerate(methods, start=1):
        for kind, names in PERTURBED.items():
            for name in names:
                shared = {"method": method, "transform": kind, "perturbed": name, "perturbation_mm": AT, "value": 3 + height * AT**2, "voxel_mm": 1.0}
                parts.append(pd.DataFrame({**shared, "parameter": name, "other": False, "derivative": 2 * height * AT}))
                parts.append(pd.DataFrame({**shared, "parameter": "beside", "other": True, "derivative": height * np.ones_like(AT)}))
    return pd.concat(parts)[list(COLUMNS)]


def lines_of(axis, style: dict) -> list:
    return [line for line in axis.lines if line.get_color() == style["color"] and len(line.get_xdata()) == len(AT)]


def test_a_column_a_method_and_a_row_a_curve_values_on_the_left_derivatives_on_the_right():
    figure = draw_landscape(toy(), title="Around the truth")
    assert len(figure.axes) == 2 * 2 * 3
    assert [axis.get_title() for axis in figure.axes[:2]] == ["mi", "mind"]
    assert [axis.get_ylabel().split("\n")[-1] for axis in figure.axes[0:6:2]] == [
        "translation along x",
        "rotation about z",
        "control point (1, 1, 1), x",
    ]
    assert all(axis.get_xlabel() == "perturbation (mm)" for axis in figure.axes[4:6])
    assert figure.axes[-1].get_ylabel() == "derivative (1/mm)"
    assert figure.get_suptitle() == "Around the truth"


def test_values_are_scaled_to_one_and_derivatives_are_those_of_the_scaled_value():
    figure = draw_landscape(toy(("mi", "mind", "nmi")))
    values, slopes = figure.axes[2], figure.axes[9 + 2]  # third method, first row
    (value,), (slope,), (other,) = lines_of(values, VALUE), lines_of(slopes, SLOPE), lines_of(slopes, OTHER)
    assert np.asarray(value.get_ydata()) == pytest.approx(AT**2 / 36)
    assert np.asarray(slope.get_ydata()) == pytest.approx(2 * AT / 36)
    assert np.asarray(other.get_ydata()) == pytest.approx(np.full(13, 1 / 36))


def test_zero_of_the_derivative_is_in_the_middle_and_the_truth_is_marked():
    figure = draw_landscape(toy(("mi",)))
    values, slopes = figure.axes[0], figure.axes[3]
    assert sum(slopes.get_ylim()) == pytest.approx(0)
    assert slopes.get_ylim()[1] > 2 * 6 / 36
    assert any(list(line.get_xdata()) == [0, 0] for line in values.lines)
    assert any(list(line.get_ydata()) == [0, 0] for line in slopes.lines)


def test_the_legend_names_every_kind_of_line():
    figure = draw_landscape(toy(("mi",)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(LINES)


def test_columns_follow_the_methods_asked_for():
    assert [axis.get_title() for axis in draw_landscape(toy(), methods=["mind", "mi"]).axes[:2]] == ["mind", "mi"]
    with pytest.raises(ConcordError, match="ngf"):
        draw_landscape(toy(), methods=["ngf"])


def test_the_rows_are_one_translation_one_rotation_and_one_control_point():
    assert drawn_curves(toy()) == [
        ("rigid", "translation along x"),
        ("rigid", "rotation about z"),
        ("bspline", "control point (1, 1, 1), x"),
    ]
    with pytest.raises(ConcordError, match="no curves"):
        drawn_curves(toy().iloc[:0])


def test_a_constant_value_is_drawn_as_a_line_and_rows_in_any_order_as_a_curve(tmp_path):
    table = toy(("mi",)).assign(value=1.0, derivative=0.0)
    save(draw_landscape(table), tmp_path / "flat.png")
    assert (tmp_path / "flat.png").stat().st_size > 0
    shuffled = draw_landscape(toy(("mi",)).sample(frac=1, random_state=1))
    (slope,) = lines_of(shuffled.axes[3], OTHER)
    assert (np.diff(slope.get_xdata()) > 0).all()
