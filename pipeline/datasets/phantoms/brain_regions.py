"""The regions of the brain phantom: cells around seed points in MNI space and ellipsoids for what lies deep. Ours, no published atlas.

All coordinates are MNI millimetres (x to the right, y to the front, z up) of the right side; the left is its mirror image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CSF, GREY, WHITE = 1, 2, 3

CORTEX: dict[str, tuple[float, float, float]] = {
    "frontal pole": (20, 60, 6),
    "superior frontal": (16, 32, 46),
    "supplementary motor": (12, 0, 64),
    "middle frontal": (40, 28, 34),
    "inferior frontal": (50, 24, 8),
    "orbitofrontal": (22, 36, -16),
    "anterior cingulate": (6, 36, 12),
    "posterior cingulate": (8, -42, 28),
    "precentral": (42, -6, 46),
    "postcentral": (46, -26, 52),
    "paracentral": (8, -30, 62),
    "insula": (38, 4, 0),
    "superior parietal": (24, -60, 58),
    "supramarginal": (56, -36, 32),
    "angular": (46, -64, 32),
    "precuneus": (8, -62, 42),
    "cuneus": (10, -86, 20),
    "lingual": (14, -72, -4),
    "lateral occipital": (40, -80, 2),
    "fusiform": (34, -48, -18),
    "superior temporal": (56, -14, 2),
    "middle temporal": (60, -36, -4),
    "inferior temporal": (52, -32, -26),
    "temporal pole": (38, 14, -30),
}
"""One seed a gyrus: every voxel of cortex belongs to the nearest seed of its side."""

WHITE_MATTER: dict[str, tuple[float, float, float]] = {
    "frontal white matter": (24, 34, 16),
    "central white matter": (28, -14, 32),
    "parietal white matter": (28, -50, 34),
    "occipital white matter": (26, -76, 6),
    "temporal white matter": (44, -24, -10),
}
"""One seed a lobe, as for the cortex."""


@dataclass(frozen=True)
class Ellipsoids:
    """A structure as a union of ellipsoids `(centre, radii)` in mm, kept to the tissues named; `sided` ones are mirrored."""

    name: str
    parts: tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...]
    tissues: tuple[int, ...]
    sided: bool = True

    def inside(self, points_mm: np.ndarray) -> np.ndarray:
        """Whether points `(3, n)`, folded to the right side, lie in one of the ellipsoids: `(n,)` bool."""
        inside = np.zeros(points_mm.shape[1], dtype=bool)
        for centre, radii in self.parts:
            x, y, z = ((p - c) / r for p, c, r in zip(points_mm, centre, radii, strict=True))
            inside |= x * x + y * y + z * z <= 1.0
        return inside


DEEP = (
    Ellipsoids("cerebellar cortex", (((24, -62, -38), (32, 34, 22)), ((0, -62, -28), (16, 28, 27)), ((20, -62, -52), (34, 30, 24))), (GREY,)),
    Ellipsoids("cerebellar white matter", (((24, -62, -38), (32, 34, 22)), ((0, -62, -28), (16, 28, 27)), ((20, -62, -52), (34, 30, 24))), (WHITE,)),
    Ellipsoids(
        "brainstem",
        (((0, -24, -13), (15, 12, 10)), ((0, -28, -33), (18, 15, 18)), ((0, -40, -58), (12, 11, 18)), ((0, -48, -76), (12, 12, 18))),
        (GREY, WHITE),
        sided=False,
    ),
    Ellipsoids("lateral ventricle", (((14, 22, 8), (11, 18, 14)), ((13, -8, 20), (12, 34, 13)), ((24, -42, 12), (13, 18, 18))), (CSF,)),
    Ellipsoids("third ventricle", (((0, -14, 3), (4, 20, 13)),), (CSF,), sided=False),
    Ellipsoids("fourth ventricle", (((0, -45, -33), (9, 9, 13)),), (CSF,), sided=False),
    Ellipsoids("corpus callosum", (((0, 27, 8), (13, 12, 14)), ((0, -4, 24), (13, 32, 9)), ((0, -38, 14), (15, 10, 13))), (WHITE,), sided=False),
    Ellipsoids("thalamus", (((11, -18, 7), (10, 14, 9)),), (GREY, WHITE)),
    Ellipsoids("caudate", (((12, 14, 6), (7, 12, 12)), ((15, 0, 18), (6, 18, 8))), (GREY,)),
    Ellipsoids("putamen", (((26, 4, 1), (8, 18, 11)),), (GREY,)),
    Ellipsoids("pallidum", (((19, -4, 0), (6, 9, 6)),), (GREY, WHITE)),
    Ellipsoids("hippocampus", (((27, -20, -15), (8, 14, 7)), ((27, -34, -6), (8, 9, 8))), (GREY,)),
    Ellipsoids("amygdala", (((23, -4, -19), (8, 7, 8)),), (GREY,)),
)
"""Later structures win over earlier ones, and all of them over cortex and white matter."""


def _names() -> dict[int, str]:
    sided = [*CORTEX, *WHITE_MATTER, *(s.name for s in DEEP if s.sided)]
    names = [f"{side} {name}" for name in sided for side in ("right", "left")] + [s.name for s in DEEP if not s.sided]
    return dict(enumerate(names, start=1))


REGION_NAMES: dict[int, str] = _names()
"""Label value to name; 0 is everything else, CSF outside the ventricles included."""

VENTRICLE_LABELS = tuple(label for label, name in REGION_NAMES.items() if name.endswith("lateral ventricle"))

_LABEL_OF = {name: label for label, name in REGION_NAMES.items()}


def label_regions(tissue: np.ndarray, *axes_mm: np.ndarray) -> np.ndarray:
    """Region labels `(z, y, x)`, uint8, of a tissue map in MNI space; `axes_mm` are the MNI coordinates of its x, y and z axis."""
    where, points, left = _brain_points(tissue, axes_mm)
    kind = tissue[where]
    label = _deep_label(kind, points, left)
    for seeds, matter in ((CORTEX, GREY), (WHITE_MATTER, WHITE)):
        chosen = (label == 0) & (kind == matter)
        label[chosen] = _nearest_seed(seeds, points[:, chosen]) + left[chosen]
    regions = np.zeros(tissue.shape, dtype=np.uint8)
    regions[where] = label
    return regions


def cortex_mask(tissue: np.ndarray, *axes_mm: np.ndarray) -> np.ndarray:
    """Where grey matter is cortex of the cerebrum, `(z, y, x)` bool; arguments as for `label_regions`."""
    where, points, left = _brain_points(tissue, axes_mm)
    mask = np.zeros(tissue.shape, dtype=bool)
    mask[where] = (tissue[where] == GREY) & (_deep_label(tissue[where], points, left) == 0)
    return mask


def _brain_points(tissue: np.ndarray, axes_mm: tuple[np.ndarray, ...]) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Indices of the voxels of the brain, their points `(3, n)` folded to the right side, and whether they lie on the left."""
    where = np.nonzero((tissue >= CSF) & (tissue <= WHITE))
    points = np.stack([axis[index] for axis, index in zip(axes_mm, where[::-1], strict=True)]).astype(np.float32)
    left = points[0] < 0
    points[0] = np.abs(points[0])
    return where, points, left


def _deep_label(kind: np.ndarray, points_mm: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Label of the structure that each point lies in, 0 for none, `(n,)` uint8."""
    label = np.zeros(len(kind), dtype=np.uint8)
    for structure in DEEP:
        chosen = np.isin(np.arange(256), structure.tissues)[kind]
        chosen[chosen] = structure.inside(points_mm[:, chosen])
        label[chosen] = _LABEL_OF[f"right {structure.name}"] + left[chosen] if structure.sided else _LABEL_OF[structure.name]
    return label


def _nearest_seed(seeds: dict[str, tuple[float, float, float]], points_mm: np.ndarray) -> np.ndarray:
    """Label of the right-hand cell that each point `(3, n)` belongs to."""
    from scipy.spatial import cKDTree

    labels = np.array([_LABEL_OF[f"right {name}"] for name in seeds], dtype=np.uint8)
    return labels[cKDTree(np.array(list(seeds.values()))).query(points_mm.T)[1]]
