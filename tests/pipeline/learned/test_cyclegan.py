"""Fits of CycleGAN: they learn a contrast, can be killed, and keep both generators."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from field_examples import rings
from pydantic import ValidationError

from pipeline.cases import Case, write_cases
from pipeline.errors import ConcordError
from pipeline.learned.cyclegan import CURVE, CycleGanTraining, fit_cyclegan, load_cyclegan, translate
from pipeline.learned.field_cases import FieldCase
from pipeline.learned.registry import fit
from pipeline.learned.settings.cyclegan import CycleGanFit
from pipeline.learned.weights import beside, load_weights, save_weights
from pipeline.methods import Run
from pipeline.volumes import Geometry, Volume, write_volume

FAST = {"blocks": 1, "width": 4, "epochs": 2, "decay_epochs": 1, "batch": 2, "pool": 3, "device": "cpu"}


def settings(**changes):
    return CycleGanFit(**(FAST | changes))


def unpaired(seed, size=(32, 36)):
    """Rings of one contrast, and others of the inverted one."""
    fixed, moving = rings(seed, 8.0, size)[0], 1 - rings(seed + 100, 8.0, size)[0]
    return FieldCase(f"case-{seed}", (f"sub-{seed}",), np.stack([fixed, moving]), None, ((f"{seed}", "0"),))


def fitted(out, chosen=None, *, train=4, seed=0):
    return fit_cyclegan([unpaired(k) for k in range(train)], chosen or settings(), seed=seed, threads=1, out=out)


def rows_of(out):
    with beside(out, ".csv").open() as stream:
        return list(csv.DictReader(stream))


def test_it_learns_to_invert_the_contrast(tmp_path):
    fitted(tmp_path / "net", settings(width=4, epochs=9, decay_epochs=3, batch=4, learning_rate=6e-3, identity=0), train=12)
    test = unpaired(40).images[0]
    back = translate(tmp_path / "net", 1 - test[None])
    assert np.corrcoef(back.ravel(), test.ravel())[0, 1] > 0.6
    assert np.corrcoef(translate(tmp_path / "net", test[None], to="moving").ravel(), test.ravel())[0, 1] < -0.6
    assert back.shape == (1, 36, 32) and back.min() >= 0 and back.max() <= 1


@pytest.mark.parametrize("stop", [1, 2])
def test_a_killed_fit_goes_on_to_the_same_bits(tmp_path, monkeypatch, stop):
    """Pools and both optimisers' moments go with the checkpoint."""
    fitted(tmp_path / "whole")
    epoch = CycleGanTraining._epoch

    def dies(self, batches):
        if self.progress.epoch == stop:
            raise KeyboardInterrupt
        epoch(self, batches)

    monkeypatch.setattr(CycleGanTraining, "_epoch", dies)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "killed")
    monkeypatch.setattr(CycleGanTraining, "_epoch", epoch)
    fitted(tmp_path / "killed")
    assert beside(tmp_path / "killed", ".safetensors").read_bytes() == beside(tmp_path / "whole", ".safetensors").read_bytes()
    assert [row["train_discriminator"] for row in rows_of(tmp_path / "killed")] == [row["train_discriminator"] for row in rows_of(tmp_path / "whole")]


def test_the_curve_is_drawn(tmp_path):
    import pandas as pd

    from pipeline.figures.curves import learning_curve

    fitted(tmp_path / "net", settings(epochs=2, decay_epochs=0))
    loss, judged = learning_curve(pd.read_csv(tmp_path / "net.csv"), title="fit").axes
    assert judged.get_ylabel() == "loss of the discriminators" and len(loss.lines) == len(judged.lines) == 1


def test_the_rate_is_constant_and_then_falls_to_zero(tmp_path):
    fitted(tmp_path / "net", settings(epochs=2, decay_epochs=3))
    rates = [float(row["learning_rate"]) for row in rows_of(tmp_path / "net")]
    np.testing.assert_allclose(rates, 2e-4 * np.array([1, 1, 1, 0.75, 0.5]))


