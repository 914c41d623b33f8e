"""The brain phantom: heads with T1, T2 and PD images, tissues, regions, and the true transform between any two of them.

A subject is the template of `brain_template` seen through a random affine map and a random diffeomorphism (several scales,
down to a few mm). Its map to the template and back is known, so the transform between two subjects is known too. Real
subjects differ in more than that (a fold that one has and another lacks), which a known truth cannot have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from pipeline.datasets.phantoms import brain_lesion
from pipeline.datasets.phantoms.acquisition import SpinEcho, Tissue, bias_field, rician, varied
from pipeline.datasets.phantoms.brain_regions import REGION_NAMES as REGION_NAMES
from pipeline.datasets.phantoms.brain_shells import HeadModel
from pipeline.datasets.phantoms.brain_template import CHANNELS, TEMPLATE, Template, blurred_template, ventricle_pull
from pipeline.datasets.phantoms.deformation import TemplateMap, random_field, random_velocity, sample, taper
from pipeline.errors import ConcordError
from pipeline.volumes import Geometry

TISSUE_NAMES = {0: "background", 1: "CSF", 2: "grey matter", 3: "white matter", 4: "skull", 5: "fat", 6: "soft tissue"}
LESION_NAMES = {7: "tumour core", 8: "oedema"}
"""Tissues of a subject with a tumour beside those; necrosis counts as core."""
SEQUENCES = {"t1": SpinEcho(400, 10), "t2": SpinEcho(4000, 100), "pd": SpinEcho(4000, 15)}
"""Clinical spin-echo weightings, ours."""
SCALES: tuple[tuple[float, float], ...] = ((32.0, 0.83), (14.0, 0.52), (6.0, 0.21))
"""Scales of the deformation in mm and their shares of `deformation_mm` (squares sum to one): lobes, gyri, folds. Ours."""

_BODY = {"csf": Tissue(1.0, 2569, 329), "bone": Tissue(0.05, 400, 20), "fat": Tissue(1.0, 350, 70), "soft": Tissue(0.9, 900, 47)}
_BOX_BORDER_MM = 16.0
_RELAXATION_SPREAD = 0.04
"""How much proton density and relaxation times differ between subjects (ours)."""
_GRAIN, _GRAIN_MM = 0.02, 3.5
"""Unevenness within a tissue: standard deviation as a share, and its scale (ours)."""
_COIL_MM = 60.0
"""Scale of the coil profile (ours)."""
_UNIT = 1000.0
"""Signal of fully relaxed water in the images."""


@dataclass(frozen=True)
class Population:
    """How heads of one population look, and the field of view that they are scanned in.

    `scale` is their size against MNI space along `(x, y, z)`, `shift_mm` where they lie against the template; the box of
    `box_mm` is centred `box_shift_mm` away from the template's.
    """

    head: HeadModel
    scale: tuple[float, float, float]
    shift_mm: tuple[float, float, float]
    box_mm: tuple[float, float, float]
    box_shift_mm: tuple[float, float, float]
    ventricles_mm: float
    tissues: dict[str, Tissue]


POPULATIONS = {
    # 1.5 T values of the BrainWeb simulator (Kwan et al., IEEE Trans Med Imaging 1999); bone, with marrow in it, is ours
    "adult": Population(
        HeadModel(csf_mm=2.0, table_mm=1.9, diploe_mm=3.0, scalp_mm=6.5),
        (0.94, 0.94, 0.94),
        (0.0, 0.0, 0.0),
        TEMPLATE.size,
        (0.0, 0.0, 0.0),
        0.5,
        _BODY | {"grey": Tissue(0.86, 833, 83), "white": Tissue(0.77, 500, 70), "deep white": Tissue(0.77, 500, 70)},
    ),
    # before myelination: longer relaxation in white than in grey matter, of the order found in term neonates
    # (Williams et al., Radiology 2005); the rounded figures are ours
    "neonate": Population(
        HeadModel(csf_mm=3.5, table_mm=1.4, diploe_mm=0.0, scalp_mm=7.0),
        (0.71, 0.68, 0.68),
        (0.0, 0.0, -20.0),
        (152.0, 184.0, 156.0),
        (0.0, -4.0, -18.0),
        2.5,
        _BODY | {"grey": Tissue(0.9, 1200, 120), "white": Tissue(0.95, 1900, 230), "deep white": Tissue(0.88, 1050, 115)},
    ),
}


@dataclass(frozen=True)
class BrainPhantom:
    """Settings. All subjects of one setting share one grid, over the population's field of view.

    `deformation_mm` is the root mean square length of the random velocity, `pose` scales rotation, shift and size (1: about
    3 degrees, 2.5 mm, 2 %), `noise` is the standard deviation as a share of the brightest brain tissue, `bias` the range of the
    coil profile (0.3: from 0.85 to 1.15). With `slice_mm` subjects are two-dimensional: the axial slice of the template at
    that height in MNI space, deformed in its plane. With `tumour` every subject has one, of its own place and size: tissue label maps
    have labels for it (`LESION_NAMES`), region label maps keep the structures beneath. With `skull_strip` images and label maps are zero
    outside the brain. The defaults are ours.
    """

    spacing_mm: float = 2.0
    population: Literal["adult", "neonate"] = "adult"
    deformation_mm: float = 3.5
    pose: float = 1.0
    noise: float = 0.03
    bias: float = 0.3
    slice_mm: float | None = None
    tumour: bool = False
    skull_strip: bool = False

    def __post_init__(self) -> None:
        if self.population not in POPULATIONS:
            raise ConcordError(f"brain phantom: population {self.population!r}; expected one of {', '.join(POPULATIONS)}")
        for name, low, high in (("spacing_mm", 0.5, 8.0), ("deformation_mm", 0.0, 12.0), ("pose", 0.0, 3.0), ("noise", 0.0, 1.0), ("bias", 0.0, 1.5)):
            if not low <= getattr(self, name) <= high:
                raise ConcordError(f"brain phantom: {name} {getattr(self, name)}; expected {low:g} to {high:g}")
        if self.slice_mm is not None and not -60 <= self.slice_mm <= 75:
            raise ConcordError(f"brain phantom: slice_mm {self.slice_mm}; expected -60 to 75 (MNI height within the brain) or null for 3-D")

    @cached_property
    def geometry(self) -> Geometry:
        """The common grid: identity direction, x to the left, y to the back, z up."""
        axes, population = 3 if self.slice_mm is None else 2, POPULATIONS[self.population]
        size = np.ceil(np.asarray(population.box_mm[:axes]) / self.spacing_mm - 1e-6).astype(int)
        middle = (TEMPLATE.centre_mm + population.box_shift_mm)[:axes]
        return Geometry.regular(size.tolist(), self.spacing_mm, (middle - (size - 1) / 2 * self.spacing_mm).tolist())


@dataclass(frozen=True, eq=False)
class BrainSubject:
    """One head. Arrays are `([z,] y, x)` on `geometry`: images float32 (`t1`, `t2`, `pd`), `tissue` and `regions` uint8."""

    geometry: Geometry
    images: dict[str, np.ndarray]
    tissue: np.ndarray
    regions: np.ndarray
    template_map: TemplateMap


def true_displacement_mm(fixed: BrainSubject, moving: BrainSubject) -> np.ndarray:
    """The true transform: displacement `([z,] y, x, d)` in mm, LPS, on the fixed grid, to the same point of anatomy in `moving`."""
    return displacement_between_mm(fixed.template_map, moving.template_map, fixed.geometry)


def displacement_between_mm(fixed: TemplateMap, moving: TemplateMap, grid: Geometry) -> np.ndarray:
    """Displacement `([z,] y, x, d)` in mm, LPS, on a grid in the fixed subject's space, to the same point of anatomy in the moving one."""
    points = grid.grid_points()
    return moving.from_template(fixed.to_template(points)) - points


