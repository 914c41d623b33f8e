from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import map_coordinates

from pipeline.errors import ConcordError
from pipeline.learned.patch_pairs import AlignedPair, PatchSampler, data_of, normalisation_card, unit_range
from pipeline.learned.settings.patch_metric import PatchPairSettings

SHAPES = {"2-D": (40, 36), "3-D": (36, 34, 38)}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
STILL = {"scale": (1.0, 1.0), "rotation_degrees": 0.0, "mirror": False, "batch": 8}


def ramp(shape, axis):
    """A volume whose value is the position along one axis, 0 to 1."""
    return np.moveaxis(np.broadcast_to(np.linspace(0, 1, shape[axis]), np.delete(shape, axis).tolist() + [shape[axis]]), -1, axis).astype(np.float32)


def smooth(shape, seed=0):
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    phase = np.random.default_rng(seed).uniform(0, 6, len(shape))
    return sum(np.sin(axis / 5 + p) for axis, p in zip(axes, phase, strict=True)).astype(np.float32)


def same_pairs(shape, count=2):
    return [AlignedPair(smooth(shape, i), smooth(shape, i), f"pair {i}") for i in range(count)]


def sampler(pairs, seed=0, **settings):
    return PatchSampler(pairs, PatchPairSettings(**settings), seed=seed)


def unnormalised(patches, of):
    return torch.stack([patches[:, c] * std + mean for c, (mean, std) in enumerate(of.normalisation)], 1)


# ---- what a batch is


@each_shape
def test_half_of_a_batch_is_aligned_and_half_is_not(shape):
    patches, labels = sampler(same_pairs(shape), batch=16).batch(0)
    assert patches.shape == (16, 2, *[17] * len(shape)) and patches.dtype == torch.float32
    assert labels.tolist() == [-1] * 8 + [1] * 8
    differences = (patches[:, 0] - patches[:, 1]).abs().flatten(1).amax(1)
    assert (differences[:8] < 1e-4).all() and (differences[8:] > 0.05).all()


@each_shape
def test_a_batch_follows_from_seed_and_step_alone(shape):
    pairs = same_pairs(shape)
    one, other = sampler(pairs, batch=4), sampler(pairs, batch=4)
    for step in (5, 0, 3):
        one.batch(step)
    assert torch.equal(one.batch(2)[0], other.batch(2)[0])
    assert not torch.equal(one.batch(2)[0], one.batch(3)[0])
    assert not torch.equal(one.batch(2)[0], sampler(pairs, seed=1, batch=4).batch(2)[0])
    assert not torch.equal(one.batch(2)[0], one.batch(2, "validation")[0])


@each_shape
def test_without_augmentation_a_patch_is_a_piece_of_the_volume(shape):
    axis = len(shape) - 1
    pairs = [AlignedPair(ramp(shape, axis), ramp(shape, 0), "ramps")]
    drawn = sampler(pairs, **STILL)
    values = unnormalised(drawn.batch(0)[0], drawn)
    along_x, along_first = values[:4, 0] * (shape[-1] - 1), values[:4, 1] * (shape[0] - 1)
    steps = torch.arange(17.0)
    for patch in along_x:
        torch.testing.assert_close(patch - patch.flatten()[0], steps.expand_as(patch), atol=1e-3, rtol=0)
    for patch in along_first:
        torch.testing.assert_close(patch - patch.flatten()[0], steps.view(-1, *[1] * axis).expand_as(patch), atol=1e-3, rtol=0)


@each_shape
@pytest.mark.parametrize("mirror", [False, True])
def test_patches_are_linear_interpolations_at_a_rotated_scaled_lattice(shape, mirror):
    # the volumes of three (or two) ramps tell where each sample lies; a second implementation then reads the image there
    ramps = [
        sampler([AlignedPair(ramp(shape, axis), smooth(shape), "p")], mirror=mirror, rotation_degrees=40, batch=12) for axis in range(len(shape))
    ]
    places = torch.stack([unnormalised(s.batch(1)[0], s)[:6, 0] * (shape[axis] - 1) for axis, s in enumerate(ramps)], -1)
    values = unnormalised(ramps[0].batch(1)[0], ramps[0])[:6, 1]
    expected = map_coordinates(unit_range(smooth(shape), "p"), places.flatten(0, -2).T.numpy(), order=1).reshape(values.shape)
    np.testing.assert_allclose(values, expected, atol=2e-4)
    # edges of the lattice: equal length within the scale's range, right angles, and a determinant that tells of mirroring
    corner = places[(slice(None), *[0] * len(shape))]
    edges = torch.stack([places[(slice(None), *[16 * (e == d) for e in range(len(shape))])] - corner for d in range(len(shape))], 1)
    lengths = edges.norm(dim=-1)
    torch.testing.assert_close(lengths, lengths[:, :1].expand_as(lengths), rtol=1e-3, atol=0)
    assert ((lengths >= 0.8 * 16 - 1e-2) & (lengths <= 1.25 * 16 + 1e-2)).all() and lengths.std() > 0.5
    gram = edges @ edges.mT
    assert (gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))).abs().max() < 0.5
    assert (torch.linalg.det(edges) < 0).any() == mirror


