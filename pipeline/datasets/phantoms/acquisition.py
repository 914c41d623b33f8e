"""From tissue to MR signal: relaxation times, the spin-echo equation, coil bias and Rician noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.datasets.phantoms.deformation import random_field


@dataclass(frozen=True)
class Tissue:
    """Proton density relative to water, and relaxation times in ms."""

    pd: float
    t1_ms: float
    t2_ms: float


@dataclass(frozen=True)
class SpinEcho:
    """A spin-echo sequence: repetition and echo time in ms."""

    tr_ms: float
    te_ms: float

    def signal(self, tissue: Tissue) -> float:
        """Signal of a tissue, relative to fully relaxed water: PD (1 - exp(-TR/T1)) exp(-TE/T2), TE much shorter than TR."""
        return tissue.pd * (1.0 - np.exp(-self.tr_ms / tissue.t1_ms)) * np.exp(-self.te_ms / tissue.t2_ms)


def varied(tissue: Tissue, fraction: float, rng: np.random.Generator) -> Tissue:
    """The tissue of one subject: each property times a log-normal factor of standard deviation `fraction`."""
    pd, t1, t2 = np.exp(fraction * rng.standard_normal(3))
    return Tissue(float(tissue.pd * pd), float(tissue.t1_ms * t1), float(tissue.t2_ms * t2))


def bias_field(
    shape: Sequence[int], *, spacing_mm: float | Sequence[float], sigma_mm: float, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """A smooth multiplicative coil profile `([z,] y, x)`, float32, from `1 - fraction / 2` to `1 + fraction / 2` over the grid.

    The same measure of non-uniformity as in BrainWeb (its 40 % runs from 0.8 to 1.2). A random field of scale `sigma_mm`.
    """
    field = random_field(shape, spacing_mm=spacing_mm, sigma_mm=sigma_mm, channels=1, rng=rng)[..., 0]
    low, high = float(field.min()), float(field.max())
    return (1.0 + fraction * ((field - low) / max(high - low, 1e-9) - 0.5)).astype(np.float32)


def rician(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of the image with Gaussian noise of standard deviation `sigma` in both channels, float32.

    Gudbjartsson and Patz, Magn Reson Med 1995. In air the mean is `sigma * sqrt(pi / 2)`, not zero.
    """
    noise = rng.standard_normal((2, *image.shape), dtype=np.float32) * np.float32(sigma)
    return np.hypot(image.astype(np.float32) + noise[0], noise[1])
