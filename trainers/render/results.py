"""What a fitted mesh leaves behind: 3D checkpoints, mesh files, renderings, and its distance to the true surface."""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from scenemill.schemas.fit import FitConfig
from scenemill.trainers.mesh_files import export_mesh
from scenemill.trainers.render.fit import render
from scenemill.trainers.render.object_views import ObjectViews
from scenemill.trainers.render.surface_distance import surface_distance
from scenemill.trainers.render.templates import Template
from scenemill.trainers.render.textured_mesh import TexturedMesh
from scenemill.trainers.surface_mesh import SurfaceMesh
from scenemill.trainers.timelapse import Timelapse
from scenemill.trainers.usd.materials import PBRMaterial

CATEGORY: Final = "optimized_mesh"
"""Of the 3D checkpoints."""

MESHES: Final = ("mesh.obj", "mesh.usd")
"""What the fitted mesh is written as, each with its texture."""


class FitLog:
    """The mesh over the epochs as 3D checkpoints, in the unit of the scene."""

    def __init__(self, folder: Path, mesh: TexturedMesh, template: Template, unit: float) -> None:
        self._log, self._mesh, self._unit = Timelapse(folder), mesh, unit
        faces, uvs, corners = ([part] for part in template[1:])
        self._log.add_mesh_batch(0, CATEGORY, [self._vertices()], faces, uvs, corners)

    def _vertices(self) -> torch.Tensor:
        return self._mesh.placed().detach().cpu() / self._unit

    def write(self, epoch: int) -> None:
        """The mesh after so many epochs."""
        texture = self._mesh.texture[0].detach().clamp(0, 1).cpu()
        self._log.add_mesh_batch(
            epoch, CATEGORY, [self._vertices()], materials_list=[{"rgb": PBRMaterial(diffuse_texture=texture)}]
        )


def export(folder: Path, mesh: TexturedMesh, template: Template, unit: float) -> None:
    """The mesh as files, in the unit of the scene."""
    painted = PBRMaterial(diffuse_texture=mesh.finished_texture(), material_name="painted")
    fitted = SurfaceMesh(
        vertices=mesh.placed().detach().cpu() / unit,
        faces=mesh.faces.cpu(),
        uvs=torch.from_numpy(template.uvs),
        face_uvs_idx=torch.from_numpy(template.face_uvs_idx),
        material_assignments=torch.zeros(len(mesh.faces), dtype=torch.int16),
        materials=[painted],
    )
    for name in MESHES:
        export_mesh(folder / name, fitted, overwrite=True)


@torch.no_grad()
def rendered(mesh: TexturedMesh, views: ObjectViews, config: FitConfig, most: int) -> list[NDArray[np.uint8]]:
    """(H, W, 3) uint8 of the first few views: what is seen of a mesh."""
    places = [views.read([place], mesh.vertices.device) for place in range(min(len(views), most))]
    images = [render(mesh, view, config).image[0].cpu().numpy() for view in places]
    return [(image * 255).round().astype(np.uint8) for image in images]


def distance_to(true: SurfaceMesh, mesh: TexturedMesh, unit: float) -> float:
    """Chamfer distance between a fitted surface and the true one, of vertices and triangles, in the unit of the scene."""
    assert true.vertices is not None and true.faces is not None
    return surface_distance(mesh.placed().cpu() / unit, mesh.faces.cpu(), true.vertices, true.faces.long())
