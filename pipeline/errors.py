"""The one exception that a user sees: a single line that names what is wrong and how to mend it."""

from __future__ import annotations


class ConcordError(Exception):
    """A bad input or setting, told in one line: the file or key, its value, what was expected, the remedy."""
