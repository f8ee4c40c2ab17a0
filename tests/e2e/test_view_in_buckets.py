"""The viewer on a bucket: a store and metric tables there look as they do on a disk, live, in few requests, and name no bucket."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'scenemill[cloud]'")
pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server]'")

from scenemill import IngestConfig, ScoreConfig, ingest, score, serve
from scenemill.pipelines.viewer import roots
from scenemill.pipelines.viewer.roots import Roots
from scenemill.pipelines.viewer.store import StoreRoot
from scenemill.pipelines.viewer.tables import TablesRoot
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.places import Remote
from scenemill.transforms import object_clients
from scenemill.transforms.objects import place_of
from tests.unit.object_services import Fault, Proxy, used_by_proxy
from tests.unit.view_client import ask
from tests.unit.view_worlds import write_samples


@pytest.fixture
def net(services: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with used_by_proxy(monkeypatch, services["s3"]) as between:
        yield between


@pytest.fixture
def bucket(net: Proxy) -> Remote:
    place = place_of(f"s3://mill/{uuid4().hex[:8]}")
    assert isinstance(place, Remote)
    return place


@pytest.fixture(scope="module")
def world(front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view")
    write_samples(front3d_world, folder, 6)
    return folder


def send(world: Path, bucket: Remote, *names: str) -> None:
    """The same files in the bucket."""
    for name in names:
        for path in sorted(path for path in (world / name).rglob("*") if path.is_file()):
            (bucket / path.relative_to(world).as_posix()).create(path)


def test_a_store_and_tables_look_as_they_do_on_a_disk(world: Path, bucket: Remote) -> None:
    send(world, bucket, "store", "tables")
    here, there = Roots([world / "store", world / "tables"]), Roots([bucket / "store", bucket / "tables"])
    assert [(root.name, root.kind) for root in there] == [("store", "store"), ("tables", "tables")]
    told, known = there.index(), here.index()
    assert told["roots"] == known["roots"]
    store, other = there.named("store"), here.named("store")
    assert isinstance(store, StoreRoot) and isinstance(other, StoreRoot)
    key = store.samples("", "", 0)["rows"][0]["key"]
    assert there.sample(key) == here.sample(key)
    for what, axis in (("rgb", ""), ("geometry", "x")):
        np.testing.assert_array_equal(store.plane(key, what, axis, 3).values, other.plane(key, what, axis, 3).values)


def test_looks_are_few_and_what_is_new_is_shown(
    world: Path, front3d_world: Path, bucket: Remote, net: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(IngestConfig("front3d", front3d_world, bucket / "store", limit=2))
    send(world, bucket, "tables")
    shown = Roots([bucket / "store", bucket / "tables"], 0)
    before, asked = shown.revision(), len(net.requests)
    assert {shown.revision() for _ in range(20)} == {before} and len(net.requests) == asked
    monkeypatch.setattr(roots, "_REMOTE_POLL_S", 0)
    assert shown.revision() == before
    ingest(IngestConfig("front3d", front3d_world, bucket / "store"))
    score(ScoreConfig(world / "told", bucket / "store", bucket / "tables", model="later"))
    assert shown.revision() != before
    store, tables = shown.named("store"), shown.named("tables")
    assert isinstance(store, StoreRoot) and isinstance(tables, TablesRoot)
    assert store.describe()["samples"] == 6
    assert {row["model"] for row in tables.describe()["runs"]} == {"ours", "later"}


def test_a_service_that_is_away_is_told_without_its_address_and_tried_again(
    world: Path, bucket: Remote, net: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(world, bucket, "store")
    monkeypatch.setattr(object_clients, "_TRIES", 1)
    monkeypatch.setitem(object_clients._RETRIES, "max_retries", 0)
    monkeypatch.setattr(roots, "_REMOTE_POLL_S", 0)
    object_clients._connect.cache_clear()
    with serve(str(bucket / "store"), poll_s=0.1) as viewer:
        net.faults += [Fault("HEAD", "zarr.json", "slow down", times=1000), Fault("GET", "zarr.json", "slow down", times=1000)]
        shown = viewer.roots
        shown._looked = float("-inf")
        (away,) = ask(viewer.url, "/api/index").json["roots"]
        assert away["error"] and "mill" not in away["error"] and away["samples"] == 6
        net.faults.clear()
        shown._looked = float("-inf")
        (back,) = ask(viewer.url, "/api/index").json["roots"]
        assert back["error"] == "" and back["samples"] == 6


def test_what_is_neither_store_nor_tables_is_refused(world: Path, bucket: Remote) -> None:
    send(world, bucket, "told")
    with pytest.raises(ConfigError, match="neither a store nor metric tables"):
        Roots([bucket / "told"])
