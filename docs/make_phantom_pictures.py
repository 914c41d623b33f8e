"""Draw docs/phantom-brain.png: two adult phantoms and a neonate beside the MNI152 average.

python docs/make_phantom_pictures.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from pipeline.datasets.phantoms.brain import BrainPhantom, BrainSubject, make_subject

ROWS = (("adult, seed 1", "adult", 1), ("adult, seed 2", "adult", 2), ("neonate, seed 1", "neonate", 1))
COLUMNS = (("t1", "axial"), ("t1", "coronal"), ("t2", "axial"), ("t2", "coronal"), ("pd", "axial"), ("regions", "axial"), ("regions", "coronal"))
TITLES = {"t1": "T1", "t2": "T2", "pd": "PD", "regions": "regions"}
CUT_MM = np.array([0.0, 20.0, 14.0])
"""Where the slices cross, in the template (LPS): through the lateral ventricles and the brainstem."""


def brain_picture(path: Path) -> None:
    """Each subject's T1, T2, PD and regions at the same anatomy; the real average in the last column."""
    figure, axes = plt.subplots(len(ROWS), len(COLUMNS) + 1, figsize=(16.5, 7.2))
    for row, (name, population, seed) in zip(axes, ROWS, strict=True):
        draw_subject(row[:-1], make_subject(BrainPhantom(spacing_mm=1.5, population=population), seed))
        row[0].set_ylabel(name, fontsize=12)
    draw_real(axes[:, -1])
    for panel, (name, view) in zip(axes[0], COLUMNS, strict=False):
        panel.set_title(f"{TITLES[name]}, {view}", fontsize=12)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[], facecolor="black")
    figure.subplots_adjust(left=0.02, right=0.998, top=0.955, bottom=0.005, wspace=0.03, hspace=0.03)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_subject(row: np.ndarray, subject: BrainSubject) -> None:
    """One panel a column of `COLUMNS`."""
    _, y, z = subject.geometry.index_at(subject.template_map.from_template(CUT_MM[None]))[0].round().astype(int)
    for panel, (name, view) in zip(row, COLUMNS, strict=True):
        array = subject.regions if name == "regions" else subject.images[name]
        cut = array[z] if view == "axial" else array[::-1, y]
        if name == "regions":
            panel.imshow(cut, cmap=region_colours(), vmin=0, vmax=255, interpolation="nearest")
        else:
            panel.imshow(cut, cmap="gray", vmin=0, vmax=1.15 * np.percentile(array[subject.regions > 0], 99), interpolation="bilinear")


def region_colours() -> ListedColormap:
    """Random bright colours, black for 0."""
    return ListedColormap(np.vstack([np.zeros(3), np.random.default_rng(3).uniform(0.25, 1.0, (255, 3))]))


def draw_real(column: np.ndarray) -> None:
    """MNI152 T1 (152 real heads averaged, skull-stripped), the same slices and the one beside the midline."""
    from nilearn.datasets import load_mni152_template

    array = load_mni152_template(resolution=1).get_fdata()[::-1, ::-1].T
    origin = np.array([98, 98, 72])
    x, y, z = (origin + CUT_MM).round().astype(int)
    for panel, cut in zip(column, (array[z], array[::-1, y], array[::-1, :, x + 3]), strict=True):
        panel.imshow(cut, cmap="gray", interpolation="bilinear")
    column[0].set_title("real: MNI152 T1", fontsize=12)


if __name__ == "__main__":
    brain_picture(Path(__file__).parent / "phantom-brain.png")
