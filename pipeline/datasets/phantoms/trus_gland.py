"""The prostate of the MR-TRUS phantom as an implicit function: its surface, zones, nodules, lesions, calcifications.

Coordinates are mm (LPS) in the gland's template: origin at its centre, apex below, base above. All shapes and ranges are ours, within those of
the radiological literature (gland 20 to 120 ml; hyperplasia grows the transition zone, the peripheral zone hardly).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.datasets.phantoms.trus_tissue import NODULES, Tissue

SMALLEST_ML, LARGEST_ML = 21.0, 119.0
VOXEL_ML = 0.008
"""Volume of a cell of the lattice, 2 mm wide, on which a gland is measured."""
CAPSULE_MM = 0.9
FLATNESS = 0.9
"""How far the back of the gland goes from a round to a flat outline from apex to base; 0: round."""
ROUND = np.pi / 6
"""Volume of an ellipsoid as a share of its box."""


@dataclass(frozen=True, eq=False)
class Gland:
    """One prostate. `half_mm` is half its width, depth and length; `tilt` leans the base backwards (dy / dz).

    `nodules` is `(n, 5)`: centre, radius in mm, index in `NODULES`. `lesions` is `(n, 6)`: centre, half-axes. `calcifications` is `(n, 4)`: centre, radius.
    """

    half_mm: np.ndarray
    tilt: float
    groove: float
    taper: float
    lopsided: float
    narrowing: float
    boxy: float
    veru: np.ndarray
    lobe: np.ndarray
    lobe_level: float = 1.0
    nodules: np.ndarray = field(default_factory=lambda: np.zeros((0, 5)))
    lesions: np.ndarray = field(default_factory=lambda: np.zeros((0, 6)))
    calcifications: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))

    def depth_mm(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Depth below the surface in mm along the ray from the centre, negative outside; close to the distance near the surface."""
        y = y - self.tilt * z
        a, b, c = (float(half) for half in self.half_mm)
        t = np.clip(z / c, -1.3, 1.3)
        yn = y / (b * (1 + 0.1 * t))
        yn = yn + self.groove * np.exp(-((x / (0.32 * a)) ** 2)) * np.clip(yn, 0, 1)
        wide = a * (1 + self.lopsided * x / (a + np.abs(x))) * (1 + self.taper * t - 0.1 * t * t) * (1 + self.narrowing * np.clip(yn, -1, 1))
        xx, yy = (x / wide) ** 2, yn**2
        across, along = np.sqrt(xx * xx + yy * yy + self.boxy * xx * yy), (z / c) ** 2
        # flat behind, where the rectum lies, and round in front
        flat = 2 - FLATNESS * np.clip(2 * yn, 0, 1)
        radius = np.sqrt(np.sqrt(across * across + along * along + flat * across * along)) + 1e-4
        return np.sqrt(x * x + y * y + z * z) * (1 / radius - 1) + 1e-3 * (1 - radius)

    def back_mm(self, z: np.ndarray) -> np.ndarray:
        """Where the gland's back lies in y in the midline at height z, before its tilt; towards apex and base it goes forwards no further than 60 %."""
        along = np.clip((z / float(self.half_mm[2])) ** 2, 0, 1)
        linear = (2 - FLATNESS) * along
        squared = (np.sqrt(linear**2 + 4 * (1 - along**2)) - linear) / 2
        return float(self.half_mm[1]) * (1 - 0.7 * self.groove) * np.maximum(np.sqrt(squared), 0.6)

    def lobe_radius(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """How far from the centre of the nearer lobe of the transition zone, whose edge lies at `lobe_level`; without unit."""
        xn, yn, zn = self._normalised(x, y, z)
        shift, up, front, skew = self.lobe
        side = np.abs(xn) * (1 - skew * np.tanh(4 * xn)) - shift
        return np.sqrt((side / 0.5) ** 2 + ((yn + front) / 0.62) ** 2 + ((zn - up) / 0.72) ** 2)

    def urethra(self, z: np.ndarray) -> np.ndarray:
        """Where the urethra's axis lies in y at height z: straight from the apex to the verumontanum, then bent forwards to the bladder's neck."""
        _, b, c = self.half_mm
        rise = (z - self.veru[2]) / c
        distal, proximal = 0.10 * b * rise, -0.36 * b * rise
        return self.veru[1] + self.tilt * (z - self.veru[2]) + np.where(rise < 0, -distal, proximal)

    def classify(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Tissue of points `(n,)` inside the gland, uint8."""
        xn, yn, zn = self._normalised(x, y, z)
        tissue = np.full(x.shape, Tissue.PERIPHERAL, dtype=np.uint8)
        lobes = self.lobe_edge_mm(x, y, z, depth)
        tissue[(zn > 0.35) & (yn > 0.05) & (np.abs(xn) < 0.28 + 0.25 * zn) & (depth > 2)] = Tissue.CENTRAL
        tissue[lobes > -0.5] = Tissue.SURGICAL_CAPSULE
        inside = np.flatnonzero(lobes > 0.4)
        tissue[inside] = self._nodular(x[inside], y[inside], z[inside])
        tissue[(yn + 0.35 * np.abs(xn) < -0.60 + 0.25 * xn * xn) & (np.abs(xn) < 0.45)] = Tissue.STROMA
        for *centre, rx, ry, rz in self.lesions:
            tissue[_ellipsoid(x, y, z, centre, (rx, ry, rz)) < 1] = Tissue.LESION
        self._paint_urethra(tissue, x, y, z)
        tissue[depth < CAPSULE_MM] = Tissue.CAPSULE
        for *centre, radius in self.calcifications:
            tissue[_ellipsoid(x, y, z, centre, (radius,) * 3) < 1] = Tissue.CALCIFICATION
        return tissue

    def lobe_edge_mm(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Depth in mm (about) inside the transition zone, which leaves a rim of peripheral zone behind and beside it."""
        edge = (self.lobe_level - self.lobe_radius(x, y, z)) * 0.6 * float(np.mean(self.half_mm))
        _, yn, zn = self._normalised(x, y, z)
        rim = depth - 4.5 * np.clip(0.9 + 1.2 * yn, 0.1, 1) * np.clip(1.5 - 1.2 * zn, 0.3, 1)
        return np.minimum(edge, rim)

    def _normalised(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a, b, c = (float(half) for half in self.half_mm)
        return x / a, (y - self.tilt * z) / b, z / c

    def _nodular(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Transition zone: the nodule in which a point lies deepest, its dark rim, or what is between them."""
        tissue = np.full(x.shape, Tissue.TRANSITION, dtype=np.uint8)
        deepest = np.zeros(x.shape, dtype=np.float32)
        wobble = 0.7 * np.sin(0.55 * x + 0.4 * z) * np.sin(0.6 * y - 0.3 * x)
        for cx, cy, cz, radius, kind in self.nodules:
            inside = radius + wobble - np.sqrt((x - cx) ** 2 + (y - cy) ** 2 + (0.85 * (z - cz)) ** 2)
            wins = inside > deepest
            tissue[wins] = np.where(inside[wins] < 0.8, Tissue.NODULE_RIM, NODULES[int(kind)])
            deepest = np.maximum(deepest, inside)
        return tissue

    def _paint_urethra(self, tissue: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
        away = np.hypot(x, y - self.urethra(z))
        distal = z < self.veru[2]
        tissue[away < np.where(distal, 5.0, 3.6)] = Tissue.URETHRAL_MUSCLE
        tissue[away < np.where(distal, 2.6, 1.2)] = Tissue.URETHRA
        tissue[_ellipsoid(x, y, z, self.veru, (2.2, 2.4, 5.0)) < 1] = Tissue.URETHRA


def _ellipsoid(x: np.ndarray, y: np.ndarray, z: np.ndarray, centre: tuple, half: tuple) -> np.ndarray:
    return ((x - centre[0]) / half[0]) ** 2 + ((y - centre[1]) / half[1]) ** 2 + ((z - centre[2]) / half[2]) ** 2


def draw_gland(rng: np.random.Generator, pulled: Callable[[np.ndarray], np.ndarray] = np.asarray) -> Gland:
    """A gland of 21 to 119 ml; the larger, the deeper from front to back and the larger its transition zone's share.

    The volume is that in the subject, whose points `(..., 3)` `pulled` takes to the template.
    """
    volume_ml = float(np.clip(np.exp(rng.normal(np.log(45), 0.5)), SMALLEST_ML, LARGEST_ML))
    growth = np.log(volume_ml / SMALLEST_ML) / np.log(LARGEST_ML / SMALLEST_ML)
    gland = _draw_shape(rng, volume_ml, growth)
    for _ in range(3):
        held_ml = VOXEL_ML * (gland.depth_mm(*pulled(_lattice(gland).T).T) > 0).sum()
        gland = replace(gland, half_mm=gland.half_mm * (volume_ml / held_ml) ** (1 / 3))
    points = _lattice(gland)
    points = points[:, gland.depth_mm(*points) > 0]
    share = np.clip(0.22 + 0.48 * growth + rng.normal(0, 0.05), 0.15, 0.75)
    gland = replace(gland, lobe_level=float(np.quantile(gland.lobe_radius(*points), share)))
    return _with_findings(gland, points, rng)


def _draw_shape(rng: np.random.Generator, volume_ml: float, growth: float) -> Gland:
    deep, long = 0.64 + 0.16 * growth + rng.normal(0, 0.04), 0.88 + rng.normal(0, 0.06)
    width = (1000 * volume_ml / (ROUND * deep * long)) ** (1 / 3)
    half = width / 2 * np.array([1.0, deep, long])
    veru = np.array([0.0, rng.uniform(-0.02, 0.14) * half[1], rng.uniform(-0.25, 0.0) * half[2]])
    return Gland(
        half,
        tilt=float(rng.normal(0.24, 0.06)),
        groove=float(rng.uniform(0.06, 0.24)),
        taper=float(rng.uniform(0.06, 0.16)),
        lopsided=float(rng.normal(0, 0.08)),
        narrowing=float(rng.uniform(0.04, 0.18)),
        boxy=float(rng.uniform(1.0, 1.8)),
        veru=veru + [0, rng.normal(0, 0.2), 0],
        lobe=np.array([rng.uniform(0.24, 0.34), rng.uniform(0.08, 0.22), rng.uniform(0.12, 0.26), rng.normal(0, 0.08)]),
    )


def _lattice(gland: Gland) -> np.ndarray:
    """Points `(3, n)` 2 mm apart around the gland, sheared with it."""
    axes = [np.arange(-1.5 * half, 1.5 * half, 2.0) for half in gland.half_mm]
    x, y, z = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
    return np.stack((x, y + gland.tilt * z, z)).astype(np.float32)


def _with_findings(gland: Gland, points: np.ndarray, rng: np.random.Generator) -> Gland:
    """Nodules in the transition zone, lesions mostly in the peripheral zone, calcifications along the surgical capsule and the urethra."""
    depth = gland.depth_mm(*points)
    edge = gland.lobe_edge_mm(*points, depth)
    lobes, rim = points[:, edge > 1.5].T, points[:, (edge < -1.5) & (depth > 2.5) & (points[1] > gland.tilt * points[2])].T
    seam = points[:, (np.abs(edge) < 1.5) & (depth > 4)].T
    count = int(np.clip(rng.poisson(3 + 0.35 * len(lobes) * 8e-3), 2, 22)) if len(lobes) else 0
    radii = np.sort(rng.uniform(2.5, 3.5 + 0.22 * len(lobes) ** (1 / 3) * 2, count))[::-1]
    kinds = rng.choice(len(NODULES), count, p=(0.26, 0.26, 0.22, 0.2, 0.06))
    nodules = np.column_stack((_picked(rng, lobes, count), radii, kinds))
    count = rng.choice(3, p=(0.4, 0.4, 0.2))
    lesions = np.column_stack((_picked(rng, rim, count), rng.uniform((3.5, 2.5, 3.5), (8, 5.5, 9), (count, 3))))
    count = rng.choice(7, p=(0.25, 0.15, 0.15, 0.15, 0.1, 0.1, 0.1))
    calcifications = np.column_stack((_picked(rng, seam, count), rng.uniform(0.7, 2.0, count)))
    return replace(gland, nodules=nodules, lesions=lesions, calcifications=calcifications)


def _picked(rng: np.random.Generator, points: np.ndarray, count: int) -> np.ndarray:
    if not len(points):
        return np.zeros((count, 3)) + [0, 0, 0]
    return points[rng.integers(len(points), size=count)].astype(float)
