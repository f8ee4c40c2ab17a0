"""Raw folder to store and back: every value, by every reader, through every kind of run."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scenemill import open_store
from scenemill.pipelines.ingest import Outcome, ingest
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError, NotPublished, TooManyRejected
from scenemill.schemas.fields import fields_of
from scenemill.schemas.sample import Sample
from scenemill.transforms.publish import locked
from scenemill.transforms.sources import Listed, open_source, read_sample
from scenemill.transforms.store import history
from scenemill.transforms.verify import verify_store
from scenemill.transforms.versions import clean

SOURCES = ("front3d", "matterport")


def checksums(store: Path) -> dict[str, str]:
    """Path -> checksum of all that a run must make the same every time: everything but ``runs/`` and the lock."""
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and "runs" not in path.relative_to(store).parts and path.name != ".scenemill.lock"
    }


def raw_samples(source: str, root: Path, keys: list[str]) -> Iterator[Sample]:
    opened = open_source(source, root, [Listed(key, ()) for key in keys])
    for key in keys:
        sample, findings = read_sample(opened, Listed(key, ()))
        assert not findings
        yield sample


@pytest.fixture(scope="session")
def worlds(front3d_world: Path, matterport_world: Path) -> dict[str, Path]:
    return {"front3d": front3d_world, "matterport": matterport_world}


@pytest.fixture
def copied(front3d_world: Path, tmp_path: Path) -> Path:
    """A raw folder that a test may change."""
    return Path(shutil.copytree(front3d_world, tmp_path / "raw"))


def run(source: str, raw: Path, store: Path, **options: Any) -> Outcome:
    return ingest(IngestConfig(source, raw, store, **{"samples_per_part": 2, **options}))


def records(raw: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(raw.glob("*.json")) if path.stem in ("train", "val", "test")}


def raw_keys(raw: Path) -> list[str]:
    return sorted({f"{entry['scene_id']}/{entry['image_id']}" for entries in records(raw).values() for entry in entries})


@pytest.mark.parametrize("source", SOURCES)
def test_what_went_in_comes_out_to_the_bit(source: str, worlds: dict[str, Path], tmp_path: Path) -> None:
    outcome = run(source, worlds[source], tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert outcome.listed == outcome.stored == len(store) == len(raw_keys(worlds[source]))
    assert store.keys == raw_keys(worlds[source])
    for sample in raw_samples(source, worlds[source], store.keys):
        stored = store.read(sample.key)
        assert stored == sample
        assert {name: array.dtype.name for name, array in stored.arrays.items()} == {
            field.name: field.dtype for field in fields_of(source) if field.name in sample
        }
        assert stored.facts["digest"] == sample.facts["digest"]
        assert [file["sha256"] for file in stored.facts["files"]] == [file["sha256"] for file in sample.facts["files"]]
        if source == "front3d":
            assert stored.facts["campose"] == sample.facts["campose"]


@pytest.mark.parametrize("source", SOURCES)
def test_other_zarr_readers_see_the_same_values(source: str, worlds: dict[str, Path], tmp_path: Path) -> None:
    run(source, worlds[source], tmp_path / "store")
    store = open_store(tmp_path / "store")
    rows = dict(zip(store.keys, store.samples["row"].to_pylist(), strict=True))
    plain = zarr.open_group(tmp_path / "store", mode="r")
    dataset = xarray.open_zarr(tmp_path / "store", consolidated=True)
    for field in fields_of(source):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "store" / field.name)}}
        array = tensorstore.open(spec, read=True, open=True).result()
        assert dataset[field.name].dims == ("sample", *field.axes)
        for sample in raw_samples(source, worlds[source], store.keys[:2]):
            if field.name not in sample:
                continue
            for reader in (plain[field.name], array, dataset[field.name]):
                np.testing.assert_array_equal(np.asarray(reader[rows[sample.key]]), sample[field.name])


def test_volumes_come_back_in_the_raw_orientation(front3d_world: Path, tmp_path: Path) -> None:
    run("front3d", front3d_world, tmp_path / "store")
    store = open_store(tmp_path / "store")
    key = store.keys[0]
    scene, image = key.split("/")
    expected = np.load(front3d_world / "data" / scene / f"geometry_{image}.npz")["data"]
    np.testing.assert_array_equal(store.read(key, ["geometry"], raw_volumes=True)["geometry"], expected)
    mask = np.load(front3d_world / "meta" / "frustum_mask.npz")["mask"]
    assert store.frustum is not None
    np.testing.assert_array_equal(store.frustum, mask[::-1, ::-1])


@pytest.mark.full
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples_per_part=st.integers(1, 9), workers=st.just(1), limit=st.integers(1, 6))
def test_part_size_changes_no_value(
    front3d_world: Path, tmp_path_factory: pytest.TempPathFactory, samples_per_part: int, workers: int, limit: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    outcome = run("front3d", front3d_world, folder / "store", samples_per_part=samples_per_part, workers=workers, limit=limit)
    store = open_store(folder / "store")
    assert outcome.parts == -(-limit // samples_per_part)
    assert all(store.read(sample.key) == sample for sample in raw_samples("front3d", front3d_world, store.keys))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("precision", "bound"), [("float16", 2**-8), ("fixed16", 12 / 32767)])
def test_lossy_storage_keeps_to_its_recorded_error(
    source: str, precision: str, bound: float, worlds: dict[str, Path], tmp_path: Path
) -> None:
    run(source, worlds[source], tmp_path / "store", precision=precision, limit=2)
    store = open_store(tmp_path / "store")
    recorded = dict(zip(store.keys, store.samples["geometry_error_max_voxel"].to_pylist(), strict=True))
    for sample in raw_samples(source, worlds[source], store.keys):
        stored = store.read(sample.key)
        error = float(np.abs(stored["geometry"] - sample["geometry"]).max())
        assert 0 < error <= bound
        assert error == pytest.approx(recorded[sample.key])
        fill = sample["geometry"] == store.layout.fields[4].fill
        np.testing.assert_array_equal(stored["geometry"][fill], sample["geometry"][fill])
        others = [name for name in sample.arrays if name != "geometry"]
        assert all(np.array_equal(stored[name], sample[name]) for name in others)
    assert store.manifest["error_max_voxel"] == max(recorded.values())
    decoded = xarray.open_zarr(tmp_path / "store", consolidated=True)["geometry"][0].to_numpy()
    np.testing.assert_allclose(
        decoded, open_store(tmp_path / "store").read(store.samples.sort_by("row")["key"][0].as_py())["geometry"], atol=1e-5
    )


def test_a_second_identical_run_changes_nothing(front3d_world: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = run("front3d", front3d_world, store)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    second = run("front3d", front3d_world, store)
    assert (second.outcome, second.version, second.new, second.parts_built) == ("unchanged", first.version, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()} == before


def test_worker_processes_write_the_same_bytes(front3d_world: Path, tmp_path: Path) -> None:
    run("front3d", front3d_world, tmp_path / "one")
    run("front3d", front3d_world, tmp_path / "two", workers=2)
    assert checksums(tmp_path / "one") == checksums(tmp_path / "two")


def test_new_samples_append_without_touching_old_parts(front3d_world: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = run("front3d", front3d_world, store, splits=("train",))
    before = {path: path.stat().st_mtime_ns for path in store.glob("*/c/**/*") if path.is_file()}
    old = open_store(store)
    held = old.read(old.keys[0])
    second = run("front3d", front3d_world, store)
    assert second.stored == len(raw_keys(front3d_world)) > first.stored
    assert second.new == second.stored - first.stored
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert open_store(store, first.version).keys == old.keys
    assert open_store(store, first.version).read(old.keys[0]) == held
    assert np.asarray(zarr.open_group(store, mode="r")["rgb"]).shape[0] > old.array("rgb").shape[0]
    assert verify_store(store).broken == ()
    assert [version.version for version in history(store)] == [second.version, first.version]


@pytest.mark.full
def test_reader_keeps_its_version_while_another_is_published(front3d_world: Path, tmp_path: Path) -> None:
    run("front3d", front3d_world, tmp_path / "store", splits=("train",))
    reader = open_store(tmp_path / "store")
    keys, shape = list(reader.keys), reader.array("rgb").shape
    run("front3d", front3d_world, tmp_path / "store")
    assert (reader.keys, reader.array("rgb").shape) == (keys, shape)
    assert len(open_store(tmp_path / "store")) > len(reader)


def test_changed_raw_files_are_noticed(copied: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = run("front3d", copied, store)
    key, other = open_store(store).keys[:2]
    scene, image = key.split("/")
    target = copied / "data" / scene / f"rgb_{image}.png"
    pixels = open_store(store).read(key)["rgb"].copy()
    pixels[0, 0] = 255 - pixels[0, 0]
    from PIL import Image

    Image.fromarray(pixels).save(target)
    second = run("front3d", copied, store)
    assert (second.outcome, second.new) == ("published", 1)
    now, before = open_store(store), open_store(store, first.version)
    np.testing.assert_array_equal(now.read(key)["rgb"], pixels)
    assert not np.array_equal(before.read(key)["rgb"], pixels)
    assert now.read(other) == before.read(other)
    assert len(now) == len(before)


def test_a_sample_that_turns_bad_leaves_the_new_version_with_its_reason(copied: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = run("front3d", copied, store)
    key = open_store(store).keys[0]
    scene, image = key.split("/")
    (copied / "data" / scene / f"depth_{image}.exr").write_bytes(b"no image")
    second = run("front3d", copied, store)
    assert (second.stored, second.rejected) == (first.stored - 1, 1)
    now = open_store(store)
    assert key not in now
    assert now.findings.filter(np.array(now.findings["rejected"]))["key"].to_pylist() == [key]
    assert key in open_store(store, first.version)
    third = run("front3d", copied, store)
    assert (third.outcome, third.stored, third.rejected, third.parts_built) == ("unchanged", second.stored, 1, 0)


@pytest.mark.full
def test_a_repaired_raw_file_is_taken_in_again(copied: Path, front3d_world: Path, tmp_path: Path) -> None:
    key = raw_keys(copied)[0]
    scene, image = key.split("/")
    name = f"data/{scene}/weighting_{image}.npz"
    (copied / name).unlink()
    assert run("front3d", copied, tmp_path / "store").rejected == 1
    shutil.copy(front3d_world / name, copied / name)
    outcome = run("front3d", copied, tmp_path / "store")
    assert (outcome.rejected, outcome.new) == (0, 1)
    assert (
        open_store(tmp_path / "store").findings.filter(np.array(open_store(tmp_path / "store").findings["rejected"])).num_rows == 0
    )


def test_too_many_rejected_publishes_nothing_and_keeps_the_work(copied: Path, tmp_path: Path) -> None:
    key = raw_keys(copied)[0]
    scene, image = key.split("/")
    (copied / "data" / scene / f"geometry_{image}.npz").write_bytes(b"PK")
    with pytest.raises(TooManyRejected, match="1 of"):
        run("front3d", copied, tmp_path / "store", max_rejected=0)
    with pytest.raises(NotPublished):
        open_store(tmp_path / "store")
    assert len(list((tmp_path / "store" / "runs").glob("*/findings.parquet"))) == 1
    outcome = run("front3d", copied, tmp_path / "store", max_rejected=1)
    assert (outcome.outcome, outcome.rejected, outcome.parts_built) == ("published", 1, 0)
    assert verify_store(tmp_path / "store").broken == ()


def test_every_listed_sample_is_stored_or_rejected(copied: Path, tmp_path: Path) -> None:
    lists = records(copied)
    hostile = [{"scene_id": "../../etc", "image_id": "0001", "height": 240, "width": 320}, {"scene_id": 5}, "text", None]
    gone = {"scene_id": "no-such-scene", "image_id": "0001", "height": 240, "width": 320}
    (copied / "train.json").write_text(json.dumps([*lists["train"], *hostile, gone]))
    outcome = run("front3d", copied, tmp_path / "store")
    assert outcome.rejected == len(hostile) + 1
    assert outcome.stored == sum(len(entries) for entries in lists.values())
    assert outcome.listed == outcome.stored + outcome.rejected


def test_views_in_two_splits_and_views_in_none_are_told(copied: Path, tmp_path: Path) -> None:
    lists = records(copied)
    (copied / "val.json").write_text(json.dumps([*lists["val"], lists["train"][0]]))
    (copied / "train.json").write_text(json.dumps(lists["train"][:-1]))
    run("front3d", copied, tmp_path / "store")
    store = open_store(tmp_path / "store")
    found = {(row["key"], row["check"]) for row in store.findings.to_pylist()}
    both, none = (f"{entry['scene_id']}/{entry['image_id']}" for entry in (lists["train"][0], lists["train"][-1]))
    assert {(both, "split_overlap"), (none, "unlisted")} <= found
    assert store.facts(both)["splits"] == ["train", "val"]
    assert both in store.keys_of("val") and both in store.keys_of("train")
    assert none not in store


def test_the_same_view_under_two_keys_is_told(copied: Path, tmp_path: Path) -> None:
    lists = records(copied)
    first = lists["train"][0]
    scene = copied / "data" / first["scene_id"]
    for path in scene.glob(f"*_{first['image_id']}.*"):
        shutil.copy(path, scene / path.name.replace(f"_{first['image_id']}.", "_9999."))
    (copied / "test.json").write_text(json.dumps([*lists["test"], {**first, "image_id": "9999"}]))
    run("front3d", copied, tmp_path / "store")
    rows = open_store(tmp_path / "store").findings.to_pylist()
    copy = f"{first['scene_id']}/9999"
    assert {row["check"] for row in rows if row["key"] == copy} >= {"duplicate", "split_overlap"}


def test_splits_may_change_without_any_array_being_written(copied: Path, tmp_path: Path) -> None:
    run("front3d", copied, tmp_path / "store")
    lists = records(copied)
    moved = lists["train"].pop()
    (copied / "train.json").write_text(json.dumps(lists["train"]))
    (copied / "val.json").write_text(json.dumps([*lists["val"], moved]))
    outcome = run("front3d", copied, tmp_path / "store")
    assert (outcome.outcome, outcome.parts_built) == ("published", 0)
    assert open_store(tmp_path / "store").facts(f"{moved['scene_id']}/{moved['image_id']}")["split"] == "val"


def test_clean_removes_only_what_no_version_names(front3d_world: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run("front3d", front3d_world, store, splits=("train",))
    run("front3d", front3d_world, store)
    before = checksums(store)
    for leftover in (
        "parts/0123456789abcdef/samples.parquet",
        "rgb/c/77/0/0/0",
        ".work/half",
        "tables/samples-0.parquet",
        "versions/0.json.tmp",
    ):
        (store / leftover).parent.mkdir(parents=True, exist_ok=True)
        (store / leftover).write_bytes(b"left over")
    with locked(store):
        assert len(clean(store).paths) == 5
    assert checksums(store) == before
    with locked(store):
        forgotten = clean(store, keep_versions=1)
    assert forgotten.versions == 1
    assert [version.version for version in history(store)] == [open_store(store).version]
    assert verify_store(store).broken == ()
    assert all(open_store(store).read(key) for key in open_store(store).keys)


def test_settings_of_a_store_cannot_change(front3d_world: Path, matterport_world: Path, tmp_path: Path) -> None:
    run("front3d", front3d_world, tmp_path / "store")
    for source, raw, options in (
        ("front3d", front3d_world, {"precision": "float16"}),
        ("front3d", front3d_world, {"samples_per_part": 3}),
        ("matterport", matterport_world, {}),
    ):
        with pytest.raises(ConfigError, match="use another store"):
            run(source, raw, tmp_path / "store", **options)


def test_a_damaged_part_is_rebuilt_by_repair(front3d_world: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run("front3d", front3d_world, store)
    victim = next(path for path in sorted((store / "geometry" / "c").rglob("*")) if path.is_file())
    victim.write_bytes(victim.read_bytes()[:-1])
    broken = verify_store(store).broken
    assert [entry.path for entry in broken] == [victim.relative_to(store).as_posix()]
    outcome = run("front3d", front3d_world, store, repair=True)
    assert outcome.outcome == "published"
    now = open_store(store)
    assert all(now.read(sample.key) == sample for sample in raw_samples("front3d", front3d_world, now.keys))


def test_unknown_keys_and_fields_are_clear_errors(front3d_world: Path, tmp_path: Path) -> None:
    run("front3d", front3d_world, tmp_path / "store", limit=1)
    store = open_store(tmp_path / "store")
    with pytest.raises(ConfigError, match="not in version"):
        store.read("no/such")
    with pytest.raises(ConfigError, match="has no field outside"):
        store.read(store.keys[0], ["outside"])
    with pytest.raises(NotPublished, match="versions start with"):
        open_store(tmp_path / "store", "ffff" * 4)
