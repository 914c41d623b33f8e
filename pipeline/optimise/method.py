"""The optimiser loop as a method: stages of transform models, each from coarse to fine, with any similarity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import ConcordError
from pipeline.methods import Method, Pair, Run
from pipeline.starting import Initialise, common_voxels, masked_by_threshold, placed_earlier, starting_shift
from pipeline.transforms import Linear, Transform, compose
from pipeline.volumes import Geometry

Stage = Literal["translation", "rigid", "similarity", "affine", "bspline"]
BENDING_WEIGHTS = {
    "mi": 300.0,
    "nmi": 100.0,
    "parzen-mi": 300.0,
    "ncc": 100.0,
    "lncc": 100.0,
    "ngf": 100.0,
    "lg": 100.0,
    "mind": 10.0,
    "mind-ssc": 10.0,
    "patch-cnn": 1000.0,
}
"""Weights that go with the size of the similarities' values. Those of mi, mind-ssc and patch-cnn were chosen on validation pairs of phantoms, mi's
also on an averaged T1 and T2 of real heads, where a weight of 10 let it run away, and parzen-mi has the same; the others are guesses of the same order."""
SimilarityName = Literal["mean-squares", "ncc", "mi", "nmi", "parzen-mi", "lncc", "ngf", "lg", "mind", "mind-ssc", "patch-cnn"]


class DiscreteSettings(BaseModel):
    """A first choice of displacements without derivatives: costs over a window at the control points, dense and coupled with a smooth field.

    The paper's conclusion sketches it; scheme and coupling are ConvexAdam's (Siebert et al. 2021), which has half width 4 and steps and
    control points of 6 voxels. Ours are finer, as the loop starts from a linear transform.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    half_width: int = Field(3, ge=1, le=8, description="labels to either side of none along each axis")
    step_vx: int = Field(1, ge=1, description="voxels between labels")
    node_vx: int = Field(4, ge=1, description="voxels between the control points at which labels are chosen, about")
    coupling: tuple[float, ...] = Field(
        (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), min_length=1, description="weight of the squared distance to the smooth field in each round, in labels"
    )
    depth: float = Field(
        3.0, gt=0, description="costs are scaled until the lowest lies so far under the window's mean, so that weights fit all similarities (ours)"
    )
    cost_smoothings: int = Field(0, ge=0, description="box filters over the costs of neighbouring control points")
    stride_vx: int = Field(2, ge=1, description="compare every so many voxels along an axis; networks have a stride of their own (ours)")
    refine: bool = Field(True, description="find the minimum between labels by parabolas (ours)")


