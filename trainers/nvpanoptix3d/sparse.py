"""Features of the voxels that are there, and what joins, cuts, spreads and gathers them.

New coordinates are sorted by (sample, x, y, z); those that are kept stay in their order. Features and gradients only move between
rows: none of these functions adds several up in one place, so results are the same in every run.

Source: the sparse operators of NvPanoptix3D as described in its fact sheet. Where rows share a coordinate, the reference leaves open
which one counts; here a pool takes the first and a union the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.sparse_kernels import pool
from scenemill.trainers.nvpanoptix3d.sparse_links import strided_links
from scenemill.trainers.nvpanoptix3d.voxels import Box, Support, box_around, sorted_distinct

__all__ = [
    "SparseTensor",
    "Support",
    "add_union",
    "concat_union",
    "from_dense",
    "inside",
    "max_pool",
    "prune",
    "sparse_tensor",
    "to_dense",
]


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
        """(N, 4) int64: sample, x, y, z, in cells of the level's own grid."""
        return self.support.coords

    @property
    def stride(self) -> int:
        """Cells of the finest grid per cell."""
        return self.support.stride

    def with_features(self, features: Tensor) -> "SparseTensor":
        """Other features on the same support, with what that knows of its voxels."""
        return SparseTensor(self.support, features)


def sparse_tensor(coords: Tensor, features: Tensor, stride: int = 1) -> SparseTensor:
    """Features (N, C) at coordinates (N, 4) int64, as they are: neither sorted nor made distinct."""
    return SparseTensor(Support(coords, stride), features)


def prune(tensor: SparseTensor, keep: Tensor) -> SparseTensor:
    """The rows where ``keep``, (N,) bool, is True, in their order; the tensor itself if that is all.

    Raises:
        ConfigError: ``keep`` is of another shape or dtype.
    """
    if keep.dtype != torch.bool or keep.shape != (len(tensor.support),):
        raise ConfigError(f"keep is {tuple(keep.shape)} {keep.dtype}; give ({len(tensor.support)},) bool")
    return _selected(tensor, keep.nonzero()[:, 0])


def _selected(tensor: SparseTensor, rows: Tensor) -> SparseTensor:
    """Rows in ascending order."""
    if len(rows) == len(tensor.support):
        return tensor
    support = Support(tensor.coords.index_select(0, rows), tensor.stride)
    return SparseTensor(support, tensor.features.index_select(0, rows))


def _one_row_each(tensor: SparseTensor, *, last: bool) -> SparseTensor:
    """Of the rows of each coordinate the first or the last, in their order."""
    if tensor.support.distinct:
        return tensor
    numbers, rows = box_around(tensor.coords).numbers(tensor.coords).sort(stable=True)
    changes, end = numbers[1:] != numbers[:-1], torch.ones(1, dtype=torch.bool, device=rows.device)
    return _selected(tensor, rows[torch.cat([changes, end] if last else [end, changes])].sort().values)


def _union(tensors: Sequence[SparseTensor]) -> Support:
    strides = {tensor.stride for tensor in tensors}
    if len(strides) != 1:
        raise ConfigError(f"a union of strides {sorted(strides)}; give tensors of one level")
    return Support(sorted_distinct(torch.cat([tensor.coords for tensor in tensors])), strides.pop())


def _on(tensor: SparseTensor, support: Support) -> Tensor:
    """(M, C): features at voxels that include the tensor's own, zeros where it has none. Of rows of one coordinate, the last."""
    one = _one_row_each(tensor, last=True)
    return _spread(one.features, support.finder.find(one.coords)[:, 0].long(), len(support), 0)


def _spread(features: Tensor, rows: Tensor, count: int, fill: float) -> Tensor:
    """(N, C) to rows (N,) int64, all different, of (count, C); the others hold ``fill``."""
    return features.new_full((count, features.shape[1]), fill).index_copy_(0, rows, features)


def concat_union(*tensors: SparseTensor) -> SparseTensor:
    """The voxels that any of the tensors has, sorted; their features side by side, zeros where a tensor lacks a voxel.

    Args:
        tensors: at least one, (N_i, C_i), of one stride. Where rows of one tensor share a coordinate, the last counts.

    Returns:
        (M, sum of C_i).

    Raises:
        ConfigError: no tensor, or several strides.
    """
    support = _union(tensors)
    return SparseTensor(support, torch.cat([_on(tensor, support) for tensor in tensors], dim=1))


def add_union(a: SparseTensor, b: SparseTensor) -> SparseTensor:
    """The sum, on the voxels that either has, sorted. If both have one and the same support, on that, as it is.

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
    """Volumes with the features of the voxels in the grid.

    Args:
        tensor: (N, C). Where rows share a coordinate, the last counts; rows of other samples or outside the grid are dropped.
        samples: B.
        size: cells along each axis.
        fill: of cells without a voxel.

    Returns:
        (B, C, size, size, size), axes x, y, z.
    """
    one = _one_row_each(tensor, last=True)
    sample = one.coords[:, 0]
    shown = prune(one, inside(one, size) & (sample >= 0) & (sample < samples))
    cells = Box((0, 0, 0, 0), (samples, size, size, size)).numbers(shown.coords)
    values = _spread(shown.features, cells, samples * size**3, fill)
    return values.view(samples, size, size, size, -1).movedim(-1, 1)


def from_dense(dense: Tensor, mask: Tensor, stride: int) -> SparseTensor:
    """The cells of a mask as voxels, sorted.

    Args:
        dense: (B, C, X, Y, Z).
        mask: (B, X, Y, Z) bool.
        stride: cells of the finest grid per cell.

    Returns:
        (N, C), N the number of True cells.

    Raises:
        ConfigError: the mask is of another shape or type.
    """
    expected = (dense.shape[0], *dense.shape[2:])
    if mask.dtype != torch.bool or mask.shape != expected:
        raise ConfigError(f"mask is {tuple(mask.shape)} {mask.dtype}; give {tuple(expected)} bool")
    rows = dense.movedim(1, -1).flatten(0, 3)
    return SparseTensor(Support(mask.nonzero(), stride), rows.index_select(0, mask.flatten().nonzero()[:, 0]))


def max_pool(tensor: SparseTensor) -> SparseTensor:
    """The largest value of each channel among the voxels around the first child of each cell of twice the size.

    Args:
        tensor: (N, C). Where rows share a coordinate, the first counts.

    Returns:
        (M, C) on ``support.halved``, of twice the stride: voxel o holds the maximum over the voxels there are of 2o + {-1, 0, 1}³.
    """
    one = _one_row_each(tensor, last=False)
    return SparseTensor(one.support.halved, pool(one.features, strided_links(one.support, 3)))
