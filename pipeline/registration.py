"""A batch of cases through one method: each result is written as it is finished, a rerun goes on after the last one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.cases import Case
from pipeline.errors import ConcordError
from pipeline.files import write_json, write_text
from pipeline.methods import Method, Pair, Run, create_method, run_method
from pipeline.provenance import environment, file_sha256, fingerprint, measured
from pipeline.transform_files import read_transform, write_transform
from pipeline.volumes import Volume, read_volume, write_volume

log = logging.getLogger(__name__)
INPUTS = ("fixed", "moving", "fixed_mask", "moving_mask", "start_transform")
FROM_TRACE = ("inference_ms", "parameters", "spread_mm", "inverse_error_mm")
"""Columns of a trace that go into the manifest: what networks tell of themselves, the mean over stages, and of the spread the last stage's."""
COST = ("seconds", "peak_memory_mib", "iteration_ms", *FROM_TRACE)
COLUMNS = ("case", "status", "transform", *COST, "device", "reason")
MOST_ATTEMPTS = 2


def share_of(cases: list[Case], batch: int, batches: int) -> list[Case]:
    """The cases of one batch: every `batches`-th, so that neighbouring (similar) cases spread evenly."""
    return cases[batch::batches]


def register_batch(cases: Iterable[Case], settings: Mapping[str, Any], run: Run, folder: Path) -> pd.DataFrame:
    """Register each case into `folder` (`CASE.h5`, `CASE.json`, and `CASE-NAME.mha` of images made on the way) and return the manifest, one row a case.

    A case that fails is a row with status "failed" and its reason; the others go on. A finished case with the same settings,
    seed, threads and input files is not run again.
    """
    method = create_method(settings["use"], {key: value for key, value in settings.items() if key != "use"})
    rows = [_register_case(case, method, settings, run, folder) for case in cases]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write_manifest(manifest: pd.DataFrame, path: Path) -> None:
    """Write the manifest as CSV; transforms are named relative to its folder."""
    write_text(path, manifest.to_csv(index=False))


def read_manifests(paths: Iterable[Path]) -> pd.DataFrame:
    """All batches' manifests as one table; `transform` becomes a path, or None where the case failed."""
    tables = []
    for path in paths:
        table = pd.read_csv(
            path, dtype=dict.fromkeys(("case", "reason", "transform", "device"), str), keep_default_na=False, na_values=dict.fromkeys(COST, "")
        )
        table["transform"] = [path.parent / name if name else None for name in table["transform"]]
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))


def _register_case(case: Case, method: Method, settings: Mapping[str, Any], run: Run, folder: Path) -> dict[str, Any]:
    record_file, transform_file = folder / f"{case.case}.json", folder / f"{case.case}.h5"
    used = (*INPUTS, "fixed_labels") if method.uses_labels else INPUTS
    inputs = {name: file_sha256(path) for name, path in case.paths.items() if name in used and path.exists()}
    inputs |= {name: file_sha256(path) for name, path in method.files.items()}
    key = fingerprint({"settings": dict(settings), "seed": run.seed, "threads": run.threads, "inputs": inputs})
    before = _read_record(record_file, key)
    if before.get("status") == "done" and transform_file.exists():
        log.info("%s: already done", case.case)
        return _row(case, before)
    attempts = before.get("attempts", 0) + 1 if before.get("status") == "running" else 1
    record = {"case": case.case, "fingerprint": key, "status": "running", "attempts": attempts, "settings": dict(settings), "seed": run.seed}
    record |= {"threads": run.threads, "inputs": inputs, "files": {k: str(v) for k, v in case.paths.items()}, "environment": environment()}
    if attempts > MOST_ATTEMPTS:
        return _finish(
            case, record, record_file, status="failed", reason="the process ended twice during this case (out of memory, or a crash in native code)"
        )
    write_json(record_file, record)
    try:
        method.load()
        pair, start = load_pair(case, labels=method.uses_labels), _start_of(case)
        traced = replace(run, trace=[], images={})
        with measured() as cost:
            transform = run_method(method, pair, traced, start)
        if traced.trace:
            trace = pd.DataFrame(traced.trace)
            write_text(folder / f"{case.case}.trace.csv", trace.to_csv(index=False))
            record |= _costs_of(trace)
        for name, volume in traced.images.items():
            write_volume(volume, folder / image_name(case.case, name))
        write_transform(transform, transform_file)
    except ConcordError as error:
        return _finish(case, record, record_file, status="failed", reason=str(error))
    except Exception as error:  # one bad case must not take the others along, whatever native code throws
        log.exception("%s: failed", case.case)
        return _finish(case, record, record_file, status="failed", reason=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    log.info("%s: done in %.1f s", case.case, cost.seconds)
    return _finish(case, {**record, **asdict(cost)}, record_file, status="done", reason="")


def image_name(case: str, name: str) -> str:
    """File of an image that a method made of a case on the way, beside its transform."""
    return f"{case}-{name}.mha"


def load_pair(case: Case, *, labels: bool = False) -> Pair:
    """The volumes and masks of a case, and the fixed label map where the method uses it."""
    masks = {name: _read_if(getattr(case, name)) for name in ("fixed_mask", "moving_mask")}
    modalities = {"fixed_modality": case.fixed_modality, "moving_modality": case.moving_modality}
    known = _read_if(case.fixed_labels) if labels else None
    return Pair(read_volume(case.fixed), read_volume(case.moving), **masks, **modalities, fixed_labels=known, subjects=case.subjects)


def _costs_of(trace: pd.DataFrame) -> dict[str, Any]:
    """What a run's trace says of its cost: the median iteration, and what networks tell where it has any."""
    known = {name: trace[name].dropna() for name in FROM_TRACE if name in trace}
    told = {name: float(rows.iloc[-1] if name == "spread_mm" else rows.mean()) for name, rows in known.items() if len(rows)}
    device = {"device": str(trace["device"].dropna().iloc[0])} if "device" in trace else {}
    return {"iteration_ms": 1000 * float(trace["seconds"].median())} | told | device


def _start_of(case: Case) -> Any:
    return None if case.start_transform is None else read_transform(case.start_transform)


def _read_if(path: Path | None) -> Volume | None:
    return None if path is None else read_volume(path)


def _read_record(path: Path, key: str) -> dict[str, Any]:
    """The record of an earlier run with the same fingerprint, or nothing."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and record.get("fingerprint") == key else {}


def _finish(case: Case, record: dict[str, Any], path: Path, *, status: str, reason: str) -> dict[str, Any]:
    record = {**record, "status": status, "reason": reason}
    write_json(path, record)
    if reason:
        log.warning("%s: %s", case.case, reason)
    return _row(case, record)


def _row(case: Case, record: Mapping[str, Any]) -> dict[str, Any]:
    done = record["status"] == "done"
    cost = {name: record.get(name) for name in COST} | {"device": record.get("device", "")}
    return {"case": case.case, "status": record["status"], "transform": f"{case.case}.h5" if done else "", **cost, "reason": record.get("reason", "")}
