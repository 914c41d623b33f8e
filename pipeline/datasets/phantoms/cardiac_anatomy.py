"""Shape and motion of the cardiac phantom: contours in polar form about the left ventricle, a contraction that is inverted exactly, the chest.

Every slice is described about its own centre of the left ventricle (LV): a point has an angle and a squared radius `q`. The contraction
keeps the angle and maps `q` to `Q(q)`. An area element of the wedge is `dq dtheta / 2`, so `dQ/dq` **is** the Jacobian determinant:
equal to one where tissue is incompressible in the plane, and positive everywhere, hence no folding. What follows it, torsion and a few random
swirls, are rotations by an angle that depends on the distance from a centre only: smooth, area-preserving, and inverted by the opposite angle.
All shapes, ranges and rates in this file are ours, chosen to look and measure like adult short-axis cine MR.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

RV_WALL_MM = 2.5
"""Thickness of the right ventricle's free wall, which carries no label (as in ACDC)."""
_CORNER = 8
"""Sharpness of the passage from cavity to wall: the higher, the closer the wall is to incompressible."""
_DECAY_MM = 32.0
"""Distance beyond the heart over which the motion fades to nothing."""
_SEPTUM = np.pi
"""Angle of the septum before the heart is turned: the right ventricle lies on the image's left."""


@dataclass(frozen=True)
class Group:
    """Ranges from which a subject of one group is drawn: lengths at mid-ventricle in mm, ejection fractions (EF) as shares."""

    lv_radius_mm: tuple[float, float]
    wall_mm: tuple[float, float]
    rv_width_mm: tuple[float, float]
    lv_ef: tuple[float, float]
    rv_ef: tuple[float, float]
    septal_bulge: tuple[float, float] = (0.0, 0.1)
    septal_flattening: tuple[float, float] = (0.0, 0.03)
    scar: tuple[float, float] = (0.0, 0.0)


GROUP_RANGES = {
    "NOR": Group((21, 26), (7.0, 9.5), (27, 35), (0.56, 0.68), (0.45, 0.55)),
    "DCM": Group((30, 37), (6.5, 9.0), (24, 36), (0.15, 0.36), (0.22, 0.48)),
    "HCM": Group((20, 25), (11.0, 14.5), (24, 30), (0.60, 0.71), (0.45, 0.55), septal_bulge=(0.15, 0.6)),
    "MINF": Group((24, 30), (7.5, 10.0), (25, 33), (0.22, 0.42), (0.38, 0.54), scar=(0.85, 1.0)),
    "RV": Group((19, 24), (7.0, 9.0), (39, 48), (0.50, 0.63), (0.20, 0.41), septal_flattening=(0.08, 0.2)),
}


