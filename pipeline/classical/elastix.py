"""Mutual information through elastix: the baseline of Simonovsky et al. (2016), and the settings of every elastix method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pipeline.classical.elastix_run import ParameterMap, load_elastix, register_images
from pipeline.methods import Method, Pair, Run
from pipeline.starting import FEWEST_SAMPLES, Initialise, common_voxels, masked_by_threshold, placed_earlier, starting_shift
from pipeline.transforms import Linear, Transform, compose
from pipeline.volumes import Geometry, Volume, box_of

Stage = Literal["translation", "rigid", "similarity", "affine", "bspline"]
_TRANSFORMS = {
    "translation": "TranslationTransform",
    "rigid": "EulerTransform",
    "similarity": "SimilarityTransform",
    "affine": "AffineTransform",
    "bspline": "BSplineTransform",
}
_PYRAMIDS = {name: f"{name}SmoothingImagePyramid" for name in ("Fixed", "Moving")}
_SPARSE = 0.3  # ours: share of its bounding box from which a mask is sampled by trial, between voxels too; elastix gives up after 10 tries
_BSPLINE_STEP_VX = 0.1  # ours: elastix's own whole voxel made B-splines run away on images without a quiet background


class ElastixMethod(Method):
    """Settings and course of every method that elastix runs; subclasses say what is compared and how.

    Stages run one after the other, each from coarse to fine: T(x) = T_last(… T_first(x)). The fixed mask says where samples
    are drawn, the moving mask where they may land.
    """

    stages: tuple[Stage, ...] = Field(("similarity", "bspline"), min_length=1, description="transform models in order (default: the paper's)")
    levels: int = Field(2, ge=1, le=8, description="resolutions a stage, each half of the next (paper: 2)")
    control_points: int = Field(
        10, ge=4, le=200, description="control points an axis on the finest level, border included (paper: 1000 = 10 x 10 x 10)"
    )
    control_point_spacing_mm: float | None = Field(
        None, gt=0, description="control-point spacing on the finest level in mm; overrides control_points"
    )
    iterations: int = Field(500, ge=1, description="iterations a level (paper: 500)")
    optimiser: Literal["asgd", "regular-step"] = Field(
        "asgd", description="asgd: fresh samples each iteration (ours); regular-step: fixed samples (paper)"
    )
    samples: int | None = Field(None, ge=FEWEST_SAMPLES, description="sample points; default 8192 with asgd (ours), 200000 with regular-step (paper)")
    mask_threshold: float | None = Field(None, ge=0, lt=1, description="use only what is brighter, intensities scaled to [0, 1] (paper's MI+M: 0.01)")
    initialise: Initialise = Field(
        "auto", description="first move box centres or centres of mass onto each other; auto: centres, but only where the boxes hardly overlap (ours)"
    )

    def prepared(self, pair: Pair) -> Pair:
        """The pair on the grids that are compared; as it is, unless a similarity needs more."""
        return pair

    def images(self, pair: Pair) -> list[tuple[Volume, Volume]]:
        """The channels that are compared, fixed and moving."""
        return [(pair.fixed, pair.moving)]

    def metric(self) -> ParameterMap:
        """elastix's parameters of the similarity of one channel."""
        raise NotImplementedError

    def load(self) -> None:
        """elastix and what brings images to it."""
        load_elastix()

    def register(self, pair: Pair, run: Run) -> Transform:
        """The transform from fixed to moving points.

        Raises `ConcordError` for images or masks with too little in common, and where elastix gives up.
        """
        run.report("elastix", 0.0)
        masked = masked_by_threshold(pair, self.mask_threshold)
        shift = starting_shift(masked, self.initialise)
        moved = self.prepared(replace(masked, moving=placed_earlier(masked.moving, shift), moving_mask=placed_earlier(masked.moving_mask, shift)))
        images = self.images(moved)
        maps = self.parameter_maps(moved, channels=len(images), seed=run.seed)
        found = register_images(images, maps, moved, threads=run.threads)
        run.report("elastix", 1.0)
        return compose(found, Linear(np.eye(len(shift)), shift, "translation"))

    def parameter_maps(self, pair: Pair, *, channels: int = 1, seed: int = 0) -> list[ParameterMap]:
        """One elastix parameter map a stage, values as text. Raises `ConcordError` where the images or masks have too little in common."""
        share, voxels = common_voxels(pair)
        common = {**self._course(pair, share, voxels, seed), **_pyramid(pair, self.levels), **_repeated(self.metric(), channels)}
        common["ImageSampler"] = [common["ImageSampler"]] * channels
        return [_as_text({**common, **self._stage(stage, pair.fixed.geometry)}) for stage in self.stages]

    def _course(self, pair: Pair, share: float, voxels: int, seed: int) -> dict[str, Any]:
        """Sampling and optimiser."""
        samples = self.samples or (8192 if self.optimiser == "asgd" else 200_000)
        values: dict[str, Any] = {
            "ImageSampler": "RandomCoordinate" if pair.fixed_mask is None or _filling(pair.fixed_mask) > _SPARSE else "RandomSparseMask",
            "NumberOfSpatialSamples": min(samples, voxels),
            "NewSamplesEveryIteration": self.optimiser == "asgd",
            "MaximumNumberOfIterations": self.iterations,
            # elastix's own quarter, of what can land at all: a small moving image in a large fixed one is no failure
            "RequiredRatioOfValidSamples": 0.25 * share,
            "RandomSeed": seed,
            "ErodeMask": False,  # elastix would peel several voxels off every mask, and thin ones away
        }
        if self.optimiser == "asgd":
            return values | {"Optimizer": "AdaptiveStochasticGradientDescent", "AutomaticParameterEstimation": True}
        return values | {"Optimizer": "RegularStepGradientDescent", "RelaxationFactor": 0.8, "MinimumGradientMagnitude": 1e-8}

    def _stage(self, stage: Stage, fixed: Geometry) -> dict[str, Any]:
        """The transform model, its grid and its steps."""
        values: dict[str, Any] = {"Transform": _TRANSFORMS[stage], "AutomaticScalesEstimation": stage != "bspline"}
        step_mm = min(fixed.spacing_mm)
        if stage == "bspline":
            step_mm *= _BSPLINE_STEP_VX
            box_mm = np.multiply(fixed.size, fixed.spacing_mm)
            spacing_mm = np.broadcast_to(self.control_point_spacing_mm or box_mm / (self.control_points - 3) * (1 + 1e-9), len(box_mm))
            values |= {"FinalGridSpacingInPhysicalUnits": spacing_mm, "GridSpacingSchedule": _halving(self.levels)}
            if self.optimiser == "regular-step":  # its step is the length of all coefficients together, not of one displacement
                step_mm *= float(np.sqrt(np.prod(box_mm / spacing_mm + 3)))
        # of elastix's two estimates of the gain the thorough one is the safer with few parameters, and slow with many
        estimate = "DisplacementDistribution" if stage == "bspline" else "Original"
        return values | {"MaximumStepLength": step_mm, "MinimumStepLength": 1e-3 * step_mm, "ASGDParameterEstimationMethod": estimate}


