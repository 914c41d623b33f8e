"""Settings of the baselines, chosen on the validation cases of a study (never on its test cases): every candidate's scores.

    python benchmarks/tune_baselines.py STUDY METHOD '{"bins": 32}' '{"bins": 75}' … [--scale laptop] [--most 4]

Needs the study's prepared cases: run snakemake first. The chosen settings stand in config.yaml.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from common import report

from pipeline.cases import Case, read_cases
from pipeline.config import load_config
from pipeline.methods import Run
from pipeline.registration import read_manifests, register_batch, write_manifest
from pipeline.scoring import score_cases


def compared(study: str, cases: list[Case], settings: dict[str, object], run: Run) -> dict[str, object]:
    """Mean Dice, displacement and surface registration error (where they are known), folding and seconds of a method with these settings."""
    with tempfile.TemporaryDirectory() as name:
        manifest = Path(name) / "batch-0.csv"
        write_manifest(register_batch(cases, settings, run, manifest.parent), manifest)
        measures = (
            ["dice", "folding", "seconds"]
            + (["displacement_error_mm"] if cases[0].true_transform else [])
            + (["sre_mm"] if cases[0].fixed_surface else [])
        )
        scores, failed = score_cases(cases, read_manifests([manifest]), study=study, method=str(settings["use"]), measures=measures)
    return {"cases": len(cases), "failed": len(failed), **scores.groupby("metric")["value"].mean().round(4).to_dict()}


def validation_cases(scale: str, study: str, split: str, most: int) -> list[Case]:
    """The first prepared cases of a split."""
    return [case for case in read_cases(f"results/{scale}/{study}/prepared/cases.csv") if case.split == split][:most]


def main() -> None:
    """Print and keep the scores of every candidate."""
    parser = argparse.ArgumentParser()
    parser.add_argument("study")
    parser.add_argument("method")
    parser.add_argument("candidates", nargs="+", type=json.loads, help="settings as JSON")
    parser.add_argument("--scale", default="laptop")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--most", type=int, default=4, help="at most this many cases")
    given = parser.parse_args()
    config = load_config("config.yaml", scale=given.scale)
    cases = validation_cases(given.scale, given.study, given.split, given.most)
    run, rows = Run(threads=config.threads, seed=config.seed), []
    for candidate in given.candidates:
        settings = {**(config.method(given.method) if given.method in config.methods else {"use": given.method}), **candidate}
        rows.append({"settings": json.dumps(candidate)} | compared(given.study, cases, settings, run))
        print(rows[-1], flush=True)
    report(rows, f"tuning-{given.study}-{given.method}")


if __name__ == "__main__":
    main()
