"""Public layouts as data: patterns of file names, and the subjects that they find under a root folder."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError

from pipeline.datasets.registry import Dataset, Found, LeftOut
from pipeline.errors import ConcordError
from pipeline.volumes import SUFFIXES


@dataclass(frozen=True)
class Subject:
    """Files of one subject: images by modality, label maps by the modality on whose grid they lie."""

    name: str
    images: Mapping[str, Path]
    labels: Mapping[str, Path] = field(default_factory=dict)


def _number_or_names(value: Any, handler: Any) -> Any:
    try:
        return handler(value)
    except ValidationError as error:
        raise PydanticCustomError("subjects", "expected a number of subjects (1 or more) or a list of their names") from error


Choice = Annotated[Annotated[int, Field(ge=1)] | tuple[str, ...] | None, WrapValidator(_number_or_names)]


class FolderDataset(Dataset):
    """A dataset that lies in a folder in a public layout; nothing is written."""

    layout: ClassVar[str] = ""
    """A short sketch of the expected tree, for error messages."""

    root: Path = Field(description="folder of the dataset; a relative path starts at the current directory")
    subjects: Choice = Field(None, description="how many subjects to take, or a list of their names; left open: all")

    def found_root(self) -> Path:
        """The root, absolute. Raises `ConcordError` where it is no folder."""
        root = self.root.expanduser().absolute()
        if not root.is_dir():
            raise ConcordError(f"root {root}: no such folder; expected {self.layout}: fetch the data or correct `root` of the dataset")
        return root

    def nothing_found(self, left_out: Iterable[LeftOut] = ()) -> ConcordError:
        """The error for a root without a single usable subject."""
        reasons = "; ".join(f"{subject}: {reason}" for subject, reason in list(left_out)[:2])
        told = f" ({reasons})" if reasons else ""
        return ConcordError(f"root {self.root.absolute()}: no usable subject{told}; expected {self.layout}: correct `root` or the files' names")


def chosen_subjects(names: Iterable[str], choice: int | tuple[str, ...] | None) -> list[str]:
    """The names that `choice` takes: the first n in sorted order, or those listed, in that order.

    Raises `ConcordError` for a listed name that does not exist.
    """
    ordered = sorted(names)
    if choice is None or isinstance(choice, int):
        return ordered[:choice]
    for name in choice:
        if name not in ordered:
            near = difflib.get_close_matches(name, ordered, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConcordError(f"subjects: no subject {name!r}{hint} {len(ordered)} found: {', '.join(ordered[:5])}{', …' * (len(ordered) > 5)}")
    return list(dict.fromkeys(choice))


def find_files(root: Path, patterns: Iterable[str], suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, list[Path]]:
    """Files by subject, sorted. A pattern is relative to `root` and holds `{subject}` once or more and globs (`*`, `**/`).

    Hidden files are passed over, among them the `._name` twins that macOS leaves in archives.
    """
    found: dict[str, set[Path]] = {}
    for pattern in patterns:
        expression = re.compile(_expression(pattern))
        for path in root.glob(pattern.replace("{subject}", "*")):
            match = expression.fullmatch(path.relative_to(root).as_posix())
            if match and not path.name.startswith(".") and path.name.endswith(suffixes) and path.is_file():
                found.setdefault(match["subject"], set()).add(path)
    return {subject: sorted(found[subject]) for subject in sorted(found)}


def _expression(pattern: str) -> str:
    """The regular expression of a pattern: every `{subject}` after the first must repeat it."""
    parts = re.split(r"(\{subject\}|\*\*/|\*)", pattern)
    meaning = {"{subject}": "(?P=subject)", "**/": "(?:[^/]+/)*", "*": "[^/]*"}
    text = "".join(meaning.get(part, re.escape(part)) for part in parts)
    return text.replace("(?P=subject)", "(?P<subject>[^/]+)", 1)


def collect(root: Path, images: Mapping[str, Iterable[str]], labels: Iterable[str] = ()) -> tuple[list[Subject], list[LeftOut]]:
    """Subjects that have exactly one file of every modality, label maps where there are; and who has not, by name."""
    by_modality = {modality: find_files(root, patterns) for modality, patterns in images.items()}
    label_files = find_files(root, labels)
    complete: list[Subject] = []
    left_out: list[LeftOut] = []
    for name in sorted(set().union(*by_modality.values())):
        files = {modality: found.get(name, []) for modality, found in by_modality.items()}
        wrong = [_complaint(modality, paths, root) for modality, paths in files.items() if len(paths) != 1]
        wrong += [_complaint("label map", label_files[name], root)] if len(label_files.get(name, [])) > 1 else []
        if wrong:
            left_out.append(LeftOut(name, "; ".join(wrong)))
            continue
        subject_labels = dict.fromkeys(files, label_files[name][0]) if name in label_files else {}
        complete.append(Subject(name, {modality: paths[0] for modality, paths in files.items()}, subject_labels))
    return complete, left_out


def _complaint(what: str, paths: list[Path], root: Path) -> str:
    if not paths:
        return f"no {what}"
    return f"{len(paths)} files for {what} ({', '.join(str(path.relative_to(root)) for path in paths[:3])}); expected one"


def taken(subjects: list[Subject], left_out: list[LeftOut], choice: int | tuple[str, ...] | None) -> tuple[list[Subject], list[LeftOut]]:
    """What `choice` takes of the complete subjects; a listed one that was left out stays told, the others with it."""
    by_name = {subject.name: subject for subject in subjects}
    known = set(by_name) | {row.subject for row in left_out}
    names = chosen_subjects(known if isinstance(choice, tuple) else by_name, choice)
    told = [row for row in left_out if row.subject in names] if isinstance(choice, tuple) else left_out
    return [by_name[name] for name in names if name in by_name], told


__all__ = ["Choice", "FolderDataset", "Found", "Subject", "chosen_subjects", "collect", "find_files", "taken"]
