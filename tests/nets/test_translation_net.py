"""The hierarchical translation model: its parts, how they are joined, and models that lack some."""

from __future__ import annotations

import itertools

import pytest
import torch

from nets.fields import warp
from nets.translation import PARTS, HierarchicalTranslation

COUNTS = {"coarse": 109_170, "translate": 109_025, "fine": 109_314}


def lively(network, std=0.05):
    """The network with displacements that are not near zero."""
    for part in ("coarse", "fine"):
        if part in network.parts:
            torch.nn.init.normal_(getattr(network, part).unet.output.weight, std=std)
    return network


def images(dimension=2, batch=2):
    torch.manual_seed(3)
    return torch.rand(batch, 2, *((20, 24) if dimension == 2 else (16, 15, 17)))


def test_the_parts_have_the_published_sizes():
    network = HierarchicalTranslation(2)
    assert {name: sum(p.numel() for p in getattr(network, name).parameters()) for name in PARTS} == COUNTS


@pytest.mark.parametrize("dimension", [2, 3])
def test_warping_once_by_the_whole_is_warping_by_the_coarse_and_then_by_the_fine(dimension):
    torch.manual_seed(0)
    network = lively(HierarchicalTranslation(dimension)).double()
    u0 = HierarchicalTranslation(dimension, parts=("coarse",)).double()
    u0.load_state_dict({k: v for k, v in network.state_dict().items() if k.startswith("coarse")})
    given = images(dimension, batch=1).double()
    found = network(given)
    torch.testing.assert_close(found.coarse.forward, u0(given).displacement_vx)
    torch.testing.assert_close(found.displacement_vx, found.fine + warp(found.coarse.forward, found.fine))
    # an image that is linear in its coordinates shows it without an error of interpolation
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in given.shape[2:]), indexing="ij")
    ramp = sum((k + 1) * axis for k, axis in enumerate(axes))[None, None]
    inner = (..., *[slice(5, -5)] * dimension)
    once, twice = warp(ramp, found.displacement_vx), warp(warp(ramp, found.coarse.forward), found.fine)
    torch.testing.assert_close(once[inner], twice[inner])
    assert (found.fine.abs().amax() > 0.01) and (found.coarse.forward.abs().amax() > 0.01)


def test_the_mask_is_added_to_the_moving_image_and_the_sum_is_seen_by_the_fine_part():
    torch.manual_seed(0)
    network, given = lively(HierarchicalTranslation(2)), images()
    found = network(given)
    torch.testing.assert_close(found.mask, network.translate(given))
    torch.testing.assert_close(found.translated, given[:, 1:] + found.mask)
    torch.testing.assert_close(found.fine, network.fine(torch.cat([given, found.translated], dim=1)))


def test_a_translation_that_sees_the_moving_image_alone_knows_nothing_of_the_fixed_one():
    torch.manual_seed(0)
    network, given = HierarchicalTranslation(2, translate_sees="moving"), images()
    other = torch.cat([1 - given[:, :1], given[:, 1:]], dim=1)
    assert torch.equal(network(given).translated, network(other).translated)
    assert sum(p.numel() for p in network.translate.parameters()) == 109_025 - 16 * 9
    both = HierarchicalTranslation(2)
    assert not torch.equal(both(given).translated, both(other).translated)


@pytest.mark.parametrize("parts", [c for n in (1, 2, 3) for c in itertools.combinations(PARTS, n)])
def test_a_model_may_lack_parts(parts):
    torch.manual_seed(0)
    network, given = lively(HierarchicalTranslation(2, parts=parts)), images()
    found = network(given)
    assert found.displacement_vx.shape == given.shape
    assert [name for name in PARTS if getattr(found, {"translate": "mask"}.get(name, name)) is not None] == list(parts)
    if "coarse" not in parts:
        assert torch.equal(found.displacement_vx, found.fine if "fine" in parts else torch.zeros_like(given))
    if "fine" in parts:
        assert network.fine.unet.inputs == (3 if "translate" in parts else 2)


def test_it_may_stop_early():
    network, given = lively(HierarchicalTranslation(2)), images()
    found = network(given, until="coarse")
    assert found.mask is None and torch.equal(found.displacement_vx, found.coarse.forward)
    found = network(given, until="translate")
    assert found.fine is None and found.translated is not None and torch.equal(found.displacement_vx, found.coarse.forward)


def test_a_coarse_displacement_has_no_inverse():
    assert HierarchicalTranslation(2, coarse_output="displacement")(images()).coarse.inverse is None
    assert HierarchicalTranslation(2)(images()).coarse.inverse is not None


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: HierarchicalTranslation(2, parts=()), "no parts"),
        (lambda: HierarchicalTranslation(2, translate_sees="fixed"), "expected both or moving"),
        (lambda: HierarchicalTranslation(2, parts=("coarse", "finer")), "'finer'"),
        (lambda: HierarchicalTranslation(2)(torch.rand(1, 3, 16, 16)), "channel 0 fixed"),
        (lambda: HierarchicalTranslation(2, parts=("coarse",))(images(), until="fine"), "until 'fine'"),
    ],
)
def test_what_does_not_fit_is_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()
