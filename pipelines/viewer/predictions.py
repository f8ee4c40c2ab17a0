"""Predictions in the viewer: a folder of ``SCENE_IMAGE`` folders, as ``inference`` and ``evaluate`` write them."""

import io
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scenemill.pipelines.predictions import Prediction, class_volume, classes_of, folder_of, read_prediction
from scenemill.pipelines.viewer import planes
from scenemill.pipelines.viewer.cut import Budget, cut_voxels
from scenemill.pipelines.viewer.legend import Names, class_names, legend, segment_names, voxel_names
from scenemill.pipelines.viewer.log import read_scene
from scenemill.pipelines.viewer.reading import READER
from scenemill.pipelines.viewer.scenes import Plane, Scene
from scenemill.pipelines.viewer.store import CLASS, PAGE, StoreRoot, centre_of, voxel_frame
from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.schemas.fields import fields_of
from scenemill.trainers.usd.describe import files_of
from scenemill.transforms import folders
from scenemill.transforms.geometry import GRIDS
from scenemill.transforms.layout import hash_of

SEGMENT: Final = "segment"
"""What the ids of instances in a prediction are called."""

TABLE: Final = "segments.json"
"""The file that makes a folder a prediction."""

_MESH: Final = "mesh_0.usd"
_VIEW: Final = "view.png"
_LIMIT_BYTE: Final = 1 << 28
_PIXELS: Final = 1 << 26
_HELD: Final = 3  # predictions in memory, 300 MB each at most
_TRUNCATION: Final = 3.0  # voxels, of predicted distances
_SOURCE: Final = "front3d"  # whose placing of the camera is taken; Matterport3D's differs by less than a voxel
_UNPLACED: Final = "around the middle of its space: neither a store nor the prediction says where the camera was"

_PICTURES: Final = {
    "classes": "classes of the segments",
    "segments": "segments",
    "depth": "depth (m)",
}
_VOLUMES: Final = {
    "distance": "distance to the nearest surface (voxel)",
    "classes_3d": "classes of the voxels' segments",
    "segments_3d": "segments of the voxels",
}


