"""What can be wrong with the materials of an OBJ file, and what to do about it: handlers take an error and raise it, or go on.

Source: the names and the behaviour are those of Kaolin's ``io.obj`` and ``io.materials``, Apache 2.0.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch

from scenemill.schemas.errors import SourceError

Handler = Callable[..., Any]
"""``handler(error, **what_is_known)``: raises, or goes on. What it returns for a ``MaterialNotFoundError`` is taken as the material."""


class MaterialError(SourceError):
    """Something about materials. Handlers decide what becomes of it."""

    def __init__(self, observed: str, expected: str = "materials that can be read") -> None:
        super().__init__("material", observed, expected)

    def __reduce__(self) -> tuple[type["MaterialError"], tuple[str, str]]:  # type: ignore[override]
        return (type(self), (self.observed, self.expected))


class MaterialFileError(MaterialError):
    """A file of materials is missing or unreadable."""


class MaterialLoadError(MaterialError):
    """A value or an image of a material is missing or unreadable."""


class MaterialNotFoundError(MaterialError):
    """Faces name a material that no file defines."""


def default_error_handler(error: Exception, **_known: Any) -> None:
    """Raise the error."""
    raise error


def skip_error_handler(error: Exception, **_known: Any) -> None:
    """Warn, and go on without what is wrong."""
    warnings.warn(str(error.args[0]), UserWarning, stacklevel=2)


def ignore_error_handler(error: Exception, **_known: Any) -> None:
    """Go on without what is wrong, and say nothing."""


def create_missing_materials_error_handler(error: Exception, **known: Any) -> dict[str, Any] | None:
    """Warn, and go on; a material that no file defines becomes one with a random colour and what is wrong as its "error".

    Raises:
        Exception: the error, if it is no ``MaterialError``.
    """
    if not isinstance(error, MaterialError):
        raise error
    skip_error_handler(error, **known)
    if not isinstance(error, MaterialNotFoundError):
        return None
    color = torch.rand(3)
    return {"Kd": color, "Ka": color.clone(), "error": str(error)}
