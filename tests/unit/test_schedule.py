"""The scheduler: what is due is done, once, whatever kills it; time is made up, and so are conversions."""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Queue
from typing import Any, Final, Literal

import pytest
from apscheduler.triggers.interval import IntervalTrigger
from hypothesis import given, settings
from hypothesis import strategies as st

from scenemill.pipelines.schedule import clock as schedule_clock
from scenemill.pipelines.schedule.runs import Result, ScheduledRun
from scenemill.pipelines.schedule.scheduler import Scheduler, locked_state, open_runs, queue_backfill
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError, Conflict
from scenemill.schemas.schedule import AlertsConfig, BackfillConfig, Interval, ScheduleConfig

T0: Final = datetime(2026, 1, 1, tzinfo=UTC)
HOURLY: Final = ScheduleConfig(
    name="hourly",
    source="front3d",
    input="/raw/{start}",
    output="/stores/hourly",
    every="1h",
    start="2026-01-01",
    catch_up="all",
    retries=1,
    retry_delay="10m",
)


class Killed(BaseException):
    """As if the process ended there and then."""


def at(hours: float) -> datetime:
    return T0 + timedelta(hours=hours)


@dataclass
class Plant:
    """A scheduler that can be killed and started again, on a clock of its own."""

    state: Path
    schedules: tuple[ScheduleConfig, ...] = (HOURLY,)
    hours: float = 0.0
    said: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    convert: Callable[[IngestConfig], Result] = lambda _: Result(stored=4, rejected=1, version="9cd5", seconds=1.5)
    scheduler: Scheduler = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.scheduler = Scheduler(self.schedules, self.state, self._convert, lambda: at(self.hours), self.said.append)

    def _convert(self, config: IngestConfig, log: Path, timeout_s: float | None) -> Result:
        result = self.convert(config)
        self.done.append(config.input.name)
        return result

    def rows(self) -> list[tuple[int, str, int]]:
        """(hour of the interval, state, tries), the oldest first."""
        return [(int((run.interval_start - T0) / timedelta(hours=1)), run.state, run.attempt) for run in self.history()[::-1]]

    def history(self) -> list[ScheduledRun]:
        return self.scheduler.runs.history()


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return Plant(tmp_path / "state")


def failing(reason: str = "disk full") -> Callable[[IngestConfig], Result]:
    return lambda _: Result(reason=reason)


def test_nothing_is_done_before_an_interval_is_over(plant: Plant) -> None:
    plant.hours = 0.99
    assert plant.scheduler.run_once() == []
    plant.hours = 1
    assert plant.scheduler.run_once() == ["succeeded"]
    assert plant.scheduler.run_once() == []
    (run,) = plant.history()
    assert (run.interval, run.kind, run.store) == (Interval(at(0), at(1)), "due", "/stores/hourly")
    assert (run.stored, run.rejected, run.version, run.seconds, run.reason) == (4, 1, "9cd5", 1.5, None)
    assert (plant.done, plant.said[-1]) == (
        ["20260101T000000Z"],
        "hourly 20260101T000000Z..20260101T010000Z: succeeded: 4 stored, 1 rejected, version 9cd5, 1.5 s",
    )


def test_all_that_was_missed_is_made_up_for_in_order(plant: Plant) -> None:
    plant.hours = 3.5
    assert plant.scheduler.run_once() == ["succeeded"] * 3
    assert plant.done == ["20260101T000000Z", "20260101T010000Z", "20260101T020000Z"]


def test_the_latest_alone_is_made_up_for_and_those_passed_over_are_told(tmp_path: Path) -> None:
    plant = Plant(tmp_path, (replace(HOURLY, catch_up="latest"),), hours=3.5)
    plant.scheduler.run_once()
    assert (plant.rows(), [line for line in plant.said if "passed" in line]) == ([(2, "succeeded", 1)], [])
    plant.hours = 7.5
    plant.scheduler.run_once()
    plant.scheduler.run_once()
    assert plant.rows() == [(2, "succeeded", 1), (6, "succeeded", 1)]
    told = [line for line in plant.said if "passed" in line]
    assert told == ["hourly: 3 intervals before 20260101T060000Z are passed over (catch_up: latest)"]


