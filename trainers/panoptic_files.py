"""Panoptic meshes as files of several kinds, told by their suffix."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.labels import LABELS, Label
from scenemill.trainers import gltf, usd
from scenemill.trainers.surface_mesh import SurfaceMesh
from scenemill.transforms.meshes import PanopticMesh, write_ply

SUFFIXES: Final = (".ply", ".glb", *usd.SUFFIXES)


def write_panoptic(path: Path, mesh: PanopticMesh, labels: Sequence[Label] = LABELS) -> None:
    """Write a mesh, whole or not at all, over a file that is there.

    Args:
        path: ``.ply``, with class and segment ids at the vertices; ``.glb``, with colours alone, which needs the extra "mesh"; ``.usd``,
            ``.usda`` or ``.usdc``, with ids, and a group of faces for each class.
        mesh: with Y up, as ``upright`` returns it.
        labels: those that the mesh was made with.

    Raises:
        ConfigError: another suffix, or a library that is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".ply":
        write_ply(path, mesh)
    elif suffix == ".glb":
        gltf.export_mesh(path, _surface(mesh), overwrite=True)
    elif suffix in usd.SUFFIXES:
        usd.write_mesh(path, usd.panoptic_polygons(mesh, labels))
    else:
        raise ConfigError(f"{path}: no mesh is written to {suffix or 'a file without a suffix'}; give {', '.join(SUFFIXES)}")


def _surface(mesh: PanopticMesh) -> SurfaceMesh:
    surface = SurfaceMesh(torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces).long())
    surface.vertex_colors = torch.from_numpy(mesh.colors).float() / 255
    return surface
