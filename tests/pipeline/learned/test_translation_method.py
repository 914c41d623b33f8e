"""The translation model as a method: geometry with networks that know the answer, images handed over, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples import blob_volume, rotation
from torch import nn

from nets.translation import Translated
from nets.voxelmorph import Displacements
from pipeline.cases import Case
from pipeline.errors import ConcordError
from pipeline.learned.field_cases import FieldCase
from pipeline.learned.settings.translation import TranslationFit
from pipeline.learned.translation import fit_translation
from pipeline.learned.translation_method import TranslationNetwork
from pipeline.methods import Pair, Run, create_method, run_method
from pipeline.registration import image_name, register_batch
from pipeline.resampling import warp
from pipeline.single import register_pair
from pipeline.transforms import Field, Linear
from pipeline.volumes import Geometry, read_volume, write_volume


class Known(nn.Module):
    """The same displacement in voxels everywhere, half of it coarse, and an inverted moving image; remembers what it saw."""

    parts = ("coarse", "translate", "fine")

    def __init__(self, *displacement_vx):
        super().__init__()
        self.weight, self.seen, self.dimension = nn.Parameter(torch.tensor(displacement_vx)), [], len(displacement_vx)

    def forward(self, images, *, until=None):
        self.seen.append((images, until))
        whole = self.weight.detach().view(1, -1, *[1] * self.dimension).expand(len(images), -1, *images.shape[2:])
        if until == "coarse":
            return Translated(whole / 2, Displacements(whole / 2, None))
        return Translated(whole, Displacements(whole / 2, None), translated=1 - images[:, 1:], fine=whole / 2)


def with_network(monkeypatch, tmp_path, network, **card):
    """A method whose weights hold this network."""
    (tmp_path / "net.safetensors").touch()
    monkeypatch.setattr("pipeline.learned.translation.load_translation", lambda file: (network, {"similarity": "ncc"} | card))
    return lambda **settings: TranslationNetwork(weights=tmp_path / "net.safetensors", device="cpu", **settings)


def oblique(size=(20, 16), spacing=(1.5, 2.0, 3.0)):
    turn = tuple(tuple(row) for row in rotation(len(size)).tolist())
    return Geometry(size, spacing[: len(size)], (-12.0, 5.0, 7.0)[: len(size)], turn)


@pytest.mark.parametrize("size", [(20, 16), (12, 14, 10)])
def test_displacements_in_voxels_become_mm_along_the_images_own_axes(monkeypatch, tmp_path, size):
    grid, u = oblique(size), (2.0, -1.0, 0.5)[: len(size)]
    method = with_network(monkeypatch, tmp_path, Known(*u))()
    found = run_method(method, Pair(blob_volume(grid), blob_volume(grid, seed=1)), Run())
    assert isinstance(found, Field) and found.geometry == grid
    index = np.array([[4.0, 5.0, 3.0], [7.5, 9.0, 6.0]])[:, : len(size)]
    np.testing.assert_allclose(grid.index_at(found.points(grid.points_at(index))), index + u, atol=1e-9)


def test_a_moving_image_that_is_displaced_as_told_is_brought_back(monkeypatch, tmp_path):
    grid = oblique()
    moving = blob_volume(grid)
    fixed = moving.with_array(np.roll(moving.array, (1, -2), axis=(0, 1)))  # fixed (y, x) is moving (y - 1, x + 2)
    found = run_method(with_network(monkeypatch, tmp_path, Known(2.0, -1.0))(), Pair(fixed, moving), Run())
    np.testing.assert_allclose(warp(moving, found, grid).array[2:-2, 3:-3], fixed.array[2:-2, 3:-3], atol=1e-6)


def test_the_network_sees_fixed_then_moving_each_from_zero_to_one(monkeypatch, tmp_path):
    grid, network = oblique((12, 14, 10)), Known(0.0, 0.0, 0.0)
    fixed, moving = blob_volume(grid), blob_volume(grid, seed=1)
    run_method(
        with_network(monkeypatch, tmp_path, network)(), Pair(fixed.with_array(40 + 7 * fixed.array), moving.with_array(3 - moving.array)), Run()
    )
    seen = network.seen[0][0][0].numpy()
    for channel, array in enumerate((fixed.array, -moving.array)):
        np.testing.assert_allclose(seen[channel], (array - array.min()) / np.ptp(array), atol=1e-5)  # a whole volume, not slice by slice


def test_the_translated_image_is_handed_over_on_its_own_grid(monkeypatch, tmp_path):
    fixed, moving = blob_volume(oblique()), blob_volume(oblique(), seed=1)
    method, run = with_network(monkeypatch, tmp_path, Known(2.0, 0.0)), Run(images={})
    run_method(method(), Pair(fixed, moving), run)
    scaled = (moving.array - moving.array.min()) / np.ptp(moving.array)
    np.testing.assert_allclose(run.images["translated"].array, 1 - scaled, atol=1e-5)
    assert run.images["translated"].geometry == moving.geometry
    for settings in ({"keep_translated": False}, {"stop": "coarse"}):
        quiet = Run(images={})
        run_method(method(**settings), Pair(fixed, moving), quiet)
        assert quiet.images == {}
    run_method(method(), Pair(fixed, moving), Run())  # nobody asked


def test_a_moving_image_on_another_grid_and_a_start_are_seen_on_the_fixed_grid(monkeypatch, tmp_path):
    fixed, network = blob_volume(oblique()), Known(0.0, 0.0)
    moving, run = blob_volume(oblique((30, 22), (1.2, 1.6)), seed=2), Run(images={}, trace=[])
    start = Linear(rotation(2, 0.1), np.array([2.0, -1.0]), "rigid")
    found = run_method(with_network(monkeypatch, tmp_path, network)(), Pair(fixed, moving), run, start)
    scaled = moving.with_array((moving.array - moving.array.min()) / np.ptp(moving.array))
    np.testing.assert_allclose(network.seen[0][0][0, 1], warp(scaled, start, fixed.geometry).array, atol=1e-5)
    points = fixed.geometry.points_at(np.array([[3.0, 4.0], [10, 8]]))
    np.testing.assert_allclose(found.points(points), start.points(points), atol=1e-9)
    assert run.images["translated"].geometry == fixed.geometry
    assert [row["stage"] for row in run.trace] == ["network"] and run.trace[0]["inference_ms"] > 0


def test_it_may_stop_after_the_coarse_part(monkeypatch, tmp_path):
    grid, network = oblique(), Known(2.0, -1.0)
    found = run_method(with_network(monkeypatch, tmp_path, network)(stop="coarse"), Pair(blob_volume(grid), blob_volume(grid, seed=1)), Run())
    index = np.array([[4.0, 5.0]])
    np.testing.assert_allclose(grid.index_at(found.points(grid.points_at(index))), index + [1, -0.5], atol=1e-9)
    assert network.seen[-1][1] == "coarse"


def test_how_far_the_coarse_inverse_misses_is_told_in_mm_where_there_is_an_inverse(monkeypatch, tmp_path):
    class Inverse(Known):
        def forward(self, images, *, until=None):
            found = super().forward(images, until=until)
            return found._replace(coarse=Displacements(found.coarse.forward, 1 - found.coarse.forward))  # a voxel short along each axis

    grid = oblique((12, 14, 10))
    pair = Pair(blob_volume(grid), blob_volume(grid, seed=1))
    rows = []
    for network in (Inverse(2.0, -1.0, 0.5), Known(2.0, -1.0, 0.5)):
        run = Run(trace=[])
        run_method(with_network(monkeypatch, tmp_path, network)(), pair, run)
        rows += run.trace
    assert rows[0]["inverse_error_mm"] == pytest.approx(np.linalg.norm(grid.spacing_mm), rel=1e-6)
    assert "inverse_error_mm" not in rows[1]


@pytest.mark.parametrize("size", [(60, 50), (24, 26, 22)])
def test_the_loop_goes_on_from_what_the_network_found(monkeypatch, tmp_path, size):
    grid = oblique(size, (1.5, 1.5, 1.5))
    moving = blob_volume(grid)
    d = len(size)
    fixed = moving.with_array(np.roll(moving.array, -3, axis=d - 1))  # fixed x is moving x + 3; the network says 1.4
    how = {"control_points": 6, "iterations": 40, "levels": 1, "similarity": "mean-squares"}
    make = with_network(monkeypatch, tmp_path, Known(1.4, *[0.0] * (d - 1)))
    inner = grid.cropped((6,) * d, tuple(n - 8 for n in size))
    errors, run = [], Run(trace=[])
    for settings in ({}, {"refine": how}):
        found = run_method(make(**settings), Pair(fixed, moving), run)
        points = inner.points_at(np.stack(np.meshgrid(*map(np.arange, inner.size), indexing="ij"), axis=-1).reshape(-1, d))
        errors.append(np.linalg.norm(grid.index_at(found.points(points)) - grid.index_at(points) - [3, *[0] * (d - 1)], axis=1).mean())
    assert errors[0] == pytest.approx(1.6, abs=1e-6) and errors[1] < 0.4
    assert [row["stage"] for row in run.trace if row["iteration"] == 0] == ["network", "network", "bspline"]


def test_what_the_loop_reads_is_asked_for_by_name(tmp_path):
    (tmp_path / "net.safetensors").touch()
    (tmp_path / "metric.safetensors").touch()
    metric = {"similarity": "patch-cnn", "weights": tmp_path / "metric.safetensors"}
    assert TranslationNetwork(weights=tmp_path / "net.safetensors", refine=metric).files == {
        "weights": tmp_path / "net.safetensors",
        "refine_weights": tmp_path / "metric.safetensors",
    }
    assert TranslationNetwork(refine={}).refine.stages == ("bspline",)
    assert TranslationNetwork(refine={"stages": ["affine", "bspline"]}).refine.stages == ("affine", "bspline")


def fitted(tmp_path, stages=("coarse", "translate", "fine")):
    rng = np.random.default_rng(0)
    cases = [FieldCase(f"c{k}", (f"s{k}",), rng.random((2, 16, 20), dtype=np.float32)) for k in range(2)]
    settings = TranslationFit(stages=stages, iterations=2, validation_every=1, bins=16, device="cpu")
    fit_translation(cases, [], settings, seed=0, threads=1, out=tmp_path / "net", modalities={"fixed": "t1", "moving": "t2"})
    return tmp_path / "net.safetensors"


def test_batches_and_single_pairs_keep_the_translated_image_beside_the_transform(tmp_path):
    weights, grid = fitted(tmp_path), oblique()
    files = {name: tmp_path / f"{name}.mha" for name in ("fixed", "moving")}
    for seed, file in enumerate(files.values()):
        write_volume(blob_volume(grid, seed=seed), file)
    given = {"weights": str(weights), "device": "cpu"}
    register_batch([Case(case="a", subject="a", **files)], {"use": "translation", **given}, Run(), tmp_path / "out")
    kept = read_volume(tmp_path / "out" / image_name("a", "translated"))
    told = register_pair(**files, method="translation", settings=given, output=tmp_path / "one", show=lambda *_: None, threads=1, seed=0)
    assert "translated.nii.gz" in told
    single = read_volume(tmp_path / "one" / "translated.nii.gz")
    np.testing.assert_allclose(single.array, kept.array, atol=1e-6)
    assert kept.geometry.matches(grid) and (tmp_path / "out" / "a.h5").exists()


def test_what_it_cannot_register_is_told_in_one_line(tmp_path):
    weights, flat, deep = fitted(tmp_path), oblique(), oblique((12, 14, 10))
    pair = Pair(blob_volume(flat), blob_volume(flat, seed=1))
    method = create_method("translation", {"weights": str(weights), "device": "cpu"})
    method.load()
    turned = Pair(pair.fixed, pair.moving, fixed_modality="t2", moving_modality="t1")
    run_method(method, Pair(pair.fixed, pair.moving, fixed_modality="t1", moving_modality="t2"), Run())
    for given, told in ((Pair(blob_volume(deep), blob_volume(deep, seed=1)), "3-D, and .* 2-D"), (turned, "exchange the two images")):
        with pytest.raises(ConcordError, match=told) as caught:
            run_method(method, given, Run())
        assert "\n" not in str(caught.value)
    with pytest.raises(ConcordError, match="none given"):
        run_method(TranslationNetwork(), pair, Run())
    with pytest.raises(ConcordError, match="is not there"):
        TranslationNetwork(weights=tmp_path / "no.safetensors").load()
    with pytest.raises(ConcordError, match="stop: coarse, but"):
        run_method(TranslationNetwork(weights=fitted(tmp_path, ("translate", "fine")), stop="coarse"), pair, Run())
