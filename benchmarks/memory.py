"""Peak memory of each method against voxel count, one process a measurement.

python benchmarks/memory.py [64 96 128 192 256]
"""

from __future__ import annotations

import json
import subprocess
import sys

from common import report

METHODS = {
    "identity": {},
    "affine": {"iterations": 5},
    "mi": {"iterations": 5},
    "mind-ssc": {"iterations": 5},
    "demons": {"iterations": [2, 2, 2]},
    "syn": {"iterations": [2, 2, 2]},
    "symgn": {},
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
pair = Pair(Volume(image, geometry), Volume(np.roll(image, 2, axis=2), geometry))
with measured() as cost:
    transform = run_method(create_method(name, settings), pair, Run(threads=2))
print(json.dumps({"peak": cost.peak_memory_mib, "seconds": cost.seconds}))
"""


def main() -> None:
    """Print and keep peak memory in MiB, and bytes a voxel above the smallest size's."""
    edges = [int(edge) for edge in sys.argv[1:]] or [64, 96, 128, 192, 256]
    rows = []
    for name, settings in METHODS.items():
        for edge in edges:
            done = subprocess.run([sys.executable, "-c", ONE, str(edge), name, json.dumps(settings)], capture_output=True, text=True, check=False)
            if done.returncode:
                rows.append({"method": name, "edge": edge, "peak_mib": float("nan"), "note": done.stderr.strip().splitlines()[-1][:80]})
                continue
            cost = json.loads(done.stdout.strip().splitlines()[-1])
            rows.append({"method": name, "edge": edge, "voxels": edge**3, "peak_mib": round(cost["peak"]), "seconds": round(cost["seconds"], 1)})
            first = next(row for row in rows if row["method"] == name)
            if edge > first["edge"]:
                rows[-1]["bytes_a_voxel"] = round((cost["peak"] - first["peak_mib"]) * 2**20 / (edge**3 - first["edge"] ** 3))
    report(rows, "memory")


if __name__ == "__main__":
    main()
