"""Cardiac phantom: short-axis cine stacks of one heart at end-diastole (ED) and end-systole (ES), whose contraction is known exactly.

The heart and its motion are those of `cardiac_anatomy`; this module paints it as balanced steady-state free precession (bSSFP) shows it, with the
chest around it. Tissue is painted in end-diastolic coordinates, so that it moves with the true map; blood, papillary muscles and noise are drawn
anew for each phase, as in a beating heart. The map has no through-plane part (ours): contours of a slice change as if the ventricle shortened along
its axis. All grey values, textures and positions are ours, matched by eye and histogram to clinical cine MR scaled to 0..1000.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pipeline.datasets.phantoms.acquisition import rician
from pipeline.datasets.phantoms.cardiac_anatomy import GROUP_RANGES, RV_WALL_MM, Chest, Heart, draw_chest, draw_heart
from pipeline.errors import ConcordError
from pipeline.volumes import Geometry

GROUPS = tuple(GROUP_RANGES)
PHASES = ("ED", "ES")
LABEL_NAMES = {1: "RV cavity", 2: "myocardium", 3: "LV cavity"}


@dataclass(frozen=True)
class CardiacPhantom:
    """Acquisition of the phantom. `noise` is the standard deviation of the Rician noise in units of the image (0..1000).

    `bias` is the log-ratio of coil sensitivity over 200 mm, from the anterior chest wall inwards; `breathing_mm` the standard deviation of
    each slice's in-plane shift, for every slice is acquired in a breath-hold of its own (both phases in the same one).
    """

    size: int = 128
    slices: int = 9
    spacing_mm: float = 1.5
    slice_spacing_mm: float = 8.0
    noise: float = 9.0
    bias: float = 0.6
    breathing_mm: float = 1.2

    def __post_init__(self) -> None:
        if self.size < 16 or self.slices < 1:
            raise ConcordError(f"cardiac phantom of size {self.size} and {self.slices} slices; expected at least 16 and 1")
        if min(self.spacing_mm, self.slice_spacing_mm) <= 0:
            raise ConcordError(f"cardiac phantom with spacing {self.spacing_mm} and {self.slice_spacing_mm} mm; expected positive numbers")
        if min(self.noise, self.bias, self.breathing_mm) < 0:
            raise ConcordError(
                f"cardiac phantom with noise {self.noise}, bias {self.bias}, breathing {self.breathing_mm} mm; expected none below zero"
            )

    @property
    def geometry(self) -> Geometry:
        """The grid of both phases, centred at the origin."""
        return Geometry.regular((self.size, self.size, self.slices), (self.spacing_mm, self.spacing_mm, self.slice_spacing_mm))


@dataclass(frozen=True, eq=False)
class CardiacSubject:
    """One heart in both phases: images `(z, y, x)` float32 in 0..1000, label maps uint8, and the true displacements.

    `displacement_mm[(fixed, moving)]` is `(z, y, x, 3)` in mm, LPS, on the fixed phase's grid: it takes fixed points to moving points.
    """

    geometry: Geometry
    group: str
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    displacement_mm: dict[tuple[str, str], np.ndarray]

    def true_displacement_mm(self, fixed_phase: str, moving_phase: str) -> np.ndarray:
        """Displacement `(z, y, x, 3)` in mm from points of the fixed phase to the same tissue in the moving one; the z component is zero.

        Raises `ConcordError` for anything but the two phases in one order or the other.
        """
        if (fixed_phase, moving_phase) not in self.displacement_mm:
            raise ConcordError(f"phases {fixed_phase!r} and {moving_phase!r}; expected 'ED' and 'ES' in one order or the other")
        return self.displacement_mm[fixed_phase, moving_phase]


def make_subject(settings: CardiacPhantom, seed: int, group: str) -> CardiacSubject:
    """The subject of `seed` in one of `GROUPS`; the same arguments give the same bits. Raises `ConcordError` for another group."""
    if group not in GROUPS:
        raise ConcordError(f"group {group!r} of the cardiac phantom; expected one of {', '.join(GROUPS)}")
    shape_rng, chest_rng, tissue_rng, *phase_rngs = (np.random.default_rng([seed, GROUPS.index(group), stream]) for stream in range(5))
    heart, chest = draw_heart(shape_rng, GROUP_RANGES[group], settings.slices), draw_chest(chest_rng)
    points = _anatomical_points(settings, chest_rng)
    to_es, to_ed = heart.to_systole(points) - points, heart.to_diastole(points) - points
    texture = Texture.drawn(tissue_rng, points.shape[:3], settings.spacing_mm)
    images, labels = {}, {}
    for phase, pull, rng in zip(PHASES, (np.zeros_like(points), to_ed), phase_rngs, strict=True):
        own = Texture.drawn(rng, points.shape[:3], settings.spacing_mm)
        scene = Scene(heart, points + pull, texture.moved(pull, settings.spacing_mm), own, settings.spacing_mm)
        labels[phase] = scene.rays.labels(scene.radius)
        images[phase] = _acquired(paint(scene, chest, systole=phase == "ES"), points, chest, settings, rng)
    displacement = {("ED", "ES"): _in_space(to_es), ("ES", "ED"): _in_space(to_ed)}
    return CardiacSubject(settings.geometry, group, images, labels, displacement)


def _anatomical_points(settings: CardiacPhantom, rng: np.random.Generator) -> np.ndarray:
    """In-plane position `(z, y, x, 2)` of every voxel in mm from the heart's axis, which lies off the image's centre and shifts with breathing."""
    axis = rng.normal((12, -4), 5)
    shift = rng.normal(0, settings.breathing_mm, (settings.slices, 1, 1, 2))
    return settings.geometry.grid_points()[..., :2] - axis - shift


def _in_space(in_plane_mm: np.ndarray) -> np.ndarray:
    return np.concatenate((in_plane_mm, np.zeros_like(in_plane_mm[..., :1])), axis=-1).astype(np.float32)


MUSCLE = 250.0
"""Grey value of skeletal muscle relative to 0..1000."""


@dataclass(frozen=True, eq=False)
class Texture:
    """Unit-variance noise of the tissue at three in-plane scales: 1.5, 4 and 14 mm."""

    fine: np.ndarray
    medium: np.ndarray
    coarse: np.ndarray

    @classmethod
    def drawn(cls, rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float) -> Texture:
        """A new texture; neighbouring slices resemble each other a little."""
        return cls(*(_smooth_noise(rng, shape, scale / spacing_mm) for scale in (1.5, 4.0, 14.0)))

    def moved(self, pull_mm: np.ndarray, spacing_mm: float) -> Texture:
        """The texture where the tissue came from: at each voxel plus `pull_mm` `(z, y, x, 2)`."""
        z, y, x = np.indices(self.fine.shape, dtype=np.float32)
        index = np.stack((z, y + pull_mm[..., 1] / spacing_mm, x + pull_mm[..., 0] / spacing_mm))
        return Texture(*(ndimage.map_coordinates(noise, index, order=1, mode="nearest") for noise in (self.fine, self.medium, self.coarse)))


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma_vx: float) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), (0.5, sigma_vx, sigma_vx), mode="wrap")
    return noise / noise.std()


class Scene:
    """One phase in the making: end-diastolic coordinates of every voxel in mm from the LV centre, contours, textures, and the canvas."""

    def __init__(self, heart: Heart, points_mm: np.ndarray, texture: Texture, own: Texture, spacing_mm: float) -> None:
        offset = points_mm - heart.centre_mm
        self.heart, self.texture, self.own, self.spacing_mm = heart, texture, own, spacing_mm
        self.x, self.y = offset[..., 0].astype(np.float32), offset[..., 1].astype(np.float32)
        self.theta, self.radius = (part.astype(np.float32) for part in heart.polar(points_mm))
        self.rays = heart.rays(self.theta)
        self.height = ((np.arange(len(offset)) + 0.5) / len(offset)).astype(np.float32)[:, None, None]
        self.canvas = np.zeros(self.x.shape, dtype=np.float32)

    def fill(self, depth_mm: np.ndarray, grey: np.ndarray | float) -> None:
        """Paint where the depth inside a shape is positive, with the voxel's share at its edge."""
        share = np.clip(0.5 + depth_mm / self.spacing_mm, 0, 1)
        self.canvas += share * (grey - self.canvas)

    def ellipse(self, centre: tuple[float, float], axes: tuple[float, float], angle: float = 0.0) -> np.ndarray:
        """Depth in mm (about) inside an ellipse."""
        dx, dy = self.x - centre[0], self.y - centre[1]
        along, across = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
        return (1 - np.hypot(along / axes[0], across / axes[1])) * min(axes)

    def reach(self, direction: float) -> np.ndarray:
        """How far the heart extends along a direction in each slice, mm `(z, 1, 1)`; at the apex its bed stays wider than the heart."""
        theta = np.linspace(-np.pi, np.pi, 90)[None, None]
        reach = (self.heart.rays(theta).outer_mm * np.cos(theta - direction)).max(axis=-1, keepdims=True)
        return (0.75 * reach + 0.25 * reach.max()).astype(np.float32)

    def below_diaphragm(self, chest: Chest) -> np.ndarray:
        """Depth in mm below the diaphragm, a tilted dome on which the heart rests."""
        dome = (self.x - 10) ** 2 / (2 * chest.dome_mm)
        return self.y - self.reach(np.pi / 2) - RV_WALL_MM - chest.diaphragm_mm - chest.tilt * self.x - dome + self.texture.coarse

    def beyond_chest(self, chest: Chest) -> tuple[np.ndarray, np.ndarray]:
        """Depth in mm beyond the chest's inner surface, a circle that the heart nearly touches, and the arc length along it."""
        inner = chest.radius_mm - chest.fat_mm - chest.muscle_mm
        middle = inner - self.reach(chest.direction) - RV_WALL_MM - chest.gap_mm
        dx, dy = self.x + middle * np.cos(chest.direction), self.y + middle * np.sin(chest.direction)
        return np.hypot(dx, dy) - inner + 2 * self.texture.coarse, inner * (np.arctan2(dy, dx) - chest.direction + np.pi) % (2 * np.pi * inner)


