"""Alerts: what is sent, to whom, and that no secret and no failure gets out of them."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from scenemill.pipelines.schedule.alerts import check_address, has_address, send_alert
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.schedule import AlertsConfig

DOCUMENT = {"schedule": "a", "state": "failed", "text": "a: failed: disk full"}


@contextmanager
def listening(code: int, location: str = "") -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A web address on this machine, and what is posted to it."""
    heard: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(code)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            heard.append((self.path, b""))

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/s3cr3t", heard
        finally:
            server.shutdown()
            thread.join()


def test_the_document_is_posted_as_json() -> None:
    with listening(204) as (address, heard):
        assert send_alert(AlertsConfig(webhook=address), DOCUMENT) == "sent"
    assert [(path, json.loads(body)) for path, body in heard] == [("/s3cr3t", DOCUMENT)]


def test_a_secret_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    alerts = AlertsConfig(webhook_env="MY_HOOK")
    with listening(200) as (address, heard):
        monkeypatch.setenv("MY_HOOK", address)
        check_address(alerts)
        assert send_alert(alerts, DOCUMENT) == "sent"
    assert len(heard) == 1


@pytest.mark.parametrize("value", ["", "s3cr3t", "file:///etc/s3cr3t"])
def test_an_environment_without_an_address_is_told_before_it_is_needed(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_HOOK", value)
    with pytest.raises(ConfigError, match="MY_HOOK holds no http or https URL") as caught:
        check_address(AlertsConfig(webhook_env="MY_HOOK"))
    outcome = send_alert(AlertsConfig(webhook_env="MY_HOOK"), DOCUMENT)
    assert "s3cr3t" not in str(caught.value) + outcome
    assert "MY_HOOK" in outcome


def test_a_refused_alert_is_an_outcome_that_does_not_show_the_address() -> None:
    with listening(500) as (address, _):
        outcomes = [send_alert(AlertsConfig(webhook=address), DOCUMENT)]
    outcomes.append(send_alert(AlertsConfig(webhook=address), DOCUMENT))  # nobody listens any more
    outcomes.append(send_alert(AlertsConfig(webhook="http://127.0.0.1/s3cr3t with blanks"), DOCUMENT))
    assert outcomes == ["webhook: answered 500", "webhook: URLError", "webhook: InvalidURL"]
    assert "s3cr3t" not in "".join(outcomes)


def test_an_address_that_points_elsewhere_is_not_followed() -> None:
    with listening(200) as (elsewhere, heard), listening(302, elsewhere) as (address, _):
        assert send_alert(AlertsConfig(webhook=address), DOCUMENT) == "webhook: answered 302"
    assert heard == []


def test_a_program_reads_the_document_and_its_arguments_meet_no_shell(tmp_path: Path) -> None:
    script = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.argv[2] + sys.stdin.read())"
    alerts = AlertsConfig(command=(sys.executable, "-c", script, str(tmp_path / "told"), "$HOME;`id`"))
    assert send_alert(alerts, DOCUMENT) == "sent"
    assert (tmp_path / "told").read_text() == "$HOME;`id`" + json.dumps(DOCUMENT)


def test_a_program_that_fails_or_is_not_there_is_an_outcome() -> None:
    assert send_alert(AlertsConfig(command=(sys.executable, "-c", "raise SystemExit(7)")), DOCUMENT) == "command: exit code 7"
    assert send_alert(AlertsConfig(command=("/no/such/program",)), DOCUMENT) == "command: FileNotFoundError"


def test_both_ways_are_tried_and_each_failure_told() -> None:
    with listening(404) as (address, heard):
        outcome = send_alert(AlertsConfig(webhook=address, command=("/no/such/program",)), DOCUMENT)
    assert outcome == "webhook: answered 404; command: FileNotFoundError"
    assert len(heard) == 1


def test_who_has_no_address_is_not_told() -> None:
    found = [has_address(alerts) for alerts in (AlertsConfig(), AlertsConfig(webhook_env="A"), AlertsConfig(command=("true",)))]
    assert found == [False, True, True]
