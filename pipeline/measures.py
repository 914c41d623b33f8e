"""Measures: what is computed of a case from its transform alone, by the name that config and tables use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from pipeline.cases import Case
from pipeline.clinical import label_volumes_ml
from pipeline.errors import ConcordError
from pipeline.measures_counterpart import counterpart_mse_percent, translation_quality
from pipeline.transforms import Linear
from pipeline.volumes import Volume, read_volume

if TYPE_CHECKING:
    from pipeline.surfaces import Residual


@dataclass(frozen=True)
class Measure:
    """How a measure is called, which way is better, and what computes it: a number, or one a structure."""

    unit: str
    better: Literal["higher", "lower", "neither"]
    compute: Callable[[Scored], float | dict[int, float]] | None
    needs: tuple[str, ...] = ()

    def possible(self, case: Case) -> bool:
        """Whether the case has the files that the measure needs."""
        return not self.missing(case)

    def missing(self, case: Case) -> str:
        """Which files of those the case has not, in words; empty where it has them all."""
        absent = ", ".join(name for name in self.needs if getattr(case, name) is None)
        return f"no {absent}: without this measure" if absent else ""


class Scored:
    """A case and its transform, with what several measures need computed once."""

    def __init__(self, case: Case, transform_file: Path) -> None:
        from pipeline.transform_files import read_transform

        self.case, self.transform, self._folder = case, read_transform(transform_file), transform_file.parent

    @cached_property
    def fixed(self) -> Volume:
        """The fixed volume."""
        return read_volume(self.case.fixed)

    @cached_property
    def displacement_mm(self) -> np.ndarray:
        """Displacement on the fixed grid in mm, `([z,] y, x, d)`."""
        return self.transform.displacement_mm(self.fixed.geometry)

    @cached_property
    def displacement_vx(self) -> np.ndarray:
        """Displacement on the fixed grid in its voxels and axes, `([z,] y, x, d)`."""
        return self.displacement_mm @ self.fixed.geometry.physical_to_index.T

    @cached_property
    def warped(self) -> Volume:
        """The moving volume on the fixed grid, linear."""
        return self._warped(read_volume(self.case.moving), "linear")

    @cached_property
    def translated(self) -> Volume | None:
        """The moving image as the method translated it into the fixed modality, where it handed one over."""
        from pipeline.registration import image_name

        path = self._folder / image_name(self.case.case, "translated")
        return read_volume(path) if path.exists() else None

    @cached_property
    def fixed_labels(self) -> Volume:
        """The fixed label map."""
        return self._labels("fixed_labels", self.fixed)

    @cached_property
    def moving_labels(self) -> Volume:
        """The moving label map on its own grid."""
        return self._labels("moving_labels", read_volume(self.case.moving))

    @cached_property
    def warped_labels(self) -> np.ndarray:
        """The moving label map on the fixed grid, nearest neighbour."""
        return self._warped(self.moving_labels, "nearest").array

    def _warped(self, moving: Volume, interpolation: Literal["nearest", "linear"]) -> Volume:
        """A moving volume on the fixed grid; displacements are evaluated once for image and labels, and for a linear transform not at all."""
        from pipeline.resampling import warp, warp_by_field

        if isinstance(self.transform, Linear):
            return warp(moving, self.transform, self.fixed.geometry, interpolation=interpolation)
        return warp_by_field(moving, self.displacement_mm, self.fixed.geometry, interpolation=interpolation)

    def _labels(self, name: str, image: Volume) -> Volume:
        path = getattr(self.case, name)
        if path is None:
            raise ConcordError(f"case {self.case.case}: no {name}; this measure needs label maps")
        labels = read_volume(path)
        if not labels.geometry.matches(image.geometry):
            raise ConcordError(
                f"{path}: label map of size {labels.geometry.size} is not on the grid of {image.name} {image.geometry.size}; resample it (nearest)"
            )
        return labels

    @cached_property
    def surface_residual(self) -> Residual:
        """What is left between the found and the true places of the surface's corners."""
        from pipeline.surfaces import read_stl, residual_of
        from pipeline.transform_files import read_transform

        if self.case.fixed_surface is None or self.case.true_transform is None:
            raise ConcordError(f"case {self.case.case}: no fixed_surface or no true_transform; the surface registration error needs both")
        if self.transform.dimension != 3:
            raise ConcordError(f"case {self.case.case}: a surface in a 2-D case; its registration error needs whole volumes")
        corners = read_stl(self.case.fixed_surface).reshape(-1, 3)
        return residual_of(read_transform(self.case.true_transform).points(corners), self.transform.points(corners))

    @cached_property
    def spacing_zyx(self) -> tuple[float, ...]:
        """Voxel size in array order."""
        return self.fixed.geometry.spacing_mm[::-1]


