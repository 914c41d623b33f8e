"""The error that a registration of two modalities leaves within one, and what a translation is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.cases import Case
from pipeline.errors import ConcordError
from pipeline.measures import MEASURES, Scored, measure_rows
from pipeline.measures_counterpart import counterpart_mse_percent
from pipeline.registration import image_name
from pipeline.transform_files import write_transform
from pipeline.transforms import Linear
from pipeline.volumes import Geometry, Volume, write_volume

GRID = Geometry.regular((6, 5), 2.0)


def scored(
    folder: Path,
    fixed: np.ndarray,
    counterpart: np.ndarray,
    *,
    shift_mm: tuple[float, float] = (0, 0),
    geometry: Geometry = GRID,
    moving_size: tuple[int, int] | None = None,
) -> Scored:
    moving = (np.arange(30.0).reshape(5, 6), GRID) if moving_size is None else (np.zeros(moving_size), geometry)
    for name, array, grid in (("fixed", fixed, GRID), ("moving", *moving), ("counterpart", counterpart, geometry)):
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


def test_a_translation_is_compared_with_the_counterpart_as_it_is(tmp_path):
    counterpart = np.random.default_rng(0).uniform(size=(12, 13))
    counterpart[0, 0], counterpart[0, 1] = 0.0, 1.0
    grid = Geometry.regular((13, 12), 2.0)
    given = scored(tmp_path, np.arange(30.0).reshape(5, 6), counterpart, geometry=grid, moving_size=(12, 13))
    for name in ("translation_psnr_db", "translation_ssim"):
        assert list(measure_rows(name, given)) == []  # nothing handed over: no number
    shifted = scored(tmp_path, np.arange(30.0).reshape(5, 6), 5 * counterpart - 2, geometry=grid, moving_size=(12, 13))
    write_volume(Volume((counterpart + 0.1).astype(np.float32), grid), tmp_path / image_name("a", "translated"))
    [(_, _, psnr_db, unit)] = measure_rows("translation_psnr_db", shifted)
    assert psnr_db == pytest.approx(20, abs=1e-4) and unit == "dB"
    [(_, _, ssim, _)] = measure_rows("translation_ssim", shifted)
    assert 0.8 < ssim < 1


def test_a_translation_on_another_grid_is_compared_there(tmp_path):
    image = np.arange(169.0).reshape(13, 13) / 168
    grid, finer = Geometry.regular((13, 13), 2.0), Geometry.regular((25, 25), 1.0)
    given = scored(tmp_path, np.arange(30.0).reshape(5, 6), image, geometry=grid, moving_size=(13, 13))
    places = np.linspace(0, 12, 25)  # the image is linear, so that it is known between its pixels
    write_volume(Volume(((places + 13 * places[:, None]) / 168).astype(np.float32), finer), tmp_path / image_name("a", "translated"))
    assert next(measure_rows("translation_psnr_db", given))[2] > 60


def test_a_case_without_counterpart_lacks_it_by_name():
    case = Case(case="a", subject="a", fixed=Path("f.mha"), moving=Path("m.mha"))
    for name in ("counterpart_mse_percent", "translation_psnr_db", "translation_ssim"):
        assert MEASURES[name].missing(case) == "no moving_counterpart: without this measure"
