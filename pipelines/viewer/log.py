"""A log of 3D checkpoints in the viewer: meshes, point clouds and voxel grids at their iterations."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.pipelines.viewer.cut import CORNER, FACE, VERTEX, Attributes, Budget, Part, cut_mesh, cut_points, cut_voxels
from scenemill.pipelines.viewer.legend import Names, legend
from scenemill.pipelines.viewer.materials import cut_materials
from scenemill.pipelines.viewer.reading import READER
from scenemill.pipelines.viewer.scenes import Scene
from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers.timelapse_parser import LABELS_FILE, Item, Key, Snapshot, TimelapseParser, read_labels, read_snapshot
from scenemill.trainers.usd.describe import files_of, up_axis_of
from scenemill.trainers.usd.items import Summary, summarise
from scenemill.trainers.usd.records import MeshData, PointData, VoxelData
from scenemill.transforms.layout import hash_of

SEMANTIC: Final = "semantic id"
"""What the ids of a log are called."""

LIMIT_BYTE: Final = 2 << 30
"""Of a file that is read."""

_PLACES: Final = {"vertex": VERTEX, "varying": VERTEX, "uniform": FACE, "faceVarying": CORNER}
_OUTSIDE: Final = "leads out of the log; the viewer reads nothing there"


class LogRoot:
    """A log, as of the last look at its folder.

    Args:
        name: what it is called.
        path: its folder.
    """

    kind: Final = "log"

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self._inside = path.resolve()
        self._lock = threading.Lock()
        self._parser = TimelapseParser(path, _describe)
        self._labels, self._labels_error = self._read_labels()

    def look(self) -> str:
        """Look at the folder again; the answer is another one whenever anything in it is."""
        with self._lock:
            self._parser.check_for_updates()
            self._labels, self._labels_error = self._read_labels()
            broken = [READER.verdict(Path(file)) for file in self._parser.timestamps]
            return hash_of([self._parser.timestamps, broken, sorted(map(str, self._labels.items())), self._labels_error])

    def describe(self) -> dict[str, Any]:
        """What the log holds, as JSON takes it: items, and the timelines that they name by number."""
        with self._lock:
            timelines: dict[tuple[float, ...], int] = {}
            items = [self._describe(key, item, timelines) for key, item in sorted(self._parser.items.items())]
        return {
            "items": items,
            "timelines": [[int(time) if time == int(time) else time for time in times] for times in timelines],
            "error": self._labels_error,
            "expected": "CATEGORY/mesh_N.usd, pointcloud_N.usd or voxelgrid_N.usd, as scenemill.Timelapse writes them",
        }

    def scene(self, item: str, what: str, time: float, budget: Budget) -> Scene:
        """An item at an iteration.

        Args:
            item: "TYPE/CATEGORY/NUMBER".
            what: of the item; a log has "" alone.
            time: the nearest that there is counts.
            budget: what to draw of it.

        Raises:
            ConfigError: no such item.
            SourceError: it cannot be read, or would lead out of the log.
        """
        with self._lock:
            key = self._key(item)
            if what:
                raise ConfigError(f"{item}: nothing called {what!r}; leave that out")
            path, names = Path(self._parser.filepaths[key]), self._labels
        self._check(path)
        return READER.ask(read_scene, path, key, time, names, budget)

    def stamp(self, item: str) -> str:
        """Changes whenever the file of an item does."""
        with self._lock:
            path = self._parser.filepaths[self._key(item)]
            return f"{self._parser.timestamps[path]}"

    def _key(self, item: str) -> Key:
        kind, _, rest = item.partition("/")
        category, _, number = rest.rpartition("/")
        key = (kind, category, int(number)) if number.isascii() and number.isdigit() else None
        if key is None or key not in self._parser.items:
            raise ConfigError(f"no item {item[:200]!r}; it was removed, or never was")
        return key

    def _describe(self, key: Key, item: Item, timelines: dict[tuple[float, ...], int]) -> dict[str, Any]:
        kind, category, number = key
        leaves = not Path(item.path).resolve().is_relative_to(self._inside)
        return {
            "item": f"{kind}/{category}/{number}",
            "type": kind,
            "category": category,
            "id": number,
            "timeline": timelines.setdefault(() if leaves else item.times, len(timelines)),
            "attributes": [] if leaves else list(item.attributes),
            "stamp": f"{self._parser.timestamps[item.path]}",
            "error": _OUTSIDE if leaves else item.error or READER.verdict(Path(item.path)),
        }

    def _check(self, path: Path) -> None:
        """Refuse a file that is too large, or that is made of anything outside the log."""
        if not path.resolve().is_relative_to(self._inside):
            raise SourceError("path", f"a file that {_OUTSIDE}", "files of the log")
        size_byte = path.stat().st_size
        if size_byte > LIMIT_BYTE:
            raise SourceError("size", f"a file of {size_byte:,} bytes", f"at most {LIMIT_BYTE:,}")
        for file in READER.ask(files_of, path):
            if not Path(file).is_relative_to(self._inside):
                raise SourceError("path", f"a file that names another, {Path(file).name!r}, which {_OUTSIDE}", "files of the log")

    def _read_labels(self) -> tuple[Names, str]:
        if not (self.path / LABELS_FILE).resolve().is_relative_to(self._inside):
            return {}, f"{LABELS_FILE} {_OUTSIDE}"
        try:
            found = read_labels(self.path)
        except SourceError as error:
            return {}, str(error)
        return {id: (name, color and _to_byte(color)) for id, (name, color) in found.items()}, ""


def _to_byte(color: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (round(255 * min(max(part, 0.0), 1.0)) for part in color)
    return red, green, blue


def _describe(path: Path) -> Summary:
    return READER.ask(summarise, path)


def read_scene(path: Path, key: Key, time: float, names: Names, budget: Budget, ids: str = SEMANTIC) -> Scene:
    """A file as a scene; without materials where these cannot be read. Called in the process that reads.

    Args:
        path: of the file.
        key: what to read of it, and the sample that it is.
        time: the nearest that there is counts.
        names: of the ids.
        budget: for each prim.
        ids: what the ids are called.

    Raises:
        SourceError: it cannot be read, or its arrays do not fit together.
    """
    notes: tuple[str, ...] = ()
    try:
        snapshot = read_snapshot(path, key, time)
    except SourceError as error:
        if key[0] != "mesh":
            raise
        snapshot, notes = read_snapshot(path, key, time, materials=False), (f"without materials: {error}",)
    return replace(make_scene(snapshot, names, budget, ids), up=up_axis_of(path), notes=notes)


def make_scene(snapshot: Snapshot, names: Names, budget: Budget, ids: str = SEMANTIC) -> Scene:
    """The prims of a file as a scene, with a legend of their ids.

    Args:
        snapshot: what was read.
        names: of the ids.
        budget: for each prim.
        ids: what the ids are called.

    Raises:
        SourceError: arrays that do not fit together.
    """
    parts = tuple(_cut(prim, budget, ids) for prim in snapshot.prims)
    found = [prim.semantic_ids for prim in snapshot.prims if prim.semantic_ids is not None]
    legends = {ids: legend(np.concatenate(found), names)} if found else {}
    return Scene(parts, legends, time=snapshot.time, requested=snapshot.requested)


def _cut(prim: MeshData | PointData | VoxelData, budget: Budget, ids: str) -> Part:
    if isinstance(prim, MeshData):
        part = _cut_mesh(prim, budget, ids)
    elif isinstance(prim, PointData):
        values = {"colors": _to_colors(prim.colors), f"ids.{ids}": prim.semantic_ids, "widths": prim.widths}
        part = cut_points(prim.points, prim.transform, budget.points, **values)
    else:
        values = {"colors": _to_colors(prim.colors), f"ids.{ids}": prim.semantic_ids}
        part = cut_voxels(prim.voxels, prim.transform, budget.voxels, **values)
    return replace(part, path=prim.path)


def _cut_mesh(mesh: MeshData, budget: Budget, ids: str) -> Part:
    materials, images, notes = cut_materials(mesh.materials)
    attributes = {
        **_uvs(mesh),
        **_placed(mesh, "normals", mesh.normals, mesh.normals_at),
        **_placed(mesh, "colors", _to_colors(mesh.colors), mesh.colors_at),
        **_placed(mesh, f"ids.{ids}", mesh.semantic_ids, mesh.semantic_ids_at),
    }
    part = cut_mesh(mesh.vertices, mesh.counts, mesh.indices, attributes, mesh.transform, budget.triangles)
    return replace(part, arrays={**part.arrays, **images}, materials=materials, notes=(*part.notes, *notes))


def _placed(mesh: MeshData, name: str, values: NDArray[Any] | None, place: str) -> Attributes:
    """An attribute as ``cut_mesh`` takes it; one for all becomes one for each vertex. Nothing where the number does not fit."""
    if values is None or not len(values):
        return {}
    if place == "constant":
        return {name: (np.repeat(values[:1], len(mesh.vertices), axis=0), VERTEX)}
    sizes = {VERTEX: len(mesh.vertices), FACE: len(mesh.counts), CORNER: len(mesh.indices)}
    where = _PLACES.get(place, "")
    return {name: (values, where)} if len(values) == sizes.get(where) else {}


def _uvs(mesh: MeshData) -> Attributes:
    if mesh.uvs is None or mesh.uv_indices is None or len(mesh.uv_indices) != len(mesh.indices) or not len(mesh.uvs):
        return {}
    if len(mesh.uvs) == len(mesh.vertices) and np.array_equal(mesh.uv_indices, mesh.indices):
        return {"uvs": (mesh.uvs, VERTEX)}
    within = mesh.uv_indices.min(initial=0) >= 0 and mesh.uv_indices.max(initial=0) < len(mesh.uvs)
    return {"uvs": (mesh.uvs[mesh.uv_indices], CORNER)} if within else {}


def _to_colors(colors: NDArray[np.float32] | None) -> NDArray[np.uint8] | None:
    """Colours as bytes; opacity is dropped where all is opaque."""
    if colors is None:
        return None
    pixels: NDArray[np.uint8] = (np.nan_to_num(colors).clip(0, 1) * 255).round().astype(np.uint8)
    return pixels[:, :3] if pixels.shape[1] == 4 and (pixels[:, 3] == 255).all() else pixels
