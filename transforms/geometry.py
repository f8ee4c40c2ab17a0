"""Where the voxels are: the grid in front of the camera, its frustum, and distance fields. Pure array functions.

Frames. Camera: X right, Y down, Z forward, metres. Grid (image-aligned): axis 0 grows to the image's right, axis 1 down, axis 2
with depth; an index is a voxel centre. The grid spans the same box of space at every resolution: 256 voxels of 0.03 m, 128 of
0.06 m, 64 of 0.12 m. Formulas are those measured on the released volumes of both datasets.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

FULL_GRID: Final = 256
FULL_VOXEL_M: Final = 0.03
NEAR_M: Final = 0.4
FAR_M: Final = 6.0
TRUNCATION_VOXELS: Final = 12.0
FREE_SPACE: Final = np.float32(11.999999)  # Matterport3D's value for "far free space": the float32 below the truncation
GRIDS: Final = (256, 128, 64)

FRONT3D_INTRINSICS: Final = (
    (277.1281435, 0.0, 159.5, 0.0),
    (0.0, 277.1281435, 119.5, 0.0),
    (0.0, 0.0, 1.0, 0.0),
    (0.0, 0.0, 0.0, 1.0),
)
"""K of every 320x240 view of 3D-Front, in pixels; the one inside campose files is wrong for this image size."""

_FRUSTUM_DEPTHS: Final = (35.0, 221.0)  # first and last voxel plane inside the frustum, at 256
_CAMERA_PLANE: Final = 65.0 / 3.0  # plane of the camera centre, at 256


def voxel_size_m(grid: int) -> float:
    """Edge of one voxel in metres, for a grid of ``grid`` voxels a side.

    >>> voxel_size_m(128)
    0.06
    """
    return FULL_VOXEL_M * FULL_GRID / grid


def scale_index(index: NDArray[Any] | float, from_grid: int, to_grid: int) -> NDArray[np.float64]:
    """The same point of space as an index of another resolution (voxel centres are whole numbers in both).

    >>> float(scale_index(0.5, 256, 128))
    0.0
    """
    return (np.asarray(index, np.float64) + 0.5) * (to_grid / from_grid) - 0.5


def adjust_intrinsics(intrinsics: NDArray[np.float64], old_size: tuple[int, int], new_size: tuple[int, int]) -> NDArray[np.float64]:
    """Intrinsics of a resized image, by the rule of all public implementations: f scales by size, c by (size - 1).

    Args:
        intrinsics: (4, 4) or (3, 3) float64, pixels.
        old_size, new_size: (width, height) in pixels.

    >>> k = adjust_intrinsics(np.array(FRONT3D_INTRINSICS), (320, 240), (160, 120))
    >>> k[0, 0].round(8), k[0, 2], k[1, 2]
    (np.float64(138.56407175), np.float64(79.5), np.float64(59.5))
    """
    adjusted = np.array(intrinsics, np.float64)
    for axis in (0, 1):
        adjusted[axis, axis] *= new_size[axis] / old_size[axis]
        adjusted[axis, 2] *= (new_size[axis] - 1) / (old_size[axis] - 1)
    return adjusted


def frustum_corners(intrinsics: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """(8, 3) float64: the frustum's corners in voxels of 0.03 m, camera frame; ``size`` is (width, height) in pixels."""
    pixels = np.array([(u, v, 1.0) for u in (0, size[0]) for v in (0, size[1])])
    rays = pixels @ np.linalg.inv(np.asarray(intrinsics, np.float64)[:3, :3]).T
    return np.concatenate([rays * NEAR_M, rays * FAR_M]) / FULL_VOXEL_M


