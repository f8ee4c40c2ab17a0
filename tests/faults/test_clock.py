"""A clock that is set, back or forth, once or at every look: what is stored does not depend on it, and nothing waits for it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from scenemill.trainers.checkpoint import load_checkpoint
from tests.faults.conftest import Mill

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="the clock that is set is Linux's, and compiled by gcc"
)

SOURCE: Final = Path(__file__).with_name("clock.c")
YEAR_S: Final = 365 * 86400
WILD: Final = "wild"


@dataclass(frozen=True)
class Clock:
    """What a process takes for the time.

    Attributes:
        library: ``clock.c``, compiled.
        file: says by how many seconds the clock stands ahead; "wild" for years, others at every look.
    """

    library: Path
    file: Path

    def set(self, ahead: int | str) -> None:
        changed = self.file.with_suffix(".new")
        changed.write_text(str(ahead))
        changed.replace(self.file)

    def begin(self, *words: object) -> "subprocess.Popen[str]":
        """The command line, by this clock."""
        command = [sys.executable, "-m", "scenemill.pipelines.cli", *map(str, words)]
        told = {**os.environ, "LD_PRELOAD": str(self.library), "CLOCK_FILE": str(self.file), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, *words: object) -> str:
        with self.begin(*words) as process:
            said = process.communicate()[0]
        assert process.returncode == 0, said
        return said

    def told(self, *words: object) -> dict[str, Any]:
        """What is printed as JSON, after what libraries have to say of the year."""
        found: dict[str, Any] = json.loads(self.run(*words).splitlines()[-1])
        return found


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    library = tmp_path / "clock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE], check=True)
    made = Clock(library, tmp_path / "clock")
    made.set(WILD)
    look = [sys.executable, "-S", "-c", "import time; print(time.time(), time.time(), time.time())"]
    told = {"LD_PRELOAD": str(library), "CLOCK_FILE": str(made.file)}
    assert len(set(subprocess.run(look, env=told, capture_output=True, check=True).stdout.split())) == 3
    return made


@pytest.mark.full
def test_a_store_is_the_same_whatever_the_clock_says(
    clock: Clock, mill: Mill, small_store: Path, front3d_world: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    clock.run(*Mill.ingest_args(front3d_world, store))
    assert Mill.sums_of(store) == Mill.sums_of(small_store)


@pytest.mark.full
def test_nothing_is_read_again_appended_twice_or_cleaned_away_by_a_wild_clock(
    clock: Clock, front3d_world: Path, train_store: Path, grown_store: Path, tmp_path: Path
) -> None:
    """A store of one split grows by the others."""
    store = tmp_path / "store"
    shutil.copytree(train_store, store)
    assert clock.told(*Mill.ingest_args(front3d_world, store))["outcome"] == "published"
    assert clock.told(*Mill.ingest_args(front3d_world, store))["outcome"] == "unchanged"
    assert clock.told("verify", store, "--json")["broken"] == []
    clock.told("clean", store, "--json")
    assert Mill.sums_of(store) == Mill.sums_of(grown_store)


@pytest.mark.full
def test_a_training_takes_the_same_steps_whatever_the_clock_says(clock: Clock, front3d_world: Path, tmp_path: Path) -> None:
    steps = (
        "train.optim.max_steps=3",
        "train.checkpoint_interval_unit=step",
        "train.checkpoint_interval=1",
        "dataset.val.base_dir=",
    )
    weights = {}
    for ahead in (0, WILD):
        clock.set(ahead)
        results = tmp_path / str(ahead)
        words = (f"results_dir={results}", f"dataset.train.base_dir={front3d_world}", "dataset.train.num_workers=0", *steps)
        clock.run("train", "-e", "tiny_front3d_2d", *words)
        weights[ahead] = load_checkpoint(next((results / "train").glob("*_latest.pth")))["state_dict"]
    assert all(torch.equal(weights[0][name], weights[WILD][name]) for name in weights[0])


@pytest.mark.full
def test_a_scheduler_goes_on_when_its_clock_is_set_back_by_a_year(clock: Clock, front3d_world: Path, tmp_path: Path) -> None:
    """What it did by the clock that stood ahead is done again in its time; what is due now is done now."""
    folder = tmp_path / "schedules"
    folder.mkdir()
    text = f"source: front3d\ninput: {front3d_world}\noutput: ../stores/daily\nstart: 2026-01-01\nevery: 1d\n"
    (folder / "daily.yaml").write_text(text)
    clock.set(YEAR_S)
    with clock.begin("schedule", "run", folder) as scheduler:
        try:
            until(lambda: states(folder) == ["succeeded"])
            clock.set(0)
            until(lambda: states(folder) == ["queued", "succeeded"])
        finally:
            scheduler.send_signal(signal.SIGINT)
            said = scheduler.communicate(timeout=60)[0]
    assert "the clock has moved by -365 days" in said and "1 runs were begun by a clock that stood ahead" in said, said
    ready, ended = (row["ready"] for row in history(folder)), history(folder)[1]["ended"]
    assert next(ready) == history(folder)[0]["interval_end"] and ended < history(folder)[0]["interval_start"]


def history(folder: Path) -> list[dict[str, str]]:
    """Runs, the newest interval first."""
    command = [sys.executable, "-m", "scenemill.pipelines.cli", "schedule", "history", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found: list[dict[str, str]] = json.loads(done.stdout) if done.returncode == 0 else []
    return found


def states(folder: Path) -> list[str]:
    return [row["state"] for row in history(folder)]


def until(holds: Callable[[], bool]) -> None:
    for _ in range(120):
        if holds():
            return
        time.sleep(0.5)
    raise AssertionError
