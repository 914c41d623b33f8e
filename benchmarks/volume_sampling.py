"""A moving volume's values at mapped points and the pull on these points: ours beside torch's sampling and its derivative.

    python benchmarks/volume_sampling.py [--edges 64 128 192] [--points 200000] [--runs 15]

Points are a lattice through a rotation, as the optimiser loop has them; one thread. Runs of A and B alternate, the ratio is the median of pairwise
ratios; peak memory is that of a fresh process each, less what it held before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import compared, report
from torch.nn import functional as F

from pipeline.optimise.moving import MovingImage
from pipeline.threads import keep_freed_memory
from pipeline.volumes import Geometry, Volume


def prepared(form: str, edge: int, points: int) -> Callable[[], torch.Tensor]:
    """Values and pull, by one of the two."""
    generator, side = torch.Generator().manual_seed(1), round(points ** (1 / 3))
    image = MovingImage.of(Volume(torch.rand(edge, edge, edge, generator=generator).numpy(), Geometry.regular((edge,) * 3, 1.0)))
    axis = torch.linspace(-0.7, 0.7, side)
    turn, _ = torch.linalg.qr(torch.eye(3) + 0.1 * torch.rand(3, 3, generator=generator))
    places = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")[::-1], dim=-1).reshape(-1, 3) @ turn
    change = torch.randn(len(places), generator=generator)

    def ours() -> torch.Tensor:
        _, pull = image.seen(places)
        return pull(change)

    def torchs() -> torch.Tensor:
        grid, samples = places[None, None, None], image.samples[None, None]
        F.grid_sample(samples, grid, padding_mode="border", align_corners=False)
        return torch.ops.aten.grid_sampler_3d_backward(change[None, None, None, None], samples, grid, 0, 1, False, (False, True))[1]

    return {"ours": ours, "torch": torchs}[form]


def main() -> None:
    """Print and keep a row a size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--edges", type=int, nargs="+", default=[64, 128, 192])
    parser.add_argument("--points", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = []
    for edge in given.edges:
        forms = [(form, edge, given.points) for form in ("ours", "torch")]
        about = {"volume": f"{edge}^3", "points": given.points, "first": "ours", "second": "torch"}
        rows.append(about | compared(prepared, *forms, small=("ours", 16, 1000), runs=given.runs))
    report(rows, "volume_sampling")


if __name__ == "__main__":
    main()
