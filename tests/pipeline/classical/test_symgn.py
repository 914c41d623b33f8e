from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from examples import rotation
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.linalg import spsolve

from metrics.similarity.mind import mind
from pipeline.classical.linear_stage import AfterLinearStage
from pipeline.classical.symgn import (
    DiffusionSystem,
    SymGN,
    difference_and_derivatives,
    field_of,
    inverse_field,
    laplacian,
    level_fields,
    level_images,
    normal_equations,
    sampled,
    symmetrised,
)
from pipeline.errors import ConcordError
from pipeline.methods import METHODS, Pair, Run, create_method, run_method
from pipeline.resampling import warp
from pipeline.transforms import Composite, Field, Linear
from pipeline.volumes import Geometry, Volume, read_volume

MARGIN = 5
SHAPES = {"2-D": (66, 61), "3-D": (30, 37, 34)}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def textured(shape, seed):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.5)
    return gaussian_filter(np.round(6 * (noise - noise.min()) / np.ptp(noise)), 0.7) / 6


def smooth_vx(shape, largest):
    """A turning bump that vanishes on the border, `(d, [z,] y, x)`."""
    places = np.meshgrid(*(np.linspace(0, np.pi, n) for n in shape), indexing="ij")
    bump = largest * np.prod([np.sin(place) for place in places], axis=0)
    turn = places[-1] + 0.5 * places[0]
    return torch.from_numpy(np.stack([bump * np.cos(turn), bump * np.sin(turn), 0.6 * bump][: len(shape)])).float()


@cache
def inverted_pair(shape, spacing_mm=1.0, turned=False, largest=3.5):
    """A fixed image whose contrast is the reverse of the moving one's, and the true field."""
    d = len(shape)
    direction = rotation(d, 0.3) if turned else np.eye(d)
    spacing = np.broadcast_to(spacing_mm, d)
    grid = Geometry(shape[::-1], tuple(spacing.tolist()), (3.0, -7.0, 11.0)[:d], tuple(tuple(row) for row in direction.tolist()))
    true = field_of(smooth_vx(shape, largest), grid)
    moving = Volume(textured(shape, 0).astype(np.float32), grid, "moving")
    warped = warp(moving, true, grid).array
    noise = 0.01 * np.random.default_rng(2).normal(size=shape)
    return Pair(Volume(((1 - warped) ** 1.5 + noise).astype(np.float32), grid, "fixed"), moving), true


def inside(field):
    return field[(slice(MARGIN, -MARGIN),) * (field.ndim - 1)]


def error_mm(found, true):
    return np.linalg.norm(inside(found.displacement_mm(true.geometry) - true.field_mm), axis=-1).mean()


def stacked(pair):
    return torch.from_numpy(np.stack([pair.fixed.array, pair.moving.array]))[:, None]


# ---- the whole method


@each_shape
def test_a_known_deformation_is_found_through_inverted_contrast(shape):
    pair, true = inverted_pair(shape)
    before = np.linalg.norm(inside(true.field_mm), axis=-1).mean()
    found = SymGN(alpha=0.1).register(pair, Run())
    assert isinstance(found, Field)
    assert error_mm(found, true) < 0.3 * before


@each_shape
def test_equal_images_stay_where_they_are(shape):
    volume = inverted_pair(shape)[0].fixed
    assert np.abs(SymGN().register(Pair(volume, volume), Run()).field_mm).max() < 0.02


@each_shape
def test_both_directions_are_inverse_to_each_other_and_change_places_with_the_images(shape):
    images = stacked(inverted_pair(shape)[0])
    both = SymGN().displacements_vx(images)
    residual = both[0] + sampled(both[1:], both[:1])[0]
    assert inside(residual.movedim(0, -1)).norm(dim=-1).max() < 0.3
    assert both[0].abs().max() > 1.5
    torch.testing.assert_close(SymGN().displacements_vx(images.flip(0)).flip(0), both, atol=1e-4, rtol=0)


def test_two_runs_give_the_same_bits_and_more_threads_the_same_field():
    pair = inverted_pair((61, 58))[0]
    first, second, threaded = (SymGN(warps=(2, 2, 1)).register(pair, Run(threads=threads)).field_mm for threads in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, threaded, atol=1e-3)


