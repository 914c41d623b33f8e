"""Transforms of other tools: elastix parameter files, ANTs' matrices and warps, SimpleITK objects.

elastix, ANTs and SimpleITK all use ITK's convention (fixed points to moving points, in mm, LPS) and ITK's parameter
vectors; they differ in what is written where. ITK itself is not needed here: the files are text, MATLAB 4 or images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConcordError
from pipeline.files import whole_file, write_text
from pipeline.linear_parameters import linear_from_parameters, parameters_of
from pipeline.transforms import BSpline, Composite, Field, Linear, Transform, compose, read_transform
from pipeline.volumes import Geometry, read_vector_field, write_vector_field

ParameterMap = Mapping[str, Sequence[str]]
"""An elastix parameter file in memory: each key with its values as text."""

_NO_INITIAL = ("", "NoInitialTransform")
_FIELD_SUFFIXES = (".nii", ".nii.gz", ".mha", ".nrrd")


def from_elastix(source: Path | str | Sequence[ParameterMap] | Sequence[Path | str]) -> Transform:
    """The transform that elastix wrote: a file (with the initial transforms that it names), or the chain itself in order of application.

    Translation, Euler, Similarity, Affine, cubic (Recursive)BSpline and DeformationField; T(x) = T1(T0(x)), elastix's
    "Compose". Raises `ConcordError` for other types and for "Add", naming the file or the place in the chain.
    """
    if isinstance(source, Path | str):
        return compose(*(_from_map(values, name) for name, values in reversed(list(_chain(Path(source))))))
    maps = [(f"parameter map {i}", s) if isinstance(s, Mapping) else (str(s), _read_map(Path(s))) for i, s in enumerate(source)]
    if not maps:
        raise ConcordError("no elastix parameter maps; expected at least one")
    return compose(*(_from_map(values, name) for name, values in maps))


def to_elastix(transform: Transform, geometry: Geometry, folder: Path | str) -> tuple[Path, ...]:
    """Write `TransformParameters.N.txt` into `folder`, one a part, each naming the one before; give the last to transformix.

    `geometry` is the grid that transformix resamples onto (the fixed volume's). A displacement field stands beside its
    file as `.mha`. File names are absolute: elastix looks them up from wherever it is started.
    """
    folder = Path(folder).absolute()
    written: list[Path] = []
    for number, part in enumerate(transform.parts if isinstance(transform, Composite) else (transform,)):
        path = folder / f"TransformParameters.{number}.txt"
        values = {
            **_to_map(part, path),
            **_resampling_map(geometry),
            "InitialTransformParameterFileName": [str(written[-1]) if written else "NoInitialTransform"],
        }
        write_text(path, "".join(f"({key} {' '.join(map(_quoted, entries))})\n" for key, entries in values.items()))
        written.append(path)
    return tuple(written)


def to_ants(transform: Transform, path: Path | str, geometry: Geometry | None = None) -> tuple[Path, ...]:
    """Write files for ANTs; the result is its `transformlist` (`-t` options) in ANTs' own order.

    Linear transforms go to `.mat` or `.txt`, as `path` says (`.mat` where it names a warp). Fields go to `.nii.gz`, five-
    dimensional as ANTs reads them; B-splines are sampled on `geometry`, exact at its voxel centres. Several parts are numbered.
    """
    path, parts = Path(path), transform.parts if isinstance(transform, Composite) else (transform,)
    stem = path.name[: path.name.find(".")] if "." in path.name else path.name
    written = []
    for number, part in enumerate(parts):
        name = f"{stem}{number}" if len(parts) > 1 else stem
        if isinstance(part, Linear):
            target = path.with_name(name + (path.suffix if path.suffix in (".mat", ".txt") else ".mat"))
            _write_itk_linear(part, target)
        else:
            target = path.with_name(name + (".nii" if path.name.endswith(".nii") else ".nii.gz"))
            field = part if isinstance(part, Field) else _sampled(part, geometry, path)
            write_vector_field(field.field_mm, field.geometry, target)
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
    if name == "IdentityTransform":
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


def _chain(path: Path) -> Iterator[tuple[str, ParameterMap]]:
    """The file and the initial transforms behind it, last stage first; a name that is no longer valid is sought beside the file."""
    seen: set[Path] = set()
    while True:
        if path.resolve() in seen:
            raise ConcordError(f"{path}: names itself as its initial transform; expected a chain that ends in NoInitialTransform")
        seen.add(path.resolve())
        values = _read_map(path)
        yield str(path), values
        initial = (values.get("InitialTransformParameterFileName") or values.get("InitialTransformParametersFileName") or [""])[0]
        if initial in _NO_INITIAL:
            return
        path = next((p for p in (Path(initial), path.parent / Path(initial).name) if p.exists()), Path(initial))


def _read_map(path: Path) -> dict[str, list[str]]:
    """The `(Key value …)` lines of a parameter file; text after `//` is a comment."""
    if not path.is_file():
        raise ConcordError(f"{path}: no such file; check the path (initial transforms are sought by name and beside the file that names them)")
    lines = re.findall(r"^\s*\((\w+)[ \t]*((?:\"[^\"]*\"|[^()\"])*)\)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    values = {key: [quoted or bare for quoted, bare in re.findall(r"\"([^\"]*)\"|([^\s\"]+)", rest)] for key, rest in lines}
    if "Transform" not in values:
        raise ConcordError(f'{path}: no (Transform "…") line; expected an elastix transform parameter file')
    return values


def _from_map(values: ParameterMap, where: str) -> Transform:
    name = values["Transform"][0]
    if values.get("HowToCombineTransforms", ["Compose"])[0] != "Compose":
        raise ConcordError(f"{where}: HowToCombineTransforms {values['HowToCombineTransforms'][0]!r}; expected Compose: run elastix with it")
    d = int(values["FixedImageDimension"][0])
    if name == "DeformationFieldTransform":
        return _field_from_map(values, where)
    if name in ("BSplineTransform", "RecursiveBSplineTransform"):
        return _bspline_from_map(values, d, where)
    fixed = (
        np.append(_numbers(values, "CenterOfRotationPoint", where), values.get("ComputeZYX", ["false"])[0] == "true")
        if "CenterOfRotationPoint" in values
        else np.zeros(0)
    )
    return linear_from_parameters(name, _numbers(values, "TransformParameters", where), fixed, where=where)


def _bspline_from_map(values: ParameterMap, d: int, where: str) -> BSpline:
    order = values.get("BSplineTransformSplineOrder", ["3"])[0]
    if order != "3" or values.get("UseCyclicTransform", ["false"])[0] == "true":
        raise ConcordError(f"{where}: B-spline of order {order}, cyclic or not cubic; expected order 3 and not cyclic")
    size, spacing, origin, index = (_numbers(values, f"Grid{key}", where) for key in ("Size", "Spacing", "Origin", "Index"))
    direction = _numbers(values, "GridDirection", where).reshape(d, d).T  # elastix writes directions column by column
    first = origin + direction @ (spacing * index)
    grid = Geometry(tuple(size.astype(int).tolist()), tuple(spacing.tolist()), tuple(first.tolist()), _rows(direction, d))
    return BSpline(_numbers(values, "TransformParameters", where).reshape(d, *grid.shape), grid)


def _field_from_map(values: ParameterMap, where: str) -> Field:
    order = values.get("DeformationFieldInterpolationOrder", ["0"])[0]
    if order != "1":
        raise ConcordError(f"{where}: DeformationFieldInterpolationOrder {order}; expected 1 (linear): set it in the file")
    field_mm, geometry = read_vector_field(values["DeformationFieldFileName"][0])
    return Field(field_mm, geometry)


def _numbers(values: ParameterMap, key: str, where: str) -> np.ndarray:
    try:
        return np.array([float(v) for v in values[key]])
    except (KeyError, ValueError) as error:
        raise ConcordError(f"{where}: {key} is {values.get(key, 'missing')!r:.80}; expected numbers") from error


def _to_map(part: Transform, path: Path) -> dict[str, Sequence[Any]]:
    if isinstance(part, BSpline):
        grid = part.grid
        return _named("BSplineTransform", part.coefficients_mm.ravel()) | {
            "GridSize": grid.size,
            "GridIndex": [0] * grid.dimension,
            "GridSpacing": grid.spacing_mm,
            "GridOrigin": grid.origin_mm,
            "GridDirection": np.ravel(np.transpose(grid.direction)).tolist(),
            "BSplineTransformSplineOrder": [3],
            "UseCyclicTransform": ["false"],
        }
    if isinstance(part, Field):
        image = path.with_suffix(".mha")
        write_vector_field(part.field_mm, part.geometry, image)
        return _named("DeformationFieldTransform", np.zeros(0)) | {
            "DeformationFieldFileName": [str(image)],
            "DeformationFieldInterpolationOrder": [1],
        }
    if not isinstance(part, Linear):
        raise ConcordError(f"{type(part).__name__} has no elastix counterpart; expected linear, B-spline, field or a composition of them")
    return _linear_to_map(part)


def _linear_to_map(part: Linear) -> dict[str, Sequence[Any]]:
    name, parameters, centre = parameters_of(part)
    elastix = _named(name.replace("2D", "").replace("3D", ""), parameters)
    return elastix | ({"CenterOfRotationPoint": centre.tolist()} if len(centre) else {})


def _named(name: str, parameters: np.ndarray) -> dict[str, Sequence[Any]]:
    return {
        "Transform": [name],
        "NumberOfParameters": [len(parameters)],
        "TransformParameters": parameters.tolist(),
        "HowToCombineTransforms": ["Compose"],
    }


def _resampling_map(geometry: Geometry) -> dict[str, Sequence[Any]]:
    """The output grid and the interpolation, without which transformix refuses a file."""
    return {
        "FixedImageDimension": [geometry.dimension],
        "MovingImageDimension": [geometry.dimension],
        "FixedInternalImagePixelType": ["float"],
        "MovingInternalImagePixelType": ["float"],
        "Size": geometry.size,
        "Index": [0] * geometry.dimension,
        "Spacing": geometry.spacing_mm,
        "Origin": geometry.origin_mm,
        "Direction": np.ravel(np.transpose(geometry.direction)).tolist(),
        "UseDirectionCosines": ["true"],
        "Resampler": ["DefaultResampler"],
        "ResampleInterpolator": ["FinalLinearInterpolator"],
        "DefaultPixelValue": [0],
        "ResultImageFormat": ["mha"],
        "ResultImagePixelType": ["float"],
        "CompressResultImage": ["false"],
    }


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _rows(values: Any, d: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in np.reshape(values, (d, d)).astype(float).tolist())


def _sampled(part: Transform, geometry: Geometry | None, path: Path) -> Field:
    if geometry is None:
        raise ConcordError(f"{path}: a {type(part).__name__} has to be sampled for ANTs; give the grid to sample it on (the fixed volume's)")
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

    if not path.is_file():
        raise ConcordError(f"{path}: no such file; check the path")
    if path.name.endswith(_FIELD_SUFFIXES):
        return Field(*read_vector_field(path))
    if path.suffix != ".mat":
        return read_transform(path)
    try:
        content = {key: np.ravel(value).astype(float) for key, value in loadmat(path).items() if not key.startswith("__")}
        name = next(key for key in content if key != "fixed")
    except (ValueError, TypeError, NotImplementedError, StopIteration) as error:
        raise ConcordError(f"{path}: cannot be read as a MATLAB 4 matrix of ANTs; expected a whole .mat file") from error
    return linear_from_parameters(name.partition("_")[0], content[name], content.get("fixed", np.zeros(0)), where=str(path))


def _simpleitk() -> Any:
    try:
        import SimpleITK as sitk
    except ImportError as error:
        raise ConcordError('SimpleITK is not installed; pip install "concord-registration[test]" brings it') from error
    return sitk
