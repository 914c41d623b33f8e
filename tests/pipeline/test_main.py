from __future__ import annotations

import subprocess
import sys

import pytest

STEPS = """
import hashlib, sys, torch
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Conv3d(1, 3, 3, padding=1), torch.nn.BatchNorm3d(3), torch.nn.ReLU(), torch.nn.Conv3d(3, 3, 3, padding=1))
image, grid = torch.rand(1, 1, 8, 8, 8), torch.nn.functional.affine_grid(torch.eye(3, 4)[None], (1, 1, 8, 8, 8), align_corners=True)
warped = torch.nn.functional.grid_sample(image, grid + network(image).tanh().movedim(1, -1), align_corners=True)
(warped - image).square().mean().backward()
bits = b''.join(parameter.grad.numpy().tobytes() for parameter in network.parameters())
print(hashlib.sha256(bits).hexdigest(), 'torch._refs' in sys.modules)
"""
START = """
import sys
from pipeline.__main__ import run
sys.argv = ['concord', 'schema']
try:
    run()
except SystemExit as ended:
    assert ended.code == 0
print()
"""


def printed(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


@pytest.mark.slow
def test_networks_have_the_same_gradients_without_torchs_shape_rules():
    whole, without = printed(STEPS), printed(START + STEPS)
    assert whole[0] == without[0]
    assert (whole[1], without[1]) == ("True", "False")
