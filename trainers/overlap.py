"""All overlaps of two sets of segments in one pass, without a mask per segment.

The published 3D metric compares thickened surface masks, and thickened masks overlap: a voxel may belong to several segments. So
every voxel of a small box holds a set, one bit per segment; thickening is an OR with the neighbours for all segments at once, and
the pairs that meet are counted from the few different pairs of sets that occur.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from scenemill.schemas.errors import ConfigError
from scenemill.trainers.segments import Array, Segments, check_shapes, flat_nonzero, is_tensor, like, to_numpy

_WORDS = ((8, "uint8"), (15, "int16"), (31, "int32"), (63, "int64"))  # bits that torch and NumPy both shift and OR
_WIDEST = 63


@dataclass(frozen=True)
class Overlaps:
    """Sizes of segments and of what they share.

    Attributes:
        true_sizes: (T,) int64, voxels or pixels of each ground-truth segment.
        predicted_sizes: (P,) int64.
        shared: (T, P) int64, voxels or pixels that two segments share.
    """

    true_sizes: np.ndarray[Any, np.dtype[np.int64]]
    predicted_sizes: np.ndarray[Any, np.dtype[np.int64]]
    shared: np.ndarray[Any, np.dtype[np.int64]]

    def iou(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(T, P) float64; 0 where the union is empty."""
        union = self.true_sizes[:, None] + self.predicted_sizes[None, :] - self.shared
        return self.shared / np.maximum(union, 1)


@dataclass(frozen=True)
class _Box:
    """Sets of segments in a part of the grid.

    Attributes:
        sets: (x, y, z) integers, bit k set where segment ``first + k`` is.
        origin: grid index of its first voxel.
        first: number of the first segment in the word.
        count: segments in the word.
    """

    sets: Array
    origin: tuple[int, ...]
    first: int
    count: int


def flat_overlaps(true: Segments, predicted: Segments) -> Overlaps:
    """Overlaps of segments that do not overlap among themselves: the labels as they are.

    Raises:
        ConfigError: the shapes differ.
    """
    check_shapes(true=true.index, predicted=predicted.index)
    rows, columns = len(true.classes) + 1, len(predicted.classes) + 1
    if is_tensor(true.index):
        pairs = true.index.reshape(-1).long() * columns + predicted.index.reshape(-1).long()
        table = to_numpy(pairs.bincount(minlength=rows * columns))
    else:
        table = np.bincount((true.index.astype(np.int64) * columns + predicted.index).reshape(-1), minlength=rows * columns)
    counts = table.astype(np.int64).reshape(rows, columns)
    return Overlaps(counts[1:].sum(axis=1), counts[:, 1:].sum(axis=0), counts[1:, 1:])


def surface_overlaps(
    true: Segments,
    true_distance: Array,
    predicted: Segments,
    predicted_distance: Array,
    frustum: Array,
    iso: float,
    factor: int,
    *,
    iso_predicted: float | None = None,
) -> Overlaps:
    """Overlaps of the segments' surfaces, as the published 3D metric draws them.

    A segment's mask: its voxels closer than ``iso`` to the surface; max-pooled by ``factor`` (kernel factor + 1, padding 1); every
    voxel p then marks the 27 voxels p + {0, 1, 2} on each axis (sic: not -1, 0, 1); what lies outside the frustum is dropped.

    Args:
        true, predicted: segments of (X, Y, Z) volumes, image-aligned.
        true_distance, predicted_distance: (X, Y, Z) floats, voxels; the sign does not matter.
        frustum: (X, Y, Z) bool, True inside.
        iso: voxels; 1.0 for 3D-Front, 2.0 for Matterport3D.
        factor: 1 for 3D-Front, 2 for Matterport3D.
        iso_predicted: of predicted segments, where it is another.

    Raises:
        ConfigError: the shapes differ, or ``factor`` is neither 1 nor 2.
    """
    check_shapes(
        true=true.index,
        true_distance=true_distance,
        predicted=predicted.index,
        predicted_distance=predicted_distance,
        frustum=frustum,
    )
    if factor not in (1, 2):
        raise ConfigError(f"factor {factor}: the published metric knows 1 and 2")
    culled = frustum[::factor, ::factor, ::factor]
    true_boxes = _boxes(true, true_distance, culled, iso, factor)
    predicted_boxes = _boxes(predicted, predicted_distance, culled, iso if iso_predicted is None else iso_predicted, factor)
    shared = np.zeros((len(true.classes), len(predicted.classes)), np.int64)
    for a in true_boxes:
        for b in predicted_boxes:
            shared[a.first : a.first + a.count, b.first : b.first + b.count] = _shared(a, b)
    return Overlaps(_sizes(true_boxes, len(true.classes)), _sizes(predicted_boxes, len(predicted.classes)), shared)


