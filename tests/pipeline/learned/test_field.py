"""Fits of networks that predict displacements: they learn, can be killed, and say what they were made of."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from field_examples import field_case, written_cases
from pydantic import ValidationError

from metrics.accuracy.overlap import dice, mean_over_structures
from metrics.similarity.field_losses import composite_loss, label_driven_loss, one_hot
from nets.fields import warp
from nets.unet import build
from pipeline.errors import ConcordError
from pipeline.learned.field import fit_fields, fit_to_cases, load_field
from pipeline.learned.field_batches import FieldBatches
from pipeline.learned.field_training import CURVE, FieldTraining, mean_dice
from pipeline.learned.registry import fit, learner_settings
from pipeline.learned.settings.field import Augmentation, FieldFit
from pipeline.learned.weights import beside, load_weights, save_weights
from pipeline.methods import Run

FAST = {"network": "unet", "widths": (4, 6), "channels": 4, "epochs": 3, "batch": 2, "learning_rate": 1e-3, "device": "cpu"}


def settings(**changes):
    return FieldFit(**(FAST | changes))


def fitted(out, chosen=None, *, train=3, validation=1, seed=0):
    cases = [[field_case(k) for k in range(first, first + count)] for first, count in ((0, train), (50, validation))]
    return fit_fields(*cases, chosen or settings(), seed=seed, threads=1, out=out)


def rows_of(out):
    with beside(out, ".csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    "chosen",
    [
        {"network": "unet"},
        {"network": "resatt", "output_scale": 0.04},
        {"network": "unet", "svf": True},
        {"network": "unet", "loss": "label-driven", "label_weight": 30.0},
    ],
)
def test_it_learns_to_bring_the_held_out_structures_together(tmp_path, chosen):
    mild = Augmentation(rotation_deg=10, deform_vx=0.3, deform_sigma_vx=4)
    learning = {
        "widths": (8, 16),
        "epochs": 25,
        "batch": 4,
        "learning_rate": 1e-2,
        "decay": "cosine",
        "gradient_weight": 20.0,
        "curvature_weight": 0.5,
    }
    fitted(tmp_path / "net", settings(**(learning | {"augmentation": mild, "validation_every": 25} | chosen)), train=12, validation=4)
    last = rows_of(tmp_path / "net")[-1]
    assert float(last["validation_start_dice"]) < 0.3
    assert float(last["validation_dice"]) > 0.6


@pytest.mark.parametrize("loss", ["composite", "label-driven"])
def test_a_step_is_adam_on_the_mean_loss_of_its_batch(tmp_path, loss):
    """Second implementation: two epochs by hand with torch's Adam."""
    chosen = settings(epochs=2, batch=3, loss=loss, decay="cosine", structure_weight=50.0, gradient_weight=7.0, label_weight=3.0)
    fitted(tmp_path / "net", chosen, validation=0)
    batches = FieldBatches([field_case(k) for k in range(3)], labels=True, seed=0, device=torch.device("cpu"))
    torch.manual_seed(0)
    network = build("unet", widths=(4, 6))
    adam = torch.optim.Adam(network.parameters())
    for epoch, rate in enumerate((1e-3, 5e-4)):
        batch = batches.training(epoch, 0, batch=3, augmentation=Augmentation())
        fixed, moving = batch.images[:, :1], batch.images[:, 1:]
        u = network(batch.images)
        if loss == "composite":
            value = composite_loss(fixed, warp(moving, u), u, type("W", (), {"structure": 50.0, "squares": 5e2, "gradient": 7.0}))
        else:
            maps = [one_hot(batch.labels[:, [k]], torch.tensor([1.0, 2.0])) for k in (0, 1)]
            weights = type("W", (), {"curvature": 10.0, "labels": 3.0})
            value = label_driven_loss((fixed, warp(moving, u)), u, (maps[0], warp(maps[1], u)), weights)
        adam.param_groups[0]["lr"] = rate
        adam.zero_grad()
        value.backward()
        adam.step()
        assert float(rows_of(tmp_path / "net")[epoch]["train_loss"]) == pytest.approx(value.item(), rel=1e-4)
    for name, tensor in load_weights(tmp_path / "net")[0].items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"network": "resatt", "loss": "label-driven", "decay": "cosine", "validation_every": 2}])
def test_a_killed_fit_goes_on_to_the_same_bits(tmp_path, monkeypatch, changes):
    chosen = settings(epochs=4, **changes)
    fitted(tmp_path / "whole", chosen)
    epoch = FieldTraining._epoch

    def dies(self, batches):
        if self.progress.epoch == 2:
            raise KeyboardInterrupt
        epoch(self, batches)

    monkeypatch.setattr(FieldTraining, "_epoch", dies)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "killed", chosen)
    assert beside(tmp_path / "killed", ".checkpoint.safetensors").exists()
    seen = []
    monkeypatch.setattr(FieldTraining, "_epoch", lambda self, batches: (seen.append(self.progress.epoch), epoch(self, batches)))
    fitted(tmp_path / "killed", chosen)
    assert seen == [2, 3]
    assert beside(tmp_path / "killed", ".safetensors").read_bytes() == beside(tmp_path / "whole", ".safetensors").read_bytes()
    assert not beside(tmp_path / "killed", ".checkpoint.safetensors").exists()
    timed = {"seconds", "pairs_per_second"}
    strip = [[{k: v for k, v in row.items() if k not in timed} for row in rows_of(tmp_path / name)] for name in ("whole", "killed")]
    assert strip[0] == strip[1]


