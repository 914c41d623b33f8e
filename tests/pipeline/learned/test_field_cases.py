"""Who is held out, and how pairs of images are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from field_examples import SIZE, pair_arrays, written_cases

from pipeline.cases import Case, read_cases
from pipeline.errors import ConcordError
from pipeline.learned.field_cases import divided, named, read_field_cases, scaled
from pipeline.volumes import Geometry, Volume, write_volume


def case(name, subject, **more):
    files = {"fixed": Path(f"{name}-a.mha"), "moving": Path(f"{name}-b.mha")}
    return Case(**({"case": name, "subject": subject} | files | more))


def table(subjects=10, slices=3, **more):
    return [case(f"s{k}-{z}", f"s{k}", group="AB"[k % 2], **more) for k in range(subjects) for z in range(slices)]


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
@pytest.mark.parametrize("own", [False, True])
def test_every_subject_is_held_out_once_with_all_its_slices_and_never_on_both_sides(folds, own):
    cases = table()
    if own:
        cases = [one.model_copy(update={"fold": int(one.subject[1:])}) for one in cases]
    held = []
    for fold in range(folds):
        train, held_out = divided(cases, folds=folds, fold=fold, seed=3)
        assert not named(train) & named(held_out)
        assert len(train) + len(held_out) == len(cases)
        assert len(held_out) == 3 * len(named(held_out))
        held += sorted(named(held_out))
    assert sorted(held) == sorted(named(cases))


def test_drawn_folds_follow_the_seed_and_mix_the_groups():
    def held(seed):
        return [sorted(named(divided(table(), folds=5, fold=fold, seed=seed)[1])) for fold in range(5)]

    assert held(1) == held(1) != held(2)
    assert all({int(name[1:]) % 2 for name in names} == {0, 1} for names in held(1))


def test_the_cases_own_folds_are_used():
    cases = [one.model_copy(update={"fold": 7 if one.subject in ("s1", "s4") else 2}) for one in table()]
    assert named(divided(cases, folds=10, fold=7, seed=0)[1]) == {"s1", "s4"}


def test_without_a_fold_the_splits_count():
    cases = [one.model_copy(update={"split": {"s0": "validation", "s1": "test"}.get(one.subject, "train")}) for one in table(4)]
    train, held_out = divided(cases, folds=10, fold=None, seed=0)
    assert (named(train), named(held_out)) == ({"s2", "s3"}, {"s0"})


def test_a_pair_in_both_directions_is_one_pair():
    there = case("a", "s0", split="train")
    back = there.model_copy(update={"case": "b", "fixed": there.moving, "moving": there.fixed})
    assert divided([there, back], folds=2, fold=None, seed=0)[0] == [there]


def test_pairs_of_a_held_out_subject_and_another_are_in_neither():
    mixed = case("mixed", "s0", moving_subject="s1")
    cases = [*table(4, 1), mixed]
    for fold in range(2):
        train, held_out = divided(cases, folds=2, fold=fold, seed=0)
        assert not named(train) & named(held_out)
        same = (mixed in train) or (mixed in held_out)
        assert same == ({"s0", "s1"} <= named(train) or {"s0", "s1"} <= named(held_out))


@pytest.mark.parametrize(
    ("cases", "fold", "told"),
    [
        (table(3), 9, "fold 9: no subject is in it; expected one of .0, 1, 2."),
        (table(1), 0, "no case to train on"),
        (table(2), None, "set fold"),
        ([*table(2, 1, split="train"), case("x", "s1", split="validation")], None, "subjects s1: to train on and held out"),
        ([case("a", "s0", fold=1), case("b", "s0", fold=2)], 1, "expected one"),
    ],
)
def test_tables_that_cannot_be_divided_are_told(cases, fold, told):
    with pytest.raises(ConcordError, match=told) as caught:
        divided(cases, folds=10, fold=fold, seed=0)
    assert "\n" not in str(caught.value)


def test_images_come_scaled_with_their_labels_where_asked_for(tmp_path):
    cases = read_cases(written_cases(tmp_path, {"s0": 2}))
    images, labels = pair_arrays(1)
    plain, known = (read_field_cases(cases, labels=labels)[1] for labels in (False, True))
    assert plain.labels is None and [name for name, _ in plain.files] == ["1-fixed.mha", "1-moving.mha"]
    np.testing.assert_allclose(known.images, images, atol=1e-6)
    np.testing.assert_array_equal(known.labels, labels)
    assert len(known.files) == 4


def test_scaling_is_slice_by_slice_and_a_constant_slice_is_zero():
    array = np.stack([np.full((4, 5), 7.0), np.arange(20.0).reshape(4, 5), 3 + 2 * np.arange(20.0).reshape(4, 5)])
    found = scaled(Volume(array, Geometry.regular((5, 4, 3))))
    assert found.dtype == np.float32 and not found[0].any()
    np.testing.assert_allclose(found[1], found[2])
    assert (found[1].min(), found[1].max()) == (0, 1)


def test_volumes_are_read_where_they_are_asked_for_and_scaled_as_a_whole(tmp_path):
    array = np.stack([np.full((4, 5), 2.0), np.arange(20.0).reshape(4, 5)]).astype(np.float32)
    write_volume(Volume(array, Geometry.regular((5, 4, 2), (1.0, 1.0, 1.0)), "v"), tmp_path / "v.mha")
    (found,) = read_field_cases([case("v", "s", fixed=tmp_path / "v.mha", moving=tmp_path / "v.mha")], labels=False, volumes=True)
    np.testing.assert_allclose(found.images, np.stack([array / 19] * 2), rtol=1e-6)


def test_bad_images_are_refused(tmp_path):
    cases = read_cases(written_cases(tmp_path, {"s0": 2}))

    def told(update, word):
        with pytest.raises(ConcordError, match=word):
            read_field_cases([cases[0], cases[1].model_copy(update=update)], labels=True)

    def file(name, array, spacing=(1.5, 2.0)):
        write_volume(Volume(array, Geometry.regular(array.shape[::-1], spacing[: array.ndim] + (1.0,) * (array.ndim - 2)), name), tmp_path / name)
        return tmp_path / name

    y, x = SIZE[::-1]
    ramp = np.arange(y * x, dtype=np.float32).reshape(y, x)
    told({"fixed": file("flat.mha", np.zeros((y, x), np.float32))}, "constant")
    told({"fixed": file("stack.mha", ramp[None].repeat(2, 0))}, "3-D; expected 2-D")
    told({"fixed": file("other.mha", ramp, (1.0, 1.0))}, "different grids")
    told({"fixed_labels": file("labels.mha", np.zeros((4, 4), np.uint8))}, "not on the grid")
    small = file("small.mha", ramp[:8, :8].copy())
    told({"fixed": small, "moving": small, "fixed_labels": None}, "8x8 voxels, s0_z00 has 20x16")


def test_reading_and_fitting_need_no_itk():
    code = "import sys, pipeline.learned.field, pipeline.learned.field_method; sys.exit('itk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
