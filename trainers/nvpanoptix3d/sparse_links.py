"""Which rows a sparse convolution connects, and by which weights: forwards, and back for the gradients.

Offsets of a kernel are numbered with x slowest and z fastest. Along an axis a kernel of odd size k reaches from -(k-1)/2 to (k-1)/2,
one of even size from 0 to k-1. With stride 2, coarse cell o meets fine cells 2o + d.

Seen from a fine cell f = 2q + p, with p the parity of each of its axes, the coarse cells are q + t where d = p - 2t is an offset. So
cells of one parity meet the same few of the offsets, and are computed together.

Source: the sparse operators of NvPanoptix3D as described in its fact sheet.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.nvpanoptix3d.voxels import Support, doubled_coords, halved_coords, offset_coords


class Part(NamedTuple):
    """Rows computed alike: each the sum of rows found in a table, every column of it times a weight of its own.

    Attributes:
        sources: (n, m) int32, rows of what is convolved; their number where there is none.
        offsets: (m, s) int64, the offset of each column, for each of the s rows that are computed from one row of the table.
        targets: (n, s) int64, the rows that are computed; None for 0..n-1, with s = 1.
    """

    sources: Tensor
    offsets: Tensor
    targets: Tensor | None = None


class Links(NamedTuple):
    """What a convolution connects.

    Attributes:
        inputs: rows that come in.
        outputs: rows that go out.
        forward: the parts of what goes out, together every row once.
        backward: the parts of the gradient of what came in, likewise; s = 1, and no offset is in two parts.
    """

    inputs: int
    outputs: int
    forward: tuple[Part, ...]
    backward: tuple[Part, ...]


def submanifold_links(support: Support) -> Links:
    """Of a 3x3x3 kernel on the same voxels. Seen from the other end, every step is its opposite."""

    def make() -> Links:
        around = support.finder.find(support.coords, -1, 3)
        forward, backward = (_columns(offsets, around.device) for offsets in (range(27), reversed(range(27))))
        return Links(len(support), len(support), (Part(around, forward),), (Part(around, backward),))

    return _kept(support, "submanifold", make)


def strided_links(support: Support, edge: int) -> Links:
    """From voxels to ``support.halved``, with a kernel of ``edge`` 3 or 4 a side and stride 2."""

    def make() -> Links:
        halved, first = support.halved, _first_offset(edge)
        below = support.finder.find(doubled_coords(halved.coords), first, edge)
        forward = Part(below, _columns(range(edge**3), below.device))
        return Links(len(support), len(halved), (forward,), tuple(_parity_parts(support, first, edge)))

    return _kept(support, f"strided {edge}", make)


def generative_links(support: Support) -> Links:
    """From voxels to ``support.doubled``, with a kernel of 4 a side: each of the eight children of a cell from the same voxels."""

    def make() -> Links:
        doubled = support.doubled
        halves, cube = doubled.halved, _steps(0, 2, support.coords.device)
        children = doubled.finder.find(offset_coords(doubled_coords(halves.coords), cube))
        forward = Part(
            support.finder.find(halves.coords, -1, 2),
            _offset_numbers(cube - 2 * _steps(-1, 2, cube.device).unsqueeze(1), 0, 4),
            children.long().view(-1, 8),
        )
        grown = doubled.finder.find(doubled_coords(support.coords), 0, 4)
        return Links(len(support), len(doubled), (forward,), (Part(grown, _columns(range(64), grown.device)),))

    return _kept(support, "generative", make)


def _kept(support: Support, name: str, make: Callable[[], Links]) -> Links:
    """Links that are made once."""
    if name not in support.links:
        if not support.distinct:
            raise ConfigError("voxels that share a coordinate cannot be convolved; join or pool them first")
        support.links[name] = make()
    return support.links[name]


def _parity_parts(support: Support, first: int, edge: int) -> Iterator[Part]:
    """The fine cells of each parity, and the coarse ones that meet them."""
    halved = support.halved
    parents = halved.finder.find(halved_coords(support.coords))[:, 0]
    around = submanifold_links(halved).forward[0].sources
    steps = _steps(-1, 3, around.device)
    parities = support.coords[:, 1:] & 1
    for parity in _steps(0, 2, around.device):
        offsets = parity - 2 * steps
        met = ((offsets >= first) & (offsets < first + edge)).all(dim=1).nonzero()[:, 0]
        rows = (parities == parity).all(dim=1).nonzero()
        sources = around.index_select(0, parents[rows[:, 0]]).index_select(1, met)
        yield Part(sources, _offset_numbers(offsets[met], first, edge).unsqueeze(1), rows)


def _first_offset(edge: int) -> int:
    """The least offset along an axis of a kernel of ``edge`` a side."""
    return -(edge // 2) if edge % 2 else 0


def _steps(first: int, edge: int, device: torch.device) -> Tensor:
    """(edge³, 3) int64: all steps from ``first`` on, ``edge`` along each axis, x slowest."""
    return torch.cartesian_prod(*[torch.arange(first, first + edge, device=device)] * 3)


def _offset_numbers(offsets: Tensor, first: int, edge: int) -> Tensor:
    """(..., 3) int64 offsets of a kernel -> (...) int64, their numbers."""
    x, y, z = (offsets - first).unbind(dim=-1)
    return (x * edge + y) * edge + z


def _columns(offsets: Iterable[int], device: torch.device) -> Tensor:
    """(m, 1) int64: an offset per column."""
    return torch.tensor(list(offsets), device=device).unsqueeze(1)
