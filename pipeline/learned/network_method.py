"""What methods share that run a fitted network: where it runs, its files, and what it tells of its cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from pipeline.errors import ConcordError
from pipeline.methods import Method, Pair, Run, run_method
from pipeline.optimise.method import OptimiserLoop
from pipeline.transforms import Transform

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.learned.laps import Laps


class NetworkMethod(Method):
    """A method whose weights a fit of `learner` wrote."""

    learner: ClassVar[str]

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one, else the CPU")

    @property
    def chosen_device(self) -> torch.device:
        """The device that the networks run on. Raises `ConcordError` where CUDA is asked for and absent."""
        from pipeline.learned.fitting import choose_device

        return choose_device(self.device)

    def found(self, weights: Iterable[Path]) -> tuple[Path, ...]:
        """The files, which are there. Raises `ConcordError` naming one that is not."""
        files = tuple(weights)
        for file in files:
            if not file.exists():
                raise ConcordError(f"weights: {file} is not there; expected a .safetensors file that a {self.learner} fit wrote")
        return files

    def missing(self) -> ConcordError:
        """What to say where no weights are given."""
        return ConcordError(f"weights: none given; expected .safetensors files that {self.learner} fits write: fit a network first")


class RefinedNetwork(NetworkMethod):
    """A network whose prediction the optimiser loop may improve on the pair itself (ours; common since VoxelMorph's paper, sec. V-D)."""

    refinement: ClassVar[Mapping[str, Any]]
    """Settings of the loop that a subclass has instead of the loop's own defaults."""

    refine: OptimiserLoop | None = Field(None, description="settings of a run of the optimiser loop from the prediction, null: none (ours)")

    @field_validator("refine", mode="before")
    @classmethod
    def _by_default(cls, given: Any) -> Any:
        return {**cls.refinement, **given} if isinstance(given, Mapping) else given

    @property
    def files(self) -> dict[str, Path]:
        """What the loop reads."""
        return {} if self.refine is None else {f"refine_{name}": file for name, file in self.refine.files.items()}

    def load(self) -> None:
        """What the loop needs."""
        if self.refine is not None:
            self.refine.load()

    def refined(self, pair: Pair, found: Transform, run: Run) -> Transform:
        """Where the loop comes to from `found`; that itself without `refine`."""
        return found if self.refine is None else run_method(self.refine, pair, run, found)


def trace_network(
    run: Run, network: nn.Module, laps: Laps, *, stage: str = "network", inference: tuple[str, ...] = ("network_ms",), **more: float
) -> None:
    """A row of the trace: the milliseconds of every lap, `inference_ms` as the sum of some, seconds, parameters and device."""
    from pipeline.learned.laps import size_and_place

    if run.trace is None:
        return
    row = {"stage": stage, "level": 0, "iteration": 0, **more, **laps.parts, "inference_ms": sum(laps.parts[lap] for lap in inference)}
    run.trace.append(row | {"seconds": laps.seconds} | size_and_place(network, laps.device, run.threads))
