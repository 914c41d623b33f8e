"""Peak memory of each method against voxel count, one process a measurement.

python benchmarks/memory.py [--edges 64 128 192 256] [--only loop]

The patch metric is the slim network, not fitted: memory does not ask what the weights are. Its tiled rows evaluate a bounded number
of patches at once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from common import RESULTS, report

from nets.patch_cnn import PatchCnn
from pipeline.learned.weights import save_weights

LOOP = {"use": "loop", "iterations": 3, "levels": 1, "stages": ["bspline"]}
CNN = LOOP | {"similarity": "patch-cnn"}
METHODS = {
    "identity": {},
    "affine": {"iterations": 5},
    "mi": {"iterations": 5},
    "mind-ssc": {"iterations": 5},
    "demons": {"iterations": [2, 2, 2]},
    "syn": {"iterations": [2, 2, 2]},
    "symgn": {},
    "loop mi": LOOP,
    "loop mi, every voxel": LOOP | {"sampling": "dense"},
    "loop mind-ssc": LOOP | {"similarity": "mind-ssc"},
    "loop patch-cnn": CNN,
    "loop patch-cnn, 20000 patches at once": CNN | {"most_patches": 20_000},
    "loop patch-cnn, bf16, 20000 patches at once": CNN | {"most_patches": 20_000, "precision": "bf16"},
}
"""Few iterations: memory does not depend on their number."""
ONE = """
import json, sys
import numpy as np
from scipy.ndimage import gaussian_filter
from pipeline.methods import Pair, Run, create_method, run_method
from pipeline.provenance import measured
from pipeline.volumes import Geometry, Volume
edge, name, settings = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
geometry = Geometry.regular((edge,) * 3, 1.0)
image = gaussian_filter(np.random.default_rng(0).normal(size=geometry.shape).astype(np.float32), edge / 16)
pair = Pair(Volume(image, geometry), Volume(np.roll(image, 2, axis=2), geometry), fixed_modality="t1", moving_modality="t2")
with measured() as cost:
    transform = run_method(create_method(name, settings), pair, Run(threads=2))
print(json.dumps({"peak": cost.peak_memory_mib, "seconds": cost.seconds}))
"""


def unfitted_weights(folder: Path) -> Path:
    """The slim network as it is made, written as a fit would."""
    network, plain = PatchCnn("slim", 3), {"mean": 0.0, "std": 1.0}
    card = {"architecture": "patch-cnn", "configuration": "slim", "dimension": 3, "channels": ["t1", "t2"]}
    more = {"normalisation": {"t1": plain, "t2": plain}, "settings": {"sampler": {"swap_channels": False}}}
    save_weights(folder / "slim", network.state_dict(), card | more)
    return folder / "slim.safetensors"


def cost_of(edge: int, name: str, settings: dict[str, object]) -> dict[str, object]:
    """Peak MiB and seconds of a method on a cube of `edge` voxels, or what it died of."""
    command = [sys.executable, "-c", ONE, str(edge), settings.get("use", name), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"])[-1]
        return {"method": name, "edge": edge, "voxels": edge**3, "note": last[:80]}
    cost = json.loads(done.stdout.strip().splitlines()[-1])
    return {"method": name, "edge": edge, "voxels": edge**3, "peak_mib": round(cost["peak"]), "seconds": round(cost["seconds"], 1)}


def others(only: str) -> list[dict[str, object]]:
    """Rows of an earlier run whose methods are not measured now."""
    file = RESULTS / "memory.csv"
    if not only or not file.exists():
        return []
    table = pd.read_csv(file)
    return table[~table["method"].str.startswith(only)].to_dict("records")


def main() -> None:
    """Print and keep peak memory in MiB, and bytes a voxel above the smallest size's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--edges", type=int, nargs="+", default=[64, 128, 192, 256])
    parser.add_argument("--only", default="", help="methods whose names begin so")
    given = parser.parse_args()
    rows = others(given.only)
    with tempfile.TemporaryDirectory() as folder:
        weights = str(unfitted_weights(Path(folder)))
        for name, settings in METHODS.items():
            if not name.startswith(given.only):
                continue
            extra = {"weights": weights} if settings.get("similarity") == "patch-cnn" else {}
            own = []
            for edge in given.edges:
                own.append(cost_of(edge, name, settings | extra))
                print(own[-1], flush=True)
            for row in own[1:]:
                if "peak_mib" in row and "peak_mib" in own[0]:
                    row["bytes_a_voxel"] = round((row["peak_mib"] - own[0]["peak_mib"]) * 2**20 / (row["voxels"] - own[0]["voxels"]))
            rows += own
            report(rows, "memory")  # after every method: the largest cubes take long


if __name__ == "__main__":
    main()
