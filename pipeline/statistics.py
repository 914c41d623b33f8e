"""Comparisons: two methods on paired scores, by subject or by sample, with corrected p, effect size and confidence interval.

A *sample* is one registration: a case from one starting transform. Samples of one subject are not independent, so that a
comparison pairs subjects unless a test's name says `sample`. Structures are averaged within a sample first, then samples
within a case, then cases within a subject: every case of a subject weighs the same, however many starts it has.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ConcordError

if TYPE_CHECKING:
    import pandas as pd

SCORE_COLUMNS = ("study", "method", "fold", "subject", "case", "start", "structure", "metric", "value", "unit")
COMPARISON_COLUMNS = (
    *("metric", "method", "reference", "test", "unit_paired", "n", "mean_difference", "ci_low", "ci_high"),
    *("effect_size", "statistic", "p", "p_holm", "note"),
)
SAMPLE = ["subject", "case", "start"]
RESAMPLES = 10_000
"""Bootstrap resamples (ours)."""
TOLERANCE = 1e-12
"""Differences closer than this share of the largest score count as equal (ours): averaging leaves such residues, and a rank test would rank them."""
SMALLEST_WILCOXON = 6
"""Fewest non-zero differences with which the two-sided signed-rank test can reach p < 0.05: 2 / 2^6 = 0.031, while 2 / 2^5 = 0.063."""


@dataclass(frozen=True)
class Pairs:
    """Scores of two methods on the same units, sorted by subject: arrays `(n,)`."""

    subject: np.ndarray
    method: np.ndarray
    reference: np.ndarray

    @property
    def tolerance(self) -> float:
        """Largest difference that is only rounding."""
        return TOLERANCE * float(np.abs([self.method, self.reference]).max(initial=0.0))

    @property
    def difference(self) -> np.ndarray:
        """Method minus reference, rounded to the tolerance, so that equal differences are equal."""
        difference, step = self.method - self.reference, self.tolerance
        return np.round(difference / step) * step if step > 0 else difference

    @property
    def is_constant(self) -> bool:
        """Whether all differences are the same, as a single one is."""
        return self.method.size < 2 or bool(np.ptp(self.difference) <= 2 * self.tolerance)


@dataclass(frozen=True)
class Outcome:
    """What a test found; nan where it cannot be made, with a note that says why."""

    statistic: float = float("nan")
    p: float = float("nan")
    note: str = ""


@dataclass(frozen=True)
class Test:
    """A test on pairs: the unit that it pairs, and how it runs for `two-sided`, `greater` or `less`."""

    unit: str
    run: Callable[[Pairs, str], Outcome]
    one_sided: bool = False
    clustered: bool = False


@dataclass(frozen=True)
class _Settings:
    better: str
    confidence: float
    seed: int


def subject_means(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean score of every subject (index `subject`) by every method (columns, in order of appearance), nan where there is none.

    Values that are nan (a structure that neither map has) are left out of the means. Raises `ConcordError` as `compare` does.
    """
    rows = _rows_of(scores, metric)
    samples = rows.groupby(["method", *SAMPLE], sort=False)["value"].mean()
    cases = samples.groupby(["method", "subject", "case"]).mean()
    return cases.groupby(["method", "subject"]).mean().unstack("method").reindex(columns=list(rows["method"].unique()))


