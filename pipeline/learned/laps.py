"""What a network's part in a registration costs: milliseconds a lap, the network's size and the device it ran on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


class Laps:
    """Milliseconds of the parts of a stage; a GPU has finished its work at every mark."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.parts = device, {}
        self._began = self._last = self._now()

    def mark(self, name: str) -> None:
        """End the part `name` here."""
        now = self._now()
        self.parts[name], self._last = 1000 * (now - self._last), now

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return self._now() - self._began

    def _now(self) -> float:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def size_and_place(network: nn.Module, device: torch.device, threads: int) -> dict[str, Any]:
    """`parameters` of the network, and the `device` in words."""
    from pipeline.learned.fitting import described

    used = f", {threads} thread{'' if threads == 1 else 's'}" if device.type == "cpu" else ""
    return {"parameters": sum(parameter.numel() for parameter in network.parameters()), "device": described(device) + used}
