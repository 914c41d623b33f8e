"""Step rules, stop rules, and whole runs of the loop as a method."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from examples import blob_volume, oblique_geometry, smooth_field
from scipy.ndimage import gaussian_filter

from pipeline.errors import ConcordError
from pipeline.methods import Pair, Run, create_method, run_method
from pipeline.optimise.descent import Adam, GradientDescent, RegularStep
from pipeline.optimise.loop import StopRule, minimise
from pipeline.optimise.models import SplineModel, linear_model
from pipeline.optimise.moving import MovingImage
from pipeline.optimise.objective import Evaluation
from pipeline.optimise.similarities import SIMILARITIES, Level
from pipeline.optimise.stages import _Images
from pipeline.resampling import warp
from pipeline.transforms import Composite, Field, Linear, compose
from pipeline.volumes import Geometry, Volume

GRID = Geometry.regular((30, 28, 26), (2.0, 2.0, 2.5))


def bowl(parameters: np.ndarray, iteration: int) -> Evaluation:
    away = parameters - np.array([1.0, -2.0, 0.5])
    return Evaluation(float(away @ away), 2 * away)


def steps_of(descent, iterations: int = 200) -> tuple[np.ndarray, list[float]]:
    lengths: list[float] = []
    end = minimise(bowl, np.zeros(3), descent, StopRule(iterations), record=lambda i, value, step, norm, seconds: lengths.append(step))
    return end, lengths


@pytest.mark.parametrize("rule", [RegularStep, GradientDescent, Adam])
def test_every_rule_finds_the_bottom_of_a_bowl(rule):
    end, _ = steps_of(rule(linear_model("translation", GRID), 0.3, 200))
    np.testing.assert_allclose(end, [1.0, -2.0, 0.5], atol=0.02)


def test_regular_steps_keep_their_length_until_the_direction_turns():
    _, lengths = steps_of(RegularStep(linear_model("translation", GRID), 0.4, 200, minimum_step_mm=0.01))
    assert lengths[:5] == pytest.approx([0.4] * 5)
    turned = [length for length in lengths if 0 < length < 0.4]
    ratios = {round(b / a, 6) for a, b in pairwise(lengths) if b > 0}
    assert turned
    assert ratios <= {1.0, 0.5}
    assert lengths[-1] == 0.0  # stopped under the minimum, long before 200 iterations
    assert len(lengths) < 60


def test_adam_does_not_step_where_there_is_hardly_a_gradient():
    model = linear_model("translation", GRID)
    step = Adam(model, 1.0, 10).advance(np.zeros(3), np.array([1.0, 1e-6, 0.0]), 0)
    assert abs(step.parameters[0]) == pytest.approx(1.0, rel=0.01)
    assert abs(step.parameters[1]) < 1e-4


def test_the_run_stops_when_values_no_longer_fall():
    rule = StopRule(100, window=5, least_slope=1e-3)
    assert not rule.converged(deque([5.0, 4.0, 3.0, 2.0, 1.0]))
    assert rule.converged(deque([1.0, 1.0, 1.0, 1.0, 1.0]))
    assert not rule.converged(deque([1.0, 1.0]))


@pytest.mark.parametrize("bad", [Evaluation(float("nan"), np.zeros(3)), Evaluation(1.0, np.array([np.inf, 0, 0]))])
def test_a_diverging_run_is_an_error_not_a_result(bad):
    descent = RegularStep(linear_model("translation", GRID), 0.4, 10)
    with pytest.raises(ConcordError, match=r"diverged in iteration 1.*lower step_mm"):
        minimise(lambda p, i: bad, np.zeros(3), descent, StopRule(10), record=lambda *row: None)


def head(seed: int = 0) -> Volume:
    """An ellipsoid of three tissues with texture, in a dark and slightly noisy background."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in GRID.shape), indexing="ij")
    radius = np.sqrt((x / 0.75) ** 2 + (y / 0.8) ** 2 + (z / 0.85) ** 2)
    tissue = np.select([radius < 0.45, radius < 0.75, radius < 1], [0.8, 0.5, 0.3], 0.0)
    tissue[(np.abs(x - 0.25) < 0.12) & (np.abs(y + 0.2) < 0.2) & (radius < 1)] = 1.0
    texture = gaussian_filter(rng.normal(size=GRID.shape), 1.5) * (radius < 1) * 0.3
    return Volume(gaussian_filter(tissue + texture, 0.7).astype(np.float32), GRID, "head")


