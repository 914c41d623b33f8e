"""The brain phantom, its deformations and its images."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets.phantoms.acquisition import SpinEcho, Tissue, bias_field, rician
from pipeline.datasets.phantoms.brain import (
    POPULATIONS,
    REGION_NAMES,
    SCALES,
    SEQUENCES,
    TISSUE_NAMES,
    BrainPhantom,
    BrainSubject,
    make_map,
    make_subject,
    true_displacement_mm,
)
from pipeline.datasets.phantoms.deformation import (
    TemplateMap,
    exponential,
    random_field,
    random_velocity,
    sample,
    taper,
)
from pipeline.errors import ConcordError
from pipeline.volumes import Geometry

COARSE = BrainPhantom(spacing_mm=3.0)


@lru_cache(maxsize=4)
def subject(seed: int, population: str = "adult") -> BrainSubject:
    return make_subject(BrainPhantom(spacing_mm=3.0, population=population), seed)


def mean_dice(a: np.ndarray, b: np.ndarray, labels: list[int]) -> float:
    return float(np.mean([2 * ((a == label) & (b == label)).sum() / max(1, (a == label).sum() + (b == label).sum()) for label in labels]))


def warped(array: np.ndarray, displacement_mm: np.ndarray, geometry: Geometry) -> np.ndarray:
    return sample(array, geometry.index_at(geometry.grid_points() + displacement_mm), order=0)


def identity_index(shape: tuple[int, ...]) -> np.ndarray:
    """The index of every voxel, `([z,] y, x, d)` in `(x, y[, z])` order, float32."""
    return np.stack(np.indices(shape, dtype=np.float32)[::-1], axis=-1)


def jacobian_determinant(displacement: np.ndarray) -> np.ndarray:
    d = displacement.shape[-1]
    gradient = np.stack([np.gradient(displacement, axis=d - 1 - axis) for axis in range(d)], axis=-1)
    return np.linalg.det(gradient + np.eye(d))


class TestDeformation:
    def test_exponential_of_a_constant_velocity_is_that_shift(self):
        velocity = np.broadcast_to(np.float32([1.5, -0.75]), (9, 11, 2))
        np.testing.assert_allclose(exponential(velocity), velocity, atol=1e-5)

    def test_exponential_of_a_linear_velocity_is_the_matrix_exponential(self):
        from scipy.linalg import expm

        generator = np.array([[0.05, -0.4], [0.4, -0.1]])
        centred = identity_index((41, 51)) - np.float32([25, 20])
        flow = exponential((centred @ generator.T).astype(np.float32))
        expected = centred @ expm(generator).T - centred
        near = np.linalg.norm(centred, axis=-1) < 12
        np.testing.assert_allclose(flow[near], expected[near], atol=0.02)

    def test_flow_agrees_with_euler_steps_of_the_same_velocity(self):
        velocity = random_velocity((20, 24, 28), spacing_mm=2.0, sigma_mm=8.0, amplitude_mm=4.0, rng=np.random.default_rng(5)) * taper(
            (20, 24, 28), 5
        )
        points = identity_index(velocity.shape[:-1]).astype(float)
        for _ in range(400):
            points = points + sample(velocity, points) / 400
        error = np.linalg.norm(points - identity_index(velocity.shape[:-1]) - exponential(velocity), axis=-1)
        assert error.mean() < 0.02 and error.max() < 0.15

    def test_flows_of_a_velocity_and_its_negative_undo_each_other(self):
        velocity = random_velocity((40, 44), spacing_mm=1.0, sigma_mm=6.0, amplitude_mm=3.0, rng=np.random.default_rng(1)) * taper((40, 44), 8)
        back = exponential(-velocity)
        around = back + sample(exponential(velocity), identity_index((40, 44)) + back)
        assert np.linalg.norm(exponential(velocity), axis=-1).max() > 3
        assert np.linalg.norm(around, axis=-1).max() < 0.12

    def test_components_are_x_first_while_arrays_are_x_last(self):
        image = np.arange(20, dtype=np.float32).reshape(4, 5)
        shifted = identity_index((4, 5)) + np.float32([1, 0])
        np.testing.assert_array_equal(sample(image, shifted)[:, :-1], image[:, 1:])
        np.testing.assert_array_equal(sample(image, shifted, outside=-1.0)[:, -1], -1)

    def test_velocity_has_the_length_and_the_correlation_asked_for(self):
        draws = [random_velocity((30, 40), spacing_mm=(1.0, 2.0), sigma_mm=5.0, amplitude_mm=4.0, rng=np.random.default_rng(s)) for s in range(150)]
        x_mm = np.stack(draws)[..., 0]
        length = np.sqrt((np.stack(draws) ** 2 * np.array([1.0, 4.0])).sum(axis=-1).mean(axis=0))
        np.testing.assert_allclose(length, 4.0, rtol=0.25)
        # Gaussian smoothing of white noise: correlation exp(-distance^2 / (4 sigma^2)), here 10 mm apart
        assert np.mean(x_mm[:, :, 10:] * x_mm[:, :, :-10]) / np.mean(x_mm**2) == pytest.approx(np.exp(-1), abs=0.06)

    def test_a_finer_grid_over_the_same_box_shows_the_same_field(self):
        coarse, fine = (random_field((n,), spacing_mm=60 / n, sigma_mm=9.0, channels=1, rng=np.random.default_rng(2))[:, 0] for n in (20, 60))
        np.testing.assert_allclose(coarse, fine[1::3], atol=1e-5)

    def test_taper_holds_the_border(self):
        weight = taper((10, 12), 4)[..., 0]
        assert weight[0].max() == weight[:, -1].max() == 0
        assert weight[5, 6] == 1

    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 10_000), shift=st.lists(st.floats(-20, 20), min_size=2, max_size=2))
    def test_template_map_returns_every_point(self, seed, shift):
        geometry = Geometry.regular((32, 28), 2.0)
        affine = np.array([[0.9, 0.1, shift[0] / 10], [-0.1, 1.05, shift[1] / 10], [0, 0, 1]])
        velocity = random_velocity((28, 32), spacing_mm=2.0, sigma_mm=8.0, amplitude_mm=3.0, rng=np.random.default_rng(seed)) * taper((28, 32), 6)
        points = np.random.default_rng(seed).uniform(-20, 20, (50, 2))
        there_and_back = TemplateMap(geometry, affine, velocity)
        assert np.abs(there_and_back.from_template(there_and_back.to_template(points)) - points).max() < 0.3


def test_the_map_alone_is_that_of_the_subject():
    whole, alone = subject(3).template_map, make_map(COARSE, 3)
    np.testing.assert_array_equal(alone.affine, whole.affine)
    np.testing.assert_array_equal(alone.velocity_vx, whole.velocity_vx)


class TestAcquisition:
    def test_spin_echo_signal_of_one_tissue_by_hand(self):
        # TR = T1 ln 2 recovers a half, TE = T2 ln 4 leaves a quarter
        assert SpinEcho(tr_ms=1000 * np.log(2), te_ms=80 * np.log(4)).signal(Tissue(0.8, 1000, 80)) == pytest.approx(0.8 / 8)

    def test_rician_noise_has_its_known_moments(self):
        air = rician(np.zeros((200, 200)), 5.0, np.random.default_rng(0))
        assert air.mean() == pytest.approx(5.0 * np.sqrt(np.pi / 2), rel=0.01)
        bright = rician(np.full((200, 200), 100.0), 5.0, np.random.default_rng(0))
        assert (bright**2).mean() == pytest.approx(100.0**2 + 2 * 5.0**2, rel=0.002)

    def test_bias_spans_its_fraction_and_is_smooth(self):
        bias = bias_field((20, 24, 28), spacing_mm=4.0, sigma_mm=50.0, fraction=0.4, rng=np.random.default_rng(0))
        assert (bias.min(), bias.max()) == pytest.approx((0.8, 1.2), abs=1e-5)
        assert max(np.abs(step).max() for step in np.gradient(bias)) < 0.03

    def test_contrasts_are_those_that_a_reader_expects(self):
        def order(population: str, sequence: str) -> list[str]:
            tissues = POPULATIONS[population].tissues
            return sorted(("csf", "grey", "white"), key=lambda name: SEQUENCES[sequence].signal(tissues[name]))

        assert order("adult", "t1") == ["csf", "grey", "white"]
        assert order("adult", "t2") == ["white", "grey", "csf"]
        assert order("neonate", "t1").index("white") < order("neonate", "t1").index("grey")
        assert order("neonate", "t2") == ["grey", "white", "csf"]


class TestSubjects:
    def test_the_same_seed_gives_the_same_bits_and_another_seed_another_head(self):
        again = make_subject(COARSE, 1)
        for name, image in subject(1).images.items():
            np.testing.assert_array_equal(image, again.images[name])
        np.testing.assert_array_equal(subject(1).regions, again.regions)
        assert (subject(1).tissue != subject(2).tissue).mean() > 0.05

    def test_arrays_lie_on_the_common_grid(self):
        one, other = subject(1), subject(2)
        assert one.geometry == other.geometry == COARSE.geometry
        assert set(one.images) == {"t1", "t2", "pd"}
        for array in (*one.images.values(), one.tissue, one.regions):
            assert array.shape == one.geometry.shape and array.dtype in (np.float32, np.uint8)

    @pytest.mark.parametrize("population", ["adult", "neonate"])
    def test_the_field_of_view_holds_the_head_with_air_around_and_the_neck_below(self, population):
        head = np.argwhere(np.isin(subject(1, population).tissue, range(1, 8)))
        shape = np.asarray(subject(1, population).geometry.shape)
        assert head[:, 0].min() == 0
        assert (head.min(axis=0)[1:] >= 2).all() and (head.max(axis=0) < shape - 2).all()
        assert len(head) > 0.15 * shape.prod()

    def test_there_are_at_least_thirty_regions_and_all_tissues(self):
        assert set(np.unique(subject(1).regions)) - {0} <= set(REGION_NAMES)
        assert len(np.unique(subject(1).regions)) - 1 >= 0.95 * len(REGION_NAMES) > 30
        assert set(np.unique(subject(1).tissue)) == set(TISSUE_NAMES)
        assert len(set(REGION_NAMES.values())) == len(REGION_NAMES)

    def test_left_is_at_higher_x_the_face_at_lower_y_and_up_at_higher_z(self):
        points = subject(1).geometry.grid_points()
        where = {
            name: points[subject(1).regions == label].mean(axis=0) for label, name in REGION_NAMES.items() if (subject(1).regions == label).any()
        }
        assert where["left thalamus"][0] > where["right thalamus"][0] + 10
        assert where["left frontal pole"][1] < where["left cuneus"][1] - 80
        assert where["right paracentral"][2] > where["brainstem"][2] + 60

    def test_regions_lie_in_their_tissue(self):
        one = subject(2)
        for name, tissue in (("left insula", 2), ("right frontal white matter", 3), ("left lateral ventricle", 1)):
            label = next(k for k, v in REGION_NAMES.items() if v == name)
            assert (one.tissue[one.regions == label] == tissue).mean() > 0.75

    def test_images_show_the_contrast_and_air_around_the_head(self):
        one = subject(1)
        mean = {k: [one.images[k][one.tissue == label].mean() for label in range(4)] for k in one.images}
        assert mean["t1"][1] < mean["t1"][2] < mean["t1"][3]
        assert mean["t2"][3] < mean["t2"][2] < mean["t2"][1]
        assert all(values[0] < 0.35 * values[3] for values in mean.values())

    def test_a_neonate_has_a_smaller_head_and_reversed_contrast(self):
        adult, neonate = subject(1), subject(1, "neonate")
        volumes = [((s.tissue > 0) & (s.tissue < 4)).sum() for s in (adult, neonate)]
        assert 0.25 < volumes[1] / volumes[0] < 0.45
        grey, white = (neonate.images["t1"][neonate.tissue == label].mean() for label in (2, 3))
        assert white < grey
        grey, white = (neonate.images["t2"][neonate.tissue == label].mean() for label in (2, 3))
        assert white > grey

    def test_noise_and_bias_leave_the_anatomy_alone(self):
        clean = make_subject(BrainPhantom(spacing_mm=3.0, noise=0.0, bias=0.0), 1)
        np.testing.assert_array_equal(clean.regions, subject(1).regions)
        assert clean.images["t1"][clean.tissue == 3].std() < subject(1).images["t1"][subject(1).tissue == 3].std()

    @pytest.mark.parametrize("bad", [{"population": "elderly"}, {"spacing_mm": 0}, {"noise": -0.1}, {"deformation_mm": 50}, {"slice_mm": 300}])
    def test_a_bad_setting_is_named(self, bad):
        with pytest.raises(ConcordError, match=next(iter(bad))):
            BrainPhantom(**bad)

    def test_a_negative_seed_is_refused(self):
        with pytest.raises(ConcordError, match="seed -1"):
            make_subject(COARSE, -1)

    def test_shares_of_the_scales_add_up(self):
        assert sum(share**2 for _, share in SCALES) == pytest.approx(1.0, abs=0.01)


class TestTruth:
    @pytest.mark.parametrize("population", ["adult", "neonate"])
    def test_the_true_transform_brings_the_labels_together(self, population):
        fixed, moving = subject(1, population), subject(2, population)
        truth = true_displacement_mm(fixed, moving)
        regions = warped(moving.regions, truth, fixed.geometry)
        tissue = warped(moving.tissue, truth, fixed.geometry)
        before, after = mean_dice(fixed.regions, moving.regions, list(REGION_NAMES)), mean_dice(fixed.regions, regions, list(REGION_NAMES))
        assert before < 0.5
        assert after > before + 0.2
        assert mean_dice(fixed.tissue, tissue, [1, 2, 3]) > 0.75

    def test_the_truth_brings_noise_free_images_together(self):
        settings_ = BrainPhantom(spacing_mm=3.0, noise=0.0, bias=0.0)
        fixed, moving = make_subject(settings_, 1), make_subject(settings_, 2)
        index = fixed.geometry.index_at(fixed.geometry.grid_points() + true_displacement_mm(fixed, moving))
        brain = fixed.regions > 0
        before = np.corrcoef(fixed.images["t1"][brain], moving.images["t1"][brain])[0, 1]
        after = np.corrcoef(fixed.images["t1"][brain], sample(moving.images["t1"], index)[brain])[0, 1]
        assert after > 0.9 > before + 0.2

    def test_there_and_back_is_the_identity(self):
        fixed, moving = subject(1), subject(2)
        there, back = true_displacement_mm(fixed, moving), true_displacement_mm(moving, fixed)
        points = fixed.geometry.grid_points() + there
        loop = np.linalg.norm(there + sample(back, fixed.geometry.index_at(points)), axis=-1) / COARSE.spacing_mm
        head = (fixed.tissue > 0) & fixed.geometry.contains(points)
        assert np.linalg.norm(there, axis=-1)[head].mean() > 3.0
        assert loop[head].mean() < 0.05 and np.percentile(loop[head], 99.9) < 0.2

    def test_the_truth_of_a_subject_with_itself_is_nothing(self):
        assert np.abs(true_displacement_mm(subject(1), subject(1))[subject(1).tissue > 0]).max() < 0.6

    def test_the_truth_folds_nowhere(self):
        assert jacobian_determinant(true_displacement_mm(subject(1), subject(2)) / COARSE.spacing_mm).min() > 0

    def test_a_planar_subject_has_a_planar_truth(self):
        flat = BrainPhantom(spacing_mm=2.0, slice_mm=8.0)
        fixed, moving = make_subject(flat, 1), make_subject(flat, 2)
        truth = true_displacement_mm(fixed, moving)
        assert truth.shape == (*fixed.geometry.shape, 2) == (112, 96, 2)
        labels = [label for label in np.unique(fixed.regions) if label and (fixed.regions == label).sum() > 20]
        assert (
            mean_dice(fixed.regions, warped(moving.regions, truth, fixed.geometry), labels)
            > 0.8
            > 0.25 + mean_dice(fixed.regions, moving.regions, labels)
        )
