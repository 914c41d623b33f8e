"""The figure of deformations: the right case, its images and numbers, one scale for all rows, folds in red."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from field_examples import pair_arrays

from pipeline.cases import Case
from pipeline.config import DeformationSettings
from pipeline.errors import ConcordError
from pipeline.figures.deformation import Deformation, deformation_figure, draw_deformations, middle_case
from pipeline.figures.pictures import FOLD_COLOUR
from pipeline.statistics import SCORE_COLUMNS
from pipeline.transform_files import write_transform
from pipeline.transforms import Linear
from pipeline.volumes import Geometry, Volume, write_volume

GRID = Geometry.regular((12, 10), (1.5, 2.0))
SIZE = (40, 32)


def row(name: str, length_mm: float, grid: Geometry = GRID, fold: tuple[int, ...] | None = None) -> Deformation:
    """A displacement along x, the same everywhere."""
    image = Volume(np.indices(grid.shape).sum(0).astype(np.float32), grid)
    displacement_mm, folded = np.zeros((*grid.shape, grid.dimension)), np.zeros(grid.shape, bool)
    displacement_mm[..., 0] = length_mm
    if fold is not None:
        folded[fold] = True
    warped = image.with_array(2 * image.array)
    return Deformation(name, (image, image.with_array(-image.array), warped), displacement_mm, folded)


def panel(figure, name: str):
    return next(axis for axis in figure.axes if axis.get_label() == name)


def test_a_row_a_method_with_its_images_and_one_scale_of_lengths():
    figure = draw_deformations([row("one", 3.0), row("two", 6.0)], header=["title", "numbers"])
    for name, length in (("one", 3.0), ("two", 6.0)):
        shown = panel(figure, f"displacement {name}").images[0]
        assert np.asarray(shown.get_array()) == pytest.approx(np.full(GRID.shape, length))
        assert shown.get_clim() == (0.0, 6.0)
        moving, warped = (panel(figure, f"{what} {name}").images[0] for what in ("moving", "warped"))
        assert np.asarray(moving.get_array())[0, 3] == -3 and np.asarray(warped.get_array())[0, 3] == 6
        assert moving.get_clim() == warped.get_clim()
    assert panel(figure, "colour bar").get_ylabel() == "length of the displacement (mm)"
    assert {"title", "numbers", "one", "two"} <= {text.get_text() for text in figure.texts}


def test_grid_lines_are_moved_in_mm_and_folds_are_red():
    figure = draw_deformations([row("one", 3.0, fold=(4, 5))], header=["title"])
    lines = panel(figure, "deformed grid one").collections[0].get_segments()
    assert lines[0][0] == pytest.approx([3.75, 1.0])  # the middle of the first pixel of 1.5 x 2 mm, 3 mm to the right
    marked = panel(figure, "deformed grid one").lines[-1]
    assert np.ravel(marked.get_data()) == pytest.approx([1.5 * 5.5 + 3, 9.0]) and marked.get_color() == FOLD_COLOUR
    over = np.ma.getmaskarray(panel(figure, "displacement one").images[1].get_array())
    assert np.argwhere(~over).tolist() == [[4, 5]]


def test_of_a_volume_the_middle_axial_slice_is_shown_and_the_whole_length():
    grid = Geometry.regular((8, 6, 5))
    shown = row("one", 3.0, grid, fold=(2, 1, 1))
    shown.displacement_mm[2, ..., 2] = 4.0
    figure = draw_deformations([shown], header=["title"])
    length = panel(figure, "displacement one")
    assert np.asarray(length.images[0].get_array()) == pytest.approx(np.full((6, 8), 5.0))
    assert len(length.images) == 2  # the fold lies in that slice
    assert panel(figure, "deformed grid one").collections[0].get_segments()[0][0] == pytest.approx([3.5, 0.5])
    assert len(panel(draw_deformations([row("one", 3.0, grid, fold=(1, 1, 1))], header=["t"]), "displacement one").images) == 1


def scores_of(values: dict[str, list[float]]) -> pd.DataFrame:
    """Two structures a case, whose mean is the value."""
    rows = [
        ("toy", method, 0, f"s{i}", f"c{i}", "", structure, "dice", value + shift, "")
        for method, listed in values.items()
        for i, value in enumerate(listed)
        for structure, shift in (("1", 0.05), ("2", -0.05))
    ]
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def test_the_middle_case_is_the_median_of_the_methods_means_among_those_that_all_have():
    scores = scores_of({"a": [0.5, 0.9, 0.1, 0.6, 0.75], "b": [0.9, 0.9, 0.1, 0.5]})
    # means .7 .9 .1 .55, the last case is not of both: of four the lower one in the middle
    assert middle_case(scores, ["a", "b"], "dice") == "c3"
    assert middle_case(scores, ["a"], "dice") == "c3"
    assert middle_case(scores, ["b"], "dice") == "c3"
    with pytest.raises(ConcordError, match="no case has scores of all of a, c"):
        middle_case(scores, ["a", "c"], "dice")


@pytest.fixture
def study(tmp_path: Path) -> dict:
    """Three cases and the results of two methods: shifts by whole pixels, and one that turns the image over."""
    grid, cases = Geometry.regular(SIZE, (1.5, 2.0)), []
    for number in range(3):
        images, labels = pair_arrays(number, SIZE)
        arrays = {"fixed": images[0], "moving": images[1], "fixed_labels": labels[0], "moving_labels": labels[1]}
        files = {name: tmp_path / f"{number}-{name}.mha" for name in arrays}
        for name, array in arrays.items():
            write_volume(Volume(array, grid), files[name])
        cases.append(Case(case=f"c{number}", subject=f"s{number}", **files))
    write_transform(Linear(np.eye(2), np.array([3.0, 0.0]), "translation"), tmp_path / "shift.h5")
    write_transform(Linear(np.diag([-1.0, 1.0]), np.zeros(2), "affine"), tmp_path / "flip.h5")
    manifests = {
        name: pd.DataFrame({"case": ["c0", "c1", "c2"], "status": ["done", "done", "failed"], "transform": [tmp_path / f"{name}.h5"] * 2 + [None]})
        for name in ("shift", "flip")
    }
    return {"cases": cases, "scores": scores_of({"shift": [0.4, 0.6], "flip": [0.5, 0.7]}), "manifests": manifests}


def drawn(study: dict, **settings):
    chosen = DeformationSettings(**{"title": "One pair", "methods": ["shift", "flip"]} | settings)
    return deformation_figure(chosen, study["cases"], study["scores"], study["manifests"], measures=["seconds", "dice"], source="rings, scale smoke")


def test_the_figure_from_files_shows_the_surroundings_of_the_labels_and_tells_numbers_of_the_whole(study):
    figure = drawn(study)
    told = [text.get_text() for text in figure.texts]
    assert told[-4:] == [
        "One pair",
        "case c0, rings, scale smoke",
        "shift: Dice 0.400, displacement up to 3.0 mm, mean 3.0 mm; no voxel folded",
        "flip: Dice 0.500, displacement up to 58.5 mm, mean 30.0 mm; 100 % of the voxels folded (red)",
    ]
    fixed = np.asarray(panel(figure, "fixed (reference) shift").images[0].get_array())
    rows, columns = (np.flatnonzero(pair_arrays(0, SIZE)[1][0].any(axis)) for axis in (1, 0))
    # half of the box's size more on each side
    assert fixed.shape == pytest.approx((2 * (np.ptp(rows) + 1), 2 * (np.ptp(columns) + 1)), abs=1)
    flipped = panel(figure, "displacement flip")
    first = int(np.floor(columns[0] - (np.ptp(columns) + 1) / 2))
    x_mm = 1.5 * (np.arange(SIZE[0]) - (SIZE[0] - 1) / 2)
    assert np.asarray(flipped.images[0].get_array())[0] == pytest.approx(2 * np.abs(x_mm)[first : first + fixed.shape[1]])
    assert len(flipped.images) == 2 and len(panel(figure, "displacement shift").images) == 1
    # the same part of all: warped by two pixels, the moving image's own samples
    moving, warped = (np.asarray(panel(figure, f"{what} shift").images[0].get_array()) for what in ("moving", "warped"))
    assert warped[:, :-2] == pytest.approx(moving[:, 2:], abs=1e-5)


def test_a_case_that_is_named_is_taken_and_one_without_labels_is_shown_whole(study):
    study["cases"] = [case.model_copy(update={"fixed_labels": None, "moving_labels": None}) for case in study["cases"]]
    figure = drawn(study, case="c1")
    assert "case c1, rings, scale smoke" in [text.get_text() for text in figure.texts]
    assert np.asarray(panel(figure, "fixed (reference) shift").images[0].get_array()).shape == SIZE[::-1]


def test_a_case_that_is_not_there_or_failed_is_told(study):
    with pytest.raises(ConcordError, match="no test case 'c5'"):
        drawn(study, case="c5")
    with pytest.raises(ConcordError, match="shift has not registered case 'c2'"):
        drawn(study, case="c2")


def test_structures_are_outlined_on_the_fixed_image_and_the_counterpart_is_warped_where_asked_for(study, tmp_path):
    assert not any(axis.get_label().startswith("structures") for axis in drawn(study).axes)
    grid, counter = Geometry.regular(SIZE, (1.5, 2.0)), tmp_path / "counterpart.mha"
    write_volume(Volume(np.indices(SIZE[::-1])[1].astype(np.float32), grid), counter)
    study["cases"] = [case.model_copy(update={"moving_counterpart": counter}) for case in study["cases"]]
    figure = drawn(study, structures=True, image="counterpart")
    shown, fixed = (panel(figure, f"{name} shift") for name in ("structures", "fixed (reference)"))
    assert np.array_equal(np.asarray(shown.images[0].get_array()), np.asarray(fixed.images[0].get_array()))
    assert len(shown.collections) == 4  # two structures of either image
    moving, warped = (np.asarray(panel(figure, f"{what} shift").images[0].get_array()) for what in ("moving", "warped"))
    assert np.ptp(moving, axis=0).max() == 0 and warped[:, :-2] == pytest.approx(moving[:, 2:], abs=1e-5)  # a ramp, two pixels further
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fixed labels", "warped labels"]
    study["cases"] = [case.model_copy(update={"moving_counterpart": None}) for case in study["cases"]]
    with pytest.raises(ConcordError, match="case c0 has no moving_counterpart; choose image: moving"):
        drawn(study, image="counterpart")
