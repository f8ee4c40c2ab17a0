"""The viewer's answers over HTTP: every request there is, and what is said to those that make no sense."""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenemill import Timelapse, open_store
from scenemill.pipelines.viewer.answers import HELD_BYTE
from scenemill.pipelines.viewer.cut import FULL, USUAL
from scenemill.pipelines.viewer.legend import MOST_ENTRIES
from scenemill.pipelines.viewer.log import LIMIT_BYTE
from scenemill.pipelines.viewer.materials import SIDE_PIXEL
from scenemill.pipelines.viewer.server import Viewer, serve
from tests.unit.view_client import ask
from tests.unit.view_worlds import write_samples

PAGE = Path(__file__).parents[2] / "pipelines" / "viewer" / "page"
POINTS = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def world(front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything."""
    folder = tmp_path_factory.mktemp("served")
    with Timelapse(folder / "log") as writer:
        for time_ in (0, 10):
            writer.add_pointcloud_batch(time_, "moving", [POINTS + time_], colors=[np.zeros((1000, 3), np.uint8)])
    write_samples(front3d_world, folder, 6)
    return folder


@pytest.fixture(scope="module")
def viewer(world: Path) -> Iterator[Viewer]:
    with serve(world, poll_s=0.1) as viewer:
        yield viewer


@pytest.fixture(scope="module")
def key(world: Path) -> str:
    return open_store(world / "store").keys[0]


def get(viewer: Viewer, path: str, **parameters: Any) -> Any:
    answer = ask(viewer.url, path, parameters)
    assert answer.status == 200, answer.body
    return answer


def test_the_index_says_what_there_is_and_is_not_sent_again(viewer: Viewer) -> None:
    answer = get(viewer, "/api/index")
    roots = {root["name"]: root for root in answer.json["roots"]}
    assert {name: root["kind"] for name, root in roots.items()} == {
        "log": "log",
        "store": "store",
        "tables": "tables",
        "told": "predictions",
    }
    assert roots["log"]["timelines"] == [[0, 10]] and roots["store"]["samples"] == 6 and roots["told"]["samples"] == 6
    assert answer.headers["etag"] == f'"{answer.json["revision"]}"'
    again = ask(viewer.url, "/api/index", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


def test_samples_findings_and_runs_come_in_pages(viewer: Viewer, key: str) -> None:
    assert get(viewer, "/api/samples", root="store").json["total"] == 6
    assert get(viewer, "/api/samples", root="store", find=key).json["rows"][0]["key"] == key
    assert (
        get(viewer, "/api/samples", **{"root": "store", "from": 4}).json["rows"]
        == get(viewer, "/api/samples", root="store").json["rows"][4:]
    )
    assert get(viewer, "/api/findings", root="store", severity="error").json["rows"] == []
    run = next(root for root in get(viewer, "/api/index").json["roots"] if root["kind"] == "tables")["runs"][0]
    worst = get(viewer, "/api/worst", root="tables", run=run["run"], metric=run["metric"], rule=run["rule"]).json
    assert worst["total"] == 6 and worst["start"] == 0


def test_a_sample_is_told_by_every_root_that_knows_it(viewer: Viewer, key: str) -> None:
    told = get(viewer, "/api/sample", key=key).json
    assert set(told["roots"]) == {"store", "told"} and told["metrics"]["tables"]
    assert get(viewer, "/api/sample", key=key.replace("/", "_")).json == told


def test_a_scene_is_a_frame_of_what_was_written(viewer: Viewer) -> None:
    header, arrays = get(viewer, "/api/scene", root="log", item="pointcloud/moving/0", time=9).frame
    assert (header["frame"], header["time"], header["requested"], header["up"]) == ("scene", 10, 9, "Y")
    np.testing.assert_allclose(np.sort(arrays["0/positions"], axis=0), np.sort(POINTS + 10, axis=0), rtol=1e-6)
    np.testing.assert_allclose(header["bounds"], [(POINTS + 10).min(0), (POINTS + 10).max(0)], rtol=1e-6)
    assert header["buffers"]["0/colors"]["shape"] == [1000, 3]


def test_what_the_asker_holds_is_not_sent_again(viewer: Viewer) -> None:
    first, arrays = get(viewer, "/api/scene", root="log", item="pointcloud/moving/0", time=0).frame
    held = ",".join(entry["key"] for entry in first["buffers"].values())
    answer = get(viewer, "/api/scene", root="log", item="pointcloud/moving/0", time=10, have=held)
    second, changed = answer.frame
    assert set(arrays) == {"0/positions", "0/colors", "0/widths"} and set(changed) == {"0/positions"}
    assert second["buffers"]["0/colors"]["key"] == first["buffers"]["0/colors"]["key"]
    same = ask(
        viewer.url,
        "/api/scene",
        {"root": "log", "item": "pointcloud/moving/0", "time": 10, "have": held},
        headers={"If-None-Match": answer.headers["etag"]},
    )
    assert (same.status, same.body) == (304, b"")


def test_planes_and_scenes_of_samples_are_frames(viewer: Viewer, world: Path, key: str) -> None:
    store = open_store(world / "store")
    header, arrays = get(viewer, "/api/plane", root="store", item=key, what="semantic_3d", axis="z", index=20).frame
    assert header["frame"] == "plane" and header["ids"] == "class" and arrays["values"].shape == (64, 64)
    assert sorted(np.unique(arrays["values"])) == sorted(np.unique(store.read(key)["semantic_3d"][:, :, 20]))
    np.testing.assert_array_equal(
        get(viewer, "/api/plane", root="store", item=key, what="rgb").frame[1]["values"], store.read(key)["rgb"]
    )
    for root in ("store", "told"):
        header, arrays = get(viewer, "/api/scene", root=root, item=key, what="voxels").frame
        assert header["unit"] == "m" and len(arrays["0/positions"]) == header["parts"][0]["shown"] > 100


def test_every_file_of_the_page_is_served_and_nothing_else(viewer: Viewer) -> None:
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
    for path in PAGE.rglob("*"):
        if path.suffix in kinds:
            answer = get(viewer, f"/page/{path.relative_to(PAGE).as_posix()}")
            assert answer.body == path.read_bytes() and answer.headers["content-type"].startswith(kinds[path.suffix])
            again = ask(viewer.url, f"/page/{path.relative_to(PAGE).as_posix()}", headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status, again.body) == (304, b"")
    assert get(viewer, "/").body == (PAGE / "index.html").read_bytes()
    assert ask(viewer.url, "/page/vendor/three/README.md").status == 404


def test_the_page_names_no_other_place() -> None:
    for path in PAGE.glob("*.*"):
        text = path.read_text()
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text.replace("http://www.w3.org/2000/svg", "")), path
        for imported in re.findall(r'from "([^"]+)"', text):
            assert (path.parent / imported).is_file(), f"{path.name} imports {imported}"


def test_the_libraries_of_the_page_are_the_ones_told() -> None:
    told = dict(re.findall(r"\| `([^`]+)` \| ([0-9a-f]{64}) \|", (PAGE / "vendor" / "three" / "README.md").read_text()))
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (PAGE / "vendor" / "three").glob("*.js")}
    assert found == told and "MIT" in (PAGE / "vendor" / "three" / "LICENSE").read_text()


@pytest.mark.parametrize(
    "path",
    [
        "/page/../server.py",
        "/page/..%2fview.py",
        "/page/%2e%2e/%2e%2e/setup.cfg",
        "/page//etc/passwd",
        "/page/%2fetc%2fpasswd",
        "/page/vendor/../../server.py",
        "/page/app.js%00.html",
        "/../../etc/passwd",
        "//etc/passwd",
        "/api",
        "/api/index/",
        "/api/none",
        "/docs",
    ],
)
def test_paths_that_lead_anywhere_else_find_nothing(viewer: Viewer, path: str) -> None:
    answer = ask(viewer.url, path)
    assert answer.status in (404, 307) and b"root:" not in answer.body and b"import" not in answer.body


SCENE = {"root": "log", "item": "pointcloud/moving/0"}


@pytest.mark.parametrize(
    ("path", "parameters", "what"),
    [
        ("/api/scene", {}, "nothing called ''"),
        ("/api/scene", {"root": "../log"}, "nothing called '../log'"),
        ("/api/scene", {"root": "log", "item": "pointcloud/../../etc/0"}, "no item"),
        ("/api/scene", {"root": "log", "item": "pointcloud/moving/1"}, "no item"),
        ("/api/scene", {"root": "tables", "item": "x"}, "nothing in space"),
        ("/api/scene", {**SCENE, "what": "voxels"}, "nothing called 'voxels'"),
        ("/api/scene", {**SCENE, "time": "nan"}, "give a number"),
        ("/api/scene", {**SCENE, "time": "inf"}, "give a number"),
        ("/api/scene", {**SCENE, "time": "now"}, "give a number"),
        ("/api/scene", {**SCENE, "detail": "most"}, "usual or full"),
        ("/api/scene", {"root": "log", "item": "x" * 600}, "item of 600 characters"),
        ("/api/scene", {"root": "store", "item": "none/0", "what": "voxels"}, "none/0"),
        ("/api/plane", {"root": "log", "item": "x"}, "log is log"),
        ("/api/plane", {"root": "store", "item": "none/0", "what": "rgb"}, "none/0"),
        ("/api/plane", {"root": "store", "what": "geometry", "axis": "z", "index": "64"}, "0 to 63"),
        ("/api/plane", {"root": "store", "what": "geometry", "axis": "z", "index": "-1"}, "whole number"),
        ("/api/plane", {"root": "store", "what": "geometry", "axis": "z", "index": "1.5"}, "whole number"),
        ("/api/samples", {"root": "tables"}, "tables is tables"),
        ("/api/samples", {"root": "store", "from": "1e400"}, "give a number"),
        ("/api/findings", {"root": "told"}, "told is predictions"),
        ("/api/findings", {"root": "store", "find": "x" * 513}, "find of 513 characters"),
        ("/api/worst", {"root": "tables", "run": "none"}, "no samples of run"),
        ("/api/sample", {"key": "../../etc/passwd"}, "no sample"),
        ("/api/sample", {}, "no sample"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(
    viewer: Viewer, key: str, path: str, parameters: dict[str, str], what: str
) -> None:
    item = {} if "item" in parameters else {"item": key}
    answer = ask(viewer.url, path, {**item, **parameters})
    assert answer.status == 404 and answer.headers["content-type"] == "application/json"
    assert what in answer.error["what"] and answer.error["kind"] == "ConfigError" and answer.error["now"]
    assert len(answer.body) < 2000


def test_a_request_longer_than_a_page_ever_sends_is_refused_and_the_viewer_lives(viewer: Viewer) -> None:
    for path, parameters in (("/api/index", {"x": "y" * 100_000}), ("/api/scene", {**SCENE, "have": "k," * 9000})):
        answer = ask(viewer.url, path, parameters)
        assert answer.status == 414 and "at most 16384" in answer.error["what"]
    assert get(viewer, "/api/health").json == {"ok": True}


def test_messages_name_no_folder_of_the_machine(world: Path, tmp_path: Path) -> None:
    (tmp_path / "log" / "bad").mkdir(parents=True)
    (tmp_path / "log" / "bad" / "mesh_0.usd").write_bytes(b"#usda 1.0\nnonsense")
    (tmp_path / "log" / "labels.json").write_text("[]")
    with serve(tmp_path / "log") as viewer:
        answer = ask(viewer.url, "/api/scene", {"root": "log", "item": "mesh/bad/0"})
        assert answer.status == 422 and answer.error["kind"] == "SourceError" and "log/bad/mesh_0.usd" in answer.error["what"]
        index = get(viewer, "/api/index")
        assert index.json["roots"][0]["items"][0]["error"] and index.json["roots"][0]["error"]
        for body in (answer.body, index.body):
            assert str(tmp_path).encode() not in body


def test_something_unforeseen_is_an_answer_too(viewer: Viewer, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr("scenemill.pipelines.viewer.store.StoreRoot.plane", fail)
    answer = ask(viewer.url, "/api/plane", {"root": "store", "item": key, "what": "rgb"})
    assert answer.status == 500 and answer.error["kind"] == "ZeroDivisionError" and b"secret" not in answer.body


def test_an_iteration_written_meanwhile_appears_and_what_was_asked_before_is_not_stale(tmp_path: Path) -> None:
    writer = Timelapse(tmp_path / "log")
    writer.add_pointcloud_batch(0, "p", [POINTS])
    with serve(tmp_path / "log", poll_s=0.1) as viewer:
        first = get(viewer, "/api/index")
        get(viewer, "/api/scene", root="log", item="pointcloud/p/0", time=10)
        writer.add_pointcloud_batch(10, "p", [POINTS * 2])
        until = time.monotonic() + 20
        while (index := get(viewer, "/api/index")).json["revision"] == first.json["revision"]:
            assert time.monotonic() < until, "the iteration never appeared"
        assert index.json["roots"][0]["timelines"] == [[0, 10]]
        header, arrays = get(viewer, "/api/scene", root="log", item="pointcloud/p/0", time=10).frame
        assert header["time"] == 10
        np.testing.assert_allclose(np.abs(arrays["0/positions"]).max(), np.abs(POINTS * 2).max())


def test_a_log_that_is_written_all_the_time_is_read_all_the_time(tmp_path: Path) -> None:
    writer, done = Timelapse(tmp_path / "log"), threading.Event()
    writer.add_pointcloud_batch(0, "p", [POINTS])

    def write() -> None:
        for iteration in range(1, 200):
            writer.add_pointcloud_batch(iteration, "p", [POINTS + iteration])
        done.set()

    with serve(tmp_path / "log", poll_s=0.1) as viewer:
        thread = threading.Thread(target=write)
        thread.start()
        asked = 0
        while not done.is_set() or asked == 0:
            times = get(viewer, "/api/index").json["roots"][0]["timelines"][0]
            header, arrays = get(viewer, "/api/scene", root="log", item="pointcloud/p/0", time=times[-1]).frame
            np.testing.assert_allclose(
                arrays["0/positions"].mean(0), POINTS.mean(0) + header["time"], atol=1e-2
            )  # whole, of one iteration
            asked += 1
        thread.join()


def test_many_pages_at_once_all_get_the_same(viewer: Viewer, key: str) -> None:
    questions = [
        ("/api/index", {}),
        ("/api/scene", {**SCENE, "time": 0}),
        ("/api/scene", {**SCENE, "time": 10}),
        ("/api/scene", {"root": "store", "item": key, "what": "surface"}),
        ("/api/plane", {"root": "told", "item": key, "what": "classes"}),
        ("/api/sample", {"key": key}),
    ]
    with ThreadPoolExecutor(20) as pages:
        answers = list(pages.map(lambda number: ask(viewer.url, *questions[number % len(questions)]), range(120)))
    assert {answer.status for answer in answers} == {200}
    for number in range(len(questions)):
        assert len({answer.body for answer in answers[number :: len(questions)]}) == 1


def test_showing_writes_nothing(world: Path, viewer: Viewer, key: str) -> None:
    def seen() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(world.rglob("*"))}

    before = seen()
    for what in ("surface", "points"):
        get(viewer, "/api/scene", root="store", item=key, what=what)
    get(viewer, "/api/scene", **SCENE)
    get(viewer, "/api/index")
    assert seen() == before


def test_what_is_kept_for_the_next_request_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from scenemill.pipelines.viewer.answers import _Scenes

    class Held:
        size_byte = 100

    monkeypatch.setattr("scenemill.pipelines.viewer.answers.HELD_BYTE", 250)
    scenes: Any = _Scenes()
    first, second, third = Held(), Held(), Held()
    assert scenes.get(("a",), lambda: first) is first and scenes.get(("b",), lambda: second) is second
    assert scenes.get(("a",), Held) is first  # used lately, so it stays
    scenes.get(("c",), lambda: third)
    assert scenes.get(("a",), Held) is first and scenes.get(("b",), Held) is not second


def test_the_page_is_small_enough_to_load_in_one_breath(viewer: Viewer) -> None:
    own = sum(path.stat().st_size for path in PAGE.glob("*.*"))
    vendored = sum(path.stat().st_size for path in (PAGE / "vendor").rglob("*.js"))
    assert own < 200_000 and vendored < 2_500_000
    assert json.loads(get(viewer, "/api/health").body) == {"ok": True}
    assert os.sep not in viewer.url.split("/", 3)[3]


def test_what_the_document_says_is_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (PAGE.parents[2] / "docs" / "viewer.md").read_text()
    faces = np.array([[0, 1, 2]])
    Timelapse(tmp_path / "results").add_mesh_batch(100, "output", [POINTS[:3]], [faces])
    monkeypatch.chdir(tmp_path)
    said: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, said)  # the document is ours
    with said["viewer"] as viewer:
        np.testing.assert_array_equal(said["arrays"]["0/positions"], POINTS[:3])
        asked = set(re.findall(r"^\| `(/api/[a-z]+)", text, re.MULTILINE))
        assert asked == set(re.findall(r'"(/api/[a-z]+)"', (PAGE.parent / "answers.py").read_text()))
        assert all(
            ask(viewer.url, path).status in (200, 404) and "no page" not in ask(viewer.url, path).body.decode() for path in asked
        )
    table = (PAGE / "app.js").read_text().partition("const KEYS")[2].partition("};")[0]
    keys = set(re.findall(r"^  \"?([^\s\"]+|\s)\"?: ", table, re.MULTILINE))
    assert len(keys) > 20
    signs = {"ArrowLeft": "←", "ArrowRight": "→", "ArrowUp": "↑", "ArrowDown": "↓", " ": "space"}
    for key in keys:
        assert signs.get(key, f"`{key}`") in text
    for budget in ("500 000", "1 000 000", "2 048", "512 MiB", "384 MiB", "2 GiB"):
        assert budget in text
    assert (USUAL.triangles, USUAL.points, USUAL.voxels) == (500_000, 1_000_000, 500_000)
    assert (SIDE_PIXEL, HELD_BYTE >> 20, LIMIT_BYTE >> 30) == (2048, 512, 2)
    assert (FULL.triangles, FULL.points, FULL.voxels, MOST_ENTRIES) == (4_000_000, 8_000_000, 2_000_000, 1000)
