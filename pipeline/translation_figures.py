"""Figures of the hierarchical translation model (Dai et al., Fig. 4 and 5): their settings, and the fields that its parts find in one case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from pipeline.cases import Case
from pipeline.errors import ConcordError, choices
from pipeline.volumes import Volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.figures.deformation import Deformation
    from pipeline.learned.translation_method import TranslationNetwork

ROWS = {"coarse": "coarse, φ₀", "fine": "fine, φ₁", "final": "final, φ₀ ∘ φ₁"}


class TranslatedSettings(BaseModel):
    """Translated images of one test case beside the true one, a row a method."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(description="heading of the figure")
    methods: tuple[str, ...] = Field(min_length=1, description="methods that translate, one below the other")
    case: str = Field("", description="name of the test case; empty: the one in the middle by the methods' mean PSNR of the translation")
    caption: str = Field("", description="added to the caption in the report")


class PartsSettings(BaseModel):
    """Coarse, fine and final field of one translation network in one test case, a row each, and the true one where it is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(description="heading of the figure")
    method: str = Field(description="method of use translation, fitted with a coarse and a fine part")
    case: str = Field("", description="name of the test case; empty: the one in the middle by the study's first measure")
    caption: str = Field("", description="added to the caption in the report")


def parts_figure(
    settings: PartsSettings, method: TranslationNetwork, cases: Sequence[Case], scores: pd.DataFrame, *, measures: Sequence[str], source: str = ""
) -> Figure:
    """The figure of `settings`: a row for the coarse field, the fine one, both together, and the true one where the case has it.

    The case is as in `deformation_figure`. Raises `ConcordError` where there is no such test case, and for a network without both parts.
    """
    from pipeline.figures.deformation import draw_deformations, middle_case
    from pipeline.scoring import first_scored

    name = settings.case or middle_case(scores, [settings.method], first_scored(scores, [settings.method], measures))
    tested = {case.case: case for case in cases if case.split == "test"}
    if name not in tested:
        raise ConcordError(f"parts: no test case {name!r}{choices(name, tested)}")
    rows = [_row(part, displacement_mm, tested[name]) for part, displacement_mm in fields_of(method, tested[name]).items()]
    told = [f"{row.name}: displacement up to {_length(row).max():.1f} mm, mean {_length(row).mean():.1f} mm" for row in rows]
    header = [settings.title, ", ".join(part for part in (settings.method, f"case {name}", source) if part), *told]
    return draw_deformations(rows, header=header)


def fields_of(method: TranslationNetwork, case: Case) -> dict[str, np.ndarray]:
    """Displacements `([z,] y, x, d)` in mm on the fixed grid by part: coarse, fine, final, and true where the case has its transform.

    The fine one is what moves the coarsely warped image; both together are composed. Raises `ConcordError` for a network without both parts.
    """
    from pipeline.registration import load_pair
    from pipeline.transform_files import read_transform

    pair = load_pair(case)
    found = method.parts(pair)
    if found.coarse is None or found.fine is None:
        raise ConcordError(f"parts: {method.weights} holds {', '.join(method.fitted[0].parts)}; expected a fit with a coarse and a fine part")
    grid = pair.fixed.geometry
    tensors = {"coarse": found.coarse.forward, "fine": found.fine, "final": found.displacement_vx}
    fields = {ROWS[part]: vx[0].movedim(0, -1).double().cpu().numpy() @ grid.index_to_physical.T for part, vx in tensors.items()}
    return fields | ({} if case.true_transform is None else {"true": read_transform(case.true_transform).displacement_mm(grid)})


def _row(name: str, displacement_mm: np.ndarray, case: Case) -> Deformation:
    from metrics.accuracy.folding import jacobian_determinant
    from pipeline.figures.deformation import Deformation
    from pipeline.resampling import resample, warp_by_field
    from pipeline.volumes import read_volume

    fixed, moving = read_volume(case.fixed), read_volume(case.moving)
    grid = fixed.geometry
    images: tuple[Volume, Volume, Volume] = (fixed, resample(moving, grid), warp_by_field(moving, displacement_mm, grid))
    return Deformation(name, images, displacement_mm, jacobian_determinant(displacement_mm @ grid.physical_to_index.T) <= 0)


def _length(row: Deformation) -> np.ndarray:
    return np.linalg.norm(row.displacement_mm, axis=-1)
