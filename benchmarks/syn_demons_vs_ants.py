"""SyN against antspyx and Demons against SimpleITK, same metric, pyramid and iterations, on brain phantoms whose truth is known.

python benchmarks/syn_demons_vs_ants.py [spacing_mm] [pairs] [threads]

antspyx has no Demons: the peer is the same ITK filter through SimpleITK, in the multi-scale loop that its users write; antspyx's
time-varying mean-squares method stands beside it. A small pair is registered first by all, so that loading libraries is not timed.
antspyx fixes its own stop rule (1e-7 over 8 iterations), so it may do fewer iterations than ours: `iterations` are the most.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

THREADS = int(sys.argv[3]) if len(sys.argv) > 3 else 2
os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(THREADS)  # antspyx reads it when it loads

import ants  # noqa: E402
import numpy as np  # noqa: E402
import SimpleITK as sitk  # noqa: E402
from common import median_ratio, report  # noqa: E402

from metrics.accuracy.folding import folding_fraction  # noqa: E402
from metrics.accuracy.overlap import dice, mean_over_structures  # noqa: E402
from pipeline.classical.demons import Demons  # noqa: E402
from pipeline.classical.syn import SyN  # noqa: E402
from pipeline.datasets.phantoms.brain import BrainPhantom, BrainSubject, make_subject, true_displacement_mm  # noqa: E402
from pipeline.methods import Method, Pair, Run, create_method  # noqa: E402
from pipeline.resampling import warp  # noqa: E402
from pipeline.transforms import Field, Linear, Transform, compose  # noqa: E402
from pipeline.volumes import Volume, read_vector_field  # noqa: E402

ITERATIONS = (60, 40, 20)
FIRST_SEED = 101
"""Subjects from here on: settings were chosen on seeds 1 to 6, which this comparison leaves alone."""
Register = Callable[[Pair], Transform]


@dataclass(frozen=True)
class Comparison:
    """One of ours and its peer, on which contrasts."""

    name: str
    contrasts: tuple[str, str]
    ours: Register
    peer_name: str
    peer: Register


def ours(method: Method) -> Register:
    return lambda pair: method.register(pair, Run(threads=THREADS))


def antspyx(kind: str, metric: str, parameter: int, **settings: object) -> Register:
    """antspyx with the update's variance 3 voxels and the total field left alone, as ours."""

    def register(pair: Pair) -> Transform:
        start = {"initial_transform": "Identity"} if kind in ("SyNOnly", "TVMSQ") else {}
        choices = {"grad_step": 0.2, "flow_sigma": 3, "total_sigma": 0, "reg_iterations": ITERATIONS, "random_seed": 1} | settings
        names = {"type_of_transform": kind, "syn_metric": metric, "syn_sampling": parameter}
        found = ants.registration(ants_image(pair.fixed), ants_image(pair.moving), **start, **names, **choices)
        parts = [read_part(Path(file)) for file in found["fwdtransforms"]]
        return compose(*parts)

    return register


def ants_image(volume: Volume) -> object:
    grid = volume.geometry
    return ants.from_numpy(volume.array.astype(np.float32).T.copy(), grid.origin_mm, grid.spacing_mm, np.asarray(grid.direction))


def read_part(file: Path) -> Transform:
    if file.name.endswith(".nii.gz"):
        return Field(*read_vector_field(file))
    affine = ants.read_transform(str(file))
    matrix, shift = np.reshape(affine.parameters[:9], (3, 3)), np.asarray(affine.parameters[9:])
    centre = np.asarray(affine.fixed_parameters[:3])
    return Linear(matrix, shift + centre - matrix @ centre)


