"""Mutual information through elastix: known transforms are found, masks count, errors are told, runs repeat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from examples import rotation

from pipeline import volumes
from pipeline.classical import elastix_run
from pipeline.classical.elastix import MutualInformation
from pipeline.errors import ConcordError
from pipeline.interchange import from_elastix
from pipeline.methods import Pair, Run, create_method, run_method
from pipeline.resampling import warp
from pipeline.starting import masked_by_threshold, overlap, starting_shift, threshold_mask
from pipeline.transforms import BSpline, Composite, Field, Linear, Transform, compose
from pipeline.volumes import Geometry, Volume

DIMENSIONS = (2, 3)
both_dimensions = pytest.mark.parametrize("dimension", DIMENSIONS)


def head(dimension: int, edge: int = 40, seed: int = 0) -> Volume:
    """Smooth texture inside an ellipsoid, nothing outside, on an oblique grid of unequal voxels."""
    from scipy.ndimage import gaussian_filter

    size = (edge, edge + 6, edge - 6)[:dimension]
    direction = tuple(tuple(row) for row in rotation(dimension, 0.15).tolist())
    geometry = Geometry(size, (1.0, 1.1, 1.4)[:dimension], (5.0, -7.0, 30.0)[:dimension], direction)
    texture = gaussian_filter(np.random.default_rng(seed).normal(size=geometry.shape), 2.0)
    radius = np.linalg.norm((geometry.grid_points() - geometry.centre_mm) @ np.asarray(geometry.direction) / (0.38 * geometry.extent_mm), axis=-1)
    inside = 1 / (1 + np.exp(12 * (radius - 1)))
    return Volume((100 * inside * (2 + texture / texture.std())).astype(np.float32), geometry, "moving")


def seen_through(moving: Volume, transform: Transform, geometry: Geometry | None = None) -> Volume:
    """The moving volume through `transform`, in another contrast: bright is dark and there is a bend in the curve."""
    there = warp(moving, transform, geometry or moving.geometry, interpolation="cubic").array
    return Volume((300 * np.exp(-np.abs(there - 60) / 90)).astype(np.float32), geometry or moving.geometry, "fixed")


def small_motion(dimension: int, volume: Volume, kind: str = "rigid") -> Linear:
    """About 6 degrees and 3 mm about the volume's centre."""
    matrix, centre = rotation(dimension, 0.1) * (1.05 if kind == "similarity" else 1.0), volume.geometry.centre_mm
    return Linear(matrix, centre - matrix @ centre + np.array([2.0, -1.5, 1.0])[:dimension], kind)


def wave(volume: Volume, amplitude_mm: float = 5.0) -> Field:
    """A smooth deformation that fades out at the border."""
    along = (volume.geometry.grid_points() - volume.geometry.points_at(np.zeros(volume.dimension))) @ np.asarray(volume.geometry.direction)
    phase = np.pi * along / volume.geometry.extent_mm
    bump = np.prod(np.sin(phase), axis=-1)
    return Field(amplitude_mm * np.stack([bump * np.cos(phase[..., a]) for a in range(volume.dimension)], axis=-1), volume.geometry)


def error_mm(found: Transform, true: Transform, volume: Volume) -> float:
    """Mean distance of both maps where the fixed volume has something to show."""
    points = volume.geometry.grid_points()[head(volume.dimension, volume.geometry.size[0]).array > 50]
    return float(np.linalg.norm(found.points(points) - true.points(points), axis=-1).mean())


def still(dimension: int) -> Linear:
    return Linear.identity(dimension)


@pytest.mark.parametrize("optimiser", ["asgd", "regular-step"])
@both_dimensions
def test_a_rigid_motion_is_found_across_contrasts(dimension, optimiser):
    moving = head(dimension)
    true = small_motion(dimension, moving)
    pair = Pair(seen_through(moving, true), moving)
    found = run_method(MutualInformation(stages=["rigid"], iterations=150, optimiser=optimiser), pair, Run())
    assert isinstance(found, Linear)
    assert found.kind == "rigid"
    assert error_mm(still(dimension), true, moving) > 2
    assert error_mm(found, true, moving) < 0.15


