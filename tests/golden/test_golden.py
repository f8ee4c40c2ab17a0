"""Stores written by earlier versions open, and hold what they held: ``stores/`` is kept in the repository."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

sys.path.insert(0, str(Path(__file__).parent))
from small import IMAGE, SAMPLES, SOURCES, STORES, frustum, values, write_store

from scenemill import open_store
from scenemill.schemas.errors import WrongVersion
from scenemill.transforms.layout import ROOT
from scenemill.transforms.verify import verify_store

VERSIONS = {"front3d": "358cc04d5df9eb5f", "matterport": "830e2ed006a76d97"}


@pytest.mark.parametrize("source", SOURCES)
def test_a_kept_store_opens_with_its_values(source: str) -> None:
    store = open_store(STORES / source)
    assert store.version == VERSIONS[source]
    assert store.keys == [f"scene/{number:04}" for number in range(SAMPLES)]
    for number, key in enumerate(store.keys):
        read = store.read(key)
        assert ("world_from_camera" in read or "room_mask" in read) == (number < SAMPLES - 1)
        for name, array in read.arrays.items():
            np.testing.assert_array_equal(array, values(source, name, number), err_msg=name)
    expected = frustum(source)
    assert (store.frustum is None) if expected is None else np.array_equal(store.frustum, expected)
    assert store.findings["key"].to_pylist() == [f"scene/{SAMPLES:04}"]


@pytest.mark.parametrize("source", SOURCES)
def test_plain_zarr_reads_a_kept_store(source: str) -> None:
    group = zarr.open_group(STORES / source, mode="r")
    assert group["rgb"].shape == (SAMPLES + 1, *IMAGE, 3)
    for number in range(SAMPLES):
        np.testing.assert_array_equal(group["geometry"][number], values(source, "geometry", number))


@pytest.mark.parametrize("source", SOURCES)
def test_a_kept_store_verifies(source: str) -> None:
    verified = verify_store(STORES / source)
    assert (verified.broken, verified.parts) == ((), 2)


@pytest.mark.parametrize("source", SOURCES)
def test_todays_writer_writes_the_kept_array_documents(source: str, tmp_path: Path) -> None:
    write_store(source, tmp_path / "store")
    kept = {path.parent.name: path.read_bytes() for path in (STORES / source).glob(f"*/{ROOT}")}
    assert {path.parent.name: path.read_bytes() for path in (tmp_path / "store").glob(f"*/{ROOT}")} == kept


def test_a_store_of_another_format_says_what_to_do(tmp_path: Path) -> None:
    from scenemill.transforms.layout import to_bytes, version_id

    document = json.loads((STORES / "front3d" / ROOT).read_bytes())
    manifest = document["attributes"]["scenemill"]
    manifest["format"] = "scenemill-store/0"
    manifest["version"] = version_id(manifest)
    (tmp_path / ROOT).write_bytes(to_bytes(document))
    with pytest.raises(WrongVersion, match="ingest the raw folder into a new store"):
        open_store(tmp_path)
