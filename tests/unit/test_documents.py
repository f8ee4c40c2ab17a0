"""What manifests and receipts must say, whoever wrote them: others are refused, with checksums that are right."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from scenemill.schemas.errors import Corrupt
from scenemill.schemas.tables import SAMPLES
from scenemill.transforms.documents import check_manifest, check_receipt
from scenemill.transforms.folders import sha256
from scenemill.transforms.layout import ROOT, Layout, group_document, rows_of_manifest, to_bytes, version_id
from scenemill.transforms.rows import to_parquet
from scenemill.transforms.store import open_store
from scenemill.transforms.verify import verify_store

GOLDEN: Final = Path(__file__).parents[1] / "golden" / "stores" / "front3d"
MANIFEST: Final = json.loads((GOLDEN / ROOT).read_bytes())["attributes"]["scenemill"]
PART: Final = MANIFEST["parts"][0]["id"]
RECEIPT: Final = json.loads((GOLDEN / "parts" / PART / "receipt.json").read_bytes())


def put(document: Any, place: str, value: object) -> Any:
    """A copy of a document with another value at a dotted place."""
    changed = json.loads(json.dumps(document))
    *steps, last = place.split(".")
    held = changed
    for step in steps:
        held = held[int(step) if isinstance(held, list) else step]
    held[int(last) if isinstance(held, list) else last] = value
    return changed


def publish(store: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest that makes sense into a store, its checksums right."""
    layout = Layout.from_manifest(manifest)
    content = {name: value for name, value in manifest.items() if name != "version"}
    data = to_bytes(group_document(layout, rows_of_manifest(layout, manifest), content))
    for path in (ROOT, f"versions/{version_id(content)}.json"):
        (store / path).write_bytes(data)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "store"))


def test_what_writers_wrote_passes() -> None:
    check_manifest(MANIFEST)
    check_receipt(RECEIPT, PART)


WRONG_MANIFESTS: Final[dict[str, tuple[Any, ...]]] = {
    "layout.grid": (-1, 513, 16.0, True, "16", None),
    "layout.image": ([6], [6, 8, 3], [0, 8], [6, 1 << 20], [6, 8.0], "68", 3),
    "layout.samples_per_part": (0, -2, 1 << 20, 2.0),
    "layout.frustum": (None, "x", "../frustum", 1),
    "layout.precision": ("float128", None),
    "layout.source": (3, []),
    "parts": (None, 3, [3], {"a": 3}),
    "parts.0.id": ("..", "../../../../etc", "8F7E0D75F4AFF982", "", 7, None, MANIFEST["parts"][1]["id"]),
    "parts.1.slot": (0, -1, 1 << 40, 1.0, None),
    "parts.0.planned": (3, -1, "2"),
    "parts.0.stored": (3, -1, None),
    "parts.0.receipt_sha256": ("", "../x", None),
    "tables": ({}, [], None),
    "tables.samples.path": ("../secret.parquet", "/etc/passwd", "tables//x", "tables/..", "", None),
    "tables.samples.rows": (-1, "3", 1e9),
    "tables.findings.size_byte": (-1, "3", None),
    "parent": ("../x", 3, []),
    "stored": (None, -1, "3"),
    "slots": (None, -1, True),
    "orientation": (None, 3),
    "voxel_m": ("0.03", [], True),
    "labels": ([3], [{}], [{"id": "1", "name": "a"}]),
}
WRONG_RECEIPTS: Final[dict[str, tuple[Any, ...]]] = {
    "id": ("0" * 16, None),
    "slot": (-1, None, "0", 0.0),
    "samples": ([["a"]], [[1, "b"]], ["ab", 3], None),
    "files": ([], None, {"../x": {}}, {"/x": {}}, {"a//b": {}}, {"depth/c/0/0/0": {}}),
    "stored_byte": (-1, "0"),
    "error_max_voxel": ("0", None),
}


