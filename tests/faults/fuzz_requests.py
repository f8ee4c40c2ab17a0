"""Fuzz targets: requests to the two servers.

Each is asked of the application as it is served, and again without the token and by another host's name, where nothing but a refusal may
come.
"""

import json
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from starlette.types import ASGIApp

from scenemill.pipelines.jobs_desk import JobDesk
from scenemill.pipelines.jobs_guard import JobAccess, JobGuard
from scenemill.pipelines.jobs_metrics import JobMetrics
from scenemill.pipelines.jobs_roots import JobRoots
from scenemill.pipelines.jobs_run import LOG
from scenemill.pipelines.jobs_service import make_app as make_service
from scenemill.pipelines.jobs_store import JobStore
from scenemill.pipelines.predictions import Prediction, write_prediction
from scenemill.pipelines.view_guard import Access
from scenemill.pipelines.view_roots import Roots
from scenemill.pipelines.view_server import make_app as make_viewer
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.jobs import FAILED, QUEUED, SUCCEEDED, JobRequest
from scenemill.trainers.timelapse import Timelapse
from scenemill.transforms.store import open_store
from tests.faults.fuzz_asgi import Answer, Asker, Request, request_of
from tests.faults.fuzz_predictions import CAMERA
from tests.faults.fuzz_target import SECRET, FuzzTarget, right
from tests.faults.fuzz_texts import make_tables
from tests.golden.test_golden import write_store

TOKEN: Final = "a-word-that-is-known"
NAMES: Final = frozenset({"localhost", "127.0.0.1"})
_STRANGER: Final = b"evil.example"

_VIEWED: Final = frozenset({200, 303, 304, 307, 403, 404, 405, 414, 422})
_SERVED: Final = frozenset({200, 201, 400, 401, 403, 404, 405, 408, 409, 413, 414, 422})
_METRICS_BYTE: Final = 1 << 19  # what clients make up must not become figures without end
_READING: Final = (b"GET", b"HEAD")
_WRITTEN: Final = (  # of numbers and words in parameters
    *(b"GET ", b"HEAD ", b"POST ", b"?", b"&", b"=", b"%2e%2e%2f", b"%00", b"%ff", b"/../", b"//", b"%2F", b"..", b"\n", b"\n\n"),
    *(b"-1", b"1e308", b"1e18", b"1e19", b"99999999999999999999", b"nan", b"1_0", b"%D9%A1", b"%F0%9F%98%80", b"%ED%A0%80", b"+"),
    *(b"host: localhost", b"host: 127.0.0.1:80", b"host: evil.example", b"host: [::1", b"if-none-match: ", b'"*"', b"W/"),
    *(
        b"content-length: ",
        b"content-type: ",
        b"transfer-encoding: chunked",
        b"cookie: ",
        b"upgrade: websocket",
        b"range: bytes=0-",
    ),
    *(b"x-forwarded-host: localhost", b"origin: http://evil.example", b"accept: ", b"expect: 100-continue", TOKEN.encode()),
)


@dataclass(frozen=True)
class Guarded:
    """An application behind its guard, twice: with a token that inputs may hold, and with one that nobody knows.

    Attributes:
        known: answers to those with ``TOKEN``.
        unknown: answers to nobody.
        refusals: what those are told who may not ask.
    """

    known: ASGIApp
    unknown: ASGIApp
    refusals: frozenset[int]

    def check_refused(self, asker: Asker, request: Request) -> None:
        """Ask without the token, and by another name.

        Raises:
            Wrong: there was more than a refusal.
        """
        for app, asked in ((self.unknown, request), (self.known, request.with_header(b"host", _STRANGER))):
            answer = asker.ask(app, asked)
            right(answer is None or answer.status in self.refusals, f"answered without a right to it: {answer}"[:200])


def files_under(folder: Path) -> dict[str, tuple[int, int]]:
    """Path -> size and time of every file."""
    found = {}
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    status = entry.stat(follow_symlinks=False)
                    found[entry.path] = status.st_size, status.st_mtime_ns
    return found


def _check_answer(answer: Answer, request: Request, statuses: frozenset[int], folder: Path) -> None:
    right(answer.status in statuses, f"status {answer.status}")
    right(SECRET not in answer.body and SECRET.decode() not in str(answer.headers), "the secret of a file is told")
    asked = request.target + request.body + b"".join(value for _, value in request.headers)
    told = str(folder).encode()
    right(told in asked or told not in answer.body, "the path of a folder is told")
    if answer.status >= 400 and request.method != b"HEAD":
        error = json.loads(answer.body)["error"]
        right(set(error) == {"kind", "what", "where", "now"} and bool(error["now"]), "a refusal of another form")
    right(not re.search("[\r\n\0]", "".join(answer.headers.values())), "a header of several lines")


