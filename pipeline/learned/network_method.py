"""What methods share that run a fitted network: where it runs, its files, and what it tells of its cost."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pipeline.errors import ConcordError
from pipeline.methods import Method, Run

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


def trace_network(
    run: Run, network: nn.Module, laps: Laps, *, stage: str = "network", inference: tuple[str, ...] = ("network_ms",), **more: float
) -> None:
    """A row of the trace: the milliseconds of every lap, `inference_ms` as the sum of some, seconds, parameters and device."""
    from pipeline.learned.laps import size_and_place

    if run.trace is None:
        return
    row = {"stage": stage, "level": 0, "iteration": 0, **more, **laps.parts, "inference_ms": sum(laps.parts[lap] for lap in inference)}
    run.trace.append(row | {"seconds": laps.seconds} | size_and_place(network, laps.device, run.threads))
