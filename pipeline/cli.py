"""`concord`: register, warp, evaluate and convert one pair; `stage` holds the steps that the workflow's rules call.

Nothing heavy is imported before a command runs, so that `concord --help` answers at once.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from pipeline import __version__
from pipeline.figure_stages import stage
from pipeline.stages import with_weights

PATH = click.Path(path_type=Path)
LABEL_SUFFIX_HELP = "NIfTI, MetaImage, NRRD, or a folder with one DICOM series"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="concord")
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
def cli(traceback: bool) -> None:
    """Align two images, apply and convert transforms, measure the result.

    \b
    Examples:
      concord register t1.nii.gz t2.nii.gz --method mi -o aligned/
      concord warp labels.nii.gz aligned/transform.h5 --onto t1.nii.gz --labels -o labels_on_t1.nii.gz
      concord evaluate aligned/transform.h5 --fixed t1.nii.gz --moving t2.nii.gz
    """


@cli.command()
@click.argument("fixed", type=PATH)
@click.argument("moving", type=PATH)
@click.option("--method", "-m", default="loop", show_default=True, help="Name of a method: see `concord methods`.")
@click.option("--similarity", help="What our own loop minimises: mi, nmi, ncc, lncc, ngf, mind, mind-ssc, mean-squares or patch-cnn.")
@click.option(
    "--transform", "transforms", multiple=True, help="Model of our own loop: translation, rigid, similarity, affine, bspline; may be repeated."
)
@click.option(
    "--weights", type=PATH, multiple=True, help="Trained weights (.safetensors): of --similarity patch-cnn, or of a network, a file a stage or fold."
)
@click.option("--modalities", metavar="FIXED,MOVING", help="What made the images, such as t1,t2, for a metric that was trained on two modalities.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the method, e.g. bins=50 or iterations=100; may be repeated."
)
@click.option("--fixed-mask", type=PATH, help="Mask on the fixed grid: only where it is non-zero counts.")
@click.option("--moving-mask", type=PATH, help="Mask on the moving grid.")
@click.option("--start", type=PATH, help="Transform to start from (.h5 or .tfm): rigid, or with --method loop any.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=os.cpu_count(), show_default="all cores", help="The same seed and threads give the same result."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--output", "-o", type=PATH, required=True, help="Folder for the results.")
def register(fixed: Path, moving: Path, **options: Any) -> None:
    """Align MOVING with FIXED.

    Writes to the output folder: transform.h5 (fixed to moving points, ITK), warped.nii.gz (MOVING on FIXED's grid), qc.png (look
    at it) and provenance.json; our own loop adds trace.csv and trace.png, a row an iteration, and networks trace.csv with their milliseconds.

    \b
    Examples:
      concord register t1.nii.gz t2.nii.gz -o out/
      concord register t1.nii.gz t2.nii.gz --similarity mind-ssc --transform rigid --transform bspline -o out/
      concord register t1.nii.gz t2.nii.gz --similarity patch-cnn --weights metric.safetensors --modalities t1,t2 -o out/
      concord register mr.mha us.mha --method attention-reg --weights stage-1.safetensors --fixed-mask prostate.nii.gz -o out/
      concord register ed.nii.gz es.nii.gz --method resatt --weights resatt.safetensors -o out/
      concord register mr/ us.mha --method rigid-mi --fixed-mask prostate.nii.gz -o out/
      concord register ed.nii.gz es.nii.gz --method demons --set iterations='[50,50,25]' -o out/
    """
    from pipeline.single import register_pair

    settings = _settings_of(options.pop("settings")) | _loop_settings(options)
    options["modalities"] = _two_names(options["modalities"])
    summary = register_pair(fixed, moving, settings=settings, show=_show_progress, **options)
    click.echo(summary)


@cli.command()
@click.argument("source", type=PATH)
@click.argument("transforms", type=PATH, nargs=-1, required=True)
@click.option("--onto", type=PATH, help="Image whose grid the result is given (not for points): the fixed image, or with --inverse the moving one.")
@click.option("--labels", "kind", flag_value="labels", help="SOURCE is a label map or mask: nearest neighbour.")
@click.option("--points", "kind", flag_value="points", help="SOURCE is a CSV of points with columns x,y[,z] in mm (LPS).")
@click.option("--image", "kind", flag_value="image", default="image", help="SOURCE is an image (default): linear.")
@click.option("--cubic", is_flag=True, help="Cubic B-spline instead of linear interpolation.")
@click.option("--inverse", is_flag=True, help="Use the inverse transform.")
@click.option("--output", "-o", type=PATH, required=True)
def warp(source: Path, transforms: tuple[Path, ...], **options: Any) -> None:
    """Apply TRANSFORMS (in the order in which they move a fixed point) to SOURCE.

    Images and label maps are pulled from the moving to the fixed grid; points are pushed from fixed to moving space.
    --inverse does the opposite of each.

    \b
    Examples:
      concord warp t2.nii.gz out/transform.h5 --onto t1.nii.gz -o t2_on_t1.nii.gz
      concord warp labels_t2.nii.gz out/transform.h5 --onto t1.nii.gz --labels -o labels_on_t1.nii.gz
      concord warp t1.nii.gz out/transform.h5 --inverse --onto t2.nii.gz -o t1_on_t2.nii.gz
      concord warp landmarks_t1.csv out/transform.h5 --points -o landmarks_in_t2.csv
    """
    from pipeline.single import warp_file

    warp_file(source, transforms, **options)
    click.echo(f"wrote {options['output']}")


@cli.command()
@click.argument("transform", type=PATH)
@click.option("--fixed", type=PATH, required=True, help="Fixed image.")
@click.option("--moving", type=PATH, required=True, help="Moving image.")
@click.option("--fixed-labels", type=PATH, help="Label map on the fixed grid.")
@click.option("--moving-labels", type=PATH, help="Label map on the moving grid.")
@click.option("--fixed-landmarks", type=PATH, help="CSV of points in the fixed image, x,y[,z] in mm.")
@click.option("--moving-landmarks", type=PATH, help="The same points in the moving image.")
@click.option("--true-transform", type=PATH, help="The true transform, where it is known.")
@click.option("--measure", "measures", multiple=True, help="Measure to compute; may be repeated. Default: all that the inputs allow.")
@click.option("--output", "-o", type=PATH, help="CSV to write; without it a table is printed.")
def evaluate(transform: Path, **options: Any) -> None:
    """Measure what a transform does.

    \b
    Example:
      concord evaluate out/transform.h5 --fixed t1.nii.gz --moving t2.nii.gz --fixed-labels a.nii.gz --moving-labels b.nii.gz
    """
    from pipeline.single import evaluate_transform

    click.echo(evaluate_transform(transform, **options))


@cli.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH)
@click.option("--from", "source_format", type=click.Choice(["auto", "itk", "elastix", "ants"]), default="auto", show_default=True)
@click.option("--to", "target_format", type=click.Choice(["auto", "itk", "elastix", "ants", "field"]), default="auto", show_default=True)
@click.option("--onto", type=PATH, help="Image whose grid a field is sampled on, where the target format needs one.")
@click.option("--inverse", is_flag=True, help="Write the inverse.")
def convert(source: Path, target: Path, **options: Any) -> None:
    """Convert a transform, or an image from one format to another.

    \b
    Formats of transforms: itk (.h5, .tfm), elastix (a folder of TransformParameters.N.txt; read one
    of them, its chain follows), ants (.mat or a displacement field .nii.gz),
    field (displacements in mm as a vector image on the grid of --onto).

    \b
    Examples:
      concord convert out/transform.h5 out/elastix --to elastix --onto t1.nii.gz
      concord convert out/transform.h5 field.nii.gz --to field --onto t1.nii.gz
      concord convert series/ image.nii.gz
    """
    from pipeline.single import convert_file

    convert_file(source, target, **options)
    click.echo(f"wrote {target}")


@cli.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the methods, or the settings of one with their defaults."""
    from pipeline.methods import METHODS, create_method

    if name is None:
        for known in METHODS:
            click.echo(f"{known:12} {(type(create_method(known)).__doc__ or '').splitlines()[0]}")
        return
    method = create_method(name)
    for key, field in type(method).model_fields.items():
        click.echo(f"{key} = {getattr(method, key)!r}\n    {field.description or ''}")


