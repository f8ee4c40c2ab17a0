"""Reading NumPy archives without trusting them: a member is inflated window by window straight into its target.

``np.load`` would first build the whole source array (134 MB of float64 for one geometry volume). Here one plane at a time is
inflated, checked and cast, the zip checksum is verified, and no more memory is taken than the caller's target and one plane.
Nothing is ever unpickled.
"""

import io
import math
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from zlib_ng import gzip_ng, zlib_ng

from scenemill.schemas.errors import SourceError

_GZIP_HEADER: Final = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
_NPY_MAGIC: Final = b"\x93NUMPY"
_NPY_LENGTH_BYTE: Final = {b"\x01\0": 2, b"\x02\0": 4}  # of the header's own length, by version
_LONGEST_HEADER: Final = 4096
_MOST_AXES: Final = 32
_LARGEST_BYTE: Final = 1 << 62  # NumPy makes no array above this, not even where an axis of no length leaves it empty
_HEADER: Final = re.compile(
    r"\{ *'descr': *'([^']{1,16})', *'fortran_order': *(True|False), *'shape': *\(((?:\d{1,18}, *)*\d{0,18})\),? *\}\s*\Z"
)
_NUMBERS: Final = re.compile(r"[<>|=]?(?:[biuf]\d{1,2}|\?)")
_MOST_MEMBERS: Final = 64
_DIRECTORY_ENTRY: Final = b"PK\x01\x02"
_ENCRYPTED: Final = 0x1
_BROKEN: Final[tuple[type[Exception], ...]] = (
    OSError,
    EOFError,
    ValueError,
    cast("type[Exception]", zlib_ng.error),
    zipfile.BadZipFile,
    struct.error,
    NotImplementedError,
    RecursionError,
)