@pytest.mark.parametrize("stage", ["translation", "similarity", "affine"])
def test_every_linear_stage_finds_its_own_motion(stage):
    moving = head(2)
    true = small_motion(2, moving, "similarity") if stage != "translation" else Linear(np.eye(2), [3.0, -2.0], "translation")
    found = run_method(MutualInformation(stages=[stage], iterations=200), Pair(seen_through(moving, true), moving), Run())
    assert found.kind == stage
    assert error_mm(found, true, moving) < 0.2


@both_dimensions
def test_a_deformation_is_found_across_contrasts(dimension):
    moving = head(dimension)
    true = Composite((wave(moving), small_motion(dimension, moving, "similarity")))
    settings = MutualInformation(iterations=100, samples=3000, bins=32)
    found = run_method(settings, Pair(seen_through(moving, true), moving), Run())
    assert [type(part) for part in found.parts] == [Linear, BSpline]
    linear_alone = error_mm(found.parts[0], true, moving)
    assert error_mm(found, true, moving) < min(0.6, 0.5 * linear_alone)


def test_fixed_and_moving_may_have_other_grids_types_and_axes():
    moving = head(3)
    true = small_motion(3, moving)
    direction = ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))  # sagittal slices, thick
    slices = Geometry((40, 36, 14), (1.2, 1.2, 3.5), (0.0, 0.0, 0.0), direction)
    shift = true.inverse().points(moving.geometry.centre_mm) - slices.centre_mm
    slices = replace(slices, origin_mm=tuple(shift.tolist()))
    fixed = seen_through(moving, true, slices)
    fixed = fixed.with_array(np.round(fixed.array).astype(np.int16))
    moving = moving.with_array(np.clip(moving.array, 0, 500).astype(np.uint16))
    found = run_method(MutualInformation(stages=["rigid"], iterations=200), Pair(fixed, moving), Run())
    assert error_mm(found, true, moving) < 0.3


def test_what_lies_outside_the_masks_does_not_matter():
    moving = head(2, 64)
    true = small_motion(2, moving)
    fixed = seen_through(moving, true)
    halves = np.zeros(fixed.array.shape, np.uint8)
    halves[:, :30] = 1
    wide = np.zeros(fixed.array.shape, np.uint8)
    wide[:, :40] = 1

    def spoilt(volume: Volume) -> Volume:
        array = volume.array.copy()
        array[:, 46:] = np.random.default_rng(0).uniform(0, 1e4, size=array[:, 46:].shape)
        return volume.with_array(array)

    settings, masks = (
        MutualInformation(stages=["rigid"], iterations=150),
        {"fixed_mask": fixed.with_array(halves), "moving_mask": moving.with_array(wide)},
    )
    clean = run_method(settings, Pair(fixed, moving, **masks), Run())
    dirty = run_method(settings, Pair(spoilt(fixed), spoilt(moving), **masks), Run())
    assert error_mm(clean, true, moving) < 0.5
    assert error_mm(dirty, clean, moving) < 0.02
    unmasked = run_method(settings, Pair(spoilt(fixed), spoilt(moving)), Run())

    assert error_mm(unmasked, true, moving) > 1


@pytest.mark.parametrize("which", ["fixed_mask", "moving_mask"])
def test_each_mask_counts_alone(which):
    moving = head(2, 64)
    pair = Pair(seen_through(moving, small_motion(2, moving)), moving)
    half = moving.with_array((np.arange(64) < 34)[None, :] * np.ones(moving.array.shape, np.uint8))
    settings = MutualInformation(stages=["rigid"], iterations=30)
    plain, masked = run_method(settings, pair, Run()), run_method(settings, replace(pair, **{which: half}), Run())
    assert not np.array_equal(plain.matrix, masked.matrix)


