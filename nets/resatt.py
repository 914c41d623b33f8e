"""The residual self-attention cell (ReSAtt) of convolutive attention (Parbs, Koch and Mertins): places of a 2-D map look at patches of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.amp import custom_bwd, custom_fwd

from nets.shapes import CELL_CHANNELS

PATCH_VX = 5
"""Edge of a patch, the paper's k."""
STEP_VX = 3
"""Distance of neighbouring patches, the paper's u."""
CHUNK_SCORES = 2**21
"""Scores that are in work at a time on a CPU, all items together, but at least those of one row: 8 MiB (2 MiB took longer at 112 x 112)."""

Tokens = tuple[torch.Tensor, torch.Tensor]
"""Of the columns that two neighbouring patches share and of those that a patch has for itself."""


class ResidualAttention(nn.Module):
    """`(B, c, y, x)` to the same shape: the input plus what `convolutive_attention` makes of it (paper, sec. III-B, Fig. 3).

    Two coordinate channels from -1 to 1 are appended, three `cbr2` cells make keys, queries and values of `channels` features, and a
    convolution of kernel 1 brings the attention's output back to c. That one starts at zero, so that the cell starts as the plain skip
    connection (ours: sums of 25 overlapping patches would drown the input for many epochs).

    `scale` multiplies the scores and `output_scale` the attention's output; the paper has neither, that is 1. `1 / sqrt(25 channels)` and
    1/25, the mean of the overlapping patches, are natural (ours).
    """

    def __init__(self, inputs: int, channels: int = CELL_CHANNELS, *, scale: float = 1.0, output_scale: float = 1.0) -> None:
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
    on a GPU the whole batch is one fused product. On a CPU `_SharedColumns` gives the same with 0.6 of the multiplications, if patches
    overlap and only with their neighbours. It holds the probabilities for the way back, and twice differentiable it is not.
    Raises `ValueError` for an even patch and shapes that differ.
    """
    if patch % 2 == 0 or step < 1:
        raise ValueError(f"patch {patch}, step {step}; expected an odd patch and a step of 1 or more")
    if not key.shape == query.shape == value.shape or key.ndim != 4:
        raise ValueError(f"key, query and value {[tuple(t.shape) for t in (key, query, value)]}; expected one shape (batch, channels, y, x)")
    if not key.is_cuda and step < patch < 2 * step:
        return _SharedColumns.apply(key, scale * query, value, _Columns(patch, step, *key.shape[2:]))
    places = _tokens(key, patch, 1)
    patches, contents = (_tokens(tensor, patch, step) for tensor in (query, value))
    laid = F.scaled_dot_product_attention(places, patches, contents, scale=scale)
    return F.fold(laid[:, 0].transpose(1, 2), key.shape[2:], patch, padding=patch // 2)


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


class _SharedColumns(torch.autograd.Function):
    """`convolutive_attention` by plain products, chunk by chunk of all items' places."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, key: torch.Tensor, query: torch.Tensor, value: torch.Tensor, columns: _Columns) -> torch.Tensor:
        """Maps `(B, C, y, x)`, `query` times the scale. Probabilities are kept where a gradient is wanted."""
        patches, contents = columns.patches(query), columns.patches(value)
        laid, kept = columns.blank(key), []
        for rows, places in columns.chunks(key):
            weights = columns.scores(places, patches).softmax(-1)
            columns.lay(laid[:, :, rows], _weighted(contents, columns.spread(weights)))
            kept += [weights] if any(ctx.needs_input_grad) else []
        ctx.columns = columns
        ctx.save_for_backward(key, query, value, *kept)
        return columns.cropped(laid)

    @staticmethod
    @custom_bwd(device_type="cpu")
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Laying down and scoring are each other's transpose, so that the same steps lead back."""
        key, query, value, *kept = ctx.saved_tensors
        columns = ctx.columns
        patches, contents = columns.patches(query), columns.patches(value)
        to_key = columns.blank(key)
        to_patches, to_contents = ([torch.zeros_like(t) for t in tokens] for tokens in (patches, contents))
        for (rows, places), (_, wanted), weights in zip(columns.chunks(key), columns.chunks(gradient), kept, strict=True):
            slopes = columns.scores(wanted, contents)
            slopes.sub_((slopes * weights).sum(-1, keepdim=True)).mul_(weights)  # back through the softmax
            _gather(to_contents, wanted, columns.spread(weights))
            spread = columns.spread(slopes)
            _gather(to_patches, places, spread)
            columns.lay(to_key[:, :, rows], _weighted(patches, spread))
        return columns.cropped(to_key), columns.laid_at_patches(query, to_patches), columns.laid_at_patches(value, to_contents), None


