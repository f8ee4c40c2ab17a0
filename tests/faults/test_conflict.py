"""Two runs at once, a store that cannot be written, a disk that is full: one error that says so, and no damage."""

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from scenemill.pipelines import ingest as pipeline
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import Conflict
from scenemill.transforms import publish
from scenemill.transforms.layout import Layout
from scenemill.transforms.parts import PartPlan, PartWriter, Planned
from scenemill.transforms.sources import list_samples, open_source

if TYPE_CHECKING:
    from tests.faults.conftest import Mill
    from tests.forked import Done

YOUR_INPUT: Final = 2


def wait_for(path: Path) -> None:
    """Poll for something that a process under way makes; the suite's own time limit ends it."""
    while not path.exists():
        time.sleep(0.001)


def error_of(done: "Done") -> str:
    """Name of the error that a command ended with."""
    name: str = json.loads(done.out.strip().splitlines()[-1])["error"]
    return name


def test_second_run_on_a_store_ends_with_conflict(mill: "Mill", front3d_world: Path, small_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = mill.start_ingest(front3d_world, store)
    wait_for(store / publish.WORK)
    os.kill(first, signal.SIGSTOP)
    second = mill.ingest(front3d_world, store)
    assert (second.code, error_of(second)) == (YOUR_INPUT, "Conflict")
    assert mill.published(store) is None
    os.kill(first, signal.SIGCONT)
    done = mill.wait(first)
    assert done.code == 0, done.said
    assert mill.sums_of(store) == mill.sums_of(small_store)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.full)])
