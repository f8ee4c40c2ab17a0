"""The commands around batches, as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scenemill.pipelines.ingest import ingest
from scenemill.schemas.config import IngestConfig


def scenemill(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = "from scenemill.pipelines.cli import main; main()"
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def store(front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "front3d"
    ingest(IngestConfig("front3d", front3d_world, path, samples_per_part=4))
    return path


def test_bench_loader_measures_stages_and_feeds_and_draws_them(store: Path, tmp_path: Path) -> None:
    png = tmp_path / "speed.png"
    done = scenemill("bench-loader", str(store), "--workers", "0,1", "--batches", "2", "--planes", "--png", str(png), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told["stage_ms"]) == {"read", "targets", "pack", "unpack", "expand"}
    assert all(milliseconds >= 0 for milliseconds in told["stage_ms"].values())
    assert 0 < told["stored_byte"] < told["moved_byte"] < told["dense_byte"]
    assert [feed["workers"] for feed in told["feeds"]] == [0, 1]
    for feed in told["feeds"]:
        assert feed["samples_per_s"] > 0
        assert 0 <= feed["stalled"] <= 1
        assert feed["wait_ms"]["median"] <= feed["wait_ms"]["longest"]
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "told"), [(("--workers", "two"), "give numbers"), (("--split", "none"), "no samples in split")]
)
def test_bench_loader_says_what_is_wrong_with_the_call(store: Path, arguments: tuple[str, ...], told: str) -> None:
    done = scenemill("bench-loader", str(store), *arguments)
    assert done.returncode == 2
    assert told in done.stderr


def test_order_lists_every_sample_once_per_epoch(store: Path) -> None:
    done = scenemill("order", str(store), "--world-size", "2", "--workers", "2")
    header, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert header == ["epoch", "position", "step", "rank", "worker", "sample", "key"]
    assert len({row[-1] for row in rows}) == len(rows) == 6
    assert {row[3] for row in rows} == {"0", "1"}
