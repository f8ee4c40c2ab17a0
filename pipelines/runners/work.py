"""What a worker does with a numbered group, wherever it runs, and what the driver makes of what the workers leave.

Workers hand back small tables as files in a folder that they and the driver see; a group counts when its ``.done`` file stands.
"""

import contextlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

import scenemill
from scenemill.schemas import errors
from scenemill.schemas.errors import ConfigError, Corrupt, SceneMillError
from scenemill.schemas.steps import reached
from scenemill.transforms.layout import CONVERSION, FORMAT
from scenemill.validators.checks import CHECKS_VERSION

Group = TypeVar("Group")
Tables = tuple[pa.Table, ...]

MARKER: Final = "driver"
"""A file that the driver leaves in the folder: workers that do not see it are on another file system."""

_ERROR: Final = ".error.json"
_TOLD: Final = re.compile(r"scenemill\.schemas\.errors\.ConfigError: (.+?)(?= \[while running|\\n|\n|$)")
_TOLD_OF_DISK: Final = re.compile(r"OSError: \[[Ee]rrno (\d+)\] [^:\[]+(?:: '([^']+)')?")


def software() -> str:
    """What decides the bytes of a part beside its input: the versions of this installation."""
    return f"scenemill {scenemill.__version__} (format {FORMAT}, conversion {CONVERSION}, checks {CHECKS_VERSION})"


@dataclass(frozen=True)
class Work(Generic[Group]):
    """What a worker does with one numbered group: call, and leave the tables it returns as files for the driver.

    Attributes:
        function: group -> small tables; importable by workers, and safe to repeat.
        folder: for what it returns.
        seen: files and folders that the driver sees and this worker must see too, at the same paths.
        software: the driver's versions.
    """

    function: Callable[[Group], Tables]
    folder: Path
    seen: tuple[Path, ...]
    software: str

    def __call__(self, numbered: tuple[int, Group]) -> int:
        """Do one numbered group, and return its number."""
        number, group = numbered
        try:
            self._check_place()
            tables = self.function(group)
            for place, table in enumerate(tables):
                pq.write_table(table, self.folder / f"{number}-{place}.tmp")
                (self.folder / f"{number}-{place}.tmp").replace(self.folder / f"{number}-{place}.parquet")
            (self.folder / f"{number}.done").touch()
        except (SceneMillError, OSError, MemoryError, KeyboardInterrupt) as error:
            self._note(number, error)
            raise
        reached("group done")
        return number

    def _check_place(self) -> None:
        host = socket.gethostname()
        if unseen := next((path for path in self.seen if not path.exists()), None):
            raise ConfigError(
                f"worker on {host}: {unseen} is not there, though the driver sees it; input and output must be on a file system"
                " that every worker mounts at the same path"
            )
        if self.software != software():
            raise ConfigError(f"worker on {host} has {software()}, the driver {self.software}; install the same on both")

    def _note(self, number: int, error: BaseException) -> None:
        """Leave what was raised for the driver: Beam hands on another class."""
        if not self.folder.is_dir():
            return  # it says so itself
        note = {
            "kind": type(error).__name__,
            "message": getattr(error, "strerror", None) or str(error),
            "errno": getattr(error, "errno", None),
            "filename": str(getattr(error, "filename", None) or self.folder),
            "parts": [getattr(error, name, "") for name in ("check", "observed", "expected")],
        }
        with contextlib.suppress(OSError):  # a disk without room has none for the note: the driver reads what Beam says
            (self.folder / f"{number}{_ERROR}").write_text(json.dumps(note))


def done_groups(folder: Path) -> set[int]:
    """Numbers of the groups that are done."""
    return {int(path.stem) for path in folder.glob("*.done")}


def forget_errors(folder: Path) -> None:
    """Remove what an earlier run noted."""
    for old in folder.glob(f"*{_ERROR}"):
        old.unlink()


def raised_by_worker(folder: Path, told: BaseException) -> BaseException | None:
    """What a worker raised, as itself; None where it is not known.

    Args:
        folder: of the work.
        told: what the runner made of it.
    """
    for path in sorted(folder.glob(f"*{_ERROR}")):
        try:
            note = json.loads(path.read_text())
        except (OSError, ValueError):
            continue  # the disk that failed the worker failed its note
        kind = getattr(errors, note["kind"], None)
        if note["kind"] == "KeyboardInterrupt":
            return KeyboardInterrupt()
        if note["kind"] == "MemoryError":
            return MemoryError(note["message"])
        if kind is errors.SourceError:
            return errors.SourceError(*note["parts"])
        if isinstance(kind, type) and issubclass(kind, SceneMillError):
            return kind(note["message"])
        return OSError(note["errno"], note["message"], note["filename"])
    if found := _TOLD_OF_DISK.search(str(told)):
        return OSError(int(found[1]), os.strerror(int(found[1])), found[2] or str(folder))
    found = _TOLD.search(str(told))  # of a worker that does not see the folder
    return ConfigError(found[1]) if found else None


def read_results(folder: Path, count: int, *, keep: bool) -> Iterator[Tables]:
    """The tables of groups 0 to ``count`` - 1, in that order.

    Args:
        folder: of the work.
        count: of groups.
        keep: False to remove what was read.

    Raises:
        Corrupt: a group is not done, whatever the runner says.
    """
    if missing := set(range(count)) - done_groups(folder):
        raise Corrupt(f"{folder}: {len(missing)} of {count} groups of work left no result; run the same command again")
    return _results(folder, count, keep)


def _results(folder: Path, count: int, keep: bool) -> Iterator[Tables]:
    for number in range(count):
        files = sorted(folder.glob(f"{number}-*.parquet"))
        yield tuple(pq.ParquetFile(file).read(use_threads=False) for file in files)
        for file in () if keep else files:
            file.unlink()


class Watch:
    """Counts finished groups in the background while a runner blocks."""

    def __init__(self, folder: Path, on_done: Callable[[int], None]) -> None:
        self._folder = folder
        self._on_done = on_done
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _count(self) -> None:
        self._on_done(len(done_groups(self._folder)))

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            self._count()

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._count()