def test_a_turned_grid_turns_the_vectors_and_nothing_else():
    straight, turned = (SymGN(warps=(3, 2, 1)).register(inverted_pair((40, 44), (1.0, 1.0), tilt)[0], Run()) for tilt in (False, True))
    assert np.abs(straight.field_mm).max() > 1
    np.testing.assert_allclose(turned.field_mm, straight.field_mm @ rotation(2, 0.3).T, atol=2e-3)


def test_voxels_longer_than_wide_give_longer_vectors():
    shape = (20, 37, 34)
    pair, true = inverted_pair(shape, (0.8, 1.1, 2.5))
    before = np.linalg.norm(inside(true.field_mm), axis=-1).mean()
    assert error_mm(SymGN(alpha=0.1).register(pair, Run()), true) < 0.55 * before
    straight = SymGN(warps=(1, 0, 0)).register(inverted_pair(shape)[0], Run())
    long = SymGN(warps=(1, 0, 0)).register(
        Pair(*(Volume(v.array, pair.fixed.geometry) for v in (inverted_pair(shape)[0].fixed, inverted_pair(shape)[0].moving))), Run()
    )
    np.testing.assert_allclose(long.field_mm, straight.field_mm * [0.8, 1.1, 2.5], atol=1e-6)


def test_a_moving_image_on_another_grid_is_found_too():
    pair, true = inverted_pair((66, 61))
    window = pair.moving.cropped((3, 2), (58, 65))
    finer = warp(window, Linear.identity(2), window.geometry.with_spacing(0.7), interpolation="cubic")
    found = SymGN(alpha=0.1).register(Pair(pair.fixed, finer), Run())
    assert found.geometry == pair.fixed.geometry
    assert error_mm(found, true) < 0.5 * np.linalg.norm(inside(true.field_mm), axis=-1).mean()


def test_outside_the_moving_image_is_its_darkest_value(monkeypatch):
    seen = []
    monkeypatch.setattr(SymGN, "displacements_vx", lambda self, images, run=None: seen.append(images) or images.new_zeros((2, 2, *images.shape[2:])))
    pair, _ = inverted_pair((66, 61))
    SymGN().register(Pair(pair.fixed, Volume(pair.moving.array[:, 10:] - 1000, pair.moving.cropped((10, 0), (61, 66)).geometry)), Run())
    assert (seen[0][1, 0, :, :9] == pair.moving.array[:, 10:].min() - 1000).all()


def test_a_linear_stage_is_applied_after_the_field(monkeypatch):
    shift = Linear(np.eye(2), np.array([7.0, -4.0]), "translation")
    monkeypatch.setattr(AfterLinearStage, "linear_start", lambda self, pair, run: shift if self.linear == "rigid" else Linear.identity(2))
    pair, true = inverted_pair((66, 61))
    far = Volume(pair.moving.array, Geometry((61, 66), (1.0, 1.0), (10.0, -11.0), pair.moving.geometry.direction), "far")
    found = SymGN(linear="rigid", alpha=0.1).register(Pair(pair.fixed, far), Run())
    assert isinstance(found, Composite)
    assert isinstance(found.parts[0], Field)
    expected = true.field_mm + shift.offset_mm
    assert np.linalg.norm(inside(found.displacement_mm(true.geometry) - expected), axis=-1).mean() < 0.5


def test_progress_goes_up_to_one():
    seen = []
    SymGN(warps=(2, 1, 1)).register(inverted_pair((30, 33))[0], Run(progress=lambda stage, share: seen.append(share)))
    assert seen == pytest.approx(np.array([1, 2, 6, 22]) / 22)  # a step costs 1/16, 1/4 and 1 of a whole one


@pytest.mark.parametrize("shape", [(3, 40), (5, 9, 30), (9, 10, 11)])
def test_thin_images_are_taken(shape):
    pair, _ = inverted_pair(shape, largest=1.0)
    assert np.isfinite(SymGN().register(pair, Run()).field_mm).all()


def test_the_table_of_methods_knows_it_and_it_refuses_masks():
    method = create_method("symgn", {"alpha": 0.3})
    assert isinstance(method, SymGN)
    assert "symgn" in METHODS
    pair, _ = inverted_pair((30, 33))
    mask = pair.fixed.with_array(np.ones(pair.fixed.array.shape))
    with pytest.raises(ConcordError, match="takes no masks"):
        run_method(method, Pair(pair.fixed, pair.moving, fixed_mask=mask), Run())


