"""Single ITK classes: the same as ITK's own, without the modules around them."""

import subprocess
import sys

import pytest

from pipeline.itk_classes import itk_class, load_itk


def test_a_class_is_the_one_that_itk_names():
    import itk

    assert itk_class("AffineTransform", "D3") is itk.AffineTransform[itk.D, 3]
    assert itk_class("OptimizerParameters", "D") is itk.OptimizerParameters[itk.D]
    assert itk_class("FixedArray", "UI2") is itk.FixedArray[itk.UI, 2]


def test_elastix_comes_without_the_modules_around_it():
    """All modules below elastix are some 600 libraries, and ITK loads torch where it is; a start with them takes several times as long."""
    count = "sum(name.startswith('itk._') for name in sys.modules), 'torch' in sys.modules"
    script = f"import sys; from pipeline.classical.elastix_run import load_elastix; load_elastix(); print({count})"
    loaded, torch = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert 0 < int(loaded) < 200
    assert torch == "False"


@pytest.mark.parametrize("loaded", [True, False])
def test_itk_takes_tensors_where_torch_is_loaded_already(loaded, monkeypatch):
    from itk.support import helpers

    monkeypatch.setattr(helpers, "_HAVE_TORCH", True)
    monkeypatch.setattr(sys, "modules", {**sys.modules, "torch": object()} if loaded else {k: v for k, v in sys.modules.items() if k != "torch"})
    assert load_itk().__name__ == "itk"
    assert helpers._HAVE_TORCH is loaded


@pytest.mark.parametrize("given", [("AffineTransform", "D9"), ("AffineTransform", "")])
def test_parameters_that_itk_does_not_wrap_are_refused(given):
    with pytest.raises(AttributeError):
        itk_class(*given)
