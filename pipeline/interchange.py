"""Transforms of other tools: elastix parameter files, ANTs' matrices and warps, SimpleITK objects.

elastix, ANTs and SimpleITK all use ITK's convention (fixed points to moving points, in mm, LPS) and ITK's parameter
vectors; they differ in what is written where. ITK itself is not needed here: the files are text, MATLAB 4 or images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.elastix_files import from_elastix as from_elastix
from pipeline.elastix_files import to_elastix as to_elastix
from pipeline.errors import ConcordError
from pipeline.files import whole_file, write_text
from pipeline.linear_parameters import linear_from_parameters, parameters_of
from pipeline.transform_files import read_transform
from pipeline.transforms import BSpline, Composite, Field, Linear, Transform, compose
from pipeline.volumes import Geometry, read_vector_field, write_vector_field

_FIELD_SUFFIXES = (".nii", ".nii.gz", ".mha", ".nrrd")


def to_ants(transform: Transform, path: Path | str, geometry: Geometry | None = None) -> tuple[Path, ...]:
    """Write files for ANTs; the result is its `transformlist` (`-t` options) in ANTs' own order.

    Linear transforms go to `.mat` or `.txt`, as `path` says (`.mat` where it names a warp), fields to `.nii.gz`, five-
    dimensional as ANTs reads them; several parts are numbered. ANTs knows no B-splines by file: a transform that holds one is
    sampled as a whole on `geometry` (the fixed volume's), exact at its voxel centres, nothing outside.
    """
    path, parts = Path(path), transform.parts if isinstance(transform, Composite) else (transform,)
    if not all(isinstance(part, Linear | Field) for part in parts):
        parts = (_sampled(transform, geometry, path),)
    stem = path.name.partition(".")[0]
    written = []
    for number, part in enumerate(parts):
        name = f"{stem}{number}" if len(parts) > 1 else stem
        if isinstance(part, Field):
            target = path.with_name(name + (".nii" if path.name.endswith(".nii") else ".nii.gz"))
            write_vector_field(part.field_mm, part.geometry, target)
        else:
            target = path.with_name(name + (path.suffix if path.suffix in (".mat", ".txt") else ".mat"))
            _write_itk_linear(part, target)
        written.append(target)
    return tuple(written)


def from_ants(paths: Path | str | Sequence[Path | str]) -> Transform:
    """The transform of one ANTs file or of a `transformlist` in ANTs' own order (as `antsApplyTransforms -t` takes it).

    `.mat` and `.txt` hold linear transforms, images hold warps, `.h5` a whole composite. Raises `ConcordError` for
    missing files and other types.
    """
    many = [paths] if isinstance(paths, Path | str) else list(paths)
    return compose(*(_from_ants_file(Path(path)) for path in many))


def to_simpleitk(transform: Transform) -> Any:
    """The equivalent `SimpleITK.Transform`. Raises `ConcordError` where SimpleITK is not installed."""
    sitk = _simpleitk()
    if isinstance(transform, Composite):
        return sitk.CompositeTransform([to_simpleitk(part) for part in reversed(transform.parts)])  # the last one added is applied first
    if isinstance(transform, Linear):
        name, parameters, centre = parameters_of(transform)
        result = getattr(sitk, name)(transform.dimension) if name in ("AffineTransform", "TranslationTransform") else getattr(sitk, name)()
        if len(centre):
            result.SetCenter(centre.tolist())
        result.SetParameters(parameters.tolist())
        return result
    grid = transform.grid if isinstance(transform, BSpline) else transform.geometry if isinstance(transform, Field) else None
    if grid is None:
        raise ConcordError(f"{type(transform).__name__} has no SimpleITK counterpart; expected linear, B-spline, field or a composition of them")
    fixed = [float(v) for v in (*grid.size, *grid.origin_mm, *grid.spacing_mm, *np.ravel(grid.direction))]
    if isinstance(transform, BSpline):
        result = sitk.BSplineTransform(grid.dimension, 3)
        result.SetFixedParameters(fixed)
        result.SetParameters(transform.coefficients_mm.ravel().tolist())
        return result
    image = sitk.GetImageFromArray(np.ascontiguousarray(transform.field_mm, dtype=float), isVector=True)
    image.SetOrigin(grid.origin_mm)
    image.SetSpacing(grid.spacing_mm)
    image.SetDirection(np.ravel(grid.direction).tolist())
    return sitk.DisplacementFieldTransform(image)


def from_simpleitk(transform: Any) -> Transform:
    """Our counterpart of a `SimpleITK.Transform`. Raises `ConcordError` for types without one."""
    transform = transform.Downcast()
    name, d = transform.GetName(), transform.GetDimension()
    if name == "CompositeTransform":
        parts = [from_simpleitk(transform.GetNthTransform(i)) for i in range(transform.GetNumberOfTransforms())]
        return compose(*reversed(parts))
    fixed = np.array(transform.GetFixedParameters())
    if name in ("IdentityTransform", "Transform"):
        return Linear.identity(d)
    if name == "DisplacementFieldTransform":
        image = transform.GetDisplacementField()
        grid = Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), _rows(image.GetDirection(), d))
        return Field(np.array(transform.GetParameters()).reshape(*grid.shape, d), grid)
    if name == "BSplineTransform":
        if transform.GetOrder() != 3:
            raise ConcordError(f"SimpleITK B-spline of order {transform.GetOrder()}; expected 3")
        grid = Geometry(
            tuple(int(n) for n in fixed[:d]), tuple(fixed[2 * d : 3 * d].tolist()), tuple(fixed[d : 2 * d].tolist()), _rows(fixed[3 * d :], d)
        )
        return BSpline(np.array(transform.GetParameters()).reshape(d, *grid.shape), grid)
    return linear_from_parameters(name, np.array(transform.GetParameters()), fixed, where="SimpleITK transform")


def _rows(values: Any, d: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in np.reshape(values, (d, d)).astype(float).tolist())


def _sampled(part: Transform, geometry: Geometry | None, path: Path) -> Field:
    if geometry is None:
        raise ConcordError(f"{path}: B-splines have to be sampled for ANTs; give the grid to sample on (the fixed volume's)")
    return Field(part.displacement_mm(geometry), geometry)


def _write_itk_linear(linear: Linear, path: Path) -> None:
    """An affine, whatever its kind: the one class that every version of ANTs reads."""
    from scipy.io import savemat

    _, parameters, centre = parameters_of(replace(linear, kind="affine"))
    name = f"AffineTransform_double_{linear.dimension}_{linear.dimension}"
    if path.suffix == ".txt":
        lines = ("#Insight Transform File V1.0", "#Transform 0", f"Transform: {name}")
        rows = (f"{key}: {' '.join(map(repr, values.tolist()))}" for key, values in (("Parameters", parameters), ("FixedParameters", centre)))
        write_text(path, "\n".join((*lines, *rows)) + "\n")
        return
    with whole_file(path) as temporary, temporary.open("wb") as stream:
        savemat(stream, {name: parameters[:, None], "fixed": centre[:, None]}, format="4")


def _from_ants_file(path: Path) -> Transform:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise ConcordError(f"{path}: no such file; check the path")
    if path.name.endswith(_FIELD_SUFFIXES):
        return Field(*read_vector_field(path))
    if path.suffix != ".mat":
        return read_transform(path)
    try:
        content = {key: np.ravel(value).astype(float) for key, value in loadmat(path).items() if not key.startswith("__")}
        name = next(key for key in content if key != "fixed")
    except (ValueError, TypeError, OSError, NotImplementedError, MatReadError, StopIteration) as error:
        raise ConcordError(f"{path}: cannot be read as a MATLAB 4 matrix of ANTs; expected a whole .mat file") from error
    return linear_from_parameters(name.partition("_")[0], content[name], content.get("fixed", np.zeros(0)), where=str(path))


def _simpleitk() -> Any:
    try:
        import SimpleITK as sitk
    except ImportError as error:
        raise ConcordError('SimpleITK is not installed; pip install "concord-registration[test]" brings it') from error
    return sitk
