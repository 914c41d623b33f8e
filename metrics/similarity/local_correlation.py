"""Local squared normalised correlation: how well a linear map explains the warped image by the fixed one, window by window.

Images are `(B, 1, [z,] y, x)`. Windows end at the border of the image: means and variances are those of the voxels inside. All sums
over windows are separable, and the derivative is three more such sums, taken along with the value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from metrics.similarity.grid import ValueWithGradient, check_image, check_pair, map_weights

_FLAT = 16  # a window whose variance is below so many units of rounding of its mean square is flat (ours)
_SLAB = 8  # planes at a time: their sums along the two other axes stay in a core's cache (ours)


class LocalCorrelation:
    """`-mean(cross^2 / (varF varM + eps VF VM))` over windows of edge `2 radius + 1`, from -1 (best) to 0; blind to local contrast inversion.

    `cross`, `varF`, `varM` are covariance and variances within a window, VF and VM the variances of the whole images: the published
    form (Balakrishnan et al., IEEE TMI 2019, window 9) has sums and a plain 1e-5 for `eps VF VM`; ours means the same for any
    intensity unit and window. Flat windows give 0, with zero gradient.

    `fixed` is `(B, 1, [z,] y, x)`. `mask` `(B or 1, 1, [z,] y, x)` weights the map of local values, not the voxels within a window;
    given here and in a call, their product counts. Raises `ValueError` for another shape, a radius below 1, a negative eps and an
    empty mask.
    """

    def __init__(self, fixed: torch.Tensor, radius_vx: int = 4, *, eps: float = 1e-5, mask: torch.Tensor | None = None) -> None:
        if radius_vx < 1 or eps < 0:
            raise ValueError(f"radius_vx {radius_vx}, eps {eps}; expected a radius of 1 voxel or more and an eps of 0 or more")
        image = check_image(fixed).detach()
        self._eps, self._windows = eps, _Windows(image, radius_vx)
        self._weight = None if mask is None else map_weights(mask, fixed)
        deviation, variance = _centred(image)
        # of unit variance: the products then stay far from the limits of single precision
        self._fixed = deviation.div_(variance.sqrt().where(variance > 0, 1))
        self._mean, self._variance = self._windows.moments(self._fixed)

    def __call__(self, warped: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The value for a warped image of the shape of `fixed`, a scalar, differentiable with respect to `warped`."""
        check_pair(self._fixed.shape, warped.shape)
        weight = self._weight if mask is None else map_weights(mask, warped, self._weight)
        return ValueWithGradient.apply(warped, lambda image, gradient: self._value_and_gradient(image, weight, gradient=gradient))

    def _value_and_gradient(self, warped: torch.Tensor, weight: torch.Tensor | None, *, gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The value and, if asked for, its derivative with respect to `warped`; `weight` of the local values sums up to 1."""
        moving, overall = _centred(warped)
        mean, variance = self._windows.moments(moving)
        cross = self._windows.means(moving * self._fixed).addcmul_(mean, self._mean, value=-1)
        cross.mul_((variance > 0) & (self._variance > 0))
        denominator = torch.addcmul(self._eps * overall, variance, self._variance)
        ratio = torch.where(denominator > 0, cross / denominator, 0)
        local = cross.mul_(ratio)
        value = -(local.mean() if weight is None else (local * weight).sum())
        return value, self._gradient(moving, mean, ratio, weight) if gradient else None

    def _gradient(self, moving: torch.Tensor, mean: torch.Tensor, ratio: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """With r = cross / denominator, a voxel k of window i changes the local value by 2 r (F_k - mF) - 2 r^2 varF (M_k - mM), over n_i.

        Its share in the variance of the whole image changes every window by -r^2 eps.
        """
        weighted = ratio * (-2.0 / ratio.numel()) if weight is None else ratio * weight * -2.0
        squared = weighted * ratio
        overall = squared.flatten(1).sum(1).view(-1, *[1] * (ratio.ndim - 1)) * (self._eps / ratio[0].numel())
        by_fixed = weighted.mul_(self._windows.shares)
        by_moving = squared.mul_(self._variance).mul_(self._windows.shares)
        result = self._windows.sums((by_moving * mean).addcmul_(by_fixed, self._mean, value=-1))
        result.addcmul_(self._fixed, self._windows.sums(by_fixed))
        return result.addcmul_(moving, self._windows.sums(by_moving).add_(overall), value=-1)


def local_correlation(
    fixed: torch.Tensor, warped: torch.Tensor, *, radius_vx: int = 4, eps: float = 1e-5, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """`LocalCorrelation` of two images `(B, 1, [z,] y, x)` in one call, a scalar."""
    return LocalCorrelation(fixed, radius_vx, eps=eps)(warped, mask)


def _centred(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each item less its mean, so that squares do not drown in it, and its variance `(B, 1, ...)`."""
    axes = tuple(range(1, image.ndim))
    deviation = image - image.mean(axes, keepdim=True)
    return deviation, deviation.square().mean(axes, keepdim=True)


class _Windows:
    """Sums over the windows around every voxel, and the share `1 / n` of a voxel in a window of n voxels."""

    def __init__(self, image: torch.Tensor, radius: int) -> None:
        self._radius = radius
        self.shares = _box_sum(torch.ones_like(image[:1]), radius).reciprocal_()

    def sums(self, volume: torch.Tensor) -> torch.Tensor:
        return _box_sum(volume, self._radius)

    def means(self, volume: torch.Tensor) -> torch.Tensor:
        return self.sums(volume).mul_(self.shares)

    def moments(self, volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance in each window; the variance is 0 where rounding is all there is."""
        mean, square = self.means(volume), self.means(volume.square())
        least = square * (_FLAT * torch.finfo(volume.dtype).eps)
        variance = square.addcmul_(mean, mean, value=-1)
        return mean, variance.mul_(variance > least)


def _box_sum(volume: torch.Tensor, radius: int) -> torch.Tensor:
    """Sum over windows of edge `2 radius + 1`, zeros outside: its own adjoint."""
    if volume.ndim == 4:
        return _axis_sum(_axis_sum(volume, radius, 3), radius, 2)
    result = torch.empty_like(volume)
    for into, part in zip(result.split(_SLAB, 2), volume.split(_SLAB, 2), strict=True):
        into.copy_(_axis_sum(_axis_sum(part, radius, 4), radius, 3))
    for rows in result.split(_SLAB, 3):
        rows.copy_(_axis_sum(rows, radius, 2))
    return result


def _axis_sum(volume: torch.Tensor, radius: int, axis: int) -> torch.Tensor:
    """A window is made of pieces of 1, 2, 4, ... voxels, each the sum of two shorter ones: fewer additions than voxels in the window."""
    length, edge = volume.shape[axis], 2 * radius + 1
    pieces = F.pad(volume, (0, 0) * (volume.ndim - 1 - axis) + (radius, radius))
    total, start, size = pieces.narrow(axis, 0, length).clone(), 1, 1
    while 2 * size <= edge:
        kept = pieces.shape[axis] - size
        pieces = pieces.narrow(axis, 0, kept) + pieces.narrow(axis, size, kept)
        size *= 2
        if edge & size:
            total.add_(pieces.narrow(axis, start, length))
            start += size
    return total
