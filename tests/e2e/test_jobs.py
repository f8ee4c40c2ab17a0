"""The job service as it is used: its document held against what it does, and a whole line of jobs, whose service is killed meanwhile."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scenemill.pipelines.experiments.specs import load_tree
from scenemill.pipelines.jobs.client import JobClient
from scenemill.pipelines.jobs.server import JobService, JobServiceConfig
from scenemill.pipelines.jobs.token import TOKEN_FILE, TOKEN_VARIABLE
from scenemill.pipelines.query import query
from scenemill.schemas.errors import SceneMillError
from scenemill.trainers.checkpoint import load_checkpoint
from scenemill.transforms.store import open_store
from scenemill.transforms.worlds import write_world

TOKEN = "e2e" * 12
STEPS = 4
MANY = 8
"""Steps of stage 1: it still trains when a service that was killed is there again."""


def test_the_service_is_what_its_document_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with JobService(JobServiceConfig((tmp_path,), tmp_path / "home", port=0, slots=0)) as service:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"),
            *("-H", f"Authorization: Bearer {TOKEN}", "--checks", "all", "--mode", "all", "--max-examples", "15", "--seed", "1"),
            # of a spec /v1/kinds tells more, and what roots there are nothing does: most that fit the document are refused
            *("--exclude-checks", "positive_data_acceptance", "--warnings", "missing_auth,missing_test_data"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout
    assert "No issues found" in done.stdout and "9 selected / 9 total" in done.stdout


@contextmanager
def served(root: Path, home: Path) -> Iterator[tuple[JobClient, "subprocess.Popen[str]"]]:
    """``scenemill serve-jobs`` as a process of its own, and a client of it."""
    command = [
        sys.executable,
        "-m",
        "scenemill.pipelines.cli",
        "serve-jobs",
        "--root",
        str(root),
        "--home",
        str(home),
        "--port",
        "0",
    ]
    own = {name: value for name, value in os.environ.items() if name not in (TOKEN_VARIABLE, "SCENEMILL_CACHE")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[0]
            assert "token" in process.stdout.readline()
            with JobClient(url, (home / TOKEN_FILE).read_text()) as client:
                yield client, process
        finally:
            process.send_signal(signal.SIGINT)


def until(holds: Callable[[], bool]) -> None:
    for _ in range(1200):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError


def newest_step(folder: Path) -> int:
    """Of the checkpoints in a training's folder."""
    step = load_checkpoint(next(folder.glob("*_latest.pth")))["global_step"]
    assert isinstance(step, int)
    return step


def experiment(name: str, steps: int, *settings: str) -> dict[str, Any]:
    empty = [f"dataset.{split}.{setting}=" for split in ("train", "val", "test") for setting in ("base_dir", "json_path")]
    often = ["train.num_epochs=100", "train.checkpoint_interval_unit=step", "train.checkpoint_interval=1"]
    return load_tree(Path(name), [*empty, *often, f"train.optim.max_steps={steps}", "dataset.train.num_workers=0", *settings])


@pytest.mark.full
def test_a_line_of_jobs_goes_through_whatever_happens_to_its_service(tmp_path: Path) -> None:
    root, home = tmp_path / "root", tmp_path / "home"
    write_world("front3d", root / "raw", scenes=2, views=1, seed=3, grid=64)
    with served(root, home) as (client, process):
        ingest = client.create("ingest", {"input": str(root / "raw")})
        first = client.create(
            "train",
            experiment("tiny_front3d_2d", MANY, 'dataset.train.base_dir="{parent.store}"', f"results_dir={root}/one"),
            name="stage 1",
            parent=ingest.id,
        )
        store = client.wait(ingest.id).results["store"]
        assert len(open_store(Path(store)).keys) == 2
        until(lambda: "step 1 of" in client.log(first.id).text)
        process.kill()  # while stage 1 trains
    with served(root, home) as (client, _):
        held = client.show(first.id)
        assert (held.state, held.attempt) == ("running", 1)
        client.cancel(first.id)
        ended = client.wait(first.id)
        assert (ended.state, ended.exit_code) == ("cancelled", 130)
        log_before = len("".join(client.logs(first.id)))
        stopped = newest_step(root / "one" / "train")
        assert 0 < stopped < MANY
        second = client.create(
            "train",
            experiment("tiny_front3d_3d", STEPS, f"dataset.train.base_dir={store}", 'train.checkpoint_2d="{parent.checkpoint}"'),
            name="stage 2",
            parent=first.id,
        )
        assert "was cancelled" in client.wait(second.id).reason and client.show(second.id).state == "failed"
        client.resume(first.id)
        client.resume(second.id)
        judged = experiment("tiny_front3d_3d", STEPS, f"dataset.test.base_dir={store}", 'evaluate.checkpoint="{parent.checkpoint}"')
        last = client.create("evaluate", judged, parent=second.id)
        for text in client.logs(last.id):
            print(text, end="")
        jobs = {job.id: client.show(job.id) for job in (first, second, last)}
        assert [job.state for job in jobs.values()] == ["succeeded"] * 3, [(job.reason, job.spec) for job in jobs.values()]
        checkpoint = Path(jobs[first.id].results["checkpoint"])
        assert checkpoint.parent == root / "one" / "train" and load_checkpoint(checkpoint)["global_step"] == MANY
        assert client.show(first.id).attempt == 2 and "step 1 of" not in "".join(client.logs(first.id))[log_before:]
        assert load_checkpoint(Path(jobs[second.id].results["checkpoint"]))["global_step"] == STEPS
        tables = Path(jobs[last.id].results["results"]) / "tables"
        assert query(tables, "SELECT count(*) AS rows FROM scores").to_pylist()[0]["rows"] > 0
        with pytest.raises(SceneMillError, match="not in one of the service's roots"):
            client.create("ingest", {"input": str(tmp_path)})
