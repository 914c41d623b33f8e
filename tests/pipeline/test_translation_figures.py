"""The fields of a translation network's parts: in mm, composed as the paper says, and told where there are none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from examples import blob_volume, rotation
from torch import nn

from nets.translation import Translated
from nets.voxelmorph import Displacements
from pipeline.cases import Case
from pipeline.errors import ConcordError
from pipeline.learned.translation_method import TranslationNetwork
from pipeline.statistics import SCORE_COLUMNS
from pipeline.transform_files import write_transform
from pipeline.transforms import Linear
from pipeline.translation_figures import ROWS, PartsSettings, fields_of, parts_figure
from pipeline.volumes import Geometry, write_volume

GRID = Geometry((20, 16), (1.5, 2.0), (-12.0, 5.0), tuple(tuple(row) for row in rotation(2).tolist()))


class Known(nn.Module):
    """One voxel along x by the coarse part, two along y by the fine one."""

    parts, dimension = ("coarse", "translate", "fine"), 2

    def forward(self, images, *, until=None):
        assert images.min() == 0 and images.max() == 1
        along = [torch.tensor(u).view(1, 2, 1, 1).expand(len(images), -1, *images.shape[2:]) for u in ((1.0, 0.0), (0.0, 2.0))]
        return Translated(along[0] + along[1], Displacements(along[0], -along[0]), fine=along[1])


@pytest.fixture
def case(tmp_path):
    for number, name in enumerate(("fixed", "moving")):
        write_volume(blob_volume(GRID, seed=number), tmp_path / f"{name}.mha")
    write_transform(Linear(np.eye(2), np.array([3.0, -4.0]), "translation"), tmp_path / "true.h5")
    return Case(case="a", subject="s", fixed=tmp_path / "fixed.mha", moving=tmp_path / "moving.mha", true_transform=tmp_path / "true.h5")


def method(monkeypatch, tmp_path, network):
    (tmp_path / "net.safetensors").touch()
    monkeypatch.setattr("pipeline.learned.translation.load_translation", lambda file: (network, {"similarity": "nmi"}))
    return TranslationNetwork(weights=tmp_path / "net.safetensors", device="cpu")


def test_fields_of_the_parts_are_in_mm_along_the_images_own_axes(monkeypatch, tmp_path, case):
    fields = fields_of(method(monkeypatch, tmp_path, Known()), case)
    assert list(fields) == [*ROWS.values(), "true"]
    axes_mm = GRID.index_to_physical  # columns: a voxel along x, along y
    for name, expected in zip(fields, (axes_mm[:, 0], 2 * axes_mm[:, 1], axes_mm[:, 0] + 2 * axes_mm[:, 1], (3.0, -4.0)), strict=True):
        np.testing.assert_allclose(fields[name], np.broadcast_to(expected, (16, 20, 2)), atol=1e-6)


def test_the_figure_has_a_row_a_field_and_tells_lengths(monkeypatch, tmp_path, case):
    scores = pd.DataFrame([("toy", "net", 0, "s", "a", "", "1", "dice", 0.5, "")], columns=list(SCORE_COLUMNS))
    chosen = PartsSettings(title="Fields", method="net")
    figure = parts_figure(chosen, method(monkeypatch, tmp_path, Known()), [case], scores, measures=["dice"], source="toy")
    told = [text.get_text() for text in figure.texts]
    assert {"Fields", "net, case a, toy", f"{ROWS['fine']}: displacement up to 4.0 mm, mean 4.0 mm"} <= set(told)
    assert {*ROWS.values(), "true"} <= set(told)
    with pytest.raises(ConcordError, match="no test case 'b'"):
        parts_figure(chosen.model_copy(update={"case": "b"}), method(monkeypatch, tmp_path, Known()), [case], scores, measures=["dice"])


def test_a_network_without_a_coarse_part_is_told(monkeypatch, tmp_path, case):
    network = Known()
    network.parts = ("fine",)
    network.forward = lambda images, until=None: Translated(torch.zeros(1, 2, 16, 20), fine=torch.zeros(1, 2, 16, 20))
    with pytest.raises(ConcordError, match="holds fine; expected a fit with a coarse and a fine part"):
        fields_of(method(monkeypatch, tmp_path, network), case)
