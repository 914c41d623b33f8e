"""The discrete start: known minima of synthetic costs, known displacements of images, masks, oblique grids, and what is out of reach."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from nets.patch_cnn import PatchCnn
from pipeline.errors import ConcordError
from pipeline.methods import Pair
from pipeline.optimise.discrete import (
    DiscreteSettings,
    Extended,
    FeatureDifference,
    PatchDissimilarity,
    coupled_convex,
    discrete_spline,
    displacement_costs,
    even_steps_vx,
    node_grid,
    shifts_vx,
    unary_maker,
)
from pipeline.optimise.method import OptimiserLoop
from pipeline.optimise.models import SplineModel, fitted_coefficients
from pipeline.optimise.network import TrainedMetric
from pipeline.optimise.samples import Lattice
from pipeline.transforms import Linear, Transform
from pipeline.volumes import Geometry, Volume

NO_COUPLING = (1e-9,)


def quadratic_costs(minimum: np.ndarray, half_width: int) -> torch.Tensor:
    """Squared distance of every label to the minimum `(d, nodes)`, labels in the order of `shifts_vx`, x fastest."""
    d = minimum.ndim - 1
    labels = np.array(shifts_vx(half_width, (1,) * d))[:, ::-1]
    return torch.as_tensor(np.square(labels.T.reshape(d, -1, *[1] * d) - minimum[:, None]).sum(0))


def oblique(dimension: int, size: int, spacing_mm: float = 1.0) -> Geometry:
    angle = 0.5
    direction = np.eye(dimension)
    direction[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return Geometry((size,) * dimension, (spacing_mm,) * dimension, tuple(range(3, 3 + dimension)), tuple(map(tuple, direction.tolist())))


def texture(points_mm: np.ndarray) -> np.ndarray:
    """An image that is known everywhere: waves in all directions, 6 mm long and longer."""
    rng = np.random.default_rng(4)
    waves = rng.normal(size=(60, points_mm.shape[-1]))
    waves *= rng.uniform(0.3, 1.0, (60, 1)) / np.linalg.norm(waves, axis=1, keepdims=True)
    return np.sin(points_mm @ waves.T + rng.uniform(0, 6.3, 60)).sum(axis=-1).astype(np.float32)


def pair_of(geometry: Geometry, displacement_mm: np.ndarray, **masks: Volume) -> Pair:
    """Images whose true transform adds the displacements to the points of the fixed grid."""
    points = geometry.grid_points()
    return Pair(Volume(texture(points + displacement_mm), geometry), Volume(texture(points), geometry), **masks)


def found_mm(
    pair: Pair, how: DiscreteSettings, *, similarity: str = "mean-squares", spacing_mm: float = 8.0, after: Linear | None = None
) -> np.ndarray:
    """Displacements found on the fixed grid in mm."""
    geometry = pair.fixed.geometry
    model = SplineModel.over(geometry, (spacing_mm,) * geometry.dimension)
    settings = OptimiserLoop(similarity=similarity, radius_vx=1)
    after = after or Linear.identity(geometry.dimension)
    parameters = discrete_spline(pair, model, after=after, make=unary_maker(settings, None, how.stride_vx), how=how)
    return model.transform(parameters).displacement_mm(geometry)


def inner(array: np.ndarray, border: int = 5) -> np.ndarray:
    return array[(slice(border, -border),) * (array.ndim - 1)]


def smooth_displacement(geometry: Geometry, amplitude_mm: float) -> np.ndarray:
    """Half a wave along each image axis, another one for each component."""
    index = geometry.index_at(geometry.grid_points()) / np.asarray(geometry.size)
    return amplitude_mm * np.stack([np.sin(np.pi * index[..., a - 1] + 0.7 * a) for a in range(geometry.dimension)], axis=-1)


# costs whose minimum is known


@pytest.mark.parametrize("dimension", [2, 3])
def test_a_minimum_between_labels_is_found_exactly(dimension):
    true = np.array([1.3, -0.8, 2.1])[:dimension].reshape(-1, *[1] * dimension) * np.ones((dimension, *(5, 6, 7)[:dimension]))
    found = coupled_convex(quadratic_costs(true, 3), torch.ones(true.shape[1:], dtype=torch.float64), DiscreteSettings())
    np.testing.assert_allclose(found.numpy(), true, atol=1e-6)


def test_without_refinement_labels_are_whole():
    true = np.full((2, 5, 5), 1.3)
    found = coupled_convex(quadratic_costs(true, 2), torch.ones(5, 5, dtype=torch.float64), DiscreteSettings(half_width=2, refine=False))
    np.testing.assert_allclose(found.numpy(), 1.0, atol=1e-9)


def test_components_are_x_y_z_though_labels_count_z_y_x():
    cost = torch.ones(125, 4, 4, 4)
    cost[shifts_vx(2, (1, 1, 1)).index((-1, 0, 2))] = 0
    found = coupled_convex(cost, torch.ones(4, 4, 4), DiscreteSettings(half_width=2, refine=False))
    np.testing.assert_allclose(found.reshape(3, -1).T, np.tile([2.0, 0, -1], (64, 1)), atol=1e-6)


def test_each_round_takes_the_least_of_cost_and_distance_to_the_smooth_field():
    """Against loops over nodes and labels, one round after the other."""
    rng, how = np.random.default_rng(2), DiscreteSettings(half_width=1, coupling=(0.2, 2.0), depth=1.0, refine=False)
    cost, labels = rng.random((9, 4, 5)), np.array(shifts_vx(1, (1, 1)))[:, ::-1]
    scaled = cost / (cost.mean(0) - cost.min(0)).mean()

    def chosen(total):
        return np.array([[labels[total[:, i, j].argmin()] for j in range(5)] for i in range(4)], float)

    def smoothed(field):
        return np.array([[field[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean(axis=(0, 1)) for j in range(5)] for i in range(4)])

    field = smoothed(chosen(scaled))
    for weight in how.coupling:
        field = smoothed(chosen(scaled + weight * np.square(labels[:, None, None] - field).sum(-1)))
    found = coupled_convex(torch.as_tensor(cost), torch.ones(4, 5, dtype=torch.float64), how)
    np.testing.assert_allclose(np.moveaxis(found.numpy(), 0, -1), field, atol=1e-5)


def test_a_minimum_out_of_reach_leaves_the_labels_at_the_edge():
    found = coupled_convex(quadratic_costs(np.full((2, 5, 5), 7.0), 2), torch.ones(5, 5, dtype=torch.float64), DiscreteSettings(half_width=2))
    np.testing.assert_allclose(found.numpy(), 2.0, atol=1e-9)


def test_a_stray_minimum_gives_way_to_its_neighbours():
    true = np.ones((2, 9, 9))
    true[:, 4, 4] = -3
    cost, support = quadratic_costs(true, 3), torch.ones(9, 9, dtype=torch.float64)
    alone = coupled_convex(cost, support, DiscreteSettings(coupling=NO_COUPLING))[0, 4, 4]
    together = coupled_convex(cost, support, DiscreteSettings(depth=0.3))[0, 4, 4]
    assert alone < 0.6 < 0.7 < together


def test_control_points_without_data_take_their_neighbours_mean():
    true = np.full((2, 8, 8), 2.0)
    cost, support = quadratic_costs(true, 3), torch.ones(8, 8, dtype=torch.float64)
    cost[:, 3:5, 3:5], support[3:5, 3:5] = 0, 0
    np.testing.assert_allclose(coupled_convex(cost, support, DiscreteSettings()).numpy(), 2.0, atol=0.02)


def test_the_unit_of_a_similarity_does_not_matter():
    rng = np.random.default_rng(1)
    cost, support = torch.as_tensor(rng.random((25, 6, 6))), torch.ones(6, 6, dtype=torch.float64)
    how = DiscreteSettings(half_width=2)
    torch.testing.assert_close(coupled_convex(cost, support, how), coupled_convex(1000 * cost - 7, support, how))


# costs from images


def test_the_cost_of_a_label_is_the_weighted_mean_over_the_control_point():
    """Against the B-spline's weights written out, one control point and label, with both masks."""
    geometry, rng = Geometry.regular((12, 11), (1.0, 1.0)), np.random.default_rng(0)
    fixed, moving = torch.as_tensor(rng.random((1, 1, 11, 12))), torch.as_tensor(rng.random((1, 1, 15, 16)))
    mask = torch.as_tensor(rng.random((11, 12)) > 0.2)
    inside = Extended(torch.as_tensor(rng.random((1, 1, 15, 16)) > 0.2).double(), (2, 2))
    grid = SplineModel.over(geometry, (3.0, 3.0)).grid
    unary = FeatureDifference(fixed, Extended(moving, (2, 2)), geometry, 1)
    cost, support = displacement_costs(unary, grid, shifts_vx(2, (1, 1)), fixed_mask=mask, inside=inside)
    weight, unit = np.zeros((11, 12)), np.zeros(grid.shape)
    unit[3, 2] = 1
    lattice = Lattice(geometry, (1, 1), (0, 0), torch.float64)
    weight = lattice.spline(torch.as_tensor(unit)[None], grid).reshape(11, 12)
    there = (slice(2 + 1, 2 + 1 + 11), slice(2 - 2, 2 - 2 + 12))  # one down, two to the left
    weighted = weight * mask * inside.tensor[0, 0][there]
    difference = (moving[0, 0][there] - fixed[0, 0]).square()
    assert cost[shifts_vx(2, (1, 1)).index((1, -2)), 3, 2] == pytest.approx(float((weighted * difference).sum() / weighted.sum()))
    assert 0 < support[3, 2] < 1


