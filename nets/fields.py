"""Dense displacement and velocity fields on a voxel grid: warping, composition, exponential. 2-D and 3-D alike.

Images are `(B, C, [z,] y, x)`. A displacement is `(B, d, [z,] y, x)` in voxels with components in the order `(x, y[, z])`; voxel p
of the result is fetched from p + u(p), so that the map goes from fixed to moving places. Beyond the grid a field keeps the value
of its outermost voxel.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

Interpolation = Literal["linear", "nearest"]
Border = Literal["repeat", "zero"]
_MODES = {"linear": "bilinear", "nearest": "nearest"}
_PADDING = {"repeat": "border", "zero": "zeros"}


def warp(image: torch.Tensor, displacement_vx: torch.Tensor, *, interpolation: Interpolation = "linear", border: Border = "repeat") -> torch.Tensor:
    """The image `(B, C, [z,] y, x)` at p + u(p) for every voxel p of the displacement's grid, `(B, C, [z',] y', x')`.

    Outside the image stands its outermost voxel, or with border "zero" 0, into which it fades over one voxel. Differentiable with
    respect to both (of the displacement, where linear). A batch of one displacement or one image goes with any batch of the other.
    Raises `ValueError` for shapes that do not fit.
    """
    dimension = _check_field(displacement_vx)
    if image.ndim != dimension + 2:
        raise ValueError(f"image of shape {tuple(image.shape)} and displacement {tuple(displacement_vx.shape)}; expected both 2-D or both 3-D")
    batch = torch.broadcast_shapes(image.shape[:1], displacement_vx.shape[:1])[0]
    where = (identity_grid(displacement_vx) + displacement_vx).movedim(1, -1)
    size = torch.tensor(image.shape[:1:-1], dtype=where.dtype, device=where.device)
    unit = (2 * where + 1) / size - 1
    images, places = (tensor.expand(batch, *tensor.shape[1:]) for tensor in (image, unit))
    return F.grid_sample(images, places, mode=_MODES[interpolation], padding_mode=_PADDING[border], align_corners=False)


def compose(first_vx: torch.Tensor, then_vx: torch.Tensor) -> torch.Tensor:
    """The displacement of going by `first_vx` and from there by `then_vx`: `u1(p) + u2(p + u1(p))`, `(B, d, [z,] y, x)`.

    An image warped by it is the image warped by `then_vx`, warped by `first_vx`. Raises `ValueError` as `warp`.
    """
    return first_vx + warp(then_vx, first_vx)


def exponential(velocity_vx: torch.Tensor, *, steps: int = 7) -> torch.Tensor:
    """Displacement after unit time in a stationary velocity field, `(B, d, [z,] y, x)`, by `steps` squarings of `v / 2^steps`.

    Arsigny et al. (MICCAI 2006); 7 squarings as VoxelMorph has them. `exponential(-v)` is the inverse, up to interpolation.
    Raises `ValueError` as `warp` and for a negative number of steps.
    """
    if steps < 0:
        raise ValueError(f"steps {steps}; expected 0 or more")
    _check_field(velocity_vx)
    displacement = velocity_vx / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement


def forward_and_inverse(velocity_vx: torch.Tensor, *, steps: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """`exponential` of v and of -v, computed in one batch."""
    forward, inverse = exponential(torch.cat([velocity_vx, -velocity_vx]), steps=steps).chunk(2)
    return forward, inverse


def identity_grid(like: torch.Tensor) -> torch.Tensor:
    """Every voxel's own index of the grid of `(B, C, [z,] y, x)`, components `(x, y[, z])`, `(1, d, [z,] y, x)`."""
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in like.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1])[None]


def _check_field(displacement_vx: torch.Tensor) -> int:
    """The field's dimension. Raises `ValueError` if it is not `(B, d, [z,] y, x)`."""
    dimension = displacement_vx.ndim - 2
    if dimension not in (2, 3) or displacement_vx.shape[1] != dimension:
        raise ValueError(f"field of shape {tuple(displacement_vx.shape)}; expected (batch, 2, y, x) or (batch, 3, z, y, x)")
    return dimension