def simpleitk_demons(pair: Pair) -> Transform:
    """Histogram matching, then coarse to fine with the settings of our default."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(THREADS)
    fixed, moving = (sitk_image(v) for v in (pair.fixed, pair.moving))
    moving = sitk.HistogramMatching(moving, fixed, 256, 15, True)
    method, field = Demons(), None
    for factor, iterations in zip(method.shrink_factors, method.iterations, strict=True):
        sigma_mm = max(float(np.log2(factor)) * min(pair.fixed.geometry.spacing_mm), 1e-3)
        coarse = [sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, sigma_mm), [factor] * 3) for image in (fixed, moving)]
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        demons.SetStandardDeviations(1.5)
        demons.SetMaximumUpdateStepLength(method.maximum_step_vx)
        demons.SetMaximumError(0.01)
        field = demons.Execute(*coarse, sitk.Resample(field, coarse[0])) if field else demons.Execute(*coarse)
    return Field(sitk.GetArrayFromImage(sitk.Resample(field, fixed)).astype(float), pair.fixed.geometry)


def sitk_image(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(volume.array.astype(np.float32))
    image.SetSpacing(volume.geometry.spacing_mm)
    image.SetOrigin(volume.geometry.origin_mm)
    image.SetDirection(np.ravel(volume.geometry.direction).tolist())
    return image


def comparisons() -> list[Comparison]:
    stopping = SyN(linear="none", convergence_threshold=1e-6)
    return [
        Comparison("SyN MI", ("t1", "t2"), ours(SyN(linear="none")), "antspyx SyNOnly mattes", antspyx("SyNOnly", "mattes", 32)),
        Comparison("SyN MI, stop at 1e-6", ("t1", "t2"), ours(stopping), "antspyx SyNOnly mattes", antspyx("SyNOnly", "mattes", 32)),
        Comparison("affine + SyN MI", ("t1", "t2"), ours(SyN()), "antspyx SyN mattes", antspyx("SyN", "mattes", 32)),
        Comparison("Demons", ("t1", "t1"), ours(Demons()), "SimpleITK Demons", simpleitk_demons),
        Comparison(
            "Demons", ("t1", "t1"), ours(Demons()), "antspyx TVMSQ", antspyx("TVMSQ", "meansquares", 0, grad_step=1.0, reg_iterations=(40, 20, 0))
        ),
        Comparison("affine + SyN CC 4", ("t1", "t1"), ours(create_method("syn-cc")), "antspyx SyN CC 4", antspyx("SyN", "CC", 4)),
    ]


def scores(transform: Transform, fixed: BrainSubject, moving: BrainSubject) -> dict[str, float]:
    brain, grid = fixed.regions > 0, fixed.geometry
    labels = warp(Volume(moving.regions, grid), transform, grid, interpolation="nearest").array
    away = np.linalg.norm(transform.displacement_mm(grid) - true_displacement_mm(fixed, moving), axis=-1)[brain]
    return {
        "dice": mean_over_structures(dice(fixed.regions, labels)),
        "error_mm": float(away.mean()),
        "folded": folding_fraction(transform.displacement_vx(grid), brain),
    }


def pair_of(fixed: BrainSubject, moving: BrainSubject, contrasts: tuple[str, str]) -> Pair:
    return Pair(Volume(fixed.images[contrasts[0]], fixed.geometry), Volume(moving.images[contrasts[1]], moving.geometry))


def run(which: Comparison, subjects: list[tuple[BrainSubject, BrainSubject]]) -> list[dict[str, object]]:
    """One row for ours, one for the peer: means over the pairs, and the median ratio of the seconds."""
    seconds: tuple[list[float], list[float]] = ([], [])
    found: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    for fixed, moving in subjects:
        for n, register in enumerate((which.ours, which.peer)):
            start = time.perf_counter()
            transform = register(pair_of(fixed, moving, which.contrasts))
            seconds[n].append(time.perf_counter() - start)
            found[n].append(scores(transform, fixed, moving))
    contrasts = " to ".join(which.contrasts)
    rows: list[dict[str, object]] = []
    for n, name in enumerate((which.name, which.peer_name)):
        means = {key: round(float(np.mean([row[key] for row in found[n]])), 4) for key in found[n][0]}
        rows.append({"method": name, "contrasts": contrasts, **means, "seconds": round(float(np.median(seconds[n])), 2)})
    rows[0]["seconds_ratio_to_peer"] = round(median_ratio(*seconds), 2)
    return rows


def main() -> None:
    spacing_mm = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    phantom, small = BrainPhantom(spacing_mm=spacing_mm), BrainPhantom(spacing_mm=6.0)
    subjects = [(make_subject(phantom, FIRST_SEED + 2 * n), make_subject(phantom, FIRST_SEED + 2 * n + 1)) for n in range(pairs)]
    warm_up = (make_subject(small, 1), make_subject(small, 2))
    unmoved = [scores(Linear.identity(3), *subject) for subject in subjects]
    start = {key: round(float(np.mean([row[key] for row in unmoved])), 4) for key in unmoved[0]}
    rows: list[dict[str, object]] = [{"method": "unregistered", "contrasts": "any", **start}]
    for which in comparisons():
        run(which, [warm_up])
        rows += run(which, subjects)
        report([{**row, "spacing_mm": spacing_mm, "pairs": pairs, "threads": THREADS} for row in rows], "syn_demons_vs_ants")


if __name__ == "__main__":
    main()
