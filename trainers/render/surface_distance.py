"""How near a surface is to another: the Chamfer distance between points drawn from both."""

import torch
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render.mesh_operators import face_normals, index_vertices_by_faces
from scenemill.trainers.render.point_distance import chamfer_distance


def sample_surface(vertices: Tensor, faces: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, 3): points drawn evenly by area from a mesh.

    Args:
        vertices: (V, 3).
        faces: (F, 3) int64, vertex numbers.
        count: how many points.
        generator: source of chance, on the device of ``vertices``.

    Raises:
        ConfigError: the mesh has no area.
    """
    corners = index_vertices_by_faces(vertices[None], faces)[0]
    areas = face_normals(corners[None])[0].norm(dim=-1)
    ends = areas.double().cumsum(0)
    if len(faces) == 0 or not float(ends[-1]) > 0:
        raise ConfigError(
            f"a mesh of {len(faces)} faces has no area to draw points from: check its vertices for NaN and for size 0"
        )
    device = vertices.device
    drawn = torch.rand(count, dtype=torch.float64, generator=generator, device=device) * ends[-1]
    chosen = corners[torch.searchsorted(ends, drawn, right=True).clamp(max=len(faces) - 1)]
    across, along = torch.rand((2, count, 1), dtype=vertices.dtype, generator=generator, device=device)
    root = across.sqrt()  # the root makes it even: near the first corner a face is narrow
    points: Tensor = (1 - root) * chosen[:, 0] + root * (1 - along) * chosen[:, 1] + root * along * chosen[:, 2]
    return points


def surface_distance(
    vertices_a: Tensor, faces_a: Tensor, vertices_b: Tensor, faces_b: Tensor, points: int = 10_000, seed: int = 0
) -> float:
    """Mean distance from either surface to the other: the mean of both directions, unsquared, in the unit of the vertices.

    A measure, without gradient. Two draws of one surface are about half the mean spacing of their points apart, not 0.

    Args:
        vertices_a: (V, 3), and
        faces_a: (F, 3) int64, one mesh.
        vertices_b: (W, 3), and
        faces_b: (G, 3) int64, the other one.
        points: drawn from each surface.
        seed: of the draw.

    Raises:
        ConfigError: a mesh has no area.
    """
    generator = torch.Generator().manual_seed(seed)
    meshes = ((vertices_a, faces_a), (vertices_b, faces_b))
    first, second = (sample_surface(vertices.detach().cpu(), faces.cpu(), points, generator)[None] for vertices, faces in meshes)
    return float(chamfer_distance(first.double(), second.double(), 0.5, 0.5, squared=False))
