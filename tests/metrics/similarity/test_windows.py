from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve

from metrics.similarity import windows
from metrics.similarity.windows import box_shares, box_sum


def image(shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("shape", [(2, 1, 11, 7), (1, 1, 9, 4, 13), (2, 3, 6, 5, 4)])
@pytest.mark.parametrize("radius", [1, 2, 4, 6])
@pytest.mark.parametrize("slab", [1, 100, 1 << 18])
def test_sums_are_those_of_a_convolution_with_ones(shape, radius, slab, monkeypatch):
    monkeypatch.setattr(windows, "_SLAB", slab)
    given, other = image(shape), image(shape, 1)
    ones = np.ones((2 * radius + 1,) * (len(shape) - 2))
    for times in (None, other):
        product = (given if times is None else given * times).numpy()
        expected = np.stack([[convolve(channel, ones, mode="constant") for channel in item] for item in product])
        torch.testing.assert_close(box_sum(given, radius, times), torch.from_numpy(expected))


def test_the_image_is_left_as_it_is():
    given = image((1, 1, 6, 5, 4))
    kept = given.clone()
    box_sum(given, 1)
    assert torch.equal(given, kept)


@pytest.mark.parametrize("shape", [(2, 1, 11, 7), (1, 1, 9, 4, 13)])
def test_shares_count_the_voxels_inside(shape):
    torch.testing.assert_close(box_shares(image(shape), 3), box_sum(torch.ones(1, 1, *shape[2:], dtype=torch.float64), 3).reciprocal())
