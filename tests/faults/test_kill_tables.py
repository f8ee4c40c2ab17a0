"""Kill what adds a run to the metric tables, run again: the same rows, each once; and readers see whole runs alone."""

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from scenemill.pipelines.predictions import Prediction, write_prediction
from scenemill.pipelines.tables import TABLES, read_table
from scenemill.schemas.errors import NotPublished
from scenemill.transforms.store import open_store

if TYPE_CHECKING:
    from tests.faults.conftest import Mill

KILLS: Final = ("metric tables made", *(f"metric rows committed:{number}" for number in range(1, len(TABLES) + 1)))
SHORT: Final = ("metric tables made", "metric rows committed:2", KILLS[-1])
SEEDS: Final = [(0, 1), *(pytest.param(seed, 3, marks=pytest.mark.full) for seed in range(1, 20))]
"""Seed -> kills before the scoring is left to end."""
LAST: Final = KILLS[-1]


def runs_seen(folder: Path) -> set[str]:
    """The runs, published results aside, of which a reader finds rows; of each it finds all, in all tables."""
    found: dict[str, set[str]] = {}
    for name in TABLES:
        try:
            rows = read_table(folder, name).to_pylist()
        except NotPublished:
            rows = []
        found[name] = {row["run"] for row in rows if not row["run"].startswith("published")}
    assert found["counts"] == found["depths"] == found["scores"]
    return found["scores"]


def held_in(folder: Path) -> dict[str, tuple[int, list[dict[str, Any]]]]:
    """What the tables of a folder hold, those rows included that no reader sees; and how many commits made it."""
    return {name: (DeltaTable(folder / name).version(), sorted_rows(folder, name)) for name in TABLES}


def sorted_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    table: pa.Table = DeltaTable(folder / name).to_pyarrow_table()
    rows = [{key: value for key, value in row.items() if key != "created"} for row in table.to_pylist()]
    return sorted(rows, key=str)


