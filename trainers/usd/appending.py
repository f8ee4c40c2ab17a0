"""Opening a USD file to add to it, so that whoever reads meanwhile, or after a crash, finds the file as it was or as it is now.

One moment is left: usd-core measures a file before it reads the head. Where the file grew in between, it says that the file is cut off;
opened again, it is whole. ``stages.open_grown`` does so.

A binary USD file holds values, and after them the tables that find them: the structure. Its first bytes, the head, say where the
structure is. usd-core adds to a file in place: it puts new values over the structure that it has read, a new structure after them, and
then a new head. A reader who comes in between, or after a kill, finds values where the head sends him for the structure.

Here usd-core is given a second copy of the structure to write over: the copy is put at the end, the head points to it while usd-core
opens the file, and then to the first one again, which stays until the new head replaces it at once. The price is the size of
the structure, about a kilobyte, each time; values are written once and never moved.

Source: the binary ("crate") format of OpenUSD: head of 88 bytes with the place of the table of sections at 16; the table is a count and
rows of a name of 16 bytes, a start and a size, little-endian.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from scenemill.schemas.errors import SourceError
from scenemill.schemas.steps import reached

_BINARY: Final = b"PXR-USDC"
_HEAD: Final = 88
_STRUCTURE_AT: Final = 16
_COUNT: Final = struct.Struct("<Q")
_PLACE: Final = struct.Struct("<q")
_SECTION: Final = struct.Struct("<16sqq")


@contextmanager
def appending(path: Path) -> Iterator[Any]:
    """The layer of a file, to add to; written when the block ends without an error, and let go.

    A file that is not there is made; one that is text becomes binary. Layers of the file that others in this process hold are
    brought up to date, and lose what was not saved.

    Args:
        path: of a ``.usd`` file; its folder is made.

    Yields:
        The layer (``Sdf.Layer``).

    Raises:
        SourceError: a file is there that is no USD file, or a damaged one.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        yield from _new(path)
    elif _is_binary(path):
        yield from _in_place(path)
    else:
        yield from _as_text(path)


def _new(path: Path) -> Iterator[Any]:
    from pxr import Sdf

    layer = Sdf.Layer.CreateAnonymous(".usdc")
    yield layer
    layer.Export(str(path))  # to a file beside it, which then takes its name
    if held := Sdf.Layer.Find(str(path)):
        held.Reload(True)


def _in_place(path: Path) -> Iterator[Any]:
    layer = _open_beside_structure(path)
    try:
        yield layer
    except BaseException:
        layer.Reload(True)  # whoever else holds it shall not see half of what was meant
        raise
    layer.Save()
    reached("layer saved")


def _as_text(path: Path) -> Iterator[Any]:
    layer = _opened(path)
    try:
        yield layer
    except BaseException:
        layer.Reload(True)
        raise
    layer.Export(str(path))
    layer.Reload(True)


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_BINARY)) == _BINARY


def _opened(path: Path) -> Any:
    from pxr import Sdf, Tf

    held = Sdf.Layer.Find(str(path))
    try:
        if held:
            held.Reload(True)
        layer = held or Sdf.Layer.FindOrOpen(str(path))
    except Tf.ErrorException as error:
        raise _damaged(path, str(error).strip()[:200]) from error
    if not layer:
        raise _damaged(path, "neither binary nor text")
    return layer


def _damaged(path: Path, what: str) -> SourceError:
    return SourceError("container", f"no readable USD file at {path} ({what})", "one of a log; move it away to begin anew")


def _open_beside_structure(path: Path) -> Any:
    """A layer that will be saved after the end of the file, and not over the structure that readers use."""
    handle = os.open(path, os.O_RDWR)
    try:
        live, end = os.pread(handle, _PLACE.size, _STRUCTURE_AT), os.fstat(handle).st_size
        structure = _moved_structure(path, handle, live, end)
        os.pwrite(handle, structure.data, end)
        reached("structure copied")
        os.pwrite(handle, _PLACE.pack(structure.table_at), _STRUCTURE_AT)
        reached("head moved")
        try:
            return _opened(path)
        except SourceError:
            os.ftruncate(handle, end)
            raise
        finally:
            os.pwrite(handle, live, _STRUCTURE_AT)
            reached("head restored")
    finally:
        os.close(handle)


class _Structure(NamedTuple):
    data: bytes
    table_at: int


def _moved_structure(path: Path, handle: int, place: bytes, end: int) -> _Structure:
    """The structure of a file as it would be at its end, and where its table of sections would be."""
    table_at = _PLACE.unpack(place)[0] if len(place) == _PLACE.size else 0
    count = _COUNT.unpack(os.pread(handle, _COUNT.size, table_at))[0] if _HEAD <= table_at <= end - _COUNT.size else 0
    rows_at, stop = table_at + _COUNT.size, table_at + _COUNT.size + count * _SECTION.size
    rows: list[tuple[bytes, int, int]] = (
        list(_SECTION.iter_unpack(os.pread(handle, stop - rows_at, rows_at))) if stop <= end else []
    )
    if not rows or not all(_HEAD <= at <= at + size <= end for _, at, size in rows):
        raise _damaged(path, "its table of sections leads outside the file")
    start, stop = min(at for _, at, _ in rows), max(stop, *(at + size for _, at, size in rows))
    copy, shift = bytearray(os.pread(handle, stop - start, start)), end - start
    moved = b"".join(_SECTION.pack(name, at + shift, size) for name, at, size in rows)
    copy[rows_at - start : rows_at - start + len(moved)] = moved
    return _Structure(bytes(copy), table_at + shift)
