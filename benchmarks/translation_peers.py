"""Our networks of the translation model beside voxelmorph's: an iteration of fitting, and one pair registered.

    python benchmarks/translation_peers.py [--plane 128] [--volume 32] [--runs 5] [--threads 1]

The peer is `VxmDense` of the PyPI package voxelmorph 0.2, the last one with that network, which need not be installed: its files and those it
imports on PYTHONPATH do (`pip install --no-deps --target FOLDER voxelmorph==0.2 neurite==0.2 pystrum six tqdm scikit-image lazy_loader imageio`).
Both networks have the same layers, parameters and field at half size; an iteration is forward, loss, backward and a step of Adam. The peer's loss
is written here after its own, whose NCC is bound to CUDA and whose smoothness to three dimensions; its mutual information is the dense form.
Warp and integration stand beside MONAI's in `translation_losses.py`. Runs of A and B alternate, the ratio is the median of pairwise ratios.
"""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Callable

import torch
from common import compared, report
from torch import nn
from translation_losses import box_correlation, dense, images

from nets.translation import HierarchicalTranslation
from nets.voxelmorph import VoxelMorph
from pipeline.learned.settings.translation import LossWeights
from pipeline.learned.translation_losses import coarse_loss, comparison
from pipeline.threads import keep_freed_memory

SEED, BINS = 1, 48
Call = Callable[[], object]
Loss = Callable[[torch.Tensor], torch.Tensor]


def voxelmorph_network(shape: tuple[int, ...], *, bidirectional: bool) -> nn.Module:
    """voxelmorph's own network. Raises `SystemExit` with the remedy where the package is not there."""
    os.environ |= {"VXM_BACKEND": "pytorch", "NEURITE_BACKEND": "pytorch"}
    if not hasattr(inspect, "getargspec"):  # which 0.2 asks for, and Python 3.11 has no more
        inspect.getargspec = lambda function: inspect.getfullargspec(function)[:4]
    try:
        from voxelmorph.torch.networks import VxmDense
    except ImportError as error:
        raise SystemExit(f"voxelmorph 0.2: {error}; expected it and what it imports on PYTHONPATH: see the head of this file") from error
    return VxmDense(shape, int_steps=7, int_downsize=2, bidir=bidirectional)


def squared_differences(field: torch.Tensor) -> torch.Tensor:
    """Mean squared forward difference, averaged over axes."""
    return sum(field.diff(dim=axis).square().mean() for axis in range(2, field.ndim)) / (field.ndim - 2)


def ours(shape: tuple[int, ...], similarity: str) -> tuple[nn.Module, Loss]:
    """Our coarse part and its loss, both directions."""
    network, weights = HierarchicalTranslation(len(shape), parts=("coarse",)), LossWeights()
    compare = comparison(similarity, bins=BINS)
    if len(shape) == 2:
        network = network.to(memory_format=torch.channels_last)  # as fits do
    return network, lambda pair: coarse_loss(pair, network(pair), compare, weights, bidirectional=True)


def theirs(shape: tuple[int, ...], similarity: str) -> tuple[nn.Module, Loss]:
    """voxelmorph's network and loss, both directions."""
    network, weights = voxelmorph_network(shape, bidirectional=True), LossWeights()
    compare = box_correlation if similarity == "ncc" else lambda fixed, moved: dense(fixed, moved, BINS)

    def loss(pair: torch.Tensor) -> torch.Tensor:
        fixed, moving = pair.split(1, dim=1)
        moved, back, flow = network(moving, fixed)
        return weights.coarse_smooth * squared_differences(flow) + weights.coarse_similarity * (compare(fixed, moved) + compare(moving, back))

    return network, loss


def iteration(who: str, similarity: str, shape: tuple[int, ...]) -> Call:
    """One iteration of fitting, batch 1."""
    torch.manual_seed(SEED)
    network, loss = {"ours": ours, "voxelmorph": theirs}[who](shape, similarity)
    optimiser, pair = torch.optim.Adam(network.parameters(), lr=1e-4), torch.cat(images(shape), dim=1)
    if len(shape) == 2 and who == "ours":
        pair = pair.contiguous(memory_format=torch.channels_last)

    def call() -> None:
        optimiser.zero_grad()
        loss(pair).backward()
        optimiser.step()

    return call


def inference(who: str, shape: tuple[int, ...]) -> Call:
    """Displacement and warped image of one pair: voxelmorph's network, our form of it, and all three parts of the hierarchical model."""
    from nets.fields import warp

    torch.manual_seed(SEED)
    fixed, moving = images(shape)
    pair = torch.cat([fixed, moving], dim=1)
    if who == "voxelmorph":
        peer = voxelmorph_network(shape, bidirectional=False).eval()
        return torch.no_grad()(lambda: peer(moving, fixed, registration=True))
    if who == "VoxelMorph":
        own = VoxelMorph(len(shape)).eval()
        return torch.no_grad()(lambda: warp(moving, own(pair)))
    network = HierarchicalTranslation(len(shape)).eval()
    return torch.no_grad()(lambda: warp(moving, network(pair).displacement_vx))


def main() -> None:
    """Print and keep a row a comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plane", type=int, default=128)
    parser.add_argument("--volume", type=int, default=32)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as fits do
    how, rows = {"runs": given.runs, "threads": given.threads}, []
    for shape in ((given.plane,) * 2, (given.volume,) * 3):
        about = {"size": "x".join(map(str, shape)), "threads": given.threads}
        for similarity in ("ncc", "nmi"):
            found = compared(iteration, ("ours", similarity, shape), ("voxelmorph", similarity, shape), **how)
            per_second = {f"{which}_per_second": round(1000 / found[f"{which}_ms"], 2) for which in ("first", "second")}
            rows.append(about | {"what": f"iteration of G1, {similarity}", "first": "ours", "second": "voxelmorph"} | found | per_second)
            print(rows[-1], flush=True)
        for who in ("VoxelMorph", "hierarchical"):
            found = compared(inference, (who, shape), ("voxelmorph", shape), **how)
            rows.append(about | {"what": "inference of one pair", "first": who, "second": "voxelmorph"} | found)
            print(rows[-1], flush=True)
    report(rows, "translation_peers")


if __name__ == "__main__":
    main()
