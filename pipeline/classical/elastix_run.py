"""One call of elastix: images, masks and parameter maps in, a transform out; no console output, no files left behind."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.classical.pyramid import itk_threads
from pipeline.errors import ConcordError
from pipeline.interchange import from_elastix
from pipeline.itk_classes import itk_class, load_itk
from pipeline.methods import Pair
from pipeline.transforms import Transform
from pipeline.volumes import Volume, to_itk

ParameterMap = dict[str, list[str]]
_REASONS = (
    ("Too many samples map outside", "too many samples fall outside the moving image or its mask; start closer, or set initialise to 'mass'"),
    ("No valid voxels|[Cc]ould not find enough|sample container is empty", "too few samples in the masks; enlarge the masks or leave them out"),
    ("bad_alloc|not enough memory", "out of memory; use fewer samples or smaller volumes"),
)


def load_elastix() -> None:
    """elastix and what brings images to it."""
    itk = load_itk()

    _ = itk.image_from_array, itk_class("ElastixRegistrationMethod", "IF3IF3"), itk_class("ParameterObject")


def register_images(images: Sequence[tuple[Volume, Volume]], maps: Sequence[ParameterMap], pair: Pair, *, threads: int) -> Transform:
    """Run elastix on channels of fixed and moving images, one stage a parameter map; the masks are those of `pair`.

    Raises `ConcordError` in one line that names the pair and elastix's reason.
    """
    elastix = itk_class("ElastixRegistrationMethod", 2 * f"IF{pair.fixed.dimension}").New()
    for fixed, moving in images:
        elastix.AddFixedImage(to_itk(fixed, np.float32))
        elastix.AddMovingImage(to_itk(moving, np.float32))
    if pair.fixed_mask is not None:
        elastix.SetFixedMask(_mask(pair.fixed_mask))
    if pair.moving_mask is not None:
        elastix.SetMovingMask(_mask(pair.moving_mask))
    parameters = itk_class("ParameterObject").New()
    for values in maps:
        parameters.AddParameterMap(values)
    elastix.SetParameterObject(parameters)
    with itk_threads(threads):
        _update(elastix, pair)
    found = elastix.GetTransformParameterObject()
    return from_elastix([dict(found.GetParameterMap(i)) for i in range(found.GetNumberOfParameterMaps())])


def _update(elastix: Any, pair: Pair) -> None:
    """Run the filter. elastix tells its reasons in its log only, which is written where nobody sees it."""
    with tempfile.TemporaryDirectory(prefix="concord-elastix-") as folder:
        elastix.SetOutputDirectory(folder)
        elastix.SetLogFileName("log.txt")
        elastix.SetLogToFile(True)
        elastix.SetLogToConsole(False)
        try:
            elastix.Update()
        except RuntimeError as error:
            log = Path(folder, "log.txt")
            told = log.read_text(errors="replace") if log.exists() else str(error)
            raise ConcordError(f"{pair.fixed.name} and {pair.moving.name}: elastix stopped: {_reason(told)}") from error


def _reason(log: str) -> str:
    """The last complaint in elastix's log, in our words where it is a known one."""
    for pattern, words in _REASONS:
        if re.search(pattern, log):
            return words
    told = re.findall(r"^Description: (?:ITK ERROR: )?(?:\w+\(0x\w+\): )?(.+)$", log, re.MULTILINE)
    return told[-1].strip() if told else log.strip().splitlines()[-1][:200]


def _mask(mask: Volume) -> Any:
    return to_itk(mask.with_array((mask.array != 0).astype(np.uint8)))
