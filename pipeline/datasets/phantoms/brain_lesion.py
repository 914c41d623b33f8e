"""What the brain phantom may be given and what may be taken from it: a tumour with its oedema, and everything outside the brain.

The look is that of a glioma as in BraTS (Menze et al., IEEE Trans Med Imaging 2015): a solid core, in its middle necrosis, around it oedema
that keeps to white matter. Sizes, shapes and places are ours, and nothing is pushed aside: the true transform is that of the anatomy beneath.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_fill_holes, distance_transform_edt, label

from pipeline.datasets.phantoms.acquisition import Tissue
from pipeline.datasets.phantoms.brain_regions import REGION_NAMES, VENTRICLE_LABELS
from pipeline.datasets.phantoms.deformation import random_field
from pipeline.errors import ConcordError
from pipeline.volumes import Geometry

TISSUES = {"necrosis": Tissue(0.95, 2100, 260), "tumour core": Tissue(0.88, 1200, 125), "oedema": Tissue(0.86, 1000, 170)}
"""Relaxation of the lesion at 1.5 T: longer than that of grey and white matter in T1 and T2, of the order found in gliomas. The rounded figures are ours."""
CORE_MM, OEDEMA_MM, NECROSIS = (9.0, 20.0), (5.0, 14.0), (0.35, 0.7)
"""Radius of the core, how far oedema goes beyond it, and the radius of the necrosis as a share of the core's: ranges drawn from evenly (ours)."""
_RELIEF, _RELIEF_MM = 0.2, 8.0
"""How much radii differ from direction to direction: standard deviation as a share, and scale (ours)."""
_EDGE_MM = {"necrosis": 2.0, "tumour core": 1.5, "oedema": 4.0}
_OEDEMA_IN_GREY = 0.15
"""Share of the oedema that reaches cortex and deep grey matter (ours)."""
_SEEDS = tuple(value for value, name in REGION_NAMES.items() if name.endswith("white matter") and "cerebellar" not in name)
_VENTRICLES = (*VENTRICLE_LABELS, *(value for value, name in REGION_NAMES.items() if name in ("third ventricle", "fourth ventricle")))
_CLOSING_MM = 5.0
"""Sulci narrower than twice this belong to the stripped brain."""
_LOWEST_MM = -70.0
"""Height in MNI space below which the stripped brain ends: the foramen magnum, below which the cord goes on."""
BRAIN_CHANNELS = slice(0, 4)
"""CSF, grey matter and both kinds of white matter among the tissue fractions."""


class Lesion(NamedTuple):
    """Fractions of what was there, and of the lesion's three tissues in the order of `TISSUES`, both `(channel, [z,] y, x)`."""

    around: np.ndarray
    inside: np.ndarray


def with_lesion(fractions: np.ndarray, regions: np.ndarray, geometry: Geometry, rng: np.random.Generator) -> Lesion:
    """A lesion of random place and size, seeded in the white matter of the cerebrum. Ventricles stay open; all fractions together stay what they were.

    Raises `ConcordError` where there is no white matter (a slice above or below the cerebrum).
    """
    place, core, spread, share = rng.random(), rng.uniform(*CORE_MM), rng.uniform(*OEDEMA_MM), rng.uniform(*NECROSIS)
    relief = random_field(geometry.shape, spacing_mm=geometry.spacing_mm, sigma_mm=_RELIEF_MM, channels=3, rng=rng)
    seeds = np.flatnonzero(np.isin(regions, _SEEDS) & (fractions[2:4].sum(axis=0) > 0.8))
    if not seeds.size:
        raise ConcordError("brain phantom: no white matter of the cerebrum for a tumour; choose another slice_mm, or tumour: false")
    centre = np.unravel_index(seeds[int(place * seeds.size)], regions.shape)
    distance = np.linalg.norm(geometry.grid_points() - geometry.points_at(np.array(centre[::-1])), axis=-1)
    radii = np.array([core * share, core, core + spread])
    shapes = (radii.reshape(-1, *(1,) * regions.ndim) * (1 + _RELIEF * np.moveaxis(relief, -1, 0)) - distance).astype(np.float32)
    covers = np.stack([np.clip(0.5 + shape / edge, 0, 1) for shape, edge in zip(shapes, _EDGE_MM.values(), strict=True)])
    return _painted(fractions, regions, covers)


def _painted(fractions: np.ndarray, regions: np.ndarray, covers: np.ndarray) -> Lesion:
    """Oedema laid over white matter, the core over all of the brain but its ventricles, the necrosis over the core."""
    around = fractions.copy()
    necrosis, core, oedema = covers
    ventricles = np.isin(regions, _VENTRICLES)
    swollen = np.stack([_OEDEMA_IN_GREY * oedema, oedema, oedema])
    wet = (around[1:4] * swollen).sum(axis=0)
    around[1:4] *= 1 - swollen
    solid = core * ~ventricles
    taken = solid * (around[BRAIN_CHANNELS].sum(axis=0) + wet)
    around[BRAIN_CHANNELS] *= 1 - solid
    return Lesion(around, np.stack([taken * necrosis, taken * (1 - necrosis), wet * (1 - solid)]))


def brain_mask(solid: np.ndarray, fluid: np.ndarray, heights_mm: np.ndarray, geometry: Geometry) -> np.ndarray:
    """What skull stripping leaves, `([z,] y, x)` bool: the largest part of the brain, its sulci closed and its ventricles filled, down to the foramen magnum.

    `solid` and `fluid` are the shares of brain tissue and of CSF of every voxel (the eyes hold fluid too), `heights_mm` its height in MNI space.
    """
    spacing = geometry.spacing_mm[::-1]
    parts, _ = label((solid > 0.5) & (heights_mm > _LOWEST_MM))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    grown = distance_transform_edt(parts != sizes.argmax(), sampling=spacing) <= _CLOSING_MM
    closed = distance_transform_edt(grown, sampling=spacing) > _CLOSING_MM - 0.5 * min(spacing)
    return binary_fill_holes(closed) & (solid + fluid > 0.5) & (heights_mm > _LOWEST_MM)
