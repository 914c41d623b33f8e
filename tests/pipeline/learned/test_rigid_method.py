from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rigid_examples import TINY, tiny_case, truth_of, volumes
from torch import nn

from pipeline.errors import ConcordError
from pipeline.learned import rigid
from pipeline.learned.rigid import fit_rigid
from pipeline.learned.rigid_cases import RigidVolumes
from pipeline.learned.rigid_method import RigidNetwork
from pipeline.learned.settings.rigid import RigidFit
from pipeline.learned.weights import load_weights, save_weights
from pipeline.methods import Pair, Run, run_method
from pipeline.region import region_grid, region_mask
from pipeline.resampling import warp
from pipeline.rigid_motion import Surfaces, linear_of, motion_matrix, motion_parameters, rigid_matrix
from pipeline.transform_files import read_transform, write_transform
from pipeline.volumes import Geometry, Volume

FIXED, MOVING, LABELS, TRIANGLES = volumes(3)
TRUTH = truth_of(3)
GLAND = Surfaces.of([TRIANGLES.reshape(-1, 3)])
PAIR = Pair(FIXED, MOVING, fixed_mask=LABELS)


class Oracle(nn.Module):
    """Answers what would lead from each of its starts to `share` of the way to the truth; its input are the starts themselves."""

    def __init__(self, truth, centre_mm, share=1.0):
        super().__init__()
        self.truth, self.centre_mm, self.share = truth, centre_mm, share

    def forward(self, starts):
        # result S(inv(M(q)) x) = T(x) where M(q) = inv(T) S
        found = motion_parameters(np.linalg.inv(self.truth) @ starts[:, 0, 0].double().numpy(), self.centre_mm)
        return torch.from_numpy(self.share * found)


class Constant(nn.Module):
    """Always the same answer; remembers what it saw."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.seen = torch.tensor(answer, dtype=torch.float64), []

    def forward(self, volumes):
        self.seen.append(volumes)
        return self.answer.expand(len(volumes), 6)


def with_networks(monkeypatch, networks, how=TINY):
    """A method whose stages are these networks, in order."""
    files = {f"stage-{k}.safetensors": network for k, network in enumerate(networks)}
    monkeypatch.setattr("pipeline.learned.rigid.load_rigid", lambda file: (files[file.name], how, {}))
    return lambda **settings: RigidNetwork(weights=tuple(files), device="cpu", **settings)


def with_oracles(monkeypatch, *shares, truth=TRUTH, centre="origin"):
    monkeypatch.setattr(RigidVolumes, "inputs", lambda self, rows, transforms: torch.from_numpy(transforms)[:, None, None])
    how = replace(TINY, centre=centre)
    about = np.array(FIXED.geometry.origin_mm) if centre == "origin" else region_grid(region_mask(LABELS, 0.3), TINY.size).centre_mm
    return with_networks(monkeypatch, [Oracle(truth, about, share) for share in shares], how)


def error_mm(found, truth=TRUTH):
    return GLAND.sre_mm((np.linalg.inv(truth) @ rigid_matrix(found, "found"))[None])[0]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Weights by name: of images, of labels, and of another size."""
    folder = tmp_path_factory.mktemp("weights")
    for name, changes in {"image": {}, "label": {"input": "label"}, "other": {"size": (20, 16, 12), "centre": "gland"}}.items():
        settings = RigidFit(**({"network": "feature-reg", "size": (16, 16, 8), "epochs": 1, "batch": 2, "device": "cpu"} | changes))
        fit_rigid([tiny_case(k, settings.preparation) for k in range(2)], [], settings, seed=0, threads=1, out=folder / name)
    return {name: folder / f"{name}.safetensors" for name in ("image", "label", "other")}


# ---- geometry, with networks that know the answer


@pytest.mark.parametrize("centre", ["origin", "gland"])
@pytest.mark.parametrize("shares", [(1.0,), (0.4, 1.0), (-0.3, 0.5, 1.0)])
def test_exact_answers_give_the_exact_truth_after_any_number_of_stages(monkeypatch, centre, shares):
    found = with_oracles(monkeypatch, *shares, centre=centre)().register(PAIR, Run())
    np.testing.assert_allclose(rigid_matrix(found, "found"), TRUTH, atol=1e-9)
    if len(shares) > 1:
        assert error_mm(with_oracles(monkeypatch, *shares[:-1], centre=centre)().register(PAIR, Run())) > 0.5