def test_a_label_that_leaves_the_moving_image_costs_as_much_as_the_worst_other():
    geometry = Geometry.regular((16, 16), 1.0)
    fixed = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    moving = torch.arange(22, dtype=torch.float64).expand(1, 1, 22, 22)
    inside = torch.ones(1, 1, 22, 22, dtype=torch.float64)
    inside[..., 16:] = 0
    unary = FeatureDifference(fixed, Extended(moving, (3, 3)), geometry, 1)
    shifts = shifts_vx(3, (1, 1))
    cost, _ = displacement_costs(unary, SplineModel.over(geometry, (4.0, 4.0)).grid, shifts, inside=Extended(inside, (3, 3)))
    right = cost[[shifts.index((0, k)) for k in range(-3, 4)], 3, -3]
    assert right[-1] == right.max() == right[-2] and right.argmin() == 0


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_strided_windows_are_those_of_the_moved_image(stride):
    geometry = Geometry.regular((9, 8, 7), 1.0)
    extended = Extended(torch.rand(1, 2, 11, 12, 15), (2, 2, 3))
    lattice = Lattice(geometry, (stride,) * 3, (stride - 1,) * 3)
    for shift in [(0, 0, 0), (-2, 1, 3), (2, -2, -3)]:
        (z, y, x), every = np.add(shift, (2, 2, 3)), slice(stride - 1, None, stride)
        moved = extended.tensor[:, :, z : z + 7, y : y + 8, x : x + 9]
        torch.testing.assert_close(extended.on(lattice, shift), moved[:, :, every, every, every])


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("similarity", ["mean-squares", "mind", "mind-ssc"])
def test_a_translation_is_recovered_on_an_oblique_grid(similarity, dimension):
    geometry = oblique(dimension, 32, 1.5)
    true = geometry.index_to_physical @ np.array([2.3, -1.6, 0.8])[:dimension]
    found = found_mm(pair_of(geometry, true), DiscreteSettings(), similarity=similarity, spacing_mm=12.0)
    error = np.linalg.norm(inner(found, 8) - true, axis=-1) / 1.5  # in voxels, where nothing left the image
    assert error.mean() < 0.2 and error.max() < 0.35