@dataclass(frozen=True)
class _Columns:
    """Patches cut into columns of voxels, for which a product of places and patches serves two patches.

    The last `patch - step` columns of a patch are the first of its right neighbour, and what they give at a place is what they give, as first
    columns, at the place `step` voxels to the right. So those are multiplied once, on a grid that is a patch and `step` places wider,
    and added to themselves shifted by both. Patches are in order of columns, so that a shift is one run of memory.
    """

    patch: int
    step: int
    y: int
    x: int

    @property
    def cuts(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """First column and number of columns, from a patch's left edge, of what is shared and of what is its own."""
        shared = self.patch - self.step
        return (0, shared), (shared, self.patch - 2 * shared)

    @property
    def column(self) -> int:
        """Patches in a column of patches."""
        return -(-self.y // self.step)

    def padded(self, maps: torch.Tensor) -> torch.Tensor:
        """With half a patch of zeros on all sides."""
        return F.pad(maps, (self.patch // 2,) * 4)

    def tokens(self, padded: torch.Tensor, stride: int) -> Tokens:
        """Both cuts around every `stride`-th voxel of `padded` maps, `(B, patch columns C, y', x')`; x' of the first is longer."""
        # not F.unfold, which copies number by number
        seen = (padded[..., a : padded.shape[3] - a].unfold(2, self.patch, stride).unfold(3, n, stride) for a, n in self.cuts)
        shared, own = (view.permute(0, 1, 4, 5, 2, 3).flatten(1, 3) for view in seen)
        return shared, own

    def patches(self, maps: torch.Tensor) -> Tokens:
        """Of all patches, `(B, d, P + column)` and `(B, d', P)`."""
        shared, own = (tokens.mT.flatten(2) for tokens in self.tokens(self.padded(maps), self.step))
        return shared, own

    def chunks(self, maps: torch.Tensor) -> Iterator[tuple[slice, Tokens]]:
        """Of all places, some rows of them at a time, `(B, d, rows (x + step))` and `(B, d', rows x)`, with the rows of `padded` that they see."""
        row = len(maps) * (self.x + self.step) * self.column * (-(-self.x // self.step) + 1)
        padded, height = self.padded(maps), max(1, CHUNK_SCORES // row)
        for start in range(0, self.y, height):
            rows = slice(start, min(start + height, self.y) + self.patch - 1)
            shared, own = self.tokens(padded[:, :, rows], 1)
            yield rows, (shared.flatten(2), own.flatten(2))

    def scores(self, places: Tokens, patches: Tokens) -> torch.Tensor:
        """Products of whole patches, `(B, places, P)`."""
        shared = (places[0].mT @ patches[0]).unflatten(1, (-1, self.x + self.step))
        sums = shared[:, :, : self.x, : -self.column] + shared[:, :, self.step :, self.column :]
        return sums.flatten(1, 2).baddbmm_(places[1].mT, patches[1])

    def spread(self, weights: torch.Tensor) -> Tokens:
        """The transpose of `scores`: what `weights` `(B, places, P)` are for shared columns, and themselves for a patch's own."""
        rows = weights.unflatten(1, (-1, self.x))
        batch, y, x, patches = rows.shape
        shared = rows.new_empty(batch, y, x + self.step, patches + self.column)
        shared[:, :, :x, :patches] = rows
        shared[:, :, x:] = 0
        shared[..., patches:] = 0
        shared[:, :, self.step :, self.column :] += rows
        return shared.flatten(1, 2), weights

    def blank(self, maps: torch.Tensor) -> torch.Tensor:
        """Zeros to `lay` chunks on: maps with half a patch more above and below."""
        return maps.new_zeros(*maps.shape[:2], self.y + self.patch - 1, self.x)

    def cropped(self, laid: torch.Tensor) -> torch.Tensor:
        """Without what is above and below."""
        return laid[:, :, self.patch // 2 :][:, :, : self.y]

    def lay(self, onto: torch.Tensor, tokens: Sequence[torch.Tensor], stride: int = 1) -> None:
        """The transpose of `tokens`: adds the tokens `(B, d, n)` to rows of a `blank` where they were cut out."""
        for part, (start, width) in zip(tokens, self.cuts, strict=True):
            onto += F.fold(part, onto.shape[2:], (self.patch, width), padding=(0, self.patch // 2 - start), stride=stride)

    def laid_at_patches(self, like: torch.Tensor, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        """The transpose of `patches`, maps `like` those."""
        laid = self.blank(like)
        self.lay(laid, [part.unflatten(2, (-1, self.column)).mT.flatten(2) for part in tokens], self.step)
        return self.cropped(laid)


def _weighted(tokens: Tokens, weights: Tokens) -> Tokens:
    """Sums over patches, `(B, d, places)`, of `tokens` `(B, d, patches)` with `weights` `(B, places, patches)`."""
    shared, own = (part @ weight.mT for part, weight in zip(tokens, weights, strict=True))
    return shared, own


def _gather(sums: Sequence[torch.Tensor], tokens: Tokens, weights: Tokens) -> None:
    """Adds to `sums` `(B, d, patches)` the sums over places of `tokens` `(B, d, places)` with `weights`."""
    for total, part, weight in zip(sums, tokens, weights, strict=True):
        total.baddbmm_(part, weight)
