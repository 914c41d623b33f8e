"""How many threads torch computes with; ITK has its own way (`pipeline/classical/pyramid.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Within the block torch uses `threads` threads; the process's own number is put back in the end."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
