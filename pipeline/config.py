"""config.yaml as frozen models: scale chosen, every key checked, before any job starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.attention import AttentionSettings
from pipeline.errors import ConcordError, choices, explain
from pipeline.methods import METHODS, create_method
from pipeline.optimise.landscape import Probe
from pipeline.prepare import PrepareSettings
from pipeline.table_settings import TableSettings, TestName, split_key

Scale = Literal["smoke", "laptop", "paper"]
SCALES: tuple[str, ...] = ("smoke", "laptop", "paper")


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ComparisonSettings(_Settings):
    """Which methods are tested against which, on what."""

    reference: str = Field("", description="method that all the others are compared with; empty: only the pairs are compared")
    pairs: tuple[tuple[str, str], ...] = Field((), description="more comparisons, such as ablations: [method, method that it is compared with]")
    measures: tuple[str, ...] = Field(description="measures to test; measure@start over the registrations from that start alone")
    tests: tuple[TestName, ...] = Field(
        ("paired-t", "one-sided-t", "wilcoxon", "sample-one-sided-t"),
        description="tests to run, each Holm-corrected over all comparisons of a measure",
    )

    @model_validator(mode="after")
    def _something(self) -> ComparisonSettings:
        if not self.reference and not self.pairs:
            raise ValueError("neither reference nor pairs: expected one of them, or no comparison")
        return self


class FigureSettings(_Settings):
    """A figure drawn from the scores."""

    kind: Literal["scatter", "boxplots", "success"] = Field(
        description="scatter: final against initial score a registration, or one measure against another; boxplots: a panel a measure, a box a "
        "method; success: share of registrations below an error"
    )
    title: str = Field(description="heading of the figure")
    measures: tuple[str, ...] = Field(("dice",), description="measures shown; scatter and success show the first")
    against: str = Field("", description="of a scatter: measure on the horizontal axis; empty: the same one before registration")
    limits: tuple[float, ...] = Field((2.0, 4.0, 5.0), min_length=1, description="of success: errors that are marked")
    start: str = Field("", description="registrations from this start only; empty: from all")
    methods: tuple[str, ...] = Field((), description="methods shown; empty: all of the study")
    caption: str = Field("", description="added to the caption in the report")


class LandscapeSettings(_Settings):
    """Value and derivative of the loop's similarities around the truth, on one aligned pair."""

    title: str = Field(description="heading of the figure")
    dataset: str = Field(description="name under `datasets`: its first aligned validation case is looked at")
    methods: tuple[str, ...] = Field(min_length=1, description="methods shown, all of them our own loop")
    probe: Probe = Field(default_factory=Probe, description="how the surroundings of the truth are looked at")
    caption: str = Field("", description="added to the caption in the report")


class PictureSettings(_Settings):
    """Before/after pictures with checkerboards, one a case."""

    methods: tuple[str, ...] = Field((), description="methods to draw")
    cases: int = Field(8, ge=0, description="at most this many cases a method, spread evenly from the worst to the best")


class FitSettings(BaseModel):
    """A network fitted to the training cases of a dataset; the other keys are the learner's."""

    model_config = ConfigDict(frozen=True, extra="allow")

    learner: str = Field(description="what is fitted")
    dataset: str = Field(description="name under `datasets` whose cases of split train (and validation) are used")


class StudySettings(_Settings):
    """A study: one dataset, some methods, one protocol, and what comes out."""

    title: str = Field(description="heading in the report")
    dataset: str = Field(description="name under `datasets`: swapping it is this one line")
    prepare: PrepareSettings = Field(default_factory=PrepareSettings, description="what is done to every volume before registration")
    methods: tuple[str, ...] = Field(min_length=1, description="names under `methods`")
    measures: tuple[str, ...] = Field(min_length=1, description="measures to compute a case")
    batches: int = Field(2, ge=1, description="registration jobs a method; each runs its share of the cases and resumes where it was stopped")
    comparison: ComparisonSettings | None = Field(None, description="statistical tests")
    tables: dict[str, TableSettings] = Field(default_factory=dict, description="tables by name")
    figures: dict[str, FigureSettings] = Field(default_factory=dict, description="figures by name")
    landscapes: dict[str, LandscapeSettings] = Field(default_factory=dict, description="figures of similarities around the truth, by name")
    attention: dict[str, AttentionSettings] = Field(default_factory=dict, description="figures of what attention networks look at, by name")
    pictures: PictureSettings = Field(default_factory=PictureSettings, description="pictures of cases")