class MutualInformation(ElastixMethod):
    """Mattes mutual information, the baseline "MI" of Simonovsky et al. (2016); with `mask_threshold: 0.01` their "MI+M".

    Stages, levels, control points, iterations and bins are theirs; steps, smoothing and (with asgd) sampling are ours.
    """

    bins: int = Field(75, ge=4, le=512, description="histogram bins (paper: 75, their validated optimum)")

    def metric(self) -> ParameterMap:
        """Mattes mutual information."""
        return {"Metric": ["AdvancedMattesMutualInformation"], "NumberOfHistogramBins": [str(self.bins)]}


def _filling(mask: Volume) -> float:
    """Share of its own bounding box that a mask fills."""
    first, behind = box_of(mask.array)
    return float(np.count_nonzero(mask.array) / np.prod(behind - first))


def _halving(levels: int) -> list[int]:
    return [2**k for k in reversed(range(levels))]


def _pyramid(pair: Pair, levels: int) -> dict[str, Any]:
    """Smoothing without subsampling (samples are few anyway), in mm the same along every axis: thick slices are not smoothed further."""
    values: dict[str, Any] = {"NumberOfResolutions": levels}
    for name, volume in (("Fixed", pair.fixed), ("Moving", pair.moving)):
        spacing = np.asarray(volume.geometry.spacing_mm)
        factors = [np.maximum(1, np.round(factor * spacing.min() / spacing)).astype(int) for factor in _halving(levels)]
        values |= {f"{name}ImagePyramid": _PYRAMIDS[name], f"{name}ImagePyramidSchedule": np.concatenate(factors)}
    return values


def _repeated(metric: ParameterMap, channels: int) -> dict[str, Any]:
    """The similarity once a channel, with equal weights; a single channel needs no multi-metric registration."""
    values: dict[str, Any] = {"Registration": "MultiResolutionRegistration", "Interpolator": "LinearInterpolator", **metric}
    if channels > 1:
        weights = {f"Metric{i}Weight": 1 / channels for i in range(channels)}
        # elastix wants its components listed once an image
        components = {"Interpolator": "LinearInterpolator", "FixedImagePyramid": _PYRAMIDS["Fixed"], "MovingImagePyramid": _PYRAMIDS["Moving"]}
        values |= {name: [component] * channels for name, component in components.items()}
        values |= {"Registration": "MultiMetricMultiResolutionRegistration", "Metric": metric["Metric"] * channels, **weights}
    return values


def _as_text(values: dict[str, Any]) -> ParameterMap:
    """elastix's spelling: every value a list of words, truth as true and false."""
    fixed = {
        "HowToCombineTransforms": "Compose",
        "UseDirectionCosines": True,
        "WriteResultImage": False,
        "ResampleInterpolator": "FinalLinearInterpolator",
    }
    merged = {"Resampler": "DefaultResampler", "BSplineTransformSplineOrder": 3, "WriteIterationInfo": False, **fixed, **values}
    return {key: [_word(v) for v in (value if isinstance(value, list | tuple | np.ndarray) else [value])] for key, value in merged.items()}


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | np.bool_) else str(value)
