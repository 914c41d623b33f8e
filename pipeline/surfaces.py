"""Surfaces as triangle meshes: STL files, the voxels they enclose, and distances between places of their corners.

Triangles are `(t, 3, 3)`: triangle, corner, `(x, y, z)` in mm, LPS. STL stores no unit and no frame: both are taken to be so, and a surface that
does not lie in its volume is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import ConcordError
from pipeline.files import whole_file
from pipeline.volumes import Geometry

_RECORD = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_HEAD = 84
_VERTEX = re.compile(r"^\s*vertex\s+(.*?)\s*$", re.IGNORECASE | re.MULTILINE)
_FACET = re.compile(r"^\s*facet\b", re.IGNORECASE | re.MULTILINE)
LEAST_INSIDE = 0.5
"""Least share of a surface's corners that must lie in its volume (ours)."""
MOST_OPEN = 0.02
"""Largest share of rays through a surface that may cross it an odd number of times: it is not closed there (ours)."""
_OFFSET = np.array([3.1e-7, 7.3e-7, 5.3e-7])
"""Shift of the rays in voxels, so that none runs through a corner or along an edge."""


def read_stl(path: Path | str) -> np.ndarray:
    """Triangles `(t, 3, 3)`, float64, of a binary or ASCII STL file; corners are repeated as they stand in the file.

    Raises `ConcordError` naming the file where it is missing, truncated, empty, no STL at all, or holds NaN or infinite corners.
    """
    path = Path(path)
    if not path.is_file():
        raise ConcordError(f"{path}: no such file; expected a surface (.stl)")
    content = path.read_bytes()
    triangles = _read_binary(content, path) if _is_binary(content) else _read_ascii(content, path)
    if not len(triangles):
        raise ConcordError(f"{path}: a surface without triangles; export it again")
    if not np.isfinite(triangles).all():
        raise ConcordError(f"{path}: corners that are NaN or infinite; export the surface again")
    return triangles


def write_stl(triangles_mm: np.ndarray, path: Path | str) -> None:
    """Write triangles `(t, 3, 3)` as binary STL, a whole file. Corners are stored in single precision, as the format has it."""
    corners = np.asarray(triangles_mm, dtype=float)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    records = np.zeros(len(corners), dtype=_RECORD)
    records["normal"] = np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)
    records["corners"] = corners
    with whole_file(path) as temporary:
        temporary.write_bytes(b"binary STL, mm, LPS".ljust(80) + len(corners).to_bytes(4, "little") + records.tobytes())


def _is_binary(content: bytes) -> bool:
    """Some programs begin binary files with `solid` too: the count of triangles decides, and then the ASCII keyword."""
    if len(content) >= _HEAD and len(content) == _HEAD + _RECORD.itemsize * int.from_bytes(content[80:_HEAD], "little"):
        return True
    return not (content.lstrip()[:5].lower() == b"solid" and b"\0" not in content[:_HEAD])


def _read_binary(content: bytes, path: Path) -> np.ndarray:
    if len(content) < _HEAD:
        raise ConcordError(f"{path}: {len(content)} bytes are no STL surface; expected a binary or ASCII STL file")
    told, there = int.from_bytes(content[80:_HEAD], "little"), (len(content) - _HEAD) // _RECORD.itemsize
    if there < told:
        raise ConcordError(f"{path}: no STL surface or truncated (room for {there} triangles, its head says {told}); fetch or export it again")
    return np.frombuffer(content, dtype=_RECORD, count=told, offset=_HEAD)["corners"].astype(float)


def _read_ascii(content: bytes, path: Path) -> np.ndarray:
    text = content.decode("ascii", errors="replace")
    vertices = [line.split() for line in _VERTEX.findall(text)]
    if "endsolid" not in text.lower() or len(vertices) != 3 * len(_FACET.findall(text)):
        raise ConcordError(f"{path}: an ASCII STL surface that is truncated ({len(vertices)} corners, no end of the solid); fetch or export it again")
    try:
        return np.array(vertices, dtype=float).reshape(-1, 3, 3)
    except ValueError as error:
        raise ConcordError(f"{path}: a corner of the ASCII STL surface is not three numbers ({error}); export it again") from error


def require_inside(triangles_mm: np.ndarray, geometry: Geometry, name: str) -> None:
    """Raise `ConcordError` where most of the surface `(t, 3, 3)` lies outside the grid; `name` is what the error calls the surface."""
    inside = geometry.contains(triangles_mm).mean()
    if inside < LEAST_INSIDE:
        told = ", ".join(f"{low:.0f} to {high:.0f}" for low, high in zip(triangles_mm.min(axis=(0, 1)), triangles_mm.max(axis=(0, 1)), strict=True))
        raise ConcordError(
            f"{name}: surface outside the volume ({inside:.0%} of its corners inside; it spans {told} mm): another frame (RAS/LPS or offset)?"
        )