@pytest.mark.parametrize(
    ("dimension", "similarity", "tolerance"), [(2, "mean-squares", 0.25), (2, "mind-ssc", 0.3), (3, "mean-squares", 0.35), (3, "mind-ssc", 0.3)]
)
def test_a_smooth_deformation_is_recovered(dimension, similarity, tolerance):
    geometry = oblique(dimension, 32)
    true = smooth_displacement(geometry, 2.0)
    error = np.linalg.norm(inner(found_mm(pair_of(geometry, true), DiscreteSettings(), similarity=similarity) - true), axis=-1)
    assert error.mean() < tolerance < 0.15 * np.linalg.norm(inner(true), axis=-1).mean()


def test_parabolas_find_what_lies_between_labels():
    geometry = Geometry.regular((40, 40), 1.0)
    pair = pair_of(geometry, np.array([1.4, -0.6]))
    refined, whole = (inner(found_mm(pair, DiscreteSettings(refine=refine))) - [1.4, -0.6] for refine in (True, False))
    assert np.abs(refined).mean() < 0.1 < 0.3 < np.abs(whole).mean()


def test_steps_of_two_voxels_reach_twice_as_far():
    geometry = Geometry.regular((40, 40), 1.0)
    pair = pair_of(geometry, np.array([4.0, 0.0]))
    near, far = (inner(found_mm(pair, DiscreteSettings(step_vx=step)), 10) - [4.0, 0.0] for step in (1, 2))
    assert np.abs(far).mean() < 0.25 < 0.9 < np.linalg.norm(near, axis=-1).mean()


