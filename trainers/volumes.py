"""The three-dimensional targets of a batch, made from the blocks of its volumes that hold something, on whichever device they are.

A batch of volumes travels as a ``VolumeBatch``: some megabytes of blocks and labelled voxels in place of hundreds of megabytes of
voxels. ``expand`` turns it into the dense tensors a model reads. All values equal those of dense operations on whole volumes:
distances ``min(|d|, limit)``, ``interpolate(mode="trilinear", align_corners=True)`` and ``max_pool3d``.

Why blocks suffice: with aligned corners, voxel n of the half grid lies between voxels 2n and 2n + 1 of the full grid (the last one
on the last), and voxel n of the quarter grid between 4n + k and 4n + k + 1 with k = 0, 1, 2 (the last: 3). No sample of a block
reaches into its neighbour, so each block is interpolated alone.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

EDGE: Final = 16
"""Voxels a side of one block at the full grid; 8 and 4 at the half and the quarter."""

_COARSE: Final = ("occupied_128", "occupied_64", "weight_128", "weight_64")

LEVELS: Final = ("256", "128", "64")
"""Names of the three resolutions, after a full grid of 256; a smaller grid keeps the names."""


def _nothing() -> Tensor:
    return torch.empty(0)


@dataclass(frozen=True)
class VolumeBatch:
    """The volumes of some samples as blocks.

    A place is (sample, x, y, z): the sample's number in the batch, and the block's index along each axis.

    Attributes:
        distance_places: (n, 4) int16. distance: (n, EDGE, EDGE, EDGE) float32, in voxels; elsewhere it is ``truncation``.
        weight_places: (w, 4) int16. weight: (w, EDGE, EDGE, EDGE) uint8; elsewhere it is 1.
        mask_voxels: (m,) int32, the voxels of all instance masks, flat within their volume, C order.
        mask_ends: (N,) int64, where the voxels of each mask end; N masks of all samples, in order.
        masks_of: (samples,) int64, how many masks each sample has.
        frustum_places, frustum: (f, 4) int16 and (f, EDGE, EDGE, EDGE) bool, True inside; none where one frustum serves all.
        grid: voxels a side.
        truncation: largest distance, in voxels.
        occupied_128, occupied_64, weight_128, weight_64: (n, e, e, e) bool and (w, e, e, e) float32, the blocks at the half and the
            quarter grid, e = EDGE / 2 and EDGE / 4; empty until ``interpolated``.
    """

    distance_places: Tensor
    distance: Tensor
    weight_places: Tensor
    weight: Tensor
    mask_voxels: Tensor
    mask_ends: Tensor
    masks_of: Tensor
    frustum_places: Tensor
    frustum: Tensor
    grid: int
    truncation: float
    occupied_128: Tensor = field(default_factory=_nothing)
    occupied_64: Tensor = field(default_factory=_nothing)
    weight_128: Tensor = field(default_factory=_nothing)
    weight_64: Tensor = field(default_factory=_nothing)

    def __len__(self) -> int:
        return len(self.masks_of)

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name."""
        return {part.name: getattr(self, part.name) for part in fields(self) if part.name not in ("grid", "truncation")}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "VolumeBatch":
        """The same sizes with other tensors."""
        return VolumeBatch(**tensors, grid=self.grid, truncation=self.truncation)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "VolumeBatch":
        """The same on another device."""
        return self.with_tensors({name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.tensors().items()})

    def pin_memory(self) -> "VolumeBatch":
        """The same in page-locked memory, from which a GPU copies by itself."""
        return self.with_tensors({name: tensor.pin_memory() for name, tensor in self.tensors().items()})

    @property
    def size_byte(self) -> int:
        """Bytes that travel."""
        return sum(tensor.nbytes for tensor in self.tensors().values())


