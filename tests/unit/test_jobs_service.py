"""The job service over HTTP: who is answered, what is answered, and what is never told. No job runs here."""

import asyncio
import http.client
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import httpx
import jsonschema  # type: ignore[import-untyped]
import pytest
from starlette.types import Message, Receive, Scope, Send

from scenemill.pipelines.jobs import store as jobs_store
from scenemill.pipelines.jobs.answers import KindName, State
from scenemill.pipelines.jobs.guard import BODY_BYTE, JobAccess, JobGuard
from scenemill.pipelines.jobs.run import LOG
from scenemill.pipelines.jobs.server import JobService, JobServiceConfig
from scenemill.pipelines.jobs.store import JobStore
from scenemill.pipelines.jobs.token import TOKEN_FILE, TOKEN_VARIABLE
from scenemill.schemas.errors import ConfigError, Conflict
from scenemill.schemas.jobs import KINDS, QUEUED, STATES
from tests.unit.job_processes import living

SECRET = "open-sesame-9000"


class World:
    """A service that runs nothing, and someone who may ask it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.home = folder / "root", folder / "home"
        self.root.mkdir(parents=True)
        self.service = JobService(JobServiceConfig((self.root,), self.home, port=0, slots=0))
        self.token = (self.home / TOKEN_FILE).read_text()
        self.store = JobStore(self.home / "jobs.sqlite")
        self.http = httpx.Client(
            base_url=self.service.url, headers={"Authorization": f"Bearer {self.token}"}, trust_env=False, timeout=30
        )

    def create(self, kind: str = "train", **more: Any) -> str:
        answer = self.http.post("/v1/jobs", json={"kind": kind, **more})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def refused(self, answer: httpx.Response, status: int) -> str:
        """Whether an answer is a refusal of a status, in its form; what is wrong."""
        told = answer.json()
        assert answer.status_code == status, told
        assert set(told) == {"error"} and set(told["error"]) == {"kind", "what", "where", "now"} and told["error"]["now"]
        return str(told["error"]["what"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(TOKEN_VARIABLE, raising=False)
        made = World(tmp_path_factory.mktemp("service"))
        with made.service, made.http:
            yield made
        made.store.close()


def bare(world: World, path: str = "/v1/jobs", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """A request with no other headers than those given."""
    place = urlsplit(world.service.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": place.netloc, **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_nothing_is_answered_without_the_token(world: World) -> None:
    document = world.http.get("/openapi.json").json()
    paths = [
        (path.replace("{job}", "0" * 16).replace("{kind}", "fit"), method)
        for path, held in document["paths"].items()
        for method in held
    ]
    assert len(paths) == 9
    wrong = [
        {},
        *({"Authorization": text} for text in ("", "Bearer", "Bearer ", f"Bearer {world.token}x", f"Bearer {world.token[:-1]}")),
    ]
    wrong += [{"Authorization": world.token}, {"Authorization": f"Basic {world.token}"}, {"Cookie": f"token={world.token}"}]
    wrong += [{"Authorization": "Bearer \xe9"}]
    for path, method in [*paths, ("/openapi.json", "get"), ("/nothing", "get"), (f"/v1/jobs?token={world.token}", "get")]:
        for headers in wrong if path == "/v1/jobs" else wrong[:2]:
            status, told, body = bare(world, path, method.upper(), **headers)
            assert (status, told["www-authenticate"]) == (401, "Bearer"), (path, headers)
            assert world.token.encode() not in body


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "0.0.0.0"])
def test_a_page_of_another_name_gets_no_answer(world: World, host: str) -> None:
    assert bare(world, Host=host, Authorization=f"Bearer {world.token}")[0] == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:80"])
def test_the_names_of_this_machine_are_answered(world: World, host: str) -> None:
    status, headers, _ = bare(world, Host=host, Authorization=f"bearer {world.token}")
    assert status == 200
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert "server" not in headers and "access-control-allow-origin" not in headers


def test_a_body_that_is_too_large_is_refused_however_it_comes(world: World) -> None:
    large = b'{"kind": "train", "name": "' + b"x" * BODY_BYTE + b'"}'
    assert "body" in world.refused(world.http.post("/v1/jobs", content=large), 413)
    assert "body" in world.refused(world.http.post("/v1/jobs", content=iter([large[:1000], large[1000:]])), 413)
    world.refused(world.http.get("/v1/jobs", params={"kind": "x" * 5000}), 414)


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    sent: list[Message] = []

    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    async def receive() -> Message:
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "query_string": b"",
        "headers": [(b"authorization", b"Bearer token"), (b"host", b"a")],
        "method": "POST",
    }
    asyncio.run(JobGuard(never, JobAccess(None, "token", patience_s=0.05))(scope, receive, send))
    assert sent[0]["status"] == 408


def test_what_is_asked_for_is_queued_and_told_again(world: World) -> None:
    spec = {"results_dir": str(world.root / "out"), "train": {"num_epochs": 3}}
    made = world.http.post("/v1/jobs", json={"kind": "train", "spec": spec, "name": "stage 1"}).json()
    assert (made["state"], made["name"], made["kind"], made["spec"], made["attempt"]) == ("queued", "stage 1", "train", spec, 0)
    child = world.create("evaluate", parent=made["id"], spec={"evaluate": {"checkpoint": "{parent.checkpoint}"}})
    assert world.http.get(f"/v1/jobs/{made['id']}").json() == made
    listed = world.http.get("/v1/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in listed] == [child, made["id"]] and "spec" not in listed[0]
    assert listed[0]["parent"] == made["id"]
    assert child not in [job["id"] for job in world.http.get("/v1/jobs", params={"kind": "train"}).json()]


def test_a_job_is_cancelled_once_and_may_be_resumed(world: World) -> None:
    job = world.create()
    assert world.http.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert "cancelled" in world.refused(world.http.post(f"/v1/jobs/{job}/cancel"), 409)
    assert world.http.post(f"/v1/jobs/{job}/resume").json()["state"] == "queued"
    assert "queued" in world.refused(world.http.post(f"/v1/jobs/{job}/resume"), 409)
    assert [held["id"] for held in world.http.get("/v1/jobs", params={"state": "cancelled"}).json()] == []
    found = world.http.get("/v1/jobs", params=[("state", "cancelled"), ("state", "queued")]).json()
    assert job in [held["id"] for held in found]


@pytest.mark.parametrize(
    ("body", "status", "what"),
    [
        (b'{"kind": "rm"}', 422, "ingest"),
        (b'{"kind": "train", "spce": {}}', 422, ""),
        (b'{"kind": "train", "name": "a/b"}', 422, "pattern"),
        (b'{"kind": "train", "spec": 5}', 422, ""),
        (b'{"kind": "train", "spec": {"results_dir": "/etc"}}', 422, "results_dir"),
        (b'{"kind": "train", "spec": {"train": {"num_epochs": "\\ud800"}}}', 422, "plain JSON"),
        (b'{"kind": "train", "spec": {"\\ud800": 1}}', 422, ""),
        (b'{"kind": "train", "\\ud800": 1}', 422, ""),
        (b'{"kind": "train", "spec": {"dataset": {"depth_min": NaN}}}', 422, ""),
        (b'{"kind": "train", "spec": {"dataset": {"depth_min": 1e999}}}', 422, ""),
        (b'{"kind": "train", "parent": "0000000000000000"}', 404, "0000000000000000"),
        (b'{"kind": "evaluate", "spec": {"evaluate": {"checkpoint": "{parent.checkpoint}"}}}', 422, "no parent"),
        (b"{", 422, ""),
        (b"[" * 100_000, 400, ""),
        (b'{"kind": "train", "spec": {"train": {"num_epochs": ' + b"9" * 5000 + b"}}}", 400, ""),
    ],
)
def test_what_cannot_be_is_refused_in_words(world: World, body: bytes, status: int, what: str) -> None:
    before = len(world.store.find())
    answer = world.http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert what in world.refused(answer, status) and len(world.store.find()) == before


def test_other_addresses_and_methods_are_refused_in_words(world: World) -> None:
    for path in (f"/v1/jobs/{'0' * 16}", f"/v1/jobs/{'0' * 16}/log", "/v1/nothing", "/docs", "/redoc"):
        world.refused(world.http.get(path), 404)
    for path in ("/v1/jobs/..%2f..%2ftoken", "/v1/kinds/rm", "/v1/jobs/ABC", "/v1/jobs?limit=0", "/v1/jobs?state=gone"):
        assert world.http.get(path).status_code in (404, 422)
    answer = world.http.delete("/v1/jobs")
    world.refused(answer, 405)
    assert answer.headers["allow"] == "GET, POST"


def test_a_secret_is_told_to_nobody_and_lies_in_files_of_their_owner_alone(world: World) -> None:
    job = world.create("train", spec={"encryption_key": SECRET, "results_dir": str(world.root)})
    for path in ("/v1/jobs?limit=1000", f"/v1/jobs/{job}", f"/v1/jobs/{job}/log", "/metrics"):
        assert SECRET not in world.http.get(path).text
    wrong = world.http.post("/v1/jobs", json={"kind": "train", "spec": {"encryption_key": [SECRET]}})
    assert "encryption_key" in world.refused(wrong, 422) and SECRET not in wrong.text
    holding = [path for path in world.home.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert [path.name for path in holding] == ["request.json"]
    assert stat.S_IMODE(holding[0].stat().st_mode) == 0o600 and stat.S_IMODE(holding[0].parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(world.home.stat().st_mode) == 0o700 and stat.S_IMODE((world.home / TOKEN_FILE).stat().st_mode) == 0o600


def test_a_log_is_told_as_it_grows(world: World) -> None:
    job = world.create()
    folder = world.home / "jobs" / job
    assert world.http.get(f"/v1/jobs/{job}/log", params={"wait_s": 30}).json() == {
        "offset": 0,
        "next": 0,
        "state": "queued",
        "text": "",
    }
    with living(folder):  # for the worker: it is at work
        world.store.begin(job)
        (folder / LOG).write_text("one\n")
        piece = world.http.get(f"/v1/jobs/{job}/log").json()
        assert piece == {"offset": 0, "next": 4, "state": "running", "text": "one\n"}
        writer = threading.Timer(0.5, (folder / LOG).write_text, ["one\ntwo\n"])
        writer.start()
        later = world.http.get(f"/v1/jobs/{job}/log", params={"offset": 4, "wait_s": 30}).json()
        writer.join()
        assert later == {"offset": 4, "next": 8, "state": "running", "text": "two\n"}
        assert world.http.get(f"/v1/jobs/{job}/log", params={"offset": 10**9}).json()["text"] == ""
        world.store.end(job, "failed", "as a test")


def test_prometheus_is_told_how_many_jobs_are_in_which_state(world: World) -> None:
    job = world.create("fit", spec={"store": str(world.root)})
    time.sleep(0.01)
    lines = dict(line.rsplit(" ", 1) for line in world.http.get("/metrics").text.splitlines() if not line.startswith("#"))
    counts = world.store.count()
    for kind in KINDS:
        for state in STATES:
            assert float(lines[f'scenemill_jobs{{kind="{kind}",state="{state}"}}']) == counts.get((kind, state), 0)
    assert counts["fit", "queued"] >= 1 and float(lines["scenemill_jobs_slots"]) == 0
    assert float(lines["scenemill_jobs_oldest_queued_seconds"]) > 0
    world.http.get(f"/v1/jobs/{job}")
    bare(world, "/v1/made/up/by/a/client")
    text = world.http.get("/metrics").text
    assert 'route="/v1/jobs/{job}",status="200"' in text and 'route="",status="401"' in text
    assert "made" not in text and job not in text  # labels without end


def test_a_job_of_a_time_to_come_has_not_waited_less_than_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a clock that was set back."""
    for held in world.store.find((QUEUED,), limit=1000):
        world.store.end(held.id, "cancelled", "as a test")
    monkeypatch.setattr(jobs_store, "now", lambda: "2999-01-01T00:00:00.000+00:00")
    job = world.create("fit", spec={"store": str(world.root)})
    assert "scenemill_jobs_oldest_queued_seconds 0.0" in world.http.get("/metrics").text.splitlines()
    world.store.end(job, "cancelled", "as a test")


