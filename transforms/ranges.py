"""Byte ranges of a store's files: local files by descriptor, object stores by a few large requests at a time."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from scenemill.schemas.errors import TransientError

Range = tuple[int, int]
"""(first byte, byte behind the last)."""

_GAP_BYTE: Final = 1 << 16  # reading this much in vain costs an object store less than another request


class RangeReader(Protocol):
    """Where a reader's bytes come from."""

    def read(self, path: str, size_byte: int, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each range of one file.

        Args:
            path: below the store.
            size_byte: what the file's receipt says; a file of another length is refused.
            ranges: within the file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file has another length, or ends early.
        """
        ...


class LocalRanges:
    """Ranges of local files. Each is read by one call straight into the bytes it is handed out as; nothing is copied again.

    The most recently used files stay open, also across threads; a process that was forked opens its own.
    """

    def __init__(self, root: Path, most_open: int = 128) -> None:
        self._root = root
        self._most_open = most_open
        self._held = _Held()

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self._root, self._most_open))

    def read(self, path: str, size_byte: int, ranges: Sequence[Range]) -> list[bytes]:
        """As ``RangeReader.read`` says."""
        descriptor = self._file(path, size_byte)
        found = [os.pread(descriptor.number, end - start, start) for start, end in ranges]
        if any(len(data) != end - start for data, (start, end) in zip(found, ranges, strict=True)):
            raise ValueError("ends early")
        return found

    def _file(self, path: str, size_byte: int) -> "_OpenFile":
        held = self._held
        if held.pid != os.getpid():  # forked, perhaps while another thread had the lock: a new lock too
            held = self._held = _Held()
        with held.lock:
            opened = held.files.pop(path, None)
        opened = opened or _OpenFile(self._root / path)
        if opened.size_byte != size_byte:
            raise ValueError(f"has {opened.size_byte} bytes, its receipt says {size_byte}")
        with held.lock:
            held.files[path] = opened  # the newest is last
            while len(held.files) > self._most_open:
                held.files.popitem(last=False)
        return opened


class _Held:
    """The files that one process holds open; an OrderedDict breaks when two threads change it at once, hence the lock."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.files: OrderedDict[str, _OpenFile] = OrderedDict()


class _OpenFile:
    """A descriptor that closes when the last who uses it lets go."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size_byte = os.fstat(self.number).st_size

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class RemoteRanges:
    """Ranges of an object store's files: neighbours are merged, all requests of a call are under way at once.

    Args:
        files: an fsspec file system.
        root: path of the store in it.
    """

    def __init__(self, files: Any, root: str) -> None:
        self._files = files
        self._root = root.rstrip("/")

    def read(self, path: str, size_byte: int, ranges: Sequence[Range]) -> list[bytes]:
        """As ``RangeReader.read`` says.

        Raises:
            TransientError: the service failed; trying again may help.
        """
        merged = merge_ranges(ranges, _GAP_BYTE)
        name = f"{self._root}/{path}"
        starts, ends = [start for start, _ in merged], [end for _, end in merged]
        try:
            fetched = self._files.cat_ranges([name] * len(merged), starts, ends, on_error="return")
            for failure in fetched:  # raised here: asynchronous file systems of before June 2026 return it whatever they are told
                if isinstance(failure, BaseException):
                    raise failure
        except (FileNotFoundError, ValueError):
            raise
        except OSError as error:
            raise TransientError(f"{name}: {error}; try again") from error
        if any(len(data) != end - start for data, (start, end) in zip(fetched, merged, strict=True)):
            raise ValueError(f"ends early, its receipt says {size_byte} bytes")
        held = dict(zip(merged, fetched, strict=True))
        return [_cut(held, wanted) for wanted in ranges]


def _cut(held: dict[Range, bytes], wanted: Range) -> bytes:
    start, end = next(found for found in held if found[0] <= wanted[0] and wanted[1] <= found[1])
    data = held[start, end]
    return data if (start, end) == wanted else data[wanted[0] - start : wanted[1] - start]


def merge_ranges(ranges: Sequence[Range], gap_byte: int) -> list[Range]:
    """The fewest ranges, sorted, that cover the given ones, joining those at most ``gap_byte`` apart.

    >>> merge_ranges([(50, 60), (0, 10), (12, 20)], gap_byte=4)
    [(0, 20), (50, 60)]
    """
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start - merged[-1][1] <= gap_byte:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
