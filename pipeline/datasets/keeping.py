"""Made files that are kept: a JSON beside them says from what they were made, so that a second run makes only what is missing or outdated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline.files import write_json


def is_kept(record: Path, made_from: dict[str, Any], products: Iterable[Path]) -> bool:
    """Whether `record` says that the products were made from exactly this, and all of them are there."""
    try:
        same = json.loads(record.read_text(encoding="utf-8")) == json.loads(json.dumps(made_from))
    except (OSError, ValueError):
        return False
    return same and all(path.is_file() for path in products)


def keep(record: Path, made_from: dict[str, Any]) -> None:
    """Write the record; to be called last, when all products are whole."""
    write_json(record, made_from)


@cache
def code_digest(prefix: str) -> str:
    """Digest of the phantom's source files whose names begin with `prefix` and of those that they share: another code makes other subjects."""
    package = files("pipeline.datasets.phantoms")
    names = sorted(
        entry.name for entry in package.iterdir() if entry.name.startswith((prefix, "acquisition", "deformation")) and entry.name.endswith(".py")
    )
    return hashlib.sha256(b"".join((package / name).read_bytes() for name in names)).hexdigest()[:12]


def subject_seed(seed: int, number: int) -> int:
    """A seed for subject `number` that no other run seed and subject share in practice."""
    import numpy as np

    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
