"""A store in the viewer: its samples as pictures, planes of volumes and scenes, and what was found wrong with them."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scenemill.pipelines.predictions import folder_of
from scenemill.pipelines.reports.sheet import KNOWN
from scenemill.pipelines.viewer import planes
from scenemill.pipelines.viewer.cut import VERTEX, Budget, cut_mesh, cut_points, cut_voxels
from scenemill.pipelines.viewer.legend import Names, class_names, legend, voxel_names
from scenemill.pipelines.viewer.scenes import Plane, Scene
from scenemill.schemas.errors import ConfigError, SceneMillError, SourceError, TransientError
from scenemill.schemas.fields import Field
from scenemill.schemas.labels import Label
from scenemill.schemas.places import Place, Status
from scenemill.transforms.geometry import back_project, camera_index, voxel_size_m
from scenemill.transforms.layout import ROOT
from scenemill.transforms.meshes import panoptic_mesh, upright
from scenemill.transforms.store import Store, open_store

CLASS: Final = "class"
INSTANCE: Final = "instance"
"""What the ids of a store are called."""

PAGE: Final = 100
"""Rows of a table in one answer."""

_SURFACE_VOXEL: Final = 1.0  # labels lie where the distance is below 1
_UPRIGHT: Final = np.diag([1.0, -1.0, -1.0, 1.0])  # from X right, Y down, Z forward to X right, Y up, Z towards the viewer
_SCENES: Final = {
    "surface": ("surface of the volume", ("geometry", "semantic_3d", "instance_3d")),
    "voxels": ("labelled voxels", ("semantic_3d", "instance_3d")),
    "points": ("points of the depth map", ("depth", "rgb", "semantic_2d", "instance_2d")),
}
_INSTANCES: Final[Names] = {0: ("none", None)}


class StoreRoot:
    """A store, in the version that was the newest at the last look.

    Args:
        name: what it is called.
        path: its folder, on a disk or in an object store.
    """

    kind: Final = "store"

    def __init__(self, name: str, path: Place) -> None:
        self.name, self.path = name, path
        self._lock = threading.Lock()
        self._stamp, self._error = "", ""
        self._store = _open_whole(path)
        self._folders: tuple[Store | None, dict[str, str]] = (None, {})
        self.look()

    def look(self) -> str:
        """Look for another version; the answer is another one where there is one. Of one that cannot be opened it is told why."""
        with self._lock:
            try:
                stamp = _stamp_of(self.path / ROOT)
                if stamp != self._stamp:
                    self._stamp = stamp
                    self._store, self._error = _open_whole(self.path), ""
            except SceneMillError as error:
                self._stamp = "" if isinstance(error, TransientError) else self._stamp  # tried again at the next look
                self._error = str(error)
            return f"{self._store.version} {self._error}"

    @property
    def store(self) -> Store:
        """The version that is shown."""
        return self._store

    def describe(self) -> dict[str, Any]:
        """What the store holds, as JSON takes it."""
        store = self._store
        splits = pc.value_counts(pc.list_flatten(store.samples["splits"])).to_pylist()
        severities = pc.value_counts(store.findings["severity"]).to_pylist()
        return {
            "version": store.version,
            "source": store.layout.source,
            "grid": store.layout.grid,
            "samples": len(store),
            "rejected": store.manifest["rejected"],
            "splits": {row["values"]: row["counts"] for row in splits},
            "findings": {row["values"]: row["counts"] for row in severities},
            "error": self._error,
        }

    def samples(self, find: str, split: str, start: int) -> dict[str, Any]:
        """A page of the samples whose keys hold a text, of a split or all: key, split, warnings."""
        rows = self._store.samples.select(["key", "split", "splits", "warnings"])
        rows = rows.filter(pc.match_substring(rows["key"], find, ignore_case=True)) if find else rows
        if split:
            among = pa.array([split in names for names in rows["splits"].to_pylist()], pa.bool_())
            rows = rows.filter(among)
        return {"total": rows.num_rows, "start": start, "rows": rows.drop(["splits"]).slice(start, PAGE).to_pylist()}

    def findings(self, find: str, severity: str, start: int) -> dict[str, Any]:
        """A page of the findings whose sample, check or field holds a text; of a severity, or all."""
        rows = self._store.findings
        if severity:
            rows = rows.filter(pc.equal(rows["severity"], severity))
        if find:
            within = [pc.match_substring(rows[column], find, ignore_case=True) for column in ("key", "check", "field")]
            rows = rows.filter(pc.or_(within[0], pc.or_(within[1], within[2])))
        found = rows.drop(["digest"]).slice(start, PAGE).to_pylist()
        return {"total": rows.num_rows, "start": start, "rows": [{**row, "stored": row["key"] in self._store} for row in found]}

    def holds(self, key: str) -> bool:
        """Whether there is such a sample."""
        return key in self._store

    def key_of(self, folder: str) -> str:
        """The sample whose prediction a folder holds; the folder's own name where there is none."""
        with self._lock:
            if self._folders[0] is not self._store:
                self._folders = (self._store, {folder_of(key): key for key in self._store.keys})
            return self._folders[1].get(folder, folder)

    def sample(self, key: str) -> dict[str, Any]:
        """What is known of a sample and what of it can be shown, as JSON takes it.

        Raises:
            ConfigError: no such sample.
        """
        facts = self._store.facts(key)
        found = self._store.findings
        rows = found.filter(pc.equal(found["key"], key)).drop(["digest", "key"]).to_pylist()
        fields = [field for field in self._store.layout.fields if field.name in facts["fields"]]
        unit = "m" if self._store.layout.own_fields else "units of the scene"
        return {"facts": _facts(facts, unit), "findings": rows, "shows": list(_shows(fields, self._store.layout.grid))}

    def stamp(self, item: str) -> str:
        """Changes whenever a sample may have."""
        return f"{self._store.version} {item}"

    def plane(self, item: str, what: str, axis: str, index: int) -> Plane:
        """A field of a sample that is a picture, or a plane of one that is a volume.

        Raises:
            ConfigError: no such sample, field or plane.
            Corrupt: the store is damaged there.
        """
        field = next((one for one in self._store.layout.fields if one.name == what), None)
        if field is None or not (field.is_volume or _is_picture(field)):
            raise ConfigError(f"{item}: no picture or volume {what[:64]!r}")
        if not field.is_volume:
            return _paint(self._store.read(item, [what])[what], field, self._store.layout.labels)
        grid = self._store.layout.grid
        thin = self._store.read(item, [what], box=planes.box_of(axis, index, grid))[what]
        return _paint(planes.cut(thin, axis, 0), field, self._store.layout.labels, **planes.place_of(axis, index, grid))

    def scene(self, item: str, what: str, time: float, budget: Budget) -> Scene:
        """A sample in space: "surface", "voxels" or "points". It has no iterations; ``time`` is said again.

        Raises:
            ConfigError: no such sample, or not that of it.
            Corrupt: the store is damaged there.
        """
        if what not in _SCENES:
            raise ConfigError(f"{item}: no scene {what[:64]!r}; there are {', '.join(_SCENES)}")
        sample = self._store.read(item, [*_SCENES[what][1], "intrinsics"])
        make = {"surface": surface_scene, "voxels": voxels_scene, "points": points_scene}[what]
        return make(sample.arrays, self.centre(item, self._store.layout.grid), budget, self._store.layout.labels)

    def centre(self, key: str, grid: int) -> NDArray[np.float64]:
        """(3,): where the camera of a sample is, as an index of a grid of its space.

        Raises:
            ConfigError: no such sample.
            SourceError: its matrix is one that no camera has.
            Corrupt: the store is damaged there.
        """
        facts = self._store.facts(key)
        size = facts["image_width_pixel"], facts["image_height_pixel"]
        return centre_of(self._store.layout.source, self._store.read(key, ["intrinsics"])["intrinsics"], size, grid)


