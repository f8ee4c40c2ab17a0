"""Shards damaged under a reader: it says which part, file and sample, and how to repair, and never hands out other values."""

import random
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
import pytest
from numpy.typing import NDArray

from scenemill import open_store
from scenemill.pipelines.ingest import ingest
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import Corrupt
from scenemill.schemas.fields import Field, fields_of
from scenemill.schemas.places import on_disk
from scenemill.schemas.sample import Sample
from scenemill.transforms.layout import shard_path
from scenemill.transforms.reader import ShardReader
from scenemill.transforms.shards import decode_chunk, decode_index, encode_chunk, index_size_byte
from scenemill.transforms.store import Store
from scenemill.transforms.verify import verify_store

SOURCES: Final = ("front3d", "matterport")
FIELDS: Final = [(source, field.name) for source in SOURCES for field in fields_of(source)]
PER_PART: Final = 2
HEADER_BYTE: Final = 16  # of a blosc frame
Change = Callable[[bytes], bytes | None]


@pytest.fixture(scope="module")
def victims(front3d_world: Path, matterport_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store of two parts for each source; a test may damage it if it puts the files back."""
    folder = tmp_path_factory.mktemp("victims")
    for source, world in zip(SOURCES, (front3d_world, matterport_world), strict=True):
        ingest(IngestConfig(source, world, folder / source, samples_per_part=PER_PART, limit=4))
    return {source: folder / source for source in SOURCES}


@pytest.fixture(scope="module")
def truths(victims: dict[str, Path]) -> dict[str, dict[str, Sample]]:
    """What plain Zarr reads from the whole stores."""
    return {source: {key: open_store(path).read(key, by_zarr=True) for key in open_store(path)} for source, path in victims.items()}


def field_of(source: str, name: str) -> Field:
    return next(field for field in fields_of(source) if field.name == name)


@contextmanager
def damaged(path: Path, change: Change) -> Iterator[None]:
    data = path.read_bytes()
    changed = change(data)
    assert changed != data
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(data)


def right_or_refused(store: Store, name: str, path: str, truth: dict[str, Sample]) -> list[str]:
    """Keys of the first part's samples that are refused, each with all that its reader must know; the others read right."""
    refused = []
    part = next(part["id"] for part in store.manifest["parts"] if part["slot"] == 0)
    for key, sample in truth.items():
        if sample.facts["row"] >= PER_PART or name not in sample:
            continue
        try:
            found = store.read(key, [name])[name]
        except Corrupt as error:
            said = str(error)
            assert said.startswith(f"part {part}: {path} ")
            assert f"; sample {key} cannot be read. " in said
            assert f'"scenemill verify {store.root}"' in said and '"scenemill ingest ... --repair" rebuilds it' in said
            refused.append(key)
        else:
            assert found.dtype == sample[name].dtype
            assert found.tobytes() == sample[name].tobytes()
    return refused


def held_in(path: Path, field: Field, store: Store) -> NDArray[np.int64]:
    """Where the chunks of a whole shard lie: (first byte, byte behind the last) of each."""
    data = path.read_bytes()
    layout = store.layout
    shape, chunk = field.shape(layout.grid, layout.image), layout.chunk(field)
    count = int(np.prod([size // step for size, step in zip(shape, chunk, strict=True)]))
    index = decode_index(data[-index_size_byte(PER_PART, count) :], PER_PART, len(data)).reshape(-1, 2)
    return index[index[:, 0] >= 0]


def bit_at(position: int, bit: int = 1) -> Callable[[bytes], bytes]:
    return lambda data: data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :]


def put(position: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:position] + new + data[position + len(new) :]


WHOLE_FILE: Final[dict[str, Change]] = {
    "deleted": lambda data: None,
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "shorter than its index": lambda data: data[:3],
    "half": lambda data: data[: len(data) // 2],
    "without its first byte": lambda data: data[1:],
    "one byte short": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\0",
    "twice": lambda data: data + data,
    "zeros": lambda data: bytes(len(data)),
    "ones": lambda data: b"\xff" * len(data),
    "backwards": lambda data: data[::-1],
}


@pytest.mark.parametrize(("source", "name"), FIELDS)
def test_a_shard_that_is_not_whole_is_refused(
    source: str, name: str, victims: dict[str, Path], truths: dict[str, dict[str, Sample]]
) -> None:
    path = shard_path(field_of(source, name), 0)
    for change in WHOLE_FILE.values():
        with damaged(victims[source] / path, change):
            assert len(right_or_refused(open_store(victims[source]), name, path, truths[source])) == PER_PART
    assert right_or_refused(open_store(victims[source]), name, path, truths[source]) == []


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize(("source", "name"), FIELDS)
def test_a_flipped_bit_of_each_piece_of_a_shard_is_refused(
    source: str, name: str, step: int, victims: dict[str, Path], truths: dict[str, dict[str, Sample]]
) -> None:
    store, field = open_store(victims[source]), field_of(source, name)
    path = shard_path(field, 0)
    chunks = held_in(victims[source] / path, field, store)
    assert len(chunks) == PER_PART
    size = (victims[source] / path).stat().st_size
    for start, end in chunks.tolist():
        header, checksum = range(start, start + HEADER_BYTE, step), range(end - 4, end, step)
        for position in (*header, start + HEADER_BYTE, (start + end) // 2, *checksum):
            with damaged(victims[source] / path, bit_at(position, 1 << position % 8)):
                assert len(right_or_refused(open_store(victims[source]), name, path, truths[source])) == 1
    for position in range(size - index_size_byte(PER_PART, 1), size, step):
        with damaged(victims[source] / path, bit_at(position, 1 << position % 8)):
            assert len(right_or_refused(open_store(victims[source]), name, path, truths[source])) == PER_PART


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 40))])
@pytest.mark.parametrize(("source", "name"), FIELDS)
def test_any_flipped_bytes_are_refused(
    source: str, name: str, seed: int, victims: dict[str, Path], truths: dict[str, dict[str, Sample]]
) -> None:
    rng = random.Random(f"{source} {name} {seed}")
    path = shard_path(field_of(source, name), 0)
    size = (victims[source] / path).stat().st_size
    for _ in range(7):
        length = rng.choice([1, 1, 1, 2, 8, 100])
        position = rng.randrange(size - length + 1) if rng.random() < 0.6 else max(0, size - length - rng.randrange(40))
        with damaged(victims[source] / path, put(position, other_bytes(rng, victims[source] / path, position, length))):
            assert right_or_refused(open_store(victims[source]), name, path, truths[source])


def other_bytes(rng: random.Random, path: Path, position: int, length: int) -> bytes:
    """As many bytes as are there, no one of them the same."""
    return bytes(byte ^ rng.randrange(1, 256) for byte in path.read_bytes()[position : position + length])


@pytest.mark.parametrize("source", SOURCES)
def test_damage_of_one_field_leaves_the_others_readable(
    source: str, victims: dict[str, Path], truths: dict[str, dict[str, Sample]]
) -> None:
    path = shard_path(field_of(source, "geometry"), 0)
    with damaged(victims[source] / path, WHOLE_FILE["zeros"]):
        store = open_store(victims[source])
        for key, sample in truths[source].items():
            others = [name for name in sample.arrays if name != "geometry"]
            assert all(np.array_equal(store.read(key, others)[name], sample[name], equal_nan=name != "rgb") for name in others)
            if sample.facts["row"] < PER_PART:
                with pytest.raises(Corrupt, match=path):
                    store.read(key)
            else:
                assert store.read(key) == sample


@pytest.mark.parametrize("source", SOURCES)
def test_shards_in_each_others_place_are_refused_or_found_by_verify(
    source: str, victims: dict[str, Path], truths: dict[str, dict[str, Sample]]
) -> None:
    root, fields = victims[source], fields_of(source)
    for field in fields:
        path = shard_path(field, 0)
        for other in (shard_path(field, 1), *(shard_path(another, 0) for another in fields if another != field)):
            held = (root / other).read_bytes()
            if len(held) == (root / path).stat().st_size:
                continue  # nothing but its SHA-256 tells it
            with damaged(root / path, lambda data, held=held: held):  # type: ignore[misc]
                assert len(right_or_refused(open_store(root), field.name, path, truths[source])) == PER_PART
    with damaged(root / shard_path(fields[0], 0), lambda data: (root / shard_path(fields[0], 1)).read_bytes()):
        assert [broken.path for broken in verify_store(root).broken] == [shard_path(fields[0], 0)]


def test_a_folder_in_place_of_a_shard_is_refused(victims: dict[str, Path], tmp_path: Path) -> None:
    store = open_store(Path(shutil.copytree(victims["front3d"], tmp_path / "store")))
    path = shard_path(field_of("front3d", "rgb"), 0)
    (store.root / path).unlink()
    (on_disk(store.root) / path).mkdir()
    with pytest.raises(Corrupt, match=rf"{path} .*sample {key_of(store, 0)} cannot be read"):
        store.read(key_of(store, 0))


def key_of(store: Store, row: int) -> str:
    return next(key for key in store if store.facts(key)["row"] == row)


@pytest.mark.parametrize("source", SOURCES)
def test_a_shard_damaged_after_it_was_read_gives_no_other_values(
    source: str, victims: dict[str, Path], truths: dict[str, dict[str, Sample]]
) -> None:
    rng = random.Random(source)
    for field in fields_of(source):
        path = shard_path(field, 0)
        size = (victims[source] / path).stat().st_size
        store = open_store(victims[source])
        assert right_or_refused(store, field.name, path, truths[source]) == []
        in_place = [change for what, change in WHOLE_FILE.items() if what != "deleted"]
        for change in (*in_place, *(bit_at(rng.randrange(size)) for _ in range(6))):
            with damaged(victims[source] / path, change):
                right_or_refused(store, field.name, path, truths[source])
        with damaged(victims[source] / path, WHOLE_FILE["zeros"]):
            assert len(right_or_refused(store, field.name, path, truths[source])) == PER_PART
        assert right_or_refused(store, field.name, path, truths[source]) == []  # opened anew after a refusal
        with damaged(victims[source] / path, WHOLE_FILE["deleted"]):
            assert right_or_refused(store, field.name, path, truths[source]) == []  # still open


def test_a_shard_swapped_by_renaming_is_read_whole_or_refused(
    victims: dict[str, Path], truths: dict[str, dict[str, Sample]], tmp_path: Path
) -> None:
    store = open_store(Path(shutil.copytree(victims["front3d"], tmp_path / "store")))
    for name in ("geometry", "rgb"):
        path = shard_path(field_of("front3d", name), 0)
        assert right_or_refused(store, name, path, truths["front3d"]) == []
        size = (store.root / path).stat().st_size
        (tmp_path / "other").write_bytes(random.Random(1).randbytes(size))
        (tmp_path / "other").replace(on_disk(store.root) / path)
        right_or_refused(store, name, path, truths["front3d"])
        store.reader._ranges._most_open = 0  # type: ignore[attr-defined]
        store.read(key_of(store, 0), ["depth"])  # now no file is open: the new one is read by the old one's index
        assert len(right_or_refused(store, name, path, truths["front3d"])) == PER_PART
        store.reader._ranges._most_open = 8  # type: ignore[attr-defined]


@pytest.mark.parametrize("source", SOURCES)
def test_blocks_voxels_and_boxes_refuse_what_whole_volumes_refuse(source: str, victims: dict[str, Path]) -> None:
    volumes = [field for field in fields_of(source) if field.is_volume]
    for field in volumes:
        path = shard_path(field, 0)
        (start, end), _ = held_in(victims[source] / path, field, open_store(victims[source])).tolist()
        for change in (WHOLE_FILE["deleted"], WHOLE_FILE["half"], bit_at((start + end) // 2), bit_at(start + 4), bit_at(end - 1)):
            with damaged(victims[source] / path, change):
                store = open_store(victims[source])
                key = key_of(store, 0)
                reads: list[Callable[[ShardReader], Any]] = [
                    lambda reader, field=field: reader.blocks(field, 0),  # type: ignore[misc]
                    lambda reader: reader.voxels(volumes, 0),
                    lambda reader, field=field: reader.array(field, 0, ((3, 4), (0, 64), (5, 6))),  # type: ignore[misc]
                ]
                for read in reads:
                    with pytest.raises(Corrupt, match=rf"{path}.*; sample {key} "), store.guarded(key, 0, volumes):
                        read(store.reader)
                with pytest.raises(Corrupt, match=rf"{path} .*; sample {key} "):
                    store.read(key, [field.name], box=((0, 1), (0, 1), (0, 1)))


LIES: Final[dict[str, Callable[[bytes], bytes]]] = {
    "holds nothing": put(4, bytes(4)),
    "holds one byte less": lambda data: put(4, (int.from_bytes(data[4:8], "little") - 1).to_bytes(4, "little"))(data),
    "holds one byte more": lambda data: put(4, (int.from_bytes(data[4:8], "little") + 1).to_bytes(4, "little"))(data),
    "holds two gigabytes": put(4, b"\xff\xff\xff\x7f"),
    "holds four gigabytes": put(4, b"\xff\xff\xff\xff"),
    "blocks of nothing": put(8, bytes(4)),
    "blocks of two gigabytes": put(8, b"\xff\xff\xff\x7f"),
    "blocks of less than nothing": put(8, b"\xff\xff\xff\xff"),
    "lies in nothing": put(12, bytes(4)),
    "lies in one byte more": lambda data: put(12, (len(data) + 1).to_bytes(4, "little"))(data),
    "lies in one byte less": lambda data: put(12, (len(data) - 1).to_bytes(4, "little"))(data),
    "lies in four gigabytes": put(12, b"\xff\xff\xff\xff"),
    "another version": put(0, b"\xff"),
    "another codec": bit_at(2, 0xE0),
    "said to be stored as it is": bit_at(2, 2),
    "first block beyond the end": put(16, b"\xff\xff\xff\x7f"),
    "first block before the start": put(16, b"\xff\xff\xff\xff"),
    "no frame": lambda data: b"",
    "half a header": lambda data: data[:8],
    "a header alone": lambda data: data[:16],
    "half": lambda data: data[: len(data) // 2],
    "half, and says so": lambda data: put(12, (len(data) // 2).to_bytes(4, "little"))(data)[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
}


def with_checksum(frame: bytes) -> bytes:
    checksum: int = google_crc32c.value(frame)
    return frame + checksum.to_bytes(4, "little")


@contextmanager
def little_memory(size_byte: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= size_byte
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("source", SOURCES)
def test_a_lying_header_with_a_right_checksum_is_refused(
    source: str, lie: str, victims: dict[str, Path], truths: dict[str, dict[str, Sample]]
) -> None:
    for name in ("geometry", "rgb", "depth", "instance_3d"):
        field = field_of(source, name)
        path = shard_path(field, 0)
        start, end = held_in(victims[source] / path, field, open_store(victims[source]))[0].tolist()
        chunk = (victims[source] / path).read_bytes()[start:end]
        lying = LIES[lie](chunk[:-4])
        store = open_store(victims[source])
        truth = store.read(key_of(store, 0), [name])[name]
        frame, out = with_checksum(lying), np.empty(truth.shape, truth.dtype)
        with little_memory(len(frame) + (1 << 18)), pytest.raises(ValueError):
            decode_chunk(frame, out)
        if len(lying) == len(chunk) - 4:
            with damaged(victims[source] / path, put(start, with_checksum(lying))):
                assert len(right_or_refused(open_store(victims[source]), name, path, truths[source])) == 1


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 20))])
@pytest.mark.parametrize("shuffle", ["noshuffle", "shuffle", "bitshuffle"])
def test_frames_with_right_checksums_never_write_beyond_their_array(shuffle: str, seed: int) -> None:
    rng = random.Random(f"{shuffle} {seed}")
    for dtype, size in (("uint8", 64**3), ("uint16", 4096), ("float32", 64**3), ("float64", 16)):
        settings = {"cname": "zstd", "clevel": 5, "shuffle": shuffle, "blocksize": 1 << 19, "typesize": np.dtype(dtype).itemsize}
        values = np.random.default_rng(rng.randrange(1 << 32)).integers(0, rng.choice([2, 200]), size).astype(dtype)
        whole = encode_chunk(values, settings)[:-4]
        room = np.full(size + 2048, 77, dtype)
        for _ in range(60):
            frame = bytearray(whole)
            for _ in range(rng.choice([1, 1, 2, 5])):
                position = rng.choice([0, 1, 2, 3, *range(8, 12), *range(16, min(64, len(frame))), rng.randrange(16, len(frame))])
                frame[position] = rng.randrange(256)
            with suppressed_refusal():
                decode_chunk(with_checksum(bytes(frame)), room[1024:-1024])
            assert (room[:1024] == 77).all() and (room[-1024:] == 77).all()


@contextmanager
def suppressed_refusal() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        assert "a chunk " in str(error)


INDEX_LIES: Final = {
    "a chunk beyond the end": (1 << 30, 100),
    "a chunk that starts at the end of numbers": (2**64 - 2, 10),
    "a chunk before the start": (2**63, 100),
    "a chunk without end": (0, 2**64 - 1),
    "a chunk of four exabytes": (0, 1 << 62),
    "a chunk that wraps around": (2**63 - 1, 2**63 - 1),
    "a chunk of no place": (2**64 - 1, 100),
    "a chunk of nothing": (0, 0),
    "a chunk of three bytes": (0, 3),
    "the whole file": (0, -1),
}


@pytest.mark.parametrize("lie", INDEX_LIES)
@pytest.mark.parametrize("name", ["geometry", "rgb", "intrinsics"])
def test_a_lying_index_with_a_right_checksum_is_refused(
    name: str, lie: str, victims: dict[str, Path], truths: dict[str, dict[str, Sample]]
) -> None:
    path = shard_path(field_of("front3d", name), 0)
    size = (victims["front3d"] / path).stat().st_size
    first, length = INDEX_LIES[lie]
    entry = first.to_bytes(8, "little") + (size if length < 0 else length).to_bytes(8, "little")

    def change(data: bytes) -> bytes:
        index = data[-index_size_byte(PER_PART, 1) : -4]
        return data[: -len(index) - 4] + with_checksum(entry + index[16:])

    with damaged(victims["front3d"] / path, change), little_memory(8 << 20):
        assert right_or_refused(open_store(victims["front3d"]), name, path, truths["front3d"])


def test_an_index_may_name_no_chunks() -> None:
    index = np.full((3, 8, 2), 2**64 - 1, "<u8").tobytes()
    assert (decode_index(with_checksum(index), 3, 1000) == -1).all()
