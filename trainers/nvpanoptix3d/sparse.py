"""Features of the voxels that are there, and what joins, cuts, pools, spreads and gathers them.

A level is a grid of cells; its voxels are rows of coordinates, (sample, x, y, z) in cells of that grid, with one row of features each.
Coordinates may be negative: a grid only says which of them become dense volumes. New coordinates are sorted by (sample, x, y, z).

Source: the sparse operators of NvPanoptix3D as described in its fact sheet. Where rows share a coordinate, the reference leaves open
which one counts; here a pool takes the first and a union the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import Function

from scenemill.schemas.errors import ConfigError

AXIS_BITS: Final = 18
"""Of a packed coordinate, for each axis; nine more hold the sample."""

REACH: Final = 2 ** (AXIS_BITS - 1) - 4
"""No coordinate is further from zero: neighbours of a legal voxel can still be packed."""

SAMPLES: Final = 512
"""Of one batch, at most."""


def pack(coords: Tensor) -> Tensor:
    """One number per voxel, in the order of (sample, x, y, z).

    Args:
        coords: (..., 4) int64, sample in 0..SAMPLES - 1, axes within REACH.

    Returns:
        (...,) int64; neighbours along z differ by one.
    """
    sample, x, y, z = (coords[..., axis] for axis in range(4))
    half = 1 << (AXIS_BITS - 1)
    return (((sample << AXIS_BITS | x + half) << AXIS_BITS | y + half) << AXIS_BITS) | z + half


def unpack(keys: Tensor) -> Tensor:
    """The reverse of ``pack``: (...,) int64 -> (..., 4) int64."""
    half, mask = 1 << (AXIS_BITS - 1), (1 << AXIS_BITS) - 1
    axes = [(keys >> AXIS_BITS * place & mask) - half for place in (2, 1, 0)]
    return torch.stack([keys >> 3 * AXIS_BITS, *axes], dim=-1)


class Support:
    """The voxels that are there, on one level, and where each of them is found.

    Attributes:
        coords: (N, 4) int64, (sample, x, y, z) in cells of the level's own grid. Rows may share a coordinate.
        stride: cells of the finest grid per cell, along an axis.

    Raises:
        ConfigError: coordinates of another shape or type, or too far out.
    """

    def __init__(self, coords: Tensor, stride: int = 1) -> None:
        if coords.ndim != 2 or coords.shape[1] != 4 or coords.dtype != torch.int64:
            raise ConfigError(f"coordinates are {tuple(coords.shape)} {coords.dtype}; give (N, 4) int64: sample, x, y, z")
        if len(coords):
            low, high = coords.amin(dim=0).tolist(), coords.amax(dim=0).tolist()
            if low[0] < 0 or high[0] >= SAMPLES or min(low[1:]) < -REACH or max(high[1:]) > REACH:
                raise ConfigError(f"coordinates from {low} to {high}; samples are 0..{SAMPLES - 1}, axes -{REACH}..{REACH}")
        self.coords = coords
        self.stride = stride

    def __len__(self) -> int:
        return len(self.coords)

    @cached_property
    def keys(self) -> Tensor:
        """(N,) int64: the packed coordinates."""
        return pack(self.coords)

    @cached_property
    def _ranked(self) -> tuple[Tensor, Tensor]:
        """The keys in ascending order, and the row of each; rows of one coordinate stay in their order."""
        ranked = self.keys.sort(stable=True)
        return ranked.values, ranked.indices

    @cached_property
    def distinct(self) -> bool:
        """Whether no two rows share a coordinate."""
        keys = self._ranked[0]
        return not bool((keys[1:] == keys[:-1]).any())

    def rows_of(self, keys: Tensor) -> Tensor:
        """Where voxels are found.

        Args:
            keys: (...) int64, packed coordinates.

        Returns:
            (...) int64: the first row of each coordinate, or N where there is none.
        """
        if not len(self):
            return torch.zeros_like(keys)
        known, row = self._ranked
        place = torch.searchsorted(known, keys).clamp_(max=len(known) - 1)
        return torch.where(known[place] == keys, row[place], len(self))

    @cached_property
    def halved(self) -> "Support":
        """The cells of twice the size that hold these voxels, sorted: every coordinate halved and rounded down, once."""
        halves = torch.cat([self.coords[:, :1], self.coords[:, 1:] >> 1], dim=1)
        return Support(unpack(pack(halves).unique()), 2 * self.stride)


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """Features on a support.

    Attributes:
        support: of N voxels.
        features: (N, C) floating point.

    Raises:
        ConfigError: there is not one row of features per voxel.
    """

    support: Support
    features: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.support):
            raise ConfigError(f"features are {tuple(self.features.shape)}; {len(self.support)} voxels need as many rows")

    @property
    def coords(self) -> Tensor:
        """(N, 4) int64: sample, x, y, z."""
        return self.support.coords

    @property
    def stride(self) -> int:
        """Cells of the finest grid per cell."""
        return self.support.stride

    def with_features(self, features: Tensor) -> "SparseTensor":
        """Other features on the same support, which keeps what it knows of its neighbours."""
        return SparseTensor(self.support, features)


def sparse_tensor(coords: Tensor, features: Tensor, stride: int = 1) -> SparseTensor:
    """Features (N, C) at coordinates (N, 4) int64, as they are: neither sorted nor made distinct."""
    return SparseTensor(Support(coords, stride), features)


class _MoveRows(Function):
    """Rows taken from other places, zeros where there is none; back the same way, without adding anything up."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, rows: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(rows, back)
        return torch.cat([features, features.new_zeros(1, features.shape[1])]).index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows, back = ctx.saved_tensors
        moved: Tensor = _MoveRows.apply(gradient, back, rows)
        return moved, None, None


