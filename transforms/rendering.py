"""What a level camera sees of a world of boxes: depth, what was hit, colour, and the distance field in front of it. All exact.

A level camera and boxes that turn about the vertical only make everything separable: where a ray enters a box depends on the
image column, on the image row, and on nothing else; the distance to a box splits into a part along the floor and one upwards.

Frames. World: x and y along the floor, z up, metres. Camera and grid: see ``geometry``. Own frame of a box: its x, y, z, with z up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from scenemill.transforms.geometry import (
    TRUNCATION_VOXELS,
    camera_index,
    front3d_frustum,
    matterport_frustum,
    voxel_size_m,
)

IMAGE_SIZE: Final = (320, 240)  # width, height of every view of both datasets

Floats = NDArray[np.float64]
Matrix = tuple[tuple[float, ...], ...]
Triple = tuple[float, float, float]

_LIGHT: Final = np.array([0.42, 0.27, 0.87])  # unit vector towards the light, world frame; a choice, tilted to tell faces apart
_NOISE: Final = 0.012  # standard deviation of the image noise, of full brightness


@dataclass(frozen=True)
class Box:
    """A solid box that turns about the vertical only, what it is, and how it looks.

    Attributes:
        centre: its middle, world frame, metres.
        half: half of its edges along its own x, y, z, metres; a zero makes it a sheet.
        yaw: turn about the vertical, radians.
        semantic: class id.
        instance: id of the object it is a part of.
        color: (red, green, blue), 0..1.
        texture: squares across and along a face in metres, and how much darker every second one is, 0..1.
        room: 0 for the room itself, else the index of another room that is seen here.
    """

    centre: Triple
    half: Triple
    yaw: float
    semantic: int
    instance: int
    color: Triple
    texture: Triple
    room: int = 0


@dataclass(frozen=True)
class Camera:
    """A level camera.

    Attributes:
        position: world frame, metres.
        heading: direction of view along the floor, radians from the world's x axis.
        intrinsics: 4 x 4 for the 320 x 240 image, pixels.
    """

    position: Triple
    heading: float
    intrinsics: Matrix


@dataclass(frozen=True)
class Placed:
    """Boxes as a camera has them.

    Attributes:
        centre: (N, 3) float64, camera frame, metres.
        half: (N, 3) float64, own frame, metres.
        sine, cosine: (N,) float64, of heading minus yaw.
    """

    centre: Floats
    half: Floats
    sine: Floats
    cosine: Floats

    def turn(self, box: int | NDArray[np.uint8], x: Floats | float, z: Floats | float) -> tuple[Floats, Floats]:
        """A horizontal vector of the camera frame in the own frame of a box (or of one box per element)."""
        return x * self.sine[box] + z * self.cosine[box], z * self.sine[box] - x * self.cosine[box]


def place(boxes: Sequence[Box], camera: Camera) -> Placed:
    """Boxes in the frame of a camera."""
    offset = np.array([box.centre for box in boxes]) - camera.position
    sine, cosine = np.sin(camera.heading), np.cos(camera.heading)
    right = offset[:, 0] * sine - offset[:, 1] * cosine
    forward = offset[:, 0] * cosine + offset[:, 1] * sine
    turn = camera.heading - np.array([box.yaw for box in boxes])
    half = np.array([box.half for box in boxes])
    return Placed(np.stack([right, -offset[:, 2], forward], axis=1), half, np.sin(turn), np.cos(turn))


def cast_rays(placed: Placed, intrinsics: Floats, size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Depth of every pixel and the box it sees.

    Args:
        placed: the boxes; the camera is inside none of them.
        intrinsics: (4, 4) float64, pixels of an image of ``size``.
        size: (width, height) in pixels.

    Returns:
        (H, W) float32, along the camera's Z axis, metres, and (H, W) uint8, position of the box in ``placed``.
    """
    right, down = _pixel_rays(intrinsics, size)
    depth = np.full((size[1], size[0]), np.inf)
    hit = np.zeros(depth.shape, np.uint8)
    for box, ((x, y, z), half) in enumerate(zip(placed.centre, placed.half, strict=True)):
        origin, direction = placed.turn(box, -x, -z), placed.turn(box, right, 1.0)
        enter_a, leave_a = _crossing(origin[0], direction[0], half[0])
        enter_b, leave_b = _crossing(origin[1], direction[1], half[1])
        enter, leave = np.maximum(enter_a, enter_b), np.minimum(leave_a, leave_b)
        touched = np.flatnonzero(leave >= np.maximum(enter, 0.0))
        if touched.size == 0:
            continue
        columns = slice(touched[0], touched[-1] + 1)
        enter_up, leave_up = _crossing(y, -down, half[2])
        entry = np.maximum(enter[columns], enter_up[:, None])
        nearer = (entry <= np.minimum(leave[columns], leave_up[:, None])) & (entry > 0.0) & (entry < depth[:, columns])
        depth[:, columns][nearer] = entry[nearer]
        hit[:, columns][nearer] = box
    return depth.astype(np.float32), hit


