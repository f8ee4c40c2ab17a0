"""Reading a log of 3D checkpoints: what there is, and what it looked like at an iteration.

Source: the class and names of Kaolin's ``visualize.timelapse``, Apache 2.0, whose logs are read too.
"""

import json
import logging
import math
import os
import re
import time as clock
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeVar

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers.usd.items import Summary, read_item, summarise
from scenemill.trainers.usd.records import MeshData, PointData, VoxelData

TYPES: Final = ("mesh", "pointcloud", "voxelgrid")
"""What a log holds."""

LABELS_FILE: Final = "labels.json"
"""In the folder of a log: the names and colours of its semantic ids."""

Key = tuple[str, str, int]
"""Type, category and number of a sample."""

_NAME: Final = re.compile(r"_([0-9]+)\.usd$")
_PAUSES_S: Final = (0.05, 0.1, 0.2)  # before the next attempts at a file that is being written
_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One file of a log.

    Attributes:
        path: of the file.
        times: of all its samples, sorted; none for a file in which nothing changes.
        attributes: which of "colors", "semantic_ids", "uvs", "normals", "materials" it has.
        error: why the file cannot be read now; "" for it can. Times and attributes are then those of the last good state.
    """

    path: str
    times: tuple[float, ...]
    attributes: tuple[str, ...]
    error: str = ""

    @property
    def end_time(self) -> float:
        """The last of the times, a whole number as int; 0 for none."""
        last = self.times[-1] if self.times else 0
        return int(last) if last == int(last) else last


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A sample of a log at one iteration.

    Attributes:
        type, category, id: which.
        time: the iteration that was read.
        requested: the one that was asked for.
        prims: all meshes, clouds or grids of the file; one, in a log.
    """

    type: str
    category: str
    id: int
    time: float
    requested: float
    prims: tuple[MeshData | PointData | VoxelData, ...]


class CategoryInfo:
    """The samples of one type and category.

    Args:
        category: its name.
        ids: numbers of the samples.
        end_time: the last iteration of any.
    """

    def __init__(self, category: str, ids: Iterable[int] | None = None, end_time: float = 0) -> None:
        self.category, self.ids, self.end_time = category, sorted(ids or ()), end_time

    def add_instance(self, new_id: int, end_time: float) -> None:
        """Count another sample.

        Raises:
            ConfigError: it is counted already.
        """
        if new_id in self.ids:
            raise ConfigError(f"category {self.category!r} has sample {new_id} twice; rename one of the files")
        self.ids, self.end_time = sorted([*self.ids, new_id]), max(self.end_time, end_time)

    def serializable(self) -> dict[str, Any]:
        """Category, sorted ids and end time, as JSON takes them."""
        return {"category": self.category, "ids": list(self.ids), "end_time": self.end_time}


class TimelapseParser:
    """What a log holds, as of its last look at the folder.

    Args:
        log_dir: the folder of the log; an empty or missing one is an empty log.
        describe: says what a file holds, or why it cannot be read (``SourceError``).

    Attributes:
        logdir: the folder.
        filepaths: (type, category, id) -> path of the file.
        timestamps: path -> when the file changed last, in nanoseconds.
        dir_info: type -> category, ids and end time of each category, sorted; every type is there.
        items: (type, category, id) -> what is known of the file.
    """

    CategoryInfo = CategoryInfo

    def __init__(self, log_dir: str | PathLike[str], describe: Callable[[Path], Summary] = summarise) -> None:
        self.logdir, self._describe = os.fspath(log_dir), describe
        self.filepaths: dict[Key, str] = {}
        self.timestamps: dict[str, int] = {}
        self.dir_info: dict[str, list[dict[str, Any]]] = _dir_info({})
        self.items: dict[Key, Item] = {}
        self._sizes: dict[str, int] = {}
        self.check_for_updates()

    def check_for_updates(self) -> bool:
        """Look at the folder again; True if files came, went or changed. Only those that changed are opened."""
        filepaths = self.get_filepaths(self.logdir)
        stats = {path: stat for path in filepaths.values() if (stat := _stat(path))}
        filepaths = {key: path for key, path in filepaths.items() if path in stats}
        timestamps, sizes = ({path: getattr(stat, name) for path, stat in stats.items()} for name in ("st_mtime_ns", "st_size"))
        if (filepaths, timestamps, sizes) == (self.filepaths, self.timestamps, self._sizes):
            return False
        same = {path for path in stats if (timestamps[path], sizes[path]) == (self.timestamps.get(path), self._sizes.get(path))}
        known = {item.path: item for item in self.items.values()}
        self.items = {
            key: known[path] if path in same else _look(path, known.get(path), self._describe) for key, path in filepaths.items()
        }
        self.filepaths, self.timestamps, self._sizes = filepaths, timestamps, sizes
        self.dir_info = _dir_info(self.items)
        return True

    def get_file_path(self, type: str, category: str, id: int) -> str | None:
        """The file of a sample; None, and a line in the log, for one that is not there."""
        path = self.filepaths.get((type, category, int(id)))
        if path is None:
            _log.error("no %s %s of category %r in %s", type, id, category, self.logdir)
        return path

    def read(self, type: str, category: str, id: int, time: float, snap: bool = True, materials: bool = True) -> Snapshot:
        """A sample at an iteration.

        Args:
            type, category, id: which.
            time: the iteration.
            snap: take the nearest iteration that was written, of two the later; else blend the two around as USD does.
            materials: read materials of meshes and their images.

        Raises:
            ConfigError: no such sample.
            SourceError: the file cannot be read, or an image is missing.
        """
        key = (type, category, int(id))
        if key not in self.items:
            raise ConfigError(f"no {type} {id} of category {category!r} in {self.logdir}; there are {sorted(self.items)}")
        return read_snapshot(Path(self.filepaths[key]), key, time, snap, materials)

    @property
    def labels(self) -> dict[int, tuple[str, tuple[float, float, float] | None]]:
        """Id -> name and colour, from 0 to 1, or None; as the log says, nothing where it does not."""
        return read_labels(self.logdir)

    def num_mesh_items(self) -> int:
        """How many files of meshes there are."""
        return self._count_items("mesh")

    def num_pointcloud_items(self) -> int:
        """How many files of point clouds there are."""
        return self._count_items("pointcloud")

    def num_voxelgrid_items(self) -> int:
        """How many files of voxel grids there are."""
        return self._count_items("voxelgrid")

    def num_mesh_categories(self) -> int:
        """How many categories of meshes there are."""
        return len(self.dir_info["mesh"])

    def num_pointcloud_categories(self) -> int:
        """How many categories of point clouds there are."""
        return len(self.dir_info["pointcloud"])

    def num_voxelgrid_categories(self) -> int:
        """How many categories of voxel grids there are."""
        return len(self.dir_info["voxelgrid"])

    def get_category_names_by_type(self, type: str) -> list[str]:
        """The categories of a type, sorted; none of an unknown type."""
        return [info["category"] for info in self.dir_info.get(type, [])]

    def get_category_info(self, type: str, category: str) -> dict[str, Any] | None:
        """Category, ids and end time; None for an unknown one."""
        return next((info for info in self.dir_info.get(type, []) if info["category"] == category), None)

    def _count_items(self, type: str) -> int:
        return sum(key[0] == type for key in self.filepaths)

    @staticmethod
    def get_filepaths(logdir: str | PathLike[str]) -> dict[Key, str]:
        """The files of a log: (type, category, id) -> path. Files of other names are told in the log and left out."""
        found: dict[Key, str] = {}
        for kind in TYPES:
            for path in sorted(Path(logdir).rglob(f"{kind}*.usd")):
                match, place = _NAME.search(path.name), path.relative_to(logdir)
                key = (kind, "" if place.parent == Path() else place.parent.as_posix(), int(match[1])) if match else None
                if key is None or key in found:
                    _log.error("%s left out: %s", path, "no number before .usd" if key is None else f"{found[key]} has its number")
                elif not any(part.startswith(".") for part in place.parts):
                    found[key] = str(path)
        return found

    @staticmethod
    def parse_filepath_info(filepaths: Mapping[Key, str]) -> dict[str, list[dict[str, Any]]]:
        """What ``dir_info`` would be for these files."""
        return _dir_info({key: _look(path, None, summarise) for key, path in filepaths.items()})


