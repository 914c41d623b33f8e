"""The table of methods, and the checks around every run."""

from __future__ import annotations

import numpy as np
import pytest
from examples import blob_volume, oblique_geometry, rotation, transforms_of

from pipeline.errors import ConcordError
from pipeline.methods import METHODS, Method, Pair, Run, create_method, run_method
from pipeline.transforms import Linear, compose
from pipeline.volumes import Geometry, Volume


class Unmasked(Method):
    """Takes no masks; answers with a fixed shift."""

    takes_masks = False
    shift: float = 0.0

    def register(self, pair, run):
        return Linear(np.eye(pair.fixed.dimension), np.full(pair.fixed.dimension, self.shift), "translation")


def pair_of(dimension: int = 3, **masks) -> Pair:
    geometry = oblique_geometry(dimension)
    return Pair(blob_volume(geometry), blob_volume(geometry, seed=1), **masks)


@pytest.mark.parametrize("name", METHODS)
def test_every_name_gives_a_method_whose_settings_are_described(name):
    method = create_method(name)
    assert all(field.description for field in type(method).model_fields.values())
    assert type(method).__doc__


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("mj", {}, "did you mean 'mi'"),
        ("mi", {"bin": 50}, "did you mean 'bins'"),
        ("mi", {"bins": "many"}, "methods.mi.bins"),
        ("row", {"use": "sny"}, "did you mean 'syn'"),
    ],
)
def test_unknown_names_keys_and_values_are_told_with_the_choices(name, settings, told):
    with pytest.raises(ConcordError, match=told) as caught:
        create_method(name, settings)
    assert "\n" not in str(caught.value)


def test_bad_pairs_are_refused_before_the_method_runs():
    good, geometry = pair_of().fixed, oblique_geometry(3)
    flat = Volume(np.full(geometry.shape, 3.0), geometry, "flat.nii")
    empty = Volume(np.zeros(geometry.shape), geometry, "empty.nii")
    other_grid = Volume(np.ones((3, 4, 5)), Geometry.regular((5, 4, 3)), "small.nii")
    cases = {
        "2-D and": Pair(blob_volume(oblique_geometry(2)), good),
        "flat.nii: every sample is 3.0": Pair(good, flat),
        "empty.nii: the mask is empty": Pair(good, good, fixed_mask=empty),
        "small.nii: mask of size": Pair(good, good, moving_mask=other_grid),
    }
    for reason, pair in cases.items():
        with pytest.raises(ConcordError, match=reason):
            run_method(create_method("identity"), pair, Run())


def test_masks_are_refused_by_a_method_that_would_ignore_them():
    mask = Volume(np.ones(oblique_geometry(3).shape), oblique_geometry(3))
    with pytest.raises(ConcordError, match="takes no masks"):
        run_method(Unmasked(), pair_of(fixed_mask=mask), Run())


def test_a_rigid_start_is_part_of_the_result():
    start = Linear(rotation(3), np.array([3.0, -2.0, 1.0]), "rigid")
    points = np.random.default_rng(0).uniform(-20, 20, size=(40, 3))
    found = run_method(Unmasked(shift=2.0), pair_of(), Run(), start)
    np.testing.assert_allclose(found.points(points), start.points(points + 2.0), atol=1e-9)


def test_a_start_moves_what_the_method_sees():
    """With the true transform as the start, the method sees volumes that are aligned voxel by voxel."""
    start = Linear(rotation(3), np.array([3.0, -2.0, 1.0]), "rigid")
    fixed = blob_volume(oblique_geometry(3))
    there = fixed.geometry
    direction = tuple(tuple(row) for row in (start.matrix @ np.asarray(there.direction)).tolist())
    moving = Volume(fixed.array, Geometry(there.size, there.spacing_mm, tuple(start.points(np.asarray(there.origin_mm)).tolist()), direction))
    seen = {}

    class Look(Unmasked):
        def register(self, pair, run):
            seen["moving"] = pair.moving
            return Linear.identity(3)

    found = run_method(Look(), Pair(fixed, moving), Run(), start)
    assert seen["moving"].geometry.matches(there)
    np.testing.assert_allclose(found.points(np.ones((1, 3))), start.points(np.ones((1, 3))))


def test_a_start_that_is_not_rigid_is_refused():
    for start in (transforms_of(3)["affine"], transforms_of(3)["field"], compose(transforms_of(3)["rigid"], transforms_of(3)["b-spline"])):
        with pytest.raises(ConcordError, match="not rigid"):
            run_method(Unmasked(), pair_of(), Run(), start)
