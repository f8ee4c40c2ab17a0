"""Scenes and planes: what a pane of the page shows, and their frames."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenemill.pipelines.viewer.cut import Part
from scenemill.pipelines.viewer.frames import encode_frame, key_of


@dataclass(frozen=True, eq=False)
class Scene:
    """Something in space.

    Attributes:
        parts: what to draw.
        legends: name of ids -> the entries of ``view_legend.legend``; arrays "ids.NAME" of the parts hold such ids.
        up: the axis that points up, "Y" or "Z".
        unit: of positions; "" where that is not known.
        time, requested: the iteration shown, and the one asked for.
        notes: what a person should know of it.
    """

    parts: tuple[Part, ...]
    legends: Mapping[str, list[dict[str, Any]]]
    up: str = "Y"
    unit: str = ""
    time: float = 0
    requested: float = 0
    notes: tuple[str, ...] = ()

    @property
    def size_byte(self) -> int:
        """Of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    @cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Those of all parts, as "PART/NAME"; parts are counted from 0."""
        return {f"{number}/{name}": array for number, part in enumerate(self.parts) for name, array in part.arrays.items()}

    @cached_property
    def keys(self) -> dict[str, str]:
        """Checksums of the arrays."""
        return {name: key_of(np.ascontiguousarray(array)) for name, array in self.arrays.items()}

    def encode(self, known: Container[str] = ()) -> bytes:
        """The scene's frame."""
        header = {
            "frame": "scene",
            "parts": [_describe(part) for part in self.parts],
            "legends": dict(self.legends),
            "up": self.up,
            "unit": self.unit,
            "time": _plain(self.time),
            "requested": _plain(self.requested),
            "bounds": bounds(self.parts),
            "notes": [*self.notes, *(note for part in self.parts for note in part.notes)],
        }
        return encode_frame(header, self.arrays, known, self.keys)


@dataclass(frozen=True, eq=False)
class Plane:
    """A picture, or a plane of a volume.

    Attributes:
        values: (H, W, 3) uint8, colours; or (H, W), ids (integers) or quantities (float32).
        title: what it is.
        ids: what the ids are called; "" of what is no ids.
        legend: of ids, the entries of ``view_legend.legend``; else empty.
        scale: of quantities, how to colour them, as ``scale`` makes it; else None.
        right, down: the axes that run to the right and down.
        axis, index, size: of a volume: the axis it is cut across, where, and how many planes there are; "" of a picture.
        notes: what a person should know of it.
    """

    values: NDArray[Any]
    title: str
    ids: str = ""
    legend: list[dict[str, Any]] = field(default_factory=list)
    scale: Mapping[str, Any] | None = None
    right: str = "column"
    down: str = "row"
    axis: str = ""
    index: int = 0
    size: int = 1
    notes: tuple[str, ...] = ()

    def encode(self, known: Container[str] = ()) -> bytes:
        """The plane's frame."""
        facts = {name: value for name, value in vars(self).items() if name not in ("values", "scale", "notes")}
        header = {"frame": "plane", **facts, "scale": self.scale and dict(self.scale), "notes": list(self.notes)}
        return encode_frame(header, {"values": self.values}, known)


def scale(
    colors: NDArray[np.uint8], low: float, high: float, unit: str, special: Mapping[str, tuple[float, list[int]]]
) -> dict[str, Any]:
    """How to colour quantities.

    Args:
        colors: (n, 3), colours of n equal steps from ``low`` to ``high``.
        low, high: the ends.
        unit: of the quantities.
        special: name -> value that means something else, and its colour.
    """
    meant = [{"name": name, "value": value, "color": color} for name, (value, color) in special.items()]
    return {"low": low, "high": high, "unit": unit, "colors": colors.tolist(), "special": meant}


def bounds(parts: tuple[Part, ...]) -> list[list[float]] | None:
    """The lowest and the highest corner of the box around all parts, in the world; None around nothing."""
    corners = [corner for part in parts for corner in _corners(part)]
    if not corners:
        return None
    return [np.min(corners, axis=0).tolist(), np.max(corners, axis=0).tolist()]


def _corners(part: Part) -> list[NDArray[np.float64]]:
    """The corners of a part's own box, in the world."""
    positions = part.arrays["positions"]
    finite = positions if positions.dtype.kind == "i" else positions[np.isfinite(positions).all(axis=1)]
    if not len(finite):
        return []
    reach = 0.5 if part.kind == "voxels" else 0.0
    ends = np.stack([finite.min(axis=0) - reach, finite.max(axis=0) + reach]).astype(np.float64)
    choices = np.stack(np.meshgrid(*ends.T, indexing="ij"), axis=-1).reshape(-1, 3)
    placed = choices @ part.matrix[:3, :3].T + part.matrix[:3, 3]
    return list(placed) if np.isfinite(placed).all() else []


def _describe(part: Part) -> dict[str, Any]:
    facts = {name: value for name, value in vars(part).items() if name not in ("arrays", "matrix", "notes")}
    return {**facts, "places": dict(part.places), "materials": dict(part.materials), "matrix": np.nan_to_num(part.matrix).tolist()}


def _plain(time: float) -> float:
    return int(time) if time == int(time) else time
