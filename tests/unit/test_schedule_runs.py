"""The table of scheduled runs: one row an interval, one try at a time, and nothing forgotten by those who are killed."""

import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner

from scenemill.pipelines.commands.schedule import schedule as commands
from scenemill.pipelines.schedule.runs import BACKFILL, DUE, Result, RunTable, ScheduledRun
from scenemill.schemas.errors import ConfigError, WrongVersion
from scenemill.schemas.schedule import Interval

T0: Final = datetime(2026, 1, 1, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)


def at(hours: float) -> datetime:
    return T0 + hours * HOUR


def hour(number: int) -> Interval:
    return Interval(at(number), at(number + 1))


@pytest.fixture
def runs(tmp_path: Path) -> RunTable:
    return RunTable(tmp_path / "schedule.db")


def queue(runs: RunTable, schedule: str, number: int, kind: str = DUE, store: str = "") -> bool:
    return bool(runs.queue(schedule, [(hour(number), store or schedule)], kind, at(number + 1)))


def claim(runs: RunTable, *schedules: str, now: datetime = T0 + 1000 * HOUR) -> ScheduledRun:
    run = runs.claim(schedules, now)
    assert run is not None
    return run


def test_an_interval_has_one_row_whoever_adds_it(runs: RunTable) -> None:
    assert [queue(runs, "a", 0), queue(runs, "a", 0), queue(runs, "a", 0, BACKFILL), queue(runs, "b", 0)] == [
        True,
        False,
        False,
        True,
    ]
    assert [(run.schedule, run.interval, run.kind) for run in runs.history()] == [("a", hour(0), DUE), ("b", hour(0), DUE)]


def test_many_runs_are_added_at_once_and_those_there_are_left_as_they_are(runs: RunTable) -> None:
    queue(runs, "a", 1)
    claim(runs, "a")
    placed = [(hour(number), "s") for number in range(5000)]
    assert [runs.queue("a", placed, BACKFILL, at(9000)) for _ in range(2)] == [4999, 0]
    assert [(run.interval, run.state, run.kind) for run in runs.history()[-2:]] == [
        (hour(1), "running", DUE),
        (hour(0), "queued", BACKFILL),
    ]


def test_a_row_tells_all_of_a_run_from_its_queue_to_its_end(runs: RunTable) -> None:
    queue(runs, "a", 0, store="/stores/a")
    claimed = claim(runs, "a", now=at(2))
    runs.finish(claimed, Result("", 12, 3, "9cd5", 4.5), at(3), alert=True)
    (row,) = runs.history("a")
    assert row == ScheduledRun(
        "a", at(0), at(1), "due", "succeeded", "/stores/a", 1, at(1), at(2), at(3), None, 12, 3, "9cd5", 4.5, "due"
    )
    assert (claimed.state, claimed.started, claimed.attempt) == ("running", at(2), 1)


def test_due_runs_come_before_backfilled_ones_and_old_before_new(runs: RunTable) -> None:
    for number, kind in ((5, DUE), (1, BACKFILL), (4, DUE), (0, BACKFILL)):
        queue(runs, "a", number, kind)
    taken = []
    while run := runs.claim(["a"], at(99)):
        taken.append(run.interval)
        runs.finish(run, Result(), at(99), alert=False)
    assert taken == [hour(4), hour(5), hour(0), hour(1)]


def test_of_a_schedule_and_of_a_store_one_run_is_under_way(runs: RunTable) -> None:
    for schedule, number, store in (("a", 0, "s"), ("a", 1, "other"), ("b", 0, "s"), ("c", 0, "t")):
        queue(runs, schedule, number, store=store)
    first = claim(runs, "a", "b", "c")
    assert claim(runs, "a", "b", "c").schedule == "c"
    assert runs.claim(["a", "b", "c"], at(99)) is None
    runs.finish(first, Result(), at(99), alert=False)
    assert {claim(runs, "a", "b", "c").schedule, first.schedule} == {"a", "b"}


def test_a_run_is_claimed_once_by_however_many(runs: RunTable) -> None:
    names = [f"s{number}" for number in range(40)]
    for name in names:
        queue(runs, name, 0)
    with ThreadPoolExecutor(8) as pool:
        taken = [run for run in pool.map(lambda _: runs.claim(names, at(9)), range(60)) if run]
    assert Counter(run.schedule for run in taken) == dict.fromkeys(names, 1)


