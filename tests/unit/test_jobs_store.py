"""The table of jobs: states change as they may, by one alone, and are there after a restart."""

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from hypothesis.strategies import DataObject, data, sampled_from

from scenemill.pipelines.jobs.store import JobStore, new_id
from scenemill.schemas.errors import ConfigError, Conflict, WrongVersion
from scenemill.schemas.jobs import Job, JobRequest


def add(store: JobStore, kind: str = "train", **more: Any) -> str:
    return store.add(new_id(), JobRequest(kind, **more), {"results_dir": "x"}).id


def test_a_new_job_is_queued_and_says_what_it_was_told(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    parent = add(store, "ingest")
    job = store.get(add(store, name="stage 1", parent=parent))
    assert (job.name, job.kind, job.parent, job.state, job.attempt) == ("stage 1", "train", parent, "queued", 0)
    assert (job.spec, job.results, job.exit_code, job.started, job.ended) == ({"results_dir": "x"}, {}, None, None, None)
    assert store.get(parent).name == "ingest"
    store.close()


def test_jobs_are_found_by_state_and_kind_in_either_order(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    ids = [add(store, kind) for kind in ("train", "ingest", "train", "fit")]
    store.begin(ids[2])
    assert [job.id for job in store.find()] == ids[::-1]
    assert [job.id for job in store.find(newest=False)] == ids
    assert [job.id for job in store.find(("queued",), "train")] == [ids[0]]
    assert [job.id for job in store.find(("queued", "running"), "train", limit=1)] == [ids[2]]
    assert store.count() == {("train", "queued"): 1, ("train", "running"): 1, ("ingest", "queued"): 1, ("fit", "queued"): 1}
    store.close()


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    first = JobStore(tmp_path / "jobs.sqlite")
    job = add(first)
    first.begin(job)
    first.cancel(job)
    before = first.get(job)
    first.close()
    second = JobStore(tmp_path / "jobs.sqlite")
    assert second.get(job) == before and second.cancelling(job)
    second.close()


def test_one_alone_of_many_begins_a_job(tmp_path: Path) -> None:
    stores = [JobStore(tmp_path / "jobs.sqlite") for _ in range(4)]
    job, began = add(stores[0]), []
    threads = [threading.Thread(target=lambda store=store: began.append(store.begin(job))) for store in stores for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(began) == [False] * 15 + [True] and stores[0].get(job).attempt == 1
    for store in stores:
        store.close()


def test_a_table_of_another_version_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "jobs.sqlite") as database:
        database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(WrongVersion, match="version 7"):
        JobStore(tmp_path / "jobs.sqlite")


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(b"not a database at all, but long enough to be read as a header" * 40)
    with pytest.raises(ConfigError, match="--home"):
        JobStore(tmp_path / "jobs.sqlite")


def test_an_unknown_job_is_told(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    for ask in (store.get, store.cancel, store.resume):
        with pytest.raises(ConfigError, match="not known"):
            ask("0" * 16)
    store.close()


class Life(RuleBasedStateMachine):
    """The states of one job against a table of what may follow what."""

    @initialize()
    def begin_life(self) -> None:
        self.store = JobStore(Path(":memory:"))
        self.job = add(self.store)
        self.state, self.attempt, self.marked = "queued", 0, False

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()

    @rule()
    def start(self) -> None:
        assert self.store.begin(self.job) == (self.state == "queued")
        if self.state == "queued":
            self.state, self.attempt = "running", self.attempt + 1

    @rule(drawn=data())
    @precondition(lambda self: self.state in ("queued", "running"))
    def end(self, drawn: DataObject) -> None:
        self.state = drawn.draw(sampled_from(["succeeded", "failed", "cancelled", "interrupted"]))
        self.store.end(self.job, self.state, "why", 1, {"store": "x"})
        self.marked = False

    @rule()
    @precondition(lambda self: self.state not in ("queued", "running"))
    def end_again(self) -> None:
        before = self.store.get(self.job)
        self.store.end(self.job, "failed", "too late", 9)
        assert self.store.get(self.job) == before

    @rule()
    def cancel(self) -> None:
        if self.state in ("queued", "running"):
            self.store.cancel(self.job)
            self.marked = self.state == "running"
            self.state = "cancelled" if self.state == "queued" else "running"
        else:
            with pytest.raises(Conflict, match=self.state):
                self.store.cancel(self.job)

    @rule()
    def resume(self) -> None:
        if self.state in ("failed", "cancelled", "interrupted"):
            assert self.store.resume(self.job).exit_code is None
            self.state = "queued"
        else:
            with pytest.raises(Conflict, match=self.state):
                self.store.resume(self.job)

    def check(self, job: Job) -> None:
        assert (job.state, job.attempt) == (self.state, self.attempt)
        assert (job.ended is not None) == (self.state not in ("queued", "running"))
        assert self.store.cancelling(self.job) == self.marked

    @rule()
    def look(self) -> None:
        self.check(self.store.get(self.job))


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)
