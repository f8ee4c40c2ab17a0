"""The worker of the job service, with real processes: begun in turn, watched, cancelled, found again, resumed."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from scenemill.pipelines.jobs import worker as jobs_worker
from scenemill.pipelines.jobs.desk import JobDesk
from scenemill.pipelines.jobs.process import JobProcess
from scenemill.pipelines.jobs.roots import JobRoots
from scenemill.pipelines.jobs.run import EXIT, LOG, write_json
from scenemill.pipelines.jobs.specs import REQUEST_FILE, Command
from scenemill.pipelines.jobs.store import JobStore, new_id
from scenemill.pipelines.jobs.worker import JobWorker
from scenemill.schemas.jobs import JobRequest

SLEEP = "import time\nprint('begun', flush=True)\ntime.sleep(60)"
STUBBORN = f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{SLEEP}"


class Bench:
    """A table, folders and a worker whose jobs are Python scripts in place of scenemill's commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.store = JobStore(self.folder / "jobs.sqlite")
        self.roots = JobRoots([self.folder], self.folder / "home")
        self.worker = self.new_worker()

    def new_worker(self, slots: int = 1, grace_s: float = 60.0) -> JobWorker:
        self.worker = JobWorker(self.store, self.roots, self.folder / "home", slots, grace_s)
        return self.worker

    def add(self, script: str, parent: str | None = None) -> str:
        job = new_id()
        self.roots.folder(job).mkdir(parents=True)
        write_json(self.roots.folder(job) / REQUEST_FILE, {"script": script})
        self.store.add(job, JobRequest("ingest", parent=parent), {})
        return job

    def until(self, holds: Callable[[], bool]) -> None:
        """Let the worker look until something holds."""
        for _ in range(1000):
            self.worker.step()
            if holds():
                return
            time.sleep(0.02)
        raise AssertionError({job.id: (job.state, job.reason) for job in self.store.find()})

    def ends(self, job: str, state: str) -> str:
        """Let the worker look until a job is in a state; the reason."""
        self.until(lambda: self.store.get(job).state not in ("queued", "running"))
        held = self.store.get(job)
        assert held.state == state, (held, self.log(job))
        return held.reason

    def prints(self, job: str, text: str) -> None:
        self.until(lambda: text in self.log(job))

    def log(self, job: str) -> str:
        path = self.roots.folder(job) / LOG
        return path.read_text() if path.exists() else ""

    def leader(self, job: str) -> int:
        process = JobProcess(self.roots.folder(job))._leader()
        assert process is not None
        return process.pid

    def processes(self, job: str) -> list[int]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SCENEMILL_JOB") == job and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
            except psutil.Error:
                pass
        return found


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    def script(kind: str, spec: dict[str, Any], roots: JobRoots, folder: Path, given: Mapping[str, str]) -> Command:
        assert kind == "ingest"
        text = spec["script"].replace("{store}", given.get("store", ""))
        return Command((sys.executable, "-c", text), None, {"store": str(folder / "results" / "store")})

    monkeypatch.setattr(jobs_worker, "make_command", script)
    made = Bench(tmp_path)
    yield made
    for job in made.store.find(("running",)):
        JobProcess(made.roots.folder(job.id)).end()
    made.until(lambda: not made.store.find(("running",)))
    made.store.close()


def test_a_job_that_ends_well_has_succeeded_and_left_what_it_promised(bench: Bench) -> None:
    job = bench.add("print('hello'); open('store', 'w').write('x')")
    bench.ends(job, "succeeded")
    held = bench.store.get(job)
    assert (held.exit_code, held.reason, held.attempt) == (0, "", 1)
    assert held.results == {"store": str(bench.roots.folder(job) / "results" / "store")}
    assert bench.log(job) == "hello\n" and held.started is not None and held.ended is not None and held.started <= held.ended


def test_a_job_that_fails_says_why_by_its_last_line(bench: Bench) -> None:
    job = bench.add("import sys; print('some'); print('ConfigError: no such folder', file=sys.stderr); print(); sys.exit(2)")
    assert bench.ends(job, "failed") == "ConfigError: no such folder"
    assert (bench.store.get(job).exit_code, bench.store.get(job).results) == (2, {})
    assert bench.ends(bench.add("import os; os._exit(1)"), "failed") == "it failed, and printed nothing"


def test_a_job_killed_by_the_system_has_failed_and_one_told_to_end_is_interrupted(bench: Bench) -> None:
    for number, state in ((signal.SIGKILL, "failed"), (signal.SIGTERM, "interrupted")):
        job = bench.add(f"import os; os.kill(os.getpid(), {int(number)})")
        bench.ends(job, state)
        assert bench.store.get(job).exit_code == -number


