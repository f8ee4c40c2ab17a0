"""Every kind of stored file, damaged: noticed, named, never read as other values, and made whole again."""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest

from scenemill.schemas.errors import Corrupt, NotPublished, StoreError
from scenemill.schemas.sample import Sample
from scenemill.transforms.store import Store, history, open_store
from scenemill.transforms.verify import Broken, verify_store

if TYPE_CHECKING:
    from tests.faults.conftest import Mill

Change = Callable[[bytes], bytes | None]


def flip(place: float) -> Change:
    """Flip a bit at a share of the file's length; 1.0 is the last byte."""

    def change(data: bytes) -> bytes:
        position = min(len(data) - 1, int(place * len(data)))
        return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]

    return change


CHANGES: Final[dict[str, Change]] = {
    "first byte": flip(0.0),
    "byte in the middle": flip(0.5),
    "byte of the index": lambda data: data[:-12] + bytes([data[-12] ^ 1]) + data[-11:],
    "last byte": flip(1.0),
    "truncated": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "empty": lambda data: b"",
    "one byte more": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
    "deleted": lambda data: None,
}


def first_part(store: Path) -> str:
    """Id of the part that all versions share."""
    return str(history(store)[-1].manifest["parts"][0]["id"])


KINDS: Final[dict[str, Callable[[Path], str]]] = {
    "root document": lambda store: "zarr.json",
    "version document": lambda store: f"versions/{open_store(store).version}.json",
    "older version document": lambda store: f"versions/{open_store(store).manifest['parent']}.json",
    "array document": lambda store: "depth/zarr.json",
    "frustum document": lambda store: "frustum/zarr.json",
    "frustum": lambda store: "frustum/c/0/0/0",
    "shard of an image": lambda store: "rgb/c/0/0/0/0",
    "shard of labels": lambda store: "semantic_3d/c/0/0/0/0",
    "shard of a volume": lambda store: "geometry/c/1/0/0/0",
    "shard of a matrix": lambda store: "world_from_camera/c/1/0/0",
    "receipt": lambda store: f"parts/{first_part(store)}/receipt.json",
    "samples of a part": lambda store: f"parts/{first_part(store)}/samples.parquet",
    "findings of a part": lambda store: f"parts/{first_part(store)}/findings.parquet",
    "samples table": lambda store: str(open_store(store).manifest["tables"]["samples"]["path"]),
    "findings table": lambda store: str(open_store(store).manifest["tables"]["findings"]["path"]),
}
IN_A_PART: Final = ("shard of an image", "shard of labels", "shard of a volume", "shard of a matrix", "receipt")