@pytest.mark.parametrize(("place", "value"), [(place, value) for place, held in WRONG_MANIFESTS.items() for value in held])
def test_a_manifest_of_another_form_is_refused(place: str, value: object) -> None:
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
        check_manifest(put(MANIFEST, place, value))


@pytest.mark.parametrize(("place", "value"), [(place, value) for place, held in WRONG_RECEIPTS.items() for value in held])
def test_a_receipt_of_another_form_is_refused(place: str, value: object) -> None:
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
        check_receipt(put(RECEIPT, place, value), PART)


@pytest.mark.parametrize("path", ["../secret.parquet", "/etc/hostname"])
def test_a_forged_manifest_leads_nowhere_else(path: str, store: Path) -> None:
    (store.parent / "secret.parquet").write_bytes((store / MANIFEST["tables"]["samples"]["path"]).read_bytes())
    publish(store, put(MANIFEST, "tables.samples.path", path))
    with pytest.raises(Corrupt, match=r"tables\.samples\.path"):
        open_store(store)


CHANGES: Final[dict[str, Callable[[dict[str, Any]], object]]] = {
    "a file is missing": lambda receipt: receipt["files"].pop("depth/c/0/0/0"),
    "a file too many": lambda receipt: receipt["files"].update({"depth/c/9/0/0": receipt["files"]["depth/c/0/0/0"]}),
    "no checksum": lambda receipt: receipt["files"]["depth/c/0/0/0"].pop("sha256"),
    "a length in words": lambda receipt: receipt["files"]["depth/c/0/0/0"].update(size_byte="228"),
    "another slot": lambda receipt: receipt.update(slot=1),
    "another slot and its files": lambda receipt: receipt.update(
        slot=1, files={path.replace("/c/0/", "/c/1/"): held for path, held in receipt["files"].items()}
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_forged_receipt_is_refused_and_told(change: Callable[[dict[str, Any]], object], store: Path) -> None:
    receipt = json.loads(json.dumps(RECEIPT))
    change(receipt)
    data = to_bytes(receipt)
    (store / "parts" / PART / "receipt.json").write_bytes(data)
    publish(store, put(MANIFEST, "parts.0.receipt_sha256", sha256(data)))
    opened = open_store(store)
    with pytest.raises(Corrupt, match="receipt"):
        opened.read(opened.keys[0])
    (broken,) = verify_store(store).broken
    assert broken.path == f"parts/{PART}/receipt.json"


def test_a_sample_in_a_row_of_no_part_is_refused(store: Path) -> None:
    table = open_store(store).samples
    moved = table.set_column(table.column_names.index("row"), SAMPLES.field("row"), [[0, 1, 700]])
    data = to_parquet(moved)
    path = f"tables/samples-{sha256(data)[:16]}.parquet"
    (store / path).write_bytes(data)
    publish(store, put(MANIFEST, "tables.samples", {"sha256": sha256(data), "size_byte": len(data), "path": path, "rows": 3}))
    with pytest.raises(Corrupt, match="slot 350"):
        open_store(store).read("scene/0002")


@pytest.mark.parametrize("part", ["0" * 16, "../../secret", ""])
def test_a_part_that_no_manifest_names_is_not_looked_for(part: str, store: Path) -> None:
    (store / "secret").mkdir()
    (store / "secret" / "receipt.json").write_text("{}")
    with pytest.raises(Corrupt, match="does not have"):
        open_store(store).receipt(part)


def test_an_array_document_of_brackets_is_broken_and_no_more(store: Path) -> None:
    (store / "depth" / ROOT).write_bytes(b"[" * 100_000)
    assert [broken.path for broken in verify_store(store).broken] == [f"depth/{ROOT}"]


def test_a_frustum_of_another_grid_is_refused(store: Path) -> None:
    publish(store, put(MANIFEST, "layout.grid", 12))
    with pytest.raises(Corrupt, match="a chunk holds 4096 bytes, not 1728"):
        _ = open_store(store).frustum
