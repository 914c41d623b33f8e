"""The head that all brain phantoms are bent from: tissue fractions and regions in MNI space at 1 mm.

Brain tissue comes from the MNI152 maps that ship inside nilearn (skull-stripped averages of 152 heads). What an average has
lost is put back by rule, and the rules are ours: crisp tissue borders and CSF in the sulci here, skull, scalp, eyes, face and
neck in `brain_shells`. The grid is LPS with identity direction, over a box that holds the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects, gaussian_filter

from pipeline.datasets.phantoms.brain_regions import CSF, GREY, VENTRICLE_LABELS, WHITE, cortex_mask, label_regions
from pipeline.datasets.phantoms.brain_shells import Axes, HeadModel, shells
from pipeline.volumes import Geometry

CHANNELS = ("csf", "grey", "white", "deep white", "bone", "fat", "soft")
"""The tissues whose fractions are kept; what is missing to one is air."""
TEMPLATE = Geometry.regular((192, 224, 192), 1.0, (-96.0, -96.0, -88.0))
_MNI_ORIGIN = (98, 134, 72)
"""Index of the MNI origin in nilearn's 1 mm arrays `(x, y, z)`, which are RAS."""
_SULCUS_DEPTH_MM = 3.6
"""Cortex further than this from white matter is taken for the two banks of a sulcus, with CSF between (ours; cortex is 2 to 4 mm thick)."""
_LOST_GYRUS_MM = 7.0
"""Grey matter further than this from white matter belongs to a gyrus whose core the average has lost: it is left as it is (ours)."""
_BLADE = 0.3
"""White-matter probability from which the averaged core of a gyrus counts as white matter (ours)."""
_PULL_REACH_MM = 4.0
"""How far around the ventricles their widening is felt: standard deviation of a Gaussian (ours)."""


@dataclass(frozen=True, eq=False)
class Template:
    """Tissue fractions `(channel, z, y, x)` as shares of 255, and region labels `(z, y, x)`, both uint8 on `TEMPLATE`."""

    fractions: np.ndarray
    regions: np.ndarray


@lru_cache(maxsize=2)
def blurred_template(head: HeadModel, spacing_mm: float) -> Template:
    """The template as voxels of `spacing_mm` see it: fractions averaged, so that partial volume comes out right."""
    sharp = _template(head)
    sigma_vx = 0.35 * np.sqrt(max(spacing_mm**2 - 1.0, 0.0))
    if sigma_vx == 0.0:
        return sharp
    return Template(np.stack([gaussian_filter(channel, sigma_vx, truncate=3.0) for channel in sharp.fractions]), sharp.regions)


@lru_cache(maxsize=2)
def ventricle_pull(geometry: Geometry, slice_mm: float | None = None) -> np.ndarray:
    """Vectors `([z,] y, x, d)`, float32, that point into the lateral ventricles, the longest of length one.

    Added to the velocity of the map from subject to template, they widen the subject's ventricles. The grid has identity
    direction; a 2-D one lies at MNI height `slice_mm`.
    """
    x, y, *z = _mni_axes(geometry)
    z = z[0] if z else np.array([slice_mm])
    everywhere = np.full((len(z), len(y), len(x)), CSF, dtype=np.uint8)
    near = np.isin(label_regions(everywhere, x, y, z), VENTRICLE_LABELS).reshape(geometry.shape).astype(np.float32)
    near = gaussian_filter(near, _PULL_REACH_MM / np.asarray(geometry.spacing_mm[::-1]))
    pull = np.stack(np.gradient(near)[::-1], axis=-1)
    return pull / max(float(np.linalg.norm(pull, axis=-1).max()), 1e-6)


