"""Where the grid lies in front of a camera: which voxels the image sees and at which pixel, and which voxel a pixel's depth is in.

Frames as in geometry.py. Camera: X right, Y down, Z forward, metres. Grid: axis 0 to the image's right, axis 1 down, axis 2 with
depth. The grid has the frustum from 0.4 m to 6 m in its middle, whatever depths are kept: so volumes lie in the files.

The reference places the camera three times, each time a little elsewhere. With the image of 3D-Front and 256 voxels a side it stands at
the index (128.248, 127.881, 22.167) when voxels look for their pixel, at (127.109, 127.242, 20.667) when pixels look for their voxel,
and at (128, 128, 21.333) when a frustum is made for an image without one. Released weights have learned that. With ``measured`` it
stands where walls show it to be, in all three.

Source: the frustum, the back-projection and the sparse projection of NvPanoptix3D as described in its fact sheet.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.planes import PLANE_SIZE, PlaneTables, pinhole, plane_of, project_voxels
from scenemill.transforms.geometry import (
    FAR_M,
    FULL_GRID,
    FULL_VOXEL_M,
    NEAR_M,
    adjust_intrinsics,
    camera_index,
    frustum_corners,
    voxel_size_m,
)

Window = tuple[slice, slice, slice]
"""A box of voxels along axes 0, 1 and 2."""

WHOLE: Final = (slice(None), slice(None), slice(None))
"""The box that has them all."""


@dataclass(frozen=True)
class Frustum:
    """The space that stage 2 fills, and the images it is seen in.

    Attributes:
        image_size: (width, height) of the image that intrinsics are of, pixels.
        plane_size: (height, width) of the maps that are lifted and projected, pixels.
        grid: D, voxels a side.
        voxel_m: edge of a voxel, metres.
        depth_min, depth_max: metres; nothing nearer or further is lifted or projected.
        measured: the source whose measured camera counts, "matterport" or one in the 3D-Front form; "" for the reference's cameras.

    Raises:
        ConfigError: a measured camera in a grid that is not the released volumes' space.
    """

    image_size: tuple[int, int] = (320, 240)
    plane_size: tuple[int, int] = PLANE_SIZE
    grid: int = FULL_GRID
    voxel_m: float = FULL_VOXEL_M
    depth_min: float = NEAR_M
    depth_max: float = FAR_M
    measured: str = ""

    def __post_init__(self) -> None:
        own = voxel_size_m(self.grid)
        if self.measured and not np.isclose(self.voxel_m, own):
            raise ConfigError(f"voxel_size {self.voxel_m} with a measured camera: a grid of {self.grid} needs {own}")

    def coarser(self, times: int) -> "Frustum":
        """The same space in voxels ``times`` as long."""
        return replace(self, grid=self.grid // times, voxel_m=self.voxel_m * times)

    def check_sizes(self, **maps: Tensor) -> None:
        """Refuse small maps that are not of ``plane_size``.

        Raises:
            ConfigError: a map of another (height, width).
        """
        expected = tuple(self.plane_size)
        for name, tensor in maps.items():
            size = tuple(tensor.shape[-2:])
            if size != expected:
                raise ConfigError(f"{name} is {size}: expected {expected}, height and width; see reduced_target_size, depth_size")

    def camera(self, intrinsics: NDArray[np.float64]) -> NDArray[np.float64]:
        """(3, 3) float64: the camera as the small maps see it."""
        height, width = self.plane_size
        return adjust_intrinsics(pinhole(intrinsics), self.image_size, (width, height))

    def camera_index(self, intrinsics: NDArray[np.float64]) -> NDArray[np.float64]:
        """(3,) float64: index of the measured camera's centre."""
        return camera_index(self.measured, intrinsics, self.image_size, self.grid)


@dataclass(frozen=True, eq=False)
class VoxelPixels:
    """Where the voxels of one camera's grid are seen. A column depends on (i, k) alone, a row on (j, k): three tables hold all.

    Attributes:
        u: (D, D) float32, [i, k] -> column, pixels; -1 outside the image or the depths.
        v: (D, D) float32, [j, k] -> row, pixels; -1 outside the image or the depths.
        depth: (D,) float32, [k] -> metres; -1 outside the depths.
        size: (H, W) of the image, pixels.
        window: the smallest box that has all voxels seen; of one voxel if none is.
    """

    u: Tensor
    v: Tensor
    depth: Tensor
    size: tuple[int, int]
    window: Window

    def kept(self, frustum_mask: Tensor, window: Window = WHOLE) -> Tensor:
        """The voxels of a window that are seen and in the frustum: (D, D, D) bool -> bool, of the window's edges."""
        i, j, k = window
        return frustum_mask[window] & (self.u[i, None, k] >= 0) & (self.v[None, j, k] >= 0)

    def cells(self, planes: int, depth_max: float) -> PlaneTables:
        """The cell of every voxel: its pixel, and which of the ``planes`` slabs of 0..``depth_max`` metres it lies in."""
        u, v = (torch.floor(table).int() for table in (self.u, self.v))
        return PlaneTables(u, v, plane_of(self.depth, planes, depth_max).int(), planes, self.size)


