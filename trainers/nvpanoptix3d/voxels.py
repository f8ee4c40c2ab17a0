"""The voxels that are there, and where each of them is found.

Voxels are rows of coordinates, (sample, x, y, z), in cells of a grid. A box around them numbers its cells in that order; a voxel is
looked up by its number: in a table of all cells where that is small beside the voxels, else among the sorted numbers.

Source: the sparse operators of NvPanoptix3D as described in its fact sheet; how voxels are looked up is our own.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import functional

from scenemill.schemas.errors import ConfigError

if TYPE_CHECKING:
    from scenemill.trainers.nvpanoptix3d.sparse_links import Links

LEAST_STEP: Final = -1
MOST_STEP: Final = 3
"""How far along an axis a voxel's neighbours may be: kernels are 3 wide around a cell, or 4 wide from it on."""

CELLS_PER_VOXEL: Final = 128
"""A table of all cells is made for at most so many per voxel, 512 bytes. The surfaces of a room at 256³ have 40 to 80."""

CELLS_ANYWAY: Final = 2**20
"""A table of no more cells is always made."""


@dataclass(frozen=True)
class Box:
    """A box of cells, numbered in the order of (sample, x, y, z).

    Attributes:
        low: the first sample, x, y and z.
        size: how many along each of the four.
    """

    low: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def cells(self) -> int:
        """How many there are."""
        return math.prod(self.size)

    def step(self, x: int, y: int, z: int) -> int:
        """What a step adds to a cell's number."""
        return (x * self.size[2] + y) * self.size[3] + z

    def numbers(self, coords: Tensor) -> Tensor:
        """(M, 4) int64, all in the box -> (M,) int64."""
        number = coords[:, 0] - self.low[0]
        for axis in (1, 2, 3):
            number = number.mul_(self.size[axis]).add_(coords[:, axis]).sub_(self.low[axis])
        return number

    def coords(self, numbers: Tensor) -> Tensor:
        """The reverse: (M,) int64 -> (M, 4) int64."""
        columns = []
        for axis in (3, 2, 1):
            above = numbers.div(self.size[axis], rounding_mode="floor")
            columns.append(numbers - above * self.size[axis] + self.low[axis])
            numbers = above
        return torch.stack([numbers + self.low[0], *reversed(columns)], dim=1)

    def is_small(self, voxels: int) -> bool:
        """Whether a table of all cells is small beside so many voxels."""
        return self.cells <= min(max(CELLS_PER_VOXEL * voxels, CELLS_ANYWAY), 2**31 - 1)


def box_around(coords: Tensor, margin: int = 0) -> Box:
    """The smallest box that holds voxels, and on all sides so many cells more; of samples one more, if any.

    Args:
        coords: (N, 4) int64, N > 0.
        margin: cells more.

    Raises:
        ConfigError: its cells cannot be numbered.
    """
    least, most = (limit.tolist() for limit in torch.aminmax(coords, dim=0))
    margins = (min(margin, 1), margin, margin, margin)
    low = tuple(first - more for first, more in zip(least, margins, strict=True))
    size = tuple(last + more + 1 - first for last, more, first in zip(most, margins, low, strict=True))
    box = Box(low, size)
    if box.cells >= 2**62:
        raise ConfigError(f"coordinates from {least} to {most} are too far apart to be numbered; leave out stray voxels")
    return box


def sorted_distinct(coords: Tensor) -> Tensor:
    """Each coordinate once, sorted by (sample, x, y, z).

    Args:
        coords: (N, 4) int64.

    Returns:
        (M, 4) int64.

    >>> sorted_distinct(torch.tensor([[0, 1, 0, 0], [0, 0, 5, -1], [0, 1, 0, 0]]))
    tensor([[ 0,  0,  5, -1],
            [ 0,  1,  0,  0]])
    """
    if not len(coords):
        return coords
    box = box_around(coords)
    numbers = box.numbers(coords)
    if not box.is_small(len(coords)):
        return box.coords(torch.unique_consecutive(numbers.sort().values))
    there = torch.zeros(box.cells, dtype=torch.bool, device=coords.device).index_fill_(0, numbers, True)
    return box.coords(there.nonzero()[:, 0])


