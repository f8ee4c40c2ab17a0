"""Views of an object, rendered: for trying, testing and teaching, and to have views of a mesh where no renderer is at hand.

Cameras lie on a sphere and look at the object's middle. Colours are averages of several samples a pixel before black; labels, depth
and normals are those of the pixel's centre. What is rendered here, our renderer renders again from the stored cameras: a test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render.mesh_operators import face_normals
from scenemill.trainers.render.prepare import prepare_vertices
from scenemill.trainers.render.rasterization import rasterize
from scenemill.trainers.render.texture import texture_mapping
from scenemill.trainers.surface_mesh import SurfaceMesh
from scenemill.transforms.view_cameras import (
    APERTURE_MM,
    FOCAL_MM,
    ViewMetadata,
    cameras_around,
    field_of_view,
    looking_at,
    projection_of,
)

if TYPE_CHECKING:
    from scenemill.transforms.view_objects import TexturedObject
    from scenemill.transforms.view_writing import ObjectView

SUPERSAMPLE: Final = 4
"""Samples of colour along each side of a pixel."""

LARGEST_IMAGE: Final = 4096
_AIR: Final = 1.1  # of the distance at which the object just fits the image


@dataclass(frozen=True, eq=False)
class ShownMesh:
    """Triangles, and what they look like.

    Attributes:
        vertices: (V, 3) float32.
        faces: (F, 3) int64.
        face_uvs: (F, 3, 2) float32, v up.
        face_colors: (F, 3, 3) float32 in [0, 1], of the corners: what faces without a texture show.
        textures: each (1, 3, H, W) float32 in [0, 1], the first row on top.
        face_texture: (F,) int64, numbers of ``textures``; -1 for none.
    """

    vertices: Tensor
    faces: Tensor
    face_uvs: Tensor
    face_colors: Tensor
    textures: tuple[Tensor, ...]
    face_texture: Tensor

    @property
    def middle(self) -> Tensor:
        """(3,): of the bounding box."""
        return (self.vertices.amin(dim=0) + self.vertices.amax(dim=0)) / 2

    @property
    def reach(self) -> float:
        """Distance from the middle to the farthest vertex."""
        return float((self.vertices - self.middle).norm(dim=1).max())


@dataclass(frozen=True)
class Shots:
    """How an object is shown.

    Attributes:
        views: number of views.
        size: height and width of the images in pixels.
        radius: distance of the cameras from the object's middle; None for one from which it fits.
        elevation: lowest and highest angle of the cameras above the horizon, in degrees.
        seed: another seed shifts and turns the cameras.

    Raises:
        ConfigError: a value out of its range.
    """

    views: int = 100
    size: int = 256
    radius: float | None = None
    elevation: tuple[float, float] = (-30.0, 60.0)
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.elevation
        if self.views < 1 or not 2 <= self.size <= LARGEST_IMAGE or self.seed < 0:
            found = f"views {self.views}, size {self.size}, seed {self.seed}"
            raise ConfigError(f"{found}: ask for at least 1 view of 2 to {LARGEST_IMAGE} pixels and a seed from 0 up")
        if not -90 <= low <= high <= 90:
            raise ConfigError(f"elevation {low:g} to {high:g}: give two angles from -90 to 90 degrees, the lower one first")


def show_object(made: "TexturedObject") -> ShownMesh:
    """A made-up object, ready to be rendered."""
    texture = torch.from_numpy(made.texture).permute(2, 0, 1)[None].float() / 255
    face_uvs = torch.from_numpy(made.uvs[made.face_uvs_idx]).float()
    faces = torch.from_numpy(made.faces)
    ones = torch.ones(len(faces), 3, 3)
    return ShownMesh(torch.from_numpy(made.vertices).float(), faces, face_uvs, ones, (texture,), faces.new_zeros(len(faces)))


def show_mesh(mesh: SurfaceMesh) -> ShownMesh:
    """An imported mesh, ready to be rendered: by its materials' textures and colours, else by its corners' colours, else white.

    Args:
        mesh: of triangles, in the world; uvs with v down, materials as ``PBRMaterial``.

    Raises:
        ConfigError: no faces, or faces with more than three corners.
    """
    faces = mesh.faces.long().cpu()
    if not len(faces) or faces.shape[1] != 3:
        raise ConfigError(f"a mesh of {len(faces)} faces with {faces.shape[-1]} corners; give one with triangles")
    colors = torch.ones(len(faces), 3, 3) if mesh.face_colors is None else mesh.face_colors[..., :3].float().cpu()
    number = torch.full((len(faces),), -1)
    textures: list[Tensor] = []
    for place, material in enumerate(mesh.materials or ()):
        own = mesh.material_assignments.cpu() == place
        if material.diffuse_texture is not None and mesh.face_uvs is not None:
            number[own] = len(textures)
            textures.append(_as_texture(material.hwc().diffuse_texture))
        elif material.diffuse_color is not None:
            colors[own] = material.diffuse_color[:3].float().cpu()
    uvs = torch.zeros(len(faces), 3, 2) if mesh.face_uvs is None else mesh.face_uvs.float().cpu()
    upward = torch.stack([uvs[..., 0], 1 - uvs[..., 1]], dim=-1)
    return ShownMesh(mesh.vertices.float().cpu(), faces, upward, colors, tuple(textures), number)


def _as_texture(image: Tensor) -> Tensor:
    """(1, 3, H, W) float32 in [0, 1] from (H, W, C) floats or bytes; grey is spread over the channels, alpha dropped."""
    scaled = image.float().cpu() / (255 if image.dtype == torch.uint8 else 1)
    return scaled[..., :3].permute(2, 0, 1).expand(3, -1, -1)[None].contiguous()


def cameras_of(mesh: ShownMesh, shots: Shots, name: str) -> list[ViewMetadata]:
    """Where a mesh is seen from.

    Raises:
        ConfigError: the cameras would lie within the mesh.
    """
    fov = field_of_view(APERTURE_MM, FOCAL_MM)
    radius = _AIR * mesh.reach / float(np.sin(fov / 2)) if shots.radius is None else shots.radius
    if not radius > mesh.reach:
        raise ConfigError(f"radius {radius:g}: the object reaches {mesh.reach:.3g} from its middle; give more than that")
    image, middle = (shots.size, shots.size), mesh.middle.double().numpy()
    clipping_range = ((radius - mesh.reach) / 2, 2 * (radius + mesh.reach))
    directions = cameras_around(shots.views, shots.elevation, shots.seed)
    transforms = [looking_at(middle + radius * direction, middle) for direction in directions]
    assets = ((name, np.eye(4)),)
    return [ViewMetadata(transform, projection_of(fov, image), image, clipping_range, assets, {}) for transform in transforms]


def render_view(mesh: ShownMesh, camera: ViewMetadata, supersample: int = SUPERSAMPLE) -> "ObjectView":
    """What a camera sees of a mesh.

    Args:
        mesh: what is seen; both sides of a face show.
        camera: from where.
        supersample: samples of colour along each side of a pixel.
    """
    from scenemill.transforms.view_writing import ObjectView

    transform, projection = (torch.from_numpy(part).float() for part in (camera.transform, camera.projection))
    corners, on_image, _ = prepare_vertices(mesh.vertices[None], mesh.faces, projection, camera_transform=transform[None])
    z = corners[..., 2]
    colors = _colors(mesh, z, on_image, (camera.image[0] * supersample, camera.image[1] * supersample))
    rgb = functional.avg_pool2d(colors.permute(2, 0, 1)[None], supersample)[0].permute(1, 2, 0)
    depth, face = rasterize(*camera.image, z, on_image, -z[..., None], perspective_correct=True)
    seen = face[0] >= 0
    normals = face_normals(mesh.vertices[mesh.faces][None], unit=True)[0][face[0]] * seen[..., None]
    return ObjectView(
        (rgb * 255).round().clamp(0, 255).to(torch.uint8).numpy(),
        seen.int().numpy(),
        depth[0, ..., 0].numpy(),
        normals.numpy(),
    )


def _colors(mesh: ShownMesh, z: Tensor, on_image: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W, 3) colours of samples, black where nothing is."""
    features = [mesh.face_uvs[None], mesh.face_colors[None]]
    (uvs, colors), face = rasterize(*size, z, on_image, features, perspective_correct=True)
    inside = bool((mesh.face_uvs >= 0).all() and (mesh.face_uvs <= 1).all())
    shown = torch.where(face[0] >= 0, mesh.face_texture[face[0]], -1)
    found: Tensor = colors[0]
    for number, texture in enumerate(mesh.textures):
        own = shown == number
        found[own] = texture_mapping(uvs[0][own][None], texture, "bilinear", wrap="clamp" if inside else "repeat")[0]
    return found


def write_views(
    mesh: ShownMesh, out: Path, shots: Shots, name: str, on_view: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Render an object and write its views to a folder; the same arguments give the same bytes.

    Args:
        mesh: the object.
        out: a folder, which is there.
        shots: how it is shown.
        name: of the object, as the metadata say it.
        on_view: told how many views are written, of how many.

    Raises:
        ConfigError: the cameras would lie within the mesh.
    """
    from scenemill.transforms.view_writing import write_view

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a view is many short operations: on two threads they took 2.5 times the time of the processor
    try:
        with torch.no_grad():
            for number, camera in enumerate(cameras_of(mesh, shots, name)):
                write_view(out, number, render_view(mesh, camera), camera)
                on_view(number + 1, shots.views)
    finally:
        torch.set_num_threads(before)
