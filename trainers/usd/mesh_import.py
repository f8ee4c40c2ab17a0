"""Meshes out of files, as tensors: one by one in their own frames, or all as one in the world.

Source: Mesh of UsdGeom; the names and arguments are those of Kaolin's ``io.usd``, Apache 2.0.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.surface_mesh import SurfaceMesh
from scenemill.trainers.usd.corners import MeshCorners, read_corners
from scenemill.trainers.usd.stages import all_prims, find_prim, open_stage
from scenemill.trainers.usd.triangulate import NonHomogeneousMeshError, mesh_handler_naive_triangulate

Handler = Callable[..., tuple[Any, ...] | None]
"""Makes faces of several sizes into faces of one size, or None to leave a mesh out; see ``mesh_handler_naive_triangulate``."""


def get_mesh_scene_paths(file_or_stage: Any, scene_path: str | None = None) -> list[str]:
    """The paths of all meshes, or of those at and below a path."""
    stage = open_stage(file_or_stage)
    return [str(prim.GetPath()) for prim in _meshes_below(stage, scene_path)]


def _meshes_below(stage: Any, scene_path: Any) -> list[Any]:
    root = find_prim(stage, "/" if scene_path is None else scene_path).GetPath()
    return [prim for prim in all_prims(stage) if prim.GetTypeName() == "Mesh" and prim.GetPath().HasPrefix(root)]


def import_mesh(
    file_or_stage: Any,
    scene_path: str | None = None,
    with_materials: bool = False,
    with_normals: bool = False,
    heterogeneous_mesh_handler: Handler | None = None,
    time: float | None = None,
    triangulate: bool = False,
) -> SurfaceMesh | None:
    """All meshes at and below a path as one mesh in the world.

    Args:
        file_or_stage: a path or a stage.
        scene_path: None for the whole scene.
        with_materials: read materials and their images.
        with_normals: read normals.
        heterogeneous_mesh_handler: for faces of several sizes; None refuses them.
        time: None for values that hold at any time.
        triangulate: cut all faces into triangles.

    Returns:
        The mesh, float32 and int64, uvs with v down, (F,) int16 assignments of materials that are in the order of the meshes; what one
        of the meshes lacks all lack, and there is no transform. None if there is no mesh, or the handler left all out.

    Raises:
        NonHomogeneousMeshError: faces of several sizes, and no handler.
        ConfigError: no such prim; or no time was given, and all there is are samples.
    """
    stage = open_stage(file_or_stage)
    parts = [read_corners(prim, with_materials, with_normals, time) for prim in _meshes_below(stage, scene_path)]
    evened = [_evened(part, heterogeneous_mesh_handler, triangulate) for part in parts]
    alike = _alike([part for part in evened if part is not None], heterogeneous_mesh_handler)
    meshes = [_shaped(part, with_materials) for part in alike]
    return SurfaceMesh.flatten(meshes, group_materials_by_name=True) if meshes else None


def import_meshes(
    file_or_stage: Any,
    scene_paths: Sequence[str] | None = None,
    with_materials: bool = False,
    with_normals: bool = False,
    heterogeneous_mesh_handler: Handler | None = None,
    times: Sequence[float | None] | None = None,
    triangulate: bool = False,
    return_list: bool = True,
) -> list[SurfaceMesh] | dict[str, SurfaceMesh]:
    """Each mesh at and below some paths, in its own frame; those that the handler left out are not among them.

    Args:
        file_or_stage: a path or a stage.
        scene_paths: None for the whole scene.
        with_materials, with_normals, heterogeneous_mesh_handler, triangulate: as in ``import_mesh``.
        times: one for each of the paths; None for values that hold at any time.
        return_list: a list, else a dictionary by path.

    Returns:
        Meshes as those of ``import_mesh``, but with materials sorted by name, and a (4, 4) float64 ``transform`` into the world unless
        that is the identity.

    Raises:
        ConfigError: times of another number than paths; else as ``import_mesh``.
    """
    stage = open_stage(file_or_stage)
    paths = get_mesh_scene_paths(stage) if scene_paths is None else list(scene_paths)
    if times is not None and len(times) != len(paths):
        raise ConfigError(f"{len(times)} times for {len(paths)} meshes; give one for each")
    found: dict[str, SurfaceMesh] = {}
    for path, time in zip(paths, times or [None] * len(paths), strict=True):
        for prim in _meshes_below(stage, path):
            corners = read_corners(prim, with_materials, with_normals, time)
            evened = _evened(corners, heterogeneous_mesh_handler, triangulate)
            if evened is not None:
                found[str(prim.GetPath())] = _shaped(evened, with_materials)
    return list(found.values()) if return_list else found


def _evened(mesh: MeshCorners, handler: Handler | None, triangulate: bool) -> MeshCorners | None:
    """A mesh with faces of one size, made so where it was asked for; None if the handler left it out."""
    is_even = bool((mesh.counts == mesh.counts[:1]).all())
    if not is_even and handler is None and not triangulate:
        raise NonHomogeneousMeshError(
            f"faces of {sorted(set(mesh.counts.tolist()))} corners; give triangulate=True or a heterogeneous_mesh_handler"
        )
    if not is_even and handler is not None:
        handled = _handled(mesh, handler)
        if handled is None:
            return None
        mesh = handled
    if triangulate and not bool((mesh.counts == 3).all()):
        return _handled(mesh, mesh_handler_naive_triangulate)
    return mesh


def _alike(meshes: Sequence[MeshCorners], handler: Handler | None) -> list[MeshCorners]:
    """Meshes with faces of one size each, and all of the same: where they differ, the handler gets those that are no triangles."""
    sizes = sorted({size for mesh in meshes for size in mesh.counts[:1].tolist()})
    if len(sizes) < 2:
        return list(meshes)
    if handler is None:
        raise NonHomogeneousMeshError(
            f"meshes with faces of {sizes} corners; give triangulate=True or a heterogeneous_mesh_handler, or call import_meshes"
        )
    handled = [mesh if bool((mesh.counts == 3).all()) else _handled(mesh, handler) for mesh in meshes]
    return [mesh for mesh in handled if mesh is not None]


def _handled(mesh: MeshCorners, handler: Handler) -> MeshCorners | None:
    parts = handler(mesh.vertices, mesh.counts, mesh.indices, mesh.uv_indices, mesh.face_normals, face_assignments=mesh.assignments)
    if parts is None:
        return None
    vertices, counts, indices, uv_indices, face_normals, assignments = parts
    return replace(
        mesh,
        vertices=vertices,
        counts=counts,
        indices=indices.reshape(-1),
        uv_indices=None if uv_indices is None else uv_indices.reshape(-1),
        face_normals=None if face_normals is None else face_normals.reshape(-1, 3),
        assignments=assignments,
    )


def _shaped(mesh: MeshCorners, with_materials: bool) -> SurfaceMesh:
    count, size = len(mesh.counts), int(mesh.counts[0]) if len(mesh.counts) else 3
    names = sorted(mesh.materials)
    assigned = torch.full((count,), -1, dtype=torch.int16)
    for number, name in enumerate(names):
        assigned[mesh.assignments[name]] = number
    normals = mesh.face_normals
    return SurfaceMesh(
        vertices=mesh.vertices,
        faces=mesh.indices.reshape(count, size),
        uvs=mesh.uvs,
        face_uvs_idx=mesh.uv_indices.reshape(count, size) if mesh.uv_indices is not None and count else None,
        face_normals=normals.reshape(count, size, 3) if normals is not None and count else None,
        vertex_normals=mesh.vertex_normals,
        material_assignments=assigned if with_materials else None,
        materials=[mesh.materials[name] for name in names] if with_materials else None,
        transform=None if torch.equal(mesh.transform, torch.eye(4, dtype=torch.float64)) else mesh.transform,
    )
