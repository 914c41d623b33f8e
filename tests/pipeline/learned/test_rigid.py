from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rigid_examples import tiny_case, truth_of, volumes, written_case

from nets.rigid_networks import build
from nets.shapes import LEAST_GRIDS
from pipeline.cases import write_cases
from pipeline.errors import ConcordError
from pipeline.learned.rigid import fit_rigid, fit_to_cases, load_rigid
from pipeline.learned.rigid_batches import RigidBatches
from pipeline.learned.rigid_method import RigidNetwork
from pipeline.learned.rigid_training import CURVE, RigidTraining
from pipeline.learned.settings.rigid import RigidFit
from pipeline.learned.weights import beside, load_weights, save_weights
from pipeline.methods import Pair, Run, run_method
from pipeline.rigid_motion import Surfaces, draw_motions, linear_of, motion_matrix, rigid_matrix

FAST = {"network": "feature-reg", "size": (16, 16, 8), "epochs": 4, "batch": 2, "draws_per_epoch": 4, "sre_mm": (0, 8), "device": "cpu"}
PRETRAINED = {"pretrain": {"steps": 3, "positions": 16}}


def settings(**changes):
    return RigidFit(**(FAST | changes))


def fitted(out, chosen=None, *, train=2, validation=1, seed=0):
    chosen = chosen or settings()
    cases = [[tiny_case(k, chosen.preparation) for k in range(first, first + count)] for first, count in ((0, train), (50, validation))]
    return fit_rigid(*cases, chosen, seed=seed, threads=1, out=out)


def rows_of(out):
    with beside(out, ".csv").open() as stream:
        return list(csv.DictReader(stream))


def weights_of(out):
    return load_weights(out)[0]


# ---- it learns


def test_twenty_epochs_lower_the_error_and_the_method_lowers_it_on_a_new_case(tmp_path):
    learning = {"size": (24, 24, 12), "epochs": 20, "batch": 4, "draws_per_epoch": 20, "sre_mm": (0, 12), "milestones": (12, 17)}
    card = fitted(tmp_path / "net", settings(**learning, centre="gland", loss="sre", learning_rate=2e-3), train=8, validation=2)
    assert card["scores"]["validation_sre_mm"] < 0.55 * card["scores"]["validation_start_sre_mm"]
    assert card["scores"]["validation_sre_mm"] < 0.7 * float(rows_of(tmp_path / "net")[0]["validation_sre_mm"])
    # from the file, through the method and its start, on cases that the network has not seen
    before, after = [], []
    for seed in (70, 71, 72):
        fixed, moving, labels, triangles = volumes(seed)
        surface, origin = Surfaces.of([triangles.reshape(-1, 3)]), fixed.geometry.origin_mm
        motion = motion_matrix(draw_motions(np.random.default_rng(seed), np.array([6.0]), surface, origin), origin)[0]
        start = truth_of(seed) @ np.linalg.inv(motion)
        method = RigidNetwork(weights=(tmp_path / "net.safetensors",), device="cpu")
        found = run_method(method, Pair(fixed, moving, fixed_mask=labels), Run(), linear_of(start, np.zeros(3)))
        before.append(surface.sre_mm(np.linalg.inv(truth_of(seed))[None] @ start)[0])
        after.append(surface.sre_mm((np.linalg.inv(truth_of(seed)) @ rigid_matrix(found, "found"))[None])[0])
    np.testing.assert_allclose(before, 6, atol=2e-3)
    assert np.mean(after) < 3


def test_the_learning_rate_falls_at_milestones_or_every_so_many_epochs():
    listed, every = (settings(milestones=given, factor=0.5, learning_rate=1.0) for given in ((2, 4), 2))
    assert [listed.rate(epoch, 0.0) for epoch in range(5)] == [1, 0.5, 0.5, 0.25, 0.25]
    assert [every.rate(epoch, 0.0) for epoch in range(5)] == [1, 1, 0.5, 0.5, 0.25]
    with pytest.raises(ValueError, match="milestones 0"):
        settings(milestones=0)


