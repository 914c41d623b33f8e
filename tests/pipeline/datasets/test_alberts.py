"""ALBERTs: names are patterns, label maps must lie on the grids of their images."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from pipeline.datasets.registry import create_dataset
from pipeline.errors import ConcordError
from pipeline.methods import Run


def write(path: Path, array, *, spacing: float = 1.0, shift: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = shift
    nibabel.save(nibabel.Nifti1Image(np.asarray(array, dtype=np.int16), affine), path)


def make(root: Path, count: int = 3, folders=("T1", "T2", "segmentations-v3")) -> None:
    for folder in folders:
        for number in range(1, count + 1):
            write(root / folder / f"ALBERT_{number:02d}.nii.gz", np.full((4, 5, 6), number))


def cases_of(root: Path, **settings):
    return create_dataset("alberts", {"root": str(root), **settings}).cases(root / "made", Run(seed=1))


def test_pairs_of_subjects_with_the_label_maps_as_they_are(tmp_path):
    make(tmp_path)
    cases, left_out = cases_of(tmp_path)
    assert (len(cases), left_out) == (12, [])
    case = cases[0]
    assert (case.case, case.group) == ("01_t1-02_t2", "t1-t2")
    assert (case.fixed, case.moving) == (tmp_path / "T1/ALBERT_01.nii.gz", tmp_path / "T2/ALBERT_02.nii.gz")
    assert (case.fixed_labels, case.moving_labels) == tuple(tmp_path / f"segmentations-v3/ALBERT_0{n}.nii.gz" for n in (1, 2))
    assert not (tmp_path / "made").exists()


def test_the_redistributed_copy_has_no_t1_and_this_is_told_by_name(tmp_path):
    make(tmp_path, folders=("T2", "segmentations-v3"))
    with pytest.raises(ConcordError, match=r"no usable subject \(01: no t1; 02: no t1\)"):
        cases_of(tmp_path)
    cases = cases_of(tmp_path, modalities=["t2"]).cases
    assert {case.group for case in cases} == {"t2-t2"}
    assert len(cases) == 6


def test_other_names_are_a_matter_of_patterns(tmp_path):
    for number in (1, 2):
        for name in ("t1w", "t2w", "labels"):
            write(tmp_path / f"sub-{number}/anat/sub-{number}_{name}.nii", np.full((3, 3, 3), number))
    pattern = "{subject}/anat/{subject}_"
    cases = cases_of(tmp_path, images={"t1": pattern + "t1w.nii*", "t2": pattern + "t2w.nii*"}, label_maps=pattern + "labels.nii*").cases
    assert cases[0].case == "sub-1_t1-sub-2_t2"
    assert cases[0].fixed_labels == tmp_path / "sub-1/anat/sub-1_labels.nii"


def test_without_label_map_a_subject_is_left_out_unless_none_are_wanted(tmp_path):
    make(tmp_path)
    (tmp_path / "segmentations-v3/ALBERT_02.nii.gz").unlink()
    cases, left_out = cases_of(tmp_path)
    assert {case.subject for case in cases} == {"01", "03"}
    assert "no label map like segmentations-v3" in dict(left_out)["02"]
    assert len(cases_of(tmp_path, label_maps="").cases) == 12


def test_a_label_map_on_another_grid_is_brought_to_the_image_by_header(tmp_path):
    make(tmp_path, 2)
    labels = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    write(tmp_path / "segmentations-v3/ALBERT_01.nii.gz", labels)
    write(tmp_path / "T1/ALBERT_01.nii.gz", np.ones((3, 3, 3)), shift=0.6)  # nearest voxel: one further
    cases = cases_of(tmp_path, directions=["t1-t2"]).cases
    made = cases[0].fixed_labels
    assert made.parent == tmp_path / "made"
    from pipeline.volumes import read_volume

    volume = read_volume(made)
    assert volume.geometry.matches(read_volume(cases[0].fixed).geometry)
    assert np.array_equal(volume.array, labels[1:4, 1:4, 1:4].T)
    assert next(case for case in cases if case.moving_subject == "01").moving_labels == tmp_path / "segmentations-v3/ALBERT_01.nii.gz"
    before = made.stat().st_mtime_ns
    assert cases_of(tmp_path, directions=["t1-t2"]).cases == cases
    assert made.stat().st_mtime_ns == before


def test_a_damaged_file_leaves_its_subject_out(tmp_path):
    make(tmp_path)
    (tmp_path / "T2/ALBERT_03.nii.gz").write_bytes(b"no image")
    cases, left_out = cases_of(tmp_path)
    assert {case.subject for case in cases} == {"01", "02"}
    assert "damaged" in dict(left_out)["03"]


def test_the_deep_metric_protocol_fits_twenty_subjects(tmp_path):
    make(tmp_path, 20)
    cases = cases_of(tmp_path, hold_out=2, pairs=68).cases
    assert sum(case.split == "test" for case in cases) == 68
