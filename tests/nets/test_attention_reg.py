from __future__ import annotations

import pytest
import torch

from nets.attention_reg import AttentionReg
from nets.rigid_networks import PARAMETERS
from nets.shapes import LEAST_GRIDS

GRID = (4, 16, 12)
each_variant = pytest.mark.parametrize("attention", [True, False])


def drawn(attention=True, grid=GRID, batch=2):
    torch.manual_seed(0)
    return AttentionReg(grid, attention=attention), torch.rand(batch, 2, *grid)


@pytest.mark.parametrize(("attention", "published"), [(True, 1_248_777), (False, 1_244_393)])
def test_both_variants_have_the_published_number_of_parameters(attention, published):
    assert sum(p.numel() for p in AttentionReg(attention=attention).parameters()) == published


@pytest.mark.parametrize(("grid", "map_grid"), [((32, 96, 96), (16, 24, 24)), ((16, 48, 48), (8, 12, 12)), ((5, 13, 16), (3, 4, 4))])
@each_variant
def test_the_extractors_halve_z_once_and_y_and_x_twice(grid, map_grid, attention):
    network, volumes = drawn(attention, grid, 1)
    with torch.no_grad():
        assert network.map_grid == map_grid
        assert all(found.shape == (1, 32, *map_grid) for found in network.features(volumes))
        assert network.eval()(volumes).shape == (1, len(PARAMETERS))


@each_variant
@pytest.mark.parametrize("grid", [LEAST_GRIDS["attention-reg"], GRID])
def test_a_batch_of_one_trains(grid, attention):
    network, volumes = drawn(attention, grid, 1)
    network(volumes).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    # behind the fully connected layers' ReLUs something still reaches either extractor's first layer
    assert all(network.extractors[name][0].weight.grad.any() for name in ("mr", "us"))


@each_variant
def test_evaluation_repeats_itself_and_treats_each_item_alone(attention):
    network, volumes = drawn(attention, batch=3)
    network(volumes)
    network.eval()
    with torch.no_grad():
        whole = network(volumes)
        assert torch.equal(network(volumes), whole)
        torch.testing.assert_close(torch.cat([network(one[None]) for one in volumes]), whole)


def test_a_small_network_learns_to_tell_a_handful_of_cases_apart():
    network, volumes = drawn(batch=4)
    target = torch.randn(4, 6) * 5
    optimiser, losses = torch.optim.Adam(network.parameters(), 3e-3), []
    for _ in range(60):
        optimiser.zero_grad()
        losses.append((network(volumes) - target).square().mean())
        losses[-1].backward()
        optimiser.step()
    # one answer for all would not get below the targets' variance
    assert losses[-1] < target.var(0, correction=0).mean() / 2


def test_outputs_are_linear_and_so_may_be_negative():
    network, volumes = drawn()
    torch.nn.init.zeros_(network.regress[-1].weight)
    torch.nn.init.constant_(network.regress[-1].bias, -7.5)
    assert (network(volumes) == -7.5).all()


def test_the_first_channel_goes_to_the_mr_extractor_and_the_second_to_that_of_ultrasound():
    network, volumes = drawn()
    network.eval()
    mr, us = network.features(volumes)
    assert torch.equal(mr, network.extractors["mr"](volumes[:, :1])) and torch.equal(us, network.extractors["us"](volumes[:, 1:]))
    assert not torch.equal(network.extractors["us"](volumes[:, :1]), mr)


def test_both_blocks_read_the_maps_from_before_attention():
    network, volumes = drawn()
    network.eval()
    seen = {}
    for name, block in network.attention.items():
        block.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs, output)}))
    output, maps = network.forward_with_maps(volumes)
    mr, us = network.features(volumes)
    (mr_inputs, mr_output), (us_inputs, us_output) = seen["mr"], seen["us"]
    assert all(torch.equal(*both) for both in zip((*mr_inputs, *us_inputs), (mr, us, us, mr), strict=True))
    assert torch.equal(maps[0], mr_output) and torch.equal(maps[1], us_output)
    assert torch.equal(network(volumes), output)


