"""Folding and regularity of a displacement field, from the determinant of the Jacobian of `x + u(x)`.

Fields are `displacement_vx`, `([z,] y, x, d)`: components `(x, y[, z])` in voxels of the fixed grid. Beyond the border the
field is continued linearly (ours), so that a border voxel takes its difference from inside and an affine field has its exact
determinant everywhere; repeating the border's displacement instead would invent folds for a large rotation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

SMALLEST_DETERMINANT = 1e-9
LARGEST_DETERMINANT = 1e9
LEARN2REG_OFFSET = 3.0
LEARN2REG_BORDER_VX = 2
SCHEMES = ("forward", "backward", "central")

# offsets (x, y, z) of the central tetrahedra by which Liu et al. complete the eight corner ones of the voxel's neighbourhood
_CENTRAL_TETRAHEDRA = (
    ((-1, -1, 0), (-1, 0, -1), (0, -1, -1)),
    ((1, 1, 0), (0, 1, 1), (1, 0, 1)),
)

Offsets = tuple[tuple[int, ...], ...]


def jacobian_determinant(displacement_vx: np.ndarray, scheme: str = "forward") -> np.ndarray:
    """Determinant of `I + grad u` at each voxel, `([z,] y, x)`, by `forward`, `backward` or `central` differences.

    Forward differences are those of the ReSAtt U-Net paper (its equation 10). Raises `ValueError` for an unknown scheme
    and for an array that is no finite displacement field.
    """
    padded, dimension = _padded(displacement_vx)
    forward, backward = _axis_offsets([1] * dimension), _axis_offsets([-1] * dimension)
    if scheme == "forward":
        return _determinant_over(padded, forward)
    if scheme == "backward":
        return _determinant_over(padded, backward)
    if scheme == "central":
        return _determinant([(_edge(padded, f) - _edge(padded, b)) / 2 for f, b in zip(forward, backward, strict=True)])
    raise ValueError(f"scheme {scheme!r}; expected one of {', '.join(SCHEMES)}")


def folding_fraction(displacement_vx: np.ndarray, mask: np.ndarray | None = None, *, strict: bool = False) -> float:
    """Share of voxels (in the mask) where the forward-difference determinant is not positive.

    `strict` counts negative determinants only, as equation (10) of the ReSAtt U-Net paper is written; the two differ only
    where a voxel collapses exactly. Raises `ValueError` as `jacobian_determinant`, and for a mask that is empty or of another shape.
    """
    determinant = _inside(jacobian_determinant(displacement_vx, "forward"), mask)
    return float(np.mean(determinant < 0 if strict else determinant <= 0))


def folding_fraction_any_scheme(displacement_vx: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Share of voxels where any finite-difference scheme gives a determinant that is not positive: 0 only for a digital diffeomorphism.

    A single scheme misses folds (central differences even a checkerboard). The schemes are those of Liu et al., "On finite
    difference Jacobian computation in deformable image registration" (2022): each axis forward or backward, four in 2-D
    and eight in 3-D, and in 3-D the two central tetrahedra that complete the voxel's neighbourhood. This is the share of
    voxels; their measure, the non-diffeomorphic volume, weighs each fold by its size: `non_diffeomorphic_volume_vx`.
    """
    padded, dimension = _padded(displacement_vx)
    folded = np.zeros([n - 2 for n in padded.shape[:-1]], dtype=bool)
    for offsets in _simplices(dimension):
        folded |= _determinant_over(padded, offsets) <= 0
    return float(np.mean(_inside(folded, mask)))


