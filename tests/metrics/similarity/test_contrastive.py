from __future__ import annotations

import math

import pytest
import torch

from metrics.similarity.contrastive import symmetric_info_nce


def features(n=6, c=5):
    torch.manual_seed(0)
    return torch.randn(2, n, c, dtype=torch.float64)


def test_two_rows_by_hand():
    first = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    second = torch.tensor([[2.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    # cosines [[1, 0.6], [0, 0.8]], at temperature 0.5 [[2, 1.2], [0, 1.6]]
    rows = math.log(1 + math.exp(1.2 - 2)) + math.log(1 + math.exp(0 - 1.6))
    columns = math.log(1 + math.exp(0 - 2)) + math.log(1 + math.exp(1.2 - 1.6))
    assert symmetric_info_nce(first, second, temperature=0.5).item() == pytest.approx((rows + columns) / 4, abs=1e-12)


def test_the_gradient_is_that_of_finite_differences():
    first, second = features(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: symmetric_info_nce(a, b, temperature=0.2), (first, second))


def test_both_directions_count_alike():
    first, second = features()
    assert symmetric_info_nce(first, second, temperature=0.1) == pytest.approx(symmetric_info_nce(second, first, temperature=0.1).item())


def test_pairs_may_come_in_any_order_but_must_stay_pairs():
    first, second = features()
    second = first + 0.1 * second
    order, whole = torch.randperm(6), symmetric_info_nce(first, second, temperature=0.1)
    assert symmetric_info_nce(first[order], second[order], temperature=0.1).item() == pytest.approx(whole.item())
    assert symmetric_info_nce(first, second.roll(1, 0), temperature=0.1) > whole + 1


def test_lengths_of_rows_do_not_count():
    first, second = features()
    lengths = torch.rand(6, 1, dtype=torch.float64) + 0.1
    assert symmetric_info_nce(lengths * first, second / lengths, temperature=0.1).item() == pytest.approx(
        symmetric_info_nce(first, second, temperature=0.1).item()
    )


def test_features_that_tell_nothing_score_log_n_and_perfect_ones_zero():
    same, apart = torch.ones(8, 8), torch.eye(8)
    assert symmetric_info_nce(same, same, temperature=0.1).item() == pytest.approx(math.log(8), rel=1e-6)
    assert symmetric_info_nce(apart, apart, temperature=0.01).item() == pytest.approx(0, abs=1e-6)


def test_descent_brings_partners_together():
    first, second = features()
    first.requires_grad_()
    before = symmetric_info_nce(first, second, temperature=0.1)
    (gradient,) = torch.autograd.grad(before, first)
    assert symmetric_info_nce(first - 0.01 * gradient, second, temperature=0.1) < before


@pytest.mark.parametrize("shapes", [((3, 4), (4, 4)), ((3, 4), (3, 5)), ((1, 4), (1, 4)), ((2, 3, 4), (2, 3, 4))])
def test_rows_without_partners_or_negatives_are_refused(shapes):
    with pytest.raises(ValueError, match=r"one shape \(n, c\)"):
        symmetric_info_nce(*(torch.rand(shape) for shape in shapes), temperature=0.1)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        symmetric_info_nce(*features(), temperature=temperature)
