"""Meshes, point clouds and voxel grids as they were at one time: plain arrays in the prims' own frames."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class MeshData:
    """A mesh at one time.

    Attributes:
        path: of its prim.
        transform: (4, 4) float64, world from prim, acting on columns.
        vertices: (V, 3) float32.
        counts: (F,) int32, corners of each face.
        indices: (C,) int32, vertices of the corners, one face after another.
        uvs: (U, 2) float32, v down; None for none.
        uv_indices: (C,) int32, rows of ``uvs`` of the corners; None for none.
        normals: (n, 3) float32; None for none.
        normals_at: what has a normal each, in USD's words.
        colors: (n, 3) or (n, 4) float32 from 0 to 1; None for none.
        colors_at: what has a colour each: "vertex", "uniform" (faces), "faceVarying" (corners), "constant".
        semantic_ids: (n,) int32; None for none.
        semantic_ids_at: what has an id each.
        materials: by name; those of all variants. Read only where they were asked for.
    """

    path: str
    transform: NDArray[np.float64]
    vertices: NDArray[np.float32]
    counts: NDArray[np.int32]
    indices: NDArray[np.int32]
    uvs: NDArray[np.float32] | None = None
    uv_indices: NDArray[np.int32] | None = None
    normals: NDArray[np.float32] | None = None
    normals_at: str = ""
    colors: NDArray[np.float32] | None = None
    colors_at: str = ""
    semantic_ids: NDArray[np.int32] | None = None
    semantic_ids_at: str = ""
    materials: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PointData:
    """A point cloud at one time.

    Attributes:
        path: of its prim.
        transform: (4, 4) float64, world from prim, acting on columns.
        points: (N, 3) float32.
        colors: (N, 3) or (N, 4) float32 from 0 to 1; None for none.
        semantic_ids: (N,) int32; None for none.
        widths: (N,) float32, diameters; None for none.
    """

    path: str
    transform: NDArray[np.float64]
    points: NDArray[np.float32]
    colors: NDArray[np.float32] | None = None
    semantic_ids: NDArray[np.int32] | None = None
    widths: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class VoxelData:
    """A voxel grid at one time.

    Attributes:
        path: of its prim.
        transform: (4, 4) float64, world from voxel indices, acting on columns.
        shape: (X, Y, Z), voxels along each axis.
        voxels: (K, 3) int32, indices of the occupied ones, in the order of the file.
        colors: (K, 3) or (K, 4) float32 from 0 to 1; None for none.
        semantic_ids: (K,) int32; None for none.
    """

    path: str
    transform: NDArray[np.float64]
    shape: tuple[int, int, int]
    voxels: NDArray[np.int32]
    colors: NDArray[np.float32] | None = None
    semantic_ids: NDArray[np.int32] | None = None

    def occupied(self) -> NDArray[np.bool_]:
        """(X, Y, Z) bool, the grid itself."""
        grid = np.zeros(self.shape, np.bool_)
        grid[tuple(self.voxels.T)] = True
        return grid
