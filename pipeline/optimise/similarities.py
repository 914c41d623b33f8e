"""The one table of similarities that the loop can minimise: what each looks at, and how it is made for the fixed samples of a level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pipeline.optimise.moving import MovingImage
from pipeline.optimise.objective import Similarity

if TYPE_CHECKING:
    from pipeline.optimise.network import TrainedMetric

PAPER_BINS = 75
PARZEN_BINS = 48
"""At most, where none are set: the number of public scripts, as what a sample adds to costs time by the square of it."""
BINS_BY_SAMPLES = 1.3
"""Bins for the cubic root of the number of samples (ours): 75 from 192 000 on, 35 for 20 000."""


@dataclass(frozen=True)
class Level:
    """What a similarity may need to know of the level: the moving image, voxel size along `([z,] y, x)`, the trained network."""

    moving: MovingImage
    spacing_mm: tuple[float, ...]
    metric: TrainedMetric | None = None

    @cached_property
    def moving_range(self) -> tuple[float, float]:
        """Smallest and largest value of the moving image."""
        return float(self.moving.samples.min()), float(self.moving.samples.max())


class Kind(NamedTuple):
    """`grid`: it looks at neighbourhoods, so that it needs the dense lattice; `make(fixed, settings, level)` prepares it."""

    grid: bool
    make: Callable[[torch.Tensor, Any, Level], Similarity]


def _mean_squares(fixed: torch.Tensor, settings: Any, level: Level) -> Similarity:
    from metrics.similarity.intensity import MeanSquares

    return _Plain(MeanSquares(fixed))


def _correlation(fixed: torch.Tensor, settings: Any, level: Level) -> Similarity:
    from metrics.similarity.intensity import Correlation

    return _Plain(Correlation(fixed))


def _mutual_information(fixed: torch.Tensor, settings: Any, level: Level) -> Similarity:
    from metrics.similarity.mutual_information import MattesMutualInformation

    return _Plain(MattesMutualInformation(fixed, bins=_bins(settings, fixed), moving_range=level.moving_range))


def _normalised_mutual_information(fixed: torch.Tensor, settings: Any, level: Level) -> Similarity:
    from metrics.similarity.mutual_information import NormalisedMutualInformation

    return _Plain(NormalisedMutualInformation(fixed, bins=_bins(settings, fixed), moving_range=level.moving_range))


def _parzen_mutual_information(fixed: torch.Tensor, settings: Any, level: Level) -> Similarity:
    from metrics.similarity.parzen import ParzenMutualInformation

    low, high = float(fixed.min()), float(fixed.max())
    # one value alone falls into one bin of any range
    ranges = {"fixed_range": (low, high if low < high else low + 1), "moving_range": level.moving_range}
    return _Plain(ParzenMutualInformation(fixed, bins=settings.bins or min(PARZEN_BINS, _bins(settings, fixed)), **ranges))


def _bins(settings: Any, fixed: torch.Tensor) -> int:
    """What is set, or the paper's number as far as the samples can fill it: too many bins for them make every displacement look informative."""
    return settings.bins or min(PAPER_BINS, max(8, round(BINS_BY_SAMPLES * fixed.numel() ** (1 / 3))))


def _local_correlation(fixed: torch.Tensor, settings: Any, level: Level) -> Similarity:
    from metrics.similarity.local_correlation import LocalCorrelation

    return _Plain(LocalCorrelation(fixed, radius_vx=4 if settings.radius_vx is None else settings.radius_vx))


def _gradient_correlation(fixed: torch.Tensor, settings: Any, level: Level) -> Similarity:
    from metrics.similarity.gradient_correlation import GradientCorrelation

    return _Plain(GradientCorrelation(fixed, 4 if settings.radius_vx is None else settings.radius_vx, spacing_mm=level.spacing_mm))


def _gradient_fields(fixed: torch.Tensor, settings: Any, level: Level) -> Similarity:
    from metrics.similarity.gradients import NormalisedGradientFields, mean_gradient_magnitude

    # what counts as noise is read off the moving image itself, once: the warped one changes
    spacing = tuple(reversed(level.moving.geometry.spacing_mm))
    eta = float(mean_gradient_magnitude(level.moving.samples[None, None], spacing_mm=spacing))
    return _Plain(NormalisedGradientFields(fixed, spacing_mm=level.spacing_mm, eta_moving=eta))


def descriptor_of(settings: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """MIND or MIND-SSC as the settings want it."""
    from metrics.similarity.mind import mind, mind_ssc

    if settings.similarity == "mind":
        return partial(mind, sigma_vx=settings.sigma_vx)
    radius = 2 if settings.radius_vx is None else settings.radius_vx
    return partial(mind_ssc, radius_vx=radius, dilation_vx=settings.dilation_vx)


def _descriptors(fixed: torch.Tensor, settings: Any, level: Level) -> Similarity:
    return _Descriptors(fixed, descriptor_of(settings))


def _patch_cnn(fixed: torch.Tensor, settings: Any, level: Level) -> Similarity:
    from metrics.similarity.patch_cnn import PatchCnnSimilarity

    extra = {"grid": settings.patch_grid, "most_outputs": settings.most_patches, "precision": settings.precision}
    network = level.metric.network
    return _Alternating([PatchCnnSimilarity(fixed, n, swap=level.metric.swap, **extra) for n in (network, network.mirrored())])


SIMILARITIES: dict[str, Kind] = {
    "mean-squares": Kind(False, _mean_squares),
    "ncc": Kind(False, _correlation),
    "mi": Kind(False, _mutual_information),
    "nmi": Kind(False, _normalised_mutual_information),
    "parzen-mi": Kind(False, _parzen_mutual_information),
    "lncc": Kind(True, _local_correlation),
    "lg": Kind(True, _gradient_correlation),
    "ngf": Kind(True, _gradient_fields),
    "mind": Kind(True, _descriptors),
    "mind-ssc": Kind(True, _descriptors),
    "patch-cnn": Kind(True, _patch_cnn),
}


class _Plain:
    """A similarity that does not care which iteration it is."""

    def __init__(self, metric: Callable[..., torch.Tensor]) -> None:
        self.metric = metric

    def __call__(self, warped: torch.Tensor, mask: torch.Tensor | None = None, *, iteration: int = 0) -> torch.Tensor:
        return self.metric(warped, mask)


class _Alternating:
    """One of several equivalent similarities each iteration, in turn.

    A fitted network has its optimum up to half a voxel beside the truth; the network for mirrored patches has it on the other side
    (ours). Step by step in turn costs nothing, and the steps' mean knows no side.
    """

    def __init__(self, metrics: Sequence[Similarity]) -> None:
        self.metrics = metrics

    def __call__(self, warped: torch.Tensor, mask: torch.Tensor | None = None, *, iteration: int = 0) -> torch.Tensor:
        turn, which = divmod(iteration, len(self.metrics))
        return self.metrics[which](warped, mask, iteration=turn)


class _Descriptors:
    """Mean squared difference of descriptors; those of the fixed image are computed once."""

    def __init__(self, fixed: torch.Tensor, descriptor: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.descriptor = descriptor
        with torch.no_grad():
            self.fixed = descriptor(fixed)

    def __call__(self, warped: torch.Tensor, mask: torch.Tensor | None = None, *, iteration: int = 0) -> torch.Tensor:
        from metrics.similarity.mind import mind_ssd

        return mind_ssd(self.fixed, warped, descriptor=self.descriptor, mask=mask)