@pytest.fixture(scope="module")
def whole(mill: "Mill", tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tables of one run and of two, never broken off."""
    mill.load("tests.faults.deeds", "scenemill.pipelines.tables")
    folder = tmp_path_factory.mktemp("tables")
    assert mill.do("append", folder=folder / "one", run="first").code == 0
    shutil.copytree(folder / "one", folder / "two")
    assert mill.do("append", folder=folder / "two", run="second").code == 0
    return {"one": folder / "one", "two": folder / "two"}


@pytest.mark.parametrize("kill_at", [pytest.param(step, marks=() if step in SHORT else pytest.mark.full) for step in KILLS])
def test_tables_that_a_kill_left_are_completed_by_the_same_run(
    kill_at: str, mill: "Mill", whole: dict[str, Path], tmp_path: Path
) -> None:
    new, grown = tmp_path / "new", Path(shutil.copytree(whole["one"], tmp_path / "grown"))
    for folder, run, before, reference in ((new, "first", set(), "one"), (grown, "second", {"first"}, "two")):
        killed = mill.do("append", kill_at, folder=folder, run=run)
        assert killed.code == -signal.SIGKILL, killed.said
        assert runs_seen(folder) == (before | {run} if kill_at == LAST else before)
        again = mill.do("append", folder=folder, run=run)
        assert again.code == 0, again.said
        assert held_in(folder) == held_in(whole[reference])


def test_another_run_between_a_kill_and_its_repetition_changes_nothing(
    mill: "Mill", whole: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole["one"], tmp_path / "tables"))
    assert mill.do("append", "metric rows committed:3", folder=folder, run="second").code == -signal.SIGKILL
    assert mill.do("append", folder=folder, run="third").code == 0
    assert runs_seen(folder) == {"first", "third"}
    assert mill.do("append", folder=folder, run="second").code == 0
    assert runs_seen(folder) == {"first", "second", "third"}
    for name, (_, rows) in held_in(folder).items():
        assert [row for row in rows if row["run"] != "third"] == held_in(whole["two"])[name][1]


@pytest.mark.full
@pytest.mark.parametrize("seed", range(40))
def test_tables_killed_at_a_random_time_are_completed(seed: int, mill: "Mill", whole: dict[str, Path], tmp_path: Path) -> None:
    """Within the library's own commits, too."""
    rng = random.Random(f"tables {seed}")
    for reference, run, before in (("one", "first", set()), ("two", "second", {"first"})):
        folder = tmp_path / run
        if before:
            shutil.copytree(whole["one"], folder)
        pid = mill.start_deed("append", folder=folder, run=run)
        time.sleep(rng.uniform(0.0, 0.25))
        os.kill(pid, signal.SIGKILL)
        assert mill.wait(pid).code in (0, -signal.SIGKILL)
        assert runs_seen(folder) in (before, before | {run})
        again = mill.do("append", folder=folder, run=run)
        assert again.code == 0, again.said
        assert held_in(folder) == held_in(whole[reference])


@pytest.fixture(scope="module")
def told(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of both stages for the samples of ``small_store``: its truth."""
    predictions = tmp_path_factory.mktemp("told")
    store = open_store(small_store)
    for key in store:
        sample = store.read(key)
        flat, deep = sample["instance_2d"].astype("int32"), sample["instance_3d"].astype("int32")
        named = {int(name) for name in (*set(flat[flat > 0].tolist()), *set(deep[deep > 0].tolist()))}
        classes = dict.fromkeys(sorted(named), 3)
        write_prediction(predictions, key, Prediction(flat, classes, sample["depth"], deep, classes, sample["geometry"]))
    return predictions


def score_args(told: Path, store: Path, tables: Path) -> tuple[object, ...]:
    return ("score", "--predictions", told, "--store", store, "--tables", tables, "--model", "truth")


@pytest.fixture(scope="module")
def scored(mill: "Mill", told: Path, small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The tables of a scoring that nothing broke off, and its seconds."""
    mill.load("scenemill.pipelines.score", "scenemill.pipelines.tables")
    tables = tmp_path_factory.mktemp("scored") / "tables"
    began = time.monotonic()
    done = mill.run(*score_args(told, small_store, tables))
    assert done.code == 0, done.said
    return tables, time.monotonic() - began


@pytest.mark.full
@pytest.mark.parametrize("kill_at", ("group done", *KILLS))
def test_a_scoring_killed_at_a_step_is_completed_by_the_next(
    kill_at: str, mill: "Mill", told: Path, small_store: Path, scored: tuple[Path, float], tmp_path: Path
) -> None:
    tables = tmp_path / "tables"
    killed = mill.run(*score_args(told, small_store, tables), kill_at=kill_at)
    assert killed.code == -signal.SIGKILL, killed.said
    assert len(runs_seen(tables) if (tables / "scores").exists() else ()) == (kill_at == LAST)
    again = mill.run(*score_args(told, small_store, tables))
    assert again.code == 0, again.said
    assert held_in(tables) == held_in(scored[0])
    assert list((tables / ".work").iterdir()) == []


@pytest.mark.parametrize(("seed", "kills"), SEEDS)
def test_a_scoring_killed_at_random_times_is_completed(
    seed: int, kills: int, mill: "Mill", told: Path, small_store: Path, scored: tuple[Path, float], tmp_path: Path
) -> None:
    rng, tables = random.Random(f"score {seed}"), tmp_path / "tables"
    for _ in range(kills):
        pid = mill.start(*score_args(told, small_store, tables))
        time.sleep(rng.uniform(0.0, scored[1]))
        os.kill(pid, signal.SIGKILL)
        assert mill.wait(pid).code in (0, -signal.SIGKILL)
        assert len(runs_seen(tables) if (tables / "scores" / "_delta_log").exists() else ()) <= 1
    again = mill.run(*score_args(told, small_store, tables))
    assert again.code == 0, again.said
    assert held_in(tables) == held_in(scored[0])
