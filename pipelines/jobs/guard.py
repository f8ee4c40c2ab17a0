"""Who may ask the job service: holders of the token alone, by its names, in requests of bounded size and time."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scenemill.pipelines.web_access import headers_of, is_addressed, is_token, refuse, with_headers

BODY_BYTE: Final = 1 << 20
"""Of a request, at most; a spec with every setting is a fiftieth of this."""

_QUERY_BYTE: Final = 1 << 12
_SCHEME: Final = "bearer "
_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True)
class JobAccess:
    """Who may ask.

    Attributes:
        names: hosts that a request may be addressed to; None for any.
        token: what a request must carry, as ``Authorization: Bearer TOKEN``.
        patience_s: for a request to arrive whole.
    """

    names: frozenset[str] | None
    token: str
    patience_s: float = 10.0


class JobGuard:
    """An application that sees whole requests of those who may ask, and nothing else.

    Args:
        app: what answers.
        access: who may ask.
    """

    def __init__(self, app: ASGIApp, access: JobAccess) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it. The token is looked at before anything of the body is read."""
        if scope["type"] != "http":
            return
        headers = headers_of(scope)
        given = headers.get("authorization", "")
        if not is_addressed(headers.get("host", ""), self._access.names):
            await _answer(send, 403, "addressed to a host that the service is not served under", "Ask it by its own name.")
        elif given[: len(_SCHEME)].lower() != _SCHEME or not is_token(given[len(_SCHEME) :].strip(), self._access.token):
            now = "Send the token of the service's token file as Authorization: Bearer TOKEN."
            await _answer(send, 401, "the token is missing or wrong", now, {"www-authenticate": "Bearer"})
        elif len(scope["query_string"]) > _QUERY_BYTE:
            await _answer(send, 414, f"a query of more than {_QUERY_BYTE} bytes", "Ask for less at once.")
        elif int(headers.get("content-length", "0")) > BODY_BYTE:
            await _refuse_body(send)
        else:
            await self._pass_on(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await asyncio.wait_for(_read(receive), self._access.patience_s)
        except TimeoutError:
            now = "Send it again, faster."
            await _answer(
                send, 408, f"the request did not arrive within {self._access.patience_s:g} s", now, {"connection": "close"}
            )
            return
        if body is None:
            return
        if len(body) > BODY_BYTE:
            await _refuse_body(send)
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_whole() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, receive_whole, with_headers(send, _HEADERS))


async def _read(receive: Receive) -> bytes | None:
    """The body of a request, or as much of it as shows that it is too long; None where the client has gone."""
    body = bytearray()
    while len(body) <= BODY_BYTE:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return bytes(body)


async def _refuse_body(send: Send) -> None:
    await _answer(send, 413, f"a body of more than {BODY_BYTE} bytes", "Leave out settings that have their defaults.")


async def _answer(send: Send, status: int, what: str, now: str, headers: Mapping[str, str] | None = None) -> None:
    await refuse(send, status, what, now, {**_HEADERS, **(headers or {})})
