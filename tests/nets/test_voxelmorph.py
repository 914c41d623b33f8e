"""VoxelMorph's network: size, starting point, any image size, and fields on two grids."""

from __future__ import annotations

import pytest
import torch

from nets.fields import compose, exponential, identity_grid
from nets.voxelmorph import VoxelMorph, VoxelMorphUNet, integrated, integrated_both, resized, shrunk


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def smooth_field(size, amplitude=1.0):
    """Components are products of sines that are no longer than the grid and no shorter than half of it."""
    grid = identity_grid(torch.zeros(1, len(size), *size, dtype=torch.float64))[0]
    waves = [torch.sin(2 * torch.pi * g / n * (1 + 0.5 * k) + k) for k, (g, n) in enumerate(zip(grid, size[::-1], strict=True))]
    return amplitude * torch.stack([torch.stack(waves).roll(k, 0)[:2].prod(0) for k in range(len(size))])[None]


@pytest.mark.parametrize(("dimension", "count"), [(2, 109_170), (3, 327_331)])
def test_the_parameters_are_those_of_the_published_network(dimension, count):
    assert parameters(VoxelMorph(dimension)) == count


@pytest.mark.parametrize(("inputs", "outputs", "count"), [(2, 1, 109_025), (3, 2, 109_314)])
def test_so_are_those_of_the_translation_model(inputs, outputs, count):
    assert parameters(VoxelMorphUNet(2, inputs=inputs, outputs=outputs)) == count


@pytest.mark.parametrize("size", [(16, 16), (21, 35), (9, 40), (18, 17, 22)])
@pytest.mark.parametrize("output", ["displacement", "velocity"])
def test_any_size_gives_a_displacement_near_zero_at_first(size, output):
    torch.manual_seed(0)
    found = VoxelMorph(len(size), output=output)(torch.rand(2, 2, *size))
    assert found.shape == (2, len(size), *size)
    assert 0 < found.abs().max() < 1e-3


def test_what_is_padded_is_not_seen_where_it_is_far():
    torch.manual_seed(0)
    network, images = VoxelMorphUNet(2, inputs=2, outputs=1).double(), torch.rand(1, 2, 64, 80, dtype=torch.float64)
    images[..., 72:] = images[..., 71:72]
    torch.testing.assert_close(network(images[..., :72])[..., :40], network(images)[..., :40], rtol=0, atol=0)


def test_the_levels_are_joined_by_size():
    """A network whose lower levels are silenced sees five convolutions of kernel 3 at full size: a neighbourhood of 5 voxels."""
    torch.manual_seed(0)
    network = VoxelMorphUNet(2, inputs=1, outputs=1).double()
    for layer in network.up[:4]:
        torch.nn.init.zeros_(layer.weight)
    images = torch.rand(1, 1, 32, 32, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(images)[0, 0, 16, 16], images)
    reached = gradient[0, 0].nonzero()
    assert reached.min(0).values.tolist() == [11, 11] and reached.max(0).values.tolist() == [21, 21]


def test_every_weight_takes_part():
    torch.manual_seed(0)
    network = VoxelMorph(2, output="velocity")
    torch.nn.init.normal_(network.unet.output.weight, std=0.1)
    network(torch.rand(1, 2, 32, 32)).square().sum().backward()
    assert all((p.grad != 0).any() for p in network.parameters())


@pytest.mark.parametrize("size", [(12, 17), (8, 9, 11)])
def test_resizing_keeps_an_affine_map(size):
    """Displacements that grow linearly are the same map on either grid, to rounding."""
    torch.manual_seed(1)
    d = len(size)
    small = shrunk(size, 2)
    matrix, shift = 0.1 * torch.randn(d, d, dtype=torch.float64), torch.randn(d, dtype=torch.float64)

    def affine(grid):
        return torch.einsum("ij,bj...->bi...", matrix, grid) + shift.view(1, -1, *[1] * d)

    field = affine(identity_grid(torch.zeros(1, d, *size, dtype=torch.float64)))
    step = torch.tensor([(n - 1) / (m - 1) for n, m in zip(size, small, strict=True)][::-1], dtype=torch.float64).view(1, -1, *[1] * d)
    places = identity_grid(torch.zeros(1, d, *small, dtype=torch.float64)) * step
    found = resized(field, small)
    torch.testing.assert_close(found * step, affine(places))
    torch.testing.assert_close(resized(found, size), field)


def test_a_velocity_integrated_at_half_the_size_is_near_that_at_full_size():
    velocity = smooth_field((65, 81), amplitude=3)
    difference = integrated(velocity) - exponential(velocity)
    assert difference[..., 6:-6, 6:-6].abs().max() < 0.1 < 2 < exponential(velocity).abs().max()
    assert torch.equal(integrated(velocity, shrink=1), exponential(velocity))


@pytest.mark.parametrize("size", [(65, 80), (33, 34, 32)])
def test_the_inverse_undoes_the_displacement(size):
    velocity = smooth_field(size, amplitude=1.5)
    forward, inverse = integrated_both(velocity)
    torch.testing.assert_close(forward, integrated(velocity))
    inner = (..., *[slice(6, -6)] * len(size))
    assert compose(forward, inverse)[inner].abs().max() < 0.2 < 1 < forward[inner].abs().max()


def test_a_displacement_has_no_inverse_and_a_velocity_has():
    images = torch.rand(1, 2, 16, 16)
    for output in ("displacement", "velocity"):
        network = VoxelMorph(2, output=output)
        found = network.both(images)
        assert torch.equal(found.forward, network(images)) and (found.inverse is None) == (output == "displacement")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: VoxelMorph(4), "dimension 4"),
        (lambda: VoxelMorph(2, output="svf"), "'svf'; expected displacement or velocity"),
        (lambda: VoxelMorph(2, decoder=(8, 8)), "no fewer decoding"),
        (lambda: VoxelMorph(2)(torch.rand(1, 3, 16, 16)), r"expected \(batch, 2, y, x\)"),
        (lambda: VoxelMorph(3)(torch.rand(1, 2, 16, 16)), r"expected \(batch, 2, z, y, x\)"),
    ],
)
def test_what_does_not_fit_is_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()
