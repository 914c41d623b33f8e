"""DVNet, the 2-D peer of Attention-Reg: slices as channels (after Sun et al., 2018; layers ours).

Known of it are 2-D convolutions that take the slices of both volumes as input channels, and 5,275,832 parameters (Song et al., MICCAI
2021, table 2). The layers are not published; these are ours and come to 5,276,518 at the published grid, 0.01 % more.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod

import torch
from torch import nn

from nets.rigid_networks import PARAMETERS, PUBLISHED_GRID, check_volumes, draw_weights, halved
from nets.shapes import Grid, checked_grid

WIDTHS, HIDDEN = (64, 128, 256, 512, 512), 288


class DvNet(nn.Module):
    """`(B, 2, z, y, x)` (channel 0 MR, 1 TRUS) to `(B, 6)`: tx, ty, tz in mm, ax, ay, az in degrees.

    The 2 z slices are the channels of an image; five times a 3x3 convolution, batch norm, ReLU and a pooling to half the resolution, then
    288 hidden units and the six numbers. Weights start as those of Attention-Reg. Raises `ValueError` for a grid below its `LEAST_GRIDS`.
    """

    def __init__(self, grid: Grid = PUBLISHED_GRID) -> None:
        super().__init__()
        self.grid = checked_grid(grid, "dvnet")
        slices, *plane = self.grid
        self.layers = nn.Sequential(*(_halving(*channels) for channels in pairwise((2 * slices, *WIDTHS))))
        pixels = prod(halved(n, len(WIDTHS)) for n in plane)
        self.regress = nn.Sequential(nn.Flatten(), nn.Linear(WIDTHS[-1] * pixels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, len(PARAMETERS)))
        draw_weights(self)

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """`(B, 6)`, see `PARAMETERS`; raises `ValueError` for an input that is not `(B, 2, *grid)`."""
        check_volumes(volumes, self.grid)
        return self.regress(self.layers(volumes.flatten(1, 2)))


def _halving(inputs: int, outputs: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1))
