from __future__ import annotations

import pytest
import torch
from torch import nn

from nets.msreg import Bottleneck, MsReg, stage
from nets.shapes import LEAST_GRIDS


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def test_the_layers_that_run_have_all_of_the_published_parameters_but_those_of_the_layers_that_do_not():
    running = count(MsReg())
    idle = stage(3, 64, 128, stride=2), nn.Linear(1024, 400), nn.Linear(36_864, 128), nn.Linear(128, 6)
    assert [count(layer) for layer in idle] == [125_952, 410_000, 4_718_720, 774]
    assert (running, running + count(*idle)) == (10_850_630, 16_106_076)


@pytest.mark.parametrize(("part", "shape"), [("stem", (64, 12, 10, 11)), ("skip", (64, 6, 5, 6)), ("body", (64, 6, 5, 6)), ("join", (16, 2, 1, 2))])
def test_maps_of_each_part_have_the_published_channels_and_strides(part, shape):
    network, seen = MsReg((12, 20, 22)).eval(), []
    getattr(network, part).register_forward_hook(lambda _, inputs, output: seen.append(output.shape))
    with torch.no_grad():
        assert network(torch.rand(2, 2, 12, 20, 22)).shape == (2, 6)
    assert seen == [(2, *shape)]


def test_the_published_grid_ends_in_76800_numbers():
    assert MsReg().regress[2].in_features == 76_800


def test_a_bottleneck_is_its_shortcut_plus_three_convolutions():
    torch.manual_seed(0)
    narrow, same = Bottleneck(64, 32, stride=2).eval(), Bottleneck(64, 32).eval()
    maps = torch.randn(1, 64, 4, 4, 4)
    assert narrow(maps).shape == (1, 64, 2, 2, 2) and isinstance(same.shortcut, nn.Identity)
    nn.init.zeros_(same.layers[-1].weight)
    assert torch.equal(same(maps), maps.clamp_min(0))
    assert narrow.layers[3].groups == 16 and narrow.layers[3].weight.shape == (16, 1, 3, 3, 3)


def test_stages_are_of_3_4_and_23_bottlenecks():
    assert [len(part) for part in MsReg(LEAST_GRIDS["msreg"]).body] == [3, 4, 23]


def test_a_batch_of_one_of_the_least_grid_trains():
    torch.manual_seed(0)
    network = MsReg(LEAST_GRIDS["msreg"])
    network(torch.rand(1, 2, *LEAST_GRIDS["msreg"])).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    assert network.stem[0].weight.grad.any()


@pytest.mark.parametrize("grid", [(8, 17, 17), (9, 16, 17)])
def test_grids_that_are_too_small_are_refused(grid):
    with pytest.raises(ValueError, match=r"msreg needs \(z, y, x\) voxels, at least \(9, 17, 17\)"):
        MsReg(grid)


def test_inputs_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"need \(B, 2, 9, 17, 17\)"):
        MsReg(LEAST_GRIDS["msreg"])(torch.rand(1, 2, 9, 17, 18))
