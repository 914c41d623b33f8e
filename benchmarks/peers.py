"""Our best rows beside greedy and ConvexAdam on the same pairs and threads: Dice, displacement error, folding, seconds.

    python benchmarks/peers.py [--phantoms 3] [--data FOLDER] [--real 3] [--threads 2]

Phantoms: neonatal brains at 2 mm with 80 regions and a known truth, other subjects than those of the study. With --data: the T1 of a patient
of FOLDER/brats onto the T2 of another at 1 mm, cut to the brain; Dice of three tissue classes by one rule (fixed shares of each one's T1,
its shading divided out), as nobody has drawn labels. Brains alone are compared without a mask, which would let them shrink, and after an affine
stage; settings for them were chosen on the pair of the two TCGA patients. greedy (picsl-greedy): affine, then deformable, normalised mutual
information, its own smoothing. ConvexAdam (Siebert et al.): MIND with the defaults of its package, after greedy's affine, whose time is added. Pairs take turns,
tools too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
from common import report
from scipy.ndimage import gaussian_filter

from metrics.accuracy.folding import folding_fraction
from metrics.accuracy.overlap import dice, mean_over_structures
from pipeline.datasets.registry import create_dataset
from pipeline.methods import Pair, Run, create_method, run_method
from pipeline.registration import load_pair
from pipeline.resampling import warp
from pipeline.transform_files import read_transform
from pipeline.transforms import Field, Linear, Transform, compose
from pipeline.volumes import Volume, box_of, read_volume

LOOP = {"control_points": 16, "samples": 50_000, "mask_threshold": 0.1}
OURS = {
    "MI+M, our loop": ("loop", LOOP),
    "MIND-SSC, our loop": ("loop", {**LOOP, "similarity": "mind-ssc", "iterations": 60, "radius_vx": 1}),
    "MI+M, elastix": ("mi-masked", {"control_points": 16, "iterations": 150, "mask_threshold": 0.1}),
}
ALONE = {"control_points": 48, "samples": 50_000, "stages": ["affine", "bspline"], "levels": 3}
OURS_ON_BRAINS = {
    "MI, our loop": ("loop", {**ALONE, "bending_weight": 3}),
    "MI, our loop, smoother": ("loop", {**ALONE, "control_points": 24, "bending_weight": 30}),
    "MI, elastix": ("mi", {"control_points": 16, "iterations": 150, "stages": ["affine", "bspline"]}),
}
SHARES = (15, 58)
"""Percentiles of a brain's T1 that part its three classes, dark to bright: CSF and tumour, grey and white matter, roughly."""
Register = Callable[[Pair], tuple[Transform, float]]


class Task:
    """A pair with what its result is measured by."""

    def __init__(self, name: str, pair: Pair, labels: tuple[Volume, Volume], truth: Transform | None = None) -> None:
        self.name, self.pair, self.labels, self.truth = name, pair, labels, truth
        self.points = pair.fixed.geometry.grid_points()[labels[0].array > 0][::97]

    def scores(self, transform: Transform) -> dict[str, float]:
        """Dice, folding in percent, and the displacement error in mm inside the labels."""
        fixed, moving = self.labels
        moved = warp(moving, transform, fixed.geometry, interpolation="nearest")
        displacement = transform.displacement_vx(fixed.geometry)
        found = {"dice": mean_over_structures(dice(fixed.array, moved.array)), "folding_percent": 100 * folding_fraction(displacement)}
        if self.truth is None:
            return found
        error = np.linalg.norm(transform.points(self.points) - self.truth.points(self.points), axis=1)
        return found | {"error_mm": float(error.mean())}


def phantom_tasks(count: int, folder: Path) -> list[Task]:
    """Pairs of neonatal phantoms of a seed that no setting was chosen on."""
    settings = {"population": "neonate", "subjects": 2 * count, "pairs": count, "spacing_mm": 2.0}
    cases = create_dataset("brain-phantom", settings).cases(folder, Run(seed=77)).cases
    tasks = []
    for case in cases:
        labels = read_volume(case.fixed_labels), read_volume(case.moving_labels)
        tasks.append(Task(f"phantom {case.case}", load_pair(case), labels, read_transform(case.true_transform)))
    return tasks


def patient_tasks(data: Path, count: int) -> list[Task]:
    """The T1 of a patient onto the T2 of the next, cut to the brain."""
    folders = sorted(folder for folder in (data / "brats").iterdir() if (folder / "t1.nii.gz").exists())
    brains = [(folder.name, *(brain(folder / f"{name}.nii.gz") for name in ("t1", "t2"))) for folder in folders]
    tasks = []
    for first, second in list(zip(brains, brains[1:] + brains[:1], strict=True))[:count]:
        fixed, moving = first[1], second[2]
        box = cut_to(fixed)
        classes = tissue_classes(first[1]), tissue_classes(second[1])
        pair = Pair(box(fixed), cut_to(moving)(moving), fixed_modality="t1", moving_modality="t2")
        tasks.append(Task(f"{first[0]} onto {second[0]}", pair, (box(classes[0]), cut_to(moving)(classes[1]))))
        print(tasks[-1].name, pair.fixed.geometry.size, flush=True)
    return tasks


def brain(file: Path) -> Volume:
    volume = read_volume(file)
    return volume.with_array(np.maximum(volume.array, 0).astype(np.float32))


