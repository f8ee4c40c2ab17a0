"""Kill it anywhere, run again: the same bytes; and at no moment does a reader see anything but the old store or the new one."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from scenemill.pipelines import ingest as pipeline
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import StoreError
from scenemill.schemas.steps import STEPS
from scenemill.transforms.parts import Receipt
from scenemill.transforms.versions import prepare

if TYPE_CHECKING:
    from tests.faults.conftest import Mill

KILLS: Final = (*STEPS["ingest"], "shard placed:4", "shard placed:13", "part tables written:2", "receipt written:2")
FIRST: Final = [pytest.param(step, marks=() if number % 4 == 1 else pytest.mark.full) for number, step in enumerate(KILLS)]
LATER: Final = [pytest.param(step, marks=() if number % 4 == 2 else pytest.mark.full) for number, step in enumerate(KILLS)]
"""In the short form every other step is killed: of a first run, or of one that appends."""
SEEDS: Final = [(0, 1, 2), *(pytest.param(seed, 5, 4, marks=pytest.mark.full) for seed in range(1, 11))]
"""Seed -> rounds, and kills in each of them."""
WORKER_STEPS: Final = ("shards written", "shard placed:3", "part tables written", "receipt written")


def finished_files(store: Path) -> dict[str, int]:
    """Path -> time of change, for every file that the receipt of a finished part names."""
    receipts = [json.loads(path.read_bytes()) for path in store.glob("parts/*/receipt.json")]
    return {path: (store / path).stat().st_mtime_ns for receipt in receipts for path in receipt["files"]}


def publishes(step: str) -> bool:
    steps = STEPS["ingest"]
    return steps.index(step.partition(":")[0]) >= steps.index("swapped")


@pytest.mark.parametrize("kill_at", FIRST)
def test_first_run_killed_at_a_step_is_completed_by_the_next(
    kill_at: str, mill: "Mill", front3d_world: Path, small_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    killed = mill.ingest(front3d_world, store, kill_at=kill_at)
    assert killed.code == -signal.SIGKILL, killed.said
    assert mill.published(store) == (mill.published(small_store) if publishes(kill_at) else None)
    before = finished_files(store)
    again = mill.ingest(front3d_world, store)
    assert again.code == 0, again.said
    assert mill.sums_of(store) == mill.sums_of(small_store)
    assert before.items() <= finished_files(store).items()


@pytest.mark.parametrize("kill_at", LATER)
def test_reader_sees_old_store_until_publish(
    kill_at: str, mill: "Mill", front3d_world: Path, train_store: Path, grown_store: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(train_store, tmp_path / "store"))
    killed = mill.ingest(front3d_world, store, kill_at=kill_at)
    assert killed.code == -signal.SIGKILL, killed.said
    assert mill.published(store) == mill.published(grown_store if publishes(kill_at) else train_store)
    before = finished_files(store)
    again = mill.ingest(front3d_world, store)
    assert again.code == 0, again.said
    assert mill.sums_of(store) == mill.sums_of(grown_store)
    assert before.items() <= finished_files(store).items()


@pytest.mark.full
def test_run_killed_over_and_over_gets_done(mill: "Mill", front3d_world: Path, small_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for kill_at in ("receipt written", "sums written", "shard placed:7", "tables written", "version written"):
        assert mill.ingest(front3d_world, store, kill_at=kill_at).code == -signal.SIGKILL
        assert mill.published(store) is None
    assert mill.ingest(front3d_world, store).code == 0
    assert mill.sums_of(store) == mill.sums_of(small_store)


WORKER_KILLS: Final = [
    pytest.param(step, marks=() if step == "shard placed:3" else pytest.mark.full, id=step) for step in WORKER_STEPS
]


@pytest.mark.parametrize("kill_at", WORKER_KILLS)
def test_killed_worker_ends_the_run(kill_at: str, mill: "Mill", front3d_world: Path, small_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    killed = mill.ingest(front3d_world, store, "--workers", 2, kill_at=kill_at)
    assert killed.code > 0, killed.said
    assert mill.published(store) is None
    again = mill.ingest(front3d_world, store, "--workers", 2)
    assert again.code == 0, again.said
    assert mill.sums_of(store) == mill.sums_of(small_store)


def test_receipt_that_turns_up_without_its_files_is_not_believed(
    mill: "Mill", front3d_world: Path, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker leaves it that outlived its run: its shards were cleared away, then it wrote the receipt."""
    store = tmp_path / "store"
    config = IngestConfig("front3d", front3d_world, store, samples_per_part=2)

    def prepare_then_receipts(*args: Any) -> list[Receipt]:
        finished = prepare(*args)
        shutil.copytree(small_store / "parts", store / "parts")
        return finished

    with monkeypatch.context() as patch, contextlib.suppress(StoreError):
        patch.setattr(pipeline, "prepare", prepare_then_receipts)
        pipeline.ingest(config)
    assert mill.published(store) in (None, mill.published(small_store))
    pipeline.ingest(config)
    assert mill.sums_of(store) == mill.sums_of(small_store)


@pytest.mark.full
@pytest.mark.parametrize("kill_at", KILLS)
def test_command_started_from_a_shell_is_killed_alike(
    kill_at: str, mill: "Mill", front3d_world: Path, small_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-m", "scenemill.pipelines.cli", *map(str, mill.ingest_args(front3d_world, store))]
    killed = subprocess.run(command, env=os.environ | {"SCENEMILL_KILL_AT": kill_at}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    again = subprocess.run(command, capture_output=True, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert mill.sums_of(store) == mill.sums_of(small_store)


def kill_somewhere(mill: "Mill", world: Path, store: Path, rng: random.Random) -> int:
    """Start a run, kill it after a random time, and return its exit code."""
    pid = mill.start_ingest(world, store, "--workers", rng.choice((1, 2)))
    time.sleep(rng.uniform(0.0, 4.0))
    os.kill(pid, signal.SIGKILL)
    return mill.wait(pid).code


@pytest.mark.parametrize(("seed", "rounds", "kills"), SEEDS)
def test_run_killed_at_random_times_is_completed_by_the_next(
    seed: int,
    rounds: int,
    kills: int,
    mill: "Mill",
    front3d_world: Path,
    small_store: Path,
    train_store: Path,
    grown_store: Path,
    tmp_path: Path,
) -> None:
    rng = random.Random(seed)
    for number in range(rounds):
        store, grows = tmp_path / f"store-{number}", rng.random() < 0.5
        if grows:
            shutil.copytree(train_store, store)
        old, whole = (mill.published(train_store), grown_store) if grows else (None, small_store)
        for _ in range(kills):
            assert kill_somewhere(mill, front3d_world, store, rng) in (0, -signal.SIGKILL)
            assert mill.published(store) in (old, mill.published(whole))
        again = mill.ingest(front3d_world, store, "--workers", rng.choice((1, 2)))
        assert again.code == 0, again.said
        assert mill.sums_of(store) == mill.sums_of(whole)
