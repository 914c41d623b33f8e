from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from similarity_examples import holes, samples, value_and_gradient

from metrics.similarity.mutual_information import (
    MattesMutualInformation,
    NormalisedMutualInformation,
    mutual_information,
    normalised_mutual_information,
)

METRICS = {"MI": MattesMutualInformation, "NMI": NormalisedMutualInformation}
PLAIN = {MattesMutualInformation: mutual_information, NormalisedMutualInformation: normalised_mutual_information}
SHAPES = {"samples": (40,), "2-D": (2, 1, 6, 5), "3-D": (2, 1, 3, 4, 5)}
UNIT = (0.0, 1.0)
each_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def related(count, dtype=torch.float64, noise=0.05):
    """Two modalities of one thing: no function maps the second to the first."""
    fixed = samples((count,))
    warped = 0.5 + 0.4 * torch.cos(7 * fixed) + noise * (samples((count,), 1) - 0.5)
    return fixed.to(dtype), warped.to(dtype)


# ---- a second implementation: a weight for each sample and bin


def spline(distance):
    distance = distance.abs()
    near, far = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance) ** 3 / 6
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))


def dense(fixed, warped, *, bins, fixed_range, moving_range, weight=None):
    """-MI and NMI from matrices of Parzen weights, differentiable by autograd."""
    weight = torch.ones_like(fixed) if weight is None else weight
    size = [(high - low) / (bins - 4) for low, high in (fixed_range, moving_range)]
    rows = ((fixed - fixed_range[0]) / size[0] + 2).floor().clamp(2, bins - 3)
    columns = (warped.clamp(*moving_range) - moving_range[0]) / size[1] + 2
    boxes = (rows[:, None] == torch.arange(bins)).double()
    joint = boxes.T @ (weight[:, None] * spline(columns[:, None] - torch.arange(bins))) / weight.sum()
    product = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    some = joint > 0
    entropies = [-(p[p > 0] * p[p > 0].log()).sum() for p in (joint.sum(1), joint.sum(0), joint)]
    return -(joint[some] * (joint[some] / product[some]).log()).sum(), -(entropies[0] + entropies[1]) / entropies[2]


@each_metric
@pytest.mark.parametrize("bins", [6, 16, 75])
@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_gradient_are_those_of_dense_parzen_windows(metric, bins, weighted):
    fixed, warped = related(400)
    weight = holes((400,)) if weighted else None
    fixed_range, moving_range = (fixed[weight > 0] if weighted else fixed).aminmax(), (0.2, 0.85)  # some samples lie outside
    leaf = warped.clone().requires_grad_()
    expected = dense(fixed, leaf, bins=bins, fixed_range=fixed_range, moving_range=moving_range, weight=weight)[list(METRICS.values()).index(metric)]
    slopes = torch.autograd.grad(expected, leaf)[0]
    value, gradient = value_and_gradient(metric(fixed, bins, moving_range=moving_range, mask=weight), warped)
    assert value == pytest.approx(expected.item(), rel=1e-10)
    np.testing.assert_allclose(gradient, slopes, atol=1e-10 * slopes.abs().max())


# ---- by hand


def test_the_histogram_of_one_sample_is_the_spline_by_hand():
    # 4 bins from 0 to 1 within the range; 0.25 lies on the border of two, so that the spline is (1 4 1 0) / 6
    metric = MattesMutualInformation(torch.tensor([0.0, 1.0]), 8, moving_range=UNIT)
    joint = metric._histogram(torch.tensor([0.25, 0.625], dtype=torch.float64), None)[0]
    expected = torch.zeros(4, 8)
    expected[0, 2:5] = torch.tensor([1, 4, 1]) / 12
    expected[3, 3:7] = torch.tensor([1, 23, 23, 1]) / 96
    np.testing.assert_allclose(joint, expected, atol=1e-7)


def test_two_values_that_tell_each_other_share_a_logarithm_of_two():
    # far apart, the moving windows do not overlap: one bit of information
    fixed = torch.tensor([0.0, 1.0]).repeat(50)
    assert mutual_information(fixed, 1 - fixed, bins=20) == pytest.approx(-math.log(2))
    blur = -sum(p * math.log(p) for p in (1 / 6, 4 / 6, 1 / 6))
    assert normalised_mutual_information(fixed, fixed, bins=20) == pytest.approx(-(2 * math.log(2) + blur) / (math.log(2) + blur), rel=1e-5)


# ---- against ITK


def smooth(shape, seed):
    from scipy.ndimage import gaussian_filter

    volume = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return (volume / volume.std()).astype(np.float32)


