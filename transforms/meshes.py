"""Coloured meshes of predicted or true volumes, and meshes as PLY files. Pure array functions but for ``write_ply``.

The distance to a surface has no sign, or its sign is dropped: what marching cubes finds at a level is a closed shell on both sides of
the surface, two levels thick. Its triangles turn counter-clockwise to whoever looks from outside the shell.

Source: marching cubes as scikit-image has it (Lewiner et al. 2003, Efficient implementation of marching cubes' cases with topological
guarantees); PLY as Greg Turk described it in 1994.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError
from scenemill.schemas.labels import LABELS, VOID, Label
from scenemill.transforms.publish import write_whole

UNLABELLED: Final = (192, 192, 192)
"""Colour of a surface of no class: a light grey, which no class has; black would hide its shape."""

_CLEARANCE: Final = 1e-3  # voxels between a distance and the level; where they meet, triangles would shrink to points
_CORNERS: Final = tuple(product((0, 1), repeat=3))

_PLY_VERTEX: Final = np.dtype([("place", "<f4", 3), ("color", "u1", 3), ("semantic_id", "<i4"), ("segment_id", "<i4")])
_PLY_FACE: Final = np.dtype([("corners", "u1"), ("vertices", "<i4", 3)])
_PLY_HEADER: Final = """ply
format binary_little_endian 1.0
comment metres
element vertex {vertices}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
property int semantic_id
property int segment_id
element face {faces}
property list uchar int vertex_indices
end_header
"""


@dataclass(frozen=True, eq=False)
class PanopticMesh:
    """Triangles, and of what they are.

    Attributes:
        vertices: (V, 3) float32, metres.
        faces: (F, 3) int32, vertices counter-clockwise as seen from outside.
        colors: (V, 3) uint8, red, green, blue of the class; ``UNLABELLED`` without one.
        classes: (V,) int32, class ids; 0 for none.
        segments: (V,) int32, segment ids, which tell things of one class apart; 0 for none.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    colors: NDArray[np.uint8]
    classes: NDArray[np.int32]
    segments: NDArray[np.int32]

    @property
    def face_classes(self) -> NDArray[np.int32]:
        """(F,) int32: the class that two corners of a face share, or that of its first."""
        first, second, third = self.classes[self.faces].T
        shared: NDArray[np.int32] = np.where(second == third, second, first)
        return shared


def panoptic_mesh(
    distance: NDArray[np.float32],
    panoptic: NDArray[Any],
    classes: Mapping[int, int],
    *,
    iso: float,
    voxel_m: float,
    centre: NDArray[np.float64],
    labels: Sequence[Label] = LABELS,
) -> PanopticMesh:
    """The surfaces in a volume as a closed shell, each point with the class and the segment of the voxel it encloses.

    Where the surface leaves the grid, the shell is closed less than a voxel beyond it. Only the box that holds the shell is searched.

    Args:
        distance: (X, Y, Z) float32, voxels, image-aligned; with or without sign.
        panoptic: (X, Y, Z) integers, segment ids; 0 for none.
        classes: segment id -> class id; a segment that it lacks, or of class 0, is kept, without a class.
        iso: distance of the shell from the surface, voxels.
        voxel_m: edge of a voxel, metres.
        centre: (3,) float64, index of the camera centre, from ``geometry.camera_index``.
        labels: what the class ids mean, by id; those of a label map, where a model has learned one.

    Returns:
        In the camera frame: X right, Y down, Z forward, metres. Without a vertex where no distance is below ``iso``.

    Raises:
        ConfigError: shapes differ, a distance is not finite, ``iso`` or ``voxel_m`` is not above 0, or a segment or class id that
            cannot be one.
    """
    _check_volumes(distance, panoptic)
    _check_numbers(classes, iso, voxel_m, len(labels))
    field, corner = _crop(distance, iso)
    vertices, faces = _march(field, iso)
    segments = _int32(panoptic[tuple((_enclosed(field, vertices) + corner).T)])
    found = _classes_of(segments, classes)
    colors = np.array([UNLABELLED if label.id == VOID else label.color for label in labels], np.uint8)
    place = (vertices + corner - centre) * voxel_m
    return PanopticMesh(place.astype(np.float32), faces, colors[found], found, segments)


def _check_volumes(distance: NDArray[np.float32], panoptic: NDArray[Any]) -> None:
    if distance.ndim != 3 or distance.shape != panoptic.shape:
        raise ConfigError(f"mesh: distance {distance.shape}, panoptic {panoptic.shape}; give two volumes of one shape")
    if panoptic.dtype.kind not in "iu":
        raise ConfigError(f"mesh: panoptic of {panoptic.dtype}; give integers, the ids of segments")
    if not np.isfinite(distance).all():
        raise ConfigError("mesh: distances that are not finite; give the truncation where nothing is known")


