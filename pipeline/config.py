"""config.yaml as frozen models: scale chosen, every key checked, before any job starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.attention import AttentionSettings
from pipeline.clinical import ClinicalSettings
from pipeline.config_content import FOLD, SCALES, Scale, content_at
from pipeline.errors import ConcordError, explain
from pipeline.methods import METHODS, create_method
from pipeline.optimise.landscape import Probe
from pipeline.prepare import PrepareSettings
from pipeline.table_settings import TableSettings, TestName
from pipeline.translation_figures import PartsSettings, TranslatedSettings


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


class DeformationSettings(_Settings):
    """Images, displacement and deformed grid of one test case, a row a method."""

    title: str = Field(description="heading of the figure")
    methods: tuple[str, ...] = Field(min_length=1, description="methods shown, one below the other")
    case: str = Field("", description="name of the test case; empty: the one in the middle by the methods' mean of the study's first measure")
    structures: bool = Field(False, description="outline the labels of the fixed image and the warped ones in a panel of their own")
    image: Literal["moving", "counterpart"] = Field(
        "moving", description="what is warped: the image that was registered, or the same subject's in the fixed modality"
    )
    caption: str = Field("", description="added to the caption in the report")


class PictureSettings(_Settings):
    """Before/after pictures with checkerboards, one a case."""

    methods: tuple[str, ...] = Field((), description="methods to draw")
    cases: int = Field(8, ge=0, description="at most this many cases a method, spread evenly from the worst to the best")


class FitSettings(BaseModel):
    """A network fitted to the cases of a dataset, or to the prepared ones of a study; the other keys are the learner's.

    With `folds: N` it is fitted N times, each without one fold of the subjects, under the names NAME-fold-0 and on: a method whose
    `fit` is NAME takes them all.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    learner: str = Field(description="what is fitted")
    dataset: str = Field("", description="name under `datasets` whose cases of split train (and validation) are used")
    study: str = Field("", description="instead of a dataset: name under `studies` whose prepared cases are used")

    @model_validator(mode="after")
    def _one_source(self) -> FitSettings:
        if bool(self.dataset) == bool(self.study):
            raise ValueError("expected either dataset or study, and one of them")
        return self


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
    deformations: dict[str, DeformationSettings] = Field(default_factory=dict, description="figures of what methods do to one case, by name")
    translated: dict[str, TranslatedSettings] = Field(default_factory=dict, description="figures of translated images of one case, by name")
    parts: dict[str, PartsSettings] = Field(default_factory=dict, description="figures of the fields that one network's parts find, by name")
    clinical: dict[str, ClinicalSettings] = Field(
        default_factory=dict, description="tables and Bland-Altman plots of volumes at end-systole and ejection fraction, by name"
    )
    pictures: PictureSettings = Field(default_factory=PictureSettings, description="pictures of cases")


class Config(_Settings):
    """The whole of config.yaml, with one value chosen for the scale wherever a value a scale is given."""

    scale: Scale = Field(
        "laptop", description="smoke proves the wiring, laptop gives meaningful tables on two cores, paper is the papers' own protocol"
    )
    seed: int = Field(0, ge=0, description="seed of everything that is random")
    threads: int = Field(1, ge=1, description="threads of one registration job; the same seed and threads give the same bits")
    datasets: dict[str, dict[str, Any]] = Field(
        description="name: {reader: …, and its settings}; `of: NAME` instead of a root is made of the cases of another dataset"
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
        given = without_fit(self.methods[name])
        return {"use": given.get("use", name), **create_method(name, given).model_dump(mode="json")}

    def fits_of(self, name: str) -> tuple[str, ...]:
        """The fits whose weights a method takes, in order: of a cross-validation all folds."""
        given = self.methods[name].get("fit", ())
        named = (given,) if isinstance(given, str) else tuple(given)
        folds = {fit: tuple(found for found in self.fits if found.rpartition(FOLD)[0] == fit) for fit in named}
        return tuple(found for fit in named for found in ((fit,) if fit in self.fits else folds[fit] or (fit,)))

    def source_of_fit(self, name: str) -> str:
        """The folder with the table of cases, and the volumes, that a fit is made from."""
        fit = self.fits[name]
        return f"{self.folder}/{fit.study}/prepared" if fit.study else f"{self.folder}/datasets/{fit.dataset}"

    def fit(self, name: str) -> dict[str, Any]:
        """All settings of a fit's learner, defaults included, as plain JSON values."""
        from pipeline.learned.registry import learner_settings

        chosen = self.fits[name]
        given = dict(chosen.model_extra or {})
        if start := self.warm_start_of(name):
            given["warm_start"] = self.weights_of(start)
        return learner_settings(chosen.learner, given, where=f"config.yaml.fits.{name}").model_dump(mode="json")

    def warm_start_of(self, name: str) -> str | None:
        """The fit with whose weights a fit begins."""
        start = (self.fits[name].model_extra or {}).get("warm_start")
        return None if start is None else str(start)

    def weights_of(self, fit: str) -> str:
        """The file of a fit's weights."""
        return f"{self.folder}/weights/{fit}.safetensors"

    def dataset(self, name: str) -> dict[str, Any]:
        """All settings of a dataset, defaults included, as plain JSON values."""
        from pipeline.datasets.registry import create_dataset

        given = dict(self.datasets[name])
        reader, source = given.pop("reader"), given.pop("of", None)
        if source is not None:
            given["root"] = self.cases_of(source)
        return {"reader": reader, **create_dataset(reader, given, where=f"config.yaml.datasets.{name}").model_dump(mode="json")}


def without_fit(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A method's own settings."""
    return {key: value for key, value in settings.items() if key != "fit"}


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
    from pipeline.config_checks import check_references

    try:
        config = Config.model_validate(content_at(content, scale))
    except ValidationError as error:
        raise ConcordError(explain(error, "config.yaml", Config)) from error
    check_references(config)
    return config


def json_schema() -> dict[str, Any]:
    """The JSON schema of config.yaml with descriptions and defaults, the settings of every method and dataset included."""
    from pipeline.datasets.registry import DATASETS, dataset_class
    from pipeline.learned.registry import LEARNERS, learner_class
    from pipeline.methods import method_class

    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["description"] = (
        "config.yaml; any value may be given as a mapping from scales to values: {smoke: …, laptop: …, paper: …}; "
        "a study, a fit or a method may name the `scales` at which it is there (default: all)"
    )
    schema["x-methods"] = {name: method_class(name).model_json_schema() for name in METHODS}
    schema["x-datasets"] = {name: dataset_class(name).model_json_schema() for name in DATASETS}
    schema["x-learners"] = {name: learner_class(name).model_json_schema() for name in LEARNERS}
    return json.loads(json.dumps(schema, default=str))
