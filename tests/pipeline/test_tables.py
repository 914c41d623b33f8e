"""Tables: numbers by hand, bold and marks, published figures beside ours, what is missing, and the four formats."""

from __future__ import annotations

import html.parser
import math
import subprocess
import sys
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import ConcordError
from pipeline.measures import MEASURES
from pipeline.prepare import Exclusion
from pipeline.statistics import COMPARISON_COLUMNS, SCORE_COLUMNS, TESTS, compare
from pipeline.table_formats import DASH, Cell, Grid, Heading, number, p_value, to_html, to_latex, to_markdown
from pipeline.table_settings import STYLES, TEST_LABELS, TableSettings, TestName
from pipeline.tables import TableContext, build_table, sample_values, write_comparisons, write_failures, write_table

CONTEXT = TableContext(study="toy", dataset="blobs", scale="smoke", methods=("identity", "old", "new"))


def scores_of(values: dict[str, list[float]], metric: str = "dice", structure: str = "") -> pd.DataFrame:
    """One registration a value: two cases a subject."""
    rows = [
        ("toy", method, 0, f"s{i // 2}", f"c{i}", "", structure, metric, value, "")
        for method, listed in values.items()
        for i, value in enumerate(listed)
    ]
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


SCORES = scores_of({"identity": [0.1, 0.2, 0.3, 0.4], "old": [0.5, 0.6, 0.7, 0.8], "new": [0.6, 0.7, 0.8, 0.9]})


def comparison(method: str, difference: float, p_holm: float, **more) -> dict:
    row = dict.fromkeys(COMPARISON_COLUMNS, math.nan) | {"metric": "dice", "method": method, "reference": "old", "test": "wilcoxon"}
    return row | {"unit_paired": "subject", "n": 8, "mean_difference": difference, "p": p_holm / 2, "p_holm": p_holm, "note": ""} | more


def table_of(scores=SCORES, comparisons=None, context=CONTEXT, **settings):
    given_settings = {"title": "Overlap", "rows": ["identity", "old", "new"], "columns": ["dice"]} | settings
    frame = None if comparisons is None else pd.DataFrame(comparisons, columns=list(COMPARISON_COLUMNS))
    return build_table(TableSettings(**given_settings), scores, frame, context)


def column(table, index: int = 1) -> list[Cell]:
    return [row[index] for row in table.grid.rows]


def caption(table) -> str:
    return " ".join(table.grid.caption)


# ---- numbers


def test_mean_and_standard_deviation_are_those_worked_out_by_hand():
    # .1 .2 .3 .4: mean .25, squared deviations .0225 .0025 .0025 .0225, sum .05, / 3, root .1291
    assert column(table_of())[0].text == "0.250 ± 0.129"


def test_median_and_quartiles_are_those_worked_out_by_hand():
    assert column(table_of(statistic="median [IQR]", columns=[{"metric": "dice", "digits": 4}]))[0].text == "0.2500 [0.1750–0.3250]"


def test_structures_are_averaged_within_a_registration_before_the_deviation_is_taken():
    both = pd.concat([scores_of({"old": [0.2, 0.8]}, structure="1"), scores_of({"old": [0.8, 0.2]}, structure="2")])
    assert column(table_of(both, rows=["old"]))[0].text == "0.500 ± 0.000"


def test_a_column_of_one_structure_takes_that_structure_only():
    both = pd.concat([scores_of({"old": [0.2, 0.8]}, structure="1"), scores_of({"old": [0.8, 0.4]}, structure="2")])
    table = table_of(both, rows=["old"], columns=[{"metric": "dice", "structure": "2", "label": "Dice, LV"}])
    assert column(table)[0].text.startswith("0.600")
    assert table.grid.headings[-1].text == "Dice, LV"


def test_two_starts_of_a_case_are_two_registrations():
    scores = pd.concat([scores_of({"old": [0.2, 0.4]}).assign(start=start) for start in ("0", "1")])
    assert table_of(scores, rows=["old"]).rows[0][0].n == 4
    assert "4 registrations of 2 cases from 1 subject" in caption(table_of(scores, rows=["old"]))


def test_folds_that_share_a_registration_are_averaged_not_counted_twice():
    scores = pd.concat([scores_of({"old": [0.2, 0.4]}).assign(fold=fold) for fold in (0, 1)])
    assert table_of(scores, rows=["old"]).rows[0][0].n == 2


