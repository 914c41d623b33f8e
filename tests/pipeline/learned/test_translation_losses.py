"""The three losses of the hierarchical translation model, written out, and their similarities."""

from __future__ import annotations

import pytest
import torch

from metrics.similarity.local_correlation import local_correlation
from metrics.similarity.parzen import parzen_mutual_information, unit_range
from nets.fields import compose, warp
from nets.translation import Translated
from nets.voxelmorph import Displacements
from pipeline.learned.settings.translation import LossWeights
from pipeline.learned.translation_losses import coarse_loss, comparison, fine_loss, translation_loss

NAMES = ("nmi", "ncc", "lg", "mattes", "mind", "ngf")
WEIGHTS = LossWeights(
    coarse_smooth=0.3,
    coarse_similarity=2.0,
    mask_similarity=0.7,
    translated_similarity=1.1,
    translated_squares=5.0,
    fine_smooth=0.4,
    fine_similarity=1.3,
    fine_squares=1.7,
)


def example():
    """Images and all that a network could find of them."""
    torch.manual_seed(0)
    images, fields = torch.rand(2, 2, 12, 14), torch.randn(3, 2, 2, 12, 14)
    mask = 0.3 * torch.randn(2, 1, 12, 14)
    found = Translated(
        displacement_vx=compose(fields[2], fields[0]),
        coarse=Displacements(fields[0], fields[1]),
        mask=mask,
        translated=images[:, 1:] + mask,
        fine=fields[2],
    )
    return images, found


def smoothness(u):
    return (u.diff(dim=2).square().mean() + u.diff(dim=3).square().mean()) / 2


def test_the_losses_are_the_papers():
    images, found = example()
    fixed, moving, compare = images[:, :1], images[:, 1:], local_correlation
    backward = 2.0 * compare(moving, warp(fixed, found.coarse.inverse))
    one_way = 0.3 * smoothness(found.coarse.forward) + 2.0 * compare(fixed, warp(moving, found.coarse.forward))
    torch.testing.assert_close(coarse_loss(images, found, compare, WEIGHTS, bidirectional=False), one_way)
    torch.testing.assert_close(coarse_loss(images, found, compare, WEIGHTS, bidirectional=True), one_way + backward)

    squares = (warp(found.translated, found.coarse.forward) - fixed).square().mean()
    expected = 0.7 * compare(moving, found.mask) + 1.1 * compare(moving, found.translated) + 5.0 * squares
    torch.testing.assert_close(translation_loss(images, found, compare, WEIGHTS), expected)

    plain = 0.4 * smoothness(found.fine) + 1.3 * compare(fixed, warp(moving, found.displacement_vx))
    squares = (warp(found.translated, found.displacement_vx) - fixed).square().mean()
    torch.testing.assert_close(fine_loss(images, found, compare, WEIGHTS), plain + 1.7 * squares)
    torch.testing.assert_close(fine_loss(images, found._replace(translated=None), compare, WEIGHTS), plain)


def test_without_a_coarse_field_the_translated_image_is_compared_where_it_is():
    images, found = example()
    weights = LossWeights(mask_similarity=0, translated_similarity=0, translated_squares=1)
    value = translation_loss(images, found._replace(coarse=None), local_correlation, weights)
    torch.testing.assert_close(value, (found.translated - images[:, :1]).square().mean())


def test_the_defaults_are_the_papers_weights():
    assert list(LossWeights().model_dump().values()) == [0.02, 0.15, 0.02, 0.02, 2.5, 0.02, 0.1, 1.5]


def test_a_mask_of_negative_values_is_compared_in_range():
    images, found = example()
    mask = found.mask.clone().requires_grad_()
    weights = LossWeights(translated_similarity=0, translated_squares=0, mask_similarity=1)
    value = translation_loss(images, found._replace(mask=mask), comparison("nmi", bins=16), weights)
    torch.testing.assert_close(value, parzen_mutual_information(images[:, 1:], unit_range(mask), bins=16))
    (gradient,) = torch.autograd.grad(value, mask)
    assert (gradient[mask < 0] != 0).float().mean() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_every_similarity_is_lowest_where_the_images_agree_and_knows_no_contrast(name):
    torch.manual_seed(1)
    image = torch.nn.functional.interpolate(torch.rand(2, 1, 6, 7), size=(24, 28), mode="bicubic").clamp(0, 1)
    compare = comparison(name, bins=16)
    inverted = (1 - image).requires_grad_()
    near, far = compare(image, inverted), compare(image, (1 - image).roll(3, 3))
    assert near.detach() < far and torch.isfinite(torch.autograd.grad(near, inverted)[0]).all()
    assert -3 < near.detach() < far < 2