def _pixel_rays(intrinsics: Floats, size: tuple[int, int]) -> tuple[Floats, Floats]:
    right = (np.arange(size[0]) - intrinsics[0][2]) / intrinsics[0][0]
    down = (np.arange(size[1]) - intrinsics[1][2]) / intrinsics[1][1]
    return right, down


def _crossing(origin: Floats, direction: Floats, half: Floats) -> tuple[Floats, Floats]:
    """Where lines enter and leave the slab between -half and half, in lengths of ``direction``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = (-half - origin) / direction, (half - origin) / direction
    return np.minimum(one, other), np.maximum(one, other)


def shade(
    boxes: Sequence[Box], camera: Camera, depth_m: NDArray[np.float32], hit: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The colour image: matte faces under one light, squares as texture, brighter near the camera, a little noise.

    Returns:
        (H, W, 3) uint8.
    """
    placed = place(boxes, camera)
    own = _own_points(placed, camera, depth_m, hit)
    face = np.argmax(np.abs(own) - placed.half[hit], axis=-1)
    light = _light_on_faces(boxes, own, face, hit)
    across = np.where(face == 0, own[..., 1], own[..., 0])
    along = np.where(face == 2, own[..., 1], own[..., 2])
    period_a, period_b, contrast = np.moveaxis(np.array([box.texture for box in boxes])[hit], -1, 0)
    dark = (np.rint(across / period_a) + np.rint(along / period_b)) % 2 * contrast
    bright = light * (1.0 - dark) * (1.08 - 0.06 * depth_m)
    color = np.array([box.color for box in boxes])[hit] * bright[..., None] + rng.normal(0.0, _NOISE, (*hit.shape, 3))
    return np.asarray(np.clip(color * 255.0, 0.0, 255.0), np.uint8)


def _own_points(placed: Placed, camera: Camera, depth_m: NDArray[np.float32], hit: NDArray[np.uint8]) -> Floats:
    right, down = _pixel_rays(np.array(camera.intrinsics), IMAGE_SIZE)
    centre = placed.centre[hit]
    across, along = placed.turn(hit, right * depth_m - centre[..., 0], depth_m - centre[..., 2])
    return np.stack([across, along, centre[..., 1] - down[:, None] * depth_m], axis=-1)


def _light_on_faces(boxes: Sequence[Box], own: Floats, face: NDArray[np.intp], hit: NDArray[np.uint8]) -> Floats:
    yaw = np.array([box.yaw for box in boxes])
    light_x = _LIGHT[0] * np.cos(yaw) + _LIGHT[1] * np.sin(yaw)
    light_y = _LIGHT[1] * np.cos(yaw) - _LIGHT[0] * np.sin(yaw)
    sheet = np.array([min(box.half) == 0.0 for box in boxes])
    facing = np.take_along_axis(np.stack([light_x, light_y, np.full_like(yaw, _LIGHT[2])], axis=1)[hit], face[..., None], axis=-1)
    side = np.where(sheet[hit], 1.0, np.sign(np.take_along_axis(own, face[..., None], axis=-1))[..., 0])
    return np.asarray(0.66 + 0.34 * side * facing[..., 0])