def non_diffeomorphic_volume_vx(displacement_vx: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Non-diffeomorphic volume (3-D) or area (2-D) of Liu et al. 2022, in voxels: the volume of all folded simplices.

    Sum over voxels and schemes (see `folding_fraction_any_scheme`) of `max(-det, 0) / d!`, halved, because the schemes
    triangulate the neighbourhood twice. Not normalised: divide by the number of voxels for their percentage. Away from
    the border equal to the authors' program; beyond it they repeat the displacement, where we continue it.
    """
    padded, dimension = _padded(displacement_vx)
    folded = np.zeros([n - 2 for n in padded.shape[:-1]])
    for offsets in _simplices(dimension):
        folded += np.maximum(-_determinant_over(padded, offsets), 0)
    return float(_inside(folded, mask).sum() / (2 * (2 if dimension == 2 else 6)))


def sdlogj(displacement_vx: np.ndarray, mask: np.ndarray | None = None, scheme: str = "central") -> float:
    """Standard deviation of the logarithm of the Jacobian determinant (in the mask); 0 for an affine field.

    Determinants below 1e-9 (folds) are set to 1e-9 before the logarithm (ours), so that a single fold weighs heavily
    instead of making the measure undefined. Raises `ValueError` as `folding_fraction`.
    """
    determinant = _inside(jacobian_determinant(displacement_vx, scheme), mask)
    return float(np.log(np.maximum(determinant, SMALLEST_DETERMINANT)).std())


def sdlogj_learn2reg(displacement_vx: np.ndarray) -> float:
    """SDlogJ as the Learn2Reg evaluator reports it: 3 is **added** to the determinant, which hides folding; for published numbers only.

    Central differences, two voxels cut off each border, `det + 3` limited to [1e-9, 1e9], standard deviation of its
    logarithm (MDL-UzL/L2R, evaluation; 3-D there, the same rule in 2-D here). Raises `ValueError` for a grid of fewer
    than five voxels along an axis.
    """
    determinant = jacobian_determinant(displacement_vx, "central")
    if min(determinant.shape) <= 2 * LEARN2REG_BORDER_VX:
        raise ValueError(f"field on a grid of {determinant.shape} voxels; expected at least 5 along each axis: two are cut off each border")
    inner = determinant[(slice(LEARN2REG_BORDER_VX, -LEARN2REG_BORDER_VX),) * determinant.ndim]
    return float(np.log(np.clip(inner + LEARN2REG_OFFSET, SMALLEST_DETERMINANT, LARGEST_DETERMINANT)).std())


def _padded(displacement_vx: np.ndarray) -> tuple[np.ndarray, int]:
    """The field as float64, continued linearly by one voxel, and its dimension."""
    field = np.asarray(displacement_vx, dtype=float)
    dimension = field.ndim - 1
    if dimension not in (2, 3) or field.shape[-1] != dimension or not field.size:
        raise ValueError(f"displacement field of shape {field.shape}; expected ([z,] y, x, d) with d = 2 or 3 components a voxel")
    if not np.all(np.isfinite(field)):
        raise ValueError(f"displacement field with {int((~np.isfinite(field)).sum())} values that are NaN or infinite; expected finite numbers")
    return np.pad(field, [(1, 1)] * dimension + [(0, 0)], mode="reflect", reflect_type="odd"), dimension


def _axis_offsets(signs: Sequence[int]) -> Offsets:
    return tuple(tuple(row) for row in np.diag(signs).tolist())


def _simplices(dimension: int) -> Iterator[Offsets]:
    """Offsets `(x, y[, z])` from a voxel to the other corners of each simplex at that voxel."""
    for signs in product((1, -1), repeat=dimension):
        yield _axis_offsets(signs)
    if dimension == 3:
        yield from _CENTRAL_TETRAHEDRA


def _determinant_over(padded: np.ndarray, offsets: Offsets) -> np.ndarray:
    """Determinant of the mapped edges at each voxel, with the sign that makes the identity's positive."""
    return np.sign(np.linalg.det(offsets)) * _determinant([_edge(padded, offset) for offset in offsets])


def _edge(padded: np.ndarray, offset: tuple[int, ...]) -> np.ndarray:
    """The vector between the images of each voxel and of its neighbour at `offset` (x, y[, z]), `([z,] y, x, d)`."""
    inner = (slice(1, -1),) * len(offset)
    shifted = tuple(slice(1 + o, n - 1 + o) for o, n in zip(offset[::-1], padded.shape[:-1], strict=True))
    return padded[shifted] - padded[inner] + np.asarray(offset)


def _determinant(columns: list[np.ndarray]) -> np.ndarray:
    """Determinant of two or three columns `(..., d)`, written out: far faster than a factorisation a voxel."""
    if len(columns) == 2:
        a, b = columns
        return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    a, b, c = columns
    return (
        a[..., 0] * (b[..., 1] * c[..., 2] - b[..., 2] * c[..., 1])
        + a[..., 1] * (b[..., 2] * c[..., 0] - b[..., 0] * c[..., 2])
        + a[..., 2] * (b[..., 0] * c[..., 1] - b[..., 1] * c[..., 0])
    )


def _inside(values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    if mask is None:
        return values
    if np.shape(mask) != values.shape:
        raise ValueError(f"mask of shape {np.shape(mask)} for a field on a grid of {values.shape}; expected the same grid")
    if not np.any(mask):
        raise ValueError("mask without a voxel; expected at least one voxel that is not zero: leave the mask out or repair it")
    return values[np.asarray(mask) != 0]