def _overlap(name: str) -> Callable[[Scored], dict[int, float]]:
    def compute(scored: Scored) -> dict[int, float]:
        from metrics.accuracy import overlap

        return getattr(overlap, name)(scored.fixed_labels.array, scored.warped_labels)

    return compute


def _surface(name: str) -> Callable[[Scored], dict[int, float]]:
    return lambda scored: {label: getattr(distances, name) for label, distances in _surfaces(scored).items()}


def _surface_learn2reg(scored: Scored) -> dict[int, float]:
    from metrics.accuracy import surface

    return surface.hd95_learn2reg_vx(scored.fixed_labels.array, scored.warped_labels)


def _surfaces(scored: Scored) -> dict[int, object]:
    from metrics.accuracy import surface

    if not hasattr(scored, "surfaces"):
        scored.surfaces = surface.surface_distances(scored.fixed_labels.array, scored.warped_labels, spacing_mm=scored.spacing_zyx)
    return scored.surfaces


def _residual(name: str) -> Callable[[Scored], float]:
    return lambda scored: getattr(scored.surface_residual, name)


def _folding(name: str) -> Callable[[Scored], float]:
    def compute(scored: Scored) -> float:
        from metrics.accuracy import folding

        return float(getattr(folding, name)(scored.displacement_vx))

    return compute


def _quality(name: str) -> Callable[[Scored], float]:
    def compute(scored: Scored) -> float:
        from metrics.accuracy import quality

        fixed = scored.fixed.array.astype(float)
        options = {"data_range": float(np.ptp(fixed))} if name in ("ssim", "psnr_db") else {}
        return float(getattr(quality, name)(fixed, scored.warped.array.astype(float), **options))

    return compute


def _displacement_error(scored: Scored) -> float:
    """Mean distance in mm between found and true moving points, inside the fixed labels where there are any, else everywhere."""
    from metrics.accuracy import points
    from pipeline.transform_files import read_transform

    if scored.case.true_transform is None:
        raise ConcordError(f"case {scored.case.case}: no true_transform; displacement error needs one (phantoms have it)")
    true_mm = read_transform(scored.case.true_transform).displacement_mm(scored.fixed.geometry)
    mask = scored.fixed_labels.array != 0 if scored.case.fixed_labels is not None else None
    return float(points.displacement_error_mm(scored.displacement_mm, true_mm, mask)["mean"])


def _landmark_error(scored: Scored) -> float:
    """Mean target registration error in mm over the case's landmarks."""
    from metrics.accuracy import points

    if scored.case.fixed_landmarks is None or scored.case.moving_landmarks is None:
        raise ConcordError(f"case {scored.case.case}: no landmarks; the target registration error needs those of both volumes")
    fixed, moving = (read_points(path, scored.fixed.dimension) for path in (scored.case.fixed_landmarks, scored.case.moving_landmarks))
    return float(np.mean(points.tre_mm(scored.transform.points(fixed), moving)))


