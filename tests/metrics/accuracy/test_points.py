"""Landmark, surface and displacement errors: by hand, and by the identities of rigid motion."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from metrics.accuracy.points import displacement_error_mm, sre_mm, tre_mm


def rigid(seed: int, dimension: int = 3) -> np.ndarray:
    random = np.random.default_rng(seed)
    matrix = np.eye(dimension + 1)
    rotation = Rotation.from_rotvec([0, 0, random.normal(0, 0.2)] if dimension == 2 else random.normal(0, 0.2, 3)).as_matrix()
    matrix[:dimension, :dimension] = rotation[:dimension, :dimension]
    matrix[:dimension, dimension] = random.normal(0, 5, dimension)
    return matrix


def test_tre_is_the_distance_of_each_landmark():
    assert tre_mm([[0, 0, 0], [1, 2, 3]], [[3, 4, 0], [1, 2, 3]]).tolist() == [5.0, 0.0]
    assert tre_mm(np.array([[1.0, 1.0]]), np.array([[1.0, 3.0]])).tolist() == [2.0]


def test_sre_of_a_translation_is_its_length():
    moved = np.eye(4)
    moved[:3, 3] = (2, 3, 6)
    assert sre_mm(np.eye(4), moved, np.random.default_rng(0).normal(size=(9, 3))) == pytest.approx(7.0)


def test_sre_of_a_rotation_in_the_plane_by_hand():
    # 60 degrees move a point at radius r by its chord, which is r
    angle = np.deg2rad(60)
    matrix = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    assert sre_mm(np.eye(3), matrix, np.array([[2.0, 0.0], [0.0, 4.0]])) == pytest.approx(3.0)


@pytest.mark.parametrize("dimension", [2, 3])
def test_sre_depends_on_the_perturbation_and_the_mesh_alone(dimension):
    # for rigid motions |inv(T) v - inv(M T) v| = |M v - v|, whatever the true transform
    vertices = np.random.default_rng(1).normal(50, 20, (40, dimension))
    true, perturbation = rigid(2, dimension), rigid(3, dimension)
    moved = vertices @ perturbation[:-1, :-1].T + perturbation[:-1, -1]
    expected = np.linalg.norm(moved - vertices, axis=1).mean()
    assert sre_mm(true, perturbation @ true, vertices) == pytest.approx(expected)


def test_sre_inverts_the_transforms():
    scale = np.diag([2.0, 2.0, 2.0, 1.0])
    assert sre_mm(np.eye(4), scale, np.array([[0.0, 0.0, 8.0]])) == pytest.approx(4.0)


def test_corners_of_triangles_count_as_often_as_they_are_listed():
    near, far = [0.0, 0.0, 1.0], [0.0, 0.0, 4.0]
    triangles = np.array([[near, near, far], [near, far, near]])
    scale = np.diag([0.5, 0.5, 0.5, 1.0])
    assert sre_mm(np.eye(4), scale, triangles) == pytest.approx((4 * 1 + 2 * 4) / 6)


@pytest.mark.parametrize(("matrix", "vertices"), [(np.eye(3), np.zeros((2, 3))), (np.eye(4), np.zeros((0, 3)))])
def test_matrices_that_do_not_fit_the_vertices_are_refused(matrix, vertices):
    with pytest.raises(ValueError, match="expected"):
        sre_mm(matrix, matrix, vertices)


def test_a_singular_matrix_is_refused():
    with pytest.raises(ValueError, match="singular"):
        sre_mm(np.eye(4), np.zeros((4, 4)), np.zeros((1, 3)))


def test_displacement_errors_by_hand():
    found, true = np.zeros((2, 1, 4, 2))
    found[0, :, 0] = [3, 0, 1, 8]
    found[0, :, 1] = [4, 0, 0, 6]
    error = displacement_error_mm(found, true)
    assert error == pytest.approx({"mean": 4.0, "median": 3.0, "p95": np.percentile([0, 1, 5, 10], 95), "max": 10.0})


def test_the_mask_keeps_what_is_not_zero():
    found = np.zeros((2, 2, 2, 3))
    found[0, 0, 0] = (0, 0, 9)
    mask = np.zeros((2, 2, 2), int)
    mask[0, 0] = 2
    assert displacement_error_mm(found, np.zeros_like(found), mask)["mean"] == pytest.approx(4.5)


def test_fields_masks_and_points_that_do_not_fit_are_refused():
    field = np.zeros((2, 2, 2))
    with pytest.raises(ValueError, match="displacement fields of shape"):
        displacement_error_mm(field, field[:1])
    with pytest.raises(ValueError, match="without a voxel"):
        displacement_error_mm(field, field, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="mask of shape"):
        displacement_error_mm(field, field, np.ones((2, 3)))
    with pytest.raises(ValueError, match="landmarks of shape"):
        tre_mm(np.zeros((2, 3)), np.zeros((3, 3)))
