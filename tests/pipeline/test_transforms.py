"""Transforms against ITK point by point, and against their own inverses and files."""

from __future__ import annotations

import numpy as np
import pytest
from examples import KINDS, oblique_geometry, rotation, smooth_field, transforms_of

from pipeline.errors import ConcordError
from pipeline.transform_files import read_transform, write_transform
from pipeline.transforms import (
    BSpline,
    Composite,
    Field,
    Linear,
    compose,
    cubic_basis,
    from_itk,
    inverse_points,
    invert,
    to_itk,
)
from pipeline.volumes import Geometry

DIMENSIONS = (2, 3)


def random_points(dimension: int, n: int = 300) -> np.ndarray:
    """Points inside and outside of the grids of `transforms_of`."""
    return np.random.default_rng(0).uniform(-40, 40, size=(n, dimension))


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_points_are_mapped_as_itk_maps_them(kind, dimension):
    transform, points = transforms_of(dimension)[kind], random_points(dimension)
    reference = to_itk(transform)
    expected = np.array([reference.TransformPoint(p.tolist()) for p in points])
    np.testing.assert_allclose(transform.points(points), expected, atol=1e-9)
    assert np.abs(expected - points).max() > 0.5  # the case is no identity


@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_back_what_was_written(kind, dimension, suffix, tmp_path):
    transform, points = transforms_of(dimension)[kind], random_points(dimension)
    write_transform(transform, tmp_path / f"t{suffix}")
    found = read_transform(tmp_path / f"t{suffix}")
    np.testing.assert_allclose(found.points(points), transform.points(points), atol=1e-5)
    assert type(found) is type(transform)
    if isinstance(transform, Linear):
        assert found.kind == transform.kind
    assert [file.name for file in tmp_path.iterdir()] == [f"t{suffix}"]


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_dense_displacement_equals_displacement_point_by_point(kind, dimension):
    transform = transforms_of(dimension)[kind]
    parallel = Geometry.regular((11, 7, 5)[:dimension], (3.1, 4.0, 9.0)[:dimension], (-17.0, -15.0, -20.0)[:dimension])
    for geometry in (oblique_geometry(dimension), parallel):
        points = geometry.grid_points().reshape(-1, dimension)
        expected = (transform.points(points) - points).reshape(*geometry.shape, dimension)
        np.testing.assert_allclose(transform.displacement_mm(geometry), expected, atol=1e-9)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_displacement_in_voxels_moves_indices(dimension):
    geometry = oblique_geometry(dimension)
    shift = np.array([1.0, -2.0, 0.5])[:dimension]  # voxels along the image's own axes
    transform = Linear(np.eye(dimension), geometry.index_to_physical @ shift)
    np.testing.assert_allclose(transform.displacement_vx(geometry), np.broadcast_to(shift, (*geometry.shape, dimension)), atol=1e-9)


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_inverse_undoes(kind, dimension):
    transform = transforms_of(dimension)[kind]
    points = np.random.default_rng(1).uniform(-8, 8, size=(200, dimension))
    np.testing.assert_allclose(inverse_points(transform, transform.points(points)), points, atol=5e-3)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_inverse_field_undoes_on_its_grid(dimension):
    geometry = oblique_geometry(dimension)
    field = smooth_field(geometry, 2.0)
    inverse = invert(field, geometry)
    centre = geometry.centre_mm + np.random.default_rng(1).uniform(-5, 5, size=(100, dimension))
    np.testing.assert_allclose(inverse.points(field.points(centre)), centre, atol=0.05)
    assert isinstance(invert(Linear(rotation(dimension), np.ones(dimension)), geometry), Linear)


def test_a_folded_field_is_inverted_with_a_warning():
    geometry = Geometry.regular((9, 9))
    displacement = np.zeros((9, 9, 2))
    displacement[:, ::2, 0], displacement[:, 1::2, 0] = 3.0, -3.0
    with pytest.warns(UserWarning, match="folds"):
        inverse_points(Field(displacement, geometry), geometry.grid_points().reshape(-1, 2))


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_composition_applies_in_the_order_given(dimension):
    parts = transforms_of(dimension)
    points = random_points(dimension)
    chain = compose(parts["rigid"], parts["field"], parts["affine"], parts["translation"])
    expected = parts["translation"].points(parts["affine"].points(parts["field"].points(parts["rigid"].points(points))))
    np.testing.assert_allclose(chain.points(points), expected, atol=1e-12)
    assert isinstance(chain, Composite)
    assert len(chain.parts) == 3  # the last two are merged


def test_composition_drops_identities_and_refuses_a_mix_of_dimensions():
    identity = Linear.identity(2)
    assert compose(identity, identity) is not None
    assert isinstance(compose(identity, transforms_of(2)["field"]), Field)
    with pytest.raises(ConcordError, match="dimensions"):
        compose(identity, Linear.identity(3))


def test_cubic_basis_sums_to_one_inside_and_is_zero_outside():
    basis = cubic_basis(np.array([0.5, 1.0, 2.3, 5.0, 5.1]), 7)
    np.testing.assert_allclose(basis.sum(axis=1), [0, 1, 1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(basis[1, :3], [1 / 6, 4 / 6, 1 / 6])


def test_a_b_spline_of_linear_coefficients_is_that_linear_function():
    grid = Geometry.regular((8, 8), 5.0)
    coefficients = np.moveaxis(grid.grid_points() @ np.array([[0.1, 0.0], [0.05, -0.2]]).T, -1, 0)
    points = np.random.default_rng(0).uniform(-10, 10, size=(50, 2))
    moved = BSpline(coefficients, grid).points(points)
    np.testing.assert_allclose(moved - points, points @ np.array([[0.1, 0.0], [0.05, -0.2]]).T, atol=1e-12)


def test_what_is_not_finite_or_not_on_its_grid_is_refused():
    with pytest.raises(ConcordError, match="NaN"):
        Linear(np.eye(2) * np.nan, np.zeros(2))
    with pytest.raises(ConcordError, match="field"):
        Field(np.zeros((3, 3, 3)), Geometry.regular((3, 3)))
    with pytest.raises(ConcordError, match="singular"):
        Linear(np.zeros((2, 2)), np.zeros(2)).inverse()


def test_bad_transform_files_are_refused_by_name(tmp_path):
    (tmp_path / "text.h5").write_text("not a transform")
    for name in ("absent.h5", "text.h5"):
        with pytest.raises(ConcordError, match=name):
            read_transform(tmp_path / name)
    with pytest.raises(ConcordError, match="suffix"):
        write_transform(Linear.identity(2), tmp_path / "t.json")


def test_itk_types_without_a_counterpart_are_refused():
    import itk

    with pytest.raises(ConcordError, match="no counterpart"):
        from_itk(itk.ThinPlateSplineKernelTransform[itk.D, 3].New())
