"""A reader as a fuzz target, and the fence around it: what a reader may do with hostile bytes, and nothing else.

An input must come to one of two ends: the reader refuses it by an error that it declares, or it hands out something that is right in
form. Another error, a warning, a way out of its folder, another process or a connection is a defect.
"""

import os
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from scenemill.schemas.errors import SceneMillError, SourceError

SECRET: Final = b"the-secret-of-the-folder-above"
"""Lies beside the folder that a reader is given; no result may hold it."""

READ: Final = "read"
REFUSED: Final = "refused"

_DOING: Final = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.kill",
    "socket.connect",
    "socket.bind",
)
_UNPICKLING: Final = "pickle.find_class"
_ASKING: Final = ("subprocess.Popen", "os.kill", "os.posix_spawn", _UNPICKLING)
_PLACES: Final = {  # audited event -> which of its arguments are paths
    **dict.fromkeys(("open", "os.listdir", "os.scandir", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"), (0,)),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink"), (0, 1)),
}
_LIBRARIES: Final = tuple(
    os.path.realpath(place)
    for place in (
        *(sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), Path(__file__).parents[2]),
        *("/usr/share/zoneinfo", "/etc/localtime", "/etc/mime.types", "/proc/self", "/dev/null", "/dev/urandom", "/dev/shm"),
    )
)


class Wrong(Exception):
    """A reader handed out what it must not."""


@dataclass(frozen=True)
class FuzzTarget:
    """A reader, and what is right of it.

    Attributes:
        name: of the target.
        seeds: whole inputs, of which the reader takes at least the first.
        read: bytes -> nothing, or an error; raises ``Wrong`` where the result is not right.
        refusals: the errors that it may refuse an input by.
        words: that its inputs are made of.
        longest_byte: of an input.
        warns: whether it may warn its user.
        asks: whether it may begin a process and unpickle its answers.
        light: executions of the short form.
        inside: the folder below its own that the reader may look into; "" for all of its own.
    """

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[bytes], object]
    refusals: tuple[type[SceneMillError], ...] = (SourceError,)
    words: tuple[bytes, ...] = ()
    longest_byte: int = 4096
    warns: bool = False
    asks: bool = False
    light: int = 200
    inside: str = ""


@dataclass
class Fence:
    """Sees what this process opens and begins while it is closed; an audit hook, so libraries written in Python are seen too.

    Attributes:
        inside: the folder that may be read and written.
        seen: what was out of bounds since it was closed last.
    """

    inside: Path
    seen: list[str] = field(default_factory=list)
    _is_closed: bool = False
    _asks: bool = False

    def __post_init__(self) -> None:
        self._inside = os.path.realpath(self.inside)
        sys.addaudithook(self._look)

    @contextmanager
    def closed(self, asks: bool) -> Iterator[None]:
        """Look while the body runs; Wrong at its end for what was out of bounds."""
        self.seen.clear()
        self._is_closed, self._asks = True, asks
        try:
            yield
        finally:
            self._is_closed = False
            if self.seen:
                raise Wrong(f"out of bounds: {', '.join(self.seen[:3])}")

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_closed:
            return
        if event in (*_DOING, _UNPICKLING) and not (self._asks and event in _ASKING):
            self.seen.append(f"{event} {str(arguments)[:120]}")
        for place in _PLACES.get(event, ()):
            path = arguments[place]
            if isinstance(path, (str, bytes, os.PathLike)) and not self._is_within(os.fsdecode(path), event):
                self.seen.append(f"{event} {os.fsdecode(path)[:120]!r}")

    def _is_within(self, path: str, event: str) -> bool:
        try:
            found = os.path.realpath(path)
        except ValueError:  # no such name can be
            return True
        allowed = (self._inside, *(_LIBRARIES if event in ("open", "os.listdir", "os.scandir") else ()))
        return any(found == place or found.startswith(place + os.sep) for place in allowed)


def attempt(target: FuzzTarget, fence: Fence, data: bytes) -> str:
    """What became of an input: ``READ`` or ``REFUSED``.

    Raises:
        Exception: anything else; a defect of the reader.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if target.warns else "error")
        try:
            with fence.closed(target.asks):
                target.read(data)
        except target.refusals:
            return REFUSED
    return READ


def signature(error: BaseException) -> str:
    """What tells one defect from another: the error, and where in this project it came up."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.is_relative_to(Path(__file__).parents[2]) and ".venv" not in file.parts:
            place = f"{file.parent.name}/{file.name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {place}" if not isinstance(error, Wrong) else f"Wrong, {str(error)[:60]}"


def right(is_right: bool, what: str) -> None:
    """Refuse to take a result for right.

    Raises:
        Wrong: it is not.
    """
    if not is_right:
        raise Wrong(what)


def parted(pieces: tuple[bytes, ...]) -> bytes:
    """Several files as one input; ``part`` takes it apart."""
    return BETWEEN.join(pieces)


def part(data: bytes, count: int) -> list[bytes]:
    """The files of an input, empty ones for those that it lacks."""
    found = data.split(BETWEEN, count - 1)
    return found + [b""] * (count - len(found))


BETWEEN: Final = b"\0<>\0"
"""What separates the files of one input."""
