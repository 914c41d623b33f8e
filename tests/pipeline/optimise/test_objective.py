"""The derivative of every similarity under every transform model against finite differences, and masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from nets.patch_cnn import PatchCnn
from pipeline.errors import ConcordError
from pipeline.optimise.bending import BendingEnergy
from pipeline.optimise.method import OptimiserLoop
from pipeline.optimise.models import SplineModel, linear_model
from pipeline.optimise.moving import MovingImage
from pipeline.optimise.network import TrainedMetric
from pipeline.optimise.objective import Objective
from pipeline.optimise.plans import SamplingPlan
from pipeline.optimise.similarities import SIMILARITIES, Level
from pipeline.transforms import Linear
from pipeline.volumes import Geometry, Volume

KINDS = ("translation", "rigid", "similarity", "affine", "bspline")


def images(dimension: int, size: int = 22) -> tuple[Volume, Volume]:
    """A smooth image and another one of other contrast on another, oblique grid."""
    rng = np.random.default_rng(3)
    shape = (size, size - 1, size - 2)[:dimension]
    first = gaussian_filter(rng.random(shape), 2.0)
    first = (first - first.min()) / np.ptp(first)
    second = np.cos(2.5 * first) + 0.2 * gaussian_filter(rng.random(shape), 2.0)
    fixed = Geometry.regular(shape[::-1], (1.0, 1.2, 1.5)[:dimension])
    turn = Linear(*rotated(dimension)).matrix
    moving = Geometry(fixed.size, (1.1, 1.1, 1.4)[:dimension], tuple((turn @ np.asarray(fixed.origin_mm)).tolist()), tuple(map(tuple, turn.tolist())))
    return Volume(first, fixed), Volume(second, moving)


def rotated(dimension: int) -> tuple[np.ndarray, np.ndarray]:
    angle = 0.1
    matrix = np.eye(dimension)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix, np.full(dimension, 0.3)


def objective(similarity: str, kind: str, dimension: int, **changes) -> tuple[Objective, np.ndarray]:
    fixed, moving = images(dimension)
    network = PatchCnn("tiny", dimension).double() if similarity == "patch-cnn" else None
    image = MovingImage.of(moving, dtype=torch.float64)
    level = Level(image, (1.0,) * dimension, TrainedMetric(network, swap=False))
    settings = OptimiserLoop(similarity=similarity, bins=20, patch_grid="overlap", radius_vx=1, dilation_vx=1)
    chosen = SIMILARITIES[similarity]
    plan = {"sampling": "dense", "grid": chosen.grid, "dtype": torch.float64, **changes.pop("plan", {})}
    if kind == "bspline":
        model = SplineModel.over(fixed.geometry, (9.0,) * dimension, dtype=torch.float64)
        parameters = np.random.default_rng(5).normal(0, 0.5, model.initial().shape)
    else:
        model = linear_model(kind, fixed.geometry)
        parameters = model.initial() + np.random.default_rng(5).normal(0, 0.02, model.initial().shape)
    made = Objective(
        model=model,
        fixed=torch.from_numpy(fixed.array),
        moving=image,
        plan=SamplingPlan(fixed.geometry, **plan),
        make_similarity=lambda samples: chosen.make(samples, settings, level),
        after=Linear(*rotated(dimension), "rigid"),
        **changes,
    )
    return made, parameters


def assert_derivative_is_right(made: Objective, parameters: np.ndarray, tolerance: float = 1e-4) -> None:
    """Along the gradient and along random directions."""
    _, gradient = made(parameters)
    assert np.linalg.norm(gradient) > 0
    rng = np.random.default_rng(8)
    scale = np.sqrt(made.model.scales(parameters))
    for direction in (gradient / scale**2, rng.normal(size=parameters.shape) / scale):
        step = 1e-6 * direction / made.model.shift_mm(parameters, direction)
        measured = (made(parameters + step)[0] - made(parameters - step)[0]) / 2
        assert abs(measured - gradient @ step) <= tolerance * np.linalg.norm(gradient * scale) * np.linalg.norm(step / scale)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_derivative_agrees_with_finite_differences_in_3d(similarity, kind):
    torch.manual_seed(0)
    assert_derivative_is_right(*objective(similarity, kind, 3))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", ["similarity", "bspline"])
def test_the_derivative_agrees_with_finite_differences_in_2d(similarity, kind):
    torch.manual_seed(0)
    assert_derivative_is_right(*objective(similarity, kind, 2))


@pytest.mark.parametrize("plan", [{"sampling": "regular", "samples": 900}, {"sampling": "random", "samples": 900}], ids=["regular", "random"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_derivative_is_right_for_fewer_samples_inside_a_mask(plan, kind):
    mask = np.zeros((22, 21, 20), np.uint8)
    mask[4:18, 3:17, 5:16] = 1
    made, parameters = objective("mi", kind, 3, plan={**plan, "mask": mask})
    assert_derivative_is_right(made, parameters)


def test_the_derivative_includes_the_bending_energy():
    made, parameters = objective("mean-squares", "bspline", 3)
    bent, _ = objective("mean-squares", "bspline", 3, penalty=BendingEnergy(made.model.grid, 0.7))
    assert bent(parameters)[0] > made(parameters)[0]
    assert_derivative_is_right(bent, parameters)


@pytest.mark.parametrize("similarity", ["mean-squares", "mi", "mind-ssc"])
def test_what_lies_outside_the_moving_mask_changes_nothing(similarity):
    _, moving = images(3)
    mask = np.zeros(moving.array.shape, np.uint8)
    mask[:, :, :12] = 1
    changed = moving.array.copy()
    changed[:, :, 18:] += 5.0  # far enough from the mask for interpolation and descriptors
    masked = {"moving_mask": MovingImage.of(moving.with_array(mask), dtype=torch.float64)}
    one, parameters = objective(similarity, "rigid", 3, **masked)
    other, _ = objective(similarity, "rigid", 3, **masked)
    object.__setattr__(other, "moving", MovingImage.of(moving.with_array(changed), dtype=torch.float64))
    np.testing.assert_allclose(one(parameters)[0], other(parameters)[0], rtol=1e-9)
    unmasked, _ = objective(similarity, "rigid", 3)
    assert abs(unmasked(parameters)[0] - one(parameters)[0]) > 1e-6


def test_no_sample_inside_the_masks_is_an_error_that_says_what_to_do():
    _, moving = images(3)
    nothing = MovingImage.of(moving.with_array(np.zeros(moving.array.shape, np.uint8)), dtype=torch.float64)
    made, parameters = objective("mi", "rigid", 3, moving_mask=nothing)
    with pytest.raises(ConcordError, match=r"0 samples are left inside both images and masks.*enlarge the masks"):
        made(parameters)


def test_central_differences_are_those_of_the_interpolated_image_half_a_voxel_to_either_side():
    _, moving = images(3)
    image = MovingImage.of(moving, dtype=torch.float64, gradient="central")
    matrix, offset = image.units(Linear.identity(3))
    points = np.random.default_rng(0).uniform(-5, 5, (50, 3))

    def at(points_mm: np.ndarray) -> np.ndarray:
        return image.at(torch.from_numpy(points_mm @ matrix.T + offset)).numpy()

    by_mm = np.stack(
        [(at(points + s / 2 * e) - at(points - s / 2 * e)) / s for s, e in zip(moving.geometry.spacing_mm, np.eye(3), strict=True)], axis=1
    )
    found = image.seen(torch.from_numpy(points @ matrix.T + offset))[1](torch.ones(50, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(found @ matrix, by_mm, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(9, 11, 13), (1, 6, 5), (7, 8)])
def test_values_and_their_derivatives_are_those_of_torch_inside_and_outside(shape, dtype):
    """Second implementation: torch's sampling of the same points, and its derivative by automatic differentiation."""
    rng, d = np.random.default_rng(3), len(shape)
    volume = Volume(rng.normal(size=shape), Geometry.regular(shape[::-1], (1.5,) * d))
    image = MovingImage.of(volume, dtype=dtype)
    points = torch.from_numpy(rng.uniform(-1.3, 1.3, (4000, d))).to(dtype).requires_grad_()
    grid = points.reshape(1, *[1] * (d - 1), -1, d)
    expected = torch.nn.functional.grid_sample(image.samples[None, None], grid, padding_mode="border", align_corners=False).reshape(-1)
    weights = torch.from_numpy(rng.normal(size=4000)).to(dtype)
    (slopes,) = torch.autograd.grad(expected, points, weights)
    near = {"rtol": 0, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 3e-5}
    values, pull = image.seen(points.detach())
    torch.testing.assert_close(values, expected.detach(), **near)
    torch.testing.assert_close(image.at(points.detach()), values, **near)
    # a point that rounding puts on the other side of a voxel's centre has another slope
    assert torch.isclose(pull(weights), slopes, **near).all(1).double().mean() > 0.995


def test_points_that_are_no_number_have_values_that_are_none():
    _, moving = images(3)
    values, _ = MovingImage.of(moving).seen(torch.tensor([[0.0, float("nan"), 0.0], [0.0, 0.0, 0.0], [float("inf"), 0.0, 0.0]]))
    assert values.isnan().tolist() == [True, False, False]


def test_points_are_the_same_in_parts_as_alone():
    _, moving = images(3)
    image = MovingImage.of(moving, dtype=torch.float64)
    points = torch.from_numpy(np.random.default_rng(0).uniform(-1.1, 1.1, (70_000, 3)))
    by_value = torch.arange(70_000, dtype=torch.float64)
    (values, pull), (last, other) = image.seen(points), image.seen(points[-9:])
    torch.testing.assert_close(values[-9:], last, rtol=0, atol=0)
    torch.testing.assert_close(image.at(points), values, rtol=0, atol=1e-12)
    torch.testing.assert_close(pull(by_value)[-9:], other(by_value[-9:]), rtol=0, atol=0)