def join(samples: Sequence[VolumeBatch]) -> VolumeBatch:
    """Several batches (usually of one sample each) as one, in order.

    Raises:
        ValueError: their grids or truncations differ.
    """
    first = samples[0]
    if any((sample.grid, sample.truncation) != (first.grid, first.truncation) for sample in samples):
        raise ValueError("samples of one batch differ in grid or truncation; give each kind a loader of its own")
    if len(samples) == 1:
        return first
    starts = np.cumsum([0, *(len(sample) for sample in samples)])
    voxels = np.cumsum([0, *(len(sample.mask_voxels) for sample in samples)])

    def places(name: str) -> Tensor:
        return torch.cat([_moved(getattr(sample, name), int(start)) for sample, start in zip(samples, starts, strict=False)])

    def values(name: str) -> Tensor:
        return torch.cat([getattr(sample, name) for sample in samples])

    return VolumeBatch(
        distance_places=places("distance_places"),
        distance=values("distance"),
        weight_places=places("weight_places"),
        weight=values("weight"),
        mask_voxels=values("mask_voxels"),
        mask_ends=torch.cat([sample.mask_ends + int(start) for sample, start in zip(samples, voxels, strict=False)]),
        masks_of=values("masks_of"),
        frustum_places=places("frustum_places"),
        frustum=values("frustum"),
        grid=first.grid,
        truncation=first.truncation,
        **{name: values(name) for name in _COARSE},
    )


def _moved(places: Tensor, start: int) -> Tensor:
    shifted = places.clone()
    shifted[:, 0] += start
    return shifted


def expand(batch: VolumeBatch, occupancy_below: tuple[float, float, float], canvas: "Canvas | None" = None) -> dict[str, Tensor]:
    """The dense targets of a batch, on the device of its blocks.

    Args:
        batch: of B samples with N masks, g voxels a side.
        occupancy_below: an occupied voxel's distance lies below this: at the full, the half and the quarter grid, in voxels of
            the full grid. The first also ends ``geometry``; the coarser levels are interpolated from the distances of the batch.
        canvas: where CPU tensors are drawn again once nobody holds them; None for new memory.

    Returns:
        - geometry: (B, g, g, g) float32, distance in voxels.
        - occupancy_256, _128, _64: (B, g, g, g), (B, g/2, ...), (B, g/4, ...) float32, 1 where occupied.
        - weighting3d_256, _128, _64: the same shapes, float32.
        - gt_masks_3d_256, _128, _64: (N, g, g, g), ... bool: a voxel of a coarser level is in a mask where any voxel of the
          window around it is (windows of 4 and 8 voxels, 2 and 4 apart).
        - frustum_mask: (B, g, g, g) bool, only where the batch has frustums.
    """
    canvas = canvas or Canvas()
    if batch.weight_128.dim() != 4:
        batch = interpolated(batch, occupancy_below)
    dense = _distance_targets(batch, occupancy_below, canvas) | _weight_targets(batch, canvas) | _mask_targets(batch, canvas)
    if len(batch.frustum_places):
        size = (len(batch), *(batch.grid,) * 3)
        dense["frustum_mask"] = canvas.draw("frustum_mask", size, False, batch.frustum_places, batch.frustum, torch.bool)
    return dense


def interpolated(batch: VolumeBatch, occupancy_below: tuple[float, float, float]) -> VolumeBatch:
    """The batch with its blocks at the half and the quarter grid as well: the part of ``expand`` that a worker can do for it."""
    occupied = [_interpolate(batch.distance, batch.distance_places, batch.grid, level) < occupancy_below[level] for level in (1, 2)]
    first = batch.weight[:, 0, 0, 0]
    words = batch.weight.flatten(1).view(torch.int64)  # eight voxels each
    # 1 and 2 stay what they are, to the bit, under any interpolation: blocks of nothing else need none
    varied = ((words != _eight_times(first)[:, None]).any(dim=1) | (first > 2)).nonzero()[:, 0]
    places, values = batch.weight_places[varied], batch.weight[varied].float()
    weights = []
    for level in (1, 2):
        weight = first.float().view(-1, 1, 1, 1).repeat(1, *(EDGE >> level,) * 3)
        weight[varied] = _interpolate(values, places, batch.grid, level)
        weights.append(weight)
    return batch.with_tensors(batch.tensors() | dict(zip(_COARSE, (*occupied, *weights), strict=True)))


