"""ACDC: the official layout and its traps; file names only, so the files are empty."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from pipeline.datasets.acdc import evenly
from pipeline.datasets.registry import create_dataset
from pipeline.errors import ConcordError
from pipeline.methods import Run

DATA = Path(os.environ.get("CONCORD_TEST_DATA", Path(__file__).resolve().parents[3] / "../shared/data")) / "acdc"
GROUPS = ("DCM", "HCM", "MINF", "NOR", "RV")


def make_patient(folder: Path, number: int, *, ed: int = 1, es: int = 12, group: str = "DCM") -> Path:
    patient = folder / f"patient{number:03d}"
    patient.mkdir(parents=True)
    patient.joinpath("Info.cfg").write_text(f"ED: {ed}\nES: {es}\nGroup: {group}\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n")
    for frame in (ed, es):
        for ending in ("", "_gt"):
            (patient / f"{patient.name}_frame{frame:02d}{ending}.nii.gz").touch()
    (patient / f"{patient.name}_4d.nii.gz").touch()
    return patient


def cases_of(root: Path, run_seed: int = 0, **settings):
    return create_dataset("acdc", {"root": str(root), **settings}).cases(root / "unused", Run(seed=run_seed))


def test_a_patient_gives_one_case_with_its_diagnosis_and_label_maps(tmp_path):
    patient = make_patient(tmp_path / "training", 1, group="HCM")
    cases, left_out = cases_of(tmp_path)
    (case,) = cases
    assert (case.case, case.subject, case.group, case.split, case.fold) == ("patient001_ED-ES", "patient001", "HCM", "test", 0)
    assert (case.fixed, case.moving) == (patient / "patient001_frame01.nii.gz", patient / "patient001_frame12.nii.gz")
    assert (case.fixed_labels, case.moving_labels) == (patient / "patient001_frame01_gt.nii.gz", patient / "patient001_frame12_gt.nii.gz")
    assert left_out == []
    assert not (tmp_path / "unused").exists()


def test_phases_come_from_info_cfg_and_not_from_the_order_of_files(tmp_path):
    make_patient(tmp_path, 1, ed=10, es=4)
    (case,) = cases_of(tmp_path).cases
    assert (case.fixed.name, case.moving.name) == ("patient001_frame10.nii.gz", "patient001_frame04.nii.gz")


def test_directions_swap_fixed_and_moving_and_stay_in_one_fold(tmp_path):
    for number in range(1, 13):
        make_patient(tmp_path, number)
    one, other = cases_of(tmp_path, direction="ed-es").cases[0], cases_of(tmp_path, direction="es-ed").cases[0]
    assert (one.fixed, one.fixed_labels) == (other.moving, other.moving_labels)
    both = cases_of(tmp_path, direction="both", folds=5).cases
    assert [case.case for case in both[:2]] == ["patient001_ED-ES", "patient001_ES-ED"]
    assert all(len({case.fold for case in both if case.subject == name}) == 1 for name in {case.subject for case in both})


@pytest.mark.parametrize("place", ["", "training", "database/training", "database"])
def test_patients_are_found_at_every_place_where_archives_put_them(tmp_path, place):
    make_patient(tmp_path / place, 3)
    assert [case.subject for case in cases_of(tmp_path).cases] == ["patient003"]


def test_the_training_part_is_the_default_by_folder_or_by_number(tmp_path):
    make_patient(tmp_path / "a/training", 7)
    make_patient(tmp_path / "a/testing", 101)
    make_patient(tmp_path / "b", 100)
    make_patient(tmp_path / "b", 101)
    assert [case.subject for case in cases_of(tmp_path / "a").cases] == ["patient007"]
    assert [case.subject for case in cases_of(tmp_path / "a", part="testing").cases] == ["patient101"]
    assert [case.subject for case in cases_of(tmp_path / "b").cases] == ["patient100"]
    assert len(cases_of(tmp_path / "b", part="all").cases) == 2
    with pytest.raises(ConcordError, match="set `part: all`"):
        cases_of(tmp_path / "a/testing")


def test_what_is_missing_leaves_the_patient_out_by_name(tmp_path):
    make_patient(tmp_path, 1)
    (make_patient(tmp_path, 2) / "Info.cfg").unlink()
    (make_patient(tmp_path, 3) / "patient003_frame12.nii.gz").unlink()
    (make_patient(tmp_path, 4) / "patient004_frame01_gt.nii.gz").unlink()
    make_patient(tmp_path, 5).joinpath("Info.cfg").write_text("ED: 1\nGroup: NOR\n")
    make_patient(tmp_path, 6).joinpath("Info.cfg").write_text("ED: one\nES: 12\n")
    cases, left_out = cases_of(tmp_path)
    assert [case.subject for case in cases] == ["patient001"]
    reasons = dict(left_out)
    assert sorted(reasons) == [f"patient00{number}" for number in range(2, 7)]
    for name, told in (("2", "no such file"), ("3", "frame12.nii.gz"), ("4", "frame01_gt.nii.gz"), ("5", "ES is None"), ("6", "ED is 'one'")):
        assert told in reasons[f"patient00{name}"]


def test_a_patient_in_two_places_counts_once_and_is_told(tmp_path):
    make_patient(tmp_path / "training", 1)
    make_patient(tmp_path / "database/training", 1)
    cases, left_out = cases_of(tmp_path)
    assert len(cases) == 1
    assert cases[0].fixed.is_relative_to(tmp_path / "training")
    assert "stands twice" in left_out[0].reason


def test_a_number_of_subjects_takes_from_every_diagnosis_and_a_list_is_kept(tmp_path):
    for number in range(20):
        make_patient(tmp_path, number + 1, group=GROUPS[number // 4])
    assert Counter(case.group for case in cases_of(tmp_path, subjects=10).cases) == dict.fromkeys(GROUPS, 2)
    assert [case.subject[-2:] for case in cases_of(tmp_path, subjects=10).cases] == ["01", "02", "05", "06", "09", "10", "13", "14", "17", "18"]
    assert [case.subject for case in cases_of(tmp_path, subjects=["patient009", "patient002"]).cases] == ["patient002", "patient009"]
    with pytest.raises(ConcordError, match="no subject 'patient9'"):
        cases_of(tmp_path, subjects=["patient9"])


def test_any_beginning_of_the_even_order_is_even():
    assert evenly({"a": "x", "b": "x", "c": "x", "d": "y", "e": "z"}) == ["a", "d", "e", "b", "c"]


def test_folds_come_from_the_seed(tmp_path):
    for number in range(20):
        make_patient(tmp_path, number + 1)
    folds = [[case.fold for case in cases_of(tmp_path, run_seed, **settings).cases] for run_seed, settings in ((1, {}), (2, {}), (9, {"seed": 1}))]
    assert folds[0] == folds[2] != folds[1]
    assert Counter(folds[0]) == dict.fromkeys(range(10), 2)


def test_uncompressed_files_are_taken_too_and_windows_line_ends_do_no_harm(tmp_path):
    patient = make_patient(tmp_path, 1)
    for path in patient.glob("*.nii.gz"):
        path.rename(path.with_suffix(""))
    patient.joinpath("Info.cfg").write_bytes(b"ED: 1\r\nES: 12\r\nGroup: RV\r\n")
    (case,) = cases_of(tmp_path).cases
    assert (case.fixed.name, case.group) == ("patient001_frame01.nii", "RV")


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="no ACDC volumes; set CONCORD_TEST_DATA to their folder")
def test_sixty_real_patients_give_sixty_cases_over_five_groups_and_ten_folds():
    cases, left_out = cases_of(DATA)
    assert (len(cases), left_out) == (60, [])
    assert Counter(case.group for case in cases) == dict.fromkeys(GROUPS, 12)
    assert Counter(case.fold for case in cases) == dict.fromkeys(range(10), 6)
    assert all(path.is_file() for case in cases for path in case.paths.values())
    from pipeline.volumes import read_volume

    grids = [read_volume(path).geometry for path in cases[0].paths.values()]
    assert all(grid.matches(grids[0]) for grid in grids)
