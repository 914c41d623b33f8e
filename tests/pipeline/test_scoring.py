"""Scores of a study: one tidy row a number, and what failed is named."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline.scoring import COLUMNS, first_scored, read_scores, score_cases


def test_scores_are_tidy_and_failures_are_named(boxes_case, tmp_path):
    others = [boxes_case.model_copy(update={"case": name}) for name in ("failed", "absent", "unlabelled")]
    others[2] = others[2].model_copy(update={"fixed_labels": None})
    found = tmp_path / "found.h5"
    manifest = pd.DataFrame(
        [("a", "done", found, 2.5, 100.0, ""), ("failed", "failed", None, None, None, "it diverged"), ("unlabelled", "done", found, 1.0, 90.0, "")],
        columns=["case", "status", "transform", "seconds", "peak_memory_mib", "reason"],
    )
    scores, excluded = score_cases([boxes_case, *others], manifest, study="x", method="mi", measures=["dice", "seconds"])
    assert tuple(scores.columns) == COLUMNS
    assert scores[["case", "structure", "metric", "value"]].to_numpy().tolist() == [
        ["a", "1", "dice", 7 / 8],
        ["a", "2", "dice", 3 / 4],
        ["a", "", "seconds", 2.5],
        ["unlabelled", "", "seconds", 1.0],  # what needs no labels is known of it all the same
    ]
    assert [(row.case, row.stage, row.reason.split(";")[0]) for row in excluded] == [
        ("failed", "mi", "it diverged"),
        ("absent", "mi", "not in any manifest"),
        ("unlabelled", "mi (dice)", "no fixed_labels: without this measure"),
    ]
    scores.to_csv(tmp_path / "scores.csv", index=False)
    pd.testing.assert_frame_equal(
        read_scores(tmp_path / "scores.csv")[["case", "structure", "value"]], scores[["case", "structure", "value"]], check_dtype=False
    )


def test_what_networks_cost_is_scored_and_milliseconds_name_their_device(boxes_case, tmp_path):
    costs = {"seconds": 1.0, "inference_ms": 12.5, "parameters": 96777.0, "spread_mm": np.nan, "device": "cpu (toy), 1 thread"}
    manifest = pd.DataFrame([{"case": "a", "status": "done", "transform": tmp_path / "found.h5"} | costs])
    scores, _ = score_cases([boxes_case], manifest, study="x", method="mi", measures=["inference_ms", "parameters", "spread_mm", "seconds"])
    assert scores[["metric", "value", "unit"]].to_numpy().tolist() == [
        ["inference_ms", 12.5, "ms on cpu (toy), 1 thread"],
        ["parameters", 96777.0, ""],
        ["seconds", 1.0, "s"],
    ]


def test_a_measure_that_no_case_allows_is_left_out_and_not_the_cases(boxes_case, tmp_path, caplog):
    real = boxes_case.model_copy(update={"true_transform": None})
    manifest = pd.DataFrame(
        [("a", "done", tmp_path / "found.h5", 1.0, 90.0, "")], columns=["case", "status", "transform", "seconds", "peak_memory_mib", "reason"]
    )
    scores, excluded = score_cases([real], manifest, study="x", method="mi", measures=["dice", "displacement_error_mm"])
    assert scores["metric"].unique().tolist() == ["dice"]
    assert excluded == []
    assert "displacement_error_mm" in caplog.text


def test_cases_are_ranked_by_the_first_measure_that_has_scores():
    scores = pd.DataFrame([("a", "dice", 0.5), ("b", "tre_mm", 1.0), ("a", "tre_mm", np.nan)], columns=["method", "metric", "value"])
    assert first_scored(scores, ["a"], ["tre_mm", "dice"]) == "dice"
    assert first_scored(scores, ["a", "b"], ["tre_mm", "dice"]) == "tre_mm"
    assert first_scored(scores, ["c"], ["tre_mm", "dice"]) == "tre_mm"
