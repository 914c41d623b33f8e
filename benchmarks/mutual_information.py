"""Mattes mutual information, value and gradient of a million samples at 75 bins, beside MONAI's global loss and a dense Parzen one.

    python benchmarks/mutual_information.py [--samples 1000000] [--bins 75]

The dense one is how voxelmorph's loss works: a Gaussian weight of every bin for every sample. Runs of A and B alternate, the ratio is the
median of pairwise ratios; peak memory is that of a fresh process each, less that of the same process without the loss.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import interleaved, median_ratio, peak_mib, report

SEED = 1


def images(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fixed and warped samples that depend on each other, `(1, 1, n)`."""
    torch.manual_seed(SEED)
    fixed = torch.rand(samples)
    return fixed.reshape(1, 1, -1), (0.8 * (1 - fixed) + 0.2 * torch.rand(samples)).reshape(1, 1, -1)


def ours(samples: int, bins: int) -> Callable[[], torch.Tensor]:
    """Prepared once for the fixed samples, as the loop does."""
    from metrics.similarity.mutual_information import MattesMutualInformation

    fixed, warped = images(samples)
    metric = MattesMutualInformation(fixed.reshape(-1), bins=bins, moving_range=(0.0, 1.0))
    return _with_gradient(metric, warped.reshape(-1))


def monai(samples: int, bins: int) -> Callable[[], torch.Tensor]:
    """MONAI's GlobalMutualInformationLoss, cubic B-spline windows."""
    from monai.losses import GlobalMutualInformationLoss

    fixed, warped = images(samples)
    loss = GlobalMutualInformationLoss(kernel_type="b-spline", num_bins=bins)
    return _with_gradient(lambda moved: loss(moved[..., None], fixed[..., None]), warped)


def dense_parzen(samples: int, bins: int) -> Callable[[], torch.Tensor]:
    """A Gaussian window over all bins for every sample, sigma half a bin."""
    fixed, warped = images(samples)
    centres = torch.linspace(0, 1, bins)

    def windows(values: torch.Tensor) -> torch.Tensor:
        weights = torch.exp(-((values.reshape(-1, 1) - centres) ** 2) * (2 * (bins - 1) ** 2))
        return weights / weights.sum(1, keepdim=True)

    def loss(moved: torch.Tensor) -> torch.Tensor:
        joint = windows(fixed).T @ windows(moved) / samples
        apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
        return -(joint * torch.log(joint / (apart + 1e-7) + 1e-7)).sum()

    return _with_gradient(loss, warped)


def _with_gradient(loss: Callable[[torch.Tensor], torch.Tensor], warped: torch.Tensor) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        moved = warped.detach().requires_grad_()
        loss(moved).backward()
        return moved.grad

    return call


PEERS = {"monai": monai, "dense-parzen": dense_parzen}


def prepared(name: str, samples: int, bins: int) -> Callable[[], torch.Tensor]:
    """Ours or a peer's call."""
    return {"ours": ours, **PEERS}[name](samples, bins)


def main() -> None:
    """Print and keep times, ratios and memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--bins", type=int, default=75)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows, own_mib = [], peak_mib(prepared, "ours", given.samples, given.bins)
    for name, peer in PEERS.items():
        mine, others = interleaved(ours(given.samples, given.bins), peer(given.samples, given.bins), runs=given.runs)
        mib = peak_mib(prepared, name, given.samples, given.bins)
        row = {"peer": name, "ours_ms": 1000 * min(mine), "peer_ms": 1000 * min(others), "times_faster": median_ratio(others, mine)}
        rows.append({**row, "ours_mib": own_mib, "peer_mib": mib, "share_of_memory": own_mib / mib})
    report(rows, "mutual_information")


if __name__ == "__main__":
    main()
