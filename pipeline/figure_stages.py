"""The steps of the workflow that draw, as commands, one a rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.stages import EXISTING, PATH, Json, of_study, stage, with_weights


@stage.command("figure")
@click.option("--settings", type=Json(), required=True)
@of_study
@click.option("--scores", type=EXISTING, required=True)
@click.option("--png", type=PATH, required=True)
@click.option("--svg", type=PATH, required=True)
def figure_stage(settings: dict[str, Any], methods: list[str], scores: Path, png: Path, svg: Path, **context: str) -> None:
    """Draw a figure of a study."""
    from pipeline.config import FigureSettings
    from pipeline.figures.study_figures import study_figure
    from pipeline.figures.style import save
    from pipeline.scoring import read_scores

    chosen = FigureSettings(**settings)
    figure = study_figure(chosen, read_scores(scores), methods, f"{chosen.title}\n{context['dataset']}, scale {context['scale']}")
    save(figure, png)
    save(figure, svg)


@stage.command("landscape-figure")
@click.argument("tables", type=EXISTING, nargs=-1, required=True)
@click.option("--methods", type=Json(), required=True, help="methods in the order of the columns")
@click.option("--title", required=True)
@click.option("--numbers", type=PATH, required=True, help="table of basin widths and correct signs to write")
@click.option("--png", type=PATH, required=True)
@click.option("--svg", type=PATH, required=True)
def landscape_figure_stage(tables: tuple[Path, ...], methods: list[str], title: str, numbers: Path, png: Path, svg: Path) -> None:
    """Draw landscapes beside each other, and sum them up in numbers."""
    import pandas as pd

    from pipeline.figures.landscape import draw_landscape
    from pipeline.figures.style import save
    from pipeline.files import write_text
    from pipeline.optimise.landscape import landscape_numbers

    table = pd.concat([pd.read_csv(path) for path in tables])
    write_text(numbers, landscape_numbers(table).to_csv(index=False))
    figure = draw_landscape(table, methods=methods, title=title)
    save(figure, png)
    save(figure, svg)


@stage.command("attention")
@click.option("--settings", type=Json(), required=True, help="the figure's settings")
@click.option("--method", type=Json(), required=True, help="settings of its method, `use` among them")
@click.option("--source", default="", help="dataset and scale in words")
@click.option("--cases", type=EXISTING, required=True)
@click.option("--weights", type=EXISTING, required=True, help="trained weights of the method's first stage")
@click.option("--without", type=EXISTING, help="weights of the network without attention that is shown beside")
@click.option("--threads", type=int, default=1)
@click.option("--png", type=PATH, required=True)
@click.option("--svg", type=PATH, required=True)
def attention_stage(settings: dict[str, Any], method: dict[str, Any], png: Path, svg: Path, **files: Any) -> None:
    """Draw what a network of rigid registration looks at in one case."""
    from pipeline.attention import AttentionSettings, attention_figure
    from pipeline.cases import read_cases
    from pipeline.figures.style import save
    from pipeline.methods import create_method

    weights = [path for path in (files["weights"], files["without"]) if path is not None]
    methods = [create_method(method["use"], {**method, **with_weights((path,))}) for path in weights]
    figure = attention_figure(AttentionSettings(**settings), methods, read_cases(files["cases"]), source=files["source"], threads=files["threads"])
    save(figure, png)
    save(figure, svg)


@stage.command("deformation")
@click.option("--settings", type=Json(), required=True, help="the figure's settings")
@click.option("--manifests", type=Json(), required=True, help="tables of results by method")
@click.option("--measures", type=Json(), required=True, help="measures of the study: the first that has scores chooses the case")
@click.option("--source", default="", help="dataset and scale in words")
@click.option("--cases", type=EXISTING, required=True)
@click.option("--scores", type=EXISTING, required=True)
@click.option("--png", type=PATH, required=True)
@click.option("--svg", type=PATH, required=True)
def deformation_stage(settings: dict[str, Any], manifests: dict[str, list[str]], measures: list[str], png: Path, svg: Path, **given: Any) -> None:
    """Draw images, displacement and deformed grid of one case, a row a method."""
    from pipeline.cases import read_cases
    from pipeline.config import DeformationSettings
    from pipeline.figures.deformation import deformation_figure
    from pipeline.figures.style import save
    from pipeline.registration import read_manifests
    from pipeline.scoring import read_scores

    tables = {method: read_manifests(map(Path, files)) for method, files in manifests.items()}
    cases, scores = read_cases(given["cases"]), read_scores(given["scores"])
    figure = deformation_figure(DeformationSettings(**settings), cases, scores, tables, measures=measures, source=given["source"])
    save(figure, png)
    save(figure, svg)


@stage.command("translated")
@click.option("--settings", type=Json(), required=True, help="the figure's settings")
@click.option("--manifests", type=Json(), required=True, help="tables of results by method")
@click.option("--source", default="", help="dataset and scale in words")
@click.option("--cases", type=EXISTING, required=True)
@click.option("--scores", type=EXISTING, required=True)
@click.option("--png", type=PATH, required=True)
@click.option("--svg", type=PATH, required=True)
def translated_stage(settings: dict[str, Any], manifests: dict[str, list[str]], png: Path, svg: Path, **given: Any) -> None:
    """Draw translated images of one case beside the true one, a row a method."""
    from pipeline.cases import read_cases
    from pipeline.figures.style import save
    from pipeline.figures.translated import translated_figure
    from pipeline.registration import read_manifests
    from pipeline.scoring import read_scores
    from pipeline.translation_figures import TranslatedSettings

    tables = {method: read_manifests(map(Path, files)) for method, files in manifests.items()}
    figure = translated_figure(
        TranslatedSettings(**settings), read_cases(given["cases"]), read_scores(given["scores"]), tables, source=given["source"]
    )
    save(figure, png)
    save(figure, svg)


@stage.command("parts")
@click.option("--settings", type=Json(), required=True, help="the figure's settings")
@click.option("--method", type=Json(), required=True, help="settings of its method, `use` among them")
@click.option("--measures", type=Json(), required=True, help="measures of the study: the first that has scores chooses the case")
@click.option("--source", default="", help="dataset and scale in words")
@click.option("--cases", type=EXISTING, required=True)
@click.option("--scores", type=EXISTING, required=True)
@click.option("--weights", type=EXISTING, required=True, help="trained weights of the method")
@click.option("--threads", type=int, default=1)
@click.option("--png", type=PATH, required=True)
@click.option("--svg", type=PATH, required=True)
def parts_stage(settings: dict[str, Any], method: dict[str, Any], measures: list[str], png: Path, svg: Path, **given: Any) -> None:
    """Draw the fields that the parts of a translation network find in one case."""
    from pipeline.cases import read_cases
    from pipeline.figures.style import save
    from pipeline.learned.fitting import reproducible
    from pipeline.methods import create_method
    from pipeline.scoring import read_scores
    from pipeline.translation_figures import PartsSettings, parts_figure

    network = create_method(method["use"], {**method, **with_weights((given["weights"],))})
    cases, scores = read_cases(given["cases"]), read_scores(given["scores"])
    with reproducible(given["threads"]):
        figure = parts_figure(PartsSettings(**settings), network, cases, scores, measures=measures, source=given["source"])
    save(figure, png)
    save(figure, svg)


@stage.command("clinical")
@click.option("--settings", type=Json(), required=True, help="the read-outs' settings")
@of_study
@click.option("--scores", type=EXISTING, required=True)
@click.option("--cases", type=EXISTING, required=True, help="prepared cases: their phases of the heart")
@click.option("--out", type=PATH, required=True, help="stem of the tables and of the figure to write")
def clinical_stage(settings: dict[str, Any], methods: list[str], scores: Path, cases: Path, out: Path, **given: str) -> None:
    """Write volumes at end-systole and ejection fractions as tables, and draw them after Bland and Altman."""
    from pipeline.cases import read_cases
    from pipeline.clinical import ClinicalSettings, read_outs, write_read_outs
    from pipeline.figures.bland_altman import bland_altman
    from pipeline.figures.style import save
    from pipeline.scoring import read_scores
    from pipeline.tables import TableContext

    chosen = ClinicalSettings(**settings)
    found = read_outs(chosen, read_scores(scores), read_cases(cases))
    write_read_outs(chosen, found, TableContext(**given, methods=tuple(methods)), out)
    figure = bland_altman(chosen, found.values, study_methods=methods, source=f"{given['dataset']}, scale {given['scale']}")
    for suffix in ("png", "svg"):
        save(figure, Path(f"{out}.{suffix}"))


@stage.command("pictures")
@click.argument("manifests", type=EXISTING, nargs=-1, required=True)
@click.option("--method", required=True)
@click.option("--measures", type=Json(), required=True, help="measures of the study: the first that has scores ranks the cases")
@click.option("--cases", type=EXISTING, required=True)
@click.option("--scores", type=EXISTING, required=True)
@click.option("--most", type=int, required=True, help="at most this many pictures")
@click.option("--out", type=PATH, required=True, help="folder for the pictures")
def pictures_stage(manifests: tuple[Path, ...], method: str, measures: list[str], cases: Path, scores: Path, most: int, out: Path) -> None:
    """Draw cases of one method before and after registration, from the worst to the best."""
    from pipeline.cases import read_cases
    from pipeline.figures.case_pictures import draw_cases, spread_cases
    from pipeline.registration import read_manifests
    from pipeline.scoring import read_scores

    names = spread_cases(read_scores(scores), method, measures, most)
    draw_cases(read_cases(cases), read_manifests(manifests), names, method=method, folder=out)
