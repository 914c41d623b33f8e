"""The transrectal probe of the phantom: where its beams run, and the sweep of planes turned into a Cartesian volume.

Both probes sweep a fan of beams about an axis that is parallel to the fan's own width. End-fire: the fan leaves the probe's tip and is tilted up and down;
side-fire: the fan leaves the probe's side and is rolled about the probe's axis. A beam has a plane angle, a fan angle and a depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pipeline.datasets.phantoms.trus_mr import moved, slice_points
from pipeline.volumes import Geometry


@dataclass(frozen=True, eq=False)
class Probe:
    """Place and reach of the probe, in mm and radian, in the frame of the anatomy.

    Rows of `axes` `(3, 3)` are unit vectors: across the fan (along the sweep's axis), forwards, and their cross product, towards larger plane angles.
    `pivot_mm` is a point of the sweep's axis, `radius_mm` the distance from there to the probe's surface. The fan's lines meet `apex_mm` behind the axis.
    """

    pivot_mm: np.ndarray
    axes: np.ndarray
    radius_mm: float
    apex_mm: float
    half_fan: float
    half_sweep: float
    depth_mm: float

    def beam_coordinates(self, points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Plane angle, fan angle (radian) and depth (mm) of points `(..., 3)`; each `(...)`, dtype kept."""
        axes = self.axes.astype(points_mm.dtype)
        across, forwards, up = np.moveaxis((points_mm - self.pivot_mm.astype(points_mm.dtype)) @ axes.T, -1, 0)
        reach = np.hypot(forwards, up) + points_mm.dtype.type(self.apex_mm)
        return np.arctan2(up, forwards), np.arctan2(across, reach), np.hypot(across, reach) - points_mm.dtype.type(self.radius_mm + self.apex_mm)

    def points_at(self, plane: np.ndarray, fan: np.ndarray, depth_mm: np.ndarray) -> np.ndarray:
        """Points `(..., 3)` of beam coordinates that broadcast against each other; the inverse of `beam_coordinates`."""
        far = depth_mm + self.radius_mm + self.apex_mm
        reach = far * np.cos(fan) - self.apex_mm
        local = np.stack(np.broadcast_arrays(far * np.sin(fan), reach * np.cos(plane), reach * np.sin(plane)), axis=-1)
        return local @ self.axes.astype(local.dtype) + self.pivot_mm.astype(local.dtype)

    def sees(self, points_mm: np.ndarray) -> np.ndarray:
        """Whether points `(..., 3)` lie in the sector that is swept, `(...)` bool."""
        plane, fan, depth = self.beam_coordinates(points_mm)
        return (np.abs(plane) <= self.half_sweep) & (np.abs(fan) <= self.half_fan) & (depth >= 0) & (depth <= self.depth_mm)


@dataclass(frozen=True, eq=False)
class Beams:
    """Samples of a sweep: the angles of planes and of beams within a plane (radian, rising), and depths in mm from zero, evenly spaced."""

    planes: np.ndarray
    fans: np.ndarray
    depths_mm: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(plane, beam, depth)`."""
        return len(self.planes), len(self.fans), len(self.depths_mm)

    @property
    def step_mm(self) -> float:
        """Distance of samples along a beam."""
        return float(self.depths_mm[1] - self.depths_mm[0])


def draw_beams(probe: Probe, spacing_mm: float, jitter: float, rng: np.random.Generator) -> Beams:
    """Beams about as dense as a grid of `spacing_mm` needs; planes are swept by hand, so their angles are off by `jitter` of their distance."""
    coarse = float(np.clip(spacing_mm / 0.5, 0.8, 2.0))
    planes = np.linspace(-probe.half_sweep, probe.half_sweep, int(2 * probe.half_sweep / np.deg2rad(1.6 * coarse**0.5)) + 1)
    planes[1:-1] += np.clip(jitter * rng.standard_normal(len(planes) - 2), -0.45, 0.45) * (planes[1] - planes[0])
    middle = probe.radius_mm + probe.apex_mm + 0.4 * probe.depth_mm
    fans = np.linspace(-probe.half_fan, probe.half_fan, int(2 * probe.half_fan * middle / (0.7 * coarse)) + 1)
    depths = np.arange(0, probe.depth_mm + 0.3 * coarse, 0.3 * coarse)
    return Beams(planes.astype(np.float32), fans.astype(np.float32), depths.astype(np.float32))


def scan_converted(image: np.ndarray, probe: Probe, beams: Beams, geometry: Geometry, to_anatomy: np.ndarray) -> np.ndarray:
    """`image` `(plane, beam, depth)` on a Cartesian grid `(z, y, x)`, uint8, linear between beams and planes; exactly 0 outside the sector.

    `to_anatomy` `(4, 4)` takes the grid's physical points to the frame of the probe.
    """
    volume = np.zeros(geometry.shape, dtype=np.uint8)
    for number in range(geometry.size[2]):  # slice by slice: the arrays of one slice fit the processor's cache
        plane, fan, depth = probe.beam_coordinates(moved(slice_points(geometry, number, np.zeros(1))[0], to_anatomy))
        inside = (np.abs(plane) <= probe.half_sweep) & (np.abs(fan) <= probe.half_fan) & (depth >= 0) & (depth <= probe.depth_mm)
        index = (
            np.interp(plane[inside], beams.planes, np.arange(len(beams.planes))),
            (fan[inside] + probe.half_fan) / (beams.fans[1] - beams.fans[0]),
            depth[inside] / beams.step_mm,
        )
        grey = ndimage.map_coordinates(image, index, order=1, mode="nearest")
        volume[number][inside] = np.clip(np.rint(grey), 0, 255)
    return volume
