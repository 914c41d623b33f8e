from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pipeline.errors import ConcordError
from pipeline.rigid_motion import Surfaces, draw_motions, linear_of, motion_matrix, motion_parameters, motion_sre_mm, rigid_matrix
from pipeline.transform_files import read_transform, write_transform
from pipeline.transforms import Linear

CENTRE = np.array([40.0, -30.0, 12.0])


def gland(rng, corners=300):
    """Corners of a mesh 60 mm from the origin; some stand there several times."""
    points = rng.normal(size=(corners, 3))
    points = points / np.linalg.norm(points, axis=1, keepdims=True) * [22, 16, 20] + [40, 35, 30]
    return np.concatenate([points, np.repeat(points[:40], 4, axis=0)])


def moved(parameters, points, centre):
    """The definition, point by point with scipy's rotations."""
    turn = Rotation.from_euler("xyz", parameters[3:], degrees=True)  # lower case: about fixed axes, x first
    return turn.apply(points - centre) + centre + parameters[:3]


def test_a_motion_turns_about_fixed_x_then_y_then_z_around_the_centre_and_then_shifts(rng):
    parameters, points = rng.uniform(-40, 40, (5, 6)), rng.uniform(-50, 50, (7, 3))
    for row, matrix in zip(parameters, motion_matrix(parameters, CENTRE), strict=True):
        np.testing.assert_allclose(points @ matrix[:3, :3].T + matrix[:3, 3], moved(row, points, CENTRE), atol=1e-10)
        np.testing.assert_array_equal(matrix[3], [0, 0, 0, 1])


