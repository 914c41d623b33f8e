"""The patch network of the deep metric (Simonovsky et al., MICCAI 2016): how badly two patches of 17 voxels a side match."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from nets.shapes import CONFIGURATIONS

INPUT_CHANNELS = 2


class PatchCnn(nn.Module):
    """Five convolutions with bias, ReLU between them and none after the last; dissimilarity of 2-channel patches (paper, sec. 2.2).

    `forward` takes `(B, 2, [z,] y, x)` and gives `(B, 1, [z',] y', x')`: one number for a patch of `patch_vx` voxels a side, and for
    a larger image a map of all patches `stride_vx` voxels apart, which is the same network applied to each. Low is a good match.
    Weights are Kaiming normal, biases zero (ours; the paper is silent), drawn from torch's global generator.
    Raises `ValueError` for an unknown configuration and a dimension other than 2 or 3.
    """

    def __init__(self, configuration: str = "B", dimension: int = 3) -> None:
        super().__init__()
        if configuration not in CONFIGURATIONS:
            raise ValueError(f"configuration {configuration!r}; expected one of {', '.join(CONFIGURATIONS)}")
        if dimension not in (2, 3):
            raise ValueError(f"dimension {dimension}; expected 2 or 3")
        self.configuration, self.dimension, self.layout = configuration, dimension, CONFIGURATIONS[configuration]
        convolution = nn.Conv2d if dimension == 2 else nn.Conv3d
        inputs = (INPUT_CHANNELS, *self.layout.channels[:-1])
        rows = zip(inputs, self.layout.channels, self.layout.kernels, self.layout.strides, strict=True)
        self.layers = nn.ModuleList(convolution(*row) for row in rows)
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if layer is self.layers[-1] else "relu")
            nn.init.zeros_(layer.bias)

    @property
    def patch_vx(self) -> int:
        """Edge of the patch in voxels, 17."""
        return self.layout.patch_vx

    @property
    def stride_vx(self) -> int:
        """Distance between neighbouring patches of the dense evaluation in voxels, 4."""
        return self.layout.stride_vx

    def mirrored(self) -> PatchCnn:
        """The network that gives for a point-mirrored patch what this one gives for the patch.

        A fitted network may be at its lowest a fraction of a voxel beside the true alignment; the mean with its mirror image is not,
        as both err in opposite directions (ours).
        """
        other = deepcopy(self)
        axes = tuple(range(2, 2 + self.dimension))
        for layer in other.layers:
            layer.weight.data = layer.weight.data.flip(axes).contiguous()
        return other

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Dissimilarity `(B, 1, [z',] y', x')` of `(B, 2, [z,] y, x)`."""
        for layer in self.layers[:-1]:
            patches = torch.relu_(layer(patches))
        return self.layers[-1](patches)
