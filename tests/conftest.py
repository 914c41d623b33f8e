"""Fixtures that several tests share: a generator, and where the real volumes are."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.set_threshold(100_000, 50, 50)  # as the command line's: in a process that has loaded everything a full collection takes a third of a second


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(autouse=True)
def torch_draws_alike() -> None:
    """A test draws the same numbers whichever ran before it; what does not load torch does not wait for it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(7)


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(os.environ.get("CONCORD_TEST_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real volumes at {folder} (set CONCORD_TEST_DATA)")
    return folder.resolve()
