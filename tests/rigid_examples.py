"""Tiny pairs for networks of rigid registration: an ellipsoid with a few dark spots in two contrasts, and the true transform between them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.cases import Case
from pipeline.learned.rigid_cases import RigidCase, rigid_case
from pipeline.learned.settings.rigid import Preparation
from pipeline.rigid_motion import linear_of, motion_matrix
from pipeline.surfaces import write_stl
from pipeline.transform_files import write_transform
from pipeline.volumes import Geometry, Volume, write_volume

TINY = Preparation(size=(24, 24, 12))
FIXED = Geometry.regular((40, 38, 36), 1.5, (-20.0, -22.0, -25.0))


def moving_geometry(seed: int) -> Geometry:
    """Another size for every other case, not parallel to its own axes' frame by accident."""
    return Geometry.regular((44, 42 - 2 * (seed % 2), 40), 1.5)


def truth_of(seed: int) -> np.ndarray:
    """A rigid transform `(4, 4)` from the fixed to the moving points of a case."""
    rng = np.random.default_rng([seed, 1])
    centre = FIXED.centre_mm
    truth = motion_matrix(np.concatenate([rng.uniform(-5, 5, 3), rng.uniform(-10, 10, 3)]), centre)
    truth[:3, 3] -= centre
    return truth


def volumes(seed: int) -> tuple[Volume, Volume, Volume, np.ndarray]:
    """Fixed (float32), moving (uint8), labels, and triangles `(t, 3, 3)` of the ellipsoid in the fixed frame."""
    rng, centre, truth = np.random.default_rng(seed), FIXED.centre_mm, truth_of(seed)
    axes, spots = rng.uniform(9, 12, 3), rng.uniform(-6, 6, (4, 3))

    def radius(points: np.ndarray) -> np.ndarray:
        return np.linalg.norm((points - centre) / axes, axis=-1)

    def tissue(points: np.ndarray) -> np.ndarray:
        dark = sum(np.exp(-((points - centre - spot) ** 2).sum(-1) / 18) for spot in spots)
        return 1 / (1 + np.exp(8 * (radius(points) - 1))) - 0.6 * dark

    back, seen = np.linalg.inv(truth), moving_geometry(seed)
    here = FIXED.grid_points()
    there = tissue(seen.grid_points() @ back[:3, :3].T + back[:3, 3])
    moving = np.clip(128 - 100 * there, 0, 255).astype(np.uint8)
    triangles = rng.normal(size=(150, 3, 3))
    triangles = triangles / np.linalg.norm(triangles, axis=-1, keepdims=True) * axes + centre
    fixed = Volume((1000 * tissue(here)).astype(np.float32), FIXED, f"fixed {seed}")
    return fixed, Volume(moving, seen, f"moving {seed}"), Volume((radius(here) < 1).astype(np.uint8), FIXED, f"labels {seed}"), triangles


def tiny_case(seed: int, how: Preparation = TINY) -> RigidCase:
    """A case as networks are fitted to."""
    fixed, moving, labels, triangles = volumes(seed)
    made = rigid_case(fixed, moving, labels, how, labels=labels, truth=truth_of(seed))
    return replace(made, name=f"case {seed}", vertices_mm=triangles.reshape(-1, 3))


def written_case(folder: Path, seed: int, split: str) -> Case:
    """The same as files that need no ITK to be read."""
    fixed, moving, labels, triangles = volumes(seed)
    names = {"fixed": "fixed.mha", "moving": "moving.mha", "fixed_labels": "labels.mha", "true_transform": "truth.tfm", "fixed_surface": "gland.stl"}
    files = {name: folder / f"{seed}-{file}" for name, file in names.items()}
    for volume, name in ((fixed, "fixed"), (moving, "moving"), (labels, "fixed_labels")):
        write_volume(volume, files[name])
    write_transform(linear_of(truth_of(seed), FIXED.centre_mm), files["true_transform"])
    write_stl(triangles, files["fixed_surface"])
    return Case(case=f"case-{seed}", subject=f"sub-{seed}", split=split, **files)
