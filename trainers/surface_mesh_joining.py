"""Meshes taken apart, put together, and moved into the world: the attributes of the new mesh, by name.

Source: the rules are those of Kaolin's ``rep.SurfaceMesh``, Apache 2.0.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Final

import torch

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.surface_mesh_attributes import MATERIALS, SETTINGS, SHARED, TENSOR_NAMES, TRANSFORM, Batching

if TYPE_CHECKING:
    from scenemill.trainers.surface_mesh import SurfaceMesh

_ASSIGNMENTS: Final = "material_assignments"
_POSITIONS: Final = ("vertices", "face_vertices")
_NORMALS: Final = ("normals", "face_normals", "vertex_normals")
_TANGENTS: Final = ("vertex_tangents", "face_tangents")
_INDEXED: Final = (("normals", "face_normals_idx", "face_normals"), ("uvs", "face_uvs_idx", "face_uvs"))

_log = logging.getLogger(__name__)


def one_of(mesh: "SurfaceMesh", number: int) -> dict[str, Any]:
    """The attributes of one mesh of a batch."""
    values = {name: mesh.getattr_batched(name, Batching.LIST)[number] for name in names_of_data(mesh)}
    return {**_settings(mesh), **values}


def some_of(mesh: "SurfaceMesh", meshes: slice) -> dict[str, Any]:
    """The attributes of some meshes of a batch."""

    def part(name: str, value: Any) -> Any:
        is_common = (name == SHARED and mesh.batching == Batching.FIXED) or (name == TRANSFORM and value.ndim == 2)
        return value if is_common else value[meshes]

    values = mesh.as_dict()
    return {**_settings(mesh), **{name: part(name, values[name]) for name in names_of_data(mesh)}}


def joined(meshes: Sequence["SurfaceMesh"], fixed_topology: bool) -> dict[str, Any]:
    """The attributes of a LIST of all meshes of meshes and batches.

    Args:
        meshes: one or more.
        fixed_topology: the list is to become a FIXED batch: coordinates and normals that differ in number give way to those of corners.

    Raises:
        ConfigError: no mesh.
    """
    if not meshes:
        raise ConfigError("no meshes to put together; give at least one")
    common = [name for name in (MATERIALS, *TENSOR_NAMES) if name != TRANSFORM and all(mesh.has_attribute(name) for mesh in meshes)]
    values: dict[str, Any] = {name: _gathered(meshes, name) for name in common}
    if fixed_topology:
        for name, index, at_corners in _INDEXED:
            shapes = [list(one.shape) for one in values.get(name, ())]
            if any(shape != shapes[0] for shape in shapes):
                _log.warning("%s of %s cannot be stacked; those of the corners are", name, shapes)
                del values[name]
                values.pop(index, None)
                if all(_has_corners(mesh, name) for mesh in meshes):
                    values[at_corners] = _gathered(meshes, at_corners)
    if any(mesh.has_attribute(TRANSFORM) for mesh in meshes):
        values[TRANSFORM] = torch.cat([_transform_of(mesh, meshes).expand(len(mesh), 4, 4) for mesh in meshes])
    return {**_settings(meshes[0]), **values}


def flat(meshes: Sequence["SurfaceMesh"], skip_errors: bool, group_by_name: bool) -> dict[str, Any]:
    """The attributes of single meshes as one; see ``SurfaceMesh.flatten``.

    Raises:
        ConfigError: no meshes, or attributes that cannot be put together.
    """
    if not meshes:
        raise ConfigError("no meshes to put together; give at least one")
    values: dict[str, Any] = {"faces": _shifted(meshes, "faces", "vertices")}
    pairs = [pair for pair in _INDEXED if _have(meshes, pair[:2])]
    apart = {name for pair in _INDEXED for name in pair[:2]} | {"faces", _ASSIGNMENTS}
    others = [pair for pair in _INDEXED if pair not in pairs]
    corners = [at_corners for name, _, at_corners in others if all(_has_corners(mesh, name) for mesh in meshes)]
    for name, index, _ in pairs:
        values[index] = _shifted(meshes, index, name)
    common = [name for name in TENSOR_NAMES if name not in apart and _have(meshes, (name,))]
    for name in dict.fromkeys([*common, *(pair[0] for pair in pairs), *corners]):
        try:
            values[name] = _one_after_another([mesh.getattr_batched(name, Batching.NONE) for mesh in meshes])
        except RuntimeError as error:
            if name == "vertices" or not skip_errors:
                raise ConfigError(f"{name} of the meshes cannot be put together: {error}") from error
            _log.warning("%s of the meshes is left out: %s", name, error)
    return {**_settings(meshes[0]), **values, **_flat_materials(meshes, group_by_name)}


def _has_corners(mesh: "SurfaceMesh", name: str) -> bool:
    """Whether each corner has one of the normals or coordinates that a mesh was given."""
    at_corners = f"face_{name}"
    is_given = mesh.has_attribute(at_corners) or _have([mesh], (name, f"face_{name}_idx"))
    return is_given and getattr(mesh, at_corners) is not None


def moved(mesh: "SurfaceMesh") -> dict[str, Any]:
    """The positions, normals and tangents of a mesh, or of each of a batch, in the world."""
    is_list = mesh.batching == Batching.LIST
    matrix = mesh.transform
    matrices: Any = list(matrix.expand(len(mesh), 4, 4)) if is_list else matrix
    changed = {}
    for names, change in ((_POSITIONS, _moved_points), (_NORMALS, _turned_normals), (_TANGENTS, _turned_tangents)):
        for name in names:
            if mesh.has_attribute(name):
                value = getattr(mesh, name)
                changed[name] = list(map(change, value, matrices)) if is_list else change(value, matrices)
    return changed


def _moved_points(points: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return _mapped(points, matrix[..., :3, :3].mT, matrix[..., None, :3, 3])


def _turned_normals(normals: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    upright = torch.linalg.pinv(matrix[..., :3, :3])  # they stay at right angles to the faces; a flat transform has no inverse
    return torch.nn.functional.normalize(_mapped(normals, upright), dim=-1)


def _turned_tangents(tangents: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(_mapped(tangents, matrix[..., :3, :3].mT), dim=-1)


def _mapped(vectors: torch.Tensor, turn: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
    """Row vectors (..., 3) by a matrix, or by one for each along the first axis, in the wider of the dtypes."""
    dtype = torch.promote_types(vectors.dtype, turn.dtype)
    rows = vectors.to(dtype).reshape(*turn.shape[:-2], -1, 3) @ turn.to(dtype)
    return (rows if shift is None else rows + shift.to(dtype)).reshape(vectors.shape).to(vectors.dtype)


def applied(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """The results of a function on all tensors of a value: a tensor, a list, a dictionary or a material."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, list):
        return [applied(function, one) for one in value]
    if isinstance(value, dict):
        return {name: applied(function, one) for name, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: applied(function, getattr(value, one.name)) for one in fields(value)})
    return value