@dataclass(frozen=True)
class Columns:
    """The frustum as upright columns of voxels, so that only voxels a camera can reach are ever computed.

    A field over the frustum is an array (N, R): column n holds the voxels (i[n], first_row + r, k[n]) of the image-aligned grid.

    Attributes:
        grid: voxels a side.
        i, k: (N,) intp, sorted by i, then k; the k of one i follow each other without a gap.
        start: (grid + 1,) intp: the columns of index i are start[i] to start[i + 1].
        first_row: grid index of row 0.
        centre: (3,) float64, index of the camera centre.
        inside: (N, R) bool, True inside the frustum.
        pixel: (N, R) int32, the pixel that looks through a voxel, row-major; the number of pixels where none does.
    """

    grid: int
    i: NDArray[np.intp]
    k: NDArray[np.intp]
    start: NDArray[np.intp]
    first_row: int
    centre: Floats
    inside: NDArray[np.bool_]
    pixel: NDArray[np.int32]

    @property
    def row(self) -> NDArray[np.intp]:
        """(R,) grid index of every row."""
        return self.first_row + np.arange(self.inside.shape[1])

    def locate(self, voxel: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where voxels are in the flattened (N * R) fields.

        Args:
            voxel: (3, M) intp, index in the image-aligned grid.

        Returns:
            (M,) intp, 0 for voxels outside the frustum, and (M,) bool, True inside the frustum.
        """
        i, row = np.clip(voxel[0], 0, self.grid - 1), voxel[1] - self.first_row
        first, last = self.start[i], self.start[i + 1]
        column = first + voxel[2] - self.k[np.minimum(first, len(self.k) - 1)]
        known = (i == voxel[0]) & (column >= first) & (column < last) & (row >= 0) & (row < self.inside.shape[1])
        position = np.where(known, column * self.inside.shape[1] + row, 0)
        return position, known & self.inside.ravel()[position]


@lru_cache(maxsize=4)
def frustum_columns(source: str, grid: int, intrinsics: Matrix) -> Columns:
    """The frustum of a source, image-aligned, as columns."""
    matrix = np.array(intrinsics)
    inside = matterport_frustum(matrix, IMAGE_SIZE, grid) if source == "matterport" else front3d_frustum(grid)
    i, k = np.nonzero(inside.any(axis=1))
    rows = np.flatnonzero(inside.any(axis=(0, 2)))
    start = np.searchsorted(i, np.arange(grid + 1))
    centre = camera_index(source, matrix, IMAGE_SIZE, grid)
    pixel = _pixel_of_voxel(matrix, i - centre[0], rows - centre[1], k - centre[2])
    return Columns(grid, i, k, start, int(rows[0]), centre, inside[i, rows[0] : rows[-1] + 1, k], pixel)


def _pixel_of_voxel(intrinsics: Floats, x: Floats, y: Floats, z: Floats) -> NDArray[np.int32]:
    width, height = IMAGE_SIZE
    column = np.rint(intrinsics[0, 0] * x / z + intrinsics[0, 2])[:, None]
    row = np.rint(intrinsics[1, 1] * y / z[:, None] + intrinsics[1, 2])
    seen = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return np.where(seen, row * width + column, width * height).astype(np.int32)


def measure_distance(placed: Placed, columns: Columns) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Distance from every voxel centre of the frustum to the nearest face of any box, and whose face that is.

    Returns:
        (N, R) float32, voxels, at most 12 and exactly 12 outside the frustum; (N, R) uint8, position of the box in ``placed``,
        meaningful where the distance is below 12.
    """
    squared = np.full(columns.inside.shape, TRUNCATION_VOXELS**2, np.float32)
    nearest = np.zeros(columns.inside.shape, np.uint8)
    for box in range(len(placed.half)):
        beyond, up = _beyond_box(placed, box, columns)
        out = np.maximum(beyond, 0.0)
        near = np.flatnonzero((out * out).sum(axis=0) < TRUNCATION_VOXELS**2)
        rows = np.flatnonzero(up < TRUNCATION_VOXELS)
        if near.size == 0 or rows.size == 0:
            continue
        part = (near, slice(rows[0], rows[-1] + 1))
        candidate = _squared_distance(beyond[:, near], up[part[1]])
        known, owner = squared[part], nearest[part]
        closer = candidate < known
        owner[closer] = box
        squared[part] = np.minimum(candidate, known, out=known)
        nearest[part] = owner
    distance: NDArray[np.float32] = np.sqrt(squared, out=squared)
    distance[~columns.inside] = TRUNCATION_VOXELS
    return distance, nearest


def _beyond_box(placed: Placed, box: int, columns: Columns) -> tuple[Floats, Floats]:
    """How far each column is beyond the sides of a box, (2, N), and each row beyond its top and bottom, (R,); voxels."""
    size = voxel_size_m(columns.grid)
    middle = placed.centre[box] / size + columns.centre
    own = np.stack(placed.turn(box, columns.i - middle[0], columns.k - middle[2]))
    return np.abs(own) - placed.half[box, :2, None] / size, np.abs(columns.row - middle[1]) - placed.half[box, 2] / size


def _squared_distance(beyond: Floats, up: Floats) -> NDArray[np.float32]:
    out, above = np.maximum(beyond, 0.0), np.maximum(up, 0.0)
    squared: NDArray[np.float32] = (out * out).sum(axis=0).astype(np.float32)[:, None] + (above * above).astype(np.float32)
    column, row = np.flatnonzero(beyond.max(axis=0) < 0.0), np.flatnonzero(up < 0.0)
    if column.size and row.size:  # inside the box the nearest face is the one with the least depth
        depth = np.maximum(beyond.max(axis=0)[column, None], up[row]).astype(np.float32)
        squared[column, row[0] : row[-1] + 1] = depth * depth
    return squared


def find_free(hollow: Placed, solid: Placed, columns: Columns) -> NDArray[np.bool_]:
    """Which voxel centres are air.

    Returns:
        (N, R) bool, True inside a box of ``hollow`` and inside none of ``solid``.
    """
    free = np.zeros(columns.inside.shape, np.bool_)
    for placed, value in ((hollow, True), (solid, False)):
        for box in range(len(placed.half)):
            beyond, up = _beyond_box(placed, box, columns)
            free[np.ix_(beyond.max(axis=0) < 0.0, up < 0.0)] = value
    return free


def find_hidden(depth_m: NDArray[np.float32], columns: Columns) -> NDArray[np.bool_]:
    """Which voxels of the frustum lie behind the depth of the pixel that looks through them.

    Returns:
        (N, R) bool; False outside the frustum and where no pixel looks.
    """
    visible = np.append(depth_m.ravel(), np.float32(np.inf)) / np.float32(voxel_size_m(columns.grid))
    reach = (columns.k - columns.centre[2]).astype(np.float32)
    return np.asarray((visible[columns.pixel] < reach[:, None]) & columns.inside)
