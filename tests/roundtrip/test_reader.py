"""Reading straight from shards gives what plain Zarr gives, bit for bit: whole, in boxes, as blocks, as voxels, from anywhere."""

import json
import pickle
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scenemill import open_store
from scenemill.pipelines.ingest import ingest
from scenemill.schemas.config import IngestConfig
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.fields import Field, fields_of
from scenemill.schemas.places import on_disk
from scenemill.transforms.blocks import EDGE
from scenemill.transforms.layout import Layout, array_document, shard_path
from scenemill.transforms.precision import storage_of
from scenemill.transforms.ranges import LocalRanges, Range, RangeReader, RemoteRanges
from scenemill.transforms.reader import Box, ShardReader
from scenemill.transforms.shards import ShardWriter, chunk_corners
from scenemill.transforms.store import Store
from scenemill.transforms.worlds import write_world

PRECISIONS = ("float32", "float16", "fixed16")
STORES = [(source, precision) for source in ("front3d", "matterport") for precision in PRECISIONS]
SAMPLES_PER_PART = {
    ("front3d", "float32"): 2,
    ("front3d", "float16"): 1,
    ("front3d", "fixed16"): 64,
    ("matterport", "float32"): 64,
    ("matterport", "float16"): 4,
    ("matterport", "fixed16"): 1,
}