def test_a_failed_try_waits_for_its_time_and_counts(runs: RunTable) -> None:
    queue(runs, "a", 0)
    runs.retry(claim(runs, "a"), Result("disk full", seconds=2.0), at(5))
    assert runs.claim(["a"], at(4.9)) is None
    again = claim(runs, "a", now=at(5))
    assert (again.attempt, again.reason, again.interval) == (2, "disk full", hour(0))
    runs.finish(again, Result("disk full"), at(6), alert=False)
    assert [(run.state, run.attempt) for run in runs.history()] == [("failed", 2)]
    assert runs.claim(["a"], at(99)) is None


def test_what_was_under_way_at_a_kill_is_queued_again_and_its_try_not_counted(tmp_path: Path, runs: RunTable) -> None:
    for number in range(3):
        queue(runs, "a", number)
    runs.finish(claim(runs, "a"), Result(), at(4), alert=False)
    claim(runs, "a")
    after = RunTable(tmp_path / "schedule.db")  # as the next scheduler opens it
    assert [after.recover(), after.recover()] == [1, 0]
    assert [(run.state, run.attempt, run.started is None) for run in after.history()] == [
        ("queued", 0, True),
        ("queued", 0, True),
        ("succeeded", 1, False),
    ]


@pytest.mark.parametrize(
    ("started", "ended", "state"),
    [(0.5, None, "skipped"), (0.5, 3.5, "skipped"), (0.5, 2.9, "queued"), (3.5, None, "queued"), (3.0, 3.0, "queued")],
)
def test_what_comes_due_while_a_run_is_under_way_is_skipped_if_so_wished(
    runs: RunTable, started: float, ended: float | None, state: str
) -> None:
    """Whenever it is looked at: what counts is the time at which it came due, here 3."""
    queue(runs, "a", 0)
    under_way = claim(runs, "a", now=at(started) if started >= 1 else at(1))
    if ended is not None:
        runs.finish(under_way, Result(), at(ended), alert=False)
    assert runs.queue_or_skip("a", hour(2), "s", at(50), alert=True)
    assert not runs.queue_or_skip("a", hour(2), "s", at(50), alert=True)
    newest = runs.history("a")[0]
    assert (newest.state, newest.alert) == (state, "due" if state == "skipped" else None)


def test_other_schedules_are_no_reason_to_skip(runs: RunTable) -> None:
    queue(runs, "b", 0)
    claim(runs, "b", now=at(1))
    runs.queue_or_skip("a", hour(2), "s", at(3), alert=False)
    assert runs.history("a")[0].state == "queued"


def test_ended_runs_are_done_again_only_as_asked(runs: RunTable) -> None:
    for number, reason in ((0, "bad"), (1, "")):
        queue(runs, "a", number)
        runs.finish(claim(runs, "a"), Result(reason), at(9), alert=False)
    states = ("failed", "skipped")
    spans = [Interval(at(0.5), at(9)), Interval(at(0), at(0.5)), Interval(at(0), at(2)), Interval(at(0), at(2))]
    assert [runs.queue_again("a", span, at(10), states) for span in spans] == [0, 0, 1, 0]
    assert runs.queue_again("a", hour(1), at(10), ("succeeded",)) == 1
    assert [(run.state, run.attempt, run.reason, run.ended) for run in runs.history()] == [("queued", 0, None, None)] * 2


def test_paused_schedules_rest(runs: RunTable) -> None:
    queue(runs, "a", 0)
    runs.pause("a")
    runs.pause("a")
    assert runs.paused() == {"a"}
    assert runs.claim(["a"], at(9)) is None
    runs.resume("a")
    assert (runs.paused(), claim(runs, "a").schedule) == (frozenset(), "a")


def test_unknown_schedules_are_left_alone(runs: RunTable) -> None:
    queue(runs, "gone", 0)
    assert runs.claim(["a"], at(9)) is None
    assert runs.claim([], at(9)) is None


