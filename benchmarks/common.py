"""What the benchmarks share: interleaved timing in one run, and a table of ratios kept as CSV."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parent / "results"


def interleaved(first: Callable[[], object], second: Callable[[], object], *, runs: int = 5, warm_up: int = 1) -> tuple[list[float], list[float]]:
    """Seconds of both, run in turn A B A B …, so that a machine whose speed drifts treats them alike."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for run in range(warm_up + runs):
        for which, call in enumerate((first, second)):
            start = time.perf_counter()
            call()
            if run >= warm_up:
                seconds[which].append(time.perf_counter() - start)
    return seconds


def median_ratio(first: list[float], second: list[float]) -> float:
    """Median of the pairwise ratios first / second."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def report(rows: list[dict[str, object]], name: str) -> None:
    """Print the rows as a table and keep them as benchmarks/results/NAME.csv."""
    table = pd.DataFrame(rows)
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / f"{name}.csv", index=False)
    print(table.to_string(index=False))
    sys.stdout.flush()