@cli.command()
@click.option("--cases", "of_cases", is_flag=True, help="The schema of a row of a table of cases instead.")
def schema(of_cases: bool) -> None:
    """Print the JSON schema of config.yaml."""
    import json

    from pipeline.cases import Case
    from pipeline.config import json_schema

    click.echo(json.dumps(Case.model_json_schema() if of_cases else json_schema(), indent=2, ensure_ascii=False))


@cli.command()
@click.option("--config", "path", type=PATH, default=Path("config.yaml"), show_default=True)
@click.option("--scale", type=click.Choice(["smoke", "laptop", "paper"]), help="Instead of the file's own.")
def check(path: Path, scale: str | None) -> None:
    """Check a config.yaml without running anything."""
    from pipeline.config import load_config

    config = load_config(path, scale=scale)
    click.echo(f"{path}: valid at scale {config.scale}; studies: {', '.join(config.studies)}")


cli.add_command(stage)


def _loop_settings(options: dict[str, Any]) -> dict[str, Any]:
    """What --similarity and --transform say, which are the loop's alone, and --weights."""
    from pipeline.errors import ConcordError

    given = {"similarity": options.pop("similarity"), "stages": options.pop("transforms") or None}
    chosen, weights = {key: value for key, value in given.items() if value is not None}, with_weights(options.pop("weights"))
    if options["method"] != "loop":
        if chosen:
            raise ConcordError(f"--similarity and --transform are settings of --method loop, not of {options['method']!r}; leave one out")
        return weights
    return ({"similarity": "patch-cnn"} if weights else {}) | chosen | weights


