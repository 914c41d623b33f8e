"""ITK's classes one at a time. `itk.NAME` loads the module of a class and all modules below it, for elastix four times what a start takes without."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_FILES = {"ParameterObject": "elxParameterObject"}
_NAMES = {"ParameterObject": "elastixParameterObject"}


def itk_class(name: str, parameters: str = "") -> Any:
    """The class of `itk` that is wrapped as `itkNAMEPARAMETERS`: ("ElastixRegistrationMethod", "IF3IF3") is `itk.ElastixRegistrationMethod` of 3-D
    images of single precision.

    Its objects are those of `itk`, and can be given to it. Raises `AttributeError` for parameters that ITK's wheels do not hold.
    """
    module = import_module(f"itk.{_FILES.get(name, f'itk{name}')}Python")
    return getattr(module, _NAMES.get(name, f"itk{name}") + parameters)