def make_subject(settings: BrainPhantom, seed: int) -> BrainSubject:
    """The subject of a seed; the same seed gives the same bits. Anatomy does not depend on `noise` and `bias`."""
    if seed < 0:
        raise ConcordError(f"brain phantom: seed {seed}; expected zero or more")
    geometry, head = settings.geometry, POPULATIONS[settings.population].head
    _, _, scan_rng, lesion_rng = _generators(seed)
    template_map = make_map(settings, seed)
    points = template_map.to_template(geometry.grid_points())
    fractions, regions = _anatomy(points, blurred_template(head, settings.spacing_mm), settings.slice_mm)
    lesion = np.zeros((0, *geometry.shape), dtype=np.float32)
    if settings.tumour:
        fractions, lesion = brain_lesion.with_lesion(fractions, regions, geometry, lesion_rng)
    known = POPULATIONS[settings.population].tissues
    tissues = [varied(known[name], _RELAXATION_SPREAD, scan_rng) for name in CHANNELS]
    if settings.tumour:  # with draws of its own, so that everything around it is as without it
        tissues += [varied(tissue, _RELAXATION_SPREAD, lesion_rng) for tissue in brain_lesion.TISSUES.values()]
    images = _scan(np.concatenate([fractions, lesion]), tissues, settings, scan_rng)
    subject = BrainSubject(geometry, images, _tissue(fractions, lesion), regions, template_map)
    return _stripped(subject, fractions, lesion, points) if settings.skull_strip else subject


def make_map(settings: BrainPhantom, seed: int) -> TemplateMap:
    """The map between the subject of a seed and the template alone, without its images."""
    shape_rng, pose_rng, *_ = _generators(seed)
    return TemplateMap(settings.geometry, np.linalg.inv(_random_pose(settings, pose_rng)), _velocity(settings, shape_rng))


def _generators(seed: int) -> list[np.random.Generator]:
    """Random numbers for shape, pose, scan and lesion, so that one does not depend on another."""
    return [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)]