@pytest.mark.parametrize("missing", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_left_out_and_the_caption_says_so(missing):
    table = table_of(scores_of({"old": [0.2, missing, 0.4], "new": [0.1, 0.2, 0.3]}), rows=["old", "new"])
    assert column(table)[0].text == "0.300 ± 0.141"
    assert "old: Dice over 2 of 3" in caption(table)


def test_one_registration_has_a_mean_and_no_deviation():
    assert column(table_of(scores_of({"old": [0.25]}), rows=["old"]))[0].text == "0.250"


def test_equal_values_have_no_residue_of_rounding_for_a_deviation():
    assert column(table_of(scores_of({"old": [0.1] * 30}), rows=["old"]))[0].text == "0.100 ± 0.000"


def test_percent_is_shown_in_percent_and_written_to_the_csv_unscaled(tmp_path):
    table = table_of(scores_of({"old": [0.01, 0.03]}, "folding"), rows=["old"], columns=["folding"])
    write_table(table, tmp_path / "t")
    assert table.grid.headings[-1].text == "Folding (%)"
    assert column(table)[0].text == "2.000 ± 1.414"
    assert pd.read_csv(tmp_path / "t.csv")["mean"].item() == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.6649, "0.665"), (0.0, "0.000"), (3.2e-6, "3.2e-6"), (-1.25e-12, "-1.2e-12"), (math.nan, DASH), (math.inf, DASH), (1234.5678, "1234.568")],
)
def test_a_number_keeps_its_decimals_unless_it_would_vanish(value, text):
    assert number(value, 3) == text


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(0, 6))
def test_a_printed_number_is_never_zero_for_a_value_that_is_not(value, digits):
    printed = float(number(value, digits).replace(",", ""))
    assert (printed == 0) == (value == 0)
    assert printed == pytest.approx(value, rel=0.06, abs=10.0**-digits)


def test_small_p_values_are_given_as_a_bound():
    assert [p_value(p) for p in (0.0004, 0.001, 0.0449, 1.0, math.nan)] == ["< 0.001", "0.001", "0.045", "1.000", DASH]


@pytest.mark.parametrize(
    ("statistic", "text"),
    [("mean (variance)", "2.500 (1.667)"), ("median", "2.500"), ("mean ± SD", "2.500 ± 1.291"), ("median [IQR]", "2.500 [1.750–3.250]")],
)
def test_a_column_may_have_a_statistic_of_its_own(statistic, text):
    # .01 .02 .03 .04 in percent: squared deviations 2.25 .25 .25 2.25, sum 5, / 3
    scores = pd.concat([SCORES, scores_of({"old": [0.01, 0.02, 0.03, 0.04]}, "folding")])
    table = table_of(scores, rows=["old"], columns=["dice", {"metric": "folding", "statistic": statistic}])
    assert column(table, 2)[0].text == text
    assert column(table)[0].text == "0.650 ± 0.129"


def test_the_caption_names_the_statistic_of_every_column_where_they_differ():
    columns = ["dice", {"metric": "folding", "statistic": "mean (variance)"}, {"metric": "dice", "start": "far"}]
    assert "over registrations: median of Dice, Dice, from far; mean (variance) of Folding; structures" in caption(
        table_of(columns=columns, statistic="median")
    )


def test_bold_follows_the_statistic_of_the_column():
    scores = scores_of({"old": [0.5, 0.5, 0.5, 0.5], "new": [0.1, 0.6, 0.6, 0.1]})
    scores.loc[4:, "value"] = [0.1, 0.6, 0.6, 0.6]
    table = table_of(scores, rows=["old", "new"], columns=["dice", {"metric": "dice", "statistic": "median"}])
    assert [[entry.best for entry in row] for row in table.rows] == [[True, False], [False, True]]


# ---- parts


def in_groups() -> pd.DataFrame:
    """Cases c0 and c1 of group A, c2 and c3 of group B; c0 and c2 at the base."""
    return SCORES.assign(
        group=SCORES["case"].map({"c0": "A", "c1": "A", "c2": "B", "c3": "B"}), level=SCORES["case"].map({"c0": "base", "c2": "base"}).fillna("apex")
    )


