"""CycleGAN's networks: their sizes, what a discriminator sees, and any image size."""

from __future__ import annotations

import pytest
import torch

from nets.cyclegan import PatchDiscriminator, ResidualGenerator


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("blocks", "channels", "count"), [(9, 1, 11_365_633), (6, 1, 7_825_153), (9, 3, 11_378_179)])
def test_the_generators_are_the_published_ones(blocks, channels, count):
    assert parameters(ResidualGenerator(blocks=blocks, channels=channels)) == count


@pytest.mark.parametrize(("channels", "count"), [(1, 2_762_689), (3, 2_764_737)])
def test_so_is_the_discriminator(channels, count):
    assert parameters(PatchDiscriminator(channels=channels)) == count


@pytest.mark.parametrize("size", [(16, 20), (21, 30)])
def test_images_keep_their_size_and_stay_in_range(size):
    torch.manual_seed(0)
    found = ResidualGenerator(blocks=1, width=4)(2 * torch.rand(2, 1, *size) - 1)
    assert found.shape == (2, 1, *size) and found.abs().max() < 1


def test_a_score_is_that_of_a_patch_of_70():
    """Without the normalisation, which looks at the whole image."""
    network = PatchDiscriminator(width=2).double()
    network.layers = torch.nn.Sequential(*(layer for layer in network.layers if not isinstance(layer, torch.nn.InstanceNorm2d)))
    torch.manual_seed(0)
    images = torch.rand(1, 1, 160, 160, dtype=torch.float64, requires_grad=True)
    scores = network(images)
    assert scores.shape == (1, 1, 18, 18)
    (gradient,) = torch.autograd.grad(scores[0, 0, 9, 9], images)
    seen = gradient[0, 0].nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [70, 70]


def test_weights_start_small():
    torch.manual_seed(0)
    network = ResidualGenerator(blocks=2, width=16)
    weights = torch.cat([p.detach().flatten() for name, p in network.named_parameters() if name.endswith("weight")])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.02) and float(weights.mean()) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ResidualGenerator(blocks=0), "expected 1 or more"),
        (lambda: ResidualGenerator(blocks=1, width=2)(torch.rand(1, 3, 16, 16)), r"expected \(batch, 1, y, x\)"),
        (lambda: PatchDiscriminator(width=0), "expected 1 or more"),
        (lambda: PatchDiscriminator(width=2)(torch.rand(1, 1, 16, 16)), "32 pixels or more"),
    ],
)
def test_what_does_not_fit_is_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()
