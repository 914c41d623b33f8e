"""The hierarchical translation model (Dai et al., ISBI 2023): coarse registration, translation of the moving image, fine registration."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import nn

from nets.fields import compose
from nets.voxelmorph import Displacements, Output, VoxelMorph, VoxelMorphUNet

PARTS = ("coarse", "translate", "fine")
Sees = Literal["both", "moving"]


class Translated(NamedTuple):
    """What the parts found; None where there is no such part. Displacements are `(B, d, [z,] y, x)` in voxels, images `(B, 1, [z,] y, x)`.

    `coarse` is phi_0 and its inverse, `mask` what is added to the moving image, `translated` the sum, on the moving grid; `fine` is phi_1
    and `displacement_vx` all of it, phi = phi_0 o phi_1.
    """

    displacement_vx: torch.Tensor
    coarse: Displacements | None = None
    mask: torch.Tensor | None = None
    translated: torch.Tensor | None = None
    fine: torch.Tensor | None = None


class HierarchicalTranslation(nn.Module):
    """Fixed and moving image to a displacement, by the parts that there are; paper, sec. 2 and Fig. 1.

    The coarse network G1 sees both images. The translation network G2 sees the same and gives a mask that is added to the moving image.
    The fine network G3 sees both images and the translated one (without G2 the two alone) and refines G1's displacement u0:
    u(p) = u1(p) + u0(p + u1(p)), so that the moving image is warped once. Without G1, u0 is zero. All three are VoxelMorph's U-Net:
    109,170, 109,025 and 109,314 parameters in 2-D.

    With `translate_sees` "moving" G2 sees the moving image alone (ours): given both, it can copy the fixed image's structure to where phi_0
    takes it from, and then holds phi at phi_0, right or wrong.

    `coarse_output` and `fine_output` are "velocity" or "displacement"; the paper needs the coarse inverse, so that a velocity is our
    reading of it. Raises `ValueError` for no part, or one of another name.
    """

    def __init__(
        self,
        dimension: int,
        *,
        parts: tuple[str, ...] = PARTS,
        coarse_output: Output = "velocity",
        fine_output: Output = "displacement",
        translate_sees: Sees = "both",
    ) -> None:
        super().__init__()
        if unknown := set(parts) - set(PARTS):
            raise ValueError(f"parts {sorted(unknown)}; valid: {', '.join(PARTS)}")
        if not parts:
            raise ValueError(f"no parts; expected one or more of {', '.join(PARTS)}")
        if translate_sees not in ("both", "moving"):
            raise ValueError(f"translate_sees {translate_sees!r}; expected both or moving")
        self.dimension, self.parts, self.sees = dimension, tuple(part for part in PARTS if part in parts), translate_sees
        if "coarse" in parts:
            self.coarse = VoxelMorph(dimension, output=coarse_output)
        if "translate" in parts:
            self.translate = VoxelMorphUNet(dimension, inputs=2 if translate_sees == "both" else 1, outputs=1)
        if "fine" in parts:
            self.fine = VoxelMorph(dimension, inputs=3 if "translate" in parts else 2, output=fine_output)

    def forward(self, images: torch.Tensor, *, until: str | None = None) -> Translated:
        """What is found for images `(B, 2, [z,] y, x)`, channel 0 fixed and 1 moving, both in [0, 1]; parts after `until` are left out.

        Raises `ValueError` for another shape, and an `until` that is no part of this network.
        """
        if images.ndim != self.dimension + 2 or images.shape[1] != 2:
            raise ValueError(f"input {tuple(images.shape)}; expected (batch, 2, {'z, ' * (self.dimension == 3)}y, x), channel 0 fixed and 1 moving")
        if until is not None and until not in self.parts:
            raise ValueError(f"until {until!r}; expected one of {', '.join(self.parts)}")
        wanted = self.parts if until is None else self.parts[: self.parts.index(until) + 1]
        still = torch.zeros_like(images[:, :1]).expand(-1, self.dimension, *images.shape[2:])
        found = Translated(still)
        if "coarse" in wanted:
            coarse = self.coarse.both(images)
            found = found._replace(coarse=coarse, displacement_vx=coarse.forward)
        if "translate" in wanted:
            mask = self.translate(images if self.sees == "both" else images[:, 1:])
            found = found._replace(mask=mask, translated=images[:, 1:] + mask)
        return self._refined(images, found) if "fine" in wanted else found

    def _refined(self, images: torch.Tensor, found: Translated) -> Translated:
        seen = images if found.translated is None else torch.cat([images, found.translated], dim=1)
        fine = self.fine(seen)
        return found._replace(fine=fine, displacement_vx=fine if found.coarse is None else compose(fine, found.displacement_vx))
