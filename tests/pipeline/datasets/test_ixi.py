"""IXI: flat folders, subjects without T2, sites; file names only, so the files are empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.datasets.registry import create_dataset
from pipeline.methods import Run


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def cases_of(root: Path, **settings):
    return create_dataset("ixi", {"root": str(root), **settings}).cases(root / "unused", Run(seed=1))


def test_t1_and_t2_of_a_subject_are_a_case_in_each_direction(tmp_path):
    touch(tmp_path, "IXI002-Guys-0828-T1.nii.gz", "IXI002-Guys-0828-T2.nii.gz")
    cases, left_out = cases_of(tmp_path)
    assert [(c.subject, c.moving_subject, c.group) for c in cases] == [("IXI002-Guys-0828", "", "t1-t2"), ("IXI002-Guys-0828", "", "t2-t1")]
    assert (cases[0].fixed.name, cases[0].moving.name) == ("IXI002-Guys-0828-T1.nii.gz", "IXI002-Guys-0828-T2.nii.gz")
    assert cases[0].fixed_labels is None
    assert left_out == []


@pytest.mark.parametrize("folders", [("", ""), ("IXI-T1/", "IXI-T2/"), ("T1/", "T2/")])
def test_one_folder_or_one_for_each_archive_are_the_same(tmp_path, folders):
    for subject in ("IXI002-Guys-0828", "IXI012-HH-1211"):
        touch(tmp_path, f"{folders[0]}{subject}-T1.nii.gz", f"{folders[1]}{subject}-T2.nii.gz")
    assert len(cases_of(tmp_path, pairs="all", intra=False).cases) == 4


def test_a_t1_without_t2_and_the_other_way_round_is_left_out_by_name(tmp_path):
    touch(tmp_path, *(f"IXI002-Guys-0828-{m}.nii.gz" for m in ("T1", "T2", "PD", "MRA")), "IXI116-Guys-0730-T1.nii.gz", "IXI309-IOP-0897-T2.nii.gz")
    cases, left_out = cases_of(tmp_path)
    assert {case.subject for case in cases} == {"IXI002-Guys-0828"}
    assert dict(left_out) == {"IXI116-Guys-0730": "no t2", "IXI309-IOP-0897": "no t1"}


def test_two_visits_are_told_apart_by_all_that_stands_before_the_last_hyphen(tmp_path):
    touch(tmp_path, "IXI002-Guys-0828-T1.nii.gz", "IXI002-Guys-0829-T2.nii.gz", "IXI012-HH-1211-T1.nii.gz", "IXI012-HH-1211-T2.nii.gz")
    cases, left_out = cases_of(tmp_path)
    assert {case.subject for case in cases} == {"IXI012-HH-1211"}
    assert {row.subject for row in left_out} == {"IXI002-Guys-0828", "IXI002-Guys-0829"}


def test_sites_and_a_third_modality_can_be_chosen(tmp_path):
    for subject in ("IXI002-Guys-0828", "IXI012-HH-1211", "IXI035-IOP-0873"):
        touch(tmp_path, *(f"{subject}-{modality}.nii.gz" for modality in ("T1", "T2", "PD")))
    assert {case.subject for case in cases_of(tmp_path, sites=["HH", "IOP"]).cases} == {"IXI012-HH-1211", "IXI035-IOP-0873"}
    assert {case.group for case in cases_of(tmp_path, modalities=["t1", "pd"]).cases} == {"t1-pd", "pd-t1"}


def test_held_out_subjects_are_validation_cases(tmp_path):
    for number in range(10):
        touch(tmp_path, *(f"IXI{number:03d}-Guys-0000-{modality}.nii.gz" for modality in ("T1", "T2")))
    cases = cases_of(tmp_path, hold_out=2, train=5).cases
    splits = {split: {case.subject for case in cases if case.split == split} for split in ("train", "validation", "test")}
    assert {split: len(names) for split, names in splits.items()} == {"train": 5, "validation": 2, "test": 3}
    assert len(set().union(*splits.values())) == 10