def test_a_failed_run_is_tried_again_after_its_delay_and_then_given_up(plant: Plant) -> None:
    plant.hours, plant.convert = 1.0, failing()
    assert plant.scheduler.run_once() == ["queued"]
    plant.hours += 9 / 60
    assert plant.scheduler.run_once() == []
    plant.hours += 1 / 60
    assert plant.scheduler.run_once() == ["failed"]
    plant.hours += 0.5
    assert plant.scheduler.run_once() == []
    assert plant.rows() == [(0, "failed", 2)]
    assert plant.history()[0].reason == "disk full"


def test_what_cannot_even_begin_is_a_failure_of_the_run(plant: Plant) -> None:
    def no_process(_: IngestConfig) -> Result:
        raise BlockingIOError("no more processes")

    plant.hours, plant.convert = 1.0, no_process
    assert plant.scheduler.run_once() == ["queued"]
    assert plant.history()[0].reason == "BlockingIOError: no more processes"


def test_an_interval_that_comes_due_while_another_runs_is_skipped_if_so_wished(tmp_path: Path) -> None:
    plant = Plant(tmp_path, (replace(HOURLY, overlap="skip"),), hours=1.0)

    def slow(_: IngestConfig) -> Result:
        plant.hours += 2.5
        return Result(stored=1, rejected=0, version="a")

    plant.convert = slow
    plant.scheduler.run_once()
    plant.convert = Plant.convert
    plant.hours = 4.0
    plant.scheduler.run_once()
    assert plant.rows() == [(0, "succeeded", 1), (1, "skipped", 0), (2, "skipped", 0), (3, "succeeded", 1)]


def test_the_time_a_scheduler_was_down_is_no_reason_to_skip(tmp_path: Path) -> None:
    plant = Plant(tmp_path, (replace(HOURLY, overlap="skip"),), hours=1.0)

    def killed(_: IngestConfig) -> Result:
        raise Killed

    plant.convert = killed
    with pytest.raises(Killed):
        plant.scheduler.run_once()
    plant.hours, plant.convert = 4.0, Plant.convert
    plant.start()
    plant.scheduler.run_once()
    assert [state for _, state, _ in plant.rows()] == ["succeeded"] * 4


def test_a_paused_schedule_rests_and_then_makes_up_for_it(plant: Plant) -> None:
    plant.scheduler.runs.pause("hourly")
    plant.hours = 2.0
    plant.scheduler.look()
    assert (plant.scheduler.run_once(), plant.rows()) == ([], [])
    plant.scheduler.runs.resume("hourly")
    assert plant.scheduler.run_once() == ["succeeded"] * 2


def test_the_range_of_the_file_is_backfilled_after_what_is_due(tmp_path: Path) -> None:
    wanted = BackfillConfig(start="2026-01-01T02:00", end="2026-01-01T05:30")
    plant = Plant(tmp_path, (replace(HOURLY, catch_up="latest", backfill=wanted),), hours=12)
    plant.scheduler.run_once()
    plant.scheduler.run_once()
    assert [name[9:11] for name in plant.done] == ["11", "02", "03", "04"]
    assert Counter(run.kind for run in plant.history()) == {"due": 1, "backfill": 3}


