"""A pool of images that a generator made earlier, from which a discriminator is shown some (Shrivastava et al., CVPR 2017)."""

from __future__ import annotations

import numpy as np
import torch


class ImagePool:
    """Up to `size` images. Once it is full, each image that comes stays or, in half of the draws, goes out in place of one that is stored."""

    def __init__(self, size: int, images: torch.Tensor | None = None) -> None:
        self.size, self.images = size, images

    def exchanged(self, images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """What to show in place of `images` `(b, c, y, x)`, which are stored or shown themselves; detached. A size of 0 stores nothing."""
        images = images.detach()
        if self.size == 0:
            return images
        if self.images is None:
            self.images = images[:0].clone()
        free = self.size - len(self.images)
        self.images, images, shown = torch.cat([self.images, images[:free]]), images[free:], images[:free]
        if len(images) == 0:
            return shown
        old = torch.from_numpy(rng.random(len(images)) < 0.5).to(images.device).view(-1, 1, 1, 1)
        # places without repeats, so that no image is shown twice in a batch; a batch may be larger than the pool
        places = torch.from_numpy(rng.permutation(max(self.size, len(images)))[: len(images)] % self.size).to(images.device)
        stored = self.images[places]
        self.images[places] = torch.where(old, images, stored)
        return torch.cat([shown, torch.where(old, stored, images)])
