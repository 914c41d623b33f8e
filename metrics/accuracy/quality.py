"""Image quality of a warped image against the fixed one of the same modality: UIQI, SSIM, PSNR and mean squared error."""

from __future__ import annotations

import numpy as np

UIQI_BLOCK_VX = 8
"""Edge of the sliding block, Wang and Bovik 2002."""
SSIM_SIGMA_VX = 1.5
"""Width of the Gaussian window, Wang et al. 2004; cut off at 11 voxels."""


def uiqi(first: np.ndarray, second: np.ndarray) -> float:
    """Universal image quality index (Wang and Bovik 2002): mean over all blocks of 8 voxels an axis that lie inside the image, step 1.

    A block scores `4 cov m1 m2 / ((var1 + var2) (m1^2 + m2^2))`; where both blocks are flat `2 m1 m2 / (m1^2 + m2^2)`; and 1
    where both means vanish, so that a background of exact zeros in both images counts as perfect. Images are `([z,] y, x)`;
    3-D with blocks of 8^3 (ours). Raises `ValueError` for unequal shapes, samples that are not finite, fewer than 8 voxels along an axis.
    """
    first, second = _pair(first, second, UIQI_BLOCK_VX)
    mean1, mean2, spread1, spread2, joint = _block_moments(first, second)
    structure = _ratio(2 * joint, spread1 + spread2)
    luminance = _ratio(2 * mean1 * mean2, mean1**2 + mean2**2)
    vanishing = (mean1 == 0) & (mean2 == 0)
    return float(np.where(vanishing, 1.0, structure * luminance).mean())


def ssim(first: np.ndarray, second: np.ndarray, *, data_range: float) -> float:
    """Structural similarity of Wang et al. 2004: Gaussian window of 1.5 voxels (11 wide), K1 0.01, K2 0.03, mean over the inside.

    `data_range` is the distance between the smallest and the largest possible sample, the L of the paper. Raises
    `ValueError` as `uiqi` does, here for fewer than 11 voxels along an axis or a range that is not positive.
    """
    from skimage.metrics import structural_similarity

    first, second = _pair(first, second, 11)
    settings = {"gaussian_weights": True, "sigma": SSIM_SIGMA_VX, "use_sample_covariance": False}
    return float(structural_similarity(first, second, data_range=_checked_range(data_range), **settings))


def psnr_db(first: np.ndarray, second: np.ndarray, *, data_range: float) -> float:
    """Peak signal-to-noise ratio `10 log10(range^2 / MSE)` in dB; inf for equal images. Raises `ValueError` as `ssim` does."""
    largest, error = _checked_range(data_range), mse(first, second)
    return float(10 * np.log10(largest**2 / error)) if error > 0 else float("inf")


def mse(first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared difference of two images of one shape. Raises `ValueError` for unequal shapes or samples that are not finite."""
    first, second = _pair(first, second, 1)
    return float(np.mean((first - second) ** 2))


def _pair(first: np.ndarray, second: np.ndarray, smallest: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"images of shape {first.shape} and {second.shape}; expected one grid: warp onto the fixed grid first")
    if first.ndim not in (2, 3) or min(first.shape) < smallest:
        raise ValueError(f"images of shape {first.shape}; expected 2-D or 3-D with at least {smallest} voxels along each axis")
    if not (np.all(np.isfinite(first)) and np.all(np.isfinite(second))):
        raise ValueError("images with samples that are NaN or infinite; expected finite numbers: replace them first")
    return first, second


def _checked_range(data_range: float) -> float:
    if not 0 < data_range < np.inf:
        raise ValueError(f"data range {data_range}; expected a positive number: largest minus smallest possible sample")
    return float(data_range)


def _block_moments(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, ...]:
    """Means, sums of squared deviations and of their products for every block.

    Blocks are merged from halves of 1, 2 and 4 voxels along each axis with the pairwise update of Chan, Golub and
    LeVeque (1979). Unlike sums of squares or running sums this cancels nothing: a flat block has a spread of exactly zero.
    """
    zeros = np.zeros_like(first)
    moments = (first, second, zeros, zeros, zeros)
    count = 1
    for axis in range(first.ndim):
        half = 1
        while half < UIQI_BLOCK_VX:
            moments, count, half = _merged(moments, axis, half, count), 2 * count, 2 * half
    return moments


def _merged(moments: tuple[np.ndarray, ...], axis: int, half: int, count: int) -> tuple[np.ndarray, ...]:
    """Moments of the union of each block of `count` voxels with the one `half` voxels further along `axis`."""
    lead = (slice(None),) * axis
    near = [m[(*lead, slice(None, -half))] for m in moments]
    far = [m[(*lead, slice(half, None))] for m in moments]
    delta1, delta2 = far[0] - near[0], far[1] - near[1]
    between = (delta1**2, delta2**2, delta1 * delta2)
    means = ((near[0] + far[0]) / 2, (near[1] + far[1]) / 2)
    return *means, *(a + b + d * (count / 2) for a, b, d in zip(near[2:], far[2:], between, strict=True))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, and 1 where the denominator is zero."""
    return np.divide(numerator, denominator, out=np.ones_like(numerator), where=denominator != 0)
