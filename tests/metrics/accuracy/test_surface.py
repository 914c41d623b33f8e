"""Surface distances: by hand, against MONAI, and the laws of a distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from monai.metrics.utils import get_code_to_measure_table, get_mask_edges
from scipy.ndimage import distance_transform_edt, gaussian_filter

from metrics.accuracy.surface import _area_table, hd95_learn2reg_vx, surface_distances

pytestmark = pytest.mark.filterwarnings("ignore:the (ground truth|prediction)")


def blobs(shape: tuple[int, ...], seed: int, structures: int = 3) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal((structures + 1, *shape)), (0, *[1.5] * len(shape)))
    return noise.argmax(axis=0)


def one_hot(labels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([labels == label for label in (1, 2, 3)])[None]).float()


def test_two_single_voxels_are_as_far_apart_as_their_centres():
    fixed, warped = np.zeros((2, 6, 6), int)
    fixed[1, 1], warped[4, 5] = 1, 1
    result = surface_distances(fixed, warped, spacing_mm=(2.0, 0.5))[1]
    assert result.hd95_mm == result.mean_mm == pytest.approx(np.hypot(3 * 2.0, 4 * 0.5))


def test_a_rod_and_its_end_by_hand():
    # rod of 5 voxels 2 mm apart against its first voxel: directed distances 0 2 4 6 8 and 0
    fixed, warped = np.zeros((2, 3, 7), int)
    fixed[1, 1:6], warped[1, 1] = 1, 1
    result = surface_distances(fixed, warped, spacing_mm=(1.0, 2.0))[1]
    assert result.hd95_mm == pytest.approx(np.percentile([0, 2, 4, 6, 8], 95)) == pytest.approx(7.6)
    assert result.mean_mm == pytest.approx(20 / 6)


def test_voxels_within_a_structure_are_no_surface():
    solid = np.zeros((9, 9), int)
    solid[1:8, 1:8] = 1
    hollow = solid.copy()
    hollow[4, 4] = 0
    # the hole adds four surface voxels around it, each 2 voxels from the outer surface
    assert surface_distances(solid, hollow, spacing_mm=(1, 1))[1].mean_mm == pytest.approx(4 * 2 / (24 + 24 + 4))


def test_the_border_of_the_image_is_a_surface():
    full = np.ones((5, 5), int)
    centre = np.zeros((5, 5), int)
    centre[2, 2] = 1
    corners, edges = 4 * np.sqrt(8), 4 * 2 + 8 * np.sqrt(5)
    assert surface_distances(full, centre, spacing_mm=(1, 1))[1].mean_mm == pytest.approx((corners + edges + 2) / 17)


@pytest.mark.parametrize(("shape", "spacing"), [((20, 24), (0.7, 1.9)), ((12, 14, 16), (2.2, 0.5, 0.8)), ((1, 16, 16), (3.0, 1.0, 1.0))])
def test_hd95_and_mean_agree_with_monai(shape, spacing):
    fixed, warped = blobs(shape, 1), blobs(shape, 2)
    settings = {"spacing": spacing, "include_background": True}
    hd95 = compute_hausdorff_distance(one_hot(warped), one_hot(fixed), percentile=95, **settings)[0].tolist()
    mean = compute_average_surface_distance(one_hot(warped), one_hot(fixed), symmetric=True, **settings)[0].tolist()
    found = surface_distances(fixed, warped, spacing_mm=spacing, labels=[1, 2, 3])
    assert [d.hd95_mm for d in found.values()] == pytest.approx(hd95, rel=1e-5)
    assert [d.mean_mm for d in found.values()] == pytest.approx(mean, rel=1e-5)


def test_a_structure_that_is_missing_in_one_map_is_infinitely_far_and_in_both_has_no_distance():
    fixed = np.zeros((6, 6), int)
    fixed[2:4, 2:4] = 1
    found = surface_distances(fixed, np.zeros_like(fixed), spacing_mm=(1, 1), labels=[1, 2])
    assert found[1].hd95_mm == found[1].mean_mm == np.inf
    assert np.isnan(found[2].hd95_mm)
    assert np.isnan(found[2].mean_mm)
    assert surface_distances(np.zeros_like(fixed), fixed, spacing_mm=(1, 1), labels=[1])[1].hd95_mm == np.inf


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, np.nan), (1.0, 1.0, 1.0)])
def test_a_spacing_that_does_not_fit_is_refused(spacing):
    with pytest.raises(ValueError, match="expected 2 positive numbers"):
        surface_distances(np.ones((4, 4), int), np.ones((4, 4), int), spacing_mm=spacing)


masks = hnp.arrays(bool, (5, 6), elements=st.booleans())


@settings(max_examples=50, deadline=None)
@given(a=masks, b=masks, scale=st.floats(0.1, 10))
def test_distances_are_symmetric_zero_for_equal_maps_and_scale_with_the_spacing(a, b, scale):
    there, back = (surface_distances(p, q, spacing_mm=(1.0, 2.0), labels=[1])[1] for p, q in ((a, b), (b, a)))
    np.testing.assert_allclose(there.hd95_mm, back.hd95_mm)
    np.testing.assert_allclose(there.mean_mm, back.mean_mm)
    larger = surface_distances(a, b, spacing_mm=(scale, 2 * scale), labels=[1])[1]
    np.testing.assert_allclose(larger.hd95_mm, scale * there.hd95_mm)
    if a.any():
        assert surface_distances(a, a, spacing_mm=(1.0, 2.0))[1].hd95_mm == 0
    if np.isfinite(there.mean_mm):
        assert there.mean_mm >= 0


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_areas_of_surface_elements_are_those_of_the_surface_distance_package(dimension):
    expected, kernel = get_code_to_measure_table((1,) * dimension)
    # their code gives the first corner the highest bit, ours the lowest
    assert kernel.flatten().tolist() == [2**b for b in reversed(range(2**dimension))]
    reversed_bits = [int(f"{code:0{2**dimension}b}"[::-1], 2) for code in range(2**2**dimension)]
    np.testing.assert_allclose(_area_table(dimension)[reversed_bits], expected.numpy(), atol=1e-6)


def learn2reg_by_monai(fixed: np.ndarray, warped: np.ndarray) -> float:
    """The evaluator's rule on MONAI's surface elements."""
    edges_f, edges_w, areas_f, areas_w = (np.asarray(a) for a in get_mask_edges(fixed, warped, spacing=(1,) * fixed.ndim))
    directed = []
    for here, areas, there in ((edges_f, areas_f, edges_w), (edges_w, areas_w, edges_f)):
        distances, weights = distance_transform_edt(~there)[here], areas[here]
        order = np.argsort(distances)
        reached = np.cumsum(weights[order]) >= 0.95 * weights.sum()
        directed.append(distances[order][reached][0])
    return max(directed)


@pytest.mark.parametrize("shape", [(20, 24), (12, 14, 16)])
@pytest.mark.parametrize("seed", [1, 5, 9])
def test_the_learn2reg_measure_agrees_with_one_built_on_monai(shape, seed):
    fixed, warped = blobs(shape, seed), blobs(shape, seed + 1)
    for label, value in hd95_learn2reg_vx(fixed, warped).items():
        assert value == pytest.approx(learn2reg_by_monai(fixed == label, warped == label))


def test_the_learn2reg_measure_of_a_shifted_cube_is_the_shift_in_voxels():
    fixed, warped = np.zeros((2, 12, 12, 12), int)
    fixed[3:6, 3:6, 3:6], warped[3:6, 3:6, 6:9] = 1, 1
    assert hd95_learn2reg_vx(fixed, warped) == {1: 3.0}


def test_the_learn2reg_measure_skips_what_the_fixed_map_lacks():
    full, empty = np.ones((4, 4, 4), int), np.zeros((4, 4, 4), int)
    assert np.isnan(hd95_learn2reg_vx(empty, full, labels=[1])[1])
    assert hd95_learn2reg_vx(full, empty)[1] == np.inf
