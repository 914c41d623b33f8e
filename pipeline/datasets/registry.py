"""What a dataset is, and the one table that maps the names of readers in config.yaml to datasets."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.cases import Case
from pipeline.errors import ConcordError, explain
from pipeline.methods import Run

DATASETS: dict[str, str] = {
    "table": "pipeline.datasets.table:Table",
    "brain-phantom": "pipeline.datasets.brain_phantom:BrainPhantoms",
    "cardiac-phantom": "pipeline.datasets.cardiac_phantom:CardiacPhantoms",
    "acdc": "pipeline.datasets.acdc:Acdc",
    "alberts": "pipeline.datasets.alberts:Alberts",
    "brainweb": "pipeline.datasets.brainweb:BrainWeb",
    "brats": "pipeline.datasets.brats:Brats",
    "ixi": "pipeline.datasets.ixi:Ixi",
    "labelmaps": "pipeline.datasets.labelmaps:LabelMaps",
    "mr-trus-phantom": "pipeline.datasets.mr_trus_phantom:MrTrusPhantoms",
    "uronav": "pipeline.datasets.uronav:UroNav",
    "muregpro": "pipeline.datasets.muregpro:MuRegPro",
    "ucla-prostate": "pipeline.datasets.ucla_prostate:UclaProstate",
    "mr-us-pairs": "pipeline.datasets.mr_us_pairs:MrUsPairs",
    "slices": "pipeline.datasets.slices:Slices",
}
"""Name of the reader: where its class stands."""


class LeftOut(NamedTuple):
    """A subject (or a file, or a line) that gave no case, by name, and why."""

    subject: str
    reason: str


class Found(NamedTuple):
    """What a dataset yields."""

    cases: list[Case]
    left_out: list[LeftOut]


class Dataset(BaseModel):
    """Settings of a dataset, validated; `cases` yields its cases. Subclasses are one file each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def cases(self, folder: Path, run: Run) -> Found:
        """The cases, paths absolute, and what was left out. Files that a dataset makes itself go to `folder`.

        Raises `ConcordError` where nothing of the expected layout is found at all; a single bad subject is left out by name.
        """
        raise NotImplementedError


def create_dataset(name: str, settings: Mapping[str, Any] | None = None, *, where: str = "") -> Dataset:
    """The dataset that the reader `name` makes of `settings`; `where` is the key of config.yaml that an error shall name.

    Raises `ConcordError` with the valid choices for an unknown reader, key or value. No file is looked at.
    """
    chosen = dataset_class(name, where=where)
    try:
        return chosen(**dict(settings or {}))
    except ValidationError as error:
        raise ConcordError(explain(error, where or f"datasets.{name}", chosen)) from error
    except ConcordError as error:
        told = str(error)
        separator = "." if told.partition(":")[0] in chosen.model_fields else ": "
        raise ConcordError(f"{where or f'datasets.{name}'}{separator}{told}") from error


def dataset_class(name: str, *, where: str = "") -> type[Dataset]:
    """The class behind a reader's name, imported when it is asked for."""
    if name not in DATASETS:
        near = difflib.get_close_matches(str(name), DATASETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConcordError(f"{where or 'datasets'}.reader: no reader {name!r}{hint} Valid: {', '.join(DATASETS)}")
    module, _, class_name = DATASETS[name].partition(":")
    return getattr(import_module(module), class_name)
