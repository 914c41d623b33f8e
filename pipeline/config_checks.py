"""What config.yaml's parts say of each other: every name that is used exists, and what is used has valid settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.attention import AttentionSettings
from pipeline.clinical import VOLUMES, ClinicalSettings
from pipeline.config import ComparisonSettings, Config, StudySettings, without_fit
from pipeline.errors import ConcordError, choices
from pipeline.methods import METHODS, create_method
from pipeline.table_settings import split_key
from pipeline.translation_figures import PartsSettings


def check_references(config: Config) -> None:
    """Every name used by a study exists, every method and every dataset in use has valid settings."""
    from pipeline.measures import MEASURES

    for name, settings in config.methods.items():
        create_method(name, without_fit(settings))
        if "fit" in settings:
            _known(f"methods.{name}.fit", config.fits_of(name), config.fits)
    for name, fit in config.fits.items():
        _check_warm_start(config, name)
        config.fit(name)
        if fit.study:
            _known(f"fits.{name}.study", (fit.study,), config.studies)
        else:
            _known(f"fits.{name}.dataset", (fit.dataset,), config.datasets)
            _check_paths(config, fit.dataset)
    for study_name, study in config.studies.items():
        where = f"studies.{study_name}"
        _known(f"{where}.dataset", (study.dataset,), config.datasets)
        _known(f"{where}.methods", study.methods, config.methods, more=METHODS)
        _known(f"{where}.measures", study.measures, MEASURES)
        if study.comparison:
            _check_comparison(f"{where}.comparison", study.comparison, study)
        for table_name, table in study.tables.items():
            _known(f"{where}.tables.{table_name}.columns", tuple(column.metric for column in table.all_columns), study.measures)
        for figure_name, figure in study.figures.items():
            _known(f"{where}.figures.{figure_name}.measures", figure.measures, study.measures)
            _known(f"{where}.figures.{figure_name}.against", (figure.against,) if figure.against else (), study.measures)
            _known(f"{where}.figures.{figure_name}.methods", figure.methods, study.methods)
        for name, landscape in study.landscapes.items():
            _known(f"{where}.landscapes.{name}.dataset", (landscape.dataset,), config.datasets)
            _known(f"{where}.landscapes.{name}.methods", landscape.methods, study.methods)
            _check_paths(config, landscape.dataset)
        for name, shown in study.attention.items():
            _check_attention(config, f"{where}.attention.{name}", shown, study)
        for name, drawn in study.deformations.items():
            _known(f"{where}.deformations.{name}.methods", drawn.methods, study.methods)
        for name, drawn in study.translated.items():
            _known(f"{where}.translated.{name}.methods", drawn.methods, study.methods)
        for name, shown in study.parts.items():
            _check_parts(config, f"{where}.parts.{name}", shown, study)
        for name, shown in study.clinical.items():
            _check_clinical(f"{where}.clinical.{name}", shown, study)
        _known(f"{where}.pictures.methods", study.pictures.methods, study.methods)
        _check_paths(config, study.dataset)


def _check_warm_start(config: Config, name: str) -> None:
    """The fits that a fit begins with, one after the other, are there, and it is none of them."""
    chain = [name]
    while (start := config.warm_start_of(chain[-1])) is not None:
        _known(f"fits.{chain[-1]}.warm_start", (start,), config.fits)
        if start in chain:
            raise ConcordError(f"config.yaml.fits.{name}.warm_start: {' <- '.join([*chain, start])}; expected a fit that begins without this one")
        chain.append(start)


def _check_comparison(where: str, comparison: ComparisonSettings, study: StudySettings) -> None:
    _known(f"{where}.reference", (comparison.reference,) if comparison.reference else (), study.methods)
    _known(f"{where}.pairs", tuple(name for pair in comparison.pairs for name in pair), study.methods)
    _known(f"{where}.measures", tuple(split_key(measure)[0] for measure in comparison.measures), study.measures)


def _check_attention(config: Config, where: str, shown: AttentionSettings, study: StudySettings) -> None:
    """The methods of the figure are fitted networks of the kinds that it compares."""
    for key, network in (("method", "attention-reg"), ("without", "feature-reg")):
        if not (name := getattr(shown, key)):
            continue
        _known(f"{where}.{key}", (name,), study.methods)
        first = config.fits_of(name)[:1]
        kinds = [config.fit(fit).get("network") for fit in first if config.fits[fit].learner == "rigid-network"]
        if config.method(name)["use"] != "attention-reg" or kinds != [network]:
            found = f"its use is {config.method(name)['use']}, its fit {first[0] if first else 'none'}, a network {kinds[0] if kinds else 'of no such kind'}"
            raise ConcordError(f"config.yaml.{where}.{key}: {name!r}: {found}; expected a method of use attention-reg and a fit of network {network}")


def _check_parts(config: Config, where: str, shown: PartsSettings, study: StudySettings) -> None:
    """The method of the figure is a fitted translation network."""
    _known(f"{where}.method", (shown.method,), study.methods)
    used, fits = config.method(shown.method)["use"], config.fits_of(shown.method)
    if used != "translation" or not fits:
        raise ConcordError(
            f"config.yaml.{where}.method: {shown.method!r}: its use is {used}, its fit {fits[0] if fits else 'none'}; expected a method of use "
            "translation with a fit"
        )


def _check_clinical(where: str, shown: ClinicalSettings, study: StudySettings) -> None:
    _known(f"{where}.methods", shown.methods, study.methods)
    if missing := [name for name in VOLUMES if name not in study.measures]:
        measures = ", ".join(study.measures)
        raise ConcordError(f"config.yaml.{where}: made of {', '.join(VOLUMES)}; expected {missing[0]} among the study's measures: {measures}")


def _check_paths(config: Config, dataset: str) -> None:
    """A dataset in use has a reader, valid settings, and its data."""
    if "reader" not in config.datasets[dataset]:
        raise ConcordError(f"config.yaml.datasets.{dataset}.reader: missing; this key is required")
    source = config.source_of(dataset)
    if source is not None:
        _known(f"datasets.{dataset}.of", (source,), config.datasets)
        if source == dataset or config.source_of(source) is not None:
            raise ConcordError(f"config.yaml.datasets.{dataset}.of: {source!r} is made of another dataset itself; name one that is not")
        _check_paths(config, source)
    for key, value in config.dataset(dataset).items():
        if key in ("root", "file") and source is None and not Path(value).expanduser().exists():
            raise ConcordError(f"config.yaml.datasets.{dataset}.{key}: {value!r} is not there; expected the data's own path")


def _known(key: str, names: tuple[str, ...], valid: Any, more: Any = ()) -> None:
    for name in names:
        if name not in valid:
            extra = f" (add it under `methods` first: {name}: {{}})" if name in more else ""
            raise ConcordError(f"config.yaml.{key}: no {name!r}{extra}{choices(name, valid)}")
