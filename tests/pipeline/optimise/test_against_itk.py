"""Value, derivative and whole runs beside ITK's own v4 metrics and registration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipeline.methods import Pair, Run
from pipeline.optimise.method import OptimiserLoop
from pipeline.optimise.models import Model, SplineModel, linear_model
from pipeline.optimise.moving import MovingImage
from pipeline.optimise.objective import Objective
from pipeline.optimise.plans import SamplingPlan
from pipeline.optimise.similarities import SIMILARITIES, Level
from pipeline.resampling import warp
from pipeline.transforms import Linear, from_itk, to_itk
from pipeline.volumes import Geometry, Volume
from pipeline.volumes import to_itk as image_to_itk

METRICS = {
    "mean-squares": "MeanSquaresImageToImageMetricv4",
    "ncc": "CorrelationImageToImageMetricv4",
    "mi": "MattesMutualInformationImageToImageMetricv4",
}
BINS = 24


def blobs(shape: tuple[int, ...], seed: int, sigma: float = 2.5) -> np.ndarray:
    array = gaussian_filter(np.random.default_rng(seed).random(shape), sigma, mode="wrap")
    return (array - array.min()) / np.ptp(array)


def pair(dimension: int) -> tuple[Volume, Volume]:
    """The moving image reaches far beyond the fixed one: at its border ITK's differences are one-sided or zero."""
    fixed = Volume(blobs((18, 20, 22)[-dimension:], 1), Geometry.regular((22, 20, 18)[:dimension], (1.0, 1.2, 1.5)[:dimension]))
    grid = Geometry.regular((40, 40, 40)[:dimension], (1.1, 1.0, 1.3)[:dimension])
    turn = np.eye(dimension)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    grid = replace(grid, origin_mm=tuple((turn @ np.asarray(grid.origin_mm)).tolist()), direction=tuple(map(tuple, turn.tolist())))
    return fixed, Volume(blobs((40, 40, 40)[-dimension:], 2), grid)


def model_of(kind: str, fixed: Geometry) -> tuple[Model, np.ndarray]:
    rng = np.random.default_rng(4)
    if kind == "bspline":
        model = SplineModel.over(fixed, (8.0,) * fixed.dimension, dtype=torch.float64)
        return model, rng.normal(0, 0.6, model.initial().shape)
    model = linear_model(kind, fixed)
    return model, model.initial() + rng.normal(0, 0.03, model.initial().shape)


def our_objective(similarity: str, images: tuple[Volume, Volume], model: Model) -> Objective:
    fixed, moving = images
    image = MovingImage.of(moving, gradient="central", dtype=torch.float64)
    level = Level(image, fixed.geometry.spacing_mm[::-1])
    settings = OptimiserLoop(similarity=similarity, bins=BINS)
    return Objective(
        model=model,
        fixed=torch.from_numpy(fixed.array),
        moving=image,
        plan=SamplingPlan(fixed.geometry, dtype=torch.float64),
        make_similarity=lambda samples: SIMILARITIES[similarity].make(samples, settings, level),
        after=Linear.identity(fixed.dimension),
    )


def itk_metric(similarity: str, images: tuple[Volume, Volume]):
    import itk

    image = itk.Image[itk.D, images[0].dimension]
    metric = getattr(itk, METRICS[similarity])[image, image].New()
    metric.SetUseMovingImageGradientFilter(False)
    metric.SetUseFixedImageGradientFilter(False)
    if similarity == "mi":
        metric.SetNumberOfHistogramBins(BINS)
    return metric


def itk_evaluation(similarity: str, images: tuple[Volume, Volume], transform) -> tuple[float, np.ndarray]:
    import itk

    metric = itk_metric(similarity, images)
    metric.SetFixedImage(image_to_itk(images[0], np.float64))
    metric.SetMovingImage(image_to_itk(images[1], np.float64))
    metric.SetMovingTransform(transform)
    metric.Initialize()
    value = metric.GetValue()
    derivative = itk.Array[itk.D](metric.GetNumberOfParameters())
    metric.GetDerivative(derivative)
    # ITK's v4 metrics give the direction of descent
    return value, -np.array([derivative.GetElement(i) for i in range(derivative.Size())])


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("kind", ["translation", "rigid", "similarity", "affine", "bspline"])
@pytest.mark.parametrize("similarity", METRICS)
def test_value_and_derivative_agree_with_itks_metric(similarity, kind, dimension):
    images = pair(dimension)
    model, parameters = model_of(kind, images[0].geometry)
    value, derivative = our_objective(similarity, images, model)(parameters)
    expected, itks = itk_evaluation(similarity, images, to_itk(model.transform(parameters)))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    if (kind, dimension) == ("similarity", 3):  # ITK's parameters are a versor, ours Euler angles: only translation and scale are the same
        derivative, itks = derivative[3:], itks[3:]
    assert np.linalg.norm(derivative - itks) <= 1e-3 * np.linalg.norm(itks)


