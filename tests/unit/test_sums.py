"""Sums of raw views are remembered until a file changes; a damaged memory is no memory."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from scenemill.schemas.places import on_disk
from scenemill.transforms import sums
from scenemill.transforms.folders import sha256
from scenemill.transforms.rows import to_parquet
from scenemill.transforms.sources import Listed, Source, list_samples, open_source, raw_files, read_sample
from scenemill.transforms.sums import SUMS, Sums, fingerprint_of, recall, remember, sums_from, sums_of, sums_tables

SOME = {"s/1": Sums("f1", "d1", "c1", 5), "s/2": Sums("f2", "d2", "", 0)}


@pytest.fixture
def view(front3d_world: Path, tmp_path: Path) -> tuple[Source, Listed]:
    root = tmp_path / "world"
    shutil.copytree(front3d_world, root)
    listed, _ = list_samples("front3d", root)
    return open_source("front3d", root, listed), listed[0]


def paths(source: Source, listed: Listed) -> list[Path]:
    return [on_disk(source.root) / path for path in raw_files(source, listed).values()]


# --- fingerprints


def test_a_fingerprint_stays_while_no_file_changes(view: tuple[Source, Listed]) -> None:
    source, listed = view
    first = fingerprint_of(source, listed)
    for path in paths(source, listed):
        path.read_bytes()
    (on_disk(source.root) / "data" / "other").mkdir()
    assert fingerprint_of(source, listed) == first and len(first) == 64


def test_a_touched_file_changes_the_fingerprint(view: tuple[Source, Listed]) -> None:
    source, listed = view
    seen = {fingerprint_of(source, listed)}
    for path in paths(source, listed):
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        seen.add(fingerprint_of(source, listed))
    assert len(seen) == 1 + len(paths(source, listed))


def test_a_file_replaced_by_one_of_the_same_size_and_time_changes_the_fingerprint(view: tuple[Source, Listed]) -> None:
    source, listed = view
    seen = {fingerprint_of(source, listed)}
    for path in paths(source, listed):
        status, other = path.stat(), path.with_suffix(".new")
        other.write_bytes(bytes(status.st_size))
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(path)
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
        seen.add(fingerprint_of(source, listed))
    assert len(seen) == 1 + len(paths(source, listed))


def test_a_file_that_goes_or_comes_changes_the_fingerprint(view: tuple[Source, Listed]) -> None:
    source, listed = view
    first = fingerprint_of(source, listed)
    path = on_disk(source.root) / raw_files(source, listed)["campose"]
    path.rename(path.with_suffix(".away"))
    without = fingerprint_of(source, listed)
    path.write_bytes(b"")
    assert len({first, without, fingerprint_of(source, listed)}) == 3


def test_another_path_of_the_colour_image_changes_the_fingerprint(view: tuple[Source, Listed]) -> None:
    source, listed = view
    same = str(raw_files(source, listed)["rgb"])
    assert fingerprint_of(source, replace(listed, rgb_path=same)) == fingerprint_of(source, listed)
    assert fingerprint_of(source, replace(listed, rgb_path="other.png")) != fingerprint_of(source, listed)


# --- sums


def test_sums_agree_with_what_reading_says(view: tuple[Source, Listed]) -> None:
    source, listed = view
    sample, _ = read_sample(source, listed)
    found = sums_of(source, listed)
    assert (found.digest, found.raw_byte) == (sample.facts["digest"], sample.facts["raw_byte"])
    assert found.fingerprint == fingerprint_of(source, listed) and len(found.content) == 64


def test_sums_and_reading_agree_on_files_that_cannot_be_read(view: tuple[Source, Listed]) -> None:
    source, listed = view
    for path in paths(source, listed):
        path.unlink()
        sample, _ = read_sample(source, listed)
        assert sums_of(source, listed).digest == sample.facts["digest"]
        path.mkdir()
        sample, _ = read_sample(source, listed)
        assert sums_of(source, listed).digest == sample.facts["digest"]
    assert sums_of(source, listed).raw_byte == 0


def test_content_is_over_image_depth_and_labels_alone(view: tuple[Source, Listed]) -> None:
    source, listed = view
    first = sums_of(source, listed)
    for kind, path in raw_files(source, listed).items():
        data = (source.root / path).read_bytes()
        (on_disk(source.root) / path).write_bytes(data + b"\0")
        changed = sums_of(source, listed)
        assert changed.digest != first.digest and changed.raw_byte == first.raw_byte + 1
        assert (changed.content != first.content) == (kind in ("rgb", "depth", "segmap")), kind
        (source.root / path).unlink()
        assert (sums_of(source, listed).content == "") == (kind in ("rgb", "depth", "segmap")), kind
        (on_disk(source.root) / path).write_bytes(data)
    assert sums_of(source, listed).content == first.content


def test_content_is_equal_for_two_copies_of_a_view_in_another_place(view: tuple[Source, Listed]) -> None:
    source, listed = view
    shutil.copytree(on_disk(source.root) / "data" / listed.key.split("/")[0], on_disk(source.root) / "data" / "copy")
    copy = Listed(f"copy/{listed.key.split('/')[1]}", ())
    one, other = sums_of(source, listed), sums_of(source, copy)
    assert (one.content, one.digest) == (other.content, other.digest) and one.fingerprint != other.fingerprint


def test_sums_survive_the_way_through_a_table(view: tuple[Source, Listed]) -> None:
    source, listed = view
    (table,) = sums_tables(source, [listed])
    assert sums_from(table) == {listed.key: sums_of(source, listed)}
    assert table.schema.equals(SUMS) and sums_tables(source, [])[0].num_rows == 0


# --- memory


def test_what_is_remembered_is_recalled(tmp_path: Path) -> None:
    remember(tmp_path, SOME)
    assert recall(tmp_path) == SOME
    remember(tmp_path, {"s/3": Sums("f3", "d3", "c3", 1 << 40)})
    assert recall(tmp_path) == {"s/3": Sums("f3", "d3", "c3", 1 << 40)}
    remember(tmp_path, {})
    assert recall(tmp_path) == {}


def test_nothing_is_recalled_where_nothing_was_remembered(tmp_path: Path) -> None:
    assert recall(None) == recall(tmp_path) == recall(tmp_path / "none") == {}


def memories(store: Path) -> list[Path]:
    return sorted(store.rglob("*.parquet"))


def test_the_same_sums_in_any_order_leave_the_memory_untouched(tmp_path: Path) -> None:
    remember(tmp_path, SOME)
    (path,) = memories(tmp_path)
    before = path.stat()
    remember(tmp_path, dict(reversed(SOME.items())))
    assert memories(tmp_path) == [path]
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_new_sums_take_the_place_of_the_old(tmp_path: Path) -> None:
    remember(tmp_path, SOME)
    (path,) = memories(tmp_path)
    remember(tmp_path, {**SOME, "s/2": Sums("f2", "d2", "", 1)})
    assert len(memories(tmp_path)) == 1 and memories(tmp_path) != [path]


def test_a_damaged_memory_is_forgotten_and_written_anew(tmp_path: Path) -> None:
    remember(tmp_path, SOME)
    (path,) = memories(tmp_path)
    data = path.read_bytes()
    for damaged in (
        b"",
        data[:-1],
        data[: len(data) // 2],
        b"no table" * 50,
        data[:4] + bytes(len(data) - 8) + data[-4:],
        data + b"\0",
    ):
        path.write_bytes(damaged)
        assert recall(tmp_path) == {}
        remember(tmp_path, SOME)
        assert recall(tmp_path) == SOME


def test_files_named_like_a_memory_that_are_none_are_passed_over(tmp_path: Path) -> None:
    remember(tmp_path, SOME)
    (path,) = memories(tmp_path)
    other = to_parquet(pa.table({"key": ["s/1"]}))  # of another version: its name fits its bytes
    for name, data in ((f"sums-{sha256(other)[:16]}", other), ("sums-", b""), ("sums-", other), (f"sums-{sha256(b'')[:16]}", b"")):
        (path.parent / f"{name}.parquet").write_bytes(data)
        assert recall(tmp_path) == SOME
    (path.parent / "sums-0.parquet").mkdir()
    assert recall(tmp_path) == SOME
    path.unlink()
    assert recall(tmp_path) == {}


def test_no_file_is_read_to_compare_fingerprints(view: tuple[Source, Listed], monkeypatch: pytest.MonkeyPatch) -> None:
    source, listed = view
    monkeypatch.setattr(sums, "read_bytes", lambda *_: pytest.fail("read"))
    fingerprint_of(source, listed)
