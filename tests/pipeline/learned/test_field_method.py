"""Predicted fields as transforms: geometry with networks that know the answer, and who may register whom."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples import blob_volume, rotation
from field_examples import SIZE, field_case, pair_arrays, written_cases
from torch import nn

from metrics.accuracy.overlap import dice, mean_over_structures
from pipeline.cases import read_cases
from pipeline.errors import ConcordError
from pipeline.learned.field import fit_fields
from pipeline.learned.field_method import FieldNetwork
from pipeline.learned.settings.field import FieldFit
from pipeline.methods import Pair, Run, run_method
from pipeline.registration import load_pair
from pipeline.resampling import warp
from pipeline.transforms import Field, Linear
from pipeline.volumes import Geometry, Volume


class Constant(nn.Module):
    """The same displacement in voxels everywhere; remembers what it saw."""

    def __init__(self, *displacement_vx):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.tensor(displacement_vx)), []

    def forward(self, images):
        self.seen.append(images)
        return self.weight.detach().view(1, 2, 1, 1).expand(len(images), 2, *images.shape[2:])


def with_networks(monkeypatch, *networks):
    """A method whose files are these networks, each with the subjects that it was fitted to."""
    files = {f"fold-{k}.safetensors": (network, {"subjects": {"train": known}}) for k, (network, known) in enumerate(networks)}
    monkeypatch.setattr("pipeline.learned.field.load_field", lambda file: files[file.name])
    return lambda **settings: FieldNetwork(weights=tuple(files), device="cpu", **settings)


def oblique(size=(20, 16), spacing=(1.5, 2.0)):
    turn = tuple(tuple(row) for row in rotation(len(size)).tolist())
    return Geometry(size, spacing, (-12.0, 5.0, 7.0)[: len(size)], turn)


def test_displacements_in_voxels_become_mm_along_the_images_own_axes(monkeypatch):
    grid = oblique()
    method = with_networks(monkeypatch, (Constant(2.0, -1.0), []))()
    found = run_method(method, Pair(blob_volume(grid), blob_volume(grid, seed=1)), Run())
    assert isinstance(found, Field) and found.geometry == grid
    index = np.array([[4.0, 5.0], [7.5, 9.0]])
    np.testing.assert_allclose(grid.index_at(found.points(grid.points_at(index))), index + [2, -1], atol=1e-9)


def test_a_moving_image_that_is_displaced_as_told_is_brought_back(monkeypatch):
    grid = oblique()
    moving = blob_volume(grid)
    fixed = moving.with_array(np.roll(moving.array, (1, -2), axis=(0, 1)))  # fixed (y, x) is moving (y - 1, x + 2)
    found = run_method(with_networks(monkeypatch, (Constant(2.0, -1.0), []))(), Pair(fixed, moving), Run())
    seen = warp(moving, found, grid)
    np.testing.assert_allclose(seen.array[2:-2, 3:-3], fixed.array[2:-2, 3:-3], atol=1e-6)


def test_the_network_sees_fixed_then_moving_each_from_zero_to_one(monkeypatch):
    grid, network = oblique(), Constant(0.0, 0.0)
    fixed, moving = blob_volume(grid), blob_volume(grid, seed=1)
    method = with_networks(monkeypatch, (network, []))()
    run_method(method, Pair(fixed.with_array(40 + 7 * fixed.array), moving.with_array((1000 * moving.array).astype(np.int16))), Run())
    seen = network.seen[0][0].numpy()
    np.testing.assert_allclose(seen[0], fixed.array, atol=1e-5)
    np.testing.assert_allclose(seen[1], moving.array, atol=2e-3)


def test_a_moving_image_on_another_grid_and_a_start_are_seen_on_the_fixed_grid(monkeypatch):
    fixed, network = blob_volume(oblique()), Constant(0.0, 0.0)
    method = with_networks(monkeypatch, (network, []))()
    moving = blob_volume(oblique((30, 22), (1.2, 1.6)), seed=2)
    start = Linear(rotation(2, 0.1), np.array([2.0, -1.0]), "rigid")
    found = run_method(method, Pair(fixed, moving), Run(), start)
    expected = warp(moving, start, fixed.geometry).array
    np.testing.assert_allclose(network.seen[0][0, 1], expected, atol=1e-5)
    points = fixed.geometry.points_at(np.array([[3.0, 4.0], [10, 8]]))
    np.testing.assert_allclose(found.points(points), start.points(points), atol=1e-9)


def test_stacks_are_registered_slice_by_slice_with_no_displacement_across(monkeypatch):
    grid, network = oblique((20, 16, 11), (1.5, 2.0, 6.0)), Constant(2.0, -1.0)
    fixed, moving = blob_volume(grid), blob_volume(grid, seed=1)
    fixed.array[4] = 0.5  # a slice without contrast
    found = run_method(with_networks(monkeypatch, (network, []))(slicewise=True), Pair(fixed, moving), Run())
    assert [len(images) for images in network.seen] == [8, 3]
    shift = found.displacement_vx(grid)
    expected = np.zeros((11, 16, 20, 3))
    expected[..., :2] = [2, -1]
    expected[4] = 0
    np.testing.assert_allclose(shift, expected, atol=1e-9)
    slices = torch.cat(network.seen).numpy()
    assert slices.shape == (11, 2, 16, 20)
    np.testing.assert_allclose(slices[7, 0], (fixed.array[7] - fixed.array[7].min()) / np.ptp(fixed.array[7]), atol=1e-5)


def test_stacks_of_other_slices_are_refused(monkeypatch):
    method = with_networks(monkeypatch, (Constant(0.0, 0.0), []))
    grid = oblique((20, 16, 6), (1.5, 2.0, 6.0))
    fixed = blob_volume(grid)
    with pytest.raises(ConcordError, match="set slicewise"):
        run_method(method(), Pair(fixed, fixed), Run())
    thin, shifted = (
        oblique((20, 16, 6), (1.5, 2.0, 5.0)),
        Geometry(grid.size, grid.spacing_mm, tuple(grid.points_at(np.array([0, 0, 0.5]))), grid.direction),
    )
    for other in (thin, shifted, oblique((20, 16, 5), (1.5, 2.0, 6.0))):
        with pytest.raises(ConcordError, match="match along z"):
            run_method(method(slicewise=True), Pair(fixed, blob_volume(other)), Run())
    along = Geometry(grid.size, (1.2, 1.9, 6.0), tuple(grid.points_at(np.array([2.0, 1, 0]))), grid.direction)
    run_method(method(slicewise=True), Pair(fixed, blob_volume(along)), Run())


# ---- folds


def used_for(monkeypatch, subjects, *known):
    networks = [Constant(float(k), 0.0) for k in range(len(known))]
    method = with_networks(monkeypatch, *zip(networks, known, strict=True))()
    grid = oblique()
    found = run_method(method, Pair(blob_volume(grid), blob_volume(grid, seed=1), subjects=subjects), Run())
    return round(found.displacement_vx(grid)[0, 0, 0])


def test_a_pair_is_registered_by_the_network_of_the_fold_that_held_its_subject_out(monkeypatch):
    folds = (["b", "c"], ["a", "c"], ["a", "b"])
    assert [used_for(monkeypatch, (name,), *folds) for name in "abc"] == [0, 1, 2]
    assert used_for(monkeypatch, ("b", "c"), ["b"], ["c"], ["a"]) == 2  # neither the fixed nor the moving subject


def test_a_subject_of_no_fold_takes_the_first_network(monkeypatch):
    assert used_for(monkeypatch, ("d",), ["b"], ["a"]) == used_for(monkeypatch, (), ["b"], ["a"]) == 0


def test_a_subject_that_every_network_was_fitted_to_is_refused(monkeypatch):
    with pytest.raises(ConcordError, match="every network was fitted to subject a") as caught:
        used_for(monkeypatch, ("a",), ["a", "b"], ["a", "c"])
    assert "\n" not in str(caught.value)


def test_cases_tell_their_subjects_to_the_method(tmp_path):
    case = read_cases(written_cases(tmp_path, {"s0": 1}))[0]
    assert load_pair(case).subjects == ("s0",)
    assert load_pair(case.model_copy(update={"moving_subject": "s1"})).subjects == ("s0", "s1")


# ---- refinement by the loop


def test_the_loop_goes_on_from_the_predicted_field(monkeypatch):
    grid = oblique((60, 50), (1.5, 1.5))
    moving = blob_volume(grid)
    fixed = moving.with_array(np.roll(moving.array, -3, axis=1))  # fixed x is moving x + 3; the network says 2
    nodes = {"control_points": 6, "iterations": 60, "similarity": "mean-squares"}
    near, exact = (with_networks(monkeypatch, (Constant(2.0, 0.0), []))(**extra) for extra in ({}, {"refine": nodes}))
    pair, run = Pair(fixed, moving), Run(trace=[])
    inner = grid.cropped((10, 10), (45, 40))
    errors = [np.abs(run_method(method, pair, run).displacement_vx(inner) - [3, 0]).mean() for method in (near, exact)]
    assert errors[0] == pytest.approx(0.5, abs=1e-6) and errors[1] < 0.25
    assert [row["stage"] for row in run.trace].count("network") == 2 and run.trace[-1]["stage"] == "bspline"


def test_a_refinement_is_a_b_spline_unless_told_otherwise_and_of_2d_pairs_only(monkeypatch):
    method = with_networks(monkeypatch, (Constant(0.0, 0.0), []))(refine={"iterations": 3}, slicewise=True)
    assert (method.refine.stages, method.refine.similarity) == (("bspline",), "ncc")
    stack = blob_volume(oblique((20, 16, 3), (1.5, 2.0, 8.0)))
    with pytest.raises(ConcordError, match="3-D, and refine is for 2-D pairs"):
        run_method(method, Pair(stack, stack.with_array(stack.array[::-1].copy())), Run())


# ---- with fitted weights


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    out = tmp_path_factory.mktemp("weights") / "net"
    learning = {"epochs": 25, "batch": 4, "learning_rate": 1e-2, "decay": "cosine", "gradient_weight": 20.0}
    mild = {"rotation_deg": 10, "deform_vx": 0.3, "deform_sigma_vx": 4}
    settings = FieldFit(network="unet", widths=(8, 16), augmentation=mild, validation_every=25, device="cpu", **learning)
    fit_fields([field_case(k) for k in range(12)], [field_case(50)], settings, seed=0, threads=1, out=out)
    return out.with_suffix(".safetensors")


def test_from_the_file_to_the_overlap_of_a_new_case(fitted):
    images, labels = pair_arrays(77)
    grid = Geometry.regular(SIZE, (1.5, 2.0))
    fixed, moving, ring = (Volume(array, grid) for array in (*images, labels[1]))
    method, run = FieldNetwork(weights=fitted, device="cpu"), Run(trace=[])
    method.load()
    found = run_method(method, Pair(fixed, moving, subjects=("sub-50",)), run)
    seen = warp(ring, found, grid, interpolation="nearest").array
    before, after = (mean_over_structures(dice(labels[0], array)) for array in (ring.array, seen))
    assert before < 0.3 and after > 0.6
    row = run.trace[0]
    assert row["parameters"] > 0 and row["device"].startswith("cpu") and row["inference_ms"] > 0
    again = run_method(FieldNetwork(weights=(fitted,), device="cpu"), Pair(fixed, moving), Run())
    np.testing.assert_array_equal(again.field_mm, found.field_mm)


def test_any_size_of_image_is_registered(fitted):
    grid = oblique((33, 27), (1.0, 1.0))
    found = run_method(FieldNetwork(weights=fitted, device="cpu"), Pair(blob_volume(grid), blob_volume(grid, seed=1)), Run())
    assert found.field_mm.shape == (27, 33, 2)


def test_weights_that_are_missing_and_masks_are_told(fitted, tmp_path):
    grid = oblique()
    image, mask = blob_volume(grid), Volume(np.ones(grid.shape, np.uint8), grid, "mask")
    with pytest.raises(ConcordError, match="none given"):
        run_method(FieldNetwork(), Pair(image, image), Run())
    with pytest.raises(ConcordError, match=r"gone\.safetensors is not there"):
        _ = FieldNetwork(weights=(tmp_path / "gone.safetensors",)).files
    with pytest.raises(ConcordError, match="takes no masks"):
        run_method(FieldNetwork(weights=fitted), Pair(image, image, fixed_mask=mask), Run())
    assert FieldNetwork(weights=(fitted, fitted)).files == {"weights_1": fitted, "weights_2": fitted}
