"""The cross-modal attention block of Attention-Reg (Song et al., MICCAI 2021, sec. 2.1): every place of one map looks at all of another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

CHANNELS, INNER_CHANNELS = 32, 16
QUERY_GROUPS = 16
"""Into how many groups the queries of a batch are cut on a CPU at most (ours); whatever the number of threads, so that results repeat."""


class CrossAttention(nn.Module):
    """`Z = BN(conv(Y)) + P` with `Y_i = sum_j softmax_j(q_i . k_j) v_j`: query from the cross modality, key and value from the primary.

    P (primary) and C (cross) are `(B, 32, z, y, x)` maps on one grid, and so is Z. All convolutions are 1x1x1 with bias, 32 to 16 and back
    to 32; there is no factor 1/sqrt(16) in the softmax. The paper writes `Z = Y + P`; the convolution back and its batch norm, with which
    the authors' count of parameters is met (2,192), stand only in their code. A new block is not the identity: the batch norm's scale is 1; with 0 it
    would be.

    The table of tokens x tokens weights (340 MB a volume at 9,216 tokens) is never held, neither forward nor backward.
    """

    def __init__(self, channels: int = CHANNELS, inner_channels: int = INNER_CHANNELS) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv3d(channels, inner_channels, 1) for _ in range(3))
        self.back = nn.Sequential(nn.Conv3d(inner_channels, channels, 1), nn.BatchNorm3d(channels))

    def forward(self, primary: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
        """Z, `(B, 32, z, y, x)`; raises `ValueError` for maps of different shapes."""
        _check_maps(primary, cross)
        seen = self.attend(_tokens(self.query(cross)), _tokens(self.key(primary)), _tokens(self.value(primary)))
        return self.back(seen.transpose(1, 2).unflatten(2, primary.shape[2:])) + primary

    @staticmethod
    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """`softmax(query key^T) value` of `(B, tokens, channels)`, row by row of the softmax, by PyTorch's fused kernels.

        Rows of a softmax do not know of each other, so queries may be handed over in groups, as if they were heads. PyTorch's CPU kernel
        spreads its backward pass over batch and heads only; a single volume with one head would leave it to multi-threaded products of
        tiny blocks, which take twice as long and more.
        """
        batch, tokens, channels = query.shape
        most = QUERY_GROUPS // batch if query.device.type == "cpu" else 1
        groups = next((g for g in range(most, 1, -1) if tokens % g == 0), 1)
        grouped = query.reshape(batch, groups, -1, channels)
        key, value = (rows[:, None].expand(-1, groups, -1, -1) for rows in (key, value))
        return F.scaled_dot_product_attention(grouped, key, value, scale=1.0).reshape(batch, tokens, channels)

    def attention_from(self, primary: torch.Tensor, cross: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Where places of C look in P: the softmax's rows of the queries at `positions`, `(B, n, tokens)`, each summing to 1.

        `positions` are n integer (z, y, x) places of the maps, `(n, 3)`. Only those rows are computed; `.unflatten(2, map_shape)` makes
        volumes of them. Raises `ValueError` for maps of different shapes and for a position outside.
        """
        _check_maps(primary, cross)
        places, shape = torch.as_tensor(positions, device=cross.device), cross.shape[2:]
        if places.ndim != 2 or places.shape[1] != 3 or (places < 0).any() or (places >= places.new_tensor(shape)).any():
            raise ValueError(f"positions {places.tolist()}; expected rows (z, y, x) inside the map of {tuple(shape)}")
        z, y, x = places.unbind(1)
        rows = self.query(cross)[:, :, z, y, x].transpose(1, 2)
        return torch.softmax(rows @ self.key(primary).flatten(2), dim=2)


def _check_maps(primary: torch.Tensor, cross: torch.Tensor) -> None:
    if primary.shape != cross.shape or primary.ndim != 5:
        raise ValueError(f"primary map {tuple(primary.shape)}, cross map {tuple(cross.shape)}; expected (B, C, z, y, x), both on one grid")


def _tokens(maps: torch.Tensor) -> torch.Tensor:
    """`(B, tokens, channels)`, channels side by side in memory: a mere view would make PyTorch take the explicit form, without a word."""
    return maps.flatten(2).transpose(1, 2).contiguous()
