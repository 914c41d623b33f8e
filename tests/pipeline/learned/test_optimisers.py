from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from functools import partial

import pytest
import torch

from pipeline.learned.optimisers import Adam, GradientDescent

KINDS = {
    "adam": (
        partial(Adam, betas=(0.5, 0.99), weight_decay=0.01),
        lambda parameters: torch.optim.Adam(parameters, lr=0.1, betas=(0.5, 0.99), weight_decay=0.01, fused=True),
    ),
    "momentum": (
        partial(GradientDescent, momentum=0.9, dampening=0.3, weight_decay=0.01),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.01),
    ),
    "plain": (GradientDescent, lambda parameters: torch.optim.SGD(parameters, lr=0.1)),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def convolution() -> torch.nn.Conv2d:
    torch.manual_seed(0)
    return torch.nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)


def stepped(network: torch.nn.Module, optimiser) -> None:
    optimiser.zero_grad()
    network(torch.linspace(-1, 1, 98).view(1, 2, 7, 7)).square().sum().backward()
    optimiser.step()


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


@kinds
def test_steps_are_those_of_torchs_own_classes(kind):
    ours, torchs = KINDS[kind]
    network = convolution()
    copy = deepcopy(network)
    optimiser, reference = ours(network.named_parameters(), 0.1), torchs(copy.parameters())
    for rate in (0.1, 0.1, 0.01):
        optimiser.learning_rate = reference.param_groups[0]["lr"] = rate
        stepped(network, optimiser)
        stepped(copy, reference)
        assert same(network, copy)
    assert not same(network, convolution())


@kinds
def test_an_optimiser_goes_on_from_its_state_in_the_weights_memory_layout(kind):
    ours, _ = KINDS[kind]
    network = convolution()
    optimiser = ours(network.named_parameters(), 0.1)
    assert optimiser.state() == {}
    stepped(network, optimiser)
    stepped(network, optimiser)
    copy = deepcopy(network)
    other = ours(copy.named_parameters(), 0.1)
    other.restore({name: tensor.clone().contiguous() for name, tensor in optimiser.state().items()})
    stepped(network, optimiser)
    stepped(copy, other)
    assert same(network, copy)
    buffers = [tensor for name, tensor in other.state().items() if name.endswith("weight") and not name.startswith("step")]
    assert len(buffers) == {"adam": 2, "momentum": 1, "plain": 0}[kind]
    assert all(buffer.stride() == copy.weight.stride() for buffer in buffers)


@kinds
def test_parameters_without_a_gradient_stay_and_what_is_known_of_them_too(kind):
    network = convolution()
    optimiser = KINDS[kind][0](network.named_parameters(), 0.1)
    optimiser.step()
    assert same(network, convolution()) and optimiser.state() == {}
    stepped(network, optimiser)
    known = {name: tensor.clone() for name, tensor in optimiser.state().items()}
    bias = network.bias.clone()
    network.bias.requires_grad_(False)
    stepped(network, optimiser)
    assert torch.equal(network.bias, bias)
    for name, tensor in optimiser.state().items():
        assert torch.equal(tensor, known[name]) == name.endswith("bias")


def test_a_step_does_not_load_torchs_compiler():
    code = (
        "import sys, torch; from pipeline.learned.optimisers import Adam; p = torch.nn.Parameter(torch.ones(2)); o = Adam([('p', p)], 0.1);"
        " p.sum().backward(); o.step(); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
