"""The steps of the workflow as commands, one a rule: everything they need stands on their command line."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
EXISTING = click.Path(path_type=Path, exists=True)


@click.group("stage")
def stage() -> None:
    """One step of the workflow, as its rules call it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")


class Json(click.ParamType):
    """A JSON value on the command line."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse, or say what is wrong."""
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)


def of_study(command: Callable[..., None]) -> Callable[..., None]:
    """The options by which a step learns whose scores it shows."""
    options = (
        click.option("--study", required=True),
        click.option("--dataset", required=True),
        click.option("--scale", required=True),
        click.option("--methods", type=Json(), required=True, help="methods of the study, in whose order each has its colour in all figures"),
    )
    for option in reversed(options):
        command = option(command)
    return command


@stage.command("cases")
@click.option("--settings", type=Json(), required=True, help="the dataset's settings, `reader` among them")
@click.option("--seed", type=int, default=0)
@click.option("--volumes", type=PATH, required=True, help="folder for volumes that the dataset makes")
@click.option("--cases", type=PATH, required=True, help="table of cases to write")
@click.option("--excluded", type=PATH, required=True, help="table of what was left out to write")
def cases_stage(settings: dict[str, Any], seed: int, volumes: Path, cases: Path, excluded: Path) -> None:
    """List the cases of a dataset; phantoms are made here."""
    from pipeline.cases import write_cases
    from pipeline.datasets.registry import create_dataset
    from pipeline.errors import ConcordError
    from pipeline.methods import Run
    from pipeline.prepare import Exclusion, write_exclusions

    reader = settings.pop("reader")
    volumes.mkdir(parents=True, exist_ok=True)
    found, dropped = create_dataset(reader, settings).cases(volumes, Run(seed=seed))
    if not found:
        reasons = "; ".join(f"{subject}: {reason}" for subject, reason in dropped[:3])
        raise ConcordError(f"dataset {reader} with {settings}: no case found{' (' + reasons + ')' if reasons else ''}")
    write_exclusions((Exclusion(subject, "dataset", reason) for subject, reason in dropped), excluded)
    write_cases(found, cases)


@stage.command("prepare")
@click.option("--settings", type=Json(), required=True)
@click.option("--cases", type=EXISTING, required=True)
@click.option("--volumes", type=PATH, required=True, help="folder for the prepared volumes")
@click.option("--prepared", type=PATH, required=True, help="table of prepared cases to write")
@click.option("--excluded", type=PATH, required=True)
def prepare_stage(settings: dict[str, Any], cases: Path, volumes: Path, prepared: Path, excluded: Path) -> None:
    """Prepare the volumes of a study: the same for all its methods."""
    from pipeline.cases import read_cases, write_cases
    from pipeline.prepare import PrepareSettings, prepare_cases, write_exclusions

    volumes.mkdir(parents=True, exist_ok=True)
    ready, dropped = prepare_cases(read_cases(cases), PrepareSettings(**settings), volumes)
    write_exclusions(dropped, excluded)
    write_cases(ready, prepared)
    logging.info("%d cases prepared, %d left out", len(ready), len(dropped))


@stage.command("train")
@click.option("--learner", required=True)
@click.option("--settings", type=Json(), required=True, help="the learner's settings")
@click.option("--cases", type=EXISTING, required=True)
@click.option("--seed", type=int, default=0)
@click.option("--threads", type=int, default=1)
@click.option("--weights", type=PATH, required=True, help=".safetensors to write; card (.json) and learning curve (.csv) go beside it")
@click.option("--figure", type=PATH, help="picture of the learning curve to write")
def train_stage(learner: str, settings: dict[str, Any], cases: Path, seed: int, threads: int, weights: Path, figure: Path | None) -> None:
    """Fit a network to the training cases of a dataset; stopped and run again, it goes on where it was."""
    from pipeline.learned.registry import fit
    from pipeline.methods import Run

    card = fit(learner, settings, cases, run=Run(threads=threads, seed=seed), out=weights)
    logging.info("%s: %s", weights, card["scores"])
    if figure is not None:
        import pandas as pd

        from pipeline.figures.curves import learning_curve
        from pipeline.figures.style import save

        save(learning_curve(pd.read_csv(weights.with_suffix(".csv")), title=weights.stem), figure)


def with_weights(files: tuple[Path, ...]) -> dict[str, Any]:
    """The setting that names trained weights: one file, or one a stage."""
    return {"weights": str(files[0]) if len(files) == 1 else [str(file) for file in files]} if files else {}


@stage.command("register")
@click.option("--settings", type=Json(), required=True, help="the method's settings, `use` among them")
@click.option("--cases", type=EXISTING, required=True)
@click.option("--split", default="test", show_default=True, help="cases of this split")
@click.option("--batch", type=int, default=0)
@click.option("--batches", type=int, default=1)
@click.option("--seed", type=int, default=0)
@click.option("--threads", type=int, default=1)
@click.option("--weights", type=EXISTING, multiple=True, help="trained weights of a learned method, one file a stage")
@click.option("--manifest", type=PATH, required=True, help="table of results to write; transforms go beside it")
def register_stage(settings: dict[str, Any], cases: Path, split: str, weights: tuple[Path, ...], manifest: Path, **options: int) -> None:
    """Register one batch of a study's cases with one method."""
    from pipeline.cases import read_cases
    from pipeline.methods import Run
    from pipeline.registration import register_batch, share_of, write_manifest

    mine = share_of([case for case in read_cases(cases) if case.split == split], options["batch"], options["batches"])
    settings |= with_weights(weights)
    write_manifest(register_batch(mine, settings, Run(threads=options["threads"], seed=options["seed"]), manifest.parent), manifest)


