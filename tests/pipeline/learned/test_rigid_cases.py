from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import blob_volume, oblique_geometry
from rigid_examples import FIXED, TINY, tiny_case, truth_of, volumes, written_case

from pipeline.errors import ConcordError
from pipeline.learned.rigid_batches import RigidBatches, vertex_distance_mm
from pipeline.learned.rigid_cases import RigidVolumes, read_rigid_cases, resampled, rigid_case, scaled_jointly
from pipeline.learned.settings.rigid import Perturbation
from pipeline.region import region_grid, region_mask
from pipeline.resampling import warp
from pipeline.rigid_motion import linear_of, motion_matrix
from pipeline.transform_files import write_transform
from pipeline.transforms import Linear
from pipeline.volumes import Geometry, Volume

FIRST = torch.zeros(1, dtype=torch.long)
CPU = torch.device("cpu")


def batches_of(count=2, sre_mm=(0.0, 12.0), how=TINY, seed=0):
    return RigidBatches([tiny_case(k, how) for k in range(count)], Perturbation(sre_mm), seed=seed, device=CPU)


def scaled(fixed, moving):
    both = np.stack([fixed, moving])
    return (both - both.min()) / (both.max() - both.min())


# ---- resampling


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_the_moving_volume_is_resampled_as_everywhere_else(kind):
    """Second implementation: `warp`, which is tested against ITK. Turned far enough that part of the grid is outside."""
    moving = blob_volume(oblique_geometry(3))
    moving = moving.with_array((200 * moving.array).astype(kind))
    onto = Geometry.regular((17, 15, 13), (1.7, 1.9, 2.3), (-14.0, -20.0, -16.0))
    matrix = motion_matrix(np.array([3, -4, 5, 20, -30, 40.0]), onto.centre_mm)
    expected = warp(moving, linear_of(matrix, onto.centre_mm), onto).array
    to_index = np.linalg.inv(np.block([[moving.geometry.index_to_physical, np.reshape(moving.geometry.origin_mm, (3, 1))], [np.zeros(3), 1]]))
    to_mm = np.block([[onto.index_to_physical, np.reshape(onto.origin_mm, (3, 1))], [np.zeros(3), 1]])
    maps = torch.from_numpy((to_index @ matrix @ to_mm)[None, :3].astype(np.float32))
    padded = torch.nn.functional.pad(torch.from_numpy(moving.array)[None, None], (0, 3, 0, 5, 0, 2), value=99)  # padding must not be seen
    values, inside = resampled(padded, FIRST, maps, torch.tensor([moving.geometry.size], dtype=torch.float32), onto.shape)
    assert 0.2 < inside.float().mean() < 0.95
    np.testing.assert_allclose(values[0, 0].numpy(), expected, atol=2e-2)
    assert not values[0, 0][~inside[0]].any()


def test_a_point_half_a_voxel_outside_has_the_borders_value_and_beyond_there_is_nothing():
    volume = torch.full((1, 1, 2, 2, 2), 5.0)
    maps = torch.tensor([[[1.0, 0, 0, -0.6], [0, 1, 0, 0], [0, 0, 1, 0]]])
    values, inside = resampled(volume, FIRST, maps, torch.full((1, 3), 2.0), (1, 1, 3))
    assert values.flatten().tolist() == [0, 5, 5] and inside.flatten().tolist() == [False, True, True]
    values, _ = resampled(volume, FIRST, maps + torch.tensor([0, 0, 0, 0.2]), torch.full((1, 3), 2.0), (1, 1, 3))
    assert values.flatten().tolist() == [5, 5, 0]  # -0.4, 0.6, 1.6


def test_both_channels_share_one_minimum_and_one_maximum():
    samples = torch.tensor([[0.0, 2.0], [1.0, 4.0]]).view(1, 2, 1, 1, 2).repeat(2, 1, 1, 1, 1)
    samples[1] += 7
    samples = scaled_jointly(torch.cat([samples, torch.full((1, 2, 1, 1, 2), 3.0)]))
    assert samples[0].flatten().tolist() == samples[1].flatten().tolist() == [0, 0.5, 0.25, 1]
    assert not samples[2].any()


