"""Grad-CAM and rows of attention of fitted networks: by hand, by finite differences, against the whole softmax, and what they are made from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rigid_examples import FIXED, TINY, tiny_case, volumes

from nets.attention_reg import AttentionReg
from nets.rigid_networks import build
from pipeline.errors import ConcordError
from pipeline.learned.rigid import ARCHITECTURE
from pipeline.learned.rigid_attention import (
    Sample,
    attention_map,
    grad_cam,
    load_sample,
    mean_distance_mm,
    nearest_place,
    predicted_way_mm,
    spread,
    weighted_map,
)
from pipeline.learned.rigid_cases import RigidVolumes
from pipeline.learned.rigid_method import RigidNetwork
from pipeline.learned.weights import save_weights
from pipeline.methods import Pair, Run, run_method
from pipeline.rigid_motion import linear_of, motion_matrix, motion_parameters
from pipeline.volumes import Geometry

START = motion_matrix(np.array([3.0, -2.0, 4.0, 5.0, -3.0, 2.0]), FIXED.centre_mm)


def network_of(name: str = "attention-reg", grid=TINY.grid) -> AttentionReg:
    """A network with weights and batch statistics of its own, in double precision."""
    torch.manual_seed(6)  # of those under which no map is zero everywhere after the ReLU
    network = build(name, grid).double()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm3d):
            layer.running_mean.normal_(std=0.2)
            layer.running_var.uniform_(0.5, 2)
    return network.eval().requires_grad_(False)


def sample_of(name: str = "attention-reg") -> Sample:
    case = tiny_case(1)
    seen = RigidVolumes([case], torch.device("cpu")).inputs(np.zeros(1, int), START[None])
    return Sample(network_of(name), case, seen.double())


def test_grad_cam_of_two_channels_by_hand():
    maps = torch.tensor([[[[[1.0, 2.0]]], [[[3.0, -1.0]]]]])
    gradients = torch.tensor([[[[[2.0, 4.0]]], [[[-1.0, -1.0]]]]])
    # channel weights 3 and -1: 3 - 3 = 0, 6 + 1 = 7
    torch.testing.assert_close(weighted_map(maps, gradients), torch.tensor([[[[0.0, 7.0]]]]))
    # weights 1 and -1 leave a negative sum at the first place, which the ReLU takes away
    torch.testing.assert_close(weighted_map(maps, gradients.clamp(-1, 1)), torch.tensor([[[[0.0, 3.0]]]]))


@pytest.mark.parametrize("name", ["attention-reg", "feature-reg"])
def test_channel_weights_are_those_of_finite_differences(name):
    sample, step = sample_of(name), 1e-6
    modules = sample.network.attention if name == "attention-reg" else sample.network.extractors
    found, way = grad_cam(sample), float(predicted_way_mm(sample.network(sample.volumes), sample.case))
    for branch, features in zip(("mr", "us"), sample.network.forward_with_maps(sample.volumes)[1], strict=True):
        weights = []
        for channel in range(32):
            shift = torch.zeros(1, 32, 1, 1, 1).double()
            shift[0, channel] = step
            # downwards: many features of an extractor are exactly 0, where the next ReLU lets nothing through from below
            hook = modules[branch].register_forward_hook(lambda _, __, out, shift=shift: out - shift)
            lower = float(predicted_way_mm(sample.network(sample.volumes), sample.case))
            hook.remove()
            # a shift of all places at once changes the way by the sum of the gradients over them
            weights.append((way - lower) / step / features[0, 0].numel())
        expected = torch.relu(torch.einsum("c,czyx->zyx", torch.tensor(weights).double(), features[0])).numpy()
        assert expected.max() > 0
        np.testing.assert_allclose(found[branch], expected, rtol=0, atol=1e-3 * expected.max())


def test_the_way_is_that_of_the_corners_whatever_point_the_rotation_is_about():
    case = tiny_case(1)
    moved = replace(case, centre_mm=case.region.centre_mm)
    corners = [[x, y, z] for x in (-0.5, 23.5) for y in (-0.5, 23.5) for z in (-0.5, 11.5)]
    points = case.region.points_at(np.array(corners))
    expected = np.linalg.norm(points @ START[:3, :3].T + START[:3, 3] - points, axis=1).mean()
    for known in (case, moved):
        parameters = torch.from_numpy(motion_parameters(START, known.centre_mm))[None]
        assert float(predicted_way_mm(parameters, known)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("primary", ["mr", "us"])
def test_a_row_of_attention_is_that_of_the_explicit_matrix_and_sums_to_one(primary):
    sample = sample_of()
    place = (3, 2, 4)
    point = sample.case.region.points_at(np.array([4 * 4, 4 * 2, 2 * 3]))
    maps = dict(zip(("mr", "us"), sample.network.features(sample.volumes), strict=True))
    block, asking = sample.network.attention[primary], maps["us" if primary == "mr" else "mr"]
    table = torch.softmax(block.query(asking).flatten(2)[0].T @ block.key(maps[primary]).flatten(2)[0], dim=1)
    row = attention_map(sample, point, primary=primary)
    assert row.shape == sample.network.map_grid == (6, 6, 6)
    assert row.sum() == pytest.approx(1)
    np.testing.assert_allclose(row.ravel(), table[np.ravel_multi_index(place, (6, 6, 6))].numpy(), rtol=1e-9)


def test_the_query_is_the_nearest_place_of_the_maps_and_stays_on_them():
    sample = sample_of()
    at = sample.case.region.points_at
    assert nearest_place(sample, at(np.array([4.0, 8.0, 2.0]))).tolist() == [1, 2, 1]
    assert nearest_place(sample, at(np.array([5.9, 6.1, 2.9]))).tolist() == [1, 2, 1]
    # beyond the last place, which is on voxel 20 of 24 and 10 of 12
    assert nearest_place(sample, at(np.array([23.4, -0.4, 11.4]))).tolist() == [5, 0, 5]
    with pytest.raises(ConcordError, match=r"outside the region .*; expected one between \[.*\] and \[.*\] mm"):
        nearest_place(sample, at(np.array([24.0, 8.0, 2.0])))


def test_maps_are_spread_linearly_between_their_places_and_go_on_beyond():
    region = Geometry.regular((24, 24, 12), (1.0, 2.0, 3.0))
    z, y, x = np.indices((6, 6, 6))
    values = spread(x + 10.0 * y + 100.0 * z, region)
    voxel = np.indices(region.shape)
    expected = sum(factor * np.minimum(n / stride, 5) for factor, n, stride in zip((100, 10, 1), voxel, (2, 4, 4), strict=True))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    finer = region.resized((48, 48, 24))
    np.testing.assert_allclose(spread(values[::2, ::4, ::4], region, region), values, rtol=1e-5, atol=1e-3)
    assert spread(x + 0.0, region, finer)[0, 0, 3] == pytest.approx(1.25 / 4)


def test_the_mean_distance_of_one_place_is_its_own():
    sample, weights = sample_of(), np.zeros((6, 6, 6))
    weights[1, 2, 3] = 0.5
    here = sample.case.region.points_at(np.array([12.0, 8.0, 2.0]))
    assert mean_distance_mm(sample, weights, here) == pytest.approx(0)
    weights[1, 2, 4] = 0.5
    assert mean_distance_mm(sample, weights, here) == pytest.approx(2 * sample.case.region.spacing_mm[0])


@pytest.fixture
def written(tmp_path):
    """Weights of every kind of network, fitted to nothing."""
    for name in ("attention-reg", "feature-reg", "dvnet"):
        how = replace(TINY, size=(32, 32, 8)) if name == "dvnet" else TINY
        network = build(name, how.grid)
        save_weights(tmp_path / name, dict(network.state_dict()), {"architecture": ARCHITECTURE, "network": name, **how.card()})
    return tmp_path


def test_a_sample_is_what_the_method_sees_from_that_start(written, monkeypatch):
    fixed, moving, labels, _ = volumes(1)
    pair, weights, seen = Pair(fixed, moving, fixed_mask=labels), written / "attention-reg.safetensors", []
    watch = torch.nn.Module.__call__

    def call(module, *given):
        if isinstance(module, AttentionReg):
            seen.append(given[0])
        return watch(module, *given)

    monkeypatch.setattr(torch.nn.Module, "__call__", call)
    run_method(RigidNetwork(weights=(weights,), device="cpu"), pair, Run(), linear_of(START, FIXED.centre_mm))
    sample = load_sample(weights, pair, START, enlarge=0.3)
    assert sample.volumes.std() > 0.1
    torch.testing.assert_close(sample.volumes, seen[-1].contiguous(), rtol=0, atol=2e-4)


def test_networks_that_have_nothing_to_look_at_are_refused(written):
    fixed, moving, labels, _ = volumes(1)
    pair = Pair(fixed, moving, fixed_mask=labels)
    with pytest.raises(ConcordError, match="weights of dvnet; expected attention-reg or feature-reg"):
        load_sample(written / "dvnet.safetensors", pair, START)
    with pytest.raises(ConcordError, match="no mask; expected the organ's"):
        load_sample(written / "attention-reg.safetensors", replace(pair, fixed_mask=None), START)
    with pytest.raises(ConcordError, match=r"enlarge 0\.2; .*attention-reg\.safetensors was fitted to regions enlarged by 0.3"):
        load_sample(written / "attention-reg.safetensors", pair, START, enlarge=0.2)
    plain = load_sample(written / "feature-reg.safetensors", pair, START, enlarge=0.3)
    assert set(grad_cam(plain)) == {"mr", "us"}
    with pytest.raises(ConcordError, match="no attention block"):
        attention_map(plain, FIXED.centre_mm, primary="mr")
