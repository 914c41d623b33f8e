"""CycleGAN as a method: nothing moves, the translated image is handed over, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from examples import blob_volume

from pipeline.errors import ConcordError
from pipeline.learned.cyclegan import fit_cyclegan, translate
from pipeline.learned.cyclegan_method import CycleGan
from pipeline.learned.field_cases import FieldCase, scaled
from pipeline.learned.settings.cyclegan import CycleGanFit
from pipeline.methods import Pair, Run, run_method
from pipeline.volumes import Geometry

GRID = Geometry.regular((36, 32), (1.5, 2.0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    out = tmp_path_factory.mktemp("cyclegan") / "net"
    images = [np.stack([scaled(blob_volume(GRID, seed=k), whole=True), scaled(blob_volume(GRID, seed=k + 10), whole=True)]) for k in range(2)]
    cases = [FieldCase(f"case-{k}", (f"sub-{k}",), pair, None, ((f"{k}", "0"),)) for k, pair in enumerate(images)]
    settings = CycleGanFit(blocks=1, width=4, epochs=1, decay_epochs=0, device="cpu")
    fit_cyclegan(cases, settings, seed=0, threads=1, out=out, modalities={"fixed": "t1", "moving": "t2"})
    return out.with_suffix(".safetensors")


def test_the_moving_image_is_handed_over_as_the_generator_makes_it_and_nothing_moves(weights):
    fixed, moving, run = blob_volume(GRID), blob_volume(GRID, seed=1), Run(images={}, trace=[])
    found = run_method(CycleGan(weights=weights, device="cpu"), Pair(fixed, moving.with_array(7 * moving.array + 3)), run)
    points = GRID.points_at(np.array([[3.0, 4.0], [20.5, 11.0]]))
    assert found.points(points) == pytest.approx(points)
    assert run.images["translated"].geometry == moving.geometry
    np.testing.assert_allclose(run.images["translated"].array, translate(weights, scaled(moving, whole=True)[None], device="cpu")[0], atol=1e-5)
    assert run.trace[0]["inference_ms"] > 0 and run.trace[0]["parameters"] > 0


def test_what_it_cannot_translate_is_told_in_one_line(weights):
    pair = Pair(blob_volume(GRID), blob_volume(GRID, seed=1), fixed_modality="t2", moving_modality="t1")
    with pytest.raises(ConcordError, match=r"fixed image: t2, and .* was fitted with t1 there"):
        run_method(CycleGan(weights=weights, device="cpu"), pair, Run())
    with pytest.raises(ConcordError, match="none given"):
        run_method(CycleGan(device="cpu"), pair, Run())
    with pytest.raises(ConcordError, match="is not there"):
        assert CycleGan(weights=weights.with_name("other.safetensors")).files
    solid = Geometry.regular((12, 10, 11))
    with pytest.raises(ConcordError, match="3-D; CycleGAN translates 2-D images"):
        run_method(CycleGan(weights=weights, device="cpu"), Pair(blob_volume(solid), blob_volume(solid, seed=1)), Run())
