"""Rigid motions of space as six numbers, and how far they carry a surface: what networks of rigid registration predict and are judged by.

Parameters are `(tx, ty, tz, ax, ay, az)`, mm and degrees: `M(p; c)` sends x to `R (x - c) + c + t` with `R = Rz(az) Ry(ay) Rx(ax)`.
Surface registration error (SRE) and the draw of starting positions: Song et al., MICCAI 2021, sec. 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ConcordError
from pipeline.transforms import Linear, Transform

RIGID_TOLERANCE = 1e-6
SCALINGS = 8
"""Times that a draw is scaled to the wanted SRE, which is not linear in the parameters; the paper scales once (ours)."""
EXACT_MM = 1e-3
MOST_ROUNDS = 200
_CHUNK = 1 << 22


def motion_matrix(parameters: np.ndarray, centre_mm: np.ndarray) -> np.ndarray:
    """Homogeneous matrices `(..., 4, 4)` of parameters `(..., 6)` about centres `(3,)` or `(..., 3)` in mm."""
    parameters, centre = np.asarray(parameters, dtype=float), np.asarray(centre_mm, dtype=float)
    angles = np.deg2rad(parameters[..., 3:])
    (cx, cy, cz), (sx, sy, sz) = np.moveaxis(np.cos(angles), -1, 0), np.moveaxis(np.sin(angles), -1, 0)
    matrix = np.zeros((*parameters.shape[:-1], 4, 4))
    matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 0, 2] = cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx
    matrix[..., 1, 0], matrix[..., 1, 1], matrix[..., 1, 2] = sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx
    matrix[..., 2, 0], matrix[..., 2, 1], matrix[..., 2, 2] = -sy, cy * sx, cy * cx
    matrix[..., :3, 3] = parameters[..., :3] + centre - _turned(matrix, centre)
    matrix[..., 3, 3] = 1
    return matrix


def motion_parameters(matrix: np.ndarray, centre_mm: np.ndarray) -> np.ndarray:
    """Parameters `(..., 6)` of rigid matrices `(..., 4, 4)`, the inverse of `motion_matrix` for ay within ±90 degrees.

    Raises `ConcordError` for a matrix that scales, shears or mirrors.
    """
    matrix, centre = np.asarray(matrix, dtype=float), np.asarray(centre_mm, dtype=float)
    _check_rigid(matrix, "motion")
    level = np.hypot(matrix[..., 0, 0], matrix[..., 1, 0])
    locked = level < 1e-9  # ay of 90 degrees: only the sum or difference of the others is known
    ax = np.where(locked, np.arctan2(-matrix[..., 1, 2], matrix[..., 1, 1]), np.arctan2(matrix[..., 2, 1], matrix[..., 2, 2]))
    az = np.where(locked, 0.0, np.arctan2(matrix[..., 1, 0], matrix[..., 0, 0]))
    angles = np.rad2deg(np.stack([ax, np.arctan2(-matrix[..., 2, 0], level), az], axis=-1))
    return np.concatenate([matrix[..., :3, 3] - centre + _turned(matrix, centre), angles], axis=-1)


def rigid_matrix(transform: Transform, where: str) -> np.ndarray:
    """The homogeneous matrix `(4, 4)` of a rigid 3-D transform. Raises `ConcordError` naming `where` for any other."""
    if not isinstance(transform, Linear) or transform.dimension != 3:
        raise ConcordError(f"{where}: {type(transform).__name__} of dimension {transform.dimension}; expected a rigid 3-D transform")
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = transform.matrix, transform.offset_mm
    _check_rigid(matrix, where)
    return matrix


def linear_of(matrix: np.ndarray, centre_mm: np.ndarray) -> Linear:
    """The rigid transform of a homogeneous matrix `(4, 4)`; `centre_mm` is what its file states the rotation about."""
    return Linear(matrix[:3, :3], matrix[:3, 3], "rigid", np.asarray(centre_mm, dtype=float))


@dataclass(frozen=True, eq=False)
class Surfaces:
    """Points of `s` surfaces, arranged so that the SRE of a motion costs one product of a matrix and a vector.

    The squared way of a point is a quadratic form in it: `monomials` `(s, v, 10)` of the points about `middles_mm` `(s, 3)`, one row a
    distinct point; `weights` `(s, v)` are how often it stands among the corners, as a share.
    """

    middles_mm: np.ndarray
    monomials: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, vertices_mm: Sequence[np.ndarray]) -> Surfaces:
        """From the points `(v, 3)` of each surface. Corners that several triangles share count as often as they stand there, as in the paper."""
        distinct = [np.unique(np.asarray(points, dtype=float).reshape(-1, 3), axis=0, return_counts=True) for points in vertices_mm]
        most = max(len(points) for points, _ in distinct)
        middles = np.stack([points.mean(0) for points, _ in distinct])
        monomials, weights = np.zeros((len(distinct), most, 10)), np.zeros((len(distinct), most))
        for row, (points, counts) in enumerate(distinct):
            monomials[row, : len(points)], weights[row, : len(points)] = _monomials(points - middles[row]), counts / counts.sum()
        return cls(middles, monomials, weights)

    def take(self, rows: np.ndarray) -> Surfaces:
        """The surfaces of these rows, which may repeat; a single surface serves all rows."""
        return self if len(self.weights) == 1 else Surfaces(self.middles_mm[rows], self.monomials[rows], self.weights[rows])

    def sre_mm(self, matrices: np.ndarray) -> np.ndarray:
        """Mean distance in mm between the points and where the rigid `matrices` `(n, 4, 4)` send them, `(n,)`; one surface a matrix, or one for all."""
        rows = max(1, _CHUNK // self.weights.shape[1])
        if len(matrices) <= rows:
            return self._means(matrices)
        parts = [np.arange(start, min(start + rows, len(matrices))) for start in range(0, len(matrices), rows)]
        return np.concatenate([self.take(part)._means(matrices[part]) for part in parts])

    def _means(self, matrices: np.ndarray) -> np.ndarray:
        way = matrices[:, :3] - np.eye(4)[:3]
        way[:, :, 3] += np.einsum("nij,nj->ni", way[:, :, :3], np.broadcast_to(self.middles_mm, (len(way), 3)))
        form = np.swapaxes(way, 1, 2) @ way
        first, second = np.triu_indices(4)
        numbers = form[:, first, second]
        if len(self.weights) == 1:
            return self.weights[0] @ np.sqrt(np.maximum(self.monomials[0] @ numbers.T, 0))
        return (self.weights * np.sqrt(np.maximum((self.monomials @ numbers[:, :, None])[..., 0], 0))).sum(1)


def motion_sre_mm(parameters: np.ndarray, vertices_mm: np.ndarray, centre_mm: np.ndarray) -> np.ndarray:
    """SRE in mm, `(n,)`, that motions `(n, 6)` cause at vertices `(v, 3)`, repeats counted: the mean of |M v - v|."""
    return Surfaces.of([vertices_mm]).sre_mm(motion_matrix(parameters, centre_mm))


def draw_motions(
    rng: np.random.Generator,
    wanted_sre_mm: np.ndarray,
    vertices_mm: np.ndarray | Surfaces,
    centre_mm: np.ndarray,
    *,
    translation_mm: float = 5.0,
    rotation_deg: float = 6.0,
    most_factor: float = 3.0,
) -> np.ndarray:
    """Random motions `(n, 6)` whose SRE is `wanted_sre_mm` `(n,)` to 1e-3 mm.

    Translations and angles are uniform within the bounds (the paper's 5 mm and 6 degrees), then all six numbers are scaled to the wanted
    SRE, again and again (ours); draws that this magnifies more than `most_factor` are drawn anew (ours), else rotation and translation
    that cancel would become wild ones. With `Surfaces` of n rows every motion has its own surface, and `centre_mm` may be `(n, 3)`.
    Raises `ConcordError` where no draw gets there.
    """
    surfaces = vertices_mm if isinstance(vertices_mm, Surfaces) else Surfaces.of([vertices_mm])
    wanted = np.asarray(wanted_sre_mm, dtype=float)
    centres = np.broadcast_to(np.asarray(centre_mm, dtype=float), (len(wanted), 3))
    box = np.repeat([translation_mm, rotation_deg], 3)
    drawn, open_ = np.zeros((len(wanted), 6)), np.arange(len(wanted))
    for _ in range(MOST_ROUNDS):
        if not len(open_):
            return drawn
        scaled, good = _scaled(rng.uniform(-box, box, (len(open_), 6)), wanted[open_], surfaces.take(open_), centres[open_], most_factor)
        drawn[open_[good]], open_ = scaled[good], open_[~good]
    if not len(open_):
        return drawn
    raise ConcordError(
        f"no motion of SRE {wanted[open_[0]]:g} mm in {MOST_ROUNDS} draws within {translation_mm:g} mm and {rotation_deg:g} degrees, "
        f"scaled at most {most_factor:g} times; expected an SRE that such draws reach: ask for less, or raise translation_mm and rotation_deg"
    )


def _scaled(parameters: np.ndarray, wanted: np.ndarray, surfaces: Surfaces, centres: np.ndarray, most_factor: float) -> tuple[np.ndarray, np.ndarray]:
    """The draws with their scaling, and which of them are good."""
    total = np.ones(len(parameters))
    for _ in range(SCALINGS):
        reached = surfaces.sre_mm(motion_matrix(parameters, centres))
        factor = np.divide(wanted, reached, out=np.ones_like(wanted), where=reached > 0)
        total, parameters = total * factor, parameters * factor[:, None]
    error = np.abs(surfaces.sre_mm(motion_matrix(parameters, centres)) - wanted)
    return parameters, (total <= most_factor) & (error <= EXACT_MM)


def _turned(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return (matrix[..., :3, :3] @ points[..., None])[..., 0]


def _monomials(points: np.ndarray) -> np.ndarray:
    """Products of the homogeneous coordinates `(v, 10)`, in the order of the upper triangle; what stands off the diagonal counts twice."""
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    first, second = np.triu_indices(4)
    return homogeneous[:, first] * homogeneous[:, second] * np.where(first == second, 1.0, 2.0)


def _check_rigid(matrix: np.ndarray, where: str) -> None:
    turn, last = matrix[..., :3, :3], matrix[..., 3, :]
    square = turn @ np.swapaxes(turn, -1, -2)
    fits = np.allclose(square, np.eye(3), rtol=0, atol=RIGID_TOLERANCE) and np.allclose(last, [0, 0, 0, 1], rtol=0, atol=RIGID_TOLERANCE)
    if not (fits and np.all(np.linalg.det(turn) > 0)):
        worst = float(np.abs(square - np.eye(3)).max())
        raise ConcordError(
            f"{where}: the matrix is not rigid (R Rᵀ is off by {worst:.2g}, det {float(np.min(np.linalg.det(turn))):.4g}); "
            "expected rotation and translation only"
        )
