"""config.yaml: the project's own is valid at every scale, and every mistake is one line with key, value and choices."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.cases import Case
from pipeline.config import json_schema, load_config, parse_config
from pipeline.config_content import SCALES, at_scale, content_at
from pipeline.errors import ConcordError

ROOT = Path(__file__).parents[2]
CARDIAC = ["dice", "uiqi", "ssim", "folding", "displacement_error_mm", "seconds", "inference_ms", "parameters", "fixed_volume_ml", "warped_volume_ml"]
"""Measures of the cardiac study, without one that its clinical read-outs need."""


@functools.cache
def loaded() -> dict:
    return yaml.safe_load((ROOT / "config.yaml").read_text())


def own_config() -> dict:
    return copy.deepcopy(loaded())


@pytest.mark.parametrize("scale", SCALES)
def test_the_projects_own_config_is_valid_at_every_scale(scale):
    assert load_config(ROOT / "config.yaml", scale=scale).scale == scale


def test_it_is_checked_without_loading_itk_or_torch():
    code = (
        "import sys; from pathlib import Path; from pipeline.config import load_config; load_config(Path('config.yaml'));"
        "print([m for m in ('itk', 'torch', 'nibabel', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_schema_in_the_project_is_the_one_of_the_code():
    stored = json.loads((ROOT / "workflow" / "schemas" / "config.schema.json").read_text())
    assert stored == json_schema(), "run: concord schema > workflow/schemas/config.schema.json"
    stored = json.loads((ROOT / "workflow" / "schemas" / "cases.schema.json").read_text())
    assert stored == Case.model_json_schema(), "run: concord schema --cases > workflow/schemas/cases.schema.json"


def test_every_key_is_described():
    def described(node):
        for name, key in node.get("properties", {}).items():
            assert key.get("description"), name
        for inner in node.get("$defs", {}).values():
            described(inner)

    schema = json_schema()
    described(schema)
    for group in ("x-methods", "x-datasets", "x-learners"):
        for inner in schema[group].values():
            described(inner)


def changed(path: str, value) -> dict:
    """The project's config at a scale that has what is changed, with one key changed."""
    content = {**own_config(), "scale": "smoke"}
    *parents, last = path.split("/")
    node = content
    for part in parents:
        node = node[part]
    node[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("scale", "desktop", "scale: 'desktop'.*smoke, laptop, paper"),
        ("seeds", 1, "seeds: unknown key; did you mean 'seed'"),
        ("threads", 0, "threads: 0 is not valid"),
        ("threads", "two", "threads: 'two' is not valid"),
        ("methods/mi", {"bin": 3}, "methods.mi.bin: unknown key; did you mean 'bins'"),
        ("methods/mi", {"bins": "many"}, "methods.mi.bins: 'many' is not valid"),
        ("methods/vit", {}, "no method 'vit'"),
        ("methods/cnn-discrete/discrete", {"step": 1}, "methods.cnn-discrete.discrete.step: unknown key; did you mean 'step_vx'"),
        ("fits/metric-all/sampler", {"bach": 1}, "sampler.bach: unknown key; did you mean 'batch'"),
        ("datasets/brain-neonate", {"reader": "brain-fantom"}, "did you mean 'brain-phantom'"),
        ("datasets/brain-neonate", {"population": "adult"}, "reader: missing"),
        ("datasets/brain-neonate", {"reader": "brain-phantom", "subject": 3}, "subject: unknown key; did you mean 'subjects'"),
        ("datasets/brain-contrasts/of", "brain-adul", "datasets.brain-contrasts.of: no 'brain-adul'; did you mean 'brain-adult'"),
        ("datasets/brain-contrasts/of", "brain-contrasts", "is made of another dataset itself"),
        ("datasets/brain-contrasts/per_maps", 2, "per_maps: unknown key; did you mean 'per_map'"),
        ("studies/cardiac/dataset", "acds", "studies.cardiac.dataset: no 'acds'; did you mean 'acdc'"),
        ("studies/cardiac/dataset", "acdc", "data/ACDC"),
        ("studies/cardiac/methods", ["identity", "daemons"], "studies.cardiac.methods: no 'daemons'; did you mean 'demons'"),
        ("studies/cardiac/measures", ["dise"], "studies.cardiac.measures: no 'dise'; did you mean 'dice'"),
        ("studies/cardiac/prepare/region", 0.3, "a slice has no box of its own"),
        ("studies/cardiac/prepare/slice", "labelled", "studies.cardiac.prepare.slice: unknown key; did you mean 'slices'"),
        ("studies/cardiac/comparison/reference", "symgn", "studies.cardiac.comparison.reference: no 'symgn'"),
        ("studies/prostate/comparison/pairs", [["attention-1", "attention-3"]], "comparison.pairs: no 'attention-3'; did you mean"),
        ("studies/prostate/comparison/measures", ["sr_mm@8mm"], "comparison.measures: no 'sr_mm'; did you mean 'sre_mm'"),
        ("studies/prostate/comparison", {"measures": ["dice"]}, "studies.prostate.comparison.*neither reference nor pairs"),
        ("studies/prostate/figures/uncertainty/against", "spread", "figures.uncertainty.against: no 'spread'; did you mean 'spread_mm'"),
        ("studies/cardiac/pictures/methods", ["symgn"], "studies.cardiac.pictures.methods: no 'symgn'"),
        ("studies/cardiac/figures/figure-4/kind", "pie", "studies.cardiac.figures.figure-4.kind: 'pie'"),
        ("studies/cardiac/tables/table-breakdown/columns", ["dise"], "no 'dise'"),
        ("studies/cardiac/tables/table-methods/row", ["mi"], "row: unknown key; did you mean 'rows'"),
        ("studies/cardiac/batches", {"laptop": 1}, "studies.cardiac.batches: no value at scale 'smoke'"),
        ("studies/cardiac", None, "studies.cardiac"),
        ("methods/cnn-all/fit", "metric-al", "methods.cnn-all.fit: no 'metric-al'; did you mean 'metric-all'"),
        ("fits/metric-all/learner", "patch-metrics", "fits.metric-all.learner: no learner 'patch-metrics'; did you mean 'patch-metric'"),
        ("fits/metric-all/step", 3, "fits.metric-all.step: unknown key; did you mean 'steps'"),
        ("fits/metric-all/dataset", "brain-adul", "fits.metric-all.dataset: no 'brain-adul'; did you mean 'brain-adult'"),
        ("fits/metric-all/dataset", "ixi", "data/IXI"),
        ("studies/deep-metric/landscapes/figure-3/methods", ["ncc"], "landscapes.figure-3.methods: no 'ncc'"),
        ("studies/prostate/attention/figure-4/method", "attention-3", "prostate.attention.figure-4.method: no 'attention-3'; did you mean"),
        (
            "studies/prostate/attention/figure-4/method",
            "rigid-mi",
            "'rigid-mi': its use is rigid-mi, its fit none.*expected .* network attention-reg",
        ),
        ("studies/prostate/attention/figure-4/method", "feature-1", "its fit feature-stage-1, a network feature-reg; expected .* attention-reg"),
        ("studies/prostate/attention/figure-4/without", "attention-1", "figure-4.without: 'attention-1': .* fit of network feature-reg"),
        ("studies/prostate/attention/figure-4/point", [1, 2, 3], "attention.figure-4.point: unknown key; did you mean 'point_mm'"),
        ("studies/cardiac/deformations/figure-5/methods", ["resat"], "cardiac.deformations.figure-5.methods: no 'resat'; did you mean 'resatt'"),
        ("studies/cardiac/deformations/figure-5/cases", "a", "deformations.figure-5.cases: unknown key; did you mean 'case'"),
        ("studies/translation/translated/figure-4/methods", ["ours"], "translated.figure-4.methods: no 'ours'"),
        ("studies/translation/parts/figure-5/method", "ours-nm", "parts.figure-5.method: no 'ours-nm'; did you mean 'ours-nmi'"),
        (
            "studies/translation/parts/figure-5/method",
            "syn-slices",
            "'syn-slices': its use is syn, its fit none; expected a method of use translation",
        ),
        ("studies/translation/deformations/figure-2/image", "fixed", "deformations.figure-2.image: 'fixed' is not valid"),
        ("studies/cardiac/clinical/read-outs/methods", ["resat"], "cardiac.clinical.read-outs.*(no 'resat'|no 'demons')"),
        ("studies/cardiac/clinical/read-outs/drawn", ["cnn-all"], "clinical.read-outs.*drawn: no 'cnn-all'"),
        ("studies/cardiac/clinical/read-outs/cavities", 1, "clinical.read-outs.cavities: unknown key; did you mean 'cavity'"),
        ("studies/cardiac/measures", CARDIAC, "clinical.read-outs: made of .*; expected moving_volume_ml among the study's measures: dice"),
        ("fits/resatt/study", "cardiak", "fits.resatt-fold-0.study: no 'cardiak'; did you mean 'cardiac'"),
        ("fits/resatt/study", "", "fits.resatt-fold-0.*expected either dataset or study"),
        ("fits/resatt/dataset", "acdc", "fits.resatt-fold-0.*expected either dataset or study"),
        ("fits/resatt/folds", 1, "fits.resatt.folds: 1 is not valid"),
        ("fits/resatt/folds", "five", "fits.resatt.folds: 'five' is not valid"),
        ("fits/resatt/fold", 5, "fits.resatt.*fold 5: expected one of 0 to 1"),
        ("fits/resatt/epoch", 1, "fits.resatt-fold-0.epoch: unknown key; did you mean 'epochs'"),
        ("fits/resatt-fold-1", {"learner": "field-network", "study": "cardiac"}, "fits.resatt-fold-1: there twice, once as a fold"),
        (
            "fits/attention-stage-2/warm_start",
            "attention-stag-1",
            "attention-stage-2.warm_start: no 'attention-stag-1'; did you mean 'attention-stage-1'",
        ),
        ("fits/attention-stage-2/warm_start", ["attention-stage-1"], "attention-stage-2.warm_start: no .*attention-stage-1"),
        ("fits/attention-stage-1/warm_start", "attention-stage-2", "attention-stage-1 <- attention-stage-2 <- attention-stage-1; expected a fit"),
        ("fits/metric-all/warm_start", "attention-stage-1", "fits.metric-all.warm_start: unknown key"),
        ("methods/resatt/fit", "resat", "methods.resatt.fit: no 'resat'; did you mean 'resatt"),
    ],
)
def test_a_mistake_is_told_in_one_line(path, value, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConcordError, match=told) as caught:
        parse_config(changed(path, value))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_config_are_refused(tmp_path):
    for name, content in {"absent.yaml": None, "broken.yaml": "a: [1", "list.yaml": "- 1"}.items():
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(ConcordError, match=name):
            load_config(tmp_path / name)