def test_one_of_two_runs_at_once_wins(workers: int, mill: "Mill", front3d_world: Path, small_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    pids = [mill.start_ingest(front3d_world, store, "--workers", workers) for _ in range(2)]
    winner, loser = sorted((mill.wait(pid) for pid in pids), key=lambda done: done.code)
    assert winner.code == 0, winner.said
    assert (loser.code, error_of(loser)) == (YOUR_INPUT, "Conflict")
    assert mill.sums_of(store) == mill.sums_of(small_store)


def test_clean_waits_for_no_run(mill: "Mill", front3d_world: Path, small_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(small_store, tmp_path / "store"))
    with publish.locked(store):
        done = mill.run("clean", store, "--json")
    assert (done.code, error_of(done)) == (YOUR_INPUT, "Conflict")
    assert mill.sums_of(store) == mill.sums_of(small_store)


def test_swap_refuses_a_store_published_meanwhile(tmp_path: Path) -> None:
    root = tmp_path / "zarr.json"
    root.write_bytes(b"published by another run")
    for expected in (None, b"what this run saw"):
        with pytest.raises(Conflict):
            publish.swap(root, b"new", expected)
    assert root.read_bytes() == b"published by another run"


def test_file_never_takes_the_place_of_another(tmp_path: Path) -> None:
    target = tmp_path / "c" / "0"
    for data in (b"first", b"first"):
        temporary = publish.work_path(tmp_path)
        temporary.write_bytes(data)
        publish.place(temporary, target, publish.checksum_of(temporary))
    temporary.write_bytes(b"second")
    with pytest.raises(Conflict):
        publish.place(temporary, target, publish.checksum_of(temporary))
    assert target.read_bytes() == b"first"


def test_file_system_without_links_is_no_excuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    test_file_never_takes_the_place_of_another(tmp_path)


def test_raw_file_changed_since_the_plan_is_a_conflict(front3d_world: Path, tmp_path: Path) -> None:
    listed, _ = list_samples("front3d", front3d_world)
    source = open_source("front3d", front3d_world, listed)
    part = PartPlan("0123456789abcdef", 0, (Planned(listed[0], "digest of other bytes"),))
    with publish.locked(tmp_path / "store") as token, pytest.raises(Conflict, match="its raw files changed"):
        publish.announce(tmp_path / "store", token)
        pipeline.build_part(source, Layout("front3d", 64, source.image, 2, "float32"), tmp_path / "store", token, part)
    held = [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.parent.name != ".work"]
    assert [path for path in held if not path.name.startswith(".scenemill.")] == []


def test_worker_of_a_run_that_is_over_writes_no_part(front3d_world: Path, tmp_path: Path) -> None:
    listed, _ = list_samples("front3d", front3d_world)
    source = open_source("front3d", front3d_world, listed)
    part = PartPlan("0123456789abcdef", 0, (Planned(listed[0], "any"),))
    layout = Layout("front3d", 64, source.image, 2, "float32")
    with publish.locked(tmp_path / "store") as first:
        publish.announce(tmp_path / "store", first)
    with publish.locked(tmp_path / "store") as second:
        publish.announce(tmp_path / "store", second)
        with pytest.raises(Conflict, match="has taken over"):
            pipeline.build_part(source, layout, tmp_path / "store", first, part)
    assert list((tmp_path / "store").rglob("c")) == []


def make_foreign(store: Path) -> None:
    store.mkdir()
    (store / "thesis.txt").write_text("the only copy")


def make_file(store: Path) -> None:
    store.write_text("the only copy")


def make_loop(store: Path) -> None:
    store.symlink_to(store)


def make_nothing_above(store: Path) -> None:
    store.parent.rmdir()
    store.parent.write_text("a file where a folder should be")


BAD_OUTPUTS: Final = (make_foreign, make_file, make_loop, make_nothing_above)


@pytest.mark.parametrize("make", BAD_OUTPUTS)
def test_output_that_is_no_store_is_refused_and_left_alone(
    make: Callable[[Path], None], mill: "Mill", front3d_world: Path, tmp_path: Path
) -> None:
    store = tmp_path / "above" / "store"
    store.parent.mkdir()
    make(store)
    before = mill.sums_of(tmp_path)
    done = mill.ingest(front3d_world, store)
    assert (done.code, error_of(done)) == (YOUR_INPUT, "ConfigError")
    assert mill.sums_of(tmp_path) == before


def test_store_on_a_file_system_that_takes_no_folders_is_refused(mill: "Mill", front3d_world: Path) -> None:
    done = mill.ingest(front3d_world, Path("/proc/self/store"))
    assert (done.code, error_of(done)) == (YOUR_INPUT, "ConfigError")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_folder_that_may_not_be_written_is_refused(
    mode: int, mill: "Mill", front3d_world: Path, small_store: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(small_store, tmp_path / "store"))
    store.chmod(mode)
    done = mill.ingest(front3d_world, store, "--splits", "train")
    store.chmod(0o755)
    assert (done.code, error_of(done)) == (YOUR_INPUT, "ConfigError")
    assert mill.sums_of(store) == mill.sums_of(small_store)


@pytest.mark.parametrize("command", ["verify", "show", "versions", "clean"])
@pytest.mark.parametrize("place", ["nowhere", "empty", "file"])
def test_reading_where_no_store_is_says_so(command: str, place: str, mill: "Mill", tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no store")
    before = sorted(tmp_path.rglob("*"))
    done = mill.run(command, tmp_path / place, "--json")
    assert (done.code, error_of(done)) == (YOUR_INPUT, "NotPublished")
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_raw_folder_is_refused(mill: "Mill", tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("nowhere", "empty"):
        done = mill.ingest(tmp_path / folder, tmp_path / "store")
        assert (done.code, error_of(done)) == (YOUR_INPUT, "ConfigError")


class FullDisk:
    """``os.fsync`` that has room for some files, and then none."""

    def __init__(self, room: int, real: Callable[[int], None]) -> None:
        self.calls = 0
        self._room = room
        self._real = real

    def __call__(self, handle: int) -> None:
        self.calls += 1
        if self.calls > self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._real(handle)


def ingest_with_room(config: IngestConfig, room: int) -> int:
    """Ingest where only ``room`` files can be flushed to disk; returns how many were asked for."""
    disk = FullDisk(room, os.fsync)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", disk)
        pipeline.ingest(config)
    return disk.calls


@pytest.mark.parametrize(
    "share",
    [0.0, 0.8, *(pytest.param(share, marks=pytest.mark.full) for share in (0.01, 0.3, 0.97, 1.0, *(n / 60 for n in range(1, 60))))],
)
def test_full_disk_publishes_nothing_and_the_next_run_completes(
    share: float, mill: "Mill", front3d_world: Path, train_store: Path, grown_store: Path, flushes: int, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(train_store, tmp_path / "store"))
    config = IngestConfig("front3d", front3d_world, store)
    with pytest.raises((OSError, RuntimeError), match="No space left"):
        ingest_with_room(config, min(flushes - 1, int(share * flushes)))
    assert mill.published(store) in (mill.published(train_store), mill.published(grown_store))
    assert pipeline.ingest(config).outcome in ("published", "unchanged")
    assert mill.sums_of(store) == mill.sums_of(grown_store)


@pytest.fixture(scope="module")
def flushes(front3d_world: Path, train_store: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many files and folders a run flushes that adds to ``train_store``."""
    store = Path(shutil.copytree(train_store, tmp_path_factory.mktemp("flushes") / "store"))
    return ingest_with_room(IngestConfig("front3d", front3d_world, store), 1 << 30)


def test_full_disk_while_a_shard_is_written_leaves_no_shard(
    front3d_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mill: "Mill", small_store: Path
) -> None:
    store = tmp_path / "store"
    config = IngestConfig("front3d", front3d_world, store, samples_per_part=2)
    real: Any = PartWriter.append

    def append(writer: Any, position: int, *rest: Any) -> None:
        if position == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(writer, position, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "append", append)
        with pytest.raises((OSError, RuntimeError), match="No space left"):
            pipeline.ingest(config)
    assert mill.published(store) is None
    assert list(store.glob("*/c/*")) == [] and list(store.glob("parts/*")) == []
    assert pipeline.ingest(replace(config, samples_per_part=2)).outcome == "published"
    assert mill.sums_of(store) == mill.sums_of(small_store)
