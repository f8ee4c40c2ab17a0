"""Rasterisation: which face each pixel shows, and what the face's corners carry, interpolated there. Differentiable."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render.interpolate import Covered, interpolate
from scenemill.trainers.render.pairs import CHUNK_BYTES, Raster, face_boxes
from scenemill.trainers.render.winners import NEAR, nearest_faces, visible_faces

MULTIPLIER: Final = 1000.0
EPS: Final = 1e-8
BACKENDS: Final = ("auto", "cuda", "torch")


def rasterize(
    height: int,
    width: int,
    face_vertices_z: Tensor,
    face_vertices_image: Tensor,
    face_features: Tensor | Sequence[Tensor],
    valid_faces: Tensor | None = None,
    multiplier: float | None = None,
    eps: float | None = None,
    backend: str = "auto",
    *,
    near: float | None = NEAR,
    perspective_correct: bool = False,
    grad_z: bool = False,
    supersample: int = 1,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Any, Tensor]:
    """Features of faces on the pixels where they are in front.

    A pixel shows, of the faces that its centre lies in, the one of greatest z, and of equal ones the first. Both sides of a face show.
    Faces with a coordinate that is not finite are left out. The same code runs on the tensors' device, CPU or CUDA; gradients are
    deterministic where ``torch.use_deterministic_algorithms`` asks for it.

    Args:
        height: H of the image, in pixels.
        width: W.
        face_vertices_z: (B, F, 3), depths of the corners in camera space: below 0 in front of the camera, larger is nearer.
        face_vertices_image: (B, F, 3, 2), corners on the image plane.
        face_features: (B, F, 3, D), what the corners carry; or several such tensors.
        valid_faces: (B, F) bool, faces to draw; all if None.
        multiplier: scale of image coordinates in the computation; 1000 if None.
        eps: keeps the weights of faces without area finite; 1e-8 if None.
        backend: "auto", "cuda" or "torch", one and the same here.
        near: faces with a corner not farther than this in front of the camera are left out; None draws them, as Kaolin does.
        perspective_correct: interpolate in space; else on the screen, as Kaolin does, which bends textures of large tilted faces.
        grad_z: gradients to the depths too, through perspective.
        supersample: average this many times this many samples per pixel into the features.
        chunk_bytes: memory that pairs of faces and pixels may take at a time.

    Returns:
        Features (B, H, W, D), 0 where there is no face, or a tuple of such tensors for several; and the face shown at the centre of each
        pixel, (B, H, W) int64, -1 where there is none. Float16 and bfloat16 are computed in float32.

    Raises:
        ConfigError: shapes, devices or settings that make no sense together.

    Source: ``kaolin.render.mesh.rasterize`` 0.18; arguments after ``backend`` are ours.
    """
    parts = [face_features] if isinstance(face_features, Tensor) else list(face_features)
    if not parts:
        raise ConfigError("face_features is empty: give one tensor (B, F, 3, D), or several")
    features = torch.cat(parts, dim=-1)
    _check_backend(backend)
    _check_faces(height, width, face_vertices_image, face_vertices_z, features, valid_faces)
    settings = _Settings(
        MULTIPLIER if multiplier is None else multiplier,
        EPS if eps is None else eps,
        near,
        perspective_correct,
        grad_z,
        supersample,
        chunk_bytes,
    )
    faces = _Faces(in_float32(face_vertices_image), in_float32(face_vertices_z), in_float32(features))
    found, face_idx = settings.render((height, width), faces, valid_faces)
    if supersample > 1:
        found, _ = settings.render((supersample * height, supersample * width), faces, valid_faces)
        found = functional.avg_pool2d(found.movedim(3, 1), supersample).movedim(1, 3)
    found = found.to(features.dtype)
    if isinstance(face_features, Tensor):
        return found, face_idx
    return torch.split(found, [part.shape[-1] for part in parts], dim=-1), face_idx


@dataclass(frozen=True)
class _Settings:
    """How to draw; see the arguments of ``rasterize``."""

    multiplier: float
    eps: float
    near: float | None
    perspective: bool
    grad_z: bool
    supersample: int
    chunk_bytes: int

    def __post_init__(self) -> None:
        if not self.multiplier > 0:
            raise ConfigError(f"multiplier {self.multiplier}: give a number above 0, or None for {MULTIPLIER:.0f}")
        if self.perspective and (self.near is None or self.near <= 0):
            raise ConfigError(f"perspective_correct divides by depth: near must be above 0, not {self.near}")
        if self.grad_z and not self.perspective:
            raise ConfigError("grad_z has no effect without perspective_correct: set both, or pass the depth as a feature")
        if self.supersample < 1:
            raise ConfigError(f"supersample {self.supersample}: give 1 or a greater whole number")

    def render(self, size: tuple[int, int], faces: "_Faces", valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, H, W, D) and (B, H, W)."""
        batch, count = faces.z.shape[:2]
        raster = Raster(batch, *size, self.multiplier)
        flat_image, flat_z = faces.image.reshape(-1, 3, 2), faces.z.reshape(-1, 3)
        with torch.no_grad():
            drawn = visible_faces(faces.image, faces.z, self.near)
            drawn = drawn if valid is None else drawn & valid
            scaled = flat_image * self.multiplier
            boxes = face_boxes(scaled, drawn.flatten(), raster)
            owner = nearest_faces(scaled, flat_z, boxes, raster, self.eps, self.perspective, self.chunk_bytes)
            pixel = (owner >= 0).nonzero()[:, 0]
        covered = Covered(pixel, owner.index_select(0, pixel), raster, self.eps, self.perspective)
        flat_z = flat_z if self.grad_z else flat_z.detach()
        width = faces.features.shape[3]
        found = interpolate(flat_image, flat_z, faces.features.reshape(-1, 3, width), covered)
        first = count * torch.arange(batch, device=owner.device)[:, None, None]
        face_idx = (owner.view(batch, *size) - first).clamp_(min=-1)
        return found.view(batch, *size, width), face_idx


