"""The cardiac phantom: its truth is exact, its contours well-formed, its groups plausible."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.datasets.phantoms.cardiac import GROUPS, CardiacPhantom, make_subject
from pipeline.datasets.phantoms.cardiac_anatomy import GROUP_RANGES, Rays, _ramp, draw_heart
from pipeline.errors import ConcordError

DATA = Path(os.environ.get("CONCORD_TEST_DATA", Path(__file__).resolve().parents[3] / "../shared/data")) / "acdc"
PHANTOM = CardiacPhantom()


@cache
def subject_of(group):
    return make_subject(PHANTOM, 3, group)


def ejection(subject, label):
    return 1 - (subject.labels["ES"] == label).sum() / (subject.labels["ED"] == label).sum()


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def pulled(array, field_mm, geometry, order):
    """`array` of the moving phase at the fixed grid's points plus the displacement: a second way, by voxel index."""
    index = geometry.index_at(geometry.grid_points() + field_mm)
    return ndimage.map_coordinates(array, np.moveaxis(index, -1, 0)[::-1], order=order, mode="nearest")


def determinant(field_mm, spacing_mm):
    """In-plane Jacobian determinant by central differences; the third row and column are those of the identity."""
    (xy, yy), (xx, yx) = (np.moveaxis(np.gradient(field_mm[..., :2], spacing_mm, axis=axis), -1, 0) for axis in (1, 2))
    return (1 + xx) * (1 + yy) - xy * yx


@pytest.mark.parametrize("group", GROUPS)
def test_systolic_labels_warped_by_the_truth_give_the_diastolic_labels(group):
    subject = subject_of(group)
    for fixed, moving in (("ED", "ES"), ("ES", "ED")):
        field = subject.true_displacement_mm(fixed, moving)
        shares = [pulled((subject.labels[moving] == label).astype(float), field, subject.geometry, 1) for label in range(4)]
        warped = np.argmax(shares, axis=0)
        for label in (1, 2, 3):
            here = subject.labels[fixed] == label
            assert dice(warped == label, here) > 0.95
            assert dice(subject.labels[moving] == label, here) < 0.9 or group in ("DCM", "MINF", "RV")


@pytest.mark.parametrize("group", GROUPS)
def test_the_two_true_displacements_undo_each_other(group):
    subject = subject_of(group)
    there, back = subject.true_displacement_mm("ED", "ES"), subject.true_displacement_mm("ES", "ED")
    back_there = np.stack([pulled(back[..., axis].astype(float), there, subject.geometry, 3) for axis in range(3)], axis=-1)
    residual = np.linalg.norm(there + back_there, axis=-1)
    assert np.linalg.norm(there, axis=-1).max() > 4
    assert np.quantile(residual, 0.999) < 0.2, "interpolation on 1.5 mm pixels is all that may be left"


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), group=st.sampled_from(GROUPS))
def test_any_heart_is_inverted_to_a_micrometre(seed, group):
    heart = draw_heart(np.random.default_rng(seed), GROUP_RANGES[group], 3)
    grid = np.mgrid[-90:90:3.0, -90:90:3.0].T
    points = np.broadcast_to(grid, (3, *grid.shape))
    assert np.abs(heart.to_diastole(heart.to_systole(points)) - points).max() < 1e-3
    assert np.abs(heart.to_systole(heart.to_diastole(points)) - points).max() < 1e-3


@pytest.mark.parametrize("group", GROUPS)
def test_the_true_field_never_folds_and_stays_in_the_plane(group):
    for field in subject_of(group).displacement_mm.values():
        assert determinant(field, PHANTOM.spacing_mm).min() > 0
        assert not field[..., 2].any()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), group=st.sampled_from(GROUPS))
def test_the_radial_map_grows_everywhere_with_the_derivative_it_states(seed, group):
    heart = draw_heart(np.random.default_rng(seed), GROUP_RANGES[group], 5)
    theta, radius = np.meshgrid(np.linspace(-np.pi, np.pi, 61), np.linspace(0.5, 130, 300))
    rays = heart.rays(np.broadcast_to(theta, (5, *theta.shape)))
    q, step = radius**2, 1e-4
    slope = rays.contract(q)[1]
    assert slope.min() > 0.05
    finite = (rays.contract(q + step)[0] - rays.contract(q - step)[0]) / (2 * step)
    assert np.allclose(slope, finite, atol=2e-3)


