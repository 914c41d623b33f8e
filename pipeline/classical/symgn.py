"""Symmetric Gauss-Newton registration by MIND: the deformable method that Simonovsky et al. (2016) compare with in their appendix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field as Setting
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.classical.linear_stage import AfterLinearStage
from pipeline.classical.pyramid import SMALLEST_AXIS, check_lengths
from pipeline.methods import Pair, Run
from pipeline.resampling import warp
from pipeline.threads import torch_threads
from pipeline.transforms import Field, Transform, compose
from pipeline.volumes import Geometry

if TYPE_CHECKING:
    from torch import Tensor

_PYRAMID_RADIUS_VX = 7  # Heinrich's code: Gaussian of 15 samples before a level's grid
_TENSOR_RADIUS_VX = 5  # his Matlab code: 11 samples
_INVERSE_ITERATIONS = 10  # his code
_INVERSE_TOLERANCE_VX = 1e-4  # ours: the iteration ends early where no vector moves by more


class SymGN(AfterLinearStage):
    """Symmetric Gauss-Newton optimisation of MIND (Heinrich et al., Med Image Anal 2012, section 4.2-4.3) with diffusion regularisation.

    Both images are warped half-way towards each other, so that fixed and moving play the same part. As published it works in
    voxels of the fixed grid, whatever their shape, and from the given position; the moving image is resampled to that grid first,
    with its smallest value outside (ours). The linear system is relaxed in red-black instead of lexicographic order (ours).
    About 60 single-precision volumes are held at the peak.
    """

    takes_masks: ClassVar[bool] = False

    levels: tuple[PositiveInt, ...] = Setting((4, 2, 1), description="shrink factor of each level, coarse to fine (authors' code)")
    warps: tuple[NonNegativeInt, ...] = Setting((8, 4, 2), description="Gauss-Newton steps at each level (authors' code)")
    alpha: PositiveFloat = Setting(0.2, description="weight of the regularisation (Simonovsky 2016: 0.2; authors' code: 0.1)")
    sigma_vx: PositiveFloat = Setting(0.5, description="Gaussian of MIND's patches, voxels of the level's grid (Simonovsky 2016)")
    variance_limits: Literal["mean", "power"] = Setting("mean", description="range of MIND's variance; 'power' depends on the intensities' unit")
    tensor_sigma_vx: NonNegativeFloat = Setting(0.5, description="smoothing of the equations (authors' Matlab code; their compiled code: 0)")
    sweeps: PositiveInt = Setting(25, description="sweeps of successive over-relaxation a step (authors' code)")
    relaxation: float = Setting(1.98, gt=0, lt=2, description="over-relaxation factor (authors' code)")

    @model_validator(mode="after")
    def _levels_agree(self) -> SymGN:
        check_lengths(levels=self.levels, warps=self.warps)
        return self

    def load(self) -> None:
        """torch, and elastix where there is a linear stage."""
        import torch  # noqa: F401

        super().load()

    def register(self, pair: Pair, run: Run) -> Transform:
        """The forward field on the fixed grid, followed by the linear stage."""
        import torch

        start, grid, moving = self.linear_start(pair, run), pair.fixed.geometry, pair.moving
        if self.linear != "none" or not moving.geometry.matches(grid):
            moving = warp(moving, start, grid, background=float(moving.array.min()))
        with torch_threads(run.threads):
            images = np.stack([pair.fixed.array, moving.array], dtype=np.float32, casting="unsafe")
            forward_vx = self.displacements_vx(torch.from_numpy(images)[:, None], run)[0]
        return compose(field_of(forward_vx, grid), start)

    def displacements_vx(self, images: Tensor, run: Run | None = None) -> Tensor:
        """Full displacements both ways, `(2, d, [z,] y, x)`, of fixed and moving image `(2, 1, [z,] y, x)` on one grid.

        Components are `(x, y[, z])` in voxels: `moving(p + first(p))` looks like `fixed(p)`, and `fixed(p + second(p))` like `moving(p)`.
        """
        import torch

        dimension = images.ndim - 2
        cost = np.repeat(1.0 / np.asarray(self.levels) ** dimension, self.warps)
        steps = iter(np.cumsum(cost) / cost.sum())
        fields = images.new_zeros((2, dimension, *[1] * dimension))
        with torch.no_grad():
            for level, warps in zip(self.levels, self.warps, strict=True):
                coarse = level_images(images, level)
                fields = level_fields(fields, coarse.shape[2:])
                for _ in range(warps):
                    fields = self._step(coarse, fields)
                    (run or Run()).report("symgn", float(next(steps)))
            return level_fields(fields, images.shape[2:])

    def _step(self, images: Tensor, fields: Tensor) -> Tensor:
        """One Gauss-Newton step of both fields, made symmetric."""
        from metrics.similarity.mind import mind

        warped = (sampled(images[1 - k : 2 - k], fields[k : k + 1] / 2) for k in (0, 1))
        descriptors = [mind(image, sigma_vx=self.sigma_vx, variance_limits=self.variance_limits) for image in warped]
        difference, derivatives = difference_and_derivatives(*descriptors)
        del descriptors
        for derivative, field in zip(derivatives, fields, strict=True):
            system = DiffusionSystem(*normal_equations(derivative, difference, self.tensor_sigma_vx), field, self.alpha)
            field += system.relaxed(self.sweeps, self.relaxation)
        return symmetrised(fields)


def field_of(displacement_vx: Tensor, geometry: Geometry) -> Field:
    """The transform of displacements `(d, [z,] y, x)` in voxels, components `(x, y[, z])`, on their grid."""
    return Field(np.moveaxis(displacement_vx.double().numpy(), 0, -1) @ geometry.index_to_physical.T, geometry)


def level_images(images: Tensor, level: int) -> Tensor:
    """The images smoothed by a Gaussian of half the shrink factor, on a grid so many times coarser, at least 4 voxels an axis (ours)."""
    from metrics.similarity.mind import gaussian_taps, smoothed

    size = images.shape[2:]
    images = smoothed(images, gaussian_taps(level / 2, _PYRAMID_RADIUS_VX), range(len(size)))
    return _resized(images, [max(round(n / level), min(n, SMALLEST_AXIS)) for n in size])


def level_fields(fields: Tensor, size: Sequence[int]) -> Tensor:
    """Displacements `(2, d, [z,] y, x)` carried to a grid of `size` voxels `([z,] y, x)` over the same box, in its voxels."""
    scale = fields.new_tensor([new / old for new, old in zip(size, fields.shape[2:], strict=True)][::-1])
    return _resized(fields, size) * scale.reshape(1, -1, *[1] * len(size))


def _resized(stack: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation between grids over the same box (outer voxel borders kept)."""
    from torch.nn.functional import interpolate

    if list(stack.shape[2:]) == list(size):
        return stack
    return interpolate(stack, tuple(size), mode={2: "bilinear", 3: "trilinear"}[len(size)], align_corners=False)


