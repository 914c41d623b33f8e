"""A case that measures, scores and tests of them share."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from examples import blob_volume

from pipeline.cases import Case
from pipeline.surfaces import write_stl
from pipeline.transform_files import write_transform
from pipeline.transforms import Linear
from pipeline.volumes import Geometry, write_volume

GRID = Geometry.regular((30, 24, 16), (1.0, 2.0, 3.0))


@pytest.fixture
def boxes_case(tmp_path) -> Case:
    """Two boxes, and the moving volume three voxels further along x; landmarks, counterpart, a translation and the true transform with it."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[4:12, 6:16, 8:16], labels[4:12, 6:16, 16:20] = 1, 2
    image = blob_volume(GRID)
    files = {"fixed": image, "moving": image.with_array(np.roll(image.array, 3, axis=2))}
    files |= {"fixed_labels": image.with_array(labels), "moving_labels": image.with_array(np.roll(labels, 3, axis=2))}
    files |= {"moving_counterpart": files["moving"].with_array(2 * files["moving"].array)}
    for name, volume in files.items():
        write_volume(volume, tmp_path / f"{name}.mha")
    write_volume(image.with_array(np.roll(image.array, 2, axis=2) - image.array.min()), tmp_path / "a-translated.mha")
    pd.DataFrame([[0.0, 0, 0], [5, 6, 7]], columns=list("xyz")).to_csv(tmp_path / "fixed.csv", index=False)
    pd.DataFrame([[3.0, 0, 0], [8, 6, 7]], columns=list("xyz")).to_csv(tmp_path / "moving.csv", index=False)
    write_stl(np.array([[[0.0, 0, 0], [9, 0, 0], [0, 9, 0]], [[0, 0, 0], [9, 0, 0], [0, 0, 9]]]), tmp_path / "surface.stl")
    write_transform(Linear(np.eye(3), [3.0, 0, 0], "translation"), tmp_path / "true.h5")
    write_transform(Linear(np.eye(3), [2.0, 0, 0], "translation"), tmp_path / "found.h5")
    paths = {name: tmp_path / f"{name}.mha" for name in files}
    landmarks = {"fixed_landmarks": tmp_path / "fixed.csv", "moving_landmarks": tmp_path / "moving.csv"}
    truth = {"true_transform": tmp_path / "true.h5", "fixed_surface": tmp_path / "surface.stl"}
    return Case(case="a", subject="s", **truth, **paths, **landmarks)