def itk_metric(fixed, moving, bins):
    itk = pytest.importorskip("itk")
    image, transform = itk.Image[itk.F, 3], itk.TranslationTransform[itk.D, 3].New()
    metric = itk.MattesMutualInformationImageToImageMetricv4[image, image].New(
        FixedImage=itk.image_from_array(fixed), MovingImage=itk.image_from_array(moving), MovingTransform=transform
    )
    metric.SetVirtualDomainFromImage(itk.image_from_array(fixed))
    metric.SetNumberOfHistogramBins(bins)
    metric.SetUseMovingImageGradientFilter(False)
    metric.SetUseFixedImageGradientFilter(False)
    metric.Initialize()
    return itk, metric, transform


@pytest.mark.parametrize("bins", [20, 75])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_derivative_are_those_of_itk(bins, dtype):
    fixed = smooth((14, 16, 18), 0)
    moving = np.zeros_like(fixed)  # flat at the border, where image gradients are a matter of taste
    moving[3:-3, 3:-3, 3:-3] = (np.cos(2 * fixed) + smooth(fixed.shape, 1) / 3)[3:-3, 3:-3, 3:-3]
    itk, theirs, _ = itk_metric(fixed, moving, bins)
    ours = MattesMutualInformation(torch.from_numpy(fixed).to(dtype), bins, moving_range=(float(moving.min()), float(moving.max())))
    value, gradient = value_and_gradient(ours, torch.from_numpy(moving).to(dtype))
    assert value == pytest.approx(theirs.GetValue(), rel=1e-6 if dtype == torch.float32 else 1e-12)
    derivative = itk.Array[itk.D](3)
    theirs.GetDerivative(derivative)
    slopes = np.gradient(moving.astype(float))[::-1]
    # ITK's derivative points downhill
    found = [-(gradient.double().numpy() * s).sum() for s in slopes]
    np.testing.assert_allclose(found, [derivative[i] for i in range(3)], rtol=1e-3 if dtype == torch.float32 else 1e-6)


@pytest.mark.parametrize("shift", [(1, 0, 0), (0, -2, 1), (3, 1, -2)])
def test_the_value_after_a_translation_is_that_of_itk(shift):
    fixed, moving = smooth((14, 16, 18), 0), np.cos(2 * smooth((14, 16, 18), 0)) + smooth((14, 16, 18), 1) / 3
    itk, theirs, transform = itk_metric(fixed, moving, 50)
    parameters = itk.OptimizerParameters[itk.D](3)
    for axis in range(3):
        parameters[axis] = shift[axis]
    transform.SetParameters(parameters)
    here, there = (
        tuple(slice(max(0, s), n + min(0, s)) for s, n in zip(shifts, fixed.shape, strict=True))
        for shifts in ([-s for s in shift[::-1]], shift[::-1])
    )
    ranges = {"fixed_range": (float(fixed.min()), float(fixed.max())), "moving_range": (float(moving.min()), float(moving.max()))}
    ours = mutual_information(torch.from_numpy(fixed[here].copy()), torch.from_numpy(moving[there].copy()), bins=50, **ranges)
    assert ours == pytest.approx(theirs.GetValue(), rel=1e-6)
    # the whole grid with a mask is the same
    inside = np.zeros(fixed.shape, np.float32)
    inside[here] = 1
    warped = np.full(fixed.shape, np.nan, np.float32)
    warped[here] = moving[there]
    masked = MattesMutualInformation(torch.from_numpy(fixed), 50, moving_range=ranges["moving_range"])(
        torch.from_numpy(warped), torch.from_numpy(inside)
    )
    assert masked == pytest.approx(theirs.GetValue(), rel=1e-6)


# ---- gradients


@each_metric
@each_shape
def test_the_gradient_is_that_of_finite_differences(metric, shape):
    fixed, warped, weight = samples(shape), samples(shape, 1).requires_grad_(), holes(shape)
    settings = {"bins": 12, "moving_range": (0.1, 0.93)}
    assert torch.autograd.gradcheck(metric(fixed, **settings), warped)
    assert torch.autograd.gradcheck(metric(fixed, mask=weight, **settings), warped)
    assert torch.autograd.gradcheck(lambda image: metric(fixed, **settings)(image, weight), warped)


@each_metric
def test_values_beyond_the_range_count_as_its_ends_with_zero_gradient(metric):
    fixed, warped = related(300)
    made = metric(fixed, 20, moving_range=(0.3, 0.6))
    value, gradient = value_and_gradient(made, warped)
    outside = (warped < 0.3) | (warped > 0.6)
    assert outside.any()
    assert not gradient[outside].any()
    assert gradient[~outside].all()
    assert made(warped.clamp(0.3, 0.6)) == pytest.approx(value.item(), rel=1e-12)


@each_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [(0.0, 1.0), (-1000.3, 3000.7), (1e4, 0.1)])
def test_the_ends_of_the_range_lie_inside_it(metric, dtype, scale):
    fixed, warped = related(300, dtype)
    warped = scale[0] + scale[1] * warped
    _, gradient = value_and_gradient(metric(fixed, 20), warped)
    assert gradient[warped.argmin()] != 0
    assert gradient[warped.argmax()] != 0


