"""The figure of attention from files: its case, its point in both volumes, its maps, and what it says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rigid_examples import FIXED, TINY, truth_of, volumes, written_case

from nets.rigid_networks import build
from pipeline.attention import AttentionSettings, attention_figure, chosen_case
from pipeline.cases import Case
from pipeline.errors import ConcordError
from pipeline.learned.rigid import ARCHITECTURE
from pipeline.learned.rigid_attention import load_sample
from pipeline.learned.rigid_method import RigidNetwork
from pipeline.learned.weights import save_weights
from pipeline.region import region_mask
from pipeline.registration import load_pair
from pipeline.rigid_motion import linear_of, motion_matrix
from pipeline.transform_files import write_transform
from pipeline.volumes import write_volume

OFF = motion_matrix(np.array([2.0, -3.0, 1.0, 3.0, -2.0, 4.0]), FIXED.centre_mm)
SHOWN = AttentionSettings(title="What it looks at", method="network")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Weights of both kinds of network, fitted to nothing."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("attention-reg", "feature-reg"):
        torch.manual_seed(6)
        network = build(name, TINY.grid)
        save_weights(folder / name, dict(network.state_dict()), {"architecture": ARCHITECTURE, "network": name, **TINY.card()})
    return folder


@pytest.fixture(scope="module")
def case(folder) -> Case:
    """A test case with a region as its mask, and a start of a few mm from the truth."""
    known = written_case(folder, 2, "test")
    fixed, _, labels, _ = volumes(2)
    write_volume(region_mask(labels, 0.3), folder / "region.mha")
    write_transform(linear_of(truth_of(2) @ OFF, fixed.geometry.centre_mm), folder / "start.tfm")
    return known.model_copy(update={"fixed_mask": folder / "region.mha", "start_transform": folder / "start.tfm", "start": "8mm"})


def methods(folder: Path, *names: str) -> list[RigidNetwork]:
    return [RigidNetwork(weights=(folder / f"{name}.safetensors",), enlarge=0, device="cpu") for name in names]


@pytest.fixture
def drawn(monkeypatch) -> dict:
    """What would be drawn."""
    kept: dict = {}
    monkeypatch.setattr("pipeline.figures.attention.draw_attention", lambda overlays, header: kept.update(overlays=overlays, header=header))
    return kept


def test_slices_pass_through_the_glands_centre_and_its_true_counterpart(folder, case, drawn):
    attention_figure(SHOWN, methods(folder, "attention-reg"), [case])
    points = {overlay.name.split()[-1]: overlay.point_mm for overlay in drawn["overlays"]}
    assert points["MR"] == pytest.approx(FIXED.centre_mm, abs=0.3)
    # S(q) = T(p) with S = T M: q = inv(M)(p)
    assert points["TRUS"] == pytest.approx(np.linalg.inv(OFF)[:3] @ np.append(points["MR"], 1), abs=1e-6)
    assert np.linalg.norm(points["TRUS"] - points["MR"]) > 2


def test_images_lie_as_the_network_meets_them_and_only_known_glands_are_outlined(folder, case, drawn):
    attention_figure(SHOWN, methods(folder, "attention-reg"), [case])
    sample = load_sample(folder / "attention-reg.safetensors", load_pair(case), truth_of(2) @ OFF)
    region = sample.case.region
    for overlay, channel in zip(drawn["overlays"], sample.volumes[0].numpy(), strict=False):
        at_voxels = np.round(overlay.image.geometry.index_at(region.grid_points())).astype(int)
        here = overlay.image.array[tuple(np.moveaxis(at_voxels, -1, 0)[::-1])]
        assert np.corrcoef(here.ravel(), channel.ravel())[0, 1] > 0.97
    assert overlay.image.geometry.spacing_mm == pytest.approx((0.5, 0.5, 0.5), rel=0.05)
    assert [overlay.outline is not None for overlay in drawn["overlays"]] == [True, False, False, True]


def test_grad_cam_is_in_percent_of_its_largest_value_and_attention_of_its_sum(folder, case, drawn):
    attention_figure(SHOWN, methods(folder, "attention-reg", "feature-reg"), [case])
    names = [overlay.name for overlay in drawn["overlays"]]
    assert names == [
        "Grad-CAM in MR, attention",
        "Grad-CAM in TRUS, attention",
        "Grad-CAM in MR, no attention",
        "Grad-CAM in TRUS, no attention",
        "MR point looks in TRUS",
        "TRUS point looks in MR",
    ]
    maps = {overlay.name: overlay for overlay in drawn["overlays"]}
    cam = maps["Grad-CAM in MR, attention"]
    assert cam.kind == "cam" and cam.heat.max() == pytest.approx(100, rel=0.05) and cam.heat.min() >= 0
    inside = cam.heat[cam.outline].sum() / cam.heat.sum()
    assert cam.note == f"{inside:.0%} inside the gland ({cam.outline.mean():.0%} of the box)"
    row = maps["TRUS point looks in MR"]
    assert row.kind == "attention" and 100 / 216 <= row.heat.max() <= 100
    assert row.note.endswith("mm)") and "mm from + on average (even: " in row.note


def test_the_header_says_which_network_case_start_and_grid(folder, case, drawn):
    attention_figure(SHOWN, methods(folder, "attention-reg"), [case], source="phantoms, scale smoke")
    title, who, what, marks = drawn["header"]
    assert title == "What it looks at"
    assert who == "Network of network (first stage); case case-2, start 8mm, phantoms, scale smoke"
    assert "24 × 24 × 12 voxels" in what and "6 × 6 × 6 places" in what
    assert "true counterpart" in marks and "mm of the MR" in marks


def test_a_network_that_sees_labels_is_shown_on_the_image_and_told(folder, case, drawn):
    network = build("attention-reg", TINY.grid)
    save_weights(
        folder / "label", dict(network.state_dict()), {"architecture": ARCHITECTURE, "network": "attention-reg", **TINY.card(), "input": "label"}
    )
    attention_figure(SHOWN, methods(folder, "label"), [case])
    assert drawn["header"][2].startswith("Input: this box of the MR gland's label map and TRUS")
    assert len(np.unique(drawn["overlays"][0].image.array)) > 100
    seen = load_sample(folder / "label.safetensors", load_pair(case, labels=True), np.eye(4)).volumes[0, 0]
    assert seen.min() == 0 and seen.max() == 1 and ((seen == 0) | (seen == 1)).double().mean() > 0.8
    with pytest.raises(ConcordError, match="no label map; expected the organ's"):
        attention_figure(SHOWN, methods(folder, "label"), [case.model_copy(update={"fixed_labels": None})])


def test_without_a_truth_the_same_position_is_taken_and_told(folder, case, drawn):
    unknown = case.model_copy(update={"true_transform": None})
    point = (1.0, -2.0, 3.0)
    attention_figure(SHOWN.model_copy(update={"point_mm": point}), methods(folder, "attention-reg"), [unknown])
    assert all(overlay.point_mm == pytest.approx(point) for overlay in drawn["overlays"])
    assert "the same position, as no true transform is known" in drawn["header"][-1]


def test_the_whole_figure_is_drawn(folder, case):
    figure = attention_figure(SHOWN, methods(folder, "attention-reg"), [case])
    assert len(figure.axes) == 4 * 3 + 2


def test_a_point_off_the_region_and_a_method_without_weights_are_told(folder, case):
    far = SHOWN.model_copy(update={"point_mm": (500.0, 0.0, 0.0)})
    with pytest.raises(ConcordError, match=r"point \(.*500.0, 0.0, 0.0\) mm is outside the region"):
        attention_figure(far, methods(folder, "attention-reg"), [case.model_copy(update={"true_transform": None})])
    with pytest.raises(ConcordError, match=r"no weights; expected a \.safetensors file"):
        attention_figure(SHOWN, [RigidNetwork()], [case])
    with pytest.raises(ConcordError, match="no attention block"):
        attention_figure(SHOWN, methods(folder, "feature-reg"), [case])


def listed(name: str, subject: str, start: str, split: str = "test") -> Case:
    return Case(case=name, fixed=Path("f"), moving=Path("m"), subject=subject, start=start, split=split)


def test_a_case_is_chosen_by_name_subject_and_start_among_those_tested():
    cases = [listed("t", "t", "", "train"), *(listed(f"{who}-{start}", who, start) for who in ("a", "b") for start in ("8mm", "16mm"))]

    def chosen(**settings: str) -> str:
        return chosen_case(cases, AttentionSettings(title="", method="", **settings)).case

    assert chosen() == "a-8mm"
    assert chosen(case="b") == chosen(case="b-8mm") == "b-8mm"
    assert chosen(start="16mm") == "a-16mm"
    assert chosen(case="b", start="16mm") == "b-16mm"
    with pytest.raises(ConcordError, match="no test case or subject 't'; valid: a, b"):
        chosen(case="t")
    with pytest.raises(ConcordError, match=r"no start '8'.*valid: 16mm, 8mm"):
        chosen(start="8")


def test_a_point_has_three_coordinates():
    with pytest.raises(ValidationError):
        AttentionSettings(title="", method="", point_mm=(1.0, 2.0))
