"""Local squared normalised correlation: how well a linear map explains the warped image by the fixed one, window by window.

Images are `(B, 1, [z,] y, x)`. Windows end at the border of the image: means and variances are those of the voxels inside. All sums
over windows are separable, and the derivative is three more such sums, taken along with the value.
"""

from __future__ import annotations

import torch

from metrics.similarity.grid import ValueWithGradient, check_image, check_pair, map_weights
from metrics.similarity.windows import box_shares, box_sum

_FLAT = 16  # a window whose variance is below so many units of rounding of its mean square is flat (ours)
_PART = 1 << 15  # voxels at a time: what is reckoned of them stays in a core's cache (ours)


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
        self._eps, self._radius, self._shares = eps, radius_vx, box_shares(image, radius_vx)
        self._weight = None if mask is None else map_weights(mask, fixed)
        deviation, variance = _centred(image)
        # of unit variance: the products then stay far from the limits of single precision
        self._fixed = deviation.div_(variance.sqrt().where(variance > 0, 1))
        self._mean = box_sum(self._fixed, radius_vx).mul_(self._shares)
        self._variance = _variance(box_sum(self._fixed, radius_vx, self._fixed).mul_(self._shares), self._mean)

    def __call__(self, warped: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The value for a warped image of the shape of `fixed`, a scalar, differentiable with respect to `warped`."""
        check_pair(self._fixed.shape, warped.shape)
        weight = self._weight if mask is None else map_weights(mask, warped, self._weight)
        return ValueWithGradient.apply(warped, lambda image, gradient: self._value_and_gradient(image, weight, gradient=gradient))

    def _value_and_gradient(self, warped: torch.Tensor, weight: torch.Tensor | None, *, gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The value and, if asked for, its derivative with respect to `warped`; `weight` of the local values sums up to 1."""
        moving, overall = _centred(warped)
        sums = tuple(box_sum(moving, self._radius, other) for other in (None, moving, self._fixed))
        value, change = self._local_values(sums, overall, weight, gradient=gradient)
        if not gradient:
            return value, None
        rest, by_moving, by_fixed = (box_sum(field, self._radius) for field in sums)
        by_moving.add_(change)
        return value, rest.addcmul_(self._fixed, by_fixed).addcmul_(moving, by_moving, value=-1)

    def _local_values(
        self, sums: tuple[torch.Tensor, ...], overall: torch.Tensor, weight: torch.Tensor | None, *, gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The value; with `gradient` also the change `(B, 1, ...)` of every window with the variance of the whole image, and in place of `sums` what the derivative sums.

        `sums` are those of M, M M and M F over the windows. With r = cross / denominator, a voxel k of window i changes the local value by
        2 r (F_k - mF) - 2 r^2 varF (M_k - mM), over n_i. Its share in the variance of the whole image changes every window by -r^2 eps.
        """
        fields = [field.flatten(1) for field in (*sums, self._mean, self._variance)]
        shares, weights = self._shares.flatten(1), None if weight is None else weight.flatten(1)
        overall, count = overall.flatten(1), fields[0].numel()
        value, change = (torch.zeros_like(overall) for _ in range(2))
        # a part of all items at a time, which a core's cache holds
        step = max(1, _PART // len(overall))
        for start in range(0, shares.shape[1], step):
            part = slice(start, start + step)
            mean, square, cross, fixed_mean, fixed_variance = (field[:, part] for field in fields)
            share = shares[:, part]
            for of_window in (mean, square, cross):
                of_window.mul_(share)
            both = _variance(square, mean).mul_(fixed_variance)
            cross.addcmul_(mean, fixed_mean, value=-1).mul_(both > 0)
            ratio = (cross / both.add_(self._eps * overall)).nan_to_num_(0, 0, 0)  # without eps a flat window is 0 / 0
            local = cross.mul_(ratio)
            value -= local.sum(1, keepdim=True) / count if weights is None else (local * weights[:, part]).sum(1, keepdim=True)
            if not gradient:
                continue
            by_fixed = torch.mul(ratio, -2.0 / count if weights is None else weights[:, part] * -2.0, out=cross)
            by_moving = torch.mul(by_fixed, ratio, out=square)
            change += by_moving.sum(1, keepdim=True)
            by_fixed.mul_(share)
            by_moving.mul_(fixed_variance).mul_(share)
            mean.mul_(by_moving).addcmul_(by_fixed, fixed_mean, value=-1)
        change = change * (self._eps / shares.shape[1])
        return value.sum(), change.view(-1, *[1] * (sums[0].ndim - 1))


def local_correlation(
    fixed: torch.Tensor, warped: torch.Tensor, *, radius_vx: int = 4, eps: float = 1e-5, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """`LocalCorrelation` of two images `(B, 1, [z,] y, x)` in one call, a scalar."""
    return LocalCorrelation(fixed, radius_vx, eps=eps)(warped, mask)


def _centred(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each item less its mean, so that squares do not drown in it, and its variance `(B, 1, ...)`."""
    axes = tuple(range(1, image.ndim))
    deviation = image - image.mean(axes, keepdim=True)
    return deviation, torch.linalg.vector_norm(deviation, dim=axes, keepdim=True).square_().div_(image[0].numel())


def _variance(square: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Variance from the mean square, which is overwritten, and the mean; 0 where rounding is all there is."""
    least = square * (_FLAT * torch.finfo(square.dtype).eps)
    variance = square.addcmul_(mean, mean, value=-1)
    return variance.mul_(variance > least)
