"""Mutual information of Mattes et al., plain and normalised: every sample adds a cubic B-spline to four cells of one row of a joint histogram."""

from __future__ import annotations

import torch

from metrics.similarity.joint_histogram import JointHistogram, Range

_PADDING = 2  # empty bins at either end, where the B-spline of the outermost sample reaches (ITK's number)
_LEAST = 1e-16  # probabilities below it count as this in a logarithm (ours, near ITK's)
# cubic B-spline at the bins -1, 0, 1, 2 from a sample at 1/2 + s of bin 0: rows, coefficients of 1, s, s^2, s^3: columns
_SPLINE = ((1 / 48, -1 / 8, 1 / 4, -1 / 6), (23 / 48, -5 / 8, -1 / 4, 1 / 2), (23 / 48, 5 / 8, -1 / 4, -1 / 2), (1 / 48, 1 / 8, 1 / 4, 1 / 6))


class MattesMutualInformation:
    """Negative mutual information in nats (Mattes et al., IEEE TMI 2003), as ITK's `MattesMutualInformationImageToImageMetricv4` has it.

    `bins` along either axis of the histogram, two of them empty at both ends; the fixed value falls into one bin, the moving value is
    spread by a cubic B-spline. `moving_range` is that of the whole moving image (default: the range of each warped image, a constant
    to the derivative); values beyond it count as its ends, with zero gradient. `fixed_range` defaults to that of `fixed`.

    `fixed` holds samples of any shape; four or more axes are `(batch, 1, [z,] y, x)`: a histogram for each item, and the mean of the
    values. `mask` weights the samples, here and in a call (both: their product); weight 0 leaves a sample out.
    Raises `ValueError` for bins below 5, an empty range or mask, shapes that differ, and NaN where samples count.
    """

    def __init__(
        self,
        fixed: torch.Tensor,
        bins: int = 75,
        *,
        moving_range: Range | None = None,
        fixed_range: Range | None = None,
        mask: torch.Tensor | None = None,
    ) -> None:
        if bins < 2 * _PADDING + 1:
            raise ValueError(f"{bins} bins; expected 5 or more: two at either end stay empty")
        windows = _BSplines(bins - 2 * _PADDING)
        self._histogram = JointHistogram(fixed, windows, fixed_range=fixed_range, moving_range=moving_range, mask=mask)

    def __call__(self, warped: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The value for a warped image of the shape of `fixed`, a scalar, differentiable with respect to `warped`."""
        return self._value(*_entropies(self._histogram(warped, mask))).mean().to(warped.dtype)

    @staticmethod
    def _value(fixed: torch.Tensor, moving: torch.Tensor, joint: torch.Tensor) -> torch.Tensor:
        return joint - fixed - moving


class NormalisedMutualInformation(MattesMutualInformation):
    """Negative normalised mutual information `-(H(F) + H(M)) / H(F, M)` (Studholme et al., Pattern Recognition 1999), from -2 to -1.

    Histogram, arguments and errors are those of `MattesMutualInformation`. As the B-spline blurs moving values over bins, an image
    with itself stays above -2.
    """

    @staticmethod
    def _value(fixed: torch.Tensor, moving: torch.Tensor, joint: torch.Tensor) -> torch.Tensor:
        return -(fixed + moving) / joint


def mutual_information(
    fixed: torch.Tensor,
    warped: torch.Tensor,
    *,
    bins: int = 75,
    moving_range: Range | None = None,
    fixed_range: Range | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`MattesMutualInformation` of two images in one call, a scalar; both ranges default to those of the images given."""
    return MattesMutualInformation(fixed, bins, moving_range=moving_range, fixed_range=fixed_range, mask=mask)(warped)


def normalised_mutual_information(
    fixed: torch.Tensor,
    warped: torch.Tensor,
    *,
    bins: int = 75,
    moving_range: Range | None = None,
    fixed_range: Range | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`NormalisedMutualInformation` of two images in one call, a scalar; both ranges default to those of the images given."""
    return NormalisedMutualInformation(fixed, bins, moving_range=moving_range, fixed_range=fixed_range, mask=mask)(warped)


def _entropies(joint: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """H(F), H(M) and H(F, M) in nats of each item, `(batch,)`. The derivative flows through the small histogram alone."""
    fixed, moving = joint.sum(2).detach(), joint.sum(1)
    return tuple(-(p * p.clamp_min(_LEAST).log()).flatten(1).sum(1) for p in (fixed, moving, joint))


class _BSplines:
    """`bins` on either axis within the range: fixed samples fall into one row, moving ones are spread over four bins."""

    powers = 4
    double = True

    def __init__(self, bins: int) -> None:
        self.rows = self.cells = bins

    def spread(self, sums: torch.Tensor) -> torch.Tensor:
        """The histogram `(batch, bins, bins + 4)`, padding bins included."""
        weights = torch.einsum("kj,jbfm->kbfm", sums.new_tensor(_SPLINE), sums)
        batch, rows, cells = sums.shape[1:]
        histogram = sums.new_zeros(batch, rows, cells + 3)  # its last bin gets nothing: samples above sit on the border
        for k in range(4):
            histogram[..., k : k + cells] += weights[k]
        return histogram[..., :-1]

    def slopes(self, gradient: torch.Tensor) -> torch.Tensor:
        """Coefficients of 1, s, s^2."""
        derivative = gradient.new_tensor(_SPLINE)[:, 1:] * gradient.new_tensor([1, 2, 3])
        windows = gradient.unfold(2, 4, 1)  # of the cells within the range
        inner = torch.einsum("kj,bfmk->jbfm", derivative, windows[:, :, 1:])
        return torch.nn.functional.pad(inner, (1, 1)).flatten(1)
