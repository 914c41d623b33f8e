"""The table of cases: what is written comes back, what is wrong is named by line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cases import Case, read_cases, write_cases
from pipeline.errors import ConcordError


def example(name: str = "a", **more) -> Case:
    return Case(case=name, fixed=Path("f.mha"), moving=Path("m.mha"), subject="s1", **more)


def test_what_is_written_comes_back_joined_to_the_folder(tmp_path):
    outside = tmp_path.parent / "elsewhere.mha"
    case = example(fixed_labels=tmp_path / "volumes" / "f, with comma.mha", moving_labels=outside, fold=3, split="validation", group="T1-T2")
    write_cases([case.model_copy(update={"fixed": tmp_path / "f.mha", "moving": tmp_path / "m.mha"})], tmp_path / "cases.csv")
    (found,) = read_cases(tmp_path / "cases.csv")
    assert found.fixed == tmp_path / "f.mha"
    assert found.fixed_labels == tmp_path / "volumes" / "f, with comma.mha"
    assert found.moving_labels == outside
    assert (found.fold, found.split, found.group, found.true_transform) == (3, "validation", "T1-T2", None)
    assert str(tmp_path) not in (tmp_path / "cases.csv").read_text().split("elsewhere")[0].split(str(outside.parent))[0]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("case,fixed,moving,subject\na b,f,m,s\n", "line 2, column case"),
        ("case,fixed,moving,subject,split\na,f,m,s,tset\n", "line 2, column split"),
        ("case,fixed,moving,subject\na,f,,s\n", "line 2, column moving"),
        ("case,fixed,moving,subject,fold\na,f,m,s,-1\n", "line 2, column fold"),
        ("case,fixed,moving,subject,fixd_labels\na,f,m,s,x\n", "fixd_labels"),
        ("case,fixed,moving,subject\na,f,m,s\na,f,m,s\n", "2 times"),
    ],
)
def test_a_bad_table_is_refused_with_the_place(content, named, tmp_path):
    (tmp_path / "cases.csv").write_text(content)
    with pytest.raises(ConcordError, match=named) as caught:
        read_cases(tmp_path / "cases.csv")
    assert "cases.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ConcordError, match="no such file"):
        read_cases(tmp_path / "cases.csv")


def test_a_surface_is_a_file_like_others_and_columns_keep_their_order(tmp_path):
    case = example(fixed_surface=tmp_path / "gland.stl", true_transform=tmp_path / "true.tfm")
    write_cases([case], tmp_path / "cases.csv")
    columns = (tmp_path / "cases.csv").read_text().splitlines()[0].split(",")
    assert columns[-5:] == ["fixed_landmarks", "moving_landmarks", "fixed_surface", "true_transform", "start_transform"]
    (found,) = read_cases(tmp_path / "cases.csv")
    assert found.paths["fixed_surface"] == tmp_path / "gland.stl"
