"""A mesh and a camera to the faces that a renderer wants."""

import torch
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render.camera import perspective_camera, rotate_translate_points
from scenemill.trainers.render.mesh_operators import face_normals, index_vertices_by_faces


class CameraArgumentsError(ConfigError, AssertionError):
    """A camera given in both ways, or in neither."""


def prepare_vertices(
    vertices: Tensor,
    faces: Tensor,
    camera_proj: Tensor,
    camera_rot: Tensor | None = None,
    camera_trans: Tensor | None = None,
    camera_transform: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Corners of faces in camera space and on the image plane, and unit normals in camera space.

    Args:
        vertices: (B, V, 3), in the world.
        faces: (F, 3) int64, vertex numbers.
        camera_proj: (3, 1) or (B, 3, 1), of ``generate_perspective_projection``.
        camera_rot: (B, 3, 3), and
        camera_trans: (B, 3) or (B, 3, 1), both of ``generate_rotate_translate_matrices``; or
        camera_transform: (B, 4, 3), of ``generate_transformation_matrix``.

    Returns:
        (B, F, 3, 3) in camera space, (B, F, 3, 2) on the image plane, and normals (B, F, 3). A face whose normal has z >= 0 shows its
        front: its corners turn left as the camera sees them.

    Raises:
        CameraArgumentsError: not exactly one of the two ways of saying where the camera is; also an ``AssertionError``.

    Source: ``kaolin.render.mesh.prepare_vertices`` 0.18.
    """
    if camera_transform is None:
        if camera_rot is None or camera_trans is None:
            raise CameraArgumentsError("no camera: give camera_transform, or both camera_rot and camera_trans")
        in_camera = rotate_translate_points(vertices, camera_rot, camera_trans)
    elif camera_rot is None and camera_trans is None:
        in_camera = torch.nn.functional.pad(vertices, (0, 1), value=1.0) @ camera_transform
    else:
        raise CameraArgumentsError("two cameras: give camera_transform, or camera_rot and camera_trans, not both")
    on_image = index_vertices_by_faces(perspective_camera(in_camera, camera_proj), faces)
    corners = index_vertices_by_faces(in_camera, faces)
    return corners, on_image, face_normals(corners, unit=True)
