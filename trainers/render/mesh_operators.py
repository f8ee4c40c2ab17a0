"""Plain operators on triangle meshes: corners by face, normals, neighbours, and the uniform Laplacian.

Source: functions of ``kaolin.ops.mesh`` and ``kaolin.ops.pointcloud`` 0.18 of the same names; the sparse Laplacian and
``edge_to_faces`` are ours.
"""

import torch
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render.camera import TINY


class FaceSizeError(ConfigError, NotImplementedError):
    """Faces that are no triangles, where only triangles make sense."""


def index_vertices_by_faces(vertices_features: Tensor, faces: Tensor) -> Tensor:
    """What each corner of each face has, with gradients.

    Args:
        vertices_features: (B, V, K), any dtype.
        faces: (F, n) int64, vertex numbers.

    Returns:
        (B, F, n, K).
    """
    flat = vertices_features.index_select(1, faces.flatten())
    return flat.view(len(vertices_features), *faces.shape, vertices_features.shape[2])


def face_normals(face_vertices: Tensor, unit: bool = False) -> Tensor:
    """Normals of triangles, (B, F, 3): (v1 - v0) x (v2 - v0), as long as twice the area or, with ``unit``, 1.

    Args:
        face_vertices: (B, F, 3, 3), the corners' coordinates.
        unit: divide by the length, to which 1e-10 is added: a face without area has a normal of 0.

    Raises:
        FaceSizeError: faces of other than three corners; also a ``NotImplementedError``.

    >>> face_normals(torch.tensor([[[[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 3.0, 0.0]]]])).tolist()
    [[[0.0, 0.0, 6.0]]]
    """
    if face_vertices.shape[-2] != 3:
        raise FaceSizeError(f"faces of {face_vertices.shape[-2]} corners have no normal here: split them into triangles first")
    first, second, third = face_vertices.unbind(dim=-2)
    normals: Tensor = torch.linalg.cross(second - first, third - first)
    return normals / (normals.norm(dim=-1, keepdim=True) + TINY) if unit else normals


def adjacency_matrix(num_vertices: int, faces: Tensor, sparse: bool = True) -> Tensor:
    """(V, V) float32: 1 where an edge of a face joins two vertices, 0 elsewhere; symmetric.

    Args:
        num_vertices: V.
        faces: (F, n) int64, vertex numbers; edges join each corner and the next.
        sparse: as a coalesced COO tensor, else dense.

    >>> adjacency_matrix(4, torch.tensor([[0, 1, 2]]), sparse=False).int().tolist()
    [[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    """
    start, end = faces.flatten(), faces.roll(-1, dims=1).flatten()
    both = torch.unique(torch.cat([start, end]) * num_vertices + torch.cat([end, start]))  # far faster than by rows
    places = torch.stack([both // num_vertices, both % num_vertices])
    matrix = _sparse(num_vertices, places, torch.ones(len(both), device=faces.device))
    return matrix if sparse else matrix.to_dense()


def uniform_laplacian(num_vertices: int, faces: Tensor, sparse: bool = False) -> Tensor:
    """(V, V) float32: ``laplacian @ vertices`` is the way from each vertex to the mean of its neighbours.

    The diagonal is -1; a row holds 1 / (number of neighbours) at each neighbour. A vertex without any has -1 alone.

    Args:
        num_vertices: V.
        faces: (F, n) int64, vertex numbers.
        sparse: as a coalesced COO tensor: needs memory by edges, not by V x V.

    >>> uniform_laplacian(3, torch.tensor([[0, 1, 2]])).tolist()
    [[-1.0, 0.5, 0.5], [0.5, -1.0, 0.5], [0.5, 0.5, -1.0]]
    """
    adjacency = adjacency_matrix(num_vertices, faces)
    places, rows = adjacency.indices(), adjacency.indices()[0]
    shares = 1 / torch.bincount(rows, minlength=num_vertices)[rows].float()
    diagonal = torch.arange(num_vertices, device=faces.device).expand(2, -1)
    values = torch.cat([shares, -torch.ones(num_vertices, device=faces.device)])
    laplacian = _sparse(num_vertices, torch.cat([places, diagonal], dim=1), values)
    return laplacian if sparse else laplacian.to_dense()


def edge_to_faces(faces: Tensor) -> Tensor:
    """The two faces at each edge of a closed mesh.

    Args:
        faces: (F, 3) int64, vertex numbers.

    Returns:
        (E, 2) int64, face numbers, the lower one first; edges sorted by their vertices.

    Raises:
        ConfigError: an edge does not have exactly two faces, as at the border of an open mesh.

    >>> edge_to_faces(torch.tensor([[0, 1, 2], [0, 2, 1]])).tolist()
    [[0, 1], [0, 1], [0, 1]]
    """
    edges = torch.stack([faces, faces.roll(-1, dims=1)], dim=-1).view(-1, 2).sort(dim=1).values
    size = int(edges.max()) + 1 if len(edges) else 1
    found, edge, counts = torch.unique(edges[:, 0] * size + edges[:, 1], return_inverse=True, return_counts=True)
    wrong = (counts != 2).nonzero()[:, 0]
    if len(wrong):
        first, second = divmod(int(found[wrong[0]]), size)
        raise ConfigError(
            f"the edge of vertices {first} and {second} has {int(counts[wrong[0]])} face(s), and {len(wrong)} edges in all have not "
            "exactly 2: close the mesh, or leave out the term that needs its edges"
        )
    sides: Tensor = edge.argsort(stable=True) // faces.shape[1]
    return sides.view(-1, 2)


def center_points(points: Tensor, normalize: bool = False, eps: float = 1e-6) -> Tensor:
    """Points moved so that the middle of their bounding box is the origin.

    Args:
        points: (B, N, 3).
        normalize: divide by the longest side of the box too, or by ``eps`` if that is more.
        eps: see there.

    Returns:
        (B, N, 3); with ``normalize`` within [-0.5, 0.5].

    >>> center_points(torch.tensor([[[0.0, 0.0, 0.0], [4.0, 2.0, 2.0]]]), normalize=True).tolist()
    [[[-0.5, -0.25, -0.25], [0.5, 0.25, 0.25]]]
    """
    low, high = points.amin(dim=1, keepdim=True), points.amax(dim=1, keepdim=True)
    centred = points - (low + high) / 2
    return centred / (high - low).amax(dim=-1, keepdim=True).clamp(min=eps) if normalize else centred


def _sparse(size: int, places: Tensor, values: Tensor) -> Tensor:
    """(size, size), coalesced."""
    return torch.sparse_coo_tensor(places, values, (size, size), check_invariants=True).coalesce()
