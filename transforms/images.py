"""Reading images without trusting them: size and form are checked before any pixel is decoded."""

import io
import struct
from contextlib import closing
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from zlib_ng import zlib_ng

from scenemill.schemas.errors import SourceError

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH_AT: Final = 24
_PNG_VALUES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # per pixel, by colour type
_PNG_PASSES: Final = {  # first column and row, and steps, of every pass over the image, by whether it is interlaced
    False: ((0, 0, 1, 1),),
    True: ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
}
_EXR_MAGIC: Final = b"\x76\x2f\x31\x01"
_EXR_PLAIN_SCANLINES: Final = 2  # version 2, no tile, long-name, deep or multi-part flag
_EXR_LONG_NAMES: Final = 0x400
_EXR_NAMES_BYTE: Final = 520  # of an attribute's name, type and size; each of the first two has at most 255
_EXR_ATTRIBUTES: Final = 256
_EXR_FLOAT: Final = struct.pack("<i", 2)
_EXR_EVERY_PIXEL: Final = struct.pack("<iib", 1, 1, 0)  # sampling along x and y, end of the list


def read_png(data: bytes, size: tuple[int, int], modes: dict[str, str]) -> NDArray[Any]:
    """Pixels of a PNG file, every chunk checked against its checksum.

    Args:
        data: bytes of the file.
        size: (height, width) it must have.
        modes: allowed Pillow mode -> dtype of the result.

    Returns:
        (H, W) or (H, W, 3) array.

    Raises:
        SourceError: damaged, or of another form.
    """
    stream = _check_png_chunks(data)
    pixels = _read_with_pillow(data, "PNG", size, modes)
    _check_png_rows(data, stream)
    if 8 * pixels.itemsize < data[_PNG_DEPTH_AT]:  # Pillow drops the lower half of 16-bit colours without a word
        raise SourceError("dtype", f"{data[_PNG_DEPTH_AT]} bits per value", f"at most {8 * pixels.itemsize}")
    return pixels


