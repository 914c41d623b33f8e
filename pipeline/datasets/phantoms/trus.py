"""MR-TRUS phantom: one pelvis seen by T2-weighted MR (fixed) and by transrectal ultrasound (moving), with the true rigid transform between the two.

The anatomy is a function of space (`trus_anatomy`), so each image is rendered from it at its own pose and resolution, and nothing is interpolated twice.
Conventions as in rigid MR-TRUS registration (Song et al., MICCAI 2021): the MR grid's origin lies about 110 mm from the gland.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from pipeline.datasets.phantoms.trus_anatomy import Pelvis, draw_pelvis, landmarks, surface
from pipeline.datasets.phantoms.trus_mr import moved, mr_image, slice_points
from pipeline.datasets.phantoms.trus_probe import Probe, draw_beams, scan_converted
from pipeline.datasets.phantoms.trus_ultrasound import Scanner, grey_of
from pipeline.datasets.phantoms.trus_warp import solved
from pipeline.errors import ConcordError
from pipeline.volumes import Geometry

ProbeKind = Literal["end-fire", "side-fire"]
PRESSURE_MM = 17.0
"""Standard deviation of the region that the probe presses (ours)."""
CLEARANCE_MM = 3.5
"""Least thickness of the rectal wall between probe and gland (ours)."""
PATIENT_DEG = 4.0
"""Largest angle by which the patient lies askew in the MR scanner (ours)."""


@dataclass(frozen=True)
class TrusPhantom:
    """Acquisition of both images.

    `noise` is the standard deviation of MR's Rician noise in units of the image (about 0 to 1000), `bias` the range of its coil profile as a share of
    the signal. `pose_mm` bounds each coordinate of the gland in the MR scanner's frame (the ultrasound's is centred at the gland, more or less), `pose_deg`
    the angle between the two frames. `jitter` is the unevenness of the sweep's planes, as a share of their distance. `deformation_mm` is how far the probe
    presses the tissue in front of it: then the truth is no longer rigid, and what is kept is the rigid transform that fits the gland's surface best.
    """

    mr_spacing_mm: tuple[float, float, float] = (0.6, 0.6, 3.0)
    mr_field_mm: tuple[float, float, float] = (150.0, 150.0, 78.0)
    us_spacing_mm: float = 0.5
    us_field_mm: tuple[float, float, float] = (100.0, 84.0, 92.0)
    geometry: ProbeKind = "end-fire"
    noise: float = 14.0
    bias: float = 0.4
    frequency_mhz: float = 6.5
    depth_mm: float = 76.0
    jitter: float = 0.25
    pose_mm: float = 30.0
    pose_deg: float = 20.0
    deformation_mm: float = 0.0

    def __post_init__(self) -> None:
        if self.geometry not in get_args(ProbeKind):
            raise ConcordError(f"TRUS phantom with geometry {self.geometry!r}; expected one of {', '.join(get_args(ProbeKind))}")
        for name in ("mr_spacing_mm", "mr_field_mm", "us_field_mm"):
            if len(getattr(self, name)) != 3:
                raise ConcordError(f"TRUS phantom with {name} {getattr(self, name)}; expected three numbers: x, y, z")
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        for name, (low, high) in LIMITS.items():
            values = np.ravel(getattr(self, name))
            if not all(low <= value <= high for value in values):  # NaN fails as well
                raise ConcordError(f"TRUS phantom with {name} {getattr(self, name)}; expected {low:g} to {high:g}")


LIMITS = {
    "mr_spacing_mm": (0.3, 8.0),
    "mr_field_mm": (40.0, 300.0),
    "us_spacing_mm": (0.25, 3.0),
    "us_field_mm": (40.0, 150.0),
    "noise": (0.0, 300.0),
    "bias": (0.0, 1.9),
    "frequency_mhz": (2.0, 15.0),
    "depth_mm": (30.0, 120.0),
    "jitter": (0.0, 0.45),
    "pose_mm": (0.0, 200.0),
    "pose_deg": (0.0, 45.0),
    "deformation_mm": (0.0, 8.0),
}
"""Smallest and largest value of each setting."""


@dataclass(frozen=True, eq=False)
class TrusSubject:
    """One subject: images, labels, surface and landmarks, and the true transform.

    `mr` `(z, y, x)` is float32, `us` uint8; `mr_gland` and `us_gland` are 1 in the gland; `mr_zones` is 1 in the peripheral zone and 2 within it.
    `surface_mm` `(t, 3, 3)` are the triangles of the gland's surface in MR; `landmarks_mr_mm` and `landmarks_us_mm` `(n, 3)` correspond, and
    `landmark_names` says what they are. `true_matrix` `(4, 4)` takes physical points of MR to physical points of TRUS.
    """

    mr: np.ndarray
    mr_geometry: Geometry
    mr_gland: np.ndarray
    mr_zones: np.ndarray
    us: np.ndarray
    us_geometry: Geometry
    us_gland: np.ndarray
    surface_mm: np.ndarray
    landmark_names: tuple[str, ...]
    landmarks_mr_mm: np.ndarray
    landmarks_us_mm: np.ndarray
    true_matrix: np.ndarray


@dataclass(frozen=True, eq=False)
class Pressure:
    """The probe's push: tissue at the probe's contact goes `push_mm` `(3,)`, less further away; it pulls points of the pressed anatomy back."""

    contact_mm: np.ndarray
    push_mm: np.ndarray

    def offset(self, points_mm: np.ndarray) -> np.ndarray:
        """From pressed points `(..., 3)` back to where their tissue lay, as a difference, dtype kept."""
        away = points_mm - self.contact_mm.astype(points_mm.dtype)
        weight = np.exp((away**2).sum(axis=-1, keepdims=True) / points_mm.dtype.type(-2 * PRESSURE_MM**2))
        return -weight * self.push_mm.astype(points_mm.dtype)

    def released(self, points_mm: np.ndarray) -> np.ndarray:
        """Where the tissue at pressed points `(..., 3)` lay before."""
        return points_mm + self.offset(points_mm) if self.push_mm.any() else points_mm

    def pressed(self, points_mm: np.ndarray) -> np.ndarray:
        """Where tissue at points `(..., 3)` goes; the inverse of `released`."""
        return solved(self.offset, points_mm) if self.push_mm.any() else points_mm


def make_subject(phantom: TrusPhantom, seed: int) -> TrusSubject:
    """The subject of `seed`; the same arguments give the same bits. Both images show one anatomy, drawn from the seed alone."""
    anatomy_rng, mr_rng, us_rng, pose_rng, probe_rng = (np.random.default_rng([seed, stream]) for stream in range(5))
    pelvis = draw_pelvis(anatomy_rng)
    names, places = landmarks(pelvis)
    triangles = surface(pelvis)
    probe, contact = draw_probe(phantom, pelvis, triangles, probe_rng)
    pressure = Pressure(contact + phantom.deformation_mm * probe.axes[1], phantom.deformation_mm * probe.axes[1])
    mr_pose, us_pose = draw_poses(phantom, pelvis, pose_rng)
    truth = us_pose @ np.linalg.inv(mr_pose)
    if phantom.deformation_mm:  # the frame of the ultrasound is free: choose it so that the drawn pose is the rigid part
        corners = triangles.reshape(-1, 3)
        us_pose = us_pose @ np.linalg.inv(best_rigid(corners, pressure.pressed(corners)))
    probe = replace(probe, pivot_mm=probe.pivot_mm + pressure.push_mm)
    mr_geometry = _grid(phantom.mr_field_mm, phantom.mr_spacing_mm, mr_pose[:3, 3] + pose_rng.uniform(-6, 6, 3))
    us_geometry = _grid(phantom.us_field_mm, (phantom.us_spacing_mm,) * 3, np.zeros(3))
    zones = _labels(pelvis.zones, mr_geometry, mr_pose, triangles)
    return TrusSubject(
        mr=mr_image(pelvis, mr_geometry, np.linalg.inv(mr_pose), noise=phantom.noise, bias=phantom.bias, rng=mr_rng),
        mr_geometry=mr_geometry,
        mr_gland=(zones > 0).astype(np.uint8),
        mr_zones=zones,
        us=_swept(phantom, pelvis, (probe, pressure), us_geometry, np.linalg.inv(us_pose), rng=us_rng),
        us_geometry=us_geometry,
        us_gland=_labels(lambda points: pelvis.gland_depth_mm(pressure.released(points)) > 0, us_geometry, us_pose, pressure.pressed(triangles)),
        surface_mm=moved(triangles, mr_pose),
        landmark_names=names,
        landmarks_mr_mm=moved(places, mr_pose),
        landmarks_us_mm=moved(pressure.pressed(places), us_pose),
        true_matrix=truth,
    )


def draw_probe(phantom: TrusPhantom, pelvis: Pelvis, triangles: np.ndarray, rng: np.random.Generator) -> tuple[Probe, np.ndarray]:
    """The probe in the rectum, as close to the gland as the wall allows, and the point `(3,)` where it presses."""
    lean, roll, lift = rng.normal(0, 0.05), rng.normal(0, 0.05), np.deg2rad(rng.uniform(18, 36))
    if phantom.geometry == "side-fire":
        across, forwards = np.array([roll, 0.8 * pelvis.gland.tilt + lean, 1.0]), np.array([roll, -1.0, 0.0])
        contact, reach = pelvis.rectum_front_mm(0.0), {"radius_mm": 10.0, "apex_mm": 50.0, "half_fan": np.deg2rad(28), "half_sweep": np.deg2rad(72)}
    else:
        across, forwards = np.array([1.0, roll, lean]), np.array([0.0, -np.cos(lift), np.sin(lift)])
        contact = pelvis.rectum_front_mm(-0.3 * pelvis.gland.half_mm[2])
        reach = {"radius_mm": 11.0, "apex_mm": 0.0, "half_fan": np.deg2rad(68), "half_sweep": np.deg2rad(58)}
    across = across / np.linalg.norm(across)
    forwards = forwards - (forwards @ across) * across
    forwards = forwards / np.linalg.norm(forwards)
    axes = np.stack((across, forwards, np.cross(across, forwards)))
    probe = Probe(contact - reach["radius_mm"] * forwards, axes, depth_mm=phantom.depth_mm, **reach)
    for _ in range(4):
        short = max(0.0, CLEARANCE_MM - float(probe.beam_coordinates(triangles.reshape(-1, 3))[2].min()))
        probe = replace(probe, pivot_mm=probe.pivot_mm - short * forwards)
    return probe, probe.pivot_mm + probe.radius_mm * forwards


def draw_poses(phantom: TrusPhantom, pelvis: Pelvis, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Matrices `(4, 4)` from the anatomy to MR and to the ultrasound, whose frame is centred so that the rectum lies near the grid's back."""
    patient, turn = _rotation(rng, PATIENT_DEG), _rotation(rng, phantom.pose_deg)
    place, shift = rng.uniform(-phantom.pose_mm, phantom.pose_mm, 3), rng.uniform(-4, 4, 3)
    back = float(pelvis.rectum_front_mm(0.0)[1])
    centre = np.array([0.0, back + 10 - phantom.us_field_mm[1] / 2, 0.0]) + shift
    return _matrix(patient, place), _matrix(turn @ patient, -turn @ patient @ centre)


