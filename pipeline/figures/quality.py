"""Is this registration good? Similarity before and after, folding, the largest displacement, and a verdict by stated limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pipeline.volumes import Volume

BINS = 64
"""Bins of the joint histogram (ours)."""
MOST_SAMPLES = 2_000_000
"""Voxels that similarity is measured on at most, evenly strided (ours)."""


@dataclass(frozen=True)
class QualityLimits:
    """When a registration is to be looked at (warn) or not to be used (fail); all limits are ours, chosen to catch the obvious.

    Folding is the share of voxels in percent whose Jacobian determinant is not positive. NMI is compared before and after:
    a loss is a warning within `nmi_noise`, and a failure beyond it.
    """

    folding_warn_percent: float = 0.1
    folding_fail_percent: float = 1.0
    nmi_noise: float = 0.005


def quality_summary(
    fixed: Volume, before: Volume, warped: Volume, displacement_vx: np.ndarray, *, limits: QualityLimits | None = None
) -> dict[str, Any]:
    """NMI and NCC of the fixed image with the moving one `before` and with the `warped` one, folding, displacement, verdict and reasons.

    All three volumes are on the fixed grid; `displacement_vx` is `([z,] y, x, d)` in its voxels. NMI is Studholme's,
    (H(A) + H(B)) / H(A, B), 1 for independent and 2 for equal images; either is nan for an image of one value. Keys:
    nmi_before, nmi_after, ncc_before, ncc_after, folding_percent, largest_displacement_mm, verdict (pass, warn or fail), reasons.
    """
    from metrics.accuracy.folding import folding_fraction

    # in the field's own precision: a copy of a large field in double takes hundreds of MiB
    displacement_mm = np.linalg.norm(displacement_vx @ fixed.geometry.index_to_physical.T.astype(displacement_vx.dtype), axis=-1)
    summary = {
        "nmi_before": nmi(fixed.array, before.array),
        "nmi_after": nmi(fixed.array, warped.array),
        "ncc_before": ncc(fixed.array, before.array),
        "ncc_after": ncc(fixed.array, warped.array),
        "folding_percent": 100 * folding_fraction(displacement_vx),
        "largest_displacement_mm": float(displacement_mm.max()),
    }
    verdict, reasons = _verdict(summary, limits or QualityLimits())
    return {**summary, "verdict": verdict, "reasons": reasons}


def nmi(first: np.ndarray, second: np.ndarray) -> float:
    """Normalised mutual information of two images of one shape, from a joint histogram of 64 x 64 equal bins."""
    bins = [_binned(array) for array in _strided(first, second)]
    joint = np.bincount(bins[0] * BINS + bins[1], minlength=BINS * BINS).reshape(BINS, BINS) / bins[0].size
    together = _entropy(joint.ravel())
    return (_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / together if together > 0 else float("nan")


def ncc(first: np.ndarray, second: np.ndarray) -> float:
    """Normalised cross-correlation (Pearson's) of two images of one shape."""
    a, b = (array - array.mean() for array in _strided(first, second))
    scale = np.sqrt(np.sum(a**2) * np.sum(b**2))
    return float(np.sum(a * b) / scale) if scale > 0 else float("nan")


def _strided(*arrays: np.ndarray) -> list[np.ndarray]:
    step = max(1, arrays[0].size // MOST_SAMPLES)
    return [array.reshape(-1)[::step].astype(float) for array in arrays]


def _binned(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return np.minimum((values - low) / ((high - low) or 1) * BINS, BINS - 1).astype(np.int64)


def _entropy(share: np.ndarray) -> float:
    share = share[share > 0]
    return float(-np.sum(share * np.log(share)))


def _verdict(summary: dict[str, float], limits: QualityLimits) -> tuple[str, str]:
    """The worst finding decides."""
    gain, folding = summary["nmi_after"] - summary["nmi_before"], summary["folding_percent"]
    findings = []
    if not np.isfinite(gain):
        findings.append(("fail", "an image has a single value: nothing to compare"))
    elif gain <= 0:
        findings.append(("fail" if gain < -limits.nmi_noise else "warn", f"NMI did not rise ({gain:+.4f})"))
    if folding > limits.folding_warn_percent:
        level, limit = ("fail", limits.folding_fail_percent) if folding > limits.folding_fail_percent else ("warn", limits.folding_warn_percent)
        findings.append((level, f"folding {folding:.2g} % is above {limit:g} %"))
    verdict = max((level for level, _ in findings), key=("pass", "warn", "fail").index, default="pass")
    told = [text for _, text in findings] or [f"NMI rose ({gain:+.4f})", f"folding is at most {limits.folding_warn_percent:g} %"]
    return verdict, "; ".join(told)