def move_rows(features: Tensor, rows: Tensor, back: Tensor) -> Tensor:
    """Rows taken from other places: differentiable, deterministic, no row twice.

    Args:
        features: (N, C).
        rows: (M,) integers: the row that comes to each place, N for zeros.
        back: (N,) integers, the reverse: where each row went, M if nowhere.

    Returns:
        (M, C).
    """
    moved: Tensor = _MoveRows.apply(features, rows, back)
    return moved


def _places(rows: Tensor, count: int) -> Tensor:
    """The reverse of a selection: (M,) distinct int64 below ``count`` -> (count,), M where a row was not selected."""
    back = rows.new_full((count,), len(rows))
    return back.index_copy_(0, rows, torch.arange(len(rows), device=rows.device))


def prune(tensor: SparseTensor, keep: Tensor) -> SparseTensor:
    """The rows where ``keep``, (N,) bool, is True, in their order."""
    if keep.dtype != torch.bool or keep.shape != (len(tensor.support),):
        raise ConfigError(f"keep is {tuple(keep.shape)} {keep.dtype}; give ({len(tensor.support)},) bool")
    return _selected(tensor, keep.nonzero()[:, 0])


def _selected(tensor: SparseTensor, rows: Tensor) -> SparseTensor:
    moved = move_rows(tensor.features, rows, _places(rows, len(tensor.support)))
    return SparseTensor(Support(tensor.coords.index_select(0, rows), tensor.stride), moved)


def _with_one_row_each(tensor: SparseTensor, *, last: bool) -> SparseTensor:
    """Of the rows of each coordinate the first or the last, in their order."""
    if tensor.support.distinct:
        return tensor
    keys, rows = tensor.support._ranked
    changes = keys[1:] != keys[:-1]
    end = changes.new_ones(1)
    chosen = rows[torch.cat([changes, end] if last else [end, changes])]
    return _selected(tensor, chosen.sort().values)


def _union(tensors: Sequence[SparseTensor]) -> Support:
    strides = {tensor.stride for tensor in tensors}
    if len(strides) != 1:
        raise ConfigError(f"a union of strides {sorted(strides)}; give at least one tensor, all of one level")
    return Support(unpack(torch.cat([tensor.support.keys for tensor in tensors]).unique()), strides.pop())


def _on(tensor: SparseTensor, support: Support) -> Tensor:
    """(M, C): features at the voxels of another support, zeros where there is none. Of rows of one coordinate, the last."""
    one = _with_one_row_each(tensor, last=True)
    return move_rows(one.features, one.support.rows_of(support.keys), support.rows_of(one.support.keys))


