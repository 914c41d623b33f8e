from __future__ import annotations

import math
from functools import partial
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.similarity.mind import mind, mind_mad, mind_ssc, mind_ssd, search_offsets, ssc_pairs

DELTA = 0.1  # a Gaussian this narrow leaves its input alone: the weight beside the centre is e^-50
DESCRIPTORS = {
    "mind": mind,
    "mind, wide": partial(mind, sigma_vx=1.2),
    "mind, dense": partial(mind, search_radius_vx=1),
    "mind, power": partial(mind, variance_limits="power"),
    "ssc": mind_ssc,
    "ssc, small": partial(mind_ssc, radius_vx=1, dilation_vx=1),
}
SHAPES = {"2-D": (7, 6), "3-D": (5, 6, 4)}
each_descriptor = pytest.mark.parametrize("name", DESCRIPTORS)
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def image(shape, batch=1, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=(batch, 1, *shape)))


# ---- by hand


def test_mind_of_three_pixels_by_hand():
    row = torch.tensor([[[[0.0, 1.0, 3.0]]]], dtype=torch.float64)
    # distances to y+1, y-1, x+1, x-1 with zeros outside: (0 0 1 0), (1 1 4 1), (9 9 9 4); V = 1/4, 7/4, 31/4
    expected = [[1, 1, math.exp(-4), 1], [1, 1, math.exp(-3 / 1.75), 1], [math.exp(-5 / 7.75)] * 3 + [1]]
    np.testing.assert_allclose(mind(row, sigma_vx=DELTA)[0, :, 0].T, expected, atol=1e-12)


def test_ssc_of_three_pixels_by_hand():
    row = torch.tensor([[[[0.0, 1.0, 3.0]]]], dtype=torch.float64)
    # pairs (y+ x+) (y- x-) (y+ x-) (y- x+), borders repeated: (1 0 0 1), (4 1 1 4), (0 4 4 0); less the smallest, over half the spread
    low = math.exp(-2)
    expected = [[low, 1, 1, low], [low, 1, 1, low], [1, low, low, 1]]
    np.testing.assert_allclose(mind_ssc(row, radius_vx=0, dilation_vx=1)[0, :, 0].T, expected, atol=1e-12)


def test_the_default_gaussian_has_three_taps():
    spike = torch.zeros(1, 1, 1, 9, dtype=torch.float64)
    spike[..., 4] = 1
    side = math.exp(-2) / (1 + 2 * math.exp(-2))
    distances_up = np.zeros(9)  # of y+1: the spike against zeros, smoothed along x
    distances_up[3:6] = side, 1 - 2 * side, side
    distances_right = smoothed_by_hand([0, 0, 0, 1, 1, 0, 0, 0, 0], side)
    variance = (2 * distances_up + distances_right + distances_right[::-1]) / 4
    here = mind(spike)[0, :, 0, 4].numpy()
    np.testing.assert_allclose(here, [1, 1, *[math.exp(-(1 - side - (1 - 2 * side)) / variance[4])] * 2], rtol=1e-12)


def smoothed_by_hand(values, side):
    padded = np.pad(np.asarray(values, dtype=float), 1, mode="edge")
    return side * padded[:-2] + (1 - 2 * side) * padded[1:-1] + side * padded[2:]


# ---- against a second implementation: plain loops over voxels


def loops_filtered(volume, taps):
    radius, out = len(taps) - 1, np.zeros(volume.shape)
    for centre in np.ndindex(volume.shape):
        for step in product(range(-radius, radius + 1), repeat=volume.ndim):
            where = tuple(min(max(c + s, 0), n - 1) for c, s, n in zip(centre, step, volume.shape, strict=True))
            out[centre] += np.prod([taps[abs(s)] for s in step]) * volume[where]
    return out


def loops_distance(volume, first, second, taps, *, replicate):
    def at(centre, offset):
        where = tuple(c + o for c, o in zip(centre, offset, strict=True))
        if replicate:
            where = tuple(min(max(w, 0), n - 1) for w, n in zip(where, volume.shape, strict=True))
        return volume[where] if all(0 <= w < n for w, n in zip(where, volume.shape, strict=True)) else 0.0

    squared = np.zeros(volume.shape)
    for centre in np.ndindex(volume.shape):
        squared[centre] = (at(centre, first) - at(centre, second)) ** 2
    return loops_filtered(squared, taps)


