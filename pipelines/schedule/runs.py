"""The table of scheduled runs: a row for every interval of every schedule, in SQLite, and what came of it.

A row is written when its interval is due, changed when a try begins and ends, and never made twice: schedule and interval are its key.
Whoever is killed between two steps leaves a row in the state before, from which the next scheduler goes on.

    queued -> running -> succeeded | failed          failed tries are queued again until their retries are spent
    skipped                                          due while a run of the schedule was under way, with overlap=skip
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from scenemill.schemas.errors import WrongVersion
from scenemill.schemas.schedule import Interval

DUE, BACKFILL = "due", "backfill"
_VERSION: Final = 1
_PATIENCE_S: Final = 30.0
_TABLES: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS run (
    schedule TEXT NOT NULL,
    interval_start TEXT NOT NULL,
    interval_end TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('{DUE}', '{BACKFILL}')),
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'skipped')),
    store TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    ready TEXT NOT NULL,
    started TEXT,
    ended TEXT,
    reason TEXT,
    stored INTEGER,
    rejected INTEGER,
    version TEXT,
    seconds REAL,
    alert TEXT,
    PRIMARY KEY (schedule, interval_start)
) STRICT;
CREATE TABLE IF NOT EXISTS paused (schedule TEXT PRIMARY KEY) STRICT;
PRAGMA user_version = {_VERSION};
COMMIT;
"""


@dataclass(frozen=True)
class Result:
    """What a try came to.

    Attributes:
        reason: why it failed; "" where it succeeded.
        stored, rejected: samples; None where it did not get to count them.
        version: of the store that readers see; None where nothing was published.
        seconds: that it took.
    """

    reason: str = ""
    stored: int | None = None
    rejected: int | None = None
    version: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class ScheduledRun:
    """A row of the table. Times are in UTC.

    Attributes:
        schedule: its name.
        interval_start, interval_end: what it converts; it is due at the end.
        kind: "due" or "backfill".
        state: "queued", "running", "succeeded", "failed" or "skipped".
        store: its folder or URI.
        attempt: number of the try under way or last ended, from 1; 0 before the first.
        ready: when the next try may begin.
        started, ended: the first try's start, the last one's end.
        reason, stored, rejected, version, seconds: of the last try; see ``Result``.
        alert: None where none is due; "due", "sending", "sent", or why it could not be sent.
    """

    schedule: str
    interval_start: datetime
    interval_end: datetime
    kind: str
    state: str
    store: str
    attempt: int
    ready: datetime
    started: datetime | None
    ended: datetime | None
    reason: str | None
    stored: int | None
    rejected: int | None
    version: str | None
    seconds: float | None
    alert: str | None

    @property
    def interval(self) -> Interval:
        """What it converts."""
        return Interval(self.interval_start, self.interval_end)