@each_shape
def test_rotations_stay_within_their_bound(shape):
    def angles(degrees):
        settings = STILL | {"rotation_degrees": degrees, "batch": 200, "scale": (0.5, 0.5)}
        axes = [
            unnormalised(s.batch(0)[0], s)[:100, 0]
            for s in (sampler([AlignedPair(ramp(shape, a), ramp(shape, a), "p")], **settings) for a in range(len(shape)))
        ]
        edge = torch.stack([(a.flatten(1)[:, 16] - a.flatten(1)[:, 0]) * (n - 1) / 8 for a, n in zip(axes, shape, strict=True)], -1)
        return torch.rad2deg(torch.acos(edge[:, -1].clamp(-1, 1)))

    assert angles(0).max() < 1
    assert 15 < angles(20).max() < 20.5


@each_shape
def test_positions_reach_every_border_and_none_lies_outside(shape):
    pairs = [AlignedPair(ramp(shape, 0), ramp(shape, len(shape) - 1), "ramps")]
    values = unnormalised(sampler(pairs, **(STILL | {"batch": 256})).batch(0)[0], sampler(pairs, **STILL))
    for channel, n in ((0, shape[0]), (1, shape[-1])):
        first = values[:, channel].flatten(1).amin(1) * (n - 1)
        assert first.min() < 0.5 and first.max() > n - 17.5 and first.max() < n - 17 + 1e-3
        assert first.mean().item() == pytest.approx((n - 17) / 2, abs=1.5)


@each_shape
def test_rotated_cubes_fit_whole_where_there_is_room(shape):
    shape, settings = tuple(30 for _ in shape), {"rotation_degrees": 180.0, "scale": (1.0, 1.0), "batch": 200}
    for axis in range(len(shape)):  # a cube that stuck out would bend the ramp at the border
        drawn = sampler([AlignedPair(ramp(shape, axis), ramp(shape, axis), "ramp")], **settings)
        values = unnormalised(drawn.batch(0)[0], drawn)
        for d in range(2, values.ndim):
            assert values.diff(n=2, dim=d).abs().max() < 1e-4


def test_a_volume_smaller_than_the_cube_repeats_its_border():
    pairs = [AlignedPair(ramp((11, 40), 0), ramp((11, 40), 1), "flat")]
    drawn = sampler(pairs, **STILL)
    values = unnormalised(drawn.batch(0)[0], drawn)[:4, 0] * 10
    expected = (torch.arange(17.0) - 3).clamp(0, 10)
    torch.testing.assert_close(values[..., 0], expected.expand(4, 17), atol=1e-4, rtol=0)


@each_shape
def test_volumes_of_other_sizes_do_not_shine_through(shape):
    # volume i holds values 10 i to 10 i + 1 in both channels; min-max is taken over each volume, so mark volumes by their corners
    small, large = shape, tuple(n + 5 for n in shape)
    pairs = [AlignedPair(ramp(s, 0), np.full(s, 0.5, np.float32), f"{s}") for s in (small, large, small)]
    for pair in pairs:
        pair.b.flat[0], pair.b.flat[1] = 0, 1
    drawn = sampler(pairs, **(STILL | {"batch": 512}))
    values = unnormalised(drawn.batch(0)[0], drawn)
    slope = values[:, 0].diff(dim=1).flatten(1)
    steps = torch.tensor([1 / (n - 1) for n in {small[0], large[0]}])
    assert (slope[..., None] - steps).abs().amin(-1).max() < 1e-4
    assert ((values[:, 1] - 0.5).abs() > 1e-3).flatten(1).sum(1).max() <= 4 ** len(shape)


def test_volumes_are_drawn_alike_often_and_both_channels_come_from_one_pair():
    shape = (40, 40)
    levels = [0.2, 0.5, 0.8]
    pairs = [AlignedPair(np.full(shape, v, np.float32), np.full(shape, v, np.float32), str(v)) for v in levels]
    for pair in pairs:
        pair.a[0, :2] = pair.b[0, :2] = (0, 1)
    drawn = sampler(pairs, **(STILL | {"batch": 600}))
    middle = unnormalised(drawn.batch(0)[0], drawn)[:, :, 8, 8]
    assert (middle[:, 0] - middle[:, 1]).abs().max() < 1e-4
    shares = [(middle[:, 0] - v).abs().lt(0.05).float().mean().item() for v in levels]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.07)


