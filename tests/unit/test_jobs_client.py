"""Asking a job service from Python and from the command line: the same answers, and errors by what to do next."""

import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from scenemill.pipelines.cli import app
from scenemill.pipelines.jobs.client import JobClient
from scenemill.pipelines.jobs.run import LOG
from scenemill.pipelines.jobs.server import JobService, JobServiceConfig
from scenemill.pipelines.jobs.store import JobStore
from scenemill.pipelines.jobs.token import TOKEN_FILE, TOKEN_VARIABLE, read_token
from scenemill.schemas.errors import ConfigError, Conflict, TransientError
from scenemill.schemas.jobs import KINDS
from tests.unit.job_processes import living


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobService]:
    """A service that runs nothing; what jobs do is written by the tests."""
    folder = tmp_path_factory.mktemp("client")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(TOKEN_VARIABLE, raising=False)
        patch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # where nobody listens; it must not be asked
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        home = folder / "state" / "scenemill" / "jobs"
        with JobService(JobServiceConfig((folder,), home, port=0, slots=0)) as made:
            patch.setenv("SCENEMILL_JOBS_URL", made.url)
            yield made


@pytest.fixture
def home(service: JobService) -> Path:
    return Path(os.environ["XDG_STATE_HOME"]) / "scenemill" / "jobs"


@pytest.fixture
def client(service: JobService, home: Path) -> Iterator[JobClient]:
    with JobClient(service.url, (home / TOKEN_FILE).read_text()) as made:
        yield made


@pytest.fixture
def store(service: JobService, home: Path) -> Iterator[JobStore]:
    made = JobStore(home / "jobs.sqlite")
    yield made
    made.close()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["jobs", *arguments])


def test_a_client_asks_for_everything_there_is(client: JobClient) -> None:
    assert client.kinds() == list(KINDS) and "default" in client.schema("fit")
    first = client.create("train", {"train": {"num_epochs": 3}}, name="stage 1")
    second = client.create("train", {"train": {"checkpoint_2d": "{parent.checkpoint}"}}, parent=first.id)
    assert (first.spec, first.name, second.parent, second.state) == ({"train": {"num_epochs": 3}}, "stage 1", first.id, "queued")
    assert [job.id for job in client.list(limit=2)] == [second.id, first.id]
    assert client.show(first.id) == first
    assert client.cancel(first.id).state == "cancelled"
    assert [job.id for job in client.list(["cancelled", "succeeded"], "train")] == [first.id]
    assert client.resume(first.id).state == "queued"


def test_errors_are_of_the_kind_that_says_what_to_do(client: JobClient, service: JobService, home: Path) -> None:
    whole = {"store": str(home.parents[2] / "views")}
    job = client.create("fit", whole)
    with pytest.raises(Conflict, match="queued"):
        client.resume(job.id)
    with pytest.raises(ConfigError, match="not known"):
        client.show("0" * 16)
    with pytest.raises(ConfigError, match="epochs"):
        client.create("fit", whole | {"settings": {"epochs": 0}})
    with pytest.raises(ConfigError, match="not in one of the service's roots"):
        client.create("fit", {"store": "/etc"})
    for spec in ({"a": {1, 2}}, {"a": float("nan")}):
        with pytest.raises(ConfigError, match="spec"):
            client.create("fit", spec)
    for kind in ("ingest", "fit", "evaluate", "inference", "export"):
        with pytest.raises(ConfigError, match=rf"{kind}: \w.* not given"):
            client.create(kind, {})
    with pytest.raises(ConfigError, match=r"^kind: .*ingest"):
        client.create("rm", {})
    for part in ("../metrics", "", "a/b", "é", "1234"):
        with pytest.raises(ConfigError, match="no id"):
            client.show(part)
        with pytest.raises(ConfigError, match="kind"):
            client.schema(part)
    with JobClient(service.url, "x" * 32) as wrong, pytest.raises(ConfigError, match="token"):
        wrong.list()


def test_a_service_that_is_not_there_may_be_asked_again(service: JobService) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with JobClient(f"http://127.0.0.1:{port}", "x" * 32) as client, pytest.raises(TransientError, match="serve-jobs"):
        client.list()
    with pytest.raises(ConfigError, match="url"), JobClient("http://[::1", "x" * 32) as client:
        client.list()