def paint(scene: Scene, chest: Chest, systole: bool) -> np.ndarray:
    """Signed signal `(z, y, x)`: background organs first, what lies on top of them later."""
    vessels = np.clip(1.5 * scene.texture.fine + 0.8 * scene.texture.coarse - 3.6, 0, 1)
    scene.canvas += chest.lung_grey * (1 + 0.12 * scene.texture.medium + 0.3 * scene.texture.coarse) + 550 * vessels
    film = _heart_fat(scene, chest)
    # smooth unions: the narrower the gap between heart and wall, the more of it is fat
    walls = (scene.beyond_chest(chest)[0], scene.below_diaphragm(chest))
    _paint_fat(scene, chest, np.maximum(*(chest.fillet_mm * np.logaddexp(film / chest.fillet_mm, wall / chest.fillet_mm) for wall in walls)))
    _paint_abdomen(scene, chest)
    _paint_chest_wall(scene, chest)
    _paint_fat(scene, chest, film)
    _paint_ventricles(scene, chest, systole)
    _paint_left_cavity(scene, chest, systole)
    return scene.canvas


def _paint_abdomen(scene: Scene, chest: Chest) -> None:
    """Below the diaphragm: fat, liver on the image's left, stomach and spleen on its right; behind the base the aorta and a vertebra."""
    texture, below = scene.texture, scene.below_diaphragm(chest)
    _paint_spine(scene, chest)
    scene.fill(below, MUSCLE)
    scene.fill(below - 2, chest.fat_grey * (0.75 + 0.12 * texture.coarse + 0.08 * texture.medium))
    edge = chest.liver_edge_mm + 6 * texture.coarse - 0.4 * (below - 20) - scene.x
    liver = chest.liver_grey * (1 + 0.04 * texture.fine + 0.05 * texture.coarse) + 300 * np.clip(0.7 * texture.medium - 1.4, 0, 1)
    scene.fill(np.minimum(below - 1.5, edge), liver)
    centre = (chest.liver_edge_mm + chest.stomach_mm + 4, float(scene.reach(np.pi / 2).mean()) + chest.diaphragm_mm + 0.8 * chest.stomach_mm)
    stomach = np.minimum(below - 2, scene.ellipse(centre, (chest.stomach_mm, 0.8 * chest.stomach_mm), 0.4) + 3 * texture.coarse)
    scene.fill(stomach, 1.1 * MUSCLE)
    scene.fill(stomach - 3.5 + 1.2 * texture.medium, chest.stomach_grey * (1 + 0.2 * texture.coarse + 0.12 * texture.fine))
    spleen = scene.ellipse((centre[0] + chest.stomach_mm + 20, centre[1] - 4), (20, 34), 0.3) + 2 * texture.coarse
    scene.fill(np.minimum(below - 2, spleen), 330 * (1 + 0.05 * texture.fine))


