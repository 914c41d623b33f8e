"""Overlap of label maps: Dice and Jaccard coefficients per structure, all structures in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def dice(fixed_labels: np.ndarray, warped_labels: np.ndarray, labels: Sequence[int] | None = None) -> dict[int, float]:
    """Dice coefficient `2 |A and B| / (|A| + |B|)` of each structure, for label maps of one shape `([z,] y, x)`.

    `labels` defaults to all non-zero labels of the fixed map. A structure that is empty in both maps scores nan (there is
    nothing to overlap), one that is empty in one of them scores 0. Raises `ValueError` for maps of different shapes or
    labels that are no whole numbers.
    """
    wanted, shared, fixed, warped = _counts(fixed_labels, warped_labels, labels)
    return _ratios(wanted, 2 * shared, fixed + warped)


def jaccard(fixed_labels: np.ndarray, warped_labels: np.ndarray, labels: Sequence[int] | None = None) -> dict[int, float]:
    """Jaccard coefficient `|A and B| / |A or B|` of each structure; arguments, empty structures and errors as in `dice`."""
    wanted, shared, fixed, warped = _counts(fixed_labels, warped_labels, labels)
    return _ratios(wanted, shared, fixed + warped - shared)


def mean_over_structures(scores: Mapping[int, float]) -> float:
    """Mean of the structures' scores, nan left out; nan where no structure has a score."""
    values = np.fromiter(scores.values(), dtype=float, count=len(scores))
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def whole_labels(labels: np.ndarray, name: str) -> np.ndarray:
    """The label map as integers (bool and whole floating-point numbers are converted); raises `ValueError` for anything else."""
    labels = np.asarray(labels)
    if labels.dtype.kind in "iu":
        return labels
    if labels.dtype.kind == "b":
        return labels.astype(np.uint8)
    if labels.dtype.kind == "f" and np.all(np.isfinite(labels)) and np.all(labels == np.round(labels)):
        return labels.astype(np.int64)
    raise ValueError(
        f"{name} labels of type {labels.dtype} hold values that are no whole numbers; expected a label map: warp it with nearest neighbour"
    )


def label_indices(fixed_labels: np.ndarray, warped_labels: np.ndarray, labels: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The structures in ascending order, and both maps with structure `i` of them written as `i + 1` and all else as 0."""
    fixed, warped = whole_labels(fixed_labels, "fixed"), whole_labels(warped_labels, "warped")
    if fixed.shape != warped.shape:
        raise ValueError(f"label maps of shape {fixed.shape} and {warped.shape}; expected one grid: warp onto the fixed grid first")
    wanted = np.unique(fixed if labels is None else np.asarray(labels, dtype=np.int64)).astype(np.int64)
    wanted = wanted[wanted != 0]
    return wanted, _index_of(fixed, wanted), _index_of(warped, wanted)


def _index_of(label_map: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if not wanted.size:
        return np.zeros(label_map.shape, dtype=np.int64)
    index = np.minimum(np.searchsorted(wanted, label_map), wanted.size - 1)
    return np.where(wanted[index] == label_map, index + 1, 0)


def _counts(
    fixed_labels: np.ndarray, warped_labels: np.ndarray, labels: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The structures and, for each, the voxels that both maps, the fixed map, and the warped map give it."""
    wanted, fixed, warped = label_indices(fixed_labels, warped_labels, labels)
    length = wanted.size + 1
    shared, in_fixed, in_warped = (np.bincount(a.ravel(), minlength=length)[1:] for a in (fixed[fixed == warped], fixed, warped))
    return wanted, shared, in_fixed, in_warped


def _ratios(wanted: np.ndarray, numerator: np.ndarray, denominator: np.ndarray) -> dict[int, float]:
    ratios = np.full(wanted.size, np.nan)
    np.divide(numerator, denominator, out=ratios, where=denominator > 0)
    return dict(zip(wanted.tolist(), ratios.tolist(), strict=True))
