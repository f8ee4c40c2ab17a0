"""Requests as fuzz inputs: bytes to what a server would hand its application, and the application asked in this process, without sockets.

An input is a request as it would be written down, a line for the target, a line for each header, an empty line, the body:

    GET /api/samples?root=store
    host: localhost

    ...

What HTTP itself refuses is refused here by the same library, so that the application sees nothing that a server would not hand it.
"""

import asyncio
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import h11
from starlette.types import ASGIApp, Message, Scope

from scenemill.schemas.errors import ConfigError
from tests.faults.fuzz_target import SECRET, right

TOKEN: Final = "a-word-that-is-known"
NAMES: Final = frozenset({"localhost", "127.0.0.1"})
_STRANGER: Final = b"evil.example"

WORDS: Final = (
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
"""That requests are made of."""

_LIMIT_S: Final = 15.0
_PIECE_BYTE: Final = 100  # of a body, so that bodies come in several messages
_LENGTH: Final = b"content-length"


@dataclass(frozen=True)
class Request:
    """A request that HTTP lets through.

    Attributes:
        method: as it was given.
        target: path and query.
        headers: names in small letters, and values.
        body: as much as arrives.
        is_whole: False where the client goes before all of the body has arrived.
    """

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""
    is_whole: bool = True

    def with_header(self, name: bytes, value: bytes) -> "Request":
        """The same with another value of a header."""
        return replace(self, headers=(*((held, one) for held, one in self.headers if held != name), (name, value)))

    def header(self, name: bytes) -> bytes:
        """The last value of a header; nothing for none."""
        return next((value for held, value in reversed(self.headers) if held == name), b"")


@dataclass(frozen=True)
class Answer:
    """What an application answered.

    Attributes:
        status: of HTTP.
        headers: names in small letters, and values.
        body: all of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def request_of(data: bytes) -> Request:
    """The request that an input writes down.

    Raises:
        ConfigError: HTTP refuses it, so no application sees it.
    """
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    method, _, target = first.partition(b" ")
    named = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    try:
        read = h11.Request(method=method, target=target, headers=named)
    except h11.ProtocolError as error:
        raise ConfigError("no request of HTTP") from error
    headers = tuple((bytes(name), bytes(value)) for name, value in read.headers)
    found = dict(headers).get(_LENGTH)
    wanted = len(body) if found is None else int(found)
    return Request(bytes(read.method), bytes(read.target), headers, body[:wanted], len(body) >= wanted)


def scope_of(request: Request) -> Scope:
    """A request as servers hand it to applications."""
    path, _, query = request.target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": request.method.decode("ascii"),
        "root_path": "",
        "path": unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": query,
        "headers": list(request.headers),
        "state": {},
    }


class Asker:
    """Asks applications, one request after the other, on an event loop of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def close(self) -> None:
        """End the loop."""
        self._loop.close()

    def ask(self, app: ASGIApp, request: Request) -> Answer | None:
        """The answer of an application; None where the client was gone before there was one.

        Raises:
            TimeoutError: there is no answer in time.
            Exception: whatever the application lets out.
        """
        return self._loop.run_until_complete(asyncio.wait_for(_ask(app, request), _LIMIT_S))


async def _ask(app: ASGIApp, request: Request) -> Answer | None:
    body = [request.body[start : start + _PIECE_BYTE] for start in range(0, len(request.body), _PIECE_BYTE)] or [b""]
    coming: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in body]
    if request.is_whole:
        coming[-1]["more_body"] = False
    sent: list[Message] = []

    async def receive() -> Message:
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope_of(request), receive, send)
    return _answer_of(sent) if sent or request.is_whole else None


def _answer_of(sent: list[Message]) -> Answer:
    started, *pieces = sent
    headers = {bytes(name).decode("latin-1").lower(): bytes(value).decode("latin-1") for name, value in started["headers"]}
    return Answer(started["status"], headers, b"".join(piece.get("body", b"") for piece in pieces))


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


def check_answer(answer: Answer, request: Request, statuses: frozenset[int], folder: Path) -> None:
    """What is right of every answer, whatever was asked.

    Args:
        answer: to look at.
        request: that it answers.
        statuses: that the server declares.
        folder: whose path is nobody's business.

    Raises:
        Wrong: it is not.
    """
    right(answer.status in statuses, f"status {answer.status}")
    right(SECRET not in answer.body and SECRET.decode() not in str(answer.headers), "the secret of a file is told")
    asked = request.target + request.body + b"".join(value for _, value in request.headers)
    told = str(folder).encode()
    right(told in asked or told not in answer.body, "the path of a folder is told")
    if answer.status >= 400 and request.method != b"HEAD":
        error = json.loads(answer.body)["error"]
        right(set(error) == {"kind", "what", "where", "now"} and bool(error["now"]), "a refusal of another form")
    right(not re.search("[\r\n\0]", "".join(answer.headers.values())), "a header of several lines")