@pytest.mark.parametrize("loss", ["mse", "sre"])
def test_a_step_is_adam_on_the_mean_loss_of_its_batch(tmp_path, loss):
    """Second implementation: two steps by hand with torch's Adam, the second after a milestone."""
    chosen = settings(epochs=2, draws_per_epoch=2, loss=loss, milestones=(2,), factor=0.5)
    fitted(tmp_path / "net", chosen, validation=0)
    cases = [tiny_case(k, chosen.preparation) for k in range(2)]
    batches = RigidBatches(cases, chosen.perturbation, seed=0, device=torch.device("cpu"))
    torch.manual_seed(0)
    network = build("feature-reg", (8, 16, 16)).to(memory_format=torch.channels_last_3d)
    adam = torch.optim.Adam(network.parameters(), fused=True)  # the weights of batch norms magnify the last bits of others
    for epoch, rate in enumerate((1e-3, 5e-4)):
        batch = batches.training(epoch, 0, draws=2, batch=2)
        found, wanted = network(batch.volumes.contiguous(memory_format=torch.channels_last_3d)), batch.targets
        matrices = [np.linalg.inv(motion_matrix(p.detach().double().numpy(), np.zeros(3))) for p in (found, wanted)]
        adam.param_groups[0]["lr"] = rate
        value = ((found - wanted) ** 2).mean() if loss == "mse" else distance(found, wanted, batch.vertices_mm)
        adam.zero_grad()
        value.backward()
        adam.step()
        if loss == "sre":
            ways = [batch.vertices_mm.double().numpy() @ m[:, :3, :3].swapaxes(1, 2) + m[:, None, :3, 3] for m in matrices]
            assert value.item() == pytest.approx(np.linalg.norm(ways[0] - ways[1], axis=-1).mean(), rel=1e-5)
        assert float(rows_of(tmp_path / "net")[epoch]["train_loss"]) == pytest.approx(value.item(), rel=1e-4)
    for name, tensor in weights_of(tmp_path / "net").items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=1e-4, atol=1e-5)


def distance(found, wanted, vertices):
    from pipeline.learned.rigid_batches import vertex_distance_mm

    return vertex_distance_mm(found, wanted, vertices).mean()


def test_the_learning_rate_falls_when_the_authors_scheduler_would():
    """They call `scheduler.step()` at the start of every epoch."""
    chosen = RigidFit()
    adam = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(adam, [120, 170, 250], 0.3)
    for epoch in range(300):
        adam.step()
        scheduler.step()
        assert chosen.rate(epoch, epoch / 300) == pytest.approx(adam.param_groups[0]["lr"], rel=1e-9), epoch
    cosine = RigidFit(decay="cosine")
    assert [cosine.rate(7, progress) for progress in (0, 0.5, 1)] == pytest.approx([1e-3, 5e-4, 0])


def test_the_defaults_are_the_papers():
    chosen = RigidFit()
    assert (chosen.network, chosen.size, chosen.enlarge, chosen.sre_mm, chosen.centre) == ("attention-reg", (96, 96, 32), 0.3, (0, 20), "origin")
    assert (chosen.translation_mm, chosen.rotation_deg, chosen.loss, chosen.epochs, chosen.batch) == (5, 6, "mse", 300, 8)
    assert (chosen.learning_rate, chosen.milestones, chosen.factor, chosen.validation_draws) == (1e-3, (120, 170, 250), 0.3, 5)
    assert sum(p.numel() for p in build(chosen.network, chosen.preparation.grid).parameters()) == 1_248_777


@pytest.mark.parametrize("network", LEAST_GRIDS)
def test_every_network_is_fitted_to_images_and_labels_and_loaded_again(tmp_path, network):
    chosen = settings(network=network, epochs=1, draws_per_epoch=2, size=(18, 17, 9), input="label", precision="bf16", centre="gland")
    card = fitted(tmp_path / "net", chosen)
    loaded, how, again = load_rigid(tmp_path / "net")
    assert how == chosen.preparation and again == card
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert loaded(torch.zeros(1, 2, 9, 17, 18)).shape == (1, 6)
    assert card["parameters"] == sum(p.numel() for p in loaded.parameters())


# ---- which weights


def scores(monkeypatch, values):
    values = iter(values)
    monkeypatch.setattr(RigidTraining, "_held_out_scores", lambda self, weights: (0.5, next(values)))


def test_the_weights_are_those_of_the_lowest_validation_sre(tmp_path, monkeypatch):
    scores(monkeypatch, [5.0, 2.0, 3.0, 2.0])
    card = fitted(tmp_path / "net")
    monkeypatch.undo()
    short = settings(epochs=2)
    fitted(tmp_path / "short", short, validation=0)
    assert card["scores"]["epoch"] == 2 and card["scores"]["validation_sre_mm"] == 2
    best, last = weights_of(tmp_path / "net"), weights_of(tmp_path / "short")
    assert all(torch.equal(best[name], last[name]) for name in best)