def rows_of_corners(values: torch.Tensor) -> torch.Tensor:
    """Values of corners, (..., F, n, C), one after another: (..., F * n, C)."""
    return values.flatten(-3, -2)


def numbers_of_corners(values: torch.Tensor) -> torch.Tensor:
    """Their (..., F, n) rows in ``rows_of_corners``."""
    faces, size = values.shape[-3:-1]
    return torch.arange(faces * size, device=values.device).reshape(faces, size).expand(values.shape[:-1])


def group_materials_by_name(
    materials_list: Sequence[Any], material_assignments: torch.Tensor | None
) -> tuple[list[Any], torch.Tensor | None]:
    """Materials of the same name as one, the first; those without a name stay apart.

    Args:
        materials_list: dictionaries with "material_name", or objects with that attribute.
        material_assignments: (F,) integers, numbers of materials, -1 for none; None for none.

    Returns:
        The materials that are left, in their order, and new assignments.
    """
    kept: list[Any] = []
    places: dict[str, int] = {}
    numbers = []
    for material in materials_list:
        name = material.get("material_name") if isinstance(material, Mapping) else getattr(material, "material_name", None)
        place = places.get(name, len(kept)) if name else len(kept)
        if place == len(kept):
            kept.append(material)
        if name:
            places[name] = place
        numbers.append(place)
    if material_assignments is None:
        return kept, None
    table = torch.tensor([*numbers, -1], dtype=material_assignments.dtype, device=material_assignments.device)
    return kept, table[material_assignments.long()]  # -1 reads the last


