"""The momentum's dampening in the fit of the patch metric: Torch 7's 0.9 (the paper's software), or none, at the paper's learning rate.

    python benchmarks/dampening.py [--scale laptop] [--fit metric-all] [--method cnn-all] [--steps N] [--most 2]

With dampening d a long run's steps are (1 - d) of those without: 0.9 means a tenth. Each fit's loss and accuracy on held-out
patches, and what its network does as a similarity on validation cases of study deep-metric. Needs the prepared cases: run snakemake first.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import report
from tune_baselines import compared, validation_cases

from pipeline.config import load_config
from pipeline.learned.registry import fit
from pipeline.methods import Run

STUDY = "deep-metric"


def main() -> None:
    """Print and keep a row a dampening."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", default="laptop")
    parser.add_argument("--fit", default="metric-all")
    parser.add_argument("--method", default="cnn-all")
    parser.add_argument("--steps", type=int, default=None, help="of the fit; default the configuration's")
    parser.add_argument("--most", type=int, default=2, help="at most this many validation cases")
    given = parser.parse_args()
    config = load_config("config.yaml", scale=given.scale)
    settings = config.fits[given.fit]
    cases, run = validation_cases(given.scale, STUDY, "validation", given.most), Run(threads=config.threads, seed=config.seed)
    rows: list[dict[str, object]] = []
    for dampening in (0.9, 0.0):
        chosen = config.fit(given.fit) | {"dampening": dampening} | ({"steps": given.steps} if given.steps else {})
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "metric.safetensors"
            card = fit(settings.learner, chosen, Path(config.cases_of(settings.dataset)), run=run, out=weights)
            scores = {name: round(value, 4) for name, value in card["scores"].items()}
            rows.append({"dampening": dampening} | scores | compared(STUDY, cases, config.method(given.method) | {"weights": str(weights)}, run))
        print(rows[-1], flush=True)
    report(rows, "dampening")


if __name__ == "__main__":
    main()
