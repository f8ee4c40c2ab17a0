"""Meshes, points and voxels cut to what a page can draw: plain arrays, and no more of them than a budget.

What is left out is said: a part has ``notes`` for the eye, and the numbers of what there is and what is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.errors import SourceError

VERTEX: Final = "vertex"
FACE: Final = "face"
CORNER: Final = "corner"
"""What of a mesh has a value each: its vertices, its triangles, or the three corners of each triangle."""

_LARGEST_INDEX: Final = 1 << 15  # voxel indices travel as int16
_TRIES: Final = 12

Attributes = Mapping[str, tuple[NDArray[Any], str]]
"""Name -> values, and where they are: ``VERTEX``, ``FACE`` or ``CORNER``."""


@dataclass(frozen=True)
class Budget:
    """The most elements of a part that a page draws."""

    points: int
    triangles: int
    voxels: int


USUAL: Final = Budget(points=1_000_000, triangles=500_000, voxels=500_000)
FULL: Final = Budget(points=8_000_000, triangles=4_000_000, voxels=2_000_000)
"""What is drawn at first, and where a person asks for all there is."""


@dataclass(frozen=True, eq=False)
class Part:
    """Something to draw.

    Attributes:
        kind: "mesh", "points" or "voxels".
        arrays: by name: "positions" (N, 3), float32 or, of voxels, int16; "indices" (T, 3) uint32 of a mesh; "uvs", "normals", "colors",
            "ids.NAME" where there are any, "map.MATERIAL.MAP" images (H, W, C) uint8.
        places: of a mesh: name of an array -> what has a value each.
        matrix: (4, 4) float64, world from the part's own frame, acting on columns.
        present, shown: how many elements there are, and are drawn.
        notes: what a person should know of them.
        materials: of a mesh: name -> values, as JSON takes them.
        path: in its file.
    """

    kind: str
    arrays: Mapping[str, NDArray[Any]]
    matrix: NDArray[np.float64]
    present: int
    shown: int
    places: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    materials: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""


def cut_points(points: NDArray[Any], matrix: NDArray[np.float64], budget: int, **values: NDArray[Any] | None) -> Part:
    """A point cloud, in an order in which any first part of it is an even choice of all.

    Args:
        points: (N, 3) numbers.
        matrix: (4, 4).
        budget: points to draw.
        values: (N, ...) each, by name; None for none.
    """
    count = len(points)
    order = np.random.default_rng(0).permutation(count)[:budget]
    held = {name: array[order] for name, array in values.items() if array is not None}
    arrays = {"positions": points[order].astype(np.float32), **held}
    return Part("points", arrays, matrix, count, len(order), notes=_left_out(len(order), count, "points, an even choice"))


def cut_voxels(voxels: NDArray[Any], matrix: NDArray[np.float64], budget: int, **values: NDArray[Any] | None) -> Part:
    """A voxel grid; where there are too many voxels, blocks of 2, 4 or more a side are drawn as one.

    Args:
        voxels: (N, 3) integers, indices of the occupied voxels.
        matrix: (4, 4), from indices; a voxel reaches half a unit to all sides.
        budget: voxels to draw, at least the 8 octants that blocks of any size lie in.
        values: (N, ...) each, by name; None for none. A block has those of its first voxel.

    Raises:
        SourceError: an index that does not fit into 16 bits.
    """
    if len(voxels) and not (voxels.min() >= -_LARGEST_INDEX and voxels.max() < _LARGEST_INDEX):
        raise SourceError("range", f"voxel indices from {voxels.min()} to {voxels.max()}", "indices of 16 bits")
    size, chosen = 1, np.arange(len(voxels))
    while len(chosen) > budget:
        size *= 2
        chosen = _first_of_each(np.floor_divide(voxels, size))
    cells = np.floor_divide(voxels[chosen], size).astype(np.int16)
    held = {name: array[chosen] for name, array in values.items() if array is not None}
    notes = (f"{len(voxels):,} voxels drawn as blocks of {size} a side",) if size > 1 else ()
    return Part("voxels", {"positions": cells, **held}, matrix @ _blocks(size), len(voxels), len(cells), notes=notes)


def _blocks(size: int) -> NDArray[np.float64]:
    """(4, 4): index of a voxel from that of a block; their first voxels' outer sides meet."""
    scale = np.diag([size, size, size, 1.0])
    scale[:3, 3] = (size - 1) / 2
    return scale


