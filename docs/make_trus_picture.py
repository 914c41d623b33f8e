"""Draw docs/phantom-trus.png: MR and transrectal ultrasound of two pelves in the same planes, and the statistics of the speckle.

python docs/make_trus_picture.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from scipy import ndimage

from pipeline.datasets.phantoms.trus import TrusPhantom, TrusSubject, make_subject
from pipeline.datasets.phantoms.trus_probe import Beams, Probe
from pipeline.datasets.phantoms.trus_ultrasound import Medium, Scanner, envelope
from pipeline.volumes import Geometry

ROWS = ((10, "end-fire"), (5, "side-fire"))
PLANES = {"axial": (0, 1), "sagittal": (1, 2), "coronal": (0, 2)}
"""Axes of each plane that run to the right and downwards in the picture; z runs upwards."""
HALF_MM = 48.0
COLOURS = 256


def cut_points(centre_mm: np.ndarray, plane: str, step_mm: float) -> np.ndarray:
    """Points `(row, column, 3)` of a plane of MR through the gland's centre."""
    right, down = PLANES[plane]
    offsets = np.arange(-HALF_MM, HALF_MM + step_mm / 2, step_mm)
    points = np.tile(centre_mm, (len(offsets), len(offsets), 1))
    points[..., right] += offsets
    points[..., down] += (offsets if down == 1 else -offsets)[:, None]
    return points


def cut(array: np.ndarray, geometry: Geometry, points_mm: np.ndarray) -> np.ndarray:
    """Samples of a volume at points, linear, zero outside."""
    return ndimage.map_coordinates(array.astype(np.float32), np.moveaxis(geometry.index_at(points_mm), -1, 0)[::-1], order=1)


def draw_subject(axes: np.ndarray, subject: TrusSubject) -> None:
    """Pairs of panels, MR and ultrasound through the true transform, in three planes; the gland's outline in both."""
    centre = subject.surface_mm.reshape(-1, 3).mean(axis=0)
    place = {"extent": (-HALF_MM, HALF_MM, HALF_MM, -HALF_MM)}
    for pair, plane in zip(axes.reshape(3, 2), PLANES, strict=True):
        points = cut_points(centre, plane, 0.5)
        there = points @ subject.true_matrix[:3, :3].T + subject.true_matrix[:3, 3]
        panels = ((subject.mr, subject.mr_gland, subject.mr_geometry, points, 900), (subject.us, subject.us_gland, subject.us_geometry, there, 255))
        for axis, (image, gland, geometry, where, brightest) in zip(pair, panels, strict=True):
            axis.imshow(cut(image, geometry, where), cmap="gray", vmin=0, vmax=brightest, interpolation="bilinear", **place)
            axis.contour(
                cut(gland, geometry, where)[::-1],
                levels=[0.5],
                colors="#ffd84d",
                linewidths=0.7,
                linestyles="dotted",
                **{"extent": (-HALF_MM, HALF_MM, HALF_MM, -HALF_MM)},
            )


def speckle() -> np.ndarray:
    """Envelope in even tissue, relative to its root mean square."""
    probe = Probe(np.zeros(3), np.eye(3), 10.0, 0.0, 0.6, 0.5, 60.0)
    beams = Beams(*(np.linspace(a, b, n, dtype=np.float32) for a, b, n in ((-0.5, 0.5, 60), (-0.6, 0.6, 100), (0, 60, 200))))
    even = Medium(*(np.full(beams.shape, value, dtype=np.float32) for value in (1, 1.6, 0.5)))
    echoes = envelope(even, probe, beams, Scanner(), np.random.default_rng(0))[4:-4, 5:-5, 5:-5]
    return echoes / np.sqrt((echoes**2).mean())


def draw_speckle(axis: plt.Axes) -> None:
    """Histogram of the envelope beside Rayleigh's density."""
    echoes, level = speckle(), np.linspace(0, 3, 200)
    axis.hist(echoes.ravel(), bins=60, range=(0, 3), density=True, color="#9db8d2")
    axis.plot(level, 2 * level * np.exp(-(level**2)), color="#b03030", linewidth=1.2)
    axis.set_title(f"envelope in even tissue, mean / sd {echoes.mean() / echoes.std():.2f}\nline: Rayleigh, 1.91", fontsize=9)
    axis.set_xlabel("envelope / root mean square", fontsize=8)
    axis.tick_params(labelsize=7)


def main() -> None:
    """Draw and save the picture."""
    figure, grid = plt.subplots(2, 7, figsize=(16.2, 5.2), layout="constrained", width_ratios=[1] * 6 + [1.15])
    for number, (axes, (seed, kind)) in enumerate(zip(grid, ROWS, strict=True)):
        subject = make_subject(TrusPhantom(geometry=kind), seed)
        draw_subject(axes[:6], subject)
        volume_ml = subject.us_gland.sum() * np.prod(subject.us_geometry.spacing_mm) / 1000
        axes[0].set_ylabel(f"{kind} probe, gland {volume_ml:.0f} ml", fontsize=10)
        for axis in axes[:6]:
            axis.set_xticks([])
            axis.set_yticks([])
        if number == 0:
            for axis, title in zip(axes[:6], (f"{image}, {plane}" for plane in PLANES for image in ("MR", "TRUS")), strict=True):
                axis.set_title(title, fontsize=10)
    draw_speckle(grid[0, 6])
    grid[1, 6].axis("off")
    grid[1, 6].text(0, 0.5, "96 × 96 mm,\nTRUS resampled in MR's planes\nthrough the true transform.\nDotted: the gland.", fontsize=9, va="center")
    path = Path(__file__).with_name("phantom-trus.png")
    figure.savefig(path, dpi=105)
    Image.open(path).convert("RGB").quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


if __name__ == "__main__":
    main()