def concat_union(*tensors: SparseTensor) -> SparseTensor:
    """The voxels that any of the tensors has, sorted; their features side by side, zeros where a tensor lacks a voxel.

    Args:
        tensors: (N_i, C_i), of one stride. Where rows of one tensor share a coordinate, the last counts.

    Returns:
        (M, sum of C_i).

    Raises:
        ConfigError: no tensor, or several strides.
    """
    support = _union(tensors)
    return SparseTensor(support, torch.cat([_on(tensor, support) for tensor in tensors], dim=1))


def add_union(a: SparseTensor, b: SparseTensor) -> SparseTensor:
    """The sum, on the voxels that either has, sorted; on the same support if both share one.

    Args:
        a, b: (N, C) and (M, C), of one stride. Where rows of one tensor share a coordinate, the last counts.

    Raises:
        ConfigError: strides differ.
    """
    if a.support is b.support:
        return a.with_features(a.features + b.features)
    support = _union([a, b])
    return SparseTensor(support, _on(a, support) + _on(b, support))


def inside(tensor: SparseTensor | Support, size: int) -> Tensor:
    """(N,) bool: which voxels are in the grid, 0 <= x, y, z < ``size``."""
    axes = tensor.coords[:, 1:]
    return ((axes >= 0) & (axes < size)).all(dim=1)


def to_dense(tensor: SparseTensor, samples: int, size: int, fill: float = 0.0) -> Tensor:
    """Volumes with the features of the voxels in the grid; rows outside are dropped.

    Args:
        tensor: (N, C). Where rows share a coordinate, the last counts.
        samples: B. Rows of further samples are dropped.
        size: cells along each axis.
        fill: of cells without a voxel.

    Returns:
        (B, C, size, size, size), axes x, y, z.
    """
    one = _with_one_row_each(tensor, last=True)
    kept = inside(one, size) & (one.coords[:, 0] < samples)
    shown = prune(one, kept)
    sample, x, y, z = shown.coords.unbind(dim=1)
    cells = ((sample * size + x) * size + y) * size + z
    dense = move_rows(shown.features, _places(cells, samples * size**3), cells)
    volumes = dense.view(samples, size, size, size, -1).movedim(-1, 1)
    if not fill:
        return volumes
    there = _places(cells, samples * size**3).view(samples, 1, size, size, size) < len(cells)
    return torch.where(there, volumes, fill)


def from_dense(dense: Tensor, mask: Tensor, stride: int) -> SparseTensor:
    """The cells of a mask as voxels, sorted.

    Args:
        dense: (B, C, X, Y, Z).
        mask: (B, X, Y, Z) bool.
        stride: of the grid.

    Returns:
        (N, C), N the number of True cells.
    """
    if mask.dtype != torch.bool or mask.shape != dense[:, 0].shape:
        raise ConfigError(f"mask is {tuple(mask.shape)} {mask.dtype}; give {tuple(dense[:, 0].shape)} bool")
    cells = mask.flatten().nonzero()[:, 0]
    rows = dense.movedim(1, -1).flatten(0, 3)
    return SparseTensor(Support(mask.nonzero(), stride), move_rows(rows, cells, _places(cells, len(rows))))


def max_pool(tensor: SparseTensor) -> SparseTensor:
    """The largest of the 3x3x3 voxels around the first child of each cell of twice the size, channel by channel.

    Args:
        tensor: (N, C). Where rows share a coordinate, the first counts.

    Returns:
        (M, C) on ``support.halved``, sorted, of twice the stride. Voxel o holds the maximum over what is there of 2o + {-1, 0, 1}³.
    """
    one = _with_one_row_each(tensor, last=False)
    halved = one.support.halved
    steps = torch.cartesian_prod(*[torch.arange(-1, 2, device=one.coords.device)] * 3)
    scale = one.coords.new_tensor([1, 2, 2, 2])
    around = pack(halved.coords * scale).unsqueeze(1) + pack(torch.nn.functional.pad(steps, (1, 0))) - pack(steps.new_zeros(4))
    rows = one.support.rows_of(around)
    least = one.features.new_full((1, one.features.shape[1]), -torch.inf)
    gathered = torch.cat([one.features, least]).index_select(0, rows.flatten()).unflatten(0, rows.shape)
    return SparseTensor(halved, gathered.amax(dim=1))