def test_the_input_is_the_region_of_both_volumes_at_the_truth():
    """Both channels against `warp`; the fixed one is in units of the moving volume's largest value."""
    fixed, moving, labels, _ = volumes(0)
    case = rigid_case(fixed, moving, labels, TINY)
    region = region_grid(region_mask(labels, 0.3), (24, 24, 12))
    high = np.sort(fixed.array.ravel())[int(0.999 * fixed.array.size)]
    window = fixed.with_array(np.clip((fixed.array - fixed.array.min()) / (high - fixed.array.min()), 0, 1) * float(moving.array.max()))
    truth = linear_of(truth_of(0), FIXED.centre_mm)
    expected = scaled(warp(window, Linear.identity(3), region).array, warp(moving, truth, region).array)
    found = RigidVolumes([case], CPU).inputs(np.array([0]), truth_of(0)[None])
    assert found.shape == (1, 2, 12, 24, 24)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=2e-3)


def test_volumes_that_are_not_bytes_lose_no_more_than_half_precision_does():
    fixed, moving, labels, _ = volumes(0)
    factor = 3.7e5  # far beyond half precision's range
    loud = moving.with_array(moving.array.astype(np.float64) * factor)
    cases = [rigid_case(fixed, volume, labels, TINY) for volume in (moving, loud)]
    alone = [RigidVolumes([case], CPU).inputs(np.array([0]), truth_of(0)[None]) for case in cases]
    torch.testing.assert_close(alone[0], alone[1], atol=2e-3, rtol=0)
    together = RigidVolumes(cases, CPU).inputs(np.array([1, 0]), truth_of(0)[None].repeat(2, 0))
    torch.testing.assert_close(together, torch.cat(alone[::-1]), atol=1e-6, rtol=0)


def test_cases_of_different_sizes_are_the_same_in_a_batch_as_alone():
    cases = [tiny_case(k) for k in range(3)]
    assert len({case.moving.array.shape for case in cases}) == 2
    rows = np.array([2, 0, 1, 0])
    transforms = np.stack([truth_of(k) @ motion_matrix(np.full(6, 3.0), FIXED.centre_mm) for k in rows])
    together = RigidVolumes(cases, CPU).inputs(rows, transforms)
    for number, row in enumerate(rows):
        alone = RigidVolumes([cases[row]], CPU).inputs(np.array([0]), transforms[number : number + 1])
        torch.testing.assert_close(together[number], alone[0], atol=2e-4, rtol=0)


def test_the_label_variant_sees_the_organ_as_bright_as_the_brightest_of_the_moving_volume():
    fixed, moving, labels, _ = volumes(1)
    how = replace(TINY, input="label")
    seven = labels.with_array(7 * labels.array)
    case = rigid_case(fixed, moving, labels, how, labels=seven)
    region = region_grid(region_mask(labels, 0.3), (24, 24, 12))
    expected = scaled(
        warp(labels, Linear.identity(3), region, interpolation="linear").array * 1.0 * moving.array.max(),
        warp(moving, Linear.identity(3), region).array,
    )
    np.testing.assert_allclose(RigidVolumes([case], CPU).inputs(np.array([0]), np.eye(4)[None])[0].numpy(), expected, atol=2e-3)
    with pytest.raises(ConcordError, match=r"^fixed 1: no label map"):
        rigid_case(fixed, moving, labels, how)


def test_the_brightest_thousandth_of_the_fixed_volume_does_not_darken_the_rest():
    fixed, moving, labels, _ = volumes(0)
    burnt = fixed.array.copy()
    burnt[0, 0, :20] = 1e6
    plain, spoilt = (rigid_case(fixed.with_array(array), moving, labels, TINY) for array in (fixed.array, burnt))
    assert np.abs(plain.fixed.astype(float) - spoilt.fixed).max() < 0.02
    almost_black = np.zeros(FIXED.shape, np.float32)
    almost_black[18, 19, 20] = 5
    assert rigid_case(fixed.with_array(almost_black), moving, labels, TINY).fixed.max() > 0


def test_the_centre_of_rotation_is_the_first_voxel_or_the_regions_middle():
    fixed, moving, labels, _ = volumes(0)
    about_origin, about_gland = (rigid_case(fixed, moving, labels, replace(TINY, centre=centre)).centre_mm for centre in ("origin", "gland"))
    np.testing.assert_array_equal(about_origin, FIXED.origin_mm)
    np.testing.assert_allclose(about_gland, FIXED.centre_mm, atol=1.0)


# ---- perturbed batches


