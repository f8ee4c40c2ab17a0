"""The table of jobs, in SQLite: what survives a restart of the service. Secrets are never in it."""

import json
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from scenemill.schemas.errors import ConfigError, Conflict, WrongVersion
from scenemill.schemas.jobs import (
    CANCELLED,
    QUEUED,
    RESUMABLE,
    RUNNING,
    SUCCEEDED,
    Job,
    JobDetail,
    JobRequest,
)

VERSION: Final = 1
_PATIENCE_S: Final = 30.0
_CREATE: Final = """
CREATE TABLE job (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    parent TEXT,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    exit_code INTEGER,
    attempt INTEGER NOT NULL DEFAULT 0,
    created TEXT NOT NULL,
    started TEXT,
    ended TEXT,
    results TEXT NOT NULL DEFAULT '{}',
    spec TEXT NOT NULL,
    cancelling INTEGER NOT NULL DEFAULT 0
)
"""
_COLUMNS: Final = ", ".join(one.name for one in fields(Job))


class JobStore:
    """The jobs of one service. Every change is one statement, so that a state is changed by one alone; threads may share a store.

    Args:
        path: of the database; made if it is not there.

    Raises:
        WrongVersion: written by another version.
        ConfigError: the file is no database, or cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        with ExitStack() as held:
            try:
                self._database = sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False)
                held.callback(self._database.close)
                found = self._prepare()
            except sqlite3.Error as error:
                raise ConfigError(f"{path}: cannot be used as the table of jobs ({error}); give another --home") from error
            if found != VERSION:
                raise WrongVersion(f"{path}: version {found}; this scenemill reads version {VERSION}: give another --home")
            held.pop_all()

    def _prepare(self) -> int:
        """Make the table where there is none; the version of the one there is."""
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        if self._version() == 0:
            self._database.executescript(f"BEGIN; {_CREATE}; PRAGMA user_version = {VERSION}; COMMIT")
        return self._version()

    def _version(self) -> int:
        (found,) = self._database.execute("PRAGMA user_version").fetchone()
        return int(found)

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def add(self, name: str, request: JobRequest, spec: dict[str, Any]) -> JobDetail:
        """Queue a job.

        Args:
            name: its id, as ``new_id`` makes them.
            request: what is asked for.
            spec: its spec without secrets.
        """
        row = (name, request.name or request.kind, request.kind, request.parent, QUEUED, now(), json.dumps(spec))
        self._change("INSERT INTO job (id, name, kind, parent, state, created, spec) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return self.get(name)

    def get(self, name: str) -> JobDetail:
        """A job by its id.

        Raises:
            ConfigError: no such job.
        """
        rows = self._read(f"SELECT {_COLUMNS}, spec FROM job WHERE id = ?", (name,))
        if not rows:
            raise ConfigError(f"job {name[:40]!r} is not known; scenemill jobs list shows those that are")
        return JobDetail(**_job(rows[0]), spec=json.loads(rows[0]["spec"]))

    def find(self, states: Sequence[str] = (), kind: str = "", limit: int = 1000, *, newest: bool = True) -> list[Job]:
        """Jobs, the newest or the oldest first.

        Args:
            states: only those in one of these; empty for all.
            kind: only those; "" for all.
            limit: at most this many.
            newest: whether the newest comes first.
        """
        wanted, values = ["1"], [*states]
        if states:
            wanted.append(f"state IN ({_marks(states)})")
        if kind:
            wanted.append("kind = ?")
            values.append(kind)
        order = "DESC" if newest else "ASC"
        rows = self._read(
            f"SELECT {_COLUMNS} FROM job WHERE {' AND '.join(wanted)} ORDER BY place {order} LIMIT ?", (*values, limit)
        )
        return [Job(**_job(row)) for row in rows]

    def count(self) -> dict[tuple[str, str], int]:
        """How many jobs there are, by kind and state."""
        rows = self._read("SELECT kind, state, count(*) FROM job GROUP BY kind, state", ())
        return {(kind, state): number for kind, state, number in rows}

    def begin(self, name: str) -> bool:
        """From queued to running; False where it is queued no more."""
        return self._move(name, (QUEUED,), "state = ?, attempt = attempt + 1, started = ?", (RUNNING, now()))

    def end(self, name: str, state: str, reason: str, exit_code: int | None = None, results: dict[str, str] | None = None) -> None:
        """From queued or running to an end."""
        values = (state, reason, exit_code, json.dumps(results or {}), now())
        self._move(name, (QUEUED, RUNNING), "state = ?, reason = ?, exit_code = ?, results = ?, ended = ?, cancelling = 0", values)

    def cancel(self, name: str) -> JobDetail:
        """Cancel a job: at once where it is queued; one that runs is marked, for whoever runs it.

        Raises:
            ConfigError: no such job.
            Conflict: it has ended.
        """
        at_once = self._move(name, (QUEUED,), "state = ?, reason = ?, ended = ?", (CANCELLED, "cancelled before it began", now()))
        if not at_once and not self._move(name, (RUNNING,), "cancelling = ?", (1,)):
            raise Conflict(f"job {name}: {self.get(name).state} already; there is nothing to cancel")
        return self.get(name)

    def cancelling(self, name: str) -> bool:
        """Whether a job that runs is to be cancelled."""
        return bool(self._read("SELECT 1 FROM job WHERE id = ? AND cancelling = 1", (name,)))

    def resume(self, name: str) -> JobDetail:
        """Queue a job again that has not succeeded.

        Raises:
            ConfigError: no such job.
            Conflict: it succeeded, or has not ended.
        """
        if not self._move(name, RESUMABLE, "state = ?, reason = '', exit_code = NULL, ended = NULL", (QUEUED,)):
            state = self.get(name).state
            told = "there is nothing left to do" if state == SUCCEEDED else "cancel it first"
            raise Conflict(f"job {name}: {state}; {told}")
        return self.get(name)

    def _move(self, name: str, states: Iterable[str], settings: str, values: tuple[Any, ...]) -> bool:
        """Change a job that is in one of some states; False where it is in none of them."""
        held = tuple(states)
        return self._change(f"UPDATE job SET {settings} WHERE id = ? AND state IN ({_marks(held)})", (*values, name, *held)) == 1

    def _change(self, statement: str, values: tuple[Any, ...]) -> int:
        with self._lock:
            return self._database.execute(statement, values).rowcount

    def _read(self, statement: str, values: tuple[Any, ...]) -> list[sqlite3.Row]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()


def new_id() -> str:
    """An id that no job has."""
    return uuid4().hex[:16]


def now() -> str:
    """The time, UTC, ISO 8601 to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _marks(values: Iterable[object]) -> str:
    return ", ".join("?" for _ in values)


def _job(row: sqlite3.Row) -> dict[str, Any]:
    return {one.name: row[one.name] for one in fields(Job)} | {"results": json.loads(row["results"])}
