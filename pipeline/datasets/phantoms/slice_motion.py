"""Random motion within a slice: shift, rotation, scale and a smooth deformation, invertible, with the transform that it was known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.datasets.phantoms.deformation import TemplateMap, random_velocity, taper
from pipeline.transforms import Field as DisplacementField
from pipeline.transforms import Linear, Transform, compose
from pipeline.volumes import Geometry

_MARGIN = 0.25
"""The deformation goes on around the slice for so much of its size, and fades out there (ours)."""


class Motion(BaseModel):
    """How slices are moved. Dai et al. name shift, rotation, scaling and deformation without their ranges: these are ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shift_mm: float = Field(6.0, ge=0, le=100, description="largest shift along an axis, drawn evenly")
    rotation_deg: float = Field(10.0, ge=0, le=180, description="largest rotation about the middle of the slice, drawn evenly")
    scale: float = Field(0.08, ge=0, lt=0.5, description="largest change of size as a share, drawn evenly")
    deformation_mm: float = Field(4.0, ge=0, le=20, description="root mean square length of the random velocity whose flow bends the slice")
    deformation_scale_mm: float = Field(16.0, ge=6, description="how smooth that velocity is: standard deviation of the Gaussian that smooths it")


class Moved(NamedTuple):
    """The true transform from fixed to moving points, and its inverse at every voxel of the slice: displacement `(y, x, 2)` in mm."""

    truth: Transform
    inverse_mm: np.ndarray


def random_motion(grid: Geometry, settings: Motion, rng: np.random.Generator) -> Moved:
    """A motion of the slice `grid`: first the flow of a velocity (Arsigny et al., MICCAI 2006), then a similarity about the grid's centre."""
    similarity = _similarity(grid.centre_mm, settings, rng)
    margin = np.ceil(_MARGIN * np.asarray(grid.size)).astype(int)
    wide = grid.cropped((-margin).tolist(), (np.asarray(grid.size) + margin).tolist())
    velocity = random_velocity(
        wide.shape, spacing_mm=grid.spacing_mm, sigma_mm=settings.deformation_scale_mm, amplitude_mm=settings.deformation_mm, rng=rng
    )
    flow = TemplateMap(wide, np.eye(3), velocity * taper(wide.shape, int(margin.min())))
    points = wide.grid_points()
    truth = compose(DisplacementField(flow.to_template(points) - points, wide), similarity)
    places = grid.grid_points()
    return Moved(truth, flow.from_template(similarity.inverse().points(places)) - places)


def _similarity(centre_mm: np.ndarray, settings: Motion, rng: np.random.Generator) -> Linear:
    angle, scale, *shift = rng.uniform(-1, 1, 4) * [np.radians(settings.rotation_deg), settings.scale, settings.shift_mm, settings.shift_mm]
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = (1 + scale) * np.array([[cosine, -sine], [sine, cosine]])
    return Linear(matrix, centre_mm + shift - matrix @ centre_mm, "similarity", centre_mm)
