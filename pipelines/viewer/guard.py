"""Who may ask the viewer: readers alone, by the names it is served under, and with a token where it is served beyond this machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Receive, Scope, Send

from scenemill.pipelines.web_access import headers_of, is_addressed, is_token, refuse, with_headers

_READING: Final = ("GET", "HEAD")
_LONGEST_QUERY: Final = 1 << 14  # bytes; the page asks for less
_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        names: hosts that a request may be addressed to; None for any, which only a token makes safe.
        token: what a request must carry, as ``?token=`` once, from then on as a cookie; "" for nothing.
        cookie: name of the cookie; another one for each port, for browsers keep cookies by host alone.
    """

    names: frozenset[str] | None
    token: str = ""
    cookie: str = "scenemill"


class Guard:
    """An application that answers only to those who may ask, and tells browsers to load nothing from elsewhere.

    Args:
        app: what answers.
        access: who may ask.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            return
        headers = headers_of(scope)
        given = parse_qs(scope["query_string"][:_LONGEST_QUERY].decode("latin-1")).get("token", [""])[0]
        if scope["method"] not in _READING:
            await _answer(send, 405, "only GET and HEAD are answered", {"allow": "GET, HEAD"})
        elif len(scope["query_string"]) > _LONGEST_QUERY:
            await _answer(send, 414, f"a question of {len(scope['query_string'])} bytes; at most {_LONGEST_QUERY} are read")
        elif not is_addressed(headers.get("host", ""), self._access.names):
            await _answer(send, 403, "addressed to a host that the viewer is not served under")
        elif given and is_token(given, self._access.token):
            await _answer(send, 303, "welcome", {"location": "/", "set-cookie": self._set_cookie(given)})
        elif self._access.token and not is_token(_cookie(headers, self._access.cookie), self._access.token):
            await _answer(send, 403, "the token is missing or wrong: open the address that the viewer printed when it began")
        else:
            await self._app(scope, receive, with_headers(send, _HEADERS))

    def _set_cookie(self, token: str) -> str:
        return f"{self._access.cookie}={token}; Path=/; HttpOnly; SameSite=Strict"


def _cookie(headers: Mapping[str, str], name: str) -> str:
    try:
        held = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    return held[name].value if name in held else ""


async def _answer(send: Send, status: int, what: str, headers: Mapping[str, str] | None = None) -> None:
    await refuse(send, status, what, "Open the page as the viewer printed it.", {**_HEADERS, **(headers or {})})
