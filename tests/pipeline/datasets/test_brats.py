"""BraTS: the names of every year, and what leaks or breaks; file names only, so the files are empty."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.datasets.brats import one_examination
from pipeline.datasets.layout import Subject
from pipeline.datasets.registry import create_dataset
from pipeline.errors import ConcordError
from pipeline.methods import Run

DATA = Path(os.environ.get("CONCORD_TEST_DATA", Path(__file__).resolve().parents[3] / "../shared/data")) / "brats"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def make(root: Path, subject: str, names: str, separator: str) -> None:
    folder = subject.rsplit("/", 1)[-1]
    touch(root, *(f"{subject}/{folder}{separator}{name}.nii.gz" for name in names.split()))


def cases_of(root: Path, **settings):
    return create_dataset("brats", {"root": str(root), **settings}).cases(root / "unused", Run(seed=1))


@pytest.mark.parametrize(
    ("above", "names", "separator", "subject"),
    [
        ("MICCAI_BraTS2020_TrainingData/", "flair t1 t1ce t2 seg", "_", "BraTS20_Training_{}"),
        ("HGG/", "flair t1 t1ce t2 seg", "_", "BraTS19_2013_{}_1"),
        ("", "t1c t1n t2f t2w seg", "-", "BraTS-GLI-{}-000"),
    ],
)
def test_the_names_of_every_year_are_found(tmp_path, above, names, separator, subject):
    first, second = subject.format("00001"), subject.format("00002")
    for name in (first, second):
        make(tmp_path, above + name, names, separator)
    cases, left_out = cases_of(tmp_path)
    assert [(c.subject, c.moving_subject, c.group) for c in cases] == [
        (a, b, g) for g in ("t1-t2", "t2-t1") for a, b in ((first, second), (second, first))
    ]
    t1, t2 = ("t1n", "t2w") if separator == "-" else ("t1", "t2")
    assert (cases[0].fixed.name, cases[0].moving.name) == (f"{first}{separator}{t1}.nii.gz", f"{second}{separator}{t2}.nii.gz")
    assert cases[0].fixed_labels.name == f"{first}{separator}seg.nii.gz"
    assert left_out == []


def test_all_four_modalities_go_by_one_name(tmp_path):
    for number in (1, 2):
        make(tmp_path, f"BraTS-GLI-0000{number}-000", "t1c t1n t2f t2w seg", "-")
    cases = cases_of(tmp_path, modalities=["t1ce", "flair"], directions=["t1ce-flair"]).cases
    assert {(case.fixed.name[-10:], case.moving.name[-10:]) for case in cases} == {("t1c.nii.gz", "t2f.nii.gz")}


def test_plain_names_in_a_folder_for_each_subject_are_found_and_nested_raw_scans_are_not(tmp_path):
    touch(tmp_path, "one/t1.nii.gz", "one/t2.nii.gz", "one/tumour.nii.gz", "two/t1.nii.gz", "two/t2.nii.gz")
    touch(tmp_path, "one/native/T1_AX_t1.nii.gz", "one/native/T2_AX_t2.nii.gz")
    cases, left_out = cases_of(tmp_path, directions=["t1-t2"])
    assert [(case.subject, case.fixed_labels, case.moving_labels) for case in cases] == [
        ("one", tmp_path / "one/tumour.nii.gz", None),
        ("two", None, tmp_path / "one/tumour.nii.gz"),
    ]
    assert left_out == []


def test_a_subject_without_one_modality_is_left_out_by_name(tmp_path):
    for number, names in enumerate(("t1 t2", "t1 t2", "t1 flair", "t2")):
        make(tmp_path, f"BraTS20_Training_{number:03d}", names, "_")
    cases, left_out = cases_of(tmp_path)
    assert len(cases) == 4
    assert dict(left_out) == {"BraTS20_Training_002": "no t2", "BraTS20_Training_003": "no t1"}


def test_the_label_map_with_another_name_is_found(tmp_path):
    make(tmp_path, "BraTS20_Training_354", "t1 t2 seg", "_")
    make(tmp_path, "BraTS20_Training_355", "t1 t2", "_")
    touch(tmp_path, "BraTS20_Training_355/W39_1998.09.19_Segm.nii")
    cases = cases_of(tmp_path, directions=["t1-t2"]).cases
    assert cases[1].fixed_labels.name == "W39_1998.09.19_Segm.nii"
    assert cases[0].fixed_labels.name == "BraTS20_Training_354_seg.nii.gz"
    assert cases_of(tmp_path, labels=False).cases[1].fixed_labels is None


def test_a_second_examination_of_a_patient_is_left_out_so_that_no_patient_leaks(tmp_path):
    for name in ("00005-000", "00005-001", "00006-001"):
        make(tmp_path, f"BraTS-GLI-{name}", "t1n t2w", "-")
    cases, left_out = cases_of(tmp_path)
    assert {case.subject for case in cases} == {"BraTS-GLI-00005-000", "BraTS-GLI-00006-001"}
    assert dict(left_out) == {"BraTS-GLI-00005-001": "another examination of the patient of BraTS-GLI-00005-000"}


def test_only_names_since_2023_end_in_the_number_of_an_examination():
    names = ["BraTS20_Training_001", "BraTS20_Training_002", "BraTS19_2013_0_1", "BraTS19_2013_1_1", "case-001", "case-002"]
    assert len(one_examination([Subject(name, {}) for name in names])[0]) == 6


def test_within_a_subject_the_tumour_counts_for_both_images(tmp_path):
    make(tmp_path, "BraTS20_Training_001", "t1 t2 seg", "_")
    (case,) = cases_of(tmp_path, pairs=0, intra=True, directions=["t1-t2"]).cases
    assert (case.case, case.moving_subject) == ("BraTS20_Training_001_t1-BraTS20_Training_001_t2", "")
    assert case.fixed_labels == case.moving_labels


def test_one_subject_alone_cannot_be_paired_and_this_is_told(tmp_path):
    make(tmp_path, "BraTS20_Training_001", "t1 t2 seg", "_")
    with pytest.raises(ConcordError, match="1 subjects with hold_out 0"):
        cases_of(tmp_path)


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="no BraTS volumes; set CONCORD_TEST_DATA to their folder")
def test_four_real_subjects_give_all_ordered_pairs_and_their_images_share_a_grid():
    cases, left_out = cases_of(DATA, intra=True, directions=["t1-t2"])
    assert (len(cases), left_out) == (4 + 12, [])
    assert sum(case.fixed_labels is not None for case in cases) == 2 * (1 + 3)
    from pipeline.volumes import read_volume

    case = next(case for case in cases if case.subject == "TCGA-FG-6692" and not case.moving_subject)
    fixed = read_volume(case.fixed).geometry
    assert all(read_volume(path).geometry.matches(fixed) for path in case.paths.values())
