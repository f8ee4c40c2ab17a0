"""What the tests of USD files share: usd-core's own validators, and its own reading of values."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pxr import Usd, UsdGeom, UsdValidation


def errors_in(stage: Any) -> list[str]:
    """What any of usd-core's validators says of a stage."""
    context = UsdValidation.ValidationContext(UsdValidation.ValidationRegistry().GetOrLoadAllValidators())
    return [f"{error.GetName()}: {error.GetMessage()}" for error in context.Validate(stage)]


def errors_in_file(path: Path) -> list[str]:
    """What the validators say of a file, as it is now."""
    return errors_in(opened(path))


def opened(path: Path) -> Any:
    """The stage of a file as it is now."""
    stage = Usd.Stage.Open(str(path))
    stage.Reload()
    return stage


def value(path: Path, attribute: str, time: float) -> NDArray[Any]:
    """What usd-core reads of an attribute at a time, blended where it blends."""
    stage = opened(path)
    return np.array(stage.GetAttributeAtPath(attribute).Get(time))


def times(path: Path, attribute: str) -> list[float]:
    """The times of an attribute's samples."""
    stage = opened(path)
    return list(stage.GetAttributeAtPath(attribute).GetTimeSamples())


def place_of(path: Path, primvar: str) -> str:
    """What has a value each of a primvar, in USD's words."""
    stage = opened(path)
    return str(UsdGeom.Primvar(stage.GetAttributeAtPath(primvar)).GetInterpolation())