def head_tensor(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(head(seed).array)[None, None]


def inverted(volume: Volume) -> Volume:
    return volume.with_array((1.2 - volume.array) * (volume.array > 0.05))


def error_mm(found, truth) -> float:
    points = GRID.grid_points()[6:-6, 6:-6, 6:-6].reshape(-1, 3)
    return float(np.linalg.norm(found.points(points) - truth.points(points), axis=1).mean())


@pytest.mark.parametrize("similarity", ["mi", "nmi", "ngf", "mind", "mind-ssc", "lncc", "ncc"])
def test_a_rigid_motion_between_contrasts_is_found(similarity):
    matrix, offset = np.array([[0.995, -0.0998, 0], [0.0998, 0.995, 0], [0, 0, 1.0]]), np.array([3.0, -2.0, 2.0])
    truth = Linear(matrix, offset, "rigid")
    moving = head()
    fixed = inverted(warp(moving, truth, GRID)) if similarity not in ("ncc", "lncc") else warp(moving, truth, GRID)
    method = create_method("loop", {"similarity": similarity, "stages": ["rigid"], "iterations": 80, "radius_vx": 1, "dilation_vx": 1, "bins": 32})
    found = run_method(method, Pair(fixed, moving), Run())
    assert error_mm(Linear.identity(3), truth) > 3
    assert error_mm(found, truth) < (1.0 if similarity.startswith("mind") else 0.5)  # voxels are 2 mm, descriptors look 2 voxels around


def test_a_spline_follows_its_linear_stage_and_the_trace_tells_all():
    moving = head()
    truth = Linear(np.diag([1.05, 0.96, 1.0]), np.array([2.0, 0.0, -1.0]))
    fixed = inverted(warp(moving, truth, GRID))
    run = Run(trace=[])
    settings = {"iterations": [40, 30], "control_points": 6, "bending_weight": 1.0, "bins": 32}
    found = run_method(create_method("loop", settings), Pair(fixed, moving), run)
    assert isinstance(found, Composite)
    assert error_mm(found, truth) < 0.5 * error_mm(Linear.identity(3), truth)
    assert [(row["stage"], row["level"]) for row in run.trace].count(("bspline", 1)) == 30
    assert len(run.trace) == 140
    first = [row["value"] for row in run.trace if (row["stage"], row["level"]) == ("similarity", 0)]
    assert first[-1] < first[0]


@pytest.mark.parametrize("sampling", ["regular", "random"])
def test_the_same_seed_gives_the_same_bits_and_another_one_others(sampling):
    moving = head()
    pair = Pair(inverted(warp(moving, Linear(np.eye(3), np.array([2.0, 1.0, 0.0]), "translation"), GRID)), moving)
    settings = {"sampling": sampling, "samples": 2000, "iterations": 10, "control_points": 6, "bins": 32}
    ends = [run_method(create_method("loop", settings), pair, Run(seed=seed)).points(np.array([[1.0, 2.0, 3.0]])) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])


def test_a_start_and_masks_are_honoured():
    moving = head()
    truth = Linear(np.eye(3), np.array([20.0, 0.0, 0.0]), "translation")
    fixed = inverted(warp(moving, truth, GRID))
    mask = fixed.with_array((fixed.array > 0).astype(np.uint8))
    method = create_method("loop", {"stages": ["translation"], "iterations": 60, "bins": 32})
    start = Linear(np.eye(3), np.array([17.0, 1.0, 0.0]), "translation")
    found = run_method(method, Pair(fixed, moving, mask), Run(), start)
    assert error_mm(found, truth) < 0.5


@pytest.mark.parametrize("dimension", [2, 3])
def test_it_goes_on_from_a_start_of_any_kind(dimension):
    """A start that its own models can be is taken over as it is: nothing is left to do and next to nothing is done."""
    grid = oblique_geometry(dimension)
    turn = Linear(np.eye(dimension) + 0.1 * np.random.default_rng(3).normal(size=(dimension, dimension)), np.full(dimension, 2.0), "affine")
    spacing = tuple(np.multiply(grid.size, grid.spacing_mm) / 4)
    model = SplineModel.over(grid, spacing)
    bend = model.transform(np.random.default_rng(4).uniform(-1, 1, len(model.initial())))
    moving = blob_volume(grid.cropped((-9,) * dimension, tuple(n + 9 for n in grid.size)))
    still = {"similarity": "mean-squares", "levels": 1, "iterations": 1, "step_mm": 1e-6, "bending_weight": 0, "control_points": 7}
    points = grid.points_at(np.random.default_rng(5).uniform(3, 8, size=(40, dimension)))
    for stages, start in ((["affine"], turn), (["bspline"], compose(bend, turn)), (["affine", "bspline"], compose(bend, turn))):
        pair = Pair(warp(moving, start, grid), moving)
        method = create_method("loop", still | {"stages": stages})
        np.testing.assert_allclose(run_method(method, pair, Run(), start).points(points), start.points(points), atol=0.01)
    # and it is a start: of a field that is half a voxel wrong everywhere, the error goes
    truth = smooth_field(grid, 3.0)
    wrong = Field(truth.field_mm + 0.5 * np.asarray(grid.spacing_mm), grid)
    method = create_method("loop", still | {"stages": ["bspline"], "iterations": 40, "step_mm": 0.3})
    found = run_method(method, Pair(warp(moving, truth, grid), moving), Run(), wrong)
    inner = grid.cropped((3,) * dimension, tuple(n - 3 for n in grid.size))
    errors = [np.linalg.norm(t.displacement_mm(inner) - truth.displacement_mm(inner), axis=-1).mean() for t in (wrong, found)]
    assert errors[1] < 0.6 * errors[0]