def test_a_fit_that_no_longer_improves_stops(tmp_path, monkeypatch):
    scores(monkeypatch, [5.0, 2.0, 3.0, 2.5, 1.0])
    card = fitted(tmp_path / "net", settings(epochs=9, patience=2))
    assert len(rows_of(tmp_path / "net")) == 4 and card["scores"]["epoch"] == 2


def test_the_average_follows_every_step_and_is_taken_where_it_is_better(tmp_path, monkeypatch):
    seen, follow = [], RigidTraining._follow

    def watched(self, decay):
        follow(self, decay)
        seen.append(({name: tensor.clone() for name, tensor in self.network.state_dict().items()}, decay))

    monkeypatch.setattr(RigidTraining, "_follow", watched)
    scores(monkeypatch, [5.0, 6.0, 4.0, 3.0])  # weights, average, weights, average
    card = fitted(tmp_path / "net", settings(epochs=2, average=0.25))
    assert card["scores"]["averaged"] is True and card["scores"]["epoch"] == 2 and card["scores"]["validation_average_sre_mm"] == 3
    assert [decay for _, decay in seen] == [min(0.25, (1 + step) / (10 + step)) for step in (1, 2, 3, 4)]
    torch.manual_seed(0)
    mean = build("feature-reg", (8, 16, 16)).state_dict()
    for state, decay in seen:
        mean = {name: decay * tensor + (1 - decay) * state[name] if tensor.is_floating_point() else state[name] for name, tensor in mean.items()}
    for name, tensor in weights_of(tmp_path / "net").items():
        torch.testing.assert_close(tensor, mean[name], rtol=1e-5, atol=1e-6)


def test_pretraining_makes_places_alike_and_changes_the_extractors_alone(tmp_path, monkeypatch):
    states = []
    monkeypatch.setattr(RigidTraining, "_epoch", lambda self, batches: states.append(self.network.state_dict()) or stop())
    with pytest.raises(RuntimeError):
        fitted(tmp_path / "net", settings(pretrain={"steps": 60, "positions": 64}, size=(24, 24, 12)), train=4)
    torch.manual_seed(0)
    before = build("feature-reg", (12, 24, 24)).state_dict()
    changed = {name for name, tensor in states[0].items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("extractors.") for name in changed)
    progress = json.loads(first_line(tmp_path / "net"))
    assert progress["pretraining_loss"] < 0.9 * np.log(64)


def first_line(out):
    from safetensors import safe_open

    with safe_open(beside(out, ".checkpoint.safetensors"), "pt") as stored:
        return stored.metadata()["progress"]


def stop():
    raise RuntimeError("stop here")


# ---- files, and the same bits again