def test_scales_choose_values_at_any_depth():
    content = {"a": {"smoke": 1, "laptop": {"b": {"smoke": 2, "laptop": 3}}}, "c": [{"smoke": 4, "laptop": 5}], "d": {}}
    assert at_scale(content, "laptop") == {"a": {"b": 3}, "c": [5], "d": {}}


def test_settings_come_with_their_defaults_as_plain_json():
    config = load_config(ROOT / "config.yaml")
    assert config.method("mi-masked")["mask_threshold"] == 0.1
    assert config.method("mi-masked")["use"] == "mi-masked"
    assert json.loads(json.dumps(config.dataset("brain-neonate")))["population"] == "neonate"
    assert config.fit("metric-all")["pairs"] == "all"
    assert config.fit("metric-all")["momentum"] == 0.9
    assert config.fits_of("cnn-all") == ("metric-all",)
    assert config.fits_of("mi") == ()
    assert "fit" not in config.method("cnn-all")


def with_fits(**fits) -> dict:
    """The project's config with methods `net` and `both` of these fits beside its own."""
    content = own_config()
    content["fits"] |= {name: {"learner": "field-network", "study": "cardiac", **more} for name, more in fits.items()}
    content["methods"]["net"] = {"use": "resatt", "fit": next(iter(fits))}
    content["methods"]["both"] = {"use": "resatt", "fit": list(fits)}
    return content