def sampled(stack: Tensor, fields_vx: Tensor) -> Tensor:
    """The stack `(B, C, [z,] y, x)` at p + field(p), linear, the outermost voxels repeated outside."""
    import torch

    size = fields_vx.shape[2:]
    where = fields_vx.movedim(1, -1).clone(memory_format=torch.contiguous_format)
    for component, n in enumerate(reversed(size)):
        line = [n if axis == len(size) - 1 - component else 1 for axis in range(len(size))]
        steps = torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1)
        where[..., component].mul_(2 / max(n - 1, 1)).add_(steps.reshape(line).to(where))
    return torch.nn.functional.grid_sample(stack, where, padding_mode="border", align_corners=True)


def difference_and_derivatives(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """S `([z,] y, x)` and its derivatives `(2, d, [z,] y, x)`, components `(x, y[, z])`, from two images' descriptors `(1, C, [z,] y, x)`.

    S is the mean absolute difference over channels. Its derivative to the motion of either image is that image moved one voxel on
    less moved one voxel back, each against the other image at rest; 0 on the border (authors' code).
    """
    first, second, dimension = first[0], second[0], first.ndim - 2
    derivatives = first.new_zeros((2, dimension, *first.shape[1:]))
    for component in range(dimension):
        axis = dimension - 1 - component
        pairs = (first, second), (second, first)
        ahead = [_mean_difference(_but_first(own, axis + 1), _but_last(other, axis + 1)) for own, other in pairs]
        for k in (0, 1):
            # one voxel back against the other image is, seen from there, the other image one voxel on
            inside = _but_first(_but_last(derivatives[k, component], axis), axis)
            inside.add_(_but_first(ahead[k], axis)).sub_(_but_last(ahead[1 - k], axis))
    return _mean_difference(first, second), derivatives


def _mean_difference(one: Tensor, two: Tensor) -> Tensor:
    """Mean of |one - two| over channels `(C, [z,] y, x)`, one after the other to hold no second stack."""
    return sum((a - b).abs_() for a, b in zip(one, two, strict=True)).div_(len(one))


def normal_equations(derivative: Tensor, difference: Tensor, sigma_vx: float) -> tuple[Tensor, Tensor]:
    """Gauss-Newton matrix (upper triangle, row by row: `(d (d + 1) / 2, [z,] y, x)`) and right side `(d, [z,] y, x)`, both smoothed."""
    from metrics.similarity.mind import gaussian_taps, smoothed

    d = len(derivative)
    products = [(derivative[a], derivative[b]) for a in range(d) for b in range(a, d)] + [(-derivative[a], difference) for a in range(d)]
    taps = gaussian_taps(sigma_vx, _TENSOR_RADIUS_VX) if sigma_vx else (1.0,)
    terms = derivative.new_empty((len(products), *difference.shape))
    for term, (one, two) in zip(terms, products, strict=True):
        term.copy_(smoothed((one * two)[None, None], taps, range(d))[0, 0])
    return terms[:-d], terms[-d:]


class DiffusionSystem:
    """`matrix v - alpha laplacian(field + v) = force` for an update v `(d, [z,] y, x)`; matrix and force as from `normal_equations`."""

    def __init__(self, matrix: Tensor, force: Tensor, field: Tensor, alpha: float) -> None:
        d = len(field)
        triangle = [(a, b) for a in range(d) for b in range(a, d)]
        diagonal, mixed = ([k for k, (a, b) in enumerate(triangle) if (a == b) is same] for same in (True, False))
        self.board, self.shape = _Checkerboard(field.shape[1:], field), field.shape  # below, all is divided by alpha
        self.inverse = self.board.split((matrix[diagonal] / alpha).add_(2 * d).reciprocal_())
        self.mixed = self.board.split(matrix[mixed] / alpha)
        self.right = self.board.split(laplacian(field).add_(force, alpha=1 / alpha))
        pairs = [set(triangle[k]) for k in mixed]
        self.coupled = [[(b, pairs.index({a, b})) for b in range(d) if b != a] for a in range(d)]

    def relaxed(self, sweeps: int, relaxation: float) -> Tensor:
        """v after `sweeps` of successive over-relaxation from 0.

        Voxels are relaxed as on a checkerboard, one colour after the other, within a voxel component by component: a sweep is
        a few passes over whole arrays (the order is ours; the authors' goes voxel by voxel).
        """
        update = self.board.split(self.right[0].new_zeros(self.shape))
        for _ in range(sweeps):
            for colour in (0, 1):
                own = update[colour]
                # across the border a voxel stands for its missing neighbour, as in the authors' code
                rest = self.board.neighbours(update[1 - colour], colour).addcmul_(self.board.missing[colour], own).add_(self.right[colour])
                for a, coupled in enumerate(self.coupled):
                    for b, pair in coupled:
                        rest[a].addcmul_(self.mixed[colour][pair], own[b], value=-1)
                    own[a].mul_(1 - relaxation).addcmul_(self.inverse[colour][a], rest[a], value=relaxation)
        return self.board.joined(update)


class _Checkerboard:
    """A grid in two colours, each packed along x: every neighbour of a voxel has the other colour and stands beside it, or one on."""

    def __init__(self, size: Sequence[int], like: Tensor) -> None:
        import torch

        self.size = tuple(size)
        rows = sum(torch.arange(n).reshape([-1 if a == axis else 1 for a in range(len(size))]) for axis, n in enumerate(size[:-1]))
        odd = (rows % 2).to(like).reshape(*size[:-1], 1)
        self.swap, self.starts_odd = odd.bool(), (odd, 1 - odd)
        present = self.split(like.new_ones((1, *size)))
        self.missing = tuple(2 * len(size) - self.neighbours(present[1 - colour], colour) for colour in (0, 1))

    def split(self, stack: Tensor) -> tuple[Tensor, Tensor]:
        """The voxels `(C, [z,] y, x)` of either colour; an odd row is filled up with 0."""
        import torch

        even = torch.nn.functional.pad(stack, (0, self.size[-1] % 2))
        even, odd = even[..., ::2], even[..., 1::2]
        return torch.where(self.swap, odd, even), torch.where(self.swap, even, odd)

    def joined(self, parts: tuple[Tensor, Tensor]) -> Tensor:
        """The inverse of `split`."""
        import torch

        both = torch.stack([torch.where(self.swap, parts[1], parts[0]), torch.where(self.swap, parts[0], parts[1])], -1)
        return both.flatten(-2)[..., : self.size[-1]]

    def neighbours(self, other: Tensor, colour: int) -> Tensor:
        """The sum over the neighbours of each voxel of a colour, given the voxels of the other one."""
        total = other.clone()
        for axis in range(1, len(self.size)):
            _but_first(total, axis).add_(_but_last(other, axis))
            _but_last(total, axis).add_(_but_first(other, axis))
        along, odd = len(self.size), self.starts_odd[colour]
        _but_first(total, along).addcmul_(_but_last(other, along), 1 - odd)
        _but_last(total, along).addcmul_(_but_first(other, along), odd)
        return total


def laplacian(field: Tensor) -> Tensor:
    """Sum of the differences to the 2 d neighbours `(d, [z,] y, x)`, none across the border."""
    total = field.new_zeros(field.shape)
    for axis in range(1, field.ndim):
        step = field.diff(dim=axis)
        _but_last(total, axis).add_(step)
        _but_first(total, axis).sub_(step)
    return total


def symmetrised(fields: Tensor) -> Tensor:
    """Full fields `(2, d, [z,] y, x)` from their halves: each followed by the inverse of the other (Heinrich et al. 2012, section 4.3)."""
    halves, full = fields / 2, fields.new_empty(fields.shape)
    for k in (0, 1):
        back = inverse_field(halves[1 - k])
        full[k] = sampled(halves[k : k + 1], back[None])[0].add_(back)
    return full


def inverse_field(field: Tensor) -> Tensor:
    """Inverse displacements `(d, [z,] y, x)` in voxels by fixed point."""
    inverse = -field
    for _ in range(_INVERSE_ITERATIONS - 1):
        before, inverse = inverse, sampled(field[None], inverse[None])[0].neg_()
        if before.sub_(inverse).abs_().max() < _INVERSE_TOLERANCE_VX:
            break
    return inverse


def _but_first(stack: Tensor, axis: int) -> Tensor:
    return stack.narrow(axis, 1, stack.shape[axis] - 1)


def _but_last(stack: Tensor, axis: int) -> Tensor:
    return stack.narrow(axis, 0, stack.shape[axis] - 1)