def test_columns_of_a_group_and_of_a_level_take_these_cases_only_and_say_how_many():
    columns = [
        {"metric": "dice", "group": "B"},
        {"metric": "dice", "level": "base"},
        {"metric": "dice", "group": "A", "level": "apex", "label": "A apex"},
    ]
    table = table_of(in_groups(), columns=columns)
    assert [entry.statistics["mean"] for entry in table.rows[0]] == pytest.approx([0.35, 0.2, 0.2])
    assert [heading.text for heading in table.grid.headings] == ["Method", "Dice, group B", "Dice, base", "A apex"]
    assert "Registrations: Dice, group B 2, Dice, base 2, A apex 1." in caption(table)
    assert "thirds of a subject's labelled slices" in caption(table)
    assert "no finite value" not in caption(table)


def test_a_value_missing_from_a_group_is_counted_among_that_group():
    scores = in_groups()
    scores.loc[scores["method"].eq("new") & scores["case"].eq("c3"), "value"] = math.nan
    assert "new: Dice, group B over 1 of 2" in caption(table_of(scores, columns=[{"metric": "dice", "group": "B"}]))


def test_columns_of_a_part_are_not_marked_by_a_test_over_all():
    columns = [{"metric": "dice", "group": "B"}, {"metric": "dice", "level": "base"}, "dice"]
    table = table_of(in_groups(), [comparison("new", 0.1, 0.001)], columns=columns, reference="old")
    assert [cell.mark for cell in table.grid.rows[2]] == ["", "", "", "*"]
    assert "tested: Dice." in caption(table)


def test_a_part_has_a_published_figure_of_its_own_and_is_named_in_the_csv(tmp_path):
    columns = [{"metric": "dice", "structure": "1", "group": "B", "level": "base"}]
    scores = in_groups().assign(structure="1")
    table = table_of(scores, columns=columns, published={"new": {"dice:1/B/base": "0.9"}})
    assert table.grid.rows[2][2].text == "0.9"
    write_table(table, tmp_path / "t")
    assert pd.read_csv(tmp_path / "t.csv")[["structure", "group", "level"]].iloc[0].tolist() == [1, "B", "base"]


def test_a_part_of_scores_without_their_cases_is_refused():
    with pytest.raises(ConcordError, match="column dice/B by group, and the scores have none; give the table of cases"):
        table_of(columns=[{"metric": "dice", "group": "B"}])


# ---- bold


def test_the_highest_dice_is_bold_and_nothing_else():
    assert [cell.bold for cell in column(table_of())] == [False, False, True]


def test_the_lowest_distance_is_bold():
    scores = scores_of({"old": [1.0, 2.0], "new": [3.0, 4.0]}, "hd95_mm")
    assert [cell.bold for cell in column(table_of(scores, rows=["old", "new"], columns=["hd95_mm"]))] == [True, False]


def test_a_column_can_turn_the_direction_round_or_have_none():
    lower = table_of(columns=[{"metric": "dice", "better": "lower"}])
    neither = table_of(columns=[{"metric": "dice", "better": "neither"}])
    assert [cell.bold for cell in column(lower)] == [False, True, False]
    assert not any(cell.bold for cell in column(neither))


def test_all_that_print_the_same_are_bold_and_one_more_digit_parts_them():
    scores = scores_of({"old": [0.70001, 0.70003], "new": [0.70004, 0.70002], "other": [0.6, 0.6]})
    rows = ["old", "new", "other"]
    assert [cell.bold for cell in column(table_of(scores, rows=rows))] == [True, True, False]
    finer = table_of(scores, rows=rows, columns=[{"metric": "dice", "digits": 5}])
    assert [cell.bold for cell in column(finer)] == [False, True, False]


def test_an_unranked_row_is_never_bold_even_where_it_prints_the_best():
    scores = scores_of({"identity": [0.0, 0.0], "old": [0.01, 0.01], "new": [0.02, 0.02]}, "folding")
    table = table_of(scores, columns=["folding"])
    assert [cell.bold for cell in column(table)] == [False, True, False]
    assert "best but for identity" in caption(table)


def test_a_single_row_is_not_the_best_of_anything():
    table = table_of(rows=["identity", "new"])
    assert not any(cell.bold for cell in column(table))
    assert "Bold" not in caption(table)


# ---- marks


def test_better_and_worse_than_the_reference_have_their_marks_where_corrected_p_is_below_alpha():
    found = [comparison("identity", -0.4, 0.01), comparison("new", 0.1, 0.049)]
    table = table_of(comparisons=found, reference="old")
    assert [cell.mark for cell in column(table)] == ["†", "", "*"]
    assert "Wilcoxon signed-rank test over subjects" in caption(table)
    assert "n = 8" in caption(table)
    assert "2 methods compared" in caption(table)