def _paint_spine(scene: Scene, chest: Chest) -> None:
    """Behind the heart: a vertebra, and the aorta, which leaves the stack towards the apex."""
    scene.fill(scene.ellipse((92, 92), (25, 22)), 60)
    scene.fill(scene.ellipse((92, 92), (22, 19)), 330 * (1 + 0.1 * scene.texture.medium))
    aorta = scene.ellipse(chest.aorta_mm, (10, 10)) - 40 * np.clip(scene.height - 0.45, 0, 1)
    scene.fill(aorta + 4 + scene.texture.coarse, 0.8 * chest.fat_grey)
    scene.fill(aorta + 1.5, MUSCLE)
    scene.fill(aorta, 1.05 * chest.blood_grey)


def _paint_chest_wall(scene: Scene, chest: Chest) -> None:
    """From inside: a thin layer of fat, muscle with ribs and streaks of fat, fat under the skin, air."""
    texture = scene.texture
    depth, along = scene.beyond_chest(chest)
    swell = np.sin(along / 45 + chest.rib_phase)
    muscle_mm, fat_mm = chest.muscle_mm + 3 * swell, chest.fat_mm * (1 - 0.3 * swell)
    scene.fill(depth + 2 + 1.2 * texture.coarse, 0.9 * chest.fat_grey)
    muscle = 0.8 * MUSCLE * (1 + 0.2 * texture.medium)
    scene.fill(depth, muscle)
    scene.fill(1.2 * texture.medium - np.abs(depth - 0.75 * muscle_mm - 2 * texture.coarse) - 0.3, 0.8 * chest.fat_grey)
    spaced = (along + 6 * np.sin(along / 31) + 9 * np.arange(len(along))[:, None, None]) / 32 + chest.rib_phase
    rib = (1 - np.hypot(32 * (spaced % 1 - 0.5) / 8, (depth - 0.4 * muscle_mm) / 4.5)) * 4.5 + 0.8 * texture.coarse
    scene.fill(rib, 50)
    scene.fill(rib - 1.2, 240 * (1 + 0.3 * texture.coarse))
    scene.fill(depth - muscle_mm, chest.fat_grey * (1 + 0.06 * texture.coarse))
    skin = depth - muscle_mm - fat_mm
    scene.fill(skin, 0.35 * MUSCLE)
    scene.fill(skin - 1.5, 4)


