"""What the servers of this package share: who may address them and with what token, and refusals as JSON."""

import hmac
import json
import socket
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import urlsplit

from starlette.types import Message, Scope, Send

from scenemill.schemas.errors import ConfigError

HOME: Final = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine reaches."""

ANY: Final = ("0.0.0.0", "::", "")  # noqa: S104 (told apart, not bound to)
"""Hosts that stand for every address of this machine."""


def is_addressed(host: str, names: Collection[str] | None) -> bool:
    """Whether a Host header names a server by one of its names, on any port; None for any name.

    A page of another name, which a browser was led to take for this server, is told apart so.

    >>> is_addressed("localhost:80", {"localhost"}), is_addressed("evil.example", {"localhost"})
    (True, False)
    """
    if names is None:
        return True
    try:
        return (urlsplit(f"//{host}").hostname or "") in names
    except ValueError:
        return False


def is_token(given: str, token: str) -> bool:
    """Whether what was given is the token, in a time that does not tell how much of it is right; nothing is the empty token."""
    return bool(token) and hmac.compare_digest(given.encode(), token.encode())


def bind(host: str, port: int, backlog: int, command: str) -> socket.socket:
    """A socket that listens.

    Args:
        host: the address.
        port: 0 for a free one.
        backlog: connections that may wait.
        command: what messages call the server.

    Raises:
        ConfigError: the address is not this machine's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        address = socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        where = f"{host or 'any address'}, port {port}"
        raise ConfigError(f"{command}: cannot serve at {where} ({error}); --port 0 takes a free one") from error
    address.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else a body waits 40 ms for the acknowledgement of its head
    return address


def url_of(host: str, address: socket.socket) -> str:
    """Where a server is asked from this machine, without a slash at the end."""
    shown = "127.0.0.1" if host in ANY else host
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{address.getsockname()[1]}"


def headers_of(scope: Scope) -> dict[str, str]:
    """The headers of a request by name, in small letters; of several of a name the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    """A ``send`` that adds headers to an answer."""

    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *_encoded(headers)]}
        await send(message)

    return send_more


async def refuse(send: Send, status: int, what: str, now: str, headers: Mapping[str, str]) -> None:
    """Answer with an error in JSON.

    Args:
        send: of the request.
        status: of HTTP.
        what: is wrong.
        now: what to do.
        headers: of the answer.
    """
    body = json.dumps({"error": {"kind": "Refused", "what": what, "where": "", "now": now}}).encode()
    told = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    await send({"type": "http.response.start", "status": status, "headers": _encoded(told)})
    await send({"type": "http.response.body", "body": body})


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