def test_the_linear_transform_comes_after_the_spline():
    geometry = Geometry.regular((40, 40), 1.0)
    turn = oblique(2, 4).index_to_physical
    after = Linear(turn, np.array([1.0, 2.0]), "rigid")
    true = smooth_displacement(geometry, 1.5)
    points = geometry.grid_points()
    wide = Geometry.regular((60, 60), 1.0)
    pair = Pair(Volume(texture((points + true) @ turn.T + [1.0, 2.0]), geometry), Volume(texture(wide.grid_points()), wide))
    assert np.linalg.norm(inner(found_mm(pair, DiscreteSettings(), after=after) - true), axis=-1).mean() < 0.2


def test_what_lies_outside_the_masks_changes_nothing():
    geometry = Geometry.regular((40, 40), 1.0)
    true = smooth_displacement(geometry, 1.5)
    half = np.zeros((40, 40), np.uint8)
    half[:, :24] = 1
    rng = np.random.default_rng(0)
    masks = {"fixed_mask": Volume(half, geometry), "moving_mask": Volume(half, geometry)}
    pair = pair_of(geometry, true, **masks)
    noisy = []
    for volume in (pair.fixed, pair.moving):
        changed = volume.array.copy()
        changed[:, 25:] = rng.normal(0, 30, (40, 15))  # a column's distance, for what is interpolated
        noisy.append(volume.with_array(changed))
    found, other = found_mm(pair, DiscreteSettings()), found_mm(Pair(*noisy, **masks), DiscreteSettings())
    np.testing.assert_allclose(found, other, atol=1e-5)
    assert np.linalg.norm((found - true)[5:-5, 5:18], axis=-1).mean() < 0.25


def test_masks_that_never_meet_are_an_error():
    geometry = Geometry.regular((40, 40), 1.0)
    left, right = np.zeros((2, 40, 40), np.uint8)
    left[:, :10], right[:, 30:] = 1, 1
    with pytest.raises(ConcordError, match="no control point has data"):
        found_mm(pair_of(geometry, np.zeros(2), fixed_mask=Volume(left, geometry), moving_mask=Volume(right, geometry)), DiscreteSettings())


def test_the_same_images_give_the_same_start_to_the_last_bit():
    pair = pair_of(oblique(2, 32), smooth_displacement(oblique(2, 32), 1.5))
    first, second = (found_mm(pair, DiscreteSettings(), similarity="mind-ssc") for _ in range(2))
    assert np.array_equal(first, second)


# the network


class SquaredDifference(torch.nn.Module):
    """A patch network whose value is the summed |difference| over patches of 5 voxels every 2, by weights set by hand."""

    patch_vx, stride_vx = 5, 2

    def __init__(self) -> None:
        super().__init__()
        first, second = torch.nn.Conv2d(2, 2, 1), torch.nn.Conv2d(2, 1, 5, stride=2)
        first.weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).reshape(2, 2, 1, 1)
        first.bias.data.zero_()
        second.weight.data.fill_(1.0)
        second.bias.data.zero_()
        self.layers = torch.nn.ModuleList([first, second])

    def mirrored(self) -> SquaredDifference:
        return self


def test_a_patch_network_finds_a_deformation_by_its_forward_pass():
    geometry = oblique(2, 44)
    true = smooth_displacement(geometry, 1.5)
    pair, model = pair_of(geometry, true), SplineModel.over(geometry, (8.0, 8.0))
    make = unary_maker(SimpleNamespace(similarity="patch-cnn", most_patches=None, precision="fp32"), TrainedMetric(SquaredDifference(), False), 1)
    parameters = discrete_spline(pair, model, after=Linear.identity(2), make=make, how=DiscreteSettings())
    error = model.transform(parameters).displacement_mm(geometry) - true
    assert np.linalg.norm(inner(error), axis=-1).mean() < 0.25


