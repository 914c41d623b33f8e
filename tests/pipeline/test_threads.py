from __future__ import annotations

import pytest
import torch

from pipeline.threads import torch_threads


def test_the_thread_count_is_put_back_even_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before
