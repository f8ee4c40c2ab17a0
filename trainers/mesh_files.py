"""Meshes in and out of files of any kind, told by their suffix.

Source: the names and arguments of ``import_mesh`` are those of Kaolin's ``io.import_mesh``, Apache 2.0.
"""

from os import PathLike
from pathlib import Path
from typing import Any, Final

import torch

from scenemill.schemas.errors import ConfigError
from scenemill.trainers import gltf, obj, usd
from scenemill.trainers.obj.writing import prepared, to_physical
from scenemill.trainers.surface_mesh import SurfaceMesh

_OBJ: Final = (".obj",)
_USD: Final = (*usd.SUFFIXES, ".usdz")


def import_mesh(filename: str | PathLike[str], triangulate: bool = False) -> SurfaceMesh | None:
    """All faces of a file as one mesh in the world, with materials (``PBRMaterial``) and normals.

    Args:
        filename: ``.obj``; ``.usd``, ``.usda``, ``.usdc`` or ``.usdz``; ``.glb`` or ``.gltf``, which need the extra "mesh".
        triangulate: cut all faces into triangles; those of glTF are.

    Returns:
        See ``obj.import_mesh``, ``usd.import_mesh`` and ``gltf.import_mesh``. Materials of OBJ files that are missing or cannot be read
        are left out with a warning. None if a USD or glTF file has no mesh.

    Raises:
        ConfigError: another suffix, or a library that is not installed.
        SourceError: the file is missing or unreadable.
        NonHomogeneousMeshError: faces of several sizes, and no ``triangulate``.
    """
    suffix = Path(filename).suffix.lower()
    if suffix in _OBJ:
        handler = obj.skip_error_handler
        return obj.import_mesh(filename, True, True, error_handler=handler, triangulate=triangulate, raw_materials=False)
    if suffix in _USD:
        return usd.import_mesh(str(filename), with_materials=True, with_normals=True, triangulate=triangulate)
    if suffix in gltf.SUFFIXES:
        return gltf.import_mesh(filename)
    raise ConfigError(
        f"{filename}: no mesh is read from {suffix or 'a file without a suffix'}; give {_listed(_USD + gltf.SUFFIXES)}"
    )


def export_mesh(filename: str | PathLike[str], mesh: SurfaceMesh, overwrite: bool = False) -> None:
    """Write a mesh, its materials and their images.

    Args:
        filename: ``.obj``, with an MTL file and PNG images beside it; ``.usd``, ``.usda`` or ``.usdc``, with images in a folder beside
            it; ``.glb``, with all in one file, which needs the extra "mesh" and triangles.
        mesh: a single one, or a batch of one; it is written as it is in the world.
        overwrite: replace files that are there.

    Raises:
        FileExistsError: the file is there, and shall not be replaced.
        ConfigError: another suffix, a library that is not installed, or a mesh that the format cannot hold.
    """
    suffix = Path(filename).suffix.lower()
    if suffix in _OBJ:
        obj.export_mesh(filename, mesh, overwrite)
    elif suffix in usd.SUFFIXES:
        _export_usd(filename, mesh, overwrite)
    elif suffix == ".glb":
        gltf.export_mesh(filename, mesh, overwrite)
    else:
        raise ConfigError(
            f"{filename}: no mesh is written to {suffix or 'a file without a suffix'}; give {_listed((*usd.SUFFIXES, '.glb'))}"
        )


def _export_usd(filename: str | PathLike[str], mesh: SurfaceMesh, overwrite: bool) -> None:
    mesh = prepared(mesh, is_sparse=False)
    materials: list[Any] = to_physical(mesh.materials or [])
    assigned = torch.full((len(mesh.faces),), -1) if mesh.material_assignments is None else mesh.material_assignments
    usd.export_mesh(
        filename,
        vertices=mesh.vertices,
        faces=mesh.faces,
        uvs=mesh.uvs,
        face_uvs_idx=mesh.face_uvs_idx if mesh.uvs is not None else None,
        face_normals=mesh.normals[mesh.face_normals_idx] if mesh.normals is not None else None,
        material_assignments=assigned if materials else None,
        materials=materials or None,
        overwrite_textures=overwrite,
        overwrite=overwrite,
        strict=True,
    )


def _listed(suffixes: tuple[str, ...]) -> str:
    return ", ".join([*_OBJ, *suffixes])
