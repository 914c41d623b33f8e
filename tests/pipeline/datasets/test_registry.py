"""The table of readers: every name leads to a class, and bad settings are told in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.datasets.registry import DATASETS, Dataset, create_dataset, dataset_class
from pipeline.errors import ConcordError

NEEDED = {"table": {"file": "cases.csv"}, "brain-phantom": {}, "cardiac-phantom": {}, "mr-trus-phantom": {}}


@pytest.mark.parametrize("name", DATASETS)
def test_every_reader_describes_every_setting_and_survives_json(name):
    chosen = dataset_class(name)
    assert issubclass(chosen, Dataset)
    undescribed = [key for key, field in chosen.model_fields.items() if not field.description]
    assert not undescribed
    made = create_dataset(name, NEEDED.get(name, {"root": "data"}))
    assert create_dataset(name, made.model_dump(mode="json")) == made


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("adcd", {}, "no reader 'adcd'; did you mean 'acdc'?"),
        ("acdc", {}, "datasets.acdc.root: missing"),
        ("acdc", {"root": "x", "fold": 3}, "datasets.acdc.fold: unknown key; did you mean 'folds'?"),
        ("acdc", {"root": "x", "direction": "es"}, "datasets.acdc.direction: 'es' is not valid"),
        ("acdc", {"root": "x", "subjects": 0}, "datasets.acdc.subjects: 0 is not valid; expected a number of subjects"),
        ("brats", {"root": "x", "pairs": "some"}, "datasets.brats.pairs: 'some' is not valid; expected 'all' or a number"),
        ("brats", {"root": "x", "pairs": -1}, "datasets.brats.pairs: -1 is not valid"),
        ("brats", {"root": "x", "modalities": ["t1", "t9"]}, "datasets.brats.modalities: no 't9'; choose from t1, t1ce, t2, flair"),
        ("brats", {"root": "x", "directions": ["t2-flair"]}, "datasets.brats.directions: 't2-flair' is none"),
        ("alberts", {"root": "x", "modalities": ["pd"]}, "datasets.alberts.images: no pattern for modality 'pd'"),
        ("alberts", {"root": "x", "label_maps": "seg.nii"}, "datasets.alberts.label_maps: 'seg.nii' is no pattern"),
        ("brainweb", {"root": "x", "noise": 2}, "datasets.brainweb.noise: 2 is not valid"),
        ("ixi", {"root": "x", "sites": ["Paris"]}, "datasets.ixi.sites.0: 'Paris' is not valid"),
        ("brain-phantom", {"spacing_mm": 99.0}, "spacing_mm 99.0; expected 0.5 to 8"),
        ("cardiac-phantom", {"noise": -1.0}, "expected none below zero"),
    ],
)
def test_a_bad_setting_is_told_in_one_line_with_what_is_valid(name, settings, told):
    with pytest.raises(ConcordError) as caught:
        create_dataset(name, settings)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_key_that_an_error_names_can_be_given():
    with pytest.raises(ConcordError, match=r"^datasets\.mine\.root: missing"):
        create_dataset("ixi", {}, where="datasets.mine")
    with pytest.raises(ConcordError, match=r"^datasets\.mine\.reader: no reader 'nix'"):
        create_dataset("nix", {}, where="datasets.mine")


@pytest.mark.parametrize("name", sorted(set(DATASETS) - set(NEEDED)))
def test_a_missing_root_is_told_with_its_path_the_layout_and_the_remedy(name, tmp_path):
    with pytest.raises(ConcordError) as caught:
        create_dataset(name, {"root": str(tmp_path / "nowhere")}).cases(tmp_path, None)
    assert all(part in str(caught.value) for part in (str(tmp_path / "nowhere"), "expected", "correct `root`"))


@pytest.mark.parametrize("name", sorted(set(DATASETS) - set(NEEDED)))
def test_a_root_without_the_layout_is_told_with_its_path_and_the_layout(name, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ConcordError, match=r"no usable subject.*; expected .*: correct `root`"):
        create_dataset(name, {"root": str(tmp_path)}).cases(tmp_path, None)


def test_readers_load_without_itk_or_torch():
    code = (
        "import sys; from pipeline.datasets.registry import DATASETS, dataset_class; [dataset_class(n) for n in DATASETS];"
        "print([m for m in ('itk', 'torch', 'nibabel', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
