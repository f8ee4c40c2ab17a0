"""The viewer's page in a browser: everything is drawn, moves, hides, follows and comes back; judged by coarse facts of its pixels."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from scenemill import Timelapse, open_store
from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.viewer.server import ViewConfig, Viewer, serve
from scenemill.schemas.config import IngestConfig
from scenemill.trainers.usd import PBRMaterial
from tests.unit.view_tab import Tab
from tests.unit.view_worlds import write_samples

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless=new",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--no-sandbox",
    "--disable-dev-shm-usage",
]
SIZE = {"width": 900, "height": 560}
RED, BLUE, GREEN = (220, 30, 30), (30, 60, 220), (40, 160, 60)

QUADS = np.array([[0, 1, 2, 3], [1, 4, 5, 2]])
PLACES = np.array([[-1, 0, 0], [0, 0, 0], [0, 1, 0], [-1, 1, 0], [1, 0, 0], [1, 1, 0]], np.float32)
"""A wall of two squares, the left and the right one."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}: apt-get install chromium")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Tab]:
    """A page; at the end it has asked nobody but the viewer, and not complained."""
    page = browser.new_page(viewport=SIZE)
    tab = Tab(page)
    page.on("request", lambda request: tab.asked.add(urlsplit(request.url).netloc))
    page.on("pageerror", lambda error: tab.complaints.append(str(error)))
    page.on("console", lambda message: tab.complaints.append(message.text) if message.type == "error" else None)
    yield tab
    page.close()
    assert tab.complaints == []
    assert all(place.startswith("127.0.0.1:") for place in tab.asked if place), tab.asked


def write_log(folder: Path) -> None:
    """Two walls, the left half red and the right half blue, that grow; textured ones; points; voxels."""
    image = np.zeros((3, 8, 8), np.float32)
    image[1] = 0.8
    materials = {"painted": PBRMaterial(diffuse_texture=torch.tensor(image)), "red": PBRMaterial(diffuse_color=(0.9, 0.0, 0.0))}
    uvs = PLACES[:, :2] * 0.5 + 0.5
    points = np.random.default_rng(0).uniform(-1, 1, (2000, 3)).astype(np.float32)
    grid = np.zeros((5, 5, 5), bool)
    grid[1:4, 1:4, 1:4] = True
    with Timelapse(folder) as log:
        log.set_labels({3: ("chair", (0.9, 0.1, 0.1)), 5: ("table", (0.1, 0.2, 0.9))})
        for time in (0, 10, 20):
            walls = [PLACES * (1 + time / 20)] * 2
            halves = np.array([RED, BLUE], np.uint8)
            log.add_mesh_batch(
                time, "wall", walls, [QUADS] * 2, face_colors_list=[halves] * 2, semantic_ids_list=[np.array([3, 5])] * 2
            )
        log.add_mesh_batch(0, "painted", [PLACES], [QUADS], [uvs], [QUADS], materials_list=[materials])
        log.add_pointcloud_batch(0, "cloud", [points], colors=[np.array([GREEN] * 2000, np.uint8)])
        log.add_voxelgrid_batch(0, "grid", [grid], colors=[np.array(BLUE) / 255])


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "log"
    write_log(folder)
    return folder


@pytest.fixture(scope="module")
def viewer(log: Path) -> Iterator[Viewer]:
    with serve(log, poll_s=0.2) as viewer:
        yield viewer


