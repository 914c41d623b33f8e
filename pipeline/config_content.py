"""What becomes of config.yaml's content before it is checked: the scale's values are chosen, what is not there at that scale goes, folds are told apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from pipeline.errors import ConcordError

Scale = Literal["smoke", "laptop", "paper"]
SCALES: tuple[str, ...] = ("smoke", "laptop", "paper")
FOLD = "-fold-"
"""Between a fit's name and the number of the fold that it holds out."""
_GROUPS = ("studies", "fits", "methods")


def content_at(content: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """The content at `scale`. Raises `ConcordError` for a value that has none there, for `scales` that are none, and for two fits of one name."""
    present, gone = _present(content, scale)
    return _with_folds(_without_needy(at_scale(present, scale), gone))


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


def _present(content: Mapping[str, Any], scale: str) -> tuple[dict[str, Any], dict[str, set[str]]]:
    """The content less the studies, fits and methods whose `scales` do not name this one, and the names of those."""
    kept, gone = dict(content), {group: set[str]() for group in _GROUPS}
    for group in _GROUPS:
        entries = content.get(group)
        if not isinstance(entries, Mapping):
            continue
        listed = {name: entry["scales"] for name, entry in entries.items() if isinstance(entry, Mapping) and "scales" in entry}
        gone[group] = {name for name, scales in listed.items() if scale not in _checked(scales, f"config.yaml.{group}.{name}.scales")}
        kept[group] = {
            name: {key: value for key, value in entry.items() if key != "scales"} if name in listed else entry
            for name, entry in entries.items()
            if name not in gone[group]
        }
    return kept, gone


def _without_needy(content: dict[str, Any], gone: Mapping[str, set[str]]) -> dict[str, Any]:
    """The content less what needs what is gone: fits to the cases of such a study or begun with such a fit, methods of such a fit, and what studies do with such methods.

    A table keeps the row of one for which it has published figures.
    """
    studies, fits, methods = ({**content[group]} if isinstance(content.get(group), Mapping) else {} for group in _GROUPS)
    no_fits = gone["fits"] | {
        name for name, fit in fits.items() if _named(fit, "study") & gone["studies"] or _named(fit, "warm_start") & gone["fits"]
    }
    no_methods = gone["methods"] | {name for name, method in methods.items() if _named(method, "fit") & no_fits}
    kept = {
        "studies": {name: _without(study, no_methods) for name, study in studies.items()},
        "fits": {name: fit for name, fit in fits.items() if name not in no_fits},
        "methods": {name: method for name, method in methods.items() if name not in no_methods},
    }
    return {**content, **{group: entries for group, entries in kept.items() if isinstance(content.get(group), Mapping)}}


def _checked(scales: Any, key: str) -> list[str]:
    if not isinstance(scales, list) or not scales or not set(map(str, scales)) <= set(SCALES):
        raise ConcordError(f"{key}: {scales!r} is not valid; expected a list of some of {', '.join(SCALES)}")
    return scales


def _without(part: Any, methods: Collection[str]) -> Any:
    """A study, or a part of one, with no list of methods, rows or pairs that names any of `methods`."""
    if not isinstance(part, Mapping):
        return part
    published = part["published"] if isinstance(part.get("published"), Mapping) else ()
    kept = {}
    for key, value in part.items():
        if key == "methods" and isinstance(value, list):
            value = [name for name in value if name not in methods]
        elif key == "rows" and isinstance(value, list):
            value = [name for name in value if name not in methods or name in published]
        elif key == "pairs" and isinstance(value, list):
            value = [pair for pair in value if not (isinstance(pair, list) and set(map(str, pair)) & set(methods))]
        kept[key] = _without(value, methods)
    return kept


def _named(settings: Any, key: str) -> set[str]:
    """What `key` of the settings names, one or several."""
    found = settings.get(key) if isinstance(settings, Mapping) else None
    return {name for name in (found if isinstance(found, list) else [found]) if isinstance(name, str)}


def _with_folds(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with every fit of `folds: N`, and no fold, replaced by N fits, each of which holds one fold out."""
    fits = content.get("fits")
    if not isinstance(fits, Mapping):
        return dict(content)
    every: dict[str, Any] = {}
    for name, fit in fits.items():
        made = {f"{name}{FOLD}{fold}": {**fit, "fold": fold} for fold in range(_folds_of(fit))} or {name: fit}
        if twice := every.keys() & made.keys():
            raise ConcordError(
                f"config.yaml.fits.{min(twice)}: there twice, once as a fold of another fit; expected one of that name: call one differently"
            )
        every |= made
    return {**content, "fits": every}


def _folds_of(fit: Any) -> int:
    """How many fits a cross-validated one stands for; 0 for one that is not, or whose number the learner will refuse."""
    folds = fit.get("folds") if isinstance(fit, Mapping) and "fold" not in fit else None
    return folds if type(folds) is int and folds > 1 else 0