def test_a_ring_that_does_not_thicken_keeps_its_area():
    full = np.full(1, 1.0)
    rays = Rays(20 * full, 30 * full, 30 * full, 0.6 * full, 0.6 * full, 0 * full, 0.0)
    inner, outer = (rays.contract(np.array([r**2]))[0].item() for r in (24.0, 30.0))
    assert outer - inner == pytest.approx(30**2 - 24**2, rel=0.02)
    assert rays.contract(np.array([20.0**2]))[0].item() == pytest.approx(400 * (1 - 0.6 * 2 ** (-1 / 8)))


def test_the_ramp_is_a_step_of_bounded_slope():
    x = np.linspace(-0.5, 1.5, 2001)
    value, slope = _ramp(x)
    assert value[0] == 0 and value[-1] == 1 and value[1000] == pytest.approx(0.5)
    assert slope.max() == pytest.approx(1.25)
    assert np.allclose(np.gradient(value, x), slope * ((x >= 0) & (x <= 1)), atol=7e-3)


@pytest.mark.parametrize("group", GROUPS)
def test_ejection_fractions_lie_in_the_range_of_the_group(group):
    small = CardiacPhantom(size=96, spacing_mm=2, slices=5)
    for seed in range(2):
        subject, ranges = make_subject(small, seed, group), GROUP_RANGES[group]
        assert ranges.lv_ef[0] - 0.02 < ejection(subject, 3) < ranges.lv_ef[1] + 0.02
        assert ranges.rv_ef[0] - 0.03 < ejection(subject, 1) < ranges.rv_ef[1] + 0.03


def test_groups_differ_as_their_names_say():
    volume = {group: [(subject_of(group).labels["ED"] == label).sum() for label in (1, 2, 3)] for group in GROUPS}
    assert volume["DCM"][2] > 1.3 * volume["NOR"][2]
    assert volume["HCM"][1] > 1.2 * volume["NOR"][1]
    assert volume["RV"][0] > 1.2 * volume["NOR"][0]
    assert ejection(subject_of("DCM"), 3) < 0.4 and ejection(subject_of("MINF"), 3) < 0.45 and ejection(subject_of("HCM"), 3) > 0.55


def test_an_infarct_is_thin_and_does_not_move():
    heart = draw_heart(np.random.default_rng(1), GROUP_RANGES["MINF"], 5)
    worst = int(heart.scar.argmax())
    rays = heart.rays(np.array([heart.scar_angle, heart.scar_angle + np.pi])[None, None])
    inside = np.abs(rays.squeeze[worst, 0])
    assert inside[0] < 0.2 * inside[1]
    thickness = (rays.epi_mm - rays.endo_mm)[worst, 0]
    assert thickness[0] < 0.8 * thickness[1]


@pytest.mark.parametrize("group", GROUPS)
def test_contours_are_well_formed(group):
    subject = subject_of(group)
    for labels in subject.labels.values():
        assert set(np.unique(labels)) == {0, 1, 2, 3} and labels.dtype == np.uint8
        for plane in labels:
            left = plane == 3
            assert left.any() and ndimage.label(left)[1] == 1 and ndimage.label(plane == 2, np.ones((3, 3)))[1] == 1
            assert set(np.unique(plane[ndimage.binary_dilation(left) & ~left])) == {2}, "the left cavity touches nothing but myocardium"
            assert not (plane[[0, -1]].any() or plane[:, [0, -1]].any())


def test_the_apex_is_smaller_than_the_base():
    areas = (subject_of("NOR").labels["ED"] == 3).sum(axis=(1, 2))
    assert areas[0] > 1.5 * areas[-1]


def test_same_seed_same_bits_and_another_seed_another_heart():
    first, again, other = (make_subject(CardiacPhantom(size=64, slices=3, spacing_mm=3), seed, "NOR") for seed in (5, 5, 6))
    for phase in ("ED", "ES"):
        assert np.array_equal(first.images[phase], again.images[phase])
        assert not np.array_equal(first.labels[phase], other.labels[phase])
    assert all(np.array_equal(first.displacement_mm[pair], again.displacement_mm[pair]) for pair in first.displacement_mm)


