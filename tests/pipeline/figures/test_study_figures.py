"""Figures by their kind: shares of success, one measure against another, and sheets for what has no scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipeline.config import FigureSettings
from pipeline.errors import ConcordError
from pipeline.figures.case_pictures import spread_cases
from pipeline.figures.scatter import correlation
from pipeline.figures.study_figures import study_figure
from pipeline.figures.style import PALETTE, figure_styles, method_styles
from pipeline.figures.success import success_curves, success_shares
from pipeline.statistics import SCORE_COLUMNS


def scores_of(values: dict[str, list[float]], metric: str = "sre_mm", start: str = "") -> pd.DataFrame:
    """Two registrations a subject."""
    rows = [
        ("toy", method, 0, f"s{i // 2}", f"c{i}", start, "", metric, value, "mm")
        for method, listed in values.items()
        for i, value in enumerate(listed)
    ]
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


SCORES = scores_of({"identity": [8.0, 9.0, 7.0, 6.0], "old": [1.0, 3.0, 4.0, 9.0], "new": [2.0, 2.0, 4.5]})
METHODS = ["identity", "old", "new"]


def texts(figure) -> str:
    legends = [text.get_text() for legend in figure.legends for text in (*legend.get_texts(), legend.get_title())]
    return "\n".join([*legends, *(text.get_text() for text in figure.texts), figure.get_suptitle()])


def drawn(scores=SCORES, **settings):
    return study_figure(FigureSettings(**{"title": "t", "measures": ["sre_mm"]} | settings), scores, METHODS, "toy, smoke")


# ---- success


def test_shares_are_counted_by_hand_and_a_registration_that_failed_is_no_success():
    shares = success_shares(SCORES, "sre_mm", ["old", "new"], [2, 4, 5])
    assert shares["old"] == pytest.approx([1 / 4, 3 / 4, 3 / 4])
    assert shares["new"] == pytest.approx([2 / 4, 2 / 4, 3 / 4])  # of four, one of which has no score
    missing = SCORES.assign(value=SCORES["value"].replace(1.0, np.nan))
    assert success_shares(missing, "sre_mm", ["old"], [2])["old"] == pytest.approx([0])


def test_curves_pass_through_the_shares_and_the_legend_tells_them():
    figure = success_curves(SCORES, metric="sre_mm", limits=[2, 4, 5])
    axis = figure.axes[0]
    for method, line in zip(METHODS, axis.lines, strict=False):
        x, y = (np.asarray(values) for values in line.get_data())
        at = [y[x <= limit].max() for limit in (2, 4, 5)]
        assert at == pytest.approx(100 * success_shares(SCORES, "sre_mm", [method], [2, 4, 5])[method])
        assert y.max() == pytest.approx(75 if method == "new" else 100)
    assert "old: 25 %, 75 %, 75 %" in texts(figure) and "4 registrations with SRE (mm) up to 2, 4, 5" in texts(figure)
    assert [line.get_xdata()[0] for line in axis.lines[3:]] == [2, 4, 5]
    assert axis.get_xlabel() == "SRE (mm)"


def test_success_of_what_is_better_when_larger_is_refused():
    with pytest.raises(ConcordError, match=r"success of dice: more of it is better; expected an error"):
        success_curves(scores_of({"old": [0.5]}, "dice"), metric="dice", limits=[0.5])


# ---- one measure against another


def test_the_correlation_is_scipys_over_registrations_and_over_means_of_subjects():
    rng = np.random.default_rng(3)
    spread, error = rng.uniform(0, 1, 12), rng.uniform(0, 5, 12)
    figure = drawn(
        pd.concat([scores_of({"new": list(spread)}, "spread_mm"), scores_of({"new": list(error)})]),
        kind="scatter",
        against="spread_mm",
        methods=["new"],
    )
    every = stats.spearmanr(spread, error)
    means = stats.spearmanr(spread.reshape(6, 2).mean(1), error.reshape(6, 2).mean(1))
    assert f"ρ = {every.statistic:.2f}, p = {every.pvalue:.3f} over 12 registrations, as if independent" in texts(figure).replace("−", "-")
    assert f"ρ = {means.statistic:.2f}, p = {means.pvalue:.3f} over 6 means of subjects" in texts(figure).replace("−", "-")
    points = np.asarray(figure.axes[0].collections[0].get_offsets())
    assert points == pytest.approx(np.column_stack([spread, error]))
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("Spread of predictions (mm)", "SRE (mm)")


def test_a_correlation_that_there_is_not_is_said():
    constant = pd.DataFrame({"value_x": [1.0, 1, 1], "value_y": [1.0, 2, 3]})
    assert (
        correlation(constant, "registrations")
        == "no rank correlation over 3 registrations"
        == correlation(constant.assign(value_x=[3, 1, 1])[:3].assign(value_y=1.0), "registrations")
    )
    assert correlation(constant[:2], "registrations") == "no rank correlation over 2 registrations"


# ---- by kind


def test_a_figure_of_one_start_shows_that_start_alone():
    scores = pd.concat([SCORES.assign(start="near"), SCORES.assign(start="far", value=SCORES["value"] + 10)])
    figure = drawn(scores, kind="scatter", start="far", methods=["old"])
    assert np.asarray(figure.axes[0].collections[0].get_offsets()).min() > 10
    assert "from far" in figure.get_suptitle()


def test_boxes_of_the_measures_that_there_are_are_drawn():
    assert [axis.get_ylabel() for axis in drawn(kind="boxplots", measures=["sre_mm", "tre_mm"]).axes] == ["SRE (mm)"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"kind": "scatter", "measures": ["tre_mm"]}, "TRE (mm)"),
        ({"kind": "success", "measures": ["tre_mm", "sre_mm"]}, "TRE (mm)"),
        ({"kind": "boxplots", "measures": ["tre_mm", "dice"]}, "TRE (mm), Dice"),
        ({"kind": "scatter", "against": "spread_mm"}, "Spread of predictions (mm)"),
        ({"kind": "scatter", "start": "elsewhere"}, "SRE (mm)"),
    ],
)
def test_a_figure_of_what_nobody_has_scores_of_says_so(settings, named):
    figure = drawn(**settings)
    assert not figure.axes and f"No scores of {named}:" in texts(figure)


def test_pictures_are_chosen_by_the_first_measure_that_has_scores():
    assert spread_cases(SCORES, "old", ["tre_mm", "sre_mm"], 2) == ["c3", "c0"]
    assert spread_cases(SCORES, "old", ["tre_mm"], 2) == []


# ---- colours of a figure


def test_no_two_methods_of_a_figure_share_a_colour_while_the_palette_lasts():
    study = [f"m{number}" for number in range(30)]
    shown = ["identity", "m1", f"m{1 + len(PALETTE)}", "m2", f"m{2 + len(PALETTE)}"]
    alone, styles = method_styles([*study, *shown]), figure_styles(shown, study)
    assert alone["m1"] == alone[shown[2]] and len({style.colour for style in styles.values()}) == len(shown)
    assert all(styles[name] == alone[name] for name in ("identity", "m1", "m2"))
    assert figure_styles(study, study)["m5"] == alone["m5"]
