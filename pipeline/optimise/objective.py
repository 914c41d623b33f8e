"""What the loop minimises: a similarity of the fixed image and the warped moving one, as a function of transform parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch

from pipeline.errors import ConcordError
from pipeline.optimise.models import Model
from pipeline.optimise.moving import MovingImage
from pipeline.optimise.plans import SamplingPlan
from pipeline.optimise.samples import Samples
from pipeline.transforms import Linear

FEWEST_SAMPLES = 30
"""Fewer samples than this inside both images and masks are no basis for a step (ours)."""


class Evaluation(NamedTuple):
    """Value of the objective, and its derivatives by the parameters `(p,)`."""

    value: float
    gradient: np.ndarray


class Similarity(Protocol):
    """A dissimilarity that already knows the fixed samples; called with the warped ones, weights, and the iteration."""

    def __call__(self, warped: torch.Tensor, mask: torch.Tensor | None = None, *, iteration: int = 0) -> torch.Tensor:
        """The value to be made small, a scalar tensor."""


class Penalty(Protocol):
    """A term that depends on the parameters alone."""

    def __call__(self, parameters: np.ndarray) -> Evaluation:
        """Its value and derivatives."""


@dataclass(frozen=True, eq=False)
class Objective:
    """Similarity, images, masks and transform model of one resolution level.

    The derivative follows equation (5) of Simonovsky et al. (2016): by the warped image from the similarity (automatic
    differentiation), times the gradient of the moving image, times the Jacobian of the transform, summed over the samples.
    """

    model: Model
    fixed: torch.Tensor
    moving: MovingImage
    plan: SamplingPlan
    make_similarity: Callable[[torch.Tensor], Similarity]
    after: Linear
    moving_mask: MovingImage | None = None
    penalty: Penalty | None = None
    _prepared: dict[int, tuple[Similarity, torch.Tensor | None]] = field(default_factory=dict, repr=False)

    def __call__(self, parameters: np.ndarray, iteration: int = 0) -> Evaluation:
        """Value and derivatives. Raises `ConcordError` where hardly a sample is left inside the moving image and its mask."""
        key, samples = self.plan.draw(iteration)
        units = self.moving.units(self.after)
        points = self.model.points(parameters, samples, units)
        values, pull = self.moving.seen(points)
        warped = values.reshape(samples.value_shape).requires_grad_()
        similarity, own_weights = self._prepare(key, samples)
        try:
            value = similarity(warped, self._weights(samples, points, own_weights), iteration=iteration)
        except ValueError as error:
            raise ConcordError(str(error)) from error
        value.backward()
        gradient = self.model.pull(parameters, samples, units, pull(warped.grad))
        if self.penalty is None:
            return Evaluation(float(value.detach()), gradient)
        extra = self.penalty(parameters)
        return Evaluation(float(value.detach()) + extra.value, gradient + extra.gradient)

    def _prepare(self, key: int, samples: Samples) -> tuple[Similarity, torch.Tensor | None]:
        """All that depends on the fixed image alone: the similarity, and where a lattice is not already cut to it, its mask."""
        if key not in self._prepared:
            if self.plan.sampling == "random" and self.plan.fresh:
                self._prepared.clear()
            try:
                similarity = self.make_similarity(samples.values(self.fixed))
            except ValueError as error:  # such as an image smaller than a network's patch
                raise ConcordError(str(error)) from error
            weighs = self.plan.grid and self.plan.mask is not None
            self._prepared[key] = similarity, samples.values(torch.from_numpy(self.plan.mask != 0)).reshape(-1) if weighs else None
        return self._prepared[key]

    def _weights(self, samples: Samples, points: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor | None:
        """Weight of every sample, or None where all count alike."""
        weights = self.moving.inside(points)
        if self.moving_mask is not None:
            weights &= self.moving_mask.at(points) >= 0.5
        if own is not None:
            weights &= own
        left = int(weights.sum())
        if left == len(weights):
            return None
        if left < FEWEST_SAMPLES:
            raise ConcordError(
                f"{left} samples are left inside both images and masks, expected at least {FEWEST_SAMPLES}; enlarge the masks, take more samples or start closer"
            )
        return weights.to(points.dtype).reshape(samples.value_shape)
