"""The image readers give the pixels that were written, or say what is wrong with a file before they trust it."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import pytest
from numpy.typing import NDArray
from PIL import Image

from scenemill.schemas.errors import SourceError
from scenemill.transforms.images import probe_size, read_exr_depth, read_jpeg, read_png

SIZE = (6, 9)  # height, width
RGB = {"RGB": "uint8"}
DEPTH_16 = {"I;16": "uint16"}
RNG = np.random.default_rng(3)
COLORS = RNG.integers(0, 256, (*SIZE, 3), np.uint8)
UNITS = RNG.integers(0, 65536, SIZE, np.uint16)
DEPTH_M = RNG.uniform(0.4, 6.0, SIZE).astype(np.float32)


def encode(pixels: NDArray[Any], form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)


def split_png(data: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, data) of every chunk."""
    found, position = [], 8
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        found.append((kind, data[position + 8 : position + 8 + length]))
        position += 12 + length
    return found


def join_png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks)


def header(width: int, height: int, bits: int = 8, color: int = 2, interlace: int = 0) -> bytes:
    return struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlace)


def fails(check: str, call: Callable[[], object]) -> None:
    with pytest.raises(SourceError) as caught:
        call()
    assert caught.value.check == check, str(caught.value)


# --- PNG


def test_png_colours_come_out_as_written() -> None:
    read = read_png(encode(COLORS), SIZE, RGB)
    assert read.dtype == np.uint8 and np.array_equal(read, COLORS)


def test_png_with_16_bits_comes_out_as_written() -> None:
    read = read_png(encode(UNITS), SIZE, DEPTH_16)
    assert read.dtype == np.uint16 and np.array_equal(read, UNITS)


@pytest.mark.parametrize("pixels", [UNITS.astype(np.uint8), UNITS % 2 == 0], ids=["L", "1"])
def test_png_masks_come_out_as_written(pixels: NDArray[Any]) -> None:
    read = read_png(encode(pixels), SIZE, {"L": "uint8", "1": "uint8"})
    assert read.dtype == np.uint8 and np.array_equal(read, pixels)


def test_png_in_many_idat_chunks_and_with_text_is_read() -> None:
    chunks = []
    for kind, data in split_png(encode(COLORS)):
        chunks += [(kind, data[i : i + 40]) for i in range(0, len(data), 40)] if kind == b"IDAT" else [(kind, data)]
    chunks.insert(1, (b"tEXt", b"Comment\0made up"))
    assert len(chunks) > 5
    assert np.array_equal(read_png(join_png(chunks), SIZE, RGB), COLORS)


@pytest.mark.parametrize(
    ("data", "modes", "check"),
    [
        (encode(COLORS[:, :8]), RGB, "shape"),
        (encode(np.moveaxis(COLORS, 0, 1).copy()), RGB, "shape"),  # height and width exchanged
        (encode(COLORS), DEPTH_16, "dtype"),
        (encode(UNITS), RGB, "dtype"),
        (encode(COLORS[..., 0].copy()), RGB, "dtype"),
        (encode(np.dstack([COLORS, COLORS[..., 0]])), RGB, "dtype"),  # with transparency
        (encode(COLORS, "JPEG"), RGB, "container"),
        (encode(COLORS, "TIFF"), RGB, "container"),
        (encode(COLORS, "BMP"), RGB, "container"),
        (b"", RGB, "container"),
        (b"\x89PNG\r\n\x1a\n", RGB, "container"),
    ],
)
def test_another_form_of_image_is_refused(data: bytes, modes: dict[str, str], check: str) -> None:
    fails(check, lambda: read_png(data, SIZE, modes))


def test_a_palette_is_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(COLORS).quantize(8).save(file, "PNG")
    fails("dtype", lambda: read_png(file.getvalue(), SIZE, RGB))


def test_colours_of_16_bits_are_refused_and_not_halved() -> None:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.full((*SIZE, 3), 0x1234))
    data = join_png([(b"IHDR", header(SIZE[1], SIZE[0], bits=16)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"  # what Pillow makes of it
    fails("dtype", lambda: read_png(data, SIZE, RGB))


def test_png_cut_anywhere_is_refused() -> None:
    data = encode(COLORS)
    for length in range(len(data)):
        fails("container", lambda length=length: read_png(data[:length], SIZE, RGB))  # type: ignore[misc]


def test_no_flipped_bit_of_a_png_gives_other_pixels() -> None:
    data, seen = encode(COLORS), set()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SourceError) as caught:
            read_png(bytes(damaged), SIZE, RGB)
        seen.add(caught.value.check)
    assert seen == {"checksum", "container"}


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"IDAT", b""), (b"IEND", b"")],
        [(b"IHDR", header(9, 6)), (b"IEND", b"")],  # no pixels
        [(b"IHDR", header(9, 6)), (b"IDAT", zlib.compress(bytes(28))), (b"IEND", b"")],  # a row of pixels
        [(b"IHDR", header(9, 6)), (b"IDAT", zlib.compress(bytes(167))), (b"IEND", b"")],  # all pixels but a byte
        [(b"IHDR", header(9, 6)), (b"IDAT", b"no deflate stream"), (b"IEND", b"")],
        [(b"IHDR", header(9, 6)), (b"IHDR", header(9, 6)), (b"IDAT", zlib.compress(bytes(168))), (b"IEND", b"")],
        [(b"tEXt", b"a\0b"), (b"IHDR", header(9, 6)), (b"IDAT", zlib.compress(bytes(168))), (b"IEND", b"")],
        [(b"IHDR", b""), (b"IEND", b"")],
    ],
)
def test_png_of_sound_chunks_that_make_no_image_is_refused(chunks: list[tuple[bytes, bytes]]) -> None:
    fails("container", lambda: read_png(join_png(chunks), SIZE, RGB))


PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
FORMS = (("RGB", 3, 2), ("L", 1, 0), ("P", 1, 3), ("LA", 2, 4), ("RGBA", 4, 6))  # mode, values per pixel, PNG's colour type


@pytest.mark.parametrize(("mode", "values", "color"), FORMS)
@pytest.mark.parametrize("interlace", [0, 1])
def test_png_is_read_if_all_its_rows_are_there(interlace: int, mode: str, values: int, color: int) -> None:
    rng = np.random.default_rng(1)
    for height, width in [(height, width) for height in range(1, 11) for width in range(1, 11)]:
        pixels = rng.integers(0, 256, (height, width, values), np.uint8)
        parts = [pixels[top::down, left::across] for left, top, across, down in PASSES] if interlace else [pixels]
        rows = [b"\0" + row.tobytes() for part in parts for row in part if row.size]
        start, palette = (b"IHDR", header(width, height, color=color, interlace=interlace)), (b"PLTE", bytes(range(256)) * 3)

        def read(rows: list[bytes], before: tuple[tuple[bytes, bytes], ...] = (start, palette)) -> NDArray[Any]:
            chunks = [*(before if mode == "P" else before[:1]), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
            return read_png(join_png(chunks), (height, width), {mode: "uint8"})  # noqa: B023

        assert np.array_equal(read(rows), pixels[..., 0] if values == 1 else pixels)
        fails("container", lambda read=read, rows=rows: read(rows[:-1]))  # type: ignore[misc]
        fails("container", lambda read=read, rows=rows: read([*rows[:-1], rows[-1][:-1]]))  # type: ignore[misc]


@pytest.mark.parametrize("field", range(8, 13))
def test_no_value_of_a_png_header_gives_other_pixels(field: int) -> None:
    (_, start), *rest = split_png(encode(COLORS))
    for value in range(256):
        forged = join_png([(b"IHDR", start[:field] + bytes([value]) + start[field + 1 :]), *rest])
        try:
            read = read_png(forged, SIZE, {**RGB, "L": "uint8", "P": "uint8", "RGBA": "uint8"})
        except SourceError:
            continue
        assert np.array_equal(read, COLORS)


def test_png_of_huge_size_is_refused_by_its_header() -> None:
    data = join_png([(b"IHDR", header(2**31 - 1, 2**31 - 1)), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")])
    with pytest.raises(SourceError):
        read_png(data, SIZE, RGB)
    with pytest.raises(SourceError):
        probe_size(data)


# --- JPEG


def test_jpeg_comes_out_as_pillow_decodes_it() -> None:
    data = encode(np.full((*SIZE, 3), (200, 90, 30), np.uint8), "JPEG", quality=95)
    read = read_jpeg(data, SIZE)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(read, np.array(image))
    assert read.dtype == np.uint8 and np.abs(read.astype(int) - (200, 90, 30)).max() < 8


@pytest.mark.parametrize(
    ("data", "check"),
    [
        (encode(COLORS[:5], "JPEG"), "shape"),
        (encode(COLORS[..., 0].copy(), "JPEG"), "dtype"),
        (encode(COLORS), "container"),
        (encode(COLORS, "JPEG")[:-40], "container"),
        (encode(COLORS, "JPEG")[:100], "container"),
        (b"\xff\xd8\xff", "container"),
        (b"", "container"),
    ],
)
def test_what_is_no_such_jpeg_is_refused(data: bytes, check: str) -> None:
    fails(check, lambda: read_jpeg(data, SIZE))


def test_sizes_are_probed_as_height_and_width() -> None:
    assert probe_size(encode(COLORS)) == probe_size(encode(COLORS, "JPEG")) == SIZE
    for data in (b"", encode(COLORS, "BMP"), b"\x89PNG\r\n\x1a\n"):
        fails("container", lambda data=data: probe_size(data))  # type: ignore[misc]


# --- OpenEXR


def encode_exr(folder: Path, channels: dict[str, Any], **settings: Any) -> bytes:
    path = folder / "file.exr"
    OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage, **settings}, channels).write(str(path))
    return path.read_bytes()


@pytest.mark.parametrize("compression", ["NO", "RLE", "ZIPS", "ZIP", "PIZ"])
def test_exr_depth_comes_out_as_written(compression: str, tmp_path: Path) -> None:
    data = encode_exr(tmp_path, {"Z": DEPTH_M}, compression=getattr(OpenEXR, f"{compression}_COMPRESSION"))
    read = read_exr_depth(data, SIZE)
    assert read.dtype == np.float32 and np.array_equal(read, DEPTH_M)


def test_exr_values_that_are_no_numbers_come_out_for_the_checks_to_find(tmp_path: Path) -> None:
    depth_m = DEPTH_M.copy()
    depth_m[0, :3] = np.nan, np.inf, -1.0
    assert np.array_equal(read_exr_depth(encode_exr(tmp_path, {"Z": depth_m}), SIZE), depth_m, equal_nan=True)


@pytest.mark.parametrize(
    ("channels", "settings", "check"),
    [
        ({"Z": DEPTH_M[:5].copy()}, {}, "shape"),
        ({"Z": DEPTH_M.T.copy()}, {}, "shape"),
        ({"Z": DEPTH_M.astype(np.float16)}, {}, "dtype"),
        ({"Z": DEPTH_M.astype(np.uint32)}, {}, "dtype"),
        ({"Y": DEPTH_M}, {}, "container"),
        ({"Z": DEPTH_M, "A": DEPTH_M}, {}, "container"),
        ({"Z": DEPTH_M, "ZBack": DEPTH_M}, {}, "container"),
        ({"RGB": np.dstack([DEPTH_M] * 3)}, {}, "container"),
    ],
)
def test_another_form_of_exr_is_refused(channels: dict[str, Any], settings: dict[str, Any], check: str, tmp_path: Path) -> None:
    data = encode_exr(tmp_path, channels, **settings)
    fails(check, lambda: read_exr_depth(data, SIZE))


@pytest.mark.parametrize("flag", [0x200, 0x800, 0x1000], ids=["tiled", "deep", "multi-part"])
def test_exr_of_a_form_with_a_version_flag_is_refused(flag: int, tmp_path: Path) -> None:
    data = encode_exr(tmp_path, {"Z": DEPTH_M})
    fails("container", lambda: read_exr_depth(data[:4] + struct.pack("<I", 2 | flag) + data[8:], SIZE))


def test_exr_with_a_shifted_window_is_refused(tmp_path: Path) -> None:
    data = encode_exr(tmp_path, {"Z": DEPTH_M})
    start = data.index(b"dataWindow\0box2i\0") + len(b"dataWindow\0box2i\0") + 4
    for window, check in (
        ((1, 0, 9, 5), "shape"),
        ((0, 0, 8, 6), "shape"),
        ((0, 0, 2**31 - 1, 5), "shape"),
        ((0, 0, 8, -6), "shape"),
    ):
        forged = data[:start] + struct.pack("<4i", *window) + data[start + 16 :]
        fails(check, lambda forged=forged: read_exr_depth(forged, SIZE))  # type: ignore[misc]


def test_exr_with_skipped_pixels_is_refused(tmp_path: Path) -> None:
    data = encode_exr(tmp_path, {"Z": DEPTH_M})
    start = data.index(b"channels\0chlist\0") + len(b"channels\0chlist\0") + 4 + 2 + 8
    assert data[start : start + 8] == struct.pack("<ii", 1, 1)
    fails("container", lambda: read_exr_depth(data[:start] + struct.pack("<ii", 2, 1) + data[start + 8 :], SIZE))


@pytest.mark.parametrize("name", [b"channels", b"dataWindow"])
def test_exr_without_a_needed_attribute_is_refused(name: bytes, tmp_path: Path) -> None:
    data = encode_exr(tmp_path, {"Z": DEPTH_M})
    fails("container", lambda: read_exr_depth(data.replace(name + b"\0", b"x" * len(name) + b"\0", 1), SIZE))


def test_exr_with_an_attribute_twice_is_refused(tmp_path: Path) -> None:
    data = encode_exr(tmp_path, {"Z": DEPTH_M})
    start = data.index(b"dataWindow\0")
    attribute = data[start : start + len(b"dataWindow\0box2i\0") + 4 + 16]
    fails("container", lambda: read_exr_depth(data[:start] + attribute + data[start:], SIZE))


def test_exr_cut_short_is_refused(tmp_path: Path) -> None:
    data = encode_exr(tmp_path, {"Z": DEPTH_M})
    for length in (0, 3, 7, 8, 9, 40, len(data) // 2, len(data) - 8, len(data) - 1):
        fails("container", lambda length=length: read_exr_depth(data[:length], SIZE))  # type: ignore[misc]
    for other in (encode(COLORS), b"v/1\x01" + bytes(400)):
        fails("container", lambda other=other: read_exr_depth(other, SIZE))  # type: ignore[misc]