def _stripped(subject: BrainSubject, fractions: np.ndarray, lesion: np.ndarray, points_mm: np.ndarray) -> BrainSubject:
    """The subject with its brain alone; `points_mm` are the voxels' places in the template."""
    heights_mm = points_mm[..., 2] if points_mm.shape[-1] == 3 else np.zeros(subject.geometry.shape)
    solid, fluid = fractions[1:4].sum(axis=0) + lesion.sum(axis=0), fractions[0]
    mask = brain_lesion.brain_mask(solid, fluid, heights_mm, subject.geometry)
    images = {name: image * mask for name, image in subject.images.items()}
    # what bone and air share in a voxel of the brain's border is none of its tissues
    tissue = _tissue(np.concatenate([fractions[:4], 0 * fractions[4:]]) / np.maximum(solid + fluid, 0.5), lesion / np.maximum(solid + fluid, 0.5))
    return replace(subject, images=images, tissue=tissue * mask, regions=subject.regions * mask)


def _velocity(settings: BrainPhantom, rng: np.random.Generator) -> np.ndarray:
    """Velocity of the map from subject to template: random at several scales, and a pull into the ventricles; none at the border."""
    geometry, spacing_mm = settings.geometry, settings.spacing_mm
    velocity = ventricle_pull(geometry, settings.slice_mm) * (POPULATIONS[settings.population].ventricles_mm + rng.normal()) / spacing_mm
    for sigma_mm, share in SCALES:
        amplitude_mm = share * settings.deformation_mm
        velocity += random_velocity(geometry.shape, spacing_mm=spacing_mm, sigma_mm=sigma_mm, amplitude_mm=amplitude_mm, rng=rng)
    return velocity * taper(geometry.shape, _BOX_BORDER_MM / spacing_mm)


def _random_pose(settings: BrainPhantom, rng: np.random.Generator) -> np.ndarray:
    """Affine map `(d + 1, d + 1)` in mm from the template to a head: size, proportions, rotation and shift, about the template's centre."""
    from scipy.spatial.transform import Rotation

    d, spread, population = settings.geometry.dimension, settings.pose, POPULATIONS[settings.population]
    turn = Rotation.from_rotvec(spread * rng.normal(0.0, 0.03, 3) * ([1, 1, 1] if d == 3 else [0, 0, 1])).as_matrix()[:d, :d]
    size = np.asarray(population.scale[:d]) * np.exp(spread * (rng.normal(0.0, 0.02) + rng.normal(0.0, 0.012, 3)[:d]))
    pose = np.eye(d + 1)
    pose[:d, :d] = turn * size
    centre = TEMPLATE.centre_mm[:d]
    pose[:d, d] = centre + population.shift_mm[:d] + spread * rng.normal(0.0, 1.5, 3)[:d] - pose[:d, :d] @ centre
    return pose


def _anatomy(points_mm: np.ndarray, template: Template, slice_mm: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Tissue fractions `(channel, [z,] y, x)`, float32, and region labels at points of the template."""
    if slice_mm is not None:
        points_mm = np.concatenate([points_mm, np.full((*points_mm.shape[:-1], 1), slice_mm)], axis=-1)
    index = TEMPLATE.index_at(points_mm)
    index[..., 2] = np.maximum(index[..., 2], 0.0)  # below the template the neck goes on
    fractions = np.stack([sample(channel, index, outside=0.0) for channel in template.fractions])
    return fractions.astype(np.float32) / np.float32(255), sample(template.regions, index, order=0, outside=0.0)


def _tissue(fractions: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """The commonest tissue of every voxel, uint8, as in `TISSUE_NAMES` and `LESION_NAMES`; both kinds of white matter are one."""
    csf, grey, white, deep, *others = fractions
    air = 1.0 - fractions.sum(axis=0) - lesion.sum(axis=0)
    abnormal = [lesion[0] + lesion[1], lesion[2]] if len(lesion) else []
    return np.stack([air, csf, grey, white + deep, *others, *abnormal]).argmax(axis=0).astype(np.uint8)


def _scan(fractions: np.ndarray, tissues: list[Tissue], settings: BrainPhantom, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The images: partial volumes mixed, tissue grain, coil profile, noise. Those of the brain itself come first."""
    shape, spacing_mm = fractions.shape[1:], settings.spacing_mm
    images = {}
    for name, sequence in SEQUENCES.items():
        signals = _UNIT * np.array([sequence.signal(tissue) for tissue in tissues], dtype=np.float32)
        grain = random_field(shape, spacing_mm=spacing_mm, sigma_mm=_GRAIN_MM, channels=1, rng=rng)[..., 0]
        coil = bias_field(shape, spacing_mm=spacing_mm, sigma_mm=_COIL_MM, fraction=settings.bias, rng=rng)
        clean = np.einsum("c,c...->...", signals, fractions) * (1.0 + _GRAIN * grain) * coil
        images[name] = rician(clean, settings.noise * float(signals[:4].max()), rng)
    return images
