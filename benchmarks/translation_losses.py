"""What the translation model is fitted with beside MONAI's: value and gradient of the similarities, warp, integration; and its speed.

    python benchmarks/translation_losses.py [--what NMI NCC …] [--plane 128] [--volume 64] [--bins 48] [--runs 5] [--threads 2]

"Dense" is what voxelmorph's losses do: a Gaussian weight of every bin for every sample, convolutions with windows of ones. "mattes" is our
mutual information of B-splines, which fits may take in place of Gaussians, against theirs of Gaussians; "NCC prepared" is ours with the
sums of the fixed image made beforehand, as the optimiser loop has them. Runs of A and B alternate, the
ratio is the median of pairwise ratios; peak memory is that of a fresh process each, less what it held before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import compared, report
from torch.nn import functional as F

from metrics.similarity.local_correlation import LocalCorrelation, local_correlation
from nets.fields import exponential, warp
from nets.translation import HierarchicalTranslation
from nets.voxelmorph import VoxelMorph
from pipeline.learned.translation_losses import comparison
from pipeline.threads import keep_freed_memory

SEED, WINDOW = 1, 9
Call = Callable[[], torch.Tensor]
PEERS = {
    "NMI": ("dense", "MONAI"),
    "mattes": ("dense", "MONAI"),
    "NCC": ("dense", "MONAI"),
    "NCC prepared": ("MONAI",),
    "warp": ("MONAI",),
    "integration": ("MONAI",),
}


def images(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Fixed and warped, `(1, 1, [z,] y, x)` in [0, 1], related but not by a line."""
    generator = torch.Generator().manual_seed(SEED)
    fixed, noise = torch.rand(2, 1, 1, *shape, generator=generator)
    return fixed, (1 - fixed**2 + 0.1 * noise).clamp(0, 1)


def field(shape: tuple[int, ...]) -> torch.Tensor:
    """A displacement or velocity `(1, d, [z,] y, x)` of some voxels."""
    return 2 * torch.randn(1, len(shape), *shape, generator=torch.Generator().manual_seed(SEED))


def with_gradient(value: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> Call:
    """Value and gradient of a function, of the mean square where it gives an image."""

    def call() -> torch.Tensor:
        leaf = at.clone().requires_grad_()
        result = value(leaf)
        (result if result.ndim == 0 else result.square().mean()).backward()
        return leaf.grad

    return call


def dense(fixed: torch.Tensor, moved: torch.Tensor, bins: int) -> torch.Tensor:
    """Mutual information with a window over all bins for every sample, sigma half a bin."""
    centres = (torch.arange(bins) + 0.5) / bins

    def windows(values: torch.Tensor) -> torch.Tensor:
        weights = torch.exp(-((values.reshape(-1, 1) - centres) ** 2) * (2 * bins**2))
        return weights / weights.sum(1, keepdim=True)

    joint = windows(fixed).T @ windows(moved) / fixed.numel()
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return -(joint * torch.log(joint / (apart + 1e-7) + 1e-7)).sum()


def box_correlation(fixed: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """Minus the mean squared local correlation, sums over windows by dense convolutions of ones, as voxelmorph has them."""
    dimension, size = fixed.ndim - 2, WINDOW ** (fixed.ndim - 2)
    convolve, ones = (F.conv2d, F.conv3d)[dimension - 2], torch.ones(1, 1, *[WINDOW] * dimension)
    first, second, squares, others, both = (
        convolve(product, ones, padding=WINDOW // 2) for product in (fixed, moved, fixed * fixed, moved * moved, fixed * moved)
    )
    cross = both - first * second / size
    return -(cross * cross / ((squares - first * first / size) * (others - second * second / size) + 1e-5)).mean()


def prepared(what: str, form: str, shape: tuple[int, ...], bins: int) -> Call:
    """The call of one form of what is compared."""
    from monai.losses import GlobalMutualInformationLoss, LocalNormalizedCrossCorrelationLoss
    from monai.networks.blocks import DVF2DDF, Warp

    fixed, moved = images(shape)
    if what in ("NMI", "mattes"):
        gaussian = GlobalMutualInformationLoss(kernel_type="gaussian", num_bins=bins)
        mine = comparison(what.lower(), bins=bins)
        forms = {
            "ours": lambda image: mine(fixed, image),
            "dense": lambda image: dense(fixed, image, bins),
            "MONAI": lambda image: gaussian(image, fixed),
        }
        return with_gradient(forms[form], moved)
    if what.startswith("NCC"):
        theirs = LocalNormalizedCrossCorrelationLoss(spatial_dims=len(shape), kernel_size=WINDOW)
        ready = LocalCorrelation(fixed)
        mine = local_correlation if what == "NCC" else lambda still, image: ready(image)
        forms = {"ours": mine, "dense": box_correlation, "MONAI": lambda still, image: theirs(image, still)}
        return with_gradient(lambda image: forms[form](fixed, image), moved)
    if what == "warp":
        block = Warp(mode="bilinear", padding_mode="border")
        return with_gradient({"ours": lambda u: warp(moved, u), "MONAI": lambda u: block(moved, u.flip(1))}[form], field(shape))
    squarings = DVF2DDF(num_steps=7, mode="bilinear", padding_mode="border")
    return with_gradient({"ours": exponential, "MONAI": lambda v: squarings(v.flip(1)).flip(1)}[form], field(shape))


def model(name: str, shape: tuple[int, ...]) -> Call:
    """Inference of one pair."""
    torch.manual_seed(SEED)
    network = {"VoxelMorph": VoxelMorph, "hierarchical": HierarchicalTranslation}[name](len(shape)).eval()
    pair = torch.cat(images(shape), dim=1)
    return torch.no_grad()(lambda: network(pair))


def main() -> None:
    """Print and keep a row a comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--what", nargs="+", choices=[*PEERS, "inference"], default=[*PEERS, "inference"])
    parser.add_argument("--plane", type=int, default=128)
    parser.add_argument("--volume", type=int, default=64)
    parser.add_argument("--bins", type=int, default=48)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as fits do
    how, rows = {"runs": given.runs, "threads": given.threads}, []
    for shape in ((given.plane,) * 2, (given.volume,) * 3):
        about = {"size": "x".join(map(str, shape)), "threads": given.threads}
        for what, peer in [(what, peer) for what, peers in PEERS.items() for peer in peers if what in given.what]:
            small = (what, peer, (16,) * len(shape), given.bins)
            found = compared(prepared, (what, "ours", shape, given.bins), (what, peer, shape, given.bins), small=small, **how)
            rows.append(about | {"what": f"{what}, value and gradient", "first": "ours", "second": peer} | found)
            print(rows[-1], flush=True)
        if "inference" in given.what:
            both = (("hierarchical", shape), ("VoxelMorph", shape))
            rows.append(about | {"what": "inference of one pair", "first": "hierarchical", "second": "VoxelMorph"} | compared(model, *both, **how))
    report(rows, "translation_losses")


if __name__ == "__main__":
    main()
