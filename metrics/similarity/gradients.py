"""Normalised gradient fields: images agree where their edges run alike, whatever the contrast across them.

Images are `(B, 1, [z,] y, x)`; gradients are central differences per mm, with the outermost voxel repeated beyond the border.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from metrics.similarity.grid import ValueWithGradient, check_image, check_pair, map_weights


class NormalisedGradientFields:
    """Mean of `1 - (|<gF, gM>| + etaF etaM)^2 / ((|gF|^2 + etaF^2) (|gM|^2 + etaM^2))`, from 0 (best) to 1.

    Haber and Modersitzki (MICCAI 2006) with an eta for each image. The magnitude of the scalar product is ours: it makes the value
    blind to contrast inversion, and an image with itself gives 0 everywhere. An edge costs where the other image is flat.

    Gradients well below eta count as noise. `eta` and `eta_moving` are in intensity per mm and default to `mean_gradient_magnitude`
    (ours) of `fixed` and, a constant to the derivative, of each warped image: give that of the moving image to keep it during a run.
    `spacing_mm` is one number or `([z,] y, x)`.

    `fixed` is `(B, 1, [z,] y, x)`. `mask` `(B or 1, 1, [z,] y, x)` weights the map of local values; given here and in a call, their
    product counts. Raises `ValueError` for another shape, a spacing or an eta that is not positive, and an empty mask.
    """

    def __init__(
        self,
        fixed: torch.Tensor,
        *,
        eta: float | None = None,
        eta_moving: float | None = None,
        spacing_mm: float | Sequence[float] = 1.0,
        mask: torch.Tensor | None = None,
    ) -> None:
        for name, given in (("eta", eta), ("eta_moving", eta_moving)):
            if given is not None and not given > 0:
                raise ValueError(f"{name} {given}; expected a positive gradient magnitude in intensity per mm")
        image = check_image(fixed).detach()
        self._spacing, self._eta_moving = _checked_spacing(spacing_mm, image.ndim - 2), eta_moving
        self._weight = None if mask is None else map_weights(mask, fixed)
        self._fixed, _ = _edges(image, self._spacing, eta)
        self._share = _squares(self._fixed).add_(1).reciprocal_()
        self._shape = fixed.shape

    def __call__(self, warped: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The value for a warped image of the shape of `fixed`, a scalar, differentiable with respect to `warped`."""
        check_pair(self._shape, warped.shape)
        weight = self._weight if mask is None else map_weights(mask, warped, self._weight)
        return ValueWithGradient.apply(warped, lambda image, gradient: self._value_and_gradient(image, weight, gradient=gradient))

    def _value_and_gradient(self, warped: torch.Tensor, weight: torch.Tensor | None, *, gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The value and, if asked for, its derivative with respect to `warped`; `weight` of the local values sums up to 1."""
        moving, eta = _edges(warped, self._spacing, self._eta_moving)
        product = _sum_of_products(self._fixed, moving)
        share = _squares(moving).add_(1).reciprocal_()
        root = product.abs().add_(1).mul_(share)
        local = (root * root).div_(share).mul_(self._share)
        value = 1 - (local.mean() if weight is None else (local * weight).sum())
        if not gradient:
            return value, None
        # the local value is 1 - (|p| + 1)^2 a b, with a = 1 / (|F|^2 + 1), b = 1 / (|M|^2 + 1): its derivative is
        # -2 (|p| + 1) sign(p) a b F + 2 (|p| + 1)^2 a b^2 M
        by_fixed = root.mul_(self._share).mul_(product.sign_())
        by_moving = local.mul_(share)
        for factor in (by_fixed, by_moving):
            factor.mul_(2.0 / local.numel() if weight is None else 2.0 * weight)
        result = torch.zeros_like(warped)
        for axis, (f, m, step) in enumerate(zip(self._fixed, moving, self._spacing, strict=True), start=2):
            slope = m.mul_(by_moving).addcmul_(f, by_fixed, value=-1).div_(2 * step * eta)
            _add_difference_adjoint(result, slope, axis)
        return value, result


def normalised_gradient_fields(
    fixed: torch.Tensor,
    warped: torch.Tensor,
    *,
    eta: float | None = None,
    eta_moving: float | None = None,
    spacing_mm: float | Sequence[float] = 1.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`NormalisedGradientFields` of two images `(B, 1, [z,] y, x)` in one call, a scalar."""
    return NormalisedGradientFields(fixed, eta=eta, eta_moving=eta_moving, spacing_mm=spacing_mm)(warped, mask)


def mean_gradient_magnitude(image: torch.Tensor, *, spacing_mm: float | Sequence[float] = 1.0) -> torch.Tensor:
    """Mean length of the gradient of each item of `(B, 1, [z,] y, x)`, in intensity per mm, `(B,)`."""
    image = check_image(image).detach()
    return _mean_length(_differences(image, _checked_spacing(spacing_mm, image.ndim - 2))).flatten()


def _checked_spacing(spacing_mm: float | Sequence[float], dimension: int) -> tuple[float, ...]:
    spacing = (float(spacing_mm),) * dimension if isinstance(spacing_mm, (int, float)) else tuple(float(s) for s in spacing_mm)
    if len(spacing) != dimension or not min(spacing) > 0:
        raise ValueError(f"spacing_mm {spacing}; expected one positive number, or {dimension} of them in the order of the axes")
    return spacing


def _edges(image: torch.Tensor, spacing: Sequence[float], eta: float | None) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The gradient in units of eta, one `(B, 1, [z,] y, x)` an axis, and eta `(B, 1, ...)`."""
    gradient = _differences(image.detach(), spacing)
    scale = _mean_length(gradient) if eta is None else image.new_full((1,) * image.ndim, eta)
    scale = scale.where(scale > 0, 1)  # an image without edges has none in any unit
    return [component.div_(scale) for component in gradient], scale


def _differences(image: torch.Tensor, spacing: Sequence[float]) -> list[torch.Tensor]:
    result = []
    for axis, step in enumerate(spacing, start=2):
        inner = image.shape[axis] - 1
        after = torch.cat([image.narrow(axis, 1, inner), image.narrow(axis, inner, 1)], axis)
        after.narrow(axis, 1, inner).sub_(image.narrow(axis, 0, inner))
        after.narrow(axis, 0, 1).sub_(image.narrow(axis, 0, 1))
        result.append(after.div_(2 * step))
    return result


def _add_difference_adjoint(result: torch.Tensor, slope: torch.Tensor, axis: int) -> None:
    """What each voxel contributed to the differences `image[i + 1] - image[i - 1]` along an axis, outermost voxels repeated."""
    inner = slope.shape[axis] - 1
    result.narrow(axis, 1, inner).add_(slope.narrow(axis, 0, inner))
    result.narrow(axis, inner, 1).add_(slope.narrow(axis, inner, 1))
    result.narrow(axis, 0, inner).sub_(slope.narrow(axis, 1, inner))
    result.narrow(axis, 0, 1).sub_(slope.narrow(axis, 0, 1))


def _sum_of_products(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> torch.Tensor:
    total = first[0] * second[0]
    for a, b in zip(first[1:], second[1:], strict=True):
        total.addcmul_(a, b)
    return total


def _squares(gradient: Sequence[torch.Tensor]) -> torch.Tensor:
    return _sum_of_products(gradient, gradient)


def _mean_length(gradient: Sequence[torch.Tensor]) -> torch.Tensor:
    return _squares(gradient).sqrt_().mean(tuple(range(1, gradient[0].ndim)), keepdim=True)
