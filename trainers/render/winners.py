"""The face in front at each pixel: barycentric weights, depth, and a depth test over the pairs of faces and pixels."""

from typing import Final

import torch
from torch import Tensor

from scenemill.trainers.render.pairs import Boxes, Raster, face_pixel_pairs

NEAR: Final = 1e-3
"""Default depth in front of the camera, in units of camera space, from which on faces are drawn."""

Weights = tuple[Tensor, Tensor, Tensor]


def corner_columns(corners: Tensor) -> tuple[Tensor, ...]:
    """(N, 3, K) as 3 * K tensors (N,), which are fast to gather from: corner 0 first."""
    return tuple(column.contiguous() for column in corners.flatten(1).unbind(dim=1))


def visible_faces(image: Tensor, z: Tensor, near: float | None) -> Tensor:
    """(B, F) bool: all numbers finite, and all corners farther in front of the camera than ``near`` (None: wherever they are)."""
    finite = image.isfinite().all(dim=-1).all(dim=-1) & z.isfinite().all(dim=-1)
    return finite if near is None else finite & (z < -near).all(dim=-1)


def barycentric(columns: tuple[Tensor, ...], face: Tensor, x: Tensor, y: Tensor, eps: float) -> Weights:
    """Weights of three corners that give a point; they sum to 1, and none is below 0 where the point lies in the face.

    Args:
        columns: of ``corner_columns``, x and y of each corner.
        face: (n,) int64.
        x: (n,), and
        y: (n,), the points.
        eps: added to twice the area, away from 0, so that a face without area gives numbers.

    Returns:
        Three tensors (n,), one per corner.
    """
    ax, ay, bx, by, cx, cy = (column.index_select(0, face) for column in columns)
    ax, bx, cx = ax - x, bx - x, cx - x
    ay, by, cy = ay - y, by - y, cy - y
    first, second, third = bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx
    area = first + second + third
    area = area + area.new_full((), eps).copysign(area)
    return first / area, second / area, third / area


def perspective_weights(weights: Weights, z: Weights) -> tuple[Weights, Tensor]:
    """Weights on the screen to weights in space, and the depth there.

    Args:
        weights: (n,) each, of the screen.
        z: (n,) each, the corners' depths, none 0.

    Returns:
        ``(w_k / z_k) / sum_m (w_m / z_m)``, and (n,) ``1 / sum_m (w_m / z_m)``.
    """
    shares = tuple(weight / depth for weight, depth in zip(weights, z, strict=True))
    depth = 1 / (shares[0] + shares[1] + shares[2])
    return (shares[0] * depth, shares[1] * depth, shares[2] * depth), depth


def nearest_faces(
    corners: Tensor, z: Tensor, boxes: Boxes, raster: Raster, eps: float, perspective: bool, chunk_bytes: int
) -> Tensor:
    """The face of greatest z at each pixel, of equal ones the first.

    Args:
        corners: (N, 3, 2), scaled as the raster.
        z: (N, 3), depths of the corners, larger is nearer.
        boxes: of ``face_boxes``.
        raster: the images.
        eps: of ``barycentric``.
        perspective: depth in space, else affine on the screen.
        chunk_bytes: of ``face_pixel_pairs``.

    Returns:
        (B * H * W,) int64, flat numbers (image, face), -1 where there is none.
    """
    columns, depths, centres = corner_columns(corners), corner_columns(z[..., None]), raster.centres(corners)
    best = corners.new_full((raster.pixels,), -torch.inf)
    owner = torch.full((raster.pixels,), len(corners), device=corners.device)
    for face, pixel in face_pixel_pairs(boxes, raster, chunk_bytes):
        x, y = (axis.index_select(0, pixel) for axis in centres)
        weights = barycentric(columns, face, x, y, eps)
        inside = torch.minimum(torch.minimum(*weights[:2]), weights[2]) >= 0
        kept = inside.nonzero()[:, 0]
        face, pixel = face.index_select(0, kept), pixel.index_select(0, kept)
        depth = _depth(weights, depths, kept, face, perspective)
        _keep_nearest(best, owner, face, pixel, depth)
    return owner.masked_fill_(owner == len(corners), -1)


def _depth(weights: Weights, depths: tuple[Tensor, ...], kept: Tensor, face: Tensor, perspective: bool) -> Tensor:
    first, second, third = (weight.index_select(0, kept) for weight in weights)
    z0, z1, z2 = (column.index_select(0, face) for column in depths)
    if perspective:
        return perspective_weights((first, second, third), (z0, z1, z2))[1]
    return first * z0 + second * z1 + third * z2


def _keep_nearest(best: Tensor, owner: Tensor, face: Tensor, pixel: Tensor, depth: Tensor) -> None:
    """Takes a chunk into ``best`` and ``owner`` in place. Maxima and minima: any order of the pairs gives the same."""
    better = (depth > best.index_select(0, pixel)).nonzero()[:, 0]  # equal depths stay with the earlier chunk, the lower face
    face, pixel, depth = (held.index_select(0, better) for held in (face, pixel, depth))
    best.scatter_reduce_(0, pixel, depth, "amax")
    owner.index_fill_(0, pixel, torch.iinfo(owner.dtype).max)
    won = (depth == best.index_select(0, pixel)).nonzero()[:, 0]
    owner.scatter_reduce_(0, pixel.index_select(0, won), face.index_select(0, won), "amin")
