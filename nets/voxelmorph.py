"""VoxelMorph: a small U-Net, and the network that makes a displacement of what it says. 2-D and 3-D."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from nets.fields import exponential, forward_and_inverse

ENCODER = (16, 32, 32, 32)
DECODER = (32, 32, 32, 32, 32, 16, 16)
"""Features of the current form: one decoding convolution a level, the rest at full size."""
SLOPE = 0.2
Output = Literal["displacement", "velocity"]


class VoxelMorphUNet(nn.Module):
    """`(B, inputs, [z,] y, x)` to `(B, outputs, [z,] y, x)`: the U-Net of VoxelMorph's current form.

    Each encoding convolution is followed by max-pooling, each of as many decoding ones by doubling (nearest) and the encoder's features
    of that size; the remaining ones run at full size. All have kernel 3 and LeakyReLU 0.2, with He's initialisation, as in the Keras
    form; the last is linear. Any size: an image is padded to a multiple of what the poolings need (16) by repeating its border, and the
    result cropped (ours). Raises `ValueError` for another dimension, fewer decoding than encoding convolutions, or no features.
    """

    def __init__(self, dimension: int, *, inputs: int, outputs: int, encoder: Sequence[int] = ENCODER, decoder: Sequence[int] = DECODER) -> None:
        super().__init__()
        if dimension not in (2, 3):
            raise ValueError(f"dimension {dimension}; expected 2 or 3")
        if not encoder or len(decoder) < len(encoder) or min(*encoder, *decoder) < 1:
            raise ValueError(
                f"encoder {tuple(encoder)}, decoder {tuple(decoder)}; expected positive features, and no fewer decoding than encoding ones"
            )
        self.dimension, self.inputs, self.multiple = dimension, inputs, 2 ** len(encoder)
        kind, pool = (nn.Conv2d, nn.MaxPool2d) if dimension == 2 else (nn.Conv3d, nn.MaxPool3d)
        self.pool = pool(2)
        self.down = nn.ModuleList(kind(c, w, 3, padding=1) for c, w in zip((inputs, *encoder), encoder, strict=False))
        skips = (0, *reversed(encoder), *[0] * (len(decoder) - len(encoder)))
        before = (encoder[-1], *decoder)
        self.up = nn.ModuleList(kind(b + s, w, 3, padding=1) for b, s, w in zip(before, skips, decoder, strict=False))
        self.output = kind(before[-1] + (skips[-1] if len(decoder) == len(encoder) else 0), outputs, 3, padding=1)
        for layer in (*self.down, *self.up, self.output):
            nn.init.kaiming_normal_(layer.weight, a=SLOPE)
            nn.init.zeros_(layer.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Raises `ValueError` for an input other than `(B, inputs, [z,] y, x)`."""
        if images.ndim != self.dimension + 2 or images.shape[1] != self.inputs:
            axes = "z, y, x" if self.dimension == 3 else "y, x"
            raise ValueError(f"input {tuple(images.shape)}; expected (batch, {self.inputs}, {axes})")
        size = images.shape[2:]
        beyond = [margin for n in reversed(size) for margin in (0, -n % self.multiple)]
        result = self._through(F.pad(images, beyond, mode="replicate") if any(beyond) else images)
        for axis, n in enumerate(size, start=2):
            result = result.narrow(axis, 0, n)
        return result

    def _through(self, features: torch.Tensor) -> torch.Tensor:
        passed = []
        for layer in self.down:
            passed.append(F.leaky_relu(layer(features), SLOPE))
            features = self.pool(passed[-1])
        for layer in self.up:
            features = F.leaky_relu(layer(features), SLOPE)
            if passed:
                features = torch.cat([F.interpolate(features, scale_factor=2.0, mode="nearest"), passed.pop()], dim=1)
        return self.output(features)


class Displacements(NamedTuple):
    """A displacement `(B, d, [z,] y, x)` in voxels, components `(x, y[, z])`, and its inverse where there is one."""

    forward: torch.Tensor
    inverse: torch.Tensor | None


class VoxelMorph(nn.Module):
    """`(B, inputs, [z,] y, x)`, fixed image first, to a displacement in voxels from fixed to moving places.

    Balakrishnan et al. (IEEE TMI 2019), current form: with 2 inputs 109,170 parameters in 2-D and 327,331 in 3-D. The last convolution
    has weights N(0, 1e-5), so that it starts at the identity. With output "velocity" it gives a stationary velocity (Dalca et al., MedIA
    2019), brought to half the size and integrated there by 7 squarings; its negative gives the inverse. Any size, as `VoxelMorphUNet`.
    """

    def __init__(
        self, dimension: int, *, inputs: int = 2, output: Output = "velocity", encoder: Sequence[int] = ENCODER, decoder: Sequence[int] = DECODER
    ) -> None:
        super().__init__()
        if output not in ("displacement", "velocity"):
            raise ValueError(f"output {output!r}; expected displacement or velocity")
        self.kind = output
        self.unet = VoxelMorphUNet(dimension, inputs=inputs, outputs=dimension, encoder=encoder, decoder=decoder)
        nn.init.normal_(self.unet.output.weight, std=1e-5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The displacement `(B, d, [z,] y, x)` in voxels. Raises `ValueError` as `VoxelMorphUNet`."""
        raw = self.unet(images)
        return raw if self.kind == "displacement" else integrated(raw)

    def both(self, images: torch.Tensor) -> Displacements:
        """The displacement and its inverse, which is None for a network whose output is no velocity. Raises `ValueError` as `forward`."""
        raw = self.unet(images)
        return Displacements(raw, None) if self.kind == "displacement" else Displacements(*integrated_both(raw))


def integrated(velocity_vx: torch.Tensor, *, steps: int = 7, shrink: int = 2) -> torch.Tensor:
    """`exponential` of a velocity `(B, d, [z,] y, x)` in voxels, taken on a grid `shrink` times as coarse."""
    size = velocity_vx.shape[2:]
    return resized(exponential(resized(velocity_vx, shrunk(size, shrink)), steps=steps), size)


def integrated_both(velocity_vx: torch.Tensor, *, steps: int = 7, shrink: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """`integrated` of v and of -v, computed in one batch."""
    size = velocity_vx.shape[2:]
    pair = torch.cat(forward_and_inverse(resized(velocity_vx, shrunk(size, shrink)), steps=steps))
    forward, inverse = resized(pair, size).chunk(2)
    return forward, inverse


def shrunk(size: Sequence[int], factor: int) -> tuple[int, ...]:
    """The size of a grid `factor` times as coarse, at least one voxel along each axis."""
    return tuple(math.ceil(n / factor) for n in size)


def resized(field_vx: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A field `(B, d, [z,] y, x)` in voxels on another grid whose outermost voxels lie where they lay, in voxels of that grid.

    Interpolated linearly. Each component changes with the voxels of its own axis, `(n' - 1) / (n - 1)`: the same map, and an affine one
    exactly so. VoxelMorph multiplies all of them by 1/2, which is so only in the limit.
    """
    before = field_vx.shape[2:]
    if tuple(before) == tuple(size):
        return field_vx
    factors = [(after - 1) / (n - 1) if n > 1 else 1.0 for after, n in zip(size, before, strict=True)][::-1]  # components are (x, y[, z])
    mode = "bilinear" if len(before) == 2 else "trilinear"
    scale = torch.tensor(factors, dtype=field_vx.dtype, device=field_vx.device).view(1, -1, *[1] * len(before))
    return F.interpolate(field_vx, size=tuple(size), mode=mode, align_corners=True) * scale