@stage.command("score")
@click.argument("manifests", type=EXISTING, nargs=-1, required=True)
@click.option("--study", required=True)
@click.option("--method", required=True)
@click.option("--measures", type=Json(), required=True)
@click.option("--cases", type=EXISTING, required=True)
@click.option("--split", default="test", show_default=True)
@click.option("--scores", type=PATH, required=True)
@click.option("--excluded", type=PATH, required=True)
def score_stage(
    manifests: tuple[Path, ...], study: str, method: str, measures: list[str], cases: Path, split: str, scores: Path, excluded: Path
) -> None:
    """Score one method's transforms."""
    from pipeline.cases import read_cases
    from pipeline.files import write_text
    from pipeline.prepare import write_exclusions
    from pipeline.registration import read_manifests
    from pipeline.scoring import score_cases

    wanted = [case for case in read_cases(cases) if case.split == split]
    table, failed = score_cases(wanted, read_manifests(manifests), study=study, method=method, measures=measures)
    write_exclusions(failed, excluded)
    write_text(scores, table.to_csv(index=False))


@stage.command("gather")
@click.argument("tables", type=EXISTING, nargs=-1, required=True)
@click.option("--out", type=PATH, required=True)
def gather_stage(tables: tuple[Path, ...], out: Path) -> None:
    """Put tables of the same columns one below the other."""
    import pandas as pd

    from pipeline.files import write_text

    write_text(out, pd.concat([pd.read_csv(table, dtype=str, keep_default_na=False) for table in tables]).to_csv(index=False))


@stage.command("compare")
@click.option("--scores", type=EXISTING, required=True)
@click.option("--settings", type=Json(), required=True, help="the study's `comparison`")
@click.option("--seed", type=int, default=0)
@click.option("--out", type=PATH, required=True, help="stem of the tables to write")
def compare_stage(scores: Path, settings: dict[str, Any], seed: int, out: Path) -> None:
    """Test the methods of a study against its reference and in pairs."""
    from pipeline.comparing import compare_measures
    from pipeline.config import ComparisonSettings
    from pipeline.scoring import read_scores
    from pipeline.tables import write_comparisons

    found, untested = compare_measures(read_scores(scores), ComparisonSettings(**settings), seed=seed)
    write_comparisons(found, out, untested=untested)


@stage.command("table")
@click.option("--settings", type=Json(), required=True)
@of_study
@click.option("--scores", type=EXISTING, required=True)
@click.option("--cases", type=EXISTING, required=True, help="prepared cases: their groups and levels")
@click.option("--comparisons", type=EXISTING, help="tests of the study, where it has any")
@click.option("--out", type=PATH, required=True, help="stem of the tables to write")
def table_stage(settings: dict[str, Any], methods: list[str], out: Path, **given: Any) -> None:
    """Write a table of a study as CSV, Markdown, LaTeX and HTML."""
    import pandas as pd

    from pipeline.breakdown import with_cases
    from pipeline.cases import read_cases
    from pipeline.scoring import read_scores
    from pipeline.tables import TableContext, TableSettings, build_table, write_table

    tests = None if given["comparisons"] is None else pd.read_csv(given["comparisons"], dtype={"note": str})
    scores = with_cases(read_scores(given["scores"]), read_cases(given["cases"]))
    context = TableContext(given["study"], given["dataset"], given["scale"], tuple(methods))
    write_table(build_table(TableSettings(**settings), scores, tests, context), out)


@stage.command("landscape")
@click.option("--method", required=True)
@click.option("--settings", type=Json(), required=True, help="the method's settings, `use` among them")
@click.option("--probe", type=Json(), required=True)
@click.option("--cases", type=EXISTING, required=True, help="cases of which the first aligned one of split validation is looked at")
@click.option("--weights", type=EXISTING, multiple=True, help="trained weights of a learned method, one file a stage")
@click.option("--seed", type=int, default=0)
@click.option("--threads", type=int, default=1)
@click.option("--out", type=PATH, required=True, help="table to write")
def landscape_stage(
    method: str, settings: dict[str, Any], probe: dict[str, Any], cases: Path, weights: tuple[Path, ...], out: Path, **run: int
) -> None:
    """Value and derivative of a similarity around the true alignment of a pair."""
    from pipeline.cases import read_cases
    from pipeline.errors import ConcordError
    from pipeline.files import write_text
    from pipeline.methods import Run, create_method
    from pipeline.optimise.landscape import Probe, landscape
    from pipeline.registration import load_pair

    settings |= with_weights(weights)
    chosen = create_method(settings.pop("use"), settings)
    aligned = [case for case in read_cases(cases) if case.split == "validation" and not case.moving_subject]
    if not aligned:
        raise ConcordError(f"{cases}: no aligned case of split validation; set intra: true and hold_out of the landscape's dataset")
    table = landscape(chosen, load_pair(aligned[0]), run=Run(**run), method=method, probe=Probe(**probe))
    write_text(out, table.to_csv(index=False))


@stage.command("left-out")
@click.argument("tables", type=EXISTING, nargs=-1, required=True)
@click.option("--title", required=True)
@click.option("--out", type=PATH, required=True, help="stem of the tables to write")
def left_out_stage(tables: tuple[Path, ...], title: str, out: Path) -> None:
    """List what was left out of a study, and why."""
    from pipeline.prepare import read_exclusions
    from pipeline.tables import write_failures

    write_failures([row for table in tables for row in read_exclusions(table)], title=title, stem=out)
