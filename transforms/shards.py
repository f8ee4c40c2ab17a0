"""One Zarr shard: written as a stream (chunks of sample after sample, then the index), read chunk by chunk.

A chunk that holds nothing but the fill value is not written; the index says so. Index and chunks carry a crc32c, so that a
flipped bit is noticed by every Zarr reader.
"""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
from numcodecs import Blosc, blosc
from numpy.typing import NDArray

from scenemill.schemas.fields import Field
from scenemill.transforms.layout import Layout, blosc_settings

_MISSING: Final = np.uint64(0xFFFFFFFFFFFFFFFF)
_SCRATCH_BYTE: Final = 1 << 25  # more than blosc and zstd take for blocks of 512 KiB, each on eight threads
_SHUFFLE: Final = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}


def encode_chunk(data: NDArray[Any], settings: Mapping[str, Any]) -> bytes:
    """One chunk as it lies in a file: compressed by blosc, with its crc32c behind it.

    Raises:
        MemoryError: blosc would not have what it needs.
    """
    np.empty(_SCRATCH_BYTE, np.uint8)  # blosc without memory says nothing and does not compress: other bytes for the same values
    codec = Blosc(settings["cname"], settings["clevel"], _SHUFFLE[settings["shuffle"]], settings["blocksize"], settings["typesize"])
    encoded = bytes(codec.encode(data))
    return b"".join((encoded, google_crc32c.value(encoded).to_bytes(4, "little")))


def use_one_thread() -> None:
    """Keep the codec to the calling thread, in this process: for one of several processes that share the cores."""
    blosc.use_threads = False


def decode_chunk(data: bytes, out: NDArray[Any]) -> None:
    """Decompress one chunk, checksum behind it included, into a contiguous array.

    Raises:
        ValueError: the checksum differs, or the chunk does not hold an array of that size.
    """
    encoded = _checked(data)
    size_byte = int.from_bytes(encoded[4:8], "little")  # of what a blosc frame holds, as its header says
    if len(encoded) < 16 or size_byte != out.nbytes or int.from_bytes(encoded[12:16], "little") != len(encoded):
        raise ValueError(f"a chunk holds {size_byte} bytes, not {out.nbytes}")
    try:
        blosc.decompress(encoded, out)
    except RuntimeError as error:
        raise ValueError(f"a chunk cannot be decompressed ({error})") from error


def _checked(data: bytes) -> bytes:
    content = data[:-4]
    if len(data) < 4 or google_crc32c.value(content) != int.from_bytes(data[-4:], "little"):
        raise ValueError("a checksum differs")
    return content


def index_size_byte(rows: int, chunks: int) -> int:
    """Length of a shard's index, checksum included: it ends the file."""
    return rows * chunks * 16 + 4


def decode_index(data: bytes, rows: int, size_byte: int) -> NDArray[np.int64]:
    """Where each chunk lies: (rows, chunks, 2) int64, first byte and byte behind the last; -1 where a chunk is all fill.

    Args:
        data: the last ``index_size_byte`` bytes of the file.
        rows: samples a shard holds.
        size_byte: length of the file.

    Raises:
        ValueError: the checksum differs, or a chunk would lie outside the file.
    """
    held = np.frombuffer(_checked(data), "<u8").reshape(rows, -1, 2)
    missing = (held == _MISSING).all(axis=-1)
    start = np.where(missing, -1, held[..., 0].astype(np.int64))
    end = np.where(missing, -1, start + held[..., 1].astype(np.int64))
    if not missing.all() and (start[~missing].min() < 0 or end.max() > size_byte or (end < start).any()):
        raise ValueError("the index names bytes outside the file")
    return np.stack([start, end], axis=-1)


def chunk_corners(shape: tuple[int, ...], chunk: tuple[int, ...]) -> list[tuple[int, ...]]:
    """First element of each chunk of one sample, in the order of a shard's index.

    >>> chunk_corners((4, 2), (2, 2))
    [(0, 0), (2, 0)]
    """
    counts = [range(0, size, step) for size, step in zip(shape, chunk, strict=True)]
    return list(itertools.product(*counts))


class ShardWriter:
    """Writes one field of one part to a temporary file.

    Attributes:
        error_max: largest difference between a value given and the value stored so far, in the field's unit.
    """

    def __init__(self, path: Path, layout: Layout, field: Field) -> None:
        self.path = path
        self.error_max = 0.0
        self._field = field
        self._storage = layout.storage(field)
        self._chunk = layout.chunk(field)
        self._corners = chunk_corners(field.shape(layout.grid, layout.image), self._chunk)
        self._index = np.full((layout.samples_per_part, len(self._corners), 2), _MISSING, "<u8")
        self._settings = blosc_settings(field, self._storage)
        self._sum = hashlib.sha256()
        self._size = 0
        self._file = path.open("wb")

    def append(self, row: int, array: NDArray[Any]) -> int:
        """Write one sample's array as row ``row`` of the shard.

        Returns:
            Bytes written.
        """
        before = self._size
        for number, corner in enumerate(self._corners):
            chunk = array[tuple(slice(start, start + size) for start, size in zip(corner, self._chunk, strict=True))]
            if self._field.is_volume and not (chunk != self._field.fill).any():
                continue
            encoded = encode_chunk(self._to_stored(np.ascontiguousarray(chunk)), self._settings)
            self._index[row, number] = self._size, len(encoded)
            self._write(encoded)
        return self._size - before

    def _to_stored(self, chunk: NDArray[Any]) -> NDArray[Any]:
        stored = self._storage.encode(chunk)
        if self._storage.dtype != self._field.dtype:
            difference = np.abs(self._storage.decode(stored, self._field.dtype) - chunk)
            self.error_max = max(self.error_max, float(difference.max()))
        return stored

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sum.update(data)
        self._size += len(data)

    def close(self) -> dict[str, Any]:
        """Write the index, flush to disk.

        Returns:
            ``size_byte`` and ``sha256`` of the file.
        """
        index = self._index.tobytes()
        self._write(index)
        self._write(google_crc32c.value(index).to_bytes(4, "little"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"size_byte": self._size, "sha256": self._sum.hexdigest()}

    def close_file(self) -> None:
        """Let go of the file as it is; after an error, of one that no longer matters."""
        with contextlib.suppress(OSError):  # what is left in the buffer finds no room either
            self._file.close()
