"""Meshes with faces of any size as tensors, corner by corner; in the world, and several as one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
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


def in_world(mesh: MeshCorners) -> MeshCorners:
    """A mesh with its vertices and normals in the world."""
    if torch.equal(mesh.transform, torch.eye(4, dtype=torch.float64)):
        return mesh
    turn, shift = mesh.transform[:3, :3], mesh.transform[:3, 3]
    upright = torch.linalg.pinv(turn).T  # normals stay at right angles to the faces under this one

    def turned(normals: torch.Tensor | None) -> torch.Tensor | None:
        return None if normals is None else torch.nn.functional.normalize(normals.double() @ upright.T, dim=-1).float()

    return replace(
        mesh,
        vertices=(mesh.vertices.double() @ turn.T + shift).float(),
        face_normals=turned(mesh.face_normals),
        vertex_normals=turned(mesh.vertex_normals),
        transform=torch.eye(4, dtype=torch.float64),
    )


def merge(parts: Sequence[MeshCorners]) -> MeshCorners:
    """Several meshes in the world as one; what one of them lacks all lack."""
    vertices = _starts([len(part.vertices) for part in parts])
    uvs = _starts([0 if part.uvs is None else len(part.uvs) for part in parts])
    faces = _starts([len(part.counts) for part in parts])
    uv_indices = [None if part.uv_indices is None else part.uv_indices + start for part, start in zip(parts, uvs, strict=True)]
    names = dict.fromkeys(name for part in parts for name in part.materials)
    return MeshCorners(
        vertices=torch.cat([part.vertices for part in parts]),
        counts=torch.cat([part.counts for part in parts]),
        indices=torch.cat([part.indices + start for part, start in zip(parts, vertices, strict=True)]),
        uvs=_joined([part.uvs for part in parts]),
        uv_indices=_joined(uv_indices),
        face_normals=_joined([part.face_normals for part in parts]),
        vertex_normals=_joined([part.vertex_normals for part in parts]),
        transform=parts[0].transform,
        materials={name: material for part in parts for name, material in part.materials.items()},
        assignments={name: _faces_of(name, parts, faces) for name in names},
    )


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *accumulate(sizes)][:-1]


def _joined(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    there = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(there) if len(there) == len(tensors) else None


def _faces_of(name: str, parts: Sequence[MeshCorners], starts: Sequence[int]) -> torch.Tensor:
    pairs = zip(parts, starts, strict=True)
    return torch.cat([part.assignments[name] + start for part, start in pairs if name in part.assignments])
