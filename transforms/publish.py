"""Making files count: locks, whole writes, exclusive placement, the one swap, and removal. The only file that renames or deletes
in a store.

In an object store nothing is locked and nothing renamed: every object is created where none is, and of several runs the first to
swap the root document wins (``objects.py``). What a run needs of a disk meanwhile is in a folder of this machine.

Bytes come first and are flushed; then the number that says they exist. ``reached`` names the moments between (``schemas/steps.py``); the
fault tests kill the process at every one of them and compare what a second run makes of it with an unbroken run.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final
from uuid import uuid4

from scenemill.schemas.errors import ConfigError, Conflict
from scenemill.schemas.places import Place, Remote
from scenemill.schemas.steps import reached

WORK: Final = ".work"
"""Folder for files not yet placed, below the store; whatever a killed run leaves there is removed by the next."""

_LOCK: Final = ".scenemill.lock"
_FENCE: Final = ".scenemill.fence"
_RUN: Final = "run"
_PATIENCE_S: Final = 120.0
_TRIES: Final = 8


def disk_of(store: Place) -> Path:
    """The folder of this machine for a run on a store: the store itself, or one that stands for a store elsewhere.

    Raises:
        ConfigError: another user has made it.
    """
    if isinstance(store, Path):
        return store
    own = Path(tempfile.gettempdir()) / f"scenemill-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.lstat().st_uid != os.getuid():
        raise ConfigError(f"folder {own}: another user's; name a folder of your own with TMPDIR")
    return own / hashlib.sha256(str(store).encode()).hexdigest()[:16]


@contextmanager
def locked(store: Place) -> Iterator[str]:
    """Hold a store for one run; of a store elsewhere, keep other runs of this machine off it. The lock is the operating system's: it
    goes when the process does.

    Worker processes of a killed run may still be writing a part: they are waited for, and whatever part they turn to next refuses
    them, because the run that holds the store is another (``building``).

    Yields:
        The run's token, for its workers.

    Raises:
        Conflict: another run holds it.
        ConfigError: the folder is something else than a store, or cannot be used.
    """
    if isinstance(store, Remote):
        with locked(disk_of(store)) as token:
            yield token
        return
    try:
        if store.is_dir() and any(store.iterdir()) and not ((store / _LOCK).exists() or (store / "zarr.json").exists()):
            raise ConfigError(f"store {store}: a folder with other things in it; give a new or empty folder")
        store.mkdir(parents=True, exist_ok=True)
        lock, fence = (store / _LOCK).open("a+"), (store / _FENCE).open("a")
    except OSError as error:
        raise ConfigError(f"store {store}: cannot be used ({error}); give a folder that can be written") from error
    with lock, fence:
        _lock_at_once(lock, store)
        token = uuid4().hex
        _wait_for_workers(fence, store)
        (store / WORK).mkdir(exist_ok=True)
        reached("lock taken")
        yield token
        remove(store / WORK / _RUN)  # first: what a lost worker still does for this run is over with its part
        for left in (store / WORK).iterdir():
            remove(left)


def _lock_at_once(lock: IO[str], store: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Conflict(f"store {store}: another run is writing to it; wait for it to end, then run again") from error


def _wait_for_workers(fence: IO[str], store: Path) -> None:
    """Until no worker of an earlier run is writing a part any more."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(fence, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise Conflict(f"store {store}: workers of a killed run are still writing; end them, then run again") from error
            time.sleep(0.1)
        else:
            fcntl.flock(fence, fcntl.LOCK_UN)
            return


def announce(store: Place, token: str) -> None:
    """Let the workers of this run write parts, and those of any other no more."""
    (disk_of(store) / WORK / _RUN).write_text(token)


@contextmanager
def building(store: Place, token: str) -> Iterator[None]:
    """Write a part for the run that holds the store; no other run begins meanwhile. A store elsewhere needs no such care: there no
    object ever gets other bytes.

    Args:
        store: the folder.
        token: of the run; "" for a store that no run holds.

    Raises:
        Conflict: another run holds the store by now.
    """
    if isinstance(store, Remote):
        yield
        return
    with (store / _FENCE).open("a") as fence:
        fcntl.flock(fence, fcntl.LOCK_SH)
        run = store / WORK / _RUN
        held = run.read_text() if run.exists() else ""
        if held != token:
            raise Conflict(f"store {store}: another run has taken over; this worker's run is over")
        yield


