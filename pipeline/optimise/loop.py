"""The loop: evaluate, step, record, until a stop rule holds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ConcordError
from pipeline.optimise.descent import Descent
from pipeline.optimise.objective import Evaluation


@dataclass(frozen=True)
class TraceRow:
    """One iteration."""

    stage: str
    level: int
    iteration: int
    value: float
    step_mm: float
    gradient_norm: float
    seconds: float


@dataclass(frozen=True)
class StopRule:
    """At most `iterations`; earlier where the values of the last `window` iterations fall by less than `least_slope` of their range an iteration.

    As ITK's convergence window, with a straight line fitted to the values (ours: ITK fits a B-spline of order 1). `window` 0: never earlier.
    """

    iterations: int
    window: int = 0
    least_slope: float = 1e-6

    def converged(self, values: deque[float]) -> bool:
        """Whether the last values fall no more."""
        if not self.window or len(values) < self.window:
            return False
        recent = np.asarray(values)
        scale = max(np.abs(recent).max(), 1e-300)
        slope = np.polyfit(np.arange(len(recent)), recent / scale, 1)[0]
        return bool(-slope < self.least_slope)


def minimise(
    objective: Callable[[np.ndarray, int], Evaluation],
    parameters: np.ndarray,
    descent: Descent,
    stop: StopRule,
    *,
    record: Callable[[int, float, float, float, float], None],
) -> np.ndarray:
    """Parameters after the last step; `record(iteration, value, step_mm, gradient_norm, seconds)` is told every iteration.

    Raises `ConcordError` where the value or a derivative is not finite: a diverging run is no result.
    """
    values: deque[float] = deque(maxlen=stop.window or 1)
    for iteration in range(stop.iterations):
        start = time.perf_counter()
        value, gradient = objective(parameters, iteration)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            raise ConcordError(f"the optimisation diverged in iteration {iteration + 1} (value {value}); lower step_mm, or start closer")
        step = descent.advance(parameters, gradient, iteration)
        parameters = step.parameters
        record(iteration, value, step.shift_mm, float(np.linalg.norm(gradient)), time.perf_counter() - start)
        values.append(value)
        if step.stop or stop.converged(values):
            break
    return parameters