def test_two_starts_of_a_spline_are_refused():
    method = create_method("loop", {"discrete": {}, "stages": ["bspline"]})
    volume = blob_volume(oblique_geometry(2))
    with pytest.raises(ConcordError, match="discrete says where"):
        run_method(method, Pair(volume, volume), Run(), smooth_field(volume.geometry, 1.0))


def test_images_that_hardly_meet_are_refused():
    moving = head()
    far = replace(moving, geometry=replace(GRID, origin_mm=tuple(np.asarray(GRID.origin_mm) + 500)))
    method = create_method("loop", {"initialise": "none"})
    with pytest.raises(ConcordError, match="voxels in common"):
        run_method(method, Pair(moving, far), Run())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"similarity": "mutual"}, "similarity"),
        ({"iterations": [10]}, "one number a level"),
        ({"stages": ["bsplin"]}, "stages"),
        ({"iterations": 0}, "1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_told_by_key(settings, told):
    with pytest.raises(ConcordError, match=told):
        create_method("loop", settings)


def test_a_network_similarity_without_weights_says_what_is_missing():
    with pytest.raises(ConcordError, match="patch-cnn needs `weights`"):
        run_method(create_method("loop", {"similarity": "patch-cnn"}), Pair(head(), head()), Run())
    with pytest.raises(ConcordError, match="is not there"):
        _ = create_method("loop", {"similarity": "patch-cnn", "weights": "nowhere.safetensors"}).files


@pytest.mark.parametrize(("count", "expected"), [(200_000, 75), (20_000, 35), (64_000, 52), (100, 8)])
def test_few_samples_get_few_bins_unless_a_number_is_set(count, expected, monkeypatch):
    made = []
    monkeypatch.setattr("metrics.similarity.mutual_information.MattesMutualInformation", lambda fixed, bins, **_: made.append(bins))
    level = Level(MovingImage.of(head()), (1.0, 1.0, 1.0))
    for settings in ({}, {"bins": 75}):
        SIMILARITIES["mi"].make(torch.zeros(count), create_method("loop", settings), level)
    assert made == [expected, 75]


def test_a_setting_that_a_similarity_cannot_take_is_one_line():
    method = create_method("loop", {"similarity": "lncc", "radius_vx": 0, "stages": ["translation"]})
    with pytest.raises(ConcordError, match="expected a radius of 1 voxel or more"):
        run_method(method, Pair(head(), head(1)), Run())


def test_the_radius_of_local_correlation_is_the_one_that_is_set():
    level = Level(MovingImage.of(head()), (1.0, 1.0, 1.0))
    made = [
        SIMILARITIES["lncc"].make(head_tensor(), create_method("loop", {"similarity": "lncc", **s}), level)
        for s in ({}, {"radius_vx": 4}, {"radius_vx": 2}, {"radius_vx": 1})
    ]
    values = [float(m(head_tensor(1))) for m in made]
    assert values[0] == values[1]
    assert len(set(values)) == 3


def test_cropping_to_the_mask_moves_no_voxel_and_keeps_the_reach_of_neighbourhoods():
    fixed, mask = head(), np.zeros(GRID.shape, np.uint8)
    mask[10:14, 12:15, 12:18] = 1
    pair = Pair(fixed, head(1), fixed.with_array(mask))
    cropped = _Images(create_method("loop", {"similarity": "mind", "levels": 1}), pair, None).level(0)
    assert cropped.fixed.geometry.size == (6 + 16, 3 + 16, 4 + 16)
    where = cropped.fixed_mask.geometry.points_at(np.argwhere(cropped.fixed_mask.array)[:, ::-1].astype(float))
    np.testing.assert_allclose(where, GRID.points_at(np.argwhere(mask)[:, ::-1].astype(float)))
    index = np.rint(GRID.index_at(where)).astype(int)
    np.testing.assert_array_equal(cropped.fixed.array[cropped.fixed_mask.array != 0], fixed.array[tuple(index[:, ::-1].T)])
    assert _Images(create_method("loop", {"similarity": "mi", "levels": 1}), pair, None).level(0).fixed is fixed
