"""Reading a store's fields straight from its shards: the bytes of the wanted chunks, each decoded once, into its place.

Equal to what plain Zarr reads, value for value; that is a test. What this saves is all that a general reader must do besides.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scenemill.schemas.fields import Field
from scenemill.transforms.blocks import EDGE, Blocks, blocked, blocks_with_content
from scenemill.transforms.layout import Layout, shard_path
from scenemill.transforms.precision import Storage
from scenemill.transforms.ranges import RangeReader
from scenemill.transforms.shards import chunk_corners, decode_chunk, decode_index, index_size_byte

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""(first, behind the last) voxel along x, y and z."""

_INDEXES_HELD: Final = 256  # of 16 to 64 KiB each
_Form = tuple[
    tuple[int, ...], list[tuple[int, ...]], Storage
]  # of a field: shape of a chunk, the chunks' corners, how values are stored
_Decoded = tuple[tuple[int, ...], NDArray[Any]]


class ShardReader:
    """Reads one store version's fields; safe to share between threads, cheap to send to other processes.

    Args:
        ranges: where the bytes come from.
        layout: of the store.
        size_of: length of a file in bytes, by its path below the store.
    """

    def __init__(self, ranges: RangeReader, layout: Layout, size_of: Callable[[int, str], int]) -> None:
        self._ranges = ranges
        self._layout = layout
        self._size_of = size_of
        self._indexes: OrderedDict[str, NDArray[np.int64]] = OrderedDict()
        self._lock = Lock()
        self._forms = {field.name: _form_of(field, layout) for field in layout.fields}

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self._ranges, self._layout, self._size_of))

    def array(self, field: Field, row: int, box: Box | None = None) -> NDArray[Any]:
        """One field of one sample, or a box of one volume: only the chunks that the box touches are read.

        Args:
            field: a row of the field table.
            row: of the sample, in the whole store.
            box: of a volume; None for all of it.

        Returns:
            The array, in the field's dtype.

        Raises:
            FileNotFoundError, ValueError: the shard is missing or damaged.
        """
        if not field.is_volume:
            whole = [chunk for _, chunk in self._decoded(field, row, None)]  # in one chunk
            return whole[0] if whole else _filled(self._forms[field.name][0], field)
        low, high = ([0] * 3, [self._layout.grid] * 3) if box is None else ([a for a, _ in box], [b for _, b in box])
        volume = _filled([b - a for a, b in zip(low, high, strict=True)], field)
        for corner, chunk in self._decoded(field, row, box):
            start = [max(c, a) for c, a in zip(corner, low, strict=True)]
            end = [min(c + size, b) for c, size, b in zip(corner, chunk.shape, high, strict=True)]
            target = tuple(slice(s - a, e - a) for s, e, a in zip(start, end, low, strict=True))
            volume[target] = chunk[tuple(slice(s - c, e - c) for s, e, c in zip(start, end, corner, strict=True))]
        return volume

    def blocks(self, field: Field, row: int) -> Blocks:
        """One volume of one sample as the blocks that hold anything but the fill value.

        Raises:
            FileNotFoundError, ValueError: the shard is missing or damaged.
        """
        places, values = [np.empty((0, 3), np.int64)], [np.empty((0, EDGE, EDGE, EDGE), field.dtype)]
        for corner, chunk in self._decoded(field, row, None):
            content = blocks_with_content(chunk, field.fill)
            places.append(np.argwhere(content) + np.array(corner) // EDGE)
            values.append(blocked(chunk)[content])
        return Blocks(np.concatenate(places), np.concatenate(values), field.fill, self._layout.grid)

    def voxels(self, fields: Sequence[Field], row: int) -> tuple[NDArray[np.int64], tuple[NDArray[Any], ...]]:
        """The voxels where any of some volumes differs from its fill value.

        Returns:
            (n,) int64 indexes into the flattened (C order) volume, ascending within a chunk, and for each field its (n,) values.

        Raises:
            FileNotFoundError, ValueError: a shard is missing or damaged.
        """
        held: dict[tuple[int, ...], dict[str, NDArray[Any]]] = {}
        for field in fields:
            for corner, chunk in self._decoded(field, row, None, keep=True):
                held.setdefault(corner, {})[field.name] = chunk.reshape(-1)
        indexes = [np.empty(0, np.int64)]
        values: list[list[NDArray[Any]]] = [[np.empty(0, field.dtype)] for field in fields]
        for corner, chunks in held.items():
            inside = np.flatnonzero(_any_differs(fields, chunks))
            indexes.append(self._flat_index(corner, inside))
            for field, found in zip(fields, values, strict=True):
                stored = field.name in chunks
                found.append(chunks[field.name][inside] if stored else np.full(len(inside), field.fill, field.dtype))
        return np.concatenate(indexes), tuple(np.concatenate(found) for found in values)

    def stored_byte(self, field: Field, row: int) -> int:
        """Bytes of one field of one sample in its shard: the compressed chunks.

        Raises:
            FileNotFoundError, ValueError: the shard is missing or its index damaged.
        """
        slot, within = divmod(row, self._layout.samples_per_part)
        path = shard_path(field, slot)
        places = self._index(path, self._size_of(slot, path), len(self._forms[field.name][1]))[within]
        return int((places[:, 1] - places[:, 0]).sum())

    def _flat_index(self, corner: tuple[int, ...], inside: NDArray[np.int64]) -> NDArray[np.int64]:
        grid = self._layout.grid
        edge = min(64, grid)
        plane, rest = np.divmod(inside, edge * edge)
        row, column = np.divmod(rest, edge)
        index: NDArray[np.int64] = ((plane + corner[0]) * grid + row + corner[1]) * grid + column + corner[2]
        return index

    def _decoded(self, field: Field, row: int, box: Box | None, keep: bool = False) -> Iterator[_Decoded]:
        """Chunks that are stored and touch the box, decoded: valid until the next one, unless ``keep``."""
        slot, within = divmod(row, self._layout.samples_per_part)
        path = shard_path(field, slot)
        size_byte = self._size_of(slot, path)
        shape, corners, storage = self._forms[field.name]
        index = self._index(path, size_byte, len(corners))[within]
        wanted = [
            number for number in np.flatnonzero(index[:, 0] >= 0).tolist() if box is None or _touches(corners[number], shape, box)
        ]
        stored = np.empty(shape, storage.dtype)
        for number, data in zip(wanted, self._ranges.read(path, size_byte, [tuple(index[n]) for n in wanted]), strict=True):
            if keep:
                stored = np.empty(shape, storage.dtype)
            decode_chunk(data, stored)
            yield corners[number], storage.decode(stored, field.dtype)

    def _index(self, path: str, size_byte: int, chunks: int) -> NDArray[np.int64]:
        with self._lock:
            held = self._indexes.pop(path, None)
        if held is None:
            rows = self._layout.samples_per_part
            length = index_size_byte(rows, chunks)
            if size_byte < length:
                raise ValueError(f"has {size_byte} bytes, less than its index")
            held = decode_index(self._ranges.read(path, size_byte, [(size_byte - length, size_byte)])[0], rows, size_byte)
        with self._lock:
            self._indexes[path] = held
            while len(self._indexes) > _INDEXES_HELD:
                self._indexes.popitem(last=False)
        return held


def _form_of(field: Field, layout: Layout) -> _Form:
    chunk = layout.chunk(field)
    return chunk, chunk_corners(field.shape(layout.grid, layout.image), chunk), layout.storage(field)


def _touches(corner: tuple[int, ...], shape: tuple[int, ...], box: Box) -> bool:
    return all(start < high and low < start + size for start, size, (low, high) in zip(corner, shape, box, strict=True))


def _any_differs(fields: Sequence[Field], chunks: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
    differs = [chunks[field.name] != field.fill for field in fields if field.name in chunks]
    found: NDArray[np.bool_] = np.logical_or.reduce(differs) if len(differs) > 1 else differs[0]
    return found


def _filled(shape: Sequence[int], field: Field) -> NDArray[Any]:
    """A new array of the fill value; one of zeros is left to the operating system, which hands out zeroed memory on first use."""
    return np.full(shape, field.fill, field.dtype) if field.fill else np.zeros(shape, field.dtype)
