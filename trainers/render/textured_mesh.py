"""A textured mesh that can be learned: fixed triangles, whose vertices, place and texture are parameters."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from scenemill.trainers.render.dibr import dibr_rasterization
from scenemill.trainers.render.mesh_operators import center_points
from scenemill.trainers.render.prepare import prepare_vertices
from scenemill.trainers.render.texture import texture_mapping


class Rendered(NamedTuple):
    """What cameras see of a mesh.

    Attributes:
        image: (B, H, W, 3) in [0, 1], black where nothing is.
        soft_mask: (B, H, W) in [0, 1], 1 on the mesh.
        covered: (B, H, W) bool, the pixels whose centre is on it.
        normals: (B, F, 3), unit normals of the faces in camera space.
    """

    image: Tensor
    soft_mask: Tensor
    covered: Tensor
    normals: Tensor


class TexturedMesh(nn.Module):
    """Triangles of which shape, place and colours are learned.

    The shape is kept around the middle of its bounding box; ``shift`` says where that is. So the place of a mesh, and its shape, are
    learned apart.

    Args:
        vertices: (V, 3) float32.
        faces: (F, 3) int64, vertex numbers.
        face_uvs: (F, 3, 2) float32, texture coordinates of the corners, v up.
        texture_size: texels a side.

    Attributes:
        vertices: (V, 3).
        shift: (3,), where the middle of the mesh is.
        texture: (1, 3, T, T), the first row on top; white at first.
    """

    faces: Tensor
    face_uvs: Tensor

    def __init__(self, vertices: Tensor, faces: Tensor, face_uvs: Tensor, texture_size: int) -> None:
        super().__init__()
        self.vertices = nn.Parameter(vertices.detach().clone())
        self.shift = nn.Parameter(vertices.new_zeros(3))
        self.texture = nn.Parameter(vertices.new_ones(1, 3, texture_size, texture_size))
        self.register_buffer("faces", faces.detach().clone())
        self.register_buffer("face_uvs", face_uvs.detach().clone())

    def placed(self) -> Tensor:
        """(V, 3): the vertices, where they are."""
        return center_points(self.vertices[None])[0] + self.shift

    def forward(
        self,
        camera_transform: Tensor,
        camera_projection: Tensor,
        size: tuple[int, int],
        *,
        sigmainv: float = 7000.0,
        boxlen: float = 0.02,
        knum: int = 30,
    ) -> Rendered:
        """What cameras see of the mesh.

        Args:
            camera_transform: (B, 4, 3), camera from world, for rows.
            camera_projection: (B, 3, 1).
            size: (height, width) in pixels.
            sigmainv, boxlen, knum: of the soft mask.
        """
        batch = len(camera_transform)
        vertices = self.placed().expand(batch, -1, -1)
        corners, on_image, normals = prepare_vertices(vertices, self.faces, camera_projection, camera_transform=camera_transform)
        inside = self.face_uvs.new_ones(*self.face_uvs.shape[:2], 1)
        features = [held.expand(batch, *held.shape) for held in (self.face_uvs, inside)]
        (uvs, cover), soft_mask, shown = dibr_rasterization(
            *size, corners[..., 2], on_image, features, normals[..., 2], sigmainv, boxlen, knum
        )
        colors = texture_mapping(uvs, self.texture.expand(batch, -1, -1, -1), "bilinear")
        return Rendered((colors * cover).clamp(0, 1), soft_mask, shown >= 0, normals)

    @torch.no_grad()
    def finished_texture(self) -> Tensor:
        """(T, T, 3) in [0, 1]: the texture, texels that no view has seen like the nearest that one has.

        A texel is taken for unseen where it has the value that it began with.
        """
        from scipy.ndimage import distance_transform_edt

        texture = self.texture[0].clamp(0, 1).permute(1, 2, 0).cpu()
        unseen = (self.texture[0] == 1).all(dim=0).cpu()
        if bool(unseen.all()) or not bool(unseen.any()):
            return texture
        row, column = distance_transform_edt(unseen.numpy(), return_distances=False, return_indices=True)
        return texture[torch.from_numpy(row).long(), torch.from_numpy(column).long()]