def _flat_materials(meshes: Sequence["SurfaceMesh"], group_by_name: bool) -> dict[str, Any]:
    if not any(mesh.has_attribute(name) for mesh in meshes for name in (_ASSIGNMENTS, MATERIALS)):
        return {}
    materials = [mesh.as_dict().get(MATERIALS, []) for mesh in meshes]
    starts = [0, *accumulate(len(one) for one in materials)]
    dtype = torch.int16 if starts[-1] <= torch.iinfo(torch.int16).max else torch.int32
    assigned = []
    for mesh, start in zip(meshes, starts, strict=False):
        none = torch.full((len(mesh.faces),), -1, device=mesh.faces.device)
        assigned.append(_offset(mesh.as_dict().get(_ASSIGNMENTS, none).to(dtype), start))
    together: list[Any] = list(chain.from_iterable(materials))
    numbers: torch.Tensor | None = torch.cat(assigned)
    if group_by_name:
        together, numbers = group_materials_by_name(together, numbers)
    return {MATERIALS: together, _ASSIGNMENTS: numbers}


def _shifted(meshes: Sequence["SurfaceMesh"], index: str, values: str) -> torch.Tensor:
    starts = [0, *accumulate(len(mesh.as_dict()[values]) for mesh in meshes)]
    rows = [_offset(mesh.as_dict()[index], start) for mesh, start in zip(meshes, starts, strict=False)]
    sizes = sorted({one.shape[1] for one in rows if len(one)})
    if len(sizes) > 1:
        raise ConfigError(f"faces of {sizes} corners; cut them into triangles first")
    return _one_after_another(rows)


def _one_after_another(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors along their first axis; empty ones may have other shapes, for no faces have no size."""
    return torch.cat([tensor for tensor in tensors if len(tensor)] or [tensors[0]])


def _offset(index: torch.Tensor, start: int) -> torch.Tensor:
    return torch.where(index < 0, index, index + start)


def _have(meshes: Iterable["SurfaceMesh"], names: Iterable[str]) -> bool:
    return all(mesh.has_attribute(name) for mesh in meshes for name in names)


def _gathered(meshes: Sequence["SurfaceMesh"], name: str) -> list[Any]:
    return list(chain.from_iterable(mesh.getattr_batched(name, Batching.LIST) for mesh in meshes))


def _transform_of(mesh: "SurfaceMesh", meshes: Sequence["SurfaceMesh"]) -> torch.Tensor:
    """The transform of a mesh; where it has none, the identity in the form of another mesh's."""
    like: torch.Tensor = next(one.transform for one in (mesh, *meshes) if one.has_attribute(TRANSFORM))
    return like if mesh.has_attribute(TRANSFORM) else torch.eye(4, dtype=like.dtype, device=like.device)


def names_of_data(mesh: "SurfaceMesh") -> list[str]:
    """The names of the tensors that a mesh has, and its materials."""
    return mesh.get_attributes(only_tensors=True) + [MATERIALS] * mesh.has_attribute(MATERIALS)


def _settings(mesh: "SurfaceMesh") -> dict[str, Any]:
    return {name: value for name, value in mesh.as_dict().items() if name in SETTINGS and name != "batching"}
