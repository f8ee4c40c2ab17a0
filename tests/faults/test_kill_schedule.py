"""Kill the scheduler at any step, start it again: every interval is in its history once, done, and told."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from scenemill.pipelines.schedule.runs import RunTable
from scenemill.schemas.steps import STEPS

if TYPE_CHECKING:
    from tests.faults.conftest import Mill

HOURS: Final = 2
KILLS: Final = (*STEPS["schedule"], *(f"{step}:2" for step in STEPS["schedule"] if step != "run queued"))
SHORT: Final = STEPS["schedule"]
DONE_AGAIN: Final = ("conversion begun", "conversion ended")
"""Between the beginning of a conversion and its record, a kill has it done again; stores allow that."""

TOLD_AGAIN: Final = "alert sent"


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def alerts(path: Path) -> int:
    return path.read_text().count('"text"') if path.exists() else 0


@pytest.mark.parametrize("kill_at", [pytest.param(step, marks=() if step in SHORT else pytest.mark.full) for step in KILLS])
def test_a_killed_scheduler_loses_no_run_and_does_none_twice(kill_at: str, mill: "Mill", tmp_path: Path) -> None:
    mill.load("tests.faults.deeds", "scenemill.pipelines.schedule.scheduler", "apscheduler.triggers.cron")
    killed = mill.do("schedule", kill_at, folder=tmp_path, hours=HOURS)
    assert killed.code == -signal.SIGKILL, killed.said
    for _ in range(2):
        again = mill.do("schedule", folder=tmp_path, hours=HOURS)
        assert again.code == 0, again.said
        runs = RunTable(tmp_path / "state" / "schedule.db").history()
        held = [(run.interval_start.hour, run.state, run.attempt, run.alert, run.stored, run.version) for run in runs]
        assert held == [(hour, "succeeded", 1, "sent", 4, "9cd5") for hour in reversed(range(HOURS))]
    step = kill_at.partition(":")[0]
    assert lines(tmp_path / "conversions") in ((HOURS, HOURS + 1) if step in DONE_AGAIN else (HOURS,))
    assert alerts(tmp_path / "alerts") == HOURS + (step == TOLD_AGAIN)
    assert (tmp_path / "store").read_text() == "what is converted"