def read_points(path: Path, dimension: int) -> np.ndarray:
    """Landmarks `(n, d)` in mm from a CSV with columns x, y[, z]. Raises `ConcordError` for other columns or values."""
    if not path.exists():
        raise ConcordError(f"{path}: no such file; check the path")
    try:
        table = pd.read_csv(path)
        return table[list("xyz"[:dimension])].to_numpy(dtype=float)
    except (KeyError, ValueError, pd.errors.ParserError) as error:
        raise ConcordError(f"{path}: expected a CSV with numeric columns {', '.join('xyz'[:dimension])} (mm, LPS): {error}") from error


LABELS = ("fixed_labels", "moving_labels")
SURFACE = ("fixed_surface", "true_transform")
MEASURES: dict[str, Measure] = {
    "dice": Measure("", "higher", _overlap("dice"), LABELS),
    "jaccard": Measure("", "higher", _overlap("jaccard"), LABELS),
    "hd95_mm": Measure("mm", "lower", _surface("hd95_mm"), LABELS),
    "surface_distance_mm": Measure("mm", "lower", _surface("mean_mm"), LABELS),
    "hd95_learn2reg_vx": Measure("voxel", "lower", _surface_learn2reg, LABELS),
    "fixed_volume_ml": Measure("ml", "neither", partial(label_volumes_ml, which="fixed"), LABELS),
    "moving_volume_ml": Measure("ml", "neither", partial(label_volumes_ml, which="moving"), LABELS),
    "warped_volume_ml": Measure("ml", "neither", partial(label_volumes_ml, which="warped"), LABELS),
    "displacement_error_mm": Measure("mm", "lower", _displacement_error, ("true_transform",)),
    "tre_mm": Measure("mm", "lower", _landmark_error, ("fixed_landmarks", "moving_landmarks")),
    "sre_mm": Measure("mm", "lower", _residual("sre_mm"), SURFACE),
    "translation_error_mm": Measure("mm", "lower", _residual("translation_mm"), SURFACE),
    "rotation_error_deg": Measure("degree", "lower", _residual("rotation_deg"), SURFACE),
    "folding": Measure("", "lower", _folding("folding_fraction")),
    "folding_any_scheme": Measure("", "lower", _folding("folding_fraction_any_scheme")),
    "sdlogj": Measure("", "lower", _folding("sdlogj")),
    "sdlogj_learn2reg": Measure("", "lower", _folding("sdlogj_learn2reg")),
    "uiqi": Measure("", "higher", _quality("uiqi")),
    "ssim": Measure("", "higher", _quality("ssim")),
    "psnr_db": Measure("dB", "higher", _quality("psnr_db")),
    "mse": Measure("", "lower", _quality("mse")),
    "counterpart_mse_percent": Measure("%", "lower", counterpart_mse_percent, ("moving_counterpart",)),
    "translation_psnr_db": Measure("dB", "higher", translation_quality("psnr_db"), ("moving_counterpart",)),
    "translation_ssim": Measure("", "higher", translation_quality("ssim"), ("moving_counterpart",)),
    "seconds": Measure("s", "lower", None),
    "iteration_ms": Measure("ms", "lower", None),
    "peak_memory_mib": Measure("MiB", "lower", None),
    "inference_ms": Measure("ms", "lower", None),
    "parameters": Measure("", "lower", None),
    "spread_mm": Measure("mm", "lower", None),
    "inverse_error_mm": Measure("mm", "lower", None),
}
"""Name in config and tables: unit, direction, function. Costs come from the manifest; `iteration_ms` is the median of our loop's iterations,
`inference_ms` (resampling and network, warm) and `parameters` the mean of a network's stages, `spread_mm` how the last one's averages disagree,
`inverse_error_mm` how far a network's own inverse of its map is from undoing it (`metrics.accuracy.inverse`)."""
FROM_MANIFEST = tuple(name for name, measure in MEASURES.items() if measure.compute is None)


def measure_rows(name: str, scored: Scored) -> Iterator[tuple[str, str, float, str]]:
    """Structure, metric, value, unit of one measure."""
    measure = MEASURES[name]
    value = measure.compute(scored)
    values = {str(label): number for label, number in value.items()} if isinstance(value, dict) else {"": value}
    for structure, number in values.items():
        yield structure, name, number, measure.unit