@pytest.mark.parametrize("p_holm", [0.05, 0.5, math.nan])
def test_nothing_is_marked_at_or_above_alpha_or_without_p(p_holm):
    table = table_of(comparisons=[comparison("new", 0.1, p_holm)], reference="old")
    assert not any(cell.mark for cell in column(table))
    assert "No difference is significant" in caption(table)


def test_a_lower_distance_is_marked_better():
    scores = scores_of({"old": [3.0, 4.0], "new": [1.0, 2.0]}, "hd95_mm")
    found = [comparison("new", -2.0, 0.001, metric="hd95_mm")]
    assert [cell.mark for cell in column(table_of(scores, found, rows=["old", "new"], columns=["hd95_mm"], reference="old"))] == ["", "*"]


def test_the_mark_is_that_of_the_test_named_against_the_reference_named():
    found = [comparison("new", 0.1, 0.001, test="sample-paired-t"), comparison("new", 0.1, 0.001, reference="identity"), comparison("new", 0.1, 0.9)]
    assert not any(cell.mark for cell in column(table_of(comparisons=found, reference="old")))
    assert column(table_of(comparisons=found, reference="old", test="sample-paired-t"))[2].mark == "*"


def test_a_column_of_one_start_takes_that_start_only_and_is_not_marked():
    scores = scores_of({"old": [0.5, 0.6], "new": [0.7, 0.8]})
    near, far = scores.assign(start="near"), scores.assign(start="far", value=scores["value"] - 0.4)
    found = compare(pd.concat([near, far]), metric="dice", reference="old", higher_is_better=True, seed=1)
    table = table_of(
        pd.concat([near, far]),
        found.assign(p_holm=0.001),
        rows=["old", "new"],
        columns=[{"metric": "dice", "start": "far"}, "dice"],
        reference="old",
        test="paired-t",
        published={"new": {"dice@far": "0.3"}},
    )
    assert [heading.text for heading in table.grid.headings] == ["Method", "Dice, from far", "Dice, from far, published", "Dice"]
    assert table.rows[1][0].statistics["mean"] == pytest.approx(0.35)
    assert (table.rows[1][0].mark, table.rows[1][1].mark) == ("", "*")


def test_a_column_of_one_start_is_marked_by_the_test_of_that_start():
    scores = pd.concat([scores_of({"old": [0.5, 0.6], "new": [0.7, 0.8]}).assign(start=start) for start in ("near", "far")])
    found = [comparison("new", 0.2, 0.001, metric="dice@far"), comparison("new", 0.2, 0.9)]
    columns = [{"metric": "dice", "start": "far"}, {"metric": "dice", "start": "near"}, "dice"]
    table = table_of(scores, found, rows=["old", "new"], columns=columns, reference="old")
    assert [cell.mark for cell in table.grid.rows[1]] == ["", "*", "", ""]
    assert "tested: Dice, from far, Dice." in caption(table)
    assert "no finite value" not in caption(table)


def test_a_value_that_is_missing_from_one_start_is_counted_among_that_start():
    near, far = (scores_of({"old": [0.5, 0.6], "new": [0.7, 0.8]}).assign(start=start) for start in ("near", "far"))
    far.loc[3, "value"] = math.nan
    table = table_of(pd.concat([near, far]), rows=["old", "new"], columns=[{"metric": "dice", "start": "far"}, {"metric": "dice", "start": "near"}])
    assert "new: Dice, from far over 1 of 2 (the others" in caption(table) and caption(table).count("no finite value") == 1


def test_what_every_row_is_missing_is_told_once():
    scores = pd.concat([SCORES, scores_of({name: [1.0, 2.0, math.nan] for name in ("identity", "old", "new")}, "tre_mm")])
    assert caption(table_of(scores, columns=["dice", "tre_mm"])).count("Every row: TRE (mm) over 2 of 4 (the others") == 1
    one = pd.concat([SCORES, scores_of({"old": [1.0, 2.0], "new": [1.0, 2.0, 3.0, 4.0]}, "tre_mm")])
    assert "old: TRE (mm) over 2 of 4" in caption(table_of(one, columns=["dice", "tre_mm"], rows=["old", "new"]))


