"""Both servers, over real sockets, against those who say nothing, too much, too slowly, or what is not HTTP."""

import http.client
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from scenemill.pipelines import web_patience
from scenemill.pipelines.jobs.server import JobService, JobServiceConfig
from scenemill.pipelines.jobs.token import TOKEN_VARIABLE
from scenemill.pipelines.viewer.server import serve

TOKEN = "a" * 32
HEAD = b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n"
CROWD = 300  # more than either server has places

Address = tuple[str, int]


@pytest.fixture(params=["viewer", "jobs"])
def address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Address]:
    """Where a server listens that waits a second for the head of a request."""
    monkeypatch.setattr(web_patience, "HEAD_S", 1.0)
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    (tmp_path / "root").mkdir()
    with ExitStack() as stack:
        if request.param == "viewer":
            url = stack.enter_context(serve(tmp_path / "root")).url
        else:
            url = stack.enter_context(JobService(JobServiceConfig((tmp_path / "root",), tmp_path / "home", port=0, slots=0))).url
        place = urlsplit(url)
        yield place.hostname or "", place.port or 0


def status(address: Address, patience_s: float = 20.0) -> int:
    """What a good client is answered, once there is a place for it."""
    deadline = time.monotonic() + patience_s
    while True:
        client = http.client.HTTPConnection(*address, timeout=patience_s)
        try:
            client.request("GET", "/api/health", headers={"Authorization": f"Bearer {TOKEN}"})
            answered = client.getresponse().status
        except OSError:
            answered = 503
        finally:
            client.close()
        if answered != 503 or time.monotonic() > deadline:
            return answered
        time.sleep(0.1)


def told(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    said = b""
    try:
        while part := connection.recv(1 << 16):
            said += part
    except ConnectionResetError:
        pass
    return said


@pytest.mark.parametrize("said", [b"", HEAD, HEAD + b"\r\n"], ids=["nothing", "half a head", "a request, then nothing"])
def test_a_crowd_that_holds_connections_is_sent_away_and_others_are_answered(address: Address, said: bytes) -> None:
    with ExitStack() as crowd:
        for _ in range(CROWD):
            connection = crowd.enter_context(socket.create_connection(address, timeout=20))
            if said:
                connection.sendall(said)
        assert status(address) in (200, 404)


def test_a_head_that_comes_byte_by_byte_is_not_waited_for(address: Address) -> None:
    began = time.monotonic()
    with socket.create_connection(address, timeout=20) as connection, pytest.raises(OSError):
        for place in range(1000):
            connection.sendall(HEAD[place % len(HEAD)].to_bytes())
            time.sleep(0.05)
    assert time.monotonic() - began < 15
    assert status(address) in (200, 404)


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,  # TLS
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n",
        b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(20_000)) + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        os.urandom(4096),
    ],
    ids=["tls", "negative length", "two lengths", "endless chunk", "long target", "many headers", "nul", "no target", "noise"],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(address: Address, said: bytes) -> None:
    with socket.create_connection(address, timeout=20) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(said)
        answer = told(connection)
    assert answer == b"" or answer.split(b" ")[1][:1] == b"4", answer[:200]
    assert status(address) in (200, 404)


def test_one_who_hangs_up_in_the_middle_harms_nobody(address: Address) -> None:
    for stop in (1, 20, len(HEAD)):
        with socket.create_connection(address, timeout=20) as connection:
            connection.sendall((HEAD + b"\r\n")[:stop])
            connection.shutdown(socket.SHUT_WR)
    assert status(address) in (200, 404)


def test_one_who_does_not_read_the_answer_harms_nobody(address: Address) -> None:
    with ExitStack() as crowd:
        for _ in range(50):
            connection = crowd.enter_context(socket.create_connection(address, timeout=20))
            connection.sendall((HEAD + f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()) * 20)
        assert status(address) in (200, 404)
