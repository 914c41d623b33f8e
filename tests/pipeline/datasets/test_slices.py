"""Slices as a data set: of one subject with a known motion, of two at the same level; splits by subject; bad slices left out by name."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.cases import Case, read_cases, write_cases
from pipeline.datasets import slice_making, slices
from pipeline.datasets.registry import create_dataset
from pipeline.errors import ConcordError
from pipeline.methods import Run
from pipeline.resampling import warp_by_field
from pipeline.transform_files import read_transform
from pipeline.volumes import Geometry, Volume, read_volume, write_volume

GRID = Geometry.regular((32, 36, 28), 6.0)
SMALL = {"size": [40, 40], "spacing_mm": 5.0, "slices": 3, "heights": [0.3, 0.7]}


def head(number: int) -> dict[str, np.ndarray]:
    """A smooth head of its own size: T1, T2 and three tissues, one inside the other."""
    radii = np.array([70.0, 85.0, 65.0]) * (1 + 0.02 * (number % 5))
    away = np.sqrt(((GRID.grid_points() / radii) ** 2).sum(axis=-1))
    tissue = np.select([away < 0.35, away < 0.75, away < 1], [1, 3, 2], 0).astype(np.uint8)
    ripple = 1 + 0.1 * np.sin(GRID.grid_points()[..., 0] / 9 + number)
    t1, t2 = ((np.array(values)[tissue] * ripple).astype(np.float32) for values in ((0, 20, 60, 90), (0, 100, 60, 35)))
    return {"t1": t1, "t2": t2, "tissue": tissue}


def stored(folder: Path, name: str, array: np.ndarray, geometry: Geometry = GRID) -> Path:
    write_volume(Volume(array, geometry), folder / f"{name}.mha")
    return folder / f"{name}.mha"


def table(folder: Path, subjects: int = 6, **settings) -> Path:
    """A table of aligned pairs; two subjects each for validation and test, the rest for training."""
    cases = []
    for number in range(subjects):
        name = f"sub-{number}"
        files = {part: stored(folder, f"{name}_{part}", array) for part, array in head(number).items()}
        given = {
            "fixed": files["t1"],
            "moving": files["t2"],
            "fixed_labels": files["tissue"],
            "moving_labels": files["tissue"],
            "fixed_modality": "t1",
            "moving_modality": "t2",
            "split": ("test", "test", "validation", "validation", "train", "train")[number % 6],
        }
        cases.append(Case(case=name, subject=name, **{**given, **settings}))
    write_cases(cases, folder / "cases.csv")
    return folder / "cases.csv"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return table(tmp_path_factory.mktemp("heads"))


def found_in(root: Path, folder: Path, *, seed: int = 1, **settings):
    return create_dataset("slices", {"root": str(root), **SMALL, **settings}).cases(folder, Run(seed=seed))


@pytest.fixture(scope="module")
def within(root, tmp_path_factory):
    return found_in(root, tmp_path_factory.mktemp("within"))


@pytest.fixture(scope="module")
def between(root, tmp_path_factory):
    return found_in(root, tmp_path_factory.mktemp("between"), intra=False)


class TestWithinASubject:
    def test_every_subject_gives_slices_of_its_own_split(self, within):
        assert within.left_out == []
        assert [case.case for case in within.cases[:4]] == ["sub-0_01", "sub-0_02", "sub-0_03", "sub-1_01"]
        assert [case.split for case in within.cases[::3]] == ["test", "test", "validation", "validation", "train", "train"]
        assert {(c.fixed_modality, c.moving_modality, c.moving_subject) for c in within.cases} == {("t1", "t2", "")}
        assert within.cases[0].slice_spacing_mm == pytest.approx(0.2 * 2 * 0.885 * 65, rel=0.08)

    def test_all_images_lie_on_grids_of_the_wanted_size(self, within):
        wanted = Geometry.regular((40, 40), 5.0)
        for case in within.cases[:3]:
            for column in ("fixed", "moving", "fixed_labels", "moving_labels", "moving_counterpart"):
                assert read_volume(getattr(case, column)).geometry.matches(wanted)

    def test_the_true_transform_brings_image_counterpart_and_labels_back(self, within):
        case = within.cases[1]
        fixed, labels = read_volume(case.fixed), read_volume(case.fixed_labels)
        field = read_transform(case.true_transform).displacement_mm(fixed.geometry)
        back = warp_by_field(read_volume(case.moving_counterpart), field, fixed.geometry).array
        before = read_volume(case.moving_counterpart).array
        assert np.abs(back - fixed.array).mean() < 0.3 * np.abs(before - fixed.array).mean()
        found = warp_by_field(read_volume(case.moving_labels), field, labels.geometry, interpolation="nearest").array
        assert (found == labels.array).mean() > 0.95
        assert (read_volume(case.moving_labels).array == labels.array).mean() < 0.93

    def test_the_counterpart_shows_the_moving_slice_in_the_other_contrast(self, within):
        case = within.cases[1]
        moving, counterpart, labels = (read_volume(getattr(case, c)).array for c in ("moving", "moving_counterpart", "moving_labels"))
        assert [np.median(moving[labels == label]) for label in (1, 2, 3)] == pytest.approx([100, 60, 35], rel=0.12)
        assert [np.median(counterpart[labels == label]) for label in (1, 2, 3)] == pytest.approx([20, 60, 90], rel=0.12)

    def test_moved_slices_are_interpolated_once(self, root, tmp_path):
        still = {"shift_mm": 0, "rotation_deg": 0, "scale": 0, "deformation_mm": 0}
        case = found_in(root, tmp_path, subjects=1, motion=still, spacing_mm=6.0).cases[0]
        np.testing.assert_allclose(read_volume(case.moving_counterpart).array, read_volume(case.fixed).array, atol=1e-4)

    def test_more_draws_are_more_cases_of_the_same_slice(self, root, tmp_path):
        cases = found_in(root, tmp_path, subjects=1, draws=2).cases
        assert [case.case for case in cases[:3]] == ["sub-0_01-1", "sub-0_01-2", "sub-0_02-1"]
        assert cases[0].fixed == cases[1].fixed
        assert np.abs(read_volume(cases[0].moving).array - read_volume(cases[1].moving).array).max() > 5

    def test_slices_may_be_so_many_millimetres_apart(self, root, tmp_path):
        cases = found_in(root, tmp_path, subjects=1, slice_spacing_mm=10).cases
        assert len(cases) == 1 + int(0.4 * 2 * 0.885 * 65 / 10)
        assert {case.slice_spacing_mm for case in cases} == {10.0}

    def test_only_wanted_labels_are_kept(self, root, tmp_path):
        case = found_in(root, tmp_path, subjects=1, labels=[1, 3]).cases[0]
        assert set(np.unique(read_volume(case.fixed_labels).array)) == set(np.unique(read_volume(case.moving_labels).array)) == {0, 1, 3}


class TestBetweenSubjects:
    def test_each_subject_is_fixed_and_moving_once_within_its_split(self, between):
        pairs = {(case.split, case.subject, case.moving_subject) for case in between.cases}
        assert pairs == {
            (s, *p)
            for s, a, b in (("test", 0, 1), ("validation", 2, 3), ("train", 4, 5))
            for p in ((f"sub-{a}", f"sub-{b}"), (f"sub-{b}", f"sub-{a}"))
        }
        assert len(between.cases) == 18

    def test_the_counterpart_is_the_other_subjects_fixed_slice_of_the_same_level(self, between):
        fixed_of = {(case.subject, case.case[-2:]): case.fixed for case in between.cases}
        for case in between.cases:
            assert case.moving_counterpart == fixed_of[case.moving_subject, case.case[-2:]]
            assert case.moving == case.moving_counterpart.with_name(case.moving_counterpart.name.replace("_t1", "_t2"))
            assert case.true_transform is None

    def test_levels_correspond(self, between):
        for case in between.cases[:3]:
            assert (read_volume(case.fixed_labels).array > 0).sum() == pytest.approx((read_volume(case.moving_labels).array > 0).sum(), rel=0.15)

    def test_more_partners_are_more_pairs_but_none_beyond_a_split(self, root, tmp_path):
        found = found_in(root, tmp_path, intra=False, partners=2, train=4, hold_out=1)
        assert {case.split for case in found.cases} == {"train"}
        assert len(found.cases) == 4 * 2 * 3
        assert "partners 2" in found.left_out[0].reason

    def test_pairs_stay_within_a_fold(self, tmp_path):
        root = table(tmp_path, 4, split="test")
        cases = [case.model_copy(update={"fold": number % 2}) for number, case in enumerate(read_cases(root))]
        write_cases(cases, root)
        assert {(c.subject, c.moving_subject, c.fold) for c in found_in(root, tmp_path / "out", intra=False).cases} == {
            ("sub-0", "sub-2", 0),
            ("sub-2", "sub-0", 0),
            ("sub-1", "sub-3", 1),
            ("sub-3", "sub-1", 1),
        }


class TestSplits:
    def test_drawn_splits_are_by_subject_never_by_slice(self, root, tmp_path):
        cases = found_in(root, tmp_path, train=3, hold_out=1).cases
        of_subject = {case.subject: {other.split for other in cases if other.subject == case.subject} for case in cases}
        assert sorted(map(tuple, of_subject.values())) == [("test",)] * 2 + [("train",)] * 3 + [("validation",)]

    def test_a_table_with_a_subject_in_two_splits_is_refused_unless_splits_are_drawn(self, root, tmp_path):
        cases = [c.model_copy(update={"fixed": c.fixed.resolve(), "moving": c.moving.resolve()}) for c in read_cases(root)]
        write_cases([*cases, cases[0].model_copy(update={"case": "again", "split": "train"})], tmp_path / "cases.csv")
        with pytest.raises(ConcordError, match="subject sub-0: cases in splits test, train"):
            found_in(tmp_path / "cases.csv", tmp_path / "out")
        assert found_in(tmp_path / "cases.csv", tmp_path / "out", train=2).cases

    def test_no_slice_of_a_subject_ever_leaves_with_another_split(self, root, tmp_path, monkeypatch):
        within = slices.Slices._within
        monkeypatch.setattr(
            slices.Slices, "_within", lambda *given: (c.model_copy(update={"split": "train"}) if c.case == "sub-1_02" else c for c in within(*given))
        )
        with pytest.raises(ConcordError, match="subject sub-1: sub-1_01 is of split test, fold None and sub-1_02 is of split train"):
            found_in(root, tmp_path, subjects=2)

    def test_too_few_subjects_are_told(self, root, tmp_path):
        with pytest.raises(ConcordError, match="hold_out 3 and train 4 of 6 usable subjects"):
            found_in(root, tmp_path, train=4, hold_out=3)
        assert not list(tmp_path.iterdir())  # before anything is cut


class TestKeeping:
    def test_nothing_is_made_twice_and_what_is_missing_or_outdated_is_made_again(self, root, tmp_path, monkeypatch):
        first = found_in(root, tmp_path, subjects=2)
        calls = []
        make = slice_making.SliceMaker._make
        monkeypatch.setattr(slice_making.SliceMaker, "_make", lambda self: calls.append(self._source.name) or make(self))
        assert found_in(root, tmp_path, subjects=2, train=1) != first  # other splits, same files
        assert found_in(root, tmp_path, subjects=2) == first
        assert calls == []
        first.cases[-1].moving.unlink()
        assert found_in(root, tmp_path, subjects=2) == first
        assert calls == ["sub-1"]
        found_in(root, tmp_path, subjects=2, seed=2)
        found_in(root, tmp_path, subjects=2, seed=2, spacing_mm=6.0)
        assert calls == ["sub-1", "sub-0", "sub-1", "sub-0", "sub-1"]

    def test_equal_settings_make_equal_files(self, root, tmp_path, within):
        again = found_in(root, tmp_path, subjects=1)
        for one, other in zip(within.cases, again.cases, strict=False):
            np.testing.assert_array_equal(read_volume(one.moving).array, read_volume(other.moving).array)


class TestLeftOut:
    def changed(self, root: Path, tmp_path: Path, **arrays: np.ndarray | tuple[np.ndarray, Geometry]) -> Path:
        """The table with files of the first subject changed."""
        cases = [case.model_copy(update={name: path.resolve() for name, path in case.paths.items()}) for case in read_cases(root)]
        files = {c: stored(tmp_path, c, *(a if isinstance(a, tuple) else (a,))) for c, a in arrays.items()}
        write_cases([cases[0].model_copy(update=files), *cases[1:]], tmp_path / "cases.csv")
        return tmp_path / "cases.csv"

    def test_a_slice_of_one_value_is_left_out_by_name(self, root, tmp_path):
        t2 = head(0)["t2"]
        t2[13:15] = 7.0  # the middle slice
        found = found_in(self.changed(root, tmp_path, moving=t2), tmp_path / "out")
        assert found.left_out == [("sub-0, slice 2", "the t2 is of one value in it")]
        assert [case.case for case in found.cases[:3]] == ["sub-0_01", "sub-0_03", "sub-1_01"]

    def test_a_slice_beyond_the_other_image_is_left_out_by_name(self, root, tmp_path):
        t2 = Volume(head(0)["t2"], GRID).cropped((0, 0, 0), (32, 36, 15))
        labels = read_cases(root)[0].model_copy(update={"moving_labels": None})
        path = self.changed(root, tmp_path, moving=(t2.array, t2.geometry))
        rest = read_cases(path)[1:]
        write_cases(
            [labels.model_copy(update={"moving": tmp_path / "moving.mha", "fixed": labels.fixed.resolve(), "fixed_labels": None}), *rest], path
        )
        assert found_in(path, tmp_path / "out").left_out == [("sub-0, slice 3", "the t2 ends within it")]

    def test_a_slice_with_little_of_the_head_in_it_is_left_out_by_name(self, root, tmp_path):
        found = found_in(root, tmp_path, subjects=1, heights=[0, 1], min_share=0.2)
        assert [row.subject for row in found.left_out] == ["sub-0, slice 1", "sub-0, slice 3"]
        assert "expected 20 %" in found.left_out[0].reason

    def test_labels_of_another_size_a_flat_image_and_a_constant_one_leave_their_subject_out(self, root, tmp_path):
        small = GRID.resized((16, 18, 14))
        for number, (column, array, told) in enumerate(
            [
                ("moving_labels", (np.ones(small.shape, np.uint8), small), r"label map of size \(16, 18, 14\) is not on the grid"),
                ("fixed", (np.ones((36, 32), np.float32), Geometry.regular((32, 36))), "2-D; expected a 3-D volume|not on the grid"),
                ("fixed", np.ones(GRID.shape, np.float32), "nearly every sample is 1"),
            ]
        ):
            folder = tmp_path / str(number)
            folder.mkdir()
            found = found_in(self.changed(root, folder, **{column: array}), folder / "out")
            assert [row.subject for row in found.left_out] == ["sub-0"]
            assert re.search(told, found.left_out[0].reason)
            assert len(found.cases) == 15

    def test_a_missing_file_leaves_its_subject_out(self, root, tmp_path):
        path = self.changed(root, tmp_path, moving=head(0)["t2"])
        (tmp_path / "moving.mha").unlink()
        assert "no such file" in found_in(path, tmp_path / "out").left_out[0].reason

    def test_a_table_without_both_modalities_is_refused(self, root, tmp_path):
        with pytest.raises(ConcordError, match=r"no usable subject \(sub-0: 0 images of modality flair; expected one"):
            found_in(root, tmp_path, moving="flair")

    def test_subjects_may_be_listed_and_a_wrong_name_is_told(self, root, tmp_path):
        assert {case.subject for case in found_in(root, tmp_path, subjects=["sub-3", "sub-1"]).cases} == {"sub-1", "sub-3"}
        with pytest.raises(ConcordError, match="no subject 'sub-9'"):
            found_in(root, tmp_path, subjects=["sub-9"])

    def test_exchanged_modalities_are_warned_of(self, root, tmp_path, caplog):
        cases = [c.model_copy(update={"fixed": c.moving.resolve(), "moving": c.fixed.resolve()}) for c in read_cases(root)]
        write_cases(
            [c.model_copy(update={n: getattr(c, n).resolve() for n in ("fixed_labels", "moving_labels")}) for c in cases], tmp_path / "cases.csv"
        )
        for _ in range(2):  # made and kept alike
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                found_in(tmp_path / "cases.csv", tmp_path / "out", tissues=[1, 3], subjects=2)
            assert "t1 and t2 look exchanged in 2 subjects (sub-0, sub-1)" in caplog.text
        caplog.clear()
        found_in(root, tmp_path / "right", tissues=[1, 3], subjects=2)
        assert caplog.text == ""


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"heights": [0.8, 0.2]}, "datasets.slices.heights: .* the lower one first"),
        ({"size": [4, 64]}, "datasets.slices.size: .* expected 8 to 4096 voxels"),
        ({"intra": False, "slice_spacing_mm": 5}, "datasets.slices.slice_spacing_mm: .* correspond by number"),
        ({"moving": "t1"}, "datasets.slices.moving: 't1' is the fixed modality too"),
        ({"axis": "oblique"}, "datasets.slices.axis"),
        ({"motion": {"scale": 0.7}}, "datasets.slices.motion.scale"),
    ],
)
def test_impossible_settings_are_told(settings, told):
    with pytest.raises(ConcordError, match=told):
        create_dataset("slices", {"root": "cases.csv", **SMALL, **settings})
