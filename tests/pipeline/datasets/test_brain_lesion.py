"""Tumours and skull stripping of the brain phantom."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.ndimage import label

from pipeline.datasets.phantoms.acquisition import SpinEcho
from pipeline.datasets.phantoms.brain import LESION_NAMES, POPULATIONS, SEQUENCES, BrainPhantom, BrainSubject, make_subject
from pipeline.datasets.phantoms.brain_lesion import TISSUES, brain_mask, with_lesion
from pipeline.datasets.phantoms.brain_regions import REGION_NAMES
from pipeline.datasets.registry import create_dataset
from pipeline.errors import ConcordError
from pipeline.methods import Run
from pipeline.volumes import Geometry, read_volume

CORE, OEDEMA = LESION_NAMES
FLAT = {"slice_mm": 20.0, "spacing_mm": 1.0}


@cache
def subject(seed: int, **settings) -> BrainSubject:
    return make_subject(BrainPhantom(**{**FLAT, **settings}), seed)


def test_the_rest_of_a_subject_is_what_it_is_without_a_tumour():
    healthy, ill = subject(3), subject(3, tumour=True)
    np.testing.assert_array_equal(ill.regions, healthy.regions)
    changed = ill.tissue != healthy.tissue
    assert np.isin(ill.tissue[changed], list(LESION_NAMES)).mean() > 0.95  # at its border what else is in the voxel may win
    far = ~np.isin(ill.tissue, list(LESION_NAMES))
    for name in healthy.images:
        same = np.abs(ill.images[name] - healthy.images[name])[far] < 1e-3
        assert same.mean() > 0.95  # partial volume at the border alone
    np.testing.assert_array_equal(ill.template_map.velocity_vx, healthy.template_map.velocity_vx)


def test_tumours_differ_in_place_and_size_and_the_same_seed_makes_the_same():
    tumours = [np.isin(subject(seed, tumour=True).tissue, list(LESION_NAMES)) for seed in range(6)]
    assert all(150 < tumour.sum() < 6000 for tumour in tumours)  # mm^2
    assert len({int(tumour.sum()) for tumour in tumours}) == 6
    shared = [(a & b).sum() / (a | b).sum() for number, a in enumerate(tumours) for b in tumours[:number]]
    assert np.median(shared) < 0.3
    np.testing.assert_array_equal(subject(2, tumour=True).images["t2"], make_subject(BrainPhantom(**FLAT, tumour=True), 2).images["t2"])


def test_anatomy_does_not_depend_on_noise():
    np.testing.assert_array_equal(subject(2, tumour=True).tissue, subject(2, tumour=True, noise=0.2).tissue)


def test_a_lesion_is_dark_in_t1_and_bright_in_t2():
    own = subject(2, tumour=True, noise=0.0, bias=0.0)
    t1, t2 = ({value: np.median(own.images[name][own.tissue == value]) for value in (1, 2, 3, CORE, OEDEMA)} for name in ("t1", "t2"))
    assert t1[1] < t1[CORE] < t1[2] < t1[3]
    assert t2[1] > t2[OEDEMA] > t2[CORE] > t2[2] > t2[3]


def test_the_relaxation_of_every_lesion_tissue_lies_between_brain_and_fluid():
    known = POPULATIONS["adult"].tissues
    for tissue in TISSUES.values():
        for name, sequence in SEQUENCES.items():
            if name != "pd":
                assert isinstance(sequence, SpinEcho)
                low, high = sorted([sequence.signal(known["grey"]), sequence.signal(known["csf"])])
                assert low < sequence.signal(tissue) < high


class TestFractions:
    GEOMETRY = Geometry.regular((40, 44, 36), 3.0)
    WHITE = next(value for value, name in REGION_NAMES.items() if name == "left central white matter")
    VENTRICLE = next(value for value, name in REGION_NAMES.items() if name == "left lateral ventricle")

    def brain(self) -> tuple[np.ndarray, np.ndarray]:
        """White matter with a ventricle in its middle, bone around it."""
        away = np.linalg.norm(self.GEOMETRY.grid_points(), axis=-1)
        fractions = np.zeros((7, *self.GEOMETRY.shape), np.float32)
        fractions[0, away < 8], fractions[2, (away >= 8) & (away < 45)], fractions[4, (away >= 45) & (away < 50)] = 1, 0.95, 1
        regions = np.select([away < 8, away < 45], [self.VENTRICLE, self.WHITE], 0).astype(np.uint8)
        return fractions, regions

    @pytest.mark.parametrize("seed", range(4))
    def test_all_fractions_together_stay_what_they_were_and_bone_and_ventricles_stay(self, seed):
        fractions, regions = self.brain()
        lesion = with_lesion(fractions, regions, self.GEOMETRY, np.random.default_rng(seed))
        np.testing.assert_allclose(lesion.around.sum(axis=0) + lesion.inside.sum(axis=0), fractions.sum(axis=0), atol=1e-5)
        assert min(lesion.around.min(), lesion.inside.min()) >= -1e-6
        np.testing.assert_array_equal(lesion.around[[0, 4]], fractions[[0, 4]])
        assert [part.sum() * 27 > 200 for part in lesion.inside] == [True] * 3  # mm^3

    def test_necrosis_lies_in_the_core_and_the_core_in_the_oedema(self):
        fractions, regions = self.brain()
        _, (necrosis, core, oedema) = with_lesion(fractions, regions, self.GEOMETRY, np.random.default_rng(1))
        centre = np.argwhere(necrosis > 0.5).mean(axis=0)
        reach = [np.median(np.linalg.norm(np.argwhere(part > 0.3) - centre, axis=1)) for part in (necrosis, core, oedema)]
        assert reach[0] < reach[1] < reach[2]

    def test_without_white_matter_there_is_no_place_for_it(self):
        fractions, regions = self.brain()
        with pytest.raises(ConcordError, match="no white matter of the cerebrum for a tumour"):
            with_lesion(fractions, np.zeros_like(regions), self.GEOMETRY, np.random.default_rng(0))


class TestSkullStripping:
    def test_only_the_brain_is_left_and_nothing_of_it_is_lost(self):
        whole, own = subject(4), subject(4, skull_strip=True)
        assert set(np.unique(own.tissue)) == {0, 1, 2, 3}
        brain = np.isin(whole.tissue, [2, 3])
        assert (own.tissue[brain] == whole.tissue[brain]).mean() > 0.999
        outside = own.tissue == 0
        assert all((image[outside] == 0).all() for image in own.images.values())
        assert (own.regions[outside] == 0).all()
        # inside, the images are those of the whole head
        np.testing.assert_array_equal(own.images["t1"][~outside], whole.images["t1"][~outside])

    def test_ventricles_and_tumours_are_no_holes(self):
        own = subject(2, tumour=True, skull_strip=True)
        assert np.isin(own.tissue, list(LESION_NAMES)).sum() == np.isin(subject(2, tumour=True).tissue, list(LESION_NAMES)).sum()
        parts, count = label(own.tissue == 0)
        assert np.bincount(parts.ravel())[1:].max() > 0.999 * (own.tissue == 0).sum(), count

    def test_eyes_neck_and_specks_are_no_brain(self):
        geometry = Geometry.regular((40, 40, 60), 3.0)
        points = geometry.grid_points()
        solid, fluid = np.zeros(geometry.shape), np.zeros(geometry.shape)
        solid[np.linalg.norm(points, axis=-1) < 40] = 1
        solid[(np.hypot(points[..., 0], points[..., 1]) < 8) & (points[..., 2] < 0)] = 1  # cord
        solid[:, 2, 2] = 1
        fluid[np.linalg.norm(points - [0, -50, 0], axis=-1) < 5] = 1
        mask = brain_mask(solid, fluid, points[..., 2], geometry)
        assert mask[30, 20, 20]
        assert not mask[:, 2, 2].any()
        assert not mask[fluid > 0].any()
        assert points[..., 2][mask].min() > -70
        assert points[..., 2][mask].min() < -60


def test_the_data_set_makes_them(tmp_path):
    settings = {**FLAT, "subjects": 2, "tumour": True, "skull_strip": True, "labels": "tissue", "intra": True, "pairs": 0}
    case = create_dataset("brain-phantom", settings).cases(tmp_path, Run(seed=1)).cases[0]
    tissue = read_volume(case.fixed_labels).array
    assert {0, 1, 2, 3} < set(np.unique(tissue)) <= {0, 1, 2, 3, CORE, OEDEMA}
    assert (read_volume(case.fixed).array[tissue == 0] == 0).all()
