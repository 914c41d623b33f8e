"""Contrastive similarity of features: what lies at the same place in two modalities is to be alike, and unlike all else."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def symmetric_info_nce(first: torch.Tensor, second: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """InfoNCE (Oord et al. 2018, eq. 4) in both directions, a scalar: how well a row of one is told by its partner in the other.

    Row i of `first` and row i of `second`, both `(n, c)`, are features of the same place; rows are scaled to length 1, the cosines divided
    by `temperature`, and the other n - 1 rows are the negatives. 0 is perfect, log n is chance. To pre-train the extractors of
    Attention-Reg on aligned pairs with it is ours: the loss of that method's extension (Song et al., Med Image Anal 2022) is not known to us.
    Raises `ValueError` for shapes that differ, fewer than two rows and a temperature that is not positive.
    """
    if first.ndim != 2 or first.shape != second.shape or len(first) < 2:
        raise ValueError(f"features {tuple(first.shape)} and {tuple(second.shape)}; expected two of one shape (n, c) with n of 2 or more")
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}; expected a positive number, such as 0.1")
    cosines = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature
    partners = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(cosines, partners) + F.cross_entropy(cosines.T, partners)) / 2