def test_the_losses_are_those_of_the_paper():
    training = CycleGanTraining(settings(), [unpaired(k) for k in range(2)], seed=0, device=torch.device("cpu"))
    network, batch = training.network, training._draw(0)
    fixed, moving = batch.split(1, dim=1)
    to_fixed, to_moving = network.to_fixed, network.to_moving
    expected = ((network.fixed_critic(to_fixed(moving)) - 1) ** 2).mean() + ((network.moving_critic(to_moving(fixed)) - 1) ** 2).mean()
    expected = expected + 10 * ((to_moving(to_fixed(moving)) - moving).abs().mean() + (to_fixed(to_moving(fixed)) - fixed).abs().mean())
    expected = expected + 5 * ((to_fixed(fixed) - fixed).abs().mean() + (to_moving(moving) - moving).abs().mean())
    torch.testing.assert_close(training._loss_of(batch), expected)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    training._step(batch)
    assert all(not torch.equal(before[name], tensor) for name, tensor in network.named_parameters() if name.endswith("layers.1.weight"))


def test_images_of_both_modalities_are_drawn_apart():
    cases = [unpaired(k) for k in range(6)]
    training = CycleGanTraining(settings(flip=False, batch=6), cases, seed=0, device=torch.device("cpu"))
    drawn = training._draw(0)
    order = [[int((training.images[:, c] == image[c]).flatten(1).all(1).nonzero()) for image in drawn] for c in range(2)]
    assert sorted(order[0]) == sorted(order[1]) == list(range(6)) and order[0] != order[1]
    flipped = CycleGanTraining(settings(flip=True, batch=6), cases, seed=0, device=torch.device("cpu"))._draw(0)
    same = [[torch.equal(a[c], b[c]) for c in range(2)] for a, b in zip(drawn, flipped, strict=True)]
    mirrored = [[torch.equal(a[c], b[c].flip(1)) for c in range(2)] for a, b in zip(drawn, flipped, strict=True)]
    assert np.logical_xor(same, mirrored).all() and np.any(same) and np.any(mirrored)


def test_a_table_of_cases_is_fitted(tmp_path):
    grid, cases = Geometry.regular((32, 36), (1.0, 1.0)), []
    for number in range(3):
        files = {name: tmp_path / f"{number}-{name}.mha" for name in ("fixed", "moving")}
        for array, (name, file) in zip(unpaired(number).images, files.items(), strict=True):
            write_volume(Volume(array, grid, name), file)
        cases.append(Case(case=f"c{number}", subject=f"s{number}", split="train", fixed_modality="t1", moving_modality="t2", **files))
    write_cases(cases, tmp_path / "cases.csv")
    card = fit("cyclegan", FAST | {"epochs": 1, "decay_epochs": 0}, tmp_path / "cases.csv", run=Run(), out=tmp_path / "net")
    assert (card["architecture"], card["size"], card["modalities"]) == ("cyclegan", [32, 36], {"fixed": "t1", "moving": "t2"})
    assert card["subjects"]["train"] == ["s0", "s1", "s2"] and list(rows_of(tmp_path / "net")[0]) == list(CURVE)


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    fitted(tmp_path / "net", settings(epochs=1, decay_epochs=0))
    state, card = load_weights(tmp_path / "net")
    changed = {name: value for name, value in card.items() if name not in ("bytes", "sha256")}
    save_weights(tmp_path / "wrong", state, changed | {"architecture": "translation"})
    save_weights(tmp_path / "other", state, changed | {"width": 5})
    save_weights(tmp_path / "none", state, {name: value for name, value in changed.items() if name != "blocks"})
    for name, told in {"wrong": "'translation'; expected 'cyclegan'", "other": "another architecture", "none": "describes no network"}.items():
        with pytest.raises(ConcordError, match=told) as caught:
            load_cyclegan(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConcordError, match="no training case"):
        fitted(tmp_path / "net", train=0)
    with pytest.raises(ConcordError, match="expected 32 or more"):
        fit_cyclegan([FieldCase("a", ("a",), np.zeros((2, 20, 40), np.float32))], settings(), seed=0, threads=1, out=tmp_path / "net")
    with pytest.raises(ValidationError, match="extra"):
        settings(lambda_a=1)
