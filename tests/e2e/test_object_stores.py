"""Stores and raw folders in a bucket: the same bytes as on a disk, whatever the network and other runs do meanwhile."""

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'scenemill[cloud]'")
pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server]'")

import torch
from typer.testing import CliRunner

from scenemill.pipelines.cli import app
from scenemill.pipelines.experiments.training import find_samples
from scenemill.pipelines.ingest import Outcome, ingest
from scenemill.pipelines.schedule.files import load_schedule
from scenemill.pipelines.schedule.scheduler import Scheduler
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.dataset import DatasetConfig, SplitConfig
from scenemill.schemas.errors import ConfigError, Conflict, NotPublished, TransientError
from scenemill.schemas.experiment import ExperimentConfig
from scenemill.schemas.places import Place, Remote
from scenemill.trainers.batches import SceneDataset, SceneLoader
from scenemill.transforms import object_clients
from scenemill.transforms.objects import place_of
from scenemill.transforms.publish import locked, work_path
from scenemill.transforms.store import open_store
from scenemill.transforms.verify import verify_store
from scenemill.transforms.versions import clean
from tests.forked import CommandLine
from tests.unit.gcs_double import gcs_service
from tests.unit.object_services import SECRET, Fault, Proxy, environment, use, used_by_proxy

PART = 2


