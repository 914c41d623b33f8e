"""What the benchmarks share: interleaved timing in one run, and a table of ratios kept as CSV."""

from __future__ import annotations

import multiprocessing
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


def peak_mib(make: Callable[..., Callable[[], object]], *arguments: object, small: tuple[object, ...] = (), threads: int = 1) -> float:
    """MiB that the call `make(*arguments)()` needs beyond what `make` has prepared, in a fresh process.

    `make(*small)()` is called before: libraries load their code with the first call, which is not the call's memory.
    """
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_tell_peak_mib, args=(answer, make, arguments, small, threads))
    process.start()
    found = answer.get()
    process.join()
    return found


def _tell_peak_mib(answer: multiprocessing.Queue, make: Callable, arguments: tuple[object, ...], small: tuple[object, ...], threads: int) -> None:
    import psutil
    import torch

    from pipeline.provenance import measured

    torch.set_num_threads(threads)
    if small:
        make(*small)()
    call = make(*arguments)
    before = psutil.Process().memory_info().rss / 2**20
    with measured() as cost:
        call()
    answer.put(cost.peak_memory_mib - before)


def compared(make: Callable[..., Callable[[], object]], first: tuple[object, ...], second: tuple[object, ...], **how: object) -> dict[str, float]:
    """Least milliseconds, peak memory and their ratios, first over second, of two calls that `make` prepares. `how`: runs, threads, small."""
    runs, threads, small = how.get("runs", 5), how.get("threads", 1), how.get("small", ())
    mine, others = interleaved(make(*first), make(*second), runs=runs)
    mib = [peak_mib(make, *arguments, small=small, threads=threads) for arguments in (first, second)]
    times = {"first_ms": round(1000 * min(mine), 3), "second_ms": round(1000 * min(others), 3), "time_ratio": round(median_ratio(mine, others), 4)}
    return times | {"first_mib": round(mib[0], 1), "second_mib": round(mib[1], 1), "memory_ratio": round(mib[0] / max(mib[1], 0.1), 4)}


def report(rows: list[dict[str, object]], name: str) -> None:
    """Print the rows as a table and keep them as benchmarks/results/NAME.csv."""
    table = pd.DataFrame(rows)
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / f"{name}.csv", index=False)
    print(table.to_string(index=False))
    sys.stdout.flush()