def deformed_pair(kind: str) -> tuple[Volume, Volume]:
    """An image, and the same one moved by a known transform, both smooth to their borders."""
    grid = Geometry.regular((32, 30, 28) if kind == "rigid" else (20, 18, 16), (1.5, 1.5, 2.0))
    array = blobs(grid.shape, 9, 2.0)
    model, parameters = (linear_model(kind, grid), np.array([0.04, -0.03, 0.06, 1.5, -1.0, 0.8])) if kind == "rigid" else model_of(kind, grid)
    inside = Volume(array * window(array.shape), grid)
    return warp(inside, model.transform(parameters), grid, interpolation="cubic"), inside.with_array(inside.array.astype(np.float32))


def window(shape: tuple[int, ...]) -> np.ndarray:
    ramps = [np.clip(np.minimum(np.arange(n), n - 1 - np.arange(n)) / 5, 0, 1) for n in shape]
    return ramps[0][:, None, None] * ramps[1][:, None] * ramps[2]


def itk_run(images: tuple[Volume, Volume], initial, *, learning_rate: float, iterations: int, scales: np.ndarray, levels: int):
    import itk

    image = itk.Image[itk.D, 3]
    method = itk.ImageRegistrationMethodv4[image, image].New()
    method.SetFixedImage(image_to_itk(images[0], np.float64))
    method.SetMovingImage(image_to_itk(images[1], np.float64))
    optimiser = itk.RegularStepGradientDescentOptimizerv4.New()
    optimiser.SetLearningRate(learning_rate)
    optimiser.SetRelaxationFactor(0.8)
    optimiser.SetMinimumStepLength(1e-3)
    optimiser.SetGradientMagnitudeTolerance(1e-10)
    optimiser.SetMinimumConvergenceValue(-1e10)
    optimiser.SetNumberOfIterations(iterations)
    optimiser.SetDoEstimateLearningRateOnce(False)
    optimiser.SetDoEstimateScales(False)
    itk_scales = itk.OptimizerParameters[itk.D](len(scales))
    for index, scale in enumerate(scales.tolist()):
        itk_scales.SetElement(index, scale)
    optimiser.SetScales(itk_scales)
    method.SetOptimizer(optimiser)
    method.SetMetric(itk_metric("mean-squares", images))
    method.SetInitialTransform(initial)
    method.InPlaceOn()
    method.SetNumberOfLevels(levels)
    method.SetShrinkFactorsPerLevel([2 ** (levels - 1 - k) for k in range(levels)])
    method.SetSmoothingSigmasPerLevel([1.0 * (levels - 1 - k) for k in range(levels)])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(False)
    method.Update()
    return from_itk(method.GetModifiableTransform())


@pytest.mark.parametrize("kind", ["rigid", "bspline"])
def test_a_whole_run_with_mean_squares_ends_where_itks_registration_ends(kind):
    images = deformed_pair(kind)
    grid = images[0].geometry
    levels, rate, iterations = (2, 0.5, 200) if kind == "rigid" else (1, 3.0, 40)
    settings = OptimiserLoop(
        similarity="mean-squares",
        bending_weight=0,
        stages=(kind,),
        levels=levels,
        iterations=iterations,
        optimiser="regular-step",
        learning_rate=rate,
        sampling="dense",
        fresh=False,
        image_gradient="central",
        control_point_spacing_mm=8.0,
    )
    ours = settings.register(Pair(*images), Run())
    model, start = model_of(kind, grid)
    itks = itk_run(
        images, to_itk(model.transform(model.initial())), learning_rate=rate, iterations=iterations, scales=model.scales(start), levels=levels
    )
    points = grid.grid_points()[4:-4, 4:-4, 4:-4].reshape(-1, 3)
    moved = np.linalg.norm(ours.points(points) - points, axis=1)
    apart = np.linalg.norm(ours.points(points) - itks.points(points), axis=1)
    assert moved.mean() > 0.25
    assert apart.max() <= 0.05