def enclosed(triangles_mm: np.ndarray, geometry: Geometry, name: str = "surface") -> np.ndarray:
    """Voxels whose centres the closed surface `(t, 3, 3)` encloses, `(z, y, x)`, uint8.

    Rays along each of the three axes count their crossings; a voxel is inside where most of the axes on which they count evenly say so, so that
    a mesh with small holes, or without caps, is filled as well. Raises `ConcordError` for a surface that is open or encloses no voxel.
    """
    index = geometry.index_at(triangles_mm)
    low = np.clip(np.floor(index.min(axis=(0, 1))), 0, np.array(geometry.size) - 1).astype(int)
    high = np.clip(np.ceil(index.max(axis=(0, 1))) + 1, low + 1, geometry.size).astype(int)
    votes, hit, odd = np.zeros(tuple(high - low), dtype=np.int8), 0, 0  # (x, y, z)
    for axis in range(3):
        order = (*(other for other in range(3) if other != axis), axis)
        inside, rays, open_rays = _cast(index[..., order] - low[list(order)], (high - low)[list(order)])
        votes += np.moveaxis(inside, -1, axis)
        hit, odd = hit + rays, odd + open_rays
    if odd > MOST_OPEN * hit:
        raise ConcordError(f"{name}: surface is not closed ({odd / hit:.0%} of the rays through it enter and never leave); close it")
    if not (votes > 0).any():
        raise ConcordError(f"{name}: surface encloses no voxel; check its unit (mm) and frame (LPS)")
    labels = np.zeros(geometry.shape, dtype=np.uint8)
    labels[tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))] = (votes > 0).T
    return labels


def _cast(corners: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Votes `(u, v, w)` of rays along the last axis of triangles `(t, 3, 3)` in voxels: 1 inside, -1 outside, 0 where the count is odd.

    Also the number of rays that hit the surface, and of those that cross it an odd number of times.
    """
    owner, ray = _rays_over(corners := corners - _OFFSET, size[:2])
    away = corners[owner, :, :2] - ray[:, None, :]  # (candidate, corner, 2)
    side = away[:, [1, 2, 0], 0] * away[:, [2, 0, 1], 1] - away[:, [1, 2, 0], 1] * away[:, [2, 0, 1], 0]
    through = (side > 0).all(axis=1) | (side < 0).all(axis=1)
    weight = side[through] / side[through].sum(axis=1, keepdims=True)
    depth = (weight * corners[owner[through], :, 2]).sum(axis=1)
    after = np.clip(np.ceil(depth), 0, size[2]).astype(int)  # the first voxel beyond the crossing
    flat = np.ravel_multi_index((*ray[through].T, after), (*size[:2], size[2] + 1))
    count = np.bincount(flat, minlength=int(np.prod(size[:2]) * (size[2] + 1))).reshape(*size[:2], size[2] + 1).cumsum(axis=-1)
    odd = count[..., -1] % 2 == 1
    votes = (2 * (count[..., :-1] % 2) - 1).astype(np.int8) * ~odd[..., None]
    return votes, int((count[..., -1] > 0).sum()), int(odd.sum())


def _rays_over(corners: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every triangle with every ray `(u, v)` of the grid that its bounding box holds: numbers of triangles `(n,)` and rays `(n, 2)`."""
    low = np.clip(np.ceil(corners[..., :2].min(axis=1)), 0, None).astype(int)
    high = np.minimum(np.floor(corners[..., :2].max(axis=1)), size - 1).astype(int)
    wide = np.maximum(high - low + 1, 0)
    rays = wide.prod(axis=1)
    owner = np.repeat(np.arange(len(corners)), rays)
    place = np.arange(len(owner)) - np.repeat(rays.cumsum() - rays, rays)
    return owner, low[owner] + np.stack(np.divmod(place, wide[owner, 1]), axis=-1)


class Residual(NamedTuple):
    """What is left between true and found places: mean distance, shift of the centroid, and rotation."""

    sre_mm: float
    translation_mm: float
    rotation_deg: float


def residual_of(true_mm: np.ndarray, found_mm: np.ndarray) -> Residual:
    """How far found places `(n, 3)` are from the true ones of the same points.

    `sre_mm` is the surface registration error of Attention-Reg (Song et al., MICCAI 2021) where the points are all corners of a surface, repeats
    kept. The rest is the rigid motion that fits the difference best: the shift of the centroid, and the angle of the rotation about it. Of two rigid
    transforms these are the error of the one after the inverse of the other, exactly.
    """
    from scipy.spatial.transform import Rotation

    from metrics.accuracy.points import tre_mm

    matrix = fitted_rigid(true_mm, found_mm)
    shift = found_mm.mean(axis=0) - true_mm.mean(axis=0)
    angle = Rotation.from_matrix(matrix[:3, :3]).magnitude()
    return Residual(float(tre_mm(found_mm, true_mm).mean()), float(np.linalg.norm(shift)), float(np.rad2deg(angle)))


def fitted_rigid(start_mm: np.ndarray, end_mm: np.ndarray) -> np.ndarray:
    """The rigid matrix `(4, 4)` that takes points `(n, 3)` closest to their partners in the sense of least squares (Kabsch 1976)."""
    start, end = start_mm.mean(axis=0), end_mm.mean(axis=0)
    matrix = np.eye(4)
    matrix[:3, :3] = nearest_rotation((end_mm - end).T @ (start_mm - start))
    matrix[:3, 3] = end - matrix[:3, :3] @ start
    return matrix


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """The rotation `(3, 3)` closest to a matrix, orthonormal to the last bit of double precision."""
    left, _, right = np.linalg.svd(matrix)
    return left @ np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))]) @ right


