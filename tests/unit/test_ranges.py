"""Byte ranges come back right, or not at all: from local files across threads and forks, from object stores in few requests."""

import itertools
import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped, unused-ignore]
import pytest
from fsspec.asyn import AsyncFileSystem  # type: ignore[import-untyped, unused-ignore]
from hypothesis import given
from hypothesis import strategies as st

from scenemill.schemas.errors import TransientError
from scenemill.transforms.ranges import LocalRanges, Range, RangeReader, RemoteRanges, _OpenFile, merge_ranges

BYTES = bytes(range(256)) * 16
FAR = 1 << 20
ANY_RANGES = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)).map(lambda drawn: (drawn[0], sum(drawn))), max_size=12)


@given(ANY_RANGES, st.integers(0, 30))
def test_merged_ranges_cover_what_was_asked_and_are_sorted_and_fewest(ranges: list[Range], gap_byte: int) -> None:
    merged = merge_ranges(ranges, gap_byte)
    assert merged == sorted(merged)
    assert all(any(start <= low and high <= end for start, end in merged) for low, high in ranges)
    assert all(later[0] - earlier[1] > gap_byte for earlier, later in itertools.pairwise(merged))
    asked = {byte for start, end in ranges for byte in range(start, end)}
    for start, end in merged:
        assert start in asked and end - 1 in asked
        held = sorted(asked & set(range(start, end)))
        assert all(after - before <= gap_byte + 1 for before, after in itertools.pairwise(held))


def test_no_ranges_merge_to_none() -> None:
    assert merge_ranges([], 5) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(8):
        (tmp_path / f"{number}").write_bytes(bytes([number]) * (100 + number))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "bytes").write_bytes(BYTES)
    return tmp_path


class CountedFiles:
    """The file system in memory, with a note of each call for ranges."""

    def __init__(self) -> None:
        self.files = fsspec.filesystem("memory")
        self.calls: list[list[tuple[str, int, int]]] = []

    def cat_ranges(self, paths: list[str], starts: list[int], ends: list[int], **options: Any) -> Any:
        self.calls.append(list(zip(paths, starts, ends, strict=True)))
        return self.files.cat_ranges(paths, starts, ends, **options)


@pytest.fixture
def counted() -> Iterator[CountedFiles]:
    files = CountedFiles()
    files.files.pipe("/ranges/deep/bytes", BYTES)
    files.files.pipe("/ranges/large", bytes(FAR) + BYTES)
    yield files
    files.files.rm("/ranges", recursive=True)


@pytest.fixture(params=["local", "remote"])
def reader(request: pytest.FixtureRequest, folder: Path, counted: CountedFiles) -> RangeReader:
    return LocalRanges(folder) if request.param == "local" else RemoteRanges(counted.files, "/ranges/")


@given(ranges=ANY_RANGES)
def test_ranges_come_in_the_order_asked(ranges: list[Range]) -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/ordered/bytes", BYTES)
    assert RemoteRanges(files, "/ordered").read("bytes", len(BYTES), ranges) == [BYTES[start:end] for start, end in ranges]


def test_bytes_are_those_of_the_file(reader: RangeReader) -> None:
    ranges = [(4000, 4096), (0, 1), (10, 500), (20, 30), (10, 500), (0, 4096)]
    found = reader.read("deep/bytes", len(BYTES), ranges)
    assert found == [BYTES[start:end] for start, end in ranges]
    assert {type(data) for data in found} == {bytes}
    assert reader.read("deep/bytes", len(BYTES), []) == []


def test_a_missing_file_is_said_to_be_missing(reader: RangeReader) -> None:
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            reader.read("deep/none", 10, [(0, 10)])


def test_a_file_that_ends_early_is_refused(reader: RangeReader) -> None:
    with pytest.raises(ValueError):
        reader.read("deep/bytes", len(BYTES) + 10, [(0, 10), (len(BYTES) - 10, len(BYTES) + 10)])


def test_a_reader_sent_to_another_process_reads_the_same(reader: RangeReader) -> None:
    reader.read("deep/bytes", len(BYTES), [(0, 10)])
    sent: RangeReader = pickle.loads(pickle.dumps(reader))
    assert sent.read("deep/bytes", len(BYTES), [(5, 300)]) == [BYTES[5:300]]


