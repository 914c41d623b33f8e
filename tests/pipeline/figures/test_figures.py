"""Figures and pictures: what is drawn is what was measured, orientation is right, files come out whole and the same every time."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import rcParams
from matplotlib.collections import LineCollection

from pipeline.errors import ConcordError
from pipeline.figures.boxplots import MOST_POINTS, boxplots
from pipeline.figures.pictures import before_after, checkerboard, displacement_picture, qc_picture, quality_summary
from pipeline.figures.quality import QualityLimits, ncc, nmi
from pipeline.figures.scatter import initial_against_final, paired_with_initial
from pipeline.figures.slices import centroid, view_of, window
from pipeline.figures.style import DPI, PALETTE, PLACES, method_styles, save
from pipeline.methods import METHODS
from pipeline.statistics import SCORE_COLUMNS
from pipeline.volumes import Geometry, Volume

PNG = b"\x89PNG\r\n\x1a\n"


def scores_of(values: dict[str, list[float]], metric: str = "dice") -> pd.DataFrame:
    rows = [("toy", method, 0, f"s{i}", f"c{i}", "", "", metric, value, "") for method, listed in values.items() for i, value in enumerate(listed)]
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


SCORES = scores_of({"identity": [0.3, 0.5, 0.4], "mi": [0.6, 0.4, 0.4], "new": [0.7, 0.8, 0.9]})


def ball(geometry: Geometry, centre: tuple[float, ...], radius: float, value: float = 100.0) -> Volume:
    distance = np.linalg.norm(geometry.grid_points() - np.asarray(centre), axis=-1)
    return Volume((value * (distance <= radius)).astype(np.float32), geometry, "ball")


def numbers_in(figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


# ---- scatter


def test_scatter_points_are_the_scores_before_and_after():
    figure = initial_against_final(SCORES, methods=["mi", "new"])
    points = [np.asarray(collection.get_offsets()) for collection in figure.axes[0].collections]
    assert points[0] == pytest.approx(np.array([[0.3, 0.6], [0.5, 0.4], [0.4, 0.4]]))
    assert points[1] == pytest.approx(np.array([[0.3, 0.7], [0.5, 0.8], [0.4, 0.9]]))


def test_scatter_has_equal_axes_with_names_and_the_line_of_no_change():
    axis = initial_against_final(SCORES, title="Fig. 2").axes[0]
    assert axis.get_xlim() == axis.get_ylim()
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("Dice before registration", "Dice after registration")
    line = axis.lines[0]
    assert (line.get_linestyle(), list(line.get_xdata())) == ("--", list(line.get_ydata()))
    assert axis.figure.get_suptitle() == "Fig. 2"


def test_scatter_counts_what_became_better_worse_and_stayed():
    legend = [text.get_text() for text in initial_against_final(SCORES).legends[0].get_texts()]
    assert legend == ["mi: 1 of 3 improved, 1 worse, 1 unchanged", "new: 3 of 3 improved, 0 worse", "no change"]


def test_lower_is_an_improvement_where_the_measure_says_so():
    scores = scores_of({"identity": [5.0, 6.0, 6.0], "mi": [2.0, 7.0, 3.0]}, "hd95_mm")
    figure = initial_against_final(scores, metric="hd95_mm")
    assert figure.legends[0].get_texts()[0].get_text() == "mi: 2 of 3 improved, 1 worse"
    assert figure.axes[0].get_xlabel() == "HD95 (mm) before registration"


def test_registrations_that_only_one_side_has_are_not_drawn():
    before, after = paired_with_initial(SCORES.drop(index=[0, 4]), "dice", "mi")
    assert (before.tolist(), after.tolist()) == ([0.4], [0.4])


@pytest.mark.parametrize(
    ("drawn", "said"),
    [({"methods": ["ants"]}, "no scores of ants"), ({"initial": "affine"}, "'affine' as well"), ({"metric": "tre_mm"}, "any method")],
)
def test_a_scatter_of_what_is_not_there_says_what_is_missing(drawn, said):
    with pytest.raises(ConcordError, match=said):
        initial_against_final(SCORES, **drawn)


# ---- boxplots


def test_boxes_whiskers_and_medians_are_those_worked_out_by_hand():
    axis = boxplots(scores_of({"mi": [1.0, 2.0, 3.0, 4.0, 100.0]}), measures=["dice"]).axes[0]
    box = axis.patches[0].get_path().vertices
    heights = {tuple(np.round(line.get_ydata(), 6)) for line in axis.lines}
    assert (box[:, 1].min(), box[:, 1].max()) == (2.0, 4.0)
    # whiskers to both extremes, 100 is no outlier
    assert {(2.0, 1.0), (4.0, 100.0), (3.0, 3.0)} <= heights


def test_the_median_is_red_and_every_point_is_drawn():
    axis = boxplots(SCORES, measures=["dice"]).axes[0]
    red = [line for line in axis.lines if line.get_color() == "#d11919"]
    assert [line.get_ydata()[0] for line in red] == [0.4, 0.4, 0.8]
    drawn = [sorted(np.asarray(collection.get_offsets())[:, 1]) for collection in axis.collections]
    assert drawn == [[0.3, 0.4, 0.5], [0.4, 0.4, 0.6], [0.7, 0.8, 0.9]]


def test_a_panel_a_measure_with_its_unit_and_counts_below_the_names():
    both = pd.concat([SCORES, scores_of({"identity": [0.0, 0.0], "mi": [0.01, math.nan], "new": [0.02, 0.03]}, "folding")])
    figure = boxplots(both, measures=["dice", "folding"], methods=["mi", "new"], title="Fig. 4")
    assert [axis.get_ylabel() for axis in figure.axes] == ["Dice", "Folding (%)"]
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["mi\nn = 1", "new\nn = 2"]
    assert np.asarray(figure.axes[1].collections[1].get_offsets())[:, 1].tolist() == [2.0, 3.0]


def test_a_method_without_values_of_a_measure_keeps_its_place():
    both = pd.concat([SCORES, scores_of({"new": [1.0]}, "seconds")])
    axis = boxplots(both, measures=["dice", "seconds"]).axes[1]
    assert [label.get_text().split("\n")[1] for label in axis.get_xticklabels()] == ["n = 0", "n = 0", "n = 1"]


def test_thousands_of_points_are_thinned_and_keep_their_extremes(rng):
    values = rng.normal(size=5000)
    drawn = np.asarray(boxplots(scores_of({"mi": list(values)}), measures=["dice"]).axes[0].collections[0].get_offsets())[:, 1]
    assert (drawn.size, drawn.min(), drawn.max()) == (MOST_POINTS, values.min(), values.max())


# ---- style


def test_a_method_has_one_colour_in_all_figures_whatever_else_is_drawn():
    alone, among = method_styles(["mi"]), method_styles(["identity", "cnn", "syn", "mi"])
    assert alone["mi"] == among["mi"]
    assert set(PLACES) == set(METHODS) - {"identity"}
    assert len(PLACES) <= len(PALETTE)


def test_methods_have_different_colours_while_the_palette_lasts():
    styles = method_styles(["identity", "mi", "cnn-a", "syn", "cnn-b", "cnn-c"])
    assert len({style.colour for style in styles.values()}) == 6
    assert len(method_styles([f"m{i}" for i in range(30)])) == 30
    assert {style.colour for style in method_styles([f"m{i}" for i in range(30)]).values()} == set(PALETTE)


def test_drawing_leaves_the_settings_of_matplotlib_as_they_were():
    before = dict(rcParams)
    boxplots(SCORES, measures=["dice"])
    assert dict(rcParams) == before


def test_saved_files_are_whole_of_the_stated_resolution_and_the_same_twice(tmp_path):
    for name in ("a.png", "b.png", "a.svg", "b.svg"):
        save(initial_against_final(SCORES), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg", "b.png", "b.svg"]
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(PNG)
    assert int.from_bytes(data[16:20], "big") == round(5.6 * DPI)
    assert data == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_suffix_that_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(ConcordError, match="cannot draw this suffix"):
        save(initial_against_final(SCORES), tmp_path / "a.bmp")
    assert not list(tmp_path.iterdir())


def test_importing_figures_does_not_load_matplotlib():
    modules = ", ".join(f"pipeline.figures.{name}" for name in ("scatter", "boxplots", "pictures", "style"))
    code = f"import sys, {modules}; sys.exit('matplotlib' in sys.modules or 'itk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- checkerboard


def test_a_checkerboard_alternates_tiles():
    board = checkerboard(np.zeros((4, 6), int), np.ones((4, 6), int), (2, 3))
    assert board.tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[1, 1, 1, 0, 0, 0]] * 2


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_a_checkerboard_of_an_image_with_itself_is_the_image_and_swapping_complements(rows, columns, tile):
    first = np.arange(rows * columns).reshape(rows, columns)
    assert np.array_equal(checkerboard(first, first, tile), first)
    assert np.array_equal(checkerboard(first, -first, tile) + checkerboard(-first, first, tile), np.zeros_like(first))


def test_checkerboards_of_unequal_shapes_or_empty_tiles_are_refused():
    with pytest.raises(ConcordError, match="expected the same"):
        checkerboard(np.zeros((2, 2)), np.zeros((2, 3)), 1)
    with pytest.raises(ConcordError, match="at least 1"):
        checkerboard(np.zeros((2, 2)), np.zeros((2, 2)), 0)


# ---- slices

PATIENT = {"L": (20.0, 0.0, 0.0), "P": (0.0, 20.0, 0.0), "S": (0.0, 0.0, 20.0)}


def oriented(permutation: tuple[int, int, int], signs: tuple[int, int, int]) -> Geometry:
    """A grid of unequal size and spacing whose image axes run along the given physical axes, centred at zero."""
    direction = np.zeros((3, 3))
    for image_axis, (physical, sign) in enumerate(zip(permutation, signs, strict=True)):
        direction[physical, image_axis] = sign
    size, spacing = np.array([41, 45, 31])[list(permutation)], np.array([1.5, 1.25, 2.0])[list(permutation)]
    origin = -direction @ ((size - 1) / 2 * spacing)
    return Geometry(tuple(size.tolist()), tuple(spacing.tolist()), tuple(origin.tolist()), tuple(map(tuple, direction.tolist())))


@pytest.mark.parametrize("permutation", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (1, 0, 2)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_any_orientation_of_the_grid_gives_the_same_radiological_view(permutation, signs):
    """Left is right, posterior and inferior are below: told from three balls whose physical places are known."""
    geometry = oriented(permutation, signs)
    view = view_of(geometry)
    assert [plane.name for plane in view.planes] == ["axial", "coronal", "sagittal"]
    expected = {"axial": {"L": (0, 1), "P": (1, 0)}, "coronal": {"L": (0, 1), "S": (-1, 0)}, "sagittal": {"P": (0, 1), "S": (-1, 0)}}
    for plane in view.planes:
        for letter, (down, right) in expected[plane.name].items():
            samples = view.slice_of(ball(geometry, PATIENT[letter], 5.0).array, plane)
            rows, columns = np.nonzero(samples)
            offset_mm = [(index.mean() - (n - 1) / 2) * s for index, n, s in zip((rows, columns), samples.shape, plane.spacing_mm, strict=True)]
            assert offset_mm == pytest.approx([20.0 * down, 20.0 * right], abs=1.0)


def test_letters_stand_at_the_edges_of_the_radiological_view():
    assert [plane.edges for plane in view_of(oriented((0, 1, 2), (-1, 1, 1))).planes] == [
        ("R", "L", "A", "P"),
        ("R", "L", "S", "I"),
        ("A", "P", "S", "I"),
    ]


def test_in_plane_displacement_points_where_the_patient_moves():
    geometry = oriented((2, 0, 1), (1, -1, -1))
    view = view_of(geometry)
    left_mm, up_mm = np.zeros((*geometry.shape, 3)), np.zeros((*geometry.shape, 3))
    left_mm[..., 0], up_mm[..., 2] = 3.0, 2.0
    moved = {
        name: [view.in_plane_mm(field @ geometry.physical_to_index.T, plane)[0, 0] for plane in view.planes]
        for name, field in (("left", left_mm), ("up", up_mm))
    }
    assert np.allclose(moved["left"], [(3, 0), (3, 0), (0, 0)])
    assert np.allclose(moved["up"], [(0, 0), (0, -2), (0, -2)])


def test_slices_go_through_the_centroid_that_is_given():
    geometry = Geometry.regular((20, 20, 20))
    labels = ball(geometry, (5.5, -4.5, 2.5), 2.0)
    view = view_of(geometry, centroid(labels.array))
    assert [plane.index for plane in view.planes] == [12, 5, 15]
    assert centroid(np.zeros((3, 3))) is None


def test_a_two_dimensional_image_is_shown_as_it_is():
    geometry = Geometry.regular((6, 4), (2.0, 3.0))
    view, array = view_of(geometry), np.arange(24).reshape(4, 6)
    assert np.array_equal(view.slice_of(array, view.planes[0]), array)
    assert view.planes[0].extent_mm(array.shape) == (0.0, 12.0, 12.0, 0.0)
    assert view.planes[0].edges == ()


def test_the_window_ignores_background_and_outliers(rng):
    array = np.zeros(100_000)
    array[:50_000] = rng.uniform(100, 200, 50_000)
    array[0] = 1e6
    low, high = window(Volume(array.reshape(250, 400), Geometry.regular((400, 250))))
    assert low == 0.0
    assert high == pytest.approx(199, abs=1)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_image_has_a_window_too(value):
    low, high = window(Volume(np.full((4, 4), value), Geometry.regular((4, 4))))
    assert low < value < high


# ---- quality


def test_nmi_is_two_for_equal_images_and_one_for_independent_ones(rng):
    image = rng.uniform(size=(300, 300))
    assert nmi(image, image) == pytest.approx(2.0)
    assert nmi(image, -3 * image + 1) == pytest.approx(2.0, abs=0.02)
    assert nmi(image, rng.uniform(size=(300, 300))) == pytest.approx(1.0, abs=0.01)


def test_ncc_is_pearson_and_nan_for_a_constant(rng):
    a, b = rng.normal(size=(2, 40, 40))
    assert ncc(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert math.isnan(ncc(a, np.ones_like(a)))


def pair(dimension: int = 2) -> tuple[Volume, Volume, Volume]:
    geometry = Geometry.regular((24, 20, 16)[:dimension], 1.5)
    fixed, moving = (ball(geometry, (shift,) * dimension, 7.0) for shift in (0.0, 4.0))
    return fixed, moving, fixed.with_array(fixed.array * 0.5)


def test_a_good_registration_passes_and_its_largest_displacement_is_in_mm():
    fixed, before, warped = pair()
    shift_vx = np.full((*fixed.geometry.shape, 2), 2.0)
    summary = quality_summary(fixed, before, warped, shift_vx)
    assert summary["verdict"] == "pass"
    assert summary["nmi_after"] > summary["nmi_before"]
    assert summary["largest_displacement_mm"] == pytest.approx(3.0 * np.sqrt(2))
    assert summary["folding_percent"] == 0.0


def test_a_registration_that_makes_it_worse_fails():
    fixed, before, warped = pair()
    summary = quality_summary(fixed, warped, before, np.zeros((*fixed.geometry.shape, 2)))
    assert summary["verdict"] == "fail"
    assert "NMI did not rise" in summary["reasons"]


def test_no_change_at_all_is_a_warning():
    fixed, before, _ = pair()
    assert quality_summary(fixed, before, before, np.zeros((*fixed.geometry.shape, 2)))["verdict"] == "warn"


@pytest.mark.parametrize(
    ("limits", "verdict"), [(QualityLimits(), "fail"), (QualityLimits(folding_fail_percent=50.0), "warn"), (QualityLimits(50.0, 60.0), "pass")]
)
def test_folding_is_judged_by_its_limits(limits, verdict):
    fixed, before, warped = pair()
    folded_vx = np.zeros((*fixed.geometry.shape, 2))
    folded_vx[5:15, 10, 0] = 3.0
    summary = quality_summary(fixed, before, warped, folded_vx, limits=limits)
    assert summary["verdict"] == verdict
    assert summary["folding_percent"] > 1.0


def test_a_constant_image_fails_with_its_reason():
    fixed, before, _ = pair()
    summary = quality_summary(
        fixed.with_array(np.zeros_like(fixed.array)), before, before.with_array(np.zeros_like(fixed.array)), np.zeros((*fixed.geometry.shape, 2))
    )
    assert summary["verdict"] == "fail"
    assert "single value" in summary["reasons"]


# ---- pictures


@pytest.mark.parametrize(("dimension", "panels"), [(2, 5), (3, 15)])
def test_before_and_after_shows_every_plane_in_every_panel(dimension, panels, tmp_path):
    figure = before_after(*pair(dimension), title="case 3")
    assert len(figure.axes) == panels
    assert [axis.get_title() for axis in figure.axes[:5]] == ["fixed", "moving", "warped", "checkerboard before", "checkerboard after"]
    assert "case 3" in numbers_in(figure)
    save(figure, tmp_path / "case.png")
    assert (tmp_path / "case.png").read_bytes().startswith(PNG)


def test_the_panels_show_the_samples_of_their_volume():
    fixed, before, warped = pair()
    figure = before_after(fixed, before, warped)
    for axis, volume in zip(figure.axes, (fixed, before, warped), strict=False):
        assert np.array_equal(axis.images[0].get_array(), volume.array)


def test_pixels_have_the_shape_of_their_spacing_and_all_panels_one_scale():
    geometry = Geometry.regular((20, 26, 10), (1.0, 1.0, 4.0))
    fixed = ball(geometry, (0, 0, 0), 6.0)
    figure = before_after(fixed, fixed, fixed)
    width, height = figure.get_size_inches()
    scales = set()
    for axis in figure.axes:
        box, (left, right, bottom, top) = axis.get_position(), axis.images[0].get_extent()
        scales |= {round(box.width * width / (right - left), 6), round(box.height * height / (bottom - top), 6)}
    assert len(scales) == 1
    # narrower planes stand in the middle of their column
    for column in range(5):
        middles = [axis.get_position().x0 + axis.get_position().width / 2 for axis in figure.axes[column::5]]
        assert middles == pytest.approx([middles[0]] * 3)
    assert tuple(figure.axes[5].images[0].get_extent()) == (0.0, 20.0, 40.0, 0.0)


def test_labels_add_a_panel_with_the_contours_of_both_maps():
    fixed, before, warped = pair()
    labels = fixed.with_array((fixed.array > 0).astype(np.uint8))
    with_one = before_after(fixed, before, warped, fixed_labels=labels)
    with_two = before_after(fixed, before, warped, fixed_labels=labels, warped_labels=labels)
    assert with_one.axes[-1].get_title() == "labels on warped"
    assert [len(figure.axes[-1].collections) for figure in (with_one, with_two)] == [1, 2]
    assert [len(figure.legends[0].get_texts()) for figure in (with_one, with_two)] == [1, 2]
    contour = with_one.axes[-1].collections[0].get_paths()[0].vertices
    # a circle of 7 mm about the middle of 24 x 20 pixels of 1.5 mm
    assert np.linalg.norm(contour - [18.0, 15.0], axis=1) == pytest.approx(7.0, abs=1.1)


def test_volumes_on_different_grids_are_refused():
    fixed, before, _ = pair()
    other = Volume(before.array[:-1], Geometry.regular((24, 19), 1.5), "other.nii")
    with pytest.raises(ConcordError, match=r"other\.nii: grid \(24, 19\)"):
        before_after(fixed, before, other)


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_quality_sheet_tells_numbers_and_verdict(dimension):
    fixed, before, warped = pair(dimension)
    summary = quality_summary(fixed, before, warped, np.zeros((*fixed.geometry.shape, dimension)))
    text = numbers_in(qc_picture(fixed, before, warped, summary=summary, title="b.nii on a.nii, mi"))
    assert "b.nii on a.nii, mi" in text
    assert f"NMI {summary['nmi_before']:.3f} → {summary['nmi_after']:.3f}" in text
    assert "folding 0 %" in text
    assert "PASS" in text


def test_long_titles_are_wrapped_and_make_the_sheet_taller():
    fixed, before, warped = pair()
    short, long = (before_after(fixed, before, warped, title=title) for title in ("a", "folder/" * 60))
    assert long.get_figheight() > short.get_figheight()
    assert max(len(line) for line in numbers_in(long).splitlines()) < 150


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_displacement_picture_shows_mm_and_marks_folds(dimension, tmp_path):
    geometry = Geometry.regular((24, 20, 16)[:dimension], 2.0)
    field_mm = np.zeros((*geometry.shape, dimension))
    middle = tuple(slice(n // 2 - 1, n // 2 + 2) for n in geometry.shape[:-1])
    field_mm[(*middle, 12, 0)] = 8.0
    figure = displacement_picture(field_mm, geometry, title="demons")
    # columns 12 to 13 fold: 12 jumps by four pixels over its right neighbour
    shown = figure.axes[0].images[0]
    assert (shown.get_array().max(), shown.get_clim()) == (8.0, (0.0, 8.0))
    marked = figure.axes[0].images[1].get_array()
    assert marked.count() == 3
    assert figure.axes[-1].get_ylabel() == "length of the displacement (mm)"
    assert "largest displacement 8.00 mm" in numbers_in(figure)
    assert "(red)" in numbers_in(figure)
    save(figure, tmp_path / "u.png")


def test_without_displacement_the_grid_is_regular_and_nothing_is_red():
    geometry = Geometry.regular((29, 29), 1.0)
    figure = displacement_picture(np.zeros((29, 29, 2)), geometry)
    lines = next(c for c in figure.axes[1].collections if isinstance(c, LineCollection)).get_segments()
    assert all(np.ptp(line, axis=0).min() == 0 for line in lines)
    assert len(figure.axes[0].images) == 1
    assert "0 % of all voxels folded" in numbers_in(figure)


def test_grid_lines_lie_where_the_transform_takes_them():
    geometry = Geometry.regular((29, 29), 1.0)
    shift = np.broadcast_to([2.0, -1.0], (29, 29, 2))
    lines = displacement_picture(shift, geometry).axes[1].collections[0].get_segments()
    # the first line is the top row of pixel centres, half a pixel from the border, moved by (2, -1)
    assert lines[0][0] == pytest.approx([2.5, -0.5])


def test_a_learning_curve_marks_the_kept_weights_and_a_trace_has_a_line_a_level():
    from pipeline.figures.curves import learning_curve, run_trace

    curve = pd.DataFrame({"step": [1, 2, 3], "train_loss": [1.0, 0.5, 0.4], "train_accuracy": [0.5, 0.7, 0.8]})
    both = curve.assign(validation_loss=[1.0, 0.3, 0.6], validation_accuracy=[0.5, 0.9, 0.8])
    loss, accuracy = learning_curve(both, title="fit").axes
    marked = [line for axis in (loss, accuracy) for line in axis.lines if line.get_label() == "kept weights"]
    assert [tuple(np.ravel(line.get_data())) for line in marked] == [(2.0, 0.3), (2.0, 0.9)]
    assert len(learning_curve(curve, title="fit").axes[0].lines) == 1
    epochs = pd.DataFrame({"epoch": [1, 2], "train_loss": [9.0, 4.0], "validation_loss": [8.0, 5.0], "validation_sre_mm": [6.0, 5.0]})
    averaged = epochs.assign(validation_average_sre_mm=[4.0, 4.5], validation_start_sre_mm=[8.0, 8.0])
    for table, kept in ((epochs, 2.0), (averaged, 1.0)):
        second = learning_curve(table, title="fit").axes[1]
        assert second.get_ylabel() == "surface registration error (mm)"
        assert [line.get_xdata()[0] for line in second.lines if line.get_label() == "kept weights"] == [kept]
    fields = pd.DataFrame({"epoch": [1, 2, 3, 4], "train_loss": [9.0, 5.0, 4.0, 3.0], "validation_loss": [np.nan, 4.0, np.nan, 6.0]})
    fields = fields.assign(validation_dice=[np.nan, 0.8, np.nan, 0.7], validation_start_dice=[np.nan, 0.5, np.nan, 0.5])
    loss, dice = learning_curve(fields, title="fit").axes
    assert dice.get_ylabel() == "Dice"
    # the last weights are kept, and points that are epochs apart are joined
    assert [line.get_xdata()[0] for line in dice.lines if line.get_label() == "kept weights"] == [4.0]
    assert [line.get_xdata().tolist() for line in dice.lines if line.get_label().startswith("validation")] == [[2, 4], [2, 4]]
    assert {text.get_text() for text in dice.get_legend().get_texts()} == {"train", "validation", "validation, starting positions", "kept weights"}
    rows = [
        {"stage": s, "level": v, "iteration": i, "value": 1.0 / (i + 1), "step_mm": 0.1, "gradient_norm": 1.0, "seconds": 0.01}
        for s in ("rigid", "bspline")
        for v in (0, 1)
        for i in range(3)
    ]
    figure = run_trace(pd.DataFrame(rows), title="run")
    assert [len(axis.lines) for axis in figure.axes] == [4, 4, 4, 4]
    assert figure.axes[0].lines[-1].get_xdata().tolist() == [10, 11, 12]
    assert all(axis.get_ylabel() for axis in figure.axes)