@dataclass(frozen=True, eq=False)
class Heart:
    """One subject's heart: per-slice quantities have shape `(z, 1, 1)` so that they broadcast against an image grid `(z, y, x)`."""

    centre_mm: np.ndarray
    endo_mm: np.ndarray
    wall_mm: np.ndarray
    rv_width_mm: np.ndarray
    rv_half_angle: np.ndarray
    harmonics: np.ndarray
    spiral: np.ndarray
    turn: float
    rv_skew: float
    septal_bulge: float
    septal_flattening: float
    scar: np.ndarray
    scar_angle: float
    squeeze: np.ndarray
    rv_squeeze: np.ndarray
    thickening: float
    torsion: np.ndarray
    swirls: np.ndarray

    def polar(self, points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Angle (radian) and radius (mm) about the LV centre of in-plane points `(z, y, x, 2)`."""
        offset = points_mm - self.centre_mm
        return np.arctan2(offset[..., 1], offset[..., 0]), np.hypot(offset[..., 0], offset[..., 1])

    def rays(self, theta: np.ndarray) -> Rays:
        """Radii of all contours along the rays at angles `theta`, and how far each contracts."""
        wave = sum(a * np.cos(n * (theta + self.spiral) + phase) for n, a, phase in self.harmonics)
        septal = _bump(theta - self.turn - _SEPTUM, 3.0)
        scar = self.scar * _bump(theta - self.scar_angle, 4.0)
        endo = self.endo_mm * (1 + wave - self.septal_flattening * septal)
        epi = endo + self.wall_mm * (1 + 0.5 * wave + self.septal_bulge * septal) * (1 - 0.45 * scar)
        s = np.clip(_wrapped(theta - self.turn - _SEPTUM) / self.rv_half_angle, -1, 1)
        width = self.rv_width_mm * (1 - s**4) ** 0.75 * (1 - self.rv_skew * s)
        squeeze = self.squeeze * (1 - scar) * (1 + 0.5 * wave)
        return Rays(endo, epi, epi + width, squeeze, self.squeeze, self.rv_squeeze * (1 - 0.5 * s * s), self.thickening)

    def to_systole(self, points_mm: np.ndarray) -> np.ndarray:
        """End-diastolic points `(z, y, x, 2)` in mm to where they are at end-systole."""
        theta, radius = self.polar(points_mm)
        contracted = np.sqrt(self.rays(theta).contract(radius**2)[0])
        return self._twisted(self._cartesian(theta, contracted), sign=1)

    def to_diastole(self, points_mm: np.ndarray) -> np.ndarray:
        """The inverse of `to_systole`."""
        theta, radius = self.polar(self._twisted(points_mm, sign=-1))
        return self._cartesian(theta, np.sqrt(self.rays(theta).relax(radius**2)))

    def _cartesian(self, theta: np.ndarray, radius: np.ndarray) -> np.ndarray:
        return self.centre_mm + np.stack((radius * np.cos(theta), radius * np.sin(theta)), axis=-1)

    def _twisted(self, points_mm: np.ndarray, sign: int) -> np.ndarray:
        """Torsion and then the swirls; the other way round, with opposite angles, for `sign` -1."""
        steps = [(self.centre_mm, 1.2 * self.endo_mm, self.torsion)]
        steps += [(self.centre_mm + swirl[:2], swirl[2], swirl[3]) for swirl in self.swirls]
        for centre, sigma_mm, angle in steps[::sign]:
            points_mm = _swirl(points_mm, centre, sigma_mm, sign * angle)
        return points_mm


@dataclass(frozen=True, eq=False)
class Rays:
    """Contour radii in mm along rays, and the radial contraction. `outer_mm` is the right ventricle's edge, or the epicardium where there is none."""

    endo_mm: np.ndarray
    epi_mm: np.ndarray
    outer_mm: np.ndarray
    squeeze: np.ndarray
    mean_squeeze: np.ndarray
    rv_squeeze: np.ndarray
    thickening: float

    def labels(self, radius_mm: np.ndarray) -> np.ndarray:
        """0 background, 1 right cavity, 2 myocardium, 3 left cavity (ACDC), uint8."""
        cavity = (radius_mm < self.outer_mm).astype(np.uint8)
        return np.where(radius_mm < self.endo_mm, 3, np.where(radius_mm < self.epi_mm, 2, cavity)).astype(np.uint8)

    def contract(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared radius at end-systole, and its derivative, which is the Jacobian determinant.

        `Q = q - cavity + thickening - right cavity`, each a smooth ramp of `q`, all faded out beyond the heart.
        The wall grows in the plane by `thickening` because the ventricle shortens along its axis.
        """
        endo, epi, outer = self.endo_mm**2, self.epi_mm**2, self.outer_mm**2
        lost, slope = self._cavity(q / endo)
        wall, wall_slope = _ramp((q - endo) / (epi - endo))
        right, right_slope = _ramp((q - epi) / np.maximum(outer - epi, 1e-6))
        lost = endo * lost - self.thickening * (epi - endo) * wall + self.rv_squeeze * (outer - epi) * right
        slope = slope - self.thickening * wall_slope + self.rv_squeeze * right_slope
        span = (self.outer_mm + _DECAY_MM) ** 2 - outer
        fade, fade_slope = _ramp((q - outer) / span)
        return q - lost * (1 - fade), 1 - slope * (1 - fade) + lost * fade_slope / span

    def relax(self, contracted: np.ndarray) -> np.ndarray:
        """Inverse of `contract` by Newton steps that never leave the shrinking bracket."""
        low, high = np.zeros_like(contracted), (np.sqrt(contracted) + self.outer_mm + _DECAY_MM) ** 2
        q = np.minimum(1.3 * contracted + 1, high)
        for _ in range(60):
            value, slope = self.contract(q)
            excess = value - contracted
            if np.abs(excess).max() < 1e-9:
                break
            low, high = np.where(excess < 0, q, low), np.where(excess > 0, q, high)
            newton = q - excess / slope
            q = np.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
        return np.maximum(q, 0)

    def _cavity(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Share of the squared endocardial radius lost inside `t = q / endo`, and its derivative; uniform near the centre, so smooth there."""
        t = np.minimum(t, 1e3)
        corner = 1 + t**_CORNER
        ramp, ramp_slope = t * corner ** (-1 / _CORNER), corner ** (-1 / _CORNER - 1)
        own = np.exp(-3 * t)
        squeeze = self.squeeze + (self.mean_squeeze - self.squeeze) * own
        return squeeze * ramp, squeeze * ramp_slope - 3 * (self.mean_squeeze - self.squeeze) * own * ramp


def draw_heart(rng: np.random.Generator, group: Group, slices: int) -> Heart:
    """A random heart of one group over `slices` equidistant heights from below the valves to the apex; meets its ejection fractions exactly."""
    height = ((np.arange(slices) + 0.5) / slices)[:, None, None]
    heart = _relaxed_heart(rng, group, height)
    theta = np.linspace(-np.pi, np.pi, 361)[None, None, :-1]
    lv_ef, rv_ef = rng.uniform(*group.lv_ef), rng.uniform(*group.rv_ef)
    lv_unit, rv_unit = _ejection(heart.rays(theta))
    torsion = np.deg2rad(rng.uniform(6, 12)) * (height - 0.35) * min(1.0, lv_ef / 0.6)
    squeeze, rv_squeeze = heart.squeeze * lv_ef / lv_unit, heart.rv_squeeze * rv_ef / rv_unit
    return replace(heart, squeeze=squeeze, rv_squeeze=rv_squeeze, thickening=0.3 * lv_ef, torsion=torsion)


@dataclass(frozen=True)
class Chest:
    """What surrounds one subject's heart, and its contrast: lengths in mm, angles in radian, grey values relative to 0..1000.

    Fat is negative: bSSFP shows it in opposed phase, so that a voxel shared with water is dark (the thin black rims).
    """

    direction: float
    radius_mm: float
    fat_mm: float
    muscle_mm: float
    gap_mm: float
    heart_fat_mm: float
    fillet_mm: float
    diaphragm_mm: float
    tilt: float
    dome_mm: float
    liver_edge_mm: float
    stomach_mm: float
    stomach_grey: float
    liver_grey: float
    fat_grey: float
    blood_grey: float
    myocardium_grey: float
    lung_grey: float
    rib_phase: float
    aorta_mm: tuple[float, float]
    papillary: np.ndarray


def draw_chest(rng: np.random.Generator) -> Chest:
    """A random chest."""
    return Chest(
        direction=np.pi + rng.uniform(-0.1, 0.8),
        radius_mm=rng.uniform(135, 170),
        fat_mm=rng.uniform(6, 22),
        muscle_mm=rng.uniform(11, 16),
        gap_mm=rng.uniform(1, 9),
        heart_fat_mm=rng.uniform(1, 4),
        fillet_mm=rng.uniform(7, 15),
        diaphragm_mm=rng.uniform(-6, 4),
        tilt=rng.normal(-0.15, 0.15),
        dome_mm=rng.uniform(150, 300),
        liver_edge_mm=rng.uniform(-5, 35),
        stomach_mm=rng.uniform(20, 34),
        stomach_grey=rng.choice([30.0, 260.0, 420.0, 650.0]) * rng.uniform(0.8, 1.2),
        liver_grey=rng.uniform(160, 290),
        fat_grey=-rng.uniform(540, 800),
        blood_grey=rng.uniform(560, 840),
        myocardium_grey=rng.uniform(205, 300),
        lung_grey=rng.uniform(45, 110),
        rib_phase=rng.uniform(0, 2 * np.pi),
        aorta_mm=(rng.uniform(42, 62), rng.uniform(50, 66)),
        papillary=np.column_stack(
            (rng.normal((-0.9, -0.55, 1.2, 0.8), 0.15), rng.uniform(0.62, 0.8, 4), rng.uniform((3.5, 1.5, 3.5, 1.5), (5.5, 4, 5.5, 4)))
        ),
    )


def _relaxed_heart(rng: np.random.Generator, group: Group, height: np.ndarray) -> Heart:
    """Shape as drawn; the contraction is still a pattern of unit size, the same in every slice but for a little more at the apex."""
    taper = np.sqrt(1 - (0.94 * height) ** rng.uniform(2.4, 3.4))
    drift = rng.normal(0, 5, 2) * (height[..., None] - 0.5)
    rv_taper = np.clip(1 - (height / rng.uniform(0.88, 1.0)) ** rng.uniform(1.5, 2.1), 0, None)
    orders = np.arange(2, 6)
    scar_height = rng.uniform(0.3, 0.8)
    swirls = np.column_stack((rng.normal(0, 22, (6, 2)), rng.uniform(14, 26, 6), np.deg2rad(rng.normal(0, 2.2, 6))))
    return Heart(
        centre_mm=drift,
        endo_mm=rng.uniform(*group.lv_radius_mm) * taper,
        wall_mm=rng.uniform(*group.wall_mm) * (1.05 - 0.3 * height),
        rv_width_mm=rng.uniform(*group.rv_width_mm) * rv_taper,
        rv_half_angle=np.deg2rad(rng.uniform(76, 90)) * (1 - 0.4 * height**1.5),
        harmonics=np.stack((orders, rng.normal(0, 0.12, 4) / orders**1.6, rng.uniform(-np.pi, np.pi, 4)), axis=1),
        spiral=rng.normal(0, 0.5) * height,
        turn=rng.normal(-0.1, 0.25),
        rv_skew=rng.uniform(0.05, 0.4),
        septal_bulge=rng.uniform(*group.septal_bulge),
        septal_flattening=rng.uniform(*group.septal_flattening),
        scar=rng.uniform(*group.scar) * np.exp(-(((height - scar_height) / 0.4) ** 4)),
        scar_angle=rng.uniform(-np.pi, np.pi),
        squeeze=0.95 + 0.1 * height,
        rv_squeeze=np.ones_like(height),
        thickening=0.0,
        torsion=np.zeros_like(height),
        swirls=swirls,
    )


def _ejection(rays: Rays) -> tuple[float, float]:
    """Ejection fractions of the left and the right ventricle, both linear in the squeeze, from rays of all angles and slices."""
    endo, epi, outer = rays.endo_mm**2, rays.epi_mm**2, rays.outer_mm**2
    at_wall = rays._cavity(np.ones_like(endo))[0]
    return float((endo * at_wall).sum() / endo.sum()), float((rays.rv_squeeze * (outer - epi)).sum() / (outer - epi).sum())


def _swirl(points_mm: np.ndarray, centre_mm: np.ndarray, sigma_mm: np.ndarray | float, angle: np.ndarray | float) -> np.ndarray:
    """Points turned about a centre by `angle`, fading as a Gaussian of the distance."""
    dx, dy = np.moveaxis(points_mm - centre_mm, -1, 0)
    turn = angle * np.exp(-(dx * dx + dy * dy) / (2 * sigma_mm**2))
    cosine, sine = np.cos(turn), np.sin(turn)
    return centre_mm + np.stack((cosine * dx - sine * dy, sine * dx + cosine * dy), axis=-1)


def _ramp(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A C1 step from 0 to 1 on [0, 1] and its derivative, which is a trapezoid with shoulders of 0.2 and so nowhere above 1.25."""
    x = np.clip(x, 0, 1)
    mirrored = np.minimum(x, 1 - x)
    half = np.where(mirrored < 0.2, mirrored**2 * 3.125, 1.25 * (mirrored - 0.1))
    return np.where(x < 0.5, half, 1 - half), np.minimum(6.25 * mirrored, 1.25)


def _bump(angle: np.ndarray, sharpness: float) -> np.ndarray:
    """A smooth periodic bump of height one at angle zero (von Mises)."""
    return np.exp(sharpness * (np.cos(angle) - 1))


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi
