"""Uncompressed scalar MetaImage (.mha) without ITK: the format of prepared volumes, so that a node without ITK can train.

Loading ITK's readers costs seconds and half a gigabyte; this costs nothing. Whatever this module does not know (compressed, ASCII,
several channels, data in other files) it leaves to ITK by returning None.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.errors import ConcordError

TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_HEADER_BYTES = 4096


def read_samples(path: Path) -> tuple[np.ndarray, dict[str, list[float]]] | None:
    """Samples `([z,] y, x)` and the header's numbers `spacing`, `origin`, `direction` (rows of the matrix); None: ITK's business.

    Raises `ConcordError` where the file is shorter than its header says.
    """
    with path.open("rb") as stream:
        header, end = _header(stream.read(_HEADER_BYTES))
        if not _is_plain(header):
            return None
        size = [int(n) for n in header["DimSize"].split()]
        dtype = np.dtype((">" if header.get("BinaryDataByteOrderMSB", "False") == "True" else "<") + TYPES[header["ElementType"]])
        stream.seek(end)
        samples = np.fromfile(stream, dtype, count=int(np.prod(size)))
    if samples.size != np.prod(size):
        raise ConcordError(f"{path}: {samples.size} samples, expected {np.prod(size)}: the file is truncated, fetch it again")
    d = len(size)
    numbers = {
        "spacing": _numbers(header.get("ElementSpacing") or header.get("ElementSize"), [1.0] * d),
        "origin": _numbers(header.get("Offset") or header.get("Position") or header.get("Origin"), [0.0] * d),
        "direction": _numbers(header.get("TransformMatrix") or header.get("Orientation") or header.get("Rotation"), np.eye(d).ravel().tolist()),
    }
    return samples.astype(dtype.newbyteorder("="), copy=False).reshape(size[::-1]), numbers


def write_samples(array: np.ndarray, *, spacing_mm: tuple[float, ...], origin_mm: tuple[float, ...], direction: np.ndarray, path: Path) -> bool:
    """Write samples `([z,] y, x)`; False where the sample type has no counterpart. `direction` has an axis a column, as in ITK."""
    kinds = {kind: name for name, kind in TYPES.items()}
    kind = array.dtype.newbyteorder("=").str.lstrip("<>|=")
    if kind not in kinds:
        return False
    text = {
        "ObjectType": "Image",
        "NDims": array.ndim,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": _text(np.asarray(direction).T.ravel()),  # MetaImage lists the axes one after the other
        "Offset": _text(origin_mm),
        "CenterOfRotation": _text([0.0] * array.ndim),
        "ElementSpacing": _text(spacing_mm),
        "DimSize": " ".join(str(n) for n in array.shape[::-1]),
        "ElementType": kinds[kind],
        "ElementDataFile": "LOCAL",
    }
    with path.open("wb") as stream:
        stream.write("".join(f"{key} = {value}\n" for key, value in text.items()).encode())
        stream.write(np.ascontiguousarray(array, dtype=np.dtype("<" + kind)).data)
    return True


def _header(start: bytes) -> tuple[dict[str, str], int]:
    """Keys and values, and where the samples begin."""
    marker = start.find(b"ElementDataFile")
    end = start.find(b"\n", marker) + 1
    if marker < 0 or end <= 0:
        return {}, 0
    pairs = (line.partition("=") for line in start[:end].decode("latin-1").splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}, end


def _is_plain(header: dict[str, str]) -> bool:
    expected = {"ElementDataFile": "LOCAL", "BinaryData": "True"}
    return (
        all(header.get(key) == value for key, value in expected.items())
        and header.get("CompressedData", "False") == "False"
        and header.get("ElementNumberOfChannels", "1") == "1"
        and header.get("ElementType") in TYPES
        and len(header.get("DimSize", "").split()) in (2, 3)
        and header.get("HeaderSize", "0") == "0"
    )


def _numbers(text: str | None, default: list[float]) -> list[float]:
    return [float(number) for number in text.split()] if text else default


def _text(numbers: np.ndarray | tuple[float, ...] | list[float]) -> str:
    return " ".join(repr(float(number)) for number in numbers)