def _heart_fat(scene: Scene, chest: Chest) -> np.ndarray:
    """Depth in mm inside the patchy film of fat around the heart, thicker over the right ventricle."""
    texture = scene.texture
    right = np.exp(1.5 * (np.cos(scene.theta - scene.heart.turn - np.pi) - 1))
    film = chest.heart_fat_mm * (0.15 + 0.9 * right) + 0.9 * texture.coarse + 0.5 * texture.medium
    return film - (scene.radius - scene.rays.outer_mm - RV_WALL_MM)


def _paint_fat(scene: Scene, chest: Chest, depth_mm: np.ndarray) -> None:
    """Fat under the pericardium, which is a thin dark line."""
    scene.fill(depth_mm + 1.2, 0.6 * MUSCLE)
    scene.fill(depth_mm, chest.fat_grey * (0.8 + 0.1 * scene.texture.coarse + 0.06 * scene.texture.medium))


def _paint_ventricles(scene: Scene, chest: Chest, systole: bool) -> None:
    """Myocardium, the right ventricle's thin wall, and its blood with trabeculae."""
    rays, texture, own = scene.rays, scene.texture, scene.own
    muscle = chest.myocardium_grey * (1 + 0.08 * texture.coarse + 0.07 * texture.medium)
    wall = RV_WALL_MM * np.clip((rays.outer_mm - rays.epi_mm) / 4, 0, 1)
    scene.fill(rays.outer_mm + wall - scene.radius, muscle)
    inside = np.minimum(rays.outer_mm - scene.radius, scene.radius - rays.epi_mm)
    blood = chest.blood_grey * (0.66 if systole else 0.72) * (1 + 0.12 * own.coarse + 0.07 * own.medium + 0.03 * own.fine)
    scene.fill(inside, blood + (muscle - blood) * 0.8 * np.clip(own.medium - 1.6 + 1.2 * scene.height, 0, 1))
    scene.fill(np.minimum(rays.epi_mm - scene.radius, scene.radius - rays.endo_mm), muscle)


