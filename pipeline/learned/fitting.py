"""What every fit of a network needs: a device, reproducible arithmetic, batches drawn ahead, a learning curve, and an end."""

from __future__ import annotations

import csv
import io
import logging
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread
from typing import Any

import torch
from pydantic import BaseModel

from pipeline.errors import ConcordError
from pipeline.learned.weights import beside, save_weights
from pipeline.provenance import environment
from pipeline.threads import torch_threads

log = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """The device behind "auto", "cpu" or "cuda". Raises `ConcordError` where CUDA is asked for and absent."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConcordError(
            "device: 'cuda' asked for, but torch finds no CUDA device; expected one: install a CUDA build of torch, or set auto or cpu"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def described(device: torch.device) -> str:
    """The device in words, for the log and the card."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else f"cpu ({platform.machine()})"


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Within the block torch uses `threads` threads, and on a GPU the same kernels every time."""
    with torch_threads(threads), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
        yield


def prefetched(draw: Callable[[int], Any], steps: Sequence[int], ahead: int = 2) -> Iterator[Any]:
    """`draw(step)` for each step in order, drawn by a background thread up to `ahead` of its use; its exceptions are raised here.

    Close the iterator to end the thread before the last step.
    """
    queue: Queue[tuple[Any, Exception | None]] = Queue(ahead)
    closed = Event()

    def put(item: tuple[Any, Exception | None]) -> None:
        while not closed.is_set():
            try:
                queue.put(item, timeout=0.1)
                return
            except Full:
                continue

    def work() -> None:
        torch.set_num_threads(1)  # this thread's own number: a second team of threads would fight the network's for the cores
        try:
            for step in steps:
                if closed.is_set():
                    return
                put((draw(step), None))
        except Exception as error:  # whatever it is, it belongs to whoever waits for the batch
            put((None, error))

    thread = Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        for _ in steps:
            item, error = queue.get()
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
        thread.join()


def made_of(settings: BaseModel, *, seed: int, threads: int, **more: Any) -> dict[str, Any]:
    """All that a fit's result depends on: the fingerprint of its checkpoints, and part of its card."""
    return {"settings": settings.model_dump(mode="json"), "seed": seed, "threads": threads, **more}


def check_loss(loss: float, place: str, learning_rate: float) -> None:
    """Raises `ConcordError` for a loss that is not finite, `place` being where it was met."""
    if not math.isfinite(loss):
        raise ConcordError(f"the loss is {loss} {place}; expected a finite one: lower learning_rate, which is {learning_rate:g}")


def log_row(row: Mapping[str, float]) -> None:
    """A row of a learning curve, for the log."""
    log.info("%s", ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in row.items()))


def untimed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a learning curve without the columns of time, which differ from run to run."""
    return {name: value for name, value in row.items() if not name.endswith(("seconds", "_per_second"))}


def kept(out: Path, weights: Mapping[str, torch.Tensor], card: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """End a fit: write `OUT.safetensors` and its card with the versions, remove the checkpoint, return the card."""
    written = save_weights(out, weights, {**card, "versions": environment() | {"device": described(device)}})
    beside(out, ".checkpoint.safetensors").unlink(missing_ok=True)
    return written


def curve_csv(curve: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A learning curve as CSV; what a row does not have stays empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(curve)
    return stream.getvalue()
