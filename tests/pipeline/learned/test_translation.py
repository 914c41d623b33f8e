"""Fits of the hierarchical translation model: stages, freezing, resuming, cards, and that it learns."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from field_examples import rings, written_cases
from pydantic import ValidationError

from nets.fields import warp
from nets.translation import HierarchicalTranslation
from pipeline.cases import read_cases, write_cases
from pipeline.errors import ConcordError
from pipeline.learned.field_cases import FieldCase
from pipeline.learned.registry import fit
from pipeline.learned.settings.translation import LossWeights, TranslationFit
from pipeline.learned.translation import fit_to_cases, fit_translation, load_translation
from pipeline.learned.translation_losses import coarse_loss, comparison, fine_loss, translation_loss
from pipeline.learned.translation_training import CURVE, TranslationTraining, seeded_network
from pipeline.learned.weights import beside, load_weights, save_weights
from pipeline.methods import Run
from pipeline.volumes import Geometry, Volume, write_volume

FAST = {"iterations": 4, "validation_every": 2, "batch": 2, "learning_rate": 1e-3, "bins": 16, "device": "cpu"}


def settings(**changes):
    return TranslationFit(**(FAST | changes))


def two_modalities(seed, size=(20, 16), shift=1):
    """A ring, and the same ring of another contrast that is shifted: fixed (y, x) is moving (y, x + shift)."""
    image, labels = rings(seed, 3.0, size)
    other = np.roll(np.cos(2.0 * image) - 0.2 * image, shift, axis=1)
    other = (other - other.min()) / np.ptp(other)
    images = np.stack([image, other]).astype(np.float32)
    return FieldCase(
        f"case-{seed}", (f"sub-{seed}",), images, np.stack([labels, np.roll(labels, shift, axis=1)]).astype(np.int16), ((f"{seed}", "0"),)
    )


def fitted(out, chosen=None, *, train=3, validation=1, seed=0):
    cases = [[two_modalities(k) for k in range(first, first + count)] for first, count in ((0, train), (50, validation))]
    return fit_translation(*cases, chosen or settings(), seed=seed, threads=1, out=out)


def rows_of(out):
    with beside(out, ".csv").open() as stream:
        return list(csv.DictReader(stream))


def of_part(out, part):
    return {name: tensor for name, tensor in load_weights(out)[0].items() if name.startswith(part)}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_it_learns_to_register_and_to_translate(tmp_path):
    cases = [two_modalities(k, (24, 24), shift=2) for k in range(16)]
    chosen = settings(iterations=(60, 40, 30), validation_every=10, batch=4, learning_rate=5e-3)
    fit_translation(cases[:12], cases[12:], chosen, seed=0, threads=1, out=tmp_path / "net")
    rows = rows_of(tmp_path / "net")
    last = {row["stage"]: row for row in rows}
    assert float(last["coarse"]["validation_start_dice"]) < 0.75 < 0.9 < float(last["fine"]["validation_dice"])
    network, _ = load_translation(tmp_path / "net")
    images = torch.from_numpy(np.stack([case.images for case in cases[12:]]))
    found = network(images)
    truth = images[:, :1].roll(2, 3)  # what the moving image would be in the fixed one's contrast
    assert (found.translated - truth).square().mean() < 0.3 * (images[:, 1:] - truth).square().mean()
    assert (warp(found.translated, found.displacement_vx) - images[:, :1]).square().mean() < 0.02


def test_a_step_is_adam_on_the_stages_loss_with_what_came_before_frozen(tmp_path):
    """Second implementation: one iteration a stage by hand with torch's Adam, every pair in the batch."""
    weights = LossWeights(coarse_smooth=3.0, translated_squares=1.0, fine_smooth=0.5)
    chosen = settings(iterations=2, validation_every=1, batch=3, weights=weights)
    fitted(tmp_path / "net", chosen, validation=0)
    network, images = seeded_network(chosen, 2, 0), torch.from_numpy(np.stack([two_modalities(k).images for k in range(3)]))
    compare, number, rows = comparison("nmi", bins=16), 0, rows_of(tmp_path / "net")
    for stage in ("coarse", "translate", "fine"):
        adam = torch.optim.Adam(getattr(network, stage).parameters(), lr=1e-3)
        for _ in range(2):
            found = network(images)
            if stage == "coarse":
                loss = coarse_loss(images, found, compare, weights, bidirectional=True)
            else:
                loss = (translation_loss if stage == "translate" else fine_loss)(images, found, compare, weights)
            adam.zero_grad()
            loss.backward()
            adam.step()
            assert rows[number]["stage"] == stage
            assert float(rows[number]["train_loss"]) == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
            number += 1
    for name, tensor in load_weights(tmp_path / "net")[0].items():
        # where a gradient is all but zero Adam divides rounding by rounding: a step of either sign
        near = torch.isclose(tensor, network.state_dict()[name], rtol=1e-3, atol=3e-5)
        assert near.float().mean() > 0.999, name


