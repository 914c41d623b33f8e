"""Cases that a patch metric is fitted to: aligned ones, a modality a channel, from files without ITK."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from pipeline.cases import Case, write_cases
from pipeline.errors import ConcordError
from pipeline.learned.aligned_cases import first_pairs, modalities_of, read_pairs, turned
from pipeline.learned.patch_metric import fit_to_cases
from pipeline.learned.patch_pairs import AlignedPair
from pipeline.learned.settings.patch_metric import PatchMetricFit, PatchPairSettings
from pipeline.methods import Run
from pipeline.volumes import Geometry, Volume, write_volume

GEOMETRY = Geometry.regular((22, 20, 21))


def case_of(folder, name, *, split="train", moving=None, fixed=None):
    rng = np.random.default_rng(len(name))
    volumes = {"fixed": fixed, "moving": moving}
    for role, given in volumes.items():
        volume = given or Volume(rng.normal(size=GEOMETRY.shape).astype(np.float32), GEOMETRY)
        write_volume(volume, folder / f"{name}_{role}.mha")
    return Case(case=name, fixed=folder / f"{name}_fixed.mha", moving=folder / f"{name}_moving.mha", subject=name, split=split)


def test_pairs_are_the_cases_of_the_split(tmp_path):
    cases = [case_of(tmp_path, "c1"), case_of(tmp_path, "case2", split="validation"), case_of(tmp_path, "c03")]
    pairs = read_pairs(cases, "train")
    assert [pair.name for pair in pairs] == ["c1", "c03"]
    assert pairs[0].a.shape == GEOMETRY.shape and not np.array_equal(pairs[0].a, pairs[0].b)
    assert [name for name, _ in pairs[0].files] == ["c1_fixed.mha", "c1_moving.mha"] and len(pairs[0].files[0][1]) == 64
    with pytest.raises(ConcordError, match="no case of split 'test'"):
        read_pairs(cases, "test")


def test_pairs_on_two_grids_are_refused(tmp_path):
    other = Geometry.regular((22, 20, 18))
    moving = Volume(np.random.default_rng(0).normal(size=other.shape).astype(np.float32), other)
    with pytest.raises(ConcordError, match=r"case c1: fixed \(22, 20, 21\) and moving \(22, 20, 18\).*resample the moving one"):
        read_pairs([case_of(tmp_path, "c1", moving=moving)], "train")
    moved = Volume(np.random.default_rng(0).normal(size=GEOMETRY.shape).astype(np.float32), Geometry.regular(GEOMETRY.size, 1.0, (0.0, 0.0, 0.0)))
    with pytest.raises(ConcordError, match="different grids"):
        read_pairs([case_of(tmp_path, "c2", moving=moved)], "train")


@pytest.mark.parametrize("role", ["fixed", "moving"])
def test_constant_images_are_refused(tmp_path, role):
    flat = {role: Volume(np.full(GEOMETRY.shape, 3, np.int16), GEOMETRY)}
    with pytest.raises(ConcordError, match=f"case c1: .*c1_{role}.mha is constant"):
        read_pairs([case_of(tmp_path, "c1", **flat)], "train")


def test_smaller_choices_of_pairs_are_part_of_larger_ones():
    pairs = [AlignedPair(np.eye(8) + i, np.eye(8) - i, f"p{i}") for i in range(6)]
    names = [[pair.name for pair in first_pairs(pairs, count, seed=2)] for count in (2, 4, 6)]
    assert names[1][:2] == names[0] and names[2][:4] == names[1] and sorted(names[2]) == [pair.name for pair in pairs]
    assert first_pairs(pairs, "all", seed=2) == pairs
    with pytest.raises(ConcordError, match="7 of 6 training pairs"):
        first_pairs(pairs, 7, seed=2)


def test_fitting_from_files_needs_no_itk(tmp_path):
    case = case_of(tmp_path, "c1")
    script = f"""
import sys
from pathlib import Path
from pipeline.cases import Case
from pipeline.learned.aligned_cases import read_pairs
from pipeline.learned.patch_metric import fit_patch_metric, load_patch_metric
from pipeline.learned.settings.patch_metric import PatchMetricFit
pairs = read_pairs([Case(case="c1", fixed=Path({str(case.fixed)!r}), moving=Path({str(case.moving)!r}), subject="c1", split="train")], "train")
settings = PatchMetricFit(configuration="tiny", steps=1, sampler={{"batch": 2}}, device="cpu")
fit_patch_metric(pairs, [], settings, seed=0, threads=1, out=Path({str(tmp_path)!r}) / "net")
load_patch_metric(Path({str(tmp_path)!r}) / "net")
import metrics.similarity.patch_cnn
sys.exit("itk or pandas was imported" if {{"itk", "pandas"}} & {{name.split(".")[0] for name in sys.modules}} else 0)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path.parents[0])


def named(case: Case, fixed: str, moving: str) -> Case:
    return case.model_copy(update={"fixed_modality": fixed, "moving_modality": moving})


def test_a_channel_is_a_modality_whatever_the_direction_of_the_case(tmp_path):
    straight = named(case_of(tmp_path, "c1"), "t1", "t2")
    back = named(case_of(tmp_path, "case2"), "t2", "t1")
    again = back.model_copy(update={"case": "back", "fixed": straight.moving, "moving": straight.fixed})
    assert modalities_of([back, straight]) == ("t1", "t2")
    found = turned([straight, back, again], ("t1", "t2"))
    assert [(case.fixed, case.moving) for case in found] == [(straight.fixed, straight.moving), (back.moving, back.fixed)]


@pytest.mark.parametrize("names", [("t1", "t1"), ("t1", ""), ("", "")])
def test_other_than_two_modalities_are_refused(tmp_path, names):
    with pytest.raises(ConcordError, match="compares two modalities"):
        modalities_of([named(case_of(tmp_path, "c1"), *names)])


def test_only_aligned_cases_are_fitted_to_and_none_is_an_error(tmp_path):
    settings = PatchMetricFit(configuration="tiny", steps=1, sampler=PatchPairSettings(batch=4), validation_patches=4)
    cases = [named(case_of(tmp_path, "c1"), "t1", "t2"), named(case_of(tmp_path, "case2"), "t1", "t2").model_copy(update={"moving_subject": "other"})]
    write_cases(cases, tmp_path / "cases.csv")
    card = fit_to_cases(settings, tmp_path / "cases.csv", run=Run(seed=1), out=tmp_path / "metric.safetensors")
    assert [pair["name"] for pair in card["data"]["train"]] == ["c1"]
    assert card["channels"] == ["t1", "t2"]
    write_cases(cases[1:], tmp_path / "cases.csv")
    with pytest.raises(ConcordError, match=r"no aligned case of split train.*intra"):
        fit_to_cases(settings, tmp_path / "cases.csv", run=Run(), out=tmp_path / "other.safetensors")