def test_a_backfill_by_hand_queues_what_is_missing_or_failed_and_never_the_future(plant: Plant) -> None:
    plant.hours, plant.convert = 2.0, failing()
    plant.scheduler.run_once()
    plant.hours = 2.5
    plant.scheduler.run_once()  # both have failed now
    plant.hours, plant.convert = 4.2, Plant.convert
    again = ("failed", "skipped")
    span = at(1), at(90)
    assert queue_backfill(plant.scheduler.runs, HOURLY, *span, at(plant.hours), again) == 3
    assert queue_backfill(plant.scheduler.runs, HOURLY, *span, at(plant.hours), again) == 0
    plant.scheduler.run_once()
    assert plant.rows() == [(0, "failed", 2), (1, "succeeded", 1), (2, "succeeded", 1), (3, "succeeded", 1)]
    assert queue_backfill(plant.scheduler.runs, HOURLY, *span, at(plant.hours)) == 0
    assert queue_backfill(plant.scheduler.runs, HOURLY, *span, at(plant.hours), (*again, "succeeded")) == 3


def test_ends_are_told_to_whom_it_concerns_and_a_failing_alert_changes_nothing(tmp_path: Path) -> None:
    script = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')"
    tell = (sys.executable, "-c", script, str(tmp_path / "told"))
    told = replace(HOURLY, retries=0, alerts=AlertsConfig(command=tell))
    deaf = replace(
        told, name="deaf", output="/stores/deaf", alerts=AlertsConfig(ends=("succeeded",), command=("/no/such/program",))
    )
    plant = Plant(tmp_path / "state", (told, deaf), hours=1)
    plant.convert = lambda config: Result(reason="disk full" if config.output == Path("/stores/hourly") else "")
    assert sorted(plant.scheduler.run_once()) == ["failed", "succeeded"]
    document = json.loads((tmp_path / "told").read_text())
    assert (document["schedule"], document["state"], document["reason"]) == ("hourly", "failed", "disk full")
    assert document["interval_start"] == "2026-01-01T00:00:00+00:00"
    assert document["text"] == "scenemill hourly 20260101T000000Z..20260101T010000Z: failed: disk full"
    assert {run.schedule: (run.state, run.alert) for run in plant.history()} == {
        "hourly": ("failed", "sent"),
        "deaf": ("succeeded", "command: FileNotFoundError"),
    }


def test_an_alert_that_a_kill_prevented_is_sent_by_the_next_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def send(_: AlertsConfig, document: Any) -> str:
        if not sent:
            sent.append(None)
            raise Killed
        sent.append(document["state"])
        return "sent"

    monkeypatch.setattr("scenemill.pipelines.schedule.scheduler.send_alert", send)
    alerting = replace(HOURLY, retries=0, alerts=AlertsConfig(command=("true",)))
    plant = Plant(tmp_path, (alerting,), hours=1, convert=failing())
    with pytest.raises(Killed):
        plant.scheduler.run_once()
    plant.start()
    assert plant.scheduler.run_once() == []
    assert (sent, plant.history()[0].alert) == ([None, "failed"], "sent")


def test_an_alert_without_its_address_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NO_SUCH_HOOK holds no http"):
        Plant(tmp_path, (replace(HOURLY, alerts=AlertsConfig(webhook_env="NO_SUCH_HOOK")),))


def test_a_state_folder_has_one_scheduler_and_is_kept_out_of_git(tmp_path: Path) -> None:
    with locked_state(tmp_path):
        open_runs(tmp_path).pause("a")  # others may read and write the table
        with pytest.raises(Conflict, match="another scheduler is at work"), locked_state(tmp_path, patience_s=0.1):
            pass
    with locked_state(tmp_path, patience_s=0.1):
        assert (tmp_path / ".gitignore").read_text() == "*\n"


def test_a_state_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        open_runs(tmp_path / "file")
    (tmp_path / "folder" / "schedule.db").mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot be used"):
        open_runs(tmp_path / "folder")


