"""Furnished rooms of boxes: walls, floor, ceiling and a few pieces of furniture of every class, set down where they touch nothing.

A room is a rectangle, x from 0 to its width, y from 0 to its depth, z up from the floor, metres. Sizes and colours are choices that
look like a home; no dataset prescribes them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.labels import CEILING, FLOOR, WALL
from scenemill.transforms.rendering import Box, Triple

_FLOOR_GAP_M: Final = 0.008  # furniture hovers by this, so that no two faces coincide and every voxel has one nearest face
_SEAM_M: Final = 0.002  # walls, floor and ceiling reach this far beyond each other, so that no ray slips out between two of them
_CLEARANCE_M: Final = 0.5  # from a camera to anything: keeps depth above 0.43 m at the edge of the image
_APART_M: Final = 0.06  # between pieces of furniture
_ATTEMPTS: Final = 60  # to place one piece
_FEWEST_SPOTS: Final = 60  # of a 10 cm lattice

Part = tuple[float, float, float, float, float, float, float]  # x, x, y, y, z, z, brightness; the wall is at +y


@dataclass(frozen=True)
class Room:
    """A furnished room.

    Attributes:
        boxes: walls, floor, ceiling and furniture.
        hollow: the space between walls, floor and ceiling.
        spots: (N, 2) float64, where a camera has room, x and y in metres.
    """

    boxes: tuple[Box, ...]
    hollow: Box
    spots: NDArray[np.float64]


@dataclass(frozen=True)
class Piece:
    """A kind of furniture.

    Attributes:
        semantic: class id.
        most: a room has one to this many.
        gap: smallest and largest distance from its back to a wall, metres, below zero to stand in it; None stands anywhere.
        low, high: smallest and largest (width, depth, height), metres.
        build: parts from width, depth, height.
        color: (red, green, blue), 0..1.
        texture, room: as in ``Box``.
    """

    semantic: int
    most: int
    gap: tuple[float, float] | None
    low: Triple
    high: Triple
    build: Callable[[float, float, float], list[Part]]
    color: Triple
    texture: Triple
    room: int = 0


@dataclass(frozen=True)
class Spot:
    """Where a piece stands: x, y in metres, yaw in radians, and the (x, y, x, y) rectangle it takes, lower corner first."""

    x: float
    y: float
    yaw: float
    footprint: NDArray[np.float64]


def _legs(width: float, depth: float, top: float, thick: float) -> list[Part]:
    x, y = width / 2, depth / 2
    ends = [(-x, -x + thick), (x - thick, x)], [(-y, -y + thick), (y - thick, y)]
    return [(*across, *along, 0.0, top, 0.8) for across in ends[0] for along in ends[1]]


def _cabinet(width: float, depth: float, height: float) -> list[Part]:
    x, y = width / 2, depth / 2
    return [(-x + 0.03, x - 0.03, -y + 0.05, y, 0.0, 0.08, 0.6), (-x, x, -y, y, 0.08, height, 1.0)]


def _bed(width: float, depth: float, height: float) -> list[Part]:
    x, y = width / 2, depth / 2
    frame: list[Part] = [(-x, x, -y, y, 0.0, 0.26, 0.6), (-x, x, y - 0.08, y, 0.26, height, 0.6)]
    mattress: Part = (-x + 0.04, x - 0.04, -y + 0.04, y - 0.08, 0.26, 0.46, 1.0)
    return [*frame, mattress, (-x + 0.15, x - 0.15, y - 0.48, y - 0.12, 0.46, 0.56, 1.15)]


def _chair(width: float, depth: float, height: float) -> list[Part]:
    x, y = width / 2, depth / 2
    return [*_legs(width, depth, 0.42, 0.05), (-x, x, -y, y, 0.42, 0.48, 1.0), (-x, x, y - 0.06, y, 0.48, height, 1.0)]


def _sofa(width: float, depth: float, height: float) -> list[Part]:
    x, y = width / 2, depth / 2
    arms: list[Part] = [(-x, -x + 0.16, -y, y, 0.0, 0.6, 0.9), (x - 0.16, x, -y, y, 0.0, 0.6, 0.9)]
    return [*arms, (-x + 0.16, x - 0.16, -y, y - 0.2, 0.0, 0.42, 1.05), (-x + 0.16, x - 0.16, y - 0.2, y, 0.0, height, 1.0)]


def _table(width: float, depth: float, height: float) -> list[Part]:
    x, y = width / 2, depth / 2
    return [*_legs(width, depth, height - 0.05, 0.07), (-x, x, -y, y, height - 0.05, height, 1.0)]


def _desk(width: float, depth: float, height: float) -> list[Part]:
    x, y = width / 2, depth / 2
    sides: list[Part] = [(-x, -x + 0.05, -y, y, 0.0, height - 0.05, 0.9), (x - 0.38, x, -y, y, 0.0, height - 0.05, 0.9)]
    return [*sides, (-x, x, -y - 0.02, y, height - 0.05, height, 1.1)]


def _dresser(width: float, depth: float, height: float) -> list[Part]:
    x, y = width / 2, depth / 2
    return [(-x, x, -y, y, 0.0, height - 0.04, 1.0), (-x - 0.02, x + 0.02, -y - 0.02, y, height - 0.04, height, 0.8)]


def _lamp(width: float, depth: float, height: float) -> list[Part]:
    x, y = width / 2, depth / 2
    stand: list[Part] = [(-x, x, -y, y, 0.0, 0.05, 0.5), (-0.04, 0.04, -0.04, 0.04, 0.05, height - 0.35, 0.5)]
    return [*stand, (-x, x, -y, y, height - 0.35, height, 1.0)]


def _plant(width: float, depth: float, height: float) -> list[Part]:
    x, y = width / 2, depth / 2
    pot: Part = (-0.7 * x, 0.7 * x, -0.7 * y, 0.7 * y, 0.0, 0.4 * height, 0.55)
    return [pot, (-x, x, -y, y, 0.4 * height, 0.8 * height, 1.0), (-0.6 * x, 0.6 * x, -0.6 * y, 0.6 * y, 0.8 * height, height, 1.1)]


def _door(width: float, depth: float, height: float) -> list[Part]:
    """The leaf at the back of its footprint; the rest of the footprint stays free of furniture."""
    return [(-width / 2, width / 2, depth / 2 - 0.08, depth / 2, -0.1, height, 1.0)]


def _pillar(width: float, depth: float, height: float) -> list[Part]:
    return [(-width / 2, width / 2, -depth / 2, depth / 2, -0.1, height, 1.0)]


_PLAIN: Final = (1.0, 1.0, 0.0)
_BEHIND: Final = (0.02, 0.05)
_SUNK: Final = (-0.06, -0.04)
_FURNITURE: Final = (  # large pieces first, while there is space
    Piece(WALL, 1, _SUNK, (0.8, 0.6, 1.9), (0.9, 0.6, 2.0), _door, (0.62, 0.54, 0.48), (9.0, 0.5, 0.12), room=3),
    Piece(WALL, 1, _SUNK, (0.3, 0.2, 3.0), (0.4, 0.3, 3.0), _pillar, (0.8, 0.76, 0.72), _PLAIN),
    Piece(2, 1, _BEHIND, (1.2, 1.9, 0.8), (1.5, 2.0, 1.0), _bed, (0.72, 0.76, 0.86), (0.2, 9.0, 0.1)),
    Piece(4, 1, _BEHIND, (1.4, 0.8, 0.75), (1.7, 0.85, 0.85), _sofa, (0.22, 0.46, 0.52), _PLAIN),
    Piece(6, 1, _BEHIND, (1.0, 0.5, 0.72), (1.2, 0.6, 0.76), _desk, (0.34, 0.3, 0.34), (9.0, 0.2, 0.25)),
    Piece(1, 1, _BEHIND, (0.8, 0.4, 1.6), (1.1, 0.5, 2.1), _cabinet, (0.56, 0.36, 0.2), (0.25, 9.0, 0.3)),
    Piece(7, 1, _BEHIND, (0.7, 0.4, 0.75), (1.0, 0.45, 0.95), _dresser, (0.86, 0.78, 0.6), (9.0, 0.22, 0.3)),
    Piece(5, 1, None, (0.7, 0.6, 0.5), (0.9, 0.7, 0.72), _table, (0.8, 0.58, 0.32), (0.1, 9.0, 0.15)),
    Piece(8, 2, _BEHIND, (0.3, 0.3, 1.3), (0.36, 0.36, 1.6), _lamp, (0.98, 0.88, 0.4), _PLAIN),
    Piece(3, 3, None, (0.4, 0.4, 0.82), (0.45, 0.45, 0.95), _chair, (0.74, 0.26, 0.2), _PLAIN),
    Piece(9, 2, _BEHIND, (0.34, 0.34, 0.5), (0.44, 0.44, 0.9), _plant, (0.3, 0.58, 0.24), (0.08, 0.08, 0.3)),
)


def furnish_room(rng: np.random.Generator) -> Room | None:
    """A random room, or None if the furniture does not fit as the dice fell or leaves too little floor."""
    size = rng.uniform((4.6, 3.5, 2.2), (5.2, 3.9, 2.3))
    ids = iter(rng.permutation(np.append(rng.choice(255, 16, replace=False) + 1, rng.choice(300, 16, replace=False) + 256)))
    boxes, taken = _build_shell(size, ids, rng), np.empty((0, 4))
    for piece in _FURNITURE:
        for _ in range(rng.integers(1, piece.most + 1)):
            width, depth, height = rng.uniform(piece.low, piece.high)
            spot = _find_spot(piece.gap, width, depth, size, taken, rng)
            if spot is None:
                return None
            taken = np.vstack([taken, spot.footprint])
            color = _triple(np.clip(piece.color + rng.uniform(-0.08, 0.08, 3), 0.05, 1.0))
            boxes += _set_down(piece, piece.build(width, depth, height), spot, int(next(ids)), color)
    hollow = Box(_triple(size / 2), _triple(size / 2), 0.0, 0, 0, (0.0, 0.0, 0.0), _PLAIN)
    free = _free_floor(size, taken)
    return Room(tuple(boxes), hollow, free) if len(free) >= _FEWEST_SPOTS else None


def _build_shell(size: NDArray[np.float64], ids: Iterator[int], rng: np.random.Generator) -> list[Box]:
    """Floor, ceiling and four walls, all sheets."""
    paint, boards = rng.uniform((0.78, 0.76, 0.72), (0.9, 0.88, 0.86)), rng.uniform((0.5, 0.38, 0.26), (0.66, 0.52, 0.4))
    looks = {
        WALL: (_triple(paint), (0.25, 9.0, 0.05)),
        FLOOR: (_triple(boards), (0.3, 0.3, 0.18)),
        CEILING: ((0.95, 0.95, 0.93), _PLAIN),
    }
    boxes = []
    for axis, end, semantic in ((2, 0, FLOOR), (2, 1, CEILING), (0, 0, WALL), (0, 1, WALL), (1, 0, WALL), (1, 1, WALL)):
        centre, half = size / 2, size / 2 + _SEAM_M
        centre[axis], half[axis] = end * size[axis], 0.0
        boxes.append(Box(_triple(centre), _triple(half), 0.0, semantic, int(next(ids)), *looks[semantic]))
    return boxes


def _triple(values: NDArray[np.float64]) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])


def _find_spot(
    gap: tuple[float, float] | None,
    width: float,
    depth: float,
    size: NDArray[np.float64],
    taken: NDArray[np.float64],
    rng: np.random.Generator,
) -> Spot | None:
    """Where a piece touches no other, or None after many attempts."""
    for _ in range(_ATTEMPTS):
        quarter = int(rng.integers(4))
        yaw = float(rng.uniform(0.0, 2 * np.pi)) if gap is None else quarter * np.pi / 2
        cosine, sine = abs(np.cos(yaw)), abs(np.sin(yaw))
        reach = np.array([width * cosine + depth * sine, width * sine + depth * cosine]) / 2
        middle = rng.uniform(reach + _APART_M, size[:2] - reach - _APART_M)
        if gap is not None:  # the back, at own +y, faces the walls at +y, -x, -y, +x for 0, 1, 2, 3 quarter turns
            axis = 1 - quarter % 2
            inwards = reach[axis] + rng.uniform(*gap)
            middle[axis] = size[axis] - inwards if quarter in (0, 3) else inwards
        footprint = np.concatenate([middle - reach, middle + reach])
        if (_distance_between(footprint, taken) > _APART_M).all():
            return Spot(float(middle[0]), float(middle[1]), yaw, footprint)
    return None


def _distance_between(footprint: NDArray[np.float64], taken: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) the larger of the gaps along x and y from one (x, y, x, y) rectangle to each of (N, 4); below zero if they overlap."""
    return np.asarray(np.maximum(taken[:, :2] - footprint[2:], footprint[:2] - taken[:, 2:]).max(axis=1))


