"""Transform files: ITK reads ours, we read ITK's, and damage is told."""

from __future__ import annotations

import numpy as np
import pytest
from examples import KINDS, transforms_of

from pipeline.errors import ConcordError
from pipeline.transform_files import read_transform, write_transform
from pipeline.transforms import Linear, from_itk, to_itk

POINTS = np.random.default_rng(0).uniform(-30, 30, size=(200, 3))


@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_itk_reads_our_files_and_we_read_its_own(kind, dimension, suffix, tmp_path):
    import itk

    transform, points = transforms_of(dimension)[kind], POINTS[:, :dimension]
    write_transform(transform, tmp_path / f"ours{suffix}")
    (theirs,) = itk.transformread(str(tmp_path / f"ours{suffix}"))
    mapped = np.array([theirs.TransformPoint(p.tolist()) for p in points])
    np.testing.assert_allclose(mapped, transform.points(points), atol=1e-5)
    assert type(from_itk(theirs)) is type(transform)
    itk.transformwrite([to_itk(transform)], str(tmp_path / f"theirs{suffix}"))
    np.testing.assert_allclose(read_transform(tmp_path / f"theirs{suffix}").points(points), transform.points(points), atol=1e-9)


@pytest.mark.parametrize("name", ["VersorRigid3DTransform", "Euler3DTransform", "Similarity3DTransform", "AffineTransform"])
def test_linear_classes_of_itk_mean_what_itk_says(name, tmp_path):
    import itk

    template = getattr(itk, name)
    transform = template[itk.D].New() if name != "AffineTransform" else template[itk.D, 3].New()
    parameters = transform.GetParameters()
    for index in range(parameters.GetSize()):
        parameters.SetElement(index, parameters.GetElement(index) + 0.02 * (index + 1))
    transform.SetCenter([3.0, -4.0, 5.0])
    transform.SetParameters(parameters)
    itk.transformwrite([transform], str(tmp_path / "t.tfm"))
    expected = np.array([transform.TransformPoint(p.tolist()) for p in POINTS])
    np.testing.assert_allclose(read_transform(tmp_path / "t.tfm").points(POINTS), expected, atol=1e-8)
    assert np.abs(expected - POINTS).max() > 1


@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
def test_damaged_files_are_refused_by_name(suffix, tmp_path):
    write_transform(transforms_of(3)["composition"], tmp_path / f"whole{suffix}")
    content = (tmp_path / f"whole{suffix}").read_bytes()
    for share in (0.0, 0.3, 0.8):
        (tmp_path / f"cut{suffix}").write_bytes(content[: int(share * len(content))])
        with pytest.raises(ConcordError, match="cut"):
            read_transform(tmp_path / f"cut{suffix}")


def test_unknown_types_and_suffixes_are_refused(tmp_path):
    (tmp_path / "t.tfm").write_text(
        "#Insight Transform File V1.0\nTransform: ThinPlateSplineKernelTransform_double_3_3\nParameters: 1\nFixedParameters: 1\n"
    )
    with pytest.raises(ConcordError, match=r"t\.tfm: ThinPlate"):
        read_transform(tmp_path / "t.tfm")
    with pytest.raises(ConcordError, match="suffix"):
        write_transform(Linear.identity(2), tmp_path / "t.json")