@pytest.fixture(scope="module")
def samples(front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_samples(front3d_world, folder, 6)
    return folder


@pytest.fixture(scope="module")
def samples_viewer(samples: Path) -> Iterator[Viewer]:
    with serve(samples) as viewer:
        yield viewer


def panes(*items: str, distance: int = 6, **more: Any) -> str:
    """The address of panes of a log, seen from the front, without a floor."""
    shown = [("p", f"root:log item:{quote(item, safe='')}") for item in items]
    return urlencode([*shown, ("grid", 0), ("cam", f"log.log:0,0,{distance},0,0.5,0,2"), *more.items()])


def test_every_kind_of_thing_is_drawn_in_its_own_colours(tab: Tab, viewer: Viewer) -> None:
    tab.open(viewer.url, panes("mesh/wall/0", "mesh/painted/0", "pointcloud/cloud/0", "voxelgrid/grid/0", t=0))
    wall, painted, cloud, grid = (tab.look(number) for number in range(4))
    assert wall["red"] > 0.02 and wall["red"] == pytest.approx(wall["blue"], rel=0.2) and wall["green"] == 0
    assert painted["red"] > 0.04 and painted["green"] == 0
    assert cloud["green"] > 0.05 and cloud["red"] == cloud["blue"] == 0
    assert grid["blue"] > 0.01 and grid["red"] == grid["green"] == 0
    counts = [{name: tab.stats(number)[name] for name in ("triangles", "points", "voxels")} for number in range(4)]
    assert counts[0] == counts[1] == {"triangles": 4, "points": 0, "voxels": 0}
    assert counts[2] == {"triangles": 0, "points": 2000, "voxels": 0}
    assert counts[3] == {"triangles": 2 * 6 * 9, "points": 0, "voxels": 27}  # the outer faces alone
    np.testing.assert_allclose(tab.stats(0)["bounds"], [[-1, 0, 0], [1, 1, 0]])


def test_ways_to_colour_and_materials_can_be_chosen(tab: Tab, viewer: Viewer) -> None:
    tab.open(viewer.url, panes("mesh/painted/0", "mesh/wall/0", t=0))
    assert tab.stats(0)["modes"][0] == "material" and tab.look(0)["red"] > 0.04
    tab.choose("material", "painted")
    assert tab.look(0)["green"] > 0.04 and tab.look(0)["red"] == 0
    tab.choose("coloured by", "plain")
    assert tab.look(0)["green"] == 0
    tab.set(1, mode="semantic id")
    ids = tab.look(1)
    assert ids["red"] > 0.02 and ids["blue"] > 0.02
    sums = {mode: tab.set(1, mode=mode).look(1)["sum"] for mode in ("colour", "semantic id", "plain", "height", "normal")}
    assert len(set(sums.values())) == 5
    flags = [tab.press(key).look(1)["sum"] for key in ("w", "d")]  # edges alone; dark
    assert len({*flags, sums["normal"]}) == 3


def test_the_page_is_at_first_as_dark_as_the_system_and_then_as_its_address_says(tab: Tab, viewer: Viewer) -> None:
    brightness = "getComputedStyle(document.querySelector('.toolbar')).backgroundColor"
    seen = {}
    for scheme in ("light", "dark"):
        tab.page.emulate_media(color_scheme=scheme)
        tab.open(viewer.url, panes("mesh/wall/0", "mesh/wall/1", t=0))
        is_dark = tab.page.evaluate("document.body.classList.contains('dark')")
        seen[scheme] = (is_dark, tab.page.evaluate(brightness))
    assert seen == {"light": (False, "rgb(255, 255, 255)"), "dark": (True, "rgb(23, 28, 35)")}
    tab.open(viewer.url, panes("mesh/wall/0", "mesh/wall/1", t=0) + "&dark=0")
    assert tab.page.evaluate("document.body.classList.contains('dark')") is False


def test_the_timeline_leads_through_iterations(tab: Tab, viewer: Viewer) -> None:
    tab.open(viewer.url, panes("mesh/wall/0", "mesh/wall/1", t=0, distance=14))
    shares = [tab.look()["all"]]
    for _ in range(2):
        tab.press("ArrowRight")
        shares.append(tab.look()["all"])
    assert shares[1] == pytest.approx(2.25 * shares[0], rel=0.15) and shares[2] == pytest.approx(4 * shares[0], rel=0.15)
    assert tab.press("Home").stats()["time"] == 0 and tab.press("End").stats()["time"] == 20
    tab.page.get_by_label("iteration", exact=True).fill("1")
    assert tab.settle().stats()["time"] == 10 and tab.state["follow"] is False
    tab.page.get_by_label("iteration as a number").fill("3")
    tab.page.keyboard.press("Enter")
    assert tab.settle().stats()["time"] == 0
    tab.page.locator(".pane").nth(1).get_by_label("let it stay at this iteration").click()
    tab.page.locator(".pane canvas").first.focus()
    assert [tab.press("End").stats(number)["time"] for number in range(2)] == [20, 0]
    assert "nearest" not in tab.text(".pane-foot")
    tab.press("Home", "Space").until("window.__viewer.stats(0).time > 0")
    assert tab.state["playing"] and not tab.press("Space").state["playing"]


def test_a_click_in_the_legend_hides_what_it_names(tab: Tab, viewer: Viewer) -> None:
    tab.open(viewer.url, panes("mesh/wall/0", t=0))
    assert "3 chair" in tab.text(".legend") and "5 table" in tab.text(".legend")
    tab.click(".legend [data-id='3']")
    hidden = tab.look()
    assert hidden["red"] == 0 and hidden["blue"] > 0.02 and tab.stats()["triangles"] == 2
    tab.click(".legend [data-id='3']")
    assert tab.look()["red"] > 0.02
    tab.click(".legend [data-id='3']", modifiers=["Control"])  # this one alone
    alone = tab.look()
    assert alone["red"] > 0.02 and alone["blue"] == 0
    tab.click(".legend button.link")
    assert tab.stats()["triangles"] == 4


def test_linked_cameras_move_together_and_unlinked_ones_apart(tab: Tab, viewer: Viewer) -> None:
    tab.open(viewer.url, panes("mesh/wall/0", "mesh/wall/1", t=0))
    before = [tab.look(number)["sum"] for number in range(2)]
    assert before[0] == before[1]
    tab.drag(0)
    after = [tab.look(number)["sum"] for number in range(2)]
    assert after[0] == after[1] != before[0]
    tab.press("l")
    assert [tab.look(number)["sum"] for number in range(2)] == after  # nothing jumps
    tab.drag(0)
    assert tab.look(1)["sum"] == after[1] and tab.look(0)["sum"] != after[0]
    tab.press("f")
    assert tab.look(0)["sum"] == tab.look(1)["sum"]


def test_what_is_opened_in_the_place_of_something_else_is_seen_whole(tab: Tab, samples: Path, log: Path) -> None:
    with serve(samples / "store", log) as viewer:
        tab.open(viewer.url).click(".toolbar button:text-is('log')").press("g")
        opened = [tab.look(number)["all"] for number in range(4)]
        assert [tab.press("f").look(number)["all"] for number in range(4)] == pytest.approx(opened, rel=0.05)
        tab.leave()


def test_an_address_brings_everything_back(tab: Tab, viewer: Viewer) -> None:
    tab.open(viewer.url, panes("mesh/wall/1", "voxelgrid/grid/0", t=10))
    tab.set(0, mode="semantic id").click(".legend [data-id='5']").drag(1).press("o", "d", "2")
    address, looks = tab.state["address"], [tab.look(number) for number in range(2)]
    tab.open(viewer.url, address)
    assert tab.state["address"] == address
    for number in range(2):
        again = tab.look(number)
        assert {name: again[name] for name in ("red", "blue", "all")} == pytest.approx(
            {name: looks[number][name] for name in ("red", "blue", "all")}, rel=0.02, abs=1e-3
        )
    assert tab.state["time"] == 10 and tab.state["active"] == 1 and tab.look(0)["blue"] == 0


def test_two_things_share_a_pane(tab: Tab, viewer: Viewer) -> None:
    tab.open(viewer.url, panes("mesh/wall/0", t=0))
    alone = tab.stats()
    tab.choose("laid over", "log log pointcloud/cloud")
    both = tab.stats()
    assert (both["triangles"], both["points"]) == (4, 2000) and both["bounds"] != alone["bounds"]
    assert both["mode"] == "plain" and tab.look()["red"] > 0.02  # orange over blue
    tab.choose("laid over", "")
    assert tab.stats() == alone


def test_a_picture_of_the_view_can_be_kept(tab: Tab, viewer: Viewer, tmp_path: Path) -> None:
    tab.open(viewer.url, panes("mesh/wall/0", "pointcloud/cloud/0", t=0))
    with tab.page.expect_download() as download:
        tab.press("p")
    download.value.save_as(tmp_path / "view.png")
    pixels = np.asarray(Image.open(tmp_path / "view.png").convert("RGB")).astype(int)
    assert pixels.shape[1] > 400 and pixels.shape[0] > 250
    red = (pixels[..., 0] > 150) & (pixels[..., 1:].max(-1) < 80)
    green = (pixels[..., 1] > pixels[..., 0] + 60) & (pixels[..., 1] > pixels[..., 2] + 60)
    assert np.median(np.argwhere(red)[:, 1]) < pixels.shape[1] / 2 < np.median(np.argwhere(green)[:, 1])


def test_an_iteration_that_another_process_writes_appears_by_itself(tab: Tab, tmp_path: Path) -> None:
    write_log(tmp_path / "log")
    script = """
        import sys
        import numpy as np
        from scenemill import Timelapse
        Timelapse(sys.argv[1]).add_mesh_batch(30, "wall", [np.array(eval(sys.argv[2]), np.float32)])
    """
    with serve(tmp_path / "log", poll_s=0.2) as viewer:
        tab.open(viewer.url, urlencode({"p": "root:log item:mesh%2Fwall%2F0"}))
        assert (tab.state["time"], tab.stats()["time"]) == (20, 20)
        before = tab.look()
        subprocess.run([sys.executable, "-c", textwrap.dedent(script), tmp_path / "log", str((PLACES / 2).tolist())], check=True)
        tab.until("window.__viewer.stats(0).time === 30")
        assert tab.state["time"] == 30 and tab.look()["all"] < 0.5 * before["all"]
        tab.leave()


def test_an_empty_folder_says_what_was_looked_for_and_fills_by_itself(tab: Tab, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with serve(tmp_path / "log", poll_s=0.2) as viewer:
        tab.open(viewer.url)
        assert "Nothing to show yet" in tab.text(".centre") and "CATEGORY/mesh_N.usd" in tab.text(".centre")
        write_log(tmp_path / "made")
        (tmp_path / "made").rename(tmp_path / "log")  # all at once, as the panes are those of what there was at a look
        tab.until("window.__viewer.state().panes.length >= 4 && window.__viewer.stats(0).frame === 'scene'")
        assert "Nothing to show yet" not in tab.text(".centre")
        tab.leave()


def test_a_broken_file_says_what_was_found_and_leaves_the_others_alone(tab: Tab, tmp_path: Path) -> None:
    write_log(tmp_path / "log")
    (tmp_path / "log" / "bad").mkdir()
    (tmp_path / "log" / "bad" / "mesh_0.usd").write_bytes((tmp_path / "log" / "wall" / "mesh_0.usd").read_bytes()[:300])
    with serve(tmp_path / "log") as viewer:
        tab.open(viewer.url, panes("mesh/bad/0", "mesh/wall/0", t=0))
        assert "no readable USD file at log/bad/mesh_0.usd" in tab.text(".pane-note") and "USD file" in tab.stats(0)["error"]
        assert "mesh/bad/0" in tab.text(".side") and tab.look(1)["red"] > 0.02
        tab.leave()


def test_a_lost_connection_is_told_and_taken_up_again(tab: Tab, log: Path) -> None:
    with serve(log, poll_s=0.2) as viewer:
        tab.open(viewer.url, panes("mesh/wall/0", t=0))
    tab.until("!document.querySelector('.banner').hidden")
    assert "Connection lost" in tab.text(".banner")
    drawn = tab.look()["red"]
    with Viewer(ViewConfig((log,), port=urlsplit(viewer.url).port or 0, poll_s=0.2)):
        tab.until("document.querySelector('.banner').hidden")
        assert tab.press("End").stats()["time"] == 20 and tab.look()["red"] > drawn > 0.02
        tab.leave()


CONTEXTS = """
    window.contexts = new Set();
    const getContext = HTMLCanvasElement.prototype.getContext;
    HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
      const context = getContext.call(this, kind, ...rest);
      if (kind === "webgl2" && context) window.contexts.add(context);
      return context;
    };
"""
"""Remembers the graphics contexts of a page, so that a test can take them away."""


@pytest.mark.full
def test_a_graphics_context_that_is_lost_comes_back_with_everything_in_it(tab: Tab, tmp_path: Path) -> None:
    write_log(tmp_path / "log")
    metal = {"metal": PBRMaterial(diffuse_color=(0.9, 0.05, 0.05), metallic_value=1.0, roughness_value=0.3)}
    uvs = PLACES[:, :2] * 0.5 + 0.5
    Timelapse(tmp_path / "log").add_mesh_batch(0, "metal", [PLACES], [QUADS], [uvs], [QUADS], materials_list=[metal])
    items = ("mesh/metal/0", "mesh/painted/0", "pointcloud/cloud/0", "voxelgrid/grid/0")
    tab.page.add_init_script(CONTEXTS)
    with serve(tmp_path / "log") as viewer:
        tab.open(viewer.url, panes(*items, t=0)).set(1, material="painted")
        before = [tab.look(number) for number in range(4)]
        assert before[0]["red"] > 0.03 and before[1]["green"] > 0.03
        for _ in range(2):
            tab.page.evaluate("window.lost = [...window.contexts].map((one) => one.getExtension('WEBGL_lose_context'))")
            tab.page.evaluate("window.lost.forEach((one) => one.loseContext())")
            tab.until("[...window.contexts].every((one) => one.isContextLost())")
            assert tab.press("ArrowRight").look(2) == before[2]  # what was drawn last stays
            tab.page.evaluate("window.lost.forEach((one) => one.restoreContext())")
            tab.until("[...window.contexts].every((one) => !one.isContextLost())")
            assert [tab.look(number) for number in range(4)] == before
        tab.drag(2)
        assert tab.look(2)["sum"] != before[2]["sum"] and tab.look(2)["green"] > 0.02
        tab.leave()


def test_a_sample_is_shown_as_pictures_slices_and_in_space(tab: Tab, samples: Path, samples_viewer: Viewer) -> None:
    store = open_store(samples / "store")
    tab.open(samples_viewer.url)
    shown = [(spec["root"], spec["what"]) for spec in tab.state["panes"]]
    assert shown == [("store", "rgb"), ("store", "semantic_2d"), ("told", "classes"), ("store", "surface")]
    assert "10 wall" in tab.text(".legend") and tab.stats(3)["triangles"] > 500 and tab.look(3)["all"] > 0.02
    tab.click(".toolbar button:text-is('slices')")
    assert ("store", "geometry") in [(spec["root"], spec["what"]) for spec in tab.state["panes"]]
    before = tab.look(0)["sum"]
    tab.press("1", "PageUp")
    assert "z 33" in tab.text(".pane-foot") and tab.look(0)["sum"] != before
    tab.click(".toolbar button:text-is('in space')")
    matching = [number for number, spec in enumerate(tab.state["panes"]) if spec["what"] == "voxels"]
    assert [tab.stats(number)["voxels"] > 100 for number in matching] == [True, True]
    assert tab.state["sample"]["key"].replace("/", "_") == store.keys[0].replace("/", "_")


def test_rows_lead_to_what_they_are_about(tab: Tab, samples: Path, samples_viewer: Viewer) -> None:
    store = open_store(samples / "store")
    tab.open(samples_viewer.url)
    tab.press("ArrowDown").until_sample(store.keys[1])
    tab.page.get_by_label("find").fill(store.keys[3])
    tab.click(f".list button[data-key='{store.keys[3]}']").until_sample(store.keys[3])
    assert store.keys[3] in tab.text(".detail h2") and store.keys[3].partition("/")[2] in tab.text(".list .on")
    tab.click(".tabs button:text-is('metrics')")
    tab.page.wait_for_selector(".list .bar")
    worst = tab.page.locator(".list button.row").first.get_attribute("data-key")
    tab.click(".list button.row").until_sample(worst)
    assert "missed" in tab.text(".list")
    runs = tab.page.evaluate("async () => (await (await fetch('api/index')).json()).roots.find(root => root.runs).runs")
    assert runs[0]["model"] in tab.text(".detail")
    tab.click(".tabs button:text-is('findings')")
    tab.page.wait_for_selector(".list .badge, .list .empty")
    for row in store.findings.to_pylist()[:1]:
        tab.click(f".list button[data-key='{row['key']}']").until_sample(row["key"])
        assert row["field"] in [spec["what"] for spec in tab.state["panes"]]


def test_panes_go_along_to_a_sample_of_another_store(tab: Tab, samples: Path, matterport_world: Path, tmp_path: Path) -> None:
    ingest(IngestConfig("matterport", matterport_world, tmp_path / "other"))
    with serve(samples / "store", tmp_path / "other") as viewer:
        tab.open(viewer.url).click(".toolbar button:text-is('in space')")
        tab.choose("root", "other")
        key = open_store(tmp_path / "other").keys[0]
        tab.click(f".list button[data-key='{key}']").until_sample(key)
        assert {spec["root"] for spec in tab.state["panes"]} == {"other"}
        assert all(tab.stats(number)["bounds"] for number in range(3))
        tab.leave()


def test_everything_is_reached_by_keys_and_named_for_those_who_do_not_see(tab: Tab, viewer: Viewer) -> None:
    tab.open(viewer.url, panes("mesh/wall/0", "mesh/wall/1", t=0))
    assert "Keys and mouse" in tab.press("?").text("dialog")
    tab.press("Escape", "2", "m")
    assert tab.state["active"] == 1 and tab.state["whole"] and not tab.page.locator(".pane").first.is_visible()
    tab.press("m", "c")
    assert tab.stats(1)["mode"] == "semantic id"
    unnamed = """[...document.querySelectorAll('button, input, select')].filter((one) =>
        !(one.textContent.trim() || one.ariaLabel || one.title || one.closest('label')?.textContent.trim())).length"""
    assert tab.page.evaluate(unnamed) == 0


def big_log(folder: Path) -> None:
    """A million points, and half a million triangles."""
    side = 501
    x, z = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    number = np.arange(side * side).reshape(side, side)
    corners = [part.reshape(-1) for part in (number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:])]
    faces = np.concatenate([np.stack([corners[a] for a in triangle], 1) for triangle in ((0, 1, 2), (0, 2, 3))])
    vertices = np.stack([x, 0.2 * np.sin(5 * x), z], -1).reshape(-1, 3).astype(np.float32)
    points = np.random.default_rng(0).normal(size=(1_000_000, 3)).astype(np.float32)
    with Timelapse(folder) as log:
        log.add_mesh_batch(0, "surface", [vertices], [faces], vertex_colors_list=[np.array([BLUE] * len(vertices), np.uint8)])
        log.add_pointcloud_batch(0, "cloud", [points], colors=[np.array([GREEN] * 1_000_000, np.uint8)])


@pytest.mark.full
@pytest.mark.parametrize(
    ("item", "kind", "amount"), [("pointcloud/cloud/0", "points", 1_000_000), ("mesh/surface/0", "triangles", 500_000)]
)
def test_large_things_are_drawn_whole(tab: Tab, tmp_path: Path, item: str, kind: str, amount: int) -> None:
    big_log(tmp_path / "log")
    with serve(tmp_path / "log") as viewer:
        tab.open(viewer.url, urlencode({"p": f"root:log item:{quote(item, safe='')}", "grid": 0}))
        assert tab.stats()[kind] == amount and tab.look()["all"] > 0.05
        before = tab.look()["sum"]
        assert tab.drag(0).look()["sum"] != before
        tab.leave()


@pytest.mark.full
def test_twenty_tabs_all_follow(browser: Any, tab: Tab, tmp_path: Path) -> None:
    write_log(tmp_path / "log")
    with serve(tmp_path / "log", poll_s=0.2) as viewer:
        tabs = [tab, *(Tab(browser.new_page(viewport={"width": 400, "height": 300})) for _ in range(19))]
        for each in tabs:
            each.open(viewer.url, urlencode({"p": "root:log item:mesh%2Fwall%2F0"}))
        Timelapse(tmp_path / "log").add_mesh_batch(30, "wall", [PLACES])
        for each in tabs:
            each.page.bring_to_front()
            each.until("window.__viewer.stats(0).time === 30")
        for each in tabs[1:]:
            each.page.close()
        tab.leave()
