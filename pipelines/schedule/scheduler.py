"""The scheduler of one machine: what is due is written down, done in a process of its own, and its outcome written down.

It may be killed at any moment. Its lock is the operating system's, and goes with it and with the conversions it has started; the next
scheduler then queues the runs again that were under way. Stores are safe to write again: a conversion goes on where it was stopped.

<state>/schedule.db       the runs; see ``runs.py``
<state>/lock              held by the scheduler and its conversions
<state>/logs/NAME/START   what the tries of a run printed
"""

import fcntl
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scenemill.pipelines.schedule.alerts import check_address, has_address, send_alert
from scenemill.pipelines.schedule.clock import utc_now, watched_clock
from scenemill.pipelines.schedule.process import convert_apart
from scenemill.pipelines.schedule.runs import BACKFILL, DUE, Result, RunTable, ScheduledRun
from scenemill.pipelines.schedule.times import intervals, latest_interval, make_trigger
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError, Conflict
from scenemill.schemas.schedule import Interval, ScheduleConfig, parse_duration, stamp
from scenemill.schemas.steps import reached
from scenemill.transforms.objects import place_of

if TYPE_CHECKING:
    from apscheduler.events import JobExecutionEvent
    from apscheduler.schedulers.base import BaseScheduler

Convert = Callable[[IngestConfig, Path, float | None], Result]
OnEvent = Callable[[str], None]
_LOCK: Final = "lock"
_PATIENCE_S: Final = 10.0  # for conversions of a killed scheduler, which notice at once


def open_runs(state: Path) -> RunTable:
    """The table of runs of a state folder, which is made if it is not there and kept out of git.

    Raises:
        ConfigError: it cannot be made or written.
    """
    try:
        state.mkdir(parents=True, exist_ok=True)
        (state / ".gitignore").write_text("*\n")
        return RunTable(state / "schedule.db")
    except (OSError, sqlite3.OperationalError) as error:
        raise ConfigError(f"state {state}: cannot be used ({error}); give a folder that can be written") from error


@contextmanager
def locked_state(state: Path, patience_s: float = _PATIENCE_S) -> Iterator[int]:
    """Hold a state folder as its only scheduler.

    Yields:
        The descriptor of the lock, for the processes that shall hold it as well.

    Raises:
        Conflict: another scheduler holds it.
    """
    open_runs(state)
    with (state / _LOCK).open("a") as lock:
        until = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise Conflict(f"{state}: another scheduler is at work there; leave it to that one, or end it first") from error
                time.sleep(0.05)
        yield lock.fileno()