def _distance_targets(batch: VolumeBatch, occupancy_below: tuple[float, float, float], canvas: "Canvas") -> dict[str, Tensor]:
    size, places = (len(batch), *(batch.grid,) * 3), batch.distance_places
    limit = min(batch.truncation, occupancy_below[0])
    ended = batch.distance.clamp(max=limit) if limit < batch.truncation else batch.distance
    dense = {"geometry": canvas.draw("geometry", size, limit, places, ended, torch.float32)}
    blocks = (batch.distance < occupancy_below[0], batch.occupied_128, batch.occupied_64)
    for level, (name, occupied) in enumerate(zip(LEVELS, blocks, strict=True)):
        size = (len(batch), *(batch.grid >> level,) * 3)
        fill = float(batch.truncation < occupancy_below[level])
        dense[f"occupancy_{name}"] = canvas.draw(f"occupancy_{name}", size, fill, places, occupied, torch.float32)
    return dense


def _weight_targets(batch: VolumeBatch, canvas: "Canvas") -> dict[str, Tensor]:
    dense = {}
    for level, (name, weight) in enumerate(zip(LEVELS, (batch.weight, batch.weight_128, batch.weight_64), strict=True)):
        size = (len(batch), *(batch.grid >> level,) * 3)
        dense[f"weighting3d_{name}"] = canvas.draw(f"weighting3d_{name}", size, 1.0, batch.weight_places, weight, torch.float32)
    return dense


def _eight_times(values: Tensor) -> Tensor:
    """Each uint8 value repeated to fill an int64 word."""
    return values[:, None].repeat(1, 8).view(torch.int64)[:, 0]


