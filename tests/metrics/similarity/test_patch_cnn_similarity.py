from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from metrics.similarity.patch_cnn import PatchCnnSimilarity
from nets.patch_cnn import PatchCnn

SHAPES = {"2-D": (27, 30), "3-D": (26, 22, 24)}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
GRIDS = ("fixed", "shift", "sparse", "overlap")


def network_of(shape, configuration="tiny", dtype=torch.float32):
    torch.manual_seed(1)
    network = PatchCnn(configuration, len(shape)).to(dtype)
    for layer in network.layers:
        nn.init.normal_(layer.bias, std=0.1)
    return network


def image(shape, seed=0, dtype=torch.float32):
    return torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def with_gradient(metric, warped, mask=None, iteration=0):
    warped = warped.clone().requires_grad_()
    value = metric(warped, mask, iteration=iteration)
    value.backward()
    return value.detach(), warped.grad


def plain(network, fixed, warped, *, offset, swap=False):
    """The network's own dense evaluation of the pair from `offset` on."""
    pair = torch.cat([warped, fixed] if swap else [fixed, warped], 1)
    return network(pair[(..., *(slice(o, None) for o in offset))])


# ---- value and derivative against plain autograd


@each_shape
@pytest.mark.parametrize("configuration", ["tiny", "A", "C"])
@pytest.mark.parametrize("swap", [False, True], ids=["fixed first", "moving first"])
def test_fixed_grid_is_the_mean_of_the_networks_dense_output(shape, configuration, swap):
    network, fixed, warped = network_of(shape, configuration), image(shape, 1), image(shape, 2)
    value, gradient = with_gradient(PatchCnnSimilarity(fixed, network, swap=swap, grid="fixed"), warped)
    warped.requires_grad_()
    expected = plain(network, fixed, warped, offset=(0,) * len(shape), swap=swap).mean()
    torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=1e-5)
    (own,) = torch.autograd.grad(expected, warped)
    torch.testing.assert_close(gradient, own, rtol=1e-3, atol=1e-6)


@each_shape
def test_overlap_is_the_mean_over_every_patch_two_voxels_apart(shape):
    network, fixed, warped = network_of(shape), image(shape, 1), image(shape, 2)
    value, gradient = with_gradient(PatchCnnSimilarity(fixed, network, grid="overlap"), warped)
    warped.requires_grad_()
    maps = [plain(network, fixed, warped, offset=offset).flatten() for offset in product((0, 2), repeat=len(shape))]
    expected = torch.cat(maps).mean()
    torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, warped)[0], rtol=1e-3, atol=1e-6)


@each_shape
@pytest.mark.parametrize("configuration", ["tiny", "A", "C"])
def test_sparse_is_the_mean_over_every_second_patch_of_a_grid_that_moves(shape, configuration):
    network, fixed, warped = network_of(shape, configuration), image(shape, 1), image(shape, 2)
    metric, seen = PatchCnnSimilarity(fixed, network, grid="sparse"), []
    assert metric.stride_vx == 8
    for iteration in range(3):
        value, gradient = with_gradient(metric, warped, iteration=iteration)
        offset, _ = metric._grid_of(None, iteration)
        leaf = warped.clone().requires_grad_()
        expected = plain(network, fixed, leaf, offset=offset)[(..., *(slice(None, None, 2) for _ in shape))].mean()
        torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, leaf)[0], rtol=1e-3, atol=1e-6)
        seen.append(offset)
    assert len(set(seen)) == 3


