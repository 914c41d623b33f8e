"""BrainWeb: headerless files of both kinds and MINC become volumes in the right place, with the right labels."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from scipy.io import netcdf_file

from pipeline.datasets.brainweb import read_download
from pipeline.datasets.registry import create_dataset
from pipeline.errors import ConcordError
from pipeline.methods import Run

SLICE = (217, 181)


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = array.tobytes()
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path


def ramp(dtype="u1", slices: int = 2, top: int = 256) -> np.ndarray:
    return (np.arange(slices * SLICE[0] * SLICE[1]) % top).astype(dtype).reshape(slices, *SLICE)


def write_minc(path: Path, array: np.ndarray, starts=(-72.0, -126.0, -90.0)) -> Path:
    with netcdf_file(path, "w") as file:
        for name, length, start in zip(("zspace", "yspace", "xspace"), array.shape, starts, strict=True):
            file.createDimension(name, length)
            axis = file.createVariable(name, "i4", ())
            axis.step, axis.start, axis.spacing = 1.0, start, b"regular__"
        image = file.createVariable("image", "i1", ("zspace", "yspace", "xspace"))
        image.signtype, image.valid_range = b"unsigned", np.array([0.0, 255.0])
        image[:] = array.astype(np.int8)
        for name, value in (("image-min", 0.0), ("image-max", 255.0)):
            file.createVariable(name, "f8", ())[...] = value
    return path


def make(root: Path, anatomy: str = "icbm_normal", ending: str = "rawb.gz") -> None:
    for number, modality in enumerate(("t1", "t2", "pd")):
        write(root / f"{modality}_{anatomy}_1mm_pn3_rf20.{ending}", ramp(top=200 + number))
    write(root / f"phantom_1.0mm_{anatomy.split('_')[1]}_crisp.{ending}", ramp(top=11))


def cases_of(root: Path, **settings):
    return create_dataset("brainweb", {"root": str(root), **settings}).cases(root / "made", Run(seed=1))


def test_a_raw_file_is_x_fastest_and_its_first_voxel_lies_right_front_low(tmp_path):
    array = np.zeros((2, *SLICE), np.uint8)
    array[1, 216, 180] = 7
    volume = read_download(write(tmp_path / "t1_icbm_normal_1mm_pn3_rf20.rawb", array))
    assert volume.geometry.size == (181, 217, 2)
    # MINC world: first voxel (-90, -126, -72) to the right, front, top; LPS turns x and y
    assert np.allclose(volume.geometry.points_at(np.zeros(3)), (90, 126, -72))
    assert np.allclose(volume.geometry.points_at(np.argwhere(volume.array == 7)[0][::-1]), (-90, -90, -71))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_twelve_bits_are_read_in_either_byte_order(tmp_path, order):
    array = ramp("u2", top=4096)
    volume = read_download(write(tmp_path / "t1_icbm_normal_1mm_pn3_rf20.raws.gz", array.astype(order)))
    assert np.array_equal(volume.array, array)


def test_thick_slices_follow_from_the_name_and_their_number_from_the_bytes(tmp_path):
    geometry = read_download(write(tmp_path / "t2_icbm_normal_5mm_pn3_rf20.rawb.gz", ramp(slices=3))).geometry
    assert (geometry.size, geometry.spacing_mm) == ((181, 217, 3), (1.0, 1.0, 5.0))


def test_minc_and_raw_tell_the_same_volume(tmp_path):
    array = ramp()
    minc = read_download(write_minc(tmp_path / "t1_icbm_normal_1mm_pn3_rf20.mnc", array))
    raw = read_download(write(tmp_path / "t1_icbm_normal_1mm_pn3_rf20.rawb", array))
    assert minc.geometry.matches(raw.geometry)
    assert np.allclose(minc.array, raw.array)


def test_label_maps_of_two_bytes_are_sixteen_times_the_label(tmp_path):
    labels = ramp("u2", top=11)
    path = write(tmp_path / "phantom_1.0mm_normal_crisp.raws.gz", labels * 16)
    volume = read_download(path, is_labels=True)
    assert volume.array.dtype == np.uint8
    assert np.array_equal(volume.array, labels)
    with pytest.raises(ConcordError, match="values up to 17"):
        read_download(write(tmp_path / "phantom_1.0mm_normal_crisp.rawb", ramp(top=18)), is_labels=True)


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("t1_icbm_normal_1mm_pn3_rf20.rawb", b"abc", "3 bytes are no whole slices"),
        ("t1_icbm_normal_1mm_pn3_rf20.rawb", b"", "0 bytes are no whole slices"),
        ("t1_icbm_normal_1mm_pn3_rf20.rawb.gz", b"no gzip", "cannot be read or unpacked"),
        ("t1_icbm_normal_1mm_pn3_rf20.rawb.gz", gzip.compress(bytes(100_000))[:-20], "cannot be read or unpacked"),
        ("t1_icbm_normal_1mm_pn3_rf20.raws", b"\xff" * (2 * 181 * 217), "above 4095 in either byte order"),
        ("t1_icbm_normal_1mm_pn3_rf20.mnc", b"no minc", "not a MINC file"),
    ],
)
def test_a_damaged_download_is_told_by_its_name(tmp_path, name, data, told):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConcordError, match=told) as caught:
        read_download(tmp_path / name)
    assert name in str(caught.value)


def test_images_of_one_anatomy_are_cases_whose_truth_is_the_identity(tmp_path):
    make(tmp_path)
    cases, left_out = cases_of(tmp_path)
    assert [(case.case, case.moving_subject) for case in cases] == [("normal_t1-normal_t2", ""), ("normal_t2-normal_t1", "")]
    assert left_out == []
    from pipeline.transform_files import read_transform
    from pipeline.volumes import read_volume

    assert np.allclose(read_transform(cases[0].true_transform).points(np.array([[1.0, 2.0, 3.0]])), [[1, 2, 3]])
    fixed, labels = read_volume(cases[0].fixed), read_volume(cases[0].fixed_labels)
    assert np.array_equal(fixed.array, ramp(top=200))
    assert np.array_equal(labels.array, ramp(top=11))
    assert labels.geometry.matches(fixed.geometry)
    assert all(path.is_relative_to(tmp_path / "made") for path in cases[0].paths.values())


def test_volumes_are_converted_once(tmp_path):
    make(tmp_path)
    first = cases_of(tmp_path).cases
    before = [path.stat().st_mtime_ns for path in (first[0].fixed, first[0].moving, first[0].fixed_labels)]
    assert cases_of(tmp_path).cases == first
    assert [path.stat().st_mtime_ns for path in (first[0].fixed, first[0].moving, first[0].fixed_labels)] == before


def test_what_is_no_image_of_the_database_is_left_out_by_name(tmp_path):
    make(tmp_path)
    (tmp_path / "subject04_t1w_p4.mnc.gz").touch()
    (tmp_path / "t1_ai_msles2_1mm_pn3_rf20.rawb").write_bytes(b"abc")
    (tmp_path / "t2_ai_msles2_1mm_pn3_rf20.rawb").write_bytes(b"abc")
    (tmp_path / "t1_ai_msles1_1mm_pn3_rf20.rawb").touch()
    cases, left_out = cases_of(tmp_path)
    assert {case.subject for case in cases} == {"normal"}
    reasons = dict(left_out)
    assert set(reasons) == {"subject04_t1w_p4.mnc.gz", "msles1", "msles2"}
    assert "T1 only" in reasons["subject04_t1w_p4.mnc.gz"]
    assert "no t2 with noise 3 %" in reasons["msles1"]
    assert "no whole slices" in reasons["msles2"]


def test_only_images_with_the_chosen_noise_count(tmp_path):
    make(tmp_path)
    with pytest.raises(ConcordError, match="no usable subject"):
        cases_of(tmp_path, noise=9)


def test_labels_of_thin_slices_are_brought_to_thick_ones(tmp_path):
    for modality in ("t1", "t2"):
        write(tmp_path / f"{modality}_icbm_normal_3mm_pn3_rf20.rawb", ramp(slices=2))
    labels = ramp(slices=6, top=11)
    write(tmp_path / "phantom_1.0mm_normal_crisp.rawb", labels)
    from pipeline.volumes import read_volume

    made = read_volume(cases_of(tmp_path, slice_mm=3).cases[0].fixed_labels)
    assert np.array_equal(made.array, labels[[0, 3]])