def cut_mesh(
    positions: NDArray[np.float32],
    counts: NDArray[Any],
    indices: NDArray[Any],
    attributes: Attributes,
    matrix: NDArray[np.float64],
    budget: int,
) -> Part:
    """A mesh as triangles; where there are too many, vertices close to each other become one.

    Args:
        positions: (V, 3) float32.
        counts: (F,) integers, corners of each face.
        indices: (C,) integers, vertices of the corners, one face after another.
        attributes: of vertices, faces, or the C corners.
        matrix: (4, 4).
        budget: triangles to draw.

    Raises:
        SourceError: counts and indices that do not fit together, or an index of no vertex.
    """
    if int(counts.sum()) != len(indices) or (len(counts) and counts.min() < 0):
        raise SourceError("shape", f"faces of {int(counts.sum())} corners in all, {len(indices)} indices", "one index a corner")
    if len(indices) and not (indices.min() >= 0 and indices.max() < len(positions)):
        raise SourceError("range", f"vertex {max(indices.max(), -indices.min())} of a face", f"0 to {len(positions) - 1}")
    corners, faces = _fans(counts)
    present = len(corners)
    vertices = indices[corners].astype(np.int64)
    vertices, kept = _simplify(positions, vertices, budget)
    corners, faces = corners[kept], faces[kept]
    used, vertices = _used(vertices, len(positions))
    rows = {VERTEX: used, FACE: faces, CORNER: corners.reshape(-1)}
    arrays = {"positions": positions[used], "indices": vertices.astype(np.uint32)}
    arrays |= {name: values[rows[place]] for name, (values, place) in attributes.items()}
    places = {name: place for name, (_, place) in attributes.items()}
    notes = _left_out(len(kept), present, "triangles: close vertices are drawn as one")
    return Part("mesh", arrays, matrix, present, len(kept), places, notes)


def _fans(counts: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Faces as fans around their first corners: (T, 3) corners, and (T,) the faces they are of.

    >>> [array.tolist() for array in _fans(np.array([3, 5, 2]))]
    [[[0, 1, 2], [3, 4, 5], [3, 5, 6], [3, 6, 7]], [0, 1, 1, 1]]
    """
    triangles = np.maximum(counts.astype(np.int64) - 2, 0)
    faces = np.repeat(np.arange(len(counts)), triangles)
    number = np.arange(len(faces)) - np.repeat(np.cumsum(triangles) - triangles, triangles)
    start = (np.cumsum(counts) - counts)[faces].astype(np.int64)
    return np.stack([start, start + number + 1, start + number + 2], axis=1), faces


def _simplify(
    positions: NDArray[np.float32], triangles: NDArray[np.int64], budget: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """At most a number of triangles: their vertices, and which of those given they are.

    Vertices in one cell of a grid become the first of them; triangles that then have two corners in one are left out. The grid gets
    coarser until what is left fits.
    """
    everything = np.arange(len(triangles))
    if len(triangles) <= budget:
        return triangles, everything
    low, extent = _box(positions)
    cells = float(np.sqrt(budget))
    for _ in range(_TRIES):
        place = np.nan_to_num((positions - low) / extent * cells).clip(0, cells).astype(np.int64)
        merged = _representatives(place)[triangles]
        first, second, third = merged.T
        kept = everything[(first != second) & (second != third) & (third != first)]
        if len(kept) <= budget:
            return merged[kept], kept
        cells *= 0.95 * np.sqrt(budget / len(kept))
    return merged[kept[:budget]], kept[:budget]


def _used(vertices: NDArray[np.int64], count: int) -> tuple[Any, NDArray[np.int64]]:
    """Which vertices to send, and the triangles in terms of these: all, or where most are in no triangle those that are."""
    if count <= vertices.size:
        return slice(None), vertices
    used, place = np.unique(vertices, return_inverse=True)
    return used, place.reshape(vertices.shape)


def _box(positions: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """The lowest corner of all finite positions, and the longest side of their box."""
    finite = positions[np.isfinite(positions).all(axis=1)].astype(np.float64)
    low = finite.min(axis=0) if len(finite) else np.zeros(3)
    extent = float((finite.max(axis=0) - low).max()) if len(finite) else 0.0
    return low, extent or 1.0


def _codes(cells: NDArray[Any]) -> NDArray[np.int64]:
    """(N,): a number for each row of (N, 3) integers, equal for equal rows alone."""
    moved = cells.astype(np.int64) - cells.min(axis=0)
    sizes = moved.max(axis=0) + 1
    codes: NDArray[np.int64] = (moved[:, 0] * sizes[1] + moved[:, 1]) * sizes[2] + moved[:, 2]
    return codes


def _first_of_each(cells: NDArray[Any]) -> NDArray[np.intp]:
    return np.sort(np.unique(_codes(cells), return_index=True)[1])


def _representatives(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,): of each row the first row that is equal to it."""
    _, first, place = np.unique(_codes(cells), return_index=True, return_inverse=True)
    return first[place]


def _left_out(shown: int, present: int, what: str) -> tuple[str, ...]:
    return (f"{shown:,} of {present:,} {what}",) if shown < present else ()
