"""Made-up scenes in every raw layout: furnished rooms of boxes, of which every depth, distance and label is known exactly.

For the demo, the tests, and training without the licensed datasets. A scene is one rectangular room, x from 0 to its width, y from
0 to its depth, z up from the floor, metres. Sizes and colours are choices that look like a home; no dataset prescribes them.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.labels import CEILING, FLOOR, LABELS, VOID, WALL
from scenemill.transforms.geometry import FRONT3D_INTRINSICS, GRIDS, adjust_intrinsics, back_project
from scenemill.transforms.rawfiles import View, write_front3d_mask, write_front3d_view, write_lists, write_matterport_view
from scenemill.transforms.rendering import (
    IMAGE_SIZE,
    Box,
    Camera,
    Columns,
    Matrix,
    Triple,
    cast_rays,
    find_free,
    find_hidden,
    frustum_columns,
    measure_distance,
    place,
    shade,
)

FRONT3D_FORM: Final = ("front3d", "synthetic_hospital", "synthetic_warehouse")
SOURCES: Final = (*FRONT3D_FORM, "matterport")

_MATTERPORT_INTRINSICS: Final[dict[int, Matrix]] = {  # angle 1 as in a released view; angle 2 another lens of the same kind
    1: ((269.42, 0.0, 159.21068022, 0.0), (0.0, 252.6984375, 125.21473998, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
    2: ((270.15, 0.0, 160.84, 0.0), (0.0, 253.31, 124.37, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
}
_MATTERPORT_HEIGHT_M: Final = {1: 1.25, 2: 0.85}
_FRONT3D_HEIGHT_M: Final = 0.75  # of every released pose
_YAWS: Final = 6  # of a Matterport3D panorama, 60 degrees apart

_FLOOR_GAP_M: Final = 0.008  # furniture hovers by this, so that no two faces coincide and every voxel has one nearest face
_SEAM_M: Final = 0.002  # walls, floor and ceiling reach this far beyond each other, so that no ray slips out between two of them
_CLEARANCE_M: Final = 0.5  # from a camera to anything: keeps depth above 0.43 m at the edge of the image
_THUMBNAIL: Final = (40, 30)  # the image of a glance
_GLANCES: Final = 40  # into a new room, to find all classes; the best so many stay for later views
_FRESH_GLANCES: Final = 8  # more of them for every view
_FEWEST_THINGS: Final = 3
_AGREEMENT: Final = 0.97  # of image and volume labels; the released views have at least 0.98
_APART_M: Final = 0.06  # between pieces of furniture
_ATTEMPTS: Final = 60  # to place one piece
_FEWEST_SPOTS: Final = 60  # of a 10 cm lattice
_NOTABLE: Final = 6  # pixels of a glance, 64 of the image each, from which something counts as seen

Part = tuple[float, float, float, float, float, float, float]  # x, x, y, y, z, z, brightness; the wall is at +y


@dataclass(frozen=True)
class WorldSummary:
    """What was written.

    Attributes:
        source: as asked for.
        scenes: number of scenes.
        views: number of views of all scenes together.
        files: number of files.
        size_bytes: of all files together.
    """

    source: str
    scenes: int
    views: int
    files: int
    size_bytes: int


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
class Glance:
    """A camera and what it shows at a quick look, as (class, instance id)."""

    camera: Camera
    objects: frozenset[tuple[int, int]]


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


def write_world(source: str, out: Path, *, scenes: int, views: int, seed: int = 0, grid: int = 256) -> WorldSummary:
    """Write a made-up dataset in the raw layout of a source; the same arguments give the same bytes.

    Args:
        source: "front3d" or "matterport"; "synthetic_hospital" and "synthetic_warehouse" have the form of 3D-Front.
        out: folder to write, new or empty.
        scenes: number of scenes; with three or more, none of the three splits is empty.
        views: views per scene.
        seed: another seed is another world.
        grid: voxels a side, 256, 128 or 64, over the same box of space.

    Raises:
        ConfigError: an argument is not one of these, or ``out`` has something in it.
    """
    _check_arguments(source, out, scenes, views, seed, grid)
    out.mkdir(parents=True, exist_ok=True)
    if source in FRONT3D_FORM:
        write_front3d_mask(out, grid)
    write_scene = _write_front3d_scene if source in FRONT3D_FORM else _write_matterport_scene
    pairs = [write_scene(out, seed, scene, views, grid) for scene in range(scenes)]
    write_lists(out, _split_scenes(pairs))
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    return WorldSummary(source, scenes, scenes * views, len(sizes), sum(sizes))


def _check_arguments(source: str, out: Path, scenes: int, views: int, seed: int, grid: int) -> None:
    if source not in SOURCES:
        raise ConfigError(f"source {source!r} is unknown. Use one of {', '.join(SOURCES)}.")
    if scenes < 1 or views < 1 or seed < 0:
        raise ConfigError(f"scenes {scenes}, views {views}, seed {seed}: ask for at least 1 scene, 1 view and a seed from 0 up.")
    if source in FRONT3D_FORM and views > _image_numbers(views):
        raise ConfigError(f"views {views}: image ids have four digits. Ask for at most 10000 views, and for more scenes.")
    if grid not in GRIDS:
        raise ConfigError(f"grid {grid} is not a size of the volumes. Use one of {', '.join(map(str, GRIDS))}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder. Name a new folder, or remove this one first.")


def _image_numbers(views: int) -> int:
    return min(views + views // 3 + 1, 10_000)  # a few more than views: gaps between image ids are normal


def _split_scenes(pairs: list[list[tuple[str, str]]]) -> dict[str, list[tuple[str, str]]]:
    """Scenes to train, val and test: a tenth each to the last two, at least one scene if there are three."""
    test = max(len(pairs) // 10, int(len(pairs) >= 3))
    val = max(len(pairs) // 10, int(len(pairs) >= 2))
    train = len(pairs) - val - test
    parts = {"train": pairs[:train], "val": pairs[train : train + val], "test": pairs[train + val :]}
    return {split: [pair for scene in part for pair in scene] for split, part in parts.items()}


def _write_front3d_scene(root: Path, seed: int, scene: int, views: int, grid: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng([seed, scene, 0])
    scene_id = str(uuid.UUID(bytes=rng.bytes(16), version=4))
    numbers = np.sort(rng.choice(_image_numbers(views), views, replace=False))
    room, pool = furnish_room(rng)
    room_id = int(rng.integers(1, 20))
    columns = frustum_columns("front3d", grid, FRONT3D_INTRINSICS)
    folder = root / "data" / scene_id
    folder.mkdir(parents=True)
    seen: Counter[tuple[int, int]] = Counter()
    for position, number in enumerate(numbers):
        view = _find_view(room, pool, seen, columns, np.random.default_rng([seed, scene, position + 1]))
        write_front3d_view(folder, f"{number:04d}", view, room_id)
    return [(scene_id, f"{number:04d}") for number in numbers]


def _write_matterport_scene(root: Path, seed: int, scene: int, views: int, grid: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng([seed, scene, 0])
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz123456789"
    scene_id = "".join(letters[index] for index in rng.integers(len(letters), size=11))
    room, _ = furnish_room(rng)
    for tree in ("data", "depth_gen", "room_mask"):
        (root / tree / scene_id).mkdir(parents=True)
    images = []
    for position in range(views):
        panorama, angle, rot = position // (2 * _YAWS), 1 + position // _YAWS % 2, position % _YAWS
        camera, name = _panorama_camera(room, angle, rot, np.random.default_rng([seed, scene, 1, panorama]))
        columns = frustum_columns("matterport", grid, camera.intrinsics)
        noise = np.random.default_rng([seed, scene, 2, position])
        view = _take_view(room.boxes, camera, columns, noise)
        free = find_free(place([room.hollow], camera), place(room.boxes, camera), columns)
        images.append((scene_id, f"{name}_{angle}_{rot}"))
        write_matterport_view(root, *images[-1], view, free, noise.random(view.hit.shape) < 0.004)
    return images


def _panorama_camera(room: Room, angle: int, rot: int, rng: np.random.Generator) -> tuple[Camera, str]:
    """One camera of a panorama and the panorama's name: all share the spot and the heading of yaw 0."""
    x, y = min(rng.choice(room.spots, _FRESH_GLANCES), key=lambda spot: float(np.hypot(*(spot - room.hollow.centre[:2]))))
    heading = rng.uniform(0.0, 2 * np.pi) + rot * 2 * np.pi / _YAWS
    return Camera((x, y, _MATTERPORT_HEIGHT_M[angle]), heading, _MATTERPORT_INTRINSICS[angle]), rng.bytes(16).hex()


