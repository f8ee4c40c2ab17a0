"""Faces of several sizes: refused, left out, or cut into fans of triangles.

Source: the names and arguments are those of the handlers of Kaolin's ``io.utils``, Apache 2.0.
"""

from collections.abc import Mapping
from typing import Any

import torch

from scenemill.schemas.errors import ConfigError


class NonHomogeneousMeshError(ConfigError):
    """Faces of several sizes where one size was wanted."""


def heterogeneous_mesh_handler_skip(*_parts: Any, **_named: Any) -> None:
    """Leave out meshes whose faces have several sizes."""


def mesh_handler_naive_triangulate(
    vertices: torch.Tensor,
    face_vertex_counts: torch.Tensor,
    *features: torch.Tensor | None,
    face_assignments: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Any, ...]:
    """Cut faces into fans around their first corners: (0, 1, 2), (0, 2, 3) and so on.

    Args:
        vertices: (V, 3), returned as they are.
        face_vertex_counts: (F,) int64, corners of each face.
        features: (C,) or (C, k), of the corners of one face after another; None stays None.
        face_assignments: name -> (n,) faces, or (n, 2) first faces and those after the last.

    Returns:
        The vertices, (T,) counts of 3, (T, 3) or (T, 3, k) for each feature, and the assignments of triangles if any were given.
    """
    triangles = (face_vertex_counts - 2).clamp(min=0)
    first_corner, first_triangle = (sizes.cumsum(0) - sizes for sizes in (face_vertex_counts, triangles))
    number = torch.arange(int(triangles.sum())) - first_triangle.repeat_interleave(triangles)
    start = first_corner.repeat_interleave(triangles)
    corners = torch.stack([start, start + number + 1, start + number + 2], dim=1)
    cut = [None if feature is None else feature[corners] for feature in features]
    parts = (vertices, torch.full((len(corners),), 3), *cut)
    if face_assignments is None:
        return parts
    ends = first_triangle + triangles
    return (*parts, {name: _triangles_of(faces, first_triangle, ends) for name, faces in face_assignments.items()})


heterogeneous_mesh_handler_naive_homogenize = mesh_handler_naive_triangulate
"""The same by an older name of Kaolin's, which callers still use."""


def _triangles_of(faces: torch.Tensor, first: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    if faces.ndim == 2:
        return torch.stack([first[faces[:, 0]], end[faces[:, 1] - 1]], dim=1)
    sizes = end[faces] - first[faces]
    before = sizes.cumsum(0) - sizes
    return torch.arange(int(sizes.sum())) + (first[faces] - before).repeat_interleave(sizes)
