"""Real volumes: a patch metric fitted to three aligned T1/T2 pairs, then T1 to T2 registration of others, beside MI and MIND-SSC.

    python benchmarks/real_volumes.py DATA [--steps 700] [--truths 2]

DATA holds brats/ (aligned T1/T2 of four patients), templates/ (avg152T1 and avg152T2 with grey, white and CSF maps on one grid) and
ms_t1_t2/. (a) avg152T1 onto an avg152T2 that is deformed by a known transform: displacement error, and Dice of the tissues.
(b) the T1 of the MS patient onto the T2 of a BraTS patient and back: Dice of tissue classes by intensity. All at 2 mm.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from common import report

from metrics.accuracy.overlap import dice
from pipeline.learned.patch_metric import fit_patch_metric
from pipeline.learned.patch_pairs import AlignedPair
from pipeline.learned.settings.patch_metric import PatchMetricFit, PatchPairSettings
from pipeline.methods import Pair, Run, create_method, run_method
from pipeline.optimise.models import SplineModel
from pipeline.resampling import resample, smooth, warp
from pipeline.starting import threshold_mask
from pipeline.transforms import Transform, inverse_points
from pipeline.volumes import Volume, read_volume

SPACING_MM = 2.0
THREADS = 1
LOOP = {"control_points": 16, "iterations": 100, "samples": 50_000, "mask_threshold": 0.1}
ROWS = {
    "MI+M, elastix": ("mi-masked", {"control_points": 16, "iterations": 150, "mask_threshold": 0.1}),
    "MI+M, our loop": ("loop", LOOP),
    "MIND-SSC, our loop": ("loop", {**LOOP, "iterations": 60, "similarity": "mind-ssc", "radius_vx": 1}),
    "CNN, our loop": ("loop", {**LOOP, "iterations": 60, "similarity": "patch-cnn", "levels": 1}),
}


def at_spacing(volume: Volume) -> Volume:
    """The volume at 2 mm, smoothed for it."""
    if np.allclose(volume.geometry.spacing_mm, SPACING_MM):
        return volume
    return resample(smooth(volume, SPACING_MM / 2.35), volume.geometry.with_spacing(SPACING_MM))


def brats(data: Path) -> list[tuple[str, Volume, Volume]]:
    """Name, T1 and T2 of every patient."""
    folders = sorted(folder for folder in (data / "brats").iterdir() if (folder / "t1.nii.gz").exists())
    return [(folder.name, *(at_spacing(read_volume(folder / f"{name}.nii.gz")) for name in ("t1", "t2"))) for folder in folders]


def fitted(patients: list[tuple[str, Volume, Volume]], steps: int, out: Path) -> Path:
    """Weights of a metric fitted to these patients."""
    pairs = [AlignedPair(np.maximum(t1.array, 0), np.maximum(t2.array, 0), name) for name, t1, t2 in patients]
    how = {"optimiser": "adam", "learning_rate": 1e-3, "decay": "cosine", "sampler": PatchPairSettings(patch=25, batch=16)}
    settings = PatchMetricFit(configuration="slim", steps=steps, validation_every=steps, **how)
    fit_patch_metric(pairs, [], settings, seed=1, threads=1, out=out)
    return out.with_suffix(".safetensors")


def deformed(seed: int, image: Volume, labels: Volume) -> tuple[Volume, Volume, Transform]:
    """The image and labels moved by a smooth random transform, and that transform, from moved to original points."""
    model = SplineModel.over(image.geometry, (30.0,) * 3)
    moved = model.transform(np.random.default_rng(seed).normal(0, 5.0, model.initial().shape))
    return warp(image, moved, image.geometry), warp(labels, moved, image.geometry, interpolation="nearest"), moved


def tissue_classes(t1: Volume) -> Volume:
    """Three classes of the head by multi-Otsu thresholds of its T1, 0 outside: no gold standard, the same rule for all."""
    from skimage.filters import threshold_multiotsu

    inside = t1.array > 0.05 * np.percentile(t1.array, 99)
    thresholds = threshold_multiotsu(np.clip(t1.array[inside], None, np.percentile(t1.array[inside], 99)), classes=3)
    return t1.with_array(((np.digitize(t1.array, thresholds) + 1) * inside).astype(np.uint8))


def template_labels(data: Path, grid: Volume) -> Volume:
    """1 grey, 2 white, 3 CSF where the most probable one exceeds a half."""
    maps = np.stack([read_volume(data / "templates" / f"{name}.nii").array.astype(float) for name in ("grey", "white", "csf")])
    maps /= maps.max()
    return grid.with_array(np.where(maps.max(0) > 0.5, maps.argmax(0) + 1, 0).astype(np.uint8))


def mean_dice(fixed: Volume, moving: Volume, transform: Transform) -> float:
    return float(np.mean(list(dice(fixed.array, warp(moving, transform, fixed.geometry, interpolation="nearest").array).values())))


def registered(row: str, pair: Pair, weights: Path) -> tuple[Transform, float]:
    name, settings = ROWS[row]
    method = create_method(name, {**settings, **({"weights": weights} if settings.get("similarity") == "patch-cnn" else {})})
    method.load()
    start = time.perf_counter()
    return run_method(method, pair, Run(threads=THREADS, seed=1)), time.perf_counter() - start


def template_rows(data: Path, weights: Path, truths: int) -> list[dict[str, object]]:
    """Displacement error and Dice for the deformed template."""
    t1, t2 = (read_volume(data / "templates" / f"avg152{name}.nii") for name in ("T1", "T2"))
    labels = template_labels(data, t1)
    brain = threshold_mask(t1, 0.2).array.astype(bool)
    points = t1.geometry.grid_points()[brain][::50]
    rows = []
    for seed in range(truths):
        moving, moving_labels, moved = deformed(seed, t2, labels)
        true = inverse_points(moved, points)
        error = partial(lambda found, true: float(np.linalg.norm(found - true, axis=1).mean()), true=true)
        rows.append({"task": f"avg152 {seed}", "row": "unregistered", "error_mm": error(points)})
        for row in ROWS:
            found, seconds = registered(row, Pair(t1, moving, fixed_modality="t1", moving_modality="t2"), weights)
            scores = {"error_mm": error(found.points(points)), "dice": mean_dice(labels, moving_labels, found), "seconds": seconds}
            rows.append({"task": f"avg152 {seed}", "row": row, **scores})
            print(rows[-1], flush=True)
    return rows


def patient_rows(data: Path, patient: tuple[str, Volume, Volume], weights: Path) -> list[dict[str, object]]:
    """Dice of tissue classes between the MS patient and a patient whom the metric has not seen, both directions."""
    ms1, ms2 = (at_spacing(read_volume(data / "ms_t1_t2" / f"{name}.nii.gz")) for name in ("VolumetricT1norm", "T2norm"))
    ms1, ms2 = (volume.with_array(np.maximum(volume.array - np.median(volume.array), 0).astype(np.float32)) for volume in (ms1, ms2))
    name, t1, t2 = patient
    classes = {"ms": tissue_classes(ms1), name: tissue_classes(t1)}
    tasks = [("ms T1", name, ms1, t2, ("t1", "t2"), ("ms", name)), (f"{name} T2", "ms", t2, ms1, ("t2", "t1"), (name, "ms"))]
    rows = []
    for title, _, fixed, moving, (first, second), (of_fixed, of_moving) in tasks:
        pair = Pair(fixed, moving, fixed_modality=first, moving_modality=second)
        for row in ROWS:
            found, seconds = registered(row, pair, weights)
            rows.append({"task": f"onto {title}", "row": row, "dice": mean_dice(classes[of_fixed], classes[of_moving], found), "seconds": seconds})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--truths", type=int, default=2)
    given = parser.parse_args()
    patients = brats(given.data)
    with tempfile.TemporaryDirectory() as folder:
        weights = fitted(patients[:3], given.steps, Path(folder) / "metric")
        print(json.loads(weights.with_suffix(".json").read_text())["scores"], flush=True)
        rows = template_rows(given.data, weights, given.truths) + patient_rows(given.data, patients[3], weights)
    report(rows, "real_volumes")


if __name__ == "__main__":
    main()