class Aligned(NamedTuple):
    """The rigid matrix `(4, 4)` from fixed to moving points, and the mean distance in mm that it leaves between the surfaces."""

    matrix: np.ndarray
    distance_mm: float


def aligned_surfaces(fixed_mm: np.ndarray, moving_mm: np.ndarray, *, most_deg: float = 60.0, iterations: int = 200) -> Aligned:
    """The rigid motion that lays one surface `(t, 3, 3)` onto another of the same organ, about (ours).

    Iterated closest points, both ways (Besl and McKay 1992), between points spread evenly over the surfaces. It starts from the centroids twice,
    without rotation and with the principal axes laid onto each other where that turns by at most `most_deg`, and the closer end is taken. A smooth
    organ is nearly round about some axis, where its surface says little: this is an approximate truth. On prostate phantoms whose two outlines differ
    by 1.5 mm it was off by 2 mm and 5 degrees on average.
    """
    fixed, moving = _spread(fixed_mm), _spread(moving_mm)
    ends = [_closest_points(fixed, moving, rotation, iterations) for rotation in _first_rotations(fixed, moving, most_deg)]
    return min(ends, key=lambda end: end.distance_mm)


def _spread(triangles: np.ndarray, points: int = 3000) -> np.ndarray:
    """Points `(n, 3)` drawn evenly over the area, always the same ones."""
    rng = np.random.default_rng(0)
    edges = triangles[:, 1:] - triangles[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    owner = np.searchsorted(area.cumsum(), (np.arange(points) + 0.5) / points * area.sum())
    first, second = rng.random((2, points, 1))
    over = first + second > 1
    first, second = np.where(over, 1 - first, first), np.where(over, 1 - second, second)
    return triangles[owner, 0] + first * edges[owner, 0] + second * edges[owner, 1]


def _first_rotations(fixed: np.ndarray, moving: np.ndarray, most_deg: float) -> list[np.ndarray]:
    """No rotation, and the smallest of the four that lay principal axes onto each other, where it is small enough."""
    from scipy.spatial.transform import Rotation

    fixed_axes, moving_axes = (np.linalg.eigh(np.cov(points.T))[1] for points in (fixed, moving))
    moving_axes = moving_axes * [1, 1, np.linalg.det(moving_axes) * np.linalg.det(fixed_axes)]
    turned = [moving_axes @ np.diag(signs) @ fixed_axes.T for signs in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))]
    angles = Rotation.from_matrix(turned).magnitude()
    return [np.eye(3)] + ([turned[int(angles.argmin())]] if angles.min() <= np.deg2rad(most_deg) else [])


def _closest_points(fixed: np.ndarray, moving: np.ndarray, rotation: np.ndarray, iterations: int) -> Aligned:
    from scipy.spatial import cKDTree

    fixed_tree, moving_tree = cKDTree(fixed), cKDTree(moving)
    matrix, last = np.eye(4), np.inf
    matrix[:3, :3], matrix[:3, 3] = rotation, moving.mean(axis=0) - rotation @ fixed.mean(axis=0)
    for _ in range(iterations):
        there, to_moving = moving_tree.query(fixed @ matrix[:3, :3].T + matrix[:3, 3])
        back, to_fixed = fixed_tree.query((moving - matrix[:3, 3]) @ matrix[:3, :3])
        distance = float((there.mean() + back.mean()) / 2)
        if last - distance < 1e-6:
            break
        last = distance
        matrix = fitted_rigid(np.concatenate([fixed, fixed[to_fixed]]), np.concatenate([moving[to_moving], moving]))
    return Aligned(matrix, distance)
