"""Attention-Reg and Feature-Reg (Song et al., MICCAI 2021): the rigid transform between an MR and a TRUS volume, in one step."""

from __future__ import annotations

import torch
from torch import nn

from nets.cross_attention import CHANNELS, CrossAttention
from nets.rigid_networks import PUBLISHED_GRID, check_volumes, draw_weights, halved, six_numbers
from nets.shapes import Grid, checked_grid

MAP_STRIDES: Grid = (2, 4, 4)
"""Voxels of the input along (z, y, x) from one place of the maps to the next; place (0, 0, 0) is centred on voxel (0, 0, 0)."""

Maps = tuple[torch.Tensor, torch.Tensor]


class AttentionReg(nn.Module):
    """`(B, 2, z, y, x)` (channel 0 MR or its label map, fixed; channel 1 TRUS, moving) to `(B, 6)`: tx, ty, tz in mm, ax, ay, az in degrees.

    1,248,777 parameters at the published grid (32, 96, 96); with `attention=False` the paper's Feature-Reg, which joins the extractors'
    maps as they are, 1,244,393. Another grid changes the first fully connected layer only, and with it what weights fit.
    Convolutions start Kaiming normal over fan-out, all else as PyTorch has it, batch norms with scale 1; those of the attention blocks with
    `attention_scale`, of which 0 makes a new network behave as Feature-Reg: the authors' block begins so, but their loop over all layers
    then sets it to 1. Raises `ValueError` for a grid below its `LEAST_GRIDS`.

    Parts: `extractors` (`mr`, `us`; their weights can be kept and loaded alone), `attention` (`mr` has the MR map as primary; empty in
    Feature-Reg), `fuse` (both maps to one channel) and `regress` (the fully connected layers).
    """

    def __init__(self, grid: Grid = PUBLISHED_GRID, *, attention: bool = True, attention_scale: float = 1.0) -> None:
        super().__init__()
        self.grid = checked_grid(grid, "attention-reg")
        self.extractors = nn.ModuleDict({"mr": _extractor(), "us": _extractor()})
        self.attention = nn.ModuleDict({"mr": CrossAttention(), "us": CrossAttention()} if attention else {})
        self.fuse = nn.Sequential(
            nn.BatchNorm3d(2 * CHANNELS),
            nn.Conv3d(2 * CHANNELS, 16, 1),
            nn.ReLU(),
            nn.Conv3d(16, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv3d(4, 1, 3, padding=1),
            nn.BatchNorm3d(1),
        )
        tokens_z, tokens_y, tokens_x = self.map_grid
        self.regress = six_numbers(tokens_z * tokens_y * tokens_x)
        draw_weights(self)
        for block in self.attention.values():
            nn.init.constant_(block.back[-1].weight, attention_scale)

    @property
    def map_grid(self) -> Grid:
        """(z, y, x) of the maps, (16, 24, 24) at the published grid: place (i, j, k) is centred on voxel (2 i, 4 j, 4 k) of the input."""
        z, y, x = self.grid
        return halved(z), halved(y, 2), halved(x, 2)

    def features(self, volumes: torch.Tensor) -> Maps:
        """What the extractors make of MR and of TRUS, before any attention: two `(B, 32, *map_grid)` maps.

        Raises `ValueError` for an input that is not `(B, 2, *grid)`.
        """
        check_volumes(volumes, self.grid)
        return self.extractors["mr"](volumes[:, :1]), self.extractors["us"](volumes[:, 1:])

    def forward_with_maps(self, volumes: torch.Tensor) -> tuple[torch.Tensor, Maps]:
        """The six numbers, and the maps (MR primary, TRUS primary) that left the attention blocks, to be differentiated for Grad-CAM.

        The maps are `(B, 32, *map_grid)`, before the ReLU; those of Feature-Reg are the extractors'. A forward hook on
        `attention["mr"]` or `attention["us"]` sees the same. Raises `ValueError` as `features`.
        """
        mr, us = self.features(volumes)
        # both blocks read the maps from before attention
        maps = (self.attention["mr"](mr, us), self.attention["us"](us, mr)) if self.attention else (mr, us)
        return self.regress(self.fuse(torch.relu(torch.cat(maps, dim=1)))), maps

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """`(B, 6)`, see `PARAMETERS`; raises `ValueError` as `features`."""
        return self.forward_with_maps(volumes)[0]


def _extractor() -> nn.Sequential:
    """One modality's convolutions: 1 to 32 channels, resolution to 1/2 along z and 1/4 along y and x.

    Largest value and ReLU commute; in the authors' order the ReLU would run over eight and four times as many voxels.
    """
    return nn.Sequential(
        nn.Conv3d(1, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm3d(CHANNELS),
        nn.MaxPool3d(3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm3d(CHANNELS),
        nn.MaxPool3d(3, stride=(1, 2, 2), padding=1),
        nn.ReLU(inplace=True),
    )
