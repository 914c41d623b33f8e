"""Anatomy of the MR-TRUS phantom: a male pelvis as implicit functions, evaluated at any points in mm, so that MR and ultrasound show one anatomy.

The frame is the gland's (LPS: x to the patient's left, y backwards, z upwards). Points are first pulled back through a smooth random warp into
a template of ellipsoids, tubes and sheets, which is painted from the outside in. Shapes, sizes and their ranges are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.datasets.phantoms.trus_gland import Gland, draw_gland
from pipeline.datasets.phantoms.trus_tissue import Tissue
from pipeline.datasets.phantoms.trus_warp import Warp, draw_warp

CORTEX_MM = 2.4
TRIANGLES = 3000
"""About as many triangles as the gland's surface gets."""

Coordinates = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Pelvis:
    """One subject. `sizes` are what `draw_pelvis` drew, in mm: see there."""

    gland: Gland
    warp: Warp
    sizes: dict[str, float]

    def gland_depth_mm(self, points_mm: np.ndarray) -> np.ndarray:
        """Depth inside the gland of points `(..., 3)`, negative outside, float32 `(...)`; about the distance to its surface."""
        return self.gland.depth_mm(*_template(self.warp, points_mm))

    def zones(self, points_mm: np.ndarray) -> np.ndarray:
        """Zones `(...)` of points `(..., 3)`, uint8: 0 outside, 1 peripheral zone, 2 all that lies within (transition and central zone, stroma)."""
        x, y, z = _template(self.warp, points_mm)
        depth = self.gland.depth_mm(x, y, z)
        zones = (depth > 0).astype(np.uint8)
        tissue = self.gland.classify(x[depth > 0], y[depth > 0], z[depth > 0], depth[depth > 0])
        inner = self.gland.lobe_edge_mm(x, y, z, depth) > 0
        inner[depth > 0] |= np.isin(tissue, (Tissue.CENTRAL, Tissue.STROMA, Tissue.URETHRAL_MUSCLE, Tissue.URETHRA))
        zones[inner & (depth > 0)] = 2
        return zones

    def tissue(self, points_mm: np.ndarray, *, probe: bool = False) -> np.ndarray:
        """Tissue `(...)` of points `(..., 3)`, uint8 (see `Tissue`). With the `probe` in it, gel fills the rectum, not gas and stool, and the
        bladder is as full as at the biopsy, not as at MR; all else is the same."""
        x, y, z = _template(self.warp, points_mm)
        tissue = np.full(x.shape, Tissue.FAT, dtype=np.uint8)
        leaning = y - self.gland.tilt * z
        depth = self._depth_nearby(x, y, z)
        self._paint_muscles(tissue, x, y, z)
        self._paint_bones(tissue, x, y, z)
        self._paint_floor(tissue, x, leaning, z)
        self._paint_veins(tissue, x, leaning, z, depth)
        self._paint_bladder(tissue, x, y, z, self.sizes["bladder_at_biopsy" if probe else "bladder_height"])
        self._paint_vesicles(tissue, x, leaning, z)
        self._paint_rectum(tissue, x, leaning, z, probe)
        tissue[(np.hypot(x, y - self.gland.urethra(z)) < 4.5) & (z < 0)] = Tissue.URETHRAL_MUSCLE
        inside = depth > 0
        tissue[inside] = self.gland.classify(x[inside], y[inside], z[inside], depth[inside])
        return tissue

    def _depth_nearby(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """As `Gland.depth_mm`, but -99 far from the gland, where nobody asks."""
        a, b, c = self.gland.half_mm + 12
        near = np.flatnonzero((np.abs(x) < 1.2 * a) & (np.abs(y - self.gland.tilt * z) < 1.1 * b) & (np.abs(z) < 1.1 * c))
        depth = np.full(x.size, -99, dtype=np.float32)
        depth[near] = self.gland.depth_mm(x.reshape(-1)[near], y.reshape(-1)[near], z.reshape(-1)[near])
        return depth.reshape(x.shape)

    def rectum_front_mm(self, z: float) -> np.ndarray:
        """Point `(3,)` of the subject where the rectum's cavity begins behind the gland, at template height z."""
        y = self._rectum_centre(np.array(z)) - self._rectum_half(np.array(z))[1] + self.gland.tilt * z
        return self.warp.inverse(np.array([0.0, float(y), z]))

    def _rectum_centre(self, z: np.ndarray) -> np.ndarray:
        """Centre of the rectum's cavity in y, before the gland's tilt: behind the gland, bent backwards below it and along the sacrum above."""
        s, c = self.sizes, float(self.gland.half_mm[2])
        below = np.clip(-z - 1.05 * c, 0, 40)
        front = self.gland.back_mm(z) + s["gap"] + s["rectal_wall"]
        return front + self._rectum_half(z)[1] + 0.35 * below + 0.004 * np.clip(z - c, 0, 40) ** 2

    def _rectum_half(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Half-axes of the rectum's cavity: it narrows to a slit in the anal canal."""
        s, c = self.sizes, float(self.gland.half_mm[2])
        open_ = np.clip((z + 1.15 * c + 8) / 14, 0, 1)
        return 3 + (s["rectum_width"] - 3) * open_, 1.2 + (s["rectum_depth"] - 1.2) * open_

    def _paint_muscles(self, tissue: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
        """Obturator internus and externus along the side wall, gluteus behind, rectus in front."""
        s, side = self.sizes, np.abs(x)
        wall = s["wall"] - 0.10 * np.clip(np.abs(y + 4) - 18, 0, None) + 0.12 * np.clip(z, -30, 30)
        swell = ((y + 6) / 42) ** 2
        internus = (side - wall > 0) & (side - wall < s["obturator"] * np.sqrt(np.clip(1 - swell, 0, 1))) & (z > -38)
        gluteus = (y - s["sacrum"] + 0.42 * (58 - side) > 7 + 1.5 * np.sin(0.35 * side + 0.2 * z)) & (side > 7)
        front = s["pubis"]
        rectus = ((side - 17) / 15) ** 2 + ((y - front + 13 - 0.25 * z) / 5.5) ** 2 < 1
        edge = 36 + 0.2 * (y + 20) + 0.3 * np.clip(z, 0, None) + 2.5 * np.sin(y / 7 + z / 23)
        thigh = (side > edge) & (y < front + 12 - 0.35 * z + 3 * np.sin(side / 6))
        bend = 1.1 * np.sin(y / 11 + 0.04 * z) + 0.8 * np.sin(side / 13 - y / 19)
        septa = (np.abs(np.sin(side / 11 + y / 24 + bend)) < 0.14) | (np.abs(np.sin(y / 13 - side / 23 + bend)) < 0.12)
        tissue[internus | gluteus | (rectus & (z > 4)) | (thigh & ~septa)] = Tissue.MUSCLE
        tissue[((side - 41) / 5) ** 2 + ((y - front + 14) / 5) ** 2 < 1] = Tissue.VEIN

    def _paint_bones(self, tissue: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
        """Pubis with both rami, the acetabulum's inner wall and ischium, and the coccyx: marrow in a black cortex; the cartilage of the symphysis."""
        s, side, front = self.sizes, np.abs(x), self.sizes["pubis"]
        socket = s["wall"] + s["obturator"]
        bones = (
            (self._pubis, (y < front + 34) | (side > 38)),
            (lambda x, y, z: _ball(x - socket - 24, y - 2, z - 12, (24, 32, 60)), side > socket),
            (lambda x, y, z: _ball(x, y - s["sacrum"] - 0.2 * np.abs(z - 8), z - 22, (12, 6, 34)), (y > s["sacrum"] - 7) & (side < 12)),
        )
        for bone, place in bones:  # each only where it can be
            near = np.flatnonzero(place)
            depth = bone(*(part.reshape(-1)[near] for part in (side, y, z)))
            tissue.reshape(-1)[near[depth > 0]] = np.where(depth[depth > 0] < CORTEX_MM, Tissue.CORTEX, Tissue.MARROW)
        disc = (side < 2.4) & (((y - front + 6) / 9) ** 2 + ((z + 10 + 0.4 * (y - front)) / 17) ** 2 < 1)
        tissue[disc] = Tissue.CARTILAGE

    def _pubis(self, side: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Depth in mm inside the body of the pubis and its rami, up to the hip and down to the ischium."""
        front = self.sizes["pubis"]
        body, hip, ischium = (11.0, front - 6, -10.0), (62.0, front + 20, 20.0), (54.0, front + 50, -48.0)
        rami = np.maximum(_rod(side, y, z, body, hip, (11, 12)), _rod(side, y, z, body, ischium, (11, 10)))
        return np.minimum(np.maximum(rami, _rod(side, y, z, (9, front - 3, 2), (9, front - 9, -20), (9, 8))), side - 2.2)

    def _paint_floor(self, tissue: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
        """Levator ani: a funnel around gland and rectum, from the side wall down to the anal canal; the perineal muscles below the apex."""
        s, (a, b, c) = self.sizes, (float(half) for half in self.gland.half_mm)
        back = 2 * (s["rectum_depth"] + s["rectal_wall"]) + b + s["gap"] + 2
        middle, half = (back - b) / 2, (back + b) / 2 + 2
        rise = np.clip((z + c + 6) / (1.25 * c), 0, 2.4)
        wide = 12 + (a - 6) * rise**0.9 + 14 * np.clip(rise - 1, 0, None) ** 2
        ring = (np.sqrt((x / wide) ** 2 + ((y - middle) / half) ** 2) - 1) * np.minimum(wide, half)
        thick = s["levator"] * (1 + 0.3 * np.sin(0.2 * y + 0.3 * z))
        bounds = (z > -c - 22) & (wide < s["wall"] + 4) & (y > -0.75 * b) & ((z < 0.2 * c) | (y < back - 6))
        floor = (np.abs(z + c + 12) < 6) & (np.abs(x) < 13 - 0.3 * np.abs(y)) & (y > -0.8 * b) & (y < b)
        tissue[((ring > 0) & (ring < thick) & bounds) | floor] = Tissue.MUSCLE

    def _paint_veins(self, tissue: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, depth: np.ndarray) -> None:
        """Dorsal vein complex in front of the gland and the plexus at its sides, down to the neurovascular bundles: winding bright channels."""
        near = np.flatnonzero((depth < -0.8) & (depth > -8.5) & (tissue == Tissue.FAT))
        px, py, pz = x.reshape(-1)[near], y.reshape(-1)[near], z.reshape(-1)[near]
        b, c = float(self.gland.half_mm[1]), float(self.gland.half_mm[2])
        reach = np.where(py < -0.7 * b, 8.5, 5.0) * (np.abs(px) > 0.25 * b) + 3.5 * (py < -0.8 * b)
        winding = np.sin(1.15 * px + 0.5 * pz) * np.cos(1.0 * py) + np.sin(0.9 * py + 0.7 * px) * np.cos(0.55 * pz)
        veins = (winding > 0.45) & (depth.reshape(-1)[near] > -reach) & (py < 0.95 * b) & (np.abs(pz) < 1.1 * c)
        tissue.reshape(-1)[near[veins]] = Tissue.VEIN

    def _paint_bladder(self, tissue: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, high: float) -> None:
        """The bladder on the gland's base, `high` mm from its floor to its middle."""
        s, c = self.sizes, float(self.gland.half_mm[2])
        wide, deep = (s[name] * (0.5 + 0.5 * min(1.0, high / s["bladder_height"])) for name in ("bladder_width", "bladder_depth"))
        dx, dz = x - s["bladder_shift"], z - 0.72 * c - high
        dy = y - self.gland.tilt * c * 0.5 + 0.32 * float(self.gland.half_mm[1]) + 6 + 0.25 * (dz + high)
        depth = _ball(dx, dy, dz, (wide, deep, high))
        tissue[depth > -s["bladder_wall"]] = Tissue.BLADDER_WALL
        tissue[depth > 0] = Tissue.URINE

    def _paint_vesicles(self, tissue: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
        """Seminal vesicles, convoluted sacs that spread sideways above the base, and the deferent ducts between them."""
        s, (_, b, c), side = self.sizes, self.gland.half_mm, np.abs(x)
        back, top, thick = b * 0.62, 0.82 * c, s["vesicle"]
        near = np.flatnonzero((z > top - 12) & (z < top + 40) & (np.abs(y - back - 4) < 26))
        px, py, pz = side.reshape(-1)[near], y.reshape(-1)[near], z.reshape(-1)[near]
        wave = np.sin(0.95 * px + 0.6 * pz) * np.cos(0.8 * py - 0.3 * pz) + np.sin(0.75 * pz + 0.5 * px) * np.cos(0.6 * px + 0.4)
        elbow, tip = (15.0, back + 1, top + 9), (s["vesicle_reach"], back + 7, top + s["vesicle_rise"])
        sac = np.maximum(_rod(px, py, pz, (5, back, top + 2), elbow, (0.7 * thick, thick)), _rod(px, py, pz, elbow, tip, (thick, 0.8 * thick)))
        sac = sac + 0.9 * wave
        duct = _rod(px, py, pz, (2.6, back - 2, top), (7, back - 6, top + 36), (3.2, 3.2))
        found = np.where(sac > 0, Tissue.VESICLE_WALL, 255).astype(np.uint8)
        found[(sac > 1.0) & (np.abs(wave) > 0.22)] = Tissue.VESICLE
        found[duct > 0] = Tissue.VESICLE_WALL
        found[duct > 2.3] = Tissue.VESICLE
        tissue.reshape(-1)[near[found < 255]] = found[found < 255]

    def _paint_rectum(self, tissue: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, probe: bool) -> None:
        """Muscular wall, mucosa, and the content: stool, with gas in front of it, for the patient lies on the back."""
        s, c = self.sizes, float(self.gland.half_mm[2])
        wide, deep = self._rectum_half(z)
        dy = y - self._rectum_centre(z)
        fold = 0.5 * np.sin(0.5 * x + 0.25 * z)
        depth = (1 - np.sqrt((x / wide) ** 2 + (dy / deep) ** 2)) * np.minimum(wide, deep) + fold * (deep > 2)
        canal = 4.5 * np.clip((-z - 1.15 * c - 2) / 10, 0, 1)
        tissue[depth > -s["rectal_wall"] - canal] = Tissue.RECTAL_WALL
        tissue[depth > -0.45 * s["rectal_wall"]] = Tissue.MUCOSA
        content = np.where(dy < s["gas_level"] * deep, Tissue.GAS, Tissue.STOOL)
        tissue[depth > 0] = Tissue.GEL if probe else content[depth > 0]


def _template(warp: Warp, points_mm: np.ndarray) -> Coordinates:
    return tuple(np.moveaxis(warp(np.asarray(points_mm, dtype=np.float32)), -1, 0))


def _ball(dx: np.ndarray, dy: np.ndarray, dz: np.ndarray, half: tuple[float, float, float]) -> np.ndarray:
    """Depth in mm (about) inside an ellipsoid, at offsets from its centre."""
    return (1 - np.sqrt((dx / half[0]) ** 2 + (dy / half[1]) ** 2 + (dz / half[2]) ** 2)) * min(half)


def _rod(x: np.ndarray, y: np.ndarray, z: np.ndarray, start: tuple, end: tuple, radii: tuple[float, float]) -> np.ndarray:
    """Depth in mm inside a rod with round ends whose radius goes linearly from the first of `radii` to the second."""
    axis = np.subtract(end, start)
    dx, dy, dz = x - start[0], y - start[1], z - start[2]
    along = np.clip((dx * axis[0] + dy * axis[1] + dz * axis[2]) / float(axis @ axis), 0, 1)
    away = np.sqrt((dx - along * axis[0]) ** 2 + (dy - along * axis[1]) ** 2 + (dz - along * axis[2]) ** 2)
    return radii[0] + along * (radii[1] - radii[0]) - away


def draw_pelvis(rng: np.random.Generator) -> Pelvis:
    """A subject's pelvis; what lies around the gland makes room for it."""
    warp = draw_warp(rng)
    gland = draw_gland(rng, warp)
    a, b, _ = gland.half_mm
    sizes = {
        "gap": rng.uniform(1.2, 3.0),
        "rectal_wall": rng.uniform(3.0, 4.2),
        "rectum_width": rng.uniform(9, 20),
        "rectum_depth": rng.uniform(4.5, 13),
        "gas_level": rng.uniform(-1.3, 0.5),
        "wall": max(rng.uniform(43, 50), a + 13),
        "obturator": rng.uniform(12, 17),
        "levator": rng.uniform(2.2, 3.4),
        "pubis": -b - rng.uniform(11, 18),
        "sacrum": b + rng.uniform(38, 50),
        "bladder_width": rng.uniform(32, 46),
        "bladder_depth": rng.uniform(24, 34),
        "bladder_height": rng.uniform(16, 34),
        "bladder_at_biopsy": rng.uniform(4, 24),
        "bladder_wall": rng.uniform(2.2, 4.5),
        "bladder_shift": rng.normal(0, 4),
        "vesicle": rng.uniform(5.5, 8.5),
        "vesicle_reach": rng.uniform(26, 40),
        "vesicle_rise": rng.uniform(12, 24),
    }
    return Pelvis(gland, warp, {name: float(size) for name, size in sizes.items()})


def landmarks(pelvis: Pelvis) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and places `(n, 3)` in the subject: apex, bladder neck, verumontanum, mid-urethra, vesicles, largest nodules, calcifications."""
    gland = pelvis.gland
    _, b, c = gland.half_mm
    heights = {"apex": -0.88 * c, "bladder neck": 0.9 * c, "mid-urethra": (gland.veru[2] + 0.9 * c) / 2}
    found = {name: np.array([0.0, float(gland.urethra(np.array(z))), z]) for name, z in heights.items()}
    found["verumontanum"] = gland.veru
    for side, sign in (("left", 1), ("right", -1)):
        z = 0.82 * c + 9
        found[f"{side} seminal vesicle"] = np.array([sign * 15.0, b * 0.62 + 1 + gland.tilt * z, z])
    found |= {f"nodule {n + 1}": centre[:3] for n, centre in enumerate(gland.nodules[:3])}
    found |= {f"calcification {n + 1}": centre[:3] for n, centre in enumerate(gland.calcifications[:3])}
    return tuple(found), pelvis.warp.inverse(np.stack(list(found.values())))


def surface(pelvis: Pelvis) -> np.ndarray:
    """Triangles `(t, 3, 3)` of the gland's surface in the subject's frame, about `TRIANGLES`, by marching cubes of the implicit function."""
    from skimage.measure import marching_cubes

    half = 1.25 * pelvis.gland.half_mm + 4
    half[1] += abs(pelvis.gland.tilt) * half[2]
    area = 4.84 * 1.15 * (8 * np.prod(pelvis.gland.half_mm) * np.pi / 6) ** (2 / 3)
    step = float(np.sqrt(2.7 * area / TRIANGLES))
    axes = [np.arange(-reach, reach + step, step) for reach in half]
    depth = pelvis.gland_depth_mm(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1))
    corners, faces, _, _ = marching_cubes(depth, 0.0, spacing=(step,) * 3)
    return (corners - half)[faces].astype(float)
