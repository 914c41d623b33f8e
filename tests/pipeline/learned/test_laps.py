from __future__ import annotations

import time

import pytest
import torch

from pipeline.learned.laps import Laps, size_and_place


def test_laps_are_milliseconds_since_the_last_mark():
    laps = Laps(torch.device("cpu"))
    for name, seconds in (("first", 0.02), ("second", 0.04)):
        time.sleep(seconds)
        laps.mark(name)
    assert list(laps.parts) == ["first", "second"]
    assert laps.parts["first"] >= 20 and laps.parts["second"] >= 40
    assert laps.seconds >= sum(laps.parts.values()) / 1000
    assert laps.parts["second"] < 1000 * laps.seconds - 19  # the first lap is no part of it


@pytest.mark.parametrize(("threads", "told"), [(1, "1 thread"), (4, "4 threads")])
def test_size_and_place_name_the_threads_of_a_cpu(threads, told):
    row = size_and_place(torch.nn.Linear(3, 2), torch.device("cpu"), threads)
    assert row["parameters"] == 8 and row["device"].startswith("cpu") and row["device"].endswith(told)
