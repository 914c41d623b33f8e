"""Transforms to elastix, ANTs and SimpleITK and back; each tool maps points itself and has to agree."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from examples import KINDS, oblique_geometry, transforms_of

from pipeline import volumes
from pipeline.errors import ConcordError
from pipeline.interchange import from_ants, from_elastix, from_simpleitk, to_ants, to_elastix, to_simpleitk
from pipeline.transforms import BSpline, Composite, Field, Linear, Transform
from pipeline.volumes import Geometry, Volume

DIMENSIONS = (2, 3)
CLOSE_MM = 0.01
every_kind = pytest.mark.parametrize("kind", KINDS)
both_dimensions = pytest.mark.parametrize("dimension", DIMENSIONS)


def random_points(dimension: int) -> np.ndarray:
    """Points inside and outside of the grids of `transforms_of`."""
    return np.random.default_rng(0).uniform(-30, 30, size=(300, dimension))


def voxel_centres(geometry: Geometry) -> np.ndarray:
    return geometry.points_at(np.random.default_rng(0).integers(0, geometry.size, size=(300, geometry.dimension)))


def transformix_displacement(file: Path, geometry: Geometry, folder: Path) -> np.ndarray:
    """What elastix's own transformix says of the displacement on a grid, `([z,] y, x, d)` in mm."""
    import itk

    image = volumes.to_itk(Volume(np.zeros(geometry.shape, np.float32), geometry))
    transformix = itk.TransformixFilter[itk.Image[itk.F, geometry.dimension]].New(image)
    parameters = itk.ParameterObject.New()
    parameters.ReadParameterFile(str(file))
    transformix.SetTransformParameterObject(parameters)
    transformix.SetComputeDeformationField(True)
    transformix.SetLogToConsole(False)
    transformix.SetOutputDirectory(str(folder))
    transformix.Update()
    return np.array(itk.array_from_image(transformix.GetOutputDeformationField()))


def write_parameters(path: Path, **values: object) -> Path:
    """An elastix file by hand."""
    path.write_text("// by hand\n" + "".join(f"({key} {value})\n" for key, value in values.items()))
    return path


@every_kind
@both_dimensions
def test_elastix_files_come_back(kind, dimension, tmp_path):
    transform, points = transforms_of(dimension)[kind], random_points(dimension)
    files = to_elastix(transform, oblique_geometry(dimension), tmp_path)
    assert len(files) == (3 if kind == "composition" else 1)
    back = from_elastix(files[-1])
    np.testing.assert_allclose(back.points(points), transform.points(points), atol=CLOSE_MM / 100)
    np.testing.assert_array_equal(from_elastix(list(files)).points(points), back.points(points))
    assert getattr(back, "kind", None) == getattr(transform, "kind", None)