def test_a_fit_with_folds_becomes_one_a_fold_in_their_order_and_its_method_takes_them_all():
    config = parse_config(with_fits(a={"folds": 11, "epochs": 3}, b={"folds": 2}))
    of_a = tuple(f"a-fold-{fold}" for fold in range(11))
    assert config.fits_of("net") == of_a
    assert config.fits_of("both") == (*of_a, "b-fold-0", "b-fold-1")
    assert "a" not in config.fits
    assert [config.fit(name)["fold"] for name in of_a] == list(range(11))
    assert {(config.fit(name)["folds"], config.fit(name)["epochs"]) for name in of_a} == {(11, 3)}


@pytest.mark.parametrize("chosen", [{"folds": 3, "fold": 1}, {"folds": 3, "fold": None}, {}])
def test_a_fit_that_names_its_fold_or_no_folds_stays_one(chosen):
    config = parse_config(with_fits(a=chosen))
    assert config.fits_of("net") == ("a",)
    assert config.fit("a")["fold"] == chosen.get("fold")


def test_a_fold_belongs_to_the_fit_whose_whole_name_stands_before_it():
    config = parse_config(with_fits(a={"folds": 2}, **{"a-fold": {"folds": 2}, "a-r1": {"folds": 2}}))
    assert config.fits_of("net") == ("a-fold-0", "a-fold-1")


