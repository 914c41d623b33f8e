"""Methods that may begin with a linear stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from pipeline.errors import ConcordError
from pipeline.methods import Method, Pair, Run
from pipeline.transforms import Linear

LinearStage = Literal["none", "rigid", "similarity", "affine"]


class AfterLinearStage(Method):
    """A method that starts from the result of a linear one, or from the given position."""

    linear: LinearStage = Field("none", description="linear stage before: mutual information by elastix; 'none' starts from the given position")
    linear_iterations: PositiveInt = Field(500, description="iterations of the linear stage at each of its levels")

    def load(self) -> None:
        """Load elastix where a linear stage will need it."""
        if self.linear != "none":
            self._linear_method.load()

    def linear_start(self, pair: Pair, run: Run) -> Linear:
        """The linear transform to start from: mutual information by elastix, or the identity."""
        if self.linear == "none":
            return Linear.identity(pair.fixed.dimension)
        found = self._linear_method.register(pair, run)
        if not isinstance(found, Linear):
            raise ConcordError(f"linear stage {self.linear!r} gave a {type(found).__name__}; expected one linear transform")
        return found

    @property
    def _linear_method(self) -> Method:
        from pipeline.classical.elastix import MutualInformation

        return MutualInformation(stages=[self.linear], iterations=self.linear_iterations)