def voxel_pixels(intrinsics: NDArray[np.float64], frustum: Frustum, device: torch.device | str = "cpu") -> VoxelPixels:
    """Where the voxels of a camera's grid are seen; kept for the cameras and devices used last.

    Args:
        intrinsics: (4, 4) or (3, 3), pixels of ``frustum.image_size``.

    Raises:
        ConfigError: a skewed camera.
    """
    camera = np.ascontiguousarray(intrinsics, np.float64)
    return _voxel_pixels(camera.tobytes(), len(camera), frustum, torch.device(device))


@lru_cache(maxsize=32)
def _voxel_pixels(intrinsics: bytes, rows: int, frustum: Frustum, device: torch.device) -> VoxelPixels:
    camera = np.frombuffer(intrinsics).reshape(rows, rows)
    height, width = frustum.plane_size
    tables = project_voxels(
        np.arange(frustum.grid, dtype=np.float32),
        frustum.camera(camera),
        (width, height),
        grid=frustum.grid,
        voxel_m=frustum.voxel_m,
        depth_min=frustum.depth_min,
        depth_max=frustum.depth_max,
        origin=frustum.camera_index(camera) if frustum.measured else None,
    )
    window = tuple(_extent(table.reshape(frustum.grid, -1)) for table in tables)
    with torch.inference_mode(False):  # what is kept must also serve a training step
        u, v, depth = (torch.from_numpy(table).to(device) for table in tables)
    return VoxelPixels(u, v, depth, (height, width), (window[0], window[1], window[2]))


def _extent(table: NDArray[np.float32]) -> slice:
    """From the first row with something seen to the last; the first one if there is none."""
    places = np.flatnonzero(np.any(table >= 0, axis=1))
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 1)


def back_project(frustum_mask: Tensor, pixels: VoxelPixels) -> tuple[Tensor, Tensor]:
    """The voxels that the image sees, and where.

    Args:
        frustum_mask: (D, D, D) bool, True inside.
        pixels: of the same grid, on the same device.

    Returns:
        (D, D, D) bool, True where a voxel is kept; and (N, 3) float32, of each of these in C order (u, v, depth): pixels and metres.
    """
    kept = pixels.kept(frustum_mask)
    i, j, k = kept.nonzero(as_tuple=True)
    return kept, torch.stack([pixels.u[i, k], pixels.v[j, k], pixels.depth[k]], dim=1)


def frustum_box(intrinsics: NDArray[np.float64], frustum: Frustum) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The box around the frustum: its least corner, voxels from the camera, and its edges in whole voxels; (3,) float64 each."""
    corners = frustum_corners(pinhole(intrinsics), frustum.image_size) * (FULL_VOXEL_M / frustum.voxel_m)
    low = corners.min(axis=0)
    return low, np.ceil(corners.max(axis=0) - low)


def inference_mask(intrinsics: NDArray[np.float64], frustum: Frustum) -> Tensor:
    """The frustum of an image that comes without one: (D, D, D) bool, True inside."""
    camera, grid = pinhole(intrinsics), frustum.grid
    middle = np.array([0, 0, NEAR_M + FAR_M]) / 2 / frustum.voxel_m
    origin = frustum.camera_index(camera) if frustum.measured else grid / 2 - middle
    reach = np.arange(grid) - origin[2]
    between = (reach * frustum.voxel_m >= frustum.depth_min) & (reach * frustum.voxel_m <= frustum.depth_max)
    seen = []
    for axis, length in enumerate(frustum.image_size):
        pixel = camera[axis, axis] * (np.arange(grid) - origin[axis])[:, None] + camera[axis, 2] * reach  # times reach
        seen.append(torch.from_numpy((pixel >= 0) & (pixel < length * reach) & between))
    return seen[0][:, None] & seen[1][None]