class Scheduler:
    """Schedules at work on a table of runs. Only one may be, see ``locked_state``; it takes up what the last one left.

    Args:
        schedules: what to convert, and when.
        state: folder of the table and of logs.
        convert: does one try; whatever befalls it is in its result.
        now: the time, aware of its timezone.
        on_event: told a line whenever a run begins, ends, or is passed over.

    Raises:
        ConfigError: a cron line that no time fits, or an alert without address.
    """

    def __init__(
        self,
        schedules: Sequence[ScheduleConfig],
        state: Path,
        convert: Convert = convert_apart,
        now: Callable[[], datetime] = utc_now,
        on_event: OnEvent = print,
    ) -> None:
        self.runs = open_runs(state)
        self._schedules = {schedule.name: schedule for schedule in schedules}
        self._state, self._convert, self._now, self._on_event = state, convert, now, on_event
        for schedule in schedules:
            check_address(schedule.alerts)
            make_trigger(schedule)
        if again := self.runs.recover():
            on_event(f"under way when the last scheduler ended, now run again: {again}")

    def look(self) -> None:
        """Write down what is due, and what the files want backfilled; tell the ends of runs that were not told yet."""
        for name, schedule in self._schedules.items():
            self.look_at(schedule)
            if schedule.backfill.start and name not in self.runs.paused():
                span = schedule.time(schedule.backfill.start), schedule.time(schedule.backfill.end)
                queue_backfill(self.runs, schedule, *span, self._now())
        self._tell()

    def look_at(self, schedule: ScheduleConfig) -> None:
        """Write down what is due of one schedule."""
        if schedule.name in self.runs.paused():
            return
        now = self._now()
        if early := self.runs.correct_times(schedule.name, now, parse_duration(schedule.retry_delay)):
            self._on_event(
                f"{schedule.name}: {early} runs were begun by a clock that stood ahead: they are run again when they are due"
            )
        newest = self.runs.newest_due(schedule.name, now)
        since = schedule.begins if newest is None else newest.interval_end
        due = self._due(schedule, since, now)
        if self._queue(schedule, due, now) and newest is not None and schedule.catch_up == "latest":
            self._say_passed(schedule, since, due[0].start)
        reached("run queued")
        self._tell()

    def _due(self, schedule: ScheduleConfig, since: datetime, now: datetime) -> list[Interval]:
        """The intervals that are over, of those that begin at ``since`` or later: all, or the latest."""
        if schedule.catch_up == "all":
            return list(intervals(schedule, since, now))
        latest = latest_interval(schedule, now)
        return [latest] if latest is not None and latest.start >= since else []

    def _queue(self, schedule: ScheduleConfig, due: Sequence[Interval], now: datetime) -> int:
        placed = _placed(schedule, due)
        if schedule.overlap == "wait":
            return self.runs.queue(schedule.name, placed, DUE, now)
        told = _is_told(schedule, "skipped")
        return sum(self.runs.queue_or_skip(schedule.name, interval, store, now, alert=told) for interval, store in placed)

    def _say_passed(self, schedule: ScheduleConfig, since: datetime, until: datetime) -> None:
        if passed := sum(1 for _ in intervals(schedule, since, until)):
            self._on_event(f"{schedule.name}: {passed} intervals before {stamp(until)} are passed over (catch_up: latest)")

    def work(self) -> str | None:
        """Do one try of the next run that is ready.

        Returns:
            What became of it: "succeeded", "failed", or "queued" for another try; None where nothing is ready.
        """
        run = self.runs.claim(list(self._schedules), self._now())
        if run is None:
            return None
        schedule = self._schedules[run.schedule]
        reached("run begun")
        self._on_event(f"{_title(run)}: try {run.attempt}")
        result = self._try(schedule, run)
        reached("conversion ended")
        if result.reason and run.attempt <= schedule.retries:
            ready = self._now() + parse_duration(schedule.retry_delay)
            self.runs.retry(run, result, ready)
            self._on_event(f"{_title(run)}: failed, next try at {stamp(ready)}: {result.reason}")
            return "queued"
        state = "failed" if result.reason else "succeeded"
        self.runs.finish(run, result, self._now(), alert=_is_told(schedule, state))
        reached("outcome recorded")
        self._on_event(f"{_title(run)}: {state}: {result.reason or _figures(result)}")
        self._tell()
        return state

    def _try(self, schedule: ScheduleConfig, run: ScheduledRun) -> Result:
        log = self._state / "logs" / run.schedule / f"{stamp(run.interval_start)}.log"
        timeout_s = parse_duration(schedule.timeout).total_seconds() if schedule.timeout else None
        try:
            return self._convert(schedule.ingest_config(run.interval, place_of), log, timeout_s)
        except (ConfigError, OSError) as error:  # such as no process to be had: the next try may get one
            return Result(reason=f"{type(error).__name__}: {error}")

    def _tell(self) -> None:
        while run := self.runs.claim_alert(list(self._schedules)):
            reached("alert begun")
            outcome = send_alert(self._schedules[run.schedule].alerts, document(run))
            reached("alert sent")
            self.runs.set_alert(run, outcome)
            reached("alert recorded")
            self._on_event(f"{_title(run)}: alert {outcome}")

    def run_once(self) -> list[str]:
        """Do what is due, and what is ready of earlier runs; what became of each try, in order."""
        self.look()
        return list(iter(self.work, None))

    def run(self, at_once: int = 1) -> None:
        """Do what is due whenever it is due, until the process ends.

        Args:
            at_once: conversions at a time, each of another schedule and another store.
        """
        from apscheduler.events import EVENT_JOB_ERROR
        from apscheduler.executors.pool import ThreadPoolExecutor
        from apscheduler.schedulers.blocking import BlockingScheduler

        clock = BlockingScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(at_once + len(self._schedules))},
            job_defaults={"coalesce": True, "misfire_grace_time": None, "max_instances": 1},
        )
        logging.getLogger("apscheduler").setLevel(logging.ERROR)  # it warns every second of a worker that is at work
        failed: list[BaseException] = []

        def stop(event: "JobExecutionEvent") -> None:
            failed.append(event.exception)
            clock.shutdown(wait=False)

        clock.add_listener(stop, EVENT_JOB_ERROR)
        self.look()
        for schedule in self._schedules.values():
            clock.add_job(self.look_at, make_trigger(schedule), [schedule], id=f"look at {schedule.name}")
        for number in range(at_once):
            clock.add_job(self.work, "interval", seconds=1, id=f"work {number}", next_run_time=utc_now())
        with watched_clock(lambda moved: self._clock_moved(clock, moved)):
            clock.start()
        raise failed[0]

    def _clock_moved(self, clock: "BaseScheduler", moved: timedelta) -> None:
        """Do at once what waits for times by the clock as it was: after a clock was set back, they would be long in coming."""
        self._on_event(f"the clock has moved by {moved}: every schedule is looked at again")
        for job in clock.get_jobs():
            job.modify(next_run_time=utc_now())


