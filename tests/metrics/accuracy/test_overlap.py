"""Dice and Jaccard: by hand, against scikit-learn, and their laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_dice
from sklearn.metrics import jaccard_score

from metrics.accuracy.overlap import dice, jaccard, mean_over_structures

FIXED = np.array([[0, 1, 1, 1], [2, 2, 0, 5]])
WARPED = np.array([[1, 1, 1, 0], [2, 0, 0, 0]])


def test_hand_computed_dice():
    # structure 1: 2 shared of 3 and 3; structure 2: 1 shared of 2 and 1; structure 5: gone after the warp
    assert dice(FIXED, WARPED) == pytest.approx({1: 4 / 6, 2: 2 / 3, 5: 0.0})


def test_hand_computed_jaccard():
    assert jaccard(FIXED, WARPED) == pytest.approx({1: 2 / 4, 2: 1 / 2, 5: 0.0})


def test_a_structure_that_is_empty_in_both_maps_has_no_score():
    scores = dice(FIXED, WARPED, labels=[1, 9])
    assert scores[1] == pytest.approx(2 / 3)
    assert np.isnan(scores[9])


def test_a_structure_that_appears_only_after_the_warp_scores_zero():
    assert dice(FIXED, np.full_like(FIXED, 7), labels=[7]) == {7: 0.0}


def test_a_label_that_was_not_asked_for_counts_as_background():
    assert dice(FIXED, WARPED, labels=[2]) == pytest.approx({2: 2 / 3})


def test_a_map_without_structures_gives_no_scores():
    assert dice(np.zeros((3, 3), int), np.ones((3, 3), int)) == {}


def test_background_is_never_a_structure():
    assert 0 not in dice(FIXED, WARPED, labels=[0, 1])


def test_bool_float_and_huge_labels_are_read_alike():
    mask = FIXED == 1
    assert dice(mask, mask) == {1: 1.0}
    assert dice(FIXED.astype(np.float32), WARPED.astype(np.uint8)) == dice(FIXED, WARPED)
    assert dice(FIXED * 100_000, WARPED * 100_000)[100_000] == pytest.approx(4 / 6)


@pytest.mark.parametrize("bad", [FIXED + 0.5, np.where(FIXED == 0, np.nan, 1.0)])
def test_a_map_that_was_interpolated_linearly_is_refused(bad):
    with pytest.raises(ValueError, match="nearest neighbour"):
        dice(bad, WARPED)


def test_maps_on_different_grids_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 4\) and \(2, 3\)"):
        jaccard(FIXED, WARPED[:, :3])


def test_the_mean_leaves_out_structures_without_a_score():
    assert mean_over_structures({1: 0.5, 2: float("nan"), 3: 1.0}) == 0.75


@pytest.mark.parametrize("scores", [{}, {4: float("nan")}])
@pytest.mark.filterwarnings("error")
def test_the_mean_of_nothing_is_nan_without_a_warning(scores):
    assert np.isnan(mean_over_structures(scores))


label_maps = hnp.arrays(np.int16, st.tuples(*[st.integers(1, 5)] * 3), elements=st.integers(0, 3))


@settings(max_examples=60, deadline=None)
@given(fixed=label_maps, data=st.data())
def test_dice_and_jaccard_agree_with_scikit_learn_and_with_each_other(fixed, data):
    warped = data.draw(hnp.arrays(np.int16, fixed.shape, elements=st.integers(0, 3)))
    d, j = dice(fixed, warped), jaccard(fixed, warped)
    assert list(d) == [v for v in np.unique(fixed).tolist() if v]
    for label, value in j.items():
        assert value == pytest.approx(jaccard_score((fixed == label).ravel(), (warped == label).ravel()))
        assert d[label] == pytest.approx(2 * value / (1 + value))


def test_dice_agrees_with_monai():
    import torch

    random = np.random.default_rng(3)
    fixed, warped = random.integers(0, 4, (2, 6, 7, 8))
    one_hot = [torch.from_numpy(np.stack([m == label for label in (1, 2, 3)])[None]).float() for m in (warped, fixed)]
    expected = compute_dice(*one_hot, include_background=True)[0].tolist()
    assert list(dice(fixed, warped).values()) == pytest.approx(expected)