def _take_view(boxes: Sequence[Box], camera: Camera, columns: Columns, rng: np.random.Generator) -> View:
    placed = place(boxes, camera)
    depth_m, hit = cast_rays(placed, np.array(camera.intrinsics), IMAGE_SIZE)
    distance, nearest = measure_distance(placed, columns)
    hidden = find_hidden(depth_m, columns)
    return View(boxes, camera, columns, shade(boxes, camera, depth_m, hit, rng), depth_m, hit, distance, nearest, hidden)


def _find_view(room: Room, pool: list[Glance], seen: Counter[tuple[int, int]], columns: Columns, rng: np.random.Generator) -> View:
    """The view that shows most of what views of the scene have shown least; leaves ``pool`` and is counted in ``seen``."""
    while True:
        pool += _glance_around(room, _FRESH_GLANCES, rng)
        pool.sort(key=lambda glance: _novelty(glance, seen))
        del pool[:-_GLANCES]
        best = pool.pop()
        view = _take_view(room.boxes, best.camera, columns, rng)
        if _image_agrees_with_volume(view):
            seen.update(best.objects)
            return view


def _glance_around(room: Room, times: int, rng: np.random.Generator) -> list[Glance]:
    """Random cameras, each aimed at any point of the floor, of which those stay that show a wall, floor and a few things."""
    small = adjust_intrinsics(np.array(FRONT3D_INTRINSICS), IMAGE_SIZE, _THUMBNAIL)
    glances = []
    for x, y in rng.choice(room.spots, times):
        aim_x, aim_y = rng.uniform(0.0, 2.0, 2) * room.hollow.half[:2]
        camera = Camera((x, y, _FRONT3D_HEIGHT_M), float(np.arctan2(aim_y - y, aim_x - x)), FRONT3D_INTRINSICS)
        _, hit = cast_rays(place(room.boxes, camera), small, _THUMBNAIL)
        objects = _notable_objects(room.boxes, hit)
        classes = [semantic for semantic, _ in objects]
        if WALL in classes and FLOOR in classes and sum(semantic < WALL for semantic in classes) >= _FEWEST_THINGS:
            glances.append(Glance(camera, objects))
    return glances


