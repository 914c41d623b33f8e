"""The one exception that a user sees: a single line that names what is wrong and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


class ConcordError(Exception):
    """A bad input or setting, told in one line: the file or key, its value, what was expected, the remedy."""


def choices(given: object, valid: Iterable[object]) -> str:
    """The end of a message about an unknown name: the likeliest one meant, where there is one, and all that are valid."""
    names = [str(name) for name in valid]
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    return f"{f'; did you mean {near[0]!r}?' if near else ';'} valid: {', '.join(names)}"


def explain(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    """One line from pydantic's first complaint about a `model` that stands at `where`: key, value, what is expected."""
    first = error.errors()[0]
    key = ".".join([where, *(str(part) for part in first["loc"])])
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key{choices(first['loc'][-1], _valid_keys(model, first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"{key}: missing; this key is required"
    return f"{key}: {first['input']!r} is not valid; {first['msg'][0].lower() + first['msg'][1:]}"


def _valid_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that may stand at a place inside the model, read from its schema."""
    schema = model.model_json_schema()
    node: dict[str, Any] = schema
    for part in location:
        node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
        for option in [node, *node.get("anyOf", []), *node.get("allOf", [])]:
            if "$ref" in option:
                node = schema["$defs"][option["$ref"].rsplit("/", 1)[-1]]
    return list(node.get("properties", {}))