def test_the_token_goes_to_the_address_given_and_nowhere_else() -> None:
    asked: list[str | None] = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{server.server_port}/v1/kinds")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = JobClient(f"http://127.0.0.1:{server.server_port}", "t" * 32)
        with client, pytest.raises(ConfigError, match="not as a job service does"):
            client.kinds()
        server.shutdown()
    assert asked == [f"Bearer {'t' * 32}"]


def test_a_log_is_followed_to_the_end_of_its_job(client: JobClient, store: JobStore, home: Path) -> None:
    job = client.create("ingest", {"input": str(home.parents[2] / "raw")})
    folder = home / "jobs" / job.id
    assert list(client.logs(job.id, follow=False)) == []
    texts: list[str] = []
    reader = threading.Thread(target=lambda: texts.extend(client.logs(job.id)))
    with living(folder):
        store.begin(job.id)
        reader.start()
        with (folder / LOG).open("ab", buffering=0) as log:
            for piece in ("one\n", "zwölf ", "€\n"):
                log.write(piece.encode()[:-1])
                log.write(piece.encode()[-1:])
        store.end(job.id, "succeeded", "", 0)
        reader.join(timeout=30)
    assert "".join(texts) == "one\nzwölf €\n"
    assert client.wait(job.id).state == "succeeded"


def test_the_command_line_does_what_the_client_does(client: JobClient, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("train: {num_epochs: 4}\nmodel_name: x\n")
    made = run("create", "train", "-e", str(spec), "--name", "by hand", "train.optim.lr=1e-3", "model_name=y")
    assert made.exit_code == 0, made.output
    job = made.stdout.strip()
    assert client.show(job).spec == {"train": {"num_epochs": 4, "optim": {"lr": 1e-3}}, "model_name": "y"}
    setting = "evaluate.checkpoint={parent.checkpoint}"
    child = json.loads(run("create", "evaluate", setting, "--parent-job-id", job, "--json").stdout)
    assert (child["parent"], child["name"]) == (job, "evaluate")
    assert child["spec"] == {"evaluate": {"checkpoint": "{parent.checkpoint}"}}
    (line,) = [line for line in run("list", "--state", "queued", "--kind", "train").stdout.splitlines() if job in line]
    assert "queued" in line and "by hand" in line
    assert json.loads(run("list", "--limit", "1", "--json").stdout)[0]["id"] == child["id"]
    shown = run("show", job).stdout
    assert "by hand" in shown and '"num_epochs": 4' in shown
    assert json.loads(run("show", job, "--json").stdout)["id"] == job
    assert run("cancel", job).stdout.startswith(f"{job}: cancelled")
    assert run("logs", job).stdout == "" and run("logs", job, "--follow").exit_code == 1
    assert run("resume", job).stdout == f"{job}: queued\n"
    assert json.loads(run("schema", "fit").stdout) == client.schema("fit")


def test_a_shipped_experiment_is_taken_by_its_name(client: JobClient) -> None:
    made = run(
        "create", "train", "-e", "tiny_front3d_2d", "dataset.val.base_dir=", "dataset.train.base_dir=", "dataset.test.base_dir="
    )
    assert made.exit_code == 0, made.output
    assert client.show(made.stdout.strip()).spec["dataset"]["name"] == "front3d"


def test_the_command_line_says_that_there_are_no_jobs(client: JobClient) -> None:
    assert "0 jobs" in run("list", "--state", "interrupted").stdout


def test_the_token_is_read_from_a_file_of_its_owner_or_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    path = tmp_path / "token"
    with pytest.raises(ConfigError, match="serve-jobs"):
        read_token(path)
    path.write_text("a" * 32 + "\n")
    path.chmod(0o600)
    assert read_token(path) == "a" * 32
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others can read it"):
        read_token(path)
    monkeypatch.setenv(TOKEN_VARIABLE, "b" * 32)
    assert read_token(path) == "b" * 32
    for text in ("b" * 15, "b" * 32 + "-", "é" * 32):
        monkeypatch.setenv(TOKEN_VARIABLE, text)
        with pytest.raises(ConfigError) as refused:
            read_token(path)
        assert text not in str(refused.value)