def _paint_left_cavity(scene: Scene, chest: Chest, systole: bool) -> None:
    """Blood of the left ventricle, its trabeculae along the wall, and two papillary muscles between a quarter and four fifths of the height."""
    own, endo = scene.own, scene.rays.endo_mm
    muscle = chest.myocardium_grey * (1 + 0.08 * scene.texture.coarse)
    blood = chest.blood_grey * (0.93 if systole else 1.0) * (1 + 0.07 * own.coarse + 0.03 * own.medium + 0.05 * own.fine)
    # tissue does not shrink with the cavity: in end-diastolic coordinates it looks larger at end-systole
    swell = 1 / np.sqrt(1 - scene.heart.squeeze) if systole else 1.0
    trabeculae = (-0.3 + 1.5 * scene.height + 1.1 * own.medium + 1.1 * own.fine) * swell
    scene.fill(endo - scene.radius, muscle)
    scene.fill(endo - scene.radius - np.maximum(trabeculae, 0), blood)
    present = swell * np.clip(1 - (np.abs(scene.height - 0.52) / 0.33) ** 4, 0, 1)
    for angle, share, size_mm in chest.papillary:
        turn, radius = angle + scene.heart.turn, share * scene.heart.endo_mm
        dx, dy = scene.x - radius * np.cos(turn), scene.y - radius * np.sin(turn)
        depth = size_mm * present - np.hypot(dx, dy) + 1.1 * own.medium * present
        scene.fill(np.where(present > 0, depth, -9), muscle)


def _acquired(signal: np.ndarray, points_mm: np.ndarray, chest: Chest, settings: CardiacPhantom, rng: np.random.Generator) -> np.ndarray:
    """The signal through the point spread function, coil sensitivity and noise, clipped to 0..1000, float32."""
    magnitude = np.abs(ndimage.gaussian_filter(signal, (0, 0.35, 0.35)))
    nearer = points_mm @ (np.cos(chest.direction), np.sin(chest.direction))
    coil = np.exp(np.clip(settings.bias * nearer / 200, -1.5, 0.4))
    noisy = rician(magnitude * coil, settings.noise, rng)
    # the scanner interpolates: noise is correlated between neighbouring pixels
    return np.clip(ndimage.gaussian_filter(noisy, (0, 0.45, 0.45)), 0, 1000).astype(np.float32)