def test_a_part_is_the_same_whatever_follows_it(tmp_path):
    fitted(tmp_path / "whole")
    fitted(tmp_path / "alone", settings(stages=["coarse"]))
    assert same(of_part(tmp_path / "whole", "coarse"), of_part(tmp_path / "alone", "coarse"))
    assert same(of_part(tmp_path / "alone", "coarse"), load_weights(tmp_path / "alone")[0])
    fresh = seeded_network(settings(), 2, 0).state_dict()
    for part in ("coarse", "translate", "fine"):
        moved = [not torch.equal(tensor, fresh[name]) for name, tensor in of_part(tmp_path / "whole", part).items()]
        assert all(moved), part


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"stages": ["coarse"], "bidirectional": False, "coarse_output": "displacement"}, ["coarse"]),
        ({"stages": ["coarse", "fine"]}, ["coarse", "fine"]),
        ({"stages": ["translate", "fine"], "fine_output": "velocity", "translate_sees": "moving"}, ["translate", "fine"]),
        ({"stages": ["coarse", "translate", "fine", "joint"], "iterations": (2, 2, 2, 4)}, ["coarse", "translate", "fine"]),
    ],
)
def test_stages_may_be_left_out_or_be_trained_together(tmp_path, changes, parts):
    card = fitted(tmp_path / "net", settings(**changes))
    assert sorted(card["parameters"]) == sorted(parts) and sorted(card["scores"]) == sorted(changes["stages"])
    network, _ = load_translation(tmp_path / "net")
    assert list(network.parts) == parts
    if "joint" in changes["stages"]:
        fitted(tmp_path / "before", settings(**changes | {"stages": changes["stages"][:3], "iterations": 2}))
        first, second = load_weights(tmp_path / "before")[0], load_weights(tmp_path / "net")[0]
        assert all(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
@pytest.mark.parametrize("changes", [{}, {"flip": True, "decay": "cosine", "similarity": "ncc", "stages": ["coarse", "fine", "joint"]}])
def test_a_killed_fit_goes_on_to_the_same_bits(tmp_path, monkeypatch, stop, changes):
    """Within a stage (odd rows) and between two."""
    chosen = settings(**changes)
    fitted(tmp_path / "whole", chosen)
    epoch = TranslationTraining._epoch

    def dies(self, batches):
        if self.progress.epoch == stop:
            raise KeyboardInterrupt
        epoch(self, batches)

    monkeypatch.setattr(TranslationTraining, "_epoch", dies)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "killed", chosen)
    seen = []
    monkeypatch.setattr(TranslationTraining, "_epoch", lambda self, batches: (seen.append(self.progress.epoch), epoch(self, batches)))
    fitted(tmp_path / "killed", chosen)
    assert seen == list(range(stop, 6))
    assert beside(tmp_path / "killed", ".safetensors").read_bytes() == beside(tmp_path / "whole", ".safetensors").read_bytes()
    assert not beside(tmp_path / "killed", ".checkpoint.safetensors").exists()
    timed = {"seconds", "pairs_per_second"}
    strip = [[{k: v for k, v in row.items() if k not in timed} for row in rows_of(tmp_path / name)] for name in ("whole", "killed")]
    assert strip[0] == strip[1]


