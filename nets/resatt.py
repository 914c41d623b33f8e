"""The residual self-attention cell (ReSAtt) of convolutive attention (Parbs, Koch and Mertins): places of a 2-D map look at patches of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

PATCH_VX = 5
"""Edge of a patch, the paper's k."""
STEP_VX = 3
"""Distance of neighbouring patches, the paper's u."""


class ResidualAttention(nn.Module):
    """`(B, c, y, x)` to the same shape: the input plus what `convolutive_attention` makes of it (paper, sec. III-B, Fig. 3).

    Two coordinate channels from -1 to 1 are appended, three `cbr2` cells make keys, queries and values of `channels` features, and a
    convolution of kernel 1 brings the attention's output back to c. That one starts at zero, so that the cell starts as the plain skip
    connection (ours: sums of 25 overlapping patches would drown the input for many epochs).

    `scale` multiplies the scores and `output_scale` the attention's output; the paper has neither, that is 1. `1 / sqrt(25 channels)` and
    1/25, the mean of the overlapping patches, are natural (ours).
    """

    def __init__(self, inputs: int, channels: int = 16, *, scale: float = 1.0, output_scale: float = 1.0) -> None:
        super().__init__()
        self.key, self.query, self.value = (cbr2(inputs + 2, channels) for _ in range(3))
        self.adapt = nn.Conv2d(channels, inputs, 1)
        nn.init.zeros_(self.adapt.weight)
        nn.init.zeros_(self.adapt.bias)
        self.scale, self.output_scale = scale, output_scale

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`(B, c, y, x)` of any size."""
        placed = torch.cat([features, coordinates(features)], dim=1)
        seen = convolutive_attention(self.key(placed), self.query(placed), self.value(placed), scale=self.scale)
        return features + self.adapt(self.output_scale * seen)


def convolutive_attention(
    key: torch.Tensor, query: torch.Tensor, value: torch.Tensor, *, patch: int = PATCH_VX, step: int = STEP_VX, scale: float = 1.0
) -> torch.Tensor:
    """Convolutive attention of maps `(B, C, y, x)`, eq. 5-9 of the paper, `(B, C, y, x)`.

    Patches of `query` and `value` are centred on every `step`-th voxel; outside the map are zeros. A place's score for a patch is
    the correlation of `key` around it with the patch of `query`, times `scale`; a softmax over the patches (our reading: the paper
    does not name the axis) weights the patches of `value`, which are laid down around the place and summed where they overlap.

    With the surroundings of a place as one token of `patch^2 C` numbers this is dot-product attention of all places to all patches:
    the whole batch is one fused product, and the scores of all places for all patches need not be held at once.
    Raises `ValueError` for an even patch and shapes that differ.
    """
    if patch % 2 == 0 or step < 1:
        raise ValueError(f"patch {patch}, step {step}; expected an odd patch and a step of 1 or more")
    if not key.shape == query.shape == value.shape or key.ndim != 4:
        raise ValueError(f"key, query and value {[tuple(t.shape) for t in (key, query, value)]}; expected one shape (batch, channels, y, x)")
    size, padding = key.shape[2:], patch // 2
    places = _tokens(key, patch, 1)
    patches, contents = (_tokens(tensor, patch, step) for tensor in (query, value))
    laid = F.scaled_dot_product_attention(places, patches, contents, scale=scale)
    return F.fold(laid[:, 0].transpose(1, 2), size, patch, padding=padding)


def coordinates(like: torch.Tensor) -> torch.Tensor:
    """The normalised Cartesian grid of a map `(B, c, y, x)`: channels x and y from -1 to 1, `(B, 2, y, x)`."""
    y, x = (torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) for n in like.shape[2:])
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1]).expand(len(like), -1, -1, -1)


def cbr2(inputs: int, outputs: int) -> nn.Sequential:
    """Twice convolution of kernel 3, batch norm and ReLU: the paper's CBR^2 cell. The batch norms shift, so the convolutions do not."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _tokens(maps: torch.Tensor, patch: int, step: int) -> torch.Tensor:
    """Surroundings of every `step`-th voxel as one head of tokens, `(B, 1, n, patch^2 C)`."""
    return F.unfold(maps, patch, padding=patch // 2, stride=step).transpose(1, 2).contiguous()[:, None]
