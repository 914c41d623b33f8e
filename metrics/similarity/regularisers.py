"""How rough a displacement is: what a network pays for a field beside the images' disagreement. Fields are `(B, d, [z,] y, x)` in voxels."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def gradient_energy(displacement_vx: torch.Tensor) -> torch.Tensor:
    """Half the sum over voxels, components and axes of squared forward differences, mean over the batch; a scalar.

    Eq. 4 of the ReSAtt paper. There it is written of y(x) = x + u(x), which would punish the identity: taken of u (our reading).
    Voxels without a next one along an axis add nothing. Raises `ValueError` for another shape.
    """
    _check_field(displacement_vx)
    sums = [displacement_vx.diff(dim=axis).square().sum() for axis in range(2, displacement_vx.ndim)]
    return sum(sums) / (2 * len(displacement_vx))


def mean_squared_gradient(displacement_vx: torch.Tensor) -> torch.Tensor:
    """Mean over axes, components, voxels and batch of squared forward differences, a scalar.

    VoxelMorph's smoothness (Balakrishnan et al., IEEE TMI 2019): each axis has the mean of its own differences, one fewer than voxels, so
    that the measure knows no image size. Raises `ValueError` for another shape, or one voxel along an axis.
    """
    dimension = _check_field(displacement_vx)
    if min(displacement_vx.shape[2:]) < 2:
        raise ValueError(f"field of shape {tuple(displacement_vx.shape)}; expected two voxels or more along each axis")
    means = [displacement_vx.diff(dim=axis).square().mean() for axis in range(2, displacement_vx.ndim)]
    return sum(means) / dimension


def curvature(displacement_vx: torch.Tensor) -> torch.Tensor:
    """Half the mean over voxels and batch of the squared length of the Laplacian of u; a scalar.

    Fischer and Modersitzki (J Math Imaging Vis 2003); second differences, with the outermost voxel repeated beyond the border.
    Affine displacements cost nothing but at the border. Raises `ValueError` for another shape.
    """
    dimension = _check_field(displacement_vx)
    padded = F.pad(displacement_vx, (1,) * (2 * dimension), mode="replicate")
    laplacian = -2 * dimension * displacement_vx
    for axis, length in enumerate(displacement_vx.shape[2:], start=2):
        inner = _inside_but(padded, axis)
        laplacian = laplacian + inner.narrow(axis, 0, length) + inner.narrow(axis, 2, length)
    return laplacian.square().sum(1).mean() / 2


def _inside_but(padded: torch.Tensor, kept: int) -> torch.Tensor:
    """Without the padding of 1, except along the axis `kept`."""
    for axis in range(2, padded.ndim):
        padded = padded if axis == kept else padded.narrow(axis, 1, padded.shape[axis] - 2)
    return padded


def _check_field(displacement_vx: torch.Tensor) -> int:
    dimension = displacement_vx.ndim - 2
    if dimension not in (2, 3) or displacement_vx.shape[1] != dimension or 0 in displacement_vx.shape:
        raise ValueError(f"field of shape {tuple(displacement_vx.shape)}; expected (batch, 2, y, x) or (batch, 3, z, y, x)")
    return dimension
