"""Random maps of pairs: what each setting does, and that fixed, moving and labels move together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from field_examples import field_case, pair_arrays
from scipy.ndimage import affine_transform

from pipeline.errors import ConcordError
from pipeline.learned.field_batches import FieldBatch, FieldBatches, augmented, drawn_maps, low_passed
from pipeline.learned.settings.field import NO_AUGMENTATION, Augmentation

CPU = torch.device("cpu")


def batch(count=6, size=(20, 16)):
    images, labels = (np.stack(stack) for stack in zip(*(pair_arrays(seed, size) for seed in range(count)), strict=True))
    return FieldBatch(torch.from_numpy(images), torch.from_numpy(labels.astype(np.float32)))


def only(**changes):
    return Augmentation(**(NO_AUGMENTATION.model_dump() | changes))


def rng(seed=0):
    return np.random.default_rng(seed)


def test_no_augmentation_changes_nothing():
    given = batch()
    found = augmented(given, NO_AUGMENTATION, rng())
    torch.testing.assert_close(found.images, given.images, rtol=0, atol=1e-5)
    assert torch.equal(found.labels, given.labels)


def test_a_swap_exchanges_images_and_labels_of_about_half_the_items():
    given = batch(40)
    found = augmented(given, only(swap=True), rng())
    swapped = [torch.equal(a, b.flip(0)) for a, b in zip(found.labels, given.labels, strict=True)]
    assert 10 < sum(swapped) < 30
    for item, turned in enumerate(swapped):
        expected = given.images[item].flip(0) if turned else given.images[item]
        torch.testing.assert_close(found.images[item], expected, rtol=0, atol=1e-5)


def test_flips_mirror_whole_axes_and_all_four_ways_occur():
    given = batch(40)
    found = augmented(given, only(flip=True), rng())
    ways = set()
    for image, before in zip(found.images, given.images, strict=True):
        errors = {axes: (image - before.flip(axes)).abs().max().item() for axes in ((), (1,), (2,), (1, 2))}
        ways.add(min(errors, key=errors.get))
        assert min(errors.values()) < 1e-4
    assert len(ways) == 4


@pytest.mark.parametrize("how", [{"rotation_deg": 40.0}, {"crop": (0.6, 0.8)}, {"rotation_deg": 20.0, "crop": (0.8, 0.9), "flip": True}])
def test_maps_without_noise_are_rotations_and_crops_within_their_bounds(how):
    given, settings = batch(30), only(**how)
    maps = drawn_maps(given.images, settings, rng(4)).double()
    images = augmented(given, settings, rng(4)).images
    grid = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(20.0), indexing="ij")[::-1]).double()
    for item in range(30):
        where = (grid + maps[item]).numpy()
        origin, along_x, along_y = where[:, 0, 0], where[:, 0, 1] - where[:, 0, 0], where[:, 1, 0] - where[:, 0, 0]
        edge = np.linalg.norm(along_x)
        assert how.get("crop", (1, 1))[0] - 1e-5 <= edge <= how.get("crop", (1, 1))[1] + 1e-5
        assert abs(np.dot(along_x, along_y)) < 1e-5 and np.linalg.norm(along_y) == pytest.approx(edge, abs=1e-5)
        angle = np.degrees(np.arctan2(along_x[1], along_x[0]))
        assert min(abs(angle), 180 - abs(angle)) <= how.get("rotation_deg", 0) + 1e-3
        if "rotation_deg" not in how:  # a part of the image, nothing from outside
            assert where.min() > -1e-4 and where[0].max() < 19 + 1e-4 and where[1].max() < 15 + 1e-4
        matrix = np.stack([along_y[::-1], along_x[::-1]], axis=1)
        expected = affine_transform(given.images[item, 0].double().numpy(), matrix, origin[::-1], order=1, mode="nearest")
        np.testing.assert_allclose(images[item, 0], expected, atol=1e-4)


def test_crops_reach_every_side():
    maps = drawn_maps(batch(200).images, only(crop=(0.8, 0.8)), rng())
    first = maps[:, :, 0, 0]  # where the image's first voxel is fetched from
    low, high = first.amin(0), first.amax(0)
    np.testing.assert_allclose(low, 0, atol=0.15)
    np.testing.assert_allclose(high, [0.2 * 19, 0.2 * 15], atol=0.15)


def test_the_noise_is_smooth_and_of_the_size_that_is_told():
    maps = drawn_maps(torch.zeros(20, 2, 60, 60), only(deform_vx=2.0, deform_sigma_vx=3.0), rng())
    inner = maps[..., 10:-10, 10:-10]
    assert inner.square().mean().sqrt().item() == pytest.approx(2, rel=0.1)
    # a Gaussian of sigma s leaves the correlation exp(-d^2 / 4 s^2) at distance d
    correlation = (inner[..., 3:] * inner[..., :-3]).mean() / inner.square().mean()
    assert correlation.item() == pytest.approx(np.exp(-9 / 36), abs=0.05)
    volumes = low_passed(torch.randn(8, 8, 30, 30, 30), 2.0)[..., 6:-6, 6:-6, 6:-6]
    assert volumes.square().mean().sqrt().item() == pytest.approx(1, rel=0.1)


def test_labels_stay_labels_and_follow_the_images():
    given = batch(8)
    found = augmented(given, Augmentation(deform_sigma_vx=4), rng(1))
    assert set(found.labels.unique().tolist()) <= set(given.labels.unique().tolist())
    assert not torch.equal(found.labels, given.labels)
    # where the pool is labelled the images are darker than in the ring about it
    pool, ring = found.images[found.labels == 2].mean(), found.images[found.labels == 1].mean()
    assert given.images[given.labels == 2].mean() < ring - 0.1 and pool < ring - 0.1


def test_an_epoch_shows_every_pair_once_in_a_new_order_that_depends_on_the_seed_alone():
    cases = [field_case(seed) for seed in range(7)]

    def order(seed, epoch):
        batches = FieldBatches(cases, labels=False, seed=seed, device=CPU)
        parts = [batches.training(epoch, number, batch=3, augmentation=NO_AUGMENTATION).images for number in range(3)]
        return [int((batches.images - image).abs().amax((1, 2, 3)).argmin()) for image in torch.cat(parts)]

    assert sorted(order(0, 0)) == list(range(7))
    assert order(0, 0) == order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_batches_are_drawn_alike_whatever_was_drawn_before():
    batches = FieldBatches([field_case(seed) for seed in range(4)], labels=True, seed=0, device=CPU)
    late = batches.training(3, 1, batch=2, augmentation=Augmentation())
    batches.training(0, 0, batch=2, augmentation=Augmentation())
    again = batches.training(3, 1, batch=2, augmentation=Augmentation())
    assert torch.equal(late.images, again.images) and torch.equal(late.labels, again.labels)


def test_both_directions_show_every_pair_twice():
    batches = FieldBatches([field_case(seed) for seed in range(5)], labels=True, seed=0, device=CPU)
    shown = list(batches.both_directions(2))
    assert sum(len(part.images) for part in shown) == 10
    images, labels = (torch.cat([getattr(part, name) for part in shown]) for name in ("images", "labels"))
    for found, stack in ((images, batches.images), (labels, batches.labels)):
        torch.testing.assert_close(found.sum(0), (stack + stack.flip(1)).sum(0))
    assert batches.structures.tolist() == [1, 2]


def test_labels_that_are_missing_and_bad_crops_are_told():
    bare = field_case(0)
    object.__setattr__(bare, "labels", None)
    with pytest.raises(ConcordError, match="case case-0: no label maps"):
        FieldBatches([bare], labels=True, seed=0, device=CPU)
    assert FieldBatches([bare], labels=False, seed=0, device=CPU).structures.tolist() == []
    with pytest.raises(ValueError, match="expected two shares"):
        Augmentation(crop=(0.9, 0.8))
