"""What fitting a mesh to views minimises, and measures of meshes that keep it well-formed.

Source: ``mask_iou``, ``average_edge_length`` and ``uniform_laplacian_smoothing`` of ``kaolin.metrics`` 0.18; the other terms are those of
its DIB-R tutorial.
"""

import torch
from torch import Tensor
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render.camera import TINY
from scenemill.trainers.render.mesh_operators import index_vertices_by_faces, uniform_laplacian


def image_loss(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of images of one shape, background included: that of ``target`` should be what the renderer leaves, 0."""
    _same_shape(image, target)
    return (image - target).abs().mean()


def mask_iou(lhs_mask: Tensor, rhs_mask: Tensor) -> Tensor:
    """1 minus the mean over the batch of intersection over union.

    Args:
        lhs_mask: (B, H, W) in [0, 1], and
        rhs_mask: (B, H, W); soft, bool or whole numbers.

    Returns:
        () in [0, 1], in the floating dtype of the masks; 1 where both are empty, so nothing fits an empty mask. Float16 and bfloat16
        are computed in float32.

    Raises:
        ConfigError: shapes differ.

    >>> float(mask_iou(torch.tensor([[[True, True, False]]]), torch.tensor([[[0, 1, 1]]])).mul(3).round())
    2.0
    """
    _same_shape(lhs_mask, rhs_mask)
    given = torch.promote_types(lhs_mask.dtype, rhs_mask.dtype)
    dtype = torch.promote_types(given, torch.get_default_dtype())
    lhs, rhs = (mask.flatten(1).to(dtype) for mask in (lhs_mask, rhs_mask))
    both = lhs * rhs
    loss: Tensor = 1 - (both.sum(dim=1) / ((lhs + rhs - both).sum(dim=1) + TINY)).mean()
    return loss.to(given) if given.is_floating_point else loss


def laplacian_loss(vertices: Tensor, initial: Tensor, laplacian: Tensor) -> Tensor:
    """How unevenly vertices moved: the sum of squares of the Laplacian of their displacement, mean over the batch.

    A translation costs nothing, and neither does the roughness that the mesh began with.

    Args:
        vertices: (B, V, 3).
        initial: (B, V, 3) or (1, V, 3), before the fit.
        laplacian: (V, V), dense or sparse, of ``uniform_laplacian``.
    """
    moved = (vertices - initial).transpose(0, 1).flatten(1)
    return (laplacian.to(moved.dtype) @ moved).square().sum() / len(vertices)


def flatness_loss(normals: Tensor, edge_faces: Tensor) -> Tensor:
    """How folded a mesh is at its edges: the sum over edges of (cos - 1)^2, mean over the batch.

    Args:
        normals: (B, F, 3), of any length above 0.
        edge_faces: (E, 2) int64, of ``edge_to_faces``.
    """
    first, second = (normals.index_select(1, side) for side in edge_faces.unbind(dim=1))
    return (functional.cosine_similarity(first, second, dim=-1) - 1).square().sum() / len(normals)


def average_edge_length(vertices: Tensor, faces: Tensor) -> Tensor:
    """(B, F): mean length of the three edges of each face.

    Args:
        vertices: (B, V, 3).
        faces: (F, 3) int64, vertex numbers.

    >>> average_edge_length(torch.tensor([[[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]]), torch.tensor([[0, 1, 2]])).tolist()
    [[4.0]]
    """
    corners = index_vertices_by_faces(vertices, faces)
    lengths: Tensor = torch.linalg.vector_norm(corners - corners.roll(-1, dims=2), dim=-1)
    return lengths.mean(dim=-1)


def uniform_laplacian_smoothing(vertices: Tensor, faces: Tensor) -> Tensor:
    """(B, V, 3): each vertex at the mean of its neighbours; one without any goes to the origin.

    Args:
        vertices: (B, V, 3).
        faces: (F, 3) int64, vertex numbers.
    """
    batch, count, width = vertices.shape
    laplacian = uniform_laplacian(count, faces, sparse=True).to(vertices.dtype)
    moved = (laplacian @ vertices.transpose(0, 1).flatten(1)).view(count, batch, width)
    smoothed: Tensor = moved.transpose(0, 1) + vertices
    return smoothed


def _same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ConfigError(f"{tuple(first.shape)} and {tuple(second.shape)} are compared element by element: give one shape")
