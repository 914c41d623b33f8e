"""What the networks of rigid registration share: their input and output, the layers that end in six numbers, how weights are drawn."""

from __future__ import annotations

from math import ceil

import torch
from torch import nn

from nets.shapes import LEAST_GRIDS, Grid

PARAMETERS = ("tx_mm", "ty_mm", "tz_mm", "ax_deg", "ay_deg", "az_deg")
"""What the outputs are, in order: translations, then the angles of `R = Rz(az) Ry(ay) Rx(ax)`."""

PUBLISHED_GRID: Grid = (32, 96, 96)
"""Voxels along (z, y, x) of the papers' input."""


def build(name: str, grid: Grid = PUBLISHED_GRID, *, attention_scale: float = 1.0) -> nn.Module:
    """The network called `name`, one of `LEAST_GRIDS`, for a grid (z, y, x), with fresh weights from torch's generator.

    `attention_scale` is AttentionReg's; others have no use for it. Raises `ValueError` for another name and a grid that is too small for the network.
    """
    from nets.attention_reg import AttentionReg
    from nets.dvnet import DvNet
    from nets.msreg import MsReg

    if name not in LEAST_GRIDS:
        raise ValueError(f"no network {name!r}; valid: {', '.join(LEAST_GRIDS)}")
    if name in ("attention-reg", "feature-reg"):
        return AttentionReg(grid, attention=name == "attention-reg", attention_scale=attention_scale)
    return (MsReg if name == "msreg" else DvNet)(grid)


def check_volumes(volumes: torch.Tensor, grid: Grid) -> None:
    """Raise `ValueError` for an input other than `(B, 2, z, y, x)` on the grid that the network was built for."""
    if volumes.ndim != 5 or volumes.shape[1:] != (2, *grid):
        wanted = f"(B, 2, {', '.join(map(str, grid))})"
        raise ValueError(f"input {tuple(volumes.shape)}; weights for grid {grid} need {wanted}, channel 0 MR and 1 TRUS: resample to that grid")


def halved(length: int, times: int = 1) -> int:
    """Length after layers of stride 2 with kernel 3 and padding 1, which round up."""
    return ceil(length / 2**times)


def six_numbers(inputs: int) -> nn.Sequential:
    """Flatten, ReLU and the fully connected layers of 128, 32 and 6 in which Attention-Reg and MSReg end; the last is linear."""
    wide, narrow = nn.Linear(inputs, 128), nn.Linear(128, 32)
    return nn.Sequential(nn.Flatten(), nn.ReLU(), wide, nn.ReLU(), narrow, nn.ReLU(), nn.Linear(32, len(PARAMETERS)))


def draw_weights(network: nn.Module) -> None:
    """Convolution weights Kaiming normal over the outputs (fan-out); all else keeps PyTorch's start, batch norms scale 1 and shift 0."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
