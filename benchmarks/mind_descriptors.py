"""MIND-SSC descriptors: ours against the usual formulation with shift kernels and 3-D pooling, time, peak memory and equality in one run.

    python benchmarks/mind_descriptors.py --sizes 64 96 128 160 --threads 1

Each measurement has a process of its own, so that its peak memory is its own; the two implementations take turns.
The usual formulation is written out here from its description: two dilated convolutions with one-hot kernels that fetch the two
neighbours of every channel, a replication pad of the whole stack, and average pooling over the cube.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from metrics.similarity.mind import mind_ssc, ssc_pairs

RESULTS = Path(__file__).parent / "results" / "mind_descriptors.csv"
FIELDS = ("size", "pass", "threads", "implementation", "seconds", "peak_mib", "time_ratio", "memory_ratio", "largest_difference")


def usual_mind_ssc(image: torch.Tensor, *, radius_vx: int = 2, dilation_vx: int = 2) -> torch.Tensor:
    """MIND-SSC `(B, 12, z, y, x)` by shift kernels and cubic pooling, channels in the order of `ssc_pairs`."""
    first, second = (image.new_zeros(12, 1, 3, 3, 3) for _ in range(2))
    for channel, pair in enumerate(ssc_pairs(3)):
        for kernel, offset in zip((first, second), pair, strict=True):
            kernel[(channel, 0, *(1 + o for o in offset))] = 1
    padded = F.pad(image, [dilation_vx] * 6, mode="replicate")
    squared = (F.conv3d(padded, first, dilation=dilation_vx) - F.conv3d(padded, second, dilation=dilation_vx)) ** 2
    distances = F.avg_pool3d(F.pad(squared, [radius_vx] * 6, mode="replicate"), 2 * radius_vx + 1, stride=1)
    distances = distances - distances.amin(1, keepdim=True)
    variance = distances.mean(1, keepdim=True)
    return torch.exp(-distances / variance.clamp(1e-3 * variance.mean(), 1e3 * variance.mean()))


IMPLEMENTATIONS = {"ours": mind_ssc, "usual": usual_mind_ssc}


def image_of(size: int) -> torch.Tensor:
    """A smooth random image."""
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, size, size, size)).astype(np.float32))
    return F.avg_pool3d(noise, 3, 1, 1)


def compute(implementation: str, image: torch.Tensor, gradient: bool) -> torch.Tensor:
    """The descriptors; with `gradient` also the image's gradient of their mean square."""
    if not gradient:
        with torch.no_grad():
            return IMPLEMENTATIONS[implementation](image)
    image = image.clone().requires_grad_()
    values = IMPLEMENTATIONS[implementation](image)
    values.square().mean().backward()
    return values


def measure(implementation: str, size: int, gradient: bool, repeats: int) -> dict[str, float]:
    """Best wall time and the growth of this process's peak memory."""
    image = image_of(size)
    compute(implementation, image[..., :16, :16, :16].contiguous(), gradient)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        compute(implementation, image, gradient)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": min(seconds), "peak_mib": (peak - before) / 1024}


def in_a_process(arguments: argparse.Namespace, implementation: str, size: int, kind: str) -> dict[str, float]:
    """`measure` in a fresh interpreter."""
    options = {"--implementation": implementation, "--sizes": size, "--kind": kind, "--threads": arguments.threads, "--repeats": arguments.repeats}
    command = [sys.executable, __file__, *(str(part) for option in options.items() for part in option)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def rows_of(arguments: argparse.Namespace, size: int, kind: str) -> list[dict[str, object]]:
    """Both implementations at one size, and their ratios (usual over ours)."""
    runs = {name: [in_a_process(arguments, name, size, kind) for _ in range(arguments.rounds)] for name in IMPLEMENTATIONS}
    best = {name: {key: min(run[key] for run in found) for key in found[0]} for name, found in runs.items()}
    ratios = {f"{short}_ratio": round(best["usual"][key] / best["ours"][key], 2) for short, key in (("time", "seconds"), ("memory", "peak_mib"))}
    image = image_of(min(size, 96))  # equality needs no large grid
    ratios["largest_difference"] = float((compute("ours", image, False) - compute("usual", image, False)).abs().max())
    shared = {"size": f"{size}^3", "pass": kind, "threads": arguments.threads}
    return [
        {**shared, "implementation": name, "seconds": round(found["seconds"], 4), "peak_mib": round(found["peak_mib"]), **ratios}
        for name, found in best.items()
    ]


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128, 160])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kind", choices=["forward", "gradient"], help="only this pass")
    parser.add_argument("--implementation", choices=list(IMPLEMENTATIONS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.implementation:
        print(json.dumps(measure(arguments.implementation, arguments.sizes[0], arguments.kind == "gradient", arguments.repeats)))
        return
    kinds = [arguments.kind] if arguments.kind else ["forward", "gradient"]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="") as stream:
        table = csv.DictWriter(stream, FIELDS)
        table.writeheader()
        for size in arguments.sizes:
            for kind in kinds:
                for row in rows_of(arguments, size, kind):
                    table.writerow(row)
                    print(*row.values(), sep="\t", flush=True)


if __name__ == "__main__":
    main()