@every_kind
@both_dimensions
def test_transformix_maps_points_as_we_do(kind, dimension, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    transform, geometry = transforms_of(dimension)[kind], oblique_geometry(dimension)
    file = to_elastix(transform, geometry, tmp_path)[-1]
    theirs = transformix_displacement(file, geometry, tmp_path)
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(theirs, transform.displacement_mm(geometry), atol=CLOSE_MM / 100)


@pytest.mark.parametrize("zyx", ["true", "false"])
def test_the_order_of_euler_angles_is_the_one_that_elastix_uses(zyx, tmp_path):
    geometry = oblique_geometry(3)
    template = to_elastix(Linear.identity(3), geometry, tmp_path)[0].read_text().splitlines()
    kept = [line for line in template if not line.startswith(("(Transform ", "(TransformParameters", "(NumberOfParameters"))]
    kept += ['(Transform "EulerTransform")', "(NumberOfParameters 6)", "(TransformParameters 0.3 -0.4 0.5 1 2 3)"]
    kept += [f'(ComputeZYX "{zyx}")', "(CenterOfRotationPoint 4 5 -6)"]
    file = tmp_path / "Euler.txt"
    file.write_text("\n".join(kept) + "\n")
    theirs = transformix_displacement(file, geometry, tmp_path)
    np.testing.assert_allclose(from_elastix(file).displacement_mm(geometry), theirs, atol=CLOSE_MM / 100)


@both_dimensions
def test_an_oblique_b_spline_grid_lies_where_elastix_lays_it(dimension, tmp_path):
    geometry = oblique_geometry(dimension)
    grid = geometry.resized((8, 9, 7)[:dimension])
    transform = BSpline(np.random.default_rng(0).uniform(-1, 1, size=(dimension, *grid.shape)), grid)
    file = to_elastix(transform, geometry, tmp_path)[0]
    theirs = transformix_displacement(file, geometry, tmp_path)
    np.testing.assert_allclose(transform.displacement_mm(geometry), theirs, atol=CLOSE_MM / 100)
    np.testing.assert_allclose(from_elastix(file).displacement_mm(geometry), theirs, atol=CLOSE_MM / 100)


def test_a_grid_that_starts_at_another_index_is_placed_as_elastix_places_it(tmp_path):
    geometry, transform = oblique_geometry(2), transforms_of(2)["b-spline"]
    file = to_elastix(transform, geometry, tmp_path)[0]
    file.write_text(file.read_text().replace("(GridIndex 0 0)", "(GridIndex 1 -2)"))
    theirs = transformix_displacement(file, geometry, tmp_path)
    assert np.abs(theirs - transform.displacement_mm(geometry)).max() > 0.1
    np.testing.assert_allclose(from_elastix(file).displacement_mm(geometry), theirs, atol=CLOSE_MM / 100)


def test_a_folder_of_elastix_files_can_be_moved(tmp_path):
    transform, points = transforms_of(3)["composition"], random_points(3)
    files = to_elastix(transform, oblique_geometry(3), tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "second")
    back = from_elastix(tmp_path / "second" / files[-1].name)
    np.testing.assert_allclose(back.points(points), transform.points(points), atol=CLOSE_MM / 100)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("Transform", '"SplineKernelTransform"', "SplineKernelTransform"),
        ("HowToCombineTransforms", '"Add"', "expected Compose"),
        ("TransformParameters", "1 two", "expected numbers"),
        ("TransformParameters", "1 2 3 4", "4 parameters"),
        ("TransformParameters", "", "0 parameters"),
        ("CenterOfRotationPoint", '"here"', "CenterOfRotationPoint"),
        ("InitialTransformParameterFileName", '"gone.txt"', "gone.txt: no such file"),
        ("InitialTransformParameterFileName", '"t.txt"', "names itself"),
    ],
)
def test_elastix_files_that_mean_something_else_are_refused_by_name(key, value, told, tmp_path):
    whole = {"Transform": '"TranslationTransform"', "TransformParameters": "1 2", "InitialTransformParameterFileName": '""'}
    np.testing.assert_array_equal(from_elastix(write_parameters(tmp_path / "t.txt", **whole)).points(np.zeros((1, 2))), [[1, 2]])
    with pytest.raises(ConcordError, match=told):
        from_elastix(write_parameters(tmp_path / "t.txt", **{**whole, key: value}))


def test_b_splines_that_are_not_cubic_are_refused(tmp_path):
    file = to_elastix(transforms_of(2)["b-spline"], oblique_geometry(2), tmp_path)[0]
    for old, new, told in (
        ("Order 3", "Order 2", "expected order 3 and not cyclic"),
        ('UseCyclicTransform "false"', 'UseCyclicTransform "true"', "expected order 3 and not cyclic"),
        ("(GridSize 9 8)", "(GridSize 9 9)", r"144 coefficients on a grid of \[9, 9\]"),
    ):
        (tmp_path / "t.txt").write_text(file.read_text().replace(old, new))
        with pytest.raises(ConcordError, match=told):
            from_elastix(tmp_path / "t.txt")


@pytest.mark.parametrize("content", ["", "not elastix", "(Transform)\n", "\x00\xff"])
def test_files_that_are_not_elastix_are_refused(content, tmp_path):
    (tmp_path / "t.txt").write_text(content)
    with pytest.raises(ConcordError, match=r"t\.txt"):
        from_elastix(tmp_path / "t.txt")


@every_kind
@both_dimensions
def test_simpleitk_maps_points_as_we_do_and_comes_back(kind, dimension):
    transform, points = transforms_of(dimension)[kind], random_points(dimension)
    theirs = to_simpleitk(transform)
    mapped = np.array([theirs.TransformPoint(p.tolist()) for p in points])
    np.testing.assert_allclose(mapped, transform.points(points), atol=1e-9)
    back = from_simpleitk(theirs)
    np.testing.assert_allclose(back.points(points), transform.points(points), atol=1e-9)
    assert getattr(back, "kind", None) == getattr(transform, "kind", None)


def test_every_linear_class_of_simpleitk_is_understood():
    import SimpleITK as sitk

    points = random_points(3)
    versor, euler = sitk.VersorRigid3DTransform(), sitk.Euler3DTransform()
    versor.SetRotation([0.36, 0.48, 0.8], 2.5)
    euler.SetComputeZYX(True)
    euler.SetRotation(0.3, -0.4, 0.5)
    for theirs in (versor, euler):
        theirs.SetCenter([4.0, 5.0, -6.0])
        theirs.SetTranslation([1.0, 2.0, 3.0])
        mapped = np.array([theirs.TransformPoint(p.tolist()) for p in points])
        np.testing.assert_allclose(from_simpleitk(theirs).points(points), mapped, atol=1e-9)
    np.testing.assert_array_equal(from_simpleitk(sitk.Transform()).points(points), points)


