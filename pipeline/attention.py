"""The figure of what an attention network looks at, from files: which case, which start, which point, and the text that explains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.cases import Case
from pipeline.errors import ConcordError, choices
from pipeline.transforms import Linear, Transform
from pipeline.volumes import Geometry, Volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.figures.attention import Overlay
    from pipeline.learned.rigid_attention import Sample
    from pipeline.learned.rigid_method import RigidNetwork

SHOWN_MM = 0.5
"""Voxels of the pictures (ours): finer than the network's own grid, so that the anatomy can be recognised."""
MODALITIES = {"mr": "MR", "us": "TRUS"}


class AttentionSettings(BaseModel):
    """Grad-CAM and attention of a network of rigid registration, laid over one test case."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(description="heading of the figure")
    method: str = Field(description="method of use attention-reg, fitted to a network attention-reg; its first stage is looked at")
    without: str = Field("", description="a method fitted to a network feature-reg, whose Grad-CAM is shown beside; empty: none")
    case: str = Field("", description="name or subject of the test case; empty: the first")
    start: str = Field("", description="name of its starting position; empty: the first")
    point_mm: tuple[float, float, float] | None = Field(
        None,
        description="point of the fixed volume (x, y, z), mm, LPS, that the slices pass through and whose attention is shown; null: gland's centre",
    )
    caption: str = Field("", description="added to the caption in the report")


@dataclass(frozen=True, eq=False)
class Scene:
    """A case on the fine grid of the pictures, as the network meets it: MR, TRUS through the start, glands, and one anatomical point in both.

    Points are mm in the fixed frame; `known` says whether that of the TRUS comes from the true transform or is merely the same position.
    """

    images: dict[str, Volume]
    glands: dict[str, np.ndarray | None]
    points_mm: dict[str, np.ndarray]
    known: bool


def attention_figure(
    settings: AttentionSettings, methods: Sequence[RigidNetwork], cases: Sequence[Case], *, source: str = "", threads: int = 1
) -> Figure:
    """The figure of `settings`; `methods` are the attention network's and, where asked for, the one without attention.

    `source` says in words where case and weights come from.

    Raises `ConcordError` where there is no such case, no mask, no weights or no attention, and for a point outside the region.
    """
    from pipeline.figures.attention import draw_attention
    from pipeline.learned.fitting import choose_device, reproducible
    from pipeline.learned.rigid_attention import load_sample
    from pipeline.registration import load_pair

    case = chosen_case(cases, settings)
    pair, start = load_pair(case, labels=True), _rigid(case.start_transform)
    with reproducible(threads):
        samples = [
            load_sample(_first_weights(method), pair, start, enlarge=method.enlarge, device=choose_device(method.device)) for method in methods
        ]
        scene = _scene(case, samples[0].case.region, start, settings.point_mm)
        overlays = [*_cams(samples, scene), *_rows(samples[0], scene)]
    return draw_attention(overlays, header=_header(settings, case, samples[0], scene, source))


def chosen_case(cases: Sequence[Case], settings: AttentionSettings) -> Case:
    """The first test case of that name or subject, from that start. Raises `ConcordError` with what there is."""
    tested = [case for case in cases if case.split == "test"]
    named = [case for case in tested if settings.case in ("", case.case, case.subject)]
    if not named:
        names = sorted({case.subject for case in tested})
        raise ConcordError(f"attention: no test case or subject {settings.case!r}{choices(settings.case, names)}")
    started = [case for case in named if settings.start in ("", case.start)]
    if not started:
        raise ConcordError(f"attention: no start {settings.start!r}{choices(settings.start, sorted({case.start for case in named}))}")
    return started[0]


def _first_weights(method: RigidNetwork) -> Path:
    if not method.weights:
        raise ConcordError("attention: the method has no weights; expected a .safetensors file that a rigid-network fit wrote: fit one first")
    return method.weights[0]


def _rigid(path: Path | None) -> np.ndarray:
    from pipeline.rigid_motion import rigid_matrix
    from pipeline.transform_files import read_transform

    return np.eye(4) if path is None else rigid_matrix(read_transform(path), str(path))


def _scene(case: Case, region: Geometry, start: np.ndarray, point_mm: Sequence[float] | None) -> Scene:
    from pipeline.resampling import resample, warp
    from pipeline.transform_files import read_transform
    from pipeline.volumes import read_volume

    grid = region.with_spacing(SHOWN_MM)
    through = Linear(start[:3, :3], start[:3, 3], "rigid")
    glands = {"mr": _gland(case.fixed_labels, Linear.identity(3), grid), "us": _gland(case.moving_labels, through, grid)}
    point = _centre(glands["mr"], grid) if point_mm is None else np.asarray(point_mm, dtype=float)
    truth: Transform = through if case.true_transform is None else read_transform(case.true_transform)
    return Scene(
        {"mr": resample(read_volume(case.fixed), grid), "us": warp(read_volume(case.moving), through, grid)},
        glands,
        {"mr": point, "us": through.inverse().points(truth.points(point[None]))[0]},
        case.true_transform is not None,
    )


def _gland(labels: Path | None, transform: Transform, grid: Geometry) -> np.ndarray | None:
    from pipeline.resampling import warp
    from pipeline.volumes import read_volume

    return None if labels is None else warp(read_volume(labels), transform, grid, interpolation="nearest").array != 0


def _centre(gland: np.ndarray | None, grid: Geometry) -> np.ndarray:
    from pipeline.figures.slices import centroid

    middle = None if gland is None else centroid(gland)
    return grid.centre_mm if middle is None else grid.points_at(np.array(middle[::-1]))


def _cams(samples: Sequence[Sample], scene: Scene) -> list[Overlay]:
    """Grad-CAM of both branches of every network, in percent of its largest value."""
    from pipeline.learned.rigid_attention import grad_cam

    overlays = []
    for sample in samples:
        kind = "" if len(samples) == 1 else (", attention" if sample.network.attention else ", no attention")
        for branch, values in grad_cam(sample).items():
            shown = _overlay(f"Grad-CAM in {MODALITIES[branch]}{kind}", scene, sample, branch, 100 * values / (values.max() or 1.0))
            overlays.append(replace(shown, kind="cam", note=_inside(shown.heat, scene.glands[branch])))
    return overlays


def _rows(sample: Sample, scene: Scene) -> list[Overlay]:
    """Where the point of each modality looks in the other one, in percent a place of the map."""
    from pipeline.learned.rigid_attention import OTHER, attention_map, mean_distance_mm

    overlays = []
    for primary in ("us", "mr"):
        row = attention_map(sample, scene.points_mm[OTHER[primary]], primary=primary)
        shown = _overlay(f"{MODALITIES[OTHER[primary]]} point looks in {MODALITIES[primary]}", scene, sample, primary, 100 * row)
        far, even = (mean_distance_mm(sample, values, scene.points_mm[primary]) for values in (row, np.ones_like(row)))
        overlays.append(replace(shown, kind="attention", note=f"{far:.0f} mm from + on average (even: {even:.0f} mm)"))
    return overlays


def _overlay(name: str, scene: Scene, sample: Sample, branch: str, values: np.ndarray) -> Overlay:
    from pipeline.figures.attention import Overlay
    from pipeline.learned.rigid_attention import spread

    image = scene.images[branch]
    heat = spread(values, sample.case.region, image.geometry)
    return Overlay(name, image, heat, point_mm=scene.points_mm[branch], outline=scene.glands[branch])


def _inside(heat: np.ndarray, gland: np.ndarray | None) -> str:
    """How much of a map lies in the gland, beside how much of the box the gland fills."""
    if not heat.any():
        return "nowhere above zero"
    return "" if gland is None else f"{heat[gland].sum() / heat.sum():.0%} inside the gland ({gland.mean():.0%} of the box)"


def _header(settings: AttentionSettings, case: Case, sample: Sample, scene: Scene, source: str) -> list[str]:
    """The lines above the panels: what is shown, of whom, and what the marks are."""
    how, places = sample.case.how, sample.network.map_grid[::-1]
    told = ", ".join([f"case {case.case}", *([f"start {case.start}"] if case.start else []), *([source] if source else [])])
    sees = "the MR gland's label map" if how.input == "label" else "MR"
    there = "its true counterpart" if scene.known else "the same position, as no true transform is known,"
    return [
        settings.title,
        f"Network of {settings.method} (first stage); {told}",
        f"Input: this box of {sees} and TRUS (seen through the start), {_times(how.size)} voxels; maps: {_times(places)} places",
        f"+: the point {_point(scene.points_mm['mr'])} of the MR and {there} in the TRUS; all slices pass through it. Blue: the gland",
    ]


def _times(numbers: Sequence[int]) -> str:
    return " × ".join(map(str, numbers))


def _point(point_mm: np.ndarray) -> str:
    return f"({', '.join(f'{c:.0f}' for c in point_mm)}) mm"
