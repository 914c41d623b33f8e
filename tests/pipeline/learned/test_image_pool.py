"""The pool of earlier images: filled first, then half of what comes is exchanged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.learned.image_pool import ImagePool


def numbered(*values):
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def numbers(images):
    return images[:, 0, 0, 0].int().tolist()


def test_it_is_filled_before_anything_is_exchanged():
    pool, rng = ImagePool(3), np.random.default_rng(0)
    assert numbers(pool.exchanged(numbered(1, 2), rng)) == [1, 2]
    assert numbers(pool.exchanged(numbered(3), rng)) == [3] and numbers(pool.images) == [1, 2, 3]


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_nothing_is_lost_or_shown_twice_and_half_of_it_is_old(batch):
    pool, rng, next_one, shown = ImagePool(4), np.random.default_rng(0), 0, []
    for _ in range(200):
        given = list(range(next_one, next_one + batch))
        found = numbers(pool.exchanged(numbered(*given), rng))
        next_one, shown = next_one + batch, shown + [(value, value in given) for value in found]
        assert len(found) == batch and len(pool.images) == min(4, next_one)
    if batch <= 4:
        values = [value for value, _ in shown]
        stored = numbers(pool.images)
        # what is shown when the pool is filled is stored as well
        assert len(set(values[4:])) >= len(values[4:]) - 4 and set(values) | set(stored) == set(range(next_one))
    assert 0.4 < np.mean([new for _, new in shown[20:]]) < 0.6


def test_a_pool_of_nothing_shows_what_comes_detached():
    images = numbered(1, 2).clone().requires_grad_()
    assert numbers(ImagePool(0).exchanged(images, np.random.default_rng(0))) == [1, 2]
    assert not ImagePool(0).exchanged(images, np.random.default_rng(0)).requires_grad
    assert not ImagePool(5).exchanged(images, np.random.default_rng(0)).requires_grad
