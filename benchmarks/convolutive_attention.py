"""The cardiac networks beside what they replace, time and memory: cell, training step, inference, warp and SSIM.

    python benchmarks/convolutive_attention.py [--size 112] [--batch 10] [--runs 5] [--threads 2]

The ReSAtt cell against the paper's definition, in which the patches of an item are the filters of its own convolutions, item by item; a
training step of the U-Net with cells against the one without; one pair through the network, on two threads whatever `--threads` says;
our warp and SSIM against MONAI's on one image of the same size, value and gradient. Runs of A and B alternate, the ratio is the median of
pairwise ratios, and outputs are compared. Peak memory is that of a fresh process each, less what it held before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import compared, report

from metrics.similarity.field_losses import composite_loss
from metrics.similarity.structural import structural_similarity
from nets.fields import warp
from nets.resatt import PATCH_VX, STEP_VX, convolutive_attention
from nets.shapes import CELL_CHANNELS
from nets.unet import build
from pipeline.threads import keep_freed_memory

Call = Callable[[], torch.Tensor]
SEED = 1
INFERENCE_THREADS = 2
"""What the paper's 150 ms a pair (there on a GPU) are held against."""


def item_by_item(key: torch.Tensor, query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Eq. 5-9 of the paper as they stand."""
    result, padding = [], PATCH_VX // 2
    for k, q, v in zip(key, query, value, strict=True):
        filters = [F.unfold(maps[None], PATCH_VX, padding=padding).unflatten(1, (len(maps), PATCH_VX, PATCH_VX))[0].movedim(-1, 0) for maps in (q, v)]
        y, x = k.shape[1:]
        centres = (torch.arange(0, y, STEP_VX)[:, None] * x + torch.arange(0, x, STEP_VX)).flatten()
        scores = F.conv2d(k[None], filters[0][centres], padding=padding)
        result.append(F.conv_transpose2d(scores.softmax(1), filters[1][centres], padding=padding)[0])
    return torch.stack(result)


def cell(form: str, given: argparse.Namespace) -> Call:
    """Forward and backward of one cell's attention on maps of full size; the result is the output and the inputs' gradients."""
    torch.manual_seed(SEED)
    maps = [0.3 * torch.randn(given.batch, CELL_CHANNELS, given.size, given.size) for _ in range(3)]
    attend = {"ours": convolutive_attention, "item by item": item_by_item}[form]

    def call() -> torch.Tensor:
        leaves = [m.clone().requires_grad_() for m in maps]
        output = attend(*leaves)
        return torch.cat([output.detach(), *torch.autograd.grad(output.square().mean(), leaves)])

    return call


def step(form: str, given: argparse.Namespace) -> Call:
    """Forward, composite loss and backward of a whole network."""
    torch.manual_seed(SEED)
    network, images = build(form), torch.rand(given.batch, 2, given.size, given.size)

    def call() -> torch.Tensor:
        fixed, moving = images.split(1, dim=1)
        field = network(images)
        composite_loss(fixed, warp(moving, field), field).backward()
        return field.detach()

    return call


def inference(form: str, given: argparse.Namespace) -> Call:
    """One pair, nothing recorded."""
    torch.manual_seed(SEED)
    network, images = build(form).eval(), torch.rand(1, 2, given.size, given.size)
    return torch.no_grad()(lambda: network(images))


def warped(form: str, given: argparse.Namespace) -> Call:
    """Value and gradient of a warped image, by ours or MONAI's."""
    from monai.networks.blocks import Warp

    torch.manual_seed(SEED)
    image, field = torch.rand(given.batch, 1, given.size, given.size), 3 * torch.randn(given.batch, 2, given.size, given.size)
    theirs = Warp(mode="bilinear", padding_mode="border")

    def call() -> torch.Tensor:
        leaf = field.clone().requires_grad_()
        # MONAI's components run along (y, x)
        seen = warp(image, leaf) if form == "ours" else theirs(image, leaf.flip(1))
        return torch.cat([seen.detach(), *torch.autograd.grad(seen.square().mean(), leaf)], dim=1)

    return call


def similarity(form: str, given: argparse.Namespace) -> Call:
    """Value and gradient of 1 - SSIM, by ours or MONAI's."""
    from monai.losses import SSIMLoss

    torch.manual_seed(SEED)
    fixed, moving = torch.rand(2, given.batch, 1, given.size, given.size)
    theirs = SSIMLoss(spatial_dims=2)

    def call() -> torch.Tensor:
        leaf = moving.clone().requires_grad_()
        value = 1 - structural_similarity(fixed, leaf) if form == "ours" else theirs(fixed, leaf)
        return torch.cat([value.detach().view(1), *(g.flatten() for g in torch.autograd.grad(value, leaf))])

    return call


INFERENCE = "inference of one pair, with cells / without"
COMPARED: dict[str, tuple[Callable[[str, argparse.Namespace], Call], str, str]] = {
    "cell, forward and backward": (cell, "ours", "item by item"),
    "training step, with cells / without": (step, "resatt", "unet"),
    INFERENCE: (inference, "resatt", "unet"),
    "warp, value and gradient": (warped, "ours", "MONAI"),
    "SSIM, value and gradient": (similarity, "ours", "MONAI"),
}


def prepared(what: str, form: str, given: argparse.Namespace) -> Call:
    """The call of one form of what is compared."""
    return COMPARED[what][0](form, given)


def row(what: str, given: argparse.Namespace) -> dict[str, object]:
    """Times, peaks, their ratios, and how far the results differ where they should not."""
    _, first, second = COMPARED[what]
    small = (what, first, argparse.Namespace(**{**vars(given), "batch": 1, "size": 24}))
    threads = INFERENCE_THREADS if what == INFERENCE else given.threads
    torch.set_num_threads(threads)
    found = compared(prepared, (what, first, given), (what, second, given), runs=given.runs, threads=threads, small=small)
    about = {"size": given.size, "batch": 1 if what == INFERENCE else given.batch, "threads": threads, "what": what, "first": first, "second": second}
    if first != "ours":
        return about | found
    difference = float((prepared(what, first, given)() - prepared(what, second, given)()).abs().max())
    return about | found | {"largest_difference": difference}


def main() -> None:
    """Print and keep a row a comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    keep_freed_memory()  # as fits do
    report([row(what, given) for what in COMPARED], "convolutive_attention")


if __name__ == "__main__":
    main()
