"""CycleGAN's networks (Zhu et al., ICCV 2017): a residual generator and the discriminator of 70 x 70 patches, for 2-D images of one channel."""

from __future__ import annotations

import torch
from torch import nn


class ResidualGenerator(nn.Module):
    """`(B, channels, y, x)` in [-1, 1] to the same: convolutions down to a quarter of the size, residual blocks, and up again.

    Zhu et al., appendix: kernel 7 and `width` features, two of stride 2, `blocks` residual blocks, two transposed ones, kernel 7 and tanh;
    instance normalisation without parameters, padding by reflection. With 9 blocks of width 64 11,365,633 parameters, with 6 (the paper's
    for images of 128 pixels) 7,825,153. An axis whose length is no multiple of 4 is padded by its border and cropped (ours). Weights
    start as N(0, 0.02). Raises `ValueError` for fewer than one block or feature.
    """

    def __init__(self, *, blocks: int = 9, width: int = 64, channels: int = 1) -> None:
        super().__init__()
        if min(blocks, width, channels) < 1:
            raise ValueError(f"blocks {blocks}, width {width}, channels {channels}; expected 1 or more")
        self.channels = channels
        layers = [nn.ReflectionPad2d(3), *_normalised(nn.Conv2d(channels, width, 7))]
        for factor in (1, 2):
            layers += _normalised(nn.Conv2d(factor * width, 2 * factor * width, 3, stride=2, padding=1))
        layers += [_Block(4 * width) for _ in range(blocks)]
        for factor in (4, 2):
            layers += _normalised(nn.ConvTranspose2d(factor * width, factor * width // 2, 3, stride=2, padding=1, output_padding=1))
        self.layers = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, channels, 7), nn.Tanh())
        initialised(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The translated images. Raises `ValueError` for another shape, or fewer than 8 pixels along an axis."""
        if images.ndim != 4 or images.shape[1] != self.channels or min(images.shape[2:]) < 8:
            raise ValueError(f"input {tuple(images.shape)}; expected (batch, {self.channels}, y, x) of 8 pixels or more")
        y, x = images.shape[2:]
        return self.layers(nn.functional.pad(images, (0, -x % 4, 0, -y % 4), mode="replicate"))[..., :y, :x]


class PatchDiscriminator(nn.Module):
    """`(B, channels, y, x)` to a score for each of many overlapping patches of 70 x 70, `(B, 1, y', x')`.

    Five convolutions of kernel 4, three of them of stride 2, LeakyReLU 0.2, instance normalisation in the middle: 2,762,689 parameters
    with width 64. Weights start as N(0, 0.02). Raises `ValueError` for fewer than one feature.
    """

    def __init__(self, *, width: int = 64, channels: int = 1) -> None:
        super().__init__()
        if min(width, channels) < 1:
            raise ValueError(f"width {width}, channels {channels}; expected 1 or more")
        self.channels = channels
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for factor, stride in ((1, 2), (2, 2), (4, 1)):
            inner = nn.Conv2d(factor * width, 2 * factor * width, 4, stride=stride, padding=1)
            layers += [inner, nn.InstanceNorm2d(2 * factor * width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))
        initialised(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores of the patches. Raises `ValueError` for another shape, or fewer than 32 pixels along an axis."""
        if images.ndim != 4 or images.shape[1] != self.channels or min(images.shape[2:]) < 32:
            raise ValueError(f"input {tuple(images.shape)}; expected (batch, {self.channels}, y, x) of 32 pixels or more")
        return self.layers(images)


def initialised(network: nn.Module) -> None:
    """Convolutions' weights drawn from N(0, 0.02), their biases zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)


class _Block(nn.Module):
    """Two convolutions of kernel 3, added to what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(width, width, 3) for _ in range(2))
        self.layers = nn.Sequential(nn.ReflectionPad2d(1), *_normalised(first), nn.ReflectionPad2d(1), second, nn.InstanceNorm2d(width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.layers(features)


def _normalised(layer: nn.Module) -> list[nn.Module]:
    return [layer, nn.InstanceNorm2d(layer.out_channels), nn.ReLU(True)]
