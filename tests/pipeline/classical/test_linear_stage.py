from __future__ import annotations

import numpy as np
import pytest

from pipeline.classical.elastix import MutualInformation
from pipeline.errors import ConcordError
from pipeline.methods import Pair, Run, create_method
from pipeline.transforms import Field, Linear
from pipeline.volumes import Geometry, Volume

FLAT = Geometry.regular((24, 20), 1.5)
PAIR = Pair(*(Volume(np.random.default_rng(seed).normal(size=FLAT.shape).astype(np.float32), FLAT) for seed in (1, 2)))


@pytest.mark.parametrize("name", ["syn", "demons", "symgn"])
def test_the_linear_stage_is_mutual_information_with_the_iterations_that_were_asked_for(name, monkeypatch):
    called, shift = [], Linear(np.eye(2), np.array([3.0, -2.0]), "translation")
    monkeypatch.setattr(MutualInformation, "register", lambda self, pair, run: called.append((self.stages, self.iterations)) or shift)
    for settings, expected in (({"linear": "rigid", "linear_iterations": 7}, (("rigid",), 7)), ({"linear": "affine"}, (("affine",), 500))):
        assert create_method(name, settings).linear_start(PAIR, Run()) is shift
        assert called.pop() == expected
    assert create_method(name, {"linear": "none"}).linear_start(PAIR, Run()).offset_mm.tolist() == [0, 0]
    assert not called


def test_a_linear_stage_that_bends_is_refused(monkeypatch):
    monkeypatch.setattr(MutualInformation, "register", lambda self, pair, run: Field(np.zeros((*FLAT.shape, 2)), FLAT))
    with pytest.raises(ConcordError, match="gave a Field"):
        create_method("demons", {"linear": "affine"}).linear_start(PAIR, Run())
