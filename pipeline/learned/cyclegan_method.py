"""CycleGAN's translation as a method: nothing is moved, the moving image is handed over as the fixed modality would show it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field as Setting

from pipeline.errors import ConcordError
from pipeline.learned.network_method import NetworkMethod, trace_network
from pipeline.methods import Pair, Run
from pipeline.transforms import Linear, Transform
from pipeline.volumes import Volume

if TYPE_CHECKING:
    from torch import nn


class CycleGan(NetworkMethod):
    """Translation of the moving image by CycleGAN (Zhu et al., ICCV 2017), for tables beside methods that translate and register.

    The transform is the identity. `run.images` gains "translated", in [0, 1], on the moving grid. 2-D images of the modalities, and about the
    voxel size, that the networks were fitted to; each is scaled to [0, 1], as in training.
    """

    takes_masks: ClassVar[bool] = False
    learner: ClassVar[str] = "cyclegan"

    weights: Path | None = Setting(None, description="trained weights (.safetensors) of a cyclegan fit")

    @property
    def files(self) -> dict[str, Path]:
        """The trained weights."""
        return {} if self.weights is None else {"weights": self.found([self.weights])[0]}

    def load(self) -> None:
        """torch, the networks with their weights, and a first run on zeros: what follows is warm."""
        import torch

        if self.files:
            self._translated(torch.zeros((16, 16)))

    @cached_property
    def fitted(self) -> tuple[nn.Module, dict[str, Any]]:
        """The generator of the fixed modality on the device, and the card; read once."""
        from pipeline.learned.cyclegan import load_cyclegan

        if self.weights is None:
            raise self.missing()
        generators, card = load_cyclegan(self.weights)
        return generators["to_fixed"].to(self.chosen_device), card

    def register(self, pair: Pair, run: Run) -> Transform:
        """The identity. `run.trace` gains a row with `inference_ms`, warm after `load`.

        Raises `ConcordError` for no weights, volumes, and modalities that are known to be others than those of the fit.
        """
        import torch

        from pipeline.learned.field_cases import scaled
        from pipeline.learned.fitting import reproducible
        from pipeline.learned.laps import Laps
        from pipeline.learned.modalities import check_modalities

        generator, card = self.fitted
        if pair.fixed.dimension != 2:
            raise ConcordError(f"{pair.fixed.name}: {pair.fixed.dimension}-D; CycleGAN translates 2-D images: set slices, or another method")
        check_modalities(pair, card, self.weights)
        laps = Laps(next(generator.parameters()).device)
        with reproducible(run.threads):
            image = torch.from_numpy(scaled(pair.moving, whole=True))
            laps.mark("prepare_ms")
            translated = self._translated(image)
            laps.mark("network_ms")
        trace_network(run, generator, laps)
        if run.images is not None:
            run.images["translated"] = Volume(translated.cpu().numpy(), pair.moving.geometry, "translated")
        return Linear.identity(2)

    def _translated(self, image: Any) -> Any:
        """An image `(y, x)` in [0, 1] in the other modality; the generators know [-1, 1]."""
        import torch

        generator = self.fitted[0]
        with torch.no_grad():
            shown = generator(2 * image[None, None].to(next(generator.parameters()).device) - 1)
        return (shown[0, 0] + 1) / 2