def test_card_and_curve_tell_what_was_fitted(tmp_path):
    card = fitted(tmp_path / "net", seed=3)
    assert {file.name for file in tmp_path.iterdir()} == {"net.safetensors", "net.json", "net.csv"}
    assert json.loads((tmp_path / "net.json").read_text()) == json.loads(json.dumps(card))
    assert (card["architecture"], card["network"], card["input"], card["size"]) == ("rigid-network", "feature-reg", "image", [16, 16, 8])
    assert (card["enlarge"], card["centre"], card["sre_mm"], card["seed"], card["threads"]) == (0.3, "origin", [0, 8], 3, 1)
    assert [row["name"] for row in card["data"]["train"]] == ["case 0", "case 1"] and card["settings"]["epochs"] == 4
    assert card["parameters"] == sum(p.numel() for p in load_rigid(tmp_path / "net")[0].parameters())
    rows = rows_of(tmp_path / "net")
    assert tuple(rows[0]) == CURVE and [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert len({row["validation_start_sre_mm"] for row in rows}) == 1
    best = min(rows, key=lambda row: float(row["validation_sre_mm"]))
    assert card["scores"]["epoch"] == int(best["epoch"]) and card["scores"]["validation_sre_mm"] == float(best["validation_sre_mm"])
    assert float(rows[-1]["seconds"]) > float(rows[0]["seconds"]) > 0 and float(rows[0]["samples_per_second"]) > 0


def test_the_validation_score_is_the_error_that_the_kept_weights_leave(tmp_path):
    chosen = settings(centre="gland", epochs=2)
    card = fitted(tmp_path / "net", chosen)
    network, how, _ = load_rigid(tmp_path / "net")
    held_out = RigidBatches([tiny_case(50, how)], chosen.perturbation, seed=0, device=torch.device("cpu"))
    draws = held_out.validation(5)
    answers = network(held_out.batch(draws).volumes).double().numpy()
    assert held_out.sre_mm(draws, answers).mean() == pytest.approx(card["scores"]["validation_sre_mm"], rel=1e-4)
    assert held_out.sre_mm(draws, 0 * answers).mean() == pytest.approx(card["scores"]["validation_start_sre_mm"], rel=1e-9)


def test_without_validation_the_last_weights_are_kept_and_its_columns_are_empty(tmp_path):
    card = fitted(tmp_path / "net", validation=0)
    assert card["scores"]["epoch"] == 4 and "validation_sre_mm" not in card["scores"]
    assert {row["validation_sre_mm"] for row in rows_of(tmp_path / "net")} == {""}


@pytest.mark.parametrize(
    ("stop_at", "more"), [(1, {}), (5, {"average": 0.9}), (3, PRETRAINED), (0, PRETRAINED), (6, {"checkpoint_every": 2, "decay": "cosine"})]
)
def test_a_fit_that_was_killed_goes_on_to_the_same_weights(tmp_path, monkeypatch, stop_at, more):
    chosen = settings(**more)
    fitted(tmp_path / "whole" / "net", chosen)
    draw, drawn = RigidTraining._draw, []

    def failing(self, step):
        if step == stop_at and "failed" not in drawn:
            drawn.append("failed")
            raise RuntimeError("power cut")
        drawn.append(step)
        return draw(self, step)

    monkeypatch.setattr(RigidTraining, "_draw", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        fitted(tmp_path / "net", chosen)
    assert not (tmp_path / "net.safetensors").exists()
    fitted(tmp_path / "net", chosen)
    went_on = drawn[drawn.index("failed") + 1]
    assert went_on == (stop_at // 2) // chosen.checkpoint_every * chosen.checkpoint_every * 2
    assert (tmp_path / "net.safetensors").read_bytes() == (tmp_path / "whole" / "net.safetensors").read_bytes()
    untimed = [[{k: v for k, v in row.items() if "second" not in k} for row in rows_of(tmp_path / part)] for part in ("net", "whole/net")]
    assert untimed[0] == untimed[1] and not beside(tmp_path / "net", ".checkpoint.safetensors").exists()


def test_a_fit_begins_with_the_weights_of_another(tmp_path):
    first = fitted(tmp_path / "first", settings(epochs=2))
    chosen = settings(epochs=1, learning_rate=1e-9, sre_mm=(0, 4), warm_start=tmp_path / "first.safetensors")
    assert fitted(tmp_path / "second", chosen, seed=5)["data"]["warm_start"] == first["sha256"]
    before, after = weights_of(tmp_path / "first"), weights_of(tmp_path / "second")
    for name, _ in build("feature-reg", (8, 16, 16)).named_parameters():
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-7)


def test_attention_begins_with_the_scale_that_is_set_where_weights_are_fresh(tmp_path):
    """Steps that move nothing: what is kept is what the fit began with."""
    still = {"network": "attention-reg", "epochs": 1, "learning_rate": 1e-9}
    for name, chosen, expected in (
        ("published", settings(**still), 1.0),
        ("faint", settings(**still, attention_scale=0.25), 0.25),
        ("second", settings(**still, attention_scale=0, warm_start=tmp_path / "faint.safetensors"), 0.25),
    ):
        fitted(tmp_path / name, chosen)
        kept = weights_of(tmp_path / name)
        for side in ("mr", "us"):
            torch.testing.assert_close(kept[f"attention.{side}.back.1.weight"], torch.full((32,), expected), rtol=0, atol=1e-6)


def test_a_fit_begun_with_other_weights_is_another_fit(tmp_path, monkeypatch):
    chosen = settings(epochs=2, warm_start=tmp_path / "first.safetensors")
    fitted(tmp_path / "first", settings(epochs=1))
    fitted(tmp_path / "whole" / "net", chosen)
    fitted(tmp_path / "first", settings(epochs=1), seed=3)
    draw = RigidTraining._draw
    monkeypatch.setattr(RigidTraining, "_draw", lambda self, step: stop() if step == 3 else draw(self, step))
    with pytest.raises(RuntimeError, match="stop here"):
        fitted(tmp_path / "net", chosen)
    assert beside(tmp_path / "net", ".checkpoint.safetensors").exists()
    monkeypatch.undo()
    fitted(tmp_path / "first", settings(epochs=1))
    fitted(tmp_path / "net", chosen)
    assert (tmp_path / "net.safetensors").read_bytes() == (tmp_path / "whole" / "net.safetensors").read_bytes()


def test_another_seed_gives_other_weights_and_torchs_own_generator_is_left_alone(tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    fitted(tmp_path / "a", settings(epochs=1))
    assert torch.equal(torch.rand(1), expected)
    fitted(tmp_path / "b", settings(epochs=1), seed=1)
    assert (tmp_path / "a.safetensors").read_bytes() != (tmp_path / "b.safetensors").read_bytes()


def test_a_table_of_cases_is_fitted_to_without_itk(tmp_path):
    cases = [written_case(tmp_path, k, split) for k, split in enumerate(("train", "train", "validation", "test"))]
    write_cases(cases, tmp_path / "cases.csv")
    chosen = settings(epochs=1)
    card = fit_to_cases(chosen, tmp_path / "cases.csv", run=Run(threads=1, seed=0), out=tmp_path / "net")
    assert [row["name"] for row in card["data"]["train"]] == ["case-0", "case-1"] and [row["name"] for row in card["data"]["validation"]] == [
        "case-2"
    ]
    code = (
        "import sys; sys.modules['itk'] = None\nfrom pathlib import Path\nfrom pipeline.methods import Run\n"
        "from pipeline.learned.rigid import RigidFit, fit_to_cases\n"
        f"fit_to_cases(RigidFit.model_validate_json({chosen.model_dump_json()!r}), Path('cases.csv'), run=Run(threads=1), out=Path('again'))"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"})
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "net.safetensors").read_bytes()


# ---- what is refused


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"size": (6, 16, 8)}, "grid"),
        ({"network": "msreg"}, "msreg needs"),
        ({"network": "resnet"}, "attention-reg"),
        ({"sre_mm": (8, 2)}, "low <= high"),
        ({"sre_mm": (0, 0)}, "high above 0"),
        ({"network": "dvnet", "size": (32, 32, 8)} | PRETRAINED, "no extractors"),
        (PRETRAINED | {"warm_start": "net.safetensors"}, "both say where weights come from"),
    ],
)
def test_bad_settings_are_told(bad, told):
    with pytest.raises(ValidationError, match=told):
        settings(**bad)