def work_path(store: Place) -> Path:
    """A new name in the work folder of the store, on this machine."""
    folder = disk_of(store) / WORK
    folder.mkdir(parents=isinstance(store, Remote), exist_ok=True)
    return folder / uuid4().hex


def _temporary(path: Path) -> Path:
    """A name for a file on its way to ``path``: in the work folder of the store that holds it, or beside it."""
    for folder in path.parents:
        if (folder / WORK).is_dir():
            return folder / WORK / uuid4().hex
    return path.with_name(f".{path.name}.{uuid4().hex}")


def write_whole(path: Place, data: bytes) -> None:
    """Write a file so that any reader sees the old bytes or the new ones, also after a loss of power; leave it if it holds them.

    Raises:
        Conflict: an object holds other bytes: only ``lengthen`` and ``swap`` change one.
    """
    if isinstance(path, Remote):
        path.create(data)
        return
    if path.is_file() and path.read_bytes() == data:
        return
    with naming(path):
        make_folder(path.parent)
        temporary = _temporary(path)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        reached("file flushed")
        temporary.replace(path)  # replace, not rename: rename fails on Windows when the target exists
        _sync_folder(path.parent)
    reached("file placed")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an error of the system that names none, as those of writes and flushes do."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, so that they are there after a loss of power as well."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        _sync_folder(path.parent)


def lengthen(path: Place, document: bytes) -> None:
    """Write an array's own document. In an object store, where another run may be ahead, it is left if it has as many rows or more.

    Raises:
        Conflict: other runs write it all the time.
    """
    if isinstance(path, Path):
        write_whole(path, document)
        return
    for tries_left in reversed(range(_TRIES)):
        found = path.read_bytes() if path.is_file() else None
        if found is not None and _rows(found) >= _rows(document):
            return
        try:
            path.swap(document, found)
            return
        except Conflict:
            if not tries_left:
                raise


def _rows(document: bytes) -> int:
    """The rows of an array by its document; -1 where it cannot be read."""
    try:
        return int(json.loads(document)["shape"][0])
    except (ValueError, LookupError, TypeError):
        return -1


def place(temporary: Path, target: Place, checksum: str) -> None:
    """Give a finished file its final name, never over another file.

    A file of the same bytes may stand there already (the same part, built before); anything else is another writer's.

    Raises:
        Conflict: other bytes stand there.
    """
    if isinstance(target, Remote):
        target.create(temporary)
        temporary.unlink()
        return
    make_folder(target.parent)
    try:
        os.link(temporary, target)
    except FileExistsError as error:
        if checksum_of(target) != checksum:
            raise Conflict(f"{target}: another run wrote this part; end all runs on the store, then run again") from error
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        if not target.exists():
            temporary.replace(target)  # a file system without links; the store's lock keeps others away
        elif checksum_of(target) != checksum:
            raise Conflict(f"{target}: another run wrote this part; end all runs on the store, then run again") from error
    with naming(target):
        _sync_folder(target.parent)
    temporary.unlink(missing_ok=True)


def swap(path: Place, data: bytes, expected: bytes | None) -> None:
    """Replace a file if it still holds what the caller saw; the caller holds the lock of a store on a disk.

    Raises:
        Conflict: it holds something else.
    """
    if isinstance(path, Remote):
        path.swap(data, expected)
        return
    found = path.read_bytes() if path.exists() else None
    if found != expected:
        raise Conflict(f"{path}: another run published first; run again")
    write_whole(path, data)


def checksum_of(path: Place) -> str:
    """SHA-256 of a file, read a window at a time."""
    if isinstance(path, Remote):
        return path.checksum()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Place) -> int:
    """Remove a file or folder, if it is there.

    Returns:
        Bytes freed.
    """
    if isinstance(path, Remote):
        freed = path.stat().st_size if path.is_file() else 0
        path.unlink()
        return freed
    if path.is_dir() and not path.is_symlink():
        freed = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        shutil.rmtree(path)
        return freed
    if path.exists() or path.is_symlink():
        freed = path.lstat().st_size
        path.unlink()
        return freed
    return 0


def withdraw(path: Path) -> None:
    """Remove a file, if it is there, so that it does not come back after a loss of power."""
    if remove(path):
        with naming(path):
            _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
