"""What the prims of a stage hold at one time.

Values whose number fits nothing are left out, as viewers leave them out.

Source: Mesh, Points, PointInstancer and the primvars of UsdGeom; the layouts that Kaolin wrote from version 0.9 on.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError, SourceError
from scenemill.trainers.usd.arrays import from_value, same_value
from scenemill.trainers.usd.meshes import CORNER
from scenemill.trainers.usd.pointclouds import POSITIONS
from scenemill.trainers.usd.primvars import COLOR, CONSTANT, OPACITY, SEMANTIC_ID, UNIFORM, VERTEX
from scenemill.trainers.usd.records import MeshData, PointData, VoxelData
from scenemill.trainers.usd.stages import at_time, world_from_prim
from scenemill.trainers.usd.voxelgrids import GRID_DIMS, GRID_SIZE, KIND, VOXEL_GRID

_VARYING: Final = "varying"  # USD's other word for one for each vertex


def is_voxelgrid(prim: Any) -> bool:
    """Whether a prim is an instancer of voxels, and no point cloud."""
    return str(prim.GetTypeName()) == "PointInstancer" and prim.GetAttribute(KIND).Get() == VOXEL_GRID


def is_pointcloud(prim: Any) -> bool:
    """Whether a prim is a point cloud."""
    return str(prim.GetTypeName()) in POSITIONS and not is_voxelgrid(prim)


def value_of(attribute: Any, time: float | None) -> Any:
    """The value of an attribute at a time, as an array where it is one; None for none.

    Between two samples that are the same it is theirs to the bit: usd-core's blend of equal numbers is not always that number.
    """
    if time is not None:
        samples = attribute.GetBracketingTimeSamples(time)
        if len(samples) == 2 and samples[0] < time < samples[1]:
            lower, upper = (attribute.Get(sample) for sample in samples)
            return from_value(lower if same_value(lower, upper) else attribute.Get(time))
    return from_value(attribute.Get(at_time(time)))


def check_time(attribute: Any, time: float | None) -> None:
    """Refuse to read what holds at any time where there are only samples.

    Raises:
        ConfigError: no time, and samples but no other value.
    """
    samples = attribute.GetTimeSamples() if attribute and time is None else []
    if samples and attribute.Get(at_time(None)) is None:
        raise ConfigError(
            f"{attribute.GetPath()} has samples from {samples[0]:g} to {samples[-1]:g} and no other value; give a time"
        )


def read_mesh(prim: Any, time: float | None) -> MeshData:
    """A mesh without its materials.

    Args:
        prim: of the type Mesh.
        time: None for the values that hold at any time.

    Raises:
        ConfigError: no time was given, and all there is are samples.
    """
    check_time(prim.GetAttribute("points"), time)
    vertices = _array(prim, "points", time, np.zeros((0, 3), np.float32))
    counts = _array(prim, "faceVertexCounts", time, np.zeros(0, np.int32))
    indices = _array(prim, "faceVertexIndices", time, np.zeros(0, np.int32))
    sizes = {VERTEX: len(vertices), _VARYING: len(vertices), UNIFORM: len(counts), CORNER: len(indices), CONSTANT: 1}
    uvs, uv_indices = _uvs(prim, time, counts, indices, sizes)
    normals, normals_at = _normals(prim, time)
    colors, colors_at = _colors(prim, time, sizes)
    ids, ids_at = _placed(prim, SEMANTIC_ID, time, sizes)
    return MeshData(
        path=str(prim.GetPath()),
        transform=world_from_prim(prim, time),
        vertices=vertices,
        counts=counts,
        indices=indices,
        uvs=uvs,
        uv_indices=uv_indices,
        normals=normals,
        normals_at=normals_at,
        colors=colors,
        colors_at=colors_at,
        semantic_ids=ids,
        semantic_ids_at=ids_at,
    )


def read_pointcloud(prim: Any, time: float | None) -> PointData:
    """A point cloud.

    Args:
        prim: of the type Points or PointInstancer.
        time: None for the values that hold at any time.

    Raises:
        ConfigError: another type; or no time was given, and all there is are samples.
    """
    kind = str(prim.GetTypeName())
    if kind not in POSITIONS:
        raise ConfigError(f"{prim.GetPath()} is {kind or 'of no type'}; give the path of one of {', '.join(POSITIONS)}")
    check_time(prim.GetAttribute(POSITIONS[kind]), time)
    points = _array(prim, POSITIONS[kind], time, np.zeros((0, 3), np.float32))
    colors, ids = _of_elements(prim, time, len(points))
    widths = _widths(prim, time, len(points))
    return PointData(str(prim.GetPath()), world_from_prim(prim, time), points, colors, ids, widths)


def read_voxelgrid(prim: Any, time: float | None) -> VoxelData:
    """A voxel grid.

    Args:
        prim: of the type PointInstancer.
        time: None for the values that hold at any time.

    Raises:
        ConfigError: another type; or no time was given, and all there is are samples.
    """
    if str(prim.GetTypeName()) != "PointInstancer":
        raise ConfigError(f"{prim.GetPath()} is {prim.GetTypeName() or 'of no type'}; give the path of a PointInstancer")
    check_time(prim.GetAttribute("positions"), time)
    voxels = _array(prim, "positions", time, np.zeros((0, 3), np.float32)).astype(np.int32)
    shape = _grid_shape(prim, time, voxels)
    return VoxelData(str(prim.GetPath()), world_from_prim(prim, time), shape, voxels, *_of_elements(prim, time, len(voxels)))


def _array(prim: Any, name: str, time: float | None, empty: NDArray[Any]) -> NDArray[Any]:
    value = value_of(prim.GetAttribute(name), time) if prim.HasAttribute(name) else None
    return empty if value is None or not len(value) else value.astype(empty.dtype, copy=False)


def _placed(prim: Any, name: str, time: float | None, sizes: Mapping[str, int]) -> tuple[NDArray[Any] | None, str]:
    """The values of a primvar and what has one each; None where their number does not fit.

    Files of Kaolin's do not say what has one; then as many as there are vertices are theirs.
    """
    from pxr import UsdGeom

    primvar = UsdGeom.Primvar(prim.GetAttribute(name))
    values = value_of(primvar.GetAttr(), time) if primvar else None
    if values is None:
        return None, ""
    if primvar.IsIndexed():
        values = np.array(primvar.ComputeFlattened(at_time(time)))
    place = str(primvar.GetInterpolation())
    if len(values) != sizes.get(place, -1):
        place = VERTEX if len(values) == sizes[VERTEX] else ""
    return (values, place) if place else (None, "")


def _colors(prim: Any, time: float | None, sizes: Mapping[str, int]) -> tuple[NDArray[np.float32] | None, str]:
    colors, place = _placed(prim, COLOR, time, sizes)
    opacity, opacity_place = _placed(prim, OPACITY, time, sizes)
    if colors is not None and opacity is not None and place == opacity_place:
        colors = np.concatenate([colors, opacity[:, None]], axis=1)
    return colors, place


def _of_elements(prim: Any, time: float | None, count: int) -> tuple[NDArray[np.float32] | None, NDArray[np.int32] | None]:
    """Colours and ids of points or voxels, one for each also where the file has one for all."""
    sizes = {VERTEX: count, _VARYING: count, CONSTANT: 1}
    colors, _ = _colors(prim, time, sizes)
    ids, _ = _placed(prim, SEMANTIC_ID, time, sizes)
    return _for_each(colors, count), _for_each(ids, count)


def _for_each(values: NDArray[Any] | None, count: int) -> Any:
    return values if values is None or len(values) == count else np.repeat(values, count, axis=0)


def _widths(prim: Any, time: float | None, count: int) -> NDArray[np.float32] | None:
    if str(prim.GetTypeName()) == "Points":
        widths = _array(prim, "widths", time, np.zeros(0, np.float32))
    else:
        scales = _array(prim, "scales", time, np.ones((1, 3), np.float32))[:, 0]
        widths = scales * np.float32(_width_of_shape(prim, time))
    return _for_each(widths, count) if len(widths) in (1, count) else None


def _width_of_shape(instancer: Any, time: float | None) -> float:
    """How wide the shape that an instancer repeats is."""
    for path in instancer.GetRelationship("prototypes").GetTargets():
        shape = instancer.GetStage().GetPrimAtPath(path)
        if shape and str(shape.GetTypeName()) == "Sphere":
            return 2.0 * float(shape.GetAttribute("radius").Get(at_time(time)))
        if shape and str(shape.GetTypeName()) == "Cube":
            return float(shape.GetAttribute("size").Get(at_time(time)))
    return 1.0


def _grid_shape(prim: Any, time: float | None, voxels: NDArray[np.int32]) -> tuple[int, int, int]:
    """Voxels along each axis: as the file says, and a cube around the voxels where it does not."""
    size, sides = (value_of(prim.GetAttribute(name), time) if prim.HasAttribute(name) else None for name in (GRID_SIZE, GRID_DIMS))
    size = int(voxels.max(initial=-1)) + 1 if size is None else int(size)
    shape = tuple(int(side) for side in sides) if sides is not None and max(sides) == size else (size, size, size)
    if (voxels < 0).any() or (voxels >= shape).any():
        raise SourceError(
            "range", f"voxels to {voxels.max(axis=0).tolist()} in {prim.GetPath()}", f"indices within a grid of {shape}"
        )
    return shape[0], shape[1], shape[2]


def _uvs(
    prim: Any, time: float | None, counts: NDArray[np.int32], indices: NDArray[np.int32], sizes: Mapping[str, int]
) -> tuple[NDArray[np.float32] | None, NDArray[np.int32] | None]:
    """Texture coordinates, v down, and those of each corner."""
    primvar = _uv_primvar(prim)
    values = value_of(primvar.GetAttr(), time) if primvar else None
    if values is None or not len(values):
        return None, None
    uvs = np.stack([values[:, 0], 1 - values[:, 1]], axis=1).astype(np.float32)
    given = value_of(primvar.GetIndicesAttr(), time) if primvar.GetIndicesAttr() else None
    rows = np.arange(len(uvs), dtype=np.int32) if given is None else given
    corners = _of_corners(rows, str(primvar.GetInterpolation()), counts, indices, sizes) if len(indices) else rows
    return (uvs, corners) if corners is not None and int(rows.max(initial=-1)) < len(uvs) else (None, None)


def _of_corners(
    rows: NDArray[np.int32], place: str, counts: NDArray[np.int32], indices: NDArray[np.int32], sizes: Mapping[str, int]
) -> NDArray[np.int32] | None:
    """The row of each corner, out of one row for each vertex, face or corner, or one for all; None where their number does not fit."""
    if len(rows) != sizes.get(place, -1):
        place = CORNER if len(rows) == sizes[CORNER] else ""  # files of Kaolin's may say "vertex" of what they have for corners
    if place in (VERTEX, _VARYING):
        return rows[indices]
    if place == UNIFORM:
        return np.repeat(rows, counts)
    if place == CONSTANT:
        return np.repeat(rows, sizes[CORNER])
    return rows if place == CORNER else None


def _uv_primvar(prim: Any) -> Any:
    """The primvar of the texture coordinates: ``st``, else the first of their own type, else ``UVMap``, else the first of several pairs."""
    from pxr import Sdf, UsdGeom

    api, kinds = UsdGeom.PrimvarsAPI(prim), Sdf.ValueTypeNames
    coordinates = [one for one in api.GetPrimvars() if one.GetTypeName() == kinds.TexCoord2fArray]
    pairs = [one for one in api.GetPrimvars() if one.GetTypeName() == kinds.Float2Array]
    found = [api.GetPrimvar("st"), *coordinates, api.GetPrimvar("UVMap"), *(pairs if len(pairs) > 1 else [])]
    return next((one for one in found if one.IsDefined()), None)


def _normals(prim: Any, time: float | None) -> tuple[NDArray[np.float32] | None, str]:
    """Normals and what has one each; a primvar of that name counts before the attribute."""
    from pxr import UsdGeom

    primvar = UsdGeom.PrimvarsAPI(prim).GetPrimvar("normals")
    if primvar.IsDefined() and primvar.HasValue():
        return np.array(primvar.ComputeFlattened(at_time(time)), np.float32), str(primvar.GetInterpolation())
    normals = value_of(prim.GetAttribute("normals"), time)
    if normals is None or not len(normals):
        return None, ""
    return normals, str(UsdGeom.PointBased(prim).GetNormalsInterpolation())