@pytest.mark.parametrize("centre", ["origin", "gland"])
def test_the_target_undoes_the_perturbation(centre):
    """By the definitions, point by point: start S(x) = T(inv(M(p)) x), result S(inv(M(q)) x)."""
    batches = batches_of(how=replace(TINY, centre=centre))
    draws = batches.validation(4)
    np.testing.assert_allclose(batches.sre_mm(draws, draws.targets), 0, atol=1e-9)
    for row, motion, target in zip(draws.rows, draws.motions, draws.targets, strict=True):
        case = batches.cases[row]
        truth, back = linear_of(case.truth, np.zeros(3)), linear_of(motion, np.zeros(3)).inverse()
        answer = linear_of(motion_matrix(target, case.centre_mm), np.zeros(3)).inverse()
        result = truth.points(back.points(answer.points(case.vertices_mm)))
        np.testing.assert_allclose(result, truth.points(case.vertices_mm), atol=1e-9)


def test_wrong_signs_and_orders_would_leave_an_error():
    batches = batches_of(sre_mm=(8.0, 12.0))
    draws = batches.validation(4)
    start = batches.sre_mm(draws, np.zeros_like(draws.targets))
    assert ((start > 8 - 2e-3) & (start < 12 + 2e-3)).all()
    assert batches.sre_mm(draws, -draws.targets).min() > 10
    assert np.abs(batches.sre_mm(draws, draws.targets[:, [1, 0, 2, 3, 4, 5]])).max() > 1
    # the plain numbers are not the whole story: rotation is about a point far away
    assert batches.sre_mm(draws, draws.targets * [1, 1, 1, 0, 0, 0]).min() > 1


def test_the_error_left_is_the_mean_distance_of_the_surfaces_corners():
    batches = batches_of()
    draws = batches.validation(2)
    answers = np.random.default_rng(0).uniform(-3, 3, (4, 6))
    for number, found in enumerate(batches.sre_mm(draws, answers)):
        case = batches.cases[draws.rows[number]]
        result = case.truth @ np.linalg.inv(draws.motions[number]) @ np.linalg.inv(motion_matrix(answers[number], case.centre_mm))
        ways = (result - case.truth)[:3, :3] @ case.vertices_mm.T + (result - case.truth)[:3, 3:]
        assert found == pytest.approx(np.linalg.norm(ways, axis=0).mean(), abs=1e-9)


def test_the_volumes_of_a_batch_are_those_of_the_perturbed_start():
    batches = batches_of()
    draws = batches.validation(1)
    seen = batches.batch(draws).volumes
    for number, row in enumerate(draws.rows):
        _, moving, _, _ = volumes(row)
        start = linear_of(truth_of(row) @ np.linalg.inv(draws.motions[number]), np.zeros(3))
        expected = warp(moving, start, batches.cases[row].region).array
        found = seen[number, 1].double().numpy()
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99999
        still = warp(moving, linear_of(truth_of(row), np.zeros(3)), batches.cases[row].region).array
        assert np.corrcoef(found.ravel(), still.ravel())[0, 1] < 0.99


@pytest.mark.parametrize("centre", ["origin", "gland"])
def test_the_loss_in_millimetres_is_the_error_left_on_the_chosen_vertices(centre):
    batches = batches_of(how=replace(TINY, centre=centre))
    draws = batches.validation(3)
    batch = batches.batch(draws)
    assert batch.vertices_mm.shape == (6, 512, 3)
    answers = np.random.default_rng(0).uniform(-5, 5, (6, 6))
    found = vertex_distance_mm(torch.from_numpy(answers), batch.targets.double(), batch.vertices_mm.double())
    for number, distance in enumerate(found):
        points = batch.vertices_mm[number].double().numpy() + batches.cases[draws.rows[number]].centre_mm
        chosen = RigidBatches([replace(batches.cases[draws.rows[number]], vertices_mm=points)], Perturbation(), seed=0, device=CPU)
        alone = replace(draws.part(number, number + 1), rows=np.zeros(1, int))
        assert distance.item() == pytest.approx(chosen.sre_mm(alone, answers[number : number + 1])[0], abs=1e-5)
    # and it is nearly the SRE of all corners
    np.testing.assert_allclose(found.numpy(), batches.sre_mm(draws, answers), rtol=0.05)


