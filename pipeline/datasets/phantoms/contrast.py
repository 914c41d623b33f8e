"""Images of random contrast from a label map: what a similarity is taught from where no pair of real images is at hand.

The idea is that of Billot et al. (SynthSeg, Med Image Anal 2023) and of Hoffmann et al. (SynthMorph, IEEE Trans Med Imaging 2022): a
network that has seen all contrasts of an anatomy, also impossible ones, knows the real ones too. Ranges and order of the steps are ours:
mean and texture by label, point spread, voxels and slices, gamma, coil bias, Rician noise, and thick slices brought back to the grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.datasets.phantoms.acquisition import bias_field, rician

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

BACKGROUND = 0
"""The label of what surrounds the anatomy."""
LEVELS = 4095
"""Stored values run up to this: 12 bits, as scanners store them."""
_REACH = 4.0
"""A Gaussian is cut here, in standard deviations (ours)."""


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] <= value[1] < math.inf:
        raise ValueError("expected two numbers, none below zero, the smaller one first")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""Lowest and highest value; what lies between is drawn uniformly."""


def _most(limit: float) -> AfterValidator:
    def check(value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > limit:
            raise ValueError(f"expected at most {limit:g}")
        return value

    return AfterValidator(check)


def _positive(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] == 0:
        raise ValueError("expected positive numbers")
    return value


class ContrastRanges(BaseModel):
    """From what the contrast and the faults of one image are drawn. All numbers are ours; intensities are shares of full scale."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: Annotated[Range, _most(1.0)] = Field((0.05, 1.0), description="mean intensity of a label (ours)")
    texture: Annotated[Range, _most(1.0)] = Field((0.0, 0.08), description="standard deviation of the intensity within a label (ours)")
    texture_mm: Range = Field((0.0, 2.0), description="standard deviation of the Gaussian that makes the texture smooth; 0: white (ours)")
    merge_share: float = Field(
        0.15, ge=0, le=1, description="probability that a label takes the mean and texture of another one, so that their border vanishes (ours)"
    )
    dark_background: float = Field(0.8, ge=0, le=1, description="probability that label 0 is without signal; else it is a label like others (ours)")
    point_spread_mm: Range = Field((0.0, 1.0), description="standard deviation of the Gaussian point spread (ours)")
    thick_share: float = Field(0.3, ge=0, le=1, description="probability of slices thicker than the grid's, along one axis drawn at random (ours)")
    thick_mm: Annotated[Range, AfterValidator(_positive)] = Field((2.0, 6.0), description="thickness and distance of such slices (ours)")
    gamma: Annotated[Range, AfterValidator(_positive)] = Field((0.7, 1.4), description="intensities v become v^gamma (ours)")
    bias: Annotated[Range, _most(1.9)] = Field(
        (0.0, 0.4), description="range of the coil profile as a share of the signal (ours; BrainWeb: 0 to 0.4)"
    )
    bias_mm: Annotated[Range, AfterValidator(_positive)] = Field((40.0, 100.0), description="scale of the coil profile (ours)")
    noise: Annotated[Range, _most(1.0)] = Field((0.0, 0.06), description="standard deviation of the Rician noise (ours)")


class LabelContrast(NamedTuple):
    """Mean and standard deviation of the intensity by label, `(labels,)` each."""

    mean: np.ndarray
    texture: np.ndarray


def random_contrast(labels: np.ndarray, ranges: ContrastRanges, rng: np.random.Generator) -> LabelContrast:
    """A contrast for the label values `(labels,)`, drawn for each alone; merged labels take those of another, the background's never."""
    count = len(labels)
    mean, texture = rng.uniform(*ranges.mean, count), rng.uniform(*ranges.texture, count)
    merged = rng.random(count) < ranges.merge_share
    dark = rng.random() < ranges.dark_background
    body = np.flatnonzero(labels != BACKGROUND)
    source = np.arange(count)
    source[body] = np.where(merged[body], rng.choice(body, len(body)), body) if len(body) else body
    mean, texture = mean[source], texture[source]
    if dark:
        mean[labels == BACKGROUND] = texture[labels == BACKGROUND] = 0.0
    return LabelContrast(mean, texture)


class LabelIndex(NamedTuple):
    """A label map `([z,] y, x)` as numbers 0 … n-1 into the values `(n,)` that occur in it, and its spacing `(x, y[, z])` in mm."""

    index: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, ...]


def indexed(labels: np.ndarray, spacing_mm: Sequence[float]) -> LabelIndex:
    """The label map (whole numbers, none below zero) made ready for `synthetic_image`, once for all its images."""
    if labels.max(initial=0) < 1 << 20:
        flat = labels.astype(np.int32, copy=False)
        values = np.flatnonzero(np.bincount(flat.ravel()))
        table = np.zeros(int(values[-1]) + 1, np.int32)
        table[values] = np.arange(len(values))
        return LabelIndex(table[flat], values, tuple(spacing_mm))
    values, index = np.unique(labels, return_inverse=True)
    return LabelIndex(index.reshape(labels.shape).astype(np.int32), values, tuple(spacing_mm))


def with_means(contrast: LabelContrast, labels: np.ndarray, mean_of: Mapping[int, float]) -> LabelContrast:
    """The contrast of the label values `(labels,)` with the means that are given by label; labels without one give no signal and no texture."""
    mean = np.array([mean_of.get(label, 0.0) for label in labels.tolist()])
    return LabelContrast(mean, np.where(mean > 0, contrast.texture, 0.0))


