"""One store, byte for byte, on whatever runs its parts: a Dask cluster that loses a worker, and a Beam job service."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.runners.options import RunnerConfig
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError, TransientError
from scenemill.transforms.store import open_store
from scenemill.transforms.verify import verify_store
from scenemill.transforms.worlds import write_world
from tests.unit.store_sums import sums_of

VIEWS = 12


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runners") / "raw"
    write_world("front3d", folder, scenes=3, views=VIEWS // 3, seed=5, grid=64)
    return folder


def config_of(raw: Path, store: Path) -> IngestConfig:
    return IngestConfig("front3d", raw, store, samples_per_part=1)


@pytest.fixture(scope="module")
def local_store(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("local") / "store"
    assert ingest(config_of(raw, store)).parts_built == VIEWS
    return store


@contextmanager
def dask_cluster(kill_at: str = "") -> Iterator[Any]:
    """A scheduler and two worker processes on loopback; with ``kill_at``, each kills itself at that step of a part.

    The scheduler gives a task up that two workers were lost with.
    """
    distributed = pytest.importorskip("distributed")
    dask = pytest.importorskip("dask")
    nowhere = {"dashboard_address": None, "worker_dashboard_address": None}
    env = {"SCENEMILL_KILL_AT": kill_at, "OMP_NUM_THREADS": "1"}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", env=env, silence_logs="CRITICAL", **nowhere
        ) as cluster,
    ):
        yield cluster


def kill_a_worker(cluster: Any, store: Path, killed: list[tuple[int, int]]) -> None:
    """Once a part is finished, kill a worker; note its process and how many parts were finished by then."""
    until = time.monotonic() + 30
    while time.monotonic() < until and not (done := list(store.glob("parts/*/receipt.json"))):
        time.sleep(0.005)
    pid = next(iter(cluster.workers.values())).pid
    os.kill(pid, signal.SIGKILL)
    killed.append((pid, len(done)))


def test_a_cluster_that_loses_a_worker_leaves_the_same_store(raw: Path, local_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    killed: list[tuple[int, int]] = []
    with dask_cluster() as cluster:
        killer = threading.Thread(target=kill_a_worker, args=(cluster, store, killed))
        killer.start()
        told: list[tuple[str, int, int]] = []
        runner = RunnerConfig("dask", dask_address=cluster.scheduler_address)
        outcome = ingest(config_of(raw, store), lambda *progress: told.append(progress), runner)
        killer.join()
        assert killed[0][0] not in {worker.pid for worker in cluster.workers.values()}
    assert 0 < killed[0][1] < VIEWS  # in the midst of it
    assert (outcome.outcome, outcome.stored, outcome.parts_built) == ("published", VIEWS, VIEWS)
    assert told[-1] == ("Building parts", VIEWS, VIEWS)
    assert sums_of(store) == sums_of(local_store)
    assert verify_store(store).broken == ()
    (row,) = open_store(store).runs.to_pylist()
    assert (row["runner"], row["new"], row["build_seconds"] > 0) == ("dask", VIEWS, True)


@pytest.mark.full
def test_parts_that_kill_every_worker_end_the_run_and_the_next_goes_on(raw: Path, local_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with dask_cluster(kill_at="shard placed:3") as cluster, pytest.raises(TransientError, match="run the same command again"):
        ingest(config_of(raw, store), runner=RunnerConfig("dask", dask_address=cluster.scheduler_address))
    assert not (store / "zarr.json").exists()
    ingest(config_of(raw, store))
    assert sums_of(store) == sums_of(local_store)


def kill_when_a_part_is_finished(process: "subprocess.Popen[bytes]", store: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and not list(store.glob("parts/*/receipt.json")):
        time.sleep(0.005)
    process.kill()


@pytest.mark.full
def test_a_scheduler_that_is_killed_ends_the_run_and_the_next_goes_on(raw: Path, local_store: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    store, port = tmp_path / "store", free_port()
    dask = [sys.executable, "-m", "dask"]
    address = f"tcp://127.0.0.1:{port}"
    commands = (
        [*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-jupyter"],
        [*dask, "worker", address, "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", "--death-timeout", "5"],
    )
    with ExitStack() as stack:
        started = []
        for command in commands:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            started.append(process)
        wait_for(port)
        killer = threading.Thread(target=kill_when_a_part_is_finished, args=(started[0], store))
        killer.start()
        with pytest.raises(TransientError, match="the scheduler is gone"):
            ingest(config_of(raw, store), runner=RunnerConfig("dask", dask_address=address))
        killer.join()
    assert not (store / "zarr.json").exists()
    ingest(config_of(raw, store))
    assert sums_of(store) == sums_of(local_store)


def test_a_cluster_that_is_not_there_is_told(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("scenemill.pipelines.runners.dask_cluster._PATIENCE_S", 1)
    with pytest.raises(ConfigError, match="no scheduler answers there"):
        ingest(config_of(raw, tmp_path / "store"), runner=RunnerConfig("dask", dask_address=f"tcp://127.0.0.1:{free_port()}"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def beam_services(folder: Path) -> Iterator[tuple[int, int]]:
    """Beam's own job service, and a pool that starts workers for it; yields their ports."""
    job, pool = free_port(), free_port()
    commands = {
        "job": ("apache_beam.runners.portability.local_job_service_main", f"--port={job}", f"--staging_dir={folder / 'stage'}"),
        "pool": ("apache_beam.runners.worker.worker_pool_main", f"--service_port={pool}"),
    }
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # the pool starts "python"
    with ExitStack() as stack:
        for name, command in commands.items():
            log = stack.enter_context((folder / f"{name}.log").open("w"))
            process = subprocess.Popen([sys.executable, "-m", *command], env=env, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        for port in (job, pool):
            wait_for(port)
        yield job, pool


def wait_for(port: int) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"nobody answers at port {port}")


@pytest.mark.full
def test_a_job_service_builds_the_same_store(raw: Path, local_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with beam_services(tmp_path) as (job, pool):
        command = [
            *(sys.executable, "-m", "scenemill.pipelines.cli", "ingest", "front3d", "--input", str(raw), "--output", str(store)),
            *("--samples-per-part", "1", "--runner", "portable", "--json"),
            *("--job-endpoint", f"127.0.0.1:{job}", "--worker-pool", f"127.0.0.1:{pool}"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["stored"] == VIEWS
    assert sums_of(store) == sums_of(local_store)
    assert open_store(store).runs["runner"].to_pylist() == ["portable"]


def test_what_a_worker_of_a_job_service_raises_is_told(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from workers with another release: the driver says what they said."""
    monkeypatch.setattr("scenemill.pipelines.runners.groups.software", lambda: "scenemill 9.9")
    with beam_services(tmp_path) as (job, pool), pytest.raises(ConfigError, match=r"the driver scenemill 9\.9"):
        runner = RunnerConfig("portable", job_endpoint=f"127.0.0.1:{job}", worker_pool=f"127.0.0.1:{pool}")
        ingest(config_of(raw, tmp_path / "store"), runner=runner)


@pytest.mark.parametrize(
    ("address", "said"), [("nowhere", "give HOST:PORT"), ("127.0.0.1:{free}", "nobody answers there")], ids=["form", "silence"]
)
def test_a_job_service_that_is_not_there_is_told(address: str, said: str, raw: Path, tmp_path: Path) -> None:
    runner = RunnerConfig("portable", job_endpoint=address.format(free=free_port()), image="image")
    with pytest.raises(ConfigError, match=f"--job-endpoint .*{said}"):
        ingest(config_of(raw, tmp_path / "store"), runner=runner)
