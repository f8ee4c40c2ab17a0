"""Made-up scenes in every raw layout: furnished rooms of boxes, of which every depth, distance and label is known exactly.

For the demo, the tests, and training without the licensed datasets. A scene is one room of ``rooms``; here its cameras are
chosen and its files written.
"""

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import FRONT3D_FORM, ROOM_SOURCES
from scenemill.schemas.labels import FLOOR, LABELS, VOID, WALL
from scenemill.transforms.geometry import FRONT3D_INTRINSICS, GRIDS, adjust_intrinsics, back_project
from scenemill.transforms.rawfiles import View, write_front3d_mask, write_front3d_view, write_lists, write_matterport_view
from scenemill.transforms.rendering import (
    IMAGE_SIZE,
    Box,
    Camera,
    Columns,
    Matrix,
    cast_rays,
    find_free,
    find_hidden,
    frustum_columns,
    measure_distance,
    place,
    shade,
)
from scenemill.transforms.rooms import Room, furnish_room

_MATTERPORT_INTRINSICS: Final[dict[int, Matrix]] = {  # angle 1 as in a released view; angle 2 another lens of the same kind
    1: ((269.42, 0.0, 159.21068022, 0.0), (0.0, 252.6984375, 125.21473998, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
    2: ((270.15, 0.0, 160.84, 0.0), (0.0, 253.31, 124.37, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
}
_MATTERPORT_HEIGHT_M: Final = {1: 1.25, 2: 0.85}
_FRONT3D_HEIGHT_M: Final = 0.75  # of every released pose
_YAWS: Final = 6  # of a Matterport3D panorama, 60 degrees apart

_THUMBNAIL: Final = (40, 30)  # the image of a glance
_GLANCES: Final = 40  # into a new room, to find all classes; the best so many stay for later views
_FRESH_GLANCES: Final = 8  # more of them for every view
_FEWEST_THINGS: Final = 3
_AGREEMENT: Final = 0.97  # of image and volume labels; the released views have at least 0.98
_NOTABLE: Final = 6  # pixels of a glance, 64 of the image each, from which something counts as seen


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
class Glance:
    """A camera and what it shows at a quick look, as (class, instance id)."""

    camera: Camera
    objects: frozenset[tuple[int, int]]


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
    if source not in ROOM_SOURCES:
        raise ConfigError(f"source {source!r} is not made of rooms. Use one of {', '.join(ROOM_SOURCES)}.")
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
    room, pool = _choose_room(rng)
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
    room, _ = _choose_room(rng)
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


def _choose_room(rng: np.random.Generator) -> tuple[Room, list[Glance]]:
    """A random room, and glances into it that together show all twelve classes."""
    every_class = {label.id for label in LABELS if label.id != VOID}
    while True:
        room = furnish_room(rng)
        glances = [] if room is None else _glance_around(room, _GLANCES, rng)
        if room is not None and {semantic for glance in glances for semantic, _ in glance.objects} == every_class:
            return room, glances


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