def compare(
    scores: pd.DataFrame,
    *,
    metric: str,
    higher_is_better: bool,
    seed: int,
    reference: str = "",
    methods: Sequence[str] | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    tests: Sequence[str] = ("paired-t", "wilcoxon"),
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Compare methods (default: all others) with a reference, and each of `pairs` (method, its own reference): a row a test and comparison.

    Only values that both methods have and that are finite are paired; the note counts the others. `mean_difference` is
    method minus reference in the metric's unit, with a percentile bootstrap interval over the paired units (whole subjects
    for `mixed-model`), from `seed`. `effect_size` is Cohen's d_z, the mean of the units' differences over their standard
    deviation (n - 1). `p_holm` is corrected by Holm's method over all comparisons of one test. A test that cannot be made has
    p nan and says why in `note`. Columns are `COMPARISON_COLUMNS`. Tests (`TESTS`):
    - `paired-t`, `wilcoxon` (signed-rank, zero differences dropped): two-sided, over subjects; `one-sided-t`: the method
      is better than the reference, in the direction of `higher_is_better`;
    - `sample-paired-t`, `sample-one-sided-t`: the same over samples, as the papers test (Attention-Reg; Simonovsky et al.
      one-sided); with several samples a subject they overstate the evidence, and the note says so;
    - `mixed-model`: value ~ method with a random intercept by subject over all samples (REML), two-sided Wald p.

    Raises `ConcordError` for missing columns, more than one study or unit, an unknown metric, method, test or confidence.
    """
    import pandas as pd

    rows = _rows_of(scores, metric)
    known = list(rows["method"].unique())
    _check_names(known, [*([reference] if reference else []), *(methods or []), *(name for pair in pairs for name in pair)], tests)
    if not 0 < confidence < 1:
        raise ConcordError(f"confidence {confidence}; expected a number between 0 and 1, such as 0.95")
    others = [(m, reference) for m in methods or known if m != reference] if reference else []
    wanted = list(dict.fromkeys([*others, *pairs]))
    settings = _Settings("greater" if higher_is_better else "less", confidence, seed)
    paired = {pair: _paired(rows, *pair) for pair in wanted}
    table = []
    for name in tests:
        found = [{"metric": metric, "method": m, "reference": r, "test": name} | _comparison(*paired[m, r], name, settings) for m, r in wanted]
        corrected = holm([row["p"] for row in found])
        table += [row | {"p_holm": p} for row, p in zip(found, corrected, strict=True)]
    return pd.DataFrame(table, columns=list(COMPARISON_COLUMNS))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values corrected by Holm's step-down method (Scand. J. Stat. 6, 1979); nan stays nan and does not count as a comparison.

    The smallest of n is multiplied by n, the next by n - 1 and so on, and none ends below one before it.
    """
    corrected = np.array(p_values, dtype=float)
    order = np.argsort(corrected)[: np.isfinite(corrected).sum()]
    corrected[order] = np.maximum.accumulate(corrected[order] * np.arange(len(order), 0, -1)).clip(max=1.0)
    return corrected


