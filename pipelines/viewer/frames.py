"""Frames: what the page draws, as one binary message of a JSON header and plain arrays.

    bytes 0-3    "SMF1"
    uint32       length of the header, little-endian, a multiple of 8
    header       JSON in UTF-8, padded with spaces; "buffers" says of each array {"key", "dtype", "shape", "offset", "size"}
    arrays       little-endian, in C order, each at an offset that is a multiple of 8, counted from the end of the header

A key is a checksum of an array's content. An array that the page says it holds is named and not sent; its offset is null.
"""

import hashlib
import json
from collections.abc import Container, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAGIC: Final = b"SMF1"
DTYPES: Final = {"f32": "<f4", "u32": "<u4", "i32": "<i4", "i16": "<i2", "u16": "<u2", "u8": "|u1"}
"""Name in a header -> dtype of the array."""

_ALIGNMENT: Final = 8
_NAMES: Final = {np.dtype(code): name for name, code in DTYPES.items()}

Arrays = Mapping[str, NDArray[Any]]


def encode_frame(
    header: Mapping[str, Any], arrays: Arrays, known: Container[str] = (), keys: Mapping[str, str] | None = None
) -> bytes:
    """A frame.

    Args:
        header: what there is to say besides the arrays, as JSON takes it; without "buffers".
        arrays: by name; of the dtypes in ``DTYPES``.
        known: keys of arrays that are not sent.
        keys: those of the arrays by name, where they were computed before.

    >>> frame = encode_frame({"of": "a point"}, {"place": np.zeros((1, 3), np.float32)})
    >>> read, arrays = decode_frame(frame)
    >>> read["of"], read["buffers"]["place"]["shape"], arrays["place"].tolist()
    ('a point', [1, 3], [[0.0, 0.0, 0.0]])
    """
    described, bodies, offset = {}, [], 0
    for name, array in arrays.items():
        body = np.ascontiguousarray(array)
        key = keys[name] if keys is not None else key_of(body)
        sent = key not in known
        described[name] = {
            "key": key,
            "dtype": _NAMES[body.dtype],
            "shape": list(body.shape),
            "offset": offset if sent else None,
            "size": body.nbytes,
        }
        if sent:
            padding = -body.nbytes % _ALIGNMENT
            bodies += [body.tobytes(), bytes(padding)]
            offset += body.nbytes + padding
    text = json.dumps({**header, "buffers": described}, allow_nan=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join([MAGIC, len(text).to_bytes(4, "little"), text, *bodies])


def decode_frame(frame: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The header of a frame, and the arrays that were sent with it."""
    start = 8 + int.from_bytes(frame[4:8], "little")
    header = json.loads(frame[8:start])
    arrays = {}
    for name, entry in header["buffers"].items():
        if entry["offset"] is not None:
            place = start + entry["offset"]
            body = np.frombuffer(frame[place : place + entry["size"]], DTYPES[entry["dtype"]])
            arrays[name] = body.reshape(entry["shape"])
    return header, arrays


def tag_of(frame: bytes) -> str:
    """Another one for another frame: a checksum of the header, which has those of the arrays."""
    return hashlib.blake2b(frame[: 8 + int.from_bytes(frame[4:8], "little")], digest_size=12).hexdigest()


def key_of(array: NDArray[Any]) -> str:
    """Checksum of an array in C order: equal for equal content, shape and dtype alone."""
    digest = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=12)
    digest.update(array.data if array.size else b"")
    return digest.hexdigest()
