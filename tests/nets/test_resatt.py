"""The ReSAtt cell against the paper's definition, patch by patch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nets import resatt
from nets.resatt import ResidualAttention, convolutive_attention, coordinates


def by_definition(key, query, value, *, patch=5, step=3, scale=1.0):
    """Eq. 5-9: the patches of an item are the filters of its own convolutions."""
    result, padding = [], patch // 2
    for k, q, v in zip(key, query, value, strict=True):
        filters = []
        for maps in (q, v):
            padded = F.pad(maps, (padding,) * 4)
            centres = [(y, x) for y in range(0, maps.shape[1], step) for x in range(0, maps.shape[2], step)]
            filters.append(torch.stack([padded[:, y : y + patch, x : x + patch] for y, x in centres]))
        scores = scale * F.conv2d(k[None], filters[0], padding=padding)
        result.append(F.conv_transpose2d(scores.softmax(1), filters[1], padding=padding)[0])
    return torch.stack(result)


@pytest.mark.parametrize("size", [(12, 12), (11, 14), (3, 7), (16, 10)])
@pytest.mark.parametrize(
    "how", [{}, {"patch": 3, "step": 2}, {"patch": 7, "step": 4}, {"scale": 0.1}, {"patch": 5, "step": 2}, {"patch": 3, "step": 3}]
)
def test_the_products_are_the_correlation_with_every_patch(size, how):
    torch.manual_seed(0)
    maps = torch.randn(3, 3, 4, *size) * 0.4
    torch.testing.assert_close(convolutive_attention(*maps, **how), by_definition(*maps, **how), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 7), (3, 10), (9, 9)])
@pytest.mark.parametrize("how", [{}, {"patch": 3, "step": 2, "scale": 0.5}, {"patch": 3, "step": 1}])
def test_derivatives_are_those_of_the_definition(size, how):
    torch.manual_seed(0)
    maps = [(0.4 * torch.randn(2, 3, *size, dtype=torch.float64)).requires_grad_() for _ in range(3)]
    outer = torch.randn(2, 3, *size, dtype=torch.float64)
    found, expected = (torch.autograd.grad(f(*maps, **how), maps, outer) for f in (convolutive_attention, by_definition))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_derivatives_are_those_of_finite_differences():
    torch.manual_seed(0)
    maps = [torch.randn(2, 1, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(convolutive_attention, maps)


def test_a_chunk_of_rows_changes_nothing(monkeypatch):
    torch.manual_seed(0)
    maps = [(0.4 * torch.randn(2, 3, 8, 7, dtype=torch.float64)).requires_grad_() for _ in range(3)]
    results = []
    for scores in (2**20, 2 * 10 * 12 * 3, 1):  # all rows at once, three of the eight, one
        monkeypatch.setattr(resatt, "CHUNK_SCORES", scores)
        output = convolutive_attention(*maps)
        chunks = len(output.grad_fn.saved_tensors) - 3
        results.append((chunks, output, *torch.autograd.grad(output.square().sum(), maps)))
    assert [chunks for chunks, *_ in results] == [1, 3, 8]
    for _, *others in results[1:]:
        for one, other in zip(results[0][1:], others, strict=True):
            torch.testing.assert_close(one, other)


def test_where_no_gradient_is_wanted_no_probabilities_are_kept(monkeypatch):
    class Kept:
        def save_for_backward(self, *tensors):
            self.tensors = tensors

    maps, columns = torch.randn(3, 1, 2, 9, 9), resatt._Columns(5, 3, 9, 9)
    for wanted, count in ((True, 4), (False, 3)):
        context = Kept()
        context.needs_input_grad = (wanted, False, False, False)
        resatt._SharedColumns.forward(context, *maps, columns)
        assert len(context.tensors) == count


def test_under_autocast_both_ways_are_in_single_precision():
    torch.manual_seed(0)
    maps = [torch.randn(1, 2, 7, 7).bfloat16().requires_grad_() for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        found = convolutive_attention(*maps)
    expected = by_definition(*(m.float() for m in maps))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(*(torch.autograd.grad(f.sum(), maps) for f in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=0.01, atol=0.01)


def test_items_of_a_batch_do_not_see_each_other():
    torch.manual_seed(0)
    cell, images = woken(ResidualAttention(3, 4).eval()), torch.randn(3, 3, 9, 9)
    torch.testing.assert_close(cell(images)[1:2], cell(images[1:2]), rtol=1e-5, atol=1e-5)


def test_each_place_finds_its_own_patch_where_patches_are_unlike():
    """With a sharp score keys that equal queries find the patch of their own place, and values come back where a patch is centred."""
    torch.manual_seed(0)
    maps = F.normalize(torch.randn(1, 40, 15, 15), dim=1)
    values = torch.randn(1, 40, 15, 15)
    lone = torch.zeros_like(maps)
    lone[..., 6, 6] = 1e3 * maps[..., 6, 6]  # all other places see nothing but this one, in the patches that hold it
    found = convolutive_attention(lone, maps, values, patch=1, step=3)
    torch.testing.assert_close(found[..., 6, 6], values[..., 6, 6])
    mean = values[..., ::3, ::3].mean((2, 3))
    torch.testing.assert_close(found[..., 0, 1], mean)


def woken(cell):
    torch.nn.init.normal_(cell.adapt.weight)
    return cell


def test_a_cell_starts_as_a_plain_connection_and_adds_what_attention_finds():
    torch.manual_seed(0)
    features = torch.randn(2, 5, 10, 13)
    cell = ResidualAttention(5, 4, scale=0.3, output_scale=0.04).eval()
    assert torch.equal(cell(features), features)
    placed = torch.cat([features, coordinates(features)], dim=1)
    seen = by_definition(cell.key(placed), cell.query(placed), cell.value(placed), scale=0.3)
    torch.testing.assert_close(woken(cell)(features), features + cell.adapt(0.04 * seen), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(cell(features), features, atol=1e-2)


def test_coordinates_run_from_minus_one_to_one_x_first():
    grid = coordinates(torch.zeros(2, 7, 3, 5))
    assert grid.shape == (2, 2, 3, 5)
    assert grid[0, 0, 0].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert grid[1, 1, :, 4].tolist() == [-1, 0, 1]


def test_bad_patches_and_shapes_are_refused():
    maps = torch.zeros(1, 2, 6, 6)
    with pytest.raises(ValueError, match="odd patch"):
        convolutive_attention(maps, maps, maps, patch=4)
    with pytest.raises(ValueError, match="expected one shape"):
        convolutive_attention(maps, maps, maps[..., :5])
