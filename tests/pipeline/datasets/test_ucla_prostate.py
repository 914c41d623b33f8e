"""UCLA's collection: a known voxel of MR and of the flipped ultrasound stands where its surface says, and series with holes are left out."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
from examples import rotation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from pipeline.datasets.registry import create_dataset
from pipeline.datasets.ucla_prostate import read_us, us_spacing_mm
from pipeline.errors import ConcordError
from pipeline.methods import Run
from pipeline.surfaces import read_stl, write_stl
from pipeline.transform_files import read_transform
from pipeline.volumes import read_volume

MR_ORIGIN, MR_SPACING = np.array([-30.0, 12.0, -44.0]), (2.0, 2.0, 3.0)
MR_SIZE = (24, 22, 16)
US_SHAPE = (24, 20, 26)  # frames, rows, columns
US_SPACING = 2.0
HALF = np.array([13.0, 9.0, 11.0])
MR_CENTRE, US_CENTRE = MR_ORIGIN + (22.0, 19.0, 21.0), np.array([2.0, -3.0, 1.0])
TURN = rotation(3, 0.12)


def egg(turn: np.ndarray, centre: np.ndarray, rings: int = 30) -> np.ndarray:
    """An ellipsoid that is blunt at one end of each axis, so that no turn maps it to itself."""
    polar, around = np.meshgrid(np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, 2 * rings, endpoint=False), indexing="ij")
    unit = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], axis=-1)
    points = (unit + 0.15 * unit**2) * HALF @ turn.T + centre
    turned = np.roll(points, -1, axis=1)
    quads = np.stack([points[:-1], points[1:], turned[1:], turned[:-1]], axis=2).reshape(-1, 4, 3)
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def dicom(modality: str, uid: str, date: str, samples: np.ndarray) -> Dataset:
    content = Dataset()
    content.file_meta = FileMetaDataset()
    content.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    content.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4" if modality == "MR" else "1.2.840.10008.5.1.4.1.1.3.1"
    content.SOPInstanceUID = generate_uid()
    content.file_meta.MediaStorageSOPClassUID, content.file_meta.MediaStorageSOPInstanceUID = content.SOPClassUID, content.SOPInstanceUID
    content.SeriesInstanceUID, content.StudyInstanceUID, content.Modality, content.StudyDate = uid, f"{uid}.1", modality, date
    content.Rows, content.Columns = samples.shape[-2:]
    content.SamplesPerPixel, content.PhotometricInterpretation, content.PixelRepresentation = 1, "MONOCHROME2", 0
    content.BitsAllocated = content.BitsStored = 8 * samples.dtype.itemsize
    content.HighBit = content.BitsStored - 1
    content.PixelData = samples.tobytes()
    return content


def write_mr(folder: Path, uid: str, date: str, skip=()) -> None:
    """Slice k holds 100 k, its files numbered against the order of the slices."""
    folder.mkdir(parents=True)
    for k in set(range(MR_SIZE[2])) - set(skip):
        one = dicom("MR", uid, date, np.full(MR_SIZE[1::-1], 100 * k, np.uint16))
        one.InstanceNumber, one.SliceThickness, one.PixelSpacing = MR_SIZE[2] - k, MR_SPACING[2], list(MR_SPACING[:2])
        one.ImagePositionPatient, one.ImageOrientationPatient = (MR_ORIGIN + (0, 0, k * MR_SPACING[2])).tolist(), [1, 0, 0, 0, 1, 0]
        one.save_as(folder / f"1-{MR_SIZE[2] - k:02d}.dcm", enforce_file_format=True)


def write_us(folder: Path, uid: str, date: str, **options) -> None:
    folder.mkdir(parents=True)
    samples = np.zeros(US_SHAPE, np.uint8)
    samples[3, 5, 7] = 255
    one = dicom("US", uid, date, samples)
    one.NumberOfFrames = US_SHAPE[0]
    if options.get("pixel"):
        one.PixelSpacing, one.SliceThickness = options["pixel"][:2], options["pixel"][2]
    elif options.get("private", True):
        one.private_block(0x1129, "MAKER", create=True).add_new(0x16, "DS", str(US_SPACING))
    one.save_as(folder / "1-1.dcm", enforce_file_format=True)


def make(root: Path, number: int = 1, *, mr_date: str = "20190301", skip=(), mr_centre=MR_CENTRE, **options) -> None:
    patient, mr, us = f"Prostate-MRI-US-Biopsy-{number:04d}", f"1.2.{number}.{mr_date}", f"1.3.{number}"
    place = root / "Prostate-MRI-US-Biopsy" / patient
    write_mr(place / f"{mr_date}-MR" / "t2", mr, mr_date, skip)
    if not (place / "20190401").is_dir():
        write_us(place / "20190401" / "us", us, "20190401", **options)
    stls = root / "STLs/STLs"
    stls.mkdir(parents=True, exist_ok=True)
    write_stl(egg(np.eye(3), mr_centre), stls / f"{patient}-ProstateSurface-seriesUID-{mr}.STL")
    write_stl(egg(TURN, US_CENTRE), stls / f"{patient}-ProstateSurface-seriesUID-{us}.STL")
    write_stl(egg(np.eye(3), mr_centre), stls / f"{patient}-Target1-seriesUID-{mr}.STL")


def found_in(root: Path, **settings):
    return create_dataset("ucla-prostate", {"root": str(root), **settings}).cases(root / "made", Run(seed=2))


def centroid_of(path: Path) -> np.ndarray:
    labels = read_volume(path)
    return labels.geometry.points_at(np.argwhere(labels.array)[:, ::-1].mean(axis=0))


def test_mr_lies_where_its_slices_say_whatever_their_numbers(tmp_path):
    make(tmp_path)
    (case,), left_out = found_in(tmp_path)
    mr = read_volume(case.fixed)
    assert (mr.geometry.size, mr.geometry.spacing_mm, mr.geometry.origin_mm, left_out) == (MR_SIZE, MR_SPACING, tuple(MR_ORIGIN), [])
    assert mr.array[:, 4, 5].tolist() == [100 * k for k in range(MR_SIZE[2])]
    assert (case.case, case.true_transform, case.fixed_surface.suffix) == ("Prostate-MRI-US-Biopsy-0001", None, ".STL")


def test_columns_run_against_x_frames_against_y_and_rows_along_z(tmp_path):
    """The sample at frame 3, row 5, column 7 of 24, 20 and 26, about a centre at zero."""
    make(tmp_path)
    us = read_volume(found_in(tmp_path).cases[0].moving)
    (place,) = us.geometry.points_at(np.argwhere(us.array == 255)[:, ::-1])
    assert np.allclose(place, US_SPACING * np.array([12.5 - 7, 11.5 - 3, 5 - 9.5]))


def test_voxel_sizes_are_of_columns_frames_and_rows_and_else_of_the_private_tag(tmp_path):
    write_us(tmp_path / "a", "1.1", "20190101", pixel=[0.5, 0.4, 0.3])
    assert read_us(tmp_path / "a").geometry.spacing_mm == (0.4, 0.3, 0.5)
    write_us(tmp_path / "b", "1.2", "20190101")
    assert read_us(tmp_path / "b").geometry.spacing_mm == (2.0, 2.0, 2.0)
    content = pydicom.dcmread(tmp_path / "b/1-1.dcm")
    for told, expected in ((b"0.41 ", 0.41), (b"0.5\\0.5\\0.5", 0.5)):
        content[0x1129, 0x1016] = pydicom.DataElement((0x1129, 0x1016), "UN", told)  # what a file without representations gives
        assert us_spacing_mm(content, tmp_path) == (expected,) * 3
    content[0x1129, 0x1016] = pydicom.DataElement((0x1129, 0x1016), "UN", b"wide")
    with pytest.raises(ConcordError, match="'wide'; expected a voxel size"):
        us_spacing_mm(content, tmp_path)
    write_us(tmp_path / "c", "1.3", "20190101", private=False)
    with pytest.raises(ConcordError, match=r"private tag \(1129,1016\); expected a voxel size"):
        read_us(tmp_path / "c")


def test_label_maps_are_what_the_surfaces_enclose(tmp_path):
    make(tmp_path)
    (case,) = found_in(tmp_path).cases
    for label, mesh in ((case.fixed_labels, egg(np.eye(3), MR_CENTRE)), (case.moving_labels, egg(TURN, US_CENTRE))):
        cones = np.linalg.det(mesh) / 6  # signed volumes of tetrahedra down to zero
        assert np.allclose(centroid_of(label), cones @ mesh.sum(axis=1) / 4 / cones.sum(), atol=0.15)
        volume = read_volume(label).array.sum() * np.prod(read_volume(label).geometry.spacing_mm)
        assert volume == pytest.approx(abs(cones.sum()), rel=0.02)


def test_the_truth_of_the_surfaces_is_near_what_moved_them_and_starts_are_drawn_about_it(tmp_path):
    make(tmp_path)
    make(tmp_path, 2)
    cases = found_in(tmp_path, truth="surfaces", train=1, starts=[{"name": "a", "sre_mm": 8, "count": 2}]).cases
    assert sorted(case.start for case in cases) == ["", "a", "a"]
    corners = read_stl(cases[0].fixed_surface).reshape(-1, 3)
    truth = (corners - MR_CENTRE) @ TURN.T + US_CENTRE
    assert np.linalg.norm(read_transform(cases[0].true_transform).points(corners) - truth, axis=1).mean() < 0.5


def test_the_latest_mr_before_the_ultrasound_is_its_partner(tmp_path):
    make(tmp_path, mr_date="20180101")
    make(tmp_path, mr_date="20190301")
    make(tmp_path, mr_date="20200101")
    assert "1.2.1.20190301" in found_in(tmp_path).cases[0].fixed_surface.name


def test_a_second_run_writes_nothing(tmp_path):
    make(tmp_path)
    found = found_in(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()}
    assert found_in(tmp_path) == found
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"skip": [6]}, "15 slices at uneven positions .*a slice is missing or doubled"),
        ({"private": False}, "expected a voxel size"),
        ({"mr_centre": MR_CENTRE * (-1, -1, 1)}, r"surface outside the volume .*RAS/LPS"),
    ],
)
def test_a_patient_with_a_fault_is_left_out_by_name(tmp_path, options, told):
    make(tmp_path)
    make(tmp_path, 2, **options)
    found = found_in(tmp_path)
    assert [case.case[-4:] for case in found.cases] == ["0001"]
    (row,) = found.left_out
    assert row.subject == "Prostate-MRI-US-Biopsy-0002"
    assert re.search(told, row.reason)
    assert "\n" not in row.reason


def test_patients_without_a_series_or_with_a_broken_file_are_left_out(tmp_path):
    for number in (1, 2, 3, 4):
        make(tmp_path, number)
    base = tmp_path / "Prostate-MRI-US-Biopsy"
    (base / "Prostate-MRI-US-Biopsy-0002/20190401/us/1-1.dcm").unlink()
    (base / "Prostate-MRI-US-Biopsy-0003/20190301-MR/t2/1-05.dcm").write_bytes(b"not DICOM at all" * 20)
    (base / "Prostate-MRI-US-Biopsy-0004").rename(tmp_path / "elsewhere")
    reasons = {row.subject[-4:]: row.reason for row in found_in(tmp_path).left_out}
    told = {"0002": "1 MR and 0 ultrasound series", "0003": "1-05.dcm: no DICOM file", "0004": "no folder Prostate-MRI-US-Biopsy-0004"}
    assert reasons.keys() == told.keys()
    assert all(text in reasons[name] for name, text in told.items())


def test_a_doubled_slice_is_left_out(tmp_path):
    make(tmp_path)
    folder = tmp_path / "Prostate-MRI-US-Biopsy/Prostate-MRI-US-Biopsy-0001/20190301-MR/t2"
    again = pydicom.dcmread(folder / "1-03.dcm")
    again.InstanceNumber = 17
    again.save_as(folder / "1-17.dcm", enforce_file_format=True)
    with pytest.raises(ConcordError, match="uneven positions"):
        found_in(tmp_path)


def test_nothing_found_and_starts_without_truth_are_told(tmp_path):
    with pytest.raises(ConcordError, match=r"no usable subject; expected .*ProstateSurface-seriesUID-UID\.STL"):
        found_in(tmp_path)
    with pytest.raises(ConcordError, match=r"starts.*expected `truth: surfaces`"):
        found_in(tmp_path, starts=[{"name": "a"}])
