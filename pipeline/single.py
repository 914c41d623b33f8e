"""One pair, from files to files: what `concord register`, `warp`, `evaluate` and `convert` do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConcordError
from pipeline.files import whole_file, write_json, write_text
from pipeline.volumes import SUFFIXES as IMAGE_SUFFIXES
from pipeline.volumes import Geometry, Volume, read_volume, write_volume


def register_pair(
    fixed: Path, moving: Path, *, method: str, settings: Mapping[str, Any], output: Path, show: Callable[[str, float], None], **options: Any
) -> str:
    """Register and write transform, warped volume, picture and provenance to `output`; returns a line for the user.

    A method that iterates adds its trace, one that makes images on the way adds them. Options: fixed_mask, moving_mask, start (paths),
    modalities (two names), threads, seed. Everything is checked before the work starts.
    """
    from pipeline.methods import Pair, Run, create_method, run_method
    from pipeline.provenance import environment, file_sha256, measured
    from pipeline.resampling import warp
    from pipeline.transform_files import read_transform, write_transform

    chosen = create_method(method, settings)
    _writable(output)
    masks = {name: None if options.get(name) is None else read_volume(options[name]) for name in ("fixed_mask", "moving_mask")}
    modalities = dict(zip(("fixed_modality", "moving_modality"), options.get("modalities") or ("", ""), strict=True))
    pair = Pair(read_volume(fixed), read_volume(moving), **masks, **modalities)
    run = Run(threads=options["threads"], seed=options["seed"], progress=show, trace=[], images={})
    start = None if options.get("start") is None else read_transform(options["start"])
    show(f"{method}: registering", 0.0)
    chosen.load()
    with measured() as cost:
        transform = run_method(chosen, pair, run, start)
    show(f"{method}: registered in {cost.seconds:.1f} s", 1.0)
    warped = warp(pair.moving, transform, pair.fixed.geometry)
    write_transform(transform, output / "transform.h5")
    write_volume(warped, output / "warped.nii.gz")
    for name, volume in run.images.items():
        write_volume(volume, output / f"{name}.nii.gz")
    if run.trace:
        _write_trace(run.trace, method, output)
    summary = _quality_picture(pair, transform, warped, method, output / "qc.png")
    inputs = {"fixed": fixed, "moving": moving, **{k: options.get(k) for k in ("fixed_mask", "moving_mask", "start")}, **chosen.files}
    record = {
        "method": method,
        "settings": chosen.model_dump(mode="json"),
        "inputs": {name: {"path": str(path), "sha256": file_sha256(path)} for name, path in inputs.items() if path is not None},
        "seed": run.seed,
        "threads": run.threads,
        **asdict(cost),
        "environment": environment(),
        "quality": summary,
    }
    write_json(output / "provenance.json", record)
    told = ", ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in summary.items())
    made = "".join(f"{name}.nii.gz, " for name in run.images)
    return f"{output}/: transform.h5, warped.nii.gz, {made}qc.png, provenance.json ({told})"


def _write_trace(rows: list[dict[str, Any]], method: str, output: Path) -> None:
    import pandas as pd

    from pipeline.figures.curves import run_trace
    from pipeline.figures.style import save

    trace = pd.DataFrame(rows)
    write_text(output / "trace.csv", trace.to_csv(index=False))
    iterated = trace.dropna(subset="value") if "value" in trace else trace[:0]  # a network's pass has milliseconds, and no similarity
    if len(iterated):
        save(run_trace(iterated, title=f"{method}: every iteration"), output / "trace.png")


def _quality_picture(pair: Any, transform: Any, warped: Volume, method: str, path: Path) -> dict[str, Any]:
    from pipeline.figures.pictures import qc_picture
    from pipeline.figures.quality import quality_summary
    from pipeline.figures.style import save
    from pipeline.resampling import resample

    before = resample(pair.moving, pair.fixed.geometry)
    summary = quality_summary(pair.fixed, before, warped, transform.displacement_vx(pair.fixed.geometry))
    save(
        qc_picture(pair.fixed, before, warped, summary=summary, title=f"{Path(pair.moving.name).name} on {Path(pair.fixed.name).name}, {method}"),
        path,
    )
    return summary


def warp_file(source: Path, transforms: tuple[Path, ...], *, kind: str, output: Path, **options: Any) -> None:
    """Apply transform files to an image, a label map or points. Options: onto (path), cubic, inverse."""
    from pipeline.resampling import warp
    from pipeline.transform_files import read_transform
    from pipeline.transforms import compose, inverse_points, invert

    transform = compose(*(read_transform(path) for path in transforms))
    if kind == "points":
        points = _read_points(source, transform.dimension)
        moved = inverse_points(transform, points) if options["inverse"] else transform.points(points)
        return _write_points(moved, output)
    if options["onto"] is None:
        raise ConcordError("--onto is missing: name the image whose grid the result is to have (the fixed one, or with --inverse the moving one)")
    volume, onto = read_volume(source), read_volume(options["onto"]).geometry
    _same_dimension(volume, transform.dimension)
    if options["inverse"]:
        transform = invert(transform, onto)
    interpolation = "nearest" if kind == "labels" else "cubic" if options["cubic"] else "linear"
    write_volume(warp(volume, transform, onto, interpolation=interpolation), output)
    return None


def _same_dimension(volume: Volume, dimension: int) -> None:
    if volume.dimension != dimension:
        raise ConcordError(f"{volume.name} is {volume.dimension}-D and the transform {dimension}-D; expected the same")


def _read_points(path: Path, dimension: int) -> np.ndarray:
    from pipeline.measures import read_points

    return read_points(path, dimension)


def _write_points(points: np.ndarray, path: Path) -> None:
    header = ",".join("xyz"[: points.shape[1]])
    write_text(path, "\n".join([header, *(",".join(f"{value:.9g}" for value in point) for point in points.tolist())]) + "\n")


def evaluate_transform(transform: Path, *, fixed: Path, moving: Path, measures: tuple[str, ...], output: Path | None, **files: Path | None) -> str:
    """Scores of one transform as text, or written to `output` as CSV. Files: the columns of a case."""
    from pipeline.cases import Case
    from pipeline.measures import FROM_MANIFEST, MEASURES, Scored, measure_rows

    given = {name: path for name, path in files.items() if path is not None}
    for path in (transform, fixed, moving, *given.values()):
        if not path.exists():
            raise ConcordError(f"{path}: no such file; check the path")
    for name in measures:
        if name not in MEASURES or name in FROM_MANIFEST:
            raise ConcordError(f"--measure {name!r}: no such measure; valid: {', '.join(m for m in MEASURES if m not in FROM_MANIFEST)}")
    case = Case(case="pair", fixed=fixed, moving=moving, subject="pair", **given)
    scored = Scored(case, transform)
    wanted = measures or tuple(name for name in MEASURES if name not in FROM_MANIFEST and MEASURES[name].possible(case))
    rows = [row for name in wanted for row in measure_rows(name, scored)]
    if output is not None:
        write_text(output, "\n".join(["structure,metric,value,unit", *(f"{s},{m},{v:.9g},{u}" for s, m, v, u in rows)]) + "\n")
        return f"wrote {output}"
    return "\n".join(f"{metric:24} {structure:>6} {value:12.6g} {unit}" for structure, metric, value, unit in rows)


def convert_file(source: Path, target: Path, *, source_format: str, target_format: str, onto: Path | None, inverse: bool) -> None:
    """Convert a transform or an image; `auto` decides by suffix (an image source stays an image)."""
    from pipeline import interchange
    from pipeline.transform_files import read_transform, write_transform
    from pipeline.transforms import invert
    from pipeline.volumes import write_vector_field

    if not source.exists():
        raise ConcordError(f"{source}: no such file; check the path")
    is_image = source.is_dir() or source.name.endswith(IMAGE_SUFFIXES)
    if source_format == "auto" and is_image:
        return write_volume(read_volume(source), target)
    readers = {"itk": read_transform, "auto": read_transform, "elastix": interchange.from_elastix, "ants": interchange.from_ants}
    if source_format == "auto" and source.name.startswith("TransformParameters"):
        source_format = "elastix"
    transform = readers[source_format](source)
    grid: Geometry | None = None if onto is None else read_volume(onto).geometry
    if inverse:
        transform = invert(transform, _needed(grid, "the inverse of a non-linear transform") if not transform.is_linear else grid)
    if target_format == "field":
        geometry = _needed(grid, "a field")
        return write_vector_field(transform.displacement_mm(geometry), geometry, target)
    if target_format == "elastix":
        if target.suffix:
            raise ConcordError(f"{target}: elastix wants one file a part; name a folder, TransformParameters.N.txt go into it")
        interchange.to_elastix(transform, _needed(grid, "an elastix parameter file"), target)
    elif target_format == "ants":
        interchange.to_ants(transform, target, grid)
    else:
        write_transform(transform, target)
    return None


def _needed(grid: Geometry | None, what: str) -> Geometry:
    if grid is None:
        raise ConcordError(f"--onto is missing: {what} needs an image whose grid it is sampled on")
    return grid


def _writable(folder: Path) -> None:
    """Find out before the work, not after it, that results cannot be written."""
    with whole_file(folder / ".writable") as temporary, tempfile.TemporaryFile(dir=temporary.parent):
        pass
    (folder / ".writable").unlink(missing_ok=True)