def test_a_start_is_part_of_the_result(monkeypatch):
    """A start re-heads the moving volume, so that the network sees it as no motion at all."""
    start = TRUTH @ motion_matrix(np.array([4, -3, 2, 3, -5, 4.0]), np.array(FIXED.geometry.origin_mm))
    left = np.linalg.inv(start) @ TRUTH
    method = with_oracles(monkeypatch, 0.5, 1.0, truth=left)()
    assert error_mm(linear_of(start, np.zeros(3))) > 2
    assert error_mm(run_method(method, PAIR, Run(), linear_of(start, np.zeros(3)))) < 1e-6


def test_each_stage_sees_the_moving_volume_through_the_stages_before(monkeypatch):
    first, second = Constant([2.0, -1, 1, 3, 2, -4]), Constant([1.0, 1, 0, 0, 1, 0])
    found = with_networks(monkeypatch, [first, second])().register(PAIR, Run())
    origin, region = np.array(FIXED.geometry.origin_mm), region_grid(region_mask(LABELS, 0.3), TINY.size)
    motions = [np.linalg.inv(motion_matrix(network.answer.numpy(), origin)) for network in (first, second)]
    for network, before in ((first, np.eye(4)), (second, motions[0])):
        expected = warp(MOVING, linear_of(before, np.zeros(3)), region).array
        seen = network.seen[0][0, 1].double().numpy()
        assert np.corrcoef(seen.ravel(), expected.ravel())[0, 1] > 0.99999
    np.testing.assert_allclose(rigid_matrix(found, "found"), motions[0] @ motions[1], atol=1e-12)


def test_rotations_are_about_the_first_voxel_of_the_fixed_volume_not_of_the_region(monkeypatch):
    found = with_networks(monkeypatch, [Constant([0.0, 0, 0, 10, 20, 30])])().register(PAIR, Run())
    origin = np.array([FIXED.geometry.origin_mm])
    np.testing.assert_allclose(found.points(origin), origin, atol=1e-9)
    assert np.linalg.norm(found.points(origin + 10) - origin - 10) > 1


def test_averages_of_exact_answers_are_exact_and_agree(monkeypatch):
    run = Run(trace=[])
    found = with_oracles(monkeypatch, 0.5, 1.0)(averages=6).register(PAIR, run)
    np.testing.assert_allclose(rigid_matrix(found, "found"), TRUTH, atol=1e-6)
    assert run.trace[1]["spread_mm"] == pytest.approx(0, abs=1e-6)


def test_averages_start_from_motions_of_one_to_two_millimetres_and_the_spread_tells_how_far_they_disagree(monkeypatch):
    """A network that always says "do not move" answers each start with that start: the spread is that of the starts."""
    seen = []
    monkeypatch.setattr(RigidVolumes, "inputs", lambda self, rows, transforms: seen.append(transforms) or torch.zeros(len(rows), 2, 12, 24, 24))
    run = Run(trace=[])
    with_networks(monkeypatch, [Constant([0.0] * 6)])(averages=9).register(PAIR, run)
    (starts,) = seen
    region = region_grid(region_mask(LABELS, 0.3), TINY.size)
    ends = [np.array([-0.5, n - 0.5]) for n in region.size]
    corners = region.points_at(np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3))
    ways = corners @ starts[:, :3, :3].swapaxes(1, 2) + starts[:, None, :3, 3] - corners
    lengths = np.linalg.norm(ways, axis=-1).mean(1)
    assert lengths[0] == 0 and ((lengths[1:] > 0.99) & (lengths[1:] < 2.01)).all() and np.ptp(lengths[1:]) > 0.1
    (row,) = run.trace
    assert row["spread_mm"] == pytest.approx(np.sqrt(((ways - ways.mean(0)) ** 2).sum(-1).mean()), rel=0.05)
    assert {"stage", "level", "iteration", "value", "step_mm", "gradient_norm", "seconds"} <= row.keys()


def test_a_trace_tells_the_shares_of_a_stage_and_the_parameters_that_run(fitted):
    method, run = RigidNetwork(weights=(fitted["image"], fitted["image"]), device="cpu"), Run(threads=1, trace=[])
    method.register(PAIR, run)
    for row in run.trace:
        assert row["inference_ms"] == pytest.approx(row["resampling_ms"] + row["network_ms"])
        assert min(row["prepare_ms"], row["resampling_ms"], row["network_ms"]) > 0
        assert row["prepare_ms"] + row["inference_ms"] <= 1000 * row["seconds"]
        assert row["parameters"] == load_weights(fitted["image"])[1]["parameters"]
        assert row["device"].startswith("cpu (") and row["device"].endswith(", 1 thread")


