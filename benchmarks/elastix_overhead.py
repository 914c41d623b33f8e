"""What the pipeline adds to elastix: a registration by mutual information against the bare call with the same parameter maps.

Both run in turn in one process, so that a machine whose speed drifts treats them alike; goal: a ratio under 1.15.

python benchmarks/elastix_overhead.py [runs] [threads]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
from common import interleaved, median_ratio, report
from scipy.ndimage import gaussian_filter

from pipeline.classical.elastix import MutualInformation
from pipeline.methods import Pair, Run, run_method
from pipeline.starting import masked_by_threshold
from pipeline.volumes import Geometry, Volume, to_itk

GOAL = 1.15
SIZES = {"96 x 96 x 32": (96, 96, 32), "96 x 96 x 96": (96, 96, 96)}
SETTINGS = {
    "rigid": MutualInformation(stages=["rigid"], iterations=50),
    "similarity, b-spline": MutualInformation(iterations=25),
    "similarity, b-spline, masks": MutualInformation(iterations=25, mask_threshold=0.3),
}


def pair_of(size: tuple[int, int, int]) -> Pair:
    """A textured ellipsoid and the same in another contrast, 2 voxels off."""
    geometry = Geometry.regular(size, 1.0)
    texture = gaussian_filter(np.random.default_rng(0).normal(size=geometry.shape), 3)
    inside = np.linalg.norm(geometry.grid_points() / (0.4 * geometry.extent_mm), axis=-1) < 1
    image = gaussian_filter(inside * (3 + texture / texture.std()), 1).astype(np.float32)
    return Pair(Volume(image, geometry), Volume(np.roll(np.abs(image - 2), 2, axis=2), geometry))


def bare(method: MutualInformation, pair: Pair, threads: int) -> Callable[[], object]:
    """elastix alone, images and masks already its own."""
    import itk

    masked = masked_by_threshold(pair, method.mask_threshold)
    images = [to_itk(volume, np.float32) for volume in (pair.fixed, pair.moving)]
    masks = {f"{name}_mask": to_itk(mask) for name, mask in (("fixed", masked.fixed_mask), ("moving", masked.moving_mask)) if mask is not None}
    parameters = itk.ParameterObject.New()
    for values in method.parameter_maps(masked):
        parameters.AddParameterMap(values)
    return lambda: itk.elastix_registration_method(*images, parameter_object=parameters, number_of_threads=threads, log_to_console=False, **masks)


def main() -> None:
    """Print and keep seconds and ratios."""
    runs, threads = (int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((1, 7), (2, 1)))
    rows: list[dict[str, object]] = []
    for size_name, size in SIZES.items():
        pair = pair_of(size)
        for stages, method in SETTINGS.items():
            ours, theirs = interleaved(partial(run_method, method, pair, Run(threads=threads)), bare(method, pair, threads), runs=runs)
            seconds, bare_seconds = statistics.median(ours), statistics.median(theirs)
            row = {
                "size": size_name,
                "stages": stages,
                "threads": threads,
                "runs": runs,
                "ours_s": round(seconds, 3),
                "elastix_s": round(bare_seconds, 3),
            }
            ratios = {"ratio": round(seconds / bare_seconds, 3), "pairwise_ratio": round(median_ratio(ours, theirs), 3)}
            rows.append(row | ratios | {"under_goal": seconds / bare_seconds < GOAL})
    report(rows, "elastix_overhead")


if __name__ == "__main__":
    main()