def _boxes(segments: Segments, distance: Array, frustum: Array, iso: float, factor: int) -> list[_Box]:
    """The segments' masks, a box per word of up to 63 segments."""
    place = flat_nonzero(segments.index)
    near = abs(distance.reshape(-1)[place]) < iso
    place = place[near]
    if not len(place):
        return []
    number = segments.index.reshape(-1)[place]
    boxes = []
    for first in range(0, len(segments.classes), _WIDEST):
        count = min(_WIDEST, len(segments.classes) - first)
        in_word = (number > first) & (number <= first + count)
        if bool(in_word.any()):
            boxes.append(_box(place[in_word], number[in_word], first, count, tuple(segments.index.shape), frustum, factor))
    return boxes


def _box(place: Array, number: Array, first: int, count: int, grid: tuple[int, ...], frustum: Array, factor: int) -> _Box:
    coordinates = (place // (grid[1] * grid[2]), place // grid[2] % grid[1], place % grid[2])
    low = [int(axis.min()) // factor * factor for axis in coordinates]
    reach = 4 * factor - 1  # two cells of thickening, and one that an odd voxel reaches when pooled
    high = [min(int(axis.max()) + reach, size) for axis, size in zip(coordinates, grid, strict=True)]
    dtype = next(name for bits, name in _WORDS if count <= bits)
    sets = _zeros([-(-(top - bottom) // factor) * factor for bottom, top in zip(low, high, strict=True)], dtype, place)
    bits = like(np.left_shift(1, np.arange(count, dtype=np.int64)).astype(dtype), place)
    bit = bits[number.long() - (first + 1) if is_tensor(number) else number.astype(np.int64) - (first + 1)]
    sets[tuple(axis - bottom for axis, bottom in zip(coordinates, low, strict=True))] = bit
    for axis in range(3):
        if factor == 2:
            sets = _pool(sets, axis)
        sets = _thicken(sets, axis)
    origin = tuple(bottom // factor for bottom in low)
    inside = frustum[tuple(slice(start, start + size) for start, size in zip(origin, sets.shape, strict=True))]
    sets = sets[tuple(slice(0, size) for size in inside.shape)]
    sets *= inside
    return _Box(sets, origin, first, count)


def _zeros(shape: list[int], dtype: str, pattern: Array) -> Array:
    if not is_tensor(pattern):
        return np.zeros(shape, dtype)
    import torch

    return torch.zeros(shape, dtype=getattr(torch, dtype), device=pattern.device)


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return tuple(part if number == axis else slice(None) for number in range(3))


def _thicken(sets: Array, axis: int) -> Array:
    """Every voxel and the two before it along ``axis``."""
    thick = sets.clone() if is_tensor(sets) else sets.copy()
    for offset in (1, 2):
        thick[_along(axis, slice(offset, None))] |= sets[_along(axis, slice(None, -offset))]
    return thick


def _pool(sets: Array, axis: int) -> Array:
    """OR over 2n - 1, 2n, 2n + 1 along ``axis``."""
    pooled = sets[_along(axis, slice(0, None, 2))] | sets[_along(axis, slice(1, None, 2))]
    pooled[_along(axis, slice(1, None))] |= sets[_along(axis, slice(1, -1, 2))]
    return pooled


def _bits(sets: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(sets, count) int64: 1 where a set holds a segment."""
    return (sets.astype(np.int64)[:, None] >> np.arange(count)) & 1


def _unique(values: Array) -> tuple[np.ndarray[Any, Any], Array, np.ndarray[Any, Any]]:
    """The different values, the place of each value among them, and how often each occurs."""
    if is_tensor(values):
        found, place, counts = values.unique(return_inverse=True, return_counts=True)
        return to_numpy(found), place, to_numpy(counts)
    found, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return found, place, counts


def _sizes(boxes: list[_Box], count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    sizes = np.zeros(count, np.int64)
    for box in boxes:
        held = box.sets.reshape(-1)
        values, _, counts = _unique(held[flat_nonzero(held)])
        sizes[box.first : box.first + box.count] = counts.astype(np.int64) @ _bits(values, box.count)
    return sizes


def _shared(a: _Box, b: _Box) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(segments of a, segments of b) int64: voxels that two segments share."""
    low = [max(first, second) for first, second in zip(a.origin, b.origin, strict=True)]
    ends = (min(p + n, q + m) for p, n, q, m in zip(a.origin, a.sets.shape, b.origin, b.sets.shape, strict=True))
    high = [max(start, end) for start, end in zip(low, ends, strict=True)]
    views = [
        box.sets[tuple(slice(s - o, e - o) for s, e, o in zip(low, high, box.origin, strict=True))].reshape(-1) for box in (a, b)
    ]
    both = flat_nonzero((views[0] != 0) & (views[1] != 0))
    if not len(both):
        return np.zeros((a.count, b.count), np.int64)
    (of_a, at_a, _), (of_b, at_b, _) = (_unique(view[both]) for view in views)
    code = at_a * len(of_b) + at_b
    met = code.bincount(minlength=len(of_a) * len(of_b)) if is_tensor(code) else np.bincount(code, minlength=len(of_a) * len(of_b))
    table = to_numpy(met).astype(np.int64).reshape(len(of_a), len(of_b))
    return np.asarray(_bits(of_a, a.count).T @ table @ _bits(of_b, b.count))
