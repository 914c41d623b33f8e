"""The MR-TRUS phantom: its truth is exact, its glands vary as they should, its ultrasound obeys the physics that it claims."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.datasets.phantoms.trus import Pressure, TrusPhantom, best_rigid, draw_poses, draw_probe, make_subject
from pipeline.datasets.phantoms.trus_anatomy import draw_pelvis, landmarks, surface
from pipeline.datasets.phantoms.trus_gland import draw_gland
from pipeline.datasets.phantoms.trus_mr import mr_image
from pipeline.datasets.phantoms.trus_probe import Beams, Probe, draw_beams, scan_converted
from pipeline.datasets.phantoms.trus_tissue import TABLE, Tissue, column
from pipeline.datasets.phantoms.trus_ultrasound import Medium, Scanner, compressed, envelope, grey_of, reflections
from pipeline.errors import ConcordError
from pipeline.volumes import Geometry

COARSE = {"mr_spacing_mm": (1.2, 1.2, 3.0), "us_spacing_mm": 1.0}
KINDS = ("end-fire", "side-fire")
SILENT = Scanner(tgc=0.0, floor_db=-200.0)


@cache
def subject_of(seed, **changes):
    return make_subject(TrusPhantom(**{**COARSE, **changes}), seed)


@cache
def pelvis_of(seed):
    return draw_pelvis(np.random.default_rng([seed, 0]))


def moved(points, matrix):
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def pulled(array, geometry, points):
    index = (points - geometry.origin_mm) / geometry.spacing_mm
    return ndimage.map_coordinates(array.astype(float), np.moveaxis(index, -1, 0)[::-1], order=1)


def gland_moved_to_ultrasound(subject, matrix):
    points = moved(subject.us_geometry.grid_points(), np.linalg.inv(matrix))
    return pulled(subject.mr_gland, subject.mr_geometry, points) > 0.5


def simple_probe(**changes):
    """At the origin: beams leave in y, the sweep turns about x."""
    return Probe(
        **{
            "pivot_mm": np.zeros(3),
            "axes": np.eye(3),
            "radius_mm": 10.0,
            "apex_mm": 0.0,
            "half_fan": 0.6,
            "half_sweep": 0.5,
            "depth_mm": 60.0,
            **changes,
        }
    )


def simple_beams(planes=40, fans=60, step_mm=0.3):
    as_float = [np.linspace(-0.5, 0.5, planes), np.linspace(-0.6, 0.6, fans), np.arange(0, 60, step_mm)]
    return Beams(*(part.astype(np.float32) for part in as_float))


def even_medium(beams, scatter=1.0, impedance=1.6, attenuation=0.0):
    return Medium(*(np.full(beams.shape, value, dtype=np.float32) for value in (scatter, impedance, attenuation)))


def power_db(echoes, **where):
    return 10 * np.log10((echoes**2).mean(**where))


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_subject():
    phantom = TrusPhantom(**COARSE)
    again, other = make_subject(phantom, 3), make_subject(phantom, 4)
    for name in ("mr", "us", "mr_gland", "mr_zones", "us_gland", "surface_mm", "landmarks_mr_mm", "landmarks_us_mm", "true_matrix"):
        assert getattr(again, name).tobytes() == getattr(subject_of(3), name).tobytes(), name
        assert getattr(other, name).tobytes() != getattr(again, name).tobytes(), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_gland_in_the_ultrasound_is_the_gland_in_mr_moved_by_the_truth(kind):
    subject = subject_of(3, geometry=kind)
    here = subject.us_gland > 0
    assert dice(gland_moved_to_ultrasound(subject, subject.true_matrix), here) > 0.95
    assert dice(gland_moved_to_ultrasound(subject, np.linalg.inv(subject.true_matrix)), here) < 0.7, "the direction matters"


@pytest.mark.parametrize("kind", KINDS)
def test_landmarks_correspond_through_the_truth(kind):
    subject = subject_of(3, geometry=kind)
    assert len(subject.landmarks_mr_mm) == len(set(subject.landmark_names)) >= 5
    assert np.abs(moved(subject.landmarks_mr_mm, subject.true_matrix) - subject.landmarks_us_mm).max() < 1e-6
    assert np.linalg.norm(subject.landmarks_mr_mm - subject.landmarks_us_mm, axis=1).min() > 5


@pytest.mark.parametrize(("pose_mm", "pose_deg"), ((30.0, 20.0), (5.0, 3.0), (0.0, 0.0)))
def test_poses_are_rigid_within_their_bounds_and_fill_them(pose_mm, pose_deg):
    angles, places = [], []
    for seed in range(40):
        mr_pose, us_pose = draw_poses(TrusPhantom(pose_mm=pose_mm, pose_deg=pose_deg), pelvis_of(0), np.random.default_rng(seed))
        rotation = (us_pose @ np.linalg.inv(mr_pose))[:3, :3]
        assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-12) and np.linalg.det(rotation) == pytest.approx(1)
        angles.append(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))
        places.append(mr_pose[:3, 3])
    assert 0.85 * pose_deg <= max(angles) <= pose_deg + 1e-5
    assert 0.85 * pose_mm <= np.abs(places).max() <= pose_mm


def test_the_mr_grid_begins_about_a_hundred_millimetres_from_the_gland():
    for seed in (3, 4):
        subject = subject_of(seed)
        centre = subject.surface_mm.reshape(-1, 3).mean(axis=0)
        assert 85 < np.linalg.norm(centre - subject.mr_geometry.origin_mm) < 140
        assert subject.mr_geometry.contains(subject.surface_mm.reshape(-1, 3)).all()
        assert subject.us_geometry.contains(moved(subject.surface_mm.reshape(-1, 3), subject.true_matrix)).all()


@pytest.mark.parametrize("seed", (3, 4))
def test_the_surface_lies_on_the_border_of_the_labels(seed):
    subject = subject_of(seed)
    mask = subject.us_gland > 0
    signed = (ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)) * subject.us_geometry.spacing_mm[0]
    distance = pulled(signed, subject.us_geometry, moved(subject.surface_mm, subject.true_matrix))
    assert np.abs(distance).max() < 1.0
    assert abs(distance.mean()) < 0.2


@pytest.mark.parametrize("seed", (3, 4, 5))
def test_the_surface_is_closed_and_holds_the_volume_of_the_labels(seed):
    triangles = surface(pelvis_of(seed))
    assert 2000 < len(triangles) < 4000
    corners, index = np.unique(triangles.round(5).reshape(-1, 3), axis=0, return_inverse=True)
    faces = index.reshape(-1, 3)
    edges = np.sort(np.concatenate((faces[:, :2], faces[:, 1:], faces[:, ::2])), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    assert len(corners) - len(edges) // 2 + len(faces) == 2, "one closed sphere"
    volume_ml = abs(np.linalg.det(triangles).sum()) / 6 / 1000
    lattice = np.stack(np.meshgrid(*(np.arange(-50, 50, 1.25),) * 3, indexing="ij"), axis=-1)
    assert volume_ml == pytest.approx((pelvis_of(seed).gland_depth_mm(lattice) > 0).sum() * 1.25**3 / 1000, rel=0.01)


def test_glands_of_20_to_120_ml_grow_in_their_transition_zone():
    volumes, shares = [], []
    lattice = np.stack(np.meshgrid(*(np.arange(-45, 45, 3.0),) * 3, indexing="ij"), axis=-1)
    for seed in range(40):
        zones = pelvis_of(seed).zones(lattice)
        volumes.append((zones > 0).sum() * 0.027)
        shares.append((zones == 2).sum() / (zones > 0).sum())
    assert min(volumes) > 19 and max(volumes) < 121
    assert min(volumes) < 28 and max(volumes) > 90 and 35 < np.median(volumes) < 60
    assert np.corrcoef(np.log(volumes), shares)[0, 1] > 0.6
    assert min(shares) > 0.15 and max(shares) < 0.92


def test_glands_differ_in_findings_and_shape():
    glands = [draw_gland(np.random.default_rng(seed)) for seed in range(30)]
    for name in ("lesions", "calcifications"):
        counts = [len(getattr(gland, name)) for gland in glands]
        assert min(counts) == 0 and max(counts) > 1, name
    assert min(len(gland.nodules) for gland in glands) >= 2
    lopsided = [gland.lopsided for gland in glands]
    assert min(lopsided) < -0.05 and max(lopsided) > 0.05


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_landmarks_lie_in_what_they_name(seed):
    pelvis = pelvis_of(seed)
    names, places = landmarks(pelvis)
    tissue = dict(zip(names, pelvis.tissue(places), strict=True))
    depth = dict(zip(names, pelvis.gland_depth_mm(places), strict=True))
    assert tissue["verumontanum"] in (Tissue.URETHRA, Tissue.CALCIFICATION)
    assert all(depth[name] > 0.2 for name in ("apex", "bladder neck", "mid-urethra", "verumontanum"))
    assert all(tissue[name] == Tissue.CALCIFICATION for name in names if name.startswith("calcification"))
    assert all(depth[name] > 0.5 for name in names if name.startswith(("nodule", "calcification")))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_warp_is_inverted_and_steep_nowhere(seed):
    warp = pelvis_of(seed).warp
    points = np.random.default_rng(seed).uniform(-70, 70, (500, 3))
    assert np.abs(warp(warp.inverse(points)) - points).max() < 1e-9
    step = 1e-4
    jacobian = np.stack([(warp(points + step * axis) - warp(points - step * axis)) / (2 * step) for axis in np.eye(3)], axis=-1)
    assert np.linalg.det(jacobian).min() > 0.2


def test_mr_shows_the_tissues_of_a_t2_weighted_scan_in_their_order():
    subject = subject_of(3, noise=0.0, bias=0.0)
    peripheral, inner = (np.median(subject.mr[subject.mr_zones == zone]) for zone in (1, 2))
    assert peripheral > 1.4 * inner
    assert np.array_equal(subject.mr_zones > 0, subject.mr_gland == 1)
    greys = {tissue: TABLE[tissue].t2 for tissue in Tissue}
    assert greys[Tissue.URINE] > greys[Tissue.PERIPHERAL] > greys[Tissue.FAT] > greys[Tissue.TRANSITION] > greys[Tissue.MUSCLE] > greys[Tissue.CORTEX]
    assert subject.mr.dtype == np.float32 and 850 < np.quantile(subject.mr, 0.995) < 1200


def test_noise_and_bias_change_mr_as_much_as_they_say():
    geometry = Geometry.regular((60, 60, 20), (2.0, 2.0, 3.0))
    settings_of = ({"noise": 0.0, "bias": 0.0}, {"noise": 20.0, "bias": 0.0}, {"noise": 0.0, "bias": 0.5})
    clean, noisy, biased = (mr_image(pelvis_of(3), geometry, np.eye(4), **each, rng=np.random.default_rng(1)) for each in settings_of)
    bright = clean > 400
    assert (noisy - clean)[bright].std() == pytest.approx(20, rel=0.03)
    ratio = biased[bright] / clean[bright]
    assert 0.75 <= ratio.min() < 0.85 and 1.15 < ratio.max() <= 1.25


def test_a_thick_slice_is_the_mean_of_what_lies_within():
    geometry = Geometry.regular((60, 60, 20), (1.5, 1.5, 3.0))
    image = mr_image(pelvis_of(3), geometry, np.eye(4), noise=0.0, bias=0.0, rng=np.random.default_rng(1))
    points = geometry.grid_points()
    layers = [column("t2")[pelvis_of(3).tissue(points + [0, 0, shift])] for shift in np.linspace(-1.2, 1.2, 7)]
    mean, middle = np.mean(layers, axis=0), layers[3]
    differ = np.abs(mean - middle) > 150
    assert differ.mean() > 0.03
    assert np.abs(image - mean)[differ].mean() < 0.5 * np.abs(image - middle)[differ].mean()


def test_both_probes_and_all_spacings_show_one_anatomy():
    one, other = subject_of(3), subject_of(3, geometry="side-fire")
    for name in ("mr", "mr_gland", "landmarks_mr_mm", "surface_mm", "true_matrix", "us_gland"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert not np.array_equal(one.us, other.us)
    finer = subject_of(3, us_spacing_mm=0.8)
    assert np.array_equal(one.mr, finer.mr) and np.array_equal(one.landmarks_us_mm, finer.landmarks_us_mm)
    assert finer.us_gland.sum() * 0.8**3 == pytest.approx(one.us_gland.sum(), rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_the_probe_stays_off_the_gland_and_sees_nearly_all_of_it(kind):
    for seed in range(8):
        pelvis = pelvis_of(seed)
        triangles = surface(pelvis)
        probe, contact = draw_probe(TrusPhantom(geometry=kind), pelvis, triangles, np.random.default_rng(seed))
        assert probe.beam_coordinates(triangles.reshape(-1, 3))[2].min() > 3.4
        assert probe.sees(triangles.reshape(-1, 3)).mean() > 0.98, seed
        assert np.abs(probe.beam_coordinates(contact)).max() < 1e-9, "where the middle beam leaves the probe"
        assert pelvis.tissue(contact + 0.0, probe=True) in (Tissue.GEL, Tissue.MUCOSA, Tissue.RECTAL_WALL, Tissue.FAT)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ultrasound_is_8_bit_and_black_outside_the_sector(kind):
    subject = subject_of(3, geometry=kind)
    assert subject.us.dtype == np.uint8 and subject.us.max() > 230
    black = ndimage.label(subject.us == 0)[0]
    assert black[-1, -1, 0] > 0 and 0.15 < (black > 0).mean() < 0.8, "behind the probe"
    inside = subject.us[subject.us_gland > 0]
    assert (inside > 0).mean() > 0.85 and 50 < np.median(inside) < 150


@pytest.mark.parametrize("probe", (simple_probe(), simple_probe(apex_mm=40.0, pivot_mm=np.array([3.0, -20.0, 5.0]))))
def test_scan_conversion_fills_the_sector_and_nothing_else(probe):
    geometry = Geometry.regular((50, 45, 40), 2.0, (-50, -30, -40))
    beams = simple_beams()
    volume = scan_converted(np.full(beams.shape, 255, dtype=np.float32), probe, beams, geometry, np.eye(4))
    sector = probe.sees(geometry.grid_points())
    agree = (volume == 255) == sector
    assert set(np.unique(volume)) == {0, 255} and 0.05 < sector.mean() < 0.9
    assert (~agree).sum() <= 2, "rounding on the sector's border is all that may differ"


def test_beam_coordinates_and_points_undo_each_other():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    axes = np.stack((turn[0], turn[1], np.cross(turn[0], turn[1])))
    probe = simple_probe(pivot_mm=np.array([4.0, -7.0, 2.0]), axes=axes, apex_mm=35.0)
    plane, fan, depth = np.meshgrid(np.linspace(-0.4, 0.4, 5), np.linspace(-0.5, 0.5, 5), np.linspace(1, 50, 5), indexing="ij")
    for found, expected in zip(probe.beam_coordinates(probe.points_at(plane, fan, depth)), (plane, fan, depth), strict=True):
        assert np.allclose(found, expected, atol=1e-9)
    straight = probe.points_at(np.array(0.0), np.array(0.0), np.array(0.0))
    assert np.allclose(straight, probe.pivot_mm + 10 * axes[1]), "the middle beam leaves the surface forwards"


def test_uneven_planes_are_interpolated_by_their_true_angles():
    even = simple_beams()
    planes = np.sort(np.concatenate(([-0.5, 0.5], np.random.default_rng(1).uniform(-0.5, 0.5, 38)))).astype(np.float32)
    beams = Beams(planes, even.fans, even.depths_mm)
    image = np.broadcast_to((100 + 200 * planes)[:, None, None], beams.shape).astype(np.float32)
    geometry = Geometry.regular((21, 21, 21), 2.0, (-20, 20, -20))
    points = geometry.grid_points()
    expected = 100 + 200 * np.arctan2(points[..., 2], points[..., 1])
    inside = simple_probe().sees(points)
    volume = scan_converted(image, simple_probe(), beams, geometry, np.eye(4))
    assert np.abs(volume[inside] - expected[inside]).max() < 0.51


def test_the_envelope_of_even_tissue_is_rayleigh_distributed():
    beams = simple_beams()
    echoes = envelope(even_medium(beams), simple_probe(), beams, SILENT, np.random.default_rng(2))[4:-4, 5:-5, 5:-5]
    assert echoes.mean() / echoes.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.02), "1.91"
    assert (echoes**2).mean() == pytest.approx(1, rel=0.06)
    shares = [(echoes > level).mean() for level in (0.5, 1.0, 2.0)]
    assert shares == pytest.approx(np.exp([-0.25, -1.0, -4.0]), abs=0.02)
    neighbours = np.corrcoef(echoes[:, :, :-1].ravel(), echoes[:, :, 1:].ravel())[0, 1]
    assert 0.5 < neighbours < 0.95, "grains are larger than a sample"


@pytest.mark.parametrize(("attenuation", "frequency", "tgc"), ((0.5, 6.5, 0.0), (0.5, 4.0, 0.0), (0.8, 5.0, 0.5), (0.5, 6.5, 0.5)))
def test_echoes_fade_with_depth_by_twice_the_attenuation_not_compensated(attenuation, frequency, tgc):
    beams = simple_beams()
    scanner = Scanner(frequency_mhz=frequency, tgc=tgc, floor_db=-200)
    echoes = envelope(even_medium(beams, attenuation=attenuation), simple_probe(), beams, scanner, np.random.default_rng(3))
    slope = np.polyfit(beams.depths_mm[5:-5] / 10, power_db(echoes, axis=(0, 1))[5:-5], 1)[0]
    assert slope == pytest.approx(-2 * frequency * (attenuation - tgc), abs=0.15), "dB per cm"


@pytest.mark.parametrize("tissue", (Tissue.CORTEX, Tissue.CALCIFICATION, Tissue.GAS))
def test_bone_calcification_and_gas_throw_shadows(tissue):
    beams = simple_beams()
    medium, row = even_medium(beams, attenuation=0.5), TABLE[tissue]
    block = np.s_[:, 25:35, 80:90]
    medium.attenuation[block], medium.impedance[block] = row.attenuation, row.impedance
    echoes = envelope(medium, simple_probe(), beams, Scanner(), np.random.default_rng(4))
    behind, beside = echoes[:, 28:32, 110:150], echoes[:, 5:15, 110:150]
    assert power_db(behind) < power_db(beside) - 25
    assert power_db(echoes[:, 28:32, 20:60]) == pytest.approx(power_db(echoes[:, 5:15, 20:60]), abs=1), "nothing changes in front"
    assert power_db(echoes[:, 28:32, 79:82]) > power_db(beside) + 10, "its front is bright"


def test_tissue_behind_urine_is_enhanced_by_what_urine_does_not_absorb():
    beams = simple_beams()
    medium, urine = even_medium(beams, attenuation=0.5, impedance=1.55), TABLE[Tissue.URINE]
    medium.attenuation[:, 25:35, 60:100], medium.scatter[:, 25:35, 60:100] = urine.attenuation, 0.003
    echoes = envelope(medium, simple_probe(), beams, Scanner(), np.random.default_rng(5))
    gain = power_db(echoes[:, 28:32, 120:160]) - power_db(echoes[:, 5:15, 120:160])
    assert gain == pytest.approx(2 * 6.5 * (0.5 - urine.attenuation) * 1.2, abs=1.0), "1.2 cm of urine"
    assert power_db(echoes[:, 28:32, 70:90]) < -25


def test_an_interface_reflects_by_its_impedance_jump_and_less_when_it_is_tilted():
    beams, probe = simple_beams(planes=20), simple_probe(half_fan=0.6)
    far = beams.depths_mm + 10
    lateral, ahead = far * np.sin(beams.fans)[:, None], far * np.cos(beams.fans)[:, None]
    strength = {}
    for tilt in (0.0, 0.5, 1.0):
        for other in (1.7, 2.2):
            plane = np.where(ahead * np.cos(tilt) + lateral * np.sin(tilt) > 40, other, 1.6).astype(np.float32)
            echo = reflections(np.broadcast_to(plane, beams.shape), probe, beams)
            strength[tilt, other] = echo[:, 28:32].max()
    assert strength[0.0, 1.7] > 1.2 * strength[0.5, 1.7] > 1.44 * strength[1.0, 1.7]
    assert strength[0.0, 2.2] > 3 * strength[0.0, 1.7]
    assert strength[1.0, 1.7] < 0.35 * strength[0.0, 1.7]
    assert not reflections(np.full(beams.shape, 1.6, dtype=np.float32), probe, beams).any()


def test_log_compression_is_linear_in_decibels_and_clipped():
    scanner = Scanner(range_db=60)
    greys = compressed(np.array([1.0, 10**0.5, 10.0, 1e4, 0.0], dtype=np.float32), scanner)
    assert np.diff(greys[:3]) == pytest.approx([42.5, 42.5], abs=0.01)
    assert greys[3] == 255 and greys[4] == 0


def test_deformation_changes_the_ultrasound_alone_and_keeps_the_rigid_part_as_the_truth():
    rigid, pressed = subject_of(3), subject_of(3, deformation_mm=5.0)
    for name in ("mr", "mr_gland", "mr_zones", "surface_mm", "landmarks_mr_mm", "true_matrix"):
        assert np.array_equal(getattr(rigid, name), getattr(pressed, name)), name
    assert not np.array_equal(rigid.us_gland, pressed.us_gland)
    residual = np.linalg.norm(moved(pressed.landmarks_mr_mm, pressed.true_matrix) - pressed.landmarks_us_mm, axis=1)
    assert 0.3 < residual.max() < 5.0
    overlap = dice(gland_moved_to_ultrasound(pressed, pressed.true_matrix), pressed.us_gland > 0)
    assert 0.85 < overlap < 0.985
    centres = [
        np.array(pressed.us_geometry.points_at(np.argwhere(gland)[:, ::-1].mean(axis=0)))
        for gland in (pressed.us_gland, gland_moved_to_ultrasound(pressed, pressed.true_matrix))
    ]
    assert np.linalg.norm(centres[0] - centres[1]) < 0.8, "nothing rigid is left over"
    assert (rigid.us_gland > 0).mean() == pytest.approx((pressed.us_gland > 0).mean(), rel=0.15)


def test_the_push_is_strongest_at_the_probe_smooth_and_undone():
    pressure = Pressure(np.array([0.0, 20.0, 0.0]), np.array([0.0, -6.0, 0.0]))
    line = np.stack((np.zeros(60), np.linspace(20, -40, 60), np.zeros(60)), axis=1)
    push = np.linalg.norm(pressure.offset(line), axis=1)
    assert push[0] == pytest.approx(6) and (np.diff(push) < 0).all() and push[-1] < 0.05
    points = np.random.default_rng(0).uniform(-40, 40, (400, 3))
    assert np.abs(pressure.released(pressure.pressed(points)) - points).max() < 1e-9


def test_the_best_rigid_motion_of_a_rigid_motion_is_itself():
    matrix = subject_of(3).true_matrix
    points = np.random.default_rng(0).normal(0, 20, (50, 3))
    assert np.allclose(best_rigid(points, moved(points, matrix)), matrix, atol=1e-9)


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    (
        ("geometry", "transabdominal", "end-fire, side-fire"),
        ("mr_spacing_mm", (0.6, 0.6), "three numbers"),
        ("mr_spacing_mm", (0.6, -0.6, 3.0), "0.3 to 8"),
        ("us_spacing_mm", 0.0, "0.25 to 3"),
        ("noise", -1.0, "0 to 300"),
        ("bias", float("nan"), "0 to 1.9"),
        ("pose_deg", 90.0, "0 to 45"),
        ("deformation_mm", 20.0, "0 to 8"),
    ),
)
def test_bad_settings_are_told_in_one_line(setting, value, told):
    with pytest.raises(ConcordError) as caught:
        TrusPhantom(**{setting: value})
    assert setting in str(caught.value) and told in str(caught.value) and "\n" not in str(caught.value)


def test_the_probe_gives_way_where_the_wall_is_thinner_than_it_should_be(monkeypatch):
    monkeypatch.setattr("pipeline.datasets.phantoms.trus.CLEARANCE_MM", 9.0)
    triangles = surface(pelvis_of(3))
    for kind in KINDS:
        probe, _ = draw_probe(TrusPhantom(geometry=kind), pelvis_of(3), triangles, np.random.default_rng(3))
        assert probe.beam_coordinates(triangles.reshape(-1, 3))[2].min() > 8.9


def test_lists_of_a_configuration_are_as_good_as_tuples():
    assert TrusPhantom(mr_spacing_mm=[1, 1, 3]) == TrusPhantom(mr_spacing_mm=(1.0, 1.0, 3.0))


def test_the_sector_of_a_subject_is_where_its_probe_sees_and_black_beyond():
    phantom, pelvis = TrusPhantom(**COARSE, pose_deg=0.0), pelvis_of(3)
    subject = make_subject(phantom, 3)
    probe, _ = draw_probe(phantom, pelvis, surface(pelvis), np.random.default_rng([3, 4]))
    _, us_pose = draw_poses(phantom, pelvis, np.random.default_rng([3, 3]))
    sector = probe.sees(moved(subject.us_geometry.grid_points(), np.linalg.inv(us_pose)))
    assert not subject.us[~ndimage.binary_dilation(sector)].any()
    assert (subject.us[sector] > 0).mean() > 0.7
    assert subject.us[~sector].mean() < 0.2


def test_bone_of_the_pelvis_hides_what_lies_behind_it():
    phantom, pelvis = TrusPhantom(**COARSE), pelvis_of(3)
    probe, _ = draw_probe(phantom, pelvis, surface(pelvis), np.random.default_rng([3, 4]))
    beams = draw_beams(probe, 1.0, 0.0, np.random.default_rng(0))
    tissue = pelvis.tissue(probe.points_at(beams.planes[:, None, None], beams.fans[:, None], beams.depths_mm), probe=True)
    grey = grey_of(tissue, probe, beams, Scanner(floor_db=-200), np.random.default_rng(1))
    bone_mm = np.cumsum(np.isin(tissue, (Tissue.CORTEX, Tissue.MARROW)), axis=2) * beams.step_mm
    first = (bone_mm > 0) & (bone_mm < 1.5) & (tissue == Tissue.CORTEX)
    assert (bone_mm > 15).mean() > 0.01
    assert grey[bone_mm > 15].mean() < 8 and grey[first].mean() > 3 * grey[bone_mm > 15].mean() + 60
