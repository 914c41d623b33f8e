"""One value and derivative of mean squares and Mattes MI for a B-spline: ours beside ITK's v4 metrics on the same dense samples.

    python benchmarks/bspline_derivative.py [--edges 48 96] [--control 10 16] [--threads 1]

Both evaluate every voxel and hand back the derivative by all control points. ITK's metric multiplies image gradient and Jacobian sample
by sample; ours sums the same products through three small matrices. `adjoint_share`: the Jacobian product's part of our time.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from common import interleaved, median_ratio, report
from scipy.ndimage import gaussian_filter

from pipeline.classical.pyramid import itk_threads
from pipeline.optimise.method import OptimiserLoop
from pipeline.optimise.models import SplineModel
from pipeline.optimise.moving import MovingImage
from pipeline.optimise.objective import Objective
from pipeline.optimise.plans import SamplingPlan
from pipeline.optimise.similarities import SIMILARITIES, Level
from pipeline.transforms import Linear, to_itk
from pipeline.volumes import Geometry, Volume
from pipeline.volumes import to_itk as image_to_itk

ITK = {"mean-squares": "MeanSquaresImageToImageMetricv4", "mi": "MattesMutualInformationImageToImageMetricv4"}
BINS = 32


def image(edge: int, seed: int) -> Volume:
    array = gaussian_filter(np.random.default_rng(seed).random((edge,) * 3), 2.5, mode="wrap").astype(np.float32)
    return Volume((array - array.min()) / np.ptp(array), Geometry.regular((edge,) * 3, 1.0))


def objective(similarity: str, fixed: Volume, moving: Volume, model: SplineModel) -> Objective:
    prepared = MovingImage.of(moving, gradient="central")
    level, settings = Level(prepared, fixed.geometry.spacing_mm[::-1]), OptimiserLoop(similarity=similarity, bins=BINS)
    return Objective(
        model=model,
        fixed=torch.from_numpy(fixed.array),
        moving=prepared,
        plan=SamplingPlan(fixed.geometry),
        make_similarity=lambda samples: SIMILARITIES[similarity].make(samples, settings, level),
        after=Linear.identity(3),
    )


def itk_metric(similarity: str, fixed: Volume, moving: Volume, transform: object) -> object:
    import itk

    kind = itk.Image[itk.F, 3]
    metric = getattr(itk, ITK[similarity])[kind, kind].New()
    metric.SetUseMovingImageGradientFilter(False)
    metric.SetUseFixedImageGradientFilter(False)
    if similarity == "mi":
        metric.SetNumberOfHistogramBins(BINS)
    metric.SetFixedImage(image_to_itk(fixed, np.float32))
    metric.SetMovingImage(image_to_itk(moving, np.float32))
    metric.SetMovingTransform(transform)
    metric.Initialize()
    return metric


def row(similarity: str, edge: int, control_points: int, runs: int) -> dict[str, object]:
    """Seconds of both, their ratio, and how far the derivatives differ."""
    import itk

    fixed, moving = image(edge, 1), image(edge + 20, 2)  # at its border ITK's differences are one-sided
    model = SplineModel.over(fixed.geometry, (edge / (control_points - 3),) * 3)
    parameters = np.random.default_rng(4).normal(0, 0.5, model.initial().shape)
    ours = objective(similarity, fixed, moving, model)
    metric = itk_metric(similarity, fixed, moving, to_itk(model.transform(parameters)))
    derivative = itk.Array[itk.D](metric.GetNumberOfParameters())

    seconds = interleaved(lambda: ours(parameters), lambda: metric.GetDerivative(derivative), runs=runs)
    expected = -np.array([derivative.GetElement(i) for i in range(derivative.Size())])
    found = ours(parameters).gradient
    _, samples = ours.plan.draw(0)
    pulled = torch.ones(edge**3, 3)
    start = time.perf_counter()
    for _ in range(runs):
        model.pull(parameters, samples, ours.moving.units(ours.after), pulled)
    adjoint = (time.perf_counter() - start) / runs
    return {
        "similarity": similarity,
        "samples": edge**3,
        "parameters": len(parameters),
        "ours_ms": round(1000 * float(np.median(seconds[0])), 1),
        "itk_ms": round(1000 * float(np.median(seconds[1])), 1),
        "time_ratio_ours_to_itk": round(median_ratio(*seconds), 4),
        "adjoint_share": round(adjoint / float(np.median(seconds[0])), 2),
        "relative_difference": float(f"{np.linalg.norm(found - expected) / np.linalg.norm(expected):.1e}"),
    }


def main() -> None:
    """Print and keep a row a similarity, size and control grid."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--edges", type=int, nargs="+", default=[48, 96])
    parser.add_argument("--control", type=int, nargs="+", default=[10, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with itk_threads(given.threads):
        rows = [row(name, edge, control, given.runs) for name in ITK for edge in given.edges for control in given.control]
    report([{**one, "threads": given.threads} for one in rows], "bspline_derivative")


if __name__ == "__main__":
    main()
