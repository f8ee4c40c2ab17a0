"""Who may ask the viewer: readers alone, under its own names, and with the token where there is one."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scenemill import Timelapse
from scenemill.pipelines.viewer.server import ViewConfig, Viewer, serve
from tests.unit.view_client import Answer, ask

TOKEN = "abcDEF123456"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard") / "log"
    Timelapse(folder).add_pointcloud_batch(0, "p", [np.zeros((2, 3), np.float32)])
    return folder


@pytest.fixture(scope="module")
def open_viewer(log: Path) -> Iterator[Viewer]:
    with serve(log) as viewer:
        yield viewer


@pytest.fixture(scope="module")
def closed_viewer(log: Path) -> Iterator[Viewer]:
    with Viewer(ViewConfig((log,), port=0, token=TOKEN)) as viewer:
        yield viewer


def is_refused(answer: Answer, status: int, what: str) -> bool:
    return answer.status == status and what in answer.error["what"] and bool(answer.error["now"])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/", "/api/index", "/api/scene?root=log&item=pointcloud/p/0"])
def test_nothing_but_reading_is_answered(open_viewer: Viewer, method: str, path: str) -> None:
    answer = ask(open_viewer.url, path, method=method)
    assert is_refused(answer, 405, "only GET and HEAD") and answer.headers["allow"] == "GET, HEAD"


def test_head_has_the_headers_and_no_body(open_viewer: Viewer) -> None:
    head, full = (ask(open_viewer.url, "/page/app.js", method=method) for method in ("HEAD", "GET"))
    assert head.status == 200 and head.body == b"" and full.body
    assert head.headers["etag"] == full.headers["etag"] and head.headers["content-length"] == str(len(full.body))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "[::1", "127.0.0.2", "0.0.0.0"]
)
def test_a_page_of_another_name_gets_no_answer(open_viewer: Viewer, host: str) -> None:
    assert is_refused(ask(open_viewer.url, "/api/index", host=host), 403, "host")


@pytest.mark.parametrize("host", ["localhost", "localhost:9999", "LOCALHOST", "127.0.0.1", "[::1]:80"])
def test_the_names_of_this_machine_are_answered_whatever_port_a_tunnel_has(open_viewer: Viewer, host: str) -> None:
    assert ask(open_viewer.url, "/api/index", host=host).status == 200


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/api/index", "/api/health", "/api/scene?root=log&item=pointcloud/p/0"])
def test_without_the_token_nothing_is_answered(closed_viewer: Viewer, path: str) -> None:
    cookie = f"{_cookie(closed_viewer)}=wrong"
    for headers in (
        {},
        {"Cookie": cookie},
        {"Cookie": "scenemill_1=" + TOKEN},
        {"Cookie": '"; broken=\x7f'},
        {"Authorization": TOKEN},
    ):
        assert is_refused(ask(closed_viewer.url, path, headers=headers), 403, "token")


def test_a_wrong_token_is_no_token(closed_viewer: Viewer) -> None:
    for given in ("", "x", TOKEN[:-1], TOKEN + "0", TOKEN.lower(), "é"):
        assert is_refused(ask(closed_viewer.url, "/", {"token": given}), 403, "token")


def test_the_address_that_is_printed_opens_the_page_and_a_cookie_keeps_it_open(closed_viewer: Viewer) -> None:
    assert closed_viewer.url.endswith(f"/?token={TOKEN}")
    welcome = ask(closed_viewer.url, "/", {"token": TOKEN})
    assert (welcome.status, welcome.headers["location"]) == (303, "/")  # the token leaves the address bar
    cookie, *attributes = welcome.headers["set-cookie"].split("; ")
    assert cookie == f"{_cookie(closed_viewer)}={TOKEN}" and {"HttpOnly", "SameSite=Strict"} <= set(attributes)
    assert ask(closed_viewer.url, "/api/index", headers={"Cookie": f"other=1; {cookie}"}).status == 200


def test_the_token_leads_nowhere_but_to_the_page(closed_viewer: Viewer) -> None:
    for path in ("//evil.example/", "/%0d%0aSet-Cookie:%20x=1/", "/%e2%82%ac", "/api/index"):
        assert ask(closed_viewer.url, path, {"token": TOKEN}).headers["location"] == "/"


def test_no_token_is_asked_for_nor_taken_where_none_is_set(open_viewer: Viewer) -> None:
    assert ask(open_viewer.url, "/api/index", {"token": "anything"}).status == 200


def test_browsers_are_told_to_load_nothing_from_elsewhere(open_viewer: Viewer) -> None:
    for path in ("/", "/page/app.js", "/api/index", "/api/none", "/api/scene?root=none"):
        headers = ask(open_viewer.url, path).headers
        assert (
            "default-src 'none'" in headers["content-security-policy"]
            and "frame-ancestors 'none'" in headers["content-security-policy"]
        )
        assert "http" not in headers["content-security-policy"] and "unsafe" not in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["cross-origin-resource-policy"]) == ("nosniff", "same-origin")
        assert headers["referrer-policy"] == "no-referrer"  # nor is the token told to others
        assert "access-control-allow-origin" not in headers and "server" not in headers


def _cookie(viewer: Viewer) -> str:
    return f"scenemill_{viewer.url.split(':')[2].split('/')[0]}"
