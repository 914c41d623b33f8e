"""Patterns of file names: what they find, what they pass over, and who is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.datasets.layout import chosen_subjects, collect, find_files, taken
from pipeline.errors import ConcordError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_a_subject_repeated_in_a_pattern_must_be_the_same(tmp_path):
    touch(tmp_path, "a/a_t1.nii.gz", "b/c_t1.nii.gz")
    assert find_files(tmp_path, ["{subject}/{subject}_t1.nii*"]) == {"a": [tmp_path / "a/a_t1.nii.gz"]}


def test_two_stars_stand_for_any_depth_and_dots_for_themselves(tmp_path):
    touch(tmp_path, "x-T1.nii.gz", "deep/er/y-T1.nii", "z-T1xnii.gz")
    assert list(find_files(tmp_path, ["**/{subject}-T1.nii*"])) == ["x", "y"]


def test_hidden_twins_half_written_files_and_folders_are_passed_over(tmp_path):
    touch(tmp_path, "x-T1.nii.gz", "._x-T1.nii.gz", "y-T1.nii.gz.part", "z-T1.nii.gz/inside.txt")
    assert list(find_files(tmp_path, ["{subject}-T1.nii*"])) == ["x"]


def test_subjects_with_a_file_too_few_or_too_many_are_left_out_by_name(tmp_path):
    touch(
        tmp_path,
        "a-T1.nii.gz",
        "a-T2.nii.gz",
        "b-T1.nii.gz",
        "c-T1.nii.gz",
        "c-T1.nii",
        "c-T2.nii.gz",
        "d-T1.nii",
        "d-T2.nii",
        "d-seg.nii",
        "d-seg.nii.gz",
    )
    subjects, left_out = collect(tmp_path, {"t1": ["{subject}-T1.nii*"], "t2": ["{subject}-T2.nii*"]}, ["{subject}-seg.nii*"])
    assert [subject.name for subject in subjects] == ["a"]
    assert {row.subject: row.reason.split(" (")[0] for row in left_out} == {"b": "no t2", "c": "2 files for t1", "d": "2 files for label map"}


def test_a_number_takes_the_first_and_a_list_takes_what_it_names():
    assert chosen_subjects({"c", "a", "b"}, 2) == ["a", "b"]
    assert chosen_subjects({"c", "a", "b"}, ("c", "a", "c")) == ["c", "a"]
    assert chosen_subjects({"b", "a"}, None) == ["a", "b"]
    with pytest.raises(ConcordError, match="no subject 'sub-1'; did you mean 'sub-01'"):
        chosen_subjects({"sub-01"}, ("sub-1",))


def test_a_listed_subject_that_was_left_out_is_told_and_the_other_ones_are_not(tmp_path):
    touch(tmp_path, "a-T1.nii", "a-T2.nii", "b-T1.nii", "c-T2.nii")
    found = collect(tmp_path, {"t1": ["{subject}-T1.nii"], "t2": ["{subject}-T2.nii"]})
    subjects, left_out = taken(*found, ("a", "b"))
    assert [subject.name for subject in subjects] == ["a"]
    assert [row.subject for row in left_out] == ["b"]
