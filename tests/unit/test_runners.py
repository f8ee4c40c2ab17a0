"""Runners: options that fit together, what a worker leaves and the driver reads, and the same bytes by threads and by processes."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scenemill
from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.runners.groups import run_groups
from scenemill.pipelines.runners.options import RUNNERS, RunnerConfig
from scenemill.pipelines.runners.work import MARKER, Work, done_groups, raised_by_worker, read_results, software
from scenemill.schemas import errors
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError, Conflict, Corrupt, SourceError, TransientError
from scenemill.schemas.tables import RUNS
from scenemill.transforms.rows import read_rows, write_rows
from tests.unit.store_sums import sums_of

VALID = {
    "local": RunnerConfig(),
    "dask": RunnerConfig("dask", dask_address="tcp://127.0.0.1:8786"),
    "portable": RunnerConfig("portable", job_endpoint="127.0.0.1:8099", worker_pool="127.0.0.1:50000"),
    "dataflow": RunnerConfig("dataflow", project="p-id", region="r", temp_location="gs://bucket/tmp", image="image"),
}
GIVEN: dict[str, Any] = {
    "threads": True,
    "dask_address": "tcp://h:1",
    "job_endpoint": "h:1",
    "worker_pool": "h:2",
    "image": "image",
    "project": "p-id",
    "region": "r",
    "temp_location": "gs://bucket/tmp",
    "package": "x.whl",
    "machine_type": "n2",
    "max_workers": 3,
    "dry_run": True,
    "beam_options": ("a=b",),
}
BELONGS = {  # option -> runners that take it, as docs/runners.md says
    "threads": {"local"},
    "dask_address": {"dask"},
    "job_endpoint": {"portable"},
    "worker_pool": {"portable"},
    "image": {"portable", "dataflow"},
    "beam_options": {"portable", "dataflow"},
    **{name: {"dataflow"} for name in ("project", "region", "temp_location", "package", "machine_type", "max_workers", "dry_run")},
}


# --- options


def test_every_option_of_a_runner_is_tried_here() -> None:
    assert {field.name for field in fields(RunnerConfig)} == {"runner", *GIVEN} == {"runner", *BELONGS}
    assert set(VALID) == set(RUNNERS)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("option", GIVEN)
def test_an_option_that_says_nothing_to_a_runner_is_refused_by_name(runner: str, option: str) -> None:
    if runner in BELONGS[option]:
        other: dict[str, Any] = {"image": None} if option == "worker_pool" else {"worker_pool": None} if option == "image" else {}
        assert getattr(replace(VALID[runner], **other, **{option: GIVEN[option]}), option) == GIVEN[option]
    else:
        flag = "--" + option.removesuffix("s" if option == "beam_options" else "").replace("_", "-")
        with pytest.raises(ConfigError, match=f"{flag} says nothing to --runner {runner}"):
            replace(VALID[runner], **{option: GIVEN[option]})


@pytest.mark.parametrize(
    ("runner", "option"),
    [
        ("dask", "dask_address"),
        ("portable", "job_endpoint"),
        *(("dataflow", name) for name in ("project", "region", "temp_location", "image")),
    ],
)
def test_an_option_that_a_runner_needs_is_asked_for(runner: str, option: str) -> None:
    without: dict[str, Any] = {option: None}
    with pytest.raises(ConfigError, match=f"--runner {runner} needs --{option.replace('_', '-')}"):
        replace(VALID[runner], **without)


def test_workers_of_a_portable_job_come_from_one_place() -> None:
    either: list[dict[str, Any]] = [{"worker_pool": None}, {"image": "image"}]
    for both in either:
        with pytest.raises(ConfigError, match="either --worker-pool or --image"):
            replace(VALID["portable"], **both)


def test_an_unknown_runner_is_refused() -> None:
    with pytest.raises(ConfigError, match="runner 'spark' is not known; use one of local, dask, portable, dataflow"):
        RunnerConfig("spark")


@pytest.mark.parametrize("runner", ["dask", "portable"])
def test_processes_of_this_machine_say_nothing_to_a_cluster(runner: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--workers 2 says nothing to --runner {runner}"):
        ingest(IngestConfig("front3d", tmp_path, tmp_path / "store", workers=2), runner=VALID[runner])


# --- what a worker leaves, and what the driver reads


def square(number: int) -> tuple[pa.Table, pa.Table]:
    return pa.table({"square": [number**2]}), pa.table({"number": [number]})


def refuse(kind: str, number: int) -> tuple[pa.Table]:
    if kind == "SourceError":
        raise SourceError("size", "3", "4")
    if kind == "OSError":
        raise OSError(28, "No space left on device")
    raise getattr(errors, kind)(f"number {number}")


def work_in(folder: Path, *seen: Path, of: str = "") -> Work[int]:
    return Work(square, folder, seen, of or software())


@given(st.permutations(range(12)))
def test_tables_come_back_in_the_order_of_their_groups(order: list[int]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        for number in order:
            assert work_in(folder)((number, 100 + number)) == number
        back = [tuple(table.to_pylist()[0] for table in tables) for tables in read_results(folder, len(order), keep=False)]
        assert back == [({"square": number**2}, {"number": number}) for number in range(100, 112)]
        assert not list(folder.glob("*.parquet"))


def test_a_group_without_a_result_is_corrupt_whatever_the_runner_says(tmp_path: Path) -> None:
    for number in (0, 2):
        work_in(tmp_path)((number, number))
    assert done_groups(tmp_path) == {0, 2}
    with pytest.raises(Corrupt, match="1 of 3 groups of work left no result"):
        read_results(tmp_path, 3, keep=True)


def test_a_worker_that_does_not_see_the_drivers_files_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"elsewhere is not there, though the driver sees it; input and output must be on"):
        work_in(tmp_path, tmp_path / "elsewhere")((0, 0))
    with pytest.raises(ConfigError, match="is not there"):  # not even the folder in which it would note that
        work_in(tmp_path / "gone", tmp_path / "gone" / MARKER)((0, 0))


def test_a_worker_of_another_version_builds_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the driver scenemill 9\.9; install the same on both"):
        work_in(tmp_path, of="scenemill 9.9")((0, 0))
    assert done_groups(tmp_path) == set()


def test_the_error_of_a_worker_without_the_folder_is_told_from_what_the_runner_says(tmp_path: Path) -> None:
    said = "Traceback ...\nscenemill.schemas.errors.ConfigError: worker on a: x is not there [while running 'Build parts']\n"
    told = raised_by_worker(tmp_path, RuntimeError(said))
    assert isinstance(told, ConfigError) and str(told) == "worker on a: x is not there"
    assert raised_by_worker(tmp_path, RuntimeError("something else")) is None


@pytest.mark.parametrize("kind", ["SourceError", "OSError", "Conflict", "Corrupt", "TransientError"])
def test_what_a_worker_raises_arrives_as_itself(kind: str, tmp_path: Path) -> None:
    expected = {"SourceError": SourceError, "OSError": OSError, "Conflict": Conflict, "Corrupt": Corrupt}.get(kind, TransientError)
    with pytest.raises(expected) as raised:
        run_groups("Refuse", partial(refuse, kind), [0, 1], tmp_path, 1)
    assert type(raised.value) is expected
    if kind == "SourceError":
        assert isinstance(raised.value, SourceError) and raised.value.observed == "3"
    if kind == "OSError":
        assert isinstance(raised.value, OSError) and raised.value.errno == 28


def test_what_a_thread_raises_arrives_as_itself(tmp_path: Path) -> None:
    """In a process of its own: the other thread may still say that its work was taken away."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom scenemill.pipelines.runners.groups import run_groups\n"
        "from scenemill.pipelines.runners.options import RunnerConfig\nfrom scenemill.schemas.errors import Conflict\n"
        "def refuse(number): raise Conflict(f'number {number}')\n"
        "try: run_groups('Refuse', refuse, [1, 2, 3], Path(sys.argv[1]), 2, runner=RunnerConfig(threads=True))\n"
        "except Conflict as error: print('told', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"told number [123]\n", done.stdout)