def test_a_checkpoint_of_other_stages_is_not_used(tmp_path, monkeypatch):
    epoch = TranslationTraining._epoch
    monkeypatch.setattr(
        TranslationTraining, "_epoch", lambda self, b: (_ for _ in ()).throw(KeyboardInterrupt) if self.progress.epoch else epoch(self, b)
    )
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "net", settings(fine_output="velocity"))
    monkeypatch.setattr(TranslationTraining, "_epoch", epoch)
    fitted(tmp_path / "net", settings(stages=["coarse", "fine"]))
    fitted(tmp_path / "fresh", settings(stages=["coarse", "fine"]))
    assert beside(tmp_path / "net", ".safetensors").read_bytes() == beside(tmp_path / "fresh", ".safetensors").read_bytes()


def test_batches_show_every_pair_once_before_one_comes_again():
    training = TranslationTraining(settings(batch=2), [two_modalities(k) for k in range(5)], [], seed=3, device=torch.device("cpu"))
    pool = training.batches.images
    # the first stage has four steps of two pairs: eight draws from five pairs
    drawn = [int((pool == image).flatten(1).all(1).nonzero()) for step in range(4) for image in training._draw(step)]
    assert sorted(drawn[:5]) == list(range(5)) and len(set(drawn[5:])) == 3
    assert torch.equal(training._draw(2), training._draw(2)) and not torch.equal(training._draw(0), training._draw(4))


def test_flips_mirror_both_images_along_the_same_axes():
    case = two_modalities(0)
    training = TranslationTraining(settings(batch=8, flip=True), [case], [], seed=0, device=torch.device("cpu"))
    one = torch.from_numpy(case.images)
    kinds = [one, one.flip(1), one.flip(2), one.flip(1, 2)]
    found = [next(k for k, kind in enumerate(kinds) if torch.equal(image, kind)) for step in range(4) for image in training._draw(step)]
    assert set(found) == {0, 1, 2, 3}


def test_the_card_says_what_was_built_and_the_curve_what_happened(tmp_path):
    card = fitted(tmp_path / "net", settings(similarity="lg"))
    assert (card["architecture"], card["dimension"], card["size"], card["similarity"]) == ("translation", 2, [20, 16], "lg")
    assert card["parameters"] == {"coarse": 109_170, "translate": 109_025, "fine": 109_314}
    assert card["subjects"] == {"train": ["sub-0", "sub-1", "sub-2"], "validation": ["sub-50"]}
    rows = rows_of(tmp_path / "net")
    assert list(rows[0]) == list(CURVE)
    assert [(row["stage"], row["step"]) for row in rows] == [(s, n) for s in ("coarse", "translate", "fine") for n in ("2", "4")]
    assert all(float(row["validation_loss"]) and 0 < float(row["validation_dice"]) <= 1 for row in rows)
    assert card["scores"]["fine"]["validation_dice"] == pytest.approx(float(rows[-1]["validation_dice"]))


def test_the_curve_of_negative_losses_is_drawn(tmp_path):
    import pandas as pd

    from pipeline.figures.curves import learning_curve

    fitted(tmp_path / "net", settings(stages=["coarse"], weights={"coarse_smooth": 0}))
    curve = pd.read_csv(tmp_path / "net.csv")
    loss, dice = learning_curve(curve, title="fit").axes
    assert (curve["train_loss"] < 0).all() and loss.get_yscale() == "linear" and dice.get_ylabel() == "Dice"
    positive = curve.assign(train_loss=1.0, validation_loss=2.0)
    assert learning_curve(positive, title="fit").axes[0].get_yscale() == "log"


def test_three_dimensions_are_fitted_alike(tmp_path):
    rng = np.random.default_rng(0)
    cases = [FieldCase(f"c{k}", (f"s{k}",), rng.random((2, 16, 17, 15), dtype=np.float32)) for k in range(2)]
    card = fit_translation(cases, [], settings(iterations=1, validation_every=1, batch=1), seed=0, threads=1, out=tmp_path / "net")
    assert (card["dimension"], card["parameters"]["coarse"], card["size"]) == (3, 327_331, [15, 17, 16])
    assert load_translation(tmp_path / "net")[0](torch.rand(1, 2, 16, 16, 16)).displacement_vx.shape == (1, 3, 16, 16, 16)


