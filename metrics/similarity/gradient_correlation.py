"""Local correlation of image gradients: an "LG-like" similarity, windows in which edges run alike whatever the contrast across them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from metrics.similarity.gradients import _add_difference_adjoint, _checked_spacing, _differences, _sum_of_products
from metrics.similarity.grid import ValueWithGradient, check_image, check_pair, map_weights
from metrics.similarity.windows import box_shares, box_sum


class GradientCorrelation:
    """`1 - mean(S(<gF, gM>)^2 / (S(|gF|^2) S(|gM|^2) + eps GF GM))`, S means over windows of edge `2 radius + 1`, from 0 (best) to 1.

    Ours, in place of Deform-GAN's local gradient loss (LG; Zhang et al., arXiv 2002.11430), whose formula was not available to us: the
    squared correlation of the gradients in each window, blind to local contrast inversion. GF and GM are the mean squared gradients of
    the whole images, so that eps knows no intensity unit. Windows without an edge give 1, with zero gradient. Differences are central,
    with the outermost voxel repeated beyond the border; windows end there. `spacing_mm` is one number or `([z,] y, x)`.

    `fixed` is `(B, 1, [z,] y, x)`. `mask` `(B or 1, 1, [z,] y, x)` weights the map of local values; given here and in a call, their product
    counts. Raises `ValueError` for another shape, a radius below 1, a negative eps, a spacing that is not positive, and an empty mask.
    """

    def __init__(
        self,
        fixed: torch.Tensor,
        radius_vx: int = 4,
        *,
        eps: float = 1e-5,
        spacing_mm: float | Sequence[float] = 1.0,
        mask: torch.Tensor | None = None,
    ) -> None:
        if radius_vx < 1 or eps < 0:
            raise ValueError(f"radius_vx {radius_vx}, eps {eps}; expected a radius of 1 voxel or more and an eps of 0 or more")
        image = check_image(fixed).detach()
        self._radius, self._eps, self._shape = radius_vx, eps, fixed.shape
        self._spacing = _checked_spacing(spacing_mm, image.ndim - 2)
        self._weight = None if mask is None else map_weights(mask, fixed)
        self._share = box_shares(image, radius_vx)
        self._fixed, overall = self._gradient(image)
        # of unit mean square: the products then stay far from the limits of single precision
        self._fixed = [component.div_(overall.sqrt().where(overall > 0, 1)) for component in self._fixed]
        self._energy = self._means(_sum_of_products(self._fixed, self._fixed))

    def __call__(self, warped: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The value for a warped image of the shape of `fixed`, a scalar, differentiable with respect to `warped`."""
        check_pair(self._shape, warped.shape)
        weight = self._weight if mask is None else map_weights(mask, warped, self._weight)
        return ValueWithGradient.apply(warped, lambda image, gradient: self._value_and_gradient(image, weight, gradient=gradient))

    def _value_and_gradient(self, warped: torch.Tensor, weight: torch.Tensor | None, *, gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The value and, if asked for, its derivative with respect to `warped`; `weight` of the local values sums up to 1."""
        moving, overall = self._gradient(warped.detach())
        cross = self._means(_sum_of_products(self._fixed, moving))
        denominator = torch.addcmul(self._eps * overall, self._energy, self._means(_sum_of_products(moving, moving)))
        ratio = torch.where(denominator > 0, cross / denominator, 0)
        local = cross * ratio
        value = 1 - (local.mean() if weight is None else (local * weight).sum())
        if not gradient:
            return value, None
        # with r = cross / denominator, the gradient at voxel k changes window i by 2 r gF - 2 r^2 (energy of F) gM, over n_i voxels, and by
        # its share in GM every window by -2 r^2 eps gM over all voxels
        weighted = ratio * (-2.0 / ratio.numel() if weight is None else -2.0 * weight)
        squared = weighted * ratio
        shared = squared.flatten(1).sum(1).view(-1, *[1] * (ratio.ndim - 1)) * (self._eps / ratio[0].numel())
        by_fixed = box_sum(weighted.mul_(self._share), self._radius)
        by_moving = box_sum(squared.mul_(self._energy).mul_(self._share), self._radius).add_(shared)
        result = torch.zeros_like(warped)
        for axis, (f, m, step) in enumerate(zip(self._fixed, moving, self._spacing, strict=True), start=2):
            _add_difference_adjoint(result, (by_fixed * f).addcmul_(by_moving, m, value=-1).div_(2 * step), axis)
        return value, result

    def _gradient(self, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The gradient per mm, one `(B, 1, [z,] y, x)` an axis, and its mean square `(B, 1, ...)`."""
        gradient = _differences(image, self._spacing)
        return gradient, _sum_of_products(gradient, gradient).mean(tuple(range(1, image.ndim)), keepdim=True)

    def _means(self, volume: torch.Tensor) -> torch.Tensor:
        return box_sum(volume, self._radius).mul_(self._share)


def gradient_correlation(
    fixed: torch.Tensor,
    warped: torch.Tensor,
    *,
    radius_vx: int = 4,
    eps: float = 1e-5,
    spacing_mm: float | Sequence[float] = 1.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`GradientCorrelation` of two images `(B, 1, [z,] y, x)` in one call, a scalar."""
    return GradientCorrelation(fixed, radius_vx, eps=eps, spacing_mm=spacing_mm)(warped, mask)