def centre_of(source: str, intrinsics: NDArray[np.float64], size: tuple[int, int], grid: int) -> NDArray[np.float64]:
    """(3,): where a camera is, as an index of a grid; of a matrix that is not known to be a camera's.

    Args:
        source, intrinsics, size, grid: as of ``camera_index``.

    Raises:
        SourceError: the matrix is one that no camera has.
    """
    try:
        with np.errstate(all="ignore"):
            centre = camera_index(source, intrinsics, size, grid)
    except np.linalg.LinAlgError:
        centre = np.full(3, np.nan)
    if not np.isfinite(centre).all():
        raise SourceError("intrinsics", "a matrix that no camera has", "focal lengths above 0")
    return centre


def _stamp_of(path: Place) -> str:
    """Another one whenever the file is replaced, whatever the clock says; "gone" where there is none."""
    try:
        status = path.stat()
    except OSError:
        return "gone"
    if isinstance(status, Status):
        return f"{status.tag} {status.st_size} {status.modified}"
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _open_whole(path: Place) -> Store:
    """The newest version with its tables read: what is shown then stays, whatever becomes of their files."""
    store = open_store(path)
    _ = store.keys, store.findings
    return store


def surface_scene(arrays: Mapping[str, NDArray[Any]], centre: NDArray[np.float64], budget: Budget, known: Sequence[Label]) -> Scene:
    """Where the distance is one voxel, on both sides of every surface; upright in the camera's frame, metres."""
    instances = arrays["instance_3d"].astype(np.int32)
    labels = arrays["semantic_3d"].astype(np.int32)
    size = voxel_size_m(len(labels))
    joined = labels * (int(instances.max(initial=0)) + 1) + instances  # tells apart what differs in class or instance
    mesh = upright(panoptic_mesh(arrays["geometry"], joined, {}, iso=_SURFACE_VOXEL, voxel_m=size, centre=centre))
    found, instance = np.divmod(mesh.segments, int(instances.max(initial=0)) + 1)
    counts = np.full(len(mesh.faces), 3)
    attributes = {f"ids.{CLASS}": (found, VERTEX), f"ids.{INSTANCE}": (instance, VERTEX)}
    part = cut_mesh(mesh.vertices, counts, mesh.faces.reshape(-1), attributes, np.eye(4), budget.triangles)
    return Scene((part,), _legends(found, instance, known), unit="m")


