"""The figure of translated images: the right case, one grey window for translated and true, one scale of differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.cases import Case
from pipeline.errors import ConcordError
from pipeline.figures.translated import MEASURE, Translation, draw_translations, translated_figure
from pipeline.registration import image_name
from pipeline.statistics import SCORE_COLUMNS
from pipeline.transform_files import write_transform
from pipeline.transforms import Linear
from pipeline.translation_figures import TranslatedSettings
from pipeline.volumes import Geometry, Volume, write_volume

GRID = Geometry.regular((12, 10), (1.5, 2.0))


def panel(figure, name: str):
    return next(axis for axis in figure.axes if axis.get_label() == name)


def row(name: str, difference: float) -> Translation:
    true = Volume(np.indices(GRID.shape).sum(0) / 20.0, GRID)
    return Translation(name, true.with_array(-true.array), true.with_array(true.array + difference), true)


def test_differences_share_a_scale_about_zero_and_images_of_the_modality_a_window():
    figure = draw_translations([row("a", 0.1), row("b", -0.4)], header=["title"])
    for name, difference in (("a", 0.1), ("b", -0.4)):
        shown = panel(figure, f"translated − true {name}").images[0]
        assert np.asarray(shown.get_array()) == pytest.approx(np.full(GRID.shape, difference))
        assert shown.get_clim() == pytest.approx((-0.4, 0.4))
        assert panel(figure, f"translated {name}").images[0].get_clim() == panel(figure, f"true {name}").images[0].get_clim()
        assert np.asarray(panel(figure, f"moving {name}").images[0].get_array())[0, 3] == pytest.approx(-0.15)


@pytest.fixture
def study(tmp_path: Path) -> dict:
    """Three cases and two methods, one of which translates nothing; the translations are off by a tenth."""
    rng, cases = np.random.default_rng(0), []
    write_transform(Linear.identity(2), tmp_path / "found.h5")
    for number in range(3):
        true = rng.uniform(size=GRID.shape)
        true[0, :2] = 0, 1
        arrays = {"fixed": true, "moving": 7 - true, "moving_counterpart": 50 + 20 * true}
        files = {name: tmp_path / f"{number}-{name}.mha" for name in arrays}
        for name, array in arrays.items():
            write_volume(Volume(array.astype(np.float32), GRID), files[name])
        write_volume(Volume((true + 0.1).astype(np.float32), GRID), tmp_path / image_name(f"c{number}", "translated"))
        cases.append(Case(case=f"c{number}", subject=f"s{number}", **files))
    rows = [("toy", "net", 0, "s", f"c{n}", "", "", MEASURE, value, "dB") for n, value in enumerate([20.0, 30.0, 25.0])]
    silent = tmp_path / "silent"
    silent.mkdir()
    write_transform(Linear.identity(2), silent / "found.h5")
    return {
        "cases": cases,
        "scores": pd.DataFrame(rows, columns=list(SCORE_COLUMNS)),
        "manifests": {
            name: pd.DataFrame({"case": [f"c{n}" for n in range(3)], "status": "done", "transform": [folder / "found.h5"] * 3})
            for name, folder in (("net", tmp_path), ("silent", silent))
        },
    }


def drawn(study: dict, **settings):
    chosen = TranslatedSettings(**{"title": "Translations", "methods": ["net"]} | settings)
    return translated_figure(chosen, study["cases"], study["scores"], study["manifests"], source="toy, scale smoke")


def test_from_files_the_middle_case_by_psnr_is_shown_beside_the_truth_from_zero_to_one(study):
    figure = drawn(study)
    assert [text.get_text() for text in figure.texts][-3:] == ["Translations", "case c2, toy, scale smoke", "net: PSNR (dB) 25.00"]
    true = np.asarray(panel(figure, "true net").images[0].get_array())
    assert (true.min(), true.max()) == pytest.approx((0, 1), abs=1e-6)
    assert np.asarray(panel(figure, "translated − true net").images[0].get_array()) == pytest.approx(np.full(GRID.shape, 0.1), abs=1e-5)


def test_what_cannot_be_shown_is_told(study):
    with pytest.raises(ConcordError, match="no test case 'c7'"):
        drawn(study, case="c7")
    with pytest.raises(ConcordError, match="silent handed over no translated image of c1"):
        drawn(study, case="c1", methods=["silent"])
    study["cases"] = [case.model_copy(update={"moving_counterpart": None}) for case in study["cases"]]
    with pytest.raises(ConcordError, match="case c1: no moving_counterpart"):
        drawn(study, case="c1")