def _head(line: str, *more: str) -> bytes:
    return "\n".join((line, "host: localhost", f"cookie: scenemill={TOKEN}", *more)).encode() + b"\n\n"


def write_viewed(folder: Path) -> tuple[Path, str]:
    """One of everything that the viewer shows, and a secret beside it; the folder, and the key of a sample."""
    shown = folder / "shown"
    shown.mkdir()
    write_store("front3d", shown / "store", CAMERA)
    key = open_store(shown / "store").keys[0]
    flat, volume = np.ones((6, 8), np.int32), np.zeros((64, 64, 64), np.int32)
    volume[30:34, 30:34, 8:12] = 1
    told = Prediction(flat, {1: 3}, flat.astype(np.float32), volume, {1: 3}, volume.astype(np.float32))
    write_prediction(shown / "told", key, told)
    make_tables(shown / "tables")
    with Timelapse(shown / "log") as writer:
        for time in (0, 10):
            writer.add_pointcloud_batch(time, "moving", [np.eye(3, dtype=np.float32)])
    (folder / "secret.json").write_bytes(SECRET)
    (shown / "log" / "secret").symlink_to(folder)
    (shown / "told" / "secret").symlink_to(folder)
    return shown, key


def view_request(folder: Path) -> FuzzTarget:
    """A request to the viewer."""
    shown, key = write_viewed(folder)
    roots = Roots([shown], poll_s=3600)
    known, unknown = (make_viewer(roots, Access(NAMES, token)) for token in (TOKEN, secrets.token_hex(32)))
    app, asker = Guarded(known, unknown, frozenset({403, 405, 414})), Asker()
    before = files_under(folder)

    def read(data: bytes) -> None:
        request = request_of(data)
        app.check_refused(asker, request)
        answer = asker.ask(app.known, request)
        if answer is not None:
            _check_answer(answer, request, _VIEWED, folder)
            right(request.method in _READING or answer.status == 405, "more than a reader was answered")
        right(files_under(folder) == before, "files have changed")

    places = [f"root=store&item={key}&what={what}" for what in ("surface", "voxels", "points")]
    places += [f"root=told&item={key}&what=voxels&detail=full", "root=log&item=pointcloud/moving/0&time=9&have=a,b"]
    planes = [
        f"root=store&item={key}&what=geometry&axis=z&index=3",
        f"root=store&item={key}&what=rgb",
        f"root=told&item={key}&what=view",
    ]
    planes += [f"root=told&item={key}&what={what}&axis=x&index=1" for what in ("classes", "depth", "distance", "segments_3d")]
    asked = ["/", "/page/app.js", "/api/index", "/api/index/", "/api/health", f"/?token={TOKEN}", f"/api/sample?key={key}"]
    asked += [f"/api/samples?root={root}&find=a&split=train&from=0" for root in ("store", "told")]
    asked += [
        "/api/findings?root=store&severity=error&find=x&from=0",
        "/api/worst?root=tables&run=a&metric=prq&rule=reference&from=0",
    ]
    asked += [f"/api/scene?{place}" for place in places] + [f"/api/plane?{place}" for place in planes]
    seeds = tuple(_head(f"GET {path}") for path in asked) + (_head("HEAD /api/index", 'if-none-match: "x"'), _head("POST /") + b"a")
    names = ("root", "item", "key", "what", "time", "detail", "have", "find", "split", "from", "severity", "run", "metric", "rule")
    values = (
        "store",
        "told",
        "tables",
        "log",
        "geometry",
        "semantic_3d",
        "classes_3d",
        "depth",
        "surface",
        "voxels",
        "points",
        "full",
    )
    words = (*(f"&{name}=".encode() for name in (*names, "axis", "index", "token")), *map(str.encode, values), *_WRITTEN)
    return FuzzTarget(
        "view_request", seeds, read, (ConfigError,), (*words, key.encode(), b"pointcloud/moving/0"), 1024, asks=True, light=80
    )


class _Jobs:
    """A service that runs nothing, with a job in every state that is not running; put back after each request that changed it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.home = folder / "root", folder / "home"
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
        self._app = make_service(desk, self._metrics)
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
            _check_answer(answer, request, _SERVED, jobs.home)
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
    words = (*(f'"{name}": '.encode() for name in names), str(jobs.root).encode(), *map(str.encode, jobs.ids), *_WRITTEN)
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
        b"{",
        b"NaN",
        b"\\ud800",
    )
    return FuzzTarget("job_request", seeds, read, (ConfigError,), words + more, 1024, light=60)


TARGETS: Final[dict[str, Callable[[Path], FuzzTarget]]] = {"view_request": view_request, "job_request": job_request}