def test_bad_fits_are_told(tmp_path):
    with pytest.raises(ConcordError, match="no training case"):
        fitted(tmp_path / "net", train=0)
    with pytest.raises(ConcordError, match=r"case case 0: prepared as .*expected"):
        fit_rigid([tiny_case(0)], [], settings(), seed=0, threads=1, out=tmp_path / "net")
    with pytest.raises(ConcordError, match=r"the loss is nan in epoch .*lower learning_rate"):
        fitted(tmp_path / "net", settings(learning_rate=1e30))
    with pytest.raises(ConcordError, match=r"none\.safetensors: no such file"):
        fitted(tmp_path / "net", settings(warm_start=tmp_path / "none.safetensors"))
    fitted(tmp_path / "other", settings(epochs=1, size=(24, 16, 8)))
    with pytest.raises(ConcordError, match=r"other\.safetensors: weights of another architecture: regress\..*AttentionReg expects"):
        fitted(tmp_path / "net", settings(warm_start=tmp_path / "other.safetensors"))


def test_weights_that_are_no_rigid_networks_are_told(tmp_path):
    fitted(tmp_path / "net", settings(epochs=1))
    state, card = load_weights(tmp_path / "net")
    for change, told in (
        ({"architecture": "patch-cnn"}, "architecture 'patch-cnn'; expected 'rigid-network'"),
        ({"network": "msrag"}, "did you mean 'msreg'"),
        ({"size": [32, 32, 8]}, r"weights of another architecture: regress.* \(its card says network feature-reg, size \[32, 32, 8\]\)"),
        ({"size": [2, 2, 2]}, "its card describes no network"),
        ({"size": None}, "its card describes no network"),
    ):
        save_weights(tmp_path / "other", state, card | change)
        with pytest.raises(ConcordError, match=told):
            load_rigid(tmp_path / "other")
