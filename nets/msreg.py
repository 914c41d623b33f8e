"""MSReg (Guo et al., Comput Med Imaging Graph 2020): a 3-D ResNeXt that takes both volumes as channels, the peer of Attention-Reg.

The published 16,106,076 parameters include layers that never run: a fourth stage of three bottlenecks (125,952), and linear layers
1024 to 400 (410,000), 36,864 to 128 (4,718,720) and 128 to 6 (774). They are not built here; 10,850,630 remain.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nets.rigid_networks import PUBLISHED_GRID, check_volumes, draw_weights, halved, six_numbers
from nets.shapes import Grid, checked_grid

CARDINALITY, EXPANSION = 16, 2


class Pointwise(nn.Conv3d):
    """A convolution of kernel 1 without bias as a product of matrices: with one thread PyTorch's own, for small batches, copies every patch."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 1, stride, bias=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """`(B, outputs, z', y', x')` of `(B, inputs, z, y, x)`."""
        z, y, x = self.stride
        return F.linear(maps[:, :, ::z, ::y, ::x].movedim(1, -1), self.weight.flatten(1)).movedim(-1, 1)


class Bottleneck(nn.Module):
    """ResNeXt's block: 1x1x1, 3x3x3 in 16 groups, 1x1x1 to twice `planes` channels, each with batch norm, and a shortcut around them."""

    def __init__(self, inputs: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        inner, outputs = CARDINALITY * (planes // 32), EXPANSION * planes
        self.layers = nn.Sequential(
            Pointwise(inputs, inner),
            nn.BatchNorm3d(inner),
            nn.ReLU(inplace=True),
            nn.Conv3d(inner, inner, 3, stride, padding=1, groups=CARDINALITY, bias=False),
            nn.BatchNorm3d(inner),
            nn.ReLU(inplace=True),
            Pointwise(inner, outputs),
            nn.BatchNorm3d(outputs),
        )
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(Pointwise(inputs, outputs, stride), nn.BatchNorm3d(outputs)) if changes else nn.Identity()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """`(B, 2 planes, z', y', x')` of `(B, inputs, z, y, x)`."""
        return torch.relu_(self.layers(maps) + self.shortcut(maps))


def stage(blocks: int, inputs: int, planes: int, stride: int = 1) -> nn.Sequential:
    """Bottlenecks in a row; the stride is the first one's."""
    return nn.Sequential(Bottleneck(inputs, planes, stride), *(Bottleneck(EXPANSION * planes, planes) for _ in range(blocks - 1)))


class MsReg(nn.Module):
    """`(B, 2, z, y, x)` (channel 0 MR, 1 TRUS) to `(B, 6)`: tx, ty, tz in mm, ax, ay, az in degrees.

    A stem at full resolution, three stages of 3, 4 and 23 bottlenecks, a strided convolution around them, and two convolutions before the
    fully connected layers. Weights start as those of Attention-Reg (ours). Raises `ValueError` for a grid below its `LEAST_GRIDS`.
    """

    def __init__(self, grid: Grid = PUBLISHED_GRID) -> None:
        super().__init__()
        self.grid = checked_grid(grid, "msreg")
        self.stem = nn.Sequential(
            nn.Conv3d(2, 32, 3, padding=1, bias=False),
            nn.BatchNorm3d(32),
            nn.ReLU(inplace=True),
            nn.MaxPool3d(3, stride=1, padding=1),
            nn.Conv3d(32, 64, 3, (1, 2, 2), padding=1, bias=False),
        )
        self.skip = nn.Conv3d(64, 64, 3, 2, padding=1, bias=False)
        self.body = nn.Sequential(stage(3, 64, 64), stage(4, 128, 64), stage(23, 128, 32, stride=2))
        self.join = nn.Sequential(nn.BatchNorm3d(128), nn.Conv3d(128, 128, 3, padding=1), nn.ReLU(inplace=True), nn.Conv3d(128, 16, 5))
        z, y, x = self.grid
        self.regress = six_numbers(16 * (halved(z) - 4) * (halved(y, 2) - 4) * (halved(x, 2) - 4))
        draw_weights(self)

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """`(B, 6)`, see `PARAMETERS`; raises `ValueError` for an input that is not `(B, 2, *grid)`."""
        check_volumes(volumes, self.grid)
        maps = self.stem(volumes)
        return self.regress(self.join(torch.cat([self.skip(maps), self.body(maps)], dim=1)))
