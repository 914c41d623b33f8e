"""Joint histograms of two images from sums of powers, with a hand-written derivative.

A moving sample spreads over the bins near it. Its weights there are polynomials of where in its cell of the moving axis it lies, so that
each cell only needs the sums of a few powers of that position, and the derivative of all samples is one polynomial a cell: no array
ever holds a weight for each sample and bin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from metrics.similarity.intensity import items, sample_weights, weighted_samples

Range = tuple[float, float]
_CHUNK = 1 << 14  # samples at a time: they fit in a core's cache, and torch does not call for other threads (ours)


class Windows(Protocol):
    """How the samples of a cell spread over bins.

    The fixed range is divided into `rows`, the moving one into `cells`; a row holds one more cell at either end for the samples
    beyond the range, which sit on its border and have no gradient. `powers` is the number of powers, 1, s, s^2, ..., of the position s,
    from -1/2 to 1/2 in a cell. `double`: histograms of single-precision images are reckoned in double precision all the same.
    """

    rows: int
    cells: int
    powers: int
    double: bool

    def spread(self, sums: torch.Tensor) -> torch.Tensor:
        """From sums of powers `(powers, batch, rows, cells + 2)` to the histogram `(batch, fixed bins, moving bins)`."""

    def slopes(self, gradient: torch.Tensor) -> torch.Tensor:
        """Coefficients `(powers - 1, batch * rows * (cells + 2))` of a sample's derivative, by cells, from that of the histogram."""


