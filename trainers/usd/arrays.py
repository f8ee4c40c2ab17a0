"""Numbers on their way into USD and back: tensors and arrays of any kind as host arrays, and host arrays as the values of USD.

USD's own names of types (``int[]``, ``point3f[]``, ``color3f``) say which value an array becomes.

Source: the value types of OpenUSD (Sdf), and their array classes (Vt), which copy from and to buffers.
"""

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError

_ARRAYS: Final = {  # by type: the array class, and what its buffer holds
    "int": ("Int", np.int32),
    "float": ("Float", np.float32),
    "float2": ("Vec2f", np.float32),
    "float3": ("Vec3f", np.float32),
    "point3f": ("Vec3f", np.float32),
    "color3f": ("Vec3f", np.float32),
    "normal3f": ("Vec3f", np.float32),
}
_VECTORS: Final = {  # by type: the class of a value
    "color3f": "Vec3f",
    "float3": "Vec3f",
    "float4": "Vec4f",
    "double3": "Vec3d",
    "int3": "Vec3i",
    "matrix4d": "Matrix4d",
}
_STEPPED: Final = frozenset(("int", "int3", "bool", "token", "string", "asset"))
_FLOAT_MAX: Final = float(np.finfo(np.float32).max)
_LARGEST: Final = 2**31 - 1  # integer that USD's ``int`` holds


def to_host(values: Any) -> NDArray[Any]:
    """A tensor on any device, with or without a gradient, in any layout, or anything array-like, as a NumPy array."""
    if isinstance(values, torch.Tensor):
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy(force=True)
    return np.asarray(values)


def to_rows(what: str, values: Any, width: int) -> NDArray[np.float32]:
    """Values as rows of ``width`` float32 numbers.

    Args:
        what: the name of the argument, for messages.
        values: (..., width) numbers, on any device; no values at all may have any shape.
        width: numbers in a row.

    Raises:
        ConfigError: another last axis, or values that are no numbers.
    """
    array = to_host(values)
    if array.dtype.kind not in "fiub" or (array.size and (array.ndim < 2 or array.shape[-1] != width)):
        raise ConfigError(f"{what}: {array.shape} {array.dtype}; give (..., {width}) numbers")
    return np.ascontiguousarray(array.reshape(-1, width), dtype=np.float32)


def to_integers(what: str, values: Any) -> NDArray[np.int32]:
    """Values as int32, in their shape.

    Args:
        what: the name of the argument, for messages.
        values: whole numbers of any type, on any device.

    Raises:
        ConfigError: a number that is not whole, or that 32 bits do not hold.
    """
    array = to_host(values)
    if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and not np.array_equal(array, np.rint(array))):
        raise ConfigError(f"{what}: {array.dtype} {array.shape}, not whole numbers; give integers")
    if array.size and array.dtype.itemsize >= 4 and not -_LARGEST - 1 <= array.min() <= array.max() <= _LARGEST:
        raise ConfigError(f"{what}: numbers from {array.min()} to {array.max()}; give integers of 32 bits")
    return array.astype(np.int32, order="C", copy=False)


def to_unit(colors: NDArray[Any]) -> NDArray[np.float32]:
    """Colours from 0 to 1, not made linear: readers get back what was given, and viewers that expect linear light show it paler."""
    return colors.astype(np.float32) / np.float32(255) if colors.dtype == np.uint8 else colors.astype(np.float32)


def bounds(points: NDArray[np.float32], half: NDArray[Any] | float = 0.0) -> NDArray[np.float32]:
    """The smallest and the largest coordinates of points, as USD's ``extent`` wants them.

    Args:
        points: (N, 3) float32; what is not finite is not counted.
        half: how far each reaches, (N,) or one for all, in the unit of the points.

    Returns:
        (2, 3) float32; a box inside out for no points, which USD reads as empty.
    """
    reach = np.asarray(half, np.float32)
    rows = np.ascontiguousarray(points.T)  # reducing along memory is ten times as fast
    low, high = (rows - reach).min(axis=1, initial=np.inf), (rows + reach).max(axis=1, initial=-np.inf)
    if not (np.isfinite(low).all() and np.isfinite(high).all()) and len(points):
        finite = np.isfinite(points).all(axis=1)
        return bounds(points[finite], reach[finite] if reach.ndim else half)
    return np.asarray(np.clip(np.stack([low, high]), -_FLOAT_MAX, _FLOAT_MAX), np.float32)


def is_stepped(kind: str) -> bool:
    """Whether values of a type hold until the next sample; USD blends the others between samples.

    >>> is_stepped("int[]"), is_stepped("point3f[]")
    (True, False)
    """
    return kind.removesuffix("[]") in _STEPPED


def to_value(kind: str, value: Any) -> Any:
    """A value as USD keeps it, equal to what is read back.

    Args:
        kind: USD's name of the type.
        value: an array for ``...[]``, that many numbers for vectors, a path for ``asset``, else a number or a text.
    """
    from pxr import Gf, Sdf, Vt

    if kind == "token[]":
        return Vt.TokenArray(value)
    if kind.endswith("[]"):
        name, dtype = _ARRAYS[kind[:-2]]
        return getattr(Vt, f"{name}ArrayFromBuffer")(np.ascontiguousarray(value, dtype))
    if kind in _VECTORS:
        return getattr(Gf, _VECTORS[kind])(np.asarray(value).tolist())
    if kind == "asset":
        return Sdf.AssetPath(value)
    return float(np.float32(value)) if kind == "float" else value


def from_value(value: Any) -> Any:
    """A value of USD as an array of its own, and as it is where it is none."""
    return np.array(value) if hasattr(value, "_isVtArray") else value


def same_value(one: Any, other: Any) -> bool:
    """Whether two values of USD are the same to the bit."""
    if type(one) is not type(other):
        return False
    if not hasattr(one, "_isVtArray"):
        return bool(one == other)
    if type(one).__name__ == "TokenArray":
        return list(one) == list(other)
    first, second = np.asarray(one), np.asarray(other)
    return first.shape == second.shape and first.tobytes() == second.tobytes()
