"""ITK's parameter vectors of linear transforms, which elastix, ANTs and SimpleITK share; numpy only."""

from __future__ import annotations

import numpy as np

from pipeline.errors import ConcordError
from pipeline.transforms import Linear, LinearKind

_KINDS: dict[str, LinearKind] = {
    "Translation": "translation",
    "Euler": "rigid",
    "VersorRigid": "rigid",
    "Similarity": "similarity",
    "Affine": "affine",
}
_LENGTHS = {"Translation": (2, 3), "Euler": (3, 6), "VersorRigid": (6,), "Similarity": (4, 7), "Affine": (6, 12)}


def linear_from_parameters(name: str, parameters: np.ndarray, fixed: np.ndarray, *, where: str) -> Linear:
    """The linear transform of ITK's class `name` from its parameter vector and its fixed parameters (centre, then the ZYX flag).

    Angles are radians; 3-D Euler angles apply as Rz Rx Ry, or Rz Ry Rx where the flag is set; versors are the vector part.
    Raises `ConcordError` naming `where` for a class or a length that does not fit.
    """
    family = next((kind for kind in _KINDS if name in (f"{kind}Transform", f"{kind}2DTransform", f"{kind}3DTransform")), None)
    family = "Affine" if name == "MatrixOffsetTransformBase" else family
    if family is None or len(parameters) not in _LENGTHS[family]:
        raise ConcordError(f"{where}: {name} with {len(parameters)} parameters has no counterpart; expected translation, rigid, similarity or affine")
    d = 3 if family == "VersorRigid" else (2, 3)[_LENGTHS[family].index(len(parameters))]
    if family == "Translation":
        return Linear(np.eye(d), parameters, "translation")
    matrix, shift = _matrix_and_shift(family, parameters, d, zyx=len(fixed) > d and bool(fixed[d]))
    centre = np.asarray(fixed[:d], dtype=float) if len(fixed) >= d else np.zeros(d)
    return Linear(matrix, shift + centre - matrix @ centre, _KINDS[family], centre)


def parameters_of(linear: Linear) -> tuple[str, np.ndarray, np.ndarray]:
    """ITK's class, parameter vector and centre of a linear transform; affine where the matrix does not keep to its `kind`."""
    from scipy.spatial.transform import Rotation

    d = linear.dimension
    centre = np.zeros(d) if linear.centre_mm is None else np.asarray(linear.centre_mm, dtype=float)
    shift = linear.points(centre) - centre
    if linear.kind == "translation":
        return "TranslationTransform", linear.offset_mm, np.zeros(0)
    scale = abs(np.linalg.det(linear.matrix)) ** (1 / d) if linear.kind == "similarity" else 1.0
    rotation = linear.matrix / scale
    proper = linear.kind != "affine" and np.allclose(rotation @ rotation.T, np.eye(d), atol=1e-9) and np.linalg.det(rotation) > 0
    if not proper:
        return "AffineTransform", np.concatenate([linear.matrix.ravel(), shift]), centre
    if d == 2:
        angle = np.arctan2(rotation[1, 0], rotation[0, 0])
        if linear.kind == "rigid":
            return "Euler2DTransform", np.array([angle, *shift]), centre
        return "Similarity2DTransform", np.array([scale, angle, *shift]), centre
    if linear.kind == "rigid":
        z, x, y = Rotation.from_matrix(rotation).as_euler("ZXY")
        return "Euler3DTransform", np.array([x, y, z, *shift]), centre
    versor = Rotation.from_matrix(rotation).as_quat(canonical=True)[:3]
    return "Similarity3DTransform", np.array([*versor, *shift, scale]), centre


def _matrix_and_shift(family: str, parameters: np.ndarray, d: int, *, zyx: bool) -> tuple[np.ndarray, np.ndarray]:
    if family == "Affine":
        return parameters[: d * d].reshape(d, d), parameters[d * d :]
    if d == 2:
        scale, (angle, *shift) = (1.0, parameters) if family == "Euler" else (parameters[0], parameters[1:])
        return scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]), np.asarray(shift)
    scale = parameters[6] if family == "Similarity" else 1.0
    rotation = _euler_matrix(parameters[:3], zyx=zyx) if family == "Euler" else _versor_matrix(parameters[:3])
    return scale * rotation, parameters[3:6]


def _euler_matrix(angles: np.ndarray, *, zyx: bool) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    x, y, z = angles
    return Rotation.from_euler("ZYX" if zyx else "ZXY", [z, y, x] if zyx else [z, x, y]).as_matrix()


def _versor_matrix(vector: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_quat([*vector, np.sqrt(max(0.0, 1.0 - float(vector @ vector)))]).as_matrix()
