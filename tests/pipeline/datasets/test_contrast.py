"""Images of random contrast: what a seed draws, partial volume by hand, and each fault of the acquisition alone."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.datasets.phantoms.contrast import (
    LEVELS,
    ContrastRanges,
    LabelContrast,
    _averages,
    _linear,
    _partial_volume,
    indexed,
    random_contrast,
    synthetic_image,
)

CLEAN = {
    "texture": (0, 0),
    "merge_share": 0,
    "dark_background": 1,
    "point_spread_mm": (0, 0),
    "thick_share": 0,
    "gamma": (1, 1),
    "bias": (0, 0),
    "noise": (0, 0),
}
"""A contrast and nothing else."""


def clean(**changes) -> ContrastRanges:
    return ContrastRanges(**CLEAN | changes)


def blocks(shape: tuple[int, ...] = (12, 16, 20)) -> np.ndarray:
    """Background with three boxes of labels 2, 41 and 530."""
    labels = np.zeros(shape, np.int32)
    inner = tuple(slice(2, n - 2) for n in shape)
    labels[inner] = 2
    labels[inner][..., : shape[-1] // 2] = 41
    labels[inner][..., : shape[-1] // 4] = 530
    return labels


def drawn(labels: np.ndarray, ranges: ContrastRanges, seed: int = 0, shape: tuple[int, ...] | None = None, spacing_mm: float = 1.0) -> np.ndarray:
    index = indexed(labels, (spacing_mm,) * labels.ndim)
    return synthetic_image(index, shape or labels.shape, ranges, np.random.default_rng(seed))


class TestContrast:
    def test_values_lie_in_their_ranges_and_differ_by_label(self):
        values = np.arange(500)
        mean, texture = random_contrast(values, ContrastRanges(mean=(0.2, 0.7), texture=(0.01, 0.03), merge_share=0), np.random.default_rng(3))
        body = values != 0
        assert 0.2 <= mean[body].min() < 0.22 < 0.68 < mean[body].max() <= 0.7
        assert 0.01 <= texture[body].min() < texture[body].max() <= 0.03
        assert len(np.unique(mean)) == 500

    @pytest.mark.parametrize("share", [0.0, 0.15, 0.6, 1.0])
    def test_so_many_labels_take_the_contrast_of_another(self, share):
        mean, texture = random_contrast(np.arange(4001), ContrastRanges(merge_share=share, dark_background=0), np.random.default_rng(1))
        assert len(np.unique(mean)) == len(np.unique(np.stack([mean, texture]), axis=1).T)  # a mean never comes with another's texture
        own = np.random.default_rng(1).uniform(*ContrastRanges().mean, 4001)
        assert np.mean(mean != own) == pytest.approx(share, abs=0.03)

    def test_no_label_merges_with_the_background(self):
        for seed in range(50):
            for dark in (0, 1):
                mean, _ = random_contrast(np.array([0, 5, 9]), ContrastRanges(merge_share=1, dark_background=dark), np.random.default_rng(seed))
                assert (mean[0] == 0) == dark
                assert mean[0] not in mean[1:]
                assert mean[1:].min() >= 0.05

    @pytest.mark.parametrize("probability", [0.0, 0.8, 1.0])
    def test_the_background_is_dark_as_often_as_asked_for(self, probability):
        ranges = ContrastRanges(dark_background=probability)
        dark = [random_contrast(np.array([0, 1]), ranges, np.random.default_rng(seed)).mean[0] == 0 for seed in range(400)]
        assert np.mean(dark) == pytest.approx(probability, abs=0.06)

    def test_a_map_without_background_has_a_contrast_too(self):
        mean, _ = random_contrast(np.array([3, 7]), ContrastRanges(dark_background=1, merge_share=0), np.random.default_rng(0))
        assert mean.min() >= 0.05


class TestIndex:
    @pytest.mark.parametrize("values", [[0, 2, 41, 530], [7, 9], [0, 5, 1 << 21, (1 << 31) - 1]])
    def test_values_and_numbers_give_the_map_back(self, values, rng):
        labels = rng.choice(values, (5, 6, 7)).astype(np.int32)
        found = indexed(labels, (1.0, 1.0, 1.0))
        assert found.labels.tolist() == values
        np.testing.assert_array_equal(found.labels[found.index], labels)


class TestPartialVolume:
    def test_averages_over_whole_voxels_are_block_means(self, rng):
        column = rng.random(12)
        np.testing.assert_allclose(_averages(12, 4, 0.0) @ column, column.reshape(4, 3).mean(1), atol=1e-6)

    def test_a_voxel_on_a_border_holds_both_by_their_shares(self):
        # three voxels over the length of two: the middle one holds half of each
        np.testing.assert_allclose(_averages(2, 3, 0.0).toarray(), [[1, 0], [0.5, 0.5], [0, 1]], atol=1e-6)

    @pytest.mark.parametrize("sigma_vx", [0.0, 0.7, 3.0])
    @pytest.mark.parametrize("wanted", [5, 11, 30])
    def test_weights_sum_to_one(self, wanted, sigma_vx):
        np.testing.assert_allclose(_averages(11, wanted, sigma_vx).sum(1), 1, atol=1e-6)

    def test_the_point_spread_is_the_gaussian_filter(self, rng):
        from scipy.ndimage import gaussian_filter1d

        column = np.pad(rng.random(20), 30)
        np.testing.assert_allclose(_averages(80, 80, 2.0) @ column, gaussian_filter1d(column, 2.0, mode="constant"), atol=1e-5)

    def test_a_map_of_other_axes_is_averaged_along_each(self):
        labels = np.zeros((4, 6), np.int32)
        labels[:, 3:] = 1
        labels[3] = 2
        contrast = LabelContrast(np.array([0.0, 1.0, 0.5]), np.zeros(3))
        mean, texture = _partial_volume(indexed(labels, (1.0, 1.0)), contrast, (2, 2), 0.0)
        # lower row: half of it is label 2
        np.testing.assert_allclose(mean, [[0, 1], [0.25, 0.75]], atol=1e-6)
        assert not texture.any()

    def test_linear_interpolation_gives_a_ramp_back_within_the_outer_centres(self):
        ramp = (np.arange(5) + 0.5) * 2
        np.testing.assert_allclose(_linear(5, 10) @ ramp, np.clip(np.arange(10) + 0.5, 1, 9), atol=1e-5)


class TestImage:
    @pytest.mark.parametrize("shape", [(12, 16, 20), (24, 30)])
    def test_without_faults_every_label_has_one_intensity(self, shape):
        labels = blocks(shape)
        image = drawn(labels, clean())
        assert (image.shape, image.dtype) == (shape, np.int16)
        assert (image.min(), image.max()) == (0, LEVELS)
        assert [len(np.unique(image[labels == label])) for label in np.unique(labels)] == [1, 1, 1, 1]
        assert len(np.unique(image)) == 4

    def test_a_seed_gives_its_image_to_the_bit_and_no_other(self):
        first, again, other = (drawn(blocks(), ContrastRanges(), seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert np.mean(first != other) > 0.5

    def test_contrasts_of_two_seeds_are_independent(self):
        labels = np.arange(400, dtype=np.int32).reshape(20, 20)
        first, second = (drawn(labels, clean(), seed).ravel() for seed in (1, 2))
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.15

    def test_the_box_is_the_same_at_every_spacing(self):
        labels = blocks((24, 24, 24))
        fine, coarse = (drawn(labels, clean(), 5, shape).astype(float) for shape in ((24, 24, 24), (8, 8, 8)))
        blocked = fine.reshape(8, 3, 8, 3, 8, 3).mean((1, 3, 5))
        np.testing.assert_allclose(coarse / coarse.max(), blocked / blocked.max(), atol=1e-3)

    def test_texture_has_the_deviation_that_was_drawn(self):
        labels = np.ones((40, 40, 40), np.int32)
        labels[:20] = 2
        image = drawn(labels, clean(texture=(0.1, 0.1), texture_mm=(0, 0), mean=(0.8, 0.8)), 3).astype(float)
        for label in (1, 2):
            inside = image[labels == label]
            assert inside.std() / inside.mean() == pytest.approx(0.1 / 0.8, rel=0.05)

    @pytest.mark.parametrize("sigma_mm", [1.0, 2.0])
    def test_texture_is_as_smooth_as_was_drawn(self, sigma_mm):
        labels = np.ones((48, 48, 48), np.int32)
        labels[0] = 0
        ranges = clean(texture=(0.1, 0.1), texture_mm=(sigma_mm, sigma_mm), mean=(0.8, 0.8))
        image = drawn(labels, ranges, 3)[2:-2].astype(float)
        assert image.std() / image.mean() == pytest.approx(0.1 / 0.8, rel=0.05)
        image -= image.mean()
        # white noise under a Gaussian of sigma: neighbours correlate by exp(-1 / (4 sigma^2))
        assert (image[..., 1:] * image[..., :-1]).mean() / image.var() == pytest.approx(np.exp(-1 / (4 * sigma_mm**2)), abs=0.03)

    def test_gamma_bends_the_means(self):
        straight, bent = (drawn(blocks(), clean(gamma=(g, g)), 4) / LEVELS for g in (1.0, 2.0))
        np.testing.assert_allclose(bent, straight**2, atol=1e-3)

    def test_the_bias_field_is_smooth_and_as_strong_as_asked_for(self):
        labels = np.ones((30, 30, 30), np.int32)
        image = drawn(labels, clean(bias=(0.4, 0.4), bias_mm=(40, 40)), 2).astype(float)
        assert (image.min() / image.max()) == pytest.approx(0.8 / 1.2, abs=1e-3)
        assert max(np.abs(np.diff(image, axis=axis)).max() for axis in range(3)) < 0.05 * LEVELS

    def test_noise_is_rician_with_the_deviation_asked_for(self):
        labels = np.zeros((40, 40, 40), np.int32)
        labels[20:] = 1
        image = drawn(labels, clean(noise=(0.05, 0.05), mean=(0.9, 0.9)), 2).astype(float)
        air, body = image[:20], image[20:]
        assert body.std() / body.mean() == pytest.approx(0.05 / 0.9, rel=0.05)
        assert air.mean() / body.std() == pytest.approx(np.sqrt(np.pi / 2), rel=0.05)

    def test_thick_slices_blur_one_axis_alone(self):
        labels = np.zeros((30, 30, 30), np.int32)
        labels[10:19, 10:19, 10:19] = 1
        seen = set()
        for seed in range(12):
            image = drawn(labels, clean(thick_share=1, thick_mm=(6, 6)), seed).astype(float)
            steps = [np.abs(np.diff(image, axis=axis)).max() / LEVELS for axis in range(3)]
            assert sorted(step > 0.5 for step in steps) == [False, True, True]
            seen.add(int(np.argmin(steps)))
        assert seen == {0, 1, 2}

    def test_slices_thinner_than_the_grid_leave_it_as_it_is(self):
        np.testing.assert_array_equal(
            drawn(blocks(), clean(thick_share=1, thick_mm=(1, 1)), 3, spacing_mm=2.0), drawn(blocks(), clean(), 3, spacing_mm=2.0)
        )

    def test_point_spread_is_in_mm_whatever_the_voxels(self):
        labels = np.zeros((64, 64), np.int32)
        labels[:, 32:] = 1
        for spacing in (0.5, 1.0, 2.0):
            row = drawn(labels, clean(point_spread_mm=(3, 3)), 1, spacing_mm=spacing)[30] / LEVELS
            slope = np.diff(row).max() / spacing
            assert slope == pytest.approx(1 / (3 * np.sqrt(2 * np.pi)), rel=0.02)


@pytest.mark.parametrize(
    "bad",
    [
        {"mean": (0.5, 0.2)},
        {"mean": (-0.1, 0.2)},
        {"mean": (0.1, 1.2)},
        {"texture": (0, float("nan"))},
        {"gamma": (0, 1)},
        {"bias": (0, 2)},
        {"bias_mm": (0, 1)},
        {"thick_mm": (0, 3)},
        {"merge_share": 1.5},
        {"nose": (0, 1)},
    ],
)
def test_ranges_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValidationError):
        ContrastRanges(**bad)