def test_noise_and_bias_change_the_image_but_not_the_heart():
    plain, noisy = (make_subject(CardiacPhantom(size=64, slices=3, spacing_mm=3, noise=n, bias=b), 2, "RV") for n, b in ((0, 0), (30, 1)))
    assert np.array_equal(plain.labels["ES"], noisy.labels["ES"])
    assert np.array_equal(plain.displacement_mm["ED", "ES"], noisy.displacement_mm["ED", "ES"])
    assert np.abs(plain.images["ED"] - noisy.images["ED"]).mean() > 10


@pytest.mark.parametrize("group", GROUPS)
def test_contrast_is_that_of_bright_blood_cine(group):
    subject = subject_of(group)
    for phase in ("ED", "ES"):
        image, labels = subject.images[phase], subject.labels[phase]
        right, muscle, left = (np.median(image[labels == label]) for label in (1, 2, 3))
        assert image.dtype == np.float32 and image.min() >= 0 and image.max() <= 1000
        assert min(left, right) > 1.5 * muscle > 100
        assert image.shape == subject.geometry.shape


def test_blood_and_papillary_muscles_are_drawn_anew_at_systole():
    subject = subject_of("NOR")
    warped = pulled(subject.images["ES"], subject.true_displacement_mm("ED", "ES"), subject.geometry, 1)
    cavity = ndimage.binary_erosion(subject.labels["ED"] == 3, np.ones((1, 7, 7)))
    assert np.abs(warped - subject.images["ED"])[cavity].mean() > 30


def test_without_noise_the_chest_that_does_not_move_looks_the_same_in_both_phases():
    subject = make_subject(CardiacPhantom(size=96, spacing_mm=2, slices=3, noise=0), 4, "NOR")
    still = np.linalg.norm(subject.true_displacement_mm("ED", "ES"), axis=-1) < 0.02
    still = ndimage.binary_erosion(still, np.ones((1, 5, 5)))
    assert still.mean() > 0.1 and np.ptp(subject.images["ED"][still]) > 300
    assert np.abs(subject.images["ED"] - subject.images["ES"])[still].mean() < 1


def test_noise_of_the_two_phases_is_independent():
    plain, noisy = (make_subject(CardiacPhantom(size=96, spacing_mm=2, slices=3, noise=n), 4, "NOR") for n in (0, 20))
    # in air the Rician mean would correlate them
    bright = np.minimum(plain.images["ED"], plain.images["ES"]) > 200
    diastole, systole = ((noisy.images[phase] - plain.images[phase])[bright] for phase in ("ED", "ES"))
    assert abs(np.corrcoef(diastole, systole)[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size": 4}, "size 4"),
        ({"slices": 0}, "0 slices"),
        ({"spacing_mm": 0}, "spacing 0"),
        ({"noise": -1}, "noise -1"),
        ({"breathing_mm": -2}, "-2 mm"),
    ],
)
def test_a_bad_setting_is_refused_by_name(wrong, said):
    with pytest.raises(ConcordError, match=said):
        CardiacPhantom(**wrong)


def test_an_unknown_group_or_phase_is_refused():
    with pytest.raises(ConcordError, match=r"'XYZ'.*NOR"):
        make_subject(PHANTOM, 0, "XYZ")
    with pytest.raises(ConcordError, match="'ED' and 'ED'"):
        subject_of("NOR").true_displacement_mm("ED", "ED")


@pytest.mark.realdata
def test_grey_values_are_near_those_of_clinical_images():
    nibabel = pytest.importorskip("nibabel")
    if not DATA.is_dir():
        pytest.skip(f"no ACDC data under {DATA}: set CONCORD_TEST_DATA")
    real = []
    for folder in sorted(DATA.glob("patient*"))[::6]:
        truth = sorted(folder.glob("*_gt.nii*"))[0]
        labels, image = (np.asarray(nibabel.load(file).dataobj) for file in (truth, str(truth).replace("_gt", "")))
        real.append([image[labels == label].mean() for label in (1, 2, 3)])
    ours = [[subject.images["ED"][subject.labels["ED"] == label].mean() for label in (1, 2, 3)] for subject in map(subject_of, GROUPS)]
    assert np.abs(np.mean(ours, axis=0) / np.mean(real, axis=0) - 1).max() < 0.25