class RunTable:
    """The table in one file. Any number of threads and processes may use it at once; each change is one transaction.

    Raises:
        WrongVersion: made by a newer scenemill.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as table:
            (version,) = table.execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                raise WrongVersion(f"{path}: made by a newer scenemill (table version {version}, known is {_VERSION}); update it")
            table.execute("PRAGMA journal_mode = WAL")
            if version < _VERSION:
                table.executescript(_TABLES)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=_PATIENCE_S, isolation_level=None)
        try:
            connection.row_factory = sqlite3.Row
            yield connection
        finally:
            connection.close()

    def queue(self, schedule: str, placed: Sequence[tuple[Interval, str]], kind: str, now: datetime) -> int:
        """Add runs, all or none of them; how many there are more now, for an interval that has one is left as it is.

        Args:
            schedule: whose.
            placed: intervals, each with its store.
            kind: "due" or "backfill".
            now: the time.
        """
        with self._open() as table:
            table.execute("BEGIN IMMEDIATE")
            for interval, store in placed:
                _add(table, schedule, interval, kind, "queued", store, now)
            table.execute("COMMIT")
            return table.total_changes

    def queue_or_skip(self, schedule: str, interval: Interval, store: str, now: datetime, *, alert: bool) -> int:
        """Add the run of a due interval, as skipped if another of the schedule was under way when it came due; 0 or 1 as in ``queue``.

        Args:
            schedule, interval, store, now: of the run.
            alert: whether a skipped run is told.
        """
        under_way = "SELECT 1 FROM run WHERE schedule = ? AND started <= ? AND (ended IS NULL OR ended > ?)"
        due = _text(interval.end)
        with self._open() as table:
            skip = table.execute(under_way, (schedule, due, due)).fetchone() is not None
            _add(table, schedule, interval, DUE, "skipped" if skip else "queued", store, now, alert=skip and alert)
            return table.total_changes

    def queue_again(self, schedule: str, span: Interval, now: datetime, states: Sequence[str]) -> int:
        """Queue the runs of intervals within a span that have ended in one of ``states``, with all their retries; how many."""
        with self._open() as table:
            return table.execute(
                "UPDATE run SET state = 'queued', attempt = 0, ready = ?, started = NULL, ended = NULL, reason = NULL "
                f"WHERE schedule = ? AND interval_start >= ? AND interval_end <= ? AND state IN ({', '.join('?' * len(states))})",
                (_text(now), schedule, _text(span.start), _text(span.end), *states),
            ).rowcount

    def correct_times(self, schedule: str, now: datetime, longest_wait: timedelta) -> int:
        """Mend what was written down while the clock stood ahead: times that are yet to come.

        A run of an interval that is not over is queued for its end, whatever became of it; one that is under way is left to end first.
        No other waits longer than a retry does, and none has begun or ended in time to come.

        Args:
            schedule: whose.
            now: the time.
            longest_wait: of a queued run, before its next try.

        Returns:
            How many intervals are not over and are queued anew.
        """
        time, latest = _text(now), _text(now + longest_wait)
        with self._open() as table:
            table.execute("BEGIN IMMEDIATE")
            early = table.execute(
                "UPDATE run SET state = 'queued', attempt = 0, ready = interval_end, started = NULL, ended = NULL, reason = NULL "
                "WHERE schedule = ? AND interval_end > ? AND state <> 'running' AND (state <> 'queued' OR ready <> interval_end)",
                (schedule, time),
            ).rowcount
            table.execute(
                "UPDATE run SET ready = ? WHERE schedule = ? AND interval_end <= ? AND state = 'queued' AND ready > ?",
                (latest, schedule, time, latest),
            )
            for column in ("started", "ended"):
                table.execute(f"UPDATE run SET {column} = ? WHERE schedule = ? AND {column} > ?", (time, schedule, time))
            table.execute("COMMIT")
        return early

    def recover(self) -> int:
        """Take back what a killed scheduler had under way, tries and alerts; how many tries, which do not count as such."""
        with self._open() as table:
            table.execute("UPDATE run SET alert = 'due' WHERE alert = 'sending'")
            return table.execute(
                "UPDATE run SET state = 'queued', attempt = attempt - 1, started = NULL WHERE state = 'running'"
            ).rowcount

    def claim(self, schedules: Sequence[str], now: datetime) -> ScheduledRun | None:
        """Begin a try of the next run that is ready, due ones first and the oldest of them; None where there is none.

        Of a schedule, and of a store, one run is under way at a time. Paused schedules rest.
        """
        with self._open() as table:
            found = table.execute(
                f"""UPDATE run SET state = 'running', attempt = attempt + 1, started = coalesce(started, ?)
                WHERE (schedule, interval_start) = (
                    SELECT schedule, interval_start FROM run AS next
                    WHERE state = 'queued' AND ready <= ?
                    AND schedule IN ({", ".join("?" * len(schedules))}) AND schedule NOT IN (SELECT schedule FROM paused)
                    AND NOT EXISTS (
                        SELECT 1 FROM run AS other
                        WHERE other.state = 'running' AND (other.schedule = next.schedule OR other.store = next.store)
                    )
                    ORDER BY kind = '{BACKFILL}', interval_end, schedule LIMIT 1
                ) RETURNING *""",
                (_text(now), _text(now), *schedules),
            ).fetchall()
        return _run(found[0]) if found else None

    def retry(self, run: ScheduledRun, result: Result, ready: datetime) -> None:
        """Queue a run again whose try failed."""
        self._end(run, result, state="queued", ready=_text(ready), ended=None, alert=None)

    def finish(self, run: ScheduledRun, result: Result, now: datetime, *, alert: bool) -> None:
        """Say that a run has ended, and whether somebody is to be told."""
        state = "failed" if result.reason else "succeeded"
        self._end(run, result, state=state, ready=_text(run.ready), ended=_text(now), alert="due" if alert else None)

    def _end(self, run: ScheduledRun, result: Result, **columns: str | None) -> None:
        values = {**columns, **asdict(result), "reason": result.reason or None}
        with self._open() as table:
            table.execute(
                f"UPDATE run SET {', '.join(f'{name} = ?' for name in values)} WHERE schedule = ? AND interval_start = ?",
                (*values.values(), run.schedule, _text(run.interval_start)),
            )

    def claim_alert(self, schedules: Sequence[str]) -> ScheduledRun | None:
        """Begin to tell the end of a run, the oldest first; None where nothing is to be told."""
        with self._open() as table:
            found = table.execute(
                f"""UPDATE run SET alert = 'sending' WHERE (schedule, interval_start) = (
                    SELECT schedule, interval_start FROM run
                    WHERE alert = 'due' AND schedule IN ({", ".join("?" * len(schedules))})
                    ORDER BY interval_end, schedule LIMIT 1
                ) RETURNING *""",
                tuple(schedules),
            ).fetchall()
        return _run(found[0]) if found else None

    def set_alert(self, run: ScheduledRun, outcome: str) -> None:
        """Record what became of an alert."""
        with self._open() as table:
            key = (run.schedule, _text(run.interval_start))
            table.execute("UPDATE run SET alert = ? WHERE schedule = ? AND interval_start = ?", (outcome, *key))

    def history(self, schedule: str | None = None, limit: int = -1) -> list[ScheduledRun]:
        """Runs of one schedule or of all, the newest interval first."""
        wanted = "WHERE ? IN (schedule, '') ORDER BY interval_end DESC, schedule LIMIT ?"
        return self._select(wanted, schedule or "", limit)

    def newest_due(self, schedule: str, now: datetime) -> ScheduledRun | None:
        """The newest run of a schedule that came by itself, of an interval that is over."""
        wanted = "WHERE schedule = ? AND kind = ? AND interval_end <= ? ORDER BY interval_start DESC LIMIT 1"
        found = self._select(wanted, schedule, DUE, _text(now))
        return found[0] if found else None

    def _select(self, wanted: str, *values: Any) -> list[ScheduledRun]:
        with self._open() as table:
            return [_run(row) for row in table.execute(f"SELECT * FROM run {wanted}", values)]

    def pause(self, schedule: str) -> None:
        """Let a schedule rest: nothing of it becomes due or begins."""
        with self._open() as table:
            table.execute("INSERT OR IGNORE INTO paused VALUES (?)", (schedule,))

    def resume(self, schedule: str) -> None:
        """Let a paused schedule go on."""
        with self._open() as table:
            table.execute("DELETE FROM paused WHERE schedule = ?", (schedule,))

    def paused(self) -> frozenset[str]:
        """Names of the schedules that rest."""
        with self._open() as table:
            return frozenset(row["schedule"] for row in table.execute("SELECT schedule FROM paused"))


def _add(
    table: sqlite3.Connection,
    schedule: str,
    interval: Interval,
    kind: str,
    state: str,
    store: str,
    now: datetime,
    *,
    alert: bool = False,
) -> None:
    row = {
        "schedule": schedule,
        "interval_start": _text(interval.start),
        "interval_end": _text(interval.end),
        "kind": kind,
        "state": state,
        "store": store,
        "ready": _text(now),
        "alert": "due" if alert else None,
    }
    table.execute(
        f"INSERT OR IGNORE INTO run ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",
        tuple(row.values()),
    )


def _text(time: datetime) -> str:
    """In UTC and always of one length, so that texts compare as times do."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


_TIMES: Final = ("interval_start", "interval_end", "ready", "started", "ended")


def _run(row: sqlite3.Row) -> ScheduledRun:
    values = dict(row)
    times = {name: datetime.fromisoformat(values[name]) if values[name] else None for name in _TIMES}
    return ScheduledRun(**{**values, **times})