@lru_cache(maxsize=2)
def _template(head: HeadModel) -> Template:
    """Fractions and regions at 1 mm, borders sharp."""
    axes = _mni_axes(TEMPLATE)
    grey, white = (part.astype(np.float32) / np.float32(255) for part in _brain())
    around = shells(grey + white > 0.5, axes, head)
    uncovered = np.clip(1.0 - grey - white, 0.0, 1.0)
    fluid, deep = around.pop("fluid"), white * _early_myelin(axes)
    tissue = np.where(uncovered < 0.5, np.where(grey > white, GREY, WHITE), np.where(fluid > 0.5, CSF, 0)).astype(np.uint8)
    parts = [_bytes(uncovered * fluid), _bytes(grey), _bytes(white - deep), _bytes(deep), *(_bytes(uncovered * part) for part in around.values())]
    return Template(np.stack(parts), label_regions(tissue, *axes))


@lru_cache(maxsize=1)
def _brain() -> tuple[np.ndarray, np.ndarray]:
    """Fractions of grey and white matter on `TEMPLATE`, shares of 255, the same for all populations."""
    grey, white = _crisp(*_mni_maps(), _mni_axes(TEMPLATE))
    return _bytes(grey), _bytes(white)


def _bytes(fraction: np.ndarray) -> np.ndarray:
    return np.round(fraction * 255).astype(np.uint8)


def _early_myelin(axes: Axes) -> np.ndarray:
    """Share of white matter that is myelinated at birth: brainstem, thalamus and internal capsule, fading outwards (ours)."""
    x, y, z = axes
    distance = (z[:, None, None] + 12) ** 2 / 30**2 + (y[:, None] + 24) ** 2 / 20**2 + x**2 / 20**2
    return np.exp(-0.5 * distance**2).astype(np.float32)


def _crisp(grey: np.ndarray, white: np.ndarray, axes: Axes) -> tuple[np.ndarray, np.ndarray]:
    """Fractions of grey and white matter with the blur of the average undone (odds squared) and the sulci opened; the rest is CSF."""
    fluid = 1.0 - grey - white
    total = np.maximum(fluid**2 + grey**2 + white**2, 1e-6)
    opening = _sulci(grey, white, axes)
    return (1.0 - opening) * grey**2 / total, white**2 / total


def _sulci(grey: np.ndarray, white: np.ndarray, axes: Axes) -> np.ndarray:
    """Share of CSF, from 0 to 1, in cortex that lies too far from white matter to be one bank of a sulcus."""
    tissue = np.where(white > _BLADE, WHITE, np.where(grey > 0.05, GREY, 0)).astype(np.uint8)
    cortex = cortex_mask(tissue, *axes)
    box = find_objects((tissue > 0).astype(np.uint8))[0]
    depth = np.full(tissue.shape, np.inf, dtype=np.float32)
    depth[box] = distance_transform_edt(tissue[box] != WHITE)
    gap = np.clip((depth - _SULCUS_DEPTH_MM) / 1.2 + 0.5, 0.0, 1.0) * np.clip((_LOST_GYRUS_MM - depth) / 1.5 + 0.5, 0.0, 1.0)
    return np.where(cortex | (tissue == 0), gap, 0.0).astype(np.float32)


def _mni_maps() -> tuple[np.ndarray, np.ndarray]:
    """Grey and white matter probability on `TEMPLATE`, float32; below the average's last slice that slice is repeated.

    The files are read where nilearn has them: importing it takes seconds.
    """
    import nibabel

    folder = Path(find_spec("nilearn").origin).parent / "datasets" / "data"
    low = np.asarray(_MNI_ORIGIN) + [-95, -127, -88]
    maps = []
    for tissue in ("gm", "wm"):
        array = np.asarray(nibabel.load(folder / f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz").dataobj, dtype=np.float32)
        array /= array.max()
        window = array[low[0] : low[0] + 192, low[1] : low[1] + 224, : low[2] + 192]
        window = np.pad(window, ((0, 0), (0, 0), (-low[2], 0)), mode="edge")
        maps.append(np.ascontiguousarray(window[::-1, ::-1].T))
    return maps[0], maps[1]


def _mni_axes(geometry: Geometry) -> tuple[np.ndarray, ...]:
    """MNI coordinates (to the right, to the front, up) of the voxels along each axis of an LPS grid with identity direction."""
    x, y, *z = (o + s * np.arange(n) for o, s, n in zip(geometry.origin_mm, geometry.spacing_mm, geometry.size, strict=True))
    return -x, -y, *z
