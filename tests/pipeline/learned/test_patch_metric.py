from __future__ import annotations

import csv
import json
import logging

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter

from nets.patch_cnn import PatchCnn
from pipeline.errors import ConcordError
from pipeline.learned.patch_metric import CURVE, _Fit, fit_patch_metric, load_patch_metric, normalised
from pipeline.learned.patch_pairs import AlignedPair, PatchSampler
from pipeline.learned.settings.patch_metric import PatchMetricFit, PatchPairSettings
from pipeline.learned.weights import load_weights, save_weights
from pipeline.volumes import Geometry

FAST = {"configuration": "tiny", "steps": 6, "validation_every": 2, "validation_patches": 8, "checkpoint_every": 2, "device": "cpu"}
SMALL = PatchPairSettings(batch=8)
GEOMETRY = Geometry.regular((22, 20, 21))


def inverted_pairs(count, shape=(40, 40, 40), first=0):
    """Smooth random volumes, and their negatives with noise."""
    pairs = []
    for seed in range(first, first + count):
        rng = np.random.default_rng(seed)
        a = gaussian_filter(rng.normal(size=shape), 2)
        a = ((a - a.min()) / (a.max() - a.min())).astype(np.float32)
        pairs.append(AlignedPair(a, 1 - a + rng.normal(0, 0.02, shape).astype(np.float32), f"pair {seed}"))
    return pairs


def settings(**changes):
    return PatchMetricFit(**({"sampler": SMALL} | FAST | changes))


def fitted(out, chosen=None, *, seed=0, validation=1, shape=(24, 22)):
    return fit_patch_metric(inverted_pairs(3, shape), inverted_pairs(validation, shape, 9), chosen or settings(), seed=seed, threads=1, out=out)


def cut():
    raise RuntimeError("power cut")


def rows_of(out):
    with out.with_name(out.name + ".csv").open() as stream:
        return list(csv.DictReader(stream))


# ---- it learns


def test_the_network_learns_to_tell_aligned_patches(tmp_path):
    chosen = PatchMetricFit(configuration="tiny", steps=150, validation_every=50, validation_patches=256, device="cpu", dampening=0.0)
    chosen = chosen.model_copy(update={"sampler": PatchPairSettings(batch=64)})
    card = fit_patch_metric(inverted_pairs(4, (60, 60)), inverted_pairs(1, (60, 60), 9), chosen, seed=0, threads=1, out=tmp_path / "net")
    assert card["scores"]["validation_accuracy"] > 0.8
    # the sign: an aligned pair is less dissimilar than one shifted by four pixels
    network, card = load_patch_metric(tmp_path / "net")
    pair = inverted_pairs(1, (60, 60), 20)[0]
    a, b = (torch.from_numpy(normalised(v, card, c))[None] for v, c in ((pair.a, "t1"), (pair.b, "t2")))
    aligned, shifted = (network(torch.stack([a, b.roll(s, -1)], 1)).mean().item() for s in (0, 4))
    assert aligned < -0.3 and shifted > 0.3


@pytest.mark.slow
def test_the_network_learns_in_three_dimensions_with_the_papers_rates(tmp_path):
    chosen = PatchMetricFit(configuration="tiny", steps=100, validation_every=50, validation_patches=256, device="cpu")
    card = fit_patch_metric(inverted_pairs(4), inverted_pairs(1, first=9), chosen, seed=0, threads=1, out=tmp_path / "net")
    assert card["scores"]["validation_accuracy"] > 0.8