@each_metric
def test_the_fixed_image_gets_no_gradient(metric):
    assert not metric(samples((9,)).requires_grad_(), 8)(samples((9,), 1)).requires_grad


@each_metric
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_an_image_without_contrast_shares_nothing_and_has_no_gradient(metric, level):
    flat, textured = torch.full((100,), level), samples((100,), dtype=torch.float32)
    for fixed, warped in ((flat, textured), (textured, flat), (flat, flat)):
        for moving_range in (UNIT, None):
            value, gradient = value_and_gradient(metric(fixed, 20, moving_range=moving_range), warped)
            assert value == pytest.approx(0 if metric is MattesMutualInformation else -1, abs=1e-6)
            assert gradient.abs().max() < 1e-9


# ---- precision


@each_metric
def test_single_precision_of_many_samples_is_close_to_double(metric):
    fixed, warped = related(400_000)
    fixed[::2], warped[::2] = 0, 0.1  # a background: half of all samples in one cell
    value, gradient = value_and_gradient(metric(fixed.float(), moving_range=UNIT), warped.float())
    expected, slopes = value_and_gradient(metric(fixed.float().double(), moving_range=UNIT), warped.float().double())
    assert value == pytest.approx(expected.item(), rel=1e-6)
    assert (gradient - slopes).abs().max() < 1e-3 * slopes.abs().max()
    assert value.dtype == gradient.dtype == torch.float32


@each_metric
def test_no_order_of_samples_and_no_count_of_threads_changes_a_bit(metric):
    fixed, warped = related(200_000, torch.float32)
    value, gradient = value_and_gradient(metric(fixed), warped)
    order = torch.randperm(len(fixed))
    shuffled, slopes = value_and_gradient(metric(fixed[order]), warped[order])
    assert torch.equal(shuffled, value)
    assert torch.equal(slopes, gradient[order])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        again, same = value_and_gradient(metric(fixed), warped)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again, value)
    assert torch.equal(same, gradient)


# ---- properties


@each_metric
def test_contrast_inversion_changes_nothing(metric):
    fixed, warped = related(2000)
    value = PLAIN[metric](fixed, warped, bins=32)
    assert PLAIN[metric](fixed, 5 - 3 * warped, bins=32) == pytest.approx(value.item(), rel=1e-9)


@each_metric
def test_relabelling_the_moving_values_changes_little(metric):
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 6, 5000)).double()
    other = torch.tensor([4.0, 0, 5, 2, 1, 3], dtype=torch.float64)[labels.long()]
    assert PLAIN[metric](labels, other, bins=64) == pytest.approx(PLAIN[metric](labels, labels, bins=64).item(), rel=0.01)


@each_metric
def test_an_image_is_most_similar_to_itself(metric):
    fixed = samples((3000,))
    own = PLAIN[metric](fixed, fixed, bins=24)
    others = [fixed + amount * (samples((3000,), 5) - 0.5) for amount in (0.2, 1, 5)]
    values = [own, *(PLAIN[metric](fixed, other, bins=24) for other in others)]
    assert values == sorted(values)
    assert values[2] > values[1] + 0.05


def test_normalised_values_lie_between_minus_two_and_minus_one():
    fixed, warped = related(2000)
    for image in (fixed, warped, samples((2000,), 7)):
        assert -2 <= normalised_mutual_information(fixed, image) <= -1


@each_metric
def test_weight_zero_is_the_same_as_leaving_the_sample_out(metric):
    fixed, warped = related(300)
    weight = holes((300,))
    kept = weight > 0
    expected, slopes = value_and_gradient(metric(fixed[kept], 20, mask=weight[kept]), warped[kept])
    fixed_range = tuple(float(v) for v in fixed[kept].aminmax())
    fixed[~kept], warped[~kept] = torch.nan, torch.nan
    for prepared, mask in (
        (metric(fixed, 20, mask=weight), None),
        (metric(fixed, 20, mask=kept), weight),
        (metric(fixed, 20, fixed_range=fixed_range), weight),
    ):
        value, gradient = value_and_gradient(prepared, warped, mask)
        assert value == pytest.approx(expected.item(), rel=1e-12)
        np.testing.assert_allclose(gradient[kept], slopes, rtol=1e-9, atol=1e-15)
        assert not gradient[~kept].any()


@each_metric
@pytest.mark.parametrize("factor", [1e-12, 1.0, 7.0, 1e9])
def test_only_the_ratio_of_weights_counts(metric, factor):
    fixed, warped = related(300)
    weight = holes((300,))
    value, gradient = value_and_gradient(metric(fixed, 20, mask=weight * factor), warped)
    expected, slopes = value_and_gradient(metric(fixed, 20, mask=weight), warped)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-7, atol=1e-14)


