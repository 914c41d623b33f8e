"""The one table that maps the names of learners in config.yaml to what fits their networks."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.errors import ConcordError, choices, explain
from pipeline.methods import Run

LEARNERS: dict[str, tuple[str, str]] = {
    "cyclegan": ("pipeline.learned.settings.cyclegan:CycleGanFit", "pipeline.learned.cyclegan:fit_to_cases"),
    "field-network": ("pipeline.learned.settings.field:FieldFit", "pipeline.learned.field:fit_to_cases"),
    "patch-metric": ("pipeline.learned.settings.patch_metric:PatchMetricFit", "pipeline.learned.patch_metric:fit_to_cases"),
    "rigid-network": ("pipeline.learned.settings.rigid:RigidFit", "pipeline.learned.rigid:fit_to_cases"),
    "translation": ("pipeline.learned.settings.translation:TranslationFit", "pipeline.learned.translation:fit_to_cases"),
}
"""Name: where its settings stand, and the function that fits it to a table of cases."""


def learner_settings(name: str, settings: Mapping[str, Any], *, where: str) -> BaseModel:
    """The checked settings of a fit. Raises `ConcordError` with the valid choices for an unknown learner, key or value."""
    if name not in LEARNERS:
        raise ConcordError(f"{where}.learner: no learner {name!r}{choices(name, LEARNERS)}")
    chosen = _load(LEARNERS[name][0])
    try:
        return chosen(**dict(settings))
    except ValidationError as error:
        raise ConcordError(explain(error, where, chosen)) from error


def fit(name: str, settings: Mapping[str, Any], cases: Path, *, run: Run, out: Path) -> dict[str, Any]:
    """Fit to a table of cases; weights, card and learning curve go to `out`. Returns the card."""
    return _load(LEARNERS[name][1])(learner_settings(name, settings, where=f"fits.{out.stem}"), cases, run=run, out=out)


def learner_class(name: str) -> type[BaseModel]:
    """The settings' class of a learner."""
    return _load(LEARNERS[name][0])


def _load(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
