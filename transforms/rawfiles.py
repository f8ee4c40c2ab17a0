"""Writing the raw files of both datasets, fast and without a clock: the same arrays give the same bytes.

A volume of 256 voxels a side is 134 MB of which a view fills a few percent. It never exists here as a whole: it is deflated plane
by plane, each plane byte-aligned and independent of the others (a full flush), and planes of one value are deflated once.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import chain
from pathlib import Path
from struct import pack
from typing import Any, Final

import numpy as np
import OpenEXR
from numpy.typing import DTypeLike, NDArray
from PIL import Image
from zlib_ng import zlib_ng

from scenemill.schemas.labels import LABELS
from scenemill.transforms.rendering import Columns

_DEFLATE_LEVEL: Final = 2  # a third of the bytes of level 1 on constant planes, at the same speed
_END_OF_STREAM: Final = b"\x03\x00"  # an empty last block
_DOS_DATE: Final = 0x21  # 1980-01-01, the earliest a zip archive can say
_OWNER_READS_AND_WRITES: Final = 0o600 << 16


@dataclass(frozen=True)
class Planes:
    """A volume in pieces along its first axes, in C order.

    Attributes:
        shape, dtype: of the whole volume.
        fill: value of a plane that is None.
        planes: all planes in file order; the last two axes of ``shape`` are a plane.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: float
    planes: Iterable[NDArray[Any] | None]


@dataclass(frozen=True)
class _Packed:
    """Bytes on their way into a zip archive."""

    pieces: list[bytes]
    size: int
    crc: int


def planes_of(field: NDArray[Any], fill: float, dtype: DTypeLike, columns: Columns, *, rotated: bool) -> Planes:
    """A field over the frustum as a volume of a file.

    Args:
        field: (N, R), see ``Columns``.
        fill: the value outside the columns.
        dtype: of the file.
        columns: the frustum.
        rotated: True turns the volume by 180 degrees about the optical axis, as 3D-Front stores it.

    Returns:
        (X, Y, Z) volume in file orientation.
    """
    shape = (columns.grid,) * 3
    return Planes(shape, np.dtype(dtype), fill, _cut_planes(field, fill, np.dtype(dtype), columns, rotated))


def _cut_planes(
    field: NDArray[Any], fill: float, dtype: np.dtype[Any], columns: Columns, rotated: bool
) -> Iterator[NDArray[Any] | None]:
    top, bottom = columns.first_row, columns.first_row + field.shape[1]
    plane = np.full((columns.grid, columns.grid), fill, dtype)
    for i in reversed(range(columns.grid)) if rotated else range(columns.grid):
        first, last = columns.start[i], columns.start[i + 1]
        block = field[first:last]
        if not (block != fill).any():
            yield None
            continue
        part = (slice(top, bottom), slice(columns.k[first], columns.k[last - 1] + 1))
        plane[part] = block.T
        yield plane[::-1] if rotated else plane
        plane[part] = fill  # one buffer serves all planes: fresh ones cost more than the deflating


def stack_planes(volumes: Sequence[Planes]) -> Planes:
    """Volumes of one shape as one, along a new first axis."""
    first = volumes[0]
    return Planes((len(volumes), *first.shape), first.dtype, first.fill, chain.from_iterable(volume.planes for volume in volumes))


def write_npz(path: Path, members: Mapping[str, NDArray[Any] | Planes], *, deflate: bool = True) -> None:
    """Write an npz file that ``np.load`` reads: a zip archive with one npy member per key, dated 1980.

    Args:
        path: the file.
        members: arrays in the order of the file.
        deflate: False stores the bytes as they are, as 3D-Front does with poses.
    """
    directory, offset = [], 0
    with path.open("wb") as file:
        for key, array in members.items():
            packed = _pack(_npy_pieces(array), deflate)
            name = f"{key}.npy".encode()
            stored = sum(map(len, packed.pieces))
            common = pack("<HHHHHIIIHH", 20, 0, 8 if deflate else 0, 0, _DOS_DATE, packed.crc, stored, packed.size, len(name), 0)
            file.write(b"PK\x03\x04" + common + name)
            file.writelines(packed.pieces)
            rest = pack("<HHHII", 0, 0, 0, _OWNER_READS_AND_WRITES, offset)
            directory.append(b"PK\x01\x02" + pack("<H", 0x314) + common + rest + name)
            offset = file.tell()
        file.writelines(directory)
        file.write(b"PK\x05\x06" + pack("<HHHHIIH", 0, 0, len(directory), len(directory), sum(map(len, directory)), offset, 0))


def _npy_pieces(array: NDArray[Any] | Planes) -> Iterator[_Packed | bytes]:
    """The npy file of an array, a piece at a time; constant planes come already deflated."""
    header = BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(header, described)
    yield header.getvalue()
    if isinstance(array, Planes):
        for plane in array.planes:
            yield _constant_plane(array.shape[-2:], array.dtype.str, array.fill) if plane is None else plane.tobytes()
    else:
        yield array.tobytes()


def _pack(pieces: Iterator[_Packed | bytes], deflate: bool) -> _Packed:
    packed, size, crc = [], 0, 0
    for piece in pieces:
        if isinstance(piece, _Packed):
            packed.extend(piece.pieces)
            size, crc = size + piece.size, zlib_ng.crc32_combine(crc, piece.crc, piece.size)
        else:
            packed.append(_deflate(piece) if deflate else piece)
            size, crc = size + len(piece), zlib_ng.crc32(piece, crc)
    if deflate:
        packed.append(_END_OF_STREAM)
    return _Packed(packed, size, crc)


def _deflate(data: bytes) -> bytes:
    compressor = zlib_ng.compressobj(_DEFLATE_LEVEL, zlib_ng.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush(zlib_ng.Z_FULL_FLUSH)


@lru_cache(maxsize=64)
def _constant_plane(shape: tuple[int, ...], dtype: str, fill: float) -> _Packed:
    data = np.full(shape, fill, dtype).tobytes()
    return _Packed([_deflate(data)], len(data), zlib_ng.crc32(data))


def write_depth_exr(path: Path, depth_m: NDArray[np.float32]) -> None:
    """Write a depth map as the one channel Z of a scan-line OpenEXR file, ZIP compressed.

    Args:
        path: the file.
        depth_m: (H, W) float32, metres.
    """
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"Z": depth_m}).write(str(path))


def write_png(path: Path, image: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """Write an image as PNG: (H, W, 3) uint8 colour, (H, W) uint8 or uint16 grey."""
    Image.fromarray(image).save(path, compress_level=1)


def write_jpeg(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an (H, W, 3) uint8 colour image as JPEG."""
    Image.fromarray(image).save(path, quality=92)


def write_lists(root: Path, splits: Mapping[str, Sequence[tuple[str, str]]], size: tuple[int, int]) -> None:
    """Write train.json and its like, one per split, and label_map.json, in the form of the published files.

    Args:
        root: folder of the dataset.
        splits: split name to (scene id, image id) pairs.
        size: (width, height) of the images in pixels.
    """
    for split, pairs in splits.items():
        records = [{"scene_id": scene, "image_id": image, "height": size[1], "width": size[0]} for scene, image in pairs]
        (root / f"{split}.json").write_text(json.dumps(records), encoding="utf-8")
    labels = [
        {"color": list(label.color), "isthing": int(label.thing), "id": label.id, "trainId": label.id, "name": label.name}
        for label in LABELS[1:]
    ]
    (root / "label_map.json").write_text(json.dumps(labels, indent=1) + "\n", encoding="utf-8")
