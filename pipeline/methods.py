"""What a method is, and the one table that maps the names in config.yaml to methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import ConcordError, choices, explain
from pipeline.transforms import Linear, Transform, compose
from pipeline.volumes import Geometry, Volume

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "identity": ("pipeline.classical.identity:Identity", {}),
    "affine": ("pipeline.classical.elastix:MutualInformation", {"stages": ["affine"]}),
    "rigid-mi": ("pipeline.classical.elastix:MutualInformation", {"stages": ["rigid"]}),
    "mi": ("pipeline.classical.elastix:MutualInformation", {}),
    "mi-masked": ("pipeline.classical.elastix:MutualInformation", {"mask_threshold": 0.01}),
    "mind": ("pipeline.classical.mind:MindElastix", {"descriptor": "mind"}),
    "mind-ssc": ("pipeline.classical.mind:MindElastix", {"descriptor": "mind-ssc"}),
    "rigid-mind": ("pipeline.classical.mind:MindElastix", {"descriptor": "mind", "stages": ["rigid"]}),
    "symgn": ("pipeline.classical.symgn:SymGN", {}),
    "demons": ("pipeline.classical.demons:Demons", {}),
    "syn": ("pipeline.classical.syn:SyN", {}),
    "loop": ("pipeline.optimise.method:OptimiserLoop", {}),
    "attention-reg": ("pipeline.learned.rigid_method:RigidNetwork", {}),
    "resatt": ("pipeline.learned.field_method:FieldNetwork", {}),
    "translation": ("pipeline.learned.translation_method:TranslationNetwork", {}),
    "cyclegan": ("pipeline.learned.cyclegan_method:CycleGan", {}),
    "syn-cc": ("pipeline.classical.syn:SyN", {"metric": "cc", "gradient_step": 0.4}),
}
"""Name: where the class stands, and the settings in which this name differs from the class's defaults."""


@dataclass(frozen=True)
class Pair:
    """What a method sees of a case: two volumes and, where known, masks on their grids (non-zero = use) and modalities."""

    fixed: Volume
    moving: Volume
    fixed_mask: Volume | None = None
    moving_mask: Volume | None = None
    fixed_modality: str = ""
    moving_modality: str = ""
    fixed_labels: Volume | None = None
    """For methods that say `uses_labels`, and nobody else."""
    subjects: tuple[str, ...] = ()
    """Whose volumes these are, where known: for networks, which should not have been fitted to them."""


@dataclass(frozen=True)
class Run:
    """How a method is run: the same seed and thread count give the same bits. `progress(stage, fraction)` is called on long work.

    A method that iterates appends a row an iteration to `trace`, where a list is given. One that makes images on the way, such as a
    translated moving image, puts them into `images` by name, where a dictionary is given; they are written beside the transform.
    """

    threads: int = 1
    seed: int = 0
    progress: Callable[[str, float], None] | None = None
    trace: list[dict[str, Any]] | None = None
    images: dict[str, Volume] | None = None

    def report(self, stage: str, fraction: float) -> None:
        """Tell how far a stage has come, where somebody listens."""
        if self.progress is not None:
            self.progress(stage, fraction)


class Method(BaseModel):
    """Settings of a method, validated; calling `register` runs it. Subclasses are one file each."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    takes_masks: ClassVar[bool] = True

    @property
    def uses_labels(self) -> bool:
        """Whether the fixed label map is an input: a method that is told where the organ is, not a measure of how well it was found."""
        return False

    @property
    def files(self) -> dict[str, Path]:
        """Files that the result depends on beside the pair, by the setting that names them; all exist."""
        return {}

    def load(self) -> None:
        """Load the libraries that the method needs, so that the time of a registration is that of registering alone."""

    def register(self, pair: Pair, run: Run) -> Transform:
        """The transform from fixed to moving points."""
        raise NotImplementedError

    def register_from(self, pair: Pair, start: Transform, run: Run) -> Transform:
        """The same from a transform that is not rigid, which is included. Raises `ConcordError` where the method has no such thing."""
        raise ConcordError(
            f"the starting transform is not rigid, and {type(self).__name__} takes no other; expected rotation and translation only, or method loop"
        )


def create_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method called `name`, with `settings` over its defaults.

    Raises `ConcordError` with the valid choices for an unknown name, key or value.
    """
    settings = dict(settings or {})
    use = settings.pop("use", name)
    if use not in METHODS:
        raise ConcordError(f"methods.{name}: no method {use!r}{choices(use, METHODS)}")
    chosen = method_class(use)
    try:
        return chosen(**{**METHODS[use][1], **settings})
    except ValidationError as error:
        raise ConcordError(explain(error, f"methods.{name}", chosen)) from error


