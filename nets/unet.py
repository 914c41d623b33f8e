"""U-Nets that predict a dense displacement between two 2-D images, with convolutive attention on the skip connections or without."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from nets.fields import exponential
from nets.resatt import ResidualAttention, cbr2
from nets.shapes import CELL_CHANNELS, UNET_WIDTHS

NETWORKS = ("resatt", "unet")


class RegistrationUNet(nn.Module):
    """`(B, 2, y, x)` (channel 0 fixed, 1 moving, both in [0, 1]) to the displacement `(B, 2, y, x)` in voxels, components `(x, y)`.

    Parbs et al., sec. III-B: stages of CBR^2 cells with max-pooling between them, transposed convolutions of stride 2 back up. With
    `attention` features a `ResidualAttention` cell stands on every skip connection, with None they are plain. Widths are ours:
    124,306 parameters, without cells 117,490. The last convolution (kernel 3, ours) starts at zero, so that the network starts at
    the identity (ours). Any size: an image is padded to a multiple of what the poolings need by repeating its border, and the result
    cropped (ours). `scales` are those of the cells' scores and output. With `svf` the output is a stationary velocity, of which `forward` gives the `exponential` (ours).

    Raises `ValueError` for fewer than two stages.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, ...] = UNET_WIDTHS,
        attention: int | None = CELL_CHANNELS,
        scales: tuple[float, float] = (1.0, 1.0),
        svf: bool = False,
        inputs: int = 2,
    ) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"widths {widths}; expected two or more stages")
        self.svf, self.multiple = svf, 2 ** (len(widths) - 1)
        self.down = nn.ModuleList(cbr2(c, w) for c, w in zip((inputs, *widths), widths, strict=False))
        pairs = list(pairwise(widths))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(low, high, 2, stride=2) for high, low in pairs)
        self.join = nn.ModuleList(cbr2(2 * high, high) for high, _ in pairs)
        how = dict(zip(("scale", "output_scale"), scales, strict=True))
        cells = (nn.Identity() if attention is None else ResidualAttention(high, attention, **how) for high, _ in pairs)
        self.skip = nn.ModuleList(cells)
        self.output = nn.Conv2d(widths[0], 2, 3, padding=1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Displacement `(B, 2, y, x)` in voxels. Raises `ValueError` for an input other than `(B, inputs, y, x)`."""
        raw = self.raw(images)
        return exponential(raw) if self.svf else raw

    def raw(self, images: torch.Tensor) -> torch.Tensor:
        """What the last convolution gives, `(B, 2, y, x)`: the displacement, or with `svf` the velocity, in voxels."""
        expected = self.down[0][0].in_channels
        if images.ndim != 4 or images.shape[1] != expected:
            raise ValueError(f"input {tuple(images.shape)}; expected (batch, {expected}, y, x), channel 0 fixed and 1 moving")
        y, x = images.shape[2:]
        padded = F.pad(images, (0, -x % self.multiple, 0, -y % self.multiple), mode="replicate")
        return self._through(padded)[..., :y, :x]

    def _through(self, features: torch.Tensor) -> torch.Tensor:
        passed = []
        for stage in self.down[:-1]:
            passed.append(stage(features))
            features = F.max_pool2d(passed[-1], 2)
        features = self.down[-1](features)
        for up, skip, join in zip(self.up, self.skip, self.join, strict=True):
            features = join(torch.cat([skip(passed.pop()), up(features)], dim=1))
        return self.output(features)


def build(
    name: str, *, widths: tuple[int, ...] = UNET_WIDTHS, channels: int = CELL_CHANNELS, scales: tuple[float, float] = (1.0, 1.0), svf: bool = False
) -> RegistrationUNet:
    """The network called `name`, one of `NETWORKS`, with fresh weights from torch's generator. Raises `ValueError` for another name."""
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}; valid: {', '.join(NETWORKS)}")
    return RegistrationUNet(widths=widths, attention=channels if name == "resatt" else None, scales=scales, svf=svf)
