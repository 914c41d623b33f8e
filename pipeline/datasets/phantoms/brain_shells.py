"""What lies around the brain of the phantom: CSF, skull, scalp, face and neck, painted over signed distances. All sizes are ours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from pipeline.datasets.phantoms.deformation import random_field

Axes = tuple[np.ndarray, np.ndarray, np.ndarray]
Ball = tuple[tuple[float, float, float], tuple[float, float, float]]

_COARSE = 2
"""Distances are measured on every second voxel, and the face and neck painted there."""
_CLOSING_MM = 10.0
"""Sulci and fissures narrower than twice this lie inside the skull."""
_SKIN_MM = 2.0
_RELIEF = 0.15
"""Standard deviation of the thickness of skull and scalp from place to place, as a share."""

# centre and radii in MNI mm, right side; each is mirrored
_FACE: tuple[Ball, ...] = (((0, 36, -66), (62, 56, 50)), ((0, 84, -64), (11, 11, 16)), ((0, -36, -98), (56, 58, 60)))
_FACIAL_BONES: tuple[Ball, ...] = (((30, 56, -60), (22, 24, 24)), ((46, -30, -44), (14, 20, 18)), ((0, 30, -46), (24, 30, 12)))
_ORBITS: tuple[Ball, ...] = (((31, 54, -38), (18, 24, 17)),)
_EYES: tuple[Ball, ...] = (((32, 64, -38), (12, 12, 12)),)
_AIR: tuple[Ball, ...] = (
    ((6, 66, -60), (4, 24, 18)),
    ((28, 56, -64), (12, 15, 14)),
    ((0, 20, -38), (12, 13, 12)),
    ((0, 28, -88), (11, 9, 28)),
    ((9, 80, -24), (9, 4, 9)),
)


@dataclass(frozen=True)
class HeadModel:
    """What differs between the heads of two populations: thicknesses in mm of the template."""

    csf_mm: float
    table_mm: float
    diploe_mm: float
    scalp_mm: float


def shells(brain: np.ndarray, axes: Axes, head: HeadModel) -> dict[str, np.ndarray]:
    """Fractions `(z, y, x)`, float32, of fluid, bone, fat and soft tissue around a brain mask; the rest is air.

    The cranial cavity, brain and all, is fluid: paint the brain over it. `axes` are the MNI coordinates `(x, y, z)` in mm.
    """
    coarse = tuple(axis[::_COARSE] for axis in axes)
    cavity = _cavity_distance(brain[::_COARSE, ::_COARSE, ::_COARSE], head.csf_mm)
    relief = random_field(cavity.shape, spacing_mm=_COARSE, sigma_mm=20.0, channels=2, rng=np.random.default_rng(153))
    skull = cavity * (1.0 + _RELIEF * relief[..., 0])
    skull_mm = 2 * head.table_mm + head.diploe_mm
    surface = _smooth_minimum(
        [cavity * (1.0 + _RELIEF * relief[..., 1]) - skull_mm - head.scalp_mm, *(_ball_distance(ball, coarse) for ball in _FACE)]
    )
    parts = {name: _fine(part) for name, part in _face(surface, coarse).items()}
    surface, cavity = _fine(surface), _fine(skull)
    _paint(parts, "fat", _inside(surface) * _inside(-surface - 0.7 * head.scalp_mm))
    _paint(parts, "soft", _inside(surface) * _inside(-surface - _SKIN_MM))
    _paint(parts, "bone", _inside(cavity - skull_mm))
    _paint(parts, "fat", 0.6 * _inside(cavity - head.table_mm - head.diploe_mm) * _inside(head.table_mm - cavity))
    _paint(parts, "fluid", _inside(cavity))
    return parts


def _face(surface: np.ndarray, axes: Axes) -> dict[str, np.ndarray]:
    """Muscle streaked with fat, facial bones, orbits, eyes and airways inside the head's surface."""
    parts = {name: np.zeros_like(surface) for name in ("fluid", "bone", "fat", "soft")}
    streaks = random_field(surface.shape, spacing_mm=_COARSE, sigma_mm=5.0, channels=2, rng=np.random.default_rng(152))
    _paint(parts, "soft", _inside(surface))
    _paint(parts, "fat", _inside(surface) * np.clip(streaks[..., 0], 0.0, 1.0))
    for ball in _FACIAL_BONES:
        _paint(parts, "bone", _inside(_ball_distance(ball, axes)) * np.clip(0.6 + streaks[..., 1], 0.0, 1.0))
    for channel, balls in (("fat", _ORBITS), ("fluid", _EYES), (None, _AIR)):
        for ball in balls:
            _paint(parts, channel, _inside(_ball_distance(ball, axes)) * _inside(surface + _SKIN_MM))
    return parts


def _cavity_distance(brain: np.ndarray, csf_mm: float) -> np.ndarray:
    """Signed distance in mm, negative inside, to the inner table of the skull: the brain closed, then grown by `csf_mm`."""
    grown = distance_transform_edt(~brain) * _COARSE <= _CLOSING_MM
    distance = (distance_transform_edt(~grown) - distance_transform_edt(grown)) * _COARSE + _CLOSING_MM - csf_mm
    return gaussian_filter(distance.astype(np.float32), 1.5)


def _ball_distance(ball: Ball, axes: Axes) -> np.ndarray:
    """About the signed distance in mm, negative inside, to an ellipsoid and its mirror image, `(z, y, x)`."""
    centre, radii = ball
    x, y, z = ((axis - c) / r for axis, c, r in zip((np.abs(axes[0]), *axes[1:]), centre, radii, strict=True))
    norm = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    return ((norm - 1.0) * min(radii)).astype(np.float32)


def _smooth_minimum(distances: list[np.ndarray], softness_mm: float = 6.0) -> np.ndarray:
    """Union of shapes with rounded seams."""
    return -softness_mm * np.log(sum(np.exp(-np.clip(d, -60, 60) / softness_mm) for d in distances))


def _inside(distance_mm: np.ndarray) -> np.ndarray:
    """Share of a 1 mm voxel on the negative side of a distance."""
    return np.clip(0.5 - distance_mm, 0.0, 1.0).astype(np.float32)


def _paint(parts: dict[str, np.ndarray], channel: str | None, cover: np.ndarray) -> None:
    """Lay a tissue (or air) over what is there, `cover` from 0 to 1."""
    for name, part in parts.items():
        part *= 1.0 - cover
        if name == channel:
            part += cover


def _fine(array: np.ndarray) -> np.ndarray:
    """From every second voxel to all, linearly; voxel 0 stays where it is and the last is repeated."""
    for axis in range(array.ndim):
        array = np.moveaxis(array, axis, 0)
        between = (array + np.concatenate([array[1:], array[-1:]])) / 2
        array = np.moveaxis(np.stack([array, between], axis=1).reshape(-1, *array.shape[1:]), 0, axis)
    return np.ascontiguousarray(array)