def method_class(name: str) -> type[Method]:
    """The class behind a name of the table, imported when it is asked for."""
    module, _, class_name = METHODS[name][0].partition(":")
    return getattr(import_module(module), class_name)


def run_method(method: Method, pair: Pair, run: Run, start: Transform | None = None) -> Transform:
    """Check the pair, run the method, check the result; the transform includes `start`.

    A rigid `start` is applied by re-heading the moving volume, so that every method can start from it without resampling; any other is
    handed to methods that know what to do with it. Raises `ConcordError` for bad pairs (see `check_pair`), for masks given to a method that
    takes none, for a start that is not rigid where the method takes no other, and for a result that is not finite.
    """
    check_pair(pair)
    if not method.takes_masks and (pair.fixed_mask is not None or pair.moving_mask is not None):
        raise ConcordError(f"{type(method).__name__} takes no masks and would ignore them; leave the masks out or choose another method")
    if start is None:
        return _finite(method.register(pair, run), pair)
    parts = start.parts if hasattr(start, "parts") else (start,)
    if not all(isinstance(p, Linear) and np.allclose(p.matrix @ p.matrix.T, np.eye(p.dimension), atol=1e-6) for p in parts):
        return _finite(method.register_from(pair, start, run), pair)
    rigid = compose(*parts)
    moved = replace(pair, moving=_reheaded(pair.moving, rigid), moving_mask=None if pair.moving_mask is None else _reheaded(pair.moving_mask, rigid))
    return _finite(compose(method.register(moved, run), rigid), pair)


def check_pair(pair: Pair) -> None:
    """Refuse what no method can register: 2-D against 3-D, constant images, no common space, and masks that are empty or on another grid."""
    fixed, moving = pair.fixed, pair.moving
    if fixed.dimension != moving.dimension:
        raise ConcordError(f"{fixed.name} is {fixed.dimension}-D and {moving.name} is {moving.dimension}-D; expected both 2-D or both 3-D")
    for volume in (fixed, moving):
        if volume.array.size == 0 or volume.array.min() == volume.array.max():
            raise ConcordError(
                f"{volume.name}: every sample is {volume.array.flat[0] if volume.array.size else 'missing'}; nothing to register in a constant image"
            )
    for mask, image in ((pair.fixed_mask, fixed), (pair.moving_mask, moving)):
        if mask is None:
            continue
        if not mask.geometry.matches(image.geometry):
            raise ConcordError(
                f"{mask.name}: mask of size {mask.geometry.size} is not on the grid of {image.name} {image.geometry.size}; resample it (nearest)"
            )
        if not mask.array.any():
            raise ConcordError(f"{mask.name}: the mask is empty; expected non-zero voxels where the image counts")


def _reheaded(volume: Volume, rigid: Linear) -> Volume:
    """The volume placed where `rigid` would fetch it from: p' carries what stands at rigid(p')."""
    back, geometry = rigid.inverse(), volume.geometry
    direction = back.matrix @ np.asarray(geometry.direction)
    origin = back.points(np.asarray(geometry.origin_mm))
    moved = Geometry(geometry.size, geometry.spacing_mm, tuple(origin.tolist()), tuple(tuple(row) for row in direction.tolist()))
    return Volume(volume.array, moved, volume.name)


def _finite(transform: Transform, pair: Pair) -> Transform:
    corners = pair.fixed.geometry.points_at(np.stack([np.zeros(pair.fixed.dimension), np.asarray(pair.fixed.geometry.size) - 1]))
    if not np.isfinite(transform.points(corners)).all():
        raise ConcordError(
            f"{pair.fixed.name} and {pair.moving.name}: the registration diverged (transform not finite); lower the step or start closer"
        )
    return transform