# ---- channels


def test_channels_are_normalised_by_their_own_mean_and_deviation():
    shape = (40, 40)
    pairs = [AlignedPair(smooth(shape, i), np.exp(2 * smooth(shape, i)), str(i)) for i in range(3)]
    drawn = sampler(pairs)
    for channel, side in enumerate("ab"):
        units = np.concatenate([unit_range(getattr(pair, side), "p").ravel() for pair in pairs])
        assert drawn.normalisation[channel] == pytest.approx((units.mean(), units.std()), rel=1e-4)
    held_out = PatchSampler(same_pairs(shape), PatchPairSettings(), seed=0, normalisation=drawn.normalisation)
    assert held_out.normalisation == drawn.normalisation
    assert normalisation_card(("t1", "t2"), drawn.normalisation)["t2"] == {"mean": drawn.normalisation[1][0], "std": drawn.normalisation[1][1]}


def test_swapping_turns_every_other_patch_and_nothing_else():
    pairs = [AlignedPair(smooth((40, 40), 0), smooth((40, 40), 1), "p")]
    plain, swapped = (sampler(pairs, batch=8, swap_channels=swap).batch(0)[0] for swap in (False, True))
    assert torch.equal(plain[::2], swapped[::2]) and torch.equal(plain[1::2], swapped[1::2].flip(1))
    assert not torch.equal(plain, swapped)


def test_contrast_is_a_gain_and_a_gamma_of_each_channel_alone():
    pairs = [AlignedPair(ramp((40, 40), 0), ramp((40, 40), 0), "p")]
    plain, changed = (sampler(pairs, **(STILL | {"contrast": c, "batch": 64})) for c in (0.0, 0.4))
    before, after = (unnormalised(s.batch(0)[0], s).flatten(2).double().clamp(min=1e-9) for s in (plain, changed))
    # log after = log gain + gamma log before: a straight line through two samples hits a third
    (x0, x1, x2), (y0, y1, y2) = ([v[..., i].log() for i in (20, 150, 280)] for v in (before, after))
    gamma = (y2 - y0) / (x2 - x0)
    torch.testing.assert_close(y1 - y0, gamma * (x1 - x0), atol=2e-3, rtol=0)
    log_gain = y0 - gamma * x0
    assert gamma.log().abs().max() < 0.41 and log_gain.abs().max() < 0.41
    assert gamma.log().std() > 0.15 and log_gain.std() > 0.15
    assert (gamma[:, 0] - gamma[:, 1]).abs().max() > 0.1


def test_the_range_is_mapped_to_zero_and_one():
    array = np.array([[-2, 0], [2, 6]], np.int16)
    np.testing.assert_allclose(unit_range(array, "p"), [[0, 0.25], [0.5, 1]])
    np.testing.assert_allclose(unit_range(array, "p", np.array([[0, 1], [1, 0]])), [[0, 0], [1, 1]])
    assert unit_range(array, "p").dtype == np.float32


# ---- refusals, and what the card says


def test_bad_volumes_are_refused_by_name():
    good = AlignedPair(smooth((20, 20)), smooth((20, 20)), "good")
    with pytest.raises(ConcordError, match=r"odd: volumes of shape \(20, 20\) and \(20, 21\)"):
        AlignedPair(smooth((20, 20)), smooth((20, 21)), "odd")
    with pytest.raises(ConcordError, match="no pairs"):
        sampler([])
    with pytest.raises(ConcordError, match="deep is 3-D, good is 2-D"):
        sampler([good, AlignedPair(smooth((20, 20, 20)), smooth((20, 20, 20)), "deep")])
    with pytest.raises(ConcordError, match="dull: every sample is 1"):
        sampler([AlignedPair(np.ones((20, 20)), smooth((20, 20)), "dull")])
    with pytest.raises(ConcordError, match="the mask is empty"):
        unit_range(good.a, "good", np.zeros((20, 20)))


@pytest.mark.parametrize("settings", [{"batch": 7}, {"scale": (1.2, 0.8)}, {"scale": (0, 1)}, {"rotation_degrees": -1}, {"rotations": 3}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        PatchPairSettings(**settings)


def test_data_are_told_apart_by_their_samples():
    one, other = same_pairs((20, 20), 2)
    rows = data_of([one, AlignedPair(one.a, one.b, "copy", (("a.mha", "00"),)), other])
    assert rows[0]["sha256"] == rows[1]["sha256"] != rows[2]["sha256"]
    assert rows[1]["files"] == {"a.mha": "00"} and rows[2]["name"] == "pair 1"
