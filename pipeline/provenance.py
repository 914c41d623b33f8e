"""What made a result: settings, inputs, versions, machine, time and memory, kept beside it as JSON."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("itk", "itk-elastix", "numpy", "scipy", "torch", "pandas")


@lru_cache(maxsize=4096)
def file_sha256(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder (a DICOM series), in name order."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def fingerprint(content: Mapping[str, Any]) -> str:
    """SHA-256 of settings and inputs as sorted JSON: what a finished result is recognised by."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def environment() -> dict[str, Any]:
    """Versions, machine and command of this process."""
    return {
        "concord": _version("concord-registration"),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "device": f"cpu ({platform.machine()}, {os.cpu_count()} cores)",
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


@dataclass
class Cost:
    """Wall-clock seconds and peak resident memory of a piece of work in this process."""

    seconds: float = float("nan")
    peak_memory_mib: float = float("nan")


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure the block: seconds, and the peak resident memory (of the whole process, libraries included)."""
    cost = Cost()
    # Linux forgets the old peak on request; elsewhere the process's own maximum is the best there is
    own_peak = _reset_peak()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - start
        cost.peak_memory_mib = _peak_mib() if own_peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