def test_the_document_says_what_is_true(world: World) -> None:
    document = world.http.get("/openapi.json").json()
    assert (get_args(KindName), get_args(State)) == (tuple(KINDS), STATES)
    schemas = document["components"]["schemas"]
    assert schemas["NewJob"]["additionalProperties"] is False
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for held in document["paths"].values():
        for operation in held.values():
            assert operation["security"] and {"401", "422"} <= set(operation["responses"])
            assert operation["responses"]["401"]["content"]["application/json"]["schema"]["$ref"].endswith("/Refused")


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_of_every_kind_is_told_with_a_default_that_fits(world: World, kind: str) -> None:
    schema = world.http.get(f"/v1/kinds/{kind}").json()
    jsonschema.Draft202012Validator(schema).validate(schema["default"])
    assert kind in world.http.get("/v1/kinds").json()


def test_jobs_and_token_are_there_after_a_restart_and_one_service_alone_has_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    first = World(tmp_path)
    with first.service, first.http:
        job = first.create()
        with pytest.raises(Conflict, match="another service"):
            JobService(JobServiceConfig((first.root,), first.home, port=0))
    first.store.close()
    with JobService(JobServiceConfig((first.root,), first.home, port=0, slots=0)) as second:
        headers = {"Authorization": f"Bearer {first.token}"}
        assert httpx.get(f"{second.url}/v1/jobs/{job}", headers=headers, trust_env=False).json()["state"] == "queued"


