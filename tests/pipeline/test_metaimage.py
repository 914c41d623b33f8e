"""MetaImage without ITK is the same as with it, both ways."""

from __future__ import annotations

import numpy as np
import pytest
from examples import oblique_geometry

from pipeline.metaimage import read_samples
from pipeline.volumes import Volume, from_itk, read_volume, to_itk, write_volume


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_itk_reads_what_we_write_and_we_read_what_itk_writes(dtype, dimension, tmp_path):
    import itk

    geometry = oblique_geometry(dimension)
    volume = Volume((np.random.default_rng(0).uniform(0, 100, geometry.shape)).astype(dtype), geometry)
    write_volume(volume, tmp_path / "ours.mha")
    image = itk.imread(str(tmp_path / "ours.mha"))
    theirs = from_itk(image)
    np.testing.assert_array_equal(theirs.array, volume.array)
    assert theirs.geometry.matches(geometry, 1e-9)
    itk.imwrite(image, str(tmp_path / "theirs.mha"))
    samples, _ = read_samples(tmp_path / "theirs.mha")
    assert samples.dtype == volume.array.dtype
    found = read_volume(tmp_path / "theirs.mha")
    np.testing.assert_array_equal(found.array, volume.array)
    assert found.geometry.matches(geometry, 1e-9)


def test_compressed_files_are_left_to_itk(tmp_path):
    import itk

    volume = Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), oblique_geometry(3).cropped((0, 0, 0), (5, 4, 3)))
    itk.imwrite(to_itk(volume), str(tmp_path / "small.mha"), compression=True)
    assert read_samples(tmp_path / "small.mha") is None
    np.testing.assert_array_equal(read_volume(tmp_path / "small.mha").array, volume.array)
