"""Folders of views: which scenes and views lie there, and what is wrong with their numbers.

A scene is a folder with ``<i>_rgb.png`` in it; the raw folder is one scene, or holds some.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Final

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.places import Place
from scenemill.schemas.tables import Finding

KIND_OF_ENDING: Final = {
    "rgb.png": "rgb",
    "metadata.json": "metadata",
    "semantic.npy": "semantic",
    "semantic.png": "semantic_image",
    "instance.npy": "instance",
    "depth_linear.npy": "depth_linear",
    "normals.png": "normals",
}
"""Ending of a file's name -> kind of file."""

_FILE_NAME: Final = re.compile(rf"(\d+)_({'|'.join(map(re.escape, KIND_OF_ENDING))})\Z", re.ASCII)  # its number and ending

FOLDER_CHECKS: Final = ("numbering", "stray", "sensors")
"""Names of the findings about folders."""

_NUMBERS_TOLD: Final = 8
_NEEDED: Final = ("rgb", "metadata")
_KIND_OF_SENSOR: Final = {**{kind: kind for kind in KIND_OF_ENDING.values()}, "semantic_image": "semantic"}


def find_root(folder: Place) -> Place:
    """The folder itself, once it is known to be a scene or to hold some.

    Raises:
        ConfigError: no such folder, no view in it, or views both in it and in folders below.
    """
    if not folder.is_dir():
        raise ConfigError(f"input {folder}: no such folder; give the one that holds 0_rgb.png, or folders with it for each object")
    held: list[Place] = sorted(folder.iterdir())
    flat, below = holds_views(folder), [path.name for path in held if path.is_dir() and holds_views(path)]
    if flat and below:
        raise ConfigError(f"input {folder}: views lie in it and in {below[0]}/ too; give one object's folder, or move its views")
    if not flat and not below:
        raise ConfigError(f"input {folder}: 0 views in it; expected <i>_rgb.png there, or in a folder for each object")
    return folder.resolve() if isinstance(folder, Path) else folder


def holds_views(folder: Place) -> bool:
    """Whether a folder is a scene."""
    return any(number_of_rgb(path.name) for path in folder.iterdir())


def number_of_rgb(name: str) -> str:
    """The number of a view by the name of its colour file, or "" for any other file.

    >>> number_of_rgb("7_rgb.png"), number_of_rgb("7_normals.png")
    ('7', '')
    """
    match = _FILE_NAME.match(name)
    return match[1] if match and match[2] == "rgb.png" else ""


def scene_folders(root: Place) -> dict[str, Place]:
    """Name -> folder of every scene, sorted."""
    if holds_views(root):
        return {root.name: root}
    held: list[Place] = sorted(root.iterdir())
    return {path.name: path for path in held if path.is_dir() and holds_views(path)}


def check_folders(root: Place) -> Iterator[tuple[str, Finding]]:
    """What is wrong with the numbers of each scene's views: (key, finding), none of which rejects a view.

    A view without a colour image ("stray") is none; one that lacks a sensor others have ("sensors") is told, and so is a gap
    ("numbering"): whoever counts colour images and reads as many from 0 on would read the wrong ones.
    """
    for scene, folder in scene_folders(root).items():
        held = _sensors_by_number(folder)
        yield from _check_numbers(scene, [number for number, sensors in held.items() if "rgb" in sensors])
        yield from _check_sensors(scene, held)


def _sensors_by_number(folder: Place) -> Mapping[str, set[str]]:
    held: dict[str, set[str]] = defaultdict(set)
    for path in folder.iterdir():
        if match := _FILE_NAME.match(path.name):
            held[match[1]].add(_KIND_OF_SENSOR[KIND_OF_ENDING[match[2]]])
    return dict(sorted(held.items()))


def _check_numbers(scene: str, numbers: list[str]) -> Iterator[tuple[str, Finding]]:
    known = {int(number) for number in numbers}
    last = max(known, default=-1)
    if missing := list(islice((number for number in range(last) if number not in known), _NUMBERS_TOLD)):
        observed = f"no view {', '.join(map(str, missing))} below the last, {last}"
        yield (
            f"{scene}/{missing[0]}",
            Finding("numbering", "rgb", "warning", observed, "numbers from 0 without a gap: rename views"),
        )
    for number in numbers:
        if number != str(int(number)):
            observed = f"number {number} with zeros before it"
            yield f"{scene}/{number}", Finding("numbering", "rgb", "warning", observed, f"{int(number)}: rename its files")


def _check_sensors(scene: str, held: Mapping[str, set[str]]) -> Iterator[tuple[str, Finding]]:
    views = {number: sensors for number, sensors in held.items() if "rgb" in sensors}
    count = Counter(sensor for sensors in views.values() for sensor in sensors)
    for number, sensors in held.items():
        if "rgb" not in sensors:
            observed = f"{', '.join(sorted(sensors))} without an image"
            yield f"{scene}/{number}", Finding("stray", "rgb", "warning", observed, f"{number}_rgb.png: add it, or remove the rest")
            continue
        for sensor in sorted(set(count) - sensors - set(_NEEDED)):
            observed = f"no {sensor}, but {count[sensor]} of {len(views)} views have it"
            yield f"{scene}/{number}", Finding("sensors", sensor, "warning", observed, "the same sensors for every view")
