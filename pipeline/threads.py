"""How many threads torch computes with; ITK has its own way (`pipeline/classical/pyramid.py`)."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Names of `mallopt` in glibc's malloc.h."""


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Within the block torch uses `threads` threads; the process's own number is put back in the end. From here on `keep_freed_memory`."""
    import torch

    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """From here on glibc's allocator keeps the memory of freed tensors for the next ones; elsewhere nothing happens.

    By default it gives each large block back to the system, and the next step waits until thousands of pages are empty again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