def test_a_sparse_mask_is_sampled_all_the_same():
    moving = head(3)
    true = small_motion(3, moving)
    sparse = (np.random.default_rng(0).uniform(size=moving.array.shape) < 0.05).astype(np.uint8)
    found = run_method(
        MutualInformation(stages=["rigid"], iterations=150), Pair(seen_through(moving, true), moving, moving.with_array(sparse)), Run()
    )
    assert error_mm(found, true, moving) < 0.3


def test_the_threshold_is_taken_after_scaling_and_holes_are_filled():
    array = np.full((7, 7), -100.0, np.float32)
    array[1:6, 1:6] = 300.0
    array[3, 3] = -100.0
    array[0, 0] = -97.0  # 0.0075 of the range
    mask = threshold_mask(Volume(array, Geometry.regular((7, 7))), 0.01).array
    expected = np.zeros((7, 7), np.uint8)
    expected[1:6, 1:6] = 1
    np.testing.assert_array_equal(mask, expected)


def test_specks_of_noise_are_no_part_of_the_threshold_mask_and_a_second_organ_is():
    array = np.zeros((12, 12), np.float32)
    array[1:6, 1:6] = array[8:10, 8:10] = 100.0  # 25 and 4 pixels
    expected = (array > 0).astype(np.uint8)
    array[0, 11] = array[11, 0] = 90.0
    np.testing.assert_array_equal(threshold_mask(Volume(array, Geometry.regular((12, 12))), 0.1).array, expected)
    constant = Volume(np.ones((3, 3), np.float32), Geometry.regular((3, 3)))
    assert not threshold_mask(constant, 0.1).array.any()