def camera_index(source: str, intrinsics: NDArray[np.float64], size: tuple[int, int], grid: int) -> NDArray[np.float64]:
    """Index of the camera centre in the image-aligned grid: about half the padding beyond the frustum's corner.

    A camera-frame point ``P`` (metres) has the grid index ``P / voxel_size_m(grid) + camera_index(...)``.

    Args:
        source: "matterport", or any source in the 3D-Front form; they round half the padding differently.
        intrinsics: (4, 4) or (3, 3) float64, pixels.
        size: (width, height) of the image in pixels.
        grid: voxels a side.

    Returns:
        (3,) float64, voxels.

    Source: the closed forms that agree with 176 wall planes of 3D-Front to 0.02 voxel, and with the masks inside the
    Matterport3D geometry files.

    >>> camera_index("front3d", np.array(FRONT3D_INTRINSICS), (320, 240), 256).round(3)
    array([127.109, 127.742,  21.667])
    """
    corners = frustum_corners(intrinsics, size)
    low, high = corners.min(axis=0), corners.max(axis=0)
    half = (FULL_GRID - np.ceil(high - low)) / 2
    offset = np.floor(half) if source == "matterport" else half + (-0.5, 0.5, 0.5)
    offset[2] = np.ceil(half[2])
    return scale_index(offset - low, FULL_GRID, grid)


def front3d_frustum(grid: int) -> NDArray[np.bool_]:
    """The frustum of the 3D-Front volumes, image-aligned: True inside.

    Returns:
        (X, Y, Z) bool. At 256 it equals the released ``meta/frustum_mask.npz`` (flipped on axes 0 and 1) in every voxel.

    >>> int(front3d_frustum(256).sum())
    2659390
    """
    focal = FRONT3D_INTRINSICS[0][0]
    file_index = scale_index(np.arange(grid)[::-1], grid, FULL_GRID)  # the released mask is rotated by 180 degrees
    depth_index = scale_index(np.arange(grid), grid, FULL_GRID)
    reach = depth_index - _CAMERA_PLANE
    right = np.abs(file_index - 127.75)[:, None] * focal <= 160.0 * reach
    down = np.abs(file_index - 126.88)[:, None] * focal <= 120.0 * reach
    return right[:, None, :] & down[None, :, :] & _between_near_and_far(depth_index)


def matterport_frustum(intrinsics: NDArray[np.float64], size: tuple[int, int], grid: int) -> NDArray[np.bool_]:
    """The frustum of one Matterport3D view, image-aligned: True inside, the inverse of ``mask`` in its geometry file.

    Args:
        intrinsics: (4, 4) or (3, 3) float64, pixels.
        size: (width, height) of the image in pixels.
        grid: voxels a side.

    Returns:
        (X, Y, Z) bool.
    """
    origin = camera_index("matterport", intrinsics, size, FULL_GRID)
    index = scale_index(np.arange(grid), grid, FULL_GRID)
    reach = index - origin[2]
    inside = []
    for axis in (0, 1):
        offset = intrinsics[axis][axis] * (index - origin[axis])[:, None]
        centre = intrinsics[axis][2]
        inside.append((offset >= -centre * reach) & (offset <= (size[axis] - centre) * reach))
    frustum: NDArray[np.bool_] = inside[0][:, None, :] & inside[1][None, :, :] & _between_near_and_far(index)
    return frustum


def _between_near_and_far(depth_index: NDArray[np.float64]) -> NDArray[np.bool_]:
    between: NDArray[np.bool_] = (depth_index >= _FRUSTUM_DEPTHS[0]) & (depth_index <= _FRUSTUM_DEPTHS[1])
    return between


def back_project(
    depth_m: NDArray[np.float32], intrinsics: NDArray[np.float64], centre: NDArray[np.float64], grid: int
) -> NDArray[np.float64]:
    """Grid coordinates of the point that each pixel sees.

    Args:
        depth_m: (H, W) float32, distance along the camera's Z axis, metres.
        intrinsics: (4, 4) or (3, 3) float64, pixels; integer pixel coordinates are pixel centres.
        centre: (3,) float64, the index of the camera centre, from ``camera_index``.
        grid: voxels a side.

    Returns:
        (3, H, W) float64: axis 0 is (x, y, z), in voxels. The nearest voxel is ``np.rint`` of it.
    """
    height, width = depth_m.shape
    z = depth_m / voxel_size_m(grid)
    x = (np.arange(width) - intrinsics[0][2]) / intrinsics[0][0] * z
    y = ((np.arange(height) - intrinsics[1][2]) / intrinsics[1][1])[:, None] * z
    return np.stack([x, y, z]) + centre[:, None, None]
