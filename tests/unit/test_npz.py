"""The archive reader gives what ``np.load`` gives, or says which check an archive fails; a damaged one never gives other values."""

import io
import math
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scenemill.schemas.errors import SourceError
from scenemill.transforms.npz import member_names, probe_shape, read_array, read_npy, read_volumes

INTEGERS = ("uint8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
FLOATS = ("float64", "float32")
SHAPE = (5, 4, 3)  # three sizes, so that no two axes can be confused


def pack(deflate: bool = True, **arrays: NDArray[Any]) -> bytes:
    """An npz file, as NumPy writes it."""
    file = io.BytesIO()
    (np.savez_compressed if deflate else np.savez)(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def pack_raw(members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of any bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def npy(header: str, body: bytes, version: bytes = b"\x01\0", length: int | None = None) -> bytes:
    """An npy file with any header."""
    text = header.encode("latin-1")
    return b"\x93NUMPY" + version + struct.pack("<H", len(text) if length is None else length) + text + body


def described(shape: str, descr: str = "'<i4'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def numbers(dtype: str, shape: tuple[int, ...], most: int = 200) -> NDArray[Any]:
    """Values that differ from place to place and that all targets can hold."""
    values = np.random.default_rng(len(shape)).permutation(math.prod(shape)).reshape(shape) % (most + 1)
    return (values / 8 if dtype.startswith("float") else values).astype(dtype)


def fails(check: str, call: Callable[[], object]) -> SourceError:
    with pytest.raises(SourceError) as caught:
        call()
    assert caught.value.check == check, str(caught.value)
    return caught.value


# --- what is written comes out


@pytest.mark.parametrize("deflate", [True, False], ids=["deflated", "stored"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("rotated", [True, False], ids=["rotated", "aligned"])
@pytest.mark.parametrize("stack", [1, 2])
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS, "bool"])
def test_volumes_equal_what_numpy_loads(dtype: str, stack: int, rotated: bool, order: str, deflate: bool) -> None:
    shape = SHAPE if stack == 1 else (stack, *SHAPE)
    archive = pack(deflate, other=np.zeros(2), data=np.asarray(numbers(dtype, shape, 1 if dtype == "bool" else 200), order=order))  # type: ignore[call-overload]
    loaded = np.load(io.BytesIO(archive))["data"].reshape(stack, *SHAPE)
    final = {"bool": "bool", "float64": "float32", "float32": "float32"}.get(dtype, "uint16")
    targets = [np.full(SHAPE, 77, final) for _ in range(stack)]
    assert read_volumes(archive, "data", targets, (dtype,), rotated=rotated)
    for target, volume in zip(targets, loaded, strict=True):
        assert np.array_equal(target, volume[::-1, ::-1] if rotated else volume)


@pytest.mark.parametrize("deflate", [True, False], ids=["deflated", "stored"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (3,), (4, 4), (3, 5, 2)])
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS, "bool"])
def test_arrays_equal_what_numpy_loads_and_keep_their_dtype(dtype: str, shape: tuple[int, ...], order: str, deflate: bool) -> None:
    array = np.asarray(numbers(dtype, shape, 1 if dtype == "bool" else 200), order=order)  # type: ignore[call-overload]
    read = read_array(pack(deflate, pose=array), "pose", shape, (dtype,))
    assert read.dtype == dtype and read.shape == shape and np.array_equal(read, array)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_npy_files_equal_what_numpy_loads(dtype: str, order: str) -> None:
    array = np.asarray(numbers(dtype, (4, 5)), order=order)  # type: ignore[call-overload]
    file = io.BytesIO()
    np.save(file, array)
    read = read_npy(file.getvalue(), (4, 5), FLOATS)
    assert read.dtype == dtype and np.array_equal(read, array)


def test_a_version_2_header_is_read() -> None:
    array, file = numbers("float64", (4, 4)), io.BytesIO()
    np.lib.format.write_array(file, array, version=(2, 0))
    assert np.array_equal(read_npy(file.getvalue(), (4, 4), FLOATS), array)


def test_names_and_shapes_are_read_from_headers() -> None:
    archive = pack(data=np.zeros((2, 3, 4, 5)), mask=np.zeros((), np.bool_))
    assert member_names(archive) == ["data", "mask"]
    assert probe_shape(archive, "data") == (2, 3, 4, 5) and probe_shape(archive, "mask") == ()


# --- values that change on the way


@pytest.mark.parametrize(
    ("value", "exact"),
    [
        (0.5, True),
        (-0.0, True),
        (12.0, True),
        (1.0 + 2.0**-23, True),  # the last bit of float32
        (2.0**-149, True),  # the smallest of float32
        (float(np.finfo(np.float32).max), True),
        (float("inf"), True),
        (0.1, False),
        (1.0 + 2.0**-24, False),
        (1.5 * 2.0**-149, False),
        (2.0**-150, False),  # becomes 0
        (2.0**-200, False),
        (2.0**128, False),  # becomes infinite
        (-1e300, False),
    ],
)
@pytest.mark.parametrize("place", [0, 31, 59])
def test_rounded_float64_values_are_told(value: float, exact: bool, place: int) -> None:
    volume = np.full(SHAPE, 3.25)
    volume.flat[place] = value
    target = np.zeros(SHAPE, np.float32)
    with np.errstate(over="ignore"):
        expected = volume.astype(np.float32)
    assert read_volumes(pack(data=volume), "data", [target], FLOATS, rotated=False) is exact
    assert np.array_equal(target, expected)


def test_nan_is_carried_through() -> None:
    volume = np.full(SHAPE, np.nan)
    target = np.zeros(SHAPE, np.float32)
    assert read_volumes(pack(data=volume), "data", [target], FLOATS, rotated=True)
    assert np.isnan(target).all()


@pytest.mark.parametrize(
    ("source", "target", "value"),
    [
        ("int32", "uint8", 256),
        ("int32", "uint16", 65536),
        ("int32", "uint16", -1),
        ("int16", "uint16", -1),
        ("int16", "uint8", -1),
        ("int64", "uint16", -(2**63)),
        ("uint64", "uint16", 2**63),
        ("uint32", "uint8", 2**31),
    ],
)
@pytest.mark.parametrize("channel", [0, 1])
def test_integers_that_their_target_cannot_hold_are_refused(source: str, target: str, value: int, channel: int) -> None:
    volume = np.ones((2, *SHAPE), source)
    volume[channel, 4, 3, 2] = value
    targets = [np.zeros(SHAPE, target), np.zeros(SHAPE, target)]
    error = fails("range", lambda: read_volumes(pack(data=volume), "data", targets, (source,), rotated=False))
    assert f"data[{channel}]" in error.observed and str(value) in error.observed


@pytest.mark.parametrize(
    ("source", "target", "value"), [("int32", "uint8", 255), ("int32", "uint16", 65535), ("int16", "uint16", 32767)]
)
def test_the_largest_integer_of_a_target_is_read(source: str, target: str, value: int) -> None:
    found = np.zeros(SHAPE, target)
    read_volumes(pack(data=np.full(SHAPE, value, source)), "data", [found], (source,), rotated=False)
    assert (found == value).all()


def test_a_bool_byte_above_1_is_refused() -> None:
    body = bytearray(math.prod(SHAPE))
    body[17] = 2
    archive = pack_raw([("mask.npy", npy(described(str(SHAPE), "'|b1'"), bytes(body)))])
    fails("range", lambda: read_volumes(archive, "mask", [np.zeros(SHAPE, np.bool_)], ("bool",), rotated=False))


# --- what is not as the caller wants it


@pytest.mark.parametrize(
    ("array", "check"),
    [
        (np.zeros(SHAPE, ">f8"), "dtype"),
        (np.zeros(SHAPE, ">f4"), "dtype"),
        (np.zeros(SHAPE, "f2"), "dtype"),
        (np.zeros(SHAPE, "i4"), "dtype"),
        (np.zeros(SHAPE, "c8"), "dtype"),
        (np.zeros(SHAPE, "U1"), "dtype"),
        (np.zeros(SHAPE, "M8[s]"), "dtype"),
        (np.zeros(SHAPE, [("a", "f8")]), "container"),
        (np.empty(SHAPE, object), "dtype"),
        (np.zeros((4, 5, 3)), "shape"),
        (np.zeros((5, 4)), "shape"),
        (np.zeros((1, 5, 4, 3)), "shape"),
        (np.zeros((5, 4, 0)), "shape"),
        (np.zeros(()), "shape"),
    ],
    ids=lambda value: f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else value,
)
def test_another_dtype_or_shape_is_refused(array: NDArray[Any], check: str) -> None:
    archive = pack(data=array)
    fails(check, lambda: read_volumes(archive, "data", [np.zeros(SHAPE, np.float32)], FLOATS, rotated=False))
    fails(check, lambda: read_array(archive, "data", SHAPE, FLOATS))


def test_an_object_array_is_never_unpickled() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return (pytest.fail, ("unpickled",))

    archive = pack(data=np.array([Trap()], object))
    fails("dtype", lambda: read_array(archive, "data", None, FLOATS))


def test_an_array_above_the_limit_is_refused_before_memory_is_taken() -> None:
    header = described("(1000000, 1000000)", "'<f8'")
    archive = pack_raw([("data.npy", npy(header, b""))])
    forged = archive.replace(struct.pack("<I", len(npy(header, b""))), struct.pack("<I", 0xFFFFFFFE))
    tracemalloc.start()
    for data in (archive, forged):
        with pytest.raises(SourceError):
            read_array(data, "data", None, FLOATS)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    fails("size", lambda: read_array(pack(data=np.zeros(1000)), "data", None, FLOATS, limit_byte=7999))
    assert read_array(pack(data=np.zeros(1000)), "data", None, FLOATS, limit_byte=8000).shape == (1000,)


@pytest.mark.parametrize(
    ("archive", "check"),
    [
        (b"", "container"),
        (b"PK", "container"),
        (b"no zip archive at all, but long enough to look for one" * 4, "container"),
        (pack_raw([]), "container"),
        (pack(other=np.zeros(SHAPE)), "container"),
        (pack_raw([("data.npy", b"")]), "container"),
        (pack_raw([("data.npy", b"\x93NUMPY\x01\0")]), "container"),
        (pack_raw([("data.npy", b"not an array")]), "container"),
        (pack_raw([("data.txt", b"1 2 3")]), "container"),
        (pack_raw([("data.npy", npy(described("(1,)"), bytes(4))), ("note.txt", b"1")]), "container"),
        (pack_raw([(f"a{i}.npy", b"") for i in range(65)]), "container"),
        (pack_raw([("data.npy", npy(described("(1,)"), bytes(4)))], zipfile.ZIP_BZIP2), "container"),
        (pack_raw([("data.npy", npy(described("(1,)"), bytes(4)))], zipfile.ZIP_LZMA), "container"),
    ],
)
def test_what_is_no_archive_of_this_array_is_refused(archive: bytes, check: str) -> None:
    fails(check, lambda: read_array(archive, "data", (1,), ("int32",)))
    fails(check, lambda: probe_shape(archive, "data"))


def test_64_members_are_read() -> None:
    assert len(member_names(pack_raw([(f"a{i}.npy", b"") for i in range(64)]))) == 64


def test_a_member_twice_is_refused() -> None:
    one, two = (npy(described("(1,)"), struct.pack("<i", value)) for value in (1, 2))
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive = pack_raw([("data.npy", one), ("data.npy", two)])
    fails("container", lambda: read_array(archive, "data", (1,), ("int32",)))
    fails("container", lambda: member_names(archive))


def test_an_encrypted_member_is_refused() -> None:
    archive = bytearray(pack(data=np.zeros(4)))
    archive[archive.index(b"PK\x01\x02") + 8] |= 1
    fails("container", lambda: read_array(bytes(archive), "data", (4,), FLOATS))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize(
    ("header", "check"),
    [
        (described("(3, 1000000000000000000)"), "container"),
        (described("(-3,)"), "container"),
        (described("(3.0,)"), "container"),
        (described("3"), "container"),
        (described("(3,)", "'<i4', 'descr': '<i8'"), "container"),
        (described("(3,)", "'<i4'", "1"), "container"),
        (described("(3,)", "__import__('os')"), "container"),
        (described("(3,)", "'<i3'"), "dtype"),
        (described("(3,)", "'|O'"), "dtype"),
        (described("(3,)", "'|O8'"), "dtype"),
        (described("(3,)", "'>i4'"), "dtype"),
        (described("(3,)", "'<u4'"), "dtype"),
        ("{'descr': '<i4', 'fortran_order': False}\n", "container"),
        ("", "container"),
        ("{" * 3000, "container"),
    ],
)
def test_a_header_that_lies_is_refused(header: str, check: str, method: int) -> None:
    file = npy(header, struct.pack("<3i", 1, 2, 3))
    archive = pack_raw([("data.npy", file)], method)
    fails(check, lambda: read_array(archive, "data", (3,), ("int32",)))
    fails(check, lambda: read_npy(file, (3,), ("int32",)))


@pytest.mark.parametrize(
    "file",
    [
        npy(described("(1,)"), bytes(4), version=b"\x03\0"),
        npy(described("(1,)"), bytes(4), version=b"\x01\x01"),
        npy(described("(1,)"), bytes(4), length=65535),
        npy(described("(1,)"), bytes(4), length=10),
        npy(described("(1,)") + " " * 5000, bytes(4)),
    ],
)
def test_a_header_of_another_version_or_length_is_refused(file: bytes) -> None:
    fails("container", lambda: read_npy(file, (1,), ("int32",)))
    fails("container", lambda: read_array(pack_raw([("data.npy", file)]), "data", (1,), ("int32",)))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("change", [-4, -1, 1, 4096], ids=lambda change: f"{change:+d} bytes")
def test_fewer_or_more_bytes_than_the_header_says_are_refused(change: int, method: int) -> None:
    body = bytes(4 * math.prod(SHAPE))
    file = npy(described(str(SHAPE), "'<f4'"), body[:change] if change < 0 else body + bytes(change))
    archive = pack_raw([("data.npy", file)], method)
    fails("container", lambda: read_volumes(archive, "data", [np.zeros(SHAPE, np.float32)], FLOATS, rotated=False))
    fails("container", lambda: read_array(archive, "data", SHAPE, FLOATS))
    fails("container", lambda: read_npy(file, SHAPE, FLOATS))


def test_a_stream_longer_than_the_directory_says_is_refused() -> None:
    """The size in the directory fits the npy header, the deflate stream holds more."""
    file = npy(described(str(SHAPE), "'<f4'"), bytes(4 * math.prod(SHAPE)))
    longer = pack_raw([("data.npy", file + bytes(64))])
    archive = longer.replace(struct.pack("<I", len(file) + 64), struct.pack("<I", len(file)))
    archive = archive.replace(struct.pack("<I", zlib.crc32(file + bytes(64))), struct.pack("<I", zlib.crc32(file)))
    with pytest.raises(SourceError) as caught:
        read_volumes(archive, "data", [np.zeros(SHAPE, np.float32)], FLOATS, rotated=False)
    assert caught.value.check in ("container", "checksum")


# --- damage


def both_forms() -> list[bytes]:
    volume = numbers("float64", SHAPE)
    return [pack(deflate, data=volume) for deflate in (True, False)]


@pytest.mark.parametrize("archive", both_forms(), ids=["deflated", "stored"])
def test_a_file_cut_anywhere_is_refused(archive: bytes) -> None:
    target = np.zeros(SHAPE, np.float32)
    for length in range(len(archive)):
        fails("container", lambda length=length: read_volumes(archive[:length], "data", [target], FLOATS, rotated=False))  # type: ignore[misc]


@pytest.mark.parametrize("archive", both_forms(), ids=["deflated", "stored"])
def test_no_flipped_bit_gives_other_values(archive: bytes) -> None:
    whole, seen = np.load(io.BytesIO(archive))["data"].astype(np.float32), set()
    for bit in range(8 * len(archive)):
        damaged = bytearray(archive)
        damaged[bit // 8] ^= 1 << bit % 8
        target = np.zeros(SHAPE, np.float32)
        try:
            read_volumes(bytes(damaged), "data", [target], FLOATS, rotated=False)
        except SourceError as error:
            seen.add(error.check)
        else:
            assert np.array_equal(target, whole), f"bit {bit}"
    assert {"checksum", "container"} <= seen


@pytest.mark.parametrize("deflate", [True, False], ids=["deflated", "stored"])
def test_a_wrong_zip_checksum_is_told(deflate: bool) -> None:
    archive = bytearray(pack(deflate, data=np.arange(60.0).reshape(SHAPE)))
    archive[archive.index(b"PK\x01\x02") + 16] ^= 1
    fails("checksum", lambda: read_volumes(bytes(archive), "data", [np.zeros(SHAPE, np.float32)], FLOATS, rotated=False))
    fails("checksum", lambda: read_array(bytes(archive), "data", SHAPE, FLOATS))


@pytest.mark.parametrize("size", [1, 59])
def test_a_flipped_value_in_a_stored_member_is_told(size: int) -> None:
    archive = pack(deflate=False, data=np.full(SHAPE, 4.5))
    damaged = bytearray(archive)
    damaged[archive.index(struct.pack("<d", 4.5)) + 8 * size] ^= 0x10
    fails("checksum", lambda: read_volumes(bytes(damaged), "data", [np.zeros(SHAPE, np.float32)], FLOATS, rotated=False))


# --- memory


@pytest.mark.parametrize("dtype", ["float64", "int32", "bool"])
def test_a_volume_costs_one_plane_besides_its_target(dtype: str) -> None:
    side = 128
    archive = pack(data=np.zeros((side,) * 3, dtype))
    target = np.zeros((side,) * 3, {"float64": "float32", "int32": "uint16"}.get(dtype, dtype))
    plane = side * side * np.dtype(dtype).itemsize
    read_volumes(archive, "data", [target], (dtype,), rotated=True)  # lazy imports are not counted
    tracemalloc.start()
    read_volumes(archive, "data", [target], (dtype,), rotated=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    window = (1 << 19) + (1 << 17)  # what the gzip reader inflates from, and small change
    assert peak < plane + window + 8 * len(archive) < side * plane / 2
