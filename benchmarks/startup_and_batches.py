"""Start-up of `concord --help`, and the share of a batch of small cases that is not registration.

python benchmarks/startup_and_batches.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import report
from scipy.ndimage import gaussian_filter

from pipeline.cases import Case, write_cases
from pipeline.volumes import Geometry, Volume, write_volume

CASES = 20


def help_seconds(runs: int = 10) -> list[float]:
    """Wall-clock seconds of `concord --help` as a whole process."""
    command = [str(Path(sys.executable).parent / "concord"), "--help"]
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return seconds


def small_cases(folder: Path) -> Path:
    """A table of 20 pairs of 128 × 128 images, the moving one shifted."""
    cases, geometry = [], Geometry.regular((128, 128), 1.5)
    for n in range(CASES):
        image = gaussian_filter(np.random.default_rng(n).normal(size=geometry.shape), 4)
        files = {"fixed": folder / f"{n}-fixed.mha", "moving": folder / f"{n}-moving.mha"}
        write_volume(Volume(image.astype(np.float32), geometry), files["fixed"])
        write_volume(Volume(np.roll(image, 3, axis=1).astype(np.float32), geometry), files["moving"])
        cases.append(Case(case=f"c{n}", subject=f"s{n}", **files))
    write_cases(cases, folder / "cases.csv")
    return folder / "cases.csv"


def batch(settings: dict[str, object], folder: Path) -> dict[str, object]:
    """One batch as the workflow runs it: whole process against the sum of its cases."""
    manifest = folder / settings["use"] / "batch-0.csv"
    command = [sys.executable, "-m", "pipeline", "stage", "register", "--settings", json.dumps(settings), "--cases", str(small_cases(folder))]
    start = time.perf_counter()
    subprocess.run([*command, "--manifest", str(manifest)], check=True, stderr=subprocess.DEVNULL)
    whole = time.perf_counter() - start
    cases = pd.read_csv(manifest)["seconds"]
    # the first case pays for importing ITK; what the others take is what registration takes
    registration = float(cases[1:].sum() + cases[1:].median())
    return {
        "what": f"batch of {CASES} 2-D cases, {settings['use']}",
        "seconds": round(whole, 2),
        "registration_seconds": round(registration, 2),
        "outside_registration": round(1 - registration / whole, 3),
    }


def main() -> None:
    """Print and keep both."""
    times = help_seconds()
    rows: list[dict[str, object]] = [{"what": "concord --help", "seconds": round(float(np.median(times)), 3)}]
    with tempfile.TemporaryDirectory() as name:
        rows += [batch({"use": method}, Path(name)) for method in ("mi", "demons", "syn")]
    report(rows, "startup_and_batches")


if __name__ == "__main__":
    main()
