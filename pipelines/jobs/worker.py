"""The worker of the job service: starts what is queued, watches what runs, ends what is cancelled. One thread, one look at a time."""

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scenemill.pipelines.jobs.desk import read_request
from scenemill.pipelines.jobs.process import JobProcess
from scenemill.pipelines.jobs.roots import JobRoots
from scenemill.pipelines.jobs.specs import Command, make_command, results_left
from scenemill.pipelines.jobs.store import JobStore
from scenemill.schemas.errors import SceneMillError
from scenemill.schemas.jobs import CANCELLED, FAILED, INTERRUPTED, QUEUED, RUNNING, SUCCEEDED, Job
from scenemill.schemas.steps import reached

_LOOK_S: Final = 0.25
_FROM_OUTSIDE: Final = (130, -1, -2, -15)  # the shell's number for a keyboard's interrupt; hang-up, interrupt, termination
_KILLED: Final = -9
_LOG: Final = logging.getLogger(__name__)


@dataclass
class _Held:
    """What the worker knows of a job that runs."""

    process: JobProcess
    asked: float | None = None  # when it was asked to end


class JobWorker:
    """Runs jobs, some at a time, in the order in which they were created.

    Args:
        store: the table of jobs.
        roots: where their paths may be.
        home: the service's folder.
        slots: how many run at once; 0 for none, while a queue is to wait.
        grace_s: from the interrupt of a cancelled job to its end by force.
    """

    def __init__(self, store: JobStore, roots: JobRoots, home: Path, slots: int, grace_s: float) -> None:
        self._store, self._roots, self._home, self._slots, self._grace_s = store, roots, home, slots, grace_s
        self._held: dict[str, _Held] = {}
        self._wake, self._ending = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    def start(self) -> None:
        """Work in the background. Jobs that ran when an earlier service ended are found again by their processes."""
        self._thread.start()

    def wake(self) -> None:
        """Look at once: a job was created, cancelled or resumed."""
        self._wake.set()

    def close(self) -> None:
        """Stop looking; what runs goes on, for the next service to find."""
        self._ending = True
        self.wake()
        if self._thread.ident is not None:
            self._thread.join()

    def step(self) -> None:
        """One look at all that runs and is queued."""
        for job in self._store.find((RUNNING,), newest=False):
            self._watch(job)
        running = len(self._store.find((RUNNING,)))
        for job in self._store.find((QUEUED,), newest=False):
            if self._may_start(job) and running < self._slots:
                running += self._start(job)

    def _run(self) -> None:
        while not self._ending:
            settled = self._look()
            self._wake.wait(None if settled else _LOOK_S)
            self._wake.clear()

    def _look(self) -> bool:
        """One look, whatever becomes of it; True where nothing will change until the worker is woken."""
        try:
            self.step()
        except Exception:
            _LOG.exception("a look at the jobs failed; the next one tries again")
            return False
        return not self._held

    def _may_start(self, job: Job) -> bool:
        """Whether a job's parent has succeeded. A parent that never will ends the job; one that was interrupted may be resumed."""
        if job.parent is None:
            return True
        parent = self._store.get(job.parent)
        if parent.state in (FAILED, CANCELLED):
            self._store.end(job.id, FAILED, f"its parent {parent.id} ({parent.kind}) {_words(parent)}")
        return parent.state == SUCCEEDED

    def _start(self, job: Job) -> bool:
        """Start a job; False where it could not."""
        held = _Held(JobProcess(self._roots.folder(job.id)))
        held.process.clear()
        if not self._store.begin(job.id):
            return False
        reached("job begun")
        try:
            held.process.start(self._command(job), self._home / "cache")
            reached("process begun")
        except (SceneMillError, OSError, ValueError) as error:
            self._store.end(job.id, FAILED, f"could not be started: {error}")
            return False
        self._held[job.id] = held
        return True

    def _command(self, job: Job) -> Command:
        given = self._store.get(job.parent).results if job.parent else {}
        spec = read_request(self._roots, job.id)
        return make_command(job.kind, spec, self._roots, self._roots.folder(job.id), given)

    def _watch(self, job: Job) -> None:
        held = self._held.setdefault(job.id, _Held(JobProcess(self._roots.folder(job.id))))
        if not held.process.runs:
            held.process.end()  # what it left behind
            self._end(job, held.process)
            reached("end recorded")
            del self._held[job.id]
        elif self._store.cancelling(job.id):
            held.process.ask_to_end()
            reached("end asked")
            held.asked = held.asked or time.monotonic()
            if time.monotonic() - held.asked > self._grace_s:
                held.process.end()

    def _end(self, job: Job, process: JobProcess) -> None:
        """Write down how a job ended."""
        code, cancelled = process.exit_code, self._store.cancelling(job.id)
        if code == 0:
            self._store.end(job.id, SUCCEEDED, "", code, results_left(process.promised))
        elif cancelled:
            self._store.end(job.id, CANCELLED, "cancelled while it ran; resume goes on where it was", code)
        elif code is None:
            self._store.end(job.id, INTERRUPTED, "its process went without a word; resume goes on where it was")
        elif code in _FROM_OUTSIDE:
            self._store.end(job.id, INTERRUPTED, "it was told to end, from outside; resume goes on where it was", code)
        elif code == _KILLED:
            self._store.end(job.id, FAILED, "it was killed, as a system does that runs out of memory", code)
        else:
            self._store.end(job.id, FAILED, process.last_line() or "it failed, and printed nothing", code)


def _words(parent: Job) -> str:
    return "was cancelled" if parent.state == CANCELLED else f"failed: {parent.reason}"
