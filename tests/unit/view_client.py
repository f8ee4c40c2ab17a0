"""Asking a viewer over HTTP, as plainly as it goes: the answer's status, headers and body, whatever it is."""

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from scenemill.pipelines.viewer.frames import decode_frame


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, str]:
        return self.json["error"]  # type: ignore[no-any-return]

    @property
    def frame(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return decode_frame(self.body)


def ask(
    url: str,
    path: str,
    parameters: dict[str, Any] | None = None,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    host: str | None = None,
) -> Answer:
    """One request on a connection of its own; ``path`` goes out as it is given, ``host`` is what it claims to be addressed to."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    try:
        connection.putrequest(method, f"{path}?{urlencode(parameters)}" if parameters else path, skip_host=True)
        connection.putheader("Host", place.netloc if host is None else host)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()
