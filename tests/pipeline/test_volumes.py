"""Volumes: files of every format round-trip, geometry as ITK has it, and bad files are refused by name."""

from __future__ import annotations

import struct

import nibabel
import numpy as np
import pytest
from examples import blob_volume, oblique_geometry, rotation

from pipeline.errors import ConcordError
from pipeline.volumes import Geometry, Volume, read_vector_field, read_volume, write_vector_field, write_volume


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_a_file_gives_back_samples_and_geometry(suffix, dimension, tmp_path):
    geometry = oblique_geometry(dimension) if (dimension == 3 or suffix == ".mha") else Geometry.regular((7, 5), (1.0, 2.5), (3.0, -4.0))
    volume, path = blob_volume(geometry), tmp_path / "a folder with ä é" / f"volume 1{suffix}"
    write_volume(volume, path)
    found = read_volume(path)
    np.testing.assert_array_equal(found.array, volume.array)
    assert found.geometry.matches(geometry)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "i8", "f4", "f8", "?"])
def test_sample_types_survive(dtype, tmp_path):
    array = (np.arange(60).reshape(3, 4, 5) % 2 if dtype == "?" else np.arange(60).reshape(3, 4, 5)).astype(dtype)
    write_volume(Volume(array, Geometry.regular((5, 4, 3))), tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nii.gz").array, array)


@pytest.mark.parametrize("dtype", [">f4", ">i2", "<f8"])
def test_big_endian_and_scaled_nifti_are_read_as_numbers(dtype, tmp_path):
    array = np.arange(60).reshape(5, 4, 3).astype(dtype)
    header = nibabel.Nifti1Header(endianness=dtype[0])
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0]), header), tmp_path / "v.nii")
    volume = read_volume(tmp_path / "v.nii")
    np.testing.assert_array_equal(volume.array, array.T)
    assert volume.array.dtype.isnative
    assert volume.geometry.spacing_mm == (1.0, 2.0, 3.0)
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "scaled.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "scaled.nii").array.T, nibabel.load(tmp_path / "scaled.nii").get_fdata())


def test_nifti_geometry_is_lps_as_in_itk(tmp_path):
    import itk

    affine = np.eye(4)
    affine[:3, :3] = rotation(3) @ np.diag([1.0, 2.0, 3.0])
    affine[:3, 3] = [10.0, -20.0, 30.0]
    array = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "v.nii.gz")
    volume, reference = read_volume(tmp_path / "v.nii.gz"), itk.imread(str(tmp_path / "v.nii.gz"))
    np.testing.assert_allclose(volume.geometry.points_at(np.array([3, 2, 1])), reference.TransformIndexToPhysicalPoint([3, 2, 1]), atol=1e-4)
    ras = affine @ [3, 2, 1, 1]
    np.testing.assert_allclose(volume.geometry.points_at(np.array([3, 2, 1])), [-ras[0], -ras[1], ras[2]], atol=1e-4)
    assert volume.array[1, 2, 3] == array[3, 2, 1]


def test_a_dicom_series_is_read_in_slice_order(tmp_path):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    series, frame = generate_uid(), generate_uid()
    pixels = np.arange(4 * 6 * 5, dtype=np.uint16).reshape(4, 6, 5)
    for number, z in enumerate([2, 0, 3, 1]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = MRImageStorage, generate_uid(), ExplicitVRLittleEndian
        data = FileDataset(tmp_path / f"{number}.dcm", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID, data.Modality = MRImageStorage, meta.MediaStorageSOPInstanceUID, "MR"
        data.SeriesInstanceUID, data.FrameOfReferenceUID, data.StudyInstanceUID = series, frame, frame
        data.Rows, data.Columns, data.PixelSpacing, data.SliceThickness = 6, 5, [1.5, 2.0], 3.0
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 3.0 * z], [1, 0, 0, 0, 1, 0]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = (
            1,
            "MONOCHROME2",
            16,
            16,
            15,
            0,
        )
        data.InstanceNumber, data.PixelData = z + 1, pixels[z].tobytes()
        data.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, pixels)
    np.testing.assert_allclose(volume.geometry.spacing_mm, (2.0, 1.5, 3.0))