def test_corrections_over_more_than_the_reference_are_told():
    found = [comparison("new", 0.1, 0.01), comparison("identity", 0.1, 0.01), comparison("new", 0.1, 0.01, reference="identity")]
    assert "over the 3 comparisons of a measure" in caption(table_of(comparisons=found, reference="old"))
    assert "over the 2 methods compared" in caption(table_of(comparisons=found[:2], reference="old"))


def test_a_measure_that_nobody_has_is_a_column_of_dashes_and_named():
    table = table_of(columns=["dice", "sre_mm", {"metric": "dice", "start": "far"}])
    assert [cell.text for cell in column(table, 2)] == [DASH] * 3 == [cell.text for cell in column(table, 3)]
    assert "Without a single score, as no case has what they need or no method has such a cost: SRE (mm), Dice, from far." in caption(table)
    assert "Without" not in caption(table_of())


def test_counts_have_commas_and_no_deviation_where_all_are_the_same():
    scores = pd.concat([SCORES, scores_of({"old": [1_248_777.0] * 4, "new": [96_777.0, 96_777.0]}, "parameters")])
    table = table_of(scores, rows=["old", "new"], columns=["parameters"])
    assert [cell.text for cell in column(table)] == ["1,248,777", "96,777"]


def test_milliseconds_name_their_devices():
    scores = pd.concat([SCORES, scores_of({"old": [3.0, 4.0]}, "inference_ms").assign(unit="ms on cuda (A)")])
    scores = pd.concat([scores, scores_of({"new": [30.0, 40.0]}, "inference_ms").assign(unit="ms on cpu (B), 1 thread")])
    assert "warm, on cpu (B), 1 thread; cuda (A); other jobs" in caption(table_of(scores, columns=["inference_ms"]))
    assert "warm" not in caption(table_of())


def test_the_table_of_comparisons_names_what_was_not_tested(tmp_path):
    write_comparisons(pd.DataFrame(columns=list(COMPARISON_COLUMNS)), tmp_path / "none", untested=["sre_mm@8mm"])
    assert "Not tested, as no case has what the measure needs: SRE (mm), from 8mm." in (tmp_path / "none.md").read_text()


def test_a_column_of_one_structure_is_not_marked_by_a_test_over_all():
    scores = scores_of({"old": [0.5, 0.6], "new": [0.7, 0.8]}, structure="1")
    found = [comparison("new", 0.2, 0.001)]
    table = table_of(scores, found, rows=["old", "new"], columns=[{"metric": "dice", "structure": "1"}, "dice"], reference="old")
    assert [cell.mark for cell in table.grid.rows[1]] == ["", "", "*"]


def test_a_table_without_tests_says_that_there_are_none():
    assert "Not tested" in caption(table_of(reference="old"))
    assert "Not tested" not in caption(table_of())


def test_too_few_subjects_for_the_test_is_said():
    table = table_of(comparisons=[comparison("new", 0.1, 0.25, n=4)], reference="old")
    assert "cannot reach p < 0.05" in caption(table)


def test_marks_agree_with_comparisons_made_of_the_same_scores(rng):
    old = rng.normal(0.6, 0.05, 24)
    scores = scores_of({"old": list(old), "new": list(old + 0.1 + rng.normal(0, 0.01, 24)), "identity": list(old + rng.normal(0, 0.01, 24))})
    found = compare(scores, metric="dice", reference="old", higher_is_better=True, seed=1)
    table = build_table(TableSettings(title="t", rows=["old", "new", "identity"], columns=["dice"], reference="old"), scores, found, CONTEXT)
    assert [row[0].mark for row in table.rows] == ["", "*", ""]
    assert table.rows[1][0].compared["p_holm"] == found.query("method == 'new' and test == 'wilcoxon'")["p_holm"].item()


def test_the_tests_that_a_table_may_name_are_those_that_there_are():
    assert list(get_args(TestName)) == list(TESTS) == sorted(TESTS, key=list(TEST_LABELS).index)
    assert set(STYLES) == set(MEASURES)


# ---- published figures and missing rows


def test_published_figures_stand_beside_ours_as_printed():
    table = table_of(published={"old": {"dice": "0.665 ± 0.096"}}, source="Table 1")
    assert [heading.text for heading in table.grid.headings] == ["Method", "Dice", "Dice, published"]
    assert [cell.text for cell in column(table, 2)] == [DASH, "0.665 ± 0.096", DASH]
    assert "(Table 1)" in caption(table)