def _two_names(text: str | None) -> tuple[str, ...] | None:
    from pipeline.errors import ConcordError

    if text is None:
        return None
    names = tuple(part.strip() for part in text.split(","))
    if len(names) != 2 or not all(names):
        raise ConcordError(f"--modalities {text!r}; expected two names, such as t1,t2")
    return names


def _settings_of(given: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE pairs with YAML values."""
    import yaml

    settings = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise click.BadParameter(f"{item!r}; expected KEY=VALUE", param_hint="--set")
        settings[key] = yaml.safe_load(value)
    return settings


_told: dict[str, str] = {}


def _show_progress(stage_name: str, fraction: float) -> None:
    if not sys.stderr.isatty():  # a log wants a line a stage, not a line a percent
        if _told.get("stage") == stage_name and fraction < 1:
            return
        _told["stage"] = stage_name
    end = "\r" if sys.stderr.isatty() and fraction < 1 else "\n"
    click.echo(f"[{fraction:4.0%}] {stage_name:60}", err=True, nl=False)
    click.echo(end, err=True, nl=False)


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit status 1."""
    from pipeline.errors import ConcordError

    gc.set_threshold(100_000, 50, 50)  # what large libraries make of themselves at a start is no garbage: a tenth of their import
    warnings.showwarning = lambda message, *_args, **_more: click.echo(f"concord: warning: {message}", err=True)
    try:
        status = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("concord: stopped", err=True)
        status = 130
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (ConcordError, OSError, MemoryError) as error:
        if "--traceback" in sys.argv:
            raise
        kind = "" if isinstance(error, ConcordError) else f"{type(error).__name__}: "
        click.echo(f"concord: error: {kind}{error}", err=True)
        status = 1
    gc.freeze()  # nor is it at an end: half a second to go through, and nothing is freed by it that the process's end does not free
    sys.exit(status if isinstance(status, int) else 0)
