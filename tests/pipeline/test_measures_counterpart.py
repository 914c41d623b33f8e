"""The error that a registration of two modalities leaves within one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.cases import Case
from pipeline.errors import ConcordError
from pipeline.measures import Scored
from pipeline.measures_counterpart import counterpart_mse_percent
from pipeline.transform_files import write_transform
from pipeline.transforms import Linear
from pipeline.volumes import Geometry, Volume, write_volume

GRID = Geometry.regular((6, 5), 2.0)


def scored(folder: Path, fixed: np.ndarray, counterpart: np.ndarray, *, shift_mm: tuple[float, float] = (0, 0), geometry: Geometry = GRID) -> Scored:
    for name, array, grid in (("fixed", fixed, GRID), ("moving", np.arange(30.0).reshape(5, 6), GRID), ("counterpart", counterpart, geometry)):
        write_volume(Volume(array.astype(np.float32), grid), folder / f"{name}.mha")
    write_transform(Linear(np.eye(2), np.array(shift_mm, dtype=float), "translation"), folder / "found.tfm")
    case = Case(case="a", subject="a", fixed=folder / "fixed.mha", moving=folder / "moving.mha", moving_counterpart=folder / "counterpart.mha")
    return Scored(case, folder / "found.tfm")


def test_by_hand_each_image_is_scaled_by_its_own_range(tmp_path):
    fixed, counterpart = np.zeros((5, 6)), np.full((5, 6), 10.0)
    fixed[0, 0], counterpart[0, 0], counterpart[4, 5] = 4.0, 30.0, 20.0
    # both are 1 in the first voxel; in the last one 0 against 0.5, elsewhere 0 against 0
    assert counterpart_mse_percent(scored(tmp_path, fixed, counterpart)) == pytest.approx(100 * 0.25 / 30)


def test_the_found_transform_warps_the_counterpart(tmp_path):
    fixed = np.random.default_rng(0).uniform(size=(5, 6))
    fixed[:, -1] = 0
    fixed[0, 0], fixed[0, 1] = 1.0, 0.0
    moved = np.roll(fixed, 1, axis=1)
    assert counterpart_mse_percent(scored(tmp_path, fixed, moved, shift_mm=(2, 0))) == pytest.approx(0, abs=1e-9)
    assert counterpart_mse_percent(scored(tmp_path, fixed, moved)) > 5


def test_what_the_measure_cannot_do_without_is_told(tmp_path):
    image = np.arange(30.0).reshape(5, 6)
    with pytest.raises(ConcordError, match="every sample is 0; expected an image"):
        counterpart_mse_percent(scored(tmp_path, image, 0 * image))
    with pytest.raises(ConcordError, match=r"size \(3, 3\) is not on the grid"):
        counterpart_mse_percent(scored(tmp_path, image, image[:3, :3], geometry=Geometry.regular((3, 3), 2.0)))
    without = scored(tmp_path, image, image)
    without.case = without.case.model_copy(update={"moving_counterpart": None})
    with pytest.raises(ConcordError, match="case a: no moving_counterpart"):
        counterpart_mse_percent(without)
