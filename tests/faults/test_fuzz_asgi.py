"""The harness that asks applications notices what it is there to notice."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from scenemill.schemas.errors import ConfigError
from tests.faults.fuzz_asgi import Answer, Asker, Guarded, check_answer, files_under, request_of
from tests.faults.fuzz_target import SECRET, Wrong

HEAD = b"GET /a%20b?x=%31 HTTP\nhost: localhost\n\n"
ASKED = request_of(b"POST /v1/jobs?a=b\nHost: localhost\nX-A: 1\n\nbody of some length")


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers everybody with what it was asked."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message.get("body", b""), message.get("more_body", False)
    told = json.dumps([scope["method"], scope["path"], scope["query_string"].decode(), body.decode()]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Kind", b"echo")]})
    await send({"type": "http.response.body", "body": told})


async def fail(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that lets an error out."""
    raise ZeroDivisionError


@pytest.fixture
def asker() -> Iterator[Asker]:
    with closing(Asker()) as asker:
        yield asker


def test_an_application_sees_what_is_written_down(asker: Asker) -> None:
    answer = asker.ask(echo, ASKED)
    assert answer is not None and json.loads(answer.body) == ["POST", "/v1/jobs", "a=b", "body of some length"]
    assert (answer.status, answer.headers) == (200, {"x-kind": "echo"})


def test_a_body_ends_where_its_length_says_or_the_client_goes(asker: Asker) -> None:
    short = request_of(b"POST /\nhost: localhost\ncontent-length: 4\n\nbody of some length")
    assert (short.body, short.is_whole) == (b"body", True)
    gone = request_of(b"POST /\nhost: localhost\ncontent-length: 40\n\nbody")
    assert not gone.is_whole and asker.ask(echo, gone) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET",
        b"GET /\n\n",
        HEAD,
        b"GET /\nhost: a\nhost: b\n\n",
        b"GET /\nhost: a\ncontent-length: x\n\n",
        b"GET /\nhost: a\n: b\n\n",
    ],
    ids=["nothing", "no target", "no host", "a space in the target", "two hosts", "no length", "no name"],
)
def test_what_http_refuses_is_asked_of_nobody(data: bytes) -> None:
    with pytest.raises(ConfigError, match="no request"):
        request_of(data)


def test_an_answer_to_those_who_may_not_ask_is_noticed(asker: Asker) -> None:
    with pytest.raises(Wrong, match="without a right"):
        Guarded(echo, echo, frozenset({403})).check_refused(asker, ASKED)


def test_an_error_of_an_application_is_let_out(asker: Asker) -> None:
    with pytest.raises(ZeroDivisionError):
        asker.ask(fail, ASKED)


REFUSAL = json.dumps({"error": {"kind": "Refused", "what": "a", "where": "b", "now": "c"}}).encode()


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (Answer(500, {}, REFUSAL), "status 500"),
        (Answer(200, {}, b"x" + SECRET), "secret"),
        (Answer(200, {"x": SECRET.decode()}, b""), "secret"),
        (Answer(200, {}, b"see /served/here"), "path"),
        (Answer(404, {}, b'{"error": {"kind": "a"}}'), "form"),
        (Answer(200, {"location": "/\r\nset-cookie: a"}, b""), "header"),
    ],
    ids=["status", "secret", "secret in a header", "path", "form", "split"],
)
def test_an_answer_that_is_not_right_is_noticed(answer: Answer, what: str) -> None:
    check_answer(Answer(404, {}, REFUSAL), ASKED, frozenset({200, 404}), Path("/served/here"))
    with pytest.raises(Wrong, match=what):
        check_answer(answer, ASKED, frozenset({200, 404}), Path("/served/here"))


def test_a_change_of_files_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"1")
    before = files_under(tmp_path)
    (tmp_path / "a" / "c").touch()
    assert set(files_under(tmp_path)) - set(before) == {str(tmp_path / "a" / "c")}
