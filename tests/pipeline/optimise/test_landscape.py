"""Curves around the truth: what is perturbed, that value and derivative belong together, and numbers that are known beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from nets.patch_cnn import PatchCnn
from pipeline.errors import ConcordError
from pipeline.learned.weights import save_weights
from pipeline.methods import Pair, Run, run_method
from pipeline.optimise.landscape import (
    COLUMNS,
    Probe,
    averaged,
    curve_numbers,
    landscape,
    landscape_numbers,
    nearby_control_points,
    perturbed,
    rigid_parameters,
    spline_names,
    turned_grid,
)
from pipeline.optimise.method import OptimiserLoop
from pipeline.optimise.models import SplineModel, linear_model
from pipeline.optimise.objective import Evaluation
from pipeline.transforms import BSpline, Linear
from pipeline.volumes import Geometry, Volume

FEW = Probe(reach_mm=4.0, points=9, control_points=2, others=2)
MEAN_SQUARES = OptimiserLoop(similarity="mean-squares", control_points=6)


def blob(dimension: int = 3, shift_mm: tuple[float, ...] = (0.0, 0.0, 0.0), *, turned: bool = False) -> Volume:
    """A smooth, uneven object in the middle of an empty box, analytically shifted; the same on the turned grid."""
    box = Geometry.regular((24, 22, 20)[:dimension], (2.0, 2.0, 2.2)[:dimension])
    grid = turned_grid(box) if turned else box
    points = grid.grid_points() - box.centre_mm - np.asarray(shift_mm[:dimension])
    widths = np.array([9.0, 7.0, 8.0])[:dimension]
    body = np.exp(-0.5 * ((points / widths) ** 2).sum(axis=-1))
    spot = np.exp(-0.5 * (((points - 4.0) / 5.0) ** 2).sum(axis=-1))
    return Volume(body + 0.7 * spot, grid, "blob")


def curve(value: np.ndarray, at: np.ndarray, *, derivative: np.ndarray | None = None, voxel_mm: float = 1.0) -> pd.DataFrame:
    """A table of one curve, its derivative from differences unless given."""
    columns = {"method": "toy", "transform": "rigid", "perturbed": "x", "parameter": "x", "other": False, "perturbation_mm": at}
    slope = np.gradient(value, at) if derivative is None else derivative
    return pd.DataFrame({**columns, "value": value, "derivative": slope, "voxel_mm": voxel_mm})


def written(network: PatchCnn, folder: Path) -> Path:
    """The network as a fit writes it, for images in [0, 1]."""
    plain = {"mean": 0.0, "std": 1.0}
    card = {"architecture": "patch-cnn", "configuration": network.configuration, "dimension": network.dimension, "channels": ["t1", "t2"]}
    save_weights(
        folder / "net", network.state_dict(), card | {"normalisation": {"t1": plain, "t2": plain}, "settings": {"sampler": {"swap_channels": False}}}
    )
    return folder / "net.safetensors"


# ---- numbers of curves that are known


def test_a_parabola_has_the_whole_reach_as_basin_its_vertex_as_offset_and_the_right_sign_everywhere_but_there():
    at = np.arange(-10, 11) * 1.0
    row = curve_numbers(curve((at - 2.3) ** 2, at)).iloc[0]
    assert row["basin_mm"] == 20
    assert row["offset_mm"] == pytest.approx(2.3)
    assert row["correct_sign_percent"] == pytest.approx(100 * 18 / 20)  # wrong at 1 and 2 mm
    assert row["correct_sign_mm"] == 10  # from -10 to the truth
    assert row["derivative_correlation"] == pytest.approx(1)


def test_the_basin_ends_where_the_value_falls_again_on_either_side():
    at = np.arange(-8, 9) * 0.5
    value = np.where(at < -2, -at - 4, np.where(at > 3, 6 - at, np.abs(at)))
    value[at < -2] = 2 + (at[at < -2] + 2)  # falls left of -2
    row = curve_numbers(curve(value, at)).iloc[0]
    assert (row["basin_mm"], row["offset_mm"]) == (5.0, 0.0)


def test_a_level_stretch_is_no_basin():
    at = np.arange(-5, 6) * 1.0
    row = curve_numbers(curve(np.maximum(np.abs(at), 0.0).clip(max=2), at)).iloc[0]
    assert row["basin_mm"] == 4
    flat = curve_numbers(curve(np.ones(11), at)).iloc[0]
    assert flat["basin_mm"] == 0
    assert np.isnan(flat[["offset_mm", "derivative_correlation"]].astype(float)).all()
    assert flat["correct_sign_percent"] == 0


def test_of_two_minima_the_one_nearer_to_the_truth_counts():
    at = np.linspace(-10, 10, 81)
    row = curve_numbers(curve(-np.exp(-((at - 3) ** 2)) - 3 * np.exp(-((at + 6) ** 2)), at)).iloc[0]
    assert row["offset_mm"] == pytest.approx(3, abs=0.01)


def test_signs_within_half_a_voxel_are_not_judged():
    at = np.arange(-4, 5) * 0.5
    wrong = np.where(np.abs(at) < 1, -np.sign(at), np.sign(at))
    assert curve_numbers(curve(at**2, at, derivative=wrong, voxel_mm=2.0)).loc[0, "correct_sign_percent"] == 100
    assert curve_numbers(curve(at**2, at, derivative=wrong, voxel_mm=2.0)).loc[0, "correct_sign_mm"] == 4
    assert curve_numbers(curve(at**2, at, derivative=wrong, voxel_mm=1.0)).loc[0, "correct_sign_percent"] == 75
    assert curve_numbers(curve(at**2, at, derivative=wrong, voxel_mm=1.0)).loc[0, "correct_sign_mm"] == 0


def test_a_derivative_of_opposite_sign_is_found_out():
    at = np.arange(-4, 5) * 1.0
    row = curve_numbers(curve(at**2, at, derivative=-2 * at)).iloc[0]
    assert (row["correct_sign_percent"], row["correct_sign_mm"]) == (0, 0)
    assert row["derivative_correlation"] == pytest.approx(-1)


def test_means_are_over_curves_and_offsets_do_not_cancel():
    at = np.arange(-6, 7) * 1.0
    table = pd.concat([curve((at - shift) ** 2, at).assign(perturbed=str(shift)) for shift in (-0.4, 0.4, 1.0)])
    numbers = landscape_numbers(table)
    assert len(numbers) == 1
    assert numbers.loc[0, "offset_mm"] == pytest.approx(0.6)
    assert numbers.loc[0, "curves"] == 3


def test_numbers_take_rows_in_any_order_and_no_derivatives_by_other_parameters():
    at = np.arange(-6, 7) * 1.0
    table = pd.concat([curve((at - 1) ** 2, at), curve(-(at**2), at).assign(parameter="y", other=True)])
    shuffled = table.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(curve_numbers(shuffled), curve_numbers(curve((at - 1) ** 2, at)))


# ---- perturbing a known objective


def test_a_quadratic_objective_gives_back_its_own_value_and_derivatives_in_mm():
    model = linear_model("rigid", Geometry.regular((11, 11), 10.0))
    curvature = np.array([[3.0, 0.2, 0.0], [0.2, 2.0, 0.5], [0.0, 0.5, 1.0]])

    def objective(parameters: np.ndarray) -> Evaluation:
        return Evaluation(float(parameters @ curvature @ parameters) / 2, curvature @ parameters)

    table = perturbed(objective, model, 0, probe=Probe(reach_mm=5, points=11, others=1), names=["turn", "x", "y"].__getitem__)
    arm = np.hypot(50, 50)  # mm to a corner
    own = table[~table["other"]]
    assert own["value"].to_numpy() == pytest.approx(1.5 * (own["perturbation_mm"].to_numpy() / arm) ** 2, rel=1e-4)
    assert own["derivative"].to_numpy() == pytest.approx(3 * own["perturbation_mm"].to_numpy() / arm**2, rel=1e-4)
    other = table[table["other"]]
    assert list(other["parameter"].unique()) == ["x"]  # y is not touched
    assert other["derivative"].to_numpy() == pytest.approx(0.2 * other["perturbation_mm"].to_numpy() / arm, rel=1e-4)


def test_a_coefficient_is_perturbed_by_mm_of_the_point_at_its_control_point():
    model = SplineModel.over(blob().geometry, (12.0, 12.0, 12.0))
    shifts = []

    def objective(parameters: np.ndarray) -> Evaluation:
        at = model.grid.points_at(np.array([[2.0, 2.0, 2.0]]))
        shifts.append((model.transform(parameters).points(at) - at)[0])
        return Evaluation(0.0, np.zeros_like(parameters))

    place = int(np.ravel_multi_index((1, 2, 2, 2), (3, *model.grid.shape)))
    perturbed(objective, model, place, probe=FEW, names=spline_names(model.grid))
    assert np.array(shifts) == pytest.approx(np.outer(FEW.perturbations_mm, [0, 1, 0]), abs=1e-9)


def test_the_mean_is_over_the_first_iterations():
    mean = averaged(lambda parameters, iteration: Evaluation(float(iteration), parameters * iteration), 4)
    value, gradient = mean(np.array([2.0, 4.0]))
    assert value == 1.5
    assert gradient == pytest.approx([3.0, 6.0])


# ---- landscapes of images


def test_the_table_has_every_perturbation_of_every_curve_once_and_the_truth_among_them():
    table = landscape(MEAN_SQUARES, Pair(blob(), blob()), run=Run(), method="ms", probe=FEW)
    assert tuple(table.columns) == COLUMNS
    own = table[~table["other"]]
    assert list(own[own["transform"] == "rigid"]["perturbed"].unique()) == list(rigid_parameters(3))
    assert (own.groupby(["transform", "perturbed"]).size() == FEW.points).all()
    assert own.groupby("transform")["perturbed"].nunique().to_dict() == {"bspline": 2, "rigid": 6}
    assert (table.groupby(["transform", "perturbed"])["parameter"].nunique() == 1 + FEW.others).all()
    assert (own["perturbation_mm"] == 0).sum() == 8
    assert set(table["method"]) == {"ms"}
    assert not table.isna().any().any()


@pytest.mark.parametrize("dimension", [2, 3])
def test_mean_squares_of_an_aligned_pair_are_lowest_at_the_truth_with_the_right_sign_around(dimension):
    numbers = curve_numbers(landscape(MEAN_SQUARES, Pair(blob(dimension), blob(dimension, turned=True)), run=Run(), probe=FEW))
    assert numbers["offset_mm"].abs().max() < 0.15  # voxels of 2 mm, interpolated
    assert (numbers["correct_sign_percent"] == 100).all()
    assert (numbers["correct_sign_mm"] == 8).all()
    assert (numbers["basin_mm"] == 8).all()


@pytest.mark.parametrize("similarity", ["mean-squares", "ncc", "mind-ssc"])
def test_the_derivative_is_that_of_the_value(similarity):
    pair = Pair(blob(), blob(shift_mm=(0.7, -0.6, 0.4), turned=True))
    settings = OptimiserLoop(similarity=similarity, control_points=6, radius_vx=1, dilation_vx=1)
    table = landscape(settings, pair, run=Run(), probe=Probe(reach_mm=0.9, points=13, control_points=2, others=0))
    for _, own in table.groupby(["transform", "perturbed"]):
        value, derivative, at = (own[name].to_numpy() for name in ("value", "derivative", "perturbation_mm"))
        slope = (value[2:] - value[:-2]) / (at[2:] - at[:-2])
        assert np.abs(slope - derivative[1:-1]).max() < 0.05 * np.abs(derivative).max()
    assert curve_numbers(table)["derivative_correlation"].min() > 0.99


def test_two_images_on_one_grid_are_taken_off_it_so_that_the_derivative_at_the_truth_is_not_that_of_one_side():
    probe = Probe(reach_mm=4.0, points=9, control_points=1, others=5)
    turned, shared, raw = (
        landscape(MEAN_SQUARES, pair, run=Run(), probe=probe.model_copy(update={"off_grid": off_grid}))
        for pair, off_grid in ((Pair(blob(), blob(turned=True)), True), (Pair(blob(), blob()), True), (Pair(blob(), blob()), False))
    )
    scale = turned["derivative"].abs().max()
    at_truth = [table.loc[table["perturbation_mm"] == 0, "derivative"].abs().max() / scale for table in (turned, shared)]
    assert max(at_truth) < 0.02
    assert np.corrcoef(shared["value"], turned["value"])[0, 1] > 0.999
    assert raw.loc[raw["perturbation_mm"] == 0, "value"].max() < 1e-12


def test_the_spike_between_noisy_images_on_one_grid_is_gone_off_the_grid():
    rng = np.random.default_rng(2)
    pair = Pair(*(image.with_array(image.array + rng.normal(0, 0.05, image.array.shape)) for image in (blob(), blob())))
    probe = Probe(reach_mm=4.0, points=9, control_points=1, others=0)
    off, on = (landscape(MEAN_SQUARES, pair, run=Run(), probe=probe.model_copy(update={"off_grid": how})) for how in (True, False))
    values, slopes = (
        {name: table.loc[table["perturbed"] == "translation along x", column].to_numpy() for name, table in (("off", off), ("on", on))}
        for column in ("value", "derivative")
    )
    assert values["off"].argmin() == 4
    assert values["on"][4] > max(values["on"][[3, 5]])  # interpolation averages noise away everywhere but at the truth
    assert abs(slopes["off"][4]) < 0.2 * abs(slopes["off"][5])
    assert abs(slopes["on"][4]) > abs(slopes["on"][5])  # on the kink, the derivative is that of one side


@pytest.mark.parametrize("true", [Linear.identity(3), Linear(np.eye(3), np.array([1.5, -0.5, 0.25]))], ids=["identity", "translation"])
def test_a_true_translation_leaves_images_in_step_so_they_are_taken_off_the_grid_as_well(true):
    table = landscape(MEAN_SQUARES, Pair(blob(), blob(shift_mm=tuple(true.offset_mm))), run=Run(), true=true, probe=FEW)
    plain = landscape(MEAN_SQUARES, Pair(blob(), blob()), run=Run(), probe=FEW)
    assert np.corrcoef(table["derivative"], plain["derivative"])[0, 1] > 0.99
    assert curve_numbers(table)["offset_mm"].abs().max() < 0.3


def test_a_turned_grid_covers_the_box():
    grid = Geometry.regular((10, 20, 30), (3.0, 1.0, 2.0))
    turned = turned_grid(grid)
    corners = grid.points_at(np.array([[x, y, z] for x in (-0.5, 9.5) for y in (-0.5, 19.5) for z in (-0.5, 29.5)]))
    assert turned.contains(corners * (1 - 1e-9) + grid.centre_mm * 1e-9).all()
    assert turned.centre_mm == pytest.approx(grid.centre_mm)
    assert np.asarray(turned.direction) @ np.asarray(turned.direction).T == pytest.approx(np.eye(3))


def test_a_pair_that_is_not_aligned_shows_as_offset():
    table = landscape(MEAN_SQUARES, Pair(blob(), blob(shift_mm=(1.5, 0.0, 0.0), turned=True)), run=Run(), probe=FEW)
    offsets = curve_numbers(table).set_index("perturbed")["offset_mm"]
    assert offsets["translation along x"] == pytest.approx(1.5, abs=0.1)
    assert offsets["translation along y"] == pytest.approx(0, abs=0.25)


@pytest.mark.parametrize("bent", [False, True], ids=["linear", "B-spline"])
def test_the_true_transform_takes_the_offset_away(bent):
    shift = np.array([1.5, 0.0, 0.0])
    true = Linear(np.eye(3), shift)
    if bent:
        spline = SplineModel.over(blob().geometry, (12.0, 12.0, 12.0))
        true = BSpline(np.broadcast_to(shift[:, None, None, None], (3, *spline.grid.shape)).copy(), spline.grid)
    table = landscape(MEAN_SQUARES, Pair(blob(), blob(shift_mm=tuple(shift), turned=True)), run=Run(), true=true, probe=FEW)
    assert curve_numbers(table)["offset_mm"].abs().max() < 0.15


def test_random_sampling_is_set_aside_so_that_the_curve_has_no_noise():
    pair = Pair(blob(), blob())
    random = MEAN_SQUARES.model_copy(update={"sampling": "random", "samples": 100})
    pd.testing.assert_frame_equal(*(landscape(settings, pair, run=Run(), probe=FEW) for settings in (MEAN_SQUARES, random)))


def test_the_patch_metric_is_averaged_over_grids_and_its_derivative_is_that_of_the_mean(tmp_path):
    torch.manual_seed(0)
    network = PatchCnn("tiny", 2)
    image = blob(2, turned=True)
    pair = Pair(blob(2), image.with_array(np.cos(2 * image.array)), fixed_modality="t1", moving_modality="t2")
    settings = OptimiserLoop(similarity="patch-cnn", weights=written(network, tmp_path), control_points=6)
    probe = Probe(reach_mm=0.03, points=5, control_points=1, others=0, iterations=4)
    table = landscape(settings, pair, run=Run(), probe=probe)
    curves = [own for _, own in table.groupby(["transform", "perturbed"])]
    slopes = np.concatenate([np.gradient(own["value"], own["perturbation_mm"])[1:-1] for own in curves])
    derivatives = np.concatenate([own["derivative"].to_numpy()[1:-1] for own in curves])
    assert np.median(np.abs(slopes - derivatives)) < 0.03 * np.abs(derivatives).max()  # the kinks of ReLU and interpolation spare most
    once = landscape(settings, pair, run=Run(), probe=probe.model_copy(update={"iterations": 1}))
    assert not np.allclose(table["value"], once["value"])


def test_a_patch_metric_without_weights_says_what_is_missing():
    with pytest.raises(ConcordError, match="weights"):
        landscape(OptimiserLoop(similarity="patch-cnn"), Pair(blob(), blob()), run=Run(), probe=FEW)


def test_the_mask_of_the_settings_is_laid_over_the_pair():
    pair = Pair(blob(), blob(shift_mm=(1.0, 0.0, 0.0)))
    plain, masked = (
        landscape(MEAN_SQUARES.model_copy(update={"mask_threshold": threshold}), pair, run=Run(), probe=FEW) for threshold in (None, 0.2)
    )
    assert masked["value"].iloc[4] > 1.5 * plain["value"].iloc[4]  # the empty border no longer thins the mean


# ---- which parameters


def test_the_first_control_point_is_the_one_nearest_to_the_centre_of_mass_and_axes_take_turns():
    image = blob()
    array = np.zeros_like(image.array)
    array[6:14, 6:16, 12:20] = 1.0  # centre of mass at x 15.5, y 10.5, z 9.5 voxels
    model = SplineModel.over(image.geometry, (8.0, 8.0, 8.0))
    points = nearby_control_points(Pair(image.with_array(array), image), model, 5)
    grid, places = model.grid, list(points.values())
    index = np.stack(np.unravel_index(np.array(places) % int(np.prod(grid.size)), grid.shape)[::-1], axis=-1)
    distance = np.linalg.norm(grid.points_at(index) - image.geometry.points_at(np.array([15.5, 10.5, 9.5])), axis=1)
    nearest = np.linalg.norm(grid.grid_points() - image.geometry.points_at(np.array([15.5, 10.5, 9.5])), axis=-1).min()
    assert distance[0] == pytest.approx(nearest)
    assert (np.diff(distance) >= 0).all()
    assert [name[-1] for name in points] == ["x", "y", "z", "x", "y"]
    assert [place // int(np.prod(grid.size)) for place in places] == [0, 1, 2, 0, 1]
    voxel = np.round(image.geometry.index_at(grid.points_at(index))).astype(int)
    assert array[tuple(voxel.T[::-1])].all()


def test_control_points_are_those_inside_the_fixed_mask_and_none_is_an_error():
    image = blob()
    mask = image.with_array(np.zeros(image.array.shape, np.uint8))
    model = SplineModel.over(image.geometry, (8.0, 8.0, 8.0))
    with pytest.raises(ConcordError, match="control point"):
        nearby_control_points(Pair(image, image, fixed_mask=mask), model, 3)
    mask.array[:, :, :10] = 1
    held = nearby_control_points(Pair(image, image, fixed_mask=mask), model, 1000)
    places = model.grid.grid_points().reshape(-1, 3)[np.array(list(held.values())) % int(np.prod(model.grid.size))]
    assert image.geometry.index_at(places)[:, 0].max() < 9.5
    assert len(held) > 20


def test_rigid_parameters_are_named_by_their_effect_translations_first():
    model = linear_model("rigid", blob().geometry)
    assert list(rigid_parameters(3)) == [*(f"translation along {a}" for a in "xyz"), *(f"rotation about {a}" for a in "xyz")]
    for name, place in rigid_parameters(3).items():
        moved = model.transform(1e-3 * np.eye(6)[place])
        axis = np.eye(3)["xyz".index(name[-1])]
        kept = moved.points(np.array([model.centre_mm, model.centre_mm + 10 * axis])) - np.array([model.centre_mm, model.centre_mm + 10 * axis])
        assert kept == pytest.approx(np.tile(1e-3 * axis * name.startswith("translation"), (2, 1)), abs=1e-9)
    assert rigid_parameters(2) == {"translation along x": 1, "translation along y": 2, "rotation": 0}


def test_names_of_coefficients_give_the_control_point_and_the_axis():
    name = spline_names(Geometry.regular((5, 6, 7)))
    assert name(int(np.ravel_multi_index((2, 3, 4, 1), (3, 7, 6, 5)))) == "control point (1, 4, 3), z"


def test_an_even_number_of_points_would_miss_the_truth():
    with pytest.raises(ValidationError, match="odd"):
        Probe(points=10)
    assert Probe().perturbations_mm[30] == 0
    assert Probe().perturbations_mm[[0, -1]] == pytest.approx([-15, 15])


def test_a_coarse_level_smaller_than_the_patch_is_told_in_one_line(tmp_path):
    settings = OptimiserLoop(similarity="patch-cnn", weights=written(PatchCnn("tiny", 2), tmp_path), levels=3, stages=("translation",))
    pair = Pair(blob(2), blob(2, turned=True), fixed_modality="t1", moving_modality="t2")
    assert min(pair.fixed.geometry.size) // 4 < PatchCnn("tiny", 2).patch_vx <= min(pair.fixed.geometry.size)
    with pytest.raises(ConcordError, match=r"^image of .* voxels; expected at least the patch, .* use a finer grid$"):
        run_method(settings, pair, Run())
