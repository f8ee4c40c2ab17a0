"""Folders that are written whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scenemill.schemas.errors import ConfigError, Conflict


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, that gets its name when all went well. What a killed run left is removed by the next of the same name.

    Args:
        path: what it is called in the end: a new or empty folder.

    Yields:
        ``.NAME.unfinished`` beside it.

    Raises:
        ConfigError: something is there already.
        Conflict: another process is writing it.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and is not an empty folder. Name a new folder, or remove this one first.")
    path = path.absolute()
    work = path.with_name(f".{path.name}.unfinished")
    work.mkdir(parents=True, exist_ok=True)
    handle = os.open(work, os.O_RDONLY)
    try:
        _hold(handle, work)
        for left in work.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        try:
            yield work
        except BaseException:
            shutil.rmtree(work)
            raise
        _flush(work)
        if path.is_dir():
            path.rmdir()
        work.rename(path)
    finally:
        os.close(handle)


def _hold(handle: int, work: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Conflict(f"{work}: another process is writing to it; wait for it to end, or name another folder") from error


def _flush(folder: Path) -> None:
    """Have the disk hold the files before the folder's name says that they are all there."""
    for path in folder.rglob("*"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