def test_the_values_of_a_patch_network_stand_at_the_patches_centres():
    torch.manual_seed(0)
    geometry, network = Geometry.regular((27, 24, 22), 1.0), PatchCnn("tiny", 3)
    fixed, moving = torch.rand(1, 1, 22, 24, 27), torch.rand(1, 1, 26, 28, 31)
    unary = PatchDissimilarity(fixed, Extended(moving, (2, 2, 2)), geometry, metric=TrainedMetric(network, False))
    values = unary((1, 0, -2))
    assert values.shape == unary.lattice.shape == (2, 2, 3)
    x, y, z = (axis[-1] for axis in unary.lattice.axes)
    patch = tuple(slice(c - 8, c + 9) for c in (z, y, x))
    moved = tuple(slice(c - 8 + 2 + s, c + 9 + 2 + s) for c, s in ((z, 1), (y, 0), (x, -2)))
    pair = torch.cat([fixed[(..., *patch)], moving[(..., *moved)]], 1)
    with torch.no_grad():
        expected = (network(pair) + network.mirrored()(pair)).item() / 2
    assert values[-1, -1, -1] == pytest.approx(expected, abs=1e-5)


# grids and settings


@pytest.mark.parametrize("halvings", [0, 1, 2])
def test_a_spline_of_the_model_is_fitted_exactly(halvings):
    model = SplineModel.over(oblique(3, 30), (9.0, 10.0, 11.0))
    index = model.grid.index_at(model.grid.grid_points())
    coefficients = np.moveaxis(index @ np.array([[0.3, 0, 1], [0.1, -0.2, 0], [0, 0.5, 0.2]]) + [1, 2, 3], -1, 0)  # linear: no curvature
    nodes = model
    for _ in range(halvings):
        nodes, _ = nodes.refined(nodes.initial())
    displacements = values_at(model.transform(coefficients.ravel()), nodes.grid, index_margin=1)
    np.testing.assert_allclose(fitted_coefficients(displacements, nodes.grid, model.grid), coefficients, atol=1e-6)


def test_a_curved_spline_is_fitted_to_all_but_nothing():
    model = SplineModel.over(oblique(2, 30), (6.0, 6.0))
    coefficients = np.random.default_rng(0).normal(size=(2, *model.grid.shape))
    nodes, _ = model.refined(model.initial())
    displacements = values_at(model.transform(coefficients.ravel()), nodes.grid, index_margin=1)
    np.testing.assert_allclose(fitted_coefficients(displacements, nodes.grid, model.grid), coefficients, atol=1e-3)


def values_at(transform: Transform, nodes: Geometry, *, index_margin: int) -> np.ndarray:
    """Displacements at the nodes `(d, [z,] y, x)`; the outermost ones, beyond the spline's valid box, are told wrong on purpose."""
    points = nodes.grid_points()
    inside = (slice(None), *(slice(index_margin, -index_margin),) * nodes.dimension)
    values = np.full((nodes.dimension, *nodes.shape), 99.0)
    nudged = points + 1e-9 * (nodes.centre_mm - points)  # not a rounding error outside
    found = transform.points(nudged.reshape(-1, nodes.dimension)).reshape(points.shape) - nudged
    values[inside] = np.moveaxis(found, -1, 0)[inside]
    return values


def test_labels_lie_evenly_in_mm():
    assert even_steps_vx(Geometry.regular((8, 8, 8), (0.5, 0.5, 2.2)), 4) == (4, 4, 1)
    assert even_steps_vx(Geometry.regular((8, 8), (1.0, 1.5)), 1) == (1, 1)
    assert shifts_vx(1, (2, 1)) == [(-1, -2), (-1, 0), (-1, 2), (0, -2), (0, 0), (0, 2), (1, -2), (1, 0), (1, 2)]


def test_nodes_refine_the_models_grid_to_about_the_wanted_distance():
    geometry = Geometry.regular((64, 64), 2.0)
    model = SplineModel.over(geometry, (32.0, 32.0))
    assert node_grid(model, geometry, 4).spacing_mm == (8.0, 8.0)
    assert node_grid(model, geometry, 20) == model.grid


def test_a_similarity_without_local_values_is_refused():
    with pytest.raises(ConcordError, match="'mi' has no local value"):
        unary_maker(OptimiserLoop(similarity="mi"), None, 2)


@pytest.mark.parametrize("wrong", [{"half_width": 0}, {"node_vx": 0}, {"coupling": ()}, {"depth": 0.0}, {"cost_smoothings": -1}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        DiscreteSettings(**wrong)
