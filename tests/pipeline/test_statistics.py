"""Comparisons: by hand, against scipy and statsmodels directly, and the laws of paired tests."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from pipeline import statistics
from pipeline.errors import ConcordError
from pipeline.statistics import COMPARISON_COLUMNS, SCORE_COLUMNS, TESTS, bootstrap_interval, compare, holm, subject_means

pytestmark = pytest.mark.filterwarnings("error")


def scores_of(values: dict[str, list[float]], *, samples: int = 1) -> pd.DataFrame:
    """One case a subject, `samples` starts each: values are listed subject by subject."""
    rows = [
        ("study", method, 0, f"s{i // samples:02d}", "c", i % samples, np.nan, "dice", value, "1")
        for method, listed in values.items()
        for i, value in enumerate(listed)
    ]
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def row(scores: pd.DataFrame, test: str, method: str = "new", reference: str = "old", *, higher_is_better: bool = True, **more) -> pd.Series:
    table = compare(scores, metric="dice", reference=reference, methods=[method], higher_is_better=higher_is_better, tests=[test], seed=1, **more)
    assert list(table.columns) == list(COMPARISON_COLUMNS)
    return table.iloc[0]


def random_scores(seed: int, subjects: int = 9, samples: int = 4, effect: float = 0.05) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    hardness = np.repeat(random.normal(0.7, 0.1, subjects), samples)
    return scores_of(
        {"old": hardness + random.normal(0, 0.05, hardness.size), "new": hardness + effect + random.normal(0, 0.05, hardness.size)}, samples=samples
    )


# ---- means by subject


def test_structures_are_averaged_first_then_starts_then_cases_then_nothing():
    table = pd.DataFrame(
        [
            # case a: starts 0 (structures .2 and .4) and 1 (structure .9); case b: one start
            ("study", "m", 0, "p", "a", 0, 1, "dice", 0.2, "1"),
            ("study", "m", 0, "p", "a", 0, 2, "dice", 0.4, "1"),
            ("study", "m", 0, "p", "a", 1, 1, "dice", 0.9, "1"),
            ("study", "m", 0, "p", "b", 0, 1, "dice", 0.1, "1"),
            ("study", "m", 0, "p", "b", 0, 1, "hd95", 7.0, "mm"),
        ],
        columns=list(SCORE_COLUMNS),
    )
    assert subject_means(table, "dice").loc["p", "m"] == pytest.approx(((0.3 + 0.9) / 2 + 0.1) / 2)


def test_subject_means_have_subjects_as_rows_and_methods_as_columns_with_gaps():
    table = scores_of({"old": [0.1, 0.2, 0.3], "new": [0.5, 0.6]})
    means = subject_means(table, "dice")
    assert means.index.name == "subject"
    assert list(means.columns) == ["old", "new"]
    np.testing.assert_allclose(means["new"], [0.5, 0.6, np.nan])


def test_a_structure_without_a_score_is_left_out_of_the_mean():
    table = scores_of({"m": [0.4, np.nan]}, samples=2)
    assert subject_means(table, "dice").loc["s00", "m"] == pytest.approx(0.4)


# ---- single tests against hand computation and scipy

OLD = [0.70, 0.72, 0.65, 0.80, 0.60, 0.75, 0.71]
NEW = [0.74, 0.75, 0.66, 0.79, 0.68, 0.77, 0.76]


def test_a_paired_t_test_by_hand():
    # differences 1 2 3: mean 2, standard deviation 1, t = 2 / (1 / sqrt 3)
    result = row(scores_of({"old": [5.0, 5.0, 5.0], "new": [6.0, 7.0, 8.0]}), "paired-t")
    assert result["n"] == 3
    assert result["unit_paired"] == "subject"
    assert result["mean_difference"] == pytest.approx(2)
    assert result["effect_size"] == pytest.approx(2)
    assert result["statistic"] == pytest.approx(2 * np.sqrt(3))
    # Student's t with 2 degrees of freedom has a closed form: p = 1 - t / sqrt(2 + t^2)
    assert result["p"] == pytest.approx(1 - np.sqrt(12 / 14))


@pytest.mark.parametrize("test", ["paired-t", "sample-paired-t"])
def test_t_tests_agree_with_scipy(test):
    expected = stats.ttest_rel(NEW, OLD)
    result = row(scores_of({"old": OLD, "new": NEW}), test)
    assert (result["statistic"], result["p"]) == pytest.approx((expected.statistic, expected.pvalue))


def test_the_signed_rank_test_agrees_with_scipy_and_by_hand():
    # six positive differences out of six: p = 2 / 2^6
    result = row(scores_of({"old": [0] * 6, "new": [1, 2, 3, 4, 5, 6]}), "wilcoxon")
    assert result["p"] == pytest.approx(2 / 64)
    assert result["note"] == ""
    differences = [1.0, 2.5, -0.5, 4.0, 3.0, 6.0, 8.0]
    expected = stats.wilcoxon(differences)
    assert row(scores_of({"old": [0.0] * 7, "new": differences}), "wilcoxon")["p"] == pytest.approx(expected.pvalue)


def test_a_one_sided_test_asks_whether_the_method_is_better():
    better, worse = scores_of({"old": OLD, "new": NEW}), scores_of({"old": NEW, "new": OLD})
    assert row(better, "one-sided-t")["p"] == pytest.approx(stats.ttest_rel(NEW, OLD, alternative="greater").pvalue)
    assert row(worse, "one-sided-t")["p"] == pytest.approx(1 - row(better, "one-sided-t")["p"])
    # for an error in mm, smaller is better
    assert row(worse, "one-sided-t", higher_is_better=False)["p"] == pytest.approx(row(better, "one-sided-t")["p"])
    assert row(better, "sample-one-sided-t")["p"] == pytest.approx(row(better, "one-sided-t")["p"])


def test_sample_tests_pair_samples_and_subject_tests_pair_subjects():
    table = random_scores(0, subjects=5, samples=4)
    new, old = (table[table["method"] == m]["value"].to_numpy() for m in ("new", "old"))
    by_sample, by_subject = row(table, "sample-paired-t"), row(table, "paired-t")
    assert (by_sample["n"], by_sample["unit_paired"]) == (20, "sample")
    assert (by_subject["n"], by_subject["unit_paired"]) == (5, "subject")
    assert by_sample["p"] == pytest.approx(stats.ttest_rel(new, old).pvalue)
    means = [a.reshape(5, 4).mean(axis=1) for a in (new, old)]
    assert by_subject["p"] == pytest.approx(stats.ttest_rel(*means).pvalue)
    assert "5 subjects, not independent" in by_sample["note"]
    assert by_subject["note"] == ""


def test_the_mixed_model_agrees_with_the_textbook_for_balanced_samples():
    # balanced: the estimate is the mean difference, its variance 2 s^2 / n with the residual variance within subject and method
    subjects, samples = 9, 4
    table = random_scores(3, subjects, samples)
    new, old = (table[table["method"] == m]["value"].to_numpy().reshape(subjects, samples) for m in ("new", "old"))
    effect = (new - old).mean()
    both = np.concatenate([new - effect / 2, old + effect / 2], axis=1)
    residual = both - both.mean(axis=1, keepdims=True)
    variance = (residual**2).sum() / (2 * samples * subjects - subjects - 1)
    z = effect / np.sqrt(2 * variance / (subjects * samples))
    result = row(table, "mixed-model")
    assert result["mean_difference"] == pytest.approx(effect)
    assert result["statistic"] == pytest.approx(z, rel=1e-3)
    assert result["p"] == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-2)


def test_the_mixed_model_does_not_depend_on_the_unit_of_the_scores():
    table = random_scores(4)
    tiny = table.assign(value=table["value"] * 1e-6)
    assert row(tiny, "mixed-model")["p"] == pytest.approx(row(table, "mixed-model")["p"], rel=1e-4)


def test_a_mixed_model_that_does_not_converge_says_so(monkeypatch):
    from statsmodels.regression.mixed_linear_model import MixedLM

    honest = MixedLM.fit

    def unconverged(self, *args, **kwargs):
        fit = honest(self, *args, **kwargs)
        fit._results.converged = False
        fit.converged = False
        return fit

    monkeypatch.setattr(MixedLM, "fit", unconverged)
    result = row(random_scores(5), "mixed-model")
    assert np.isnan(result["p"])
    assert "did not converge" in result["note"]


def test_a_mixed_model_that_cannot_be_fitted_says_so(monkeypatch):
    from statsmodels.regression.mixed_linear_model import MixedLM

    def singular(self, *args, **kwargs):
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr(MixedLM, "fit", singular)
    result = row(random_scores(5), "mixed-model")
    assert np.isnan(result["p"])
    assert "Singular matrix" in result["note"]


# ---- what cannot be tested


@pytest.mark.parametrize("test", list(TESTS))
def test_equal_methods_have_no_p_and_say_why(test):
    result = row(scores_of({"old": OLD, "new": OLD}), test)
    assert np.isnan(result["p"])
    assert "zero" in result["note"]
    assert (result["mean_difference"], result["ci_low"], result["ci_high"]) == (0, 0, 0)


@pytest.mark.parametrize("test", list(TESTS))
def test_methods_that_differ_by_rounding_count_as_equal(test):
    result = row(scores_of({"old": OLD, "new": [v * (1 + 2e-16 * (-1) ** i) + 1e-17 for i, v in enumerate(OLD)]}), test)
    assert np.isnan(result["p"])
    assert result["mean_difference"] == 0


def test_equal_differences_tie_in_the_signed_rank_test_whatever_their_rounding():
    # 0.1 + 0.2 is not 0.3: raw differences would be ranked by their rounding
    old = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    result = row(scores_of({"old": old, "new": [v + 0.2 * s for v, s in zip(old, [1, 1, 1, 1, 1, 1, -1], strict=True)]}), "wilcoxon")
    assert result["p"] == pytest.approx(stats.wilcoxon([2, 2, 2, 2, 2, 2, -2]).pvalue)


@pytest.mark.parametrize("test", list(TESTS))
@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_pairs_have_no_p_and_no_interval(test, n):
    table = scores_of({"old": OLD[:n] + [np.nan], "new": NEW[:n] + [0.5]})
    result = row(table, test)
    assert result["n"] == n
    assert np.isnan([result["p"], result["ci_low"], result["ci_high"], result["effect_size"]]).all()
    assert f"{n} paired" in result["note"]


def test_a_constant_difference_has_no_t_but_a_rank_test():
    table = scores_of({"old": OLD, "new": [v + 0.1 for v in OLD]})
    assert "undefined" in row(table, "paired-t")["note"]
    assert np.isnan(row(table, "paired-t")["p"])
    assert row(table, "wilcoxon")["p"] == pytest.approx(2 / 2**7)
    assert np.isnan(row(table, "mixed-model")["p"])


def test_too_few_differences_for_a_signed_rank_test_say_how_many_are_needed():
    result = row(scores_of({"old": [0] * 6, "new": [0, 1, 2, 3, 4, 5]}), "wilcoxon")
    assert result["p"] == pytest.approx(2 / 2**5)
    assert result["note"] == "1 zero differences dropped; 5 differences cannot reach p < 0.05: 6 are needed"


def test_samples_of_one_subject_make_no_mixed_model():
    result = row(scores_of({"old": OLD, "new": NEW}, samples=7), "mixed-model")
    assert np.isnan(result["p"])
    assert "two" in result["note"]


# ---- pairing


def test_only_samples_that_both_methods_have_are_paired():
    table = scores_of({"old": OLD, "new": NEW})
    failed = table[~((table["method"] == "new") & (table["subject"] == "s03"))]
    result = row(failed, "paired-t")
    kept = [i for i in range(7) if i != 3]
    assert result["n"] == 6
    assert result["p"] == pytest.approx(stats.ttest_rel(np.array(NEW)[kept], np.array(OLD)[kept]).pvalue)
    assert "1 of 7 values left out" in result["note"]


def test_a_start_on_which_a_method_failed_is_left_out_of_both_subject_means():
    # old has 0.5 and 0.9; new failed on the second start: pairing means would give -0.1, pairing samples gives 0.1
    table = scores_of({"old": [0.5, 0.9, 0.4, 0.4], "new": [0.6, np.nan, 0.5, 0.6]}, samples=2)
    assert row(table, "paired-t")["mean_difference"] == pytest.approx((0.1 + 0.15) / 2)


def test_every_case_of_a_subject_weighs_the_same_however_many_starts_it_has():
    table = scores_of({"old": [0.0] * 6, "new": [0.1, 0.1, 0.1, 0.5, 0.2, 0.4]})
    # subject p: a case of three starts at 0.1 and one of a single start at 0.5: (0.1 + 0.5) / 2, not 0.8 / 4
    table = table.assign(case=["c", "c", "c", "d", "c", "c"] * 2, subject=["p", "p", "p", "p", "q", "q"] * 2, start=[0, 1, 2, 0, 0, 1] * 2)
    assert row(table, "paired-t")["mean_difference"] == pytest.approx((0.3 + 0.3) / 2)
    assert row(table, "sample-paired-t")["mean_difference"] == pytest.approx(1.4 / 6)


def test_a_structure_that_neither_method_has_is_not_counted_as_left_out():
    assert row(scores_of({"old": [*OLD, np.nan], "new": [*NEW, np.nan]}), "paired-t")["note"] == ""


def test_infinite_distances_are_left_out_and_counted():
    result = row(scores_of({"old": [*OLD, 3.0], "new": [*NEW, np.inf]}), "paired-t")
    assert result["n"] == 7
    assert "1 of 8 values left out: missing or not finite" in result["note"]


def test_the_order_of_the_rows_does_not_matter():
    table = random_scores(6)
    shuffled = table.sample(frac=1, random_state=0)
    options = {"metric": "dice", "reference": "old", "methods": ["new"], "higher_is_better": True, "tests": list(TESTS), "seed": 3}
    pd.testing.assert_frame_equal(compare(table, **options), compare(shuffled, **options))


def test_a_method_scored_once_is_paired_with_one_scored_in_folds():
    table = scores_of({"old": OLD, "new": NEW})
    table["fold"] = np.where(table["method"] == "old", np.nan, 2)
    assert row(table, "paired-t")["n"] == 7


# ---- laws


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    subjects=st.integers(2, 8),
    samples=st.integers(1, 3),
    test=st.sampled_from(["paired-t", "wilcoxon", "sample-paired-t"]),
)
def test_swapping_method_and_reference_flips_the_signs_and_keeps_a_two_sided_p(seed, subjects, samples, test):
    table = random_scores(seed, subjects, samples)
    there, back = row(table, test), row(table, test, method="old", reference="new")
    assert there["mean_difference"] == pytest.approx(-back["mean_difference"])
    assert (there["ci_low"], there["ci_high"]) == pytest.approx((-back["ci_high"], -back["ci_low"]))
    assert there["effect_size"] == pytest.approx(-back["effect_size"])
    assert there["p"] == pytest.approx(back["p"])
    if test != "wilcoxon":
        assert there["statistic"] == pytest.approx(-back["statistic"])


def test_holm_by_hand():
    # smallest times 3, then 2, then 1, never decreasing
    np.testing.assert_allclose(holm([0.02, 0.04, 0.01]), [0.04, 0.04, 0.03])
    np.testing.assert_allclose(holm([0.9, np.nan, 0.6]), [1.0, np.nan, 1.0])
    assert holm([]).size == 0
    assert np.isnan(holm([np.nan])).all()


@settings(max_examples=20, deadline=None)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_never_lowers_a_p(p):
    corrected = holm(p)
    assert (corrected >= np.array(p) - 1e-15).all()
    assert (corrected <= 1).all()
    assert (np.diff(corrected[np.argsort(p)]) >= -1e-15).all()


def test_holm_agrees_with_statsmodels():
    p = np.random.default_rng(3).uniform(size=40) ** 3
    p[[4, 9]] = p[2]  # ties
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)


def test_holm_is_taken_over_the_methods_of_one_test():
    random = np.random.default_rng(8)
    old = random.normal(0.7, 0.1, 12)
    table = scores_of({"old": old, **{f"m{i}": old + random.normal(0.02 * i, 0.03, 12) for i in range(3)}, "copy": old})
    found = compare(table, metric="dice", reference="old", higher_is_better=True, tests=["paired-t", "wilcoxon"], seed=1)
    assert list(found["method"]) == ["m0", "m1", "m2", "copy"] * 2
    for _, block in found.groupby("test"):
        np.testing.assert_allclose(block["p_holm"], holm(block["p"]))
        assert np.isnan(block["p_holm"].iloc[3])


def test_pairs_are_compared_with_their_own_references_and_holm_is_taken_over_all():
    random = np.random.default_rng(9)
    old = random.normal(0.7, 0.1, 12)
    table = scores_of({"old": old, "new": old + random.normal(0.02, 0.03, 12), "newer": old + random.normal(0.05, 0.03, 12)})
    options = {"metric": "dice", "higher_is_better": True, "tests": ["paired-t"], "seed": 1}
    found = compare(table, reference="old", pairs=[("newer", "new"), ("new", "old")], **options)
    assert list(zip(found["method"], found["reference"], strict=True)) == [("new", "old"), ("newer", "old"), ("newer", "new")]
    np.testing.assert_allclose(found["p_holm"], holm(found["p"]))
    alone = compare(table, pairs=[("newer", "new")], **options)
    assert len(alone) == 1 and alone["p"][0] == found["p"][2] == row(table, "paired-t", "newer", "new")["p"]
    with pytest.raises(ConcordError, match="no method 'newest'"):
        compare(table, pairs=[("newest", "new")], **options)


# ---- confidence intervals


def test_the_interval_is_the_percentile_bootstrap_of_the_mean():
    # two units 0 and 1: the resampled mean is 0, 1/2 or 1 with 1/4, 1/2, 1/4
    assert bootstrap_interval(np.array([0.0, 1.0]), np.ones(2), confidence=0.95, seed=0) == (0.0, 1.0)
    assert bootstrap_interval(np.array([0.0, 1.0]), np.ones(2), confidence=0.4, seed=0) == (0.5, 0.5)


def test_the_interval_agrees_with_scipy_and_with_theory():
    values = np.random.default_rng(9).normal(2, 1, 60)
    low, high = bootstrap_interval(values, np.ones(60), confidence=0.9, seed=1)
    other = stats.bootstrap((values,), np.mean, confidence_level=0.9, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    assert (low, high) == pytest.approx((other.low, other.high), abs=0.02)
    half = stats.norm.ppf(0.95) * values.std() / np.sqrt(60)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_the_interval_depends_on_the_seed_alone_and_widens_with_confidence():
    table = scores_of({"old": OLD, "new": NEW})
    first, again = row(table, "paired-t"), row(table, "paired-t")
    assert (first["ci_low"], first["ci_high"]) == (again["ci_low"], again["ci_high"])
    wide = row(table, "paired-t", confidence=0.999)
    assert wide["ci_low"] < first["ci_low"] < first["mean_difference"] < first["ci_high"] < wide["ci_high"]


def test_a_large_bootstrap_is_drawn_in_batches(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1001)
    values = np.random.default_rng(1).normal(0, 1, 5000)
    low, high = bootstrap_interval(values, np.ones(5000), confidence=0.95, seed=1)
    assert (low, high) == pytest.approx(values.mean() + np.array([-1.96, 1.96]) * values.std() / np.sqrt(5000), abs=0.005)


def test_the_mixed_model_draws_whole_subjects():
    # no spread within subjects: the interval by sample is far narrower than the one by subject
    effects = np.repeat(np.random.default_rng(2).normal(0.1, 0.05, 6), 20) + np.random.default_rng(3).normal(0, 0.001, 120)
    table = scores_of({"old": np.full(120, 0.5) + np.random.default_rng(4).normal(0, 0.01, 120), "new": 0.5 + effects}, samples=20)
    by_subject, model, by_sample = (row(table, test) for test in ("paired-t", "mixed-model", "sample-paired-t"))
    assert (model["ci_low"], model["ci_high"]) == pytest.approx((by_subject["ci_low"], by_subject["ci_high"]))
    assert model["ci_high"] - model["ci_low"] > 2 * (by_sample["ci_high"] - by_sample["ci_low"])


# ---- refusals


def test_wrong_requests_are_refused_in_one_line():
    table = scores_of({"old": OLD, "new": NEW})
    good = {"metric": "dice", "reference": "old", "higher_is_better": True, "seed": 0}
    for wrong, message in (
        ({"metric": "tre"}, "no metric 'tre'.*dice"),
        ({"reference": "elastix"}, "no method 'elastix'.*old, new"),
        ({"methods": ["elastix"]}, "no method 'elastix'"),
        ({"tests": ["anova"]}, "no test 'anova'.*paired-t"),
        ({"confidence": 95}, "confidence 95"),
    ):
        with pytest.raises(ConcordError, match=message) as caught:
            compare(table, **good | wrong)
        assert "\n" not in str(caught.value)


def test_tables_that_mix_what_cannot_be_compared_are_refused():
    table = scores_of({"old": OLD, "new": NEW})
    options = {"metric": "dice", "reference": "old", "higher_is_better": True, "seed": 0}
    for broken, message in (
        (table.drop(columns=["start", "unit"]), "no column start, unit"),
        (table.assign(study=["a"] * 7 + ["b"] * 7), "study is a, b"),
        (table.assign(unit=["mm"] * 7 + ["vx"] * 7), "unit is mm, vx"),
        (table.assign(subject=[None, *table["subject"][1:]]), "without method or subject"),
        (table.assign(value="high"), "expected numbers"),
    ):
        with pytest.raises(ConcordError, match=message):
            compare(broken, **options)


def test_a_table_of_the_reference_alone_gives_no_rows():
    found = compare(scores_of({"old": OLD}), metric="dice", reference="old", higher_is_better=True, seed=0)
    assert found.empty
    assert list(found.columns) == list(COMPARISON_COLUMNS)


def test_scores_survive_a_csv_file(tmp_path):
    table = random_scores(7)
    table.to_csv(tmp_path / "scores.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = row(pd.read_csv(tmp_path / "scores.csv"), "mixed-model")
    assert read["p"] == pytest.approx(row(table, "mixed-model")["p"])


def test_importing_the_module_loads_no_heavy_package():
    code = "import sys, pipeline.statistics; print([m for m in ('pandas', 'scipy', 'statsmodels', 'itk', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
