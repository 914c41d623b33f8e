from __future__ import annotations

import numpy as np
import pytest
import torch
from similarity_examples import holes, samples, value_and_gradient

from metrics.similarity.intensity import Correlation, MeanSquares, correlation, mean_squares

METRICS = {"mean squares": MeanSquares, "correlation": Correlation}
PLAIN = {MeanSquares: mean_squares, Correlation: correlation}
SHAPES = {"samples": (30,), "2-D": (2, 1, 5, 6), "3-D": (2, 1, 3, 4, 5)}
each_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


# ---- by hand


def test_mean_squares_of_three_samples_by_hand():
    fixed, warped = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 3.0, 1.0])
    value, gradient = value_and_gradient(MeanSquares(fixed), warped)
    assert value == pytest.approx(10 / 3)
    np.testing.assert_allclose(gradient, [0, 2 / 3, -2], rtol=1e-6)
    assert mean_squares(fixed, warped, mask=torch.tensor([1.0, 2.0, 1.0])) == pytest.approx((2 * 1 + 9) / 4)


def test_correlation_of_three_samples_by_hand():
    # deviations (-1 0 1) and (-1 2 -1): no correlation; (-1 0 1) and (-3 1 2): 25 / (2 * 14)
    fixed = torch.tensor([1.0, 2.0, 3.0])
    assert correlation(fixed, torch.tensor([0.0, 3.0, 0.0])) == pytest.approx(0, abs=1e-7)
    assert correlation(fixed, torch.tensor([0.0, 4.0, 5.0])) == pytest.approx(-25 / 28)


def test_correlation_is_the_squared_coefficient_of_numpy():
    fixed, warped = samples((50,)), samples((50,), 1)
    assert correlation(fixed, warped) == pytest.approx(-(np.corrcoef(fixed, warped)[0, 1] ** 2))
    weight = holes((50,))
    covariance = np.cov(np.stack([fixed, warped]), aweights=weight)
    assert correlation(fixed, warped, mask=weight) == pytest.approx(-(covariance[0, 1] ** 2) / covariance[0, 0] / covariance[1, 1])


# ---- against ITK


@pytest.mark.parametrize(("metric", "name"), [(MeanSquares, "MeanSquares"), (Correlation, "Correlation")])
def test_value_and_derivative_are_those_of_itk(metric, name):
    itk = pytest.importorskip("itk")
    fixed, moving = samples((6, 7, 8), dtype=torch.float32).numpy(), np.zeros((6, 7, 8), np.float32)
    moving[2:-2, 2:-2, 2:-2] = np.random.default_rng(3).uniform(size=(2, 3, 4))  # flat at the border, where image gradients are a matter of taste
    image, transform = itk.Image[itk.F, 3], itk.TranslationTransform[itk.D, 3].New()
    theirs = getattr(itk, f"{name}ImageToImageMetricv4")[image, image].New(
        FixedImage=itk.image_from_array(fixed), MovingImage=itk.image_from_array(moving), MovingTransform=transform
    )
    theirs.SetVirtualDomainFromImage(itk.image_from_array(fixed))
    theirs.SetUseMovingImageGradientFilter(False)
    theirs.SetUseFixedImageGradientFilter(False)
    theirs.Initialize()
    value, gradient = value_and_gradient(metric(torch.from_numpy(fixed)), torch.from_numpy(moving))
    assert value == pytest.approx(theirs.GetValue(), rel=1e-5)
    derivative = itk.Array[itk.D](3)
    theirs.GetDerivative(derivative)
    slopes = np.gradient(moving.astype(float))[::-1]
    # ITK's derivative points downhill
    np.testing.assert_allclose([-(gradient.numpy() * s).sum() for s in slopes], [derivative[i] for i in range(3)], rtol=1e-4)


# ---- gradients


@each_metric
@each_shape
def test_the_gradient_is_that_of_finite_differences(metric, shape):
    fixed, warped, weight = samples(shape), samples(shape, 1).requires_grad_(), holes(shape)
    assert torch.autograd.gradcheck(metric(fixed), warped)
    assert torch.autograd.gradcheck(metric(fixed, mask=weight), warped)
    assert torch.autograd.gradcheck(lambda image: metric(fixed)(image, weight), warped)


@each_metric
def test_the_fixed_image_gets_no_gradient(metric):
    fixed, warped = samples((9,)).requires_grad_(), samples((9,), 1)
    assert not metric(fixed)(warped).requires_grad


