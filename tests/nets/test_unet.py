"""The registration U-Net: sizes, counts, and that it starts at the identity."""

from __future__ import annotations

import pytest
import torch

from nets.fields import exponential
from nets.unet import NETWORKS, RegistrationUNet, build

each_network = pytest.mark.parametrize("name", NETWORKS)


def awake(network):
    """With no convolution that is silent."""
    torch.manual_seed(1)
    torch.nn.init.normal_(network.output.weight, std=0.1)
    for cell in network.skip:
        if hasattr(cell, "adapt"):
            torch.nn.init.normal_(cell.adapt.weight, std=0.1)
    return network


@pytest.mark.parametrize(
    ("widths", "channels", "expected"),
    [((16, 32, 64), 4, (124_306, 117_490)), ((32, 64, 128), 32, (613_058, 467_426)), ((64, 128, 256), 32, (2_096_386, 1_864_642))],
)
def test_parameters_are_those_of_the_written_out_network(widths, channels, expected):
    found = [sum(p.numel() for p in build(name, widths=widths, channels=channels).parameters()) for name in NETWORKS]
    assert tuple(found) == expected


@each_network
@pytest.mark.parametrize("size", [(16, 16), (13, 18), (5, 7)])
def test_the_displacement_has_the_size_of_the_images_and_starts_at_zero(name, size):
    network, images = build(name), torch.rand(2, 2, *size)
    assert network(images).shape == (2, 2, *size)
    assert not network(images).any()
    assert awake(network)(images).abs().max() > 0


@each_network
def test_every_parameter_has_a_part_in_the_output(name):
    network = awake(build(name, widths=(4, 6, 8), channels=4))
    network(torch.rand(2, 2, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@each_network
def test_a_size_that_needs_padding_is_the_image_with_its_border_repeated(name):
    network, images = awake(build(name)).eval(), torch.rand(1, 2, 12, 13)
    repeated = torch.cat([images, images[..., -1:].expand(-1, -1, -1, 3)], dim=3)
    torch.testing.assert_close(network(images), network(repeated)[..., :13])


def test_cells_stand_on_every_skip_connection_and_nowhere_else():
    network = RegistrationUNet()
    assert len(network.skip) == len(network.up) == 2
    plain = build("unet")
    names = {name for name, _ in network.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert names and all(name.startswith("skip.") for name in names)


def test_with_a_velocity_the_output_is_its_exponential():
    network = awake(build("unet", svf=True)).eval()
    with torch.no_grad():
        network.output.bias.fill_(1.0)
        images = torch.rand(1, 2, 16, 16)
        torch.testing.assert_close(network(images), exponential(network.raw(images)))
        assert not torch.allclose(network(images), network.raw(images), atol=1e-3)


def test_bad_inputs_are_refused():
    with pytest.raises(ValueError, match="two or more stages"):
        RegistrationUNet(widths=(16,))
    with pytest.raises(ValueError, match="no network 'vnet'"):
        build("vnet")
    with pytest.raises(ValueError, match="channel 0 fixed"):
        build("unet")(torch.rand(2, 1, 16, 16))
