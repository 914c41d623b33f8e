"""MIND-SSC descriptors: ours against the usual formulation with shift kernels and 3-D pooling, time, peak memory and equality in one run.

    python benchmarks/mind_descriptors.py --sizes 64 96 128 160 --threads 1

The two implementations take turns; each one's peak memory is measured in a process of its own.
The usual formulation is written out here from its description: two dilated convolutions with one-hot kernels that fetch the two
neighbours of every channel, a replication pad of the whole stack, and average pooling over the cube.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from common import interleaved, median_ratio, report

from metrics.similarity.mind import mind_ssc, ssc_pairs


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


def peak_growth_mib(implementation: str, size: int, gradient: bool) -> float:
    """How far one computation raises this process's peak memory, the image left out."""
    image = image_of(size)
    compute(implementation, image[..., :16, :16, :16].contiguous(), gradient)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is held now
    before = _status_mib("VmHWM")
    compute(implementation, image, gradient)
    return _status_mib("VmHWM") - before


def _status_mib(key: str) -> float:
    found = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(found[0]) / 1024


def peak_in_a_process(arguments: argparse.Namespace, implementation: str, size: int, gradient: bool) -> float:
    """`peak_growth_mib` in a fresh interpreter."""
    command = [sys.executable, __file__, "--sizes", str(size), "--threads", str(arguments.threads), "--peak-of", implementation]
    return float(subprocess.run([*command, *["--gradient"] * gradient], check=True, capture_output=True, text=True).stdout)


def row_of(arguments: argparse.Namespace, size: int, gradient: bool) -> dict[str, object]:
    """Both implementations at one size; ratios are usual over ours."""
    image = image_of(size)
    usual, ours = interleaved(*(partial(compute, name, image, gradient) for name in ("usual", "ours")), runs=arguments.runs)
    peak = {name: peak_in_a_process(arguments, name, size, gradient) for name in IMPLEMENTATIONS}
    return {
        "size": f"{size}^3",
        "pass": "forward + backward" if gradient else "forward",
        "threads": arguments.threads,
        "ours_seconds": round(median(ours), 4),
        "usual_seconds": round(median(usual), 4),
        "time_ratio": round(median_ratio(usual, ours), 2),
        "ours_peak_mib": round(peak["ours"]),
        "usual_peak_mib": round(peak["usual"]),
        "memory_ratio": round(peak["usual"] / peak["ours"], 2),
        "largest_difference": float((compute("ours", image, False) - compute("usual", image, False)).abs().max()),
    }


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128, 160])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--gradient", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peak-of", choices=list(IMPLEMENTATIONS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        print(peak_growth_mib(arguments.peak_of, arguments.sizes[0], arguments.gradient))
        return
    report([row_of(arguments, size, gradient) for size in arguments.sizes for gradient in (False, True)], "mind_descriptors")


if __name__ == "__main__":
    main()
