from __future__ import annotations

import pytest
import torch

from nets.dvnet import DvNet
from nets.shapes import LEAST_GRIDS

GRID = (4, 33, 20)


def test_the_number_of_parameters_is_within_a_thousandth_of_the_published_one():
    found = sum(p.numel() for p in DvNet().parameters())
    assert found == 5_276_518 and abs(found / 5_275_832 - 1) < 1e-3


@pytest.mark.parametrize(("grid", "hidden_inputs"), [((32, 96, 96), 512 * 9), ((16, 48, 48), 512 * 4), (GRID, 512 * 2), (LEAST_GRIDS["dvnet"], 512)])
def test_slices_of_both_volumes_are_the_channels_of_an_image_halved_five_times(grid, hidden_inputs):
    network = DvNet(grid)
    assert network.layers[0][0].in_channels == 2 * grid[0] and network.regress[1].in_features == hidden_inputs
    with torch.no_grad():
        assert network.eval()(torch.rand(2, 2, *grid)).shape == (2, 6)


def test_all_slices_of_the_mr_come_before_those_of_the_ultrasound():
    network, seen = DvNet(GRID).eval(), []
    network.layers.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    volumes = torch.rand(1, 2, *GRID)
    network(volumes)
    assert torch.equal(seen[0], torch.cat([volumes[:, 0], volumes[:, 1]], dim=1))


@pytest.mark.parametrize("grid", [LEAST_GRIDS["dvnet"], GRID])
def test_a_batch_of_one_trains(grid):
    torch.manual_seed(0)
    network = DvNet(grid)
    network(torch.rand(1, 2, *grid)).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    assert network.layers[0][0].weight.grad.any()


def test_grids_and_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"dvnet needs \(z, y, x\) voxels, at least \(1, 17, 17\)"):
        DvNet((4, 16, 32))
    with pytest.raises(ValueError, match=r"need \(B, 2, 4, 33, 20\)"):
        DvNet(GRID)(torch.rand(1, 1, *GRID))