def test_a_service_that_cannot_be_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = JobServiceConfig((tmp_path,), tmp_path / "home")
    with pytest.raises(ConfigError, match="--root"):
        replace(plain, roots=())
    with pytest.raises(ConfigError, match="port"):
        replace(plain, port=1 << 16)
    with pytest.raises(ConfigError, match="slots"):
        replace(plain, slots=-1)
    with pytest.raises(ConfigError, match="grace"):
        replace(plain, grace_s=-1.0)
    with pytest.raises(ConfigError, match="--name"):
        replace(plain, host="0.0.0.0")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="--port 0"):
        JobService(JobServiceConfig((tmp_path,), tmp_path / "home", port=taken.getsockname()[1]))
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    with pytest.raises(ConfigError, match=TOKEN_VARIABLE):
        JobService(JobServiceConfig((tmp_path,), tmp_path / "home", port=0))
    monkeypatch.delenv(TOKEN_VARIABLE)
    (tmp_path / "home" / TOKEN_FILE).write_text("a" * 32)
    os.chmod(tmp_path / "home" / TOKEN_FILE, 0o644)  # noqa: PTH101
    with pytest.raises(ConfigError, match="chmod 600"):
        JobService(JobServiceConfig((tmp_path,), tmp_path / "home", port=0))


def test_the_token_of_the_environment_counts_and_is_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "b" * 32)
    with JobService(JobServiceConfig((tmp_path,), tmp_path / "home", port=0, slots=0)) as service:
        answer = httpx.get(f"{service.url}/v1/kinds", headers={"Authorization": f"Bearer {'b' * 32}"}, trust_env=False)
    assert answer.json() == list(KINDS)
    assert not any(b"b" * 32 in path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file())


def test_failures_of_the_service_are_told_without_their_inside(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenemill.pipelines.jobs.answers.schema_of", lambda kind: json.loads("{inside"))
    told = world.http.get("/v1/kinds/fit")
    assert "inside" not in told.text and world.refused(told, 500) == "something unforeseen"