def read_snapshot(path: Path, key: Key, time: float, snap: bool = True, materials: bool = True) -> Snapshot:
    """The sample in a file at an iteration; ``TimelapseParser.read`` says of what.

    Raises:
        SourceError: the file cannot be read, or an image is missing.
    """

    def read_once() -> Snapshot:
        taken = _nearest(summarise(path).times, time) if snap else time
        return Snapshot(*key, taken, time, read_item(path, key[0], taken, not snap, materials))

    return _patiently(read_once)


def read_labels(log_dir: str | PathLike[str]) -> dict[int, tuple[str, tuple[float, float, float] | None]]:
    """The names and colours of a log's semantic ids, as ``Timelapse.set_labels`` wrote them; nothing where it did not.

    Raises:
        SourceError: the file is of another form.
    """
    path = Path(log_dir, LABELS_FILE)
    if not path.is_file():
        return {}
    try:
        rows = json.loads(path.read_bytes())["labels"]
        return {int(row["id"]): (_name(row["name"]), _color(row["color"])) for row in rows}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise SourceError("container", f"{path} ({str(error)[:200]})", "labels as Timelapse.set_labels writes them") from error


def _name(given: Any) -> str:
    name = str(given)
    name.encode()  # ValueError for half a character, which no page could show
    return name


def _color(given: Any) -> tuple[float, float, float] | None:
    if not given:
        return None
    red, green, blue = map(float, given)
    if not math.isfinite(red + green + blue):
        raise ValueError(f"the color {given}")
    return red, green, blue


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:  # removed since it was listed
        return None


def _look(path: str, known: Item | None, describe: Callable[[Path], Summary]) -> Item:
    """What is known of a file: as it is, or as it was when it could be read last."""
    try:
        summary: Summary = _patiently(lambda: describe(Path(path)))
    except SourceError as error:
        _log.error("%s", error)
        return Item(path, known.times if known else (), known.attributes if known else (), str(error))
    return Item(path, tuple(summary.times), tuple(summary.attributes))


def _patiently(read: Callable[[], _Result]) -> _Result:
    """Try again after a while what may fail while another process writes."""
    for pause in _PAUSES_S:
        try:
            return read()
        except SourceError:
            clock.sleep(pause)
    return read()


def _nearest(times: list[float], time: float) -> float:
    """The one of sorted times that is nearest, of two the later; the time itself where there are none.

    >>> _nearest([0, 10, 20], 15), _nearest([0, 10], 4), _nearest([], 7)
    (20, 0, 7)
    """
    at = bisect_left(times, time)
    around = times[max(at - 1, 0) : at + 1]
    return min(around, key=lambda other: (abs(other - time), -other), default=time)


def _dir_info(items: Mapping[Key, Item]) -> dict[str, list[dict[str, Any]]]:
    infos: dict[tuple[str, str], CategoryInfo] = {}
    for (kind, category, number), item in sorted(items.items()):
        infos.setdefault((kind, category), CategoryInfo(category)).add_instance(number, item.end_time)
    return {kind: [info.serializable() for key, info in infos.items() if key[0] == kind] for kind in TYPES}
