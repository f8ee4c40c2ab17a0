"""What servers share: where they are bound, how they are addressed, and what they refuse."""

import asyncio
import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from scenemill.pipelines.web_access import bind, is_addressed, is_token, refuse, url_of, with_headers
from scenemill.schemas.errors import ConfigError


def test_small_answers_leave_at_once() -> None:
    with bind("127.0.0.1", 0, 1, "serve") as address, socket.create_connection(address.getsockname()):
        accepted, _ = address.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_taken_port_is_told_with_the_command() -> None:
    with bind("127.0.0.1", 0, 1, "serve") as taken, pytest.raises(ConfigError, match="serve-jobs: cannot serve"):
        bind("127.0.0.1", taken.getsockname()[1], 1, "serve-jobs")


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("", "127.0.0.1")]
)
def test_the_url_is_one_that_can_be_asked_from_here(host: str, shown: str) -> None:
    with bind("127.0.0.1", 0, 1, "serve") as address:
        assert url_of(host, address) == f"http://{shown}:{address.getsockname()[1]}"


@given(st.text(), st.text(min_size=1))
def test_the_token_alone_is_the_token(given_text: str, token: str) -> None:
    given_text, token = (text.encode(errors="ignore").decode() for text in (given_text, token))
    assert is_token(given_text, token) == (given_text == token != "")
    assert is_token(token, token) == bool(token) and not is_token(given_text, "")


@given(st.text())
def test_any_host_is_told_from_the_servers_own(host: str) -> None:
    names = {"localhost", "::1"}
    allowed = {"localhost", "[::1]"}
    if is_addressed(host, names):
        assert any(part in host.lower() for part in allowed)
    assert is_addressed(host, None)


def test_a_refusal_is_json_and_added_headers_leave_those_there_are() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(refuse(with_headers(send, {"x-more": "1"}), 403, "what", "now", {"x-own": "2"}))
    headers = dict(sent[0]["headers"])
    assert sent[0]["status"] == 403 and headers[b"x-more"] == b"1" and headers[b"x-own"] == b"2"
    assert json.loads(sent[1]["body"]) == {"error": {"kind": "Refused", "what": "what", "where": "", "now": "now"}}
    assert int(headers[b"content-length"]) == len(sent[1]["body"])
