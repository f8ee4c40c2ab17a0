"""The soft mask: how much each pixel beside the faces is pulled towards them. It gives vertices a gradient outside the silhouette.

Source: Chen et al., "Learning to Predict 3D Objects with an Interpolation-based Differentiable Renderer", NeurIPS 2019, section 3.2, in
the form of ``kaolin.render.mesh.dibr_soft_mask`` 0.18.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.render.interpolate import add_by_face
from scenemill.trainers.render.outline import EDGE_EPS, outline_distance, outline_slopes
from scenemill.trainers.render.pairs import CHUNK_BYTES, Raster, Wanted, face_boxes, face_pixel_pairs, wanted_pixels
from scenemill.trainers.render.rasterization import in_float32
from scenemill.trainers.render.winners import corner_columns

SELECT: Final = ("index", "nearest")
CERTAIN: Final = 1e-7
"""Added to 1 - p in the gradient, which stays finite on an outline."""


def dibr_soft_mask(
    face_vertices_image: Tensor,
    selected_face_idx: Tensor,
    sigmainv: float = 7000,
    boxlen: float = 0.02,
    knum: int = 30,
    multiplier: float = 1000.0,
    *,
    valid_faces: Tensor | None = None,
    select: str = "index",
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """1 where a face is shown; elsewhere 1 - prod(1 - p) over near faces, with p = exp(-sigmainv d^2) and d the way to the outline.

    A face is near if the pixel's centre lies in its bounding box, widened by ``boxlen``. Faces turned away count too. Good values of
    ``sigmainv`` lie between 1 / 3e-4, soft, and 1 / 3e-5, sharp; p falls to 1e-3 at d = sqrt(6.9 / sigmainv): choose ``boxlen`` of
    that size.

    Args:
        face_vertices_image: (B, F, 3, 2), corners on the image plane. Faces with a coordinate that is not finite are left out.
        selected_face_idx: (B, H, W) int64, of ``rasterize``: below 0 where no face is shown.
        sigmainv: sharpness, per squared image unit.
        boxlen: in image units.
        knum: this many near faces count at most per pixel.
        multiplier: scale of image coordinates in the computation.
        valid_faces: (B, F) bool, faces that count; all if None.
        select: which ``knum`` of more: "index" the first ones, as Kaolin; "nearest" those of smallest d, which leaves no seams on
            dense meshes.
        chunk_bytes: memory that pairs of faces and pixels may take at a time.

    Returns:
        (B, H, W) in [0, 1], with gradients to ``face_vertices_image``. Float16 and bfloat16 are computed in float32.

    Raises:
        ConfigError: shapes, devices or settings that make no sense together.

    Source: ``kaolin.render.mesh.dibr_soft_mask`` 0.18; arguments after ``multiplier`` are ours.
    """
    if not multiplier > 0:
        raise ConfigError(f"multiplier {multiplier}: give a number above 0")
    _check(face_vertices_image, selected_face_idx, valid_faces, select, knum)
    batch, height, width = selected_face_idx.shape
    image = in_float32(face_vertices_image).reshape(-1, 3, 2)
    drawn = torch.ones(len(image), dtype=torch.bool, device=image.device) if valid_faces is None else valid_faces.flatten()
    settings = Settings(Raster(batch, height, width, multiplier), sigmainv, boxlen, knum, select == "nearest", chunk_bytes)
    with torch.no_grad():
        wanted = wanted_pixels(selected_face_idx < 0)
        near = near_faces(image, drawn, wanted, settings)
    values: Tensor = _SoftMask.apply(image, near, wanted, settings)  # type: ignore[no-untyped-call]
    mask = torch.ones(settings.raster.pixels, dtype=image.dtype, device=image.device).index_copy(0, wanted.pixel, values)
    return mask.view(batch, height, width).to(face_vertices_image.dtype)


@dataclass(frozen=True)
class Settings:
    """See the arguments of ``dibr_soft_mask``."""

    raster: Raster
    sigmainv: float
    boxlen: float
    knum: int
    nearest: bool
    chunk_bytes: int


@dataclass(frozen=True)
class NearFaces:
    """Pairs of pixels and near faces, at most ``knum`` per pixel.

    Attributes:
        slot: (n,) int64, positions in ``Wanted.pixel``.
        face: (n,) int64, flat numbers (image, face).
        square: (n,) squared distances, in squared image units.
        kind: (n,) uint8, of ``outline_distance``.
    """

    slot: Tensor
    face: Tensor
    square: Tensor
    kind: Tensor

    def __getitem__(self, rows: Tensor) -> "NearFaces":
        return NearFaces(*(held.index_select(0, rows) for held in vars(self).values()))


def near_faces(image: Tensor, drawn: Tensor, wanted: Wanted, settings: Settings) -> NearFaces:
    """The faces that count at the pixels which show none; (N, 3, 2) unscaled corners, (N,) bool which to look at."""
    raster, scaled = settings.raster, image * settings.raster.multiplier
    columns, centres = corner_columns(scaled), wanted.centres(raster, image)
    boxes = face_boxes(scaled, drawn, raster, settings.boxlen * raster.multiplier, wanted)
    full = torch.zeros(len(wanted.pixel), dtype=torch.int64, device=image.device)
    empty = full.new_empty(0)
    held = [NearFaces(empty, empty, image.new_empty(0), empty.to(torch.uint8))]
    for face, slot in face_pixel_pairs(boxes, raster, settings.chunk_bytes, wanted):
        if not settings.nearest:
            face, slot = _first(face, slot, full, settings.knum)
        corners = _relative(columns, face, centres, slot)
        square, kind = outline_distance(corners)
        held.append(NearFaces(slot, face, square / raster.multiplier**2, kind))
        if settings.nearest:
            held = [_nearest(_joined(held), settings.knum)]
    return _joined(held)


def _first(face: Tensor, slot: Tensor, full: Tensor, knum: int) -> tuple[Tensor, Tensor]:
    """Of pairs in the order of faces, those whose pixel has fewer than ``knum`` before; ``full`` counts on in place."""
    counts = torch.bincount(slot, minlength=len(full))
    if bool((full + counts > knum).any()):
        ordered, order = slot.sort(stable=True)
        first = _ranks(ordered, counts) + full.index_select(0, ordered) < knum
        rows = order.index_select(0, first.nonzero()[:, 0])
        face, slot = face.index_select(0, rows), slot.index_select(0, rows)
    full.add_(counts).clamp_(max=knum)
    return face, slot


def _nearest(near: NearFaces, knum: int) -> NearFaces:
    """Per pixel those of smallest distance, of equal ones the first."""
    by_distance = near.square.argsort(stable=True)
    ordered, order = near.slot.index_select(0, by_distance).sort(stable=True)
    first = _ranks(ordered, torch.bincount(ordered)) < knum
    return near[by_distance.index_select(0, order.index_select(0, first.nonzero()[:, 0]))]


def _ranks(ordered: Tensor, counts: Tensor) -> Tensor:
    """Number of each entry among those of the same slot, for sorted slots and how many there are of each."""
    starts = counts.cumsum(0) - counts
    return torch.arange(len(ordered), device=ordered.device) - starts.index_select(0, ordered)


def _joined(held: list[NearFaces]) -> NearFaces:
    return NearFaces(*(torch.cat(parts) for parts in zip(*(vars(each).values() for each in held), strict=True)))


def _relative(columns: tuple[Tensor, ...], face: Tensor, centres: tuple[Tensor, Tensor], slot: Tensor) -> tuple[Tensor, ...]:
    """Six tensors (n,): the corners of faces as seen from pixels."""
    x, y = (axis.index_select(0, slot) for axis in centres)
    return tuple(column.index_select(0, face) - (x, y)[number % 2] for number, column in enumerate(columns))


class _SoftMask(Function):
    """(P,) values at the wanted pixels."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, near: NearFaces, wanted: Wanted, settings: Settings) -> Tensor:
        share = torch.exp(-settings.sigmainv * near.square)
        # Logarithms of 1 - p in float64: in float32 they are too coarse where p is near 1.
        remains = torch.zeros(len(wanted.pixel), dtype=torch.float64, device=image.device)
        remains.index_add_(0, near.slot, torch.log1p(-share.double()))
        ctx.near, ctx.wanted, ctx.settings = near, wanted, settings
        ctx.save_for_backward(image, share, remains)
        return -torch.expm1(remains).to(image.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        image, share, remains = ctx.saved_tensors
        near, settings = ctx.near, ctx.settings
        raster = settings.raster
        x, y = (scaled / raster.multiplier for scaled in ctx.wanted.centres(raster, image))
        corners = _relative(corner_columns(image), near.face, (x, y), near.slot)
        pull = (gradient * remains.exp().to(image.dtype)).index_select(0, near.slot)
        pull = pull / (1 - share + CERTAIN) * (-settings.sigmainv * share)
        slopes = pull[:, None] * outline_slopes(corners, near.kind, EDGE_EPS / raster.multiplier**2)
        return add_by_face(slopes, near.face, len(image)).view(image.shape), None, None, None


def _check(image: Tensor, face_idx: Tensor, valid: Tensor | None, select: str, knum: int) -> None:
    if select not in SELECT:
        raise ConfigError(f"select {select!r}: give one of {', '.join(map(repr, SELECT))}")
    if knum < 0:
        raise ConfigError(f"knum {knum}: give 0 or more faces per pixel")
    if image.ndim != 4 or image.shape[2:] != (3, 2):
        raise ConfigError(f"face_vertices_image is {tuple(image.shape)}, expected (B, F, 3, 2)")
    if face_idx.ndim != 3 or len(face_idx) != len(image) or face_idx.device != image.device:
        where = f"{tuple(face_idx.shape)} on {face_idx.device}"
        raise ConfigError(f"selected_face_idx is {where}, expected ({len(image)}, H, W) on {image.device}")
    if valid is not None and valid.shape != image.shape[:2]:
        raise ConfigError(f"valid_faces is {tuple(valid.shape)}, expected {tuple(image.shape[:2])}")
