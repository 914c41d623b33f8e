"""`concord` as a user calls it: results whole and right, mistakes one line, exit status non-zero, no traceback unless asked."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from examples import blob_volume, smooth_field, transforms_of

from pipeline.cli import cli, main
from pipeline.resampling import warp
from pipeline.transform_files import read_transform, write_transform
from pipeline.volumes import Geometry, Volume, read_vector_field, read_volume, write_volume

GRID = Geometry.regular((64, 56), 1.5)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A pair with a known smooth deformation, labels and landmarks, in a folder with a space and a non-ASCII letter."""
    place = tmp_path / "ein Ordner ä"
    place.mkdir()
    moving = blob_volume(GRID)
    truth = smooth_field(GRID, 4.0)
    labels = moving.with_array((moving.array > 0.6).astype(np.uint8))
    volumes = {
        "moving": moving,
        "fixed": warp(moving, truth, GRID),
        "labels": labels,
        "true_labels": warp(labels, truth, GRID, interpolation="nearest"),
    }
    for name, volume in volumes.items():
        write_volume(volume, place / f"{name}.nii.gz")
    write_transform(truth, place / "truth.h5")
    return place


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one call."""
    before = sys.argv
    sys.argv = ["concord", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_register_writes_a_transform_that_aligns(folder, capsys):
    out = folder / "out"
    status, told, _ = run(capsys, "register", folder / "fixed.nii.gz", folder / "moving.nii.gz", "--method", "demons", "-o", out)
    assert status == 0, told
    assert sorted(file.name for file in out.iterdir()) == ["provenance.json", "qc.png", "transform.h5", "warped.nii.gz"]
    fixed, moving, warped = (read_volume(path) for path in (folder / "fixed.nii.gz", folder / "moving.nii.gz", out / "warped.nii.gz"))
    inner = (slice(8, -8), slice(8, -8))
    left, before = (np.abs(volume.array - fixed.array)[inner].mean() for volume in (warped, moving))
    assert left < 0.5 * before
    again = warp(moving, read_transform(out / "transform.h5"), GRID)
    np.testing.assert_allclose(again.array, warped.array, atol=1e-3)
    record = json.loads((out / "provenance.json").read_text())
    assert record["method"] == "demons"
    assert len(record["inputs"]["moving"]["sha256"]) == 64
    assert record["environment"]["command"].startswith("concord register")


def test_the_same_call_gives_the_same_bytes(folder, capsys):
    contents = []
    for out in (folder / "a", folder / "b"):
        run(capsys, "register", folder / "fixed.nii.gz", folder / "moving.nii.gz", "-m", "demons", "--threads", 2, "-o", out)
        contents.append(read_volume(out / "warped.nii.gz").array.tobytes())
    assert contents[0] == contents[1]


def test_the_loop_takes_its_similarity_and_transforms_from_the_command_line(folder, capsys):
    out = folder / "loop"
    images = (folder / "fixed.nii.gz", folder / "moving.nii.gz")
    options = ("--similarity", "ncc", "--transform", "affine", "--transform", "bspline", "--set", "iterations=20", "--threads", 1, "-o", out)
    status, _, progress = run(capsys, "register", *images, *options)
    assert status == 0, progress
    assert {"trace.csv", "trace.png"} <= {file.name for file in out.iterdir()}
    rows = (out / "trace.csv").read_text().splitlines()
    assert rows[0] == "stage,level,iteration,value,step_mm,gradient_norm,seconds"
    assert len(rows) == 1 + 4 * 20
    assert progress.count("ncc affine") == 1
    record = json.loads((out / "provenance.json").read_text())
    assert record["settings"]["similarity"] == "ncc"
    assert record["settings"]["stages"] == ["affine", "bspline"]


@pytest.fixture
def shifting(folder) -> Path:
    """Weights of a network that gives 2 voxels along x and -1 along y, whatever it sees."""
    import torch

    from pipeline.learned.field import ARCHITECTURE
    from pipeline.learned.settings.field import FieldFit
    from pipeline.learned.weights import save_weights

    settings = FieldFit(network="unet", widths=(2, 4))
    network = settings.network_of()
    network.output.bias.data = torch.tensor([2.0, -1.0])
    save_weights(folder / "net", network.state_dict(), {"architecture": ARCHITECTURE, **settings.model_dump(mode="json"), "subjects": {"train": []}})
    return folder / "net.safetensors"


def field_of(folder: Path, fixed: Path, capsys) -> np.ndarray:
    """The field in mm that `concord convert` writes as NIfTI."""
    assert run(capsys, "convert", folder / "transform.h5", folder / "field.nii.gz", "--to", "field", "--onto", fixed)[0] == 0
    return read_vector_field(folder / "field.nii.gz")[0]


def test_a_network_of_fields_registers_images_and_a_stack_slice_by_slice(folder, shifting, capsys):
    same = ("--method", "resatt", "--weights", shifting, "--threads", 1)
    status, _, told = run(capsys, "register", folder / "fixed.nii.gz", folder / "moving.nii.gz", *same, "-o", folder / "flat")
    assert status == 0, told
    assert sorted(file.name for file in (folder / "flat").iterdir()) == ["provenance.json", "qc.png", "trace.csv", "transform.h5", "warped.nii.gz"]
    assert np.abs(field_of(folder / "flat", folder / "fixed.nii.gz", capsys) - [3.0, -1.5]).max() < 1e-4
    grid = Geometry.regular((24, 20, 5), (1.5, 2.0, 8.0))
    for seed, name in enumerate(("ed", "es")):
        write_volume(blob_volume(grid, seed), folder / f"{name}.nii.gz")
    stack = ("register", folder / "ed.nii.gz", folder / "es.nii.gz", *same, "-o", folder / "stack")
    assert "set slicewise" in run(capsys, *stack)[2]
    assert run(capsys, *stack, "--set", "slicewise=true")[0] == 0
    assert np.abs(field_of(folder / "stack", folder / "ed.nii.gz", capsys) - [3.0, -2.0, 0.0]).max() < 1e-4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--similarity", "mi", "--method", "demons"), "settings of --method loop"),
        (
            (
                "--similarity",
                "nmii",
            ),
            "similarity: 'nmii' is not valid",
        ),
        (("--transform", "elastic"), "stages"),
        (("--similarity", "patch-cnn"), "needs `weights`"),
        (("--weights", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--weights", "nowhere.safetensors", "--method", "attention-reg"), "expected 3-D volumes"),
        (("--weights", "nowhere.safetensors", "--method", "demons"), "weights: unknown key"),
        (("--modalities", "t1"), "expected two names"),
    ],
)
def test_mistakes_about_the_loop_are_told_and_nothing_is_written(folder, capsys, options, told):
    status, _, error = run(capsys, "register", folder / "fixed.nii.gz", folder / "moving.nii.gz", *options, "-o", folder / "never")
    assert status == 1
    assert told in error
    assert error.count("\n") <= 2
    assert not (folder / "never" / "transform.h5").exists()


def test_warp_pulls_images_and_labels_and_pushes_points(folder, capsys):
    truth = read_transform(folder / "truth.h5")
    run(capsys, "warp", folder / "labels.nii.gz", folder / "truth.h5", "--onto", folder / "fixed.nii.gz", "--labels", "-o", folder / "w.nii.gz")
    np.testing.assert_array_equal(read_volume(folder / "w.nii.gz").array, read_volume(folder / "true_labels.nii.gz").array)
    (folder / "p.csv").write_text("x,y\n1,2\n-10,5\n")
    run(capsys, "warp", folder / "p.csv", folder / "truth.h5", "--points", "-o", folder / "q.csv")
    moved = np.loadtxt(folder / "q.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(moved, truth.points(np.array([[1.0, 2], [-10, 5]])), atol=1e-6)
    run(capsys, "warp", folder / "q.csv", folder / "truth.h5", "--points", "--inverse", "-o", folder / "back.csv")
    np.testing.assert_allclose(np.loadtxt(folder / "back.csv", delimiter=",", skiprows=1), [[1, 2], [-10, 5]], atol=0.01)


def test_warp_applies_several_transforms_in_the_order_given(folder, capsys):
    first, second = transforms_of(2)["rigid"], transforms_of(2)["affine"]
    write_transform(first, folder / "1.tfm")
    write_transform(second, folder / "2.tfm")
    (folder / "p.csv").write_text("x,y\n3,4\n")
    run(capsys, "warp", folder / "p.csv", folder / "1.tfm", folder / "2.tfm", "--points", "-o", folder / "q.csv")
    expected = second.points(first.points(np.array([[3.0, 4.0]])))[0]
    np.testing.assert_allclose(np.loadtxt(folder / "q.csv", delimiter=",", skiprows=1), expected, atol=1e-6)


def test_evaluate_prints_what_the_inputs_allow(folder, capsys):
    labels = ("--fixed-labels", folder / "true_labels.nii.gz", "--moving-labels", folder / "labels.nii.gz", "--true-transform", folder / "truth.h5")
    status, told, _ = run(capsys, "evaluate", folder / "truth.h5", "--fixed", folder / "fixed.nii.gz", "--moving", folder / "moving.nii.gz", *labels)
    assert status == 0
    values = {line.split()[0]: line.split() for line in told.splitlines()}
    assert float(values["dice"][2]) == 1.0
    assert float(values["displacement_error_mm"][1]) < 1e-4
    assert "tre_mm" not in values
    status, _, told = run(
        capsys, "evaluate", folder / "truth.h5", "--fixed", folder / "fixed.nii.gz", "--moving", folder / "moving.nii.gz", "--measure", "tre_mm"
    )
    assert status == 1
    assert "no landmarks" in told


def test_convert_goes_between_formats_and_back(folder, capsys):
    points = np.random.default_rng(0).uniform(-20, 20, size=(50, 2))
    affine = transforms_of(2)["affine"]
    write_transform(affine, folder / "a.h5")
    assert run(capsys, "convert", folder / "a.h5", folder / "a.tfm")[0] == 0
    assert run(capsys, "convert", folder / "a.tfm", folder / "i.h5", "--inverse")[0] == 0
    np.testing.assert_allclose(read_transform(folder / "i.h5").points(affine.points(points)), points, atol=1e-9)
    assert run(capsys, "convert", folder / "truth.h5", folder / "field.nii.gz", "--to", "field", "--onto", folder / "fixed.nii.gz")[0] == 0
    assert run(capsys, "convert", folder / "field.nii.gz", folder / "again.h5", "--from", "ants")[0] == 0
    np.testing.assert_allclose(read_transform(folder / "again.h5").points(points), read_transform(folder / "truth.h5").points(points), atol=1e-3)
    onto = ("--onto", folder / "fixed.nii.gz")
    assert run(capsys, "convert", folder / "a.h5", folder / "elastix", "--to", "elastix", *onto)[0] == 0
    assert run(capsys, "convert", folder / "elastix" / "TransformParameters.0.txt", folder / "e.h5")[0] == 0
    np.testing.assert_allclose(read_transform(folder / "e.h5").points(points), affine.points(points), atol=1e-6)
    status, _, told = run(capsys, "convert", folder / "a.h5", folder / "TransformParameters.0.txt", "--to", "elastix", *onto)
    assert status == 1
    assert "name a folder" in told
    assert run(capsys, "convert", folder / "fixed.nii.gz", folder / "fixed.mha")[0] == 0
    np.testing.assert_array_equal(read_volume(folder / "fixed.mha").array, read_volume(folder / "fixed.nii.gz").array)


def bad_calls(folder: Path) -> dict[str, tuple[object, ...]]:
    """What a user gets wrong, by what the message must name."""
    write_volume(Volume(np.full(GRID.shape, 2.0, np.float32), GRID), folder / "flat.nii.gz")
    write_volume(blob_volume(Geometry.regular((8, 8, 8))), folder / "solid.nii.gz")
    write_volume(Volume(np.zeros(GRID.shape, np.uint8), GRID), folder / "empty.nii.gz")
    (folder / "cut.nii.gz").write_bytes((folder / "fixed.nii.gz").read_bytes()[:900])
    (folder / "file").write_text("in the way")
    fixed, moving, out = folder / "fixed.nii.gz", folder / "moving.nii.gz", folder / "out"
    register = ("register", fixed)
    return {
        "gone.nii.gz: no such file": (*register, folder / "gone.nii.gz", "-o", out),
        "cut.nii.gz: not a NIfTI file or truncated": (*register, folder / "cut.nii.gz", "-o", out),
        "flat.nii.gz: every sample is 2.0": (*register, folder / "flat.nii.gz", "-o", out),
        "is 2-D and": (*register, folder / "solid.nii.gz", "-o", out),
        "empty.nii.gz: the mask is empty": (*register, moving, "--fixed-mask", folder / "empty.nii.gz", "-o", out),
        "takes no masks": (*register, moving, "-m", "demons", "--fixed-mask", folder / "true_labels.nii.gz", "-o", out),
        "did you mean 'demons'": (*register, moving, "-m", "demon", "-o", out),
        "did you mean 'bins'": (*register, moving, "--set", "bin=3", "-o", out),
        "file/out": (*register, moving, "-m", "identity", "-o", folder / "file" / "out"),
        "--onto is missing": ("warp", moving, folder / "truth.h5", "-o", folder / "w.nii.gz"),
        "moving.nii.gz: cannot be read as an ITK transform": ("warp", moving, moving, "--onto", fixed, "-o", folder / "w.nii.gz"),
        "cannot write this suffix": ("warp", moving, folder / "truth.h5", "--onto", fixed, "-o", folder / "w.jpg"),
    }


def test_mistakes_are_told_in_one_line_and_leave_nothing_behind(folder, capsys):
    calls = bad_calls(folder)
    before = sorted(folder.rglob("*"))
    for named, arguments in calls.items():
        status, out, err = run(capsys, *arguments)
        lines = [line for line in err.splitlines() if line.startswith("concord: error")]
        assert status == 1, (named, out, err)
        assert len(lines) == 1, (named, err)
        assert named in lines[0], err
        assert "Traceback" not in err
    left = [path for path in sorted(folder.rglob("*")) if path not in before]
    assert [path for path in left if path.is_file()] == []


def test_traceback_is_there_for_who_asks(folder):
    before = sys.argv
    sys.argv = [
        "concord",
        "--traceback",
        "warp",
        str(folder / "gone.nii.gz"),
        str(folder / "truth.h5"),
        "--onto",
        str(folder / "gone.nii.gz"),
        "-o",
        "x.nii.gz",
    ]
    try:
        with pytest.raises(Exception, match=r"gone\.nii\.gz"):
            main()
    finally:
        sys.argv = before


def test_a_full_disk_is_told_and_leaves_no_half_file(folder, tmp_path, capsys):
    """Writing where the operating system refuses more than a few kilobytes a file ends in one line, not in a broken image."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("big.mha", "big.nii.gz", "big.nrrd"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        try:
            given = (folder / "moving.nii.gz", folder / "truth.h5", "--onto", folder / "fixed.nii.gz", "-o", tmp_path / name)
            status, _, told = run(capsys, "warp", *given)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert status == 1, name
        assert name in told and len(told.splitlines()) == 1
        assert list(tmp_path.iterdir()) == [folder], name


def test_every_command_has_help_with_an_example():
    for name, command in cli.commands.items():
        assert command.help, name
        if name in ("register", "warp", "evaluate", "convert"):
            assert "Example" in command.help, name


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv=['concord','--help']\nfrom pipeline.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('itk','torch','numpy','pandas','scipy','matplotlib','pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2], env={**os.environ})
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_methods_lists_names_and_settings(capsys):
    status, told, _ = run(capsys, "methods")
    assert status == 0
    assert "mi-masked" in told
    _, told, _ = run(capsys, "methods", "mi-masked")
    assert "mask_threshold = 0.01" in told
