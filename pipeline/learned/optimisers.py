"""Adam and stochastic gradient descent over named parameters, by torch's own functions of them.

Not `torch.optim`'s classes: making one of those loads torch's compiler, more than two seconds at the start of every fit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd


class Optimiser(ABC):
    """What changes parameters against their gradients; those without a gradient are left alone.

    `learning_rate` may be changed between steps.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], learning_rate: float, *, weight_decay: float = 0.0) -> None:
        self.parameters, self.learning_rate, self.weight_decay = dict(parameters), learning_rate, weight_decay
        self.moments: dict[str, dict[str, torch.Tensor]] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters in place."""
        named = {name: parameter for name, parameter in self.parameters.items() if parameter.grad is not None}
        if named:
            self._step(named)

    def state(self) -> dict[str, torch.Tensor]:
        """What is remembered of the parameters, as `MOMENT.PARAMETER`: a group of a checkpoint."""
        return {f"{moment}.{name}": tensor for name, moments in self.moments.items() for moment, tensor in moments.items()}

    def restore(self, stored: Mapping[str, torch.Tensor]) -> None:
        """Put a `state` back, in the parameters' own memory layout, which the last bits of a step may depend on."""
        for whole, tensor in stored.items():
            moment, _, name = whole.partition(".")
            like = self.parameters[name] if moment != "step" else torch.zeros((), device=self.parameters[name].device)
            self.moments.setdefault(name, {})[moment] = torch.empty_like(like).copy_(tensor)

    @abstractmethod
    def _step(self, named: Mapping[str, nn.Parameter]) -> None:
        """A step of the parameters that have a gradient."""


class Adam(Optimiser):
    """Adam (Kingma & Ba 2015), in torch's fused form."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        learning_rate: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, learning_rate, weight_decay=weight_decay)
        self.betas = betas

    def _step(self, named: Mapping[str, nn.Parameter]) -> None:
        for name in named.keys() - self.moments.keys():
            first, second = (torch.zeros_like(named[name], memory_format=torch.preserve_format) for _ in range(2))
            self.moments[name] = {"step": torch.zeros((), device=named[name].device), "exp_avg": first, "exp_avg_sq": second}
        known = [self.moments[name] for name in named]
        adam(
            list(named.values()),
            [parameter.grad for parameter in named.values()],
            *([moments[moment] for moments in known] for moment in ("exp_avg", "exp_avg_sq")),
            max_exp_avg_sqs=[],
            state_steps=[moments["step"] for moments in known],
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )


class GradientDescent(Optimiser):
    """Stochastic gradient descent with momentum; `dampening` is the share of a gradient that momentum does not take up."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        learning_rate: float,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, learning_rate, weight_decay=weight_decay)
        self.momentum, self.dampening = momentum, dampening

    def _step(self, named: Mapping[str, nn.Parameter]) -> None:
        buffers = [self.moments.get(name, {}).get("momentum_buffer") for name in named]
        sgd(
            list(named.values()),
            [parameter.grad for parameter in named.values()],
            buffers,
            foreach=False,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=self.learning_rate,
            dampening=self.dampening,
            nesterov=False,
            maximize=False,
        )
        if self.momentum:
            self.moments |= {name: {"momentum_buffer": buffer} for name, buffer in zip(named, buffers, strict=True)}