def write_valid(folder, suffix):
    write_volume(blob_volume(Geometry.regular((12, 11, 10), (1.0, 1.5, 3.0))), folder / f"valid{suffix}")
    return (folder / f"valid{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.6, 0.99])
def test_truncated_files_are_refused_by_name(suffix, share, tmp_path):
    content = write_valid(tmp_path, suffix)
    bad = tmp_path / f"cut{suffix}"
    bad.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ConcordError, match="cut"):
        read_volume(bad)


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan")])
def test_zero_and_negative_spacing_is_refused(spacing, tmp_path):
    nifti = bytearray(write_valid(tmp_path, ".nii"))
    nifti[80:84] = struct.pack("<f", spacing)
    (tmp_path / "bad.nii").write_bytes(nifti)
    meta = write_valid(tmp_path, ".mha").replace(b"ElementSpacing = 1.0 ", f"ElementSpacing = {spacing} ".encode())
    (tmp_path / "bad.mha").write_bytes(meta)
    for name in ("bad.nii", "bad.mha"):
        with pytest.raises(ConcordError, match="spacing"):
            read_volume(tmp_path / name)


def test_other_bad_files_are_refused_with_the_reason(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6, 3)), np.eye(4)), tmp_path / "four.nii.gz")
    holed = np.zeros((4, 5, 6))
    holed[1, 1, 1], holed[2, 2, 2] = np.nan, np.inf
    nibabel.save(nibabel.Nifti1Image(holed, np.eye(4)), tmp_path / "holed.nii.gz")
    (tmp_path / "text.nii.gz").write_text("hello")
    (tmp_path / "photo.jpg").write_text("hello")
    (tmp_path / "folder").mkdir()
    expected = {
        "absent.nii": "no such file",
        "four.nii.gz": "4-D",
        "holed.nii.gz": "2 samples",
        "text.nii.gz": "not a NIfTI",
        "photo.jpg": "suffix",
        "folder": "DICOM",
    }
    for name, reason in expected.items():
        with pytest.raises(ConcordError, match=reason) as caught:
            read_volume(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_vector_field_gives_back_its_components(tmp_path, rng):
    geometry = oblique_geometry(3)
    field = rng.normal(size=(*geometry.shape, 3))
    for suffix in (".nii.gz", ".mha"):
        write_vector_field(field, geometry, tmp_path / f"f{suffix}")
        found, grid = read_vector_field(tmp_path / f"f{suffix}")
        np.testing.assert_allclose(found, field, atol=1e-5)
        assert grid.matches(geometry)
    write_volume(blob_volume(geometry), tmp_path / "scalar.mha")
    with pytest.raises(ConcordError, match="displacement field"):
        read_vector_field(tmp_path / "scalar.mha")


def test_points_and_indices_are_inverse_to_each_other(rng):
    geometry = oblique_geometry(3)
    index = rng.uniform(-5, 20, size=(50, 3))
    np.testing.assert_allclose(geometry.index_at(geometry.points_at(index)), index, atol=1e-10)
    np.testing.assert_allclose(geometry.grid_points()[2, 3, 4], geometry.points_at(np.array([4, 3, 2])))


def test_resizing_keeps_the_physical_box():
    geometry = oblique_geometry(3)
    resized = geometry.resized((7, 11, 5))
    for corner in ((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5)):
        share = np.asarray(corner)
        whole = geometry.points_at((np.asarray(geometry.size) - 1) / 2 + share * np.asarray(geometry.size))
        np.testing.assert_allclose(resized.points_at((np.asarray(resized.size) - 1) / 2 + share * np.asarray(resized.size)), whole, atol=1e-9)
    assert geometry.with_spacing(4.0).size == (8, 9, 9)


def test_grids_match_within_a_thousandth_of_a_voxel_only():
    geometry = oblique_geometry(3)
    shifted = Geometry(geometry.size, geometry.spacing_mm, tuple(o + 1e-4 for o in geometry.origin_mm), geometry.direction)
    far = Geometry(geometry.size, geometry.spacing_mm, tuple(o + 0.1 for o in geometry.origin_mm), geometry.direction)
    assert geometry.matches(shifted)
    assert not geometry.matches(far)
    assert not geometry.matches(geometry.cropped((0, 0, 0), (5, 5, 5)))


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["ms_t1_t2/T2norm.nii.gz", "spinal_cord/t2.nii.gz", "templates/avg152T1.nii"])
def test_real_volumes_are_read_as_itk_reads_them(name, real_data):
    import itk

    volume, reference = read_volume(real_data / name), itk.imread(str(real_data / name))
    np.testing.assert_allclose(volume.array, itk.array_view_from_image(reference), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(volume.geometry.origin_mm, reference.GetOrigin())
    np.testing.assert_allclose(volume.geometry.direction, itk.array_from_matrix(reference.GetDirection()))
