"""From the image into space, by occupancy: the voxels that are seen through a cell that may hold something, with what the image says.

A cell is a pixel and one of the planes that cut the space in front of the camera into slabs of equal depth. At a pixel the planes are
live from a little before the predicted depth to a little behind the walls, floor and ceiling that bound the room there. Voxels seen
through live cells are rows; some of the voxels around them are rows without anything, so that the decoder has room to grow.

Nothing here has a gradient: all that is lifted comes from stage 1, which is frozen.

Source: the occupancy-aware lifting of NvPanoptix3D as described in its fact sheet, which comes from BUOL (Chu et al. 2023).
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.frustum import Frustum, VoxelPixels, Window, voxel_pixels
from scenemill.trainers.nvpanoptix3d.sparse import SparseTensor, sparse_tensor
from scenemill.trainers.planes import with_neighbours

BEFORE: Final = 3
"""Planes this far before the predicted depth, and further, are not live."""

BEHIND: Final = 5
"""Nor are those this far behind the room's bounds, and further."""

EDGE: Final = 5
"""Pixels of the window, a side, in which all must be stuff for its middle to bound the room."""


def fill_gaps(depths: Tensor) -> Tensor:
    """Rows without zeros: each becomes the larger of the least depth before it and the least behind it, from left to right.

    What was filled counts as before it for those that follow. That matters only where a row begins with a zero, which becomes the least
    depth of all; any other is no less than what is before it. A row of zeros stays one.

    Args:
        depths: (..., L) float32, none below 0.

    Returns:
        (..., L) float32.

    >>> fill_gaps(torch.tensor([[5.0, 0.0, 3.0, 0.0, 4.0], [0.0, 5.0, 0.0, 3.0, 0.0]]))
    tensor([[5., 5., 3., 4., 4.],
            [3., 5., 3., 3., 3.]])
    """
    known = torch.where(depths > 0, depths, torch.inf)
    first = torch.where(depths[..., :1] > 0, depths[..., :1], known.amin(dim=-1, keepdim=True))
    before = torch.cat([first, known[..., 1:]], dim=-1).cummin(dim=-1).values
    behind = known.flip(-1).cummin(dim=-1).values.flip(-1)
    least = torch.maximum(*(torch.where(side.isinf(), 0, side) for side in (before, behind)))
    return torch.where(depths > 0, depths, least)


