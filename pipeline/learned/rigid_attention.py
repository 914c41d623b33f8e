"""What a fitted Attention-Reg or Feature-Reg looks at: Grad-CAM of its two branches, and single rows of its attention.

Song et al., MICCAI 2021, fig. 4 (Grad-CAM of both blocks); Selvaraju et al., ICCV 2017, for Grad-CAM itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from nets.attention_reg import MAP_STRIDES, AttentionReg
from pipeline.errors import ConcordError
from pipeline.learned.rigid import load_rigid
from pipeline.learned.rigid_batches import vertex_distance_mm
from pipeline.learned.rigid_cases import RigidCase, RigidVolumes, rigid_case
from pipeline.methods import Pair
from pipeline.region import outer_corners_mm
from pipeline.volumes import Geometry

Branch = Literal["mr", "us"]
"""Names of the network's branches, which are also those of its attention blocks: the primary modality's."""
OTHER: dict[Branch, Branch] = {"mr": "us", "us": "mr"}


@dataclass(frozen=True, eq=False)
class Sample:
    """A fitted network and one case as it sees it: `volumes` `(1, 2, z, y, x)` on the grid `case.region`."""

    network: AttentionReg
    case: RigidCase
    volumes: torch.Tensor


def load_sample(weights: Path, pair: Pair, start: np.ndarray, *, enlarge: float = 0.0, device: torch.device | None = None) -> Sample:
    """The network behind `weights`, and a pair prepared for it, the moving volume seen through `start` `(4, 4)`, fixed to moving points.

    The region is the box of the pair's fixed mask, enlarged by `enlarge`. Raises `ConcordError` for weights of another kind of
    network, a pair without a mask, no labels where the network needs them, and whatever `load_rigid` and `rigid_case` refuse.
    """
    network, how, card = load_rigid(weights)
    if not isinstance(network, AttentionReg):
        raise ConcordError(f"{weights}: weights of {card['network']}; expected attention-reg or feature-reg, whose maps are looked at: choose those")
    if pair.fixed_mask is None:
        raise ConcordError(f"{pair.fixed.name}: no mask; expected the organ's, from which the region is cut: set prepare.region")
    labels = pair.fixed_labels if how.input == "label" else None
    case = rigid_case(pair.fixed, pair.moving, pair.fixed_mask, how.cut_from(enlarge, weights), labels=labels)
    device = device or torch.device("cpu")
    volumes = RigidVolumes([case], device).inputs(np.zeros(1, int), np.asarray(start)[None])
    return Sample(network.to(device), case, volumes)


def weighted_map(maps: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Grad-CAM `(B, z, y, x)` of maps `(B, C, z, y, x)`: channels weighted by the spatial mean of their gradient, summed, ReLU.

    Selvaraju et al. 2017, eq. (1) and (2).
    """
    return torch.relu((gradients.mean(dim=(2, 3, 4), keepdim=True) * maps).sum(1))


def predicted_way_mm(parameters: torch.Tensor, case: RigidCase) -> torch.Tensor:
    """How far the predicted motion `(B, 6)` carries the region's eight corners, mean distance in mm, `(B,)`.

    This is the scalar that Grad-CAM differentiates (ours; the paper names none for its six outputs): it joins mm and degrees in one
    length, and does not depend on the point that the network's rotations are about.
    """
    corners = outer_corners_mm(case.region) - case.centre_mm
    about = torch.from_numpy(corners).to(parameters).expand(len(parameters), -1, -1)
    return vertex_distance_mm(parameters, torch.zeros_like(parameters), about)


def grad_cam(sample: Sample) -> dict[Branch, np.ndarray]:
    """Grad-CAM of the maps that leave the attention blocks (of Feature-Reg: the extractors), one `(z, y, x)` on the maps' grid a branch.

    Differentiated is `predicted_way_mm`: a place is high where stronger features would make the predicted motion longer.
    """
    # the weights are frozen: without an input that wants a gradient nothing would be recorded
    answer, maps = sample.network.forward_with_maps(sample.volumes.detach().requires_grad_())
    gradients = torch.autograd.grad(predicted_way_mm(answer, sample.case).sum(), maps)
    found = [weighted_map(features, gradient)[0] for features, gradient in zip(maps, gradients, strict=True)]
    return {branch: values.detach().cpu().numpy() for branch, values in zip(OTHER, found, strict=True)}


def attention_map(sample: Sample, point_mm: np.ndarray, *, primary: Branch) -> np.ndarray:
    """Where a point of the other modality looks in the primary one: a row of softmax(Q K^T), `(z, y, x)` on the maps' grid, of sum 1.

    The query is the place of the map nearest to the point `(3,)`, mm in the fixed frame (moving volume as seen through the start).
    Only that row is computed. Raises `ConcordError` for a network without attention and a point outside the region.
    """
    if not sample.network.attention:
        raise ConcordError(f"{sample.case.name}: this network has no attention block; expected one of network attention-reg: choose its weights")
    with torch.no_grad():
        maps = dict(zip(OTHER, sample.network.features(sample.volumes), strict=True))
        place = torch.from_numpy(nearest_place(sample, point_mm))[None]
        row = sample.network.attention[primary].attention_from(maps[primary], maps[OTHER[primary]], place)
    return row.reshape(sample.network.map_grid).cpu().numpy()


def nearest_place(sample: Sample, point_mm: np.ndarray) -> np.ndarray:
    """Place (z, y, x) of the maps nearest to a point in mm. Raises `ConcordError` for a point outside the region."""
    region = sample.case.region
    if not region.contains(np.asarray(point_mm)):
        low, high = np.round(np.sort(region.points_at(np.stack([np.zeros(3), np.asarray(region.size) - 1])), axis=0), 1)
        raise ConcordError(
            f"{sample.case.name}: point ({', '.join(f'{c:.1f}' for c in point_mm)}) mm is outside the region that the network sees; "
            f"expected one between {low.tolist()} and {high.tolist()} mm: choose it there"
        )
    place = np.floor(region.index_at(point_mm)[::-1] / MAP_STRIDES + 0.5).astype(int)
    return np.clip(place, 0, np.asarray(sample.network.map_grid) - 1)


def mean_distance_mm(sample: Sample, weights: np.ndarray, point_mm: np.ndarray) -> float:
    """Mean distance in mm of the maps' places from a point, weighted by a map `(z, y, x)`: how far a row of attention looks past it."""
    index = np.moveaxis(np.indices(weights.shape), 0, -1) * MAP_STRIDES
    far = np.linalg.norm(sample.case.region.points_at(index[..., ::-1]) - point_mm, axis=-1)
    return float((far * weights).sum() / weights.sum())


def spread(values: np.ndarray, region: Geometry, onto: Geometry | None = None) -> np.ndarray:
    """A map `(z, y, x)` of the network, interpolated linearly on the grid of its input, or on another grid in the same frame.

    Beyond the outermost places, which are not on the region's border, their value goes on.
    """
    from scipy.ndimage import map_coordinates

    index = np.indices(region.shape, dtype=float) if onto is None else np.moveaxis(region.index_at(onto.grid_points())[..., ::-1], -1, 0)
    return map_coordinates(values.astype(np.float32), index / np.reshape(MAP_STRIDES, (3, 1, 1, 1)), order=1, mode="nearest")