def test_a_run_that_was_broken_off_does_the_rest(tmp_path: Path) -> None:
    groups = [3, 4, 5]
    work_in(tmp_path)((1, 40))  # done before, of another number: taken over, not done again
    done: list[int] = []
    results = list(run_groups("Square", square, groups, tmp_path, 1, done.append, resume=True))
    assert [tables[0]["square"].to_pylist() for tables in results] == [[9], [1600], [25]]
    assert done[-1] == 3
    assert len(list(tmp_path.glob("*.parquet"))) == 6


def test_an_ingest_is_given_to_dataflow_as_a_whole(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes an ingest as a whole"):
        run_groups("Square", square, [1], tmp_path, 1, runner=VALID["dataflow"])


# --- stores


@pytest.fixture(scope="module")
def stores(front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("stores")
    for name, workers, runner in (("one", 1, RunnerConfig()), ("threads", 3, RunnerConfig(threads=True))):
        ingest(IngestConfig("front3d", front3d_world, folder / name, workers=workers, samples_per_part=1), runner=runner)
    yield {path.name: path for path in folder.iterdir()}


def test_threads_build_the_same_store(stores: dict[str, Path]) -> None:
    assert sums_of(stores["threads"]) == sums_of(stores["one"])
    assert json.loads((stores["one"] / "zarr.json").read_bytes())["attributes"]["scenemill"]["stored"] == 6


def test_the_runs_table_says_where_a_run_ran_and_what_its_stages_took(stores: dict[str, Path]) -> None:
    (row,) = scenemill.open_store(stores["threads"]).runs.to_pylist()
    stages = [row[f"{stage}_seconds"] for stage in ("list", "build", "judge", "publish")]
    assert row["runner"] == "local" and min(stages) > 0 and sum(stages) <= row["seconds"]
    assert (row["listed"], row["stored"], row["parts_built"], row["workers"]) == (6, 6, 6, 3)


def test_runs_of_older_releases_are_read_without_stages(stores: dict[str, Path], tmp_path: Path) -> None:
    (file,) = stores["one"].glob("runs/*/run.parquet")
    older = read_rows(file, RUNS).drop_columns([name for name in RUNS.names if name == "runner" or name.endswith("_seconds")])
    write_rows(tmp_path / "run.parquet", older)
    (row,) = read_rows(tmp_path / "run.parquet", RUNS).to_pylist()
    assert row["runner"] is None and row["build_seconds"] is None and row["stored"] == 6
    write_rows(tmp_path / "short.parquet", older.drop_columns(["stored"]))
    with pytest.raises(Corrupt, match="no readable table"):
        read_rows(tmp_path / "short.parquet", RUNS)