def test_the_angles_are_degrees_and_each_turns_its_own_way():
    matrix = motion_matrix(np.array([0, 0, 0, 0, 0, 90.0]), np.zeros(3))
    np.testing.assert_allclose(matrix[:3, :3] @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    matrix = motion_matrix(np.array([1, 2, 3, 90.0, 0, 0]), np.array([0, 1.0, 0]))
    np.testing.assert_allclose(matrix @ [0, 2, 0, 1], [1, 3, 4, 1], atol=1e-12)


def test_parameters_come_back_from_their_matrix_about_any_centre(rng):
    parameters = rng.uniform(-80, 80, (4, 5, 6))
    centres = rng.uniform(-90, 90, (5, 3))
    np.testing.assert_allclose(motion_parameters(motion_matrix(parameters, centres), centres), parameters, atol=1e-9)


def test_the_same_motion_has_other_translations_about_another_centre_but_the_same_angles(rng):
    matrix = motion_matrix(np.array([1, 2, 3, 4, 5, 6.0]), CENTRE)
    about_zero = motion_parameters(matrix, np.zeros(3))
    np.testing.assert_allclose(about_zero[3:], [4, 5, 6])
    assert np.abs(about_zero[:3] - [1, 2, 3]).max() > 1
    np.testing.assert_allclose(motion_matrix(about_zero, np.zeros(3)), matrix, atol=1e-12)


def test_a_right_angle_about_y_still_gives_back_its_matrix():
    matrix = motion_matrix(np.array([1, 2, 3, 20, 90, 35.0]), CENTRE)
    np.testing.assert_allclose(motion_matrix(motion_parameters(matrix, CENTRE), CENTRE), matrix, atol=1e-9)


@pytest.mark.parametrize("matrix", [np.diag([1.01, 1, 1, 1]), np.diag([1, 1, -1, 1]), np.eye(4) + 0.01 * np.eye(4, k=1), np.diag([1, 1, 1, 2])])
def test_scale_shear_and_mirror_are_no_motion(matrix):
    with pytest.raises(ConcordError, match=r"not rigid.*expected rotation and translation only"):
        motion_parameters(matrix, CENTRE)


def test_a_transform_becomes_its_matrix_only_if_it_is_rigid(tmp_path):
    matrix = motion_matrix(np.array([1, -2, 3, 10, 20, -30.0]), CENTRE)
    write_transform(linear_of(matrix, CENTRE), tmp_path / "rigid.tfm")
    assert "Euler3DTransform" in (tmp_path / "rigid.tfm").read_text()
    np.testing.assert_allclose(rigid_matrix(read_transform(tmp_path / "rigid.tfm"), "it"), matrix, atol=1e-12)
    with pytest.raises(ConcordError, match=r"^true.tfm: the matrix is not rigid"):
        rigid_matrix(Linear(1.1 * np.eye(3), np.zeros(3)), "true.tfm")
    with pytest.raises(ConcordError, match=r"^true.tfm: Linear of dimension 2; expected a rigid 3-D"):
        rigid_matrix(Linear.identity(2), "true.tfm")


# ---- surface registration error


def test_the_sre_is_the_mean_way_of_all_corners_repeats_counted(rng):
    parameters, vertices = rng.uniform(-12, 12, (6, 6)), gland(rng)
    expected = [np.linalg.norm(moved(row, vertices, CENTRE) - vertices, axis=1).mean() for row in parameters]
    np.testing.assert_allclose(motion_sre_mm(parameters, vertices, CENTRE), expected, atol=1e-9)
    assert np.abs(motion_sre_mm(parameters, np.unique(vertices, axis=0), CENTRE) - expected).max() > 1e-3


def test_a_shift_has_an_sre_of_its_length_and_no_motion_of_zero(rng):
    vertices = gland(rng) + 500
    np.testing.assert_allclose(motion_sre_mm(np.array([[3.0, 4, 0, 0, 0, 0], [0] * 6]), vertices, CENTRE), [5, 0], atol=1e-9)


def test_surfaces_of_different_sizes_are_each_judged_by_their_own_corners(rng, monkeypatch):
    meshes = [gland(rng), gland(rng, 50), gland(rng)[:7]]
    parameters = rng.uniform(-12, 12, (3, 6))
    expected = [motion_sre_mm(row[None], mesh, CENTRE)[0] for row, mesh in zip(parameters, meshes, strict=True)]
    surfaces = Surfaces.of(meshes)
    np.testing.assert_allclose(surfaces.sre_mm(motion_matrix(parameters, CENTRE)), expected, atol=1e-12)
    order = np.array([2, 0, 2])
    turned = surfaces.take(order).sre_mm(motion_matrix(parameters[order], CENTRE))
    np.testing.assert_allclose(turned, np.array(expected)[order], atol=1e-12)
    monkeypatch.setattr("pipeline.rigid_motion._CHUNK", 1)
    np.testing.assert_allclose(surfaces.sre_mm(motion_matrix(parameters, CENTRE)), expected, atol=1e-12)


# ---- draws


def test_drawn_motions_have_the_wanted_sre_to_a_thousandth_of_a_millimetre(rng):
    vertices, wanted = gland(rng), rng.uniform(0, 20, 300)
    drawn = draw_motions(rng, wanted, vertices, np.zeros(3))
    reached = [np.linalg.norm(moved(row, vertices, np.zeros(3)) - vertices, axis=1).mean() for row in drawn]
    np.testing.assert_allclose(reached, wanted, atol=1e-3)
    # no draw was magnified more than three times
    assert (np.abs(drawn) <= 3 * np.repeat([5, 6], 3) + 1e-9).all() and np.abs(drawn[:, 3:]).max() > 6
    # all directions occur
    assert (np.abs(np.sign(drawn).mean(0)) < 0.25).all()


def test_draws_keep_their_direction_in_the_space_of_parameters(rng):
    """Scaling multiplies all six numbers alike: ratios are those of the uniform draw."""
    drawn = draw_motions(np.random.default_rng(5), np.full(50, 6.0), gland(rng), np.zeros(3), most_factor=1e9)
    first = np.random.default_rng(5).uniform(-np.repeat([5.0, 6.0], 3), np.repeat([5.0, 6.0], 3), (50, 6))
    ratio = drawn / first
    same = np.ptp(ratio, axis=1) < 1e-9 * np.abs(ratio).max(axis=1)
    assert same.mean() > 0.8  # the others did not come within a thousandth of a millimetre and were drawn anew


def test_each_motion_has_its_own_surface_and_its_own_centre(rng):
    meshes, centres = [gland(rng) + [0, 0, 40 * k] for k in range(3)], rng.uniform(-20, 20, (3, 3))
    drawn = draw_motions(rng, np.array([2.0, 4, 8]), Surfaces.of(meshes), centres)
    reached = [motion_sre_mm(row[None], mesh, centre)[0] for row, mesh, centre in zip(drawn, meshes, centres, strict=True)]
    np.testing.assert_allclose(reached, [2, 4, 8], atol=1e-3)


def test_draws_follow_from_the_generator_alone_and_zero_is_no_motion(rng):
    vertices = gland(rng)
    first, second = (draw_motions(np.random.default_rng(3), np.array([0.0, 5, 10]), vertices, CENTRE) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not first[0].any() and first[1].any()
    assert draw_motions(rng, np.zeros(0), vertices, CENTRE).shape == (0, 6)


def test_an_sre_out_of_reach_is_told(rng):
    with pytest.raises(ConcordError, match=r"no motion of SRE 90 mm in .* draws within 5 mm and 6 degrees.*ask for less"):
        draw_motions(rng, np.array([1.0, 90.0]), gland(rng), CENTRE)
