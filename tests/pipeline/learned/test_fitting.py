from __future__ import annotations

import math
import platform
import threading
import time

import pytest
import torch

from pipeline.errors import ConcordError
from pipeline.learned.fitting import check_loss, choose_device, curve_csv, prefetched, reproducible, untimed


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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_a_step_finds_the_memory_of_the_one_before():
    """Counted are pages that the system had to bring in: each tensor has 15625 of them."""
    import resource

    with reproducible(1):
        faults = []
        for _ in range(30):
            torch.ones(16_000_000)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    assert faults[-1] - faults[-11] < 15625  # the first few find gaps that are too small


def test_cuda_asked_for_and_absent_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConcordError, match="'cuda' asked for"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == choose_device("cuda").type == "cuda" and choose_device("cpu").type == "cpu"


def test_a_curve_leaves_empty_what_a_row_does_not_have():
    assert curve_csv([{"step": 1, "loss": 0.5}, {"step": 2}], ("step", "loss")) == "step,loss\n1,0.5\n2,\n"


def test_a_loss_that_is_not_finite_says_where():
    check_loss(1e30, "in epoch 1", 0.1)
    for loss in (math.nan, math.inf):
        with pytest.raises(ConcordError, match=rf"the loss is {loss} in epoch 3; .*learning_rate, which is 0\.1"):
            check_loss(loss, "in epoch 3", 0.1)


def test_time_is_no_part_of_a_score():
    assert untimed({"epoch": 2, "seconds": 1.5, "pairs_per_second": 3.0, "second_loss": 0.5}) == {"epoch": 2, "second_loss": 0.5}
