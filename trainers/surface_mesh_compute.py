"""What of a mesh follows from other parts of it: at corners from vertices, at vertices from corners, normals and tangents.

All functions take one mesh, or a batch with the batch's axis first; indices may have that axis or serve all meshes.

Source: the ways are those of Kaolin's ``rep.SurfaceMesh``, Apache 2.0; tangents after E. Lengyel, "Computing Tangent Space Basis Vectors
for an Arbitrary Mesh", 2001.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import torch

from scenemill.schemas.errors import ConfigError

_TINY: Final = 1e-10


class Way(NamedTuple):
    """One way to compute an attribute.

    Attributes:
        needs: the names of other attributes.
        compute: the number of vertices and the needed tensors in, the attribute out.
        told: what it comes from in the end, for texts, where that says more than ``needs``.
    """

    needs: tuple[str, ...]
    compute: Callable[..., torch.Tensor]
    told: tuple[str, ...] = ()


def at_corners(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The values of corners.

    Args:
        values: (..., N, C).
        index: (F, n) or (..., F, n) integers, rows of the values.

    Returns:
        (..., F, n, C).

    Raises:
        ConfigError: there are no values to take from.
    """
    if index.numel() and not values.shape[-2]:
        raise ConfigError("indices into nothing; give values")
    if index.ndim == 2 or values.ndim == 2:
        return values[..., index, :]
    return torch.stack([one[rows] for one, rows in zip(values, index, strict=True)])


def at_vertices(count: int, faces: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The mean at each vertex of the values that its corners have; 0 where no face is.

    Args:
        count: V, vertices.
        faces: (F, n) integers.
        values: (..., F, n, C) floats.

    Returns:
        (..., V, C). Means of unit vectors are shorter than those, the more so the more they differ.
    """
    corners, lead = faces.reshape(-1), values.shape[:-3]
    flat = values.reshape(*lead, len(corners), values.shape[-1])
    sums = values.new_zeros(*lead, count, values.shape[-1]).index_add(-2, corners, flat)
    shares = values.new_zeros(count).index_add(0, corners, values.new_ones(len(corners)))
    return sums / shares.clamp(min=1)[:, None]


def face_normals(face_vertices: torch.Tensor) -> torch.Tensor:
    """Unit normals of triangles, the same for their three corners; counter-clockwise is the front.

    Args:
        face_vertices: (..., F, 3, 3).

    Raises:
        ConfigError: faces of another size, which need not be flat.
    """
    if face_vertices.shape[-2] != 3:
        raise ConfigError(f"faces of {face_vertices.shape[-2]} corners; only triangles have a normal without further knowledge")
    first, second, third = face_vertices.unbind(-2)
    normals = torch.linalg.cross(second - first, third - first, dim=-1)
    unit: torch.Tensor = normals / (normals.norm(dim=-1, keepdim=True) + _TINY)
    return unit.unsqueeze(-2).repeat_interleave(3, dim=-2)


def vertex_tangents(
    count: int, faces: torch.Tensor, face_vertices: torch.Tensor, face_uvs: torch.Tensor, vertex_normals: torch.Tensor
) -> torch.Tensor:
    """Unit vectors at right angles to the normals along which u grows.

    Args:
        count: V, vertices.
        faces: (F, 3) integers.
        face_vertices: (..., F, 3, 3).
        face_uvs: (..., F, 3, 2).
        vertex_normals: (..., V, 3).

    Returns:
        (..., V, 3).

    Raises:
        ConfigError: faces that are no triangles.
    """
    if faces.shape[-1] != 3:
        raise ConfigError(f"faces of {faces.shape[-1]} corners; only triangles have tangents")
    along, across = (face_vertices[..., corner, :] - face_vertices[..., 0, :] for corner in (1, 2))
    step, stride = (face_uvs[..., corner, :] - face_uvs[..., 0, :] for corner in (1, 2))
    area = step[..., 0] * stride[..., 1] - step[..., 1] * stride[..., 0]
    area = torch.where(area > 0, area.clamp(min=1e-6), area.clamp(max=-1e-6))  # no coordinates make no infinite tangents
    of_faces = (along * stride[..., 1:] - across * step[..., 1:]) / area[..., None]
    mean = _unit(at_vertices(count, faces, of_faces.unsqueeze(-2).expand(face_vertices.shape)))
    upright = _unit(vertex_normals)
    return _unit(mean - upright * (mean * upright).sum(dim=-1, keepdim=True))


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    unit: torch.Tensor = torch.nn.functional.normalize(vectors, dim=-1)
    return unit


def _uvs_of_corners(_count: int, uvs: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return at_corners(uvs, index.clamp(min=0))  # a corner without coordinates (-1) gets the first, as Kaolin has it


def _normals_of_corners(_count: int, normals: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    if bool((index < 0).any()):
        raise ConfigError("corners without a normal; normals come from the vertices then")
    return at_corners(normals, index)


def _of_vertices(_count: int, faces: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return at_corners(values, faces)


WAYS: Final[dict[str, tuple[Way, ...]]] = {
    "face_vertices": (Way(("faces", "vertices"), _of_vertices),),
    "face_normals": (
        Way(("normals", "face_normals_idx"), _normals_of_corners),
        Way(("vertex_normals", "faces"), lambda _count, normals, faces: at_corners(normals, faces)),
        Way(("face_vertices",), lambda _count, corners: face_normals(corners), told=("vertices", "faces")),
    ),
    "face_uvs": (Way(("uvs", "face_uvs_idx"), _uvs_of_corners),),
    "vertex_normals": (Way(("faces", "face_normals"), at_vertices),),
    "vertex_tangents": (Way(("faces", "face_vertices", "face_uvs", "vertex_normals"), vertex_tangents),),
    "vertex_colors": (Way(("faces", "face_colors"), at_vertices),),
    "vertex_features": (Way(("faces", "face_features"), at_vertices),),
    "face_tangents": (Way(("faces", "vertex_tangents"), _of_vertices),),
    "face_colors": (Way(("faces", "vertex_colors"), _of_vertices),),
    "face_features": (Way(("faces", "vertex_features"), _of_vertices),),
}
"""Attribute -> the ways to compute it, the first that can be goes."""


def ways_of(attr: str) -> str:
    """What an attribute can be computed from, in words.

    >>> ways_of("face_normals")
    '(normals, face_normals_idx) or (vertex_normals, faces) or (vertices, faces)'
    """
    return " or ".join(f"({', '.join(way.told or way.needs)})" for way in WAYS[attr])
