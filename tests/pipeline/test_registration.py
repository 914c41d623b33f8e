"""A batch: every case is written as it finishes, a rerun goes on, and one bad case fails alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from examples import blob_volume, oblique_geometry

from pipeline import methods
from pipeline.cases import Case
from pipeline.errors import ConcordError
from pipeline.methods import Method, Run
from pipeline.registration import read_manifests, register_batch, share_of, write_manifest
from pipeline.transform_files import read_transform
from pipeline.transforms import Linear
from pipeline.volumes import write_volume

calls: list[str] = []


class Recorder(Method):
    """Answers with a shift and remembers what it was asked; fails for a file called bad, dies for one called fatal."""

    shift: float = 1.0

    def register(self, pair, run):
        name = Path(pair.moving.name).stem
        calls.append(name)
        if "bad" in name:
            raise ConcordError(f"{pair.moving.name}: no good")
        if "odd" in name:
            raise RuntimeError("native code\nsaid no")
        if "fatal" in name:
            raise KeyboardInterrupt
        return Linear(np.eye(2), np.full(2, self.shift), "translation")


@pytest.fixture(autouse=True)
def recorder(monkeypatch):
    calls.clear()
    monkeypatch.setitem(methods.METHODS, "recorder", (f"{__name__}:Recorder", {}))
    monkeypatch.setattr("pipeline.methods.method_class", lambda name: Recorder)


def case_of(folder: Path, name: str) -> Case:
    for part in ("fixed", "moving"):
        if not (folder / f"{name}-{part}.mha").exists():
            write_volume(blob_volume(oblique_geometry(2), seed=len(name)), folder / f"{name}-{part}.mha")
    return Case(case=name, subject=name, fixed=folder / f"{name}-fixed.mha", moving=folder / f"{name}-moving.mha")


SETTINGS = {"use": "recorder", "shift": 1.0}


def test_one_bad_case_fails_alone_with_its_reason(tmp_path):
    manifest = register_batch([case_of(tmp_path, n) for n in ("a", "bad", "odd", "b")], SETTINGS, Run(), tmp_path / "out")
    assert manifest["status"].tolist() == ["done", "failed", "failed", "done"]
    assert "bad-moving.mha: no good" in manifest["reason"][1]
    assert manifest["reason"][2] == "RuntimeError: native code said no"
    assert sorted(file.name for file in (tmp_path / "out").glob("*.h5")) == ["a.h5", "b.h5"]
    np.testing.assert_allclose(read_transform(tmp_path / "out" / "a.h5").points(np.zeros((1, 2))), [[1.0, 1.0]])


def test_a_rerun_goes_on_after_the_last_finished_case(tmp_path):
    cases = [case_of(tmp_path, name) for name in ("a", "fatal", "c")]
    with pytest.raises(KeyboardInterrupt):
        register_batch(cases, SETTINGS, Run(), tmp_path / "out")
    assert calls == ["a-moving", "fatal-moving"]
    with pytest.raises(KeyboardInterrupt):
        register_batch(cases, SETTINGS, Run(), tmp_path / "out")
    assert calls == ["a-moving", "fatal-moving", "fatal-moving"]
    manifest = register_batch(cases, SETTINGS, Run(), tmp_path / "out")  # the third attempt leaves the deadly case out
    assert calls[3:] == ["c-moving"]
    assert manifest["status"].tolist() == ["done", "failed", "done"]
    assert "ended twice" in manifest["reason"][1]


def test_changed_settings_seeds_and_files_are_run_again(tmp_path):
    case = case_of(tmp_path, "a")
    runs = [(SETTINGS, Run()), (SETTINGS, Run()), ({**SETTINGS, "shift": 2.0}, Run()), ({**SETTINGS, "shift": 2.0}, Run(seed=1))]
    for settings, run in runs:
        register_batch([case], settings, run, tmp_path / "out")
    assert len(calls) == 3
    (tmp_path / "out" / "a.h5").unlink()
    register_batch([case], {**SETTINGS, "shift": 2.0}, Run(seed=1), tmp_path / "out")
    assert len(calls) == 4


def test_the_record_tells_how_the_result_was_made(tmp_path):
    register_batch([case_of(tmp_path, "a")], SETTINGS, Run(threads=2, seed=5), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "a.json").read_text())
    assert (record["seed"], record["threads"], record["settings"]) == (5, 2, SETTINGS)
    assert record["environment"]["itk"].startswith("5")
    assert len(record["inputs"]["fixed"]) == 64
    assert record["seconds"] > 0
    assert record["peak_memory_mib"] > 10


def test_manifests_come_back_as_one_table(tmp_path):
    for batch, names in enumerate((["a", "bad"], ["c"])):
        write_manifest(register_batch([case_of(tmp_path, n) for n in names], SETTINGS, Run(), tmp_path), tmp_path / f"batch-{batch}.csv")
    table = read_manifests([tmp_path / "batch-0.csv", tmp_path / "batch-1.csv"]).set_index("case")
    assert table.loc["c", "transform"] == tmp_path / "c.h5"
    assert table.loc["bad", "transform"] is None
    assert table.loc["bad", "status"] == "failed"


def test_batches_share_all_cases_between_them(tmp_path):
    cases = list(range(11))
    shares = [share_of(cases, batch, 4) for batch in range(4)]
    assert sorted(sum(shares, [])) == cases
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_what_networks_tell_of_a_stage_becomes_their_cost_and_the_loops_rows_do_not_count(tmp_path, monkeypatch):
    def traced(self, pair, run):
        where = {"device": "cpu (toy), 1 thread"}
        run.trace.append({"seconds": 0.2, "inference_ms": 10.0, "parameters": 100, "spread_mm": 0.9, "inverse_error_mm": 0.25} | where)
        run.trace.append({"seconds": 0.4, "inference_ms": 30.0, "parameters": 300, "spread_mm": 0.5} | where)
        run.trace.append({"seconds": 0.1})
        return Linear(np.eye(2), np.zeros(2), "translation")

    monkeypatch.setattr(Recorder, "register", traced)
    write_manifest(register_batch([case_of(tmp_path, "a")], SETTINGS, Run(), tmp_path), tmp_path / "batch.csv")
    (row,) = read_manifests([tmp_path / "batch.csv"]).to_dict("records")
    assert {name: row[name] for name in ("iteration_ms", "inference_ms", "parameters", "spread_mm", "inverse_error_mm")} == {
        "iteration_ms": pytest.approx(200),
        "inference_ms": 20.0,
        "parameters": 200.0,
        "spread_mm": 0.5,
        "inverse_error_mm": 0.25,
    }
    assert row["device"] == "cpu (toy), 1 thread"


def test_a_method_that_tells_nothing_of_itself_has_no_such_cost(tmp_path):
    write_manifest(register_batch([case_of(tmp_path, "a")], SETTINGS, Run(), tmp_path), tmp_path / "batch.csv")
    (row,) = read_manifests([tmp_path / "batch.csv"]).to_dict("records")
    assert np.isnan([row[name] for name in ("inference_ms", "parameters", "spread_mm", "inverse_error_mm")]).all() and row["device"] == ""
