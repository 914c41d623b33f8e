"""Grids, fields and threads that the multi-resolution methods of ITK share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.itk_classes import itk_class, load_itk
from pipeline.transforms import Field, Transform, to_itk
from pipeline.volumes import Geometry, Volume

SMALLEST_AXIS = 4
"""Fewest voxels that a coarse grid keeps along an axis (ours): thinner than that nothing is left to register."""


def axis_factors(geometry: Geometry, factor: int) -> tuple[int, ...]:
    """Whole-voxel shrink factor of each image axis `(x, y[, z])` for a level of `factor`.

    The finest axis shrinks by `factor`; a coarser axis shrinks by less, so that the level's voxels come out as even as whole
    factors allow, and no axis falls under `SMALLEST_AXIS` voxels.
    """
    spacing = np.asarray(geometry.spacing_mm)
    wanted = np.maximum(1, np.round(spacing.min() * factor / spacing)).astype(int)
    room = np.maximum(1, np.asarray(geometry.size) // SMALLEST_AXIS)
    return tuple(np.minimum(wanted, room).tolist())


def shrunk(geometry: Geometry, factors: Sequence[int]) -> Geometry:
    """The grid of every `factors`-th voxel about the same centre, as ITK's `ShrinkImageFilter` lays it."""
    size = np.maximum(1, np.asarray(geometry.size) // np.asarray(factors))
    coarse = replace(geometry, size=tuple(size.tolist()), spacing_mm=tuple((np.asarray(geometry.spacing_mm) * factors).tolist()))
    return replace(coarse, origin_mm=tuple((np.asarray(coarse.origin_mm) + geometry.centre_mm - coarse.centre_mm).tolist()))


def zero_field(geometry: Geometry) -> Field:
    """The field that moves nothing."""
    return Field(np.zeros((*geometry.shape, geometry.dimension)), geometry)


def field_on(transform: Transform, geometry: Geometry) -> Field:
    """The transform's displacements as a field on `geometry`."""
    return Field(np.ascontiguousarray(transform.displacement_mm(geometry), dtype=float), geometry)


def refined(field: Field, geometry: Geometry) -> Field:
    """The field on a finer grid by cubic interpolation, held constant beyond its outer samples.

    Linear interpolation would leave the coarse grid's creases in the finer field, and a folding count would see them.
    """
    from scipy.ndimage import map_coordinates

    if geometry.matches(field.geometry, 1e-6):
        return field
    index = field.geometry.index_at(geometry.grid_points()).reshape(-1, geometry.dimension)
    index = np.clip(index, 0, np.asarray(field.geometry.size) - 1)
    parts = [map_coordinates(field.field_mm[..., c], index.T[::-1], order=3, mode="nearest") for c in range(geometry.dimension)]
    return Field(np.stack(parts, axis=-1).reshape(*geometry.shape, geometry.dimension), geometry)


def level_smoothing_mm(given: Sequence[float] | None, shrink_factors: Sequence[int], geometry: Geometry) -> tuple[float, ...]:
    """Sigma of the images' smoothing at each level in mm: as given, or log2(shrink factor) finest voxels (ANTs' habit: 2, 1, 0 for 4, 2, 1)."""
    return tuple(given) if given is not None else tuple(float(np.log2(factor)) * min(geometry.spacing_mm) for factor in shrink_factors)


def check_lengths(**per_level: Sequence[float] | None) -> None:
    """Raise `ValueError` unless every list has one entry a level."""
    lengths = {name: len(values) for name, values in per_level.items() if values is not None}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"one entry a level expected, coarse to fine, in each of {lengths}")


def itk_reason(error: RuntimeError) -> str:
    """What ITK complains of, on one line and without its source file."""
    text = " ".join(str(error).split())
    return text.partition("ERROR: ")[2][:200] or text[-200:]


@contextmanager
def itk_threads(threads: int) -> Iterator[None]:
    """Within it, ITK and elastix work with `threads` threads; the process's own counts are put back in the end.

    elastix's own SetNumberOfThreads does not put them back, and crashes with several metrics and threads.
    """
    itk = load_itk()

    threader = itk.MultiThreaderBase
    most, default = threader.GetGlobalMaximumNumberOfThreads(), threader.GetGlobalDefaultNumberOfThreads()
    threader.SetGlobalMaximumNumberOfThreads(max(threads, 1))
    threader.SetGlobalDefaultNumberOfThreads(threads)
    try:
        yield
    finally:
        threader.SetGlobalMaximumNumberOfThreads(most)
        threader.SetGlobalDefaultNumberOfThreads(default)


def itk_field(field: Field, inverse: Field | None = None) -> Any:
    """An ITK displacement-field transform, double precision, with its inverse field where given."""
    transform = to_itk(field)
    if inverse is not None:
        transform.SetInverseDisplacementField(to_itk(inverse).GetDisplacementField())
    return transform


def itk_mask(mask: Volume) -> Any:
    """A mask as ITK's metrics take it."""
    from pipeline.volumes import to_itk as image_of

    shape = itk_class("ImageMaskSpatialObject", str(mask.dimension)).New()
    shape.SetImage(image_of(mask.with_array(mask.array != 0), np.uint8))
    shape.Update()
    return shape
