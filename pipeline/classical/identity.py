"""The unregistered row: what the scores are before anything is done."""

from __future__ import annotations

from pipeline.methods import Method, Pair, Run
from pipeline.transforms import Linear, Transform


class Identity(Method):
    """Leaves every point where it is, in physical space. Masks change nothing."""

    def register(self, pair: Pair, run: Run) -> Transform:
        """The identity."""
        return Linear.identity(pair.fixed.dimension)