def test_the_head_reads_the_rectified_maps_mr_first():
    network, volumes = drawn()
    network.eval()
    output, (mr, us) = network.forward_with_maps(volumes)
    joined = torch.cat([mr, us], dim=1)
    assert (joined < 0).any()
    assert torch.equal(network.regress(network.fuse(joined.clamp_min(0))), output)


@each_variant
def test_maps_after_attention_can_be_differentiated_for_grad_cam(attention):
    network, volumes = drawn(attention)
    output, maps = network.forward_with_maps(volumes)
    gradients = torch.autograd.grad(output[:, 0].sum(), maps)
    assert all(g.shape == (2, 32, *network.map_grid) and g.any() for g in gradients)


def test_the_extractors_do_what_the_authors_order_of_layers_does():
    network, volumes = drawn()
    first, norm, pool, _, second, other_norm, other_pool, _ = network.extractors["mr"]
    maps = pool(torch.relu(norm(first(volumes[:, :1]))))
    maps = other_pool(torch.relu(other_norm(second(maps))))
    torch.testing.assert_close(network.features(volumes)[0], maps)


def test_extractors_trained_alone_can_be_taken_over():
    torch.manual_seed(3)
    trained, (network, volumes) = AttentionReg(GRID), drawn()
    network.extractors.load_state_dict(trained.extractors.state_dict())
    assert all(torch.equal(*both) for both in zip(network.features(volumes), trained.features(volumes), strict=True))


def test_blocks_that_begin_as_the_identity_leave_the_network_without_attention():
    torch.manual_seed(3)
    network, volumes = AttentionReg(GRID, attention_scale=0), torch.rand(2, 2, *GRID)
    without = AttentionReg(GRID, attention=False)
    without.load_state_dict(network.state_dict(), strict=False)
    torch.testing.assert_close(network(volumes), without(volumes))
    # and they can leave it: the scale itself has a gradient
    network(volumes).square().sum().backward()
    assert all(block.back[-1].weight.grad.abs().max() > 0 for block in network.attention.values())


def test_without_attention_the_weights_are_those_of_the_same_network_less_the_blocks():
    with_blocks, without = AttentionReg(GRID).state_dict(), AttentionReg(GRID, attention=False).state_dict()
    assert [name for name in with_blocks if not name.startswith("attention.")] == list(without)


def test_convolutions_are_drawn_over_their_outputs_and_batch_norms_start_neutral():
    network, _ = drawn(grid=(32, 96, 96))
    assert network.extractors["us"][4].weight.std().item() == pytest.approx((2 / (32 * 27)) ** 0.5, rel=0.02)
    assert network.attention["mr"].key.weight.std().item() == pytest.approx((2 / 16) ** 0.5, rel=0.1)
    norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm3d)]
    assert len(norms) == 8 and all((norm.weight == 1).all() and not norm.bias.any() for norm in norms)


@pytest.mark.parametrize("grid", [(3, 8, 8), (4, 7, 8), (4, 8), (32, 96, 7)])
def test_grids_that_are_too_small_are_refused(grid):
    with pytest.raises(ValueError, match=r"attention-reg needs \(z, y, x\) voxels, at least \(4, 8, 8\)"):
        AttentionReg(grid)


@pytest.mark.parametrize("shape", [(1, 1, *GRID), (2, *GRID), (1, 2, 4, 16, 16), (1, 2, 12, 16, 4)])
def test_inputs_of_other_shapes_are_refused_with_what_is_needed(shape):
    network, _ = drawn()
    with pytest.raises(ValueError, match=r"weights for grid \(4, 16, 12\) need \(B, 2, 4, 16, 12\)"):
        network(torch.rand(shape))
