"""Metric tables and losses of power: Delta's writer flushes nothing, so a commit may come back by name and hold nothing.

While a run is added, a mark in the folder says that commits may not be safe yet. Each commit is flushed when it is done, and the mark goes
when all are. Where a mark is found, the last one to add a run was killed, or lost its power: the newest commit of a table is then taken
back if its files did not reach the disk. The run was not finished, and adding it again completes it. Without a mark nothing is ever
taken back: then a file that is short is damage, and is told.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote
from uuid import uuid4

from scenemill.transforms.publish import make_folder, naming, withdraw, write_whole

_MARK: Final = ".unflushed-"
_LOG: Final = "_delta_log"


@contextmanager
def settled(folder: Path, names: tuple[str, ...]) -> Iterator[None]:
    """Add a run to the tables of a folder: before, what a loss of power left is put right; after, the mark goes.

    Args:
        folder: of the tables; made where it is missing.
        names: of the tables.
    """
    make_folder(folder)
    if before := marks(folder):
        for name in names:
            _take_back(folder / name)
            flush_commits(folder / name, -1)
    mark = folder / f"{_MARK}{uuid4().hex}"
    write_whole(mark, b"commits may not be safe yet\n")
    yield
    for path in (*before, mark):
        path.unlink(missing_ok=True)  # others who add runs remove them as well


def marks(folder: Path) -> list[Path]:
    """The marks of those who are adding a run, or were when they were ended."""
    return sorted(folder.glob(f"{_MARK}*"))


def flush_commits(table: Path, since: int) -> None:
    """Flush the commits of a table after one, with the files that they add, and all their names.

    Args:
        table: its folder.
        since: number of the last commit that is safe; -1 for none.
    """
    entries = [path for path in _entries(table) if int(path.stem) > since]
    if not entries:
        return
    log = table / _LOG
    added = [table / path for entry in entries for path, _ in _added(entry)]
    kept = [*log.glob("*.checkpoint.parquet"), *log.glob("_last_checkpoint")]
    for path in (*added, *kept, *entries, log, table, table.parent):
        _flush(path)


def _take_back(table: Path) -> None:
    """Remove the newest commit of a table if it, or a file that it adds, is not all there."""
    entries = _entries(table)
    if not entries or _is_whole(table, entries[-1]):
        return
    withdraw(entries[-1])


def _entries(table: Path) -> list[Path]:
    return sorted(path for path in (table / _LOG).glob("*.json") if path.stem.isdigit())


def _is_whole(table: Path, entry: Path) -> bool:
    try:
        added = _added(entry)
    except (ValueError, LookupError, TypeError):
        return False
    files = [(table / path, size_byte) for path, size_byte in added]
    return entry.stat().st_size > 0 and all(_holds(path, size_byte) for path, size_byte in files)


def _holds(path: Path, size_byte: int) -> bool:
    """Whether a Parquet file has its length, and its last bytes are what they must be."""
    if not path.is_file() or path.stat().st_size != size_byte:
        return False
    data = path.read_bytes()
    return data[:4] == data[-4:] == b"PAR1"


def _added(entry: Path) -> list[tuple[str, int]]:
    """Path below the table and length of each file that a commit adds."""
    actions: list[dict[str, Any]] = [json.loads(line) for line in entry.read_bytes().splitlines()]
    return [(unquote(action["add"]["path"]), int(action["add"]["size"])) for action in actions if "add" in action]


def _flush(path: Path) -> None:
    with naming(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
