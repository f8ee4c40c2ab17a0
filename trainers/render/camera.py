"""Pinhole cameras as small matrices: where points of the world fall on the image plane.

Camera space is right-handed: x right, y up, the camera at the origin looks along -z, so what it sees has z < 0. The image plane spans
[-1, 1] on both axes, x right, y up. Vectors are rows: ``p_camera = [p_world, 1] @ M`` with M of shape (4, 3).

Source: the functions and arguments of ``kaolin.render.camera`` 0.18 of the same names.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

TINY = 1e-10
"""Added to the length of a vector before dividing by it."""


def generate_perspective_projection(fovyangle: float, ratio: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scale of each axis by which points of camera space fall on the image plane, see ``perspective_camera``.

    Args:
        fovyangle: vertical field of view, in radians.
        ratio: width over height of the image.
        dtype: of the result.

    Returns:
        (3, 1): 1 / (ratio t), 1 / t and -1, with t = tan(fovyangle / 2).

    >>> generate_perspective_projection(math.pi / 2, 2.0).flatten().tolist()
    [0.5, 1.0, -1.0]
    """
    tangent = math.tan(fovyangle / 2)
    return torch.tensor([[1 / (ratio * tangent)], [1 / tangent], [-1.0]], dtype=dtype)


def perspective_camera(points: Tensor, camera_proj: Tensor) -> Tensor:
    """Points of camera space on the image plane.

    Args:
        points: (B, N, 3), in camera space.
        camera_proj: (3, 1) or (B, 3, 1), of ``generate_perspective_projection``.

    Returns:
        (B, N, 2) in [-1, 1] where the image is; the plane of the camera itself, z = 0, falls on infinity.

    >>> perspective_camera(torch.tensor([[[1.0, 2.0, -4.0]]]), generate_perspective_projection(math.pi / 2)).tolist()
    [[[0.25, 0.5]]]
    """
    scaled = points * camera_proj.view(-1, 1, 3)
    return scaled[..., :2] / scaled[..., 2:]


def generate_rotate_translate_matrices(
    camera_position: Tensor, look_at: Tensor, camera_up_direction: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotation and position of cameras, for ``rotate_translate_points``.

    Args:
        camera_position: (B, 3), in the world.
        look_at: (B, 3), the points in the middle of the images.
        camera_up_direction: (B, 3), what is up in the image; not parallel to the view. Batches of 1 are repeated.

    Returns:
        (B, 3, 3), rows are the axes of the camera in the world; and (B, 3), ``camera_position``.
    """
    forward = _unit(look_at - camera_position)
    forward, up = _repeated(forward, camera_up_direction)
    right = _unit(torch.linalg.cross(forward, up))
    above = torch.linalg.cross(right, forward)
    return torch.stack([right, above, -forward], dim=1), camera_position


def rotate_translate_points(points: Tensor, camera_rot: Tensor, camera_trans: Tensor) -> Tensor:
    """Points of the world in camera space, (B, N, 3): ``(points - camera_trans) @ camera_rot^T``.

    Args:
        points: (B, N, 3), in the world.
        camera_rot: (B, 3, 3), of ``generate_rotate_translate_matrices``.
        camera_trans: (B, 3) or (B, 3, 1), the cameras' positions.
    """
    turned: Tensor = (points - camera_trans.reshape(-1, 1, 3)) @ camera_rot.transpose(1, 2)
    return turned


def generate_transformation_matrix(camera_position: Tensor, look_at: Tensor, camera_up_direction: Tensor) -> Tensor:
    """The matrix that takes points of the world to camera space: ``[points, 1] @ matrix``.

    Args:
        camera_position: (B, 3), in the world.
        look_at: (B, 3), the points in the middle of the images; not the cameras' positions.
        camera_up_direction: (B, 3), what is up in the image; not parallel to the view. Batches of 1 are repeated.

    Returns:
        (B, 4, 3): columns are the axes x, y, z of the camera in the world; the last row moves its position to the origin.

    >>> position = torch.tensor([[0.0, 0.0, 4.0]])
    >>> generate_transformation_matrix(position, torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]]))[0].tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, -4.0]]
    """
    backward = functional.normalize(camera_position - look_at, dim=1, eps=0.0)
    backward, up = _repeated(backward, camera_up_direction)
    right = functional.normalize(torch.linalg.cross(up, backward), dim=1, eps=0.0)
    above = torch.linalg.cross(backward, right)
    axes = torch.stack([right, above, backward], dim=2)
    moved: Tensor = -camera_position[:, None] @ axes
    return torch.cat([axes, moved.expand(len(axes), -1, -1)], dim=1)


def _repeated(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both (B, 3), where either may be (1, 3)."""
    batch = max(len(first), len(second))
    return first.expand(batch, -1), second.expand(batch, -1)


def _unit(vectors: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / (lengths + TINY)
