"""Kill the job service, or the process that runs a job, at any step: after a new start the job is done, or told as one to resume."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from scenemill.pipelines.jobs.store import JobStore
from scenemill.schemas.jobs import Job

if TYPE_CHECKING:
    from tests.faults.conftest import Mill

ENDS: Final = {
    "job queued": {"succeeded"},
    "job begun": {"interrupted"},
    "process begun": {"succeeded", "interrupted"},
    "process known": {"interrupted"},
    "command ended": {"interrupted"},
    "exit kept": {"succeeded"},
    "end recorded": {"succeeded"},
}
"""Step -> in which states the job may be after the service was started again."""

OF_THE_JOB: Final = ("process known", "command ended", "exit kept")
"""Steps at which the job's own process dies, and the service lives."""


def jobs_of(folder: Path) -> list[Job]:
    store = JobStore(folder / "home" / "jobs.sqlite")
    try:
        return store.find()
    finally:
        store.close()


def results_of(folder: Path, job: Job) -> Path:
    return folder / "home" / "jobs" / job.id / "results"


@pytest.fixture
def service(mill: "Mill", tmp_path: Path) -> Path:
    """The folder of a service that has not begun."""
    modules = ("desk", "worker", "roots", "specs", "store")
    mill.load("tests.faults.deeds", *(f"scenemill.pipelines.jobs.{module}" for module in modules))
    (tmp_path / "root").mkdir()
    return tmp_path


def finish(mill: "Mill", folder: Path) -> Job:
    """Start the service again, and resume the job if it says so; the job when it has succeeded."""
    (job,) = jobs_of(folder)
    if job.state in ("interrupted", "cancelled"):
        again = mill.do("serve", folder=folder, resume=job.id)
        assert again.code == 0, again.said
    (job,) = jobs_of(folder)
    assert job.state == "succeeded", job
    assert (results_of(folder, job) / "store").read_text() == "what the job makes"
    assert job.results == {"store": str(results_of(folder, job) / "store")}
    return job


@pytest.mark.parametrize("kill_at", ENDS)
def test_a_job_whose_service_or_process_was_killed_is_done_or_can_be_resumed(kill_at: str, mill: "Mill", service: Path) -> None:
    killed = mill.do("serve", kill_at, folder=service, create="rooms")
    assert killed.code == (0 if kill_at in OF_THE_JOB else -signal.SIGKILL), killed.said
    again = mill.do("serve", folder=service)
    assert again.code == 0, again.said
    (job,) = jobs_of(service)
    assert job.state in ENDS[kill_at]
    assert job.state == "succeeded" or "resume goes on" in job.reason
    finish(mill, service)


def test_a_job_that_was_not_accepted_is_in_no_list_and_can_be_created_again(mill: "Mill", service: Path) -> None:
    assert mill.do("serve", "request kept", folder=service, create="rooms").code == -signal.SIGKILL
    assert jobs_of(service) == []
    assert mill.do("serve", folder=service, create="rooms").code == 0
    finish(mill, service)


@pytest.mark.parametrize("kill_at", ["cancel recorded", "end asked"])
def test_a_cancel_that_was_recorded_is_carried_out_by_the_next_service(kill_at: str, mill: "Mill", service: Path) -> None:
    killed = mill.do("serve", kill_at, folder=service, create="slow", cancel=True)
    assert killed.code == -signal.SIGKILL, killed.said
    (job,) = jobs_of(service)
    assert job.state == "running"
    assert mill.do("serve", folder=service).code == 0
    (job,) = jobs_of(service)
    assert (job.state, job.attempt) == ("cancelled", 1)
    (results_of(service, job) / "hurry").touch()
    assert finish(mill, service).attempt == 2
