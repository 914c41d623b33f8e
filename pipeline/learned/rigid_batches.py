"""Perturbed batches of rigid registration: fresh starting positions around the truth, with the motion that undoes each as target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.learned.rigid_cases import RigidCase, RigidVolumes
from pipeline.learned.settings.rigid import Perturbation
from pipeline.rigid_motion import Surfaces, draw_motions, motion_matrix, motion_parameters

LOSS_VERTICES = 512
"""Vertices a case that the loss "sre" follows (ours)."""
TRAINING, ORDER, VALIDATION, VERTICES, ALIGNED = range(5)
"""Streams of random numbers, so that none depends on how much another has drawn."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Starting positions: whose volumes, the motions `(n, 4, 4)` that perturb them, and the parameters `(n, 6)` that undo these."""

    rows: np.ndarray
    motions: np.ndarray
    targets: np.ndarray

    def part(self, start: int, stop: int) -> Draws:
        """Some of them."""
        return Draws(self.rows[start:stop], self.motions[start:stop], self.targets[start:stop])


@dataclass(frozen=True, eq=False)
class Batch:
    """Input `(b, 2, z, y, x)`, targets `(b, 6)` and, for the loss, vertices `(b, 512, 3)` in mm about the centre of rotation."""

    volumes: torch.Tensor
    targets: torch.Tensor
    vertices_mm: torch.Tensor


class RigidBatches:
    """Batches from cases on a device. What is drawn is a function of the seed and of the place in the training alone.

    Motions are drawn about the fixed volumes' origins, as in the paper, whatever point the network's parameters are about.
    """

    def __init__(self, cases: Sequence[RigidCase], perturbation: Perturbation, *, seed: int, device: torch.device) -> None:
        self.cases, self.perturbation, self.seed, self.device = cases, perturbation, seed, device
        self.volumes = RigidVolumes(cases, device)
        self.surfaces = Surfaces.of([case.vertices_mm for case in cases])
        self.origins, self.centres, self.truths = (np.stack([getattr(case, name) for case in cases]) for name in ("origin_mm", "centre_mm", "truth"))
        chosen = [np.random.default_rng([seed, VERTICES]).integers(len(case.vertices_mm), size=LOSS_VERTICES) for case in cases]
        about = np.stack([case.vertices_mm[rows] - case.centre_mm for case, rows in zip(cases, chosen, strict=True)])
        self._vertices = torch.from_numpy(about.astype(np.float32)).to(device)

    def training(self, epoch: int, number: int, *, draws: int, batch: int) -> Batch:
        """Batch `number` of an epoch of `draws` samples: every case as often as every other, in a new order each epoch."""
        rng = np.random.default_rng([self.seed, ORDER, epoch])
        rounds = -(-draws // len(self.cases))
        order = np.concatenate([rng.permutation(len(self.cases)) for _ in range(rounds)])[:draws]
        rows = order[number * batch : (number + 1) * batch]
        return self.batch(self._draws(rows, np.random.default_rng([self.seed, TRAINING, epoch, number])))

    def validation(self, each: int) -> Draws:
        """`each` starting positions for every case, always the same ones."""
        return self._draws(np.repeat(np.arange(len(self.cases)), each), np.random.default_rng([self.seed, VALIDATION]))

    def batch(self, draws: Draws) -> Batch:
        """The draws as the network sees them: moving volumes through the true transform after the inverse motion."""
        volumes = self.volumes.inputs(draws.rows, self.truths[draws.rows] @ np.linalg.inv(draws.motions))
        rows = torch.from_numpy(draws.rows).to(self.device)
        return Batch(volumes, torch.from_numpy(draws.targets.astype(np.float32)).to(self.device), self._vertices[rows])

    def aligned(self, step: int, *, batch: int, sre_mm: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Aligned inputs `(b, 2, z, y, x)` of random cases, both volumes under one motion of up to `sre_mm`, and where both are known."""
        rng = np.random.default_rng([self.seed, ALIGNED, step])
        rows = rng.permutation(len(self.cases))[:batch]
        return self.volumes.aligned(rows, self.truths[rows], np.linalg.inv(self._motions(rows, rng, (0.0, sre_mm))))

    def sre_mm(self, draws: Draws, predicted: np.ndarray) -> np.ndarray:
        """SRE in mm, `(n,)`, that is left after the network's answers `(n, 6)`: of S(inv(M(q)) x), S being the perturbed start."""
        answer = motion_matrix(predicted, self.centres[draws.rows])
        return self.surfaces.take(draws.rows).sre_mm(np.linalg.inv(answer @ draws.motions))

    def _draws(self, rows: np.ndarray, rng: np.random.Generator) -> Draws:
        motions = self._motions(rows, rng, self.perturbation.sre_mm)
        return Draws(rows, motions, motion_parameters(np.linalg.inv(motions), self.centres[rows]))

    def _motions(self, rows: np.ndarray, rng: np.random.Generator, sre_mm: tuple[float, float]) -> np.ndarray:
        box = {"translation_mm": self.perturbation.translation_mm, "rotation_deg": self.perturbation.rotation_deg}
        wanted = rng.uniform(*sre_mm, len(rows))
        return motion_matrix(draw_motions(rng, wanted, self.surfaces.take(rows), self.origins[rows], **box), self.origins[rows])


def vertex_distance_mm(predicted: torch.Tensor, wanted: torch.Tensor, vertices_mm: torch.Tensor) -> torch.Tensor:
    """Mean distance in mm, `(b,)`, between vertices `(b, v, 3)` under the inverses of two motions `(b, 6)` about zero.

    It is the SRE that is left, as all that comes before and after is rigid; float32 and differentiable.
    """
    return torch.linalg.vector_norm(_brought_back(predicted, vertices_mm) - _brought_back(wanted, vertices_mm), dim=-1).mean(1)


def _brought_back(parameters: torch.Tensor, vertices_mm: torch.Tensor) -> torch.Tensor:
    """`R^T (v - t)`."""
    (cx, cy, cz), (sx, sy, sz) = (part(torch.deg2rad(parameters[:, 3:])).unbind(1) for part in (torch.cos, torch.sin))
    rows = (
        (cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        (-sy, cy * sx, cy * cx),
    )
    turn = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    return ((vertices_mm - parameters[:, None, :3])[..., None] * turn[:, None]).sum(-2)  # a matrix product would run in TF32 on some GPUs