def test_what_a_part_of_a_stage_takes_is_told_of_that_part(monkeypatch):
    """Halves of a tenth of a second in the network and a twentieth in the resampling land where they belong."""
    network, inputs = Constant([0.0] * 6), RigidVolumes.inputs
    monkeypatch.setattr(network, "forward", lambda volumes: time.sleep(0.1) or network.answer.expand(len(volumes), 6))
    monkeypatch.setattr(RigidVolumes, "inputs", lambda *given: time.sleep(0.05) or inputs(*given))
    run = Run(trace=[])
    with_networks(monkeypatch, [network])().register(PAIR, run)
    (row,) = run.trace
    assert row["network_ms"] >= 100 and row["resampling_ms"] >= 50 and row["inference_ms"] >= 150


def test_loading_reads_every_network_once_and_runs_it_before_the_clock_does(monkeypatch, tmp_path):
    networks = [Constant([0.0] * 6), Constant([0.0] * 6)]
    method = with_networks(monkeypatch, networks)(averages=3)
    monkeypatch.chdir(tmp_path)
    for name in ("stage-0", "stage-1"):
        (tmp_path / f"{name}.safetensors").touch()
    read, load = [], rigid.load_rigid
    monkeypatch.setattr("pipeline.learned.rigid.load_rigid", lambda file: read.append(file.name) or load(file))
    method.load()
    assert [[tuple(seen.shape) for seen in network.seen] for network in networks] == [[(3, 2, 12, 24, 24)]] * 2
    method.register(PAIR, Run())
    method.register(PAIR, Run())
    assert read == ["stage-0.safetensors", "stage-1.safetensors"]


@pytest.mark.parametrize("weights", [(), ("nowhere.safetensors",)])
def test_loading_leaves_complaints_to_the_registration(weights):
    RigidNetwork(weights=weights, device="cpu").load()


def test_refining_by_the_loop_starts_from_the_prediction_and_comes_closer(monkeypatch):
    """Both volumes in one contrast; the network stops short."""
    negative = replace(PAIR, moving=MOVING.with_array(MOVING.array.max() - MOVING.array))
    coarse = {"similarity": "ncc", "levels": 1, "iterations": 30, "samples": 5000}
    make, run = with_oracles(monkeypatch, 0.6), Run(trace=[])
    before = error_mm(make().register(negative, Run()))
    method = make(refine=coarse)
    assert method.refine.stages == ("rigid",) and method.refine.initialise == "none"
    found = method.register(negative, run)
    assert found.kind == "rigid" and before > 1 and error_mm(found) < 0.5 * before
    assert [row["stage"] for row in run.trace] == ["network 1"] + ["rigid"] * 30
    far = make(refine=coarse | {"iterations": 1, "step_mm": 1e-9}).register(negative, Run())
    assert error_mm(far) == pytest.approx(before, abs=1e-4)


def test_the_result_is_written_as_a_rigid_transform_that_viewers_load(monkeypatch, tmp_path):
    found = with_oracles(monkeypatch, 0.3, 1.0)().register(PAIR, Run())
    for name in ("found.tfm", "found.h5"):
        write_transform(found, tmp_path / name)
        np.testing.assert_allclose(rigid_matrix(read_transform(tmp_path / name), name), TRUTH, atol=1e-9)
    assert "Euler3DTransform_double_3_3" in (tmp_path / "found.tfm").read_text()
    region = region_grid(region_mask(LABELS, 0.3), (1, 1, 1))
    np.testing.assert_allclose(found.centre_mm, region.centre_mm)


# ---- with fitted weights