@each_metric
def test_a_whole_weight_is_so_many_samples(metric):
    fixed, warped = related(100)
    times = torch.arange(100) % 4
    twice = metric(fixed.repeat_interleave(times), 20, fixed_range=UNIT, moving_range=UNIT)(warped.repeat_interleave(times))
    assert metric(fixed, 20, fixed_range=UNIT, moving_range=UNIT, mask=times)(warped) == pytest.approx(twice.item(), rel=1e-12)


@each_metric
@pytest.mark.parametrize("ranges", [{}, {"moving_range": (0.2, 0.9), "fixed_range": (0.1, 2.0)}])
def test_a_batch_gives_the_mean_of_its_items(metric, ranges):
    shape = (3, 1, 6, 7)
    scale = torch.tensor([1.0, 2.0, 0.5])[:, None, None, None]
    fixed, warped, weight = samples(shape) * scale, samples(shape, 1) / scale, holes(shape)
    one_by_one = [PLAIN[metric](f, w, bins=10, mask=m, **ranges) for f, w, m in zip(fixed, warped, weight, strict=True)]
    assert PLAIN[metric](fixed, warped, bins=10, mask=weight, **ranges) == pytest.approx(np.mean(one_by_one), rel=1e-12)
    leaf = warped.clone().requires_grad_()
    gradient = torch.autograd.grad(PLAIN[metric](fixed, leaf, bins=10, **ranges), leaf)[0]
    alone = warped[1].clone().requires_grad_()
    own = torch.autograd.grad(PLAIN[metric](fixed[1], alone, bins=10, **ranges), alone)[0]
    np.testing.assert_allclose(gradient[1], own / 3, rtol=1e-9, atol=1e-15)


def test_descending_the_gradient_brings_two_modalities_together():
    x = torch.linspace(-1, 1, 60, dtype=torch.float64)
    radius = (x[:, None] ** 2 + x[None] ** 2).sqrt()
    metric = MattesMutualInformation(torch.cos(4 * radius), 32, moving_range=(-2.0, 2.0))
    shift = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([shift], lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        metric(((x[:, None] - shift) ** 2 + x[None] ** 2).sqrt()).backward()
        optimiser.step()
    assert abs(shift.item()) < 0.02


# ---- errors


@each_metric
def test_bad_settings_are_refused(metric):
    with pytest.raises(ValueError, match="4 bins; expected 5 or more"):
        metric(samples((5,)), 4)
    for name in ("fixed_range", "moving_range"):
        with pytest.raises(ValueError, match=rf"{name} \(1.0, 1.0\); expected \(low, high\)"):
            metric(samples((5,)), **{name: (1.0, 1.0)})


@each_metric
def test_shapes_that_differ_are_refused(metric):
    with pytest.raises(ValueError, match=r"fixed \(5,\) and warped \(6,\); expected one shape"):
        metric(samples((5,)))(samples((6,)))
    with pytest.raises(ValueError, match=r"mask of shape \(4,\) for samples \(5,\)"):
        metric(samples((5,)))(samples((5,)), torch.ones(4))


@each_metric
def test_an_empty_mask_is_refused(metric):
    with pytest.raises(ValueError, match="the mask is empty"):
        metric(samples((3,)), mask=torch.zeros(3))
    with pytest.raises(ValueError, match="the mask is empty"):
        metric(samples((3,)))(samples((3,)), torch.zeros(3))


@each_metric
def test_nan_in_the_fixed_image_is_refused_where_it_counts(metric):
    """A bin of its own would be a silent choice."""
    fixed = torch.tensor([0.0, torch.nan, 1.0])
    for range_ in (UNIT, None):
        with pytest.raises(ValueError, match="the fixed image holds NaN"):
            metric(fixed, fixed_range=range_)(samples((3,)))
    assert metric(fixed, mask=torch.tensor([1.0, 0.0, 1.0]))(samples((3,))).isfinite()


@each_metric
def test_nan_in_the_warped_image_is_refused(metric):
    with pytest.raises(ValueError, match="the warped image holds NaN"):
        metric(samples((3,)), moving_range=UNIT)(torch.tensor([0.0, torch.nan, 1.0]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_metric
def test_a_cuda_device_gives_the_same(metric):
    fixed, warped = related(100_000, torch.float32)
    value, gradient = value_and_gradient(metric(fixed, moving_range=UNIT), warped)
    there, slopes = value_and_gradient(metric(fixed.cuda(), moving_range=UNIT), warped.cuda())
    assert there.item() == pytest.approx(value.item(), rel=1e-6)
    assert (slopes.cpu() - gradient).abs().max() < 1e-4 * gradient.abs().max()
    assert torch.equal(metric(fixed.cuda(), moving_range=UNIT)(warped.cuda()), there)
