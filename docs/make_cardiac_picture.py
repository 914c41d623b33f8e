"""Draw docs/phantom-cardiac.png: the five groups of the cardiac phantom, mid-ventricle, with labels and the true displacement.

python docs/make_cardiac_picture.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from pipeline.datasets.phantoms.cardiac import GROUPS, LABEL_NAMES, CardiacPhantom, CardiacSubject, make_subject

TITLES = {"NOR": "normal", "DCM": "dilated LV", "HCM": "thick myocardium", "MINF": "old infarction", "RV": "dilated RV"}
COLOURS = ("#4c9be8", "#e8b84c", "#d9534f")
SLICE = 4


def ejection_percent(subject: CardiacSubject, label: int) -> float:
    """Ejection fraction of one cavity from the voxel counts of both phases."""
    diastole, systole = ((subject.labels[phase] == label).sum() for phase in ("ED", "ES"))
    return float(100 * (1 - systole / diastole))


def draw_row(axes: np.ndarray, subject: CardiacSubject) -> matplotlib.image.AxesImage:
    """ED, ES, both with labels, and the length of the true displacement; returns the last image for the colour bar."""
    half = subject.geometry.size[0] * subject.geometry.spacing_mm[0] / 2
    place = {"extent": (-half, half, half, -half), "interpolation": "nearest"}
    for column, phase in enumerate(("ED", "ES", "ED", "ES")):
        axes[column].imshow(subject.images[phase][SLICE], cmap="gray", vmin=0, vmax=1000, **place)
        if column > 1:
            labels = subject.labels[phase][SLICE]
            axes[column].imshow(np.ma.masked_equal(labels, 0), cmap=ListedColormap(COLOURS), vmin=1, vmax=3, alpha=0.55, **place)
    length_mm = np.linalg.norm(subject.true_displacement_mm("ED", "ES")[SLICE], axis=-1)
    image = axes[4].imshow(length_mm, cmap="magma", vmin=0, vmax=16, **place)
    axes[4].contour(subject.labels["ED"][SLICE] > 0, levels=[0.5], colors="white", linewidths=0.6, extent=(-half, half, -half, half))
    return image


def main() -> None:
    """Draw and save the picture."""
    figure, axes = plt.subplots(len(GROUPS), 5, figsize=(11.5, 11.8), layout="constrained")
    for row, group in zip(axes, GROUPS, strict=True):
        subject = make_subject(CardiacPhantom(), 7, group)
        image = draw_row(row, subject)
        row[0].set_ylabel(
            f"{group}: {TITLES[group]}\nLV EF {ejection_percent(subject, 3):.0f} %, RV EF {ejection_percent(subject, 1):.0f} %", fontsize=9
        )
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, title in zip(axes[0], ("end-diastole (ED)", "end-systole (ES)", "labels, ED", "labels, ES", "true displacement ED → ES"), strict=True):
        axis.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes[:, 4], shrink=0.5, extend="max", label="length of the true displacement (mm)")
    patches = [matplotlib.patches.Patch(color=colour, label=name) for colour, name in zip(COLOURS, LABEL_NAMES.values(), strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    figure.suptitle("Cardiac phantom: mid-ventricular slices, 192 × 192 mm, 1.5 mm pixels; generated from a seed", fontsize=12)
    figure.savefig(Path(__file__).with_name("phantom-cardiac.png"), dpi=110)


if __name__ == "__main__":
    main()
