"""Meshes into stages and files.

Source: Mesh of UsdGeom; the names, the arguments and the plain layout are those of Kaolin's ``io.usd``, Apache 2.0.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.usd.arrays import to_integers
from scenemill.trainers.usd.authoring import Author
from scenemill.trainers.usd.material_io import put_material
from scenemill.trainers.usd.meshes import MeshParts, define_mesh
from scenemill.trainers.usd.shading import bind_material
from scenemill.trainers.usd.stages import new_stage, set_local_to_world_transform
from scenemill.trainers.usd.subsets import define_subset

_FAMILY = "materialBind"


def add_mesh(
    stage: Any,
    scene_path: str,
    vertices: Any = None,
    faces: Any = None,
    uvs: Any = None,
    face_uvs_idx: Any = None,
    face_normals: Any = None,
    material_assignments: Any = None,
    materials: Sequence[Any] | None = None,
    local_to_world: torch.Tensor | None = None,
    time: float | None = None,
    overwrite_textures: bool = False,
    strict: bool = False,
) -> Any:
    """Add a mesh to a stage, which is not saved.

    Args:
        stage: the stage.
        scene_path: of the mesh.
        vertices: (V, 3) numbers.
        faces: (F, n) integers.
        uvs: (U, 2) numbers, v down.
        face_uvs_idx: (F, n) integers, rows of ``uvs``.
        face_normals: (F, n, 3) numbers.
        material_assignments: (F,) integers, numbers of ``materials``, -1 for none.
        materials: each becomes a group of faces, and a material below the mesh.
        local_to_world: (4, 4), world from the mesh's frame.
        time: None for values that hold at any time.
        overwrite_textures: replace images of the same names; else they get a number.
        strict: write what viewers and validators want beyond that: extents, no subdivision, what bindings need; and on a timeline only
            what changed.

    Returns:
        The prim (``Usd.Prim``).

    Raises:
        ConfigError: parts of another form, or that do not fit together.
    """
    author = Author.on_stage(stage, time, strict)
    spec = define_mesh(author, scene_path, MeshParts(vertices, faces, uvs, face_uvs_idx, face_normals))
    if faces is not None and material_assignments is not None and materials is not None:
        assigned = to_integers("material_assignments", material_assignments)
        _put_materials(stage, author, scene_path, assigned, materials, overwrite_textures)
    author.close(spec)
    if local_to_world is not None:
        set_local_to_world_transform(stage, scene_path, local_to_world, time)
    return stage.GetPrimAtPath(scene_path)


def _put_materials(
    stage: Any, author: Author, scene_path: str, assigned: Any, materials: Sequence[Any], overwrite_textures: bool
) -> None:
    folder = f"{Path(stage.GetRootLayer().realPath).stem}_textures"
    author.prim(f"{scene_path}/Looks", "Scope")
    for number, material in enumerate(materials):
        path, subset = f"{scene_path}/Looks/material_{number}", f"{scene_path}/subset_{number}"
        spec = define_subset(author, subset, np.flatnonzero(assigned == number), _FAMILY, "face")
        if not isinstance(material, dict):  # what an unknown shader was read as
            put_material(stage, path, material, folder, f"material_{number}_", author.time, overwrite_textures, author.strict)
            bind_material(author, spec, path)
    if author.strict:
        mesh = author.prim(scene_path, "Mesh")
        author.fix(mesh, f"subsetFamily:{_FAMILY}:familyType", "token", "nonOverlapping", uniform=True)


def export_mesh(
    file_path: str | PathLike[str],
    scene_path: str = "/World/Meshes/mesh_0",
    vertices: Any = None,
    faces: Any = None,
    uvs: Any = None,
    face_uvs_idx: Any = None,
    face_normals: Any = None,
    material_assignments: Any = None,
    materials: Sequence[Any] | None = None,
    local_to_world: torch.Tensor | None = None,
    up_axis: str = "Y",
    time: float | None = None,
    overwrite_textures: bool = False,
    overwrite: bool = False,
    strict: bool = False,
) -> Any:
    """Write a mesh as a file; see ``add_mesh``.

    Args:
        file_path: ``.usd`` or ``.usdc``, binary, or ``.usda``, text.
        scene_path, vertices, faces, uvs, face_uvs_idx, face_normals: as in ``add_mesh``.
        material_assignments, materials, local_to_world, time, overwrite_textures, strict: as in ``add_mesh``.
        up_axis: "Y" or "Z".
        overwrite: replace a file that is there.

    Returns:
        The stage (``Usd.Stage``), saved.

    Raises:
        FileExistsError: a file is there, and shall not be replaced.
        ConfigError: parts of another form, or that do not fit together.
    """
    stage = new_stage(file_path, overwrite, up_axis)
    parts = (vertices, faces, uvs, face_uvs_idx, face_normals, material_assignments, materials)
    add_mesh(stage, scene_path, *parts, local_to_world, time, overwrite_textures, strict)
    stage.Save()
    return stage


def export_meshes(
    file_path: str | PathLike[str],
    scene_paths: Sequence[str] | None = None,
    vertices: Sequence[Any] | None = None,
    faces: Sequence[Any] | None = None,
    uvs: Sequence[Any] | None = None,
    face_uvs_idx: Sequence[Any] | None = None,
    face_normals: Sequence[Any] | None = None,
    material_assignments: Sequence[Any] | None = None,
    materials: Sequence[Sequence[Any]] | None = None,
    local_to_world: torch.Tensor | None = None,
    up_axis: str = "Y",
    times: Sequence[float | None] | None = None,
    overwrite_textures: bool = False,
    overwrite: bool = False,
    strict: bool = False,
) -> Any:
    """Write several meshes as a file; see ``export_mesh``.

    Args:
        file_path: ``.usd`` or ``.usdc``, binary, or ``.usda``, text.
        scene_paths: None for ``/World/Meshes/mesh_0`` and so on.
        vertices, faces, uvs, face_uvs_idx, face_normals, material_assignments, materials, times: one for each mesh; None for none.
        local_to_world: (4, 4), of all, or (N, 4, 4).
        up_axis: "Y" or "Z".
        overwrite_textures: replace images of the same names.
        overwrite: replace a file that is there.
        strict: as in ``add_mesh``.

    Returns:
        The stage (``Usd.Stage``), saved.

    Raises:
        FileExistsError: a file is there, and shall not be replaced.
        TypeError: the transform is no tensor.
        ConfigError: lists of different lengths, or parts that do not fit together.
    """
    lists: dict[str, Any] = {
        "vertices": vertices,
        "faces": faces,
        "uvs": uvs,
        "face_uvs_idx": face_uvs_idx,
        "face_normals": face_normals,
        "material_assignments": material_assignments,
        "materials": materials,
        "time": times,
    }
    count = common_length({"scene_paths": scene_paths, **lists})
    transforms = to_transforms(local_to_world, count)
    stage = new_stage(file_path, overwrite, up_axis)
    if scene_paths is None:
        stage.DefinePrim("/World/Meshes", "Xform")
    for number, path in enumerate(scene_paths or [f"/World/Meshes/mesh_{number}" for number in range(count)]):
        parts = {name: None if values is None else values[number] for name, values in lists.items()}
        own = transforms[number]
        add_mesh(stage, path, local_to_world=own, overwrite_textures=overwrite_textures, strict=strict, **parts)
    stage.Save()
    return stage


def common_length(lists: dict[str, Any]) -> int:
    """The length that all lists given have.

    Raises:
        ConfigError: several lengths, or no list.
    """
    lengths = {name: len(values) for name, values in lists.items() if values is not None}
    if len(set(lengths.values())) != 1:
        raise ConfigError(f"lists of {lengths or 'nothing'}; give lists of the same length, at least one")
    return next(iter(lengths.values()))


def to_transforms(local_to_world: torch.Tensor | None, count: int) -> list[torch.Tensor | None]:
    """A transform for each of several prims.

    Raises:
        TypeError: no tensor.
        ConfigError: neither (4, 4) nor (count, 4, 4).
    """
    if local_to_world is None:
        return [None] * count
    if not isinstance(local_to_world, torch.Tensor):
        raise TypeError(f"local_to_world: {type(local_to_world).__name__}; give a (4, 4) or ({count}, 4, 4) tensor")
    if local_to_world.shape not in ((4, 4), (count, 4, 4)):
        raise ConfigError(f"local_to_world: {tuple(local_to_world.shape)}; give (4, 4) or ({count}, 4, 4)")
    return list(local_to_world.expand(count, 4, 4))