def synthetic_image(
    label_map: LabelIndex, shape: Sequence[int], ranges: ContrastRanges, rng: np.random.Generator, *, mean_of: Mapping[int, float] | None = None
) -> np.ndarray:
    """An image `shape` `([z,] y, x)`, int16 in [0, LEVELS], over the same box as the label map; the same for the same `rng`.

    Of random contrast, or with means by label (shares of full scale) where they are given. A voxel holds the share of every label in it (partial
    volume). Noise is that of the acquired slices: where they are thick, the image on the grid is their linear interpolation.
    """
    contrast = random_contrast(label_map.labels, ranges, rng)
    if mean_of is not None:
        contrast = with_means(contrast, label_map.labels, mean_of)
    acquired = _acquired_shape(label_map, shape, ranges, rng)
    mean, texture = _partial_volume(label_map, contrast, acquired, rng.uniform(*ranges.point_spread_mm))
    spacing = _spacing_mm(label_map, acquired)
    image = mean + texture * _unit_texture(acquired, rng.uniform(*ranges.texture_mm) / spacing, rng)
    image = np.maximum(image, 0) ** np.float32(rng.uniform(*ranges.gamma))
    profile = {"sigma_mm": rng.uniform(*ranges.bias_mm), "fraction": rng.uniform(*ranges.bias)}
    image *= bias_field(acquired, spacing_mm=spacing[::-1], rng=rng, **profile)
    image = rician(image, rng.uniform(*ranges.noise), rng)
    for axis, (size, wanted) in enumerate(zip(acquired, shape, strict=True)):
        if size != wanted:
            image = _along(axis, _linear(size, wanted), image)
    return np.rint(image * (LEVELS / max(float(image.max()), 1e-9))).astype(np.int16)


def _spacing_mm(label_map: LabelIndex, shape: Sequence[int]) -> np.ndarray:
    """Spacing `([z,] y, x)` of a grid of `shape` over the box of the label map."""
    return np.asarray(label_map.spacing_mm[::-1]) * label_map.index.shape / np.asarray(shape)


def _acquired_shape(label_map: LabelIndex, shape: Sequence[int], ranges: ContrastRanges, rng: np.random.Generator) -> tuple[int, ...]:
    """The grid's shape, or one with fewer, thicker slices along an axis."""
    thick, axis, thickness_mm = rng.random() < ranges.thick_share, int(rng.integers(len(shape))), rng.uniform(*ranges.thick_mm)
    acquired = list(shape)
    if thick:
        length_mm = _spacing_mm(label_map, shape)[axis] * shape[axis]
        acquired[axis] = min(acquired[axis], max(2, round(length_mm / thickness_mm)))
    return tuple(acquired)


def _partial_volume(label_map: LabelIndex, contrast: LabelContrast, shape: Sequence[int], sigma_mm: float) -> np.ndarray:
    """Mean and texture `(2, [z,] y, x)`, float32, of a grid of `shape`, blurred by `sigma_mm`: averages over the voxels of the label map."""
    values = np.stack(contrast).astype(np.float32)[:, label_map.index]
    own = label_map.spacing_mm[::-1]
    for axis, (size, wanted) in enumerate(zip(label_map.index.shape, shape, strict=True)):
        values = _along(axis + 1, _averages(size, wanted, sigma_mm / own[axis]), values)
    return values


def _along(axis: int, weights: csr_matrix, array: np.ndarray) -> np.ndarray:
    """`weights` `(out, in)` applied along one axis; sparse, so that the bits do not hang on the number of BLAS threads."""
    moved = np.moveaxis(array, axis, 0)
    product = weights @ np.ascontiguousarray(moved).reshape(len(moved), -1)
    return np.moveaxis(product.reshape(-1, *moved.shape[1:]), 0, axis)


def _averages(size: int, wanted: int, sigma_vx: float) -> csr_matrix:
    """Weights `(wanted, size)`: a Gaussian of `sigma_vx`, cut at the border, then the mean over each of `wanted` voxels of the same length."""
    from scipy.sparse import csr_matrix

    edges, own = np.linspace(0, size, wanted + 1), np.arange(size)
    overlap = np.minimum(edges[1:, None], own + 1) - np.maximum(edges[:-1, None], own)
    overlap = csr_matrix(np.clip(overlap, 0, None) * (wanted / size))
    distance = np.abs(own[:, None] - own) / max(sigma_vx, 1e-3)
    gaussian = np.where(distance <= _REACH, np.exp(-0.5 * distance**2), 0.0)
    return (overlap @ csr_matrix(gaussian / gaussian.sum(1, keepdims=True))).astype(np.float32)


def _linear(size: int, wanted: int) -> csr_matrix:
    """Weights `(wanted, size)` of linear interpolation between `size` voxels of the same length; beyond the outer centres the outer value."""
    from scipy.sparse import csr_matrix

    position = np.clip((np.arange(wanted) + 0.5) * size / wanted - 0.5, 0, size - 1)
    lower = np.minimum(position.astype(int), size - 2)
    rows = np.tile(np.arange(wanted), 2)
    weights = np.concatenate([1 - (position - lower), position - lower])
    return csr_matrix((weights, (rows, np.concatenate([lower, lower + 1]))), shape=(wanted, size)).astype(np.float32)


def _unit_texture(shape: Sequence[int], sigma_vx: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise `shape`, smoothed by `sigma_vx` `([z,] y, x)` and brought back to a standard deviation of 1, float32."""
    from scipy.ndimage import gaussian_filter

    noise = rng.standard_normal(tuple(shape), dtype=np.float32)
    smooth = gaussian_filter(noise, np.where(sigma_vx < 0.2, 0, sigma_vx), mode="wrap", truncate=3.0)
    return smooth / max(float(smooth.std()), 1e-9)