def test_a_checkpoint_of_other_settings_is_not_used(tmp_path, monkeypatch):
    epoch = FieldTraining._epoch
    monkeypatch.setattr(FieldTraining, "_epoch", lambda self, b: (_ for _ in ()).throw(KeyboardInterrupt) if self.progress.epoch else epoch(self, b))
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "net", settings(learning_rate=1e-2))
    monkeypatch.setattr(FieldTraining, "_epoch", epoch)
    fitted(tmp_path / "net")
    fitted(tmp_path / "fresh")
    assert beside(tmp_path / "net", ".safetensors").read_bytes() == beside(tmp_path / "fresh", ".safetensors").read_bytes()


def test_the_seed_makes_the_network_and_the_weights_are_the_last_ones(tmp_path):
    """Held-out pairs choose nothing: without them the same weights come out."""
    files = []
    for name, how in {"a": {}, "b": {"validation": 0}, "c": {"seed": 1}}.items():
        fitted(tmp_path / name, **how)
        files.append(beside(tmp_path / name, ".safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_the_card_says_who_was_on_which_side_and_what_was_built(tmp_path):
    card = fitted(tmp_path / "net", settings(network="resatt"))
    assert card["subjects"] == {"train": ["sub-0", "sub-1", "sub-2"], "validation": ["sub-50"]}
    assert card["parameters"] == sum(p.numel() for p in build("resatt", widths=(4, 6), channels=4).parameters())
    assert (card["architecture"], card["network"], card["size"]) == ("field-network", "resatt", [20, 16])
    assert [one["name"] for one in card["data"]["train"]] == ["case-0", "case-1", "case-2"]
    assert card["scores"]["epoch"] == 3 and card["scores"]["validation_dice"] > 0
    assert json.loads(beside(tmp_path / "net", ".json").read_text()) == json.loads(json.dumps(card))
    assert list(rows_of(tmp_path / "net")[0]) == list(CURVE)


def test_the_loaded_network_is_the_fitted_one(tmp_path):
    fitted(tmp_path / "net", settings(network="resatt", svf=True, score_scale=0.1, output_scale=0.5))
    network, card = load_field(tmp_path / "net.safetensors")
    assert network.svf and (network.skip[0].scale, network.skip[0].output_scale) == (0.1, 0.5) and not network.training
    state, _ = load_weights(tmp_path / "net")
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    changed = {name: value for name, value in card.items() if name not in ("bytes", "sha256")}
    save_weights(tmp_path / "other", state, changed | {"widths": [4, 8]})
    save_weights(tmp_path / "wrong", state, changed | {"architecture": "rigid-network"})
    save_weights(tmp_path / "vnet", state, changed | {"network": "vnet"})
    for name, told in {
        "other": "weights of another architecture",
        "wrong": "'rigid-network'; expected 'field-network'",
        "vnet": "describes no network",
    }.items():
        with pytest.raises(ConcordError, match=told) as caught:
            load_field(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loss", ["composite", "label-driven"])
def test_a_table_of_cases_is_fitted_with_a_fold_held_out(tmp_path, loss):
    cases = written_cases(tmp_path, {"a": 2, "b": 2, "c": 1})
    given = FAST | {"epochs": 1, "folds": 3, "fold": 1, "loss": loss}
    card = fit("field-network", given, cases, run=Run(seed=2), out=tmp_path / "net")
    sides = card["subjects"]
    assert len(sides["validation"]) == 1 and sorted(sides["train"] + sides["validation"]) == ["a", "b", "c"]
    assert len(card["data"]["train"][0]["files"]) == (4 if loss == "label-driven" else 2)
    assert card["scores"]["validation_dice"] == card["scores"]["validation_start_dice"] > 0 or loss == "label-driven"
    other = fit_to_cases(FieldFit(**(given | {"fold": 2})), cases, run=Run(seed=2), out=tmp_path / "second")
    assert other["subjects"]["validation"] != sides["validation"]


def test_dice_is_the_reported_measure():
    cases = [field_case(k) for k in range(3)]
    labels = torch.from_numpy(np.stack([case.labels for case in cases])).float()
    labels[2] = torch.where(labels[2] == 2, 0, labels[2])  # one structure is in neither map
    u = 2 * torch.rand(3, 2, *labels.shape[2:])
    warped = warp(labels[:, 1:], u, interpolation="nearest")
    found = mean_dice(labels, u, torch.tensor([1.0, 2.0]))
    expected = [mean_over_structures(dice(a[0].numpy(), b[0].numpy(), [1, 2])) for a, b in zip(labels, warped, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_bad_settings_and_data_are_told_in_one_line(tmp_path):
    with pytest.raises(ValidationError, match="expected one of 0 to 4"):
        settings(folds=5, fold=5)
    with pytest.raises(ConcordError, match="did you mean 'widths'"):
        learner_settings("field-network", {"width": 3}, where="fits.x")
    cases = [field_case(0), field_case(1, subject="sub-0")]
    for train, validation, told in (([], [], "no training case"), (cases[:1], cases[1:], "subjects sub-0: to train on and held out")):
        with pytest.raises(ConcordError, match=told):
            fit_fields(train, validation, settings(), seed=0, threads=1, out=tmp_path / "net")
    with pytest.raises(ConcordError, match=r"the loss is (nan|inf).*lower learning_rate"):
        fitted(tmp_path / "net", settings(learning_rate=1e30))