class PredictionsRoot:
    """A folder of predictions, as of the last look.

    Args:
        name: what it is called.
        path: the folder.

    Attributes:
        stores: where the cameras of the samples are looked up.
    """

    kind: Final = "predictions"

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.stores: tuple[StoreRoot, ...] = ()
        self._inside = path.resolve()
        self._lock = threading.Lock()
        self._stamps: dict[str, int] = {}
        self._read: OrderedDict[tuple[str, int], Prediction] = OrderedDict()
        self.look()

    def look(self) -> str:
        """Look at the folder again; the answer is another one whenever a prediction came, went or changed."""
        stamps = dict(sorted(find_predictions(self.path)))
        with self._lock:
            self._stamps = stamps
        return hash_of(stamps)

    def describe(self) -> dict[str, Any]:
        """What the folder holds, as JSON takes it."""
        return {"samples": len(self._stamps), "expected": f"SCENE_IMAGE/{TABLE}, as scenemill inference writes it"}

    def samples(self, find: str, split: str, start: int) -> dict[str, Any]:
        """A page of the predictions whose folders' names hold a text; predictions know no splits."""
        found = [] if split else [name for name in self._stamps if find.lower() in name.lower()]
        rows = [{"key": name, "split": "", "warnings": 0} for name in found[start : start + PAGE]]
        return {"total": len(found), "start": start, "rows": rows}

    def holds(self, key: str) -> bool:
        """Whether there is a prediction of a sample."""
        return folder_of(key) in self._stamps

    def sample(self, key: str) -> dict[str, Any]:
        """What is known of a prediction and what of it can be shown, as JSON takes it.

        Raises:
            ConfigError: no such prediction.
            SourceError: it cannot be read.
        """
        prediction = self._prediction(key)
        folder = self.path / self._folder(key)
        facts = [["segments", f"{len(prediction.classes_2d)} in the image"]]
        if prediction.classes_3d is not None:
            facts.append(["in the volume", f"{len(prediction.classes_3d)} segments"])
        scenes = [("surface", "surface as written")] if (folder / _MESH).is_file() else []
        shows = [{"kind": "scene", "what": what, "title": title} for what, title in scenes]
        if prediction.panoptic_3d is not None:
            shows.append({"kind": "scene", "what": "voxels", "title": "voxels of segments"})
        return {"facts": facts, "findings": [], "shows": [*shows, *_planes_of(prediction, folder)]}

    def stamp(self, item: str) -> str:
        """Changes whenever a prediction does."""
        return f"{self._stamps.get(folder_of(item), '')}"

    def plane(self, item: str, what: str, axis: str, index: int) -> Plane:
        """A map of a prediction, or a plane of one of its volumes.

        Raises:
            ConfigError: no such prediction, map or plane.
            SourceError: it cannot be read.
        """
        if what == "view":
            return self._view(item)
        prediction = self._prediction(item)
        if what in _PICTURES:
            return _picture(prediction, what)
        if what not in _VOLUMES or prediction.panoptic_3d is None:
            raise ConfigError(f"{item}: no picture or volume {what[:64]!r}")
        return _plane(prediction, what, axis, index)

    def scene(self, item: str, what: str, time: float, budget: Budget) -> Scene:
        """A prediction in space: "surface", the mesh as it was written, or "voxels". It has no iterations.

        Raises:
            ConfigError: no such prediction, or not that of it.
            SourceError: it cannot be read.
        """
        if what == "surface":
            return self._surface(item, budget)
        prediction = self._prediction(item)
        if what != "voxels" or prediction.panoptic_3d is None:
            raise ConfigError(f"{item}: no scene {what[:64]!r}")
        voxels = np.argwhere(prediction.panoptic_3d > 0)
        place = tuple(voxels.T)
        labels, segments = class_volume(prediction)[place].astype(np.int32), prediction.panoptic_3d[place].astype(np.int32)
        ids = {f"ids.{CLASS}": labels, f"ids.{SEGMENT}": segments}
        grid = len(prediction.panoptic_3d)
        centre = self._centre(item, prediction, grid)
        middle = np.full(3, (grid - 1) / 2)
        part = cut_voxels(voxels, voxel_frame(middle if centre is None else centre, grid), budget.voxels, **ids)
        legends = {CLASS: legend(labels, class_names()), SEGMENT: legend(segments, segment_names(prediction.classes_3d or {}))}
        return Scene((part,), legends, unit="m", notes=(_UNPLACED,) if centre is None else ())

    def _surface(self, item: str, budget: Budget) -> Scene:
        path = self.path / self._folder(item) / _MESH
        if not path.is_file():
            raise ConfigError(f"{item}: no {_MESH}")
        if path.stat().st_size > _LIMIT_BYTE:
            raise SourceError("size", f"{_MESH} of {path.stat().st_size:,} bytes", f"at most {_LIMIT_BYTE:,}")
        if any(not Path(file).is_relative_to(self._inside) for file in READER.ask(files_of, path)):
            raise SourceError("path", "a mesh that names a file outside the predictions", "files inside")
        return replace(READER.ask(read_scene, path, ("mesh", "", 0), 0, class_names(), budget, CLASS), unit="m")

    def _view(self, item: str) -> Plane:
        data = folders.read_file(self.path, f"{self._folder(item)}/{_VIEW}", _LIMIT_BYTE)
        try:
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                if image.width * image.height > _PIXELS:
                    raise SourceError("size", f"{image.width} x {image.height} pixels", f"at most {_PIXELS:,}")
                return planes.colors_plane(np.asarray(image.convert("RGB")), "picture of the prediction")
        except (OSError, ValueError, SyntaxError) as error:
            raise error if isinstance(error, SourceError) else SourceError("container", f"{_VIEW} ({error})", "a PNG") from error

    def _folder(self, key: str) -> str:
        folder = folder_of(key)
        if folder not in self._stamps:
            raise ConfigError(f"no prediction {folder[:200]!r}; it was removed, or never was")
        return folder

    def _prediction(self, key: str) -> Prediction:
        """A prediction, from memory where it is unchanged."""
        folder = self._folder(key)
        stamp = (folder, self._stamps[folder])
        with self._lock:
            if stamp not in self._read:
                self._read[stamp] = _read_any_grid(self.path, folder)
            self._read.move_to_end(stamp)
            while len(self._read) > _HELD:
                self._read.popitem(last=False)
            return self._read[stamp]

    def _centre(self, key: str, prediction: Prediction, grid: int) -> NDArray[np.float64] | None:
        """(3,): where the camera is, as an index of a grid: by a store that has the sample, else by the prediction; None by neither."""
        for store in self.stores:
            found = store.key_of(self._folder(key))
            if store.holds(found):
                return store.centre(found, grid)
        table = json.loads(folders.read_file(self.path, f"{self._folder(key)}/{TABLE}", _LIMIT_BYTE))
        height, width = prediction.panoptic_2d.shape
        return _centre_of_table(table.get("intrinsic", []), (width, height), grid)


