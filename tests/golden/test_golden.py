"""Stores written by earlier versions open, and hold what they held: ``stores/`` is kept in the repository.

To write them anew, on purpose: python tests/golden/test_golden.py, and take over the versions it prints.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr
from numpy.typing import NDArray

from scenemill import open_store
from scenemill.schemas.errors import WrongVersion
from scenemill.schemas.fields import fields_of
from scenemill.schemas.sample import Sample
from scenemill.schemas.tables import FINDINGS, Finding
from scenemill.transforms import publish
from scenemill.transforms.folders import sha256
from scenemill.transforms.layout import ROOT, Layout, to_bytes, version_id
from scenemill.transforms.parts import PartWriter, Planned, plan_parts, read_part_tables
from scenemill.transforms.sources import Listed
from scenemill.transforms.verify import verify_store
from scenemill.transforms.versions import draft_version, encode_frustum, publish_version

STORES = Path(__file__).parent / "stores"
GRID, IMAGE, SAMPLES = 16, (6, 8), 3
SOURCES = ("front3d", "matterport")


def values(source: str, name: str, number: int) -> NDArray[Any]:
    """Field ``name`` of sample ``number``: counted along the axes, so that a swapped axis or a wrong row shows."""
    field = next(field for field in fields_of(source) if field.name == name)
    shape = field.shape(GRID, IMAGE)
    counted = sum((axis + 2) * index for axis, index in enumerate(np.indices(shape))) + 7 * number
    if name == "geometry":
        distance = (counted % 29).astype(np.float32) * np.float32(0.37)
        return np.where(counted % 3 == 0, distance, np.float32(field.fill)).astype(np.float32)
    if field.dtype == "bool":
        return np.asarray(counted % 2 == 0)
    return np.asarray(counted % 251).astype(field.dtype)


def frustum(source: str) -> NDArray[np.bool_] | None:
    """The mask that the small 3D-Front store shares."""
    return np.indices((GRID,) * 3).sum(axis=0) % 2 == 0 if source == "front3d" else None


def sample(source: str, number: int, camera: NDArray[np.float64] | None = None) -> tuple[Sample, dict[str, Any]]:
    """Sample ``number`` and its facts; the last one lacks its optional field. With the matrix of a camera in place of counted numbers."""
    fields = [field for field in fields_of(source) if field.required or number < SAMPLES - 1]
    arrays = {field.name: values(source, field.name, number) for field in fields}
    arrays |= {} if camera is None else {"intrinsics": camera}
    files = [{"kind": "rgb", "path": f"data/scene/rgb_{number:04}.png", "size_byte": 10, "sha256": "0" * 64, "fields": ["rgb"]}]
    facts: dict[str, Any] = {
        "fields": list(arrays),
        "grid": GRID,
        "image_height_pixel": IMAGE[0],
        "image_width_pixel": IMAGE[1],
        "intrinsics": arrays["intrinsics"].ravel().tolist(),
        "geometry_float32_exact": True,
        **{name: [] for name in ("classes_2d", "classes_3d", "instances_2d", "instances_3d")},
        **dict.fromkeys(("things_2d", "things_3d", "voxels_observed", "voxels_occupied", "voxels_labelled"), number),
        **dict.fromkeys(
            ("depth_min_m", "depth_max_m", "depth_valid_share", "geometry_min_voxel", "geometry_max_voxel"), number / 4
        ),
        **dict.fromkeys(("depth_on_surface_share", "labels_agree_share"), 1.0),
    }
    return Sample(f"scene/{number:04}", arrays, {"digest": f"{number:064}", "files": files, "raw_byte": 10}), facts


def write_store(source: str, store: Path, camera: NDArray[np.float64] | None = None) -> str:
    """Write and publish the small store of a source: two parts, three samples, one more rejected.

    Args:
        source: whose form it has.
        store: its folder.
        camera: (4, 4), of every sample; None for counted numbers, which the kept stores hold.

    Returns:
        The version's id.
    """
    mask = encode_frustum(frustum(source))
    layout = Layout(source, GRID, IMAGE, 2, "float32", sha256(mask) if mask else "")
    planned = [Planned(Listed(f"scene/{number:04}", ("train",)), f"{number:064}") for number in range(SAMPLES + 1)]
    with publish.locked(store):
        receipts = []
        for part in plan_parts(layout, planned, 0, "golden"):
            with PartWriter(store, layout, part) as writer:
                for position, held in enumerate(part.samples):
                    number = int(held.listed.key[-4:])
                    if number < SAMPLES:
                        made, facts = sample(source, number, camera)
                        writer.append(position, made, facts, [])
                    else:
                        bad = Sample(held.listed.key, {}, {"digest": held.digest, "raw_byte": 5, "files": []})
                        writer.reject(bad, [Finding("presence", "depth", "error", "no such file", "depth_0003.exr")])
                receipts.append(writer.finish())
        tables = [read_part_tables(store, receipt) for receipt in receipts]
        samples = pa.concat_tables([table for table, _ in tables])
        findings = pa.concat_tables([FINDINGS.empty_table(), *(table for _, table in tables)])
        draft = draft_version(None, layout, "golden", receipts, store, samples, findings, 2, mask)
        return publish_version(store, draft, None)


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
    held, expected = store.frustum, frustum(source)
    assert (held is None) == (expected is None)
    assert held is None or expected is None or np.array_equal(held, expected)
    assert store.findings["key"].to_pylist() == [f"scene/{SAMPLES:04}"]


@pytest.mark.parametrize("source", SOURCES)
def test_plain_zarr_reads_a_kept_store(source: str) -> None:
    group = zarr.open_group(STORES / source, mode="r")
    assert np.asarray(group["rgb"]).shape == (SAMPLES + 1, *IMAGE, 3)
    geometry = np.asarray(group["geometry"])
    for number in range(SAMPLES):
        np.testing.assert_array_equal(geometry[number], values(source, "geometry", number))


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
    document = json.loads((STORES / "front3d" / ROOT).read_bytes())
    manifest = document["attributes"]["scenemill"]
    manifest["format"] = "scenemill-store/0"
    manifest["version"] = version_id(manifest)
    (tmp_path / ROOT).write_bytes(to_bytes(document))
    with pytest.raises(WrongVersion, match="ingest the raw folder into a new store"):
        open_store(tmp_path)


if __name__ == "__main__":
    shutil.rmtree(STORES, ignore_errors=True)
    for name in SOURCES:
        print(name, write_store(name, STORES / name), file=sys.stderr)
        shutil.rmtree(STORES / name / publish.WORK)
