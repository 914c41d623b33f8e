from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import ConcordError
from pipeline.learned.weights import beside, load_checkpoint, load_into, load_weights, save_checkpoint, save_weights

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, -1.0])}


@pytest.fixture
def saved(tmp_path):
    save_weights(tmp_path / "net", STATE, {"architecture": "linear", "seed": 3})
    return tmp_path / "net.safetensors"


def test_weights_and_card_come_back(saved):
    state, card = load_weights(saved)
    assert all(torch.equal(state[name], STATE[name]) for name in STATE) and state.keys() == STATE.keys()
    assert (card["architecture"], card["seed"], card["bytes"]) == ("linear", 3, saved.stat().st_size)


def test_the_suffix_may_be_left_out_and_dots_in_the_name_stay(tmp_path):
    card = save_weights(tmp_path / "t1.t2", STATE, {})
    assert {file.name for file in tmp_path.iterdir()} == {"t1.t2.safetensors", "t1.t2.json"}
    assert load_weights(tmp_path / "t1.t2")[1] == card == load_weights(tmp_path / "t1.t2.safetensors")[1]
    assert beside(tmp_path / "t1.t2.safetensors", ".csv") == tmp_path / "t1.t2.csv"


def test_the_same_weights_are_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_weights(tmp_path / name, STATE, {"seed": 1})
    assert all((tmp_path / f"one{end}").read_bytes() == (tmp_path / f"two{end}").read_bytes() for end in (".safetensors", ".json"))


def test_tensors_that_are_views_are_stored_whole(tmp_path):
    save_weights(tmp_path / "net", {"turned": STATE["weight"].T}, {})
    assert torch.equal(load_weights(tmp_path / "net")[0]["turned"], STATE["weight"].T)


def test_a_missing_file_or_card_is_named(saved, tmp_path):
    with pytest.raises(ConcordError, match=r"other\.safetensors: no such file"):
        load_weights(tmp_path / "other")
    saved.with_suffix(".json").unlink()
    with pytest.raises(ConcordError, match=r"net\.json: no such file; expected the card of net\.safetensors"):
        load_weights(saved)


def test_truncated_weights_are_refused(saved):
    size = saved.stat().st_size
    saved.write_bytes(saved.read_bytes()[:-5])
    with pytest.raises(ConcordError, match=f"truncated, {size - 5} of {size} bytes"):
        load_weights(saved)


def test_changed_weights_are_refused(saved):
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ConcordError, match=r"sha256 is not the one in net\.json"):
        load_weights(saved)


@pytest.mark.parametrize(
    ("content", "named"), [("{", "no JSON"), ("[1]", "not the card"), ('{"sha256": 1, "bytes": 2}', "not the card"), ("{}", "not the")]
)
def test_a_card_that_is_none_is_refused(saved, content, named):
    saved.with_suffix(".json").write_text(content)
    with pytest.raises(ConcordError, match=rf"net\.json: {named}"):
        load_weights(saved)


def test_a_file_that_is_no_safetensors_is_refused_even_where_the_card_fits(saved):
    import hashlib

    saved.write_bytes(b"nothing of the kind")
    card = {"bytes": 19, "sha256": hashlib.sha256(saved.read_bytes()).hexdigest()}
    saved.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(ConcordError, match="no safetensors file"):
        load_weights(saved)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight": torch.zeros(3, 3)}, r"weight is \(3, 3\), Linear expects \(2, 3\)"),
        ({"bias": None}, r"bias is missing, Linear expects \(2,\)"),
        ({"scale": torch.zeros(1)}, r"scale is \(1,\), Linear expects no such tensor"),
    ],
)
def test_weights_that_do_not_fit_say_which(change, named):
    state = {name: tensor for name, tensor in (STATE | change).items() if tensor is not None}
    with pytest.raises(ConcordError, match=f"net: weights of another architecture: {named}"):
        load_into(torch.nn.Linear(3, 2), state, "net")


def test_fitting_weights_are_put_in():
    layer = torch.nn.Linear(3, 2)
    load_into(layer, STATE, "net")
    assert torch.equal(layer.weight.detach(), STATE["weight"])


# ---- checkpoints


def test_a_checkpoint_comes_back_to_the_last_bit(tmp_path):
    progress = {"step": 7, "loss": 0.1 + 0.2, "best": None}
    save_checkpoint(tmp_path / "c.safetensors", {"network": {"a.weight": STATE["weight"].T}, "best": {}}, progress, key="abc")
    groups, back = load_checkpoint(tmp_path / "c.safetensors", "abc")
    assert back == progress and groups["best"] == {} and list(groups["network"]) == ["a.weight"]
    assert torch.equal(groups["network"]["a.weight"], STATE["weight"].T)
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


def test_groups_may_share_names(tmp_path):
    save_checkpoint(tmp_path / "c.safetensors", {"now": STATE, "best": {"bias": torch.zeros(2)}}, {}, key="abc")
    groups, _ = load_checkpoint(tmp_path / "c.safetensors", "abc")
    assert torch.equal(groups["now"]["bias"], STATE["bias"]) and torch.equal(groups["best"]["bias"], torch.zeros(2))


def test_a_checkpoint_that_is_missing_foreign_or_broken_is_passed_over(tmp_path):
    file = tmp_path / "c.safetensors"
    assert load_checkpoint(file, "abc") is None
    save_checkpoint(file, {"network": STATE}, {}, key="abc")
    assert load_checkpoint(file, "other") is None
    file.write_bytes(file.read_bytes()[:-3])
    assert load_checkpoint(file, "abc") is None
    save_file(STATE, file)
    assert load_checkpoint(file, "abc") is None