def _check_numbers(classes: Mapping[int, int], iso: float, voxel_m: float, count: int) -> None:
    if not (0 < iso < np.inf and 0 < voxel_m < np.inf):
        raise ConfigError(f"mesh: iso {iso} voxels, voxel_m {voxel_m}; give finite numbers above 0")
    wrong = {segment: label for segment, label in classes.items() if segment <= 0 or not 0 <= label < count}
    if wrong:
        raise ConfigError(f"mesh: segments with classes {wrong}; segment ids are above 0, class ids 0 to {count - 1}")


def _crop(distance: NDArray[np.float32], iso: float) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """The part of the field, without sign, that holds every distance below the level and one voxel around, and where it begins.

    Returns:
        (x, y, z) float32, above the level on all its sides, also beyond those of the grid; (3,) intp, index of its first voxel.
    """
    inner = np.flatnonzero((distance < iso) & (distance > -iso))
    if not inner.size:
        return np.empty((0, 0, 0), np.float32), np.zeros(3, np.intp)
    index = np.stack(np.unravel_index(inner, distance.shape))
    corner, end = index.min(axis=1) - 1, index.max(axis=1) + 2
    low, high = np.maximum(corner, 0), np.minimum(end, distance.shape)
    field = np.full(end - corner, iso + 1.0, np.float32)  # distances grow by at most one voxel a voxel
    known = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    field[tuple(slice(a, b) for a, b in zip(low - corner, high - corner, strict=True))] = np.abs(distance[known])
    return field, corner


def _march(field: NDArray[np.float32], iso: float) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Vertices as indices into the field, (V, 3) float32, and faces, (F, 3) int32."""
    if not field.size:
        return np.empty((0, 3), np.float32), np.empty((0, 3), np.int32)
    from skimage.measure import marching_cubes

    clear = np.where(field < iso, np.minimum(field, iso - _CLEARANCE), np.maximum(field, iso + _CLEARANCE))
    vertices, faces, _, _ = marching_cubes(clear.astype(np.float32), iso)
    return np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32)


def _enclosed(field: NDArray[np.float32], vertices: NDArray[np.float32]) -> NDArray[np.intp]:
    """(V, 3) intp: of the two voxels that a vertex lies between, or of the eight around it, the one of the least distance."""
    low = np.floor(vertices).astype(np.intp)
    between = vertices > low
    nearest, least = low, field[tuple(low.T)]
    for corner in _CORNERS[1:]:
        voxel = low + (between & np.array(corner, np.bool_))
        value = field[tuple(voxel.T)]
        nearest = np.where((value < least)[:, None], voxel, nearest)
        least = np.minimum(value, least)
    return nearest


def _int32(segments: NDArray[Any]) -> NDArray[np.int32]:
    if segments.size and not -(2**31) <= int(segments.min()) <= int(segments.max()) < 2**31:
        raise ConfigError(f"mesh: segment ids from {segments.min()} to {segments.max()}; give ids of 32 bits")
    return segments.astype(np.int32)


def _classes_of(segments: NDArray[np.int32], classes: Mapping[int, int]) -> NDArray[np.int32]:
    found, place = np.unique(segments, return_inverse=True)
    table = np.array([classes.get(segment, VOID) for segment in found.tolist()], np.int32)
    return table[place]


def upright(mesh: PanopticMesh) -> PanopticMesh:
    """A mesh of the camera frame as viewers look at it: X right, Y up, Z towards the viewer; a half turn about X.

    >>> triangle = np.array([[1, 2, 3]] * 3, np.float32), np.array([[0, 1, 2]], np.int32)
    >>> upright(PanopticMesh(*triangle, np.zeros((3, 3), np.uint8), np.zeros(3, np.int32), np.zeros(3, np.int32))).vertices[0]
    array([ 1., -2., -3.], dtype=float32)
    """
    return replace(mesh, vertices=mesh.vertices * np.array([1, -1, -1], np.float32))


def to_ply(mesh: PanopticMesh) -> bytes:
    """A mesh as the bytes of a PLY file: binary, little-endian, ids and colours at the vertices."""
    vertices = np.empty(len(mesh.vertices), _PLY_VERTEX)
    columns = {"place": mesh.vertices, "color": mesh.colors, "semantic_id": mesh.classes, "segment_id": mesh.segments}
    for name, values in columns.items():
        vertices[name] = values
    faces = np.empty(len(mesh.faces), _PLY_FACE)
    faces["corners"], faces["vertices"] = 3, mesh.faces
    return _PLY_HEADER.format(vertices=len(vertices), faces=len(faces)).encode() + vertices.tobytes() + faces.tobytes()


def write_ply(path: Path, mesh: PanopticMesh) -> None:
    """Write a mesh as a PLY file, whole or not at all."""
    write_whole(path, to_ply(mesh))
