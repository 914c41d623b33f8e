"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from pipeline.errors import ConcordError
from pipeline.files import whole_file, write_json, write_text


def test_a_failure_leaves_neither_a_half_file_nor_a_changed_one(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_folders_are_made_and_the_suffix_is_kept(tmp_path):
    with whole_file(tmp_path / "ä b" / "v.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("x")
    assert (tmp_path / "ä b" / "v.nii.gz").read_text() == "x"


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {"ä": 1})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


def test_a_full_disk_is_told_in_one_line(tmp_path):
    with pytest.raises(ConcordError, match=r"a\.txt: the disk is full"), whole_file(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_path_through_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConcordError, match="cannot be written"):
        write_text(tmp_path / "file" / "below.txt", "y")
