"""Fuzz target: requests to the job service, which runs nothing meanwhile.

Each is asked of the application as it is served, and again without the token and by another host's name, where nothing but a refusal may
come.
"""

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from starlette.types import ASGIApp

from scenemill.pipelines.jobs.answers import make_app
from scenemill.pipelines.jobs.desk import JobDesk
from scenemill.pipelines.jobs.guard import JobAccess, JobGuard
from scenemill.pipelines.jobs.metrics import JobMetrics
from scenemill.pipelines.jobs.roots import JobRoots
from scenemill.pipelines.jobs.run import LOG
from scenemill.pipelines.jobs.store import JobStore
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.jobs import FAILED, QUEUED, SUCCEEDED, JobRequest
from tests.faults.fuzz_asgi import NAMES, TOKEN, WORDS, Answer, Asker, Guarded, Request, check_answer, files_under, request_of
from tests.faults.fuzz_target import SECRET, FuzzTarget, right

_STATUSES: Final = frozenset({200, 201, 400, 401, 403, 404, 405, 408, 409, 413, 414, 422})
_METRICS_BYTE: Final = 1 << 19  # what clients make up must not become figures without end


class _Jobs:
    """A service that runs nothing, with a job in every state that is not running; put back after each request that changed it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.home = folder / "service" / "root", folder / "service" / "home"
        (self.root / "raw").mkdir(parents=True)
        (self.root / "link").symlink_to(folder)
        (folder / "secret").write_bytes(SECRET)
        self.home.mkdir()
        (self.home / "token").write_bytes(SECRET)
        self._roots = JobRoots([self.root], self.home)
        self._store = JobStore(self.home / "jobs.sqlite")
        self.ids = [f"{number:016x}" for number in range(3)]
        self._put_back()
        desk, self._metrics = JobDesk(self._store, self._roots, lambda: None), JobMetrics(self._store, 1)
        self._app = make_app(desk, self._metrics)
        self.whole = self.files()

    def guarded(self, token: str) -> ASGIApp:
        """The application as it is served."""
        return self._metrics.watch(JobGuard(self._app, JobAccess(NAMES, token)))

    def files(self) -> dict[str, tuple[int, int]]:
        """All but the database, which SQLite touches when it reads."""
        return {path: held for path, held in files_under(self.home.parent).items() if "jobs.sqlite" not in path}

    def states(self) -> list[tuple[str, str]]:
        """The jobs there are."""
        return [(job.id, job.state) for job in self._store.find(newest=False)]

    def put_back(self) -> None:
        """The world as it was before a request that may have changed it."""
        for job in self._store.find():
            if job.id not in self.ids:
                (self._roots.folder(job.id) / "request.json").unlink(missing_ok=True)
                self._roots.folder(job.id).rmdir()
        self._put_back()

    def _put_back(self) -> None:
        self._store._change("DELETE FROM job", ())
        for name, state in zip(self.ids, (QUEUED, SUCCEEDED, FAILED), strict=True):
            self._store.add(name, JobRequest("train", {}), {})
            self._store._change("UPDATE job SET state = ? WHERE id = ?", (state, name))
            folder = self._roots.folder(name)
            if not folder.exists():
                folder.mkdir(parents=True)
                (folder / LOG).write_bytes("log of a job, with é in it\n".encode())


def _check_job(answer: Answer, request: Request) -> None:
    if answer.status == 201:
        right("encryption_key" not in json.loads(answer.body)["spec"], "a secret is told")
    if request.target.startswith(b"/metrics") and answer.status == 200:
        right(len(answer.body) < _METRICS_BYTE, f"figures of {len(answer.body)} bytes")


def job_request(folder: Path) -> FuzzTarget:
    """A request to the job service."""
    jobs, asker = _Jobs(folder), Asker()
    app = Guarded(jobs.guarded(TOKEN), jobs.guarded(secrets.token_hex(32)), frozenset({401, 403}))
    states = jobs.states()

    def read(data: bytes) -> None:
        request = request_of(data)
        app.check_refused(asker, request)
        answer = asker.ask(app.known, request)
        if answer is not None:
            check_answer(answer, request, _STATUSES, jobs.home)
            _check_job(answer, request)
        if request.method != b"POST" or answer is None or answer.status >= 400:
            right(jobs.states() == states and jobs.files() == jobs.whole, "something has changed")
        else:
            right(len(set(jobs.states()) - set(states)) <= 1, "more than one job has changed")
            jobs.put_back()

    def head(line: str, body: object = None, *more: str) -> bytes:
        text = b"" if body is None else json.dumps(body).encode()
        lines = (line, "host: localhost", f"authorization: Bearer {TOKEN}", "content-type: application/json", *more)
        return "\n".join(lines).encode() + b"\n\n" + text

    ingest = {"input": f"{jobs.root}/raw", "source": "front3d", "output": f"{jobs.root}/store"}
    bodies: list[dict[str, Any]] = [
        {"kind": "train", "name": "a b", "spec": {"encryption_key": "hunter2", "train": {"num_epochs": 3}}},
        {"kind": "ingest", "spec": ingest},
        {"kind": "ingest", "spec": {**ingest, "input": f"{jobs.root}/link/home"}},
        {"kind": "evaluate", "parent": jobs.ids[1], "spec": {"evaluate": {"checkpoint": "{parent.checkpoint}"}}},
        {"kind": "fit", "spec": {"store": f"{jobs.root}/raw", "settings": {}}},
    ]
    paths = ["/v1/kinds", "/v1/kinds/fit", "/v1/jobs?state=queued&state=failed&kind=train&limit=2", "/metrics", "/openapi.json"]
    paths += [f"/v1/jobs/{jobs.ids[0]}", f"/v1/jobs/{jobs.ids[1]}/log?offset=3&wait_s=0", f"/v1/jobs/{'f' * 16}"]
    seeds = tuple(head(f"GET {path}") for path in paths) + tuple(head("POST /v1/jobs", body) for body in bodies)
    seeds += tuple(head(f"POST /v1/jobs/{name}/{deed}") for name in jobs.ids for deed in ("cancel", "resume"))
    seeds += (head("POST /v1/jobs", bodies[1], "content-length: 20"), head("DELETE /v1/jobs"), head("HEAD /v1/kinds"))
    names = ("kind", "spec", "name", "parent", "input", "output", "store", "checkpoint", "settings", "encryption_key")
    words = (*(f'"{name}": '.encode() for name in names), str(jobs.root).encode(), *map(str.encode, jobs.ids), *WORDS)
    more = (
        b"/cancel",
        b"/resume",
        b"/log",
        b"?offset=",
        b"&wait_s=",
        b"limit=",
        b"state=",
        b"null",
        b"[" * 60,
        b"[" * 600 + b"1" + b"]" * 600,
        b"a" * 300,
        b"**/" * 3,
        b"*/" * 60,
        b"{",
        b"NaN",
        b"\\ud800",
    )
    return FuzzTarget("job_request", seeds, read, (ConfigError,), words + more, 3000, light=60, inside="service")


TARGETS: Final[dict[str, Callable[[Path], FuzzTarget]]] = {"job_request": job_request}