def test_the_same_run_gives_the_same_bits_and_averages_follow_the_seed(fitted):
    method = RigidNetwork(weights=(fitted["image"], fitted["other"]), device="cpu", averages=3)
    first, again, other = (rigid_matrix(method.register(PAIR, Run(seed=seed)), "found") for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert method.files == {"weights_1": fitted["image"], "weights_2": fitted["other"]}


def test_the_region_as_mask_is_the_organ_as_mask_enlarged(fitted):
    whole = RigidNetwork(weights=(fitted["image"],), device="cpu").register(PAIR, Run())
    region = replace(PAIR, fixed_mask=region_mask(LABELS, 0.3))
    cut = RigidNetwork(weights=(fitted["image"],), device="cpu", enlarge=0).register(region, Run())
    np.testing.assert_array_equal(rigid_matrix(whole, "a"), rigid_matrix(cut, "b"))
    assert not np.array_equal(whole.matrix, RigidNetwork(weights=(fitted["image"],), device="cpu", enlarge=0).register(PAIR, Run()).matrix)


def test_the_label_variant_sees_the_organ_and_nothing_of_the_fixed_image(fitted):
    method = RigidNetwork(weights=(fitted["label"],), device="cpu")
    assert method.uses_labels and not RigidNetwork(weights=(fitted["image"],)).uses_labels
    inverted = replace(PAIR, fixed=FIXED.with_array(-FIXED.array))
    found = [rigid_matrix(method.register(pair, Run()), "found") for pair in (PAIR, inverted)]
    np.testing.assert_array_equal(*found)
    # in a study the mask is the region, and the label map comes with the case
    region = Pair(FIXED, MOVING, fixed_mask=region_mask(LABELS, 0.3), fixed_labels=LABELS)
    study = RigidNetwork(weights=(fitted["label"],), device="cpu", enlarge=0)
    np.testing.assert_array_equal(rigid_matrix(study.register(region, Run()), "found"), found[0])
    with pytest.raises(ConcordError, match="no label map, which these weights need"):
        study.register(replace(region, fixed_labels=None), Run())


# ---- what is refused


def cleared(volume):
    return volume.with_array(np.zeros_like(volume.array))


def at_border():
    array = LABELS.array.copy()
    array[:, :, 0] = 1
    return replace(LABELS.with_array(array), name="cut.mha")


@pytest.mark.parametrize(
    ("change", "settings", "told"),
    [
        ({}, {"weights": ()}, "^weights: none given"),
        ({"fixed_mask": None}, {}, "^fixed 3: no mask; .*--fixed-mask"),
        ({"fixed_mask": cleared(LABELS)}, {}, "^labels 3: the mask is empty"),
        ({"fixed_mask": at_border()}, {}, "^cut.mha: the mask reaches the volume's border.*set enlarge to 0"),
        ({"moving_mask": MOVING}, {}, "^moving 3: the networks take no moving mask.*or set refine"),
        ({}, {"enlarge": 0.2}, "^enlarge 0.2; .*image.safetensors was fitted to regions enlarged by 0.3"),
    ],
)
def test_bad_input_is_told_in_one_line(fitted, change, settings, told):
    method = RigidNetwork(**({"weights": (fitted["image"],), "device": "cpu"} | settings))
    with pytest.raises(ConcordError, match=told) as caught:
        method.register(replace(PAIR, **change), Run())
    assert "\n" not in str(caught.value)


def test_a_region_that_ends_at_the_border_is_fine(fitted):
    region = replace(PAIR, fixed_mask=at_border())
    assert RigidNetwork(weights=(fitted["image"],), device="cpu", enlarge=0).register(region, Run()).kind == "rigid"


def test_flat_images_are_told(fitted):
    flat = Volume(np.arange(6.0).reshape(2, 3), Geometry.regular((3, 2)), "flat")
    with pytest.raises(ConcordError, match=r"^flat: 2-D; expected 3-D"):
        RigidNetwork(weights=(fitted["image"],)).register(Pair(flat, flat, fixed_mask=flat), Run())


def test_weights_that_do_not_fit_are_told(fitted, tmp_path):
    absent = RigidNetwork(weights=(tmp_path / "no.safetensors",))
    assert not absent.uses_labels
    with pytest.raises(ConcordError, match=r"^weights: .*no.safetensors is not there"):
        _ = absent.files
    state, card = load_weights(fitted["image"])
    save_weights(tmp_path / "other", state, card | {"network": "dvnet", "size": [32, 32, 8]})
    with pytest.raises(ConcordError, match=r"DvNet expects .*\(its card says network dvnet, size \[32, 32, 8\]\)"):
        RigidNetwork(weights=(tmp_path / "other.safetensors",)).register(PAIR, Run())


def test_only_a_rigid_refinement_is_accepted():
    with pytest.raises(ValidationError, match=r"expected \[rigid\]"):
        RigidNetwork(refine={"stages": ["affine"]})
    with pytest.raises(ValidationError, match="similarty"):
        RigidNetwork(refine={"similarty": "mi"})
    assert RigidNetwork(refine={"similarity": "mind"}).refine.stages == ("rigid",)


def test_a_single_file_is_a_single_stage(fitted):
    assert RigidNetwork(weights=str(fitted["image"])).weights == (fitted["image"],)
