"""Mutual information through elastix: the baseline of Simonovsky et al. (2016), and the settings of every elastix method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pipeline.classical.elastix_run import ParameterMap, register_images
from pipeline.errors import ConcordError
from pipeline.methods import Method, Pair, Run
from pipeline.transforms import Linear, Transform, compose
from pipeline.volumes import Geometry, Volume

Stage = Literal["translation", "rigid", "similarity", "affine", "bspline"]
_TRANSFORMS = {
    "translation": "TranslationTransform",
    "rigid": "EulerTransform",
    "similarity": "SimilarityTransform",
    "affine": "AffineTransform",
    "bspline": "BSplineTransform",
}
_PYRAMIDS = {name: f"{name}SmoothingImagePyramid" for name in ("Fixed", "Moving")}
_OVERLAPPING = 0.25  # ours: share of the smaller box inside the other from which the header's geometry is trusted
_FEWEST_SAMPLES = 100  # ours: voxels to compare under which no similarity is worth optimising
_SPARSE = 0.3  # ours: share of its bounding box from which a mask is sampled by trial, between voxels too; elastix gives up after 10 tries
_BSPLINE_STEP_VX = 0.1  # ours: elastix's own whole voxel made B-splines run away on images without a quiet background
_PROBES = 20_000  # points on which overlaps are measured


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
    samples: int | None = Field(
        None, ge=_FEWEST_SAMPLES, description="sample points; default 8192 with asgd (ours), 200000 with regular-step (paper)"
    )
    mask_threshold: float | None = Field(None, ge=0, lt=1, description="use only what is brighter, intensities scaled to [0, 1] (paper's MI+M: 0.01)")
    initialise: Literal["auto", "none", "centre", "mass"] = Field(
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
        import itk

        _ = itk.ElastixRegistrationMethod, itk.ParameterObject, itk.image_from_array, itk.MultiThreaderBase

    def register(self, pair: Pair, run: Run) -> Transform:
        """The transform from fixed to moving points.

        Raises `ConcordError` for images or masks with too little in common, and where elastix gives up.
        """
        run.report("elastix", 0.0)
        masked = self._masked(pair)
        shift = starting_shift(masked, self.initialise)
        moved = self.prepared(replace(masked, moving=_moved(masked.moving, shift), moving_mask=_moved(masked.moving_mask, shift)))
        images = self.images(moved)
        maps = self.parameter_maps(moved, channels=len(images), seed=run.seed)
        found = register_images(images, maps, moved, threads=run.threads)
        run.report("elastix", 1.0)
        return compose(found, Linear(np.eye(len(shift)), shift, "translation"))

    def parameter_maps(self, pair: Pair, *, channels: int = 1, seed: int = 0) -> list[ParameterMap]:
        """One elastix parameter map a stage, values as text. Raises `ConcordError` where the images or masks have too little in common."""
        share, voxels = overlap(pair)
        if share * voxels < _FEWEST_SAMPLES:
            here = " inside their masks" if pair.fixed_mask is not None or pair.moving_mask is not None else ""
            raise ConcordError(
                f"{pair.fixed.name} and {pair.moving.name}: {share * voxels:.0f} voxels in common{here}, expected {_FEWEST_SAMPLES}; "
                "enlarge the masks, or set initialise to 'centre' or 'mass'"
            )
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

    def _masked(self, pair: Pair) -> Pair:
        """The pair with masks by threshold laid over its own."""
        if self.mask_threshold is None:
            return pair
        fixed = _both(threshold_mask(pair.fixed, self.mask_threshold), pair.fixed_mask)
        return replace(pair, fixed_mask=fixed, moving_mask=_both(threshold_mask(pair.moving, self.mask_threshold), pair.moving_mask))


class MutualInformation(ElastixMethod):
    """Mattes mutual information, the baseline "MI" of Simonovsky et al. (2016); with `mask_threshold: 0.01` their "MI+M".

    Stages, levels, control points, iterations and bins are theirs; steps, smoothing and (with asgd) sampling are ours.
    """

    bins: int = Field(75, ge=4, le=512, description="histogram bins (paper: 75, their validated optimum)")

    def metric(self) -> ParameterMap:
        """Mattes mutual information."""
        return {"Metric": ["AdvancedMattesMutualInformation"], "NumberOfHistogramBins": [str(self.bins)]}


def overlap(pair: Pair) -> tuple[float, int]:
    """Share of the fixed voxels (of its mask) that stand inside the moving grid (and its mask), and the number of fixed voxels."""
    shape = pair.fixed.array.shape
    voxels = np.flatnonzero(pair.fixed_mask.array) if pair.fixed_mask is not None else np.arange(pair.fixed.array.size)
    probes = voxels[:: max(1, len(voxels) // _PROBES)]
    index = np.stack(np.unravel_index(probes, shape)[::-1], axis=-1)
    points = pair.fixed.geometry.points_at(index)
    inside = pair.moving.geometry.contains(points)
    if pair.moving_mask is not None:
        nearest = np.floor(pair.moving.geometry.index_at(points[inside]) + 0.5).astype(int)
        nearest = np.clip(nearest, 0, np.asarray(pair.moving.geometry.size) - 1)
        inside[inside] = pair.moving_mask.array[tuple(nearest.T[::-1])] != 0
    return float(inside.mean()) if len(probes) else 0.0, len(voxels)


def starting_shift(pair: Pair, how: str) -> np.ndarray:
    """Translation in mm, `(d,)`, that lays the moving image onto the fixed one before the first stage: "auto", "none", "centre" or "mass".

    Mass is the intensity above the image's minimum, inside the mask where there is one.
    """
    if how == "mass":
        return _mass_centre(pair.moving, pair.moving_mask) - _mass_centre(pair.fixed, pair.fixed_mask)
    plain = Pair(pair.fixed, pair.moving)
    if how == "none" or (how == "auto" and max(overlap(plain)[0], overlap(Pair(pair.moving, pair.fixed))[0]) >= _OVERLAPPING):
        return np.zeros(pair.fixed.dimension)
    return pair.moving.geometry.centre_mm - pair.fixed.geometry.centre_mm


def threshold_mask(volume: Volume, threshold: float) -> Volume:
    """Where the intensity, scaled to [0, 1] by minimum and maximum, exceeds `threshold`; holes are filled (ours), as they lie in the head."""
    from scipy.ndimage import binary_fill_holes

    low, high = float(volume.array.min()), float(volume.array.max())
    return volume.with_array(binary_fill_holes(volume.array > low + threshold * (high - low)).astype(np.uint8))


def _both(mask: Volume, other: Volume | None) -> Volume:
    return mask if other is None else mask.with_array(((mask.array != 0) & (other.array != 0)).astype(np.uint8))


def _mass_centre(volume: Volume, mask: Volume | None) -> np.ndarray:
    weight = volume.array.astype(float) - float(volume.array.min())
    weight = weight if mask is None else weight * (mask.array != 0)
    total = weight.sum()
    index = [
        float((weight.sum(axis=tuple(a for a in range(weight.ndim) if a != axis)) * np.arange(weight.shape[axis])).sum() / total)
        for axis in range(weight.ndim)
    ]
    return volume.geometry.points_at(np.array(index[::-1]))


def _moved(volume: Volume | None, shift_mm: np.ndarray) -> Any:
    """The volume placed `shift_mm` earlier, so that a transform onto it lacks just that translation."""
    if volume is None:
        return None
    origin = tuple((np.asarray(volume.geometry.origin_mm) - shift_mm).tolist())
    return replace(volume, geometry=replace(volume.geometry, origin_mm=origin))


def _filling(mask: Volume) -> float:
    """Share of its own bounding box that a mask fills."""
    where = [np.flatnonzero(mask.array.any(axis=tuple(a for a in range(mask.array.ndim) if a != axis))) for axis in range(mask.array.ndim)]
    return float(np.count_nonzero(mask.array) / np.prod([axis[-1] - axis[0] + 1 for axis in where]))


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
