"""The page of a store's runs: numbers, stages, findings, and nothing of a user that steers the page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from scenemill.pipelines.cli import app
from scenemill.pipelines.ingest import ingest
from scenemill.pipelines.progress import no_progress
from scenemill.pipelines.reports.run_page import STAGES, runs_page
from scenemill.schemas.config import IngestConfig
from scenemill.transforms.store import Store, open_store
from scenemill.transforms.worlds import write_world


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two runs: of a world of which one view is broken, and of the same with another view broken too."""
    folder = tmp_path_factory.mktemp("runs") / "<b>raw"
    write_world("front3d", folder, scenes=2, views=2, seed=3, grid=64)
    depths = sorted(folder.rglob("depth_*"))
    depths[0].write_bytes(b"no image")
    ingest(IngestConfig("front3d", folder, folder.parent / "store"), no_progress)
    depths[1].write_bytes(b"no image either")
    ingest(IngestConfig("front3d", folder, folder.parent / "store"), no_progress)
    return open_store(folder.parent / "store")


def test_the_page_tells_every_run_the_newest_first(store: Store) -> None:
    page = runs_page(store)
    runs = store.runs.sort_by([("started", "descending")]).to_pylist()
    assert [run["rejected"] for run in runs] == [2, 1]
    assert page.index(runs[0]["run"]) < page.index(runs[1]["run"])
    assert "4 = 2 + 2" in page and "4 = 3 + 1" in page
    assert f"its version {store.version} holds 2 samples" in page


def test_stages_make_up_a_run(store: Store) -> None:
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", runs_page(store))]
    assert len(widths) == 2 * len(STAGES)
    for run in store.runs.to_pylist():
        assert 0.8 * run["seconds"] < sum(run[stage] for stage in STAGES) <= run["seconds"]
    assert 80 < max(sum(widths[:4]), sum(widths[4:])) <= 100.1


def test_findings_say_how_many_samples_and_one_of_them(store: Store) -> None:
    page = runs_page(store)
    assert "about rejected samples" in page
    broken = {row["key"] for row in store.findings.to_pylist() if row["rejected"]}
    assert len(broken) == 2
    assert any(key in page for key in broken)
    assert re.search(r"<td>[\d.]+&nbsp;[KM]iB</td>", page) and re.search(r"<td>[\d.]+&nbsp;s</td>", page)


def test_names_of_users_are_text_and_nothing_is_loaded(store: Store) -> None:
    page = runs_page(store)
    assert "&lt;b&gt;raw" in page and "<b>raw" not in page
    assert not re.search(r"<script|src=|https?://", page)


def test_the_command_lists_runs_and_writes_the_page(store: Store, tmp_path: Path, capsys: Any) -> None:
    app(["runs", str(store.root), "--json", "--html", str(tmp_path / "runs.html")], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert [row["stored"] for row in told] == [2, 3]
    assert (tmp_path / "runs.html").read_text() == runs_page(store)
    app(["runs", str(store.root)], standalone_mode=False)
    assert "published" in capsys.readouterr().out
