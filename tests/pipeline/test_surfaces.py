"""Surfaces: STL files of both kinds come back and broken ones are named, voxels inside are those that a formula says, errors are worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from examples import oblique_geometry, rotation

from pipeline.errors import ConcordError
from pipeline.surfaces import aligned_surfaces, enclosed, fitted_rigid, nearest_rotation, read_stl, require_inside, residual_of, write_stl
from pipeline.volumes import Geometry

CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=float)
TETRAHEDRON = CORNERS[[[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]]


def box(low, high) -> np.ndarray:
    """The 12 triangles of a box, normals outwards."""
    faces = []
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        for end in (0, 1):
            corner = np.zeros((4, 3))
            corner[:, axis] = (low, high)[end][axis]
            corner[:, u], corner[:, v] = np.take((low[u], high[u]), [0, 1, 1, 0]), np.take((low[v], high[v]), [0, 0, 1, 1])
            ring = corner if end else corner[::-1]
            faces += [ring[[0, 1, 2]], ring[[0, 2, 3]]]
    return np.array(faces)


def ball(radius: float, centre=(0.0, 0, 0), rings: int = 40) -> np.ndarray:
    """A closed ball of triangles."""
    polar, around = np.meshgrid(np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, 2 * rings, endpoint=False), indexing="ij")
    points = radius * np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], axis=-1) + centre
    turned = np.roll(points, -1, axis=1)
    quads = np.stack([points[:-1], points[1:], turned[1:], turned[:-1]], axis=2).reshape(-1, 4, 3)
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def ascii_stl(triangles: np.ndarray) -> str:
    facets = [
        "facet normal 0 0 0\n outer loop\n" + "".join(f"  vertex {x:.6e} {y:.6e} {z:.6e}\n" for x, y, z in triangle) + " endloop\nendfacet\n"
        for triangle in triangles
    ]
    return "solid gland\n" + "".join(facets) + "endsolid gland\n"


def test_what_is_written_comes_back_in_single_precision(tmp_path):
    write_stl(TETRAHEDRON * 1.1 - 30, tmp_path / "a.stl")
    assert np.allclose(read_stl(tmp_path / "a.stl"), TETRAHEDRON * 1.1 - 30, atol=1e-5)
    assert (tmp_path / "a.stl").stat().st_size == 84 + 4 * 50


def test_a_binary_file_is_one_even_where_its_head_says_solid(tmp_path):
    write_stl(TETRAHEDRON, tmp_path / "a.stl")
    content = (tmp_path / "a.stl").read_bytes()
    (tmp_path / "solid.stl").write_bytes(b"solid exported by somebody".ljust(80) + content[80:])
    assert np.array_equal(read_stl(tmp_path / "solid.stl"), TETRAHEDRON)
    (tmp_path / "longer.stl").write_bytes(b"solid exported".ljust(80, b"\0") + content[80:] + b"\0" * 7)
    assert np.array_equal(read_stl(tmp_path / "longer.stl"), TETRAHEDRON)


@pytest.mark.parametrize("change", [str, str.upper, lambda text: text.replace("\n", "\r\n")])
def test_text_of_any_habit_is_read(tmp_path, change):
    (tmp_path / "a.stl").write_bytes(change(ascii_stl(TETRAHEDRON)).encode())
    assert np.array_equal(read_stl(tmp_path / "a.stl"), TETRAHEDRON)


def test_normals_point_outwards_where_the_corners_run_anticlockwise(tmp_path):
    write_stl(TETRAHEDRON, tmp_path / "a.stl")
    normals = np.frombuffer((tmp_path / "a.stl").read_bytes()[84:], dtype=[("n", "<f4", 3), ("c", "<f4", 9), ("a", "<u2")])["n"]
    assert np.allclose(normals, [[0, 0, -1], [0, -1, 0], [-1, 0, 0], [3**-0.5] * 3], atol=1e-6)


def binary(triangles) -> bytes:
    records = np.zeros(len(triangles), dtype=[("n", "<f4", 3), ("c", "<f4", (3, 3)), ("a", "<u2")])
    records["c"] = triangles
    return b" " * 80 + len(triangles).to_bytes(4, "little") + records.tobytes()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "0 bytes are no STL surface"),
        (binary(TETRAHEDRON)[:-20], "truncated"),
        (binary(TETRAHEDRON[:0]), "without triangles"),
        (binary(TETRAHEDRON * np.nan), "NaN or infinite"),
        (b"\x89PNG" + bytes(range(256)) * 2, "no STL surface or truncated"),
        (b"v 0 0 0\nv 1 0 0\nf 1 2 3\n" * 9, "no STL surface or truncated"),
        (ascii_stl(TETRAHEDRON)[:-40].encode(), "truncated"),
        (b"solid nothing\nendsolid nothing\n", "without triangles"),
        (ascii_stl(TETRAHEDRON).replace("1.000000e+00", "1,0").encode(), "not three numbers"),
        (ascii_stl(TETRAHEDRON).replace("1.000000e+00", "nan").encode(), "NaN or infinite"),
        (ascii_stl(TETRAHEDRON).replace("1.000000e+00", "", 1).encode(), "not three numbers"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path, content, told):
    (tmp_path / "bad.stl").write_bytes(content)
    with pytest.raises(ConcordError, match=told) as caught:
        read_stl(tmp_path / "bad.stl")
    assert "bad.stl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConcordError, match=r"none\.stl: no such file"):
        read_stl(tmp_path / "none.stl")


def test_voxels_inside_a_box_are_those_that_its_edges_say():
    grid = Geometry.regular((12, 10, 9), (1.0, 2.0, 3.0), (0, 0, 0))
    labels = enclosed(box((2.5, 3.0, 5.5), (7.5, 13.0, 19.0)), grid)
    x, y, z = np.moveaxis(grid.grid_points(), -1, 0)
    assert np.array_equal(labels, (x > 2.5) & (x < 7.5) & (y > 3) & (y < 13) & (z > 5.5) & (z < 19))
    assert (labels.dtype, int(labels.sum())) == (np.uint8, 5 * 5 * 5)


def test_voxels_inside_a_ball_are_those_within_its_radius_on_an_oblique_grid():
    grid = oblique_geometry(3)
    centre = grid.centre_mm + (1.3, -0.7, 2.1)
    labels = enclosed(ball(9.0, centre, rings=60), grid)
    distance = np.linalg.norm(grid.grid_points() - centre, axis=-1)
    sure = np.abs(distance - 9.0) > 0.05  # the mesh lies up to 0.02 mm within the ball
    assert np.array_equal(labels[sure] == 1, (distance < 9.0)[sure])
    assert labels.sum() * np.prod(grid.spacing_mm) == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.03)


def test_a_surface_that_reaches_beyond_the_grid_is_cut_there():
    grid = Geometry.regular((8, 8, 8), 1.0, (0, 0, 0))
    labels = enclosed(box((-5.0, -5.0, 3.5), (3.5, 20.0, 20.0)), grid)
    assert np.array_equal(np.argwhere(labels).min(axis=0), (4, 0, 0))
    assert labels.sum() == 4 * 8 * 4


def test_nested_surfaces_leave_a_cavity():
    grid = Geometry.regular((12, 12, 12), 1.0, (0, 0, 0))
    shell = np.concatenate([box((0.5,) * 3, (10.5,) * 3), box((3.5,) * 3, (6.5,) * 3)])
    assert enclosed(shell, grid).sum() == 1000 - 27


def test_a_box_without_lid_is_filled_and_one_with_a_hole_in_two_sides_is_refused():
    grid = Geometry.regular((12, 12, 12), 1.0, (0, 0, 0))
    whole = box((1.5,) * 3, (9.5,) * 3)
    assert enclosed(np.delete(whole, [0, 1, 2, 3], axis=0), grid).sum() == 512
    with pytest.raises(ConcordError, match=r"gland\.stl: surface is not closed"):
        enclosed(np.delete(whole, [0, 5], axis=0), grid, "gland.stl")


def test_a_surface_between_the_voxels_encloses_none():
    with pytest.raises(ConcordError, match=r"encloses no voxel; check its unit"):
        enclosed(TETRAHEDRON * 0.01 + 2.3, Geometry.regular((8, 8, 8), 1.0, (0, 0, 0)))


def test_a_surface_in_another_frame_is_refused():
    grid = Geometry.regular((30, 30, 30), 1.0, (5.0, 10, -40))
    gland = ball(8.0, grid.centre_mm)
    require_inside(gland, grid, "gland.stl")
    for other in (gland * (-1, -1, 1), gland + (200, 0, 0)):
        with pytest.raises(ConcordError, match=r"gland\.stl: surface outside the volume .*another frame \(RAS/LPS or offset\)\?$"):
            require_inside(other, grid, "gland.stl")


def test_the_residual_of_a_shift_and_of_a_turn_about_the_centroid(rng):
    points = rng.normal(size=(300, 3)) * 20 + (50, -80, 10)
    shifted = residual_of(points, points + (3, 0, -4))
    assert shifted == pytest.approx((5.0, 5.0, 0.0), abs=1e-5)
    centre = points.mean(axis=0)
    turned = residual_of(points, (points - centre) @ rotation(3, 0.1).T + centre)
    angle = np.rad2deg(np.arccos((np.trace(rotation(3, 0.1)) - 1) / 2))
    assert turned[1:] == pytest.approx((0.0, angle), abs=1e-9)
    assert turned.sre_mm == pytest.approx(np.linalg.norm((points - centre) @ (rotation(3, 0.1).T - np.eye(3)), axis=1).mean())


def test_corners_that_stand_repeatedly_count_repeatedly():
    found = np.array([[0.0, 0, 0], [0, 0, 0], [0, 0, 0], [10, 0, 0]])
    assert residual_of(found, found + np.array([[0, 4.0, 0]] * 3 + [[0, 0, 0]])).sre_mm == 3.0


def test_the_fitted_motion_is_the_one_that_was_applied_and_never_a_reflection(rng):
    points = rng.normal(size=(40, 3))
    matrix = fitted_rigid(points, points @ rotation(3, 0.7).T + (1, 2, 3))
    assert np.allclose(matrix[:3, :3], rotation(3, 0.7))
    assert np.allclose(matrix[:3, 3], (1, 2, 3))
    mirrored = fitted_rigid(points, points * (-1, 1, 1))
    assert np.linalg.det(mirrored[:3, :3]) == pytest.approx(1.0)
    close = rotation(3, 0.7).round(4)
    assert np.allclose(nearest_rotation(close), close, atol=1e-4)
    assert np.allclose(nearest_rotation(close) @ nearest_rotation(close).T, np.eye(3), atol=1e-14)


def test_surfaces_of_one_organ_are_laid_onto_each_other_whatever_their_triangles(rng):
    def organ(rings):
        points = ball(1.0, rings=rings)
        return (points + 0.2 * points**2) * (20, 14, 17)

    turn, shift = rotation(3, 0.25), np.array([60.0, -20, 35])
    found = aligned_surfaces(organ(30), organ(23) @ turn.T + shift)
    residual = residual_of(organ(30).reshape(-1, 3) @ turn.T + shift, organ(30).reshape(-1, 3) @ found.matrix[:3, :3].T + found.matrix[:3, 3])
    assert residual.sre_mm < 0.5
    assert found.distance_mm < 1.0


def test_principal_axes_help_where_the_turn_is_large():
    points = ball(1.0, rings=25)
    organ = (points + 0.2 * points**2) * (30, 14, 19)
    turn = rotation(3, 0.6)
    found = aligned_surfaces(organ, organ @ turn.T, most_deg=90)
    assert np.linalg.norm(organ.reshape(-1, 3) @ (found.matrix[:3, :3] - turn).T + found.matrix[:3, 3], axis=1).mean() < 0.5