def test_a_step_is_the_gradient_of_the_hinge_loss_with_torch7_momentum(tmp_path):
    """Two steps by hand: v1 = g1, v2 = 0.9 v1 + 0.1 g2, w -= lr v (Torch 7 damps from the second step on)."""
    pairs = inverted_pairs(2, (24, 22))
    fit_patch_metric(pairs, [], settings(steps=2, decay="cosine", weight_decay=0.01), seed=4, threads=1, out=tmp_path / "net")
    sampler = PatchSampler(pairs, SMALL, seed=4)
    torch.manual_seed(4)
    network, velocity = PatchCnn("tiny", 2), None
    for step, rate in enumerate((0.01, 0.005)):  # half a cosine: 1, 1/2
        patches, labels = sampler.batch(step)
        loss = torch.relu(1 - labels * network(patches).view(-1)).mean() + 0.005 * sum(p.square().sum() for p in network.parameters())
        gradient = torch.autograd.grad(loss, list(network.parameters()))
        velocity = gradient if velocity is None else [0.9 * v + 0.1 * g for v, g in zip(velocity, gradient, strict=True)]
        with torch.no_grad():
            for p, v in zip(network.parameters(), velocity, strict=True):
                p -= rate * v
    for name, tensor in load_weights(tmp_path / "net")[0].items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_a_cube_of_many_patches_costs_the_mean_of_their_hinge_losses(tmp_path):
    """One step by hand: every patch of a cube, cut out and judged alone, at the network's stride of 4 from its first voxel."""
    pairs, large = inverted_pairs(2, (40, 42)), PatchPairSettings(batch=4, patch=25)
    fit_patch_metric(pairs, [], settings(sampler=large, steps=1, momentum=0), seed=4, threads=1, out=tmp_path / "net")
    cubes, labels = PatchSampler(pairs, large, seed=4).batch(0)
    torch.manual_seed(4)
    network = PatchCnn("tiny", 2)
    alone = torch.cat([cubes[..., y : y + 17, x : x + 17] for y in (0, 4, 8) for x in (0, 4, 8)])
    loss = torch.relu(1 - labels.repeat(9) * network(alone).view(-1)).mean()
    gradient = torch.autograd.grad(loss, list(network.parameters()))
    found = load_weights(tmp_path / "net")[0]
    for (name, before), slope in zip(network.named_parameters(), gradient, strict=True):
        torch.testing.assert_close(found[name], before.detach() - 0.01 * slope, rtol=1e-4, atol=1e-6)
    row = rows_of(tmp_path / "net")[0]
    assert float(row["train_loss"]) == pytest.approx(loss.item(), rel=1e-5)


def test_bf16_fits_too_and_keeps_single_precision_weights(tmp_path):
    card = fitted(tmp_path / "net", settings(precision="bf16", steps=2))
    assert np.isfinite(card["scores"]["train_loss"])
    assert {t.dtype for t in load_weights(tmp_path / "net")[0].values()} == {torch.float32}


# ---- files


def test_card_and_curve_tell_what_was_fitted(tmp_path):
    card = fitted(tmp_path / "net", seed=3)
    assert {file.name for file in tmp_path.iterdir()} == {"net.safetensors", "net.json", "net.csv"}
    assert json.loads((tmp_path / "net.json").read_text()) == card
    assert (card["architecture"], card["configuration"], card["dimension"], card["seed"], card["threads"]) == ("patch-cnn", "tiny", 2, 3, 1)
    assert card["channels"] == ["t1", "t2"] and card["settings"]["steps"] == 6
    assert [row["name"] for row in card["data"]["train"]] == ["pair 0", "pair 1", "pair 2"]
    rows = rows_of(tmp_path / "net")
    assert tuple(rows[0]) == CURVE and [row["step"] for row in rows] == ["2", "4", "6"]
    best = min(reversed(rows), key=lambda row: float(row["validation_loss"]))
    assert card["scores"]["step"] == int(best["step"]) and card["scores"]["validation_loss"] == float(best["validation_loss"])
    assert float(rows[-1]["seconds"]) >= float(rows[0]["seconds"]) > 0 and float(rows[0]["patches_per_second"]) > 0


def test_the_weights_are_those_of_the_lowest_validation_loss(tmp_path, monkeypatch):
    losses = iter([0.5, 0.2, 0.9])
    monkeypatch.setattr("pipeline.learned.patch_metric._Fit._validation", lambda self: {"validation_loss": next(losses), "validation_accuracy": 0.5})
    card = fitted(tmp_path / "net")
    monkeypatch.undo()
    fitted(tmp_path / "short", settings(steps=4, validation_every=4), validation=0)
    assert card["scores"]["step"] == 4
    best, last = (load_weights(tmp_path / name)[0] for name in ("net", "short"))
    assert all(torch.equal(best[name], last[name]) for name in best)


