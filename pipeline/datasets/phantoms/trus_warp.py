"""The smooth random warp that makes every pelvis of the MR-TRUS phantom another one, and its inverse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

STEEPEST = 0.6
"""Bound on the warp's derivative, summed over its waves: below one, the warp is one-to-one."""


@dataclass(frozen=True, eq=False)
class Warp:
    """A smooth one-to-one map of space, `p -> p + sum of vectors * sin(waves . p + phases)`; it pulls a subject's points back to the template."""

    waves: np.ndarray
    phases: np.ndarray
    vectors: np.ndarray

    def __call__(self, points_mm: np.ndarray) -> np.ndarray:
        """Where points `(..., 3)` of the subject lie in the template, same dtype."""
        waves, phases, vectors = (part.astype(points_mm.dtype) for part in (self.waves, self.phases, self.vectors))
        return points_mm + np.sin(points_mm @ waves.T + phases) @ vectors

    def inverse(self, points_mm: np.ndarray) -> np.ndarray:
        """Where points `(..., 3)` of the template lie in the subject, by fixed-point iteration to double precision."""
        return solved(lambda found: self(found) - found, points_mm)


def solved(offset: Callable[[np.ndarray], np.ndarray], points_mm: np.ndarray) -> np.ndarray:
    """The points `p` with `p + offset(p)` equal to `points_mm` `(..., 3)`; `offset` must be a contraction."""
    found = np.asarray(points_mm, dtype=float)
    for _ in range(80):
        found = points_mm - offset(found)
    return found


def draw_warp(rng: np.random.Generator) -> Warp:
    """About 2 mm of smooth random deformation with wavelengths of 35 to 110 mm."""
    count = 6
    directions = rng.normal(size=(count, 3))
    lengths = rng.uniform(35, 110, count)
    waves = 2 * np.pi * directions / np.linalg.norm(directions, axis=1, keepdims=True) / lengths[:, None]
    vectors = rng.normal(size=(count, 3)) * (lengths / 75 * 1.25)[:, None]
    steepness = (np.linalg.norm(vectors, axis=1) * np.linalg.norm(waves, axis=1)).sum()
    return Warp(waves, rng.uniform(0, 2 * np.pi, count), vectors * min(1.0, STEEPEST / steepness))
