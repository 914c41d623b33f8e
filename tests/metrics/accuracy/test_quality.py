"""UIQI, SSIM, PSNR and MSE: by hand, block by block, and against scikit-image and MONAI."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import SSIMMetric
from numpy.lib.stride_tricks import sliding_window_view
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio

from metrics.accuracy.quality import mse, psnr_db, ssim, uiqi


def uiqi_by_sums(first: np.ndarray, second: np.ndarray) -> float:
    """The reference program's rule, in whole numbers, block by block: exact, so that its tests for zero are too."""
    size = (8,) * first.ndim
    axes = tuple(range(-first.ndim, 0))
    x, y = (sliding_window_view(a.astype(object), size) for a in (first, second))
    sx, sy, sxx, syy, sxy = (a.sum(axis=axes) for a in (x, y, x * x, y * y, x * y))
    n = 8**first.ndim
    scores = []
    for a, b, aa, bb, ab in zip(*(s.ravel() for s in (sx, sy, sxx, syy, sxy)), strict=True):
        d1, d2 = n * (aa + bb) - (a * a + b * b), a * a + b * b
        scores.append(1 if d2 == 0 else 2 * a * b / d2 if d1 == 0 else 4 * (n * ab - a * b) * a * b / (d1 * d2))
    return float(np.mean(scores))


def test_one_block_by_hand():
    # half 0 and half 2 against half 1 and half 3: means 1 and 2, both variances 1, covariance 1
    first = np.repeat([0.0, 2.0], 32).reshape(8, 8)
    assert uiqi(first, first + 1) == pytest.approx(4 * 1 * 1 * 2 / ((1 + 1) * (1 + 4)))


def test_equal_images_score_one_and_the_negative_of_a_contrast_below_zero():
    image = np.random.default_rng(0).random((20, 24))
    assert uiqi(image, image) == pytest.approx(1.0)
    assert uiqi(image, 1 - image) < -0.8


def test_flat_blocks_are_compared_by_their_means():
    # 0.1 and 0.3 have no exact binary value: sums of squares would make these blocks look rough
    flat = np.full((12, 12), 0.1)
    assert uiqi(flat, 3 * flat) == pytest.approx(2 * 3 / (1 + 9), rel=1e-12)
    assert uiqi(np.full((12, 12), 1e6 + 0.1), np.full((12, 12), 1e6 + 0.1)) == 1.0


def test_a_background_of_exact_zeros_is_perfect_and_a_flat_one_against_texture_is_worthless():
    zeros = np.zeros((10, 10))
    assert uiqi(zeros, zeros) == 1.0
    assert uiqi(np.full((10, 10), 0.7), np.random.default_rng(1).random((10, 10))) == 0.0


def test_zeros_beside_a_bright_object_stay_exact():
    # running sums would leave a residue to the right of the bright part; here those blocks are exactly zero in both
    image = np.zeros((8, 40))
    image[:, :9] = 1e8 * np.random.default_rng(2).random((8, 9))
    shifted = np.roll(image, 1, axis=1)
    expected_ones = 40 - 8 + 1 - 10
    assert uiqi(image[:, 10:], shifted[:, 10:]) == 1.0
    assert uiqi(image, shifted) > (expected_ones - 10) / 33


def test_tiny_texture_on_a_bright_ground_is_still_compared_exactly():
    texture = np.random.default_rng(3).random((16, 16))
    assert uiqi(1e6 + 1e-4 * texture, 1e6 + 1e-4 * texture) == pytest.approx(1.0)
    assert uiqi(1e6 + 1e-4 * texture, 1e6 - 1e-4 * texture) == pytest.approx(-1.0, abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.integers(1, 4), dimension=st.integers(2, 3))
def test_uiqi_agrees_with_the_reference_rule_in_whole_numbers(seed, levels, dimension):
    random = np.random.default_rng(seed)
    first, second = random.integers(0, levels, (2, *(11, 9, 8)[:dimension]))
    first[:8], second[:, :8] = first[:8] * random.integers(0, 2), second[:, :8] * random.integers(0, 2)
    assert uiqi(first, second) == pytest.approx(uiqi_by_sums(first, second), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_uiqi_is_symmetric_bounded_and_blind_to_a_common_scale(seed, scale):
    first, second = np.random.default_rng(seed).random((2, 9, 10))
    value = uiqi(first, second)
    assert -1 <= value <= 1
    assert uiqi(second, first) == pytest.approx(value)
    assert uiqi(scale * first, scale * second) == pytest.approx(value)


@pytest.mark.parametrize("shape", [(24, 20), (14, 13, 15)])
def test_ssim_agrees_with_a_windowed_sum_written_out(shape):
    # 11 taps of a Gaussian of 1.5, weighted moments without the sample correction
    first, second = np.random.default_rng(4).random((2, *shape))
    second = 0.6 * first + 0.4 * second
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = taps / taps.sum()
    for _ in shape[1:]:
        weights = np.multiply.outer(weights, taps / taps.sum())
    axes = tuple(range(-first.ndim, 0))
    x, y = (sliding_window_view(a, weights.shape) for a in (first, second))
    mx, my = (x * weights).sum(axes), (y * weights).sum(axes)
    vx, vy, cov = (x * x * weights).sum(axes) - mx**2, (y * y * weights).sum(axes) - my**2, (x * y * weights).sum(axes) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    expected = ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    assert ssim(first, second, data_range=1.0) == pytest.approx(expected, rel=1e-9)


def test_ssim_agrees_with_monai():
    first, second = np.random.default_rng(5).random((2, 20, 22))
    tensors = [torch.from_numpy(a)[None, None] for a in (first, second)]
    expected = SSIMMetric(spatial_dims=2, data_range=torch.tensor(1.0), win_size=11, kernel_sigma=1.5)(*tensors).item()
    assert ssim(first, second, data_range=1.0) == pytest.approx(expected, abs=1e-5)


def test_ssim_of_equal_images_is_one_and_depends_on_the_range():
    first, second = np.random.default_rng(6).random((2, 16, 16))
    assert ssim(first, first, data_range=1.0) == 1.0
    assert ssim(first, second, data_range=100.0) > ssim(first, second, data_range=1.0)


def test_mse_and_psnr_by_hand_and_by_scikit_image():
    first, second = np.array([[0.0, 1.0]]), np.array([[0.0, 0.8]])
    assert mse(first, second) == pytest.approx(0.02) == pytest.approx(mean_squared_error(first, second))
    assert psnr_db(first, second, data_range=1.0) == pytest.approx(10 * np.log10(50))
    assert psnr_db(first, second, data_range=4.0) == pytest.approx(peak_signal_noise_ratio(first, second, data_range=4.0))
    assert psnr_db(first, first, data_range=1.0) == np.inf


def test_unsigned_samples_do_not_wrap_around():
    assert mse(np.array([[10]], np.uint8), np.array([[250]], np.uint8)) == 240**2


def test_images_that_do_not_fit_are_refused():
    image = np.zeros((12, 12))
    with pytest.raises(ValueError, match="at least 8"):
        uiqi(image[:7], image[:7])
    with pytest.raises(ValueError, match="at least 11"):
        ssim(image[:10], image[:10], data_range=1.0)
    with pytest.raises(ValueError, match="images of shape"):
        mse(image, image[:5])
    with pytest.raises(ValueError, match="NaN"):
        uiqi(image, np.full((12, 12), np.nan))
    with pytest.raises(ValueError, match="data range 0"):
        psnr_db(image, image, data_range=0)
