"""A volume as the cubes of it that hold something: what a store decodes to, and what is cheap to move and to compute with."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

EDGE: Final = 16
"""Voxels a side of one block: small enough to leave most of a volume out, large enough that rows of it are worth a copy."""


@dataclass(frozen=True)
class Blocks:
    """A volume without the blocks that hold nothing but its fill value.

    Attributes:
        places: (n, 3) int64, the index of each block along x, y, z; voxel ``EDGE * places`` is its first.
        values: (n, EDGE, EDGE, EDGE), the blocks.
        fill: the value of every voxel in no block.
        grid: voxels a side of the volume.
    """

    places: NDArray[np.int64]
    values: NDArray[Any]
    fill: float | int | bool
    grid: int

    def __len__(self) -> int:
        return len(self.places)

    def dense(self) -> NDArray[Any]:
        """(grid, grid, grid), in the dtype of ``values``.

        >>> blocks = Blocks(np.array([[0, 0, 1]]), np.full((1, 16, 16, 16), 7), 1, 32)
        >>> blocks.dense()[0, 0, [15, 16]].tolist()
        [1, 7]
        """
        volume = np.full((self.grid,) * 3, self.fill, self.values.dtype)
        blocked(volume)[tuple(self.places.T)] = self.values
        return volume

    def voxels_where(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Voxels that are chosen, as indexes into the flattened (C order) volume.

        Args:
            chosen: (n, EDGE, EDGE, EDGE), as ``values``.

        >>> blocks = Blocks(np.array([[0, 0, 1]]), np.arange(4096).reshape(1, 16, 16, 16), 0, 32)
        >>> blocks.voxels_where(blocks.values == 17).tolist()
        [49]
        """
        first = (self.places * EDGE) @ np.array([self.grid**2, self.grid, 1])
        edge = np.arange(EDGE)
        within = ((edge[:, None, None] * self.grid + edge[:, None]) * self.grid + edge).reshape(-1)
        inside = np.flatnonzero(chosen)
        index: NDArray[np.int64] = first[inside // EDGE**3] + within[inside % EDGE**3]
        return index


def blocked(volume: NDArray[Any], edge: int = EDGE) -> NDArray[Any]:
    """A view of a volume as (x, y, z block, x, y, z within the block)."""
    counts = [size // edge for size in volume.shape]
    split = volume.reshape(counts[0], edge, counts[1], edge, counts[2], edge)
    return split.transpose(0, 2, 4, 1, 3, 5)


def blocks_with_content(volume: NDArray[Any], fill: float | int | bool) -> NDArray[np.bool_]:
    """Which blocks of a volume hold anything but ``fill``: (X / EDGE, Y / EDGE, Z / EDGE) bool.

    Args:
        volume: (X, Y, Z), C order, sizes multiples of EDGE.
    """
    x, y, z = (size // EDGE for size in volume.shape)
    words = (volume != fill).view(np.uint64)  # eight voxels a word: whole planes, then rows, then words are or-ed
    planes = np.bitwise_or.reduce(words.reshape(x, EDGE, -1), axis=1)
    rows = np.bitwise_or.reduce(planes.reshape(x, y, EDGE, -1), axis=2)
    found: NDArray[np.bool_] = rows.reshape(x, y, z, EDGE // 8).any(axis=-1)
    return found
