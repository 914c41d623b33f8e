"""Cardiac phantoms as a data set: groups in turn, folds as in ACDC, true transforms, nothing made twice."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pipeline.datasets import cardiac_phantom
from pipeline.datasets.keeping import subject_seed
from pipeline.datasets.phantoms.cardiac import GROUPS, make_subject
from pipeline.datasets.registry import create_dataset
from pipeline.methods import Run
from pipeline.transform_files import read_transform
from pipeline.volumes import read_volume

SMALL = {"subjects": 7, "size": 48, "slices": 2, "spacing_mm": 4.0, "direction": "both", "folds": 3}


def dataset(**settings):
    return create_dataset("cardiac-phantom", {**SMALL, **settings})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hearts")
    return folder, dataset().cases(folder, Run(seed=4))


def test_subjects_are_spread_evenly_over_the_groups(made):
    _, (cases, left_out) = made
    groups = {case.subject: case.group for case in cases}
    assert Counter(groups.values()) == Counter({group: 2 if number < 2 else 1 for number, group in enumerate(GROUPS)})
    assert (len(cases), left_out) == (14, [])


def test_a_subject_stays_in_one_fold_and_folds_are_even(made):
    _, (cases, _) = made
    fold = {case.subject: case.fold for case in cases}
    assert all(case.fold == fold[case.subject] for case in cases)
    assert sorted(Counter(fold.values()).values()) == [2, 2, 3]


def test_fewer_subjects_than_folds_is_one_fold_a_subject(made):
    folder, _ = made
    assert sorted(case.fold for case in dataset(subjects=4, folds=10, direction="ed-es").cases(folder, Run(seed=4)).cases) == [0, 1, 2, 3]


def test_files_hold_what_the_phantom_made(made):
    _, (cases, _) = made
    case = next(case for case in cases if case.case == "sub-003_ES-ED")
    heart = make_subject(dataset().phantom(), subject_seed(4, 2), GROUPS[2])
    for path, array in (
        (case.fixed, heart.images["ES"]),
        (case.moving, heart.images["ED"]),
        (case.fixed_labels, heart.labels["ES"]),
        (case.moving_labels, heart.labels["ED"]),
    ):
        assert np.array_equal(read_volume(path).array, array)
        assert read_volume(path).geometry.matches(heart.geometry)
    truth = read_transform(case.true_transform).displacement_mm(heart.geometry)
    assert np.allclose(truth, heart.true_displacement_mm("ES", "ED"), atol=1e-5)


def test_nothing_is_made_twice_and_what_is_missing_is_made_again(made, monkeypatch):
    folder, found = made
    calls = []
    monkeypatch.setattr(cardiac_phantom, "make_subject", lambda *given: calls.append(given[2]) or make_subject(*given))
    assert dataset().cases(folder, Run(seed=4)) == found
    assert calls == []
    (folder / "sub-002_true_ED-ES.h5").unlink()
    assert dataset().cases(folder, Run(seed=4)) == found
    assert calls == [GROUPS[1]]


def test_more_subjects_leave_the_first_ones_as_they_are(made, monkeypatch):
    folder, _ = made
    calls = []
    monkeypatch.setattr(cardiac_phantom, "make_subject", lambda *given: calls.append(given[2]) or make_subject(*given))
    assert len(dataset(subjects=8).cases(folder, Run(seed=4)).cases) == 16
    assert calls == [GROUPS[2]]


def test_another_setting_or_another_code_makes_the_subjects_again(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(cardiac_phantom, "make_subject", lambda *given: calls.append(given[2]) or make_subject(*given))
    dataset(subjects=1).cases(tmp_path, Run())
    dataset(subjects=1, noise=20.0).cases(tmp_path, Run())
    monkeypatch.setattr(cardiac_phantom, "code_digest", lambda prefix: "changed")
    dataset(subjects=1, noise=20.0).cases(tmp_path, Run())
    assert len(calls) == 3
