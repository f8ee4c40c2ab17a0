"""The specification of the store format, held by a reader that was written from it alone."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scenemill import Store, open_store
from scenemill.pipelines.ingest import ingest
from scenemill.schemas.config import IngestConfig
from scenemill.validators.suites import Expected
from tests.unit.stranger import NotWhole, Stranger, name_of

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "stores"
PAGE = ROOT / "docs" / "store-format.md"


@pytest.fixture(scope="module")
def two_versions(front3d_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store of distances in 16 bits, published twice; its versions, oldest first."""
    store = tmp_path_factory.mktemp("stores") / "store"
    versions = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scenemill.pipelines.ingest.expect", lambda *_: Expected(0, 0, ()))  # its pages are in runs/, and take long
        for limit in (3, 5):
            outcome = ingest(IngestConfig("front3d", front3d_world, store, samples_per_part=2, limit=limit, precision="fixed16"))
            assert outcome.version is not None
            versions.append(outcome.version)
    return store, versions


def same(ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    return ours.dtype == theirs.dtype and np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f")


def assert_equal(store: Store, stranger: Stranger) -> None:
    assert store.version == stranger.manifest["version"]
    assert store.keys == list(stranger.samples) and store.keys
    for key in store.keys:
        ours, theirs = store.read(key), stranger.read(key)
        assert set(ours.arrays) == set(theirs)
        assert [name for name in theirs if not same(ours[name], theirs[name])] == []
    ours_frustum, theirs_frustum = store.frustum, stranger.frustum()
    assert (ours_frustum is None) == (theirs_frustum is None)
    assert ours_frustum is None or theirs_frustum is None or same(ours_frustum, theirs_frustum)


@pytest.mark.parametrize("source", ["front3d", "matterport"])
def test_a_stranger_reads_the_stores_of_earlier_versions(source: str) -> None:
    stranger = Stranger(GOLDEN / source)
    assert_equal(open_store(GOLDEN / source), stranger)
    assert stranger.check_all() > 0


def test_a_stranger_reads_every_version_of_a_store_that_grew(two_versions: tuple[Path, list[str]]) -> None:
    root, versions = two_versions
    for version in versions:
        stranger = Stranger(root, version)
        assert_equal(open_store(root, version), stranger)
        assert stranger.check_all() == sum(len(stranger.receipt(part)["files"]) for part in stranger.manifest["parts"])
    assert Stranger(root).manifest["parent"] == versions[0]
    assert len(Stranger(root, versions[0]).samples) == 3 and len(Stranger(root).samples) == 5


def test_ids_of_parts_and_lengths_of_arrays_follow_from_the_specification(
    two_versions: tuple[Path, list[str]],
) -> None:
    stranger = Stranger(two_versions[0])
    for part in stranger.manifest["parts"]:
        assert stranger.part_id(part, {}) == part["id"]
    rows = max(part["slot"] * 2 + part["planned"] for part in stranger.manifest["parts"])
    lengths = {name: document["shape"][0] for name, document in stranger.arrays.items() if name != "frustum"}
    assert set(lengths.values()) == {rows}


def test_a_stranger_notices_a_flipped_bit_in_every_file(two_versions: tuple[Path, list[str]], tmp_path: Path) -> None:
    whole = Stranger(two_versions[0])
    part = whole.manifest["parts"][0]
    receipt = whole.receipt(part)
    named = [*receipt["files"], f"parts/{part['id']}/receipt.json", "frustum/c/0/0/0", "zarr.json"]
    named += [held["path"] for held in whole.manifest["tables"].values()]
    copy = Path(shutil.copytree(two_versions[0], tmp_path / "copy"))
    for name in named:
        before = (copy / name).read_bytes()
        (copy / name).write_bytes(_flipped(before))
        with pytest.raises((NotWhole, ValueError, KeyError)):
            Stranger(copy).check_all()
        (copy / name).write_bytes(before)
    assert Stranger(copy).check_all() == whole.check_all()


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def test_another_format_is_refused(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(GOLDEN / "front3d", tmp_path / "copy"))
    (copy / "zarr.json").write_bytes((copy / "zarr.json").read_bytes().replace(b"scenemill-store/1", b"scenemill-store/2"))
    with pytest.raises(NotWhole, match="format scenemill-store/2"):
        Stranger(copy)


def test_the_examples_of_the_page_have_the_names_it_gives() -> None:
    page = PAGE.read_text()
    part, name = re.search(r'^    (\{"checks":[^\n]*"slot":0\})$.*?`([0-9a-f]{16})`', page, re.MULTILINE | re.DOTALL).groups()  # type: ignore[union-attr]
    assert name_of(json.loads(part)) == name
    example, name = re.search(r'^    (\{"a":1\}) .* ([0-9a-f]{16})$', page, re.MULTILINE).groups()  # type: ignore[union-attr]
    assert name_of(json.loads(example)) == name


@pytest.mark.parametrize("what", ["manifest", "layout", "receipt"])
def test_the_page_names_every_member_of_every_document(what: str, two_versions: tuple[Path, list[str]]) -> None:
    stranger = Stranger(two_versions[0])
    documents = {
        "manifest": stranger.manifest,
        "layout": stranger.manifest["layout"],
        "receipt": stranger.receipt(stranger.manifest["parts"][0]),
    }
    told = {
        name
        for line in PAGE.read_text().splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert set(documents[what]) <= told


def test_the_reader_knows_nothing_of_scenemill() -> None:
    tree = ast.parse((Path(__file__).parent / "stranger.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert ours == {"google_crc32c", "numcodecs", "numpy", "numpy.typing", "pyarrow.parquet"}
