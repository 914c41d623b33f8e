"""What holds for every network of rigid registration."""

from __future__ import annotations

import pytest
import torch

from nets.rigid_networks import build
from nets.shapes import LEAST_GRIDS


@pytest.mark.parametrize("name", LEAST_GRIDS)
def test_evaluation_repeats_itself_and_treats_each_item_alone(name):
    torch.manual_seed(0)
    grid = (9, 17, 17)
    network, volumes = build(name, grid), torch.rand(3, 2, *grid)
    network(volumes)
    network.eval()
    with torch.no_grad():
        whole = network(volumes)
        assert torch.equal(network(volumes), whole)
        torch.testing.assert_close(torch.cat([network(one[None]) for one in volumes]), whole, rtol=1e-4, atol=1e-5)