def test_a_study_is_there_at_its_scales_alone_with_its_fits_and_their_methods():
    content = own_config()
    for name in ("cardiac", "cardiac-stacks"):
        content["studies"][name]["scales"] = ["smoke"]
    config = parse_config({**content, "scale": "laptop"})
    assert not {"cardiac", "cardiac-stacks"} & config.studies.keys() and "prostate" in config.studies
    assert not any(name.startswith("resatt") for name in (*config.fits, *config.methods)) and "attention-1" in config.methods
    assert "cardiac" in parse_config({**content, "scale": "smoke"}).studies


def test_what_a_fit_is_for_goes_with_it_but_for_rows_with_published_figures():
    content = {
        "fits": {"a": {"scales": ["paper"]}, "b": {"scales": ["smoke", "paper"]}, "c": {}, "d": {"warm_start": "a"}},
        "methods": {"x": {"fit": "a"}, "y": {"fit": ["c", "b"]}, "z": {"fit": "c"}, "w": {"scales": ["laptop"]}},
        "studies": {
            "one": {
                "methods": ["x", "y", "z", "w"],
                "comparison": {"pairs": [["x", "z"], ["z", "w"], ["y", "z"]]},
                "tables": {"t": {"rows": ["x", "y", "z"], "published": {"x": {"dice": "1"}}}},
                "figures": {"f": {"methods": ["y", "z"]}},
            }
        },
    }
    found = content_at(content, "laptop")
    assert found["fits"] == {"c": {}} and found["methods"] == {"z": {"fit": "c"}, "w": {}}
    assert found["studies"]["one"] == {
        "methods": ["z", "w"],
        "comparison": {"pairs": [["z", "w"]]},
        "tables": {"t": {"rows": ["x", "z"], "published": {"x": {"dice": "1"}}}},
        "figures": {"f": {"methods": ["z"]}},
    }
    assert content_at(content, "paper")["studies"]["one"]["methods"] == ["x", "y", "z"]


@pytest.mark.parametrize("scales", ["laptop", [], ["lap"], None, 3])
def test_scales_that_are_none_are_refused(scales):
    with pytest.raises(ConcordError, match=r"config\.yaml\.fits\.a\.scales: .* expected a list of some of smoke, laptop, paper"):
        content_at({"fits": {"a": {"scales": scales}}}, "smoke")


def test_a_second_stage_begins_with_the_weights_of_the_first_but_at_scale_paper():
    short, whole = (parse_config({**own_config(), "scale": scale}) for scale in ("laptop", "paper"))
    assert short.fit("attention-stage-2")["warm_start"] == "results/laptop/weights/attention-stage-1.safetensors"
    assert whole.fit("attention-stage-2")["warm_start"] is None and whole.warm_start_of("attention-stage-2") is None


def test_a_value_without_the_scale_is_refused():
    with pytest.raises(ConcordError, match=r"seed: no value at scale 'paper'"):
        content_at({"seed": {"smoke": 1, "laptop": 2}}, "paper")


def test_a_scale_chooses_the_number_of_folds_before_they_are_made():
    content = with_fits(a={"folds": {"smoke": 2, "laptop": 3, "paper": 4}})
    for scale, folds in (("smoke", 2), ("laptop", 3), ("paper", 4)):
        assert len(parse_config({**content, "scale": scale}).fits_of("net")) == folds


def test_a_fit_reads_the_cases_of_its_dataset_or_the_prepared_ones_of_its_study():
    config = parse_config({**own_config(), "scale": "smoke"})
    assert config.source_of_fit("resatt-fold-0") == "results/smoke/cardiac/prepared"
    assert config.source_of_fit("metric-all") == "results/smoke/datasets/brain-adult"


def test_the_weights_of_the_regulariser_are_those_of_the_paper_below_scale_paper_four_times_as_large():
    for scale, factor in (("smoke", 4), ("laptop", 4), ("paper", 1)):
        config = load_config(ROOT / "config.yaml", scale=scale)
        rows = [row for row in config.studies["cardiac"].tables["table-1"].rows if row in config.methods]
        weights = [config.fit(config.fits_of(row)[0])["gradient_weight"] / factor for row in rows]
        assert weights == pytest.approx([150] if scale == "smoke" else [0.15, 1.5, 15, 150, 1500])
