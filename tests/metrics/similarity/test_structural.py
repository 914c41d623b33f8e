"""Structural similarity against the measure that is reported, by hand, and against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from metrics.accuracy.quality import ssim
from metrics.similarity.structural import structural_similarity

each_dimension = pytest.mark.parametrize("dimension", [2, 3])


def pair(dimension, seed=0, edge=16):
    rng = np.random.default_rng(seed)
    first = gaussian_filter(rng.random((edge, edge - 3, edge + 2)[:dimension]), 1)
    return first, np.clip(first + 0.05 * rng.normal(size=first.shape), 0, 1)


def tensors(*images):
    return tuple(torch.from_numpy(image)[None, None] for image in images)


@each_dimension
@pytest.mark.parametrize("data_range", [1.0, 0.3])
def test_it_is_the_reported_measure(dimension, data_range):
    first, second = pair(dimension)
    found = structural_similarity(*tensors(first, second), data_range=data_range)
    assert found.item() == pytest.approx(ssim(first, second, data_range=data_range), abs=1e-10)
    assert found < 0.95


def test_one_window_by_hand():
    first, second = pair(2, edge=16)
    first, second = first[:11, :11], second[:11, :11]
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weight = np.outer(line, line) / line.sum() ** 2
    m1, m2 = (weight * first).sum(), (weight * second).sum()
    v1, v2, cov = ((weight * a * b).sum() - ma * mb for a, b, ma, mb in ((first, first, m1, m1), (second, second, m2, m2), (first, second, m1, m2)))
    expected = (2 * m1 * m2 + 1e-4) * (2 * cov + 9e-4) / ((m1**2 + m2**2 + 1e-4) * (v1 + v2 + 9e-4))
    assert structural_similarity(*tensors(first, second)).item() == pytest.approx(expected, rel=1e-10)


def test_equal_images_score_one_flat_ones_by_their_brightness():
    image = torch.rand(2, 1, 14, 14, dtype=torch.float64)
    assert structural_similarity(image, image).item() == pytest.approx(1, abs=1e-5)
    low, high = (torch.full((1, 1, 12, 12), grey, dtype=torch.float64) for grey in (0.2, 0.6))
    assert structural_similarity(low, high).item() == pytest.approx((2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4), rel=1e-4)


def test_a_batch_is_the_mean_of_its_items():
    first, second = torch.rand(3, 1, 13, 12, dtype=torch.float64), torch.rand(3, 1, 13, 12, dtype=torch.float64)
    each = [structural_similarity(first[i : i + 1], second[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(structural_similarity(first, second), torch.stack(each).mean())


@each_dimension
def test_derivatives_agree_with_finite_differences(dimension):
    images = [torch.rand(1, 1, *(12, 13, 11)[:dimension], dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(structural_similarity, images, fast_mode=True)


def test_small_images_other_shapes_and_bad_ranges_are_refused():
    image = torch.rand(1, 1, 12, 12)
    with pytest.raises(ValueError, match="at least 11"):
        structural_similarity(image[..., :10], image[..., :10])
    with pytest.raises(ValueError, match="expected one shape"):
        structural_similarity(image, image[..., :11])
    with pytest.raises(ValueError, match="data_range 0"):
        structural_similarity(image, image, data_range=0)
