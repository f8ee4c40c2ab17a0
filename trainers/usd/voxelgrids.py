"""Voxel grids: instances of a cube at the coordinates of the occupied voxels.

Source: PointInstancer of UsdGeom; the names, the arguments and the plain layout are those of Kaolin's ``io.usd``, Apache 2.0.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.trainers.usd.arrays import bounds, to_host
from scenemill.trainers.usd.authoring import Author
from scenemill.trainers.usd.pointclouds import put_instances
from scenemill.trainers.usd.primvars import VERTEX, put_colors, put_ids

GRID_SIZE: Final = "primvars:grid_size"
GRID_DIMS: Final = "primvars:grid_dims"
KIND: Final = "primvars:kaolin_type"
"""Attributes: the longest side, all sides, and what an instancer is: "VoxelGrid"."""

VOXEL_GRID: Final = "VoxelGrid"


def define_voxelgrid(
    author: Author, path: Any, occupied: NDArray[np.bool_], colors: Any = None, semantic_ids: Any = None, centered: bool = False
) -> Any:
    """Write a voxel grid.

    Args:
        author: writes.
        path: of its prim.
        occupied: (X, Y, Z) bool.
        colors: (X, Y, Z, 3), of all voxels; (K, 3), of the occupied ones, z fastest; or (3,). A fourth number is opacity. None leaves
            them.
        semantic_ids: (X, Y, Z), (K,) or one. None leaves them.
        centered: the grid fills -0.5 to 0.5 along its longest side; else a voxel is at (index - 0.5) / (longest side - 1), as
            Kaolin has it.

    Returns:
        The prim's spec.

    Raises:
        ConfigError: values that do not fit the voxels.
    """
    prim = author.prim(path, "PointInstancer")
    positions = np.argwhere(occupied).astype(np.float32)
    author.put(prim, "positions", "point3f[]", positions)
    reach = put_instances(author, path, prim, "cube", len(positions), 1.0)
    author.fix(prim, KIND, "string", VOXEL_GRID)
    _put_grid(author, prim, occupied.shape, centered)
    if author.strict:
        author.put(prim, "extent", "float3[]", bounds(positions, reach / 2))
    if colors is not None:
        put_colors(author, prim, _of_occupied(to_host(colors), occupied, (3, 4)), {VERTEX: len(positions)})
    if semantic_ids is not None:
        put_ids(author, prim, _of_occupied(to_host(semantic_ids), occupied, ()), {VERTEX: len(positions)})
    return prim


def _put_grid(author: Author, prim: Any, shape: tuple[int, ...], centered: bool) -> None:
    """How large the grid is, and how it is brought to about one unit."""
    size = max(shape)
    scale = 1 / size if centered else 1 / max(size - 1, 1)
    offset = [-(side - 1) / 2 for side in shape] if centered else [-0.5] * 3
    author.put(prim, "xformOp:scale", "float3", [scale] * 3, constant=True)
    author.put(prim, "xformOp:translate", "double3", offset, constant=True)
    author.fix(prim, "xformOpOrder", "token[]", ["xformOp:scale", "xformOp:translate"], uniform=True)
    if author.strict:
        earlier = author.held(prim, GRID_SIZE)
        if earlier is not None and author.held(prim, GRID_DIMS) is None:  # a file of Kaolin's, whose grids are cubes
            author.fix(prim, GRID_DIMS, "int3", [earlier] * 3)
        author.put(prim, GRID_DIMS, "int3", shape, constant=True)
        author.put(prim, GRID_SIZE, "int", size, constant=True)
    else:
        author.fix(prim, GRID_SIZE, "int", size)


def _of_occupied(values: NDArray[Any], occupied: NDArray[np.bool_], widths: tuple[int, ...]) -> NDArray[Any]:
    """Values of the occupied voxels out of those of all, where they are of all."""
    is_dense = values.shape[:3] == occupied.shape and values.ndim == (4 if widths else 3)
    return values[occupied] if is_dense else values