@dataclass(frozen=True)
class ArrayHeader:
    """What an npy header says: dtype, shape, and whether the order is Fortran's."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    size_byte: int


def member_names(archive: bytes) -> list[str]:
    """Names of the arrays in an npz file, in file order.

    Raises:
        SourceError: not a zip archive, a member twice, or a member that is no npy file.
    """
    return list(_members(archive))


def _members(archive: bytes) -> dict[str, zipfile.ZipInfo]:
    """The arrays in an npz file by name; the directory is read once, for that takes longer than a small array."""
    infos = _directory(archive)
    names = [info.filename for info in infos]
    if len(set(names)) != len(names):
        raise SourceError("container", "two members of one name", "every member once")
    for name in names:
        if not name.endswith(".npy"):
            raise SourceError("container", f"member {name[:80]!r}", "npy members only")
    return {name.removesuffix(".npy"): info for name, info in zip(names, infos, strict=True)}


def read_array(
    archive: bytes, member: str, shape: tuple[int, ...] | None, dtypes: Sequence[str], limit_byte: int = 1 << 26
) -> NDArray[Any]:
    """A small array of an npz file, whole, in its own dtype and C order.

    Args:
        archive: bytes of the npz file.
        member: name without ``.npy``.
        shape: the shape it must have; None for any.
        dtypes: the dtypes it may have, such as ``"uint32"``.
        limit_byte: refuse larger arrays before memory is taken.

    Raises:
        SourceError: missing, damaged, or not of that shape or dtype.
    """
    stream, header = _open_member(archive, member)
    _expect(header, shape, dtypes, limit_byte)
    body = _read_exactly(stream, header.size_byte)
    _expect_end(stream)
    array = np.frombuffer(body, header.dtype)
    return array.reshape(header.shape[::-1]).T.copy() if header.fortran else array.reshape(header.shape)


def read_npy(data: bytes, shape: tuple[int, ...] | None, dtypes: Sequence[str], limit_byte: int = 1 << 20) -> NDArray[Any]:
    """The array of an npy file.

    Args:
        data: bytes of the file.
        shape: it must have; None for any.
        dtypes: it may have.
        limit_byte: the most its values may take.

    Raises:
        SourceError: damaged, or not of that shape or dtype.
    """
    stream = io.BytesIO(data)
    header = _read_header(stream)
    _expect(header, shape, dtypes, limit_byte)
    if len(data) - stream.tell() != header.size_byte:
        raise SourceError("container", f"{len(data) - stream.tell()} bytes behind the header", f"{header.size_byte}")
    array = np.frombuffer(data, header.dtype, offset=stream.tell())
    return array.reshape(header.shape[::-1]).T.copy() if header.fortran else array.reshape(header.shape)


def read_volumes(archive: bytes, member: str, targets: Sequence[NDArray[Any]], dtypes: Sequence[str], *, rotated: bool) -> bool:
    """Inflate a volume, or a stack of volumes, straight into arrays of their final dtype.

    Args:
        archive: bytes of the npz file.
        member: name without ``.npy``.
        targets: one (X, Y, Z) array for a member of that shape, several for a member with a leading axis of that length. Filled.
        dtypes: the dtypes the file may have.
        rotated: True for files stored rotated by 180 degrees about axis 2 (3D-Front): axes 0 and 1 are flipped on the way.

    Returns:
        True when the targets hold exactly the file's values; False when float64 values were rounded to float32.

    Raises:
        SourceError: missing, damaged, not of that shape or dtype, or an integer that its target cannot hold.
    """
    volume = targets[0].shape
    shape = volume if len(targets) == 1 else (len(targets), *volume)
    stream, header = _open_member(archive, member)
    _expect(header, shape, dtypes, 16 * math.prod(shape))
    if header.fortran:
        planes: Iterator[NDArray[Any]] = _fortran_planes(stream, header)
    else:
        planes = _planes(stream, header)
    exact = True
    for channel, target in enumerate(targets):
        cast = _caster(header.dtype, target.dtype, f"{member}[{channel}]" if len(targets) > 1 else member)
        view = target[::-1, ::-1] if rotated else target
        for index in range(volume[0]):
            exact &= cast(next(planes), view[index])
    _expect_end(stream)
    return exact


def _caster(source: np.dtype[Any], target: np.dtype[Any], member: str) -> Callable[[NDArray[Any], NDArray[Any]], bool]:
    """A function that copies one plane into its target and says whether every value survived."""

    def copy_bits_checked(plane: NDArray[Any], out: NDArray[Any]) -> bool:
        seen = int(np.bitwise_or.reduce(plane.view(f"u{source.itemsize}"), axis=None))
        if seen >> most_bits:
            raise SourceError("range", f"{member} from {plane.min()} to {plane.max()}", f"0 to {np.iinfo(target).max}")
        out[...] = plane
        return True

    def round_checked(plane: NDArray[Any], out: NDArray[Any]) -> bool:
        seen = int(np.bitwise_or.reduce(plane.view("u8"), axis=None))
        lost: list[str] = []
        with np.errstate(over="call", under="call", invalid="ignore", call=lambda kind, _: lost.append(kind)):
            out[...] = plane
        return not lost and seen & ((1 << 29) - 1) == 0  # the mantissa bits that float32 does not have

    def copy(plane: NDArray[Any], out: NDArray[Any]) -> bool:
        out[...] = plane
        return True

    def copy_bool(plane: NDArray[Any], out: NDArray[Any]) -> bool:
        seen = int(np.bitwise_or.reduce(plane.view("u1"), axis=None))
        if seen > 1:
            raise SourceError("range", f"{member} with bytes up to {seen}", "0 and 1")
        out[...] = plane
        return True

    most_bits = min(8 * target.itemsize, 8 * source.itemsize - (source.kind == "i"))  # a sign bit would be a value's highest
    if source.kind == "b":
        return copy_bool
    if source.kind in "iu":
        return copy_bits_checked
    return round_checked if source.itemsize == 8 else copy


def _planes(stream: io.BufferedIOBase, header: ArrayHeader) -> Iterator[NDArray[Any]]:
    """The array's last two axes, one plane after another, in one buffer that the next plane overwrites."""
    plane = np.empty(header.shape[-2:], header.dtype)
    window = memoryview(plane.data).cast("B")
    for _ in range(math.prod(header.shape[:-2])):
        _fill(stream, window)
        yield plane


def _fortran_planes(stream: io.BufferedIOBase, header: ArrayHeader) -> Iterator[NDArray[Any]]:
    """The same for Fortran order, which no plane-wise reading can serve: the whole array is read first."""
    whole = np.frombuffer(_read_exactly(stream, header.size_byte), header.dtype).reshape(header.shape[::-1]).T
    for plane in whole.reshape(-1, *header.shape[-2:]):
        yield np.ascontiguousarray(plane)


def _directory(archive: bytes) -> list[zipfile.ZipInfo]:
    if archive.count(_DIRECTORY_ENTRY) > _MOST_MEMBERS:  # a directory of millions would take gigabytes to list
        raise SourceError("container", "an archive of many members", f"at most {_MOST_MEMBERS}")
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            return opened.infolist()
    except _BROKEN as error:
        raise SourceError("container", f"no readable zip archive ({error})", "an npz file") from error


def _open_member(archive: bytes, member: str) -> tuple[io.BufferedIOBase, ArrayHeader]:
    """A stream over one member's bytes, past its npy header."""
    members = _members(archive)
    if member not in members:
        raise SourceError("container", f"members {', '.join(members)[:200] or 'none'}", f"a member {member!r}")
    info = members[member]
    stream = _member_stream(archive, info)
    header = _read_header(stream)
    if surplus := info.file_size - stream.tell() - header.size_byte:
        raise SourceError("container", f"{member!r} with {surplus:+d} bytes against its header", "as many as the header says")
    return stream, header