def loops_mind(volume, sigma, radius, limits=None):
    taps = np.exp(-0.5 * (np.arange(math.ceil(1.5 * sigma) + 1) / sigma) ** 2)
    taps /= taps[0] + 2 * taps[1:].sum()
    still = (0,) * volume.ndim
    nearest = np.stack([loops_distance(volume, still, o, taps, replicate=False) for o in search_offsets(volume.ndim)])
    variance = nearest.mean(0)
    low, high = limits(variance.mean()) if limits else (0.001 * variance.mean(), 1000 * variance.mean())
    variance = np.clip(variance, low, high)
    largest = np.exp(-nearest / variance).max(0)
    wanted = np.stack([loops_distance(volume, still, o, taps, replicate=False) for o in search_offsets(volume.ndim, radius)])
    return np.exp(-wanted / variance) / largest


def loops_ssc(volume, radius, dilation):
    taps = [1 / (2 * radius + 1)] * (radius + 1)
    pairs = [[tuple(dilation * o for o in offset) for offset in pair] for pair in ssc_pairs(volume.ndim)]
    distances = np.stack([loops_distance(volume, a, b, taps, replicate=True) for a, b in pairs])
    distances -= distances.min(0)
    variance = distances.mean(0)
    return np.exp(-distances / np.clip(variance, 0.001 * variance.mean(), 1000 * variance.mean()))


@pytest.mark.parametrize(("shape", "sigma", "radius"), [((6, 6, 6), 0.5, 0), ((4, 5, 3), 0.5, 1), ((6, 7), 0.9, 0), ((6, 7), 0.5, 2)])
def test_mind_agrees_with_plain_loops(shape, sigma, radius):
    volume = image(shape)
    np.testing.assert_allclose(mind(volume, sigma_vx=sigma, search_radius_vx=radius)[0], loops_mind(volume[0, 0].numpy(), sigma, radius), rtol=1e-9)


@pytest.mark.parametrize(("shape", "radius", "dilation"), [((6, 6, 6), 2, 2), ((6, 5, 6), 1, 1), ((3, 6, 5), 1, 2), ((7, 6), 2, 2), ((9, 8), 1, 3)])
def test_ssc_agrees_with_plain_loops(shape, radius, dilation):
    volume = image(shape)
    np.testing.assert_allclose(
        mind_ssc(volume, radius_vx=radius, dilation_vx=dilation)[0], loops_ssc(volume[0, 0].numpy(), radius, dilation), rtol=1e-8
    )


def test_variance_limits_bite_where_an_image_is_flat():
    volume = torch.zeros(1, 1, 6, 40, dtype=torch.float64)
    volume[..., 20:] = image((6, 20)) + 1
    volume[..., :20] += 1e-3 * image((6, 20), seed=1)
    relative, power = mind(volume)[0], mind(volume, variance_limits="power")[0]
    np.testing.assert_allclose(relative, loops_mind(volume[0, 0].numpy(), 0.5, 0), rtol=1e-9)
    np.testing.assert_allclose(power, loops_mind(volume[0, 0].numpy(), 0.5, 0, lambda m: sorted((m**0.5, m**2))), rtol=1e-9)
    assert relative[:, 2:-2, 2:18].min() > 0.9  # noise far under the limit looks flat
    assert (relative - power).abs().max() > 0.1
    bright = 30 * volume  # the mean distance is now above 1, and its square above its root
    expected = loops_mind(bright[0, 0].numpy(), 0.5, 0, lambda m: sorted((m**0.5, m**2)))
    np.testing.assert_allclose(mind(bright, variance_limits="power")[0], expected, rtol=1e-9)


# ---- properties


@each_shape
@pytest.mark.parametrize("name", [name for name in DESCRIPTORS if name not in ("mind, power", "mind, dense")])
def test_values_are_in_0_to_1_and_the_largest_is_1(name, shape):
    values = DESCRIPTORS[name](image(shape, batch=2))
    assert values.shape[:2] == (2, {"mind": 2 * len(shape), "ssc": 12 if len(shape) == 3 else 4}[name.split(",")[0]])
    assert values.min() > 0
    torch.testing.assert_close(values.amax(1), torch.ones_like(values[:, 0]))