def test_jobs_run_in_the_order_they_came_as_many_at_once_as_there_are_slots(bench: Bench) -> None:
    bench.new_worker(slots=2)
    times = [bench.add("import time; print(time.time()); time.sleep(0.3); print(time.time())") for _ in range(5)]
    bench.until(lambda: len(bench.store.find(("succeeded",))) == 5)
    spans = [tuple(map(float, bench.log(job).split())) for job in times]
    most = max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)
    began = [bench.store.get(job).started or "" for job in times]
    assert most == 2 and began == sorted(began)


def test_with_no_slots_the_queue_is_kept(bench: Bench) -> None:
    bench.new_worker(slots=0)
    job = bench.add("print('never')")
    for _ in range(5):
        bench.worker.step()
    assert bench.store.get(job).state == "queued"
    bench.new_worker(slots=1)
    bench.ends(job, "succeeded")


def test_a_child_waits_for_its_parent_and_gets_what_it_left(bench: Bench) -> None:
    bench.new_worker(slots=2)
    parent = bench.add("import time; time.sleep(0.5); open('store', 'w').write('from the parent')")
    child = bench.add("print(open('{store}').read())", parent)
    bench.until(lambda: bench.store.get(parent).state == "running")
    for _ in range(3):
        bench.worker.step()
    assert bench.store.get(child).state == "queued"
    bench.ends(child, "succeeded")
    assert bench.log(child) == "from the parent\n"


def test_a_child_fails_with_its_parent_and_so_do_its_own(bench: Bench) -> None:
    parent = bench.add("raise SystemExit('no data')")
    child = bench.add("print('never')", parent)
    grandchild = bench.add("print('never')", child)
    reason = bench.ends(grandchild, "failed")
    assert bench.store.get(child).reason == f"its parent {parent} (ingest) failed: no data" and child in reason
    assert bench.log(child) == "" and bench.store.get(child).attempt == 0
    gone = bench.add("print('never')")
    bench.store.cancel(gone)
    assert bench.ends(bench.add("print('never')", gone), "failed") == f"its parent {gone} (ingest) was cancelled"


def test_a_child_of_an_interrupted_job_waits_until_it_is_resumed(bench: Bench) -> None:
    again = "import os, sys\nif not os.path.exists('seen'): open('seen', 'w'); os.kill(os.getpid(), 15)\nopen('store', 'w').write('whole')"
    parent = bench.add(again.replace("): open", "):\n    open").replace("; os.kill", "\n    os.kill"))
    child = bench.add("print(open('{store}').read())", parent)
    bench.ends(parent, "interrupted")
    bench.worker.step()
    assert bench.store.get(child).state == "queued"
    bench.store.resume(parent)
    bench.ends(child, "succeeded")
    assert bench.store.get(parent).attempt == 2 and bench.log(child) == "whole\n"


def test_a_cancelled_job_is_interrupted_as_from_the_keyboard(bench: Bench) -> None:
    job = bench.add(
        f"try:\n    {SLEEP.replace(chr(10), chr(10) + '    ')}\nexcept KeyboardInterrupt:\n    print('kept'); raise SystemExit(130)"
    )
    bench.prints(job, "begun")
    bench.store.cancel(job)
    assert "resume" in bench.ends(job, "cancelled")
    assert bench.log(job) == "begun\nkept\n" and bench.store.get(job).exit_code == 130 and bench.processes(job) == []


def test_a_job_that_does_not_listen_is_killed_with_all_it_started(bench: Bench) -> None:
    bench.new_worker(grace_s=0.3)
    started = f"subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]"
    job = bench.add(f"import subprocess, sys\n{started})\n{started}, start_new_session=True)\n{STUBBORN}")
    bench.until(lambda: bench.log(job).count("begun") == 3)
    assert len(bench.processes(job)) == 4  # three and the one that waits
    bench.store.cancel(job)
    bench.ends(job, "cancelled")
    assert bench.processes(job) == []


def test_what_a_job_leaves_running_ends_with_it(bench: Bench) -> None:
    job = bench.add(f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)")
    bench.ends(job, "succeeded")
    bench.until(lambda: bench.processes(job) == [])


def test_a_job_that_ended_before_it_was_cancelled_has_succeeded(bench: Bench) -> None:
    job = bench.add("print('done')")
    bench.prints(job, "done")
    bench.until(lambda: (bench.roots.folder(job) / EXIT).exists() or bench.store.get(job).state == "succeeded")
    if bench.store.get(job).state == "running":
        bench.store.cancel(job)
    bench.ends(job, "succeeded")


def test_a_new_worker_finds_a_job_that_runs_and_learns_how_it_ends(bench: Bench) -> None:
    job = bench.add("import time\nwhile True:\n    time.sleep(0.02)\n    if open('go').read(): break\nraise SystemExit(3)")
    (bench.roots.folder(job) / "results").mkdir()
    go = bench.roots.folder(job) / "results" / "go"
    go.write_text("")
    bench.until(lambda: bench.store.get(job).state == "running" and bool(bench.processes(job)))
    leader = bench.processes(job)
    bench.until(lambda: JobProcess(bench.roots.folder(job)).runs)
    bench.new_worker()
    for _ in range(5):
        bench.worker.step()
    assert bench.store.get(job).state == "running" and set(bench.processes(job)) >= set(leader)
    go.write_text("now")
    bench.ends(job, "failed")
    assert (bench.store.get(job).exit_code, bench.store.get(job).attempt) == (3, 1)