def read_jpeg(data: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Pixels of a JPEG file as (H, W, 3) uint8. A JPEG carries no checksum: only damage that breaks its form is noticed.

    Raises:
        SourceError: damaged, or of another form.
    """
    return _read_with_pillow(data, "JPEG", size, {"RGB": "uint8"})


def _read_with_pillow(data: bytes, form: str, size: tuple[int, int], modes: dict[str, str]) -> NDArray[Any]:
    try:
        with Image.open(io.BytesIO(data), formats=(form,)) as image:
            if image.size != (size[1], size[0]):
                raise SourceError("shape", f"{image.size[1]} x {image.size[0]} pixels", f"{size[0]} x {size[1]} pixels")
            if image.mode not in modes:
                raise SourceError("dtype", f"image mode {image.mode}", " or ".join(modes))
            return np.asarray(image).astype(modes[image.mode], copy=False)
    except SourceError:
        raise
    except Exception as error:  # Pillow's decoders raise many classes on hostile bytes
        _refuse_blame(error)
        raise SourceError("container", f"no readable {form} image ({str(error)[:120]})", f"a {form} file") from error


def _refuse_blame(error: Exception) -> None:
    """Let a lack of memory be one: it says nothing of the file, whose sample must not be rejected for it."""
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        raise MemoryError(str(error) or "while an image was decoded") from error


def _check_png_chunks(data: bytes) -> bytes:
    """Compare every chunk with its checksum; returns the deflate stream of the pixels."""
    if data[:8] != _PNG_SIGNATURE:
        raise SourceError("container", "no PNG signature", "a PNG file")
    position, kind, stream = 8, b"", []
    while kind != b"IEND":
        head = data[position : position + 8]
        if len(head) < 8:
            raise SourceError("container", "a PNG file that ends early", "a whole file")
        length, kind = struct.unpack(">I4s", head)
        if (kind == b"IHDR") != (position == 8):
            raise SourceError("container", f"PNG chunk {kind!r} at byte {position}", "IHDR first and once")
        end = position + 12 + length
        if end > len(data):
            raise SourceError("container", "a PNG chunk that ends behind the file", "a whole file")
        if zlib_ng.crc32(data[position + 4 : end - 4]) != struct.unpack(">I", data[end - 4 : end])[0]:
            raise SourceError(
                "checksum",
                f"PNG chunk {kind.decode('ascii', 'replace')} that differs from its checksum",
                "the bytes that were written",
            )
        if kind == b"IDAT":
            stream.append(data[position + 8 : end - 4])
        position = end
    return b"".join(stream)


def _check_png_rows(data: bytes, stream: bytes) -> None:
    """Refuse a stream that ends, properly, before the last row: Pillow leaves the rest of the image black without a word."""
    width, height, bits, color, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    rows = 0
    for left, top, across, down in _PNG_PASSES[interlace > 0]:
        columns = max(0, -(-(width - left) // across))
        if columns:
            rows += max(0, -(-(height - top) // down)) * (1 + -(-columns * bits * _PNG_VALUES[color] // 8))
    try:
        found = len(zlib_ng.decompressobj().decompress(stream, rows))
    except cast("type[Exception]", zlib_ng.error) as error:
        raise SourceError("container", f"a damaged stream of pixels ({error})", "a whole file") from error
    if found != rows:
        raise SourceError("container", f"{found} bytes of pixels", f"{rows}")


def read_exr_depth(data: bytes, size: tuple[int, int]) -> NDArray[np.float32]:
    """Channel ``Z`` of a single-part scanline OpenEXR file, as (H, W) float32.

    Raises:
        SourceError: damaged, or of another form or size.
    """
    import OpenEXR  # 60 ms of import that checking a list of files does not need

    _check_exr_form(data)
    _check_exr_header(_exr_attributes(data), size)
    try:
        with closing(OpenEXR.InputFile(io.BytesIO(data))) as file:
            pixels = file.channel("Z")
    except Exception as error:  # the bindings raise many classes on hostile bytes
        _refuse_blame(error)
        raise SourceError("container", f"no readable OpenEXR file ({str(error)[:120]})", "an OpenEXR file") from error
    if len(pixels) != size[0] * size[1] * 4:
        raise SourceError("shape", f"{len(pixels)} bytes of depth", f"{size[0] * size[1] * 4}")
    return np.frombuffer(pixels, "<f4").reshape(size)


def _check_exr_form(data: bytes) -> None:
    """Refuse tiled, deep and multi-part files by their version field, before the library builds anything from them."""
    if data[:4] != _EXR_MAGIC or len(data) < 8:
        raise SourceError("container", "no OpenEXR signature", "an OpenEXR file")
    version = struct.unpack("<I", data[4:8])[0]
    if version & ~_EXR_LONG_NAMES != _EXR_PLAIN_SCANLINES:
        raise SourceError("container", f"OpenEXR version field {version:#x}", "a single-part scanline file of version 2")


def _exr_attributes(data: bytes) -> dict[bytes, bytes]:
    """Name -> value of the header's attributes. Read here: the library's own header crashes on a name that is no UTF-8."""
    attributes: dict[bytes, bytes] = {}
    position = 8
    while data[position : position + 1] != b"\0":
        name, _, rest = data[position : position + _EXR_NAMES_BYTE].partition(b"\0")
        kind, found, rest = rest.partition(b"\0")
        start = position + len(name) + len(kind) + 6
        if not found or len(rest) < 4 or name in attributes or len(attributes) == _EXR_ATTRIBUTES:
            raise SourceError("container", "a damaged OpenEXR header", "an OpenEXR file")
        position = start + struct.unpack("<I", rest[:4])[0]
        attributes[name] = data[start:position]
    return attributes


def _check_exr_header(attributes: dict[bytes, bytes], size: tuple[int, int]) -> None:
    channels, window = attributes.get(b"channels", b""), attributes.get(b"dataWindow", b"")
    if len(window) != 16:
        raise SourceError("container", "no data window", "an OpenEXR file")
    left, top, right, bottom = struct.unpack("<4i", window)
    found = (bottom - top + 1, right - left + 1)
    if found != size or (left, top) != (0, 0):
        raise SourceError(
            "shape",
            f"data window from ({left}, {top}) of {found[0]} x {found[1]} pixels",
            f"{size[0]} x {size[1]} pixels from (0, 0)",
        )
    name, _, rest = channels.partition(b"\0")
    if name != b"Z" or len(rest) != 17 or rest[8:] != _EXR_EVERY_PIXEL:
        raise SourceError("container", f"channels {channels[:80]!r}", "the single channel Z of every pixel")
    if rest[:4] != _EXR_FLOAT:
        raise SourceError("dtype", f"pixel type {rest[0]} of channel Z", "32-bit float")


def probe_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a PNG or JPEG file, read from its header alone.

    Raises:
        SourceError: no readable image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            return image.size[1], image.size[0]
    except Exception as error:
        _refuse_blame(error)
        raise SourceError("container", f"no readable image ({str(error)[:120]})", "a PNG or JPEG file") from error
