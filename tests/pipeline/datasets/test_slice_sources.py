"""Subjects of a table of cases: images by modality, splits and folds that are one, exchanged modalities."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from pipeline.cases import Case
from pipeline.datasets.slice_sources import Source, check_aligned, check_splits, own_fold, own_split, sources_of, unlike, warn_unlike
from pipeline.errors import ConcordError
from pipeline.transform_files import write_transform
from pipeline.transforms import Linear
from pipeline.volumes import Geometry, Volume


def case(name: str = "a", **settings) -> Case:
    given = {"case": name, "fixed": f"{name}_t1.mha", "moving": f"{name}_t2.mha", "subject": name, "fixed_modality": "t1", "moving_modality": "t2"}
    return Case(**{**given, **settings})


def test_an_aligned_pair_gives_a_subject_both_images():
    (found,), left_out = sources_of([case(split="train", fold=2, group="HGG", fixed_labels="l.mha")], "t1", "t2")
    assert left_out == []
    assert found.images == {"t1": Path("a_t1.mha"), "t2": Path("a_t2.mha")}
    assert found.labels == {"t1": Path("l.mha")}
    assert (own_split(found), own_fold(found), found.group) == ("train", 2, "HGG")


def test_without_modalities_the_fixed_image_is_of_the_fixed_one():
    found, _ = sources_of([case(fixed_modality="", moving_modality="")], "t1", "t2")
    assert found[0].images == {"t1": Path("a_t1.mha"), "t2": Path("a_t2.mha")}


def test_pairs_of_subjects_give_each_one_its_images():
    there = case("x", subject="a", moving_subject="b", fixed="a_t1.mha", moving="b_t2.mha", moving_labels="b_l.mha")
    back = case("y", subject="b", moving_subject="a", fixed="b_t1.mha", moving="a_t2.mha")
    found, _ = sources_of([there, back], "t1", "t2")
    assert [(s.name, s.images["t1"].name, s.images["t2"].name) for s in found] == [("a", "a_t1.mha", "a_t2.mha"), ("b", "b_t1.mha", "b_t2.mha")]
    assert found[1].labels == {"t2": Path("b_l.mha")}


def test_a_subject_without_a_modality_or_with_two_images_of_one_is_left_out_by_name():
    only_t1 = case("b", moving_modality="flair")
    twice = [case("c"), case("c2", subject="c", fixed="c_other.mha", moving="c_t2.mha")]
    found, left_out = sources_of([case(), only_t1, *twice], "t1", "t2")
    assert [source.name for source in found] == ["a"]
    assert {row.subject: row.reason for row in left_out} == {
        "b": "0 images of modality t2; expected one",
        "c": "2 images of modality t1; expected one",
    }


def test_a_subject_of_two_splits_or_folds_is_refused_by_name():
    found, _ = sources_of(
        [case(split="train", fold=0), case("a2", subject="a", fixed="a_t1.mha", moving="a_t2.mha", split="test", fold=1)], "t1", "t2"
    )
    with pytest.raises(ConcordError, match="subject a: cases in splits test, train"):
        own_split(found[0])
    with pytest.raises(ConcordError, match="subject a: cases in folds 0, 1"):
        own_fold(found[0])


class TestSplits:
    def test_slices_of_a_subject_in_two_splits_are_refused_naming_it(self):
        with pytest.raises(ConcordError, match="subject a: a1 is of split train, fold None and a2 is of split test"):
            check_splits([case("a1", subject="a", split="train"), case("b"), case("a2", subject="a")])

    def test_so_is_a_moving_subject_of_another_split(self):
        with pytest.raises(ConcordError, match="subject b: "):
            check_splits([case("b", split="train"), case("a", moving_subject="b")])

    def test_and_a_subject_in_two_folds(self):
        with pytest.raises(ConcordError, match=r"subject a: .* fold 1 and .* fold 2"):
            check_splits([case("a1", subject="a", fold=1), case("a2", subject="a", fold=2)])

    def test_subjects_of_one_split_each_are_fine(self):
        check_splits([case("a1", subject="a", fold=1), case("a2", subject="a", fold=1), case("b", split="train")])


def test_images_of_one_subject_that_a_true_transform_moves_are_refused(tmp_path):
    image = Volume(np.zeros((4, 4, 4)), Geometry.regular((4, 4, 4)))
    for shift, name in ((0.0, "same.tfm"), (0.5, "moved.tfm")):
        write_transform(Linear(np.eye(3), np.array([shift, 0, 0]), "translation"), tmp_path / name)
    check_aligned(Source("a", truths=(tmp_path / "same.tfm",)), image)
    with pytest.raises(ConcordError, match=r"images of a moves points by 0\.5 mm"):
        check_aligned(Source("a", truths=(tmp_path / "moved.tfm",)), image)


class TestExchangedModalities:
    LABELS = Volume(np.repeat([0, 1, 2, 3], 4).reshape(4, 2, 2), Geometry.regular((2, 2, 4)))
    T1 = LABELS.with_array(np.repeat([0, 30, 60, 90], 4).reshape(4, 2, 2))
    T2 = LABELS.with_array(np.repeat([0, 90, 60, 30], 4).reshape(4, 2, 2))

    def test_white_matter_against_csf_tells_a_t1_from_a_t2(self):
        assert not unlike(self.T1, self.LABELS, "t1", (1, 3))
        assert not unlike(self.T2, self.LABELS, "t2", (1, 3))
        assert unlike(self.T2, self.LABELS, "t1", (1, 3))
        assert unlike(self.T1, self.LABELS, "t2", (1, 3))

    def test_nothing_is_told_of_other_modalities_or_without_the_tissues(self):
        assert not unlike(self.T2, self.LABELS, "flair", (1, 3))
        assert not unlike(self.T2, self.LABELS, "t1", (1, 8))

    def test_one_warning_names_the_subjects(self, caplog):
        with caplog.at_level(logging.WARNING):
            warn_unlike({"a": ("t1", "t2"), "b": (), "c": ("t2", "t1"), "d": ("t2",)}, ("t1", "t2"))
        assert [record.getMessage().split(":")[0] for record in caplog.records] == [
            "t1 and t2 look exchanged in 2 subjects (a, c)",
            "the t2 does not look like one in 1 subjects (d)",
        ]


def test_a_name_that_is_no_file_name_gets_one_of_its_own():
    stems = {Source(name).stem for name in ("a b", "a-b", "a/b", "sub-01")}
    assert len(stems) == 4
    assert {"a-b", "sub-01"} <= stems
