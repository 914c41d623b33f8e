"""Step rules: how far and where the parameters go, given their derivatives. Every step is measured in mm of physical shift."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pipeline.optimise.models import Model


class Step(NamedTuple):
    """New parameters and how far that is in mm; a reason where the rule stops instead."""

    parameters: np.ndarray
    shift_mm: float
    stop: str = ""


@dataclass
class Descent:
    """Settings that all rules share; a fresh one is made for every resolution level.

    A gradient is divided by the model's scales first, as in ITK. `learning_rate` fixes ITK's learning rate; left open it follows
    from `step_mm`, the shift of the farthest point in the first step (regular-step: in every step until it is relaxed).
    """

    model: Model
    step_mm: float
    iterations: int
    learning_rate: float | None = None
    gradient_tolerance: float = 1e-10
    _scales: np.ndarray | None = field(default=None, repr=False)

    def advance(self, parameters: np.ndarray, gradient: np.ndarray, iteration: int) -> Step:
        """The next parameters."""
        if self._scales is None:  # once a level, as in ITK
            self._scales = self.model.scales(parameters)
        scaled = gradient / self._scales
        norm = float(np.linalg.norm(scaled))
        if norm <= self.gradient_tolerance:
            return Step(parameters, 0.0, "gradient below tolerance")
        return self._advance(parameters, scaled, norm, iteration)

    def _advance(self, parameters: np.ndarray, scaled: np.ndarray, norm: float, iteration: int) -> Step:
        raise NotImplementedError

    def _moved(self, parameters: np.ndarray, step: np.ndarray) -> Step:
        return Step(parameters + step, self.model.shift_mm(parameters, step))


@dataclass
class RegularStep(Descent):
    """Regular-step gradient descent as ITK's v4 optimiser: steps of one length, `relaxation` times as long after every turn by more than 90°."""

    relaxation: float = 0.5
    minimum_step_mm: float = 1e-3
    _relaxed: float = 1.0
    _previous: np.ndarray | None = None

    def _advance(self, parameters: np.ndarray, scaled: np.ndarray, norm: float, iteration: int) -> Step:
        if self._previous is not None and float(self._previous @ scaled) < 0:
            self._relaxed *= self.relaxation
        self._previous = scaled
        direction = -scaled / norm
        if self.learning_rate is None:
            length_mm = self._relaxed * self.step_mm
            length = length_mm / max(self.model.shift_mm(parameters, direction), 1e-12)
        else:
            length = length_mm = self._relaxed * self.learning_rate  # ITK compares its minimum with the step in parameter units
        if length_mm < self.minimum_step_mm:
            return Step(parameters, 0.0, "step below minimum")
        return self._moved(parameters, length * direction)


@dataclass
class GradientDescent(Descent):
    """Plain gradient descent, as ITK's v4 optimiser with the learning rate estimated once."""

    def _advance(self, parameters: np.ndarray, scaled: np.ndarray, norm: float, iteration: int) -> Step:
        if self.learning_rate is None:
            self.learning_rate = self.step_mm / max(self.model.shift_mm(parameters, scaled), 1e-300)
        return self._moved(parameters, -self.learning_rate * scaled)


@dataclass
class Adam(Descent):
    """Adam (Kingma and Ba, 2015) in parameters scaled to mm, its step falling along a cosine to `final` of `step_mm` (ours).

    `floor`: second moments are not taken below this share of their root mean square (ours): where the images say nothing, a
    plain Adam would turn noise into steps of full length.
    """

    betas: tuple[float, float] = (0.9, 0.99)
    floor: float = 0.1
    final: float = 0.05
    _first: np.ndarray | None = None
    _second: np.ndarray | None = None

    def _advance(self, parameters: np.ndarray, scaled: np.ndarray, norm: float, iteration: int) -> Step:
        root = np.sqrt(self._scales)
        gradient = scaled * root
        first, second = self.betas
        self._first = (1 - first) * gradient + (0 if self._first is None else first * self._first)
        self._second = (1 - second) * gradient**2 + (0 if self._second is None else second * self._second)
        mean, square = self._first / (1 - first ** (iteration + 1)), self._second / (1 - second ** (iteration + 1))
        spread = np.sqrt(square + self.floor**2 * square.mean())
        share = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * iteration / max(1, self.iterations)))
        rate = self.step_mm if self.learning_rate is None else self.learning_rate
        return self._moved(parameters, -rate * share * mean / np.maximum(spread, 1e-300) / root)


RULES: dict[str, type[Descent]] = {"regular-step": RegularStep, "gradient-descent": GradientDescent, "adam": Adam}
