"""Meshes with faces of any size as tensors, corner by corner."""

from dataclasses import dataclass
from typing import Any

import torch

from scenemill.trainers.usd.material_io import bound_material, read_material
from scenemill.trainers.usd.meshes import CORNER
from scenemill.trainers.usd.primvars import CONSTANT, UNIFORM
from scenemill.trainers.usd.reading import read_mesh, value_of
from scenemill.trainers.usd.records import MeshData


@dataclass(frozen=True, eq=False)
class MeshCorners:
    """A mesh with faces of any size.

    Attributes:
        vertices: (V, 3) float32.
        counts: (F,) int64, corners of each face.
        indices: (C,) int64, vertices of the corners, one face after another.
        uvs: (U, 2) float32, v down; None for none.
        uv_indices: (C,) int64, rows of ``uvs``; None for none.
        face_normals: (C, 3) float32; None for none.
        vertex_normals: (V, 3) float32; None for none.
        transform: (4, 4) float64, world from the frame of the vertices.
        materials: by path.
        assignments: path of a material -> (n,) int64, its faces.
    """

    vertices: torch.Tensor
    counts: torch.Tensor
    indices: torch.Tensor
    uvs: torch.Tensor | None
    uv_indices: torch.Tensor | None
    face_normals: torch.Tensor | None
    vertex_normals: torch.Tensor | None
    transform: torch.Tensor
    materials: dict[str, Any]
    assignments: dict[str, torch.Tensor]


def read_corners(prim: Any, with_materials: bool, with_normals: bool, time: float | None) -> MeshCorners:
    """Read a mesh.

    Args:
        prim: of the type Mesh.
        with_materials: read materials and their images.
        with_normals: read normals.
        time: None for values that hold at any time.

    Raises:
        ConfigError: no time was given, and all there is are samples.
    """
    data = read_mesh(prim, time)
    materials, assignments = _materials(prim, len(data.counts), time) if with_materials else ({}, {})
    face_normals, vertex_normals = _normals(data) if with_normals else (None, None)
    return MeshCorners(
        vertices=torch.from_numpy(data.vertices),
        counts=torch.from_numpy(data.counts).long(),
        indices=torch.from_numpy(data.indices).long(),
        uvs=None if data.uvs is None else torch.from_numpy(data.uvs),
        uv_indices=None if data.uv_indices is None else torch.from_numpy(data.uv_indices).long(),
        face_normals=face_normals,
        vertex_normals=vertex_normals,
        transform=torch.from_numpy(data.transform),
        materials=materials,
        assignments=assignments,
    )


def _normals(data: MeshData) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Normals of the corners, or else of the vertices."""
    if data.normals is None:
        return None, None
    normals, corners = torch.from_numpy(data.normals), len(data.indices)
    if data.normals_at == UNIFORM and len(normals) == len(data.counts):
        return normals.repeat_interleave(torch.from_numpy(data.counts).long(), dim=0), None
    if data.normals_at == CONSTANT and len(normals) == 1:
        return normals.expand(corners, 3), None
    if data.normals_at == CORNER and corners in (0, len(normals)):
        return normals, None
    return (None, normals) if len(normals) == len(data.vertices) else (None, None)


def _materials(prim: Any, count: int, time: float | None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The materials bound to a mesh and to groups of its faces, and the faces that each has."""
    groups = [child for child in prim.GetChildren() if child.GetTypeName() == "GeomSubset" and _binds(child)]
    materials: dict[str, Any] = {}
    owner = torch.full((count,), -1)
    for holder in [prim, *groups]:
        bound = bound_material(holder)
        if bound:
            name = str(bound.GetPath())
            materials[name] = materials.get(name) or read_material(bound, time)
            faces = slice(None) if holder == prim else torch.from_numpy(value_of(holder.GetAttribute("indices"), time)).long()
            owner[faces] = list(materials).index(name)
    return materials, {name: torch.nonzero(owner == number)[:, 0] for number, name in enumerate(materials)}


def _binds(subset: Any) -> bool:
    return bool(subset.GetRelationship("material:binding").GetTargets()) if subset.HasRelationship("material:binding") else False
