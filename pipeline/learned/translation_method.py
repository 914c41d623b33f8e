"""The hierarchical translation model and VoxelMorph as a method: one pass through the network, and if wanted the optimiser loop after it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field as Setting

from pipeline.errors import ConcordError
from pipeline.learned.modalities import check_modalities
from pipeline.learned.network_method import RefinedNetwork, trace_network
from pipeline.methods import Pair, Run
from pipeline.resampling import resample
from pipeline.transforms import Field, Transform
from pipeline.volumes import Geometry, Volume

if TYPE_CHECKING:
    import torch

    from nets.translation import HierarchicalTranslation, Translated


class TranslationNetwork(RefinedNetwork):
    """Hierarchical translation model (Dai et al., ISBI 2023) or VoxelMorph, by what its weights hold: a dense field in one pass.

    The network is convolutional and runs on the fixed image's grid, whatever its size, but what it has learned of shapes is in voxels: images
    should have about the voxel size that it was fitted to. Each image is scaled to [0, 1], as in training. It translates one way: which
    modality is fixed must be as it was, and is checked where it is known.

    `refine` is a B-spline alone unless told otherwise.
    """

    takes_masks: ClassVar[bool] = False
    learner: ClassVar[str] = "translation"
    refinement: ClassVar[Mapping[str, Any]] = {"stages": ("bspline",)}

    weights: Path | None = Setting(None, description="trained weights (.safetensors) of a translation fit")
    stop: Literal["coarse", "fine"] = Setting("fine", description="coarse: leave the fine network out, for what it adds")
    keep_translated: bool = Setting(
        True, description="hand over the translated moving image, in [0, 1], on the moving grid, or the fixed one where they differ"
    )

    @property
    def files(self) -> dict[str, Path]:
        """The trained weights, and what the loop reads."""
        return ({} if self.weights is None else {"weights": self.found([self.weights])[0]}) | super().files

    def load(self) -> None:
        """torch, the network with its weights, and a first run on zeros: what follows is warm."""
        import torch

        super().load()
        if "weights" in self.files:
            network = self.fitted[0]
            self._found(torch.zeros((1, 2, *[16] * network.dimension), device=self.chosen_device))

    @cached_property
    def fitted(self) -> tuple[HierarchicalTranslation, dict[str, Any]]:
        """The network on the device, and its card; read once."""
        from pipeline.learned.translation import load_translation

        if self.weights is None:
            raise self.missing()
        network, card = load_translation(self.weights)
        if self.stop not in network.parts and self.stop == "coarse":
            raise ConcordError(f"stop: coarse, but {self.weights} holds {', '.join(network.parts)} alone; leave stop out")
        return network.to(self.chosen_device), card

    def register(self, pair: Pair, run: Run) -> Transform:
        """The field on the fixed grid, from fixed to moving points.

        `run.trace` gains a row with `inference_ms`, warm after `load`, and `inverse_error_mm` of the coarse map where the network gives its
        inverse, and with `refine` the loop's rows; `run.images` gains "translated".
        A moving image on another grid is resampled onto the fixed one first. Raises `ConcordError` for no weights, weights of another
        dimension, and modalities that are known to be others than those that the network was fitted to.
        """

        from pipeline.learned.fitting import reproducible
        from pipeline.learned.laps import Laps

        self._check(pair)
        network, laps, grid = self.fitted[0], Laps(self.chosen_device), pair.fixed.geometry
        with reproducible(run.threads):
            images, seen = self._images(pair)
            laps.mark("prepare_ms")
            found = self._found(images)
            laps.mark("network_ms")
        trace_network(run, network, laps, **({} if run.trace is None else _consistency(found, grid)))
        if run.images is not None and self.keep_translated and found.translated is not None:
            run.images["translated"] = Volume(found.translated[0, 0].cpu().numpy(), seen.geometry, "translated")
        displacement_vx = found.displacement_vx[0].movedim(0, -1).double().cpu().numpy()
        return self.refined(pair, Field(displacement_vx @ grid.index_to_physical.T, grid), run)

    def parts(self, pair: Pair) -> Translated:
        """What every part of the network finds for a pair, in voxels of the fixed grid."""
        return self._found(self._images(pair)[0])

    def _images(self, pair: Pair) -> tuple[torch.Tensor, Volume]:
        """The network's input `(1, 2, [z,] y, x)` on the device, and the moving volume as it is seen there."""
        import torch

        from pipeline.learned.field_cases import scaled

        moving, grid = pair.moving.with_array(scaled(pair.moving, whole=True)), pair.fixed.geometry
        seen = moving if moving.geometry.matches(grid) else resample(moving, grid)
        return torch.from_numpy(np.stack([scaled(pair.fixed, whole=True), seen.array])[None]).to(self.chosen_device), seen

    def _found(self, images: torch.Tensor) -> Translated:
        import torch

        network = self.fitted[0]
        with torch.no_grad():
            return network(images, until="coarse" if self.stop == "coarse" else None)

    def _check(self, pair: Pair) -> None:
        network, card = self.fitted
        if pair.fixed.dimension != network.dimension:
            raise ConcordError(
                f"{pair.fixed.name}: {pair.fixed.dimension}-D, and {self.weights} was fitted to {network.dimension}-D images; expected the same"
            )
        check_modalities(pair, card, self.weights)


def _consistency(found: Translated, grid: Geometry) -> dict[str, float]:
    """How far the coarse map and its inverse are from undoing each other, where there is an inverse."""
    from metrics.accuracy.inverse import inverse_error_mm

    if found.coarse is None or found.coarse.inverse is None:
        return {}
    both = (field_vx[0].movedim(0, -1).cpu().numpy() for field_vx in found.coarse)
    return {"inverse_error_mm": inverse_error_mm(*both, spacing_mm=grid.spacing_mm)}
