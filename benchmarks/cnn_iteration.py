"""What makes the patch metric practical on a CPU: each option's milliseconds an iteration and its effect on the result, beside MI.

    python benchmarks/cnn_iteration.py WEIGHTS [--pairs 2] [--iterations 60] [--threads 1] [--without "half precision"]

WEIGHTS: a metric fitted to T1 and T2 (results/laptop/weights/metric-all.safetensors of the main job). Pairs are neonatal phantoms at 2 mm of
a seed that no setting was chosen on; similarity and B-spline stage at one resolution, the study's settings. The first row is the reference
of the column `dice_less_reference`; every other row differs from it by what its name says.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import report

from metrics.accuracy.overlap import dice, mean_over_structures
from pipeline.cases import Case
from pipeline.datasets.registry import create_dataset
from pipeline.methods import Run, create_method, run_method
from pipeline.registration import load_pair
from pipeline.resampling import warp
from pipeline.transform_files import read_transform
from pipeline.volumes import read_volume

CNN = {"similarity": "patch-cnn", "levels": 1, "control_points": 16, "mask_threshold": 0.1}
ROWS: dict[str, dict[str, object]] = {
    "CNN: cut to the mask, grid shifted": CNN,
    "every second patch": CNN | {"patch_grid": "sparse"},
    "half precision (fast only on processors that have it)": CNN | {"precision": "bf16"},
    "whole volume, no mask": CNN | {"mask_threshold": None},
    "grid overlapped (8 times the patches)": CNN | {"patch_grid": "overlap"},
    "grid fixed": CNN | {"patch_grid": "fixed"},
    "at most 2000 patches at once": CNN | {"most_patches": 2000},
    "MI, same loop": {"levels": 1, "control_points": 16, "mask_threshold": 0.1, "samples": 50_000},
}


def scores(case: Case, settings: dict[str, object], threads: int) -> tuple[float, float, float]:
    """Milliseconds an iteration (median), Dice, displacement error in mm inside the labels."""
    run = Run(threads=threads, seed=1, trace=[])
    found = run_method(create_method("loop", settings), load_pair(case), run)
    fixed, moving = read_volume(case.fixed_labels), read_volume(case.moving_labels)
    points = fixed.geometry.grid_points()[fixed.array > 0][::97]
    error = np.linalg.norm(found.points(points) - read_transform(case.true_transform).points(points), axis=1).mean()
    labels = warp(moving, found, fixed.geometry, interpolation="nearest")
    return 1000 * statistics.median(row["seconds"] for row in run.trace), mean_over_structures(dice(fixed.array, labels.array)), float(error)


def main() -> None:
    """Print and keep a row an option."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--without", default=None, help="leave out options whose name begins like this: half precision takes ten times as long where it is emulated"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        chosen = {"population": "neonate", "subjects": 2 * given.pairs, "pairs": given.pairs, "spacing_mm": 2.0}
        cases = create_dataset("brain-phantom", chosen).cases(Path(folder), Run(seed=77)).cases
        for name, settings in ROWS.items():
            if given.without and name.startswith(given.without):
                continue
            extra = {"weights": str(given.weights)} if "similarity" in settings else {}
            found = [scores(case, {**settings, **extra, "iterations": given.iterations}, given.threads) for case in cases]
            milliseconds, overlap, error = (round(float(np.mean(column)), 4) for column in zip(*found, strict=True))
            row = {"option": name, "iteration_ms": round(milliseconds, 1), "dice": overlap, "error_mm": round(error, 2)}
            rows.append(row)
            row["dice_less_reference"] = round(overlap - rows[0]["dice"], 4)
            row["time_ratio_to_reference"] = round(row["iteration_ms"] / rows[0]["iteration_ms"], 2)
            print(row, flush=True)
    report(rows, "cnn_iteration")


if __name__ == "__main__":
    main()
