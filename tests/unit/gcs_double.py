"""A double of Google Cloud Storage's XML API as far as stores need it: generations, conditions on them, ranges, listings.

Source: the service's reference of XML API requests and of request preconditions. Emulators ignore ``x-goog-if-generation-match``,
by which publishing is atomic; this does not.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Held = tuple[int, bytes]
"""Generation and bytes."""


@dataclass
class Bucket:
    """What lies in one bucket."""

    name: str
    objects: dict[str, Held] = field(default_factory=dict)
    generations: Iterator[int] = field(default_factory=lambda: count(1700000000000001))
    lock: Any = field(default_factory=Lock)

    def put(self, key: str, data: bytes, match: str | None) -> int | None:
        """The new generation; None where the condition does not hold."""
        with self.lock:
            found = self.objects.get(key, (0, b""))[0]
            if match is not None and int(match) != found:
                return None
            self.objects[key] = next(self.generations), data
            return self.objects[key][0]

    def listing(self, asked: dict[str, list[str]]) -> str:
        """The answer to a request for a listing."""
        prefix, delimiter = asked.get("prefix", [""])[0], asked.get("delimiter", [""])[0]
        behind = max(asked.get("start-after", [""])[0], asked.get("continuation-token", [""])[0])
        keys = [key for key in sorted(self.objects) if key.startswith(prefix) and key > behind]
        folders = {key[: key.index(delimiter, len(prefix)) + 1] for key in keys if delimiter and delimiter in key[len(prefix) :]}
        shown = [key for key in keys if not any(key.startswith(folder) for folder in folders)]
        page, more = shown[:1000], len(shown) > 1000
        return (
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>"
            + (f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else "")
            + "".join(self._entry(key) for key in page)
            + "".join(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in sorted(folders))
            + "</ListBucketResult>"
        )

    def _entry(self, key: str) -> str:
        generation, data = self.objects[key]
        fields = {"Key": escape(key), "Size": len(data), "ETag": tag(data), "Generation": generation}
        inner = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
        return f"<Contents>{inner}<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"


def tag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


@contextmanager
def gcs_service(bucket: str) -> Iterator[str]:
    """The double with one bucket; yields its URL."""
    held = Bucket(bucket)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def serve(self) -> None:
            url = urlsplit(self.path)
            name, _, key = unquote(url.path).lstrip("/").partition("/")
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if name != held.name:
                self.answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
            elif not key:
                self.answer(200, held.listing(parse_qs(url.query)).encode(), {"Content-Type": "application/xml"})
            elif self.command == "PUT":
                made = held.put(key, data, self.headers.get("x-goog-if-generation-match"))
                if made is None:
                    self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                else:
                    self.answer(200, b"", {"x-goog-generation": str(made), "ETag": tag(data)})
            elif key not in held.objects:
                self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            elif self.command == "DELETE":
                del held.objects[key]
                self.answer(204)
            else:
                self.send_object(*held.objects[key])

        def send_object(self, generation: int, data: bytes) -> None:
            told = {"ETag": tag(data), "x-goog-generation": str(generation), "Last-Modified": formatdate(1.8e9, usegmt=True)}
            asked = self.headers.get("Range")
            if self.command == "HEAD":
                self.answer(200, b"", {**told, "Content-Length": str(len(data))})
            elif asked is None:
                self.answer(200, data, told)
            else:
                start, _, last = asked.removeprefix("bytes=").partition("-")
                end = min(int(last) + 1, len(data)) if last else len(data)
                part = data[int(start) : end] if start else data[-int(last) :]
                begin = int(start) if start else len(data) - len(part)
                self.answer(206, part, {**told, "Content-Range": f"bytes {begin}-{begin + len(part) - 1}/{len(data)}"})

        do_GET = do_PUT = do_HEAD = do_DELETE = serve  # noqa: N815

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # clients that give up

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
