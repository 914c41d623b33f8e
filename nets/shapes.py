"""What the networks may look like, as far as settings say it: nothing here loads torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Layout:
    """Kernel edge, stride and output channels of each convolution, in order; no padding anywhere."""

    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    channels: tuple[int, ...]

    @property
    def patch_vx(self) -> int:
        """Edge of the receptive field in voxels."""
        return 1 + sum((kernel - 1) * prod(self.strides[:layer]) for layer, kernel in enumerate(self.kernels))

    @property
    def stride_vx(self) -> int:
        """Distance in voxels between the patches of neighbouring outputs."""
        return prod(self.strides)


CONFIGURATIONS: dict[str, Layout] = {
    "B": Layout((3, 3, 3, 3, 1), (1, 2, 2, 1, 1), (64, 96, 192, 256, 1)),
    "B2": Layout((3, 3, 3, 3, 1), (1, 2, 2, 1, 1), (32, 64, 128, 512, 1)),
    "A": Layout((5, 3, 3, 1, 1), (2, 2, 1, 1, 1), (128, 128, 384, 512, 1)),
    "C": Layout((3, 3, 3, 1, 3), (1, 2, 2, 1, 1), (128, 128, 384, 512, 1)),
    "slim": Layout((3, 3, 3, 3, 1), (1, 2, 2, 1, 1), (16, 32, 64, 128, 1)),
    "tiny": Layout((3, 3, 3, 3, 1), (1, 2, 2, 1, 1), (8, 16, 32, 64, 1)),
}
"""The paper gives 5 layers, 2 M parameters, patch 17 and stride 4, not widths and kernels: those are ours. B, B2, A and C have the
published size; "slim" and "tiny" are B with fewer channels, for machines without a GPU."""


Grid = tuple[int, int, int]

LEAST_GRIDS: dict[str, Grid] = {"attention-reg": (4, 8, 8), "feature-reg": (4, 8, 8), "msreg": (9, 17, 17), "dvnet": (1, 17, 17)}
"""The networks, and voxels along (z, y, x) of the smallest input of each (ours): it leaves two tokens or pixels along an axis, so that batch
norm has something to average over in a batch of one, and MSReg's last convolution, whose kernel of 5 has no padding, one voxel."""


def checked_grid(grid: Grid, network: str) -> Grid:
    """The grid as integers; raises `ValueError` unless it has three numbers (z, y, x), none below the network's `LEAST_GRIDS`."""
    least = LEAST_GRIDS[network]
    if len(grid) != 3 or any(given < needed for given, needed in zip(grid, least, strict=True)):
        raise ValueError(f"grid {tuple(grid)}; {network} needs (z, y, x) voxels, at least {least}: resample the volumes to a finer grid")
    return tuple(int(n) for n in grid)


UNET_WIDTHS = (16, 32, 64)
"""Features of the three contracting stages (ours: the paper's figure gives none)."""
CELL_CHANNELS = 4
"""Features within each attention cell (ours; the paper says only that they are the same in every cell)."""
