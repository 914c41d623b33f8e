"""The user's own table: minimal columns, made names, and errors that name line, column and choices."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cases import Case
from pipeline.datasets.registry import create_dataset
from pipeline.errors import ConcordError
from pipeline.methods import Run


def cases_of(folder: Path, text: str | bytes):
    data = text.encode() if isinstance(text, str) else text
    (folder / "mine.csv").write_bytes(data)
    for name in ("a.nii.gz", "b.nii.gz", "c.mha"):
        (folder / name).touch()
    return create_dataset("table", {"file": str(folder / "mine.csv")}).cases(folder / "unused", Run())


def test_three_columns_are_enough_and_paths_are_relative_to_the_table(tmp_path):
    cases, left_out = cases_of(tmp_path, "fixed,moving,subject\na.nii.gz,b.nii.gz,anna\nb.nii.gz,c.mha,bert\n")
    assert cases == [
        Case(case="anna", fixed=tmp_path / "a.nii.gz", moving=tmp_path / "b.nii.gz", subject="anna"),
        Case(case="bert", fixed=tmp_path / "b.nii.gz", moving=tmp_path / "c.mha", subject="bert"),
    ]
    assert left_out == []


def test_every_column_of_a_case_may_follow(tmp_path):
    row = "k1,a.nii.gz,b.nii.gz,anna,bert,t1,t2,validation,3,t1-t2,mid,9.5,ES,ED,s0,a.nii.gz,b.nii.gz,,,b.nii.gz,,,,c.mha,"
    (case,) = cases_of(tmp_path, ",".join(Case.model_fields) + f"\n{row}\n").cases
    assert (case.case, case.split, case.fold, case.start, case.fixed_labels, case.fixed_mask) == (
        "k1",
        "validation",
        3,
        "s0",
        tmp_path / "a.nii.gz",
        None,
    )
    assert (case.true_transform, case.moving_counterpart) == (tmp_path / "c.mha", tmp_path / "b.nii.gz")
    assert (case.slice_spacing_mm, case.fixed_phase, case.moving_phase) == (9.5, "ES", "ED")


def test_absolute_paths_stay(tmp_path):
    cases = cases_of(tmp_path, f"fixed,moving,subject\n{tmp_path / 'a.nii.gz'},b.nii.gz,x\n").cases
    assert cases[0].fixed == tmp_path / "a.nii.gz"


def test_names_are_made_of_the_subjects_and_never_clash(tmp_path):
    lines = [
        "case,fixed,moving,subject,moving_subject",
        ",a.nii.gz,b.nii.gz,x,y",
        ",b.nii.gz,a.nii.gz,x,y",
        "x-y_1,a.nii.gz,b.nii.gz,x,y",
        ",a.nii.gz,c.mha,Ö 1,",
    ]
    text = "\n".join(lines)
    names = [case.case for case in cases_of(tmp_path, text).cases]
    assert len(set(names)) == 4
    assert names[1:3] == ["x-y_2", "x-y_1"]
    assert names[3] == "1"


@pytest.mark.parametrize("separator", [";", "\t"])
def test_semicolons_tabs_byte_order_marks_and_windows_lines_are_read(tmp_path, separator):
    text = "\ufefffixed,moving,subject\r\na.nii.gz,b.nii.gz,x\r\n\r\n,,\r\n".replace(",", separator)
    assert [case.subject for case in cases_of(tmp_path, text).cases] == ["x"]


def test_a_line_that_names_a_missing_file_is_left_out_by_number(tmp_path):
    cases, left_out = cases_of(tmp_path, "fixed,moving,subject\na.nii.gz,no.nii.gz,x\na.nii.gz,b.nii.gz,y\n")
    assert [case.subject for case in cases] == ["y"]
    assert left_out == [("x", f"mine.csv line 2: no such file: moving {tmp_path / 'no.nii.gz'}")]


HEAD = "fixed,moving,subject"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no column 'fixed'; required: fixed, moving, subject"),
        (HEAD, "no line below the columns"),
        ("fixed,moving\na.nii.gz,b.nii.gz\n", "line 1: no column 'subject'"),
        ("fixed,moving,subject,fixed_label\n", "line 1: unknown column 'fixed_label'; did you mean 'fixed_labels'? Valid columns: case, fixed"),
        ("fixed,moving,subject,fixed\n", "line 1: column 'fixed' stands 2 times"),
        (f"{HEAD}\na.nii.gz,b.nii.gz\n", "line 2: 2 cells under 3 columns"),
        (f"{HEAD}\na.nii.gz,b.nii.gz,x,y\n", "line 2: 4 cells under 3 columns"),
        (f"{HEAD}\na.nii.gz,b.nii.gz,x\na.nii.gz,,x\n", "line 3, column moving: empty; this column is required"),
        (f"{HEAD},split\na.nii.gz,b.nii.gz,x,tset\n", "line 2, column split: 'tset'; choose one of train, validation, test"),
        (f"{HEAD},fold\na.nii.gz,b.nii.gz,x,-1\n", "line 2, column fold: '-1'; expected a whole number, 0 or more"),
        (f"{HEAD},fold\na.nii.gz,b.nii.gz,x,one\n", "line 2, column fold: 'one'; expected a whole number"),
        (f"{HEAD},case\na.nii.gz,b.nii.gz,x,a/b\n", "line 2, column case: 'a/b'; expected letters, digits"),
        (f"{HEAD},case\na.nii.gz,b.nii.gz,x,k\na.nii.gz,b.nii.gz,x,k\n", "line 3, column case: 'k' stands in line 2 too"),
        (f"{HEAD}\na.nii.gz,b.nii.gz,M\xfcller\n".encode("latin-1"), "not UTF-8 at byte 40"),
    ],
)
def test_what_is_wrong_is_told_with_line_column_and_choices(tmp_path, text, told):
    with pytest.raises(ConcordError) as caught:
        cases_of(tmp_path, text)
    assert told in str(caught.value)
    assert str(tmp_path / "mine.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_told(tmp_path):
    with pytest.raises(ConcordError, match="no such file; expected a CSV with columns fixed, moving, subject"):
        create_dataset("table", {"file": str(tmp_path / "none.csv")}).cases(tmp_path, Run())