def test_a_row_may_have_published_figures_only_and_is_not_best_nor_failed():
    table = table_of(rows=["old", "new", "cnn"], published={"cnn": {"dice": 0.99}}, labels={"cnn": "CNN"})
    assert [cell.text for cell in table.grid.rows[2]] == ["CNN", DASH, "0.99"]
    assert [cell.bold for cell in column(table)] == [False, True, False]
    assert "failed" not in caption(table)


def test_a_method_of_the_study_whose_cases_all_failed_keeps_its_row():
    table = table_of(SCORES[SCORES["method"] != "new"])
    assert [cell.text for cell in table.grid.rows[2]] == ["new", "0", DASH]
    assert "failed: new 4" in caption(table)


def test_failed_registrations_are_counted_against_the_other_methods():
    table = table_of(SCORES.drop(SCORES.index[-1]))
    assert [heading.text for heading in table.grid.headings] == ["Method", "n", "Dice"]
    assert [cell.text for cell in column(table)] == ["4", "4", "3"]
    assert "failed: new 1" in caption(table)


def test_failures_that_are_known_count_even_where_every_method_failed():
    table = table_of(context=TableContext("toy", "blobs", "smoke", CONTEXT.methods, {"identity": 0, "old": 1, "new": 1}))
    assert "failed: old 1, new 1" in caption(table)


def test_no_column_of_counts_where_all_rows_have_the_same():
    assert [heading.text for heading in table_of().grid.headings] == ["Method", "Dice"]


def test_a_row_that_nobody_knows_is_refused():
    with pytest.raises(ConcordError, match="row 'nwe' is no method of the study"):
        table_of(rows=["old", "nwe"])


def test_a_measure_that_nobody_knows_is_refused_and_one_without_scores_is_a_dash():
    with pytest.raises(ConcordError, match="no measure 'dcie'"):
        table_of(columns=["dcie"])
    assert [cell.text for cell in column(table_of(columns=["tre_mm"]))] == [DASH] * 3


@pytest.mark.parametrize(("published", "said"), [({"cnn": {"dice": "1"}}, "in no row"), ({"old": {"dcie": "1"}}, "in no column")])
def test_published_figures_that_belong_nowhere_are_refused(published, said):
    with pytest.raises(ValidationError, match=said):
        TableSettings(title="t", rows=["old"], columns=["dice"], published=published)


def test_the_caption_says_data_scale_and_what_the_cells_are():
    text = caption(table_of(note="Ours."))
    assert "Dataset blobs, study toy, scale smoke: 4 cases from 2 subjects." in text
    assert "mean ± standard deviation over registrations" in text
    assert text.endswith("Ours.")


# ---- formats

ODD = Grid(
    "A_b & 50 %", (Heading("x_1", "text"), Heading("n")), ((Cell("[a] $~^\\ #{}|*", True, "*"), Cell("< 0.1 ± 2", mark="†")),), ("A <b> caption.",)
)


def test_latex_escapes_what_latex_would_read():
    text = to_latex(ODD, "study-t_1")
    assert r"\textbf{A\_b \& 50 \%.}" in text
    assert r"\textbf{{[}a{]} \$\textasciitilde{}\textasciicircum{}\textbackslash{} \#\{\}|*}$^{*}$ & \textless{} 0.1 $\pm$ 2$^{\dagger}$ \\" in text
    assert r"\label{tab:study-t-1}" in text
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])))
def test_latex_of_any_text_has_balanced_braces_and_no_bare_special_character(text):
    written = to_latex(Grid("t", (Heading("h"),), ((Cell(text),),)), "l").split("\\midrule\n")[1].split(" \\\\\n\\bottomrule")[0]
    bare = written.replace(r"\textbackslash{}", "").replace(r"\textasciitilde{}", "").replace(r"\textasciicircum{}", "")
    for escaped in (r"\&", r"\%", r"\$", r"\#", r"\_", r"\{", r"\}"):
        bare = bare.replace(escaped, "")
    assert bare.count("{") == bare.count("}")
    assert not set(bare) & set("&%#_~") and bare.count("$") % 2 == 0


def test_markdown_escapes_bars_and_stars_so_that_every_row_has_as_many_cells():
    lines = to_markdown(ODD).splitlines()
    assert lines[4] == r"| **\[a\] $~^\\ \#{}\|\***\* | \< 0.1 ± 2† |"
    assert lines[3] == "| :--- | ---: |"


