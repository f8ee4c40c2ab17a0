"""Which cells of space, seen through the image, hold something: the multi-plane occupancy target, on any device.

A cell is a pixel of a small image and one of the planes that cut the space in front of the camera into slabs of equal depth. The
camera looks along an axis of the grid. So a voxel's column depends on (i, k) alone, its row on (j, k) and its plane on k: three small
tables hold the whole projection, and no voxel is ever multiplied by a matrix.

Source: the voxel-to-pixel mapping of NvPanoptix3D, as described with the golden numbers of the loader. Its camera is not where
``camera_index`` of geometry.py puts it, which is where walls show it to be, but (1.1, 0.1, 0.5) voxels of 0.03 m further: what
released weights have learned is kept.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.transforms.geometry import FAR_M, FULL_GRID, FULL_VOXEL_M, GRIDS, NEAR_M, adjust_intrinsics, scale_index

PLANES: Final = 100
PLANE_SIZE: Final = (120, 160)


@dataclass(frozen=True, eq=False)
class PlaneTables:
    """The cell of every voxel of one camera's grid.

    Attributes:
        u: (grid, grid) int32, [i, k] -> column of the cell; -1 outside the image or the depths.
        v: (grid, grid) int32, [j, k] -> row of the cell; -1 outside the image or the depths.
        plane: (grid,) int32, [k] -> plane of the cell; -1 outside the depths.
        planes: how many there are.
        size: (H, W) of a plane, in pixels.
    """

    u: torch.Tensor
    v: torch.Tensor
    plane: torch.Tensor
    planes: int
    size: tuple[int, int]

    def to(self, device: torch.device | str) -> "PlaneTables":
        """The tables on another device."""
        return replace(self, u=self.u.to(device), v=self.v.to(device), plane=self.plane.to(device))

    @cached_property
    def addends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Flat int32 tables by (i, k) and by (j, k): the sum of two entries is the voxel's flat cell, or past the last for none."""
        height, width = self.size
        none = self.planes * height * width
        of_column = torch.where(self.u < 0, none, self.plane * (height * width) + self.u)
        of_row = torch.where(self.v < 0, none, self.v * width)
        return of_column.int().reshape(-1), of_row.int().reshape(-1)


def plane_tables(
    intrinsics: NDArray[np.float64],
    image_size: tuple[int, int],
    grid: int,
    *,
    planes: int = PLANES,
    size: tuple[int, int] = PLANE_SIZE,
    depth_min: float = NEAR_M,
    depth_max: float = FAR_M,
    origin: NDArray[np.float64] | None = None,
) -> PlaneTables:
    """Where the voxels of one camera fall; computed on the CPU, see ``PlaneTables.to``.

    Args:
        intrinsics: (4, 4) or (3, 3) float64, pixels, of an image of ``image_size``; the tables adjust them to ``size``.
        image_size: (width, height) in pixels.
        grid: voxels a side: 256, or the same space in 128 or 64, a voxel being where its centre is.
        planes: slabs that 0..``depth_max`` is cut into.
        size: (height, width) of a plane, in pixels.
        depth_min, depth_max: metres; voxels nearer or further have no cell. The grid stays where it is: volumes lie in the files as
            0.4 m and 6.0 m place them.
        origin: (3,) index of the camera centre at the full grid, as ``camera_index`` measures it: a voxel then falls on the nearest
            pixel. None for the reference's placing, which is about a voxel off, and its pixels, which are cut down.

    Raises:
        ConfigError: another grid, or a skewed camera, whose columns depend on all three indices.

    >>> tables = plane_tables(np.diag([138.56, 138.56, 1.0]) + [[0, 0, 79.5], [0, 0, 59.5], [0, 0, 0]], (160, 120), 256)
    >>> tables.plane[[35, 36, 121, 222]].tolist(), tables.u[127:130, 121].tolist()
    ([-1, 6, 49, 99], [77, 79, 80])
    """
    if grid not in GRIDS:
        raise ConfigError(f"grid {grid}: allowed is {', '.join(map(str, GRIDS))}")
    height, width = size
    camera = adjust_intrinsics(pinhole(intrinsics), image_size, (width, height))
    index = scale_index(np.arange(grid), grid, FULL_GRID).astype(np.float32)
    u, v, z = project_voxels(index, camera, (width, height), depth_min=depth_min, depth_max=depth_max, origin=origin)
    return PlaneTables(_whole(u), _whole(v), plane_of(torch.from_numpy(z), planes, depth_max).int(), planes, (height, width))