def test_the_threshold_mask_acts_together_with_the_given_one():
    moving = head(2)
    given = moving.with_array((np.arange(moving.array.shape[1]) < 25)[None, :] * np.ones(moving.array.shape, np.uint8))
    pair = masked_by_threshold(Pair(moving, moving, given), 0.2)
    np.testing.assert_array_equal(pair.fixed_mask.array, threshold_mask(moving, 0.2).array & given.array)
    np.testing.assert_array_equal(pair.moving_mask.array, threshold_mask(moving, 0.2).array)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_and_threads_give_the_same_bits(threads):
    moving = head(2)
    pair, settings = Pair(seen_through(moving, wave(moving)), moving), MutualInformation(iterations=30, samples=500)
    points = moving.geometry.grid_points().reshape(-1, 2)
    first, again, other = (run_method(settings, pair, Run(threads=threads, seed=seed)).points(points) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_it_is_quiet_leaves_no_files_and_restores_the_thread_count(tmp_path, monkeypatch, capfd):
    import itk

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(elastix_run.tempfile, "tempdir", str(tmp_path))
    moving = head(2)
    before = itk.MultiThreaderBase.GetGlobalMaximumNumberOfThreads(), itk.MultiThreaderBase.GetGlobalDefaultNumberOfThreads()
    reported: list[tuple[str, float]] = []
    run_method(MutualInformation(iterations=3), Pair(moving, moving), Run(progress=lambda stage, share: reported.append((stage, share))))
    assert (itk.MultiThreaderBase.GetGlobalMaximumNumberOfThreads(), itk.MultiThreaderBase.GetGlobalDefaultNumberOfThreads()) == before
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert [share for _, share in reported] == [0.0, 1.0]


def test_a_start_and_a_shift_are_part_of_the_result():
    moving = head(2)
    true = Linear(np.eye(2), [400.0, -300.0], "translation")
    fixed = seen_through(moving, small_motion(2, moving))
    fixed = replace(fixed, geometry=replace(fixed.geometry, origin_mm=tuple((np.asarray(fixed.geometry.origin_mm) - true.offset_mm).tolist())))
    for how in ("auto", "centre", "mass"):
        found = run_method(MutualInformation(stages=["rigid"], iterations=150, initialise=how), Pair(fixed, moving), Run())
        assert error_mm(compose(true.inverse(), found), small_motion(2, moving), moving) < 0.15
    started = run_method(MutualInformation(stages=["rigid"], iterations=150, initialise="none"), Pair(fixed, moving), Run(), start=true)
    assert error_mm(compose(true.inverse(), started), small_motion(2, moving), moving) < 0.15


def test_the_shift_lays_boxes_or_masses_onto_each_other():
    array = np.zeros((10, 10), np.float32)
    array[2, 7] = 1.0
    fixed, moving = Volume(array, Geometry.regular((10, 10), 2.0)), Volume(array[::-1], Geometry.regular((10, 10), 2.0, (100.0, 50.0)))
    np.testing.assert_allclose(starting_shift(Pair(fixed, moving), "centre"), [109.0, 59.0])
    np.testing.assert_allclose(starting_shift(Pair(fixed, moving), "auto"), [109.0, 59.0])
    np.testing.assert_allclose(starting_shift(Pair(fixed, moving), "mass"), [109.0, 59.0 + 2 * 5.0])
    np.testing.assert_allclose(starting_shift(Pair(fixed, moving), "none"), [0.0, 0.0])
    nearer = replace(moving, geometry=replace(moving.geometry, origin_mm=(-4.0, -9.0)))
    np.testing.assert_allclose(starting_shift(Pair(fixed, nearer), "auto"), [0.0, 0.0])


def test_the_overlap_counts_what_both_masks_share():
    fixed, moving = (
        Volume(np.zeros((10, 10)), Geometry.regular((10, 10), 1.0, (0, 0))),
        Volume(np.zeros((10, 10)), Geometry.regular((10, 10), 1.0, (5, 0))),
    )
    assert overlap(Pair(fixed, moving)) == (0.5, 100)
    left, top = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    left[:, :6], top[:3] = 1, 1
    assert overlap(Pair(fixed, moving, fixed.with_array(left), moving.with_array(top))) == (pytest.approx(3 / 60), 60)


@pytest.mark.parametrize("far", [True, False])
def test_too_little_in_common_is_told_before_elastix_runs(far):
    moving = head(2)
    moved = replace(moving.geometry, origin_mm=(500.0, 0.0)) if far else moving.geometry
    corner, opposite = np.zeros(moving.array.shape, np.uint8), np.zeros(moving.array.shape, np.uint8)
    corner[:12, :12], opposite[-12:, -12:] = 1, 1
    masks = {} if far else {"fixed_mask": moving.with_array(corner), "moving_mask": moving.with_array(opposite)}
    pair = Pair(Volume(moving.array, moved, "knee.nii"), replace(moving, name="hip.nii"), **masks)
    with pytest.raises(ConcordError, match=r"knee\.nii and hip\.nii: 0 voxels in common") as told:
        run_method(MutualInformation(initialise="none"), pair, Run())
    assert "\n" not in str(told.value)


def test_what_stops_elastix_is_told_in_one_line_with_both_names():
    moving = head(3)
    thin = Volume(moving.array[:2], Geometry.regular((40, 46, 2)), "thin.nii")
    with pytest.raises(ConcordError, match=r"thin\.nii and thin\.nii: elastix stopped: .*less than 4") as told:
        run_method(MutualInformation(stages=["rigid"]), Pair(thin, thin), Run())
    assert "\n" not in str(told.value)
    with pytest.raises(ConcordError, match="too many samples fall outside"):
        elastix_run._update(
            _FailingFilter("Description: ITK ERROR: Metric(0x1): Too many samples map outside moving image buffer: 3 / 90"), Pair(thin, thin)
        )


class _FailingFilter:
    """Stands for elastix where it writes a reason to its log and throws."""

    def __init__(self, reason: str) -> None:
        self.reason, self.folder = reason, ""

    def SetOutputDirectory(self, folder: str) -> None:
        self.folder = folder

    def SetLogFileName(self, name: str) -> None:
        self.name = name

    def SetLogToFile(self, on: bool) -> None:
        assert on

    def SetLogToConsole(self, on: bool) -> None:
        assert not on

    def Update(self) -> None:
        Path(self.folder, self.name).write_text(self.reason)
        raise RuntimeError("Internal elastix error")


def test_the_defaults_are_those_of_the_paper():
    volume = Volume(np.random.default_rng(0).uniform(size=(40, 50, 60)).astype(np.float32), Geometry.regular((60, 50, 40), (1.0, 1.0, 4.0)))
    similarity, bspline = MutualInformation().parameter_maps(Pair(volume, volume), seed=7)
    assert similarity["Transform"] == ["SimilarityTransform"]
    assert bspline["Transform"] == ["BSplineTransform"]
    for values in (similarity, bspline):
        assert values["NumberOfHistogramBins"] == ["75"]
        assert values["MaximumNumberOfIterations"] == ["500"]
        assert values["NumberOfResolutions"] == ["2"]
        assert values["RandomSeed"] == ["7"]
        assert values["FixedImagePyramidSchedule"] == ["2", "2", "1", "1", "1", "1"]  # thick slices are not smoothed further
        assert values["HowToCombineTransforms"] == ["Compose"]
    assert bspline["GridSpacingSchedule"] == ["2", "1"]
    paper = MutualInformation(optimiser="regular-step").parameter_maps(Pair(volume, volume))[0]
    assert paper["NumberOfSpatialSamples"] == ["120000"]  # 200,000, but no more than there are voxels
    assert paper["NewSamplesEveryIteration"] == ["false"]


@both_dimensions
@pytest.mark.parametrize("control_points", [7, 10])
def test_the_finest_grid_has_the_control_points_that_are_asked_for(control_points, dimension):
    moving = head(dimension)
    settings = MutualInformation(stages=["bspline"], control_points=control_points, iterations=1)
    found = run_method(settings, Pair(moving, moving), Run())
    assert found.grid.size == (control_points,) * dimension


def test_control_points_can_be_given_by_their_distance():
    moving = head(2)
    found = run_method(MutualInformation(stages=["bspline"], control_point_spacing_mm=8.0, iterations=1), Pair(moving, moving), Run())
    np.testing.assert_allclose(found.grid.spacing_mm, 8.0)


@pytest.mark.parametrize(
    ("key", "value"), [("stages", []), ("stages", ["spline"]), ("levels", 0), ("bins", 1), ("mask_threshold", 1.0), ("initialise", "yes")]
)
def test_settings_are_checked(key, value):
    with pytest.raises(ConcordError, match=f"methods.mi.{key}"):
        create_method("mi", {key: value})


@both_dimensions
def test_the_result_is_what_elastix_and_transformix_say_it_is(dimension, tmp_path):
    import itk

    moving = head(dimension)
    fixed = seen_through(moving, Composite((wave(moving), small_motion(dimension, moving, "similarity"))))
    settings = MutualInformation(stages=["translation", "rigid", "similarity", "affine", "bspline"], iterations=8, samples=1000)
    run_method(settings, Pair(fixed, moving), Run(seed=5))  # elastix's first run in a process that has done much else can differ from all later ones
    images = [volumes.to_itk(volume, np.float32) for volume in (fixed, moving)]
    parameters = itk.ParameterObject.New()
    for values in settings.parameter_maps(Pair(fixed, moving), seed=5):
        parameters.AddParameterMap(values)
    _, found = itk.elastix_registration_method(*images, parameter_object=parameters, number_of_threads=1, log_to_console=False)
    theirs = itk.transformix_deformation_field(images[1], found, log_to_console=False, output_directory=str(tmp_path))
    theirs = np.array(itk.array_from_image(theirs))
    assert np.abs(theirs).max() > 1
    maps = [dict(found.GetParameterMap(i)) for i in range(found.GetNumberOfParameterMaps())]
    np.testing.assert_allclose(from_elastix(maps).displacement_mm(fixed.geometry), theirs, atol=1e-3)
    ours = run_method(settings, Pair(fixed, moving), Run(seed=5))
    np.testing.assert_allclose(ours.displacement_mm(fixed.geometry), theirs, atol=1e-3)