def bootstrap_interval(sums: np.ndarray, counts: np.ndarray, *, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile interval of `sum(sums) / sum(counts)` over units drawn with replacement; nan for fewer than two units."""
    units = len(sums)
    if units < 2:
        return float("nan"), float("nan")
    random = np.random.default_rng(seed)
    batch = max(1, 2_000_000 // units)  # bounds memory: thousands of samples times thousands of resamples
    means = []
    for start in range(0, RESAMPLES, batch):
        drawn = random.integers(units, size=(min(batch, RESAMPLES - start), units))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _t_test(pairs: Pairs, alternative: str) -> Outcome:
    from scipy import stats

    if pairs.is_constant:
        return Outcome(note="all differences are equal: t is undefined")
    result = stats.ttest_1samp(pairs.difference, 0.0, alternative=alternative)
    return Outcome(float(result.statistic), float(result.pvalue))


def _wilcoxon(pairs: Pairs, alternative: str) -> Outcome:
    from scipy import stats

    differences = pairs.difference
    moved = differences[differences != 0]
    notes = [f"{differences.size - moved.size} zero differences dropped"] if moved.size < differences.size else []
    if moved.size < SMALLEST_WILCOXON:
        notes.append(f"{moved.size} differences cannot reach p < 0.05: {SMALLEST_WILCOXON} are needed")
    result = stats.wilcoxon(moved, alternative=alternative)
    return Outcome(float(result.statistic), float(result.pvalue), "; ".join(notes))


def _mixed_model(pairs: Pairs, alternative: str) -> Outcome:
    from statsmodels.regression.mixed_linear_model import MixedLM

    if len(np.unique(pairs.subject)) < 2:
        return Outcome(note="samples of one subject: a random intercept needs two")
    values = np.concatenate([pairs.method, pairs.reference])
    is_method = np.repeat([1.0, 0.0], pairs.method.size)
    if pairs.is_constant:
        return Outcome(note="all differences are equal: the model has no residual")
    # z and p do not depend on the unit, but the optimiser's thresholds do (ours)
    scaled = (values - values.mean()) / values.std()
    model = MixedLM(scaled, np.column_stack([np.ones_like(is_method), is_method]), groups=np.tile(pairs.subject, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters of them is in `converged` and the standard error
        try:
            fit = model.fit()
        except (np.linalg.LinAlgError, ValueError) as error:
            return Outcome(note=f"the mixed model cannot be fitted ({str(error).splitlines()[0]})")
        statistic, p = float(fit.tvalues[1]), float(fit.pvalues[1])
    if not fit.converged or not np.isfinite([statistic, p]).all():
        return Outcome(note="the mixed model did not converge")
    return Outcome(statistic, p)


TESTS = {
    "paired-t": Test("subject", _t_test),
    "one-sided-t": Test("subject", _t_test, one_sided=True),
    "wilcoxon": Test("subject", _wilcoxon),
    "sample-paired-t": Test("sample", _t_test),
    "sample-one-sided-t": Test("sample", _t_test, one_sided=True),
    "mixed-model": Test("sample", _mixed_model, clustered=True),
}


def _rows_of(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The metric's values by method, subject, case, start and structure, each key once: folds that share a case are averaged."""
    missing = [c for c in SCORE_COLUMNS if c not in scores.columns]
    if missing:
        raise ConcordError(f"scores: no column {', '.join(missing)}; expected {', '.join(SCORE_COLUMNS)}")
    rows = scores[scores["metric"] == metric]
    if rows.empty:
        known = ", ".join(sorted(scores["metric"].astype(str).unique())) or "none"
        raise ConcordError(f"scores: no metric {metric!r}; expected one of: {known}")
    for column, remedy in (("study", "compare one study at a time"), ("unit", "convert the values to one unit")):
        if rows[column].nunique() > 1:
            raise ConcordError(f"scores of {metric!r}: {column} is {', '.join(map(str, rows[column].unique()))}; expected one: {remedy}")
    if rows[["method", "subject"]].isna().any(axis=None):
        raise ConcordError(f"scores of {metric!r}: a row without method or subject; expected both in every row: fill them in")
    try:
        values = rows["value"].astype(float)
    except (ValueError, TypeError) as error:
        raise ConcordError(f"scores of {metric!r}: {error}; expected numbers in the column value") from error
    keys = {c: rows[c].astype("string").fillna("") for c in ("case", "start", "structure")}
    rows = rows[["method", "subject", "value"]].assign(**keys, value=values)
    return rows.groupby(["method", *SAMPLE, "structure"], sort=False, as_index=False)["value"].mean()


def _check_names(known: list[str], methods: Sequence[str], tests: Sequence[str]) -> None:
    for kind, names, allowed in (("method", methods, known), ("test", tests, list(TESTS))):
        for name in names:
            if name not in allowed:
                raise ConcordError(f"comparison: no {kind} {name!r} here; expected one of: {', '.join(map(str, allowed))}")


def _paired(rows: pd.DataFrame, method: str, reference: str) -> tuple[pd.DataFrame, str]:
    """Samples that both methods have (index `SAMPLE`, columns method and reference), and a note on what was left out."""
    sides = [rows[rows["method"] == m].set_index([*SAMPLE, "structure"])["value"] for m in (method, reference)]
    wide = sides[0].rename("method").to_frame().join(sides[1].rename("reference"), how="outer").dropna(how="all")
    complete = wide[np.isfinite(wide).all(axis=1)]
    left_out = len(wide) - len(complete)
    note = f"{left_out} of {len(wide)} values left out: missing or not finite for one of the two" if left_out else ""
    return complete.groupby(SAMPLE)[["method", "reference"]].mean(), note


def _pairs(samples: pd.DataFrame, unit: str) -> Pairs:
    units = samples if unit == "sample" else samples.groupby(["subject", "case"]).mean().groupby("subject").mean()
    subject = units.index.get_level_values("subject").factorize()[0]
    return Pairs(subject, units["method"].to_numpy(dtype=float), units["reference"].to_numpy(dtype=float))


def _comparison(samples: pd.DataFrame, left_out: str, name: str, settings: _Settings) -> dict[str, object]:
    """One row of the table, but for its names and the corrected p."""
    test = TESTS[name]
    pairs = _pairs(samples, test.unit)
    differences = pairs.difference
    outcome = _outcome(test, pairs, settings)
    subjects = len(np.unique(pairs.subject))
    dependent = f"samples of {subjects} subjects, not independent" if subjects < differences.size and not test.clustered else ""
    unit = pairs.subject if test.clustered else np.arange(differences.size)
    low, high = bootstrap_interval(np.bincount(unit, weights=differences), np.bincount(unit), confidence=settings.confidence, seed=settings.seed)
    return {
        "unit_paired": test.unit,
        "n": differences.size,
        "mean_difference": float(differences.mean()) if differences.size else float("nan"),
        "ci_low": low,
        "ci_high": high,
        "effect_size": float("nan") if pairs.is_constant else float(differences.mean() / differences.std(ddof=1)),
        "statistic": outcome.statistic,
        "p": outcome.p,
        "note": "; ".join(note for note in (outcome.note, dependent, left_out) if note),
    }


def _outcome(test: Test, pairs: Pairs, settings: _Settings) -> Outcome:
    if pairs.method.size < 2:
        return Outcome(note=f"{pairs.method.size} paired {test.unit}s: a test needs two")
    if not pairs.difference.any():
        return Outcome(note="all differences are zero")
    return test.run(pairs, settings.better if test.one_sided else "two-sided")
