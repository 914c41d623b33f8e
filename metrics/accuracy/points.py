"""Errors of points and displacements, in mm: landmarks (TRE), surface vertices (SRE), dense fields. Points are `(x, y[, z])`."""

from __future__ import annotations

import numpy as np


def tre_mm(moved_fixed_landmarks_mm: np.ndarray, moving_landmarks_mm: np.ndarray) -> np.ndarray:
    """Target registration error of each landmark, `(n,)` in mm.

    `moved_fixed_landmarks_mm` are the fixed landmarks taken to moving space by the transform, `(n, d)`;
    `moving_landmarks_mm` their true places. Raises `ValueError` for unequal shapes.
    """
    moved, moving = _same_shape(moved_fixed_landmarks_mm, moving_landmarks_mm, "landmarks")
    return np.linalg.norm(moved - moving, axis=-1)


def sre_mm(true_matrix: np.ndarray, found_matrix: np.ndarray, vertices_mm: np.ndarray) -> float:
    """Surface registration error of Attention-Reg: mean of `|inv(T_true) v - inv(T_found) v|` over mesh vertices v, in mm.

    Matrices are homogeneous `(d+1, d+1)` and map moving to fixed coordinates (in the paper ultrasound to MR), so that the
    inverse takes the fixed vertices to the moving volume; vertices are `(n, d)`, or triangles `(n, d, d)` whose corners
    count as often as they are listed, as in the authors' evaluation: leaving out repeats would change the weights.
    Distances are between corresponding points, not to the closest surface. Raises `ValueError` for shapes that do not fit
    or a singular matrix.
    """
    true, found = _same_shape(true_matrix, found_matrix, "matrices")
    vertices = np.asarray(vertices_mm, dtype=float)
    dimension = vertices.shape[-1]
    if true.shape != (dimension + 1, dimension + 1) or not vertices.size:
        raise ValueError(f"matrices of shape {true.shape} for vertices of shape {vertices.shape}; expected (d+1, d+1) and (n, d) with n > 0")
    points = vertices.reshape(-1, dimension)
    return float(np.linalg.norm(_inverse_applied(true, points) - _inverse_applied(found, points), axis=-1).mean())


def displacement_error_mm(found_mm: np.ndarray, true_mm: np.ndarray, mask: np.ndarray | None = None) -> dict[str, float]:
    """Length of the difference between two displacement fields `([z,] y, x, d)` in mm: `mean`, `median`, `p95` and `max`.

    `mask` `([z,] y, x)` keeps the voxels where it is not zero. Raises `ValueError` for unequal shapes or an empty mask.
    """
    found, true = _same_shape(found_mm, true_mm, "displacement fields")
    errors = np.linalg.norm(found - true, axis=-1)
    if mask is not None:
        if np.shape(mask) != errors.shape:
            raise ValueError(f"mask of shape {np.shape(mask)} for a field on a grid of {errors.shape}; expected the same grid")
        errors = errors[np.asarray(mask) != 0]
    if not errors.size:
        raise ValueError("mask without a voxel; expected at least one voxel that is not zero: leave the mask out or repair it")
    median, p95 = np.percentile(errors, [50, 95])
    return {"mean": float(errors.mean()), "median": float(median), "p95": float(p95), "max": float(errors.max())}


def _inverse_applied(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    homogeneous = np.column_stack([points, np.ones(len(points))])
    try:
        return np.linalg.solve(matrix, homogeneous.T).T[:, :-1]
    except np.linalg.LinAlgError as error:
        raise ValueError(f"matrix {matrix.tolist()} is singular; expected an invertible transform") from error


def _same_shape(first: np.ndarray, second: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"{name} of shape {first.shape} and {second.shape}; expected the same shape")
    return first, second
