"""Pairing: counts, directions, splits without leaks, the same pairs from the same seed; and folds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cases import read_cases, write_cases
from pipeline.datasets.layout import Subject
from pipeline.datasets.pairing import MOST_CASES, PairedDataset, folds_of, identifier
from pipeline.errors import ConcordError
from pipeline.methods import Run


def subjects_of(count: int, modalities=("t1", "t2")) -> list[Subject]:
    return [
        Subject(name, {m: Path(f"/data/{name}/{m}.nii.gz") for m in modalities}, {m: Path(f"/data/{name}/{m}_labels.nii.gz") for m in modalities})
        for name in (f"s{number:03d}" for number in range(count))
    ]


def paired(count: int, *, run_seed: int = 0, **settings):
    return PairedDataset(**settings).pair_up(subjects_of(count), Run(seed=run_seed))


def names_in(cases) -> set[str]:
    return {case.subject for case in cases} | {case.moving_subject for case in cases} - {""}


def test_three_subjects_give_the_six_ordered_pairs_in_each_direction():
    cases = paired(3).cases
    wanted = [("s000", "s001"), ("s000", "s002"), ("s001", "s000"), ("s001", "s002"), ("s002", "s000"), ("s002", "s001")]
    for direction in ("t1-t2", "t2-t1"):
        assert [(c.subject, c.moving_subject) for c in cases if c.group == direction] == wanted
    assert len(cases) == 12


def test_the_fixed_image_is_of_the_first_modality_and_of_the_subject():
    case = paired(2, directions=["t2-t1"]).cases[0]
    assert (case.case, case.subject, case.moving_subject, case.group) == ("s000_t2-s001_t1", "s000", "s001", "t2-t1")
    assert (case.fixed, case.moving) == (Path("/data/s000/t2.nii.gz"), Path("/data/s001/t1.nii.gz"))
    assert (case.fixed_labels, case.moving_labels) == (Path("/data/s000/t2_labels.nii.gz"), Path("/data/s001/t1_labels.nii.gz"))


def test_the_deep_metric_protocol_is_18_subjects_and_34_pairs_each_way():
    found = paired(20, hold_out=2, pairs=68, run_seed=7)
    test = [case for case in found.cases if case.split == "test"]
    assert Counter(case.group for case in test) == {"t1-t2": 34, "t2-t1": 34}
    assert len({(case.subject, case.moving_subject, case.group) for case in test}) == 68
    validation = [case for case in found.cases if case.split == "validation"]
    assert len(names_in(validation)) == 2
    assert len(validation) == 4
    assert not names_in(test) & names_in(validation)


@given(st.integers(2, 9), st.integers(0, 3), st.integers(0, 3), st.one_of(st.just("all"), st.integers(0, 12)), st.booleans(), st.integers(0, 2**31))
def test_splits_never_share_a_subject_and_counts_are_as_told(test_subjects, hold_out, train, pairs, intra, seed):
    count = test_subjects + hold_out + train
    possible = 2 * test_subjects * (test_subjects - 1)
    settings = {"hold_out": hold_out, "train": train, "pairs": pairs, "intra": intra, "run_seed": seed}
    if pairs != "all" and (pairs + 1) // 2 > possible // 2:
        with pytest.raises(ConcordError, match=f"at most {possible} exist"):
            paired(count, **settings)
        return
    cases, left_out = paired(count, **settings)
    by_split = {split: [case for case in cases if case.split == split] for split in ("train", "validation", "test")}
    used = [names_in(of_split) for of_split in by_split.values()]
    assert sum(map(len, used)) == len(set().union(*used))
    assert len(by_split["test"]) == (possible if pairs == "all" else pairs) + 2 * test_subjects * intra
    assert len({case.case for case in cases}) == len(cases)
    assert all((case.moving_subject == "") == (case.fixed.parent == case.moving.parent) for case in cases)
    assert not {row.subject for row in left_out} & names_in(cases)


def test_the_same_seed_gives_the_same_pairs_whatever_the_order_of_the_subjects():
    settings = PairedDataset(hold_out=3, pairs=20, seed=5)
    forwards = settings.pair_up(subjects_of(12), Run(seed=1))
    assert settings.pair_up(subjects_of(12)[::-1], Run(seed=2)) == forwards
    assert paired(12, hold_out=3, pairs=20, run_seed=5) == forwards
    assert paired(12, hold_out=3, pairs=20, run_seed=6) != forwards


def test_who_is_held_out_depends_on_the_seed():
    held_out = {tuple(sorted(names_in(c for c in paired(12, hold_out=2, run_seed=seed).cases if c.split == "validation"))) for seed in range(8)}
    assert len(held_out) > 4


def test_an_odd_number_of_pairs_gives_the_first_direction_one_more():
    assert Counter(case.group for case in paired(5, pairs=7).cases) == {"t1-t2": 4, "t2-t1": 3}


def test_every_pair_of_different_modalities_is_a_direction_unless_named():
    assert PairedDataset(modalities=["t1", "t2", "pd"]).all_directions() == [(f, m) for f in ("t1", "t2", "pd") for m in ("t1", "t2", "pd") if f != m]
    assert PairedDataset(modalities=["t2"]).all_directions() == [("t2", "t2")]
    assert PairedDataset(modalities=["t1", "t2"], directions=["t1-t1"]).all_directions() == [("t1", "t1")]
    assert PairedDataset(modalities=["dwi-b0", "t1"], directions=["dwi-b0-t1"]).all_directions() == [("dwi-b0", "t1")]


def test_within_a_subject_an_image_is_not_registered_to_itself():
    cases = paired(2, pairs=0, intra=True, directions=["t1-t1", "t1-t2"]).cases
    assert [(case.subject, case.moving_subject, case.group) for case in cases] == [("s000", "", "t1-t2"), ("s001", "", "t1-t2")]


def test_a_held_out_subject_without_partner_is_told():
    found = paired(4, hold_out=1)
    assert len(found.left_out) == 1
    assert "alone in the validation split" in found.left_out[0].reason
    assert found.left_out[0].subject not in names_in(found.cases)


def test_too_few_subjects_and_too_many_cases_are_refused():
    with pytest.raises(ConcordError, match="3 subjects with hold_out 2 and train 0; expected at least 2 more"):
        paired(3, hold_out=2)
    with pytest.raises(ConcordError, match=f"pairs: all makes 29524 test cases; expected at most {MOST_CASES}"):
        paired(122)


def test_cases_survive_their_table(tmp_path):
    cases = paired(3, intra=True).cases
    write_cases(cases, tmp_path / "cases.csv")
    assert read_cases(tmp_path / "cases.csv") == cases


def test_names_that_no_file_should_have_are_cleaned():
    assert identifier("Müller, A/1_t1") == "M-ller-A-1_t1"
    assert identifier("..x") == "x"
    assert identifier("///") == "case"


@given(st.lists(st.sampled_from(["DCM", "HCM", "NOR"]), min_size=1, max_size=60), st.integers(1, 12), st.integers(0, 99))
def test_folds_are_even_over_subjects_and_over_groups(groups, folds, seed):
    by_subject = {f"p{number}": group for number, group in enumerate(groups)}
    fold = folds_of(by_subject, folds, seed)
    assert set(fold) == set(by_subject)
    assert set(fold.values()) == set(range(min(folds, len(groups))))
    for members in [list(by_subject), *([s for s in by_subject if by_subject[s] == group] for group in set(groups))]:
        counts = [sum(fold[s] == number for s in members) for number in set(fold.values())]
        assert max(counts) - min(counts) <= 1


def test_folds_depend_on_the_seed_alone_and_zero_means_none():
    groups = {f"p{number}": "NOR" for number in range(20)}
    assert folds_of(groups, 5, 1) == folds_of(dict(reversed(groups.items())), 5, 1) != folds_of(groups, 5, 2)
    assert set(folds_of(groups, 0, 1).values()) == {None}