def voxels_scene(arrays: Mapping[str, NDArray[Any]], centre: NDArray[np.float64], budget: Budget, known: Sequence[Label]) -> Scene:
    """The voxels that have a class; upright in the camera's frame, metres."""
    voxels = np.argwhere(arrays["semantic_3d"])
    place = tuple(voxels.T)
    labels, instances = (arrays[name][place].astype(np.int32) for name in ("semantic_3d", "instance_3d"))
    matrix = voxel_frame(centre, arrays["semantic_3d"].shape[0])
    part = cut_voxels(voxels, matrix, budget.voxels, **{f"ids.{CLASS}": labels, f"ids.{INSTANCE}": instances})
    return Scene((part,), _legends(labels, instances, known), unit="m")


def voxel_frame(centre: NDArray[np.float64], grid: int) -> NDArray[np.float64]:
    """(4, 4): the camera's frame, upright, metres, from indices of a grid."""
    size = voxel_size_m(grid)
    placed = np.diag([size, size, size, 1.0])
    placed[:3, 3] = -centre * size
    return _UPRIGHT @ placed


def points_scene(arrays: Mapping[str, NDArray[Any]], centre: NDArray[np.float64], budget: Budget, known: Sequence[Label]) -> Scene:
    """The point that each pixel of known depth sees; upright in the camera's frame, metres."""
    grid = 256  # any: metres come out
    size = voxel_size_m(grid)
    indices = back_project(arrays["depth"], arrays["intrinsics"], np.zeros(3), grid)
    seen = np.isfinite(arrays["depth"]) & (arrays["depth"] > 0)
    points = indices[:, seen].T * size
    labels, instances = (arrays[name][seen].astype(np.int32) for name in ("semantic_2d", "instance_2d"))
    ids = {f"ids.{CLASS}": labels, f"ids.{INSTANCE}": instances}
    part = cut_points(points, _UPRIGHT, budget.points, colors=arrays["rgb"][seen], **ids)
    return Scene((part,), _legends(labels, instances, known), unit="m")