@pytest.mark.parametrize("level", [0.0, 0.1, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_correlation_with_a_constant_image_is_zero_with_zero_gradient(level, dtype):
    flat, textured = torch.full((1001,), level, dtype=dtype), samples((1001,), dtype=dtype)
    weight = holes((1001,)).to(dtype)
    for fixed, warped in ((flat, textured), (textured, flat), (flat, flat)):
        for mask in (None, weight):
            value, gradient = value_and_gradient(Correlation(fixed, mask=mask), warped)
            assert value == 0
            assert not gradient.any()


# ---- properties


def test_correlation_is_blind_to_a_linear_map_and_its_sign():
    fixed, warped = samples((40,)), samples((40,), 1)
    value = correlation(fixed, warped)
    assert -1 < value < 0
    assert correlation(fixed, 3 - 7 * warped) == pytest.approx(value.item())
    assert correlation(fixed, 2 - fixed) == pytest.approx(-1)


def test_correlation_keeps_its_precision_far_from_zero():
    fixed, warped = samples((5000,)), samples((5000,), 1) + samples((5000,))
    assert correlation(fixed.float() + 1000, warped.float() + 1000) == pytest.approx(correlation(fixed, warped).item(), rel=1e-3)


@each_metric
def test_weight_zero_is_the_same_as_leaving_the_sample_out(metric):
    fixed, warped, weight = samples((60,)), samples((60,), 1), holes((60,))
    kept = weight > 0
    expected, slopes = value_and_gradient(metric(fixed[kept], mask=weight[kept]), warped[kept])
    fixed[~kept], warped[~kept] = torch.nan, torch.inf
    for prepared, mask in ((metric(fixed, mask=weight), None), (metric(fixed, mask=kept), weight), (metric(fixed.nan_to_num()), weight)):
        value, gradient = value_and_gradient(prepared, warped, mask)
        assert value == pytest.approx(expected.item())
        np.testing.assert_allclose(gradient[kept], slopes, rtol=1e-9, atol=1e-15)
        assert not gradient[~kept].any()


@each_metric
def test_weights_of_one_are_no_weights(metric):
    fixed, warped = samples((60,)), samples((60,), 1)
    assert metric(fixed, mask=torch.ones(60))(warped) == pytest.approx(metric(fixed)(warped).item())


@each_metric
def test_the_order_of_samples_does_not_matter(metric):
    fixed, warped, order = samples((60,)), samples((60,), 1), torch.randperm(60)
    value, gradient = value_and_gradient(metric(fixed), warped)
    shuffled, slopes = value_and_gradient(metric(fixed[order]), warped[order])
    assert shuffled == pytest.approx(value.item())
    np.testing.assert_allclose(slopes, gradient[order], rtol=1e-9)


@each_metric
def test_a_batch_gives_the_mean_of_its_items(metric):
    fixed, warped, weight = samples((3, 1, 4, 5)), samples((3, 1, 4, 5), 1), holes((3, 1, 4, 5))
    one_by_one = [PLAIN[metric](f, w, mask=m) for f, w, m in zip(fixed, warped, weight, strict=True)]
    assert PLAIN[metric](fixed, warped, mask=weight) == pytest.approx(np.mean(one_by_one))
    shared = [PLAIN[metric](f, w, mask=weight[0]) for f, w in zip(fixed, warped, strict=True)]
    assert PLAIN[metric](fixed, warped, mask=weight[:1]) == pytest.approx(np.mean(shared))


# ---- errors


@each_metric
def test_shapes_that_differ_are_refused(metric):
    with pytest.raises(ValueError, match=r"fixed \(5,\) and warped \(6,\); expected one shape"):
        metric(samples((5,)))(samples((6,)))
    with pytest.raises(ValueError, match=r"mask of shape \(4,\) for samples \(5,\)"):
        metric(samples((5,)), mask=torch.ones(4))
    with pytest.raises(ValueError, match=r"mask of shape \(4,\) for samples \(5,\)"):
        metric(samples((5,)))(samples((5,)), torch.ones(4))


@each_metric
def test_an_empty_mask_is_refused(metric):
    first = torch.tensor([1.0, 0, 0])
    with pytest.raises(ValueError, match="the mask is empty"):
        metric(samples((3,)), mask=torch.zeros(3))
    with pytest.raises(ValueError, match="the mask is empty"):
        metric(samples((3,)), mask=first)(samples((3,)), 1 - first)
    one_item = torch.stack([torch.ones(1, 2, 2), torch.zeros(1, 2, 2)])
    with pytest.raises(ValueError, match="the mask is empty"):
        metric(samples((2, 1, 2, 2)), mask=one_item)