def descriptors(folder: Path) -> list[str]:
    """Files below a folder that this process holds open."""
    names = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(descriptor.readlink()))
        except FileNotFoundError:  # the descriptor of this very listing
            continue
    return [name for name in names if name.startswith(str(folder))]


@pytest.mark.parametrize("size_byte", [0, 99, 101, 1 << 40])
def test_a_file_of_another_length_is_refused_and_not_kept_open(size_byte: int, folder: Path) -> None:
    reader = LocalRanges(folder)
    with pytest.raises(ValueError, match=rf"has 100 bytes, its receipt says {size_byte}$"):
        reader.read("0", size_byte, [(0, 10)])
    assert descriptors(folder) == []
    assert reader.read("0", 100, [(90, 100)]) == [bytes(10)]


def test_a_file_cut_while_it_is_open_is_refused(folder: Path) -> None:
    reader = LocalRanges(folder)
    reader.read("1", 101, [(0, 101)])
    os.truncate(folder / "1", 50)
    assert reader.read("1", 101, [(0, 50)]) == [b"\1" * 50]
    with pytest.raises(ValueError, match="ends early"):
        reader.read("1", 101, [(0, 10), (45, 55)])


@pytest.mark.parametrize("most_open", [0, 1, 3, 100])
def test_no_more_files_stay_open_than_allowed(most_open: int, folder: Path) -> None:
    reader = LocalRanges(folder, most_open)
    for number in [*range(8), *range(8), 0, 7, 0, 7]:
        assert reader.read(f"{number}", 100 + number, [(1, 3)]) == [bytes([number]) * 2]
        assert len(descriptors(folder)) <= most_open
    assert len(descriptors(folder)) == min(most_open, 8)
    del reader
    assert descriptors(folder) == []