def _legends(labels: NDArray[Any], instances: NDArray[Any], known: Sequence[Label]) -> dict[str, list[dict[str, Any]]]:
    return {CLASS: legend(labels, class_names(known)), INSTANCE: legend(instances, _INSTANCES)}


def _paint(values: NDArray[Any], field: Field, known: Sequence[Label], **place: Any) -> Plane:
    title = f"{field.name} ({field.unit})" if field.unit else field.name
    if field.name == "rgb":
        return planes.colors_plane(values, title)
    if field.name == "depth":
        return planes.depth_plane(values, title, field.unit)
    if field.name == "geometry":
        return planes.distance_plane(values, title, field, **place)
    if field.name == "weighting":
        return planes.weight_plane(values, title, **place)
    if field.name == "normals":
        return planes.colors_plane(values, title)
    if field.name in ("outside", "room_mask"):
        return planes.mask_plane(values, title, **place)
    if field.name in ("semantic", "instance"):  # of an object, whose labels have no names
        return planes.ids_plane(values, title, field.name, _INSTANCES)
    if field.name not in KNOWN:
        return _paint_own(values, field, title, **place)
    called = {"semantic": CLASS, "instance": INSTANCE}.get(field.name.removesuffix("_2d").removesuffix("_3d"), field.name)
    names: Names = class_names(known) if called == CLASS else _INSTANCES
    return planes.ids_plane(values, title, called, voxel_names(names) if field.is_volume else names, **place)


def _paint_own(values: NDArray[Any], field: Field, title: str, **place: Any) -> Plane:
    """A field that only a source of one's own has: colours, a mask, or numbers."""
    if values.ndim == 3:
        return planes.colors_plane(values, title)
    return (
        planes.mask_plane(values, title, **place)
        if field.dtype == "bool"
        else planes.value_plane(values, title, field.unit, **place)
    )


def _shows(fields: list[Field], grid: int) -> Any:
    """What of a sample can be shown: kind, name, title; of volumes also the number of planes."""
    names = {field.name for field in fields}
    for what, (title, needed) in _SCENES.items():
        if names.issuperset({*needed, "intrinsics"}):
            yield {"kind": "scene", "what": what, "title": title}
    for field in fields:
        title = f"{field.name}: {field.meaning}"
        if field.is_volume:
            yield {"kind": "volume", "what": field.name, "title": title, "size": grid}
        elif _is_picture(field):
            yield {"kind": "picture", "what": field.name, "title": title}


def _is_picture(field: Field) -> bool:
    return field.axes == ("row", "column") or (field.axes == ("row", "column", "channel") and field.dtype == "uint8")


def _facts(facts: Mapping[str, Any], unit: str) -> list[list[str]]:
    """Rows of name and value for the eye."""
    if not facts["grid"]:
        return _facts_of_view(facts, unit)
    return [
        ["split", facts["split"] or "unknown"],
        ["image", f"{facts['image_width_pixel']} x {facts['image_height_pixel']} pixels"],
        ["depth", f"{facts['depth_min_m']:.2f} to {facts['depth_max_m']:.2f} m, {facts['depth_valid_share']:.1%} valid"],
        ["things", f"{facts['things_2d']} in the image, {facts['things_3d']} in the volume"],
        ["voxels", f"{facts['voxels_labelled']:,} labelled of {facts['voxels_occupied']:,} occupied"],
        ["depth on surface", f"{facts['depth_on_surface_share']:.1%}"],
        ["labels agree", f"{facts['labels_agree_share']:.1%}"],
    ]


def _facts_of_view(facts: Mapping[str, Any], unit: str) -> list[list[str]]:
    """The same of a view without volumes; its depth in a unit."""
    depth = f"{facts['depth_min_m']:.3g} to {facts['depth_max_m']:.3g} {unit}, {facts['depth_valid_share']:.1%} of pixels"
    return [
        ["split", facts["split"]],
        ["image", f"{facts['image_width_pixel']} x {facts['image_height_pixel']} pixels"],
        ["depth", depth if "depth" in facts["fields"] else "none"],
        ["labels", ", ".join(map(str, facts["classes_2d"])) or "none"],
    ]