def test_the_loss_in_millimetres_has_the_gradient_of_its_values():
    generator = torch.Generator().manual_seed(0)
    vertices = 20 * torch.randn(2, 9, 3, generator=generator, dtype=torch.float64)
    wanted, found = (5 * torch.randn(2, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda p: vertex_distance_mm(p, wanted, vertices), found.requires_grad_())
    at_the_truth = wanted.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(vertex_distance_mm(at_the_truth, wanted, vertices).sum(), at_the_truth)
    assert torch.isfinite(gradient).all()


def test_batches_are_fresh_each_epoch_and_a_function_of_the_seed():
    def volumes_of(seed, epoch, number):
        return batches_of(3, seed=seed).training(epoch, number, draws=6, batch=4)

    first = volumes_of(0, 0, 0)
    again = volumes_of(0, 0, 0)
    assert torch.equal(first.volumes, again.volumes) and torch.equal(first.targets, again.targets)
    for other in (volumes_of(1, 0, 0), volumes_of(0, 1, 0)):
        assert not torch.equal(first.targets, other.targets)
    assert len(first.volumes) == 4 and len(volumes_of(0, 0, 1).volumes) == 2


def test_every_case_is_seen_as_often_as_every_other(monkeypatch):
    batches, seen = batches_of(3), []
    monkeypatch.setattr(RigidBatches, "batch", lambda self, draws: seen.extend(draws.rows.tolist()))
    for number in range(3):
        batches.training(0, number, draws=9, batch=4)
    assert sorted(seen) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_aligned_pairs_move_together():
    batches = batches_of(2)
    both, known = batches.aligned(0, batch=2, sre_mm=4.0)
    assert both.shape == (2, 2, 12, 24, 24) and 0.5 < known.float().mean() < 1
    # the moving contrast is the negative of the fixed one: aligned, they are anticorrelated wherever both are known
    for sample, where in zip(both, known, strict=True):
        assert np.corrcoef(sample[0][where], sample[1][where])[0, 1] < -0.97
    still, _ = batches.aligned(0, batch=2, sre_mm=0.0)
    assert (still - both).abs().max() > 0.1
    still_rows = np.random.default_rng([0, 4, 0]).permutation(2)
    torch.testing.assert_close(still, batches.volumes.inputs(still_rows, batches.truths[still_rows]), atol=1e-3, rtol=0)


# ---- reading


def test_cases_are_read_once_a_pair_with_their_digests(tmp_path):
    cases = [written_case(tmp_path, k, "train") for k in range(2)]
    several = [*cases, cases[0].model_copy(update={"case": "case-0-start-07"}), written_case(tmp_path, 5, "test")]
    read = read_rigid_cases(several, "train", TINY)
    assert [case.name for case in read] == ["case-0", "case-1"]
    made = tiny_case(1)
    np.testing.assert_array_equal(read[1].fixed, made.fixed)
    np.testing.assert_allclose(read[1].truth, made.truth, atol=1e-12)
    np.testing.assert_allclose(read[1].vertices_mm, made.vertices_mm, atol=1e-4)
    assert set(read[1].data["files"]) == {"1-fixed.mha", "1-moving.mha", "1-labels.mha", "1-truth.tfm", "1-gland.stl"}
    assert read[1].data["name"] == "case-1" and all(len(digest) == 64 for digest in read[1].data["files"].values())


@pytest.mark.parametrize("column", ["fixed_labels", "true_transform", "fixed_surface"])
def test_a_case_without_what_training_needs_is_told(tmp_path, column):
    case = written_case(tmp_path, 0, "train").model_copy(update={column: None})
    with pytest.raises(ConcordError, match=f"^case case-0: no {column}"):
        read_rigid_cases([case], "train", TINY)


def test_bad_cases_are_told(tmp_path):
    case = written_case(tmp_path, 0, "train")
    with pytest.raises(ConcordError, match="no case of split 'validation'"):
        read_rigid_cases([case], "validation", TINY)
    write_transform(Linear(1.05 * np.eye(3), np.zeros(3), "affine", np.zeros(3)), tmp_path / "scaling.tfm")
    with pytest.raises(ConcordError, match=r"scaling.tfm: the matrix is not rigid"):
        read_rigid_cases([case.model_copy(update={"true_transform": tmp_path / "scaling.tfm"})], "train", TINY)
    with pytest.raises(ConcordError, match=r"labels.* are not on the grid of .*fixed"):
        other = written_case(tmp_path, 1, "train")
        read_rigid_cases([case.model_copy(update={"fixed_labels": other.moving})], "train", TINY)
    fixed, moving, labels, _ = volumes(0)
    for spoilt in ((fixed.with_array(0 * fixed.array), moving), (fixed, moving.with_array(0 * moving.array + 3))):
        with pytest.raises(ConcordError, match="every sample is the same"):
            rigid_case(*spoilt, labels, TINY)
    flat = Volume(np.arange(6.0).reshape(2, 3), Geometry.regular((3, 2)), "flat")
    with pytest.raises(ConcordError, match=r"^flat: 2-D; expected 3-D"):
        rigid_case(flat, flat, flat, TINY)