@each_shape
def test_shift_visits_every_offset_once_and_then_again(shape):
    network, fixed, warped = network_of(shape), image(shape, 1), image(shape, 2)
    metric, count = PatchCnnSimilarity(fixed, network), 4 ** len(shape)
    with torch.no_grad():
        values = torch.stack([metric(warped, iteration=i) for i in range(count)])
        means = torch.stack([plain(network, fixed, warped, offset=offset).mean() for offset in product(range(4), repeat=len(shape))])
        torch.testing.assert_close(values.sort()[0], means.sort()[0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(values, means)  # shuffled
        assert metric(warped, iteration=3 + count) == values[3]
        assert PatchCnnSimilarity(fixed, network)(warped, iteration=3) == values[3]


def test_shift_leaves_room_for_a_patch_in_an_image_hardly_larger():
    network, shape = network_of((17, 18)), (17, 18)
    metric, warped = PatchCnnSimilarity(image(shape, 1), network), image(shape, 2)
    values = {metric(warped, iteration=i).item() for i in range(4)}
    assert len(values) == 2


@pytest.mark.parametrize("grid", GRIDS)
def test_derivative_agrees_with_finite_differences(grid):
    shape = (25, 24)
    network, fixed, warped = (item(shape, dtype=torch.float64) for item in (lambda s, dtype: network_of(s, dtype=dtype), image, image))
    warped = warped + 0.5 * image(shape, 3, torch.float64)
    metric = PatchCnnSimilarity(fixed, network, grid=grid)
    _, gradient = with_gradient(metric, warped, iteration=5)
    for seed in range(3):
        direction = image(shape, 10 + seed, torch.float64)
        slope = (metric(warped + 1e-6 * direction, iteration=5) - metric(warped - 1e-6 * direction, iteration=5)) / 2e-6
        assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-4, abs=1e-8)


def test_shifted_grids_average_out_the_pattern_of_the_grid():
    shape = (60, 60)
    flat = torch.ones(1, 1, *shape)
    metric = PatchCnnSimilarity(flat, network_of(shape))
    gradients = torch.cat([with_gradient(metric, 0.5 * flat, iteration=i)[1] for i in range(16)])[..., 20:40, 20:40]
    # nothing to see but the grid: each derivative repeats every four voxels, their mean is even
    torch.testing.assert_close(gradients[..., 4:], gradients[..., :-4], rtol=1e-3, atol=1e-7)
    spread = gradients.std(dim=(-1, -2)) / gradients.mean(dim=(-1, -2)).abs()
    assert (spread > 0.5).all()
    assert gradients.mean(0).std() < 1e-3 * gradients.mean().abs()


# ---- network and gradients


def test_the_network_is_left_as_it_was():
    network = network_of((20, 20)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with_gradient(PatchCnnSimilarity(image((20, 20)), network), image((20, 20), 2))
    assert network.training and all(p.requires_grad and p.grad is None for p in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_fixed_image_gets_no_gradient_and_warped_needs_none():
    fixed = image((20, 20)).requires_grad_()
    metric = PatchCnnSimilarity(fixed, network_of((20, 20)))
    assert not metric(image((20, 20), 2)).requires_grad
    with_gradient(metric, image((20, 20), 2))
    assert fixed.grad is None


def test_the_derivative_is_scaled_by_what_comes_after():
    metric, warped = PatchCnnSimilarity(image((20, 20)), network_of((20, 20))), image((20, 20), 2)
    _, gradient = with_gradient(metric, warped)
    warped.requires_grad_()
    (-3 * metric(warped)).backward()
    torch.testing.assert_close(warped.grad, -3 * gradient)


def test_bf16_is_close_to_single_precision():
    shape = SHAPES["3-D"]
    network, fixed, warped = network_of(shape), image(shape, 1), image(shape, 2)
    (value, gradient), (rough, direction) = (with_gradient(PatchCnnSimilarity(fixed, network, precision=p), warped) for p in ("fp32", "bf16"))
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(value.item(), abs=0.05)
    assert nn.functional.cosine_similarity(gradient.flatten(), direction.flatten(), dim=0) > 0.97


# ---- slabs


@each_shape
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("configuration", ["tiny", "A"])
@pytest.mark.parametrize("most", [1, 9, 10_000])
def test_slabs_give_what_everything_at_once_gives(shape, grid, configuration, most):
    network, fixed, warped = network_of(shape, configuration), image(shape, 1), image(shape, 2)
    mask = image(shape, 4).abs()
    whole = with_gradient(PatchCnnSimilarity(fixed, network, grid=grid), warped, mask, 7)
    slabs = with_gradient(PatchCnnSimilarity(fixed, network, grid=grid, most_outputs=most), warped, mask, 7)
    torch.testing.assert_close(slabs, whole, rtol=1e-5, atol=1e-6)


def test_slabs_bound_the_patches_that_are_evaluated_at_once(monkeypatch):
    shape, sizes = (61, 30), []
    metric = PatchCnnSimilarity(image(shape), network_of(shape), grid="fixed", most_outputs=9)
    evaluate = PatchCnnSimilarity._map

    def counted(self, *arguments):
        sizes.append((out := evaluate(self, *arguments)).numel())
        return out

    monkeypatch.setattr(PatchCnnSimilarity, "_map", counted)
    metric(image(shape, 2))
    assert sizes == [8, 8, 8, 8, 8, 8]  # 12 planes of 4


def test_a_response_too_large_to_keep_is_computed_again(monkeypatch):
    shape = SHAPES["3-D"]
    network, fixed, warped = network_of(shape), image(shape, 1), image(shape, 2)
    kept = with_gradient(PatchCnnSimilarity(fixed, network), warped, None, 9)
    monkeypatch.setattr("metrics.similarity.patch_cnn._MOST_CACHED_BYTES", 10)
    torch.testing.assert_close(with_gradient(PatchCnnSimilarity(fixed, network, most_outputs=3), warped, None, 9), kept, rtol=1e-5, atol=1e-6)


# ---- masks


@each_shape
def test_a_mask_of_one_voxel_chooses_the_patch_around_it(shape):
    network, fixed, warped = network_of(shape), image(shape, 1), image(shape, 2)
    mask, centre = torch.zeros(1, 1, *shape), (12,) + (8,) * (len(shape) - 1)
    mask[(0, 0, *centre)] = 5.0
    value, gradient = with_gradient(PatchCnnSimilarity(fixed, network, grid="fixed"), warped, mask)
    patch = (..., *(slice(c - 8, c + 9) for c in centre))
    expected = network(torch.cat([fixed[patch], warped[patch]], 1)).item()
    assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    outside = torch.ones_like(gradient)
    outside[patch] = 0
    assert not (gradient * outside).any() and gradient.any()


def test_a_mask_weights_patches():
    shape = (25, 17)  # three patches, centres at rows 8, 12, 16
    metric, warped = PatchCnnSimilarity(image(shape, 1), network_of(shape), grid="fixed"), image(shape, 2)
    mask = torch.zeros(1, 1, *shape)
    mask[0, 0, [8, 12, 16], 8] = torch.tensor([1.0, 0.0, 3.0])
    first, _, last = metric.output_map(warped).flatten().tolist()
    assert metric(warped, mask).item() == pytest.approx((first + 3 * last) / 4, rel=1e-4)


def test_an_even_mask_changes_nothing():
    shape = SHAPES["2-D"]
    metric, warped = PatchCnnSimilarity(image(shape, 1), network_of(shape)), image(shape, 2)
    assert metric(warped, torch.full_like(warped, 0.5), iteration=2).item() == pytest.approx(metric(warped, iteration=2).item(), rel=1e-5)


def test_shift_takes_the_next_offset_where_the_mask_has_no_patch():
    shape = (27, 27)
    network, fixed, warped, mask = network_of(shape), image(shape, 1), image(shape, 2), torch.zeros(1, 1, 27, 27)
    mask[0, 0, 10, 11] = 1
    metric = PatchCnnSimilarity(fixed, network)
    expected = network(torch.cat([fixed, warped], 1)[..., 2:19, 3:20]).item()
    assert [metric(warped, mask, iteration=i).item() for i in range(16)] == pytest.approx([expected] * 16, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_mask_without_a_patch_is_refused(grid):
    shape = SHAPES["2-D"]
    metric, mask = PatchCnnSimilarity(image(shape), network_of(shape), grid=grid), torch.zeros(1, 1, *shape)
    mask[..., :8] = 1  # no patch has its centre that near to the border
    with pytest.raises(ValueError, match=r"mask is empty.*8 or more voxels inside"):
        metric(image(shape, 2), mask)


# ---- refusals


def test_unfit_images_and_networks_are_refused():
    network, fixed = network_of((20, 20)), image((20, 20))
    with pytest.raises(ValueError, match=r"\(20, 16\).*17 along each axis"):
        PatchCnnSimilarity(image((20, 16)), network)
    with pytest.raises(ValueError, match="3-D patch network"):
        PatchCnnSimilarity(image((20, 20, 20)), network)
    with pytest.raises(ValueError, match=r"\(1, 1, \[z,\] y, x\)"):
        PatchCnnSimilarity(fixed.expand(2, 1, 20, 20), network)
    with pytest.raises(ValueError, match="grid 'dense'"):
        PatchCnnSimilarity(fixed, network, grid="dense")
    with pytest.raises(ValueError, match="most_outputs 0"):
        PatchCnnSimilarity(fixed, network, most_outputs=0)
    metric = PatchCnnSimilarity(fixed, network)
    for arguments, name in (((image((20, 21)),), "warped"), ((fixed, torch.ones(1, 1, 21, 20)), "mask")):
        with pytest.raises(ValueError, match=f"{name}.*one grid"):
            metric(*arguments)


def test_networks_of_another_kind_are_refused():
    class Other(nn.Module):
        def __init__(self, *layers):
            super().__init__()
            self.layers = nn.Sequential(*layers)

    fixed = image((20, 20))
    with pytest.raises(ValueError, match="without padding"):
        PatchCnnSimilarity(fixed, Other(nn.Conv2d(2, 1, 3, padding=1)))
    with pytest.raises(ValueError, match="3 channels in, 1 out"):
        PatchCnnSimilarity(fixed, Other(nn.Conv2d(3, 1, 3)))
    with pytest.raises(ValueError, match=r"'overlap' with strides \[3, 1\]"):
        PatchCnnSimilarity(fixed, Other(nn.Conv2d(2, 4, 3, 3), nn.Conv2d(4, 1, 1)), grid="overlap")