def test_where_the_rate_falls_to_zero_the_last_weights_are_kept(tmp_path, monkeypatch):
    losses = iter([0.2, 0.5, 0.9])
    monkeypatch.setattr("pipeline.learned.patch_metric._Fit._validation", lambda self: {"validation_loss": next(losses), "validation_accuracy": 0.5})
    card = fitted(tmp_path / "net", settings(decay="cosine"))
    monkeypatch.undo()
    fitted(tmp_path / "alone", settings(decay="cosine"), validation=0)
    assert card["scores"]["step"] == 6
    kept, last = (load_weights(tmp_path / name)[0] for name in ("net", "alone"))
    assert all(torch.equal(kept[name], last[name]) for name in kept)


def test_without_validation_the_last_weights_are_kept_and_its_columns_are_empty(tmp_path):
    card = fitted(tmp_path / "net", validation=0)
    assert card["scores"]["step"] == 6 and "validation_loss" not in card["scores"]
    assert {row["validation_loss"] for row in rows_of(tmp_path / "net")} == {""}


@pytest.mark.parametrize(("stop", "optimiser"), [(1, "sgd"), (2, "sgd"), (5, "sgd"), (5, "adam")])
def test_a_fit_that_was_killed_goes_on_to_the_same_weights(tmp_path, monkeypatch, stop, optimiser):
    chosen = settings(optimiser=optimiser)
    fitted(tmp_path / "whole" / "net", chosen)
    batch, drawn = PatchSampler.batch, []

    def failing(self, step, stream="train"):
        if stream == "train":
            if step == stop and not drawn.count(("failed", stop)):
                drawn.append(("failed", stop))
                raise RuntimeError("power cut")
            drawn.append(step)
        return batch(self, step, stream)

    monkeypatch.setattr(PatchSampler, "batch", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        fitted(tmp_path / "cut" / "net", chosen)
    assert not (tmp_path / "cut" / "net.safetensors").exists()
    drawn[:] = [("failed", stop)]
    fitted(tmp_path / "cut" / "net", chosen)
    assert drawn[1:] == list(range(stop // 2 * 2, 6))  # from the checkpoint on, no step before it
    for name in ("net.safetensors", "net.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    untimed = [[{k: row[k] for k in CURVE[:5]} for row in rows_of(tmp_path / folder / "net")] for folder in ("cut", "whole")]
    assert untimed[0] == untimed[1]


def test_the_best_weights_so_far_outlive_a_kill(tmp_path, monkeypatch):
    def losses(self):
        return {"validation_loss": self.progress.step / 10, "validation_accuracy": 0.5}

    monkeypatch.setattr("pipeline.learned.patch_metric._Fit._validation", losses)
    whole = fitted(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        step = _Fit._step
        patch.setattr(_Fit, "_step", lambda self, *batch: step(self, *batch) if self.progress.step < 5 else cut())
        fitted(tmp_path / "cut")
    assert fitted(tmp_path / "cut") == whole and whole["scores"]["step"] == 2


def test_a_checkpoint_of_another_fit_is_not_gone_on_from(tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr("pipeline.learned.patch_metric._Fit._validation", lambda self: {} if self.progress.step < 6 else cut())
        fitted(tmp_path / "net")
    assert (tmp_path / "net.checkpoint.safetensors").exists()
    with caplog.at_level(logging.INFO):
        fitted(tmp_path / "net", settings(learning_rate=0.02))
    assert "other settings" in caplog.text and "steps 0 to 6" in caplog.text
    fitted(tmp_path / "fresh", settings(learning_rate=0.02))
    assert (tmp_path / "net.safetensors").read_bytes() == (tmp_path / "fresh.safetensors").read_bytes()


def test_the_seed_decides_and_the_generator_of_torch_is_left_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        fitted(tmp_path / name, seed=seed)
    assert torch.equal(torch.rand(3), expected)
    one, same, other = (load_weights(tmp_path / name)[0] for name in ("one", "same", "other"))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["layers.1.weight"], other["layers.1.weight"])


def test_a_diverging_fit_is_told(tmp_path):
    with pytest.raises(ConcordError, match=r"the loss is .* at step .*lower learning_rate, which is 1e"):
        fitted(tmp_path / "net", settings(learning_rate=1e30, steps=20))
    assert not (tmp_path / "net.safetensors").exists()


# ---- loading and applying


def test_a_fitted_network_comes_back_for_evaluation_only(tmp_path):
    fitted(tmp_path / "net")
    network, card = load_patch_metric(tmp_path / "net.safetensors")
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert (network.configuration, network.dimension) == ("tiny", 2) == (card["configuration"], card["dimension"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architecture": "voxelmorph"}, "architecture 'voxelmorph'; expected 'patch-cnn'"),
        ({"configuration": "tinny"}, "no configuration 'tinny'; did you mean 'tiny'"),
        ({"configuration": "slim"}, r"layers\.0\.bias is \(8,\), PatchCnn expects \(16,\)"),
        ({"dimension": 3}, r"layers\.0\.weight is \(8, 2, 3, 3\), PatchCnn expects \(8, 2, 3, 3, 3\)"),
        ({"dimension": 4}, "dimension 4"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, change, named):
    card = {"architecture": "patch-cnn", "configuration": "tiny", "dimension": 2}
    save_weights(tmp_path / "net", PatchCnn("tiny", 2).state_dict(), card | change)
    with pytest.raises(ConcordError, match=named):
        load_patch_metric(tmp_path / "net")


def test_volumes_are_normalised_by_the_card():
    card = {"normalisation": {"t1": {"mean": 0.25, "std": 0.5}}}
    array = np.array([[0, 50], [100, 200]], np.int16)
    np.testing.assert_allclose(normalised(array, card, "t1"), [[-0.5, 0], [0.5, 1.5]])
    np.testing.assert_allclose(normalised(array, card, "t1", np.array([[0, 1], [1, 0]])), [[-0.5, -0.5], [1.5, 1.5]])
    assert normalised(array, card, "t1").dtype == np.float32
    with pytest.raises(ConcordError, match="channel 't3' is not one of the network's; did you mean 't1'"):
        normalised(array, card, "t3")
    with pytest.raises(ConcordError, match="t1 volume: every sample is 1"):
        normalised(np.ones((3, 3)), card, "t1")


def test_inference_normalises_as_the_sampler_does(tmp_path):
    card = fitted(tmp_path / "net")
    pair = inverted_pairs(1, (24, 22))[0]
    still = PatchPairSettings(batch=4, scale=(1, 1), rotation_degrees=0, mirror=False)
    known = tuple((c["mean"], c["std"]) for c in card["normalisation"].values())
    patch = PatchSampler([pair], still, seed=0, normalisation=known).batch(0)[0][0, 1].numpy()
    volume = normalised(pair.b, card, "t2")
    assert volume.min() - 1e-5 <= patch.min() and patch.max() <= volume.max() + 1e-5
    whole = PatchSampler([AlignedPair(pair.a[:17, :17], pair.b[:17, :17], "p")], still, seed=0, normalisation=known).batch(0)[0][0, 1].numpy()
    np.testing.assert_allclose(whole, normalised(pair.b[:17, :17], card, "t2"), atol=1e-4)


# ---- settings and cases


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"configuration": "tine"}, "did you mean 'tiny'"),
        ({"pairs": 0}, "pairs must be 1 or more"),
        ({"pairs": "some"}, "all"),
        ({"sampler": {"patch": 15}}, "sampler.patch 15: expected 17"),
        ({"sampler": {"patch": 23}}, "sampler.patch 23: expected 17.*multiple of its stride, 4"),
        ({"optimiser": "lion"}, "optimiser"),
        ({"device": "gpu"}, "device"),
    ],
)
def test_bad_settings_are_refused(change, named):
    with pytest.raises(ValidationError, match=named):
        PatchMetricFit(**change)