def test_an_alert_is_told_by_one_and_again_after_a_kill(runs: RunTable) -> None:
    queue(runs, "a", 0)
    runs.finish(claim(runs, "a"), Result("bad"), at(2), alert=True)
    assert runs.claim_alert(["b"]) is None
    assert runs.claim_alert(["a"]) is not None
    assert runs.claim_alert(["a"]) is None  # somebody is at it
    runs.recover()
    told = runs.claim_alert(["a"])
    assert told is not None
    runs.set_alert(told, "sent")
    runs.recover()
    assert (runs.claim_alert(["a"]), runs.history()[0].alert) == (None, "sent")


def test_history_is_newest_first_and_newest_due_knows_no_backfill(runs: RunTable) -> None:
    for number in (2, 0, 1):
        queue(runs, "a", number)
    queue(runs, "a", 7, BACKFILL)
    assert [run.interval for run in runs.history("a", 3)] == [hour(7), hour(2), hour(1)]
    newest = runs.newest_due("a", at(1000))
    assert newest is not None and newest.interval == hour(2)
    assert runs.newest_due("b", at(1000)) is None


def test_a_table_of_a_newer_scenemill_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    RunTable(tmp_path / "a.db")
    with sqlite3.connect(tmp_path / "a.db") as table:
        assert table.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        table.execute("PRAGMA user_version = 9")
    table.close()
    with pytest.raises(WrongVersion, match="table version 9"):
        RunTable(tmp_path / "a.db")


def test_what_a_clock_that_stood_ahead_has_written_down_is_taken_back(runs: RunTable) -> None:
    """The time is 3; runs 0 to 2 are of intervals that are over, 7 and 8 are not."""
    for number in (0, 1, 2, 7, 8, 9):
        queue(runs, "a", number)
    queue(runs, "b", 9)
    done = Result("", 1, 0, "9cd5", 1.0)
    runs.finish(claim(runs, "a", now=at(1)), done, at(2), alert=False)
    runs.finish(claim(runs, "a", now=at(2)), done, at(500), alert=False)
    runs.retry(claim(runs, "a", now=at(3)), Result("no disk"), at(600))
    runs.finish(claim(runs, "a", now=at(500)), done, at(501), alert=True)
    claim(runs, "a", now=at(502))
    assert [runs.correct_times("a", at(3), HOUR) for _ in range(2)] == [1, 0]
    found = [
        (run.interval_start.hour, run.state, run.attempt, run.ready, run.started, run.ended) for run in runs.history("a")[::-1]
    ]
    assert found == [
        (0, "succeeded", 1, at(1), at(1), at(2)),
        (1, "succeeded", 1, at(2), at(2), at(3)),
        (2, "queued", 1, at(4), at(3), None),
        (7, "queued", 0, at(8), None, None),
        (8, "running", 1, at(9), at(3), None),
        (9, "queued", 0, at(10), None, None),
    ]
    assert runs.newest_due("a", at(3)) == runs.history("a")[3] and runs.history("b")[0].ready == at(10)


def test_history_tells_a_run_and_what_it_came_to_in_lines_of_their_own(runs: RunTable, tmp_path: Path) -> None:
    def told(*words: str) -> list[str]:
        return CliRunner().invoke(commands, ["history", *words, "--state", str(tmp_path)]).stdout.splitlines()

    assert told(str(tmp_path)) == [f"0 runs; scenemill schedule run {tmp_path} does what is due"]
    queue(runs, "rooms", 0)
    runs.finish(claim(runs, "rooms", now=at(2)), Result("", 12, 3, "648d8aaa61d3cf77", 35.8), at(3), alert=False)
    queue(runs, "rooms", 1)
    assert told(str(tmp_path), "rooms") == [
        "rooms  2026-01-01 01:00 to 2026-01-01 02:00 UTC  queued",
        "rooms  2026-01-01 00:00 to 2026-01-01 01:00 UTC  succeeded",
        "    12 stored, 3 rejected, version 648d8aaa61d3cf77, 35.8 s",
    ]


def test_history_of_a_folder_that_is_not_there_makes_none(tmp_path: Path) -> None:
    ended = CliRunner().invoke(commands, ["history", str(tmp_path / "away")])
    assert isinstance(ended.exception, ConfigError) and not (tmp_path / "away").exists()