def assert_same_bits(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


@pytest.fixture(scope="module")
def stores(front3d_world: Path, matterport_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Store]:
    """A store of each source in each precision, of different part sizes."""
    folder = tmp_path_factory.mktemp("read")
    worlds = {"front3d": front3d_world, "matterport": matterport_world}
    made = {}
    for source, precision in STORES:
        root = folder / f"{source} {precision}"
        options: dict[str, Any] = {"precision": precision, "samples_per_part": SAMPLES_PER_PART[source, precision]}
        ingest(IngestConfig(source, worlds[source], root, limit=5, **options))
        made[source, precision] = open_store(root)
    return made


@pytest.fixture(scope="module", params=["front3d", "matterport"])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store whose volumes are of eight chunks."""
    folder = tmp_path_factory.mktemp("large")
    write_world(request.param, folder / "raw", scenes=2, views=1, seed=5, grid=128)
    precision = "float32" if request.param == "front3d" else "fixed16"
    ingest(IngestConfig(request.param, folder / "raw", folder / "store", samples_per_part=2, precision=precision))
    return open_store(folder / "store")


@pytest.mark.parametrize(("source", "precision"), STORES)
def test_every_field_is_what_plain_zarr_reads(source: str, precision: str, stores: dict[tuple[str, str], Store]) -> None:
    store = stores[source, precision]
    assert len(store) == 5
    for key in store:
        direct, plain = store.read(key), store.read(key, by_zarr=True)
        assert list(direct.arrays) == list(plain.arrays) == [field.name for field in store.layout.fields if field.name in direct]
        for name, array in direct.arrays.items():
            assert_same_bits(array, plain[name])
            assert array.flags.writeable and array.flags.c_contiguous
        assert (direct.facts, direct.key) == (plain.facts, plain.key)


@pytest.mark.parametrize(("source", "precision"), STORES)
def test_raw_orientation_is_what_plain_zarr_reads(source: str, precision: str, stores: dict[tuple[str, str], Store]) -> None:
    store = stores[source, precision]
    names = [field.name for field in store.layout.fields if field.is_volume]
    direct, plain = (store.read(store.keys[-1], names, raw_volumes=True, by_zarr=by_zarr) for by_zarr in (False, True))
    for name in names:
        assert_same_bits(direct[name], plain[name])


def test_what_was_read_stays_when_more_is_read(stores: dict[tuple[str, str], Store]) -> None:
    store = stores["front3d", "float32"]
    first = store.read(store.keys[0])
    bits = {name: array.tobytes() for name, array in first.arrays.items()}
    for array in store.read(store.keys[0]).arrays.values():
        array[...] = 0
    for key in store:
        store.read(key)
    assert {name: array.tobytes() for name, array in first.arrays.items()} == bits


def boxes(grid: int) -> st.SearchStrategy[Box]:
    side = st.tuples(st.integers(0, grid - 1), st.integers(1, grid)).map(lambda drawn: (drawn[0], min(grid, sum(drawn))))
    return st.tuples(side, side, side)


def cut(volume: NDArray[Any], box: Box) -> NDArray[Any]:
    return volume[tuple(slice(low, high) for low, high in box)]


EDGES: list[Box] = [
    ((0, 128), (0, 128), (0, 128)),
    ((0, 1), (0, 1), (0, 1)),
    ((127, 128), (127, 128), (127, 128)),
    ((63, 65), (63, 65), (63, 65)),
    ((64, 128), (0, 64), (64, 128)),
    ((0, 128), (63, 64), (64, 65)),
]


def assert_boxes_are_cut_from_the_whole(store: Store, key: str, box: Box) -> None:
    names = [field.name for field in store.layout.fields if field.is_volume]
    whole, direct, plain = store.read(key, names), store.read(key, names, box=box), store.read(key, names, box=box, by_zarr=True)
    for name in names:
        assert_same_bits(direct[name], np.ascontiguousarray(cut(whole[name], box)))
        assert_same_bits(direct[name], plain[name])


@pytest.mark.parametrize("box", EDGES)
def test_boxes_at_the_edges_of_chunks_are_cut_from_the_whole(box: Box, large: Store) -> None:
    assert_boxes_are_cut_from_the_whole(large, large.keys[0], box)


@settings(max_examples=15, deadline=None)
@given(box=boxes(128), place=st.integers(0, 1))
def test_any_box_is_cut_from_the_whole(large: Store, box: Box, place: int) -> None:
    assert_boxes_are_cut_from_the_whole(large, large.keys[place], box)


@settings(max_examples=4, deadline=None)
@given(box=boxes(64), place=st.integers(0, 4))
@pytest.mark.parametrize(("source", "precision"), STORES)
def test_any_box_of_a_small_volume_is_cut_from_the_whole(
    stores: dict[tuple[str, str], Store], source: str, precision: str, box: Box, place: int
) -> None:
    store = stores[source, precision]
    assert_boxes_are_cut_from_the_whole(store, store.keys[place], box)


def test_a_box_cuts_volumes_and_leaves_the_rest(large: Store) -> None:
    whole, read = large.read(large.keys[0]), large.read(large.keys[0], box=((0, 7), (60, 70), (127, 128)))
    for field in large.layout.fields:
        if field.name in whole:
            assert read[field.name].shape == ((7, 10, 1) if field.is_volume else whole[field.name].shape)


@pytest.mark.parametrize("box", [((0, 129), (0, 1), (0, 1)), ((0, 1), (-1, 1), (0, 1)), ((0, 1), (0, 1), (5, 5)), ((0, 1), (0, 1))])
def test_boxes_outside_the_volume_are_refused(box: Any, large: Store) -> None:
    with pytest.raises(ConfigError, match=r"give \(first, behind the last\) for x, y and z, within 0\.\.128"):
        large.read(large.keys[0], box=box)
    with pytest.raises(ConfigError, match="raw_volumes"):
        large.read(large.keys[0], box=((0, 1),) * 3, raw_volumes=True)


@pytest.mark.parametrize(("source", "precision"), STORES)
def test_blocks_made_dense_are_the_volume(source: str, precision: str, stores: dict[tuple[str, str], Store]) -> None:
    store = stores[source, precision]
    for key in store:
        assert_blocks_are_the_volumes(store.reader, store.layout, store.facts(key)["row"])
        assert_voxels_are_the_volumes(store.reader, store.layout, store.facts(key)["row"])


def test_blocks_and_voxels_of_many_chunks_are_the_volume(large: Store) -> None:
    for key in large:
        assert_blocks_are_the_volumes(large.reader, large.layout, large.facts(key)["row"])
        assert_voxels_are_the_volumes(large.reader, large.layout, large.facts(key)["row"])


def assert_blocks_are_the_volumes(reader: ShardReader, layout: Layout, row: int) -> None:
    for field in layout.fields:
        if field.is_volume:
            volume, blocks = reader.array(field, row), reader.blocks(field, row)
            assert_same_bits(blocks.dense(), volume)
            assert (blocks.fill, blocks.grid) == (field.fill, layout.grid)
            assert blocks.values.shape == (len(blocks), EDGE, EDGE, EDGE)
            assert (blocks.values != field.fill).any(axis=(1, 2, 3)).all()


def assert_voxels_are_the_volumes(reader: ShardReader, layout: Layout, row: int) -> None:
    volumes = [field for field in layout.fields if field.is_volume]
    for fields in ([], volumes[1:3], volumes, volumes[:1], volumes[-1:]):
        indexes, values = reader.voxels(fields, row)
        arrays = [reader.array(field, row) for field in fields]
        differs = [array.reshape(-1) != field.fill for field, array in zip(fields, arrays, strict=True)]
        expected = np.flatnonzero(np.logical_or.reduce(differs)) if differs else np.empty(0, np.int64)
        assert indexes.dtype == np.int64
        assert sorted(indexes.tolist()) == expected.tolist()
        for field, array, found in zip(fields, arrays, values, strict=True):
            scattered = np.full(array.size, field.fill, field.dtype)
            scattered[indexes] = found
            assert_same_bits(scattered.reshape(array.shape), array)


@dataclass
class Counting:
    """A reader of ranges that notes what it was asked for."""

    ranges: RangeReader
    asked: list[tuple[str, Range]]

    def read(self, path: str, size_byte: int, ranges: Sequence[Range]) -> list[bytes]:
        self.asked.extend((path, asked) for asked in ranges)
        return self.ranges.read(path, size_byte, ranges)


def size_of(store: Store) -> Any:
    return lambda slot, path: (store.root / path).stat().st_size


@pytest.mark.parametrize(
    ("box", "chunks"),
    [
        (None, 8),
        (((0, 128), (0, 128), (0, 128)), 8),
        (((10, 20), (0, 64), (63, 64)), 1),
        (((64, 65), (64, 128), (127, 128)), 1),
        (((63, 65), (5, 6), (5, 6)), 2),
        (((0, 128), (64, 65), (60, 70)), 4),
        (((63, 65), (63, 65), (63, 65)), 8),
    ],
)
def test_a_box_reads_only_its_chunks(box: Box | None, chunks: int, tmp_path: Path) -> None:
    layout = Layout("front3d", 128, (4, 4), 3, "float32")
    field = fields_of("front3d")[5]
    written = write_shard(tmp_path, layout, field, {1: np.full((128,) * 3, 5, np.uint8)})
    counting = Counting(LocalRanges(tmp_path), [])
    reader = ShardReader(counting, layout, lambda slot, path: written)
    index, path = (written - 3 * 8 * 16 - 4, written), shard_path(field, 0)
    for read_before in (False, True):
        assert (reader.array(field, 1, box) == 5).all()
        if not read_before:
            assert counting.asked.pop(0) == (path, index)
        assert len(set(counting.asked)) == len(counting.asked) == chunks
        assert {name for name, _ in counting.asked} == {path}
        assert (path, index) not in counting.asked
        counting.asked.clear()
    assert (reader.array(field, 0, box) == 0).all()
    assert counting.asked == []


def test_chunks_of_fill_are_not_asked_for(large: Store) -> None:
    counting = Counting(LocalRanges(on_disk(large.root)), [])
    reader = ShardReader(counting, large.layout, size_of(large))
    row, field = large.facts(large.keys[0])["row"], next(field for field in large.layout.fields if field.name == "instance_3d")
    volume = reader.array(field, row)
    held = [
        c for c in chunk_corners(volume.shape, (64, 64, 64)) if volume[c[0] : c[0] + 64, c[1] : c[1] + 64, c[2] : c[2] + 64].any()
    ]
    assert len(counting.asked) == 1 + len(held)


def write_shard(root: Path, layout: Layout, field: Field, arrays: dict[int, NDArray[Any]]) -> int:
    """Write one field of some rows of the first part. Returns the file's length."""
    path = root / shard_path(field, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(path, layout, field)
    for row, array in arrays.items():
        writer.append(row, array)
    document = array_document(layout, field, layout.samples_per_part)
    (root / field.name / "zarr.json").write_text(json.dumps(document))
    return int(writer.close()["size_byte"])


def made_up(rng: np.random.Generator, field: Field, shape: tuple[int, ...]) -> NDArray[Any]:
    """A volume of chunks that are full, nearly empty or empty; anything else full."""
    array = np.full(shape, field.fill, field.dtype)
    targets = [array]
    if field.is_volume:
        corners = [corner for corner in chunk_corners(shape, (64, 64, 64)) if rng.random() < 0.5]
        targets = [
            array[tuple(slice(c + rng.integers(60), c + 64 if rng.random() < 0.5 else c + 62) for c in corner)]
            for corner in corners
        ]
    for target in targets:
        if field.dtype == "bool":
            target[...] = rng.integers(0, 2, target.shape)
        elif field.dtype.startswith("float"):
            target[...] = rng.random(target.shape) * (12 if field.fill > 0 else 24) - (0 if field.fill > 0 else 12)
        else:
            target[...] = rng.integers(0, 256 if field.dtype == "uint8" else 65536, target.shape)
    return array


@settings(max_examples=25, deadline=None)
@given(
    source=st.sampled_from(["front3d", "matterport"]),
    precision=st.sampled_from(PRECISIONS),
    name=st.sampled_from(["geometry", "semantic_3d", "instance_3d", "weighting", "outside", "depth", "rgb", "intrinsics"]),
    rows=st.sets(st.integers(0, 3)),
    odd=st.booleans(),
    box=boxes(128),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shard_is_what_plain_zarr_reads(
    tmp_path_factory: pytest.TempPathFactory,
    source: str,
    precision: str,
    name: str,
    rows: set[int],
    odd: bool,
    box: Box,
    seed: int,
) -> None:
    root, rng = tmp_path_factory.mktemp("shard"), np.random.default_rng(seed)
    layout = Layout(source, 128, (30, 41), 4, precision)
    field = next((field for field in layout.fields if field.name == name), layout.fields[4])
    shape = field.shape(layout.grid, layout.image)
    arrays = {row: made_up(rng, field, shape) for row in sorted(rows)}
    if odd and field.dtype.startswith("float") and layout.storage(field).dtype == field.dtype:
        for array in arrays.values():
            array.flat[:: 997 if field.is_volume else 3] = rng.choice([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40, field.fill])
    size_byte = write_shard(root, layout, field, arrays)
    reader = ShardReader(LocalRanges(root), layout, lambda slot, path: size_byte)
    plain: Any = zarr.open_array(root / field.name, mode="r")
    for row in range(4):
        expected = storage_of(field, precision).decode(np.asarray(plain[row]), field.dtype)
        assert_same_bits(reader.array(field, row), expected)
        if field.is_volume:
            assert_same_bits(reader.array(field, row, box), np.ascontiguousarray(cut(expected, box)))
            assert_same_bits(reader.blocks(field, row).dense(), expected)
            indexes, (values,) = reader.voxels([field], row)
            scattered = np.full(expected.shape, field.fill, field.dtype)
            scattered.reshape(-1)[indexes] = values
            assert_same_bits(scattered, expected)


def test_voxels_of_fields_that_store_different_chunks(tmp_path: Path) -> None:
    layout = Layout("matterport", 128, (4, 4), 1, "fixed16")
    fields = [field for field in layout.fields if field.is_volume]
    rng = np.random.default_rng(3)
    sizes = {}
    for number, field in enumerate(fields):
        volume = np.full((128,) * 3, field.fill, field.dtype)
        if field.name != "weighting":  # holds nothing at all
            cut(volume, ((number % 2 * 64, 128), (0, 64), (number // 2 * 30, 70)))[...] = 0 if field.dtype == "bool" else 3
            volume[0, 0, 127] = volume[rng.integers(128), 64, 5] = not field.fill
        sizes[shard_path(field, 0)] = write_shard(tmp_path, layout, field, {0: volume})
    reader = ShardReader(LocalRanges(tmp_path), layout, lambda slot, path: sizes[path])
    assert_voxels_are_the_volumes(reader, layout, 0)
    assert_blocks_are_the_volumes(reader, layout, 0)


def assert_reads_what_zarr_reads(store: Store) -> None:
    for key in store:
        direct, plain = store.read(key), store.read(key, by_zarr=True)
        for name, array in direct.arrays.items():
            assert_same_bits(array, plain[name])


def test_a_store_sent_to_another_process_keeps_its_version(front3d_world: Path, tmp_path: Path) -> None:
    def run(**options: Any) -> None:
        ingest(IngestConfig("front3d", front3d_world, tmp_path / "store", samples_per_part=2, **options))

    run(limit=3)
    old = open_store(tmp_path / "store")
    held = {key: old.read(key) for key in old}
    sent_before, unread = pickle.dumps(old), pickle.dumps(open_store(tmp_path / "store"))
    assert len(sent_before) == len(unread) < 1000
    run()
    assert len(open_store(tmp_path / "store")) > 3
    for sent in (sent_before, unread, pickle.dumps(old)):
        store = pickle.loads(sent)
        assert (store.version, store.keys) == (old.version, old.keys)
        assert all(store.read(key) == sample for key, sample in held.items())
        assert_reads_what_zarr_reads(store)
    assert all(old.read(key) == sample for key, sample in held.items())
    assert_reads_what_zarr_reads(open_store(tmp_path / "store"))


def test_a_reader_sent_to_another_process_leaves_behind_what_it_holds(large: Store) -> None:
    reader, field = large.reader, large.layout.fields[4]
    whole = reader.array(field, 0)
    sent = pickle.dumps(reader)
    assert len(sent) < 5000
    assert_same_bits(pickle.loads(sent).array(field, 0), whole)


def test_threads_share_a_store(stores: dict[tuple[str, str], Store]) -> None:
    store = open_store(stores["front3d", "float16"].root)
    expected = {key: store.read(key, by_zarr=True) for key in store}

    def same(key: str) -> bool:
        read = store.read(key)
        return all(read[name].tobytes() == array.tobytes() for name, array in expected[key].arrays.items())

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(same, store.keys * 12))


@pytest.mark.parametrize(("source", "lacking"), [("front3d", "world_from_camera"), ("matterport", "room_mask")])
@pytest.mark.parametrize("samples_per_part", [1, 4])
def test_samples_that_lack_a_field_read_without_it(
    source: str, lacking: str, samples_per_part: int, front3d_world: Path, matterport_world: Path, tmp_path: Path
) -> None:
    raw = without(lacking, front3d_world if source == "front3d" else matterport_world, tmp_path / "raw")
    ingest(IngestConfig(source, raw, tmp_path / "store", samples_per_part=samples_per_part, limit=4))
    store = open_store(tmp_path / "store")
    has = [lacking in store.facts(key)["fields"] for key in store]
    assert True in has and False in has
    assert_reads_what_zarr_reads(store)
    field = next(field for field in store.layout.fields if field.name == lacking)
    for key in store:
        assert (lacking in store.read(key)) == (lacking in store.facts(key)["fields"])
        if lacking not in store.facts(key)["fields"]:
            with pytest.raises(ConfigError, match=f"has no field {lacking}"):
                store.read(key, [lacking])
            if source == "front3d" and samples_per_part == 4:  # the shard is there: a row that is not reads as fill
                row = store.facts(key)["row"]
                assert_same_bits(store.reader.array(field, row), np.asarray(store.array(lacking)[row]))


def without(lacking: str, world: Path, raw: Path) -> Path:
    """A copy of a made-up folder, every other view without what an optional field comes from."""
    shutil.copytree(world, raw)
    found = raw.rglob("campose_*.npz") if lacking == "world_from_camera" else (raw / "room_mask").rglob("*.png")
    for path in sorted(found)[::2]:
        path.unlink()
    return raw


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/bucket", recursive=True)


@pytest.mark.parametrize(("source", "precision"), [("front3d", "float16"), ("matterport", "float32")])
def test_an_object_store_gives_the_same(source: str, precision: str, stores: dict[tuple[str, str], Store], memory: Any) -> None:
    store = stores[source, precision]
    for path in on_disk(store.root).rglob("*"):
        if path.is_file():
            memory.pipe(f"/bucket/store/{path.relative_to(on_disk(store.root)).as_posix()}", path.read_bytes())
    reader = ShardReader(RemoteRanges(memory, "bucket/store"), store.layout, size_of(store))
    for key in store:
        row, plain = store.facts(key)["row"], store.read(key, by_zarr=True)
        for field in store.layout.fields:
            if field.name in plain:
                assert_same_bits(reader.array(field, row), plain[field.name])
        assert_voxels_are_the_volumes(reader, store.layout, row)
    sent = pickle.loads(pickle.dumps(ShardReader(RemoteRanges(memory, "bucket/store"), store.layout, store._size_of)))
    assert_same_bits(sent.array(store.layout.fields[0], 0), reader.array(store.layout.fields[0], 0))


def test_an_object_store_gives_the_same_boxes_by_few_requests(large: Store, memory: Any) -> None:
    calls: list[int] = []

    class Counted:
        def cat_ranges(self, paths: list[str], *args: Any, **options: Any) -> Any:
            calls.append(len(paths))
            return memory.cat_ranges(paths, *args, **options)

    field = next(field for field in large.layout.fields if field.name == "semantic_3d")
    path = shard_path(field, 0)
    memory.pipe(f"/bucket/{path}", (large.root / path).read_bytes())
    reader = ShardReader(RemoteRanges(Counted(), "/bucket"), large.layout, size_of(large))
    for key in large:
        row = large.facts(key)["row"]
        assert_same_bits(reader.array(field, row), large.reader.array(field, row))
        box = ((50, 70), (0, 128), (63, 64))
        assert_same_bits(reader.array(field, row, box), large.reader.array(field, row, box))
    assert calls == [1, 1, 1, 1, 1]  # the index once; then the chunks of a sample, which lie side by side