def test_the_files_used_last_stay_open(folder: Path) -> None:
    reader = LocalRanges(folder, 2)
    for number in (0, 1, 0, 2):
        reader.read(f"{number}", 100 + number, [(0, 1)])
    assert sorted(descriptors(folder)) == [str(folder / "0"), str(folder / "2")]


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that change places as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("most_open", [0, 1, 3, 100])
@pytest.mark.usefixtures("hasty_threads")
def test_threads_share_a_reader(most_open: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close = _OpenFile.__del__

    def close_slowly(opened: _OpenFile) -> None:  # so that another thread takes over amid whatever let go of the file
        time.sleep(1e-5)
        close(opened)

    monkeypatch.setattr(_OpenFile, "__del__", close_slowly)
    reader = LocalRanges(folder, most_open)

    def wrong(call: int) -> bool:
        number = call % 8
        return reader.read(f"{number}", 100 + number, [(0, 10), (50, 90)]) != [bytes([number]) * 10, bytes([number]) * 40]

    with ThreadPoolExecutor(16) as threads:
        assert not any(threads.map(wrong, range(8000)))
    assert len(descriptors(folder)) <= most_open


def in_a_fork(task: Callable[[], bool]) -> bool:
    """What a forked process finds; False also where it hangs."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=lambda: answers.put(task()))
    process.start()
    process.join(20)
    if process.is_alive():
        process.kill()
        return False
    return not answers.empty() and answers.get()


def test_a_forked_process_opens_its_own_files(folder: Path) -> None:
    reader = LocalRanges(folder, 4)
    first = reader.read("2", 102, [(0, 3)])
    (folder / "2").rename(folder / "moved")
    (folder / "2").write_bytes(b"x" * 102)

    def child() -> bool:
        return reader.read("2", 102, [(0, 3)]) == [b"xxx"] and descriptors(folder) == [str(folder / "2")]

    assert in_a_fork(child)
    assert reader.read("2", 102, [(0, 3)]) == first == [b"\2\2\2"]


@pytest.mark.usefixtures("hasty_threads")
def test_a_fork_amid_reading_threads_reads_right(folder: Path) -> None:
    reader = LocalRanges(folder, 2)
    busy = True

    def keep_reading(number: int) -> None:
        while busy:
            reader.read(f"{number}", 100 + number, [(0, 10)])

    def child() -> bool:
        return all(reader.read(f"{n}", 100 + n, [(7, 9)]) == [bytes([n]) * 2] for n in (*range(8), *range(8)))

    with ThreadPoolExecutor(4) as threads:
        tasks = [threads.submit(keep_reading, number) for number in range(4)]
        try:
            found = [in_a_fork(child) for _ in range(10)]
        finally:
            busy = False
        assert all(task.result() is None for task in tasks)
    assert all(found)


def test_a_forked_process_does_not_wait_for_a_lock_held_elsewhere(folder: Path) -> None:
    reader = LocalRanges(folder, 2)
    with reader._held.lock:
        assert in_a_fork(lambda: reader.read("3", 103, [(0, 1)]) == [b"\3"])


def test_neighbours_are_fetched_by_one_request(counted: CountedFiles) -> None:
    reader = RemoteRanges(counted, "/ranges")
    found = reader.read("large", FAR + len(BYTES), [(FAR + 10, FAR + 20), (0, 4), (FAR, FAR + 10), (FAR + 1000, FAR + 1001)])
    assert found == [BYTES[10:20], bytes(4), BYTES[:10], BYTES[1000:1001]]
    assert counted.calls == [[("/ranges/large", 0, 4), ("/ranges/large", FAR, FAR + 1001)]]


def test_far_ranges_are_asked_for_in_one_call(counted: CountedFiles) -> None:
    counted.files.pipe("/ranges/huge", bytes(8 * FAR))
    RemoteRanges(counted, "/ranges").read("huge", 8 * FAR, [(number * FAR, number * FAR + 5) for number in range(8)])
    assert [len(call) for call in counted.calls] == [8]


def test_a_truncated_object_is_refused(counted: CountedFiles) -> None:
    counted.files.pipe("/ranges/deep/bytes", BYTES[:100])
    reader = RemoteRanges(counted, "/ranges")
    assert reader.read("deep/bytes", len(BYTES), [(0, 100)]) == [BYTES[:100]]
    for ranges in ([(90, 110)], [(0, 10), (200, 300)], [(4000, 4096)]):
        with pytest.raises(ValueError, match=f"ends early, its receipt says {len(BYTES)} bytes"):
            reader.read("deep/bytes", len(BYTES), ranges)


class FailingFiles(AsyncFileSystem):  # type: ignore[misc]
    """A file system as those of object stores are: asynchronous, and out of order."""

    cachable = False

    def __init__(self, failure: Exception) -> None:
        super().__init__()
        self._failure = failure

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        if start == 0:
            return BYTES[start:end]
        raise self._failure


class OldFailingFiles(FailingFiles):
    """As fsspec was before ``on_error`` reached asynchronous file systems: what failed is always handed back."""

    async def _cat_ranges(self, paths: list[str], starts: list[int], ends: list[int], **options: Any) -> list[Any]:
        return list(await super()._cat_ranges(paths, starts, ends, **{**options, "on_error": "return"}))


@pytest.mark.parametrize("kind", [FailingFiles, OldFailingFiles])
@pytest.mark.parametrize("failure", [OSError("reset"), ConnectionError("gone"), TimeoutError("slow")])
def test_a_failing_service_is_worth_another_try(kind: type[FailingFiles], failure: Exception) -> None:
    reader = RemoteRanges(kind(failure), "bucket/store")
    assert reader.read("a/b", FAR * 2, [(0, 4)]) == [BYTES[:4]]
    with pytest.raises(TransientError, match=rf"bucket/store/a/b: {failure}; try again") as caught:
        reader.read("a/b", FAR * 2, [(0, 4), (FAR, FAR + 4)])
    assert caught.value.__cause__ is failure


@pytest.mark.parametrize("kind", [FailingFiles, OldFailingFiles])
def test_an_object_missing_from_a_service_is_said_to_be_missing(kind: type[FailingFiles]) -> None:
    with pytest.raises(FileNotFoundError):
        RemoteRanges(kind(FileNotFoundError("a/b")), "bucket/store").read("a/b", FAR, [(5, 9)])
