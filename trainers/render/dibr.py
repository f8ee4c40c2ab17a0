"""DIB-R: features where faces show, and a soft mask around them, in one call."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render.pairs import CHUNK_BYTES
from scenemill.trainers.render.rasterization import MULTIPLIER, rasterize
from scenemill.trainers.render.soft_mask import dibr_soft_mask
from scenemill.trainers.render.winners import NEAR, visible_faces


def dibr_rasterization(
    height: int,
    width: int,
    face_vertices_z: Tensor,
    face_vertices_image: Tensor,
    face_features: Tensor | Sequence[Tensor],
    face_normals_z: Tensor,
    sigmainv: float = 7000,
    boxlen: float = 0.02,
    knum: int = 30,
    multiplier: float | None = None,
    eps: float | None = None,
    rast_backend: str = "auto",
    *,
    near: float | None = NEAR,
    perspective_correct: bool = False,
    grad_z: bool = False,
    supersample: int = 1,
    select: str = "index",
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Any, Tensor, Tensor]:
    """Front faces by ``rasterize``, then ``dibr_soft_mask`` of all faces around what they cover.

    Args:
        height: H of the image, in pixels.
        width: W.
        face_vertices_z: (B, F, 3), depths of the corners in camera space.
        face_vertices_image: (B, F, 3, 2), corners on the image plane.
        face_features: (B, F, 3, D), what the corners carry; or several such tensors.
        face_normals_z: (B, F), z of the faces' normals in camera space: front faces have 0 or more.
        sigmainv, boxlen, knum, select: of ``dibr_soft_mask``.
        multiplier, eps, near, perspective_correct, grad_z, supersample, chunk_bytes: of ``rasterize``.
        rast_backend: ``backend`` of ``rasterize``.

    Returns:
        Features (B, H, W, D) or a tuple of them, the soft mask (B, H, W), and the faces shown (B, H, W) int64, -1 where none is. Faces
        that reach behind the camera are in neither.

    Raises:
        ConfigError: shapes, devices or settings that make no sense together.

    Source: ``kaolin.render.mesh.dibr_rasterization`` 0.18; arguments after ``rast_backend`` are ours.
    """
    if face_normals_z.shape != face_vertices_z.shape[:2]:
        raise ConfigError(f"face_normals_z is {tuple(face_normals_z.shape)}, expected {tuple(face_vertices_z.shape[:2])}")
    faces = (height, width, face_vertices_z, face_vertices_image)
    features, face_idx = rasterize(
        *faces,
        face_features,
        face_normals_z >= 0,
        multiplier,
        eps,
        rast_backend,
        near=near,
        perspective_correct=perspective_correct,
        grad_z=grad_z,
        supersample=supersample,
        chunk_bytes=chunk_bytes,
    )
    soft_mask = dibr_soft_mask(
        face_vertices_image,
        face_idx,
        sigmainv,
        boxlen,
        knum,
        MULTIPLIER if multiplier is None else multiplier,
        valid_faces=visible_faces(face_vertices_image, face_vertices_z, near),
        select=select,
        chunk_bytes=chunk_bytes,
    )
    return features, soft_mask, face_idx