NOT_ZERO = st.floats(0.01, 500).flatmap(lambda s: st.sampled_from([s, -s]))


@settings(max_examples=20, deadline=None)
@given(scale=NOT_ZERO, name=st.sampled_from(["mind", "mind, wide", "mind, dense", "ssc", "ssc, small"]))
def test_contrast_changes_nothing_not_even_its_inversion(scale, name):
    volume = image((6, 5, 7))
    torch.testing.assert_close(DESCRIPTORS[name](scale * volume), DESCRIPTORS[name](volume), rtol=1e-6, atol=1e-7)


@settings(max_examples=20, deadline=None)
@given(scale=NOT_ZERO, offset=st.floats(-100, 100), name=st.sampled_from(["ssc", "ssc, small"]))
def test_brightness_changes_nothing_in_ssc(scale, offset, name):
    volume = image((6, 5, 7))
    torch.testing.assert_close(DESCRIPTORS[name](scale * volume + offset), DESCRIPTORS[name](volume), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(12, 13), (8, 9, 8)])
def test_brightness_changes_mind_only_near_the_border_where_zeros_come_in(shape):
    volume = image(shape)
    change = (mind(3 * volume + 2) - mind(volume)).abs().amax(1)
    inside = (0, *[slice(2, -2)] * len(shape))
    assert change[inside].max() < 1e-9
    assert change.max() > 0.01


@each_shape
@each_descriptor
def test_a_flipped_or_turned_image_has_the_flipped_or_turned_descriptor(name, shape):
    volume, dimension, function = image(shape), len(shape), DESCRIPTORS[name]
    turns = list(product(permutations(range(dimension)), product((1, -1), repeat=dimension)))
    for order, flips in turns[:: 1 if dimension == 2 else 5]:

        def turned(stack, order=order, flips=flips):
            flipped = torch.flip(stack, [axis + 2 for axis in range(dimension) if flips[axis] < 0])
            return flipped.permute(0, 1, *[axis + 2 for axis in order])

        def offset(old, order=order, flips=flips):
            return tuple(flips[axis] * old[axis] for axis in order)

        if name.startswith("ssc"):
            keys = [frozenset(pair) for pair in ssc_pairs(dimension)]
            channels = [keys.index(frozenset(offset(o) for o in pair)) for pair in ssc_pairs(dimension)]
        else:
            keys = search_offsets(dimension, 1 if "dense" in name else 0)
            channels = [keys.index(offset(old)) for old in keys]
        torch.testing.assert_close(function(turned(volume))[:, channels], turned(function(volume)))


def test_pairs_and_offsets_are_the_published_ones():
    assert len({frozenset(pair) for pair in ssc_pairs(3)}) == 12
    assert len(ssc_pairs(2)) == 4
    assert all(sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) == 2 for pair in ssc_pairs(3))
    assert len(set(search_offsets(3, 2))) == 5**3 - 1
    assert sorted(search_offsets(2)) == [(-1, 0), (0, -1), (0, 1), (1, 0)]


@each_descriptor
def test_each_image_of_a_batch_stands_alone(name):
    volumes = image((5, 6, 4), batch=3)
    volumes[1] *= 40
    together = DESCRIPTORS[name](volumes)
    torch.testing.assert_close(together, torch.cat([DESCRIPTORS[name](volumes[b : b + 1]) for b in range(3)]))


@each_shape
@each_descriptor
def test_gradient_is_that_of_finite_differences(name, shape):
    volume = image([n - 2 for n in shape]).requires_grad_()  # small: a pass for every voxel
    assert torch.autograd.gradcheck(DESCRIPTORS[name], (volume,), atol=1e-5, fast_mode="dense" in name)


@each_descriptor
def test_with_and_without_gradients_gives_the_same_and_leaves_the_image_alone(name):
    volume = image((5, 6, 4))
    before = volume.clone()
    plain = DESCRIPTORS[name](volume)
    torch.testing.assert_close(DESCRIPTORS[name](volume.clone().requires_grad_()).detach(), plain, rtol=1e-12, atol=1e-14)
    assert torch.equal(volume, before)