def cut_to(volume: Volume, margin: int = 4) -> Callable[[Volume], Volume]:
    """Cuts volumes of its grid to its brain and a margin."""
    first, behind = box_of(volume.array > 0)
    lower, upper = np.maximum(first - margin, 0).tolist(), np.minimum(behind + margin, volume.geometry.size).tolist()
    return lambda other: other.cropped(lower, upper)


def tissue_classes(t1: Volume) -> Volume:
    """Three classes of a brain by fixed shares of its T1, 0 outside."""
    inside = t1.array > 0.05 * np.percentile(t1.array[t1.array > 0], 99)
    weight, total = (gaussian_filter(part.astype(np.float32), 20) for part in (inside, np.where(inside, t1.array, 0)))
    flat = t1.array * weight / np.maximum(total, 1e-6)
    return t1.with_array(((np.digitize(flat, np.percentile(flat[inside], SHARES)) + 1) * inside).astype(np.uint8))


def ours(name: str, settings: dict[str, object], threads: int) -> Register:
    method = create_method(name, settings)
    method.load()

    def register(pair: Pair) -> tuple[Transform, float]:
        start = time.perf_counter()
        return run_method(method, pair, Run(threads=threads, seed=1)), time.perf_counter() - start

    return register


class Greedy:
    """greedy through its Python package, images in memory."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __call__(self, pair: Pair) -> tuple[Transform, float]:
        tool, seconds = self.after_affine(pair)
        start = time.perf_counter()
        self.run(tool, "-m NMI -n 100x100x50 -i fixed moving -it affine -o warp", warp=None)
        seconds += time.perf_counter() - start
        found = tool["warp"]  # millimetres, LPS
        return compose(Field(sitk.GetArrayFromImage(found).astype(float), pair.fixed.geometry), self.linear(tool)), seconds

    def after_affine(self, pair: Pair) -> tuple[object, float]:
        """The tool with its affine found from the centres of the images, and the seconds it took."""
        from picsl_greedy import Greedy3D

        tool, images = Greedy3D(), {"fixed": sitk_image(pair.fixed), "moving": sitk_image(pair.moving)}
        start = time.perf_counter()
        self.run(tool, "-a -dof 12 -m NMI -ia-image-centers -n 100x50x10 -i fixed moving -o affine", affine=None, **images)
        return tool, time.perf_counter() - start

    def run(self, tool: object, command: str, **images: object) -> None:
        tool.execute(f"-d 3 {command} -threads {self.threads} -V 0", **images)

    @staticmethod
    def linear(tool: object) -> Linear:
        """The affine; its matrices are RAS, ours LPS."""
        flip = np.diag([-1.0, -1.0, 1.0, 1.0])
        turned = flip @ np.asarray(tool["affine"]) @ flip
        return Linear(turned[:3, :3], turned[:3, 3])


def sitk_image(volume: Volume) -> sitk.Image:
    image, grid = sitk.GetImageFromArray(volume.array.astype(np.float32)), volume.geometry
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(np.asarray(grid.direction).ravel().tolist())
    return image


class ConvexAdam:
    """ConvexAdam-MIND of its own package after greedy's affine, on the fixed grid."""

    def __init__(self, threads: int) -> None:
        self.threads, self.greedy = threads, Greedy(threads)

    def __call__(self, pair: Pair) -> tuple[Transform, float]:
        import torch
        from convexAdam.convex_adam_MIND import convex_adam_pt

        torch.set_num_threads(self.threads)
        tool, seconds = self.greedy.after_affine(pair)
        linear = Greedy.linear(tool)
        start = time.perf_counter()
        grid = pair.fixed.geometry
        moving = warp(pair.moving, linear, grid)
        arrays = [torch.as_tensor(volume.array.astype(np.float32)) for volume in (pair.fixed, moving)]
        with contextlib.redirect_stdout(io.StringIO()):
            displacement = convex_adam_pt(*arrays, dtype=torch.float32)  # (z, y, x, 3), voxels along z, y, x
        seconds += time.perf_counter() - start
        field = Field(displacement[..., ::-1].astype(float) @ grid.index_to_physical.T, grid)
        return compose(field, linear), seconds


def main() -> None:
    """Print and keep a row a pair and tool, and the means."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--phantoms", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--real", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(given.threads)
    peers: dict[str, Register] = {"greedy NMI": Greedy(given.threads), "ConvexAdam MIND": ConvexAdam(given.threads)}
    tools = [{name: ours(*how, given.threads) for name, how in rows.items()} | peers for rows in (OURS, OURS_ON_BRAINS)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tasks = phantom_tasks(given.phantoms, Path(folder)) if given.phantoms else []
        tasks += patient_tasks(given.data, given.real) if given.data else []
        for task in tasks:
            rows.append({"pair": task.name, "tool": "unregistered", **task.scores(Linear.identity(3))})
            for name, register in tools[task.truth is None].items():
                transform, seconds = register(task.pair)
                rows.append({"pair": task.name, "tool": name, **task.scores(transform), "seconds": round(seconds, 1)})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table["kind"] = np.where(table["pair"].str.startswith("phantom"), "phantoms", "patients")
    means = table.groupby(["kind", "tool"], sort=False).mean(numeric_only=True).round(4).reset_index()
    report([*rows, *({"pair": f"mean of {row.pop('kind')}", **row} for row in means.to_dict("records"))], "peers")


if __name__ == "__main__":
    main()