def _centre_of_table(given: Any, size: tuple[int, int], grid: int) -> NDArray[np.float64] | None:
    """As ``centre_of``, of the matrix that a table holds, which may be anything; None where it is none of a camera."""
    try:
        matrix = np.array(given)
        if matrix.shape != (4, 4) or matrix.dtype.kind not in "if" or not matrix.diagonal()[:2].all():
            return None
        return centre_of(_SOURCE, matrix.astype(np.float64), size, grid)
    except (SourceError, ValueError):  # the latter of lists of several lengths
        return None


def find_predictions(path: Path) -> Iterator[tuple[str, int]]:
    """The folders in a folder that are predictions, and when their tables changed last, in nanoseconds; none that a link leads out to."""
    if not path.is_dir():
        return
    inside = path.resolve()
    with os.scandir(path) as entries:
        for entry in entries:
            table = Path(entry.path, TABLE)
            if not entry.is_dir() or not table.is_file():
                continue
            linked = entry.is_symlink() or table.is_symlink()
            if not linked or table.resolve().is_relative_to(inside):
                yield entry.name, table.stat().st_mtime_ns


def _read_any_grid(root: Path, folder: str) -> Prediction:
    """A prediction of whatever grid.

    Raises:
        SourceError: it cannot be read.
    """
    wrong: SourceError | None = None
    for grid in GRIDS:
        try:
            return read_prediction(root, folder, grid)
        except SourceError as error:
            wrong = wrong or error
            if error.check != "shape":
                break
    assert wrong is not None
    raise wrong


def _planes_of(prediction: Prediction, folder: Path) -> Iterator[Mapping[str, Any]]:
    pictures = {**_PICTURES, **({"view": "picture of the prediction"} if (folder / _VIEW).is_file() else {})}
    yield from ({"kind": "picture", "what": what, "title": title} for what, title in pictures.items())
    if prediction.panoptic_3d is not None:
        size = len(prediction.panoptic_3d)
        yield from ({"kind": "volume", "what": what, "title": title, "size": size} for what, title in _VOLUMES.items())


def _picture(prediction: Prediction, what: str) -> Plane:
    title = _PICTURES[what]
    if what == "depth":
        return planes.depth_plane(prediction.depth, title, "m")
    if what == "segments":
        return planes.ids_plane(prediction.panoptic_2d, title, SEGMENT, segment_names(prediction.classes_2d))
    return planes.ids_plane(classes_of(prediction.panoptic_2d, prediction.classes_2d), title, CLASS, class_names())


def _plane(prediction: Prediction, what: str, axis: str, index: int) -> Plane:
    assert prediction.panoptic_3d is not None and prediction.distance is not None
    grid, title = len(prediction.panoptic_3d), _VOLUMES[what]
    planes.box_of(axis, index, grid)
    place = planes.place_of(axis, index, grid)
    if what == "distance":
        field = next(one for one in fields_of(_SOURCE) if one.name == "geometry")
        values = np.abs(planes.cut(prediction.distance, axis, index))
        return planes.distance_plane(values, title, replace(field, fill=_TRUNCATION), **place)
    segments, classes = planes.cut(prediction.panoptic_3d, axis, index), prediction.classes_3d or {}
    names: Names = segment_names(classes)
    if what == "segments_3d":
        return planes.ids_plane(segments, title, SEGMENT, voxel_names(names), **place)
    return planes.ids_plane(classes_of(segments, classes), title, CLASS, voxel_names(class_names()), **place)