def _rotation(rng: np.random.Generator, largest_deg: float) -> np.ndarray:
    """A rotation `(3, 3)` about a random axis by a random angle."""
    from scipy.spatial.transform import Rotation

    axis = rng.standard_normal(3)
    return Rotation.from_rotvec(axis / np.linalg.norm(axis) * rng.uniform(0, largest_deg), degrees=True).as_matrix()


def _matrix(rotation: np.ndarray, shift_mm: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, shift_mm
    return matrix


def best_rigid(start_mm: np.ndarray, end_mm: np.ndarray) -> np.ndarray:
    """The rigid matrix `(4, 4)` that takes points `(n, 3)` closest to their partners in the sense of least squares (Kabsch 1976)."""
    from scipy.spatial.transform import Rotation

    rotation = Rotation.align_vectors(end_mm - end_mm.mean(axis=0), start_mm - start_mm.mean(axis=0))[0].as_matrix()
    return _matrix(rotation, end_mm.mean(axis=0) - rotation @ start_mm.mean(axis=0))


def _grid(field_mm: tuple[float, ...], spacing_mm: tuple[float, ...], centre_mm: np.ndarray) -> Geometry:
    """An axis-aligned grid over a field about a centre."""
    size = np.maximum(1, np.round(np.divide(field_mm, spacing_mm))).astype(int)
    return Geometry.regular(size.tolist(), spacing_mm, (centre_mm - (size - 1) / 2 * np.asarray(spacing_mm)).tolist())


def _labels(label: Callable[[np.ndarray], np.ndarray], geometry: Geometry, pose: np.ndarray, surface_mm: np.ndarray) -> np.ndarray:
    """`label` of points `(..., 3)` of the anatomy at every voxel's centre, `(z, y, x)` uint8; zero beyond the box of the surface `(..., 3)`.

    `pose` `(4, 4)` takes the anatomy, in which the surface lies, to the grid's physical points.
    """
    index = geometry.index_at(moved(surface_mm.reshape(-1, 3), pose))
    low = np.clip(np.floor(index.min(axis=0)) - 3, 0, np.array(geometry.size) - 1).astype(int)
    high = np.clip(np.ceil(index.max(axis=0)) + 4, low + 1, geometry.size).astype(int)
    box = geometry.cropped(low, high)
    slices = [label(moved(slice_points(box, number, np.zeros(1))[0], np.linalg.inv(pose))) for number in range(box.size[2])]
    labels = np.zeros(geometry.shape, dtype=np.uint8)
    labels[tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))] = np.stack(slices)
    return labels


def _swept(
    phantom: TrusPhantom, pelvis: Pelvis, scene: tuple[Probe, Pressure], geometry: Geometry, to_anatomy: np.ndarray, *, rng: np.random.Generator
) -> np.ndarray:
    """The ultrasound `(z, y, x)`, uint8: tissues under the beams, echoes, grey values, scan conversion."""
    probe, pressure = scene
    beams = draw_beams(probe, phantom.us_spacing_mm, phantom.jitter, rng)
    tissue = np.empty(beams.shape, dtype=np.uint8)
    for number, plane in enumerate(beams.planes):  # plane by plane: the arrays of one plane fit the processor's cache
        points = probe.points_at(plane, beams.fans[:, None], beams.depths_mm)
        tissue[number] = pelvis.tissue(pressure.released(points), probe=True)
    grey = grey_of(tissue, probe, beams, Scanner(frequency_mhz=phantom.frequency_mhz), rng)
    return scan_converted(grey, probe, beams, geometry, to_anatomy)