def _notable_objects(boxes: Sequence[Box], hit: NDArray[np.uint8]) -> frozenset[tuple[int, int]]:
    pixels = Counter((boxes[box].semantic, boxes[box].instance) for box in hit.ravel().tolist())
    return frozenset(seen for seen, size in pixels.items() if size >= _NOTABLE)


def _novelty(glance: Glance, seen: Counter[tuple[int, int]]) -> float:
    new_classes = {semantic for semantic, _ in glance.objects} - {semantic for semantic, _ in seen}
    return 100 * len(new_classes) + sum(1 / (1 + seen[thing]) for thing in glance.objects)


def _image_agrees_with_volume(view: View) -> bool:
    """True if every thing in the image has voxels, and the labels of pixels and of their voxels agree as in 3D-Front."""
    columns = view.columns
    point = back_project(view.depth_m, np.array(view.camera.intrinsics), columns.centre, columns.grid)
    position, inside = columns.locate(np.rint(point).astype(np.intp).reshape(3, -1))
    on_pixel, on_voxel = view.hit.ravel()[inside], view.nearest.ravel()[position[inside]]
    same_class = view.semantic[on_pixel] == view.semantic[on_voxel]
    things = (view.semantic[on_pixel] < WALL) & (view.semantic[on_voxel] < WALL)
    same_thing = view.instance[on_pixel] == view.instance[on_voxel]
    in_image = set(view.instance[np.unique(view.hit)][view.semantic[np.unique(view.hit)] < WALL])
    in_volume = set(view.instance[np.unique(view.nearest[view.distance < 1.0])])
    return bool(same_class.mean() > _AGREEMENT and same_thing[things].mean() > _AGREEMENT and in_image <= in_volume)


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


def furnish_room(rng: np.random.Generator) -> tuple[Room, list[Glance]]:
    """A random room, and glances into it that together show all twelve classes."""
    every_class = {label.id for label in LABELS if label.id != VOID}
    while True:
        room = _try_room(rng)
        glances = [] if room is None else _glance_around(room, _GLANCES, rng)
        if room is not None and {semantic for glance in glances for semantic, _ in glance.objects} == every_class:
            return room, glances


def _try_room(rng: np.random.Generator) -> Room | None:
    """None if the furniture does not fit as the dice fell, or leaves too little floor."""
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
