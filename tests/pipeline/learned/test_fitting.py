from __future__ import annotations

import threading
import time

import pytest
import torch

from pipeline.errors import ConcordError
from pipeline.learned.fitting import choose_device, curve_csv, prefetched, reproducible


def test_batches_come_in_order_and_are_drawn_ahead_but_not_far():
    drawn = []

    def draw(step):
        drawn.append(step)
        return step * step

    batches = prefetched(draw, range(3, 20), ahead=2)
    assert next(batches) == 9
    deadline = time.monotonic() + 5
    while len(drawn) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert drawn == [3, 4, 5, 6]  # one used, two waiting, one in hand
    assert list(batches) == [step * step for step in range(4, 20)]


def test_an_exception_of_the_background_thread_is_raised_where_the_batch_is_used():
    def draw(step):
        if step == 2:
            raise ValueError("no such volume")
        return step

    batches = prefetched(draw, range(5))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(ValueError, match="no such volume"):
        next(batches)
    assert not [t for t in threading.enumerate() if t.name == "batches"]


def test_closing_ends_the_thread():
    batches = prefetched(lambda step: step, range(1000), ahead=1)
    next(batches)
    assert [t for t in threading.enumerate() if t.name == "batches"]
    batches.close()
    assert not [t for t in threading.enumerate() if t.name == "batches"]


def test_batches_are_drawn_by_one_thread_and_the_networks_number_stays():
    with reproducible(2):
        assert list(prefetched(lambda _: torch.get_num_threads(), range(2))) == [1, 1]
        assert torch.get_num_threads() == 2


def test_threads_are_set_within_the_block_alone():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), reproducible(before + 1):
        assert torch.get_num_threads() == before + 1 and torch.backends.cudnn.deterministic
        raise RuntimeError
    assert torch.get_num_threads() == before and not torch.backends.cudnn.deterministic


def test_cuda_asked_for_and_absent_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConcordError, match="'cuda' asked for"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == choose_device("cuda").type == "cuda" and choose_device("cpu").type == "cpu"


def test_a_curve_leaves_empty_what_a_row_does_not_have():
    assert curve_csv([{"step": 1, "loss": 0.5}, {"step": 2}], ("step", "loss")) == "step,loss\n1,0.5\n2,\n"