@pytest.fixture(scope="module")
def victim(grown_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two versions whose files a test may damage if it puts them back."""
    return Path(shutil.copytree(grown_store, tmp_path_factory.mktemp("victims") / "store"))


@pytest.fixture(scope="module")
def whole(grown_store: Path) -> dict[str, Sample]:
    store = open_store(grown_store)
    return {key: store.read(key) for key in store}


@contextmanager
def damaged(path: Path, change: Change) -> Iterator[None]:
    data = path.read_bytes()
    apply(path, change)
    try:
        yield
    finally:
        path.write_bytes(data)


def apply(path: Path, change: Change) -> None:
    changed = change(path.read_bytes())
    if changed is None:
        path.unlink()
    else:
        assert changed != path.read_bytes()
        path.write_bytes(changed)


def broken_in(store: Path) -> list[Broken]:
    """What a verification names; a root document that cannot be opened at all is named by an error."""
    try:
        return list(verify_store(store).broken)
    except (Corrupt, NotPublished) as error:
        named = "zarr.json" if f"{store}/zarr.json" in str(error) or isinstance(error, NotPublished) else ""
        return [Broken("", named, str(error))]


def assert_never_other_values(store: Path, whole: dict[str, Sample]) -> None:
    """Read all there is: each sample right to the bit, or an error of the store."""
    for key, sample in whole.items():
        try:
            opened = open_store(store)
            read, frustum = opened.read(key), opened.frustum
        except StoreError:
            continue
        assert read == sample
        assert read.facts == sample.facts
        assert frustum is not None and frustum.any()


NO_DAMAGE: Final = {
    ("array document", "one byte short"): "the line's end says nothing",
    ("frustum document", "one byte short"): "the line's end says nothing",
    ("older version document", "deleted"): "old versions may be removed",
}
DAMAGES: Final = [(kind, change) for kind in KINDS for change in CHANGES if (kind, change) not in NO_DAMAGE]


@pytest.mark.parametrize(("kind", "change"), DAMAGES)
def test_damage_is_noticed_and_never_read_as_other_values(kind: str, change: str, victim: Path, whole: dict[str, Sample]) -> None:
    path = KINDS[kind](victim)
    with damaged(victim / path, CHANGES[change]):
        found = broken_in(victim)
        assert path in [broken.path for broken in found]
        if kind in IN_A_PART:
            (named,) = [broken for broken in found if broken.path == path]
            assert named.part and named.keys
        assert_never_other_values(victim, whole)
    assert broken_in(victim) == []


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 20))])
@pytest.mark.parametrize("kind", KINDS)
def test_any_flipped_bit_is_noticed(kind: str, seed: int, victim: Path, whole: dict[str, Sample]) -> None:
    rng = random.Random(f"{kind} {seed}")
    path = KINDS[kind](victim)
    for _ in range(4):
        with damaged(victim / path, flip(rng.random())):
            assert path in [broken.path for broken in broken_in(victim)]
            assert_never_other_values(victim, whole)


def test_shards_in_each_others_place_are_noticed(victim: Path) -> None:
    paths = [f"rgb/c/{slot}/0/0/0" for slot in (0, 1)]
    one, other = ((victim / path).read_bytes() for path in paths)
    with damaged(victim / paths[0], lambda data: other), damaged(victim / paths[1], lambda data: one):
        assert {broken.path for broken in broken_in(victim)} == set(paths)


def test_error_of_a_damaged_shard_names_part_and_path(victim: Path, whole: dict[str, Sample]) -> None:
    path = KINDS["shard of an image"](victim)
    key = next(key for key, sample in whole.items() if sample.facts["row"] == 0)
    for change in (CHANGES["one byte short"], CHANGES["deleted"], CHANGES["first byte"]):
        with damaged(victim / path, change), pytest.raises(Corrupt, match=path) as caught:
            open_store(victim).read(key)
        assert first_part(victim) in str(caught.value)


def newest_broken(store: Path) -> list[Broken]:
    """What is broken of the newest version; older ones may name parts that are lost."""
    version = open_store(store)
    parts = {part["id"] for part in version.manifest["parts"]}
    documents = {"zarr.json", "frustum/zarr.json", "frustum/c/0/0/0", f"versions/{version.version}.json"}
    documents |= {table["path"] for table in version.manifest["tables"].values()}
    documents |= {f"{field.name}/zarr.json" for field in version.layout.fields}
    return [broken for broken in verify_store(store).broken if broken.part in parts or broken.path in documents]


def arrays_of(store: Store) -> dict[str, dict[str, Any]]:
    return {key: dict(store.read(key).arrays) for key in store}


REPAIRS: Final = [(kind, "byte in the middle") for kind in KINDS] + [
    ("root document", "empty"),
    ("shard of a volume", "deleted"),
    ("receipt", "deleted"),
    ("samples table", "deleted"),
    ("frustum", "deleted"),
    ("version document", "deleted"),
    ("array document", "deleted"),
    ("samples of a part", "deleted"),
]


@pytest.mark.parametrize(("kind", "change"), REPAIRS)
def test_repair_makes_the_newest_version_whole(
    kind: str, change: str, mill: "Mill", front3d_world: Path, grown_store: Path, whole: dict[str, Sample], tmp_path: Path
) -> None:
    store = Path(shutil.copytree(grown_store, tmp_path / "store"))
    apply(store / KINDS[kind](store), CHANGES[change])
    done = mill.ingest(front3d_world, store, "--repair")
    assert done.code == 0, done.said
    assert newest_broken(store) == []
    repaired = open_store(store)
    assert repaired.keys == sorted(whole)
    for key, arrays in arrays_of(repaired).items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, whole[key][name])


def test_repair_of_a_whole_store_changes_nothing(mill: "Mill", front3d_world: Path, grown_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(grown_store, tmp_path / "store"))
    done = mill.ingest(front3d_world, store, "--repair")
    assert done.code == 0, done.said
    assert mill.sums_of(store) == mill.sums_of(grown_store)


@pytest.mark.full
def test_damaged_memory_of_sums_is_no_memory(mill: "Mill", front3d_world: Path, grown_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(grown_store, tmp_path / "store"))
    for change in CHANGES.values():
        apply(next((store / "runs").glob("sums-*.parquet")), change)
        done = mill.ingest(front3d_world, store)
        assert done.code == 0, done.said
        assert mill.sums_of(store) == mill.sums_of(grown_store)
