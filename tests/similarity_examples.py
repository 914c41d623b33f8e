"""Samples, weights and gradients that tests of similarities start from."""

from __future__ import annotations

import numpy as np
import torch


def samples(shape, seed=0, dtype=torch.float64):
    """Evenly distributed values."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=shape)).to(dtype)


def holes(shape, seed=9):
    """Weights of many sizes, a third of them 0."""
    weight = samples(shape, seed)
    return weight.where(weight > 1 / 3, 0)


def value_and_gradient(metric, warped, mask=None):
    """A similarity's value, and its derivative by the warped values."""
    warped = warped.clone().requires_grad_()
    value = metric(warped, mask)
    return value.detach(), torch.autograd.grad(value, warped)[0]
