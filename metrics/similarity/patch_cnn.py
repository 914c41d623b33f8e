"""The deep metric (Simonovsky et al., MICCAI 2016, eq. 2): a patch network evaluated over a whole image pair, and its derivative.

Only what an optimiser needs is computed: the derivative with respect to the warped image alone. The fixed image enters the first
convolution and nothing else, so that its part of that convolution is computed once for all iterations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from metrics.similarity.grid import ValueWithGradient

Grid = Literal["shift", "sparse", "overlap", "fixed"]
Precision = Literal["fp32", "bf16"]
Window = tuple[slice, ...]
_OFFSET_SEED = 2016
_MOST_CACHED_BYTES = 2**30


class PatchCnnSimilarity:
    """Mean of a patch network's dissimilarity over a grid of patches; lower is better. The paper sums: the mean is ours, so that a
    step does not depend on the image's size.

    `fixed` `(1, 1, [z,] y, x)` and the later `warped` are normalised as the network was trained. `network` has `layers`, convolutions
    without padding, ReLU between them, 2 channels in and 1 out; with `swap` the fixed image is channel 1 instead of 0. Its weights
    are read, never changed, and receive no gradient.

    `grid`, with s the network's stride (4 in the paper; it calls for a dense grid, as the derivative is rough otherwise):
    "shift" moves the grid by another offset of `{0..s-1}^d` each iteration, in a fixed shuffled order (ours: the roughness averages
    out over iterations); "sparse" moves likewise a grid of every second patch along each axis (ours: the last convolution that sees
    more than one voxel takes twice its stride, which saves nearly half the time); "overlap" takes every patch at half the stride (ours:
    the network's last stride becomes a dilation, which shares the layers before it); "fixed" is the plain grid from the first voxel.

    `most_outputs` bounds memory: patches are evaluated in slabs of at most so many, one plane of them at least. `precision` "bf16"
    halves the time on processors that have it; single voxels' derivatives are then off by some 5 %, that of a translation by 0.2 %.
    Raises `ValueError` for shapes that do not fit, an image smaller than the patch and a network of another kind.
    """

    def __init__(
        self,
        fixed: torch.Tensor,
        network: nn.Module,
        *,
        swap: bool = False,
        grid: Grid = "shift",
        most_outputs: int | None = None,
        precision: Precision = "fp32",
    ) -> None:
        if grid not in get_args(Grid) or precision not in get_args(Precision):
            raise ValueError(f"grid {grid!r}, precision {precision!r}; expected one of {', '.join(get_args(Grid))}, and fp32 or bf16")
        if most_outputs is not None and most_outputs < 1:
            raise ValueError(f"most_outputs {most_outputs}; expected 1 or more, or None for everything at once")
        self._shape, self._most = fixed.shape, most_outputs
        dtype = torch.bfloat16 if precision == "bf16" else fixed.dtype
        stages = _stages(network, fixed, dtype)
        first, *self._later = _dilated(stages) if grid == "overlap" else _thinned(stages) if grid == "sparse" else stages
        self._first, self._moving = first, replace(first, weight=_channel(first.weight, 0 if swap else 1), bias=None)
        self._own = replace(first, weight=_channel(first.weight, 1 if swap else 0))
        every = [first, *self._later]
        self._patch = 1 + sum((s.weight.shape[-1] - 1) * s.dilation * prod(b.stride for b in every[:i]) for i, s in enumerate(every))
        self._stride = prod(s.stride for s in every)
        if min(self._shape[2:]) < self._patch:
            raise ValueError(
                f"image of {tuple(self._shape[2:])} voxels; expected at least the patch, {self._patch} along each axis: use a finer grid"
            )
        self._offsets = _offset_order(self._shape[2:], self._patch, self._stride) if grid in ("shift", "sparse") else [(0,) * (fixed.ndim - 2)]
        self._fixed = fixed.detach().to(dtype)
        self._response = self._whole_response()

    @property
    def patch_vx(self) -> int:
        """Edge of a patch in voxels."""
        return self._patch

    @property
    def stride_vx(self) -> int:
        """Distance between neighbouring patches in voxels."""
        return self._stride

    def __call__(self, warped: torch.Tensor, mask: torch.Tensor | None = None, *, iteration: int = 0) -> torch.Tensor:
        """The mean dissimilarity, a scalar, differentiable once with respect to `warped` `(1, 1, [z,] y, x)`.

        `mask` `(1, 1, [z,] y, x)` weights each patch by its value at the patch's centre voxel. `iteration` chooses the offset of
        grids "shift" and "sparse"; where the mask has no patch at that offset, the next one in order is taken.
        Raises `ValueError` for other shapes than the fixed image's and a mask without any patch.
        """
        for name, image in {"warped": warped, **({} if mask is None else {"mask": mask})}.items():
            if image.shape != self._shape:
                raise ValueError(f"{name} {tuple(image.shape)} and fixed {tuple(self._shape)}; expected one grid: resample onto the fixed grid first")
        offset, weights = self._grid_of(mask, iteration)

        def evaluate(image: torch.Tensor, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
            return self._evaluate(image, offset, weights, with_gradient)

        return ValueWithGradient.apply(warped, evaluate)

    def output_map(self, warped: torch.Tensor, offset: Sequence[int] | None = None) -> torch.Tensor:
        """The dissimilarity of every patch of the grid at `offset` (default: the first voxel), `(1, 1, [z',] y', x')`, without gradient."""
        offset = tuple(offset or (0,) * (warped.ndim - 2))
        with torch.no_grad():
            slabs = [self._map(warped[(..., *window)], window).to(warped.dtype) for _, window in self._slabs(offset)]
        return torch.cat(slabs, 2)

    def _grid_of(self, mask: torch.Tensor | None, iteration: int) -> tuple[tuple[int, ...], torch.Tensor]:
        """The offset of the patches, and their weights `(1, 1, [z',] y', x')`, of sum one."""
        turn = iteration % len(self._offsets)
        for offset in self._offsets[turn:] + self._offsets[:turn]:
            counts = self._counts(offset)
            if mask is None:
                return offset, torch.full((1, 1, *counts), 1 / prod(counts), dtype=self._fixed_dtype, device=self._fixed.device)
            centres = (
                slice(o + self._patch // 2, o + self._patch // 2 + self._stride * n, self._stride) for o, n in zip(offset, counts, strict=True)
            )
            weights = mask[(..., *centres)].to(self._fixed_dtype)
            if (total := weights.sum()) > 0:
                return offset, weights / total
        raise ValueError(f"the mask is empty; expected non-zero voxels {self._patch // 2} or more voxels inside the image")

    @property
    def _fixed_dtype(self) -> torch.dtype:
        """The type of sums: that of the images, single precision under bf16."""
        return torch.float32 if self._fixed.dtype == torch.bfloat16 else self._fixed.dtype

    def _counts(self, offset: Sequence[int]) -> tuple[int, ...]:
        return tuple((n - o - self._patch) // self._stride + 1 for n, o in zip(self._shape[2:], offset, strict=True))

    def _slabs(self, offset: Sequence[int]) -> Iterator[tuple[slice, Window]]:
        """The output planes of each slab, and the voxels that they see."""
        counts = self._counts(offset)
        planes = counts[0] if self._most is None else max(1, self._most // prod(counts[1:]))
        rest = [self._seen(o, 0, n) for o, n in zip(offset[1:], counts[1:], strict=True)]
        for start in range(0, counts[0], planes):
            stop = min(start + planes, counts[0])
            yield slice(start, stop), (self._seen(offset[0], start, stop), *rest)

    def _seen(self, offset: int, start: int, stop: int) -> slice:
        first = offset + self._stride * start
        return slice(first, first + self._stride * (stop - start - 1) + self._patch)

    def _evaluate(self, warped: torch.Tensor, offset: Sequence[int], weights: torch.Tensor, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted mean and its derivative with respect to the warped image, slab by slab."""
        value, gradient = weights.new_zeros(()), torch.zeros_like(warped)
        for planes, window in self._slabs(offset):
            with torch.set_grad_enabled(with_gradient):
                seen = warped[(..., *window)].detach().to(self._fixed.dtype).requires_grad_(with_gradient)
                part = (self._map(seen, window).to(weights.dtype) * weights[:, :, planes]).sum()
            value += part.detach()
            if with_gradient:
                gradient[(..., *window)] += torch.autograd.grad(part, seen)[0].to(gradient.dtype)
        return value.to(warped.dtype), gradient

    def _map(self, warped: torch.Tensor, window: Window) -> torch.Tensor:
        """Network output of a window of both images."""
        features = self._moving.convolve(warped.to(self._fixed.dtype)).add_(self._response_of(window))
        for stage in self._later:
            features = stage.convolve(features.relu_())
        return features

    def _response_of(self, window: Window) -> torch.Tensor:
        """The fixed image's part of the first convolution, bias included."""
        if self._response is None:
            with torch.no_grad():
                return self._own.convolve(self._fixed[(..., *window)])
        reach = self._first.weight.shape[-1] - 1
        return self._response[(..., *(slice(w.start, w.stop - reach) for w in window))]

    def _whole_response(self) -> torch.Tensor | None:
        """That part for the whole image, where a slice of it serves every offset (stride 1) and it is not too large (ours: 1 GiB)."""
        size = self._own.weight.shape[0] * self._fixed.numel() * self._fixed.element_size()
        if self._first.stride != 1 or size > _MOST_CACHED_BYTES:
            return None
        with torch.no_grad():
            return self._own.convolve(self._fixed)


@dataclass(frozen=True)
class _Stage:
    """One convolution: weights without gradient, the same stride and dilation along every axis."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: int
    dilation: int = 1

    def convolve(self, features: torch.Tensor) -> torch.Tensor:
        convolution = F.conv2d if features.ndim == 4 else F.conv3d
        return convolution(features, self.weight, self.bias, self.stride, 0, self.dilation)


def _stages(network: nn.Module, fixed: torch.Tensor, dtype: torch.dtype) -> list[_Stage]:
    """The network's convolutions, checked against the image."""
    if fixed.ndim not in (4, 5) or fixed.shape[:2] != (1, 1) or not fixed.is_floating_point():
        raise ValueError(f"fixed image of shape {tuple(fixed.shape)}, {fixed.dtype}; expected (1, 1, [z,] y, x) of floating point")
    layers, kind = list(network.layers), nn.Conv2d if fixed.ndim == 4 else nn.Conv3d
    if not layers or not all(isinstance(layer, kind) and not any(layer.padding) for layer in layers):
        raise ValueError(f"the network's layers are not {kind.__name__} without padding; expected a {fixed.ndim - 2}-D patch network")
    if (layers[0].in_channels, layers[-1].out_channels) != (2, 1):
        raise ValueError(f"a network of {layers[0].in_channels} channels in, {layers[-1].out_channels} out; expected 2 in, 1 out")

    def owned(values: torch.Tensor) -> torch.Tensor:
        return values.detach().to(fixed.device, dtype)

    return [_Stage(owned(n.weight), None if n.bias is None else owned(n.bias), n.stride[0]) for n in layers]


def _channel(weight: torch.Tensor, channel: int) -> torch.Tensor:
    return weight[:, channel : channel + 1].contiguous()


def _dilated(stages: list[_Stage]) -> list[_Stage]:
    """The same network at half its stride: the last stride of 2 becomes 1, and the layers behind it take every second value."""
    strided = [i for i, stage in enumerate(stages) if stage.stride == 2]
    if not strided or (last := strided[-1]) == 0 or any(stage.stride != 1 for stage in stages[last + 1 :]):
        raise ValueError(f"grid 'overlap' with strides {[s.stride for s in stages]}; expected the last stride above 1 to be 2, past the first layer")
    return [*stages[:last], replace(stages[last], stride=1), *(replace(stage, dilation=2) for stage in stages[last + 1 :])]


def _thinned(stages: list[_Stage]) -> list[_Stage]:
    """The same network at twice its stride: what follows the last convolution that sees more than one voxel is computed for fewer patches."""
    last = max((i for i, stage in enumerate(stages) if stage.weight.shape[-1] > 1), default=0)
    return [replace(stage, stride=2 * stage.stride) if i == last else stage for i, stage in enumerate(stages)]


def _offset_order(shape: Sequence[int], patch_vx: int, stride_vx: int) -> list[tuple[int, ...]]:
    """Every offset of the grid that leaves room for a patch, shuffled the same way every time."""
    offsets = list(product(*(range(min(stride_vx, n - patch_vx + 1)) for n in shape)))
    generator = torch.Generator().manual_seed(_OFFSET_SEED)
    return [offsets[i] for i in torch.randperm(len(offsets), generator=generator).tolist()]
