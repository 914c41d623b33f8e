"""Single ITK classes: the same as ITK's own, without the modules around them."""

import subprocess
import sys

import pytest

from pipeline.itk_classes import itk_class


def test_a_class_is_the_one_that_itk_names():
    import itk

    assert itk_class("AffineTransform", "D3") is itk.AffineTransform[itk.D, 3]
    assert itk_class("OptimizerParameters", "D") is itk.OptimizerParameters[itk.D]
    assert itk_class("FixedArray", "UI2") is itk.FixedArray[itk.UI, 2]


def test_elastix_comes_without_the_modules_around_it():
    """All modules below elastix are some 600 libraries; a start with them takes several times as long."""
    count = "sum(name.startswith('itk._') for name in sys.modules)"
    script = f"import sys; from pipeline.classical.elastix_run import load_elastix; load_elastix(); print({count})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert 0 < int(loaded) < 200


@pytest.mark.parametrize("given", [("AffineTransform", "D9"), ("AffineTransform", "")])
def test_parameters_that_itk_does_not_wrap_are_refused(given):
    with pytest.raises(AttributeError):
        itk_class(*given)