def pinhole(intrinsics: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3) float64 of (4, 4) or (3, 3) intrinsics, which no axis but its own may enter.

    Raises:
        ConfigError: a skewed camera, whose columns depend on all three indices of a voxel.
    """
    camera = np.asarray(intrinsics, np.float64)[:3, :3]
    if camera[0, 1] or np.any(camera[1:, 0]) or camera[2, 1] or camera[2, 2] != 1:
        raise ConfigError(f"intrinsics {camera.tolist()}: allowed is ((f, 0, c), (0, f, c), (0, 0, 1))")
    return camera


def plane_of(depth: torch.Tensor, planes: int, depth_max: float) -> torch.Tensor:
    """Which of the slabs of 0..``depth_max`` a depth lies in, the last one at most; -1 of a negative depth, which means none.

    Args:
        depth: (...) float32, metres.

    Returns:
        (...) int64.
    """
    return torch.floor(depth * planes / depth_max).clamp(-1, planes - 1).long()


def project_voxels(
    index: NDArray[np.float32],
    camera: NDArray[np.float64],
    size: tuple[int, int],
    *,
    grid: int = FULL_GRID,
    voxel_m: float = FULL_VOXEL_M,
    depth_min: float = NEAR_M,
    depth_max: float = FAR_M,
    origin: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Where voxels are seen, as separable tables.

    Args:
        index: (N,) float32, indices along each of the axes alike.
        camera: (3, 3) float64 of ``pinhole``, pixels of an image of ``size``.
        size: (width, height) in pixels.
        grid, voxel_m: what ``index`` counts: voxels a side, and the edge of one in metres.
        depth_min, depth_max: metres; nothing nearer or further is seen.
        origin: (3,) index of the camera centre, as measured; see ``plane_tables``.

    Returns:
        u (N, N) by [i, k] and v (N, N) by [j, k] in pixels, and depth (N,) by [k] in metres; -1 outside the image or the depths.
    """
    low, high = NEAR_M, FAR_M
    z = _places(index, np.array([low, high]), grid, voxel_m, None if origin is None else origin[2])
    kept = (z >= np.float32(depth_min)) & (z <= np.float32(depth_max))
    seen = []
    for axis, length in enumerate(size):
        focal, centre = camera[axis, axis], camera[axis, 2]
        ends = np.outer((np.array([0, length]) - centre) / focal, [low, high])
        across = _places(index, ends, grid, voxel_m, None if origin is None else origin[axis])[:, None]
        pixel = np.full((index.size, index.size), -1, np.float32)
        np.divide(np.float32(focal) * across + np.float32(centre) * z, z, out=pixel, where=kept)
        if origin is not None:
            np.rint(pixel, out=pixel)
        seen.append(np.where((pixel >= 0) & (pixel < length), pixel, np.float32(-1)))
    return seen[0], seen[1], np.where(kept, z, np.float32(-1))


def _places(
    index: NDArray[np.float32], ends: NDArray[np.float64], grid: int, voxel_m: float, origin: float | None
) -> NDArray[np.float32]:
    """Metres along one axis of voxels: from ``origin`` where it is known.

    Else the grid has the frustum, from least to greatest of ``ends``, in its middle; half of an odd padding is not rounded, and one
    more voxel is taken off (sic).
    """
    if origin is not None:
        return (index - np.float32(origin)) * np.float32(voxel_m)
    low, high = ends.min() / voxel_m, ends.max() / voxel_m
    padding = (grid - np.ceil(high - low)) / 2
    placed: NDArray[np.float32] = (index - np.float32(padding) - 1) * np.float32(voxel_m) + np.float32(low * voxel_m)
    return placed


def _whole(pixels: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(np.floor(pixels).astype(np.int32))


def plane_occupancy(voxels: torch.Tensor, tables: PlaneTables) -> torch.Tensor:
    """The cells that hold an occupied voxel, and their 26 neighbours.

    The reference leaves open which of the voxels in a cell decides; here one occupied voxel is enough.

    Args:
        voxels: (N,) int32 or int64, flat indices, in C order, of the occupied voxels of an image-aligned volume, all inside the frustum.
        tables: on the device of ``voxels``.

    Returns:
        (planes, H, W) bool, True where occupied.

    >>> tables = plane_tables(np.diag([138.56, 138.56, 1.0]) + [[0, 0, 79.5], [0, 0, 59.5], [0, 0, 0]], (160, 120), 256)
    >>> near = plane_occupancy(torch.tensor([(128 * 256 + 128) * 256 + 121]), tables)
    >>> int(near.sum()), bool(near[48:51, 58:61, 78:81].all())
    (27, True)
    """
    grid, (height, width) = len(tables.plane), tables.size
    bits, none = grid.bit_length() - 1, tables.planes * height * width
    of_column, of_row = tables.addends
    column = ((voxels >> 2 * bits) << bits) | (voxels & (grid - 1))  # divisions would double the time
    cell = of_column.index_select(0, column) + of_row.index_select(0, voxels & (grid * grid - 1))
    hit = torch.zeros(none + 1, dtype=torch.bool, device=voxels.device)  # the last takes what falls nowhere
    hit.index_fill_(0, cell.clamp_(max=none).long(), True)
    return with_neighbours(hit[:-1].reshape(tables.planes, height, width))


def with_neighbours(cells: torch.Tensor) -> torch.Tensor:
    """A max-pool of 3 on each axis, stride 1, of booleans: (X, Y, Z) -> (X, Y, Z)."""
    for axis, length in reversed(list(enumerate(cells.shape))):
        grown = cells.clone()
        grown.narrow(axis, 1, length - 1).logical_or_(cells.narrow(axis, 0, length - 1))
        grown.narrow(axis, 0, length - 1).logical_or_(cells.narrow(axis, 1, length - 1))
        cells = grown
    return cells
