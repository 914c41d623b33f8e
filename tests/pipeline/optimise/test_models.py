"""Transform models and samples: the loop's points are the transform's own, on lattices and scattered, coarse grids included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.optimise.bending import BendingEnergy, gram_matrix
from pipeline.optimise.models import SplineModel, linear_model
from pipeline.optimise.moving import MovingImage
from pipeline.optimise.plans import SamplingPlan
from pipeline.optimise.samples import Lattice, Scattered
from pipeline.transforms import Linear, cubic_basis, from_itk, to_itk
from pipeline.volumes import Geometry, Volume

KINDS = ("translation", "rigid", "similarity", "affine", "bspline")


def grid_of(dimension: int) -> Geometry:
    turn = np.eye(dimension)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    direction = tuple(map(tuple, turn.tolist()))
    return Geometry((12, 10, 9)[:dimension], (1.0, 1.5, 2.0)[:dimension], (3.0, -4.0, 5.0)[:dimension], direction)


def model_and_parameters(kind: str, geometry: Geometry):
    rng = np.random.default_rng(2)
    if kind == "bspline":
        model = SplineModel.over(geometry, (5.0,) * geometry.dimension, halvings=1, dtype=torch.float64)
        return model, rng.normal(0, 1, model.initial().shape)
    model = linear_model(kind, geometry)
    return model, model.initial() + rng.normal(0, 0.1, model.initial().shape)


def samples_of(geometry: Geometry, which: str):
    if which == "scattered":
        rng = np.random.default_rng(0)
        return Scattered(geometry, np.stack([rng.integers(n, size=40) for n in geometry.size], axis=1), torch.float64)
    select = torch.arange(3, 60, 2) if which == "selected" else None
    stride, offset = ((2, 1, 3), (1, 0, 2)) if which == "strided" else ((1, 1, 1), (0, 0, 0))
    return Lattice(geometry, stride[: geometry.dimension], offset[: geometry.dimension], torch.float64, select)


def indices_of(samples) -> np.ndarray:
    """Voxel index of every sample, through the identity affine map."""
    d = samples.geometry.dimension
    return samples.affine(np.eye(d), np.zeros(d)).numpy()


@pytest.mark.parametrize("which", ["dense", "strided", "selected", "scattered"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dimension", [2, 3])
def test_points_are_those_of_the_transform_in_units_of_the_moving_image(dimension, kind, which):
    geometry = grid_of(dimension)
    coarse = geometry.resized([n // 2 for n in geometry.size]) if which == "strided" else geometry
    model, parameters = model_and_parameters(kind, geometry)
    samples = samples_of(coarse, which)
    moving = MovingImage.of(Volume(np.zeros(geometry.shape), geometry), dtype=torch.float64)
    after = Linear(np.eye(dimension) * 1.1, np.full(dimension, 0.7), "similarity")
    points = model.points(parameters, samples, moving.units(after)).numpy()
    expected = after.points(model.transform(parameters).points(coarse.points_at(indices_of(samples))))
    np.testing.assert_allclose(points, (2 * geometry.index_at(expected) + 1) / np.asarray(geometry.size) - 1, atol=1e-9)


@pytest.mark.parametrize("which", ["dense", "strided", "selected", "scattered"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pull_is_the_transposed_jacobian(kind, which):
    geometry = grid_of(3)
    model, parameters = model_and_parameters(kind, geometry)
    samples = samples_of(geometry, which)
    units = MovingImage.of(Volume(np.zeros(geometry.shape), geometry), dtype=torch.float64).units(Linear.identity(3))
    rng = np.random.default_rng(1)
    direction, at = rng.normal(size=parameters.shape), model.points(parameters, samples, units)
    by_point = torch.from_numpy(rng.normal(size=tuple(at.shape)))
    step = 1e-6
    change = (model.points(parameters + step * direction, samples, units) - model.points(parameters - step * direction, samples, units)) / (2 * step)
    np.testing.assert_allclose(direction @ model.pull(parameters, samples, units, by_point), float((change * by_point).sum()), rtol=1e-6)


def test_values_of_the_volume_come_in_the_order_of_the_points():
    geometry = grid_of(3)
    volume = torch.arange(int(np.prod(geometry.size)), dtype=torch.float64).reshape(geometry.shape)
    for which in ("dense", "strided", "selected", "scattered"):
        samples = samples_of(geometry, which)
        x, y, z = indices_of(samples).astype(int).T
        np.testing.assert_array_equal(samples.values(volume).reshape(-1).numpy(), volume.numpy()[z, y, x])


def test_a_refined_spline_moves_every_point_as_before():
    geometry = grid_of(3)
    model, parameters = model_and_parameters("bspline", geometry)
    finer, refined = model.refined(parameters)
    points = geometry.grid_points().reshape(-1, 3)
    np.testing.assert_allclose(finer.transform(refined).points(points), model.transform(parameters).points(points), atol=1e-12)
    np.testing.assert_allclose(finer.grid.spacing_mm, np.asarray(model.grid.spacing_mm) / 2)


@pytest.mark.parametrize("spacing", [3.0, 7.5, 40.0])
def test_control_points_cover_the_image_with_its_borders(spacing):
    geometry = grid_of(3)
    grid = SplineModel.over(geometry, (spacing,) * 3, halvings=1).grid
    corners = geometry.points_at(np.array([[-0.5] * 3, np.asarray(geometry.size) - 0.5]))
    index = grid.index_at(corners)
    assert index.min() >= 1 - 1e-9
    assert (index <= np.asarray(grid.size) - 2 + 1e-9).all()
    np.testing.assert_allclose(grid.spacing_mm, 2 * spacing)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_becomes_an_itk_transform_and_back(kind):
    geometry = grid_of(3)
    model, parameters = model_and_parameters(kind, geometry)
    points = geometry.grid_points()[2:-2, 2:-2, 2:-2].reshape(-1, 3)
    transform = model.transform(parameters)
    np.testing.assert_allclose(from_itk(to_itk(transform)).points(points), transform.points(points), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_scales_are_squared_shifts(kind):
    model, parameters = model_and_parameters(kind, grid_of(3))
    scales = model.scales(parameters)
    assert (scales > 0).all()
    if kind == "translation":
        np.testing.assert_allclose(scales, 1.0)
    if kind == "rigid":  # an angle moves the farthest corner by its distance from the axis
        corners = grid_of(3).points_at(np.array([[0, 0, 0], [11, 9, 8]])) - grid_of(3).centre_mm
        assert scales[:3].max() <= np.linalg.norm(corners, axis=1).max() ** 2 * (1 + 1e-3)


def test_no_point_moves_farther_than_the_shift_of_a_spline_step():
    geometry = grid_of(3)
    model, parameters = model_and_parameters("bspline", geometry)
    step = np.random.default_rng(0).normal(size=parameters.shape)
    points = geometry.grid_points().reshape(-1, 3)
    moved = model.transform(parameters + step).points(points) - model.transform(parameters).points(points)
    assert np.linalg.norm(moved, axis=1).max() <= model.shift_mm(parameters, step)


def test_a_regular_plan_has_about_as_many_samples_as_asked_for_and_visits_all_starts():
    geometry = Geometry.regular((40, 38, 36), (1.0, 1.0, 3.0))
    plan = SamplingPlan(geometry, "regular", 2000, fresh=True, seed=3)
    sizes = [len(indices_of(plan.draw(i)[1])) for i in range(4)]
    assert 900 < np.mean(sizes) <= 2200
    assert plan.stride[2] < plan.stride[0]  # thick slices are skipped last
    starts = int(np.prod(plan.stride))
    assert sorted(plan.draw(i)[0] for i in range(starts)) == list(range(starts))
    assert [plan.draw(i)[0] for i in range(5)] == [SamplingPlan(geometry, "regular", 2000, fresh=True, seed=3).draw(i)[0] for i in range(5)]


def test_random_samples_stay_inside_the_mask_and_follow_the_seed():
    geometry = Geometry.regular((20, 18, 16))
    mask = np.zeros(geometry.shape, np.uint8)
    mask[4:9, 5:12, 6:15] = 1
    plan = SamplingPlan(geometry, "random", 500, fresh=True, seed=1, mask=mask)
    x, y, z = plan.draw(0)[1].index.T
    assert mask[z, y, x].all()
    assert not np.array_equal(plan.draw(0)[1].index, plan.draw(1)[1].index)
    np.testing.assert_array_equal(plan.draw(0)[1].index, SamplingPlan(geometry, "random", 500, fresh=True, seed=1, mask=mask).draw(0)[1].index)


def test_the_gram_matrices_are_the_integrals_of_products_of_basis_functions():
    fine = np.linspace(1, 7, 60_001)
    basis = cubic_basis(fine, 9)
    first, second = (np.gradient(basis, fine, axis=0) / 2.0, np.gradient(np.gradient(basis, fine, axis=0), fine, axis=0) / 4.0)
    for order, sampled in enumerate((basis, first, second)):
        expected = np.trapezoid(sampled[:, :, None] * sampled[:, None, :], fine, axis=0) / 6
        np.testing.assert_allclose(gram_matrix(9, 2.0, order), expected, atol=3e-4)


def test_bending_energy_is_that_of_a_known_displacement_and_zero_for_affine_ones():
    geometry = Geometry.regular((30, 30, 30))
    model = SplineModel.over(geometry, (5.0,) * 3)
    places = np.moveaxis(model.grid.grid_points(), -1, 0)
    energy = BendingEnergy(model.grid, 2.0)
    affine = np.einsum("ij,jzyx->izyx", np.random.default_rng(0).normal(size=(3, 3)), places) + 4.0
    assert energy(affine.ravel()).value < 1e-12
    # u_x = x²/2 + x y has u_xx = 1 and u_xy = u_yx = 1; the spline x² has coefficients x_i² - h²/3
    bent = np.zeros_like(places)
    bent[0] = (places[0] ** 2 - model.grid.spacing_mm[0] ** 2 / 3) / 2 + places[0] * places[1]
    assert energy(bent.ravel()).value == pytest.approx(2.0 * (1 + 2), rel=1e-9)
