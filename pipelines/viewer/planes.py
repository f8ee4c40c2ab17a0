"""Pictures and planes of volumes for the page, each with what its values mean and how to colour them."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.pipelines.reports.sheet import VIEWS, depth_colors, distance_colors, ramp, slice_of, weight_colors
from scenemill.pipelines.viewer.legend import Names, legend
from scenemill.pipelines.viewer.scenes import Plane, scale
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import Field
from scenemill.transforms.reader import Box

STEPS: Final = 256
"""Colours of a scale."""

_INVALID: Final = [255, 0, 255]
_MASK: Final[Names] = {0: ("no", (46, 52, 64)), 1: ("yes", (230, 233, 237))}


def box_of(axis: str, index: int, grid: int) -> Box:
    """The plane of a volume across an axis, as a box.

    Raises:
        ConfigError: no such axis or plane.
    """
    if axis not in ("x", "y", "z") or not 0 <= index < grid:
        raise ConfigError(f"plane {axis[:8]!r} {index}; give axis x, y or z and a plane from 0 to {grid - 1}")
    ends = dict.fromkeys("xyz", (0, grid)) | {axis: (index, index + 1)}
    return (ends["x"], ends["y"], ends["z"])


def cut(volume: NDArray[Any], axis: str, index: int) -> NDArray[Any]:
    """The rows and columns of a plane, as ``sheet.slice_of`` turns them."""
    return np.ascontiguousarray(slice_of(volume, axis, index))


def place_of(axis: str, index: int, grid: int) -> dict[str, Any]:
    """What a plane says of where it is."""
    view = next(one for one in VIEWS if one.axis == axis)
    down = view.other if view.way == "down" else f"-{view.other}"
    return {"axis": axis, "index": index, "size": grid, "right": view.right, "down": down}


def colors_plane(colors: NDArray[np.uint8], title: str) -> Plane:
    """(H, W, 3) uint8 as they are."""
    return Plane(np.ascontiguousarray(colors), title)


def ids_plane(ids: NDArray[Any], title: str, called: str, names: Names, **place: Any) -> Plane:
    """(H, W) integers of at most 32 bits, what they are called, and their names and colours."""
    kept = ids if ids.dtype in (np.uint8, np.uint16, np.int32) else ids.astype(np.int32)
    return Plane(kept, title, called, legend(kept, names), **place)


def mask_plane(mask: NDArray[Any], title: str, **place: Any) -> Plane:
    """(H, W) of what is or is not: above 0, or not."""
    return ids_plane((mask > 0).astype(np.uint8), title, "mask", _MASK, **place)


def depth_plane(depth: NDArray[np.float32], title: str, unit: str) -> Plane:
    """(H, W) metres or other units, near bright, far dark; what is not above 0 is invalid."""
    _, near, far = depth_colors(depth)
    steps, _, _ = depth_colors(np.linspace(near or 1e-6, max(far, near, 1e-6), STEPS)[None])
    return Plane(depth.astype(np.float32), title, scale=scale(steps[0], near, far, unit, {"invalid": (0.0, _INVALID)}))


def value_plane(values: NDArray[Any], title: str, unit: str, **place: Any) -> Plane:
    """(H, W) numbers that nothing more is known of, from the least, dark, to the greatest; what is no number is told apart."""
    shown = values.astype(np.float32)
    known = np.isfinite(shown)
    low, high = (float(shown[known].min()), float(shown[known].max())) if known.any() else (0.0, 0.0)
    strange = {} if known.all() else {"no number": (low - 1, _INVALID)}
    steps = ramp(np.linspace(0, 1, STEPS))
    return Plane(
        np.where(known, shown, np.float32(low - 1)), title, scale=scale(steps, low, max(high, low + 1e-6), unit, strange), **place
    )


def distance_plane(distance: NDArray[np.float32], title: str, field: Field, **place: Any) -> Plane:
    """(H, W) voxels, coloured as the contact sheet does; ``field`` says the truncation, below 0 for signed distances."""
    fill = float(field.fill)
    low, high = (0.0, fill) if fill > 0 else (fill, -fill)
    steps = distance_colors(np.linspace(low, high, STEPS + 2)[1:-1], field)
    nothing = distance_colors(np.array([fill]), field)[0].tolist()
    name = "far or unseen" if fill > 0 else "unseen"
    return Plane(distance.astype(np.float32), title, scale=scale(steps, low, high, "voxel", {name: (fill, nothing)}), **place)


def weight_plane(weights: NDArray[np.uint8], title: str, **place: Any) -> Plane:
    """(H, W) loss weights, 1 and more, as ids: each has its own colour."""
    found = np.unique(weights)
    colors = weight_colors(found, int(found.max(initial=2))).tolist()
    names: Mapping[int, Any] = {value: (str(value), tuple(color)) for value, color in zip(found.tolist(), colors, strict=True)}
    return ids_plane(weights, title, "weight", names, **place)
