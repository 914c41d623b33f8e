"""Our loop with mutual information beside elastix and ITK's v4 registration: same transforms, samples and iterations, time and Dice.

    python benchmarks/loop_speed.py [--spacing 2] [--samples 20000] [--iterations 100] [--runs 3] [--threads 2]

elastix: similarity, then B-spline, two resolutions each, fresh samples every iteration. ITK v4: one level of a B-spline from the identity,
regular-step gradient descent on fixed regular samples (its Python package has no per-iteration samples). Pairs are neonatal phantoms.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import interleaved, median_ratio, report

from metrics.accuracy.overlap import dice
from pipeline.cases import Case
from pipeline.classical.pyramid import itk_threads
from pipeline.datasets.registry import create_dataset
from pipeline.methods import Pair, Run, create_method, run_method
from pipeline.optimise.models import SplineModel
from pipeline.registration import load_pair
from pipeline.resampling import warp
from pipeline.transforms import Transform, from_itk, to_itk
from pipeline.volumes import read_volume
from pipeline.volumes import to_itk as image_to_itk

CONTROL_POINTS = 16


def phantom_case(spacing_mm: float, folder: Path) -> Case:
    """One pair of two neonatal phantoms."""
    settings = {"population": "neonate", "subjects": 2, "pairs": 1, "directions": ["t1-t2"], "spacing_mm": spacing_mm}
    return create_dataset("brain-phantom", settings).cases(folder, Run(seed=3)).cases[0]


def mean_dice(case: Case, transform: Transform) -> float:
    """Mean over all regions."""
    fixed, moving = read_volume(case.fixed_labels), read_volume(case.moving_labels)
    return float(np.mean(list(dice(fixed.array, warp(moving, transform, fixed.geometry, interpolation="nearest").array).values())))


def itk_v4(pair: Pair, samples: int, iterations: int, threads: int) -> Transform:
    """A B-spline by ITK's own v4 registration."""
    import itk

    image, grid = itk.Image[itk.F, 3], pair.fixed.geometry
    metric = itk.MattesMutualInformationImageToImageMetricv4[image, image].New()
    metric.SetNumberOfHistogramBins(75)
    metric.SetUseMovingImageGradientFilter(False)
    metric.SetUseFixedImageGradientFilter(False)
    optimiser = itk.RegularStepGradientDescentOptimizerv4.New()
    optimiser.SetLearningRate(10.0)
    optimiser.SetRelaxationFactor(0.8)
    optimiser.SetMinimumStepLength(1e-6)
    optimiser.SetNumberOfIterations(iterations)
    optimiser.SetGradientMagnitudeTolerance(1e-12)
    optimiser.SetMinimumConvergenceValue(-1e10)
    optimiser.SetDoEstimateLearningRateOnce(False)
    optimiser.SetDoEstimateScales(False)
    method = itk.ImageRegistrationMethodv4[image, image].New()
    method.SetFixedImage(image_to_itk(pair.fixed, np.float32))
    method.SetMovingImage(image_to_itk(pair.moving, np.float32))
    method.SetMetric(metric)
    method.SetOptimizer(optimiser)
    model = SplineModel.over(grid, tuple((np.multiply(grid.size, grid.spacing_mm) / (CONTROL_POINTS - 3)).tolist()))
    method.SetInitialTransform(to_itk(model.transform(model.initial())))
    method.InPlaceOn()
    method.SetNumberOfLevels(1)
    method.SetShrinkFactorsPerLevel([1])
    method.SetSmoothingSigmasPerLevel([0])
    method.SetMetricSamplingStrategy(itk.ImageRegistrationMethodv4Enums.MetricSamplingStrategy_REGULAR)
    method.SetMetricSamplingPercentage(samples / pair.fixed.array.size)
    with itk_threads(threads):
        method.Update()
    return from_itk(method.GetModifiableTransform())


def row_of(name: str, case: Case, peer: Callable[[], Transform], ours: Callable[[], Transform], runs: int) -> dict[str, Any]:
    """Both timed in turn, and both scored."""
    theirs, mine = interleaved(peer, ours, runs=runs)
    scores = {"peer_dice": mean_dice(case, peer()), "ours_dice": mean_dice(case, ours())}
    return {"peer": name, "peer_s": min(theirs), "ours_s": min(mine), "ours_over_peer": median_ratio(mine, theirs), **scores}


def main() -> None:
    """Print and keep times, ratios and Dice."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spacing", type=float, default=2.0)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    run = Run(threads=given.threads, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        case = phantom_case(given.spacing, Path(folder))
        pair = load_pair(case)
        common = {"control_points": CONTROL_POINTS, "samples": given.samples}
        elastix, loop = (
            create_method("mi", {**common, "iterations": given.iterations}),
            create_method("loop", {**common, "iterations": given.iterations}),
        )
        plain = {"stages": ["bspline"], "levels": 1, "optimiser": "regular-step", "learning_rate": 10.0, "minimum_step_mm": 1e-6, "fresh": False}
        few = max(1, given.iterations // 10)
        spline = create_method("loop", {**common, **plain, "image_gradient": "central", "iterations": few})
        for method in (elastix, loop):
            method.load()
        rows = [row_of("elastix", case, lambda: run_method(elastix, pair, run), lambda: run_method(loop, pair, run), given.runs)]
        start = time.perf_counter()
        rows += [row_of("ITK v4", case, lambda: itk_v4(pair, given.samples, few, given.threads), lambda: run_method(spline, pair, run), 1)]
        print(f"ITK rows took {time.perf_counter() - start:.0f} s")
    report([{**row, "samples": given.samples, "iterations": given.iterations, "threads": given.threads} for row in rows], "loop_speed")


if __name__ == "__main__":
    main()
