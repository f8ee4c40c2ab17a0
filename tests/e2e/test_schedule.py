"""Schedules on the command line, with true conversions: once, by the clock, killed at any moment, one broken among others."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scenemill.transforms.store import open_store
from scenemill.transforms.verify import verify_store

COMMAND = (sys.executable, "-m", "scenemill.pipelines.cli", "schedule")
PAST = "start: 2026-01-01\nbackfill: {start: 2026-01-01, end: 2026-01-03}\n"


def write(folder: Path, name: str, raw: Path, more: str = "every: 1d\n") -> None:
    folder.mkdir(exist_ok=True)
    text = f"source: front3d\ninput: {raw}\noutput: ../stores/{name}\nretries: 0\n{PAST}{more}"
    (folder / f"{name}.yaml").write_text(text)


def call(*args: object, code: int = 0) -> str:
    done = subprocess.run([*COMMAND, *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def history(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(call("history", folder, "--json", "--limit", 100))
    return found


def test_what_is_due_is_converted_and_the_rest_goes_on_beside_what_fails(front3d_world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "schedules"
    write(folder, "good", front3d_world)
    write(folder, "bad", tmp_path / "nothing")
    call("run", folder, "--once", code=3)
    rows = history(folder)
    assert {(row["schedule"], row["state"]) for row in rows} == {("good", "succeeded"), ("bad", "failed")}
    assert len(rows) == 6  # the latest and two days of backfill, each
    store = open_store(tmp_path / "stores" / "good")
    assert {(row["stored"], row["rejected"], row["version"]) for row in rows if row["schedule"] == "good"} == {
        (len(store.keys), 0, store.version)
    }
    assert all(str(tmp_path / "nothing") in row["reason"] for row in rows if row["schedule"] == "bad")
    call("run", folder, "--once")
    assert history(folder) == rows


@pytest.mark.full
def test_lists_pauses_and_backfills_are_told_to_a_running_scheduler(front3d_world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "schedules"
    write(folder, "good", front3d_world, "every: 1d\nalerts: {ends: [succeeded], command: [tee, ../told.json]}\n")
    call("pause", folder, "good")
    with subprocess.Popen([*COMMAND, "run", folder], cwd=folder, stderr=subprocess.PIPE, text=True) as scheduler:
        try:
            wait_for((folder / ".scenemill" / "schedule.db").exists)
            assert json.loads(call("list", folder, "--json"))[0]["next_due"] == "paused"
            call("backfill", folder, "good", "--from", "2026-01-05", "--to", "2026-01-06")
            call("resume", folder, "good")
            wait_for(lambda: any(row["state"] == "succeeded" for row in history(folder)))
            call("run", folder, "--once", code=2)  # one scheduler at a time
        finally:
            scheduler.send_signal(signal.SIGINT)
            said = scheduler.communicate(timeout=60)[1]
    assert scheduler.returncode == 130, said
    assert all(line[10:11] == " " and line[19:22] == "Z  " for line in said.splitlines()), said  # nothing but our own lines
    assert "stopped; what was under way is run again" in said
    (row,) = history(folder)
    assert (row["interval_start"], row["state"], row["alert"]) == ("2026-01-05 00:00:00+00:00", "succeeded", "sent")
    assert json.loads((tmp_path / "told.json").read_text())["state"] == "succeeded"


@pytest.mark.full
@pytest.mark.parametrize("seed", range(10))
def test_a_scheduler_killed_over_and_over_loses_nothing_and_does_nothing_twice(
    seed: int, front3d_world: Path, tmp_path: Path
) -> None:
    folder, rng = tmp_path / "schedules", random.Random(seed)
    write(folder, "one", front3d_world)
    write(folder, "two", front3d_world)
    for _ in range(3):
        with subprocess.Popen([*COMMAND, "run", folder, "--at-once", "2"], stderr=subprocess.DEVNULL) as scheduler:
            time.sleep(rng.uniform(0.5, 8.0))
            scheduler.kill()
    call("run", folder, "--once")
    rows = history(folder)
    assert len({(row["schedule"], row["interval_start"]) for row in rows}) == len(rows) == 6
    assert {row["state"] for row in rows} == {"succeeded"}
    for name in ("one", "two"):
        assert verify_store(tmp_path / "stores" / name).broken == ()


@pytest.mark.full
def test_an_interval_is_converted_for_other_engines(front3d_world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "schedules"
    write(folder, "daily", front3d_world, "cron: 0 0 * * *\n")
    told = json.loads(call("convert", folder / "daily.yaml", "--at", "2026-01-02T07:00", "--json"))
    assert (told["start"], told["end"], told["outcome"]) == ("2026-01-01 00:00:00+00:00", "2026-01-02 00:00:00+00:00", "published")
    assert told["version"] == open_store(tmp_path / "stores" / "daily").version
    assert not (folder / ".scenemill").exists()
    call("convert", folder / "daily.yaml", "--at", "2026-01-01T23:00", code=2)


def test_a_broken_file_is_told_by_every_command(tmp_path: Path) -> None:
    write(tmp_path / "schedules", "daily", tmp_path, "cron: every day\n")
    done = subprocess.run(
        [*COMMAND, "list", tmp_path / "schedules"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "500"}, check=False
    )
    assert done.returncode == 2
    assert "daily.yaml: cron='every day': allowed is minute, hour" in done.stderr


def wait_for(happened: Any) -> None:
    until = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.2)
