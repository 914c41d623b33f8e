"""The one exception that a user sees: a single line that names what is wrong and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConcordError(Exception):
    """A bad input or setting, told in one line: the file or key, its value, what was expected, the remedy."""


def choices(given: object, valid: Iterable[object]) -> str:
    """The end of a message about an unknown name: the likeliest one meant, where there is one, and all that are valid."""
    names = [str(name) for name in valid]
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    return f"{f'; did you mean {near[0]!r}?' if near else ';'} valid: {', '.join(names)}"
