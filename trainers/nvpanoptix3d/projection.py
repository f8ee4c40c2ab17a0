"""From pixels into space, by depth: features of the image in the voxels around the surface that each pixel sees.

A pixel's depth puts it at a point of the grid. What the image has there goes to the voxel around that point and to some before and
behind it, each with its distance. Several pixels may meet in a voxel.

The reference reads its maps without the half pixel between a pixel's index and its centre, and maps of other scales in their upper left
corner alone. Released weights have learned that. With a measured camera, maps are read where the pixel is.

Source: the sparse projection of NvPanoptix3D as described in its fact sheet, which comes from Uni-3D (Zhang et al. 2023) and
panoptic-reconstruction (Dahnert et al. 2021).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from scenemill.trainers.nvpanoptix3d.frustum import Frustum, frustum_box
from scenemill.trainers.nvpanoptix3d.matching import sample_points
from scenemill.trainers.nvpanoptix3d.postprocess import Size
from scenemill.trainers.nvpanoptix3d.sparse import SparseTensor, concat_union, max_pool, sparse_tensor
from scenemill.trainers.planes import pinhole


class Surface(NamedTuple):
    """What P pixels of one depth map see.

    Attributes:
        pixel: (P, 2) float32, (x, y) of each in the map, by rows.
        voxel: (P, R, 3) int64, those around its point, from the nearest to the camera to the furthest.
        distance: (P, R) float32: how far the point is behind the front of its own voxel, 0..1, plus the number of this voxel, -r..r.
            The reference adds where a difference would be the distance in voxels; either sum says both.
    """

    pixel: Tensor
    voxel: Tensor
    distance: Tensor


@torch.no_grad()
def see_surface(depth: Tensor, intrinsics: NDArray[np.float64], frustum: Frustum, *, reach: int, times: int = 1) -> Surface:
    """The voxels around the points that pixels see.

    Args:
        depth: (H, W) float32, metres, of ``frustum.plane_size``. Depths outside those of ``frustum`` count as none; if no pixel has a
            depth, the one in the middle sees the camera's own place.
        intrinsics: (4, 4) or (3, 3), pixels of ``frustum.image_size``.
        frustum: the space, in the voxels that are asked for.
        reach: voxels before and behind that of the point; R is twice this and one.
        times: of so many pixels a side, only the upper left one is looked at.
    """
    height, width = (length // times for length in depth.shape)
    depth = depth[: height * times : times, : width * times : times]
    depth = torch.where((depth >= frustum.depth_min) & (depth <= frustum.depth_max), depth, 0)
    place = depth.nonzero()
    if not len(place):
        place = place.new_tensor([[height // 2, width // 2]])
    y, x = place.unbind(dim=1)
    pixel = torch.stack([x, y], dim=1).float()
    rays = pixel * times if frustum.measured else pixel / pixel.new_tensor([width, height]) * pixel.new_tensor(frustum.image_size)
    point, padding = _grid_points(rays, depth[y, x], intrinsics, frustum)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32, device=depth.device)
    voxel = point[:, None] + functional.pad(steps[:, None], (2, 0)) + point.new_tensor(padding)
    return Surface(pixel, voxel.floor().long(), point[:, 2, None].frac() + steps)


def _grid_points(
    pixel: Tensor, depth: Tensor, intrinsics: NDArray[np.float64], frustum: Frustum
) -> tuple[Tensor, NDArray[np.float64]]:
    """Where points of the image are in the grid, but for its padding before the frustum's corner, which comes beside it.

    In float32, one product at a time, as the reference's matrices have it: mixed precision would halve that in a matrix product.

    Args:
        pixel: (P, 2) float32, of the image whose camera counts: the whole image; the small maps where the camera is measured.
        depth: (P,) float32, metres.

    Returns:
        (P, 3) float32, voxels, and (3,) float64. The voxel of a point is the sum, rounded down.
    """
    if frustum.measured:
        camera, offset, padding = frustum.camera(intrinsics), frustum.camera_index(intrinsics) + 0.5, np.zeros(3)
    else:
        low, edges = frustum_box(intrinsics, frustum)
        camera, offset, padding = pinhole(intrinsics), -low, np.floor((frustum.grid - edges) / 2)
    x, y = (pixel[:, axis] * depth * (1 / camera[axis, axis]) + depth * (-camera[axis, 2] / camera[axis, axis]) for axis in (0, 1))
    return torch.stack([x, y, depth], dim=1) * (1 / frustum.voxel_m) + depth.new_tensor(offset), padding


def project(
    maps: Tensor,
    semantic: Tensor,
    depth: Tensor,
    intrinsics: NDArray[np.float64],
    frustum: Frustum,
    padded: Size,
    unpadded: Sequence[Size],
    *,
    truncation: float = 3.0,
    sign_channel: bool = True,
) -> SparseTensor:
    """Rows of the voxels around what each pixel sees: pixels by rows, their voxels from near to far. Rows may share a coordinate.

    Args:
        maps: (B, C, h, w), over the images with their padding: mask features beside projected depth features.
        semantic: (B, K, H, W) float32, over the images without padding.
        depth: (B, H, W) float32, metres, likewise.
        intrinsics: (B, 4, 4), pixels of ``frustum.image_size``.
        frustum: where all this is.
        padded, unpadded: (height, width) of the images that the network saw, and of each without its padding. The reference takes
            images for twice as large as the small maps.
        truncation: voxels before and behind that of a point.
        sign_channel: whether a distance is two channels, its sign and its size, not one.

    Returns:
        (N, 2 + C + K) of stride 1, by sample: distance, features and classes. Gradients reach ``maps``.

    Raises:
        ConfigError: maps of a size other than ``frustum.plane_size``.
    """
    frustum.check_sizes(semantic=semantic, depth=depth)
    height, width = frustum.plane_size
    coords, features = [], []
    for sample, (camera, own) in enumerate(zip(intrinsics, unpadded, strict=True)):
        seen = see_surface(depth[sample], camera, frustum, reach=round(truncation))
        there = _share(seen.pixel, frustum, (padded[1] / 2, padded[0] / 2), padded, own)
        classes_there = _share(seen.pixel, frustum, (width, height), own, own)
        read = torch.cat([_read(maps[sample], there), _read(semantic[sample], classes_there)])
        coords.append(_coords(seen, sample))
        features.append(_rows(seen, read, _encoded(seen.distance, sign_channel)))
    return sparse_tensor(torch.cat(coords), torch.cat(features))


def project_scales(
    scales: Sequence[Tensor],
    depth: Tensor,
    intrinsics: NDArray[np.float64],
    frustum: Frustum,
    padded: Size,
    unpadded: Sequence[Size],
    *,
    truncation: float = 3.0,
) -> list[SparseTensor]:
    """The same on coarser grids, of the features alone, each scale on a grid of half the voxels a side of the one before.

    Args:
        scales: (B, C, h, w) each, fine to coarse, the first for the half grid, over the images with their padding.
        depth, intrinsics, frustum, padded, unpadded, truncation: see ``project``; of the full grid.

    Returns:
        (N, C) each, of strides 2, 4, 8, ..., in voxels of its own grid.

    Raises:
        ConfigError: depth of a size other than ``frustum.plane_size``.
    """
    frustum.check_sizes(depth=depth)
    projected = []
    for level, maps in enumerate(scales, 1):
        times = 2**level
        space, extent = frustum.coarser(times), (2 * maps.shape[-1], 2 * maps.shape[-2])
        coords, features = [], []
        for sample, (camera, own) in enumerate(zip(intrinsics, unpadded, strict=True)):
            seen = see_surface(depth[sample], camera, space, reach=round(truncation / times), times=times)
            there = _share(seen.pixel, space, extent, padded, own, times)
            coords.append(_coords(seen, sample))
            features.append(_rows(seen, _read(maps[sample], there)))
        projected.append(sparse_tensor(torch.cat(coords), torch.cat(features), times))
    return projected


def fuse(
    projected: SparseTensor, lifted: SparseTensor, scales: Sequence[SparseTensor] = ()
) -> tuple[SparseTensor, list[SparseTensor]]:
    """Projected and lifted rows side by side: what the network of stage 2 begins with.

    Args:
        projected: (N, C), of ``project``.
        lifted: (M, L), of ``lift``.
        scales: of ``project_scales``.

    Returns:
        (., C + L), distinct and sorted by sample, x, y, z, zeros where a side has no voxel; and the same for each of ``scales``, beside
        lifted rows that were pooled once more for each.
    """
    first, fused = concat_union(projected, lifted), []
    for scale in scales:
        lifted = max_pool(lifted)
        fused.append(concat_union(scale, lifted))
    return first, fused


def _share(pixel: Tensor, frustum: Frustum, extent: tuple[float, float], padded: Size, unpadded: Size, times: int = 1) -> Tensor:
    """(P, 2) float32: where maps are read, as a share of their width and height.

    Args:
        pixel: (P, 2) float32, (x, y) of a map made of every ``times``-th pixel of the small maps.
        extent: (width, height) that the reference divides by.
        padded, unpadded: sizes of the area that the maps to read are of, and of the part of it that the small maps are of.
    """
    if frustum.measured:
        height, width = frustum.plane_size
        pixel, extent = pixel * times + 0.5, (width * padded[1] / unpadded[1], height * padded[0] / unpadded[0])
    return pixel / pixel.new_tensor(extent)


def _read(maps: Tensor, shares: Tensor) -> Tensor:
    """(C, P): the values of (C, h, w) maps there."""
    return sample_points(maps[None].float(), shares[None])[0]


def _encoded(distance: Tensor, sign_channel: bool) -> Tensor:
    """(P, R, 2 or 1)."""
    return torch.stack([distance.sign(), distance.abs()] if sign_channel else [distance], dim=2)


def _coords(seen: Surface, sample: int) -> Tensor:
    """(P * R, 4) int64."""
    return functional.pad(seen.voxel.flatten(0, 1), (1, 0), value=sample)


def _rows(seen: Surface, read: Tensor, *own: Tensor) -> Tensor:
    """(P * R, ...): channels (P, R, c) of each voxel's own, then what was read, (C, P), at its pixel."""
    of_pixel = read.T.contiguous()[:, None].expand(-1, seen.voxel.shape[1], -1)
    return torch.cat([*own, of_pixel], dim=2).flatten(0, 1)