class Config(_Settings):
    """The whole of config.yaml, with one value chosen for the scale wherever a value a scale is given."""

    scale: Scale = Field(
        "laptop", description="smoke proves the wiring, laptop gives meaningful tables on two cores, paper is the papers' own protocol"
    )
    seed: int = Field(0, ge=0, description="seed of everything that is random")
    threads: int = Field(1, ge=1, description="threads of one registration job; the same seed and threads give the same bits")
    datasets: dict[str, dict[str, Any]] = Field(
        description="name: {reader: …, and its settings}; `of: NAME` instead of a root takes the label maps of another dataset"
    )
    methods: dict[str, dict[str, Any]] = Field(
        description="name: settings over the method's defaults; `use: OTHER` names the method where the row is called differently, "
        "`fit: NAME` the fit whose weights it takes, or a list of them, one a stage"
    )
    fits: dict[str, FitSettings] = Field(default_factory=dict, description="name: a network fitted to the training cases of a dataset")
    studies: dict[str, StudySettings] = Field(description="name: study")

    @property
    def folder(self) -> str:
        """Where everything of this scale goes."""
        return f"results/{self.scale}"

    def cases_of(self, dataset: str) -> str:
        """The table of cases of a dataset."""
        return f"{self.folder}/datasets/{dataset}/cases.csv"

    def source_of(self, dataset: str) -> str | None:
        """The dataset from whose cases another one is made."""
        return self.datasets[dataset].get("of")

    def method(self, name: str) -> dict[str, Any]:
        """All settings of a method, defaults included, as plain JSON values; `use` says which method it is."""
        given = _without_fit(self.methods[name])
        return {"use": given.get("use", name), **create_method(name, given).model_dump(mode="json")}

    def fits_of(self, name: str) -> tuple[str, ...]:
        """The fits whose weights a method takes, in order."""
        given = self.methods[name].get("fit", ())
        return (given,) if isinstance(given, str) else tuple(given)

    def fit(self, name: str) -> dict[str, Any]:
        """All settings of a fit's learner, defaults included, as plain JSON values."""
        from pipeline.learned.registry import learner_settings

        chosen = self.fits[name]
        return learner_settings(chosen.learner, chosen.model_extra or {}, where=f"config.yaml.fits.{name}").model_dump(mode="json")

    def dataset(self, name: str) -> dict[str, Any]:
        """All settings of a dataset, defaults included, as plain JSON values."""
        from pipeline.datasets.registry import create_dataset

        given = dict(self.datasets[name])
        reader, source = given.pop("reader"), given.pop("of", None)
        if source is not None:
            given["root"] = self.cases_of(source)
        return {"reader": reader, **create_dataset(reader, given, where=f"config.yaml.datasets.{name}").model_dump(mode="json")}


def load_config(path: Path | str, *, scale: str | None = None) -> Config:
    """Read and check config.yaml. Raises `ConcordError` naming the key, the value and what is allowed."""
    import yaml

    path = Path(path)
    if not path.exists():
        raise ConcordError(f"{path}: no such file; expected the project's config.yaml")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConcordError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConcordError(f"{path}: holds {type(content).__name__}; expected keys {', '.join(Config.model_fields)}")
    return parse_config({**content, **({"scale": scale} if scale else {})})


def parse_config(content: Mapping[str, Any]) -> Config:
    """Check the content of config.yaml and choose the scale's values. Raises `ConcordError`, one line."""
    scale = content.get("scale", "laptop")
    if scale not in SCALES:
        raise ConcordError(f"scale: {scale!r} is not valid; choose one of {', '.join(SCALES)}")
    try:
        config = Config.model_validate(at_scale(dict(content), scale))
    except ValidationError as error:
        raise ConcordError(explain(error, "config.yaml", Config)) from error
    _check_references(config)
    return config


def at_scale(value: Any, scale: str, key: str = "") -> Any:
    """`value` with every mapping from scales to values replaced by the value at `scale`."""
    if isinstance(value, Mapping):
        if value and set(value) <= set(SCALES):
            if scale not in value:
                raise ConcordError(f"{key}: no value at scale {scale!r}; given: {', '.join(map(str, value))}")
            return at_scale(value[scale], scale, key)
        return {name: at_scale(inner, scale, f"{key}.{name}" if key else str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [at_scale(inner, scale, key) for inner in value]
    return value


def _check_references(config: Config) -> None:
    """Every name used by a study exists, every method and every dataset in use has valid settings."""
    from pipeline.scoring import MEASURES

    for name, settings in config.methods.items():
        create_method(name, _without_fit(settings))
        if "fit" in settings:
            _known(f"methods.{name}.fit", config.fits_of(name), config.fits)
    for name, fit in config.fits.items():
        config.fit(name)
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
        _known(f"{where}.pictures.methods", study.pictures.methods, study.methods)
        _check_paths(config, study.dataset)


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


def _without_fit(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "fit"}


def _known(key: str, names: tuple[str, ...], valid: Any, more: Any = ()) -> None:
    for name in names:
        if name not in valid:
            extra = f" (add it under `methods` first: {name}: {{}})" if name in more else ""
            raise ConcordError(f"config.yaml.{key}: no {name!r}{extra}{choices(name, valid)}")


def json_schema() -> dict[str, Any]:
    """The JSON schema of config.yaml with descriptions and defaults, the settings of every method and dataset included."""
    from pipeline.datasets.registry import DATASETS, dataset_class
    from pipeline.learned.registry import LEARNERS, learner_class
    from pipeline.methods import method_class

    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["description"] = "config.yaml; any value may be given as a mapping from scales to values: {smoke: …, laptop: …, paper: …}"
    schema["x-methods"] = {name: method_class(name).model_json_schema() for name in METHODS}
    schema["x-datasets"] = {name: dataset_class(name).model_json_schema() for name in DATASETS}
    schema["x-learners"] = {name: learner_class(name).model_json_schema() for name in LEARNERS}
    return json.loads(json.dumps(schema, default=str))