class Finder:
    """Looks voxels up by their coordinates.

    Args:
        coords: (N, 4) int64. Of rows that share a coordinate any one may be found, always the same.
    """

    def __init__(self, coords: Tensor) -> None:
        self.count = len(coords)
        if not self.count:
            return
        self.box = box_around(coords, MOST_STEP - LEAST_STEP + 1)
        numbers = self.box.numbers(coords)
        self.table = self._table(numbers) if self.box.is_small(self.count) else None
        if self.table is None:
            end = numbers.new_full((MOST_STEP - LEAST_STEP + 1,), self.box.cells)
            self.numbers, self.rows = torch.cat([numbers, end]).sort()

    def _table(self, numbers: Tensor) -> Tensor:
        """(cells,) int32: the row in each cell, N where there is none."""
        table = torch.full((self.box.cells,), self.count, dtype=torch.int32, device=numbers.device)
        return table.index_copy_(0, numbers, torch.arange(self.count, dtype=torch.int32, device=numbers.device))

    def find(self, coords: Tensor, first: int = 0, edge: int = 1) -> Tensor:
        """The rows at, or around, coordinates.

        Args:
            coords: (M, 4) int64.
            first: the least step along each axis, from LEAST_STEP.
            edge: how many steps along each axis, up to MOST_STEP.

        Returns:
            (M, edge³) int32: a column per step, that of x slowest; N where there is no voxel.
        """
        if not self.count:
            return torch.zeros((len(coords), edge**3), dtype=torch.int32, device=coords.device)
        numbers = self.box.numbers(self._within_reach(coords))
        if self.table is None:
            return self._search(numbers, first, edge)
        steps = [self.box.step(*step) for step in itertools.product(range(first, first + edge), repeat=3)]
        cells = numbers.int().unsqueeze(1) + torch.tensor(steps, dtype=torch.int32, device=coords.device)
        return self.table.index_select(0, cells.flatten()).view(cells.shape)

    def _within_reach(self, coords: Tensor) -> Tensor:
        """Coordinates in the box; those too far from any voxel to have a neighbour become others that have none either."""
        low, size = coords.new_tensor(self.box.low), coords.new_tensor(self.box.size)
        inner = coords.new_tensor([0, 1, 1, 1])
        return coords.clamp(low - LEAST_STEP * inner, low + size - 1 - MOST_STEP * inner)

    def _search(self, numbers: Tensor, first: int, edge: int) -> Tensor:
        """The same by binary search, one for each row of cells along z: its other cells follow among the sorted numbers."""
        columns = []
        for x, y in itertools.product(range(first, first + edge), repeat=2):
            wanted = numbers + self.box.step(x, y, first)
            place = torch.searchsorted(self.numbers, wanted)
            for _ in range(edge):
                found = self.numbers[place] == wanted
                columns.append(torch.where(found, self.rows[place], self.count).int())
                place, wanted = place + found, wanted + 1
        return torch.stack(columns, dim=1)


class Support:
    """The voxels that are there, on one level. What is once worked out about them is kept.

    Attributes:
        coords: (N, 4) int64, (sample, x, y, z) in cells of the level's own grid; x, y, z may be negative, rows may share a coordinate.
        stride: cells of the finest grid per cell, along an axis.
        links: what convolutions of these voxels connect, by kind.

    Raises:
        ConfigError: coordinates of another shape or type.
    """

    def __init__(self, coords: Tensor, stride: int = 1) -> None:
        if coords.ndim != 2 or coords.shape[1] != 4 or coords.dtype != torch.int64:
            raise ConfigError(f"coordinates are {tuple(coords.shape)} {coords.dtype}; give (N, 4) int64: sample, x, y, z")
        self.coords = coords
        self.stride = stride
        self.links: dict[str, Links] = {}

    def __len__(self) -> int:
        return len(self.coords)

    @cached_property
    def finder(self) -> Finder:
        """What looks these voxels up."""
        return Finder(self.coords)

    @cached_property
    def distinct(self) -> bool:
        """Whether no two rows share a coordinate: then every row finds itself."""
        own = torch.arange(len(self), dtype=torch.int32, device=self.coords.device)
        return torch.equal(self.finder.find(self.coords)[:, 0], own)

    @cached_property
    def halved(self) -> "Support":
        """The cells of twice the size that hold these voxels, sorted: every coordinate halved and rounded down, once."""
        return Support(sorted_distinct(halved_coords(self.coords)), 2 * self.stride)

    @cached_property
    def doubled(self) -> "Support":
        """The cells of half the size that a voxel grows, sorted: from 2c on, four along each axis.

        Raises:
            ConfigError: there is no finer grid.
        """
        if self.stride % 2:
            raise ConfigError(f"voxels of stride {self.stride} cannot grow finer ones; give an even stride")
        cube = torch.cartesian_prod(*[torch.arange(2, device=self.coords.device)] * 3)
        halves = Support(sorted_distinct(offset_coords(self.coords, cube)), self.stride)
        doubled = Support(sorted_distinct(offset_coords(doubled_coords(halves.coords), cube)), self.stride // 2)
        doubled.halved = halves
        return doubled


def halved_coords(coords: Tensor) -> Tensor:
    """The cell of twice the size that holds each voxel: (N, 4) -> (N, 4), x, y, z halved and rounded down."""
    return torch.cat([coords[:, :1], coords[:, 1:] >> 1], dim=1)


def doubled_coords(coords: Tensor) -> Tensor:
    """The first of the eight cells of half the size in each voxel: (N, 4) -> (N, 4), x, y, z doubled."""
    return torch.cat([coords[:, :1], coords[:, 1:] << 1], dim=1)


def offset_coords(coords: Tensor, steps: Tensor) -> Tensor:
    """Each voxel moved by each step, in this order: (N, 4), (K, 3) -> (N * K, 4)."""
    return (coords.unsqueeze(1) + functional.pad(steps, (1, 0))).flatten(0, 1)
