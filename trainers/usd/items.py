"""One sample of a log in its file: written at one iteration, described, and read at one iteration.

Source: the layout of the Timelapse specification, which is that of Kaolin's ``visualize.timelapse``, Apache 2.0.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from scenemill.schemas.errors import SourceError
from scenemill.trainers.usd.appending import appending
from scenemill.trainers.usd.authoring import Author
from scenemill.trainers.usd.material_io import materials_of
from scenemill.trainers.usd.meshes import ST
from scenemill.trainers.usd.primvars import COLOR, SEMANTIC_ID
from scenemill.trainers.usd.reading import is_pointcloud, is_voxelgrid, read_mesh, read_pointcloud, read_voxelgrid
from scenemill.trainers.usd.records import MeshData, PointData, VoxelData
from scenemill.trainers.usd.stages import ALONE, all_prims, open_grown, open_stage, reading

ATTRIBUTES: Final = {
    COLOR: "colors",
    SEMANTIC_ID: "semantic_ids",
    ST: "uvs",
    "normals": "normals",
    "material:binding": "materials",
}
"""Property of a prim -> what it tells of it."""

_IS_KIND: Final[dict[str, Callable[[Any], bool]]] = {
    "mesh": lambda prim: str(prim.GetTypeName()) == "Mesh",
    "pointcloud": is_pointcloud,
    "voxelgrid": is_voxelgrid,
}


class Summary(NamedTuple):
    """What a file holds: all times of samples, sorted, and which of ``ATTRIBUTES`` any of its prims has."""

    times: list[float]
    attributes: list[str]


@contextmanager
def writing(path: Path, iteration: float, up_axis: str, meters_per_unit: float | None, fps: float | None) -> Iterator[Author]:
    """Write a sample at an iteration into its file; what is written counts when the block ends without an error.

    Args:
        path: ``<folder>/<name>.usd``; the sample's prim is ``/<name>``.
        iteration: the time.
        up_axis: "Y" or "Z", of a new file; one that is there keeps its own.
        meters_per_unit: of a file that does not say; None for a hundredth, which USD takes it for.
        fps: iterations a second when played; None for what USD assumes.

    Raises:
        SourceError: a file is there that is no USD file, or a damaged one.
    """
    with ALONE, appending(path) as layer:
        root, author = layer.pseudoRoot, Author(layer, iteration, strict=True)
        for name, value in (("upAxis", up_axis), ("metersPerUnit", meters_per_unit or 0.01)):
            if not root.HasInfo(name):
                root.SetInfo(name, value)
        if fps is not None:
            layer.timeCodesPerSecond = fps
        author.prim("/World", "Xform")
        layer.defaultPrim = path.stem
        yield author
        author.close(author.prim(f"/{path.stem}", ""))


def summarise(path: Path) -> Summary:
    """What a file holds.

    Raises:
        SourceError: no USD file there, or a damaged one.
    """
    from pxr import Sdf

    found: set[str] = set()
    with reading(path):
        layer = open_grown(Sdf.Layer.OpenAsAnonymous, path)  # the file as it is now, whoever else has it open
        if not layer:
            raise SourceError("container", f"no readable USD file at {path}", "a USD file")
        layer.Traverse("/", lambda place: found.add(place.name) if place.IsPropertyPath() else None)
        return Summary(sorted(layer.ListAllTimeSamples()), [name for key, name in ATTRIBUTES.items() if key in found])


def read_item(path: Path, kind: str, time: float, blend: bool, materials: bool) -> tuple[MeshData | PointData | VoxelData, ...]:
    """All prims of a kind in a file, at a time.

    Args:
        path: of the file.
        kind: "mesh", "pointcloud" or "voxelgrid".
        time: any.
        blend: between two samples, blend them as USD does; else the earlier holds.
        materials: read the materials of meshes and their images.

    Raises:
        SourceError: no USD file there, or a damaged one; an image is missing.
    """
    with reading(path):
        return _read(path, kind, time, blend, materials)


def _read(path: Path, kind: str, time: float, blend: bool, materials: bool) -> tuple[MeshData | PointData | VoxelData, ...]:
    from pxr import Usd

    stage = open_stage(path)
    stage.SetInterpolationType(Usd.InterpolationTypeLinear if blend else Usd.InterpolationTypeHeld)
    prims = [prim for prim in all_prims(stage) if _IS_KIND[kind](prim)]
    if kind == "pointcloud":
        return tuple(read_pointcloud(prim, time) for prim in prims)
    if kind == "voxelgrid":
        return tuple(read_voxelgrid(prim, time) for prim in prims)
    meshes = [read_mesh(prim, time) for prim in prims]
    return tuple(replace(mesh, materials=materials_of(stage, mesh.path, time) if materials else {}) for mesh in meshes)