@dataclass(frozen=True)
class _Faces:
    """(B, F, 3, 2), (B, F, 3) and (B, F, 3, D); see the arguments of ``rasterize``."""

    image: Tensor
    z: Tensor
    features: Tensor


def in_float32(tensor: Tensor) -> Tensor:
    """Float16 and bfloat16 as float32; others as they are."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _check_backend(backend: str) -> None:
    if backend in ("nvdiffrast", "nvdiffrast_fwd"):
        raise ConfigError(f"backend {backend!r}: nvdiffrast is not used here; 'auto' runs on CPU and CUDA without it")
    if backend not in BACKENDS:
        raise ConfigError(f"backend {backend!r}: give one of {', '.join(map(repr, BACKENDS))}")


def _check_faces(height: int, width: int, image: Tensor, z: Tensor, features: Tensor, valid: Tensor | None) -> None:
    if height < 1 or width < 1:
        raise ConfigError(f"an image of {height} x {width} pixels: both must be at least 1")
    batch, faces = image.shape[:2]
    wanted = {"face_vertices_image": (image, (batch, faces, 3, 2)), "face_vertices_z": (z, (batch, faces, 3))}
    wanted["face_features"] = (features, (batch, faces, 3, *features.shape[3:4]))
    if valid is not None:
        wanted["valid_faces"] = (valid, (batch, faces))
    for name, (held, shape) in wanted.items():
        if held.shape != shape or held.device != image.device:
            found = f"{tuple(held.shape)} on {held.device}"
            raise ConfigError(f"{name} is {found}, expected {shape} on {image.device}, as face_vertices_image has it")
    if not (in_float32(image).dtype == in_float32(z).dtype == in_float32(features).dtype and features.is_floating_point()):
        kinds = f"{image.dtype}, {z.dtype} and {features.dtype}"
        raise ConfigError(f"face_vertices_image, face_vertices_z and face_features are {kinds}: give all in one floating dtype")
