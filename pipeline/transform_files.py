"""Transforms as ITK's own files, `.h5` and `.tfm`, read and written without loading ITK (which takes seconds in every process).

Both formats are a list of classes, parameters and fixed parameters; what is written here ITK, elastix, ANTs, SimpleITK and 3D Slicer
read, and the other way round. Fields are stored in single precision, compressed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import ConcordError
from pipeline.files import whole_file
from pipeline.linear_parameters import linear_from_parameters, parameters_of
from pipeline.transforms import BSpline, Composite, Field, Linear, Transform, compose
from pipeline.volumes import Geometry

SUFFIXES = (".h5", ".tfm", ".txt")
_NAME = re.compile(r"^(\w+?)_(?:double|float)_(\d)_(\d)$")


class Record(NamedTuple):
    """One transform as ITK stores it."""

    name: str
    dimension: int
    parameters: np.ndarray
    fixed: np.ndarray


def write_transform(transform: Transform, path: Path | str) -> None:
    """Write as ITK `.h5` or `.tfm`, a whole file. Fields belong in `.h5`: as text they are many times larger."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConcordError(f"{path}: unknown transform suffix; choose one of {', '.join(SUFFIXES)}")
    records = list(_records_of(transform))
    with whole_file(path) as temporary:
        (_write_h5 if path.suffix == ".h5" else _write_text)(records, temporary)


def read_transform(path: Path | str) -> Transform:
    """Read an ITK transform file. Raises `ConcordError` for a missing or damaged file and for types without a counterpart here.

    Several transforms in one file are composed as ITK composes: the last one moves the fixed point first.
    """
    path = Path(path)
    if not path.exists():
        raise ConcordError(f"{path}: no such file; check the path")
    try:
        records = _read_h5(path) if path.suffix in (".h5", ".hdf5") else _read_text(path)
        parts = [_from_record(record, str(path)) for record in records if record.name != "CompositeTransform"]
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise ConcordError(f"{path}: cannot be read as an ITK transform; expected a whole .h5 or .tfm file") from error
    if not parts:
        raise ConcordError(f"{path}: holds no transform; expected at least one")
    return compose(*reversed(parts))


def _records_of(transform: Transform) -> Iterator[Record]:
    d, nothing = transform.dimension, np.zeros(0)
    if isinstance(transform, Composite):
        yield Record("CompositeTransform", d, nothing, nothing)
        for part in reversed(transform.parts):  # ITK applies the transform that stands last first
            yield from _records_of(part)
    elif isinstance(transform, Linear):
        name, parameters, centre = parameters_of(transform)
        yield Record(name, d, parameters, centre)
    elif isinstance(transform, BSpline):
        yield Record("BSplineTransform", d, transform.coefficients_mm.ravel(), _grid_parameters(transform.grid))
    elif isinstance(transform, Field):
        yield Record("DisplacementFieldTransform", d, transform.field_mm.ravel(), _grid_parameters(transform.geometry))
    else:
        raise ConcordError(f"{type(transform).__name__} has no ITK counterpart")


def _from_record(record: Record, where: str) -> Transform:
    name, d, parameters, fixed = record
    if name == "IdentityTransform":
        return Linear.identity(d)
    if name not in ("BSplineTransform", "DisplacementFieldTransform"):
        return linear_from_parameters(name, parameters, fixed, where=where)
    grid = Geometry(
        tuple(int(n) for n in fixed[:d]),
        tuple(fixed[2 * d : 3 * d].tolist()),
        tuple(fixed[d : 2 * d].tolist()),
        tuple(tuple(row) for row in fixed[3 * d : 3 * d + d * d].reshape(d, d).tolist()),
    )
    if name == "BSplineTransform":
        return BSpline(parameters.astype(float).reshape(d, *grid.shape), grid)
    return Field(parameters.reshape(*grid.shape, d), grid)


def _grid_parameters(grid: Geometry) -> np.ndarray:
    return np.array([*grid.size, *grid.origin_mm, *grid.spacing_mm, *np.ravel(grid.direction)], dtype=float)


def _write_h5(records: list[Record], path: Path) -> None:
    import h5py

    text = h5py.string_dtype("ascii")  # ITK asks for that and nothing else
    with h5py.File(path, "w", libver="earliest") as file:
        # ITK's reader wants to know who wrote the file
        for key, value in (("ITKVersion", "5.4"), ("HDFVersion", h5py.version.hdf5_version), ("OSName", "any"), ("OSVersion", "any")):
            file.create_dataset(key, data=np.array([value], dtype=object), dtype=text)
        for number, record in enumerate(records):
            group = file.create_group(f"TransformGroup/{number}")
            name = f"{record.name}_double_{record.dimension}_{record.dimension}"
            group.create_dataset("TransformType", data=np.array([name], dtype=object), dtype=text)
            if record.name == "CompositeTransform":
                continue
            group.create_dataset("TransformFixedParameters", data=record.fixed)
            is_field = record.name == "DisplacementFieldTransform"
            packed: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if is_field else {}
            group.create_dataset("TransformParameters", data=record.parameters.astype(np.float32 if is_field else np.float64), **packed)


def _read_h5(path: Path) -> list[Record]:
    import h5py

    records = []
    with h5py.File(path) as file:
        group = file["TransformGroup"]
        for number in range(len(group)):
            entry = group[str(number)]
            values = [entry[key][()] if key in entry else np.zeros(0) for key in ("TransformParameters", "TransformFixedParameters")]
            records.append(_record(entry["TransformType"][0].decode(), *values))
    return records


def _write_text(records: list[Record], path: Path) -> None:
    lines = ["#Insight Transform File V1.0"]
    for number, record in enumerate(records):
        lines += [f"#Transform {number}", f"Transform: {record.name}_double_{record.dimension}_{record.dimension}"]
        if record.name != "CompositeTransform":
            lines += [
                f"{key}: {' '.join(map(repr, values.tolist()))}"
                for key, values in (("Parameters", record.parameters), ("FixedParameters", record.fixed))
            ]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def _read_text(path: Path) -> list[Record]:
    records: list[Record] = []
    name, parameters = "", np.zeros(0)
    text = path.read_text(encoding="ascii")
    if not text.endswith("\n"):
        raise ValueError("the last line is cut off")
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == "Transform":
            name = value.strip()
            if name.startswith("CompositeTransform"):
                records.append(_record(name, np.zeros(0), np.zeros(0)))
        elif key == "Parameters":
            parameters = np.array(value.split(), dtype=float)
        elif key == "FixedParameters":
            records.append(_record(name, parameters, np.array(value.split(), dtype=float)))
    return records


def _record(type_name: str, parameters: np.ndarray, fixed: np.ndarray) -> Record:
    found = _NAME.match(type_name)
    if found is None or found[2] != found[3]:
        raise ValueError(f"transform type {type_name!r}")
    return Record(found[1], int(found[2]), np.asarray(parameters), np.asarray(fixed, dtype=float))
