"""Mutual information of Mattes et al., plain and normalised, from one joint histogram with a hand-written derivative.

Every sample adds a cubic B-spline to four cells of one row of the histogram. The four weights are cubic polynomials of where in its
moving bin the sample lies, so that each bin only needs the sums of four powers of that position, and the derivative of all samples
is one quadratic polynomial a cell: no array ever holds a weight for each sample and bin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from metrics.similarity.intensity import items, sample_weights, weighted_samples

Range = tuple[float, float]
_PADDING = 2  # empty bins at either end, where the B-spline of the outermost sample reaches (ITK's number)
_CHUNK = 1 << 14  # samples at a time: they fit in a core's cache, and torch does not call for other threads (ours)
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
    Raises `ValueError` for bins below 5, an empty range or mask, shapes that differ, and NaN among the warped values.
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
        for name, given in (("fixed_range", fixed_range), ("moving_range", moving_range)):
            if given is not None and not given[0] < given[1]:
                raise ValueError(f"{name} {tuple(given)}; expected (low, high) with low below high")
        self._bins, self._shape, self._moving_range = bins - 2 * _PADDING, fixed.shape, moving_range
        self._weight = None if mask is None else sample_weights(mask, fixed)
        self._cell = self._first_cells(items(fixed.detach()), fixed_range)

    def __call__(self, warped: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The value for a warped image of the shape of `fixed`, a scalar, differentiable with respect to `warped`."""
        return self._value(*_entropies(self._histogram(warped, mask))).mean().to(warped.dtype)

    @staticmethod
    def _value(fixed: torch.Tensor, moving: torch.Tensor, joint: torch.Tensor) -> torch.Tensor:
        return joint - fixed - moving

    def _first_cells(self, fixed: torch.Tensor, given: Range | None) -> torch.Tensor:
        """Where each sample's row of cells starts, `(batch, n)`: the row of its fixed bin, in the histogram of its item."""
        low, high = _range(fixed, self._weight, given)
        scale = torch.where(high > low, self._bins / (high - low), 0)  # one value alone: all samples fall into the first bin
        row = ((fixed.double() - low) * scale).nan_to_num_().clamp_(0, self._bins - 1).int()
        row += self._bins * torch.arange(len(fixed), dtype=torch.int32, device=fixed.device)[:, None]
        return row.mul_(self._bins + 2)

    def _histogram(self, warped: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Joint probabilities, `(batch, fixed bins, moving bins)`, double precision."""
        samples, weight = weighted_samples(warped, self._shape, self._weight, mask)
        low, high = _range(samples.detach(), weight, self._moving_range)
        # a little short of the true number of bins, so that rounding does not carry the largest value out of the range
        shrunk = self._bins * (1 - 4 * torch.finfo(warped.dtype).eps)
        scale = torch.where(high > low, shrunk / (high - low), 0)
        return _JointHistogram.apply(samples, weight, _Plan(self._cell, self._bins, low.to(warped.dtype), scale.to(warped.dtype)))


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


def _range(samples: torch.Tensor, weight: torch.Tensor | None, given: Range | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest value of each item, `(batch, 1)` double: those `given`, or those of the samples with a weight."""
    if given is not None:
        low, high = samples.new_tensor(given, dtype=torch.float64).expand(len(samples), 2).split(1, 1)
    elif weight is None:
        low, high = (extreme[:, None].double() for extreme in samples.aminmax(dim=1))
    else:
        low = samples.where(weight > 0, torch.inf).amin(1, keepdim=True).double()
        high = samples.where(weight > 0, -torch.inf).amax(1, keepdim=True).double()
    return low, high


def _entropies(joint: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """H(F), H(M) and H(F, M) in nats of each item, `(batch,)`. The derivative flows through the small histogram alone."""
    fixed, moving = joint.sum(2).detach(), joint.sum(1)
    return tuple(-(p * p.clamp_min(_LEAST).log()).flatten(1).sum(1) for p in (fixed, moving, joint))


@dataclass(frozen=True)
class _Plan:
    """All that turns samples into cells: first cell of each sample's row, bins within the range, and `(value - low) * scale` in bins.

    A row holds a cell for each bin and one more at either end, for the samples beyond the range, whose gradient is zero.
    """

    cell: torch.Tensor
    bins: int
    low: torch.Tensor
    scale: torch.Tensor

    def chunks(self) -> list[slice]:
        """Columns of `(batch, n)` to work on at a time."""
        batch, samples = self.cell.shape
        step = max(1, _CHUNK // batch)
        return [slice(start, start + step) for start in range(0, samples, step)]


class _JointHistogram(torch.autograd.Function):
    """From samples `(batch, n)` to joint probabilities `(batch, bins, bins + 4)`; sums are integers, so that order changes no bit."""

    @staticmethod
    def forward(ctx: Any, samples: torch.Tensor, weight: torch.Tensor | None, plan: _Plan) -> torch.Tensor:
        position, cell = torch.empty_like(samples), torch.empty_like(plan.cell)
        heaviest = 1.0 if weight is None else float(weight.max())
        # fixed point, as fine as 63 bits allow for the sum of all samples; a power of two keeps the products exact
        unit = 2.0 ** (61 - math.ceil(math.log2(samples.shape[1])) - math.ceil(math.log2(heaviest)))
        sums = torch.zeros(4, len(samples) * plan.bins * (plan.bins + 2), dtype=torch.int64, device=samples.device)
        for part in plan.chunks():
            position[:, part], cell[:, part] = _located(samples[:, part], plan, part)
            _add_powers(sums, position[:, part], cell[:, part], None if weight is None else weight[:, part], unit)
        if bool(position.sum().isnan()):
            raise ValueError("the warped image holds NaN; expected numbers: leave such samples out by a mask of weight 0")
        powers = sums.view(4, len(samples), plan.bins, plan.bins + 2).double() / unit
        total = powers[0].sum((1, 2), keepdim=True)
        ctx.plan, ctx.weight, ctx.total = plan, weight, total
        ctx.save_for_backward(position, cell)
        return _spread(powers) / total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        position, cell = ctx.saved_tensors
        table = _slopes(gradient / ctx.total * ctx.plan.scale[..., None].double()).to(position.dtype)
        result = torch.empty_like(position)
        for part in ctx.plan.chunks():
            index, s = cell[:, part].flatten(), position[:, part].flatten()
            slope = table[2].index_select(0, index).mul_(s).add_(table[1].index_select(0, index)).mul_(s).add_(table[0].index_select(0, index))
            result[:, part] = slope.view(len(position), -1)
        return (result if ctx.weight is None else result.mul_(ctx.weight)), None, None


def _located(samples: torch.Tensor, plan: _Plan, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Position in the bin, from -1/2 to 1/2, and index of the cell."""
    position = (samples - plan.low).mul_(plan.scale)
    # truncation, as `floor` waits for every thread even here; clamped again for NaN, which is told of later
    cell = position.add(1).clamp_(0, plan.bins + 1).int().clamp_(0, plan.bins + 1)
    # a sample beyond the range sits on the border between its outer cell and the first or last bin
    position.clamp_(0, plan.bins).sub_(cell.to(position.dtype)).add_(0.5)
    return position, cell.add_(plan.cell[:, part])


def _add_powers(sums: torch.Tensor, position: torch.Tensor, cell: torch.Tensor, weight: torch.Tensor | None, unit: float) -> None:
    """Adds weight times 1, s, s^2, s^3 of every sample to its cell, in units of 1 / `unit`."""
    s, index = position.flatten(), cell.flatten()
    term = (torch.ones_like(s) if weight is None else weight.flatten()) * unit
    for power in range(4):
        term = term.mul_(s) if power else term
        sums[power].index_add_(0, index, term.long())


def _spread(powers: torch.Tensor) -> torch.Tensor:
    """From sums of powers `(4, batch, bins, bins + 2)` a cell to the histogram `(batch, bins, bins + 4)`, padding bins included."""
    weights = torch.einsum("kj,jbfm->kbfm", powers.new_tensor(_SPLINE), powers)
    batch, rows, cells = powers.shape[1:]
    histogram = powers.new_zeros(batch, rows, cells + 3)  # its last bin gets nothing: samples above sit on the border
    for k in range(4):
        histogram[..., k : k + cells] += weights[k]
    return histogram[..., :-1]


def _slopes(gradient: torch.Tensor) -> torch.Tensor:
    """Coefficients of 1, s, s^2 of the derivative with respect to a sample, `(3, cells)`, from that of the histogram."""
    derivative = gradient.new_tensor(_SPLINE)[:, 1:] * gradient.new_tensor([1, 2, 3])
    windows = gradient.unfold(2, 4, 1)  # of the cells within the range
    inner = torch.einsum("kj,bfmk->jbfm", derivative, windows[:, :, 1:])
    return torch.nn.functional.pad(inner, (1, 1)).flatten(1)