def queue_backfill(
    runs: RunTable, schedule: ScheduleConfig, since: datetime, until: datetime, now: datetime, again: Sequence[str] = ()
) -> int:
    """Write down the runs of past intervals.

    Args:
        runs: the table.
        schedule: whose.
        since, until: the first interval begins at ``since`` or later, the last is over at ``until``.
        now: the time; later intervals are left to come by themselves.
        again: states of ended runs that are done again.

    Returns:
        How many.
    """
    until = min(until, now)
    placed = _placed(schedule, list(intervals(schedule, since, until)))
    again_count = runs.queue_again(schedule.name, Interval(since, until), now, again)
    return again_count + runs.queue(schedule.name, placed, BACKFILL, now)


def document(run: ScheduledRun) -> dict[str, Any]:
    """What is told of a run, as JSON takes it; ``text`` says it in words, as chat services want it."""
    told = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in vars(run).items()}
    told = {name: value for name, value in told.items() if name not in ("ready", "alert")}
    return {**told, "text": f"scenemill {_title(run)}: {run.state}: {came_to(run)}".removesuffix(": ")}


def came_to(run: ScheduledRun) -> str:
    """What the last try of a run came to, in words; "" before the first."""
    return "" if run.seconds is None else run.reason or _figures(run)


def _placed(schedule: ScheduleConfig, due: Sequence[Interval]) -> list[tuple[Interval, str]]:
    """Intervals, each with its store, always spelled alike."""
    return [(interval, str(place_of(schedule.placed("output", interval)))) for interval in due]


def _is_told(schedule: ScheduleConfig, state: str) -> bool:
    return state in schedule.alerts.ends and has_address(schedule.alerts)


def _title(run: ScheduledRun) -> str:
    return f"{run.schedule} {stamp(run.interval_start)}..{stamp(run.interval_end)}"


def _figures(result: Result | ScheduledRun) -> str:
    return f"{result.stored} stored, {result.rejected} rejected, version {result.version}, {result.seconds:.1f} s"


def convert_under(lock: int) -> Convert:
    """Conversions in processes that hold a lock as long as they live."""
    return partial(convert_apart, lock=lock)