class JointHistogram:
    """Joint probabilities `(batch, fixed bins, moving bins)` of a fixed image and any warped one, differentiable by the warped one.

    `fixed` holds samples of any shape; four or more axes are `(batch, 1, [z,] y, x)`: a histogram for each item. `moving_range` defaults
    to that of each warped image, a constant to the derivative, `fixed_range` to that of `fixed`; values beyond a range count as its ends.
    `mask` weights the samples, here and in a call (both: their product); weight 0 leaves a sample out. Sums are integers, so that
    their order changes no bit. Raises `ValueError` for an empty range or mask, shapes that differ, and NaN where samples count.
    """

    def __init__(
        self, fixed: torch.Tensor, windows: Windows, *, fixed_range: Range | None, moving_range: Range | None, mask: torch.Tensor | None
    ) -> None:
        for name, given in (("fixed_range", fixed_range), ("moving_range", moving_range)):
            if given is not None and not given[0] < given[1]:
                raise ValueError(f"{name} {tuple(given)}; expected (low, high) with low below high")
        self._windows, self._shape, self._moving_range = windows, fixed.shape, moving_range
        self._weight = None if mask is None else sample_weights(mask, fixed)
        known = items(fixed.detach())
        self._missing = known.isnan() if bool(known.sum().isnan()) else None
        self._cell = self._first_cells(known, fixed_range)

    def __call__(self, warped: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The probabilities for a warped image of the shape of `fixed`."""
        samples, weight = weighted_samples(warped, self._shape, self._weight, mask)
        if self._missing is not None and (weight is None or bool((weight[self._missing] > 0).any())):
            raise ValueError("the fixed image holds NaN; expected numbers: leave such samples out by a mask of weight 0")
        low, high = _range(samples.detach(), weight, self._moving_range)
        # a little short of the true number of cells, so that rounding does not carry the largest value out of the range
        shrunk = self._windows.cells * (1 - 4 * torch.finfo(warped.dtype).eps)
        scale = torch.where(high > low, shrunk / (high - low), 0)
        return _PowerSums.apply(samples, weight, _Plan(self._cell, self._windows, low.to(warped.dtype), scale.to(warped.dtype)))

    def _first_cells(self, fixed: torch.Tensor, given: Range | None) -> torch.Tensor:
        """Where each sample's row of cells starts, `(batch, n)`: the row of its fixed value, in the histogram of its item."""
        low, high = _range(fixed, self._weight, given)
        rows = self._windows.rows
        scale = torch.where(high > low, rows / (high - low), 0)  # one value alone: all samples fall into the first row
        row = (fixed - low).mul_(scale).nan_to_num_().clamp_(0, rows - 1).int()
        if len(fixed) > 1:
            row += rows * torch.arange(len(fixed), dtype=torch.int32, device=fixed.device)[:, None]
        return row.mul_(self._windows.cells + 2)


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


@dataclass(frozen=True)
class _Plan:
    """All that turns samples into cells: first cell of each sample's row, the windows, and `(value - low) * scale` in cells."""

    cell: torch.Tensor
    windows: Windows
    low: torch.Tensor
    scale: torch.Tensor

    def chunks(self) -> list[slice]:
        """Columns of `(batch, n)` to work on at a time."""
        batch, samples = self.cell.shape
        step = max(1, _CHUNK // batch)
        return [slice(start, start + step) for start in range(0, samples, step)]


class _PowerSums(torch.autograd.Function):
    """From samples `(batch, n)` to joint probabilities."""

    @staticmethod
    def forward(ctx: Any, samples: torch.Tensor, weight: torch.Tensor | None, plan: _Plan) -> torch.Tensor:
        windows, batch = plan.windows, len(samples)
        position, cell = torch.empty_like(samples), torch.empty_like(plan.cell)
        heaviest = 1.0 if weight is None else float(weight.max())
        # fixed point, as fine as 63 bits allow for the sum of all samples; a power of two keeps the products exact
        unit = 2.0 ** (61 - math.ceil(math.log2(samples.shape[1])) - math.ceil(math.log2(heaviest)))
        sums = torch.zeros(windows.powers, batch * windows.rows * (windows.cells + 2), dtype=torch.int64, device=samples.device)
        for part in plan.chunks():
            position[:, part], cell[:, part] = _located(samples[:, part], plan, part)
            _add_powers(sums, position[:, part], cell[:, part], None if weight is None else weight[:, part], unit)
        if bool(position.sum().isnan()):
            raise ValueError("the warped image holds NaN; expected numbers: leave such samples out by a mask of weight 0")
        precision = torch.float64 if windows.double else samples.dtype
        powers = sums.view(windows.powers, batch, windows.rows, windows.cells + 2).to(precision)
        total = powers[0].sum((1, 2), keepdim=True)
        ctx.plan, ctx.weight, ctx.total = plan, weight, total / unit
        ctx.save_for_backward(position, cell)
        return windows.spread(powers) / total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        position, cell = ctx.saved_tensors
        table = ctx.plan.windows.slopes(gradient / ctx.total * ctx.plan.scale[..., None].to(gradient.dtype)).to(position.dtype)
        result = torch.empty_like(position)
        for part in ctx.plan.chunks():
            index, s = cell[:, part].flatten(), position[:, part].flatten()
            slope = table[-1].index_select(0, index)
            for power in range(len(table) - 2, -1, -1):
                slope.mul_(s).add_(table[power].index_select(0, index))
            result[:, part] = slope.view(len(position), -1)
        return (result if ctx.weight is None else result.mul_(ctx.weight)), None, None


def _located(samples: torch.Tensor, plan: _Plan, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Position in the cell, from -1/2 to 1/2, and index of the cell."""
    cells = plan.windows.cells
    position = (samples - plan.low).mul_(plan.scale)
    # truncation, as `floor` waits for every thread even here; clamped again for NaN, which is told of later
    cell = position.add(1).clamp_(0, cells + 1).int().clamp_(0, cells + 1)
    # a sample beyond the range sits on the border between its outer cell and the first or last one
    position.clamp_(0, cells).sub_(cell.to(position.dtype)).add_(0.5)
    return position, cell.add_(plan.cell[:, part])


def _add_powers(sums: torch.Tensor, position: torch.Tensor, cell: torch.Tensor, weight: torch.Tensor | None, unit: float) -> None:
    """Adds weight times 1, s, s^2, ... of every sample to its cell, in units of 1 / `unit`."""
    s, index = position.flatten(), cell.flatten()
    term = (torch.ones_like(s) if weight is None else weight.flatten()) * unit
    for number, of_power in enumerate(sums):
        term = term.mul_(s) if number else term
        of_power.index_add_(0, index, term.long())