@cache
def _samples_between(full: int, level: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each block along an axis: which of its voxels each coarse voxel lies behind, and the weights of that one and the next.

    Returns:
        lower: (blocks, EDGE >> level) int64, the next voxel is lower + 1; lower_weight, upper_weight: the same shape, float32.
    """
    coarse = full >> level
    step = torch.tensor(full - 1, dtype=torch.float32) / torch.tensor(coarse - 1, dtype=torch.float32)
    position = step * torch.arange(coarse, dtype=torch.float32)
    lower = position.long().clamp(max=full - 2)  # the last voxel as "nothing of the one before it"
    upper_weight = position - lower
    within = lower.view(full // EDGE, -1) - torch.arange(full // EDGE)[:, None] * EDGE
    return within.to(device), (1 - upper_weight).view_as(within).to(device), upper_weight.view_as(within).to(device)


def _interpolate(values: Tensor, places: Tensor, grid: int, level: int) -> Tensor:
    """(n, e, e, e): blocks at a coarser level, e = EDGE >> level, by trilinear interpolation with aligned corners."""
    if level == 0:
        return values
    lower, lower_weight, upper_weight = _samples_between(grid, level, values.device)
    block = places[:, 1:].long()
    if level == 2:
        values = _pairs_of_rows(values, lower[block[:, 0]], lower[block[:, 1]])
    for axis in (3, 2, 1):  # innermost first, each step fused as a * w + (b * v): as torch.nn.functional.interpolate does
        shape = [len(values), 1, 1, 1]
        shape[axis] = EDGE >> level
        below, above = _neighbours(values, axis, lower[block[:, axis - 1]].view(shape), level)
        of_below, of_above = (table[block[:, axis - 1]].view(shape) for table in (lower_weight, upper_weight))
        values = torch.addcmul(above * of_above, below, of_below)
    return values


def _neighbours(values: Tensor, axis: int, lower: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """The voxels at ``lower`` and behind it along an axis; they alternate where that was arranged, or at the half grid anyway."""
    if level == 1 or axis != 3:
        pairs = values.view(*values.shape[:axis], values.shape[axis] // 2, 2, *values.shape[axis + 1 :])
        return pairs.select(axis + 1, 0), pairs.select(axis + 1, 1)
    size = [*values.shape[:3], lower.shape[3]]
    return values.gather(3, lower.expand(size)), values.gather(3, (lower + 1).expand(size))


def _pairs_of_rows(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(n, 8, 8, EDGE): the rows along z that the quarter grid lies between, lower and upper in turn, of a quarter of all rows."""
    x, y = (torch.stack([lower, lower + 1], dim=-1).flatten(1) for lower in (x, y))
    block = torch.arange(len(values), device=values.device)
    row = (block[:, None, None] * EDGE + x[:, :, None]) * EDGE + y[:, None, :]
    return values.reshape(-1, EDGE).index_select(0, row.flatten()).view(*row.shape, EDGE)


def _mask_targets(batch: VolumeBatch, canvas: "Canvas") -> dict[str, Tensor]:
    count = len(batch.mask_ends)
    lengths = torch.diff(batch.mask_ends, prepend=batch.mask_ends.new_zeros(1))
    mask = torch.repeat_interleave(torch.arange(count, device=lengths.device), lengths, output_size=len(batch.mask_voxels))
    grid, voxel = batch.grid, batch.mask_voxels.long()
    bits = grid.bit_length() - 1  # a grid is a power of two
    axes = (voxel >> 2 * bits, voxel >> bits & grid - 1, voxel & grid - 1)
    dense = {"gt_masks_3d_256": canvas.dot("gt_masks_3d_256", (count, grid, grid, grid), mask * grid**3 + voxel)}
    for level, name in ((1, "128"), (2, "64")):
        coarse = grid >> level
        places = _windows(mask, *axes, level=level, coarse=coarse)
        dense[f"gt_masks_3d_{name}"] = canvas.dot(f"gt_masks_3d_{name}", (count, coarse, coarse, coarse), places)
    return dense


def _windows(mask: Tensor, x: Tensor, y: Tensor, z: Tensor, *, level: int, coarse: int) -> Tensor:
    """The coarse voxels whose window holds a voxel, flat over all masks: two along each axis, or one at a border.

    Args:
        mask, x, y, z: (m,) int64.

    Returns:
        (p,) int64, the same place more than once.
    """
    half, side = 1 << (level - 1), coarse + 1
    upper = (((mask * side + (x + half >> level)) * side) + (y + half >> level)) * side + (z + half >> level)
    upper = torch.unique_consecutive(upper)  # neighbours along z mostly share their windows
    z, rest = upper % side, upper // side
    y, rest = rest % side, rest // side
    x, mask = rest % side, rest // side
    x, y, z = (torch.stack([axis - 1, axis], dim=1).clamp_(0, coarse - 1) for axis in (x, y, z))
    place = ((mask * coarse)[:, None] + x).view(-1, 2, 1, 1) * coarse
    place = (place + y.view(-1, 1, 2, 1)) * coarse + z.view(-1, 1, 1, 2)
    return place.flatten()


class Canvas:
    """CPU tensors that are drawn again: what was drawn last is wiped, not the whole tensor.

    A tensor is taken again only once nobody holds it, or any view of it; until then a new one is made. So what a caller keeps
    never changes under it, and a loop that lets its batches go runs in the memory of two of them.
    """

    def __init__(self) -> None:
        self._sheets: dict[tuple[Any, ...], list[_Sheet]] = {}

    def draw(
        self, name: str, size: tuple[int, ...], fill: float | bool, places: Tensor, values: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """A (samples, g, g, g) tensor of ``fill``, with the (n, e, e, e) blocks ``values`` at the given places."""
        if values.device.type != "cpu":
            return _draw_anew(size, fill, places, values.to(dtype))
        sheet = self._free(name, size, fill, dtype)
        blocks = _blocked(sheet.memory, values.shape[-1])
        at = places.numpy().astype(np.int64)
        gone = sheet.drawn[~np.isin(_codes(sheet.drawn), _codes(at))]
        blocks[tuple(gone.T)] = fill
        blocks[tuple(at.T)] = values.numpy()
        sheet.drawn = at
        return torch.from_numpy(sheet.memory[: size[0]])

    def dot(self, name: str, size: tuple[int, ...], places: Tensor) -> Tensor:
        """A bool tensor that is True at the given places of its flattened form."""
        if places.device.type != "cpu":
            return torch.zeros(size, dtype=torch.bool, device=places.device).view(-1).index_fill_(0, places, True).view(size)
        sheet = self._free(name, size, False, torch.bool)
        flat, at = sheet.memory.reshape(-1), places.numpy()
        flat[sheet.drawn] = False
        flat[at] = True
        sheet.drawn = at
        return torch.from_numpy(sheet.memory[: size[0]])

    def _free(self, name: str, size: tuple[int, ...], fill: float | bool, dtype: torch.dtype) -> "_Sheet":
        """A sheet that holds at least ``size[0]`` volumes; a free one that is too small gives way to a larger one."""
        sheets = self._sheets.setdefault((name, size[1:], fill, dtype), [])
        for place, sheet in enumerate(sheets):
            # one reference is the sheet's own, one is the question's: no tensor, and no view of one, is on this memory any more
            if sys.getrefcount(sheet.memory) == 2:
                if len(sheet.memory) >= size[0]:
                    return sheet
                del sheets[place]
                break
        memory = torch.full(size, fill, dtype=dtype).numpy() if fill else np.zeros(size, torch.empty(0, dtype=dtype).numpy().dtype)
        sheets.append(_Sheet(memory, np.empty(0, np.int64)))
        return sheets[-1]


@dataclass
class _Sheet:
    """The memory of one tensor, and the places drawn in it."""

    memory: np.ndarray[Any, Any]
    drawn: np.ndarray[Any, Any]


def _blocked(volumes: np.ndarray[Any, Any], edge: int) -> np.ndarray[Any, Any]:
    """A view of (samples, g, g, g) volumes as (sample, x, y, z block, x, y, z within the block)."""
    count = volumes.shape[-1] // edge
    return volumes.reshape(len(volumes), count, edge, count, edge, count, edge).transpose(0, 1, 3, 5, 2, 4, 6)


def _codes(places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """One number for each place."""
    codes: np.ndarray[Any, Any] = places.reshape(-1, 4) @ np.array([1 << 48, 1 << 32, 1 << 16, 1])
    return codes


def _draw_anew(size: tuple[int, ...], fill: float | bool, places: Tensor, values: Tensor) -> Tensor:
    """As ``Canvas.draw``, in new memory of any device."""
    edge, grid = values.shape[-1], size[-1]
    sample, x, y, z = (column.long()[:, None, None] for column in places.unbind(1))
    inside = torch.arange(edge, device=places.device)
    rows = (((sample * grid + x * edge + inside[:, None]) * grid) + y * edge + inside) * (grid // edge) + z
    drawn = torch.full(size, fill, dtype=values.dtype, device=values.device)
    drawn.view(-1, edge).index_copy_(0, rows.flatten(), values.reshape(-1, edge))
    return drawn


def mask_offsets(masks_of: Tensor) -> list[tuple[int, int]]:
    """(first, behind the last) mask of each sample.

    >>> mask_offsets(torch.tensor([2, 0, 3]))
    [(0, 2), (2, 2), (2, 5)]
    """
    return list(pairwise([0, *masks_of.cumsum(0).tolist()]))
