"""Object stores on loopback: moto as S3, and a proxy in front of it that fails in the ways a network and a service fail."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any, Final
from urllib.parse import unquote
from urllib.request import Request, urlopen

SECRET: Final = "5ecre7-0f-n0b0dy"
_SLOW_DOWN: Final = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate; you are AKIDOFNOBODY.</Message></Error>"


def environment(url: str) -> dict[str, str]:
    """What a process must have in its environment to find the service."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "AKIDOFNOBODY",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
        "GOOGLE_BASE_URL": url,
        "GOOGLE_BEARER_TOKEN": SECRET,
        "NO_PROXY": "127.0.0.1",
    }


@contextmanager
def s3_service() -> Iterator[str]:
    """S3 by moto in a process of its own; yields its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                if answers(url):
                    break
                time.sleep(0.1)
            yield url
        finally:
            server.kill()


@contextmanager
def both_services(bucket: str) -> Iterator[dict[str, str]]:
    """S3 and Google Cloud Storage, each with an empty bucket; scheme -> URL."""
    from tests.unit.gcs_double import gcs_service

    with s3_service() as s3, gcs_service(bucket) as gs:
        make_bucket(s3, bucket)
        yield {"s3": s3, "gs": gs}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/moto-api/", timeout=5):
            return True
    except OSError:
        return False


def make_bucket(url: str, bucket: str) -> None:
    with urlopen(Request(f"{url}/{bucket}", method="PUT"), timeout=30):
        pass


@dataclass
class Fault:
    """One way to fail.

    Attributes:
        method: of the requests it befalls.
        where: part of their path.
        kind: "slow down", "hang", "cut" (the body is half sent), "lose answer" (the work is done) or "cut answer".
        times: how many requests.
        before: called when it strikes.
    """

    method: str
    where: str
    kind: str
    times: int = 1
    before: Callable[[], object] = lambda: None


@dataclass
class Proxy:
    """Where requests pass by: what is to go wrong, and what came."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    ended: Event = field(default_factory=Event)
    lock: Any = field(default_factory=Lock)

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and fault.where in path:
                    fault.times -= 1
                    return fault
        return None

    def count(self, method: str, where: str = "") -> int:
        return sum(found == method and where in path.partition("?")[0] for found, path in self.requests)


@contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy in front of a service."""
    host = upstream.removeprefix("http://")
    held = Proxy("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def pass_on(self) -> None:
            fault = held.fault_of(self.command, unquote(self.path))  # one service has slashes of keys encoded
            length = int(self.headers.get("Content-Length", 0))
            if fault is not None:
                fault.before()
            if fault is not None and fault.kind == "cut":
                self.rfile.read(length // 2)
                self.hang_up()
                return
            body = self.rfile.read(length)
            if len(body) < length:  # who asked is gone
                self.hang_up()
                return
            if fault is not None and fault.kind == "slow down":
                self.answer(503, {"Content-Type": "application/xml"}, _SLOW_DOWN)
                return
            if fault is not None and fault.kind == "hang":
                held.ended.wait(60)
                self.hang_up()
                return
            with closing(http.client.HTTPConnection(host, timeout=60)) as connection:
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                data = answer.read()
            if fault is not None and fault.kind == "lose answer":
                self.hang_up()
                return
            self.answer(answer.status, dict(answer.getheaders()), data, cut=fault is not None)

        def answer(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", len(data)) if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self.hang_up()

        def hang_up(self) -> None:
            self.close_connection = True
            with suppress(OSError):  # it is closed already
                self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = pass_on  # noqa: N815

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # clients that give up

    with Server(("127.0.0.1", 0), Handler) as server:
        held.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield held
        finally:
            held.ended.set()
            server.shutdown()
            thread.join()


@contextmanager
def used_by_proxy(monkeypatch: Any, upstream: str) -> Iterator[Proxy]:
    """Point this process to a proxy in front of a service, until the end of the block."""
    from scenemill.transforms import object_clients

    with proxy(upstream) as between:
        use(monkeypatch, between.url)
        yield between
    object_clients._connect.cache_clear()


def be_nobody(monkeypatch: Any, url: str) -> None:
    """Give what writes metric tables credentials that ask nobody; it does not know a bearer's token."""
    key = {"gcs_base_url": url, "disable_oauth": True, "client_email": "", "private_key": SECRET, "private_key_id": ""}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(key))


def use(monkeypatch: Any, url: str, timeout_s: int = 300) -> None:
    """Point this process to a service, and forget the connections to others."""
    from scenemill.transforms import object_clients

    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    for name, value in {**environment(url), object_clients.TIMEOUT: str(timeout_s)}.items():
        monkeypatch.setenv(name, value)
    object_clients._connect.cache_clear()
