"""Writing one Zarr shard as a stream: chunks of sample after sample, then the index. One sample in memory at a time.

A chunk that holds nothing but the fill value is not written; the index says so. Index and chunks carry a crc32c, so that a
flipped bit is noticed by every Zarr reader.
"""

import hashlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
from numcodecs import Blosc
from numpy.typing import NDArray

from scenemill.schemas.fields import Field
from scenemill.transforms.layout import Layout, blosc_settings

_MISSING: Final = np.uint64(0xFFFFFFFFFFFFFFFF)
_SHUFFLE: Final = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}


def encode_chunk(data: NDArray[Any], settings: Mapping[str, Any]) -> bytes:
    """One chunk as it lies in a file: compressed by blosc, with its crc32c behind it."""
    codec = Blosc(settings["cname"], settings["clevel"], _SHUFFLE[settings["shuffle"]], settings["blocksize"], settings["typesize"])
    encoded = bytes(codec.encode(data))
    return b"".join((encoded, google_crc32c.value(encoded).to_bytes(4, "little")))


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
        counts = [size // chunk for size, chunk in zip(field.shape(layout.grid, layout.image), self._chunk, strict=True)]
        self._corners = [
            tuple(i * c for i, c in zip(place, self._chunk, strict=True)) for place in itertools.product(*map(range, counts))
        ]
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
        """Let go of the file as it is."""
        self._file.close()
