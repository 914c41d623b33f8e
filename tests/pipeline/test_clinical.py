"""Clinical read-outs: volumes, ejection fraction and limits of agreement worked out by hand, and what cannot be read out is told."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from pipeline.cases import Case, write_cases
from pipeline.clinical import ClinicalSettings, agreement, clinical_grid, read_outs, write_read_outs
from pipeline.errors import ConcordError
from pipeline.figures.bland_altman import bland_altman
from pipeline.measures import Scored, measure_rows
from pipeline.scoring import COLUMNS
from pipeline.stages import stage
from pipeline.tables import TableContext
from pipeline.transform_files import write_transform
from pipeline.transforms import Linear
from pipeline.volumes import Geometry, Volume, write_volume

CONTEXT = TableContext("heart", "toy", "smoke", ("identity", "net"))
SETTINGS = ClinicalSettings(title="Volumes", methods=["identity", "net"])
# fixed, moving and warped volumes (ml) of cavity and myocardium, a slice each
ANNA = [((20, 60, 30), (40, 30, 36)), ((10, 40, 10), (20, 20, 24))]  # ESV 30 and 40, EDV 100; myocardium 60 and 60
BERT = [((50, 80, 40), (70, 60, 61))]  # ESV 50 and 40, EDV 80; myocardium 70 and 61


def case_of(subject: str, z: int, **changes) -> Case:
    phases = {"fixed_phase": "ES", "moving_phase": "ED", "slice_spacing_mm": 8.0} | changes
    name = f"{subject}_{phases['fixed_phase']}-{phases['moving_phase']}_z{z:02d}"
    return Case(case=name, fixed="f.mha", moving="m.mha", subject=subject, **phases)


def rows_of(method: str, subject: str, slices: list) -> list[tuple]:
    head = [("toy", method, None, subject, case_of(subject, z).case, "") for z in range(len(slices))]
    return [
        (*head[z], label, f"{which}_volume_ml", float(value), "ml")
        for z, structures in enumerate(slices)
        for label, values in zip(("3", "2"), structures, strict=True)
        for which, value in zip(("fixed", "moving", "warped"), values, strict=True)
    ]


CASES = [case_of("anna", 0), case_of("anna", 1), case_of("bert", 0), case_of("anna", 0, fixed_phase="ED", moving_phase="ES")]
UNMOVED = [rows_of("identity", name, [tuple((f, m, m) for f, m, _ in s) for s in slices]) for name, slices in (("anna", ANNA), ("bert", BERT))]
SCORES = pd.DataFrame([*rows_of("net", "anna", ANNA), *rows_of("net", "bert", BERT), *sum(UNMOVED, [])], columns=list(COLUMNS))


def value(table: pd.DataFrame, quantity: str, column: str, **where) -> float:
    for name, wanted in {"quantity": quantity, **where}.items():
        table = table[table[name] == wanted]
    return table[column].item()


# ---- volumes of label maps


@pytest.fixture
def slices(tmp_path) -> Case:
    """A 2-D case of 2 x 3 mm pixels: 12 pixels of label 3 at ES, 20 at ED, label 2 at ED only; the truth shifts by two pixels."""
    grid = Geometry.regular((12, 10), (2.0, 3.0))
    fixed, moving = np.zeros((2, 10, 12), np.uint8)
    fixed[2:5, 3:7], moving[2:6, 1:6], moving[8, 8:] = 3, 3, 2
    arrays = {"fixed": fixed, "moving": moving, "fixed_labels": fixed, "moving_labels": moving}
    for name, array in arrays.items():
        write_volume(Volume(array, grid), tmp_path / f"{name}.mha")
    write_transform(Linear(np.eye(2), [4.0, 0.0], "translation"), tmp_path / "found.h5")
    return Case(case="a", subject="s", slice_spacing_mm=5.0, **{name: tmp_path / f"{name}.mha" for name in arrays})


def volumes_of(case: Case, which: str) -> dict[str, float]:
    return {row[0]: row[2] for row in measure_rows(f"{which}_volume_ml", Scored(case, case.fixed.parent / "found.h5"))}


def test_a_slices_volume_is_its_area_times_the_distance_of_slices(slices):
    voxel_ml = 2 * 3 * 5 / 1000
    assert volumes_of(slices, "fixed") == pytest.approx({"3": 12 * voxel_ml, "2": 0})  # what is not there has no volume, and says so
    assert volumes_of(slices, "moving") == pytest.approx({"3": 20 * voxel_ml, "2": 4 * voxel_ml})
    # seen from x the moving point is two pixels to the right: columns 1 to 5 come to -1 to 3, of which 0 to 3 are inside
    assert volumes_of(slices, "warped") == pytest.approx({"3": 16 * voxel_ml, "2": 4 * voxel_ml})


def test_a_slice_whose_distance_is_not_known_has_no_volume(slices):
    assert volumes_of(slices.model_copy(update={"slice_spacing_mm": None}), "fixed") == {}


def test_a_volume_needs_no_distance_of_slices(tmp_path):
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[1:, 1, 1:] = 3
    write_volume(Volume(labels, Geometry.regular((5, 4, 3), (1.0, 2.0, 4.0))), tmp_path / "a.mha")
    write_transform(Linear(np.eye(3), [0.0, 0, 0], "translation"), tmp_path / "found.h5")
    names = ("fixed", "moving", "fixed_labels", "moving_labels")
    case = Case(case="a", subject="s", **dict.fromkeys(names, tmp_path / "a.mha"))
    assert volumes_of(case, "warped") == pytest.approx({"3": 8 * 8 / 1000})


# ---- read-outs


def test_volumes_and_ejection_fraction_are_those_worked_out_by_hand():
    found = read_outs(SETTINGS, SCORES, CASES)
    assert found.left_out == ()
    anna, bert = {"method": "net", "subject": "anna"}, {"method": "net", "subject": "bert"}
    assert [value(found.values, "esv_ml", name, **anna) for name in ("edv_ml", "reference", "found")] == [100, 30, 40]
    assert [value(found.values, "ef_percent", name, **anna) for name in ("reference", "found")] == pytest.approx([70, 60])
    assert [value(found.values, "myocardium_ml", name, **anna) for name in ("reference", "found", "slices")] == [60, 60, 2]
    assert [value(found.values, "ef_percent", name, **bert) for name in ("reference", "found")] == pytest.approx([37.5, 50])
    # nothing is ejected where the map of end-diastole is left as it is
    assert value(found.values, "ef_percent", "found", method="identity", subject="anna") == 0
    assert list(dict.fromkeys(found.values["method"])) == ["identity", "net"]


def test_bias_and_limits_agree_with_their_formulas():
    table = agreement(read_outs(SETTINGS, SCORES, CASES).values)
    errors = {"esv_ml": np.array([10.0, -10]), "ef_percent": np.array([-10, 12.5]), "myocardium_ml": np.array([0.0, -9])}
    for quantity, error in errors.items():
        sd = abs(error[0] - error[1]) / np.sqrt(2)  # of two values, n - 1
        bias = error.sum() / 2
        expected = [2, bias, sd, bias - 1.96 * sd, bias + 1.96 * sd, np.abs(error).sum() / 2]
        names = ("n", "bias", "sd", "lower", "upper", "mean_absolute_error")
        assert [value(table, quantity, name, method="net") for name in names] == pytest.approx(expected)


def test_only_test_cases_from_diastole_to_systole_count():
    others = [case_of("carl", 0, fixed_phase="ED", moving_phase="ES"), case_of("dora", 0, split="train")]
    pd.testing.assert_frame_equal(read_outs(SETTINGS, SCORES, [*CASES, *others]).values, read_outs(SETTINGS, SCORES, CASES).values)


def test_a_subject_with_a_slice_missing_is_left_out_of_that_method_and_named():
    lacking = SCORES[(SCORES["method"] != "net") | (SCORES["case"] != "anna_ES-ED_z01")]
    found = read_outs(SETTINGS, lacking, CASES)
    assert found.left_out == (("net", "anna (1 of 2 slices)"),)
    assert agreement(found.values).query("method == 'net'")["n"].tolist() == [1, 1, 1]
    grid = clinical_grid(SETTINGS, found, CONTEXT)
    assert "Left out: net anna (1 of 2 slices)." in grid.caption
    assert [cell.text for cell in grid.rows[1][:5]] == ["net", "1", "-10.0", "–", "10.0"]  # one subject has no spread


def test_a_structure_that_a_slice_has_not_counts_as_nothing():
    apex = (SCORES["case"] == "anna_ES-ED_z01") & (SCORES["structure"] == "2")
    found = read_outs(SETTINGS, SCORES[~apex], CASES)
    assert value(found.values, "myocardium_ml", "reference", method="net", subject="anna") == 40
    assert found.left_out == ()


@pytest.mark.parametrize(
    ("scores", "cases", "changes", "told"),
    [
        (SCORES, CASES[3:], {}, "none of 1 test cases has fixed_phase ES and moving_phase ED; expected a dataset with `direction: es-ed`"),
        (SCORES[SCORES["metric"] != "moving_volume_ml"], CASES, {}, "no scores of moving_volume_ml; expected them among the study's measures"),
        (SCORES.assign(value=np.nan), CASES, {}, "no scores of fixed_volume_ml, moving_volume_ml, warped_volume_ml; .* `slice_spacing_mm`"),
        (SCORES, CASES, {"cavity": 5}, "no method has all slices of a subject and label 5 in them; expected the cavity's label as `cavity`"),
    ],
)
def test_what_cannot_be_read_out_is_told_in_one_line(scores, cases, changes, told):
    with pytest.raises(ConcordError, match=told) as caught:
        read_outs(SETTINGS.model_copy(update=changes), scores, cases)
    assert "\n" not in str(caught.value)


# ---- table and figure


def test_the_table_has_a_row_a_method_and_bold_is_the_smallest_error_of_those_that_are_ranked():
    settings = ClinicalSettings(title="Volumes", methods=["identity", "net", "gone"], labels={"net": "Network"})
    rows = {row[0].text: row for row in clinical_grid(settings, read_outs(settings, SCORES, CASES), CONTEXT).rows}
    assert [cell.text for cell in rows["Network"][1:5]] == ["2", "0.0 ± 14.1", "-27.7 to 27.7", "10.0"]
    assert [cell.text for cell in rows["gone"][1:3]] == ["0", "–"]
    assert [cell.bold for cell in rows["Network"]].count(True) == 3
    assert not any(cell.bold for name in ("identity", "gone") for cell in rows[name])


def test_everything_is_written_and_numbers_come_back(tmp_path):
    found = read_outs(SETTINGS, SCORES, CASES)
    write_read_outs(SETTINGS, found, CONTEXT, tmp_path / "t")
    assert {path.name for path in tmp_path.iterdir()} == {"t.csv", "t-subjects.csv", "t.md", "t.tex", "t.html"}
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv").iloc[:, 3:], agreement(found.values), check_dtype=False)
    assert "3 slices of 2 subjects" in (tmp_path / "t.md").read_text()


def test_the_plot_shows_means_across_differences_up_bias_and_limits():
    settings = SETTINGS.model_copy(update={"drawn": ("net",)})
    figure = bland_altman(settings, read_outs(settings, SCORES, CASES).values, study_methods=["identity", "net"])
    assert len(figure.axes) == 3  # a row a quantity, one method
    axis = figure.axes[0]
    assert sorted(map(tuple, axis.collections[0].get_offsets().tolist())) == [(35, 10), (45, -10)]
    heights = sorted(line.get_ydata()[0] for line in axis.lines)
    sd = 20 / np.sqrt(2)
    assert heights == pytest.approx([-1.96 * sd, 0, 0, 1.96 * sd])
    low, high = axis.get_ylim()
    assert low < heights[0] < heights[-1] < high
    assert "ml" in axis.get_ylabel() and "ml" in axis.get_xlabel() and "% points" in figure.axes[1].get_ylabel()


def test_the_step_of_the_workflow_writes_tables_and_figure(tmp_path):
    SCORES.to_csv(tmp_path / "scores.csv", index=False)
    write_cases(CASES, tmp_path / "cases.csv")
    from pipeline import figure_stages  # noqa: F401  (adds the steps that draw)

    options = [
        "--settings",
        SETTINGS.model_dump_json(),
        "--study",
        "heart",
        "--dataset",
        "toy",
        "--scale",
        "smoke",
        "--methods",
        '["identity", "net"]',
    ]
    files = ["--scores", str(tmp_path / "scores.csv"), "--cases", str(tmp_path / "cases.csv"), "--out", str(tmp_path / "out" / "t")]
    done = CliRunner().invoke(stage, ["clinical", *options, *files], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".csv", ".md", ".tex", ".html", ".png", ".svg"}