def test_simpleitk_transforms_without_a_counterpart_are_refused():
    import SimpleITK as sitk

    with pytest.raises(ConcordError, match="ScaleTransform"):
        from_simpleitk(sitk.ScaleTransform(3, [1.0, 2.0, 3.0]))
    with pytest.raises(ConcordError, match="order 2"):
        from_simpleitk(sitk.BSplineTransform(3, 2))


def test_a_missing_simpleitk_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(ConcordError, match="pip install"):
        to_simpleitk(Linear.identity(3))


@pytest.mark.parametrize("suffix", [".mat", ".txt"])
@every_kind
@both_dimensions
def test_ants_files_come_back(kind, dimension, suffix, tmp_path):
    transform, geometry = transforms_of(dimension)[kind], oblique_geometry(dimension)
    points = voxel_centres(geometry)
    back = from_ants(to_ants(transform, tmp_path / f"t{suffix}", geometry))
    np.testing.assert_allclose(back.points(points), transform.points(points), atol=CLOSE_MM / 100)


@both_dimensions
def test_a_list_of_ants_files_comes_back_in_its_order(dimension, tmp_path):
    kinds, points = transforms_of(dimension), random_points(dimension)
    transform = Composite((kinds["field"], kinds["affine"]))
    files = to_ants(transform, tmp_path / "t.nii.gz")
    assert [file.name for file in files] == ["t0.nii.gz", "t1.mat"]
    np.testing.assert_allclose(from_ants(files).points(points), transform.points(points), atol=CLOSE_MM / 100)


@pytest.mark.parametrize("suffix", [".mat", ".txt"])
@both_dimensions
def test_ants_maps_points_as_we_do(dimension, suffix, tmp_path):
    ants = pytest.importorskip("ants", reason="antspyx is not installed")
    import pandas as pd

    geometry = oblique_geometry(dimension)
    points = voxel_centres(geometry)
    kinds = transforms_of(dimension)
    warp_then_affine = Composite((kinds["field"], kinds["affine"]))  # what a registration by ANTs looks like
    for name, transform in {**kinds, "warp": warp_then_affine}.items():
        files = to_ants(transform, tmp_path / f"{name}{suffix}", geometry)
        theirs = ants.apply_transforms_to_points(dimension, pd.DataFrame(points, columns=list("xyz")[:dimension]), [str(file) for file in files])
        np.testing.assert_allclose(theirs.to_numpy()[:, :dimension], transform.points(points), atol=CLOSE_MM / 10, err_msg=name)


@both_dimensions
def test_we_read_what_ants_writes(dimension, tmp_path):
    ants = pytest.importorskip("ants", reason="antspyx is not installed")
    theirs = ants.new_ants_transform(dimension=dimension, transform_type="AffineTransform")
    linear = transforms_of(dimension)["affine"]
    theirs.set_parameters([*linear.matrix.ravel(), *linear.offset_mm])
    points = random_points(dimension)
    for suffix in (".mat", ".txt"):
        ants.write_transform(theirs, str(tmp_path / f"t{suffix}"))
        np.testing.assert_allclose(from_ants(tmp_path / f"t{suffix}").points(points), linear.points(points), atol=1e-4)


def test_ants_warps_are_five_dimensional_vector_images(tmp_path):
    (file,) = to_ants(transforms_of(3)["field"], tmp_path / "warp.nii")
    header = np.frombuffer(file.read_bytes()[:348], dtype=np.uint8)
    assert header[40:52].view("<i2").tolist() == [5, 20, 18, 12, 1, 3]
    assert header[68:70].view("<i2")[0] == 1007


def test_b_splines_for_ants_need_a_grid_and_damage_is_told(tmp_path):
    with pytest.raises(ConcordError, match="give the grid"):
        to_ants(transforms_of(3)["composition"], tmp_path / "t.mat")
    (whole,) = to_ants(Linear.identity(3), tmp_path / "t.mat")
    content = whole.read_bytes()
    for cut in (b"", b"no matrix", content[: len(content) // 3], content[:-40], bytes(200)):
        whole.write_bytes(cut)
        with pytest.raises(ConcordError, match=r"t\.mat.*MATLAB"):
            from_ants(whole)
    with pytest.raises(ConcordError, match="no such file"):
        from_ants(tmp_path / "gone.mat")


def test_transforms_of_unknown_classes_are_refused(tmp_path):
    class Swirl(Transform):
        dimension = 3

        def points(self, points_mm: np.ndarray) -> np.ndarray:
            return points_mm

    for write in (lambda: to_elastix(Swirl(), oblique_geometry(3), tmp_path), lambda: to_simpleitk(Swirl())):
        with pytest.raises(ConcordError, match="Swirl"):
            write()


def test_parts_keep_their_classes(tmp_path):
    back = from_elastix(to_elastix(transforms_of(3)["composition"], oblique_geometry(3), tmp_path)[-1])
    assert [type(part) for part in back.parts] == [Field, BSpline, Linear]