@each_shape
@each_descriptor
def test_an_image_without_contrast_is_finite_and_so_is_its_gradient(name, shape):
    flat = torch.zeros(1, 1, *shape).requires_grad_()
    values = DESCRIPTORS[name](flat)
    values.sum().backward()
    assert torch.equal(values, torch.ones_like(values))
    assert flat.grad.isfinite().all()


def test_an_image_thinner_than_the_patch_is_taken():
    assert mind_ssc(image((1, 2, 3)), radius_vx=3, dilation_vx=2).isfinite().all()


# ---- similarities


@pytest.mark.parametrize("similarity", [mind_ssd, mind_mad])
def test_a_match_costs_nothing_and_an_inverted_one_neither(similarity):
    volume = image((8, 8, 8))
    assert similarity(volume, volume, descriptor=mind_ssc) == 0
    assert similarity(volume, 3 - 2 * volume, descriptor=mind_ssc) < 1e-12
    assert similarity(volume, volume.roll(2, -1), descriptor=mind_ssc) > 0.01


def test_similarities_are_the_mean_over_channels_and_voxels():
    fixed, warped = image((6, 5)), image((6, 5), seed=1)
    difference = mind(fixed) - mind(warped)
    torch.testing.assert_close(mind_ssd(fixed, warped), (difference**2).mean())
    torch.testing.assert_close(mind_mad(fixed, warped), difference.abs().mean())


@pytest.mark.parametrize("similarity", [mind_ssd, mind_mad])
def test_known_descriptors_of_the_fixed_image_are_not_computed_again(similarity):
    fixed, warped, calls = image((6, 5, 7)), image((6, 5, 7), seed=1), []

    def counted(volume):
        calls.append(1)
        return mind_ssc(volume)

    assert similarity(mind_ssc(fixed), warped, descriptor=counted) == similarity(fixed, warped, descriptor=mind_ssc)
    assert len(calls) == 1


@pytest.mark.parametrize("similarity", [mind_ssd, mind_mad])
def test_a_mask_says_which_voxels_count(similarity):
    fixed, warped = image((6, 8), batch=2), image((6, 8), batch=2, seed=1)
    mask = torch.zeros(1, 1, 6, 8)
    mask[..., 2:4, 3:6] = 1
    difference = (mind(fixed) - mind(warped))[..., 2:4, 3:6]
    expected = (difference**2 if similarity is mind_ssd else difference.abs()).mean()
    torch.testing.assert_close(similarity(fixed, warped, mask=mask), expected)
    torch.testing.assert_close(similarity(fixed, warped, mask=torch.ones(2, 1, 6, 8) * 3), similarity(fixed, warped))


def test_the_similarity_pulls_a_shifted_image_back():
    steps = torch.arange(40, dtype=torch.float64)
    fixed = torch.sin(steps / 3)[None, :] + torch.cos(steps / 4)[:, None]
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    warped = 2 - torch.sin((steps + 1 - shift) / 3)[None, :] - torch.cos(steps / 4)[:, None]
    mind_ssd(fixed[None, None], warped[None, None]).backward()
    assert shift.grad < 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mind(torch.zeros(5, 5)), r"\(5, 5\).*expected \(batch, 1"),
        (lambda: mind_ssc(torch.zeros(1, 2, 5, 5)), "expected \\(batch, 1"),
        (lambda: mind(torch.zeros(1, 1, 5, 5), sigma_vx=0), "positive sigma"),
        (lambda: mind(torch.zeros(1, 1, 5, 5), search_radius_vx=-1), "radius of 0 or more"),
        (lambda: mind_ssc(torch.zeros(1, 1, 5, 5), dilation_vx=0), "dilation of 1 or more"),
        (lambda: mind_ssd(torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 6)), "expected one grid"),
        (lambda: mind_ssd(torch.zeros(1, 12, 5, 5), torch.zeros(1, 1, 5, 5)), "same descriptor"),
        (lambda: mind_mad(image((5, 5)), image((5, 5)), mask=torch.zeros(1, 1, 5, 5)), "mask is empty"),
        (lambda: mind_mad(image((5, 5)), image((5, 5)), mask=torch.ones(1, 1, 5, 4)), "mask of shape"),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