def with_splits(folder, **modalities):
    file = written_cases(folder, {"a": 2, "b": 1, "c": 1})
    split = {"a": "train", "b": "train", "c": "validation"}
    write_cases([case.model_copy(update={"split": split[case.subject], **modalities}) for case in read_cases(file)], file)
    return file


def test_a_table_of_cases_is_fitted_by_its_splits(tmp_path):
    file = with_splits(tmp_path, fixed_modality="t1", moving_modality="t2")
    card = fit("translation", FAST | {"stages": ["coarse"]}, file, run=Run(seed=2), out=tmp_path / "net")
    assert card["subjects"] == {"train": ["a", "b"], "validation": ["c"]} and card["modalities"] == {"fixed": "t1", "moving": "t2"}
    assert [len(one["files"]) for side in ("train", "validation") for one in card["data"][side]] == [2, 2, 2, 4]


def test_cases_of_two_directions_and_of_two_sizes_are_refused(tmp_path):
    file = with_splits(tmp_path, fixed_modality="t1", moving_modality="t2")
    cases = read_cases(file)
    write_cases([cases[0].model_copy(update={"fixed_modality": "t2", "moving_modality": "t1"}), *cases[1:]], file)
    with pytest.raises(ConcordError, match="t2 to t1, t1 to t2; expected one direction"):
        fit_to_cases(settings(), file, run=Run(), out=tmp_path / "net")
    held_out = cases[-1]
    grid = Geometry.regular((9, 12), (1.0, 1.0))
    for name in ("fixed", "moving", "fixed_labels", "moving_labels"):
        write_volume(Volume(np.random.default_rng(0).integers(0, 9, grid.shape).astype(np.uint8), grid, name), getattr(held_out, name))
    write_cases(cases, file)
    with pytest.raises(ConcordError, match="expected one size for all cases"):
        fit_to_cases(settings(), file, run=Run(), out=tmp_path / "net")


def test_other_weights_are_told_in_one_line(tmp_path):
    fitted(tmp_path / "net")
    state, card = load_weights(tmp_path / "net")
    changed = {name: value for name, value in card.items() if name not in ("bytes", "sha256")}
    save_weights(tmp_path / "wrong", state, changed | {"architecture": "field-network"})
    save_weights(tmp_path / "lacks", {name: t for name, t in state.items() if not name.startswith("fine")}, changed)
    save_weights(tmp_path / "more", state, changed | {"stages": ["coarse", "translate"]})
    save_weights(tmp_path / "none", state, changed | {"stages": ["coarsest"]})
    for name, told in {
        "wrong": "'field-network'; expected 'translation'",
        "lacks": "no weights of stage fine",
        "more": "weights of another architecture",
        "none": "describes no network",
    }.items():
        with pytest.raises(ConcordError, match=told) as caught:
            load_translation(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stages": ["fine", "coarse"]}, "in the order coarse, translate, fine, joint"),
        ({"stages": ["coarse", "coarse"]}, "expected each once"),
        ({"stages": ["coarse", "joint"]}, "two parts or more"),
        ({"iterations": (4, 4)}, "3, one a stage"),
        ({"iterations": 3}, "multiple of validation_every"),
        ({"coarse_output": "displacement"}, "the inverse needs coarse_output velocity"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, told):
    with pytest.raises(ValidationError, match=told):
        settings(**changes)


def test_subjects_on_both_sides_and_losses_without_end_are_refused(tmp_path):
    with pytest.raises(ConcordError, match="no training case"):
        fit_translation([], [], settings(), seed=0, threads=1, out=tmp_path / "net")
    with pytest.raises(ConcordError, match="to train on and held out"):
        fit_translation([two_modalities(0)], [two_modalities(0)], settings(), seed=0, threads=1, out=tmp_path / "net")
    with pytest.raises(ConcordError, match=r"displacements reach .* in iteration 2 of stage coarse; .*lower learning_rate"):
        fitted(tmp_path / "net", settings(learning_rate=1e30))


def test_the_network_alone_has_no_parts_it_was_not_given():
    assert not hasattr(HierarchicalTranslation(2, parts=("coarse",)), "fine")