def test_a_new_worker_learns_of_a_job_that_ended_meanwhile(bench: Bench) -> None:
    job = bench.add("print('done'); open('store', 'w')")
    bench.worker.step()
    bench.new_worker()
    while not (bench.roots.folder(job) / EXIT).exists():
        time.sleep(0.02)
    bench.ends(job, "succeeded")
    assert "store" in bench.store.get(job).results


def test_a_new_worker_can_cancel_what_an_old_one_started(bench: Bench) -> None:
    job = bench.add(SLEEP)
    bench.prints(job, "begun")
    bench.store.cancel(job)
    bench.new_worker()
    bench.ends(job, "cancelled")
    assert bench.processes(job) == []


def test_a_job_whose_processes_are_gone_is_interrupted_and_goes_on_when_resumed(bench: Bench) -> None:
    job = bench.add(
        "import os, time\nwith open('count', 'a') as file: file.write('x')\nif len(open('count').read()) < 2: time.sleep(60)"
    )
    bench.until((bench.roots.folder(job) / "results" / "count").exists)
    os.kill(bench.leader(job), signal.SIGKILL)
    assert "without a word" in bench.ends(job, "interrupted")
    assert bench.processes(job) == []  # the command lost what it reported to
    bench.store.resume(job)
    bench.ends(job, "succeeded")
    assert bench.store.get(job).attempt == 2 and (bench.roots.folder(job) / "results" / "count").read_text() == "xx"


def test_another_process_of_the_same_number_is_not_taken_for_a_job(bench: Bench) -> None:
    job = bench.add(SLEEP)
    bench.prints(job, "begun")
    os.kill(bench.leader(job), signal.SIGKILL)
    JobProcess(bench.roots.folder(job)).end()
    write_json(bench.roots.folder(job) / "process.json", {"pid": os.getpid(), "began": 1.0})
    bench.new_worker()
    bench.ends(job, "interrupted")


def test_a_service_that_died_while_it_began_a_job_leaves_it_interrupted_not_ended_as_before(bench: Bench) -> None:
    job = bench.add("raise SystemExit(2)")
    bench.ends(job, "failed")
    bench.store.resume(job)
    JobProcess(bench.roots.folder(job)).clear()  # what comes first
    bench.store.begin(job)
    bench.new_worker()
    bench.ends(job, "interrupted")


def test_a_job_that_cannot_be_started_fails_with_the_reason(bench: Bench) -> None:
    job = bench.add("print('never')")
    (bench.roots.folder(job) / REQUEST_FILE).write_text("{")
    assert "could not be started" in bench.ends(job, "failed")


def test_jobs_do_not_know_the_token_and_have_a_cache_of_their_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENEMILL_JOBS_TOKEN", "a" * 32)
    monkeypatch.delenv("SCENEMILL_CACHE", raising=False)
    job = bench.add(
        "import os, sys; print('SCENEMILL_JOBS_TOKEN' in os.environ, os.environ['SCENEMILL_CACHE'], sys.stdin.read() == '')"
    )
    bench.ends(job, "succeeded")
    assert bench.log(job) == f"False {bench.folder / 'home' / 'cache'} True\n"


def test_the_worker_works_in_the_background_and_leaves_what_runs(bench: Bench) -> None:
    done, running = bench.add("print('done')"), bench.add(SLEEP)
    bench.worker.start()
    bench.worker.wake()
    for _ in range(500):
        if "begun" in bench.log(running):
            break
        time.sleep(0.02)
    bench.worker.close()
    assert (bench.store.get(done).state, bench.store.get(running).state) == ("succeeded", "running")
    assert JobProcess(bench.roots.folder(running)).runs


def test_a_log_is_read_in_pieces_of_whole_characters(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenemill.pipelines.jobs.desk.PIECE_BYTE", 4)
    job, desk = bench.add("import sys; sys.stdout.buffer.write('aé€😀z'.encode() + b'\\xff!' + '€'.encode()[:2])"), None
    bench.ends(job, "succeeded")
    desk = JobDesk(bench.store, bench.roots, lambda: None)
    pieces, offset = [], 0
    for _ in range(20):
        piece = desk.log(job, offset)
        assert piece.offset == offset and piece.state == "succeeded"
        pieces.append(piece.text)
        if piece.next == offset:
            break
        offset = piece.next
    assert "".join(pieces) == "aé€😀z\ufffd!\ufffd" and max(map(len, pieces)) <= 4
    assert offset == (bench.roots.folder(job) / LOG).stat().st_size
