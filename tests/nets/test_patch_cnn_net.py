from __future__ import annotations

import pytest
import torch

from nets.patch_cnn import PatchCnn
from nets.shapes import CONFIGURATIONS

each_configuration = pytest.mark.parametrize("name", CONFIGURATIONS)
each_dimension = pytest.mark.parametrize("dimension", [2, 3])
PUBLISHED_SIZE = {"B": 1_994_977, "A": 1_999_745, "B2": 2_048_929, "C": 1_987_969}


@pytest.mark.parametrize("name", PUBLISHED_SIZE)
def test_configurations_of_the_published_size_have_two_million_parameters(name):
    assert sum(p.numel() for p in PatchCnn(name).parameters()) == PUBLISHED_SIZE[name]


@each_configuration
@each_dimension
def test_one_patch_of_17_voxels_gives_one_number(name, dimension):
    network = PatchCnn(name, dimension)
    assert (network.patch_vx, network.stride_vx, len(network.layers)) == (17, 4, 5)
    assert network(torch.rand(2, 2, *[17] * dimension)).shape == (2, 1, *[1] * dimension)


@pytest.mark.parametrize(("edge", "outputs"), [(17, 1), (20, 1), (21, 2), (33, 5)])
def test_outputs_are_four_voxels_apart(edge, outputs):
    assert PatchCnn("tiny", 2)(torch.rand(1, 2, edge, 17)).shape == (1, 1, outputs, 1)


@pytest.mark.parametrize("name", ["tiny", "A", "C"])
@each_dimension
def test_dense_evaluation_is_that_of_each_patch(name, dimension):
    torch.manual_seed(0)
    network, image = PatchCnn(name, dimension), torch.rand(1, 2, *(25, 22, 21)[:dimension])
    with torch.no_grad():
        dense = network(image)[0, 0]
        for place in torch.cartesian_prod(*(torch.arange(n) for n in dense.shape)).tolist():
            patch = image[(..., *(slice(4 * p, 4 * p + 17) for p in place))]
            torch.testing.assert_close(network(patch).flatten()[0], dense[tuple(place)], rtol=1e-4, atol=1e-5)


@each_configuration
def test_every_voxel_of_a_patch_and_none_outside_reaches_the_output(name):
    torch.manual_seed(0)
    network = PatchCnn(name, 2)
    for layer in network.layers:
        layer.weight.data.abs_()
    image = torch.ones(1, 2, 20, 20, requires_grad=True)
    network(image).sum().backward()
    seen = image.grad[0] != 0
    assert seen[:, :17, :17].all()
    assert not seen[:, 17:].any() and not seen[:, :, 17:].any()


@each_configuration
@each_dimension
def test_a_mirrored_network_gives_for_mirrored_patches_what_the_network_gives(name, dimension):
    torch.manual_seed(0)
    network, image = PatchCnn(name, dimension), torch.rand(1, 2, *(21, 17, 25)[:dimension])
    axes = tuple(range(2, 2 + dimension))
    with torch.no_grad():
        expected, before = network(image), network(image.flip(axes))
        torch.testing.assert_close(network.mirrored()(image.flip(axes)).flip(axes), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(network(image.flip(axes)), before) and not torch.allclose(before.flip(axes), expected)


def test_there_is_a_relu_between_layers_and_none_after_the_last():
    network = PatchCnn("tiny", 2)
    for layer in network.layers:
        torch.nn.init.constant_(layer.weight, -1e-2)
    # negative weights on a positive image: nothing passes the first ReLU, and the last bias stands alone
    torch.nn.init.constant_(network.layers[-1].bias, -3.0)
    assert network(torch.ones(1, 2, 17, 17)).item() == -3.0


def test_weights_are_kaiming_normal_and_follow_the_seed():
    def drawn(seed):
        torch.manual_seed(seed)
        return PatchCnn("B").state_dict()

    one, same, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])
    assert one["layers.3.weight"].std().item() == pytest.approx((2 / (192 * 27)) ** 0.5, rel=0.01)
    assert one["layers.4.weight"].std().item() == pytest.approx((1 / 256) ** 0.5, rel=0.15)
    assert all(not one[f"layers.{i}.bias"].any() for i in range(5))


@pytest.mark.parametrize(("arguments", "named"), [(("D", 3), "'D'.*B, B2"), (("B", 4), "dimension 4")])
def test_unknown_configurations_and_dimensions_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        PatchCnn(*arguments)
