"""Starting positions of a rigid study: every case several times, each from its own drawn misalignment of a known size.

The protocol of Attention-Reg (Song et al., MICCAI 2021): six numbers are drawn uniformly (5 mm, 6 degrees at most) and multiplied until the surface
registration error (SRE) is what is wanted. Validation there has 5 and test 40 (or 100) fixed starts a case. With M the drawn motion about a centre,
the start is S = T_true after the inverse of M, fixed to moving points.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, WrapValidator
from pydantic_core import PydanticCustomError

from pipeline.cases import IDENTIFIER, Case
from pipeline.datasets.keeping import is_kept, keep
from pipeline.datasets.structures import fingerprint
from pipeline.errors import ConcordError

if TYPE_CHECKING:
    from pipeline.rigid_motion import Surfaces
    from pipeline.transforms import Linear


def _size_or_range(value: Any, handler: Any) -> Any:
    try:
        checked = handler(value)
    except ValueError:
        checked = None
    low, high = checked if isinstance(checked, tuple) else (checked, checked)
    if low is None or not (0 <= low <= high <= 100 and high > 0):
        raise PydanticCustomError("sre_mm", "expected a number of mm above 0, or a range [low, high], up to 100")
    return checked


class Starts(BaseModel):
    """A set of starting positions for every test and validation case."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=IDENTIFIER, description="name of this set: the column `start` of its cases, and part of their names")
    sre_mm: Annotated[float | tuple[float, float], WrapValidator(_size_or_range)] = Field(
        (0.0, 20.0), description="surface registration error of the starts: a number of mm, or a range to draw it from evenly"
    )
    count: int = Field(40, ge=0, description="starts of every test case")
    validation_count: int = Field(5, ge=0, description="starts of every validation case")
    centre: Literal["origin", "gland"] = Field(
        "origin", description="point that is turned about: the first voxel of the fixed volume, as in the papers, or the middle of the surface's box"
    )
    translation_mm: float = Field(5.0, ge=0, description="largest drawn shift along an axis, before scaling")
    rotation_deg: float = Field(6.0, ge=0, description="largest drawn angle about an axis, before scaling")

    def of_split(self, split: str) -> int:
        """How many starts a case of this split gets."""
        return {"test": self.count, "validation": self.validation_count}.get(split, 0)


def with_starts(cases: Iterable[Case], starts: Starts | Sequence[Starts], folder: Path, seed: int) -> list[Case]:
    """The cases, each test and validation case with a true transform and a surface once for every start; transforms go to `folder`.

    A start depends on the seed, the case's name, the set's name and its number alone: more cases or more starts leave the others as they are.
    Cases of other splits, and those without truth or surface, come back unchanged. Raises `ConcordError` for a true transform that is not rigid.
    """
    sets = [starts] if isinstance(starts, Starts) else list(starts)
    names = [chosen.name for chosen in sets]
    if len(set(names)) < len(names):
        raise ConcordError(f"starts: {', '.join(names)}: each name is expected once")
    found: list[Case] = []
    for case in cases:
        possible = case.true_transform is not None and case.fixed_surface is not None
        wanted = [(chosen, chosen.of_split(case.split)) for chosen in sets if possible and chosen.of_split(case.split)]
        found += [started for chosen, count in wanted for started in _started(case, chosen, count, folder, seed)] if wanted else [case]
    return found


def _started(case: Case, starts: Starts, count: int, folder: Path, seed: int) -> list[Case]:
    """The case once for every start of one set; their transforms are drawn unless they are there."""
    names = [f"{case.case}_{starts.name}-{number:02d}" for number in range(1, count + 1)]
    paths = [folder / "starts" / starts.name / f"{name}.tfm" for name in names]
    record = folder / "starts" / starts.name / f"{case.case}.json"
    made_from = {
        "starts": starts.model_dump(mode="json", exclude={"count", "validation_count"}),
        "count": count,
        "seed": seed,
        "files": fingerprint(case.true_transform, case.fixed_surface, case.fixed),
    }
    if not is_kept(record, made_from, paths):
        _write_starts(case, starts, paths, seed)
        keep(record, made_from)
    return [case.model_copy(update={"case": name, "start": starts.name, "start_transform": path}) for name, path in zip(names, paths, strict=True)]


def _write_starts(case: Case, starts: Starts, paths: Sequence[Path], seed: int) -> None:
    from pipeline.rigid_motion import Surfaces, motion_matrix, rigid_matrix
    from pipeline.surfaces import read_stl
    from pipeline.transform_files import read_transform, write_transform

    truth = rigid_matrix(read_transform(case.true_transform), f"{case.true_transform} (starts are drawn about rigid true transforms only)")
    corners = read_stl(case.fixed_surface).reshape(-1, 3)
    centre, surfaces = centre_of(case, starts.centre, corners), Surfaces.of([corners])
    for number, path in enumerate(paths, start=1):
        rng = np.random.default_rng([seed, *_digest(case.case, starts.name), number])
        motion = motion_matrix(_drawn(starts, rng, surfaces, centre), centre)
        write_transform(rigid_transform(truth @ np.linalg.inv(motion)), path)


def _drawn(starts: Starts, rng: np.random.Generator, surfaces: Surfaces, centre: np.ndarray) -> np.ndarray:
    """The parameters `(6,)` of one start."""
    from pipeline.rigid_motion import draw_motions

    low, high = starts.sre_mm if isinstance(starts.sre_mm, tuple) else (starts.sre_mm, starts.sre_mm)
    wanted = np.array([rng.uniform(low, high)])
    return draw_motions(rng, wanted, surfaces, centre, translation_mm=starts.translation_mm, rotation_deg=starts.rotation_deg)[0]


def centre_of(case: Case, centre: str, corners_mm: np.ndarray) -> np.ndarray:
    """The point `(3,)` in mm that starts turn about: the fixed volume's first voxel, or the middle of the box of the corners `(n, 3)`."""
    from pipeline.volumes import read_volume

    if centre == "gland":
        return (corners_mm.min(axis=0) + corners_mm.max(axis=0)) / 2
    return np.array(read_volume(case.fixed).geometry.origin_mm)


def rigid_transform(matrix: np.ndarray) -> Linear:
    """The transform of a rigid matrix `(4, 4)`, so exactly a rotation that ITK stores it as one."""
    from pipeline.surfaces import nearest_rotation
    from pipeline.transforms import Linear

    return Linear(nearest_rotation(matrix[:3, :3]), matrix[:3, 3], "rigid")


def _digest(*names: str) -> list[int]:
    """Numbers for a generator's seed that depend on names alone."""
    content = hashlib.sha256("\0".join(names).encode()).digest()
    return np.frombuffer(content[:16], dtype="<u4").tolist()