def test_by_the_clock_intervals_are_looked_for_when_they_are_due(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks every second, and hours that pass while runs are under way."""

    def hour_long(_: IngestConfig) -> Result:
        if plant.hours == 3:
            raise RuntimeError("the end of the test")
        plant.hours += 1
        return Result(stored=1, rejected=0, version="a")

    monkeypatch.setattr("scenemill.pipelines.schedule.scheduler.make_trigger", lambda _: IntervalTrigger(seconds=1))
    plant.hours, plant.convert = 1, hour_long
    with pytest.raises(RuntimeError, match="the end of the test"):
        plant.scheduler.run()
    assert plant.rows() == [(0, "succeeded", 1), (1, "succeeded", 1), (2, "running", 1)]
    plant.start()
    assert plant.rows()[-1] == (2, "queued", 0)


@pytest.mark.parametrize("catch_up", ["all", "latest"])
def test_a_clock_that_stood_ahead_for_a_while_costs_no_interval(catch_up: Literal["all", "latest"], tmp_path: Path) -> None:
    plant = Plant(tmp_path, (replace(HOURLY, catch_up=catch_up),), hours=1)
    plant.scheduler.run_once()
    plant.hours = 9
    plant.scheduler.run_once()  # a week later, it believes
    ahead = len(plant.done) - 1
    plant.hours = 2
    assert plant.scheduler.run_once() == ["succeeded"] * (catch_up == "latest")  # with "all", it was begun when it was over
    assert [line for line in plant.said if "stood ahead" in line] == [
        f"hourly: {7 if catch_up == 'all' else 1} runs were begun by a clock that stood ahead: they are run again when they are due"
    ]
    for hours in range(3, 11):
        plant.hours = hours
        assert plant.scheduler.run_once() == ["succeeded"]
    assert [(hour, state) for hour, state, _ in plant.rows()] == [(hour, "succeeded") for hour in range(10)]
    assert len(plant.done) == 10 + ahead - (catch_up == "all")


def test_a_clock_that_is_set_is_told_with_how_far(monkeypatch: pytest.MonkeyPatch) -> None:
    told, ahead = Queue[timedelta](), [0.0]
    true_time = time.time
    monkeypatch.setattr(schedule_clock, "LOOK_S", 0.01)
    monkeypatch.setattr(time, "time", lambda: true_time() + ahead[0])
    with schedule_clock.watched_clock(told.put):
        for seconds in (-86400.0, -86397.0, 0.0):  # set back, put right by a little, set forth
            ahead[0] = seconds
            if seconds != -86397.0:
                assert told.get(timeout=60) == timedelta(days=-1 if seconds else 1)
    assert told.empty()


STEPS: Final = ("hour", "work", "fail", "kill before", "kill after", "kill in look")


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from(STEPS), max_size=14))
def test_whatever_kills_it_no_interval_is_lost_and_none_done_again_once_it_is_written_down(steps: list[str]) -> None:
    """Held against sets: after any history, and time enough to end, the rows are the hours that are over, each of them succeeded."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        plant = Plant(Path(folder), (replace(HOURLY, retries=100),))
        recorded: set[str] = set()
        for step in steps:
            take(step, plant, recorded, patch)
        take("hour", plant, recorded, patch)
        plant.start()
        plant.scheduler.run_once()
        expected = int(plant.hours)
        assert [(hour, state) for hour, state, _ in plant.rows()] == [(hour, "succeeded") for hour in range(expected)]


def take(step: str, plant: Plant, recorded: set[str], patch: pytest.MonkeyPatch) -> None:
    """One thing that happens; whatever has been written down as succeeded must never be converted again."""

    def convert(config: IngestConfig) -> Result:
        assert config.input.name not in recorded
        if step == "kill before":
            raise Killed
        return Result(reason="bad") if step == "fail" else Result(stored=1, rejected=0, version="a")

    plant.convert = convert
    if step == "hour":
        plant.hours += 1
        return
    try:
        with patch.context() as broken:
            if step == "kill after":
                broken.setattr(plant.scheduler.runs, "finish", kill)
            if step == "kill in look":
                broken.setattr(plant.scheduler.runs, "newest_due", kill)
            plant.scheduler.look()
            if plant.scheduler.work() == "succeeded":
                recorded.add(plant.done[-1])
    except Killed:
        plant.start()


def kill(*_: Any, **__: Any) -> None:
    raise Killed
