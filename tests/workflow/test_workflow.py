"""The workflow on a study of a few small images: it runs, finds nothing to do afterwards, and reruns only what a change touches."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.ndimage import gaussian_filter

from pipeline.volumes import Geometry, Volume, write_volume

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
REGISTERED = {"register", "score", "gather", "compare", "table", "figure", "pictures", "left_out"}
"""Rules that run again when a method has changed."""


def config_of(folder: Path) -> dict:
    """Three methods, one of them learned, on five 2-D pairs, one of them damaged."""
    return {
        "scale": "smoke",
        "datasets": {"own": {"reader": "table", "file": str(folder / "data" / "pairs.csv")}},
        "methods": {
            "identity": {},
            "demons": {"iterations": [10, 10, 10]},
            "cnn": {
                "use": "loop",
                "similarity": "patch-cnn",
                "levels": 1,
                "iterations": 3,
                "control_points": 5,
                "stages": ["bspline"],
                "fit": "metric",
            },
        },
        "fits": {
            "metric": {
                "learner": "patch-metric",
                "dataset": "own",
                "configuration": "tiny",
                "steps": 3,
                "validation_every": 2,
                "sampler": {"batch": 8},
            }
        },
        "studies": {
            "tiny": {
                "title": "Discs",
                "dataset": "own",
                "methods": ["identity", "demons", "cnn"],
                "measures": ["dice", "folding", "seconds"],
                "batches": 2,
                "comparison": {"reference": "identity", "measures": ["dice"]},
                "tables": {"overlap": {"title": "Overlap", "rows": ["identity", "demons"], "columns": ["dice", "seconds"], "reference": "identity"}},
                "figures": {"scatter": {"kind": "scatter", "title": "Dice", "measures": ["dice"]}},
                "landscapes": {
                    "around": {"title": "Around the truth", "dataset": "own", "methods": ["cnn"], "probe": {"points": 5, "control_points": 1}}
                },
                "pictures": {"methods": ["demons"], "cases": 2},
            }
        },
    }


def disc(radius: float) -> np.ndarray:
    y, x = np.indices((48, 48)) - 23.5
    return (np.hypot(y, x) < radius).astype(np.uint8)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with a space in its name, a table of pairs and a config.yaml."""
    folder = tmp_path_factory.mktemp("a project")
    (folder / "data").mkdir()
    rows = []
    splits = ["test"] * 5 + ["train", "train", "validation"]
    for n, split in enumerate(splits):
        for part, radius in (("fixed", 10 + n), ("moving", 14 + n)):
            labels = Volume(disc(radius), Geometry.regular((48, 48)))
            noise = np.random.default_rng(n).normal(scale=0.01, size=labels.array.shape)
            write_volume(labels, folder / "data" / f"{n}-{part}-labels.mha")
            write_volume(
                labels.with_array((gaussian_filter(labels.array.astype(float), 1) + noise).astype(np.float32)), folder / "data" / f"{n}-{part}.mha"
            )
        rows.append(
            {
                "case": f"c{n}",
                "subject": f"s{n}",
                "split": split,
                "fixed_modality": "bright",
                "moving_modality": "noisy",
                **{f"{p}{s}": f"{n}-{p}{s.replace('_', '-')}.mha" for p in ("fixed", "moving") for s in ("", "_labels")},
            }
        )
    pd.DataFrame(rows).to_csv(folder / "data" / "pairs.csv", index=False)
    damaged = folder / "data" / "4-moving.mha"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    shutil.copytree(ROOT / "workflow" / "profiles", folder / "workflow" / "profiles")
    write_config(folder, config_of(folder))
    return folder


