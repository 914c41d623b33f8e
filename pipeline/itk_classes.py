"""ITK's classes one at a time. `itk.NAME` loads the module of a class and all modules below it, for elastix four times what a start takes without."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

_FILES = {"ParameterObject": "elxParameterObject"}
_NAMES = {"ParameterObject": "elastixParameterObject"}


def load_itk() -> Any:
    """The package `itk`, which is told that there is no torch unless that has been loaded.

    ITK loads it with its first filter, for two seconds, so that tensors can be given to ITK's functions. Nobody does here; a program
    that does loads torch first.
    """
    from itk.support import helpers

    if "torch" not in sys.modules:
        helpers._HAVE_TORCH = False
    return import_module("itk")


def itk_class(name: str, parameters: str = "") -> Any:
    """The class of `itk` that is wrapped as `itkNAMEPARAMETERS`: ("ElastixRegistrationMethod", "IF3IF3") is `itk.ElastixRegistrationMethod` of 3-D
    images of single precision.

    Its objects are those of `itk`, and can be given to it. Raises `AttributeError` for parameters that ITK's wheels do not hold.
    """
    load_itk()
    module = import_module(f"itk.{_FILES.get(name, f'itk{name}')}Python")
    return getattr(module, _NAMES.get(name, f"itk{name}") + parameters)
