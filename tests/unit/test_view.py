"""Starting the viewer: from a notebook, and by its command."""

import http.client
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from scenemill import Timelapse
from scenemill.pipelines.cli import app
from scenemill.pipelines.viewer.server import ViewConfig, Viewer, serve
from scenemill.schemas.errors import ConfigError
from tests.unit.view_client import ask


@pytest.fixture
def log(tmp_path: Path) -> Path:
    Timelapse(tmp_path / "log").add_pointcloud_batch(0, "p", [np.zeros((2, 3), np.float32)])
    return tmp_path / "log"


def test_a_viewer_from_a_notebook_serves_at_once_and_ends(log: Path) -> None:
    viewer = serve(log)
    assert viewer.url.startswith("http://127.0.0.1:") and ask(viewer.url, "/api/health").json == {"ok": True}
    viewer.close()
    with pytest.raises(OSError):
        ask(viewer.url, "/api/health")


def test_a_viewer_that_never_began_gives_its_port_back(log: Path) -> None:
    viewer = Viewer(ViewConfig((log,), port=0))
    port = int(viewer.url.split(":")[2].strip("/"))
    viewer.close()
    socket.create_server(("127.0.0.1", port)).close()


def test_several_viewers_serve_side_by_side_and_threads_end_with_them(log: Path) -> None:
    before = threading.active_count()
    with serve(log) as one, serve(log, log) as two:
        assert one.url != two.url
        assert len(ask(two.url, "/api/index").json["roots"]) == 2
    assert threading.active_count() <= before + 8  # a pool of the event loop may stay


@pytest.mark.skipif(sys.platform != "linux", reason="reads the table of connections of Linux")
def test_a_viewer_listens_to_this_machine_alone(log: Path) -> None:
    with serve(log) as viewer:
        port = int(viewer.url.split(":")[2].strip("/"))
        rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        listening = [row[1] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"]
        assert listening == [f"0100007F:{port:04X}"]


def test_another_host_has_a_token_of_its_own_each_time(log: Path) -> None:
    first, second = (Viewer(ViewConfig((log,), host="0.0.0.0", port=0)) for _ in range(2))
    tokens = {viewer.url.partition("?token=")[2] for viewer in (first, second)}
    assert len(tokens) == 2 and all(len(token) == 32 for token in tokens)
    with first:
        assert ask(first.url, "/api/health").status == 403
        assert ask(first.url, "/?token=" + first.url.partition("?token=")[2], host="a.name.of.this.machine").status == 303
    second.close()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"paths": ()}, "no folder"),
        ({"port": 65536}, "port 65536"),
        ({"port": -1}, "port -1"),
        ({"poll_s": 0.0}, "poll 0 s"),
        ({"poll_s": float("nan")}, "poll nan s"),
        ({"token": "a b"}, "letters and digits"),
        ({"token": "é"}, "letters and digits"),
    ],
)
def test_settings_out_of_range_are_refused(log: Path, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ViewConfig(**{"paths": (log,), **settings})


def test_a_port_that_is_taken_is_told_with_a_way_out(log: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="--port 0 takes a free one"):
        Viewer(ViewConfig((log,), port=taken.getsockname()[1]))


@contextmanager
def commanded(log: Path) -> Iterator[list[str]]:
    """The command as a process: the lines that it says when it serves. It is ended by Ctrl+C, and says no more."""
    command = [sys.executable, "-m", "scenemill.pipelines.cli", "view", f"--logdir={log}", "--port", "0", "--poll", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            yield [process.stdout.readline(), process.stdout.readline()]
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0 and process.stderr.read() == ""
        finally:
            process.kill()


def test_the_command_says_what_it_shows_and_where_until_it_is_ended(log: Path) -> None:
    with commanded(log) as said:
        assert said[0] == f"log: log, {log}\n"
        assert ask(said[1].split()[0], "/api/index").json["roots"][0]["items"][0]["item"] == "pointcloud/p/0"


@pytest.mark.full
def test_files_that_are_cut_short_anywhere_end_no_viewer(tmp_path: Path) -> None:
    writer = Timelapse(tmp_path / "whole")
    for iteration in range(4):
        points = np.random.default_rng(iteration).normal(size=(3000, 3))
        writer.add_pointcloud_batch(iteration, "", [points], colors=[points.clip(0, 1)])
    whole = (tmp_path / "whole" / "pointcloud_0.usd").read_bytes()
    (tmp_path / "log").mkdir()
    for number in range(1, 9):
        (tmp_path / "log" / f"pointcloud_{number}.usd").write_bytes(whole[: len(whole) * number // 8])
    with commanded(tmp_path / "log") as said:
        url, answers = said[1].split()[0], []
        for number in range(1, 9):
            asked = [{"root": "log", "item": f"pointcloud//{number}", "time": time} for time in (0, 3)]
            answers.append({ask(url, "/api/scene", each).status for each in asked})
        assert answers[-1] == {200} and answers[0] == {422} and set().union(*answers) == {200, 422}
        assert len(ask(url, "/api/index").json["roots"][0]["items"]) == 8


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "no folder"),
        (["none"], "no such folder"),
        (["s3://a:b@mill/x"], "password"),
        ([".", "--poll", "0"], "poll 0"),
    ],
)
def test_the_command_refuses_in_words(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(app, ["view", *arguments])
    assert result.exit_code != 0 and told in f"{result.output}{result.exception}"


def test_a_connection_that_says_nothing_keeps_nobody_waiting(log: Path) -> None:
    with serve(log) as viewer:
        place = ("127.0.0.1", int(viewer.url.split(":")[2].strip("/")))
        silent = [socket.create_connection(place) for _ in range(20)]
        assert ask(viewer.url, "/api/health").status == 200
        half = http.client.HTTPConnection(*place)
        half.putrequest("GET", "/api/health")
        assert ask(viewer.url, "/api/health").status == 200
        half.close()
        for each in silent:
            each.close()