class Reader(html.parser.HTMLParser):
    """Collects the cells of a page, and every address that it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.loads, self._open = [], [], False

    def handle_starttag(self, tag, attrs):
        self._open = self._open or tag in ("td", "th")
        self.cells += [""] if tag in ("td", "th") else []
        self.loads += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data):
        if self._open:
            self.cells[-1] += data


def test_html_shows_the_same_cells_and_loads_nothing():
    reader = Reader()
    reader.feed(to_html(ODD))
    assert reader.cells == ["x_1", "n", "[a] $~^\\ #{}|**", "< 0.1 ± 2†"]
    assert reader.loads == []
    assert "A &lt;b&gt; caption." in to_html(ODD)


def test_the_csv_has_a_row_a_method_and_measure_with_all_its_numbers(tmp_path):
    found = [comparison("new", 0.1, 0.02)]
    write_table(table_of(comparisons=found, reference="old", published={"new": {"dice": "0.7"}}, columns=["dice", "jaccard"]), tmp_path / "a" / "t.1")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["t.1.csv", "t.1.html", "t.1.md", "t.1.tex"]
    frame = pd.read_csv(tmp_path / "a" / "t.1.csv")
    assert len(frame) == 6
    new = frame.query("method == 'new' and metric == 'dice'").iloc[0]
    assert (new["n"], new["mean"], new["sd"]) == (4, pytest.approx(0.75), pytest.approx(np.sqrt(0.05 / 3)))
    assert (new["reference"], new["test"], new["p"], new["p_holm"], new["mark"], new["published"]) == ("old", "wilcoxon", 0.01, 0.02, "*", 0.7)
    assert new["best"]
    assert frame.query("metric == 'jaccard'")["mean"].isna().all()


def test_comparisons_are_written_as_given_and_shown_with_subjects_first(tmp_path):
    found = [
        comparison(
            "new", 0.1, 0.02, test="sample-one-sided-t", unit_paired="sample", n=40, effect_size=0.5, ci_low=0.05, ci_high=0.15, note="dependent"
        ),
        comparison("new", 0.1, 0.2, effect_size=1.25, ci_low=0.01, ci_high=0.2, note=math.nan),
    ]
    frame = pd.DataFrame(found, columns=list(COMPARISON_COLUMNS))
    write_comparisons(frame, tmp_path / "c", title="Tests")
    assert pd.read_csv(tmp_path / "c.csv")["test"].tolist() == ["sample-one-sided-t", "wilcoxon"]
    reader = Reader()
    reader.feed((tmp_path / "c.html").read_text())
    rows = np.array(reader.cells).reshape(3, 11)
    assert rows[:, 4].tolist() == ["Unit", "subject", "registration"]
    assert rows[1].tolist()[5:] == ["8", "0.1000 [0.0100, 0.2000]", "1.25", "0.100", "0.200", ""]
    assert "not independent; as papers test" in rows[2, 3]
    assert rows[2, 10] == "dependent"
    assert (tmp_path / "c.md").read_text().count("\n| ") == 4


def test_what_was_left_out_is_counted_by_stage_and_written_in_full(tmp_path):
    rows = [Exclusion("c1", "prepare", "empty, flat"), Exclusion("c2", "mi", "diverged <nan>"), Exclusion("c3", "mi", "diverged")]
    write_failures(rows, title="toy", stem=tmp_path / "left_out")
    frame = pd.read_csv(tmp_path / "left_out.csv")
    assert [tuple(row) for row in frame.to_numpy()] == [tuple(row) for row in rows]
    page = (tmp_path / "left_out.html").read_text()
    assert "3 left out: prepare 1, mi 2." in page
    assert "diverged &lt;nan&gt;" in page


def test_nothing_left_out_is_said_too(tmp_path):
    write_failures([], title="toy", stem=tmp_path / "none")
    assert (tmp_path / "none.csv").read_text() == "case,stage,reason\n"
    assert "Nothing was left out." in (tmp_path / "none.html").read_text()


def test_sample_values_keep_the_order_of_the_scores():
    assert sample_values(SCORES, "dice")["value"].tolist() == pytest.approx(SCORES["value"].tolist())


def test_settings_can_be_read_without_loading_pandas():
    code = "import sys; import pipeline.tables; sys.exit('pandas' in sys.modules or 'itk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