def write_config(folder: Path, content: dict) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(content))


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the project's Snakefile in `folder`."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["snakemake", "--cores", "2", "--snakefile", str(ROOT / "workflow" / "Snakefile"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def rules_to_run(folder: Path) -> set[str]:
    """Names of the rules that a dry run would run."""
    done = snakemake(folder, "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    return {line.split()[1].rstrip(":") for line in lines if line.startswith(("rule ", "localrule ")) and line.rstrip().endswith(":")} - {"all"}


@pytest.fixture(scope="module")
def finished(project) -> Path:
    """The project after a full run."""
    done = snakemake(project)
    assert done.returncode == 0, done.stdout + done.stderr
    return project


def test_a_run_makes_everything_and_names_the_bad_case(finished):
    results = finished / "results" / "smoke" / "tiny"
    for name in (
        "tables/overlap.csv",
        "tables/overlap.tex",
        "tables/overlap.html",
        "tables/overlap.md",
        "figures/scatter.png",
        "comparisons.csv",
        "scores.csv",
        "landscapes/around.png",
        "landscapes/around.csv",
        "transforms/cnn/c0.trace.csv",
        "../weights/metric.safetensors",
        "../weights/metric.json",
        "../weights/metric.csv",
        "../weights/metric.png",
    ):
        assert (results / name).stat().st_size > 100, name
    left_out = pd.read_csv(results / "left_out.csv")
    assert left_out["case"].unique().tolist() == ["c4"]
    assert left_out["reason"].str.contains("4-moving.mha").all()
    assert len(list((results / "pictures" / "demons").glob("*.png"))) == 2
    scores = pd.read_csv(results / "scores.csv")
    dice = scores[scores.metric == "dice"].pivot_table(index="case", columns="method", values="value")
    assert sorted(dice.index) == ["c0", "c1", "c2", "c3"]
    assert (dice["demons"] > dice["identity"] + 0.1).all()
    assert not list(results.rglob(".part-*"))


def test_a_second_call_finds_nothing_to_do(finished):
    assert rules_to_run(finished) == set()


@pytest.mark.parametrize(
    ("path", "value", "reruns"),
    [
        (("studies", "tiny", "tables", "overlap", "title"), "Another", {"table"}),
        (("studies", "tiny", "figures", "scatter", "title"), "Another", {"figure"}),
        (("studies", "tiny", "pictures", "cases"), 1, {"pictures"}),
        (("methods", "demons", "iterations"), [12, 10, 10], REGISTERED),
        (("fits", "metric", "steps"), 4, {"train", *REGISTERED, "landscape", "landscape_figure"}),
        (("methods", "cnn", "iterations"), 4, {*REGISTERED, "landscape", "landscape_figure"}),
        (("studies", "tiny", "landscapes", "around", "title"), "Another", {"landscape_figure"}),
        (("studies", "tiny", "comparison", "tests"), ["wilcoxon"], {"compare", "table"}),
        (
            ("studies", "tiny", "measures"),
            ["dice", "folding", "seconds", "jaccard"],
            {"score", "gather", "compare", "table", "figure", "pictures", "left_out"},
        ),
    ],
)
def test_one_changed_key_reruns_only_what_depends_on_it(path, value, reruns, finished):
    content = config_of(finished)
    node = content
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    write_config(finished, content)
    try:
        assert rules_to_run(finished) == reruns
    finally:
        write_config(finished, config_of(finished))


def test_a_mistake_in_the_config_stops_before_anything_is_written(tmp_path):
    content = {**config_of(tmp_path), "treads": 2}
    write_config(tmp_path, content)
    done = snakemake(tmp_path)
    assert done.returncode != 0
    assert "treads: unknown key; did you mean 'threads'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_job_killed_half_way_is_finished_by_a_rerun(finished):
    """What is left of a killed registration (a record "running", a part file) neither stops nor spoils the next run."""
    folder = finished / "results" / "smoke" / "tiny" / "transforms" / "demons"
    before = (folder / "c1.h5").read_bytes()
    (folder / "batch-1.csv").unlink()
    (folder / "c1.h5").unlink()
    record = (folder / "c1.json").read_text()
    (folder / "c1.json").write_text(record.replace('"status": "done"', '"status": "running"'))
    kept = (folder / "c3.h5").stat().st_mtime_ns
    done = snakemake(finished, "results/smoke/tiny/transforms/demons/batch-1.csv")
    assert done.returncode == 0, done.stderr
    assert (folder / "c1.h5").exists()
    assert (folder / "c3.h5").stat().st_mtime_ns == kept  # finished work is not done again
    assert len((folder / "c1.h5").read_bytes()) == len(before)


def test_a_cross_validated_network_is_fitted_to_its_studys_prepared_cases_and_shown_in_detail(project, tmp_path):
    pairs = pd.read_csv(project / "data" / "pairs.csv").query("case != 'c4'")
    pairs.assign(split="test").to_csv(project / "data" / "whole.csv", index=False)
    fit = {"learner": "field-network", "study": "tiny", "network": "unet", "widths": [4, 8], "folds": 2, "epochs": 2, "learning_rate": 0.003}
    study = {
        "title": "Discs",
        "dataset": "own",
        "prepare": {"intensity": "min-max"},
        "methods": ["identity", "net"],
        "measures": ["dice", "inference_ms"],
        "tables": {"overlap": {"title": "Overlap", "rows": ["identity", "net"], "columns": ["dice", {"metric": "dice", "level": "base"}]}},
        "deformations": {"detail": {"title": "One pair", "methods": ["identity", "net"]}},
    }
    content = {
        "scale": "smoke",
        "datasets": {"own": {"reader": "table", "file": str(project / "data" / "whole.csv")}},
        "methods": {"identity": {}, "net": {"use": "resatt", "fit": "net"}},
        "fits": {"net": fit},
        "studies": {"tiny": study},
    }
    write_config(tmp_path, content)
    shutil.copytree(ROOT / "workflow" / "profiles", tmp_path / "workflow" / "profiles")
    done = snakemake(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    results = tmp_path / "results" / "smoke"
    assert (results / "tiny" / "deformations" / "detail.png").stat().st_size > 10_000
    held_out = [json.loads((results / "weights" / f"net-fold-{fold}.json").read_text())["subjects"]["validation"] for fold in (0, 1)]
    assert sorted(held_out[0] + held_out[1]) == sorted(pairs["subject"])
    scores = pd.read_csv(results / "tiny" / "scores.csv")
    assert set(scores.query("method == 'net'")["subject"]) == set(pairs["subject"])
    assert rules_to_run(tmp_path) == set()


def test_a_translation_network_is_fitted_and_its_images_and_fields_are_shown(project, tmp_path):
    pairs = pd.read_csv(project / "data" / "pairs.csv").query("case != 'c4'")
    # the counterpart of these pairs is the moving image itself
    pairs.assign(moving_counterpart=pairs["moving"]).to_csv(project / "data" / "translated.csv", index=False)
    study = {
        "title": "Discs",
        "dataset": "own",
        "methods": ["net", "cycle"],
        "measures": ["dice", "counterpart_mse_percent", "translation_psnr_db", "translation_ssim"],
        "tables": {"translation": {"title": "Translation", "rows": ["net", "cycle"], "columns": ["translation_psnr_db", "translation_ssim"]}},
        "deformations": {"warped": {"title": "One pair", "methods": ["net"], "structures": True, "image": "counterpart"}},
        "translated": {"images": {"title": "Translations", "methods": ["net", "cycle"]}},
        "parts": {"fields": {"title": "Fields", "method": "net"}},
    }
    content = {
        "scale": "smoke",
        "datasets": {"own": {"reader": "table", "file": str(project / "data" / "translated.csv")}},
        "methods": {"net": {"use": "translation", "fit": "net"}, "cycle": {"use": "cyclegan", "fit": "cycle"}},
        "fits": {
            "net": {"learner": "translation", "dataset": "own", "iterations": 1, "validation_every": 1},
            "cycle": {"learner": "cyclegan", "dataset": "own", "blocks": 1, "width": 4, "epochs": 1, "decay_epochs": 0},
        },
        "studies": {"tiny": study},
    }
    write_config(tmp_path, content)
    shutil.copytree(ROOT / "workflow" / "profiles", tmp_path / "workflow" / "profiles")
    done = snakemake(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    results = tmp_path / "results" / "smoke" / "tiny"
    for shown in ("deformations/warped", "translated/images", "parts/fields"):
        assert (results / f"{shown}.png").stat().st_size > 10_000, shown
    scores = pd.read_csv(results / "scores.csv")
    assert set(scores.query("metric == 'translation_psnr_db'")["method"]) == {"net", "cycle"}
    assert rules_to_run(tmp_path) == set()