class OptimiserLoop(Method):
    """Our own registration loop (Simonovsky et al. 2016, sec. 2.1): the same for every similarity, which is one key of its settings.

    Stages, levels, control points and samples default to the paper's, bins too where samples suffice; step rule, steps, iterations
    and the bending energy are ours.
    """

    similarity: SimilarityName = Field("mi", description="what is minimised")
    stages: tuple[Stage, ...] = Field(("similarity", "bspline"), min_length=1, description="transform models in order (default: the paper's)")
    levels: int = Field(2, ge=1, le=8, description="resolutions a stage, each half of the next (paper: 2)")
    shrink: bool = Field(True, description="evaluate coarse levels on a grid of every 2nd, 4th, … voxel; false: on all voxels")
    smoothing_vx: float = Field(0.5, ge=0, description="sigma of the smoothing of a level in its own voxels, none on the finest (ours)")
    control_points: int = Field(10, ge=4, le=200, description="control points an axis on the finest level (paper: 1000 = 10 x 10 x 10)")
    control_point_spacing_mm: float | None = Field(None, gt=0, description="their spacing in mm on the finest level; overrides control_points")
    iterations: int | tuple[int, ...] = Field(100, description="iterations a level, or one number a level (paper: 500; Adam needs fewer, ours)")
    optimiser: Literal["regular-step", "gradient-descent", "adam"] = Field("adam", description="step rule (paper: regular-step; adam is ours)")
    step_mm: float | None = Field(None, gt=0, description="step of the farthest point; default a quarter of the level's voxel (ours)")
    learning_rate: float | None = Field(None, gt=0, description="ITK's learning rate, in parameter units, instead of step_mm")
    relaxation: float = Field(0.8, gt=0, lt=1, description="regular-step: factor after a turn (the authors' ITK script: 0.8)")
    minimum_step_mm: float = Field(1e-3, ge=0, description="regular-step: stop under this step")
    window: int = Field(0, ge=0, description="stop when the values of this many iterations no longer fall; 0: never before the last")
    sampling: Literal["dense", "regular", "random"] = Field("regular", description="which voxels are compared; neighbourhood similarities take all")
    samples: int = Field(200_000, ge=100, description="voxels compared an iteration (paper: 200000)")
    fresh: bool = Field(True, description="other voxels each iteration (ours)")
    image_gradient: Literal["exact", "central"] = Field("exact", description="derivative of the interpolated moving image, or central differences")
    bending_weight: float | None = Field(
        None,
        ge=0,
        description="weight of the B-spline's bending energy, which is in 1/mm² (paper: none); default by similarity (ours): "
        + ", ".join(f"{name} {weight:g}" for name, weight in BENDING_WEIGHTS.items())
        + ", others 0",
    )
    discrete: DiscreteSettings | None = Field(
        None, description="start the B-spline's finest level from displacements chosen without derivatives (the extension the paper sketches)"
    )
    mask_threshold: float | None = Field(None, ge=0, lt=1, description="use only what is brighter, intensities scaled to [0, 1] (paper's MI+M: 0.01)")
    initialise: Initialise = Field(
        "auto", description="first move box centres or centres of mass onto each other; auto: only where boxes hardly overlap"
    )
    bins: int | None = Field(
        None,
        ge=6,
        le=512,
        description="mi, nmi, parzen-mi: histogram bins; default 75 (paper) or 48 (parzen-mi), fewer for few voxels: 1.3 n^(1/3) (ours)",
    )
    radius_vx: int | None = Field(None, ge=0, le=16, description="lncc (default 4), mind-ssc (default 2): windows have an edge of 2 radius + 1")
    dilation_vx: int = Field(2, ge=1, le=8, description="mind-ssc: distance of the neighbours")
    sigma_vx: float = Field(0.5, gt=0, description="mind: Gaussian weighting of patches")
    weights: Path | None = Field(None, description="patch-cnn: trained weights (.safetensors)")
    patch_grid: Literal["shift", "sparse", "overlap", "fixed"] = Field(
        "shift", description="patch-cnn: grid of patches, moved each iteration, the same with every second one, denser, or fixed"
    )
    most_patches: int | None = Field(None, ge=1, description="patch-cnn: evaluate at most so many patches at once, to bound memory")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="patch-cnn: arithmetic of the network")

    @model_validator(mode="after")
    def _check(self) -> OptimiserLoop:
        if not isinstance(self.iterations, int) and len(self.iterations) != self.levels:
            raise ValueError(f"iterations {self.iterations}: one number a level expected, {self.levels}")
        if min(self.iteration_counts) < 1:
            raise ValueError(f"iterations {self.iterations}: expected 1 or more")
        return self

    @property
    def iteration_counts(self) -> tuple[int, ...]:
        """Iterations of each level, coarse to fine."""
        return (self.iterations,) * self.levels if isinstance(self.iterations, int) else self.iterations

    @property
    def files(self) -> dict[str, Path]:
        """The trained weights."""
        if self.weights is not None and not self.weights.exists():
            raise ConcordError(f"weights: {self.weights} is not there; expected a .safetensors file that a fit wrote")
        return {} if self.weights is None else {"weights": self.weights}

    @property
    def weight_of_bending(self) -> float:
        """The weight that is set, or the similarity's own."""
        return BENDING_WEIGHTS.get(self.similarity, 0.0) if self.bending_weight is None else self.bending_weight

    def load(self) -> None:
        """torch and what the loop is made of."""
        from pipeline.optimise import stages  # noqa: F401

    def register(self, pair: Pair, run: Run) -> Transform:
        """The transform from fixed to moving points.

        Raises `ConcordError` for images or masks with too little in common, a missing or unfit network, and a diverging run.
        """
        masked = masked_by_threshold(pair, self.mask_threshold)
        shift = starting_shift(masked, self.initialise)
        moved = replace(masked, moving=placed_earlier(masked.moving, shift), moving_mask=placed_earlier(masked.moving_mask, shift))
        common_voxels(moved)
        return compose(self._run(moved, run), Linear(np.eye(len(shift)), shift, "translation"))

    def register_from(self, pair: Pair, start: Transform, run: Run) -> Transform:
        """As `register`, from a transform of any kind: its linear part and a B-spline that is nearest to the rest; `initialise` is not asked."""
        if self.discrete is not None:
            raise ConcordError(
                "discrete says where the B-spline begins, and so does the starting transform; expected one of them: leave the other out"
            )
        return self._run(masked_by_threshold(pair, self.mask_threshold), run, start)

    def _run(self, pair: Pair, run: Run, start: Transform | None = None) -> Transform:
        from pipeline.optimise.network import as_compared
        from pipeline.optimise.stages import run_stages
        from pipeline.threads import torch_threads

        with torch_threads(run.threads):
            return run_stages(self, *as_compared(self, pair), run, start)

    def control_spacing_mm(self, fixed: Geometry) -> tuple[float, ...]:
        """Control-point spacing of the finest level along `(x, y[, z])`."""
        if self.control_point_spacing_mm is not None:
            return (self.control_point_spacing_mm,) * fixed.dimension
        box = np.multiply(fixed.size, fixed.spacing_mm)
        return tuple((box / (self.control_points - 3)).tolist())
