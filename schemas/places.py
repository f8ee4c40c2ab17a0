"""Places: where stores and raw folders are, on a disk or in an object store.

A folder on a disk is a ``pathlib.Path`` and nothing else. ``Remote`` is what readers and publishing ask of any other place; where
it has a method of a path's name, it means the same.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scenemill.schemas.errors import ConfigError

NO_CREDENTIALS: Final = (
    "holds an address with a user or a password in it; leave them out: credentials come from the environment alone"
)
_CREDENTIALS: Final = re.compile(r"://[^/?#\s]*@")


def has_credentials(value: Any) -> bool:
    """Whether a text, or one in a list, has an address with a user or a password in it. Such a text is not to be shown.

    >>> has_credentials("s3://bucket/a@b"), has_credentials(["dask=tcp://me:word@host:8786"])
    (False, True)
    """
    return any(_CREDENTIALS.search(text) for text in texts_in(value))


def texts_in(value: Any) -> Iterator[str]:
    """A text, or the texts in a list, in lists within it too; without recursion, for others' lists lie in lists without end.

    >>> sorted(texts_in(["a", [["b"], 3]]))
    ['a', 'b']
    """
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list | tuple):
            waiting.extend(one)
        elif isinstance(one, str):
            yield one


@dataclass(frozen=True)
class Status:
    """What a service says of one object.

    Attributes:
        st_size: bytes; named as in ``os.stat``.
        tag: changes whenever the bytes do.
        modified: when it was written, in nanoseconds since 1970.
    """

    st_size: int
    tag: str
    modified: int


class Remote(ABC):
    """A folder or file that is not on a disk of this machine. Equal by place, sorted by it, small to send to other processes.

    Reading raises FileNotFoundError where nothing is, ConfigError where the call is refused, and TransientError where trying again
    may help.
    """

    @abstractmethod
    def __truediv__(self, below: str) -> "Remote":
        """A place below this one."""

    @abstractmethod
    def __lt__(self, other: object) -> bool:
        """Whether it sorts before another."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of the path."""

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot on."""
        return Path(self.name).suffix

    @property
    @abstractmethod
    def parent(self) -> "Remote":
        """The folder it is in; of the topmost folder, itself."""

    def exists(self) -> bool:
        """Whether there is a file or a folder."""
        return self.is_file() or self.is_dir()

    @abstractmethod
    def is_file(self) -> bool:
        """Whether there is a file."""

    @abstractmethod
    def is_dir(self) -> bool:
        """Whether there is a file below it."""

    @abstractmethod
    def stat(self) -> Status:
        """Size, tag and time of the file."""

    @abstractmethod
    def read_bytes(self) -> bytes:
        """All of the file."""

    @abstractmethod
    def iterdir(self) -> Iterator["Remote"]:
        """The files and folders in this folder."""

    @abstractmethod
    def glob(self, pattern: str) -> Iterator["Remote"]:
        """The files below whose path matches, part by part; ``*`` stands for any part."""

    @abstractmethod
    def walk(self) -> Iterator["Remote"]:
        """Every file below, at any depth, in the order of paths."""

    @abstractmethod
    def below(self, folder: "Remote") -> str:
        """The path from a folder that this is in, its parts apart by "/"."""

    @abstractmethod
    def checksum(self) -> str:
        """SHA-256 of the file, read a piece at a time."""

    @abstractmethod
    def fetch(self, target: Path) -> None:
        """Write the bytes of the file to a file on a disk, a piece at a time; what is cut off is begun anew."""

    @abstractmethod
    def create(self, data: bytes | Path) -> None:
        """Write a file where none is. The same bytes there already are as good, whoever wrote them.

        Raises:
            Conflict: other bytes stand there.
        """

    @abstractmethod
    def swap(self, data: bytes, expected: bytes | None) -> None:
        """Replace the file if it holds what is expected, None for no file, as one step that no other writer comes between.

        Raises:
            Conflict: it holds something else.
        """

    @abstractmethod
    def replace(self, data: bytes | Path, check: Callable[[], object]) -> None:
        """Write a file over whatever is there. The same bytes there already are as good.

        Args:
            data: bytes, or the file that holds them.
            check: called once it is seen what is there, to raise where the caller may write no more. No write of another that comes
                after it is written over.

        Raises:
            Conflict: another writer came between.
        """

    @abstractmethod
    def unlink(self) -> None:
        """Remove the file, if it is there."""


Place = Path | Remote
"""A folder or file, wherever it is."""


def on_disk(place: Place) -> Path:
    """A place as a path.

    Raises:
        ConfigError: it is in an object store.
    """
    if isinstance(place, Path):
        return place
    raise ConfigError(f"{place}: in an object store; this needs a folder on a disk")
