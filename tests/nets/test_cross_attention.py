from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nets.cross_attention import CrossAttention

FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


class Explicit(CrossAttention):
    """The same block with the table of weights written out."""

    @staticmethod
    def attend(query, key, value):
        return torch.softmax(query @ key.transpose(1, 2), dim=2) @ value


def pair(shape=(4, 6, 5), batch=2, dtype=torch.float32):
    torch.manual_seed(0)
    block, explicit = CrossAttention().to(dtype), Explicit().to(dtype)
    explicit.load_state_dict(block.state_dict())
    return block, explicit, torch.randn(2, batch, 32, *shape, dtype=dtype)


def test_the_block_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in CrossAttention().parameters()) == 2_192


@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize("shape", [(4, 6, 5), (3, 5, 7), (1, 1, 13), (6, 8, 8)])
def test_outputs_and_gradients_are_those_of_the_written_out_softmax(shape, batch):
    block, explicit, maps = pair(shape, batch)
    weights, results = torch.randn(batch, 32, *shape), []
    for network in (block, explicit):
        primary, cross = maps.clone().requires_grad_()
        output = network(primary, cross)
        learnable = [*network.query.parameters(), *network.key.parameters(), *network.value.parameters(), *network.back.parameters()]
        results.append([output, *torch.autograd.grad((output * weights).mean(), [primary, cross, *learnable])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 7, 96, 1250])
@pytest.mark.parametrize("strided", [False, True])
def test_attention_and_its_gradient_agree_with_the_definition_in_double_precision(tokens, strided):
    torch.manual_seed(1)
    rows = [torch.randn(2, tokens, 16, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    # what comes back through the block is not laid out as what went in
    weights = torch.randn(2, 16, tokens, dtype=torch.float64).transpose(1, 2) if strided else torch.randn(2, tokens, 16, dtype=torch.float64)
    ours, theirs = CrossAttention.attend(*rows), Explicit.attend(*rows)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    gradients = (torch.autograd.grad((output * weights).sum(), rows) for output in (ours, theirs))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_two_tokens_by_hand():
    query = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    key = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
    value = torch.tensor([[[1.0, 10.0], [5.0, 20.0]]])
    # scores 3, 0 and 0, 2, undivided
    one, two = 1 / (1 + torch.e**-3), 1 / (1 + torch.e**2)
    expected = torch.tensor([[[5 - 4 * one, 20 - 10 * one], [5 - 4 * two, 20 - 10 * two]]])
    torch.testing.assert_close(CrossAttention.attend(query, key, value), expected)


def test_the_block_as_a_whole_matches_the_formula_token_by_token():
    block, _, (primary, cross) = pair((2, 3, 2), 1, torch.float64)
    block.eval()
    with torch.no_grad():
        block.back[1].running_mean.normal_(), block.back[1].running_var.uniform_(0.5, 2), block.back[1].weight.normal_(), block.back[1].bias.normal_()
        p, c = primary[0].flatten(1).T, cross[0].flatten(1).T

        def applied(layer, rows):
            return rows @ layer.weight.flatten(1).T + layer.bias

        scores = applied(block.query, c) @ applied(block.key, p).T
        seen = (scores.exp() / scores.exp().sum(1, keepdim=True)) @ applied(block.value, p)
        norm = block.back[1]
        z = (applied(block.back[0], seen) - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias + p
        torch.testing.assert_close(block(primary, cross)[0].flatten(1).T, z)


def test_the_fused_kernels_accept_the_block_forward_and_backward():
    block, _, (primary, cross) = pair((8, 12, 12), 2)
    # no other kernel is allowed in here: an explicit form would raise
    with sdpa_kernel(FUSED):
        block(primary, cross.requires_grad_()).square().mean().backward()
    assert cross.grad.abs().max() > 0


def test_nothing_of_the_size_of_the_table_is_allocated():
    block, explicit, (primary, cross) = pair((16, 16, 16), 1)
    largest = [_largest_allocation(network, primary, cross) for network in (block, explicit)]
    table = 4 * 4096**2
    assert largest[0] < table / 8 and largest[1] >= table


def _largest_allocation(network, primary, cross):
    """Bytes of the largest single request for memory in a forward and backward pass."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        network(primary, cross).square().mean().backward()
    return max(event.nbytes() for event in record.profiler.kineto_results.events() if event.name() == "[memory]")


def test_rows_of_attention_are_those_of_the_whole_table():
    block, _, (primary, cross) = pair((3, 4, 5))
    table = torch.softmax(block.query(cross).flatten(2).transpose(1, 2) @ block.key(primary).flatten(2), dim=2)
    places = torch.tensor([[0, 0, 0], [2, 3, 4], [1, 2, 3]])
    rows = block.attention_from(primary, cross, places)
    assert rows.shape == (2, 3, 60)
    torch.testing.assert_close(rows, table[:, [0, 59, 33]])
    torch.testing.assert_close(rows.sum(2), torch.ones(2, 3))


def test_a_query_finds_the_place_of_the_primary_that_looks_like_it():
    block = CrossAttention()
    for layer in (block.query, block.key):
        torch.nn.init.zeros_(layer.bias)
        layer.weight.data = 10 * torch.eye(16, 32)[:, :, None, None, None]
    primary, cross = torch.zeros(2, 1, 32, 2, 3, 4)
    primary[0, 5, 1, 2, 3] = cross[0, 5, 0, 1, 0] = 1
    looks = block.attention_from(primary, cross, torch.tensor([[0, 1, 0], [1, 1, 1]])).unflatten(2, (2, 3, 4))[0]
    assert looks[0, 1, 2, 3] > 0.999
    # a place without features looks everywhere alike
    torch.testing.assert_close(looks[1], torch.full((2, 3, 4), 1 / 24))


def test_keys_and_values_come_from_the_primary_and_queries_from_the_cross_modality():
    block, _, (primary, cross) = pair((2, 3, 4), 1)
    block.eval()
    order = torch.randperm(24)

    def shuffled(maps):
        return maps.flatten(2)[..., order].unflatten(2, (2, 3, 4))

    with torch.no_grad():
        # attention does not know the order of its keys and values: with P shuffled only the residual P moves
        torch.testing.assert_close(block(shuffled(primary), cross) - shuffled(primary), block(primary, cross) - primary)
        # its rows follow its queries
        torch.testing.assert_close(block(primary, shuffled(cross)) - primary, shuffled(block(primary, cross) - primary))


def test_a_new_block_adds_something_to_its_primary():
    block, _, (primary, cross) = pair()
    assert (block.back[1].weight == 1).all() and not torch.allclose(block(primary, cross), primary, atol=0.1)


def test_maps_on_two_grids_and_places_outside_are_refused():
    block, maps = CrossAttention(), torch.rand(1, 32, 2, 3, 4)
    with pytest.raises(ValueError, match="both on one grid"):
        block(maps, maps[..., :3])
    for outside in ([[0, 3, 0]], [[0, 0, -1]], [[0, 0]]):
        with pytest.raises(ValueError, match=r"inside the map of \(2, 3, 4\)"):
            block.attention_from(maps, maps, torch.tensor(outside))