def _member_stream(archive: bytes, info: zipfile.ZipInfo) -> io.BufferedIOBase:
    start = info.header_offset
    local = archive[start : start + 30]
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise SourceError("container", "a member without a local header", "an npz file")
    name_length, extra_length = struct.unpack("<HH", local[26:30])
    start += 30 + name_length + extra_length
    body = archive[start : start + info.compress_size]
    if len(body) != info.compress_size:
        raise SourceError("container", "an archive that ends inside a member", "a whole file")
    if info.flag_bits & _ENCRYPTED:
        raise SourceError("container", "an encrypted member", "a plain npz file")
    if info.compress_type == zipfile.ZIP_STORED:
        if zlib_ng.crc32(body) != info.CRC:
            raise SourceError("checksum", "a member that differs from its zip checksum", "the bytes that were written")
        return io.BytesIO(body)
    if info.compress_type == zipfile.ZIP_DEFLATED:
        # A deflate stream between a gzip header and trailer: the gzip reader inflates into any buffer and checks the checksum.
        trailer = struct.pack("<II", info.CRC, info.file_size & 0xFFFFFFFF)
        return gzip_ng.GzipNGFile(  # type: ignore[no-untyped-call]
            fileobj=io.BytesIO(b"".join((_GZIP_HEADER, body, trailer))), mode="rb"
        )
    raise SourceError("container", f"zip method {info.compress_type}", "stored or deflated")


def _read_header(stream: io.BufferedIOBase) -> ArrayHeader:
    """The npy header, matched against the one form that NumPy writes: its own reader evaluates the text, and fails in many ways."""
    start = bytes(_read_exactly(stream, 8))
    if start[:6] != _NPY_MAGIC or start[6:] not in _NPY_LENGTH_BYTE:
        raise SourceError("container", f"{start!r}", "npy version 1.0 or 2.0")
    length = int.from_bytes(_read_exactly(stream, _NPY_LENGTH_BYTE[start[6:]]), "little")
    text = _read_exactly(stream, min(length, _LONGEST_HEADER)).decode("latin-1")
    found = _HEADER.match(text)
    if not found:
        raise SourceError("container", f"npy header {text[:80]!r}", "descr, fortran_order and shape of one plain array")
    try:
        dtype = np.dtype(found[1] if _NUMBERS.fullmatch(found[1]) else "")
    except TypeError as error:
        raise SourceError("dtype", repr(found[1]), "numbers") from error
    shape = tuple(int(size) for size in found[3].split(",") if size.strip())
    if len(shape) > _MOST_AXES or math.prod(filter(None, shape)) * dtype.itemsize > _LARGEST_BYTE:
        raise SourceError("shape", str(shape)[:80], f"at most {_MOST_AXES} axes, and values that memory can be addressed for")
    return ArrayHeader(dtype, shape, found[2] == "True", math.prod(shape) * dtype.itemsize)


def _expect(header: ArrayHeader, shape: tuple[int, ...] | None, dtypes: Sequence[str], limit_byte: int) -> None:
    if header.dtype.str[0] == ">" or header.dtype.name not in dtypes:
        raise SourceError("dtype", header.dtype.str, " or ".join(dtypes))
    if shape is not None and header.shape != shape:
        raise SourceError("shape", str(header.shape)[:80], str(shape))
    if header.size_byte > limit_byte:
        raise SourceError("size", f"{header.size_byte} bytes", f"at most {limit_byte}")


def _fill(stream: io.BufferedIOBase, window: memoryview) -> None:
    filled = 0
    while filled < len(window):
        try:
            count = stream.readinto(window[filled:])
        except _BROKEN as error:
            raise SourceError("checksum", f"a damaged stream ({error})", "the bytes that were written") from error
        if not count:
            raise SourceError("container", "an array that ends early", "as many values as its header says")
        filled += count


def _read_exactly(stream: io.BufferedIOBase, size_byte: int) -> bytearray:
    body = bytearray(size_byte)
    _fill(stream, memoryview(body))
    return body


def _expect_end(stream: io.BufferedIOBase) -> None:
    """Read past the last value: makes the gzip reader compare the checksum."""
    try:
        more = stream.read(1)
    except _BROKEN as error:
        raise SourceError("checksum", f"a damaged stream ({error})", "the bytes that were written") from error
    if more:
        raise SourceError("container", "bytes behind the last value", "as many values as its header says")


def probe_shape(archive: bytes, member: str) -> tuple[int, ...]:
    """Shape of a member, read from its header alone.

    Raises:
        SourceError: missing or damaged.
    """
    return _open_member(archive, member)[1].shape
