"""Label maps as a data set: aligned pairs, splits by map, files made once, bad maps left out by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.cases import Case, write_cases
from pipeline.datasets.labelmaps import _content_sha256
from pipeline.datasets.registry import create_dataset
from pipeline.errors import ConcordError
from pipeline.methods import Run
from pipeline.transform_files import read_transform
from pipeline.volumes import Geometry, Volume, read_volume, write_volume

OBLIQUE = Geometry((14, 12, 10), (1.0, 1.5, 2.0), (5.0, -7.0, 3.0), ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))


def head(seed: int = 0, shape: tuple[int, ...] = OBLIQUE.shape, dtype: type = np.int16) -> np.ndarray:
    """Three labels in a box, its border drawn from the seed."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype)
    inner = tuple(slice(int(rng.integers(1, 3)), -int(rng.integers(1, 3))) for _ in shape)
    labels[inner] = 3
    labels[inner][..., : shape[-1] // 2] = 42
    labels[inner][..., : shape[-1] // 4] = 7
    return labels


def stored(root: Path, name: str, array: np.ndarray, geometry: Geometry | None = None) -> Path:
    write_volume(Volume(array, geometry or Geometry.regular(array.shape[::-1])), root / name)
    return root / name


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "maps"
    folder.mkdir()
    for number in range(1, 5):
        stored(folder, f"head_{number:02d}.mha", head(number), OBLIQUE)
    return folder


def found_in(root: Path, *, seed: int = 1, **settings):
    return create_dataset("labelmaps", {"root": str(root), **settings}).cases(root.parent / "made", Run(seed=seed))


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_label_maps_of_a_table_of_cases_do_as_well_as_a_folder(root):
    by_folder, _ = found_in(root, per_map=1)
    rows = [
        Case(case=f"{n}-{side}", fixed="f.mha", moving="m.mha", subject=f"head_{n:02d}", fixed_labels=root / f"head_{n:02d}.mha")
        for n in range(1, 5)
        for side in "ab"
    ]
    write_cases(rows, root / "cases.csv")
    by_cases, _ = found_in(root / "cases.csv", per_map=1)
    assert [case.case for case in by_cases] == [case.case for case in by_folder]
    for one, other in zip(by_folder, by_cases, strict=True):
        np.testing.assert_array_equal(read_volume(one.fixed).array, read_volume(other.fixed).array)
    write_cases([row.model_copy(update={"fixed_labels": None}) for row in rows], root / "cases.csv")
    with pytest.raises(ConcordError, match="no case has fixed_labels"):
        found_in(root / "cases.csv")


class TestCases:
    def test_a_pair_is_an_aligned_case_of_two_synthetic_modalities(self, root):
        cases, left_out = found_in(root, per_map=2)
        assert [case.case for case in cases[:3]] == ["head_01_01", "head_01_02", "head_02_01"]
        assert (len(cases), left_out) == (8, [])
        assert {(c.fixed_modality, c.moving_modality, c.moving_subject) for c in cases} == {("synthetic-a", "synthetic-b", "")}
        assert [c.subject for c in cases[::2]] == ["head_01", "head_02", "head_03", "head_04"]
        assert len({path for case in cases for path in (case.fixed, case.moving)}) == 16
        np.testing.assert_allclose(read_transform(cases[0].true_transform).points(np.array([[1.0, 2.0, 3.0]])), [[1, 2, 3]])

    def test_images_and_labels_lie_on_the_grid_of_the_map(self, root):
        case = found_in(root, per_map=1).cases[0]
        for path in (case.fixed, case.moving, case.fixed_labels, case.moving_labels):
            assert path.suffix == ".mha"
            assert read_volume(path).geometry.matches(OBLIQUE)
        np.testing.assert_array_equal(read_volume(case.fixed_labels).array, head(1))

    def test_without_faults_both_images_show_the_labels_in_different_contrasts(self, root):
        none = {"texture": [0, 0], "merge_share": 0, "point_spread_mm": [0, 0], "thick_share": 0, "bias": [0, 0], "noise": [0, 0]}
        case = found_in(root, per_map=1, images=none).cases[0]
        labels, a, b = (read_volume(path).array for path in (case.fixed_labels, case.fixed, case.moving))
        for image in (a, b):
            assert [len(np.unique(image[labels == label])) for label in (0, 3, 7, 42)] == [1] * 4
        assert (a != b).any()

    def test_another_spacing_keeps_the_box_and_the_labels(self, root):
        case = found_in(root, per_map=1, spacing_mm=3.0).cases[0]
        labels = read_volume(case.fixed_labels)
        assert labels.geometry.matches(OBLIQUE.with_spacing(3.0))
        assert read_volume(case.fixed).geometry.matches(labels.geometry)
        # the value at each new centre is that of the voxel in which it lies
        inside = np.floor(OBLIQUE.index_at(labels.geometry.grid_points()) + 0.5 + 1e-6).astype(int)
        np.testing.assert_array_equal(labels.array, head(1)[tuple(np.moveaxis(inside, -1, 0)[::-1])])

    def test_a_margin_cuts_the_air_off_and_leaves_everything_in_its_place(self, tmp_path):
        (tmp_path / "maps").mkdir()
        labels = np.zeros((20, 24, 28), np.uint8)
        labels[8:12, 6:9, 20:27] = 1
        geometry = Geometry.regular((28, 24, 20), (1.0, 2.0, 1.0))
        stored(tmp_path / "maps", "a.mha", labels, geometry)
        made = read_volume(found_in(tmp_path / "maps", per_map=1, margin_mm=3).cases[0].fixed_labels)
        # 3 mm are 3, 2 and 3 voxels, and one at the end of x, where there is no more
        assert made.geometry.matches(geometry.cropped((17, 4, 5), (28, 11, 15)))
        np.testing.assert_array_equal(made.array, labels[5:15, 4:11, 17:28])

    def test_two_dimensional_maps_make_two_dimensional_pairs(self, tmp_path):
        (tmp_path / "maps").mkdir()
        stored(tmp_path / "maps", "slice.mha", head(1, (20, 24)))
        case = found_in(tmp_path / "maps", per_map=1).cases[0]
        assert read_volume(case.fixed).array.shape == (20, 24)
        assert read_transform(case.true_transform).dimension == 2


class TestSplits:
    def test_no_map_stands_in_two_splits(self, root):
        cases = found_in(root, per_map=3, hold_out=1, train=2).cases
        by_split = {split: {c.subject for c in cases if c.split == split} for split in ("train", "validation", "test")}
        assert {split: len(names) for split, names in by_split.items()} == {"train": 2, "validation": 1, "test": 1}
        assert len(set().union(*by_split.values())) == 4

    def test_all_that_are_not_held_out_train_where_nothing_is_said(self, root):
        splits = [case.split for case in found_in(root, per_map=1, hold_out=1).cases]
        assert sorted(splits) == ["train"] * 3 + ["validation"]

    def test_the_seed_draws_who_is_held_out(self, root):
        held = {next(c.subject for c in found_in(root, seed=seed, per_map=1, hold_out=1).cases if c.split == "validation") for seed in range(8)}
        assert len(held) > 1

    @pytest.mark.parametrize("counts", [{"hold_out": 5}, {"hold_out": 2, "train": 3}])
    def test_too_few_maps_are_told_with_the_numbers(self, root, counts):
        with pytest.raises(ConcordError, match=r"^4 label maps with hold_out \d and train .*: add maps or lower"):
            found_in(root, per_map=1, **counts)


class TestKeeping:
    def test_a_second_run_makes_nothing_again(self, root):
        first = found_in(root, per_map=2)
        before = stamps(root.parent / "made")
        assert found_in(root, per_map=2) == first
        assert stamps(root.parent / "made") == before

    def test_more_pairs_leave_those_that_are_there(self, root):
        found_in(root, per_map=1)
        before = stamps(root.parent / "made")
        found_in(root, per_map=3)
        after = stamps(root.parent / "made")
        assert before.items() < after.items()
        assert {name for name in after if name.endswith("_03_a.mha")} == {f"head_{n:02d}_03_a.mha" for n in range(1, 5)}

    def test_a_lost_file_is_made_again_to_the_bit_and_no_other(self, root):
        case = found_in(root, per_map=2).cases[1]
        before, content = stamps(root.parent / "made"), case.moving.read_bytes()
        case.moving.unlink()
        found_in(root, per_map=2)
        assert case.moving.read_bytes() == content
        changed = {name for name, stamp in stamps(root.parent / "made").items() if before[name] != stamp}
        assert changed == {"head_01_02_a.mha", "head_01_02_b.mha", "head_01_02.json"}

    @pytest.mark.parametrize(
        ("change", "labels_too"), [({"seed": 2}, False), ({"images": {"noise": [0.2, 0.2]}}, False), ({"spacing_mm": 3.0}, True)]
    )
    def test_another_setting_makes_other_files(self, root, change, labels_too):
        case = found_in(root, per_map=1).cases[0]
        image, labels = case.fixed.read_bytes(), case.fixed_labels.read_bytes()
        found_in(root, per_map=1, **change)
        assert case.fixed.read_bytes() != image
        assert (case.fixed_labels.read_bytes() != labels) == labels_too

    def test_a_changed_map_makes_other_files(self, root):
        case = found_in(root, per_map=1).cases[0]
        image = case.fixed.read_bytes()
        stored(root, "head_01.mha", head(1)[:, :, ::-1], OBLIQUE)
        found_in(root, per_map=1)
        assert case.fixed.read_bytes() != image
        np.testing.assert_array_equal(read_volume(case.fixed_labels).array, head(1)[:, :, ::-1])

    def test_changed_samples_beside_an_unchanged_header_are_another_map(self, tmp_path):
        header, samples = tmp_path / "a[1].mhd", tmp_path / "a[1].raw"
        header.write_text("ElementDataFile = a[1].raw\n")
        seen = set()
        for content in (b"1", b"2", b"1"):
            samples.write_bytes(content)
            seen.add(_content_sha256(header))
        assert len(seen) == 2

    def test_a_map_has_the_same_images_whatever_maps_stand_beside_it(self, root):
        content = found_in(root, per_map=1).cases[2].fixed.read_bytes()
        for name in ("head_01", "head_02"):
            (root / f"{name}.mha").unlink()
        for path in (root.parent / "made").iterdir():
            path.unlink()
        assert found_in(root, per_map=1).cases[0].fixed.read_bytes() == content

    def test_a_run_that_dies_leaves_no_half_file_and_is_gone_on_from(self, root, monkeypatch):
        from pipeline.datasets import labelmaps

        whole = {case.fixed.name: case.fixed.read_bytes() for case in found_in(root, per_map=2).cases}
        for path in (root.parent / "made").iterdir():
            path.unlink()
        written, write = [], labelmaps.write_volume

        def dying(volume, path):
            if len(written) == 4:
                raise KeyboardInterrupt
            written.append(path.name)
            write(volume, path)

        monkeypatch.setattr(labelmaps, "write_volume", dying)
        with pytest.raises(KeyboardInterrupt):
            found_in(root, per_map=2)
        assert not list((root.parent / "made").glob(".part-*"))
        assert not (root.parent / "made" / "head_01_02.json").exists()
        monkeypatch.undo()
        assert {case.fixed.name: case.fixed.read_bytes() for case in found_in(root, per_map=2).cases} == whole


class TestFiles:
    def test_whole_numbers_as_floats_are_labels(self, root):
        stored(root, "float.mha", head(1, dtype=np.float32), OBLIQUE)
        cases = {case.subject: case for case in found_in(root, per_map=1).cases}
        made = read_volume(cases["float"].fixed_labels).array
        assert made.dtype.kind == "i"
        np.testing.assert_array_equal(made, head(1))

    def test_bad_maps_are_left_out_by_name_with_the_reason(self, root):
        import nibabel

        nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4, 3), np.int16), np.eye(4)), root / "four.nii.gz")
        stored(root, "constant.mha", np.full((4, 5, 6), 3, np.int16))
        stored(root, "fraction.mha", np.linspace(0, 2, 120, dtype=np.float32).reshape(4, 5, 6))
        stored(root, "negative.mha", head(1) - 1)
        stored(root, "image.mha", np.arange(2000, dtype=np.int16).reshape(10, 20, 10))
        (root / "broken.mha").write_bytes((root / "head_01.mha").read_bytes()[:-100])
        (root / "text.nii.gz").write_text("no image")
        cases, left_out = found_in(root, per_map=1)
        assert {case.subject for case in cases} == {f"head_{n:02d}" for n in range(1, 5)}
        reasons = dict(left_out)
        expected = {
            "four": "4-D",
            "constant": "every sample is 3",
            "fraction": "118 samples are no whole numbers",
            "negative": "from -1 to 41",
            "image": "2000 different values",
            "broken": "truncated",
            "text": "not a NIfTI",
        }
        assert set(reasons) == set(expected)
        for name, told in expected.items():
            assert told in reasons[name]
            assert "\n" not in reasons[name]

    def test_a_grid_of_one_voxel_is_no_grid(self, root):
        with pytest.raises(ConcordError, match=r"no usable subject \(head_01: .*lower spacing_mm"):
            found_in(root, spacing_mm=500.0)

    def test_a_number_of_subjects_skips_bad_maps_and_names_choose(self, root):
        stored(root, "a_bad_one.mha", np.zeros((4, 4, 4), np.uint8))
        cases, left_out = found_in(root, per_map=1, subjects=2)
        assert ([c.subject for c in cases], [row.subject for row in left_out]) == (["head_01", "head_02"], ["a_bad_one"])
        cases, left_out = found_in(root, per_map=1, subjects=["head_03"])
        assert ([c.subject for c in cases], left_out) == (["head_03"], [])
        with pytest.raises(ConcordError, match=r"no subject 'head_9'; did you mean 'head_0"):
            found_in(root, subjects=["head_9"])

    def test_a_pattern_finds_maps_in_folders_and_two_of_one_name_are_told(self, tmp_path):
        for name in ("a/seg.mha", "b/seg.mha"):
            (tmp_path / "maps" / name).parent.mkdir(parents=True)
            stored(tmp_path / "maps", name, head(1))
        stored(tmp_path / "maps", "a/t1.mha", np.arange(2000, dtype=np.int16).reshape(10, 20, 10))
        cases, left_out = found_in(tmp_path / "maps", per_map=1, pattern="{subject}/seg.mha")
        assert ([c.subject for c in cases], left_out) == (["a", "b"], [])
        with pytest.raises(ConcordError, match=r"seg: 2 files \(a/seg.mha, b/seg.mha\); expected one"):
            found_in(tmp_path / "maps", per_map=1, pattern="**/{subject}", subjects=["seg"])

    def test_a_pattern_without_a_name_is_told(self, root):
        with pytest.raises(ConcordError, match=r"^pattern: '\*\.mha' names no map; expected \{subject\}"):
            found_in(root, pattern="*.mha")

    def test_names_that_differ_in_signs_alone_are_told(self, root):
        stored(root, "head 9.mha", head(1))
        stored(root, "head+9.mha", head(2))
        assert dict(found_in(root, per_map=1).left_out) == {"head-9": "2 files (head 9.mha, head+9.mha); expected one"}

    def test_a_contrast_that_shows_nothing_is_told(self, root):
        flat = {"mean": [0, 0], "texture": [0, 0], "noise": [0, 0]}
        with pytest.raises(ConcordError, match=r"pair 1 came out constant; widen `images.mean`"):
            found_in(root, images=flat)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"per_map": 0}, "datasets.labelmaps.per_map: 0 is not valid"),
        ({"spacing_mm": 0}, "datasets.labelmaps.spacing_mm: 0 is not valid"),
        ({"images": {"noise": [0.2, 0.1]}}, "datasets.labelmaps.images.noise: [0.2, 0.1] is not valid"),
        ({"images": {"nose": [0, 0.1]}}, "datasets.labelmaps.images.nose: unknown key"),
    ],
)
def test_a_bad_setting_is_told_by_its_key(settings, told):
    with pytest.raises(ConcordError) as caught:
        create_dataset("labelmaps", {"root": "x", **settings})
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_patch_metric_is_fitted_to_them_without_itk(root):
    """The whole way: cases, table, a step of the fit; a fit that had to import ITK would fail here."""
    write_cases(found_in(root, per_map=2, hold_out=1, spacing_mm=1.0).cases, root.parent / "cases.csv")
    code = f"""
import sys; sys.modules["itk"] = None
from pathlib import Path
from pipeline.learned.patch_metric import fit_to_cases
from pipeline.learned.settings.patch_metric import PatchMetricFit
from pipeline.methods import Run
settings = PatchMetricFit(configuration="tiny", steps=2, sampler={{"batch": 4, "swap_channels": True}}, validation_every=2, validation_patches=8)
card = fit_to_cases(settings, Path({str(root.parent / "cases.csv")!r}), run=Run(seed=1), out=Path({str(root.parent / "weights")!r}))
import json; print(json.dumps([card["channels"], [len(card["data"][split]) for split in ("train", "validation")]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == [["synthetic-a", "synthetic-b"], [6, 2]]


@pytest.mark.realdata
def test_pairs_of_real_heads_share_their_edges_and_not_their_contrast(real_data, tmp_path):
    cases, left_out = create_dataset("labelmaps", {"root": str(real_data / "labelmaps"), "subjects": 2, "per_map": 3, "spacing_mm": 4.0}).cases(
        tmp_path, Run(seed=1)
    )
    assert (len(cases), left_out) == (6, [])
    correlations, aligned, apart = [], [], []
    for case in cases:
        a, b, labels = (read_volume(path).array for path in (case.fixed, case.moving, case.fixed_labels))
        assert a.shape == (64, 64, 64)
        assert len(np.unique(labels)) > 40
        edges = [np.linalg.norm(np.gradient(image.astype(float)), axis=0)[labels > 0] for image in (a, b)]
        moved = np.linalg.norm(np.gradient(np.roll(b, 4, axis=(0, 1, 2)).astype(float)), axis=0)[labels > 0]
        aligned.append(np.corrcoef(*edges)[0, 1])
        apart.append(np.corrcoef(edges[0], moved)[0, 1])
        correlations.append(np.corrcoef(a[labels > 0], b[labels > 0])[0, 1])
    assert np.mean(aligned) > np.mean(apart) + 0.15
    assert np.ptp(correlations) > 0.3


EXACT = {"texture": (0, 0), "merge_share": 1.0, "point_spread_mm": (0, 0), "thick_share": 0.0, "gamma": (1, 1), "bias": (0, 0), "noise": (0, 0)}
"""Images without any fault."""


class TestTissues:
    def test_images_are_a_t1_and_a_t2_of_the_named_tissues_and_the_rest_is_dark(self, root):
        tissues = {"csf": (3,), "white": (42,), "fat": (99,)}  # label 7 is of no tissue, and 99 does not occur
        case = found_in(root, per_map=1, tissues=tissues, images=EXACT, subjects=1).cases[0]
        assert (case.fixed_modality, case.moving_modality, case.group) == ("t1", "t2", "t1-t2")
        labels = read_volume(case.fixed_labels).array
        # spin echoes of 400 and 10 ms and of 4000 and 100 ms, water and white matter of the BrainWeb simulator, the brightest is the scale
        signals = {
            name: {label: pd * (1 - np.exp(-tr / t1)) * np.exp(-te / t2) for label, pd, t1, t2 in ((3, 1.0, 2569, 329), (42, 0.77, 500, 70))}
            for name, tr, te in (("fixed", 400, 10), ("moving", 4000, 100))
        }
        for name, expected in signals.items():
            image = read_volume(getattr(case, name)).array
            brightest = max(expected.values())
            for label, signal in expected.items():
                np.testing.assert_allclose(image[labels == label], 4095 * signal / brightest, atol=1)
            assert not image[np.isin(labels, (0, 7))].any()

    def test_another_tissue_makes_the_images_anew(self, root):
        first = found_in(root, per_map=1, tissues={"csf": (3,), "white": (42,)}).cases[0]
        before = read_volume(first.moving).array
        assert (read_volume(found_in(root, per_map=1, tissues={"white": (3,), "csf": (42,)}).cases[0].moving).array != before).any()

    def test_a_label_of_two_tissues_is_refused(self, root):
        with pytest.raises(ConcordError, match=r"labels \[3\] in two of them"):
            found_in(root, tissues={"csf": (3, 7), "white": (42, 3)})

    def test_slices_of_real_anatomies_are_cut_like_others(self, root, tmp_path):
        cases, _ = found_in(root, per_map=1, tissues={"csf": (3,), "white": (42, 7)}, images=EXACT)
        write_cases(cases, tmp_path / "cases.csv")
        cut = create_dataset(
            "slices", {"root": str(tmp_path / "cases.csv"), "size": (12, 12), "slices": 2, "hold_out": 1, "train": 2, "min_share": 0}
        )
        assert {case.fixed_modality + case.moving_modality for case in cut.cases(tmp_path / "cut", Run()).cases} == {"t1t2"}
