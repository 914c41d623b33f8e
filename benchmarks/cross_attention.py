"""Attention-Reg beside the same weights with the table of attention written out, `softmax(Q K^T) V`: time and memory.

    python benchmarks/cross_attention.py [--device cuda] [--batches 1 4 8] [--grid 32 96 96]

Of the whole network and of one attention block on maps of the same grid, forward alone and a training step (forward and backward). Runs of
A and B alternate, the ratio is the median of pairwise ratios, and outputs are compared. Peak memory is that of a fresh process each, less
what it held before; on a GPU, what PyTorch allocated. A row whose written-out form would not fit into the memory says so and is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import product

import psutil
import torch
from common import interleaved, median_ratio, peak_mib, report

from nets.attention_reg import AttentionReg
from nets.cross_attention import CHANNELS, CrossAttention

SEED = 1
TABLES = {"forward": 2, "training step": 5}
"""Tables of weights of one item that the written-out network holds at a time: scores and softmax; the softmax of two blocks, and three more."""
SHARE_OF_MEMORY = 0.7


class WrittenOut(CrossAttention):
    """The block with the table of weights in memory."""

    @staticmethod
    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """`softmax(query key^T) value`."""
        return torch.softmax(query @ key.transpose(1, 2), dim=2) @ value


def prepared(form: str, scope: str, passed: str, batch: int, given: argparse.Namespace) -> Callable[[], torch.Tensor]:
    """One pass of the network or of one block, on inputs and weights that follow the seed."""
    torch.manual_seed(SEED)
    network = AttentionReg(tuple(given.grid))
    if form == "written out":
        for block in network.attention.values():
            block.__class__ = WrittenOut
    network.to(given.device)
    volumes = torch.rand(batch, 2, *given.grid, device=given.device)
    maps = torch.randn(2, batch, CHANNELS, *network.map_grid, device=given.device, requires_grad=scope == "block")
    result = (lambda: network(volumes)) if scope == "network" else (lambda: network.attention["mr"](*maps))
    return _pass(result, passed, given.device)


def _pass(result: Callable[[], torch.Tensor], passed: str, device: str) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with torch.set_grad_enabled(passed == "training step"):
            output = result()
            if output.requires_grad:
                output.square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return output.detach()

    return call


def peak_of(case: tuple[str, str, str, int], given: argparse.Namespace) -> float:
    """MiB of the pass beyond weights and inputs: in a process of its own, or what PyTorch allocated on a GPU."""
    if given.device == "cuda":
        call = prepared(*case, given)
        call()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    small = (*case[:3], 1, argparse.Namespace(**{**vars(given), "grid": (4, 8, 8)}))
    return peak_mib(prepared, *case, given, small=small, threads=given.threads)


def too_large(passed: str, batch: int, given: argparse.Namespace) -> str:
    """Why the written-out form is not run, or nothing."""
    z, y, x = AttentionReg(tuple(given.grid)).map_grid
    needed = 4 * (z * y * x) ** 2 * batch * TABLES[passed] / 2**30
    free = (torch.cuda.mem_get_info()[0] if given.device == "cuda" else psutil.virtual_memory().available) / 2**30
    return f"written out needs {needed:.1f} GiB, {free:.1f} are free" if needed > SHARE_OF_MEMORY * free else ""


def row(scope: str, passed: str, batch: int, given: argparse.Namespace) -> dict[str, object]:
    """Times, peaks, their ratios and the largest difference of the outputs."""
    about = {"device": given.device, "threads": given.threads, "scope": scope, "pass": passed, "batch": batch}
    if reason := too_large(passed, batch, given):
        return {**about, "left_out": reason}
    ours, theirs = (prepared(form, scope, passed, batch, given) for form in ("fused", "written out"))
    difference = (ours() - theirs()).abs().max().item()  # their first call, after which no warm-up is needed
    mine, others = interleaved(ours, theirs, runs=given.runs, warm_up=0)
    peaks = [peak_of((form, scope, passed, batch), given) for form in ("fused", "written out")]
    times = {"ours_s": min(mine), "written_out_s": min(others), "time_ratio": median_ratio(mine, others)}
    memory = {"ours_mib": peaks[0], "written_out_mib": peaks[1], "memory_ratio": peaks[0] / peaks[1]}
    return {**about, **times, **memory, "largest_difference": difference}


def rows(given: argparse.Namespace) -> Iterator[dict[str, object]]:
    """A row for each batch size, scope and pass."""
    for batch, scope, passed in product(given.batches, ("block", "network"), TABLES):
        found = row(scope, passed, batch, given)
        print(found, flush=True)
        yield found


def main() -> None:
    """Print and keep times, memory and their ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--grid", type=int, nargs=3, default=[32, 96, 96])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    # exact products, so that both forms compute the same
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    report(list(rows(given)), "cross_attention" if given.device == "cpu" else "cross_attention_cuda")


if __name__ == "__main__":
    main()