def room_depth(semantic: Tensor, depth: Tensor, num_thing_classes: int) -> Tensor:
    """How far the room reaches at every pixel, by what is deep within its walls, floor and ceiling; 0 where none are seen.

    Args:
        semantic: (B, C, H, W) float32; the largest channel is a pixel's class, the first of equal ones.
        depth: (B, H, W) float32, metres.
        num_thing_classes: classes above are stuff.

    Returns:
        (B, H, W) float32, metres.
    """
    stuff = (semantic.argmax(dim=1) > num_thing_classes).float()
    eroded = -functional.max_pool2d(-stuff, EDGE, stride=1, padding=EDGE // 2)
    far = depth * eroded
    across, down = fill_gaps(far.amax(dim=1)), fill_gaps(far.amax(dim=2))
    return torch.minimum(across[:, None, :], down[:, :, None])


def live_cells(nearest: Tensor, furthest: Tensor, planes: int) -> Tensor:
    """The cells that may hold something.

    Args:
        nearest, furthest: (B, H, W) int64, planes of the predicted depth and of the room's bounds.
        planes: S.

    Returns:
        (B, S, H, W) bool.
    """
    plane = torch.arange(planes, device=nearest.device)[:, None, None]
    return (plane > nearest[:, None] - BEFORE) & (plane < furthest[:, None] + BEHIND)


@torch.no_grad()
def lift(
    semantic: Tensor,
    depth: Tensor,
    occupancy: Tensor,
    intrinsics: NDArray[np.float64],
    frustum: Frustum,
    frustum_mask: Tensor,
    *,
    num_thing_classes: int = 9,
    room_mask: Tensor | None = None,
) -> SparseTensor:
    """Rows of the voxels that images see something in: of each sample those with features, in C order, then the empty ones around them.

    Empty rows are those kept within two voxels of a row with features along each axis, moved to even coordinates, so that up to eight
    share one. A sample without any row gets an empty one in the middle of the grid. The reference then moves all rows by -1 along each
    axis, and leaves out what falls below 0; with a measured camera they stay.

    Args:
        semantic: (B, C, H, W) float32, of the reduced post-processing.
        depth: (B, H, W) float32, metres, likewise.
        occupancy: (B, S, H, W) float32, logits.
        intrinsics: (B, 4, 4), pixels of ``frustum.image_size``.
        frustum: where all this is.
        frustum_mask: (B, D, D, D) bool, True inside.
        num_thing_classes: classes above are stuff.
        room_mask: (B, H, W) bool; voxels seen elsewhere get no features. Matterport3D has one, ``room_mask_buol``.

    Returns:
        (N, C + 3) of stride 1, by sample. Semantic volume, probability of occupancy, sign and size of the distance in metres from the
        predicted depth to the row's plane.

    Raises:
        ConfigError: maps of a size other than ``frustum.plane_size``, or a mask of another grid.
    """
    frustum.check_sizes(semantic=semantic, depth=depth, occupancy=occupancy)
    if frustum_mask.shape[1:] != (frustum.grid,) * 3:
        raise ConfigError(
            f"frustum_mask is {tuple(frustum_mask.shape)}: expected (B, D, D, D) with D = {frustum.grid}; see frustum_dims"
        )
    planes = occupancy.shape[1]
    depth = depth.clamp(max=frustum.depth_max)
    nearest, furthest = (
        torch.floor(metres * planes / frustum.depth_max).long()
        for metres in (depth, room_depth(semantic, depth, num_thing_classes))
    )
    live = live_cells(nearest, furthest, planes)
    chosen = live if room_mask is None else live & room_mask[:, None]
    coords, features = [], []
    samples = zip(semantic, occupancy, nearest, chosen, intrinsics, frustum_mask, strict=True)
    for sample, (classes, logits, plane, cells, camera, mask) in enumerate(samples):
        full, cell, empty = _voxels(cells, voxel_pixels(camera, frustum, depth.device), mask, frustum)
        coords.append(functional.pad(torch.cat([full, empty]), (1, 0), value=sample))
        features.append(functional.pad(_features(classes, logits, plane, cell, frustum.depth_max), (0, 0, 0, len(empty))))
    return sparse_tensor(torch.cat(coords), torch.cat(features))


def _voxels(chosen: Tensor, pixels: VoxelPixels, frustum_mask: Tensor, frustum: Frustum) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates of the rows with features and the cell of each, (N, 3) and (N,) int64, and of the empty rows, (M, 3) int64.

    Args:
        chosen: (S, H, W) bool, the cells whose voxels become rows.
        pixels, frustum_mask, frustum: of one sample; see ``lift``.
    """
    window, back = pixels.window, 0 if frustum.measured else 1
    column, row = (addend.view(frustum.grid, -1) for addend in pixels.cells(len(chosen), frustum.depth_max).addends)
    across, down, ahead = window
    cell = (column[across, None, ahead] + row[None, down, ahead]).clamp_(max=chosen.numel())  # seen nowhere: behind the last one
    kept = pixels.kept(frustum_mask, window)
    selected = functional.pad(chosen.flatten(), (0, 1)).index_select(0, cell.flatten()).view(cell.shape) & kept
    around = with_neighbours(with_neighbours(selected)) & kept & ~selected
    full, empty = _places(selected, window, back), _places(around, window, 2 * back)
    if not len(full) and not len(empty):
        empty = torch.full((1, 3), frustum.grid // 2 - 1, device=full.device)
    i, j, k = full.unbind(dim=1)
    return full - back, (column[i, k] + row[j, k]).long(), (empty & ~1) - back


def _places(mask: Tensor, window: Window, first: int) -> Tensor:
    """(N, 3) int64: indices in the grid of what is True in a window of it, but for those below ``first`` on any axis."""
    start = [max(axis.start, first) for axis in window]
    inner = tuple(slice(least - axis.start, None) for least, axis in zip(start, window, strict=True))
    return mask[inner].nonzero() + torch.tensor(start, device=mask.device)


def _features(semantic: Tensor, occupancy: Tensor, nearest: Tensor, cell: Tensor, depth_max: float) -> Tensor:
    """(N, C + 3) float32: what the image says of cells.

    Args:
        semantic: (C, H, W) float32.
        occupancy: (S, H, W) float32, logits.
        nearest: (H, W) int64, plane of the predicted depth.
        cell: (N,) int64, flat, all of them live.
    """
    plane, pixel = cell // nearest.numel(), cell % nearest.numel()
    distance = (plane - nearest.flatten()[pixel]) * (depth_max / len(occupancy))
    image = semantic.flatten(1).T.contiguous().index_select(0, pixel)
    return torch.cat([image, torch.stack([occupancy.flatten()[cell].sigmoid(), distance.sign(), distance.abs()], dim=1)], dim=1)
