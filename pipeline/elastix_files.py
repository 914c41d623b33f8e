"""elastix's TransformParameters files: a list of keys and values as text, one file a stage, each naming the one before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConcordError
from pipeline.files import write_text
from pipeline.linear_parameters import linear_from_parameters, parameters_of
from pipeline.transforms import BSpline, Composite, Field, Linear, Transform, compose
from pipeline.volumes import Geometry, read_vector_field, write_vector_field

ParameterMap = Mapping[str, Sequence[str]]
"""An elastix parameter file in memory: each key with its values as text."""

_NO_INITIAL = ("", "NoInitialTransform")


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
        path = _beside(Path(initial), path)


def _beside(named: Path, by: Path) -> Path:
    """The file named in another one: under its name, or in the same folder where the folder was moved."""
    return next((path for path in (named, by.parent / named, by.parent / named.name) if path.is_file()), named)


def _read_map(path: Path) -> dict[str, list[str]]:
    """The `(Key value …)` lines of a parameter file; text after `//` is a comment."""
    if not path.is_file():
        raise ConcordError(f"{path}: no such file; check the path (initial transforms are sought by name and beside the file that names them)")
    lines = re.findall(r"^\s*\((\w+)[ \t]*((?:\"[^\"]*\"|[^()\"])*)\)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    values = {key: [quoted or bare for quoted, bare in re.findall(r"\"([^\"]*)\"|([^\s\"]+)", rest)] for key, rest in lines}
    if not values.get("Transform"):
        raise ConcordError(f'{path}: no (Transform "…") line; expected an elastix transform parameter file')
    return values


def _from_map(values: ParameterMap, where: str) -> Transform:
    name = values["Transform"][0]
    if values.get("HowToCombineTransforms", ["Compose"])[0] != "Compose":
        raise ConcordError(f"{where}: HowToCombineTransforms {values['HowToCombineTransforms'][0]!r}; expected Compose: run elastix with it")
    if name == "DeformationFieldTransform":
        return _field_from_map(values, where)
    if name in ("BSplineTransform", "RecursiveBSplineTransform"):
        return _bspline_from_map(values, where)
    centre = _numbers(values, "CenterOfRotationPoint", where) if "CenterOfRotationPoint" in values else np.zeros(0)
    fixed = np.append(centre, values.get("ComputeZYX", ["false"])[0] == "true") if len(centre) else centre
    return linear_from_parameters(name, _numbers(values, "TransformParameters", where), fixed, where=where)


def _bspline_from_map(values: ParameterMap, where: str) -> BSpline:
    order = values.get("BSplineTransformSplineOrder", ["3"])[0]
    if order != "3" or values.get("UseCyclicTransform", ["false"])[0] == "true":
        raise ConcordError(f"{where}: B-spline of order {order}, cyclic or not cubic; expected order 3 and not cyclic")
    size, spacing, origin, index = (_numbers(values, f"Grid{key}", where) for key in ("Size", "Spacing", "Origin", "Index"))
    d, cosines, coefficients = len(size), _numbers(values, "GridDirection", where), _numbers(values, "TransformParameters", where)
    if not len(spacing) == len(origin) == len(index) == d or len(cosines) != d * d or len(coefficients) != d * np.prod(size):
        raise ConcordError(
            f"{where}: {len(coefficients)} coefficients on a grid of {size.astype(int).tolist()}; expected one an axis and control point"
        )
    direction = cosines.reshape(d, d).T  # elastix writes directions column by column
    first = origin + direction @ (spacing * index)
    grid = Geometry(tuple(size.astype(int).tolist()), tuple(spacing.tolist()), tuple(first.tolist()), _rows(direction, d))
    return BSpline(coefficients.reshape(d, *grid.shape), grid)


def _field_from_map(values: ParameterMap, where: str) -> Field:
    order = values.get("DeformationFieldInterpolationOrder", ["0"])[0]
    if order != "1":
        raise ConcordError(f"{where}: DeformationFieldInterpolationOrder {order}; expected 1 (linear): set it in the file")
    named = values.get("DeformationFieldFileName") or [""]
    return Field(*read_vector_field(_beside(Path(named[0]), Path(where))))


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
    values = {"TransformParameters": parameters.tolist()} if len(parameters) else {}  # elastix refuses a key without values
    return {"Transform": [name], "NumberOfParameters": [len(parameters)], **values, "HowToCombineTransforms": ["Compose"]}


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
