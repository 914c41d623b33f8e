"""Small 2-D pairs with a known displacement between them, as arrays, volumes and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.cases import Case, write_cases
from pipeline.learned.field_cases import FieldCase
from pipeline.volumes import Geometry, Volume, write_volume

SIZE = (20, 16)


def rings(seed: int, radius: float, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """A bright ring about a pool, `(y, x)` from 0 to 1, and its label map (1 ring, 2 pool)."""
    rng = np.random.default_rng(seed)
    x, y = size
    centre = np.array([y / 2, x / 2]) + rng.uniform(-1, 1, 2)
    ys, xs = np.indices((y, x))
    distance = np.hypot(ys - centre[0], xs - centre[1])
    ring = 1 / (1 + np.exp(3 * (distance - radius - 2))) - 0.6 / (1 + np.exp(3 * (distance - radius)))
    labels = np.where(distance < radius, 2, np.where(distance < radius + 2, 1, 0))
    image = ring + 0.1 * np.sin(xs / 3 + rng.uniform(0, 6))
    image = (image - image.min()) / np.ptp(image)
    return image.astype(np.float32), labels.astype(np.uint8)


def pair_arrays(seed: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Images and label maps `(2, y, x)` of a wide and a narrow pool."""
    wide, narrow = rings(seed, 4.0, size), rings(seed, 2.0, size)
    return np.stack([wide[0], narrow[0]]), np.stack([wide[1], narrow[1]])


def field_case(seed: int, subject: str | None = None, size: tuple[int, int] = SIZE) -> FieldCase:
    """A case as networks are fitted to."""
    images, labels = pair_arrays(seed, size)
    return FieldCase(f"case-{seed}", (subject or f"sub-{seed}",), images, labels.astype(np.int16), ((f"{seed}.mha", str(seed)),))


def written_cases(folder: Path, subjects: dict[str, int], **more) -> Path:
    """`cases.csv` with so many slices a subject, in files that need no ITK."""
    cases = []
    geometry = Geometry.regular(SIZE, (1.5, 2.0))
    for subject, count in subjects.items():
        for number in range(count):
            seed = len(cases)
            images, labels = pair_arrays(seed)
            arrays = {"fixed": images[0], "moving": images[1], "fixed_labels": labels[0], "moving_labels": labels[1]}
            files = {name: folder / f"{seed}-{name}.mha" for name in arrays}
            for name, array in arrays.items():
                write_volume(Volume(array, geometry, name), files[name])
            cases.append(Case(case=f"{subject}_z{number:02d}", subject=subject, **files, **more))
    write_cases(cases, folder / "cases.csv")
    return folder / "cases.csv"