@pytest.mark.parametrize("settings", [{"warps": [1, 2]}, {"alpha": 0}, {"relaxation": 2}, {"levels": [0, 1, 2]}, {"linear": "bspline"}, {"alhpa": 1}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConcordError, match=r"methods\.symgn"):
        create_method("symgn", settings)


def test_the_defaults_are_those_of_the_paper():
    method = SymGN()
    assert (method.levels, method.warps) == ((4, 2, 1), (8, 4, 2))
    assert (method.alpha, method.sigma_vx, method.sweeps, method.relaxation, method.linear) == (0.2, 0.5, 25, 1.98, "none")


# ---- its parts


def random_system(shape, seed=0):
    d, rng = len(shape), np.random.default_rng(seed)
    derivative, difference = (torch.from_numpy(rng.normal(size=size)) for size in ((d, *shape), shape))
    matrix, force = normal_equations(derivative, difference, 0.5)
    return matrix, force, torch.from_numpy(rng.normal(size=(d, *shape)))


def direct_solution(matrix, force, field, alpha):
    """The same system, built entry by entry and solved by scipy."""
    d, size = field.shape[0], tuple(field.shape[1:])
    number = np.arange(d * np.prod(size)).reshape(d, *size)
    rows, columns, values, right = [], [], [], force.numpy().ravel().copy()
    triangle = [(a, b) for a in range(d) for b in range(a, d)]
    for centre in np.ndindex(size):
        for (a, b), entries in zip(triangle, matrix.numpy(), strict=True):
            for one, two in {(a, b), (b, a)}:
                rows, columns, values = [*rows, number[one][centre]], [*columns, number[two][centre]], [*values, entries[centre]]
        for axis in range(d):
            for step in (-1, 1):
                other = tuple(c + step * (axis == k) for k, c in enumerate(centre))
                if 0 <= other[axis] < size[axis]:
                    for a in range(d):
                        here, there = number[a][centre], number[a][other]
                        rows, columns, values = [*rows, here, here], [*columns, here, there], [*values, alpha, -alpha]
                        right[here] += alpha * float(field[a][other] - field[a][centre])
    return spsolve(coo_array((values, (rows, columns))).tocsc(), right).reshape(number.shape)


@pytest.mark.parametrize("relaxation", [1.0, 1.5, 1.98])
@pytest.mark.parametrize("shape", [(7, 6), (6, 7), (4, 3, 5), (3, 4, 4)])
def test_sweeps_converge_to_the_direct_solution(shape, relaxation):
    matrix, force, field = random_system(shape)
    update = DiffusionSystem(matrix, force, field, 0.2).relaxed(1200, relaxation)
    np.testing.assert_allclose(update, direct_solution(matrix, force, field, 0.2), atol=1e-8)


def test_a_sweep_visits_the_even_voxels_first_and_uses_what_it_has_just_found():
    shape, alpha, relaxation = (3, 4), 0.3, 1.7
    matrix, force, field = random_system(shape)
    expected = np.zeros((2, *shape))
    for colour in (0, 1):
        before = expected.copy()  # across the border a voxel stands for its neighbour, with what it was
        for y, x in np.ndindex(shape):
            if (y + x) % 2 == colour:
                near = [(y + s, x) if 0 <= y + s < 3 else (y, x) for s in (-1, 1)] + [(y, x + s) if 0 <= x + s < 4 else (y, x) for s in (-1, 1)]
                for a in (0, 1):
                    old = field[a].numpy()
                    pull = sum(before[a][q] + old[q] - old[y, x] for q in near)
                    right = force[a, y, x].item() + alpha * pull - matrix[1, y, x].item() * expected[1 - a, y, x]
                    wanted = right / (matrix[2 * a, y, x].item() + 4 * alpha)
                    expected[a, y, x] += relaxation * (wanted - expected[a, y, x])
    np.testing.assert_allclose(DiffusionSystem(matrix, force, field, alpha).relaxed(1, relaxation), expected, atol=1e-12)


def test_the_normal_equations_of_one_voxel_by_hand():
    derivative, difference = torch.tensor([2.0, 3.0]).reshape(2, 1, 1), torch.tensor([[5.0]])
    for sigma in (0.0, 0.5):  # alone, a voxel is its own neighbourhood
        matrix, force = normal_equations(derivative, difference, sigma)
        torch.testing.assert_close(matrix.flatten(), torch.tensor([4.0, 6.0, 9.0]))
        torch.testing.assert_close(force.flatten(), torch.tensor([-10.0, -15.0]))


def test_derivatives_agree_with_shifting_the_whole_stack():
    first, second = (mind(torch.from_numpy(np.random.default_rng(seed).uniform(size=(1, 1, 5, 6, 7)))) for seed in (0, 1))
    difference, derivatives = difference_and_derivatives(first, second)
    torch.testing.assert_close(difference, (first - second).abs().mean(1)[0])
    for own, other, found in ((first, second, derivatives[0]), (second, first, derivatives[1])):
        for component, axis in enumerate((4, 3, 2)):
            expected = ((own.roll(-1, axis) - other).abs() - (own.roll(1, axis) - other).abs()).mean(1)
            expected.index_fill_(axis - 1, torch.tensor([0, expected.shape[axis - 1] - 1]), 0)
            torch.testing.assert_close(found[component], expected[0])


def test_sampling_adds_the_field_to_the_position():
    image = torch.arange(30.0).reshape(1, 1, 5, 6)
    field = torch.zeros(1, 2, 5, 6)
    field[:, 0], field[:, 1] = 1.5, -1.0
    moved = sampled(image, field)
    torch.testing.assert_close(moved[0, 0, 1:, :4], image[0, 0, :4, :4] + 1.5)
    torch.testing.assert_close(moved[0, 0, 2, 5], image[0, 0, 1, 5])  # outside: the outermost voxel
    assert sampled(torch.ones(1, 1, 1, 4), torch.ones(1, 2, 1, 4)).eq(1).all()


def test_the_inverse_brings_every_point_back():
    field = smooth_vx((30, 40), 3.0)
    back = inverse_field(field)
    residual = back + sampled(field[None], back[None])[0]
    assert residual.abs().max() < 2e-3


def test_symmetric_fields_keep_a_shift_and_share_what_differs():
    fields = torch.zeros(2, 2, 12, 14)
    fields[0, 0], fields[1, 0] = 3.0, -1.0
    torch.testing.assert_close(symmetrised(fields)[:, 0, 6, 7], torch.tensor([2.0, -2.0]))


def test_levels_carry_places_and_vectors_over():
    ramp = torch.arange(24.0).expand(1, 1, 18, 24)
    coarse = level_images(ramp, 4)
    assert coarse.shape[2:] == (4, 6)
    torch.testing.assert_close(coarse[0, 0, 0, 2:4], torch.tensor([9.5, 13.5]), atol=1e-3, rtol=0)
    fields = torch.ones(2, 2, 4, 6)
    finer = level_fields(fields, (18, 24))
    torch.testing.assert_close(finer[0, :, 3, 3], torch.tensor([4.0, 4.5]))
    assert level_images(torch.zeros(1, 1, 6, 3), 4).shape[2:] == (4, 3)


def test_the_laplacian_of_a_parabola_by_hand():
    field = (torch.arange(5.0) ** 2).expand(1, 3, 5)
    torch.testing.assert_close(laplacian(field)[0, 1], torch.tensor([1.0, 2.0, 2.0, 2.0, -7.0]))


# ---- on real volumes


@pytest.mark.realdata
@pytest.mark.slow
def test_a_known_deformation_between_averaged_t1_and_t2_is_found(real_data):
    fixed, moving = (read_volume(real_data / "templates" / f"avg152{kind}.nii") for kind in ("T1", "T2"))
    true = field_of(smooth_vx(fixed.array.shape, 4.0), fixed.geometry)
    warped = fixed.with_array(warp(fixed, true, fixed.geometry).array)
    head = (warped.array > 0.2 * warped.array.max()) & (np.linalg.norm(true.field_mm, axis=-1) > 1)
    found = SymGN().register(Pair(warped, moving), Run())
    left = np.linalg.norm(found.field_mm - true.field_mm, axis=-1)[head].mean()
    assert left < 0.4 * np.linalg.norm(true.field_mm, axis=-1)[head].mean()