def _set_down(piece: Piece, parts: Sequence[Part], spot: Spot, instance: int, color: Triple) -> list[Box]:
    cosine, sine = np.cos(spot.yaw), np.sin(spot.yaw)
    boxes = []
    for x0, x1, y0, y1, z0, z1, bright in parts:
        x, y, z = (x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2 + _FLOOR_GAP_M
        centre = (spot.x + x * cosine - y * sine, spot.y + x * sine + y * cosine, z)
        half = ((x1 - x0) / 2, (y1 - y0) / 2, (z1 - z0) / 2)
        tint = (color[0] * bright, color[1] * bright, color[2] * bright)
        boxes.append(Box(centre, half, spot.yaw, piece.semantic, instance, tint, piece.texture, piece.room))
    return boxes


def _free_floor(size: NDArray[np.float64], taken: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 2) points of a 10 cm lattice that keep clear of everything."""
    x, y = np.meshgrid(*(np.arange(_CLEARANCE_M, length - _CLEARANCE_M, 0.1) for length in size[:2]), indexing="ij")
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    beyond = np.maximum(taken[:, :2] - points[:, None], points[:, None] - taken[:, 2:])
    clear = np.linalg.norm(np.maximum(beyond, 0.0), axis=-1) > _CLEARANCE_M
    return np.asarray(points[clear.all(axis=1)])