@pytest.fixture
def net(services: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    with used_by_proxy(monkeypatch, services["s3"]) as between:
        yield between


@pytest.fixture
def bucket(net: Proxy) -> Remote:
    place = place_of(f"s3://mill/{uuid4().hex[:8]}")
    assert isinstance(place, Remote)
    return place


@pytest.fixture(scope="module")
def local(front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world as a store on a disk: what every other must be equal to."""
    store = tmp_path_factory.mktemp("local") / "store"
    ingest(IngestConfig("front3d", front3d_world, store, samples_per_part=PART))
    return store


def into(raw: Place, store: Place, **more: Any) -> Outcome:
    return ingest(IngestConfig("front3d", raw, store, samples_per_part=PART, **more))


def files_of(store: Place) -> dict[str, str]:
    """Path -> SHA-256 of all that must not depend on time and place."""
    if isinstance(store, Path):
        found = {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}
    else:
        paths = [path for depth in range(1, 8) for path in store.glob("/".join("*" * depth))]
        found = {str(path).removeprefix(f"{store}/"): path.read_bytes() for path in paths}
    return {
        name: hashlib.sha256(data).hexdigest() for name, data in found.items() if name[0] != "." and not name.startswith("runs/")
    }


def upload(folder: Path, place: Remote) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        (place / path.relative_to(folder).as_posix()).create(path)


def command(command_line: CommandLine, url: str, tmp: Path, *words: str, kill_at: str = "", code: int = 0) -> str:
    """Run the command line in a process of its own; its output and errors."""
    ended = command_line.call(*words, environment={**environment(url), "TMPDIR": str(tmp), "SCENEMILL_KILL_AT": kill_at})
    assert ended.code == code, ended.said
    return ended.said


def printed(*words: str) -> Any:
    """What a command of this process prints as JSON."""
    ended = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


def ingest_words(raw: object, store: object) -> list[str]:
    return ["ingest", "front3d", "--input", str(raw), "--output", str(store), "--samples-per-part", str(PART), "--json"]


def test_a_store_in_a_bucket_is_that_on_a_disk_in_spite_of_faults(
    front3d_world: Path, local: Path, bucket: Remote, net: Proxy
) -> None:
    net.faults += [Fault("PUT", "", "slow down", times=3), Fault("PUT", "/c/1/", "cut"), Fault("PUT", "/c/2/", "lose answer")]
    net.faults += [
        Fault("PUT", "receipt.json", "lose answer"),
        Fault("GET", "", "cut answer", times=3),
        Fault("HEAD", "", "slow down"),
    ]
    first = into(front3d_world, bucket, limit=4)
    last = [path for path in files_of(bucket) if path == "zarr.json"]
    assert (first.outcome, first.stored, last) == ("published", 4, ["zarr.json"])
    net.faults.append(Fault("PUT", "/zarr.json", "lose answer", times=1))
    second = into(front3d_world, bucket)
    assert (second.stored, second.new, second.parts_built) == (6, 2, 1)
    assert into(front3d_world, bucket).outcome == "unchanged"
    opened, of_old = open_store(str(bucket)), open_store(str(bucket), first.version)
    assert (opened.version, opened.manifest["parent"], of_old.version) == (second.version, first.version, first.version)
    assert verify_store(bucket).broken == () and verify_store(bucket).versions == 2
    beside = open_store(local)
    assert opened.keys == beside.keys
    for key in opened.keys:
        direct, by_zarr, wanted = opened.read(key), opened.read(key, by_zarr=True), beside.read(key)
        for name, array in wanted.arrays.items():
            assert direct[name].tobytes() == array.tobytes() == by_zarr[name].tobytes()
    assert [run["stored"] for run in opened.runs.to_pylist()] == [4, 6]
    report = first.report
    assert report is not None and b"<html" in (report / "docs/index.html").read_bytes()


def test_google_cloud_storage_holds_the_same_objects(front3d_world: Path, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gcs_service("mill") as url:
        use(monkeypatch, url)
        store = place_of("gs://mill/stores/front3d")
        assert into(front3d_world, store).version == open_store(local).version
        assert files_of(store) == files_of(local)
        assert verify_store(store).broken == ()
        assert len(open_store(store).read(open_store(store).keys[0]).arrays) > 5
    object_clients._connect.cache_clear()


@pytest.mark.full
def test_a_raw_folder_in_a_bucket_gives_the_same_store_and_is_read_again_only_where_it_changed(
    front3d_world: Path, local: Path, bucket: Remote, net: Proxy, tmp_path: Path
) -> None:
    raw, store = bucket / "raw", tmp_path / "store"
    upload(front3d_world, raw)
    net.faults += [Fault("GET", "/data/", "slow down", times=2), Fault("GET", "/data/", "cut answer", times=2)]
    assert into(raw, store).version == open_store(local).version
    assert files_of(store) == files_of(local)
    net.requests.clear()
    assert into(raw, store).outcome == "unchanged"
    assert net.count("GET", "/data/") == net.count("HEAD", "/data/") == 0
    image = sorted(front3d_world.rglob("rgb_*"))[0]
    in_bucket = raw / image.relative_to(front3d_world).as_posix()
    in_bucket.unlink()
    in_bucket.create(_recoloured(front3d_world, image.name))
    net.requests.clear()
    again = into(raw, store)
    assert (again.outcome, again.new) == ("published", 1)
    folders = {path.rpartition("/")[0] for method, path in net.requests if method == "GET" and "/data/" in path and "?" not in path}
    assert len(folders) == 1


@pytest.mark.full
def test_a_schedule_converts_from_a_bucket_into_a_bucket(
    front3d_world: Path, local: Path, bucket: Remote, net: Proxy, tmp_path: Path
) -> None:
    upload(front3d_world, bucket / "raw" / "2026-01-01")
    net.faults += [Fault("PUT", "/store/", "slow down", times=2), Fault("GET", "/data/", "slow down", times=2)]
    file = tmp_path / "daily.yaml"
    file.write_text(
        f"source: front3d\ninput: {bucket}/raw/{{date}}\noutput: {bucket}/store/\nevery: 1d\nstart: 2026-01-01\n"
        f"samples_per_part: {PART}\nretries: 0\n"
    )
    the_day_after = datetime(2026, 1, 2, 6, tzinfo=UTC)
    scheduler = Scheduler([load_schedule(file)], tmp_path / "state", now=lambda: the_day_after)
    assert scheduler.run_once() == ["succeeded"]
    (run,) = scheduler.runs.history()
    assert (run.store, run.version) == (f"{bucket}/store", open_store(local).version)
    assert files_of(bucket / "store") == files_of(local)
    told = "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert SECRET not in told and SECRET.encode() not in (tmp_path / "state" / "schedule.db").read_bytes()


def _recoloured(world: Path, name: str) -> bytes:
    """Another image of the same size and format: that of another view."""
    return next(path.read_bytes() for path in sorted(world.rglob("rgb_*")) if path.name != name)


@pytest.mark.full
def test_a_run_killed_anywhere_is_gone_on_with(
    command_line: CommandLine, front3d_world: Path, local: Path, bucket: Remote, net: Proxy, tmp_path: Path
) -> None:
    words = ingest_words(front3d_world, bucket)
    started: list[int] = []
    net.faults.append(
        Fault("PUT", "/c/1/", "cut", before=lambda: os.kill(started[0], signal.SIGKILL))
    )  # half of a shard is under way
    started.append(command_line.begin(*words, environment={**environment(net.url), "TMPDIR": str(tmp_path)}))
    assert command_line.wait(started[0]).code == -signal.SIGKILL
    with pytest.raises(NotPublished):
        open_store(bucket)
    command(command_line, net.url, tmp_path, *words, kill_at="version written:1", code=-signal.SIGKILL)  # all but the swap
    with pytest.raises(NotPublished):
        open_store(bucket)
    last = json.loads(command(command_line, net.url, tmp_path / "another machine", *words).splitlines()[-1])
    assert (last["outcome"], last["stored"], last["parts_built"]) == ("published", 6, 0)
    assert files_of(bucket) == files_of(local)


@pytest.mark.full
def test_of_two_racing_runs_one_publishes_and_the_other_is_told(
    command_line: CommandLine, front3d_world: Path, bucket: Remote, net: Proxy, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    for path in (path for path in sorted(front3d_world.rglob("*")) if path.is_file()):
        (changed / path.relative_to(front3d_world)).parent.mkdir(parents=True, exist_ok=True)
        (changed / path.relative_to(front3d_world)).write_bytes(path.read_bytes())
    image = sorted(changed.rglob("rgb_*"))[0]
    image.write_bytes(_recoloured(front3d_world, image.name))
    (tmp_path / "other").mkdir()
    told: list[str] = []

    def race() -> None:
        told.append(command(command_line, net.url, tmp_path / "other", *ingest_words(changed, bucket)))

    net.faults.append(Fault("PUT", f"{bucket.name}/zarr.json", "slow down", before=race))
    with pytest.raises(Conflict, match="another run published first"):
        into(front3d_world, bucket)
    winner = json.loads(told[0].splitlines()[-1])["version"]
    assert open_store(bucket).version == winner
    assert verify_store(bucket).broken == ()
    slots = [part["slot"] for part in open_store(bucket).manifest["parts"]]
    assert slots == [3, 4, 5]  # the loser had claimed 0 to 2
    after = into(front3d_world, bucket)
    assert (after.outcome, after.stored, after.new) == ("published", 6, 1)
    assert open_store(bucket).manifest["parent"] == winner
    assert verify_store(bucket).broken == ()


def test_a_second_run_of_this_machine_is_refused_at_once(front3d_world: Path, bucket: Remote) -> None:
    with locked(bucket):
        left = work_path(bucket)
        left.touch()
        with pytest.raises(Conflict, match="another run"):
            into(front3d_world, bucket)
        assert left.exists()
    assert not left.exists()


def test_damage_is_found(front3d_world: Path, bucket: Remote, net: Proxy) -> None:
    into(front3d_world, bucket, limit=2)
    shard = bucket / "geometry/c/0/0/0/0"
    data = shard.read_bytes()
    shard.unlink()
    assert [broken.problem for broken in verify_store(bucket).broken] == ["missing"]
    with pytest.raises(ValueError, match=r"part \w+: geometry/c/0/0/0/0 is missing"):
        open_store(bucket).read(open_store(bucket).keys[0])
    shard.create(data[:-1])
    assert "bytes instead of" in verify_store(bucket).broken[0].problem
    with pytest.raises(ValueError, match="less than its receipt says"):
        open_store(bucket).read(open_store(bucket).keys[0])
    net.faults.append(Fault("GET", "", "slow down", times=1000))
    object_clients._connect.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(object_clients, "_TRIES", 1)
        patch.setitem(object_clients._RETRIES, "max_retries", 1)
        with pytest.raises(TransientError):  # a service that is down is no damage
            open_store(bucket)


@pytest.mark.full
def test_batches_of_a_bucket_are_those_of_a_disk(front3d_world: Path, local: Path, bucket: Remote) -> None:
    into(front3d_world, bucket)
    config = ExperimentConfig(dataset=DatasetConfig(train=SplitConfig(base_dir=str(bucket))))
    samples = find_samples(config, "train", lambda *_: None)
    settings = DatasetConfig(enable_3d=True, enable_mp_occ=False)
    remote = SceneLoader(SceneDataset(samples.store, samples.split, settings), workers=1)
    beside = SceneLoader(SceneDataset(local, None, settings), workers=0)
    for one, other in zip(remote, beside, strict=True):
        assert one.keys == other.keys
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(one.tensors[name].nan_to_num(), other.tensors[name].nan_to_num()) for name in one.tensors)


def test_the_command_line_takes_uris_and_keeps_secrets(
    command_line: CommandLine, front3d_world: Path, bucket: Remote, net: Proxy, tmp_path: Path
) -> None:
    outcome = into(front3d_world, bucket, limit=2)
    shown, versions, verified = (printed(verb, str(bucket)) for verb in ("show", "versions", "verify"))
    assert shown["version"] == versions[0]["version"] == outcome.version
    assert verified["broken"] == []
    assert "no key for scenemill" in CliRunner().invoke(app, ["show", f"{bucket}/../x"], env={"COLUMNS": "300"}).output
    refused = command(command_line, net.url, tmp_path, "show", "s3://nobucket/store", code=2)
    assert "no such bucket" in refused and SECRET not in refused and "Traceback" not in refused


def test_what_needs_a_disk_says_so(front3d_world: Path, bucket: Remote) -> None:
    with pytest.raises(ConfigError, match="on a disk"):
        into(front3d_world, bucket, repair=True)
    with pytest.raises(ConfigError, match="on a disk"):
        clean(bucket)
