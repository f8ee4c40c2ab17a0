"""Versions: from finished parts to one manifest, the swap that publishes it, and the removal of what no version names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scenemill.schemas.errors import ConfigError, Corrupt, StoreError
from scenemill.schemas.places import Place, Remote
from scenemill.schemas.steps import reached
from scenemill.transforms import publish
from scenemill.transforms.folders import sha256
from scenemill.transforms.layout import (
    FRUSTUM,
    FRUSTUM_BLOSC,
    FRUSTUM_CHUNK,
    ROOT,
    Layout,
    array_document,
    describe,
    frustum_document,
    group_document,
    hash_of,
    rows_of_manifest,
    to_bytes,
)
from scenemill.transforms.object_slots import claim_slots
from scenemill.transforms.parts import PartPlan, Receipt, finished_part, part_folder
from scenemill.transforms.rows import to_parquet
from scenemill.transforms.shards import encode_chunk
from scenemill.transforms.store import Store, history, read_document, version_files


@dataclass(frozen=True)
class Draft:
    """A version not yet published.

    Attributes:
        layout: of the store.
        samples, findings: its tables, in their final order.
        manifest: what it is made of, without the id.
        files: path below the store -> bytes of what belongs to the version as a whole: its tables, and the shared frustum.
    """

    layout: Layout
    samples: pa.Table
    findings: pa.Table
    manifest: Mapping[str, Any]
    files: Mapping[str, bytes]


def encode_frustum(mask: NDArray[np.bool_] | None) -> bytes:
    """A frustum as it is stored; b"" for none."""
    return b"" if mask is None else encode_chunk(np.ascontiguousarray(mask), FRUSTUM_BLOSC)


def draft_version(
    base: Store | None,
    layout: Layout,
    checks: str,
    receipts: Sequence[Receipt],
    store: Place,
    samples: pa.Table,
    findings: pa.Table,
    slots: int,
    frustum: bytes,
) -> Draft:
    """Put a version together.

    Args:
        base: the version it follows.
        layout: of the store.
        checks: version of the checks that judged the samples.
        receipts: of the parts built on top of it.
        store: the folder.
        samples, findings: the tables of the new version.
        slots: number of shards ever given to a part.
        frustum: from ``encode_frustum``.
    """
    tables, files = {}, {FRUSTUM_CHUNK: frustum} if frustum else {}
    for name, table in (("samples", samples), ("findings", findings)):
        data = to_parquet(table)
        checksum = sha256(data)
        path = f"tables/{name}-{checksum[:16]}.parquet"
        files[path] = data
        tables[name] = {"path": path, "sha256": checksum, "size_byte": len(data), "rows": table.num_rows}
    used = set(samples["part"].to_pylist())
    before = [part for part in (base.manifest["parts"] if base else []) if part["id"] in used]
    new = [_part_entry(store, receipt) for receipt in receipts if receipt.id in used]
    parts = sorted(before + new, key=lambda part: int(part["slot"]))
    rejected = {row["key"] for row in findings.select(["key", "rejected"]).to_pylist() if row["rejected"]}
    manifest = {
        **describe(layout),
        "checks": checks,
        "parent": base.version if base else None,
        "parts": parts,
        "slots": slots,
        "tables": tables,
        "stored": samples.num_rows,
        "rejected": len(rejected),
        "error_max_voxel": max([0.0, *samples["geometry_error_max_voxel"].to_pylist()]),
    }
    return Draft(layout, samples, findings, manifest, files)


def _part_entry(store: Place, receipt: Receipt) -> dict[str, Any]:
    checksum = publish.checksum_of(part_folder(store, receipt.id) / "receipt.json")
    return {
        "id": receipt.id,
        "slot": receipt.slot,
        "planned": receipt.planned,
        "stored": receipt.stored,
        "receipt_sha256": checksum,
    }


def publish_version(store: Place, draft: Draft, expected: bytes | None) -> str:
    """Write the version's tables and documents, then swap the root document: from then on readers see it whole.

    Args:
        store: the folder, locked by the caller where it is on a disk.
        draft: the version.
        expected: bytes of the root document the draft was based on; None for none.

    Returns:
        The version's id.

    Raises:
        Conflict: another run published meanwhile.
    """
    rows = rows_of_manifest(draft.layout, draft.manifest)
    document = to_bytes(group_document(draft.layout, rows, draft.manifest))
    version = hash_of(dict(draft.manifest))
    _write_version(store, draft, rows, document, version)
    publish.swap(store / ROOT, document, expected)
    reached("swapped")
    return version


def _write_version(store: Place, draft: Draft, rows: int, document: bytes, version: str) -> None:
    """All of a version's own files but the root document."""
    for path, data in draft.files.items():
        publish.write_whole(store / path, data)
    if draft.layout.frustum:
        publish.write_whole(store / FRUSTUM / ROOT, to_bytes(frustum_document(draft.layout)))
    reached("tables written")
    for field in draft.layout.fields:  # for readers that open one array alone: larger first, so that no published row is cut off
        publish.lengthen(store / field.name / ROOT, to_bytes(array_document(draft.layout, field, rows)))
    reached("array documents written")
    publish.write_whole(store / "versions" / f"{version}.json", document)
    reached("version written")


def restore_documents(store: Place, draft: Draft, version: str) -> None:
    """Write a published version's documents and shared files again, wherever they differ from what was published."""
    rows = rows_of_manifest(draft.layout, draft.manifest)
    document = to_bytes(group_document(draft.layout, rows, draft.manifest))
    _write_version(store, draft, rows, document, version)
    publish.write_whole(store / ROOT, document)


def restore_root(store: Place) -> None:
    """Put the newest readable version's document in the place of a root document that cannot be read.

    Raises:
        Corrupt: there is no readable version.
    """
    readable = {}
    for path in version_files(store):
        try:
            manifest = read_document(path)["attributes"]["scenemill"]
        except StoreError:
            continue
        readable[manifest["version"]] = manifest
    parents = {manifest["parent"] for manifest in readable.values()}
    newest = max(
        (manifest for name, manifest in readable.items() if name not in parents), key=lambda held: held["slots"], default=None
    )
    if newest is None:
        raise Corrupt(f"store {store}: neither its root document nor any version can be read; ingest into a new store")
    publish.write_whole(store / ROOT, (store / "versions" / f"{newest['version']}.json").read_bytes())


def prepare(store: Place, base: Store | None, planned: Iterable[PartPlan]) -> list[Receipt]:
    """Make room for a run: keep finished parts of this very plan, remove what killed runs left half done.

    In an object store nothing is removed, as another run may be at it: the plan's slots are claimed instead.

    Returns:
        Receipts of the planned parts that are finished already.

    Raises:
        Conflict: another run has claimed a slot since the plan was made.
    """
    plan = {part.id: part for part in planned}
    if isinstance(store, Remote):
        claim_slots(store, plan.values())
        return [receipt for part in plan if (receipt := finished_part(store, part)) is not None]
    _empty(store / publish.WORK)
    for document in store.glob(f"*/{ROOT}") if base is None else ():
        publish.remove(document)
    for folder in _unnamed_parts(store, base, plan):
        publish.remove(folder)
    receipts = {part: receipt for part in plan if (receipt := finished_part(store, part)) is not None}
    for part in set(plan) - set(receipts):
        publish.remove(part_folder(store, part))
    whole = {receipt.slot for receipt in receipts.values()}
    first_free = base.manifest["slots"] if base else 0
    for slot_folder in _slot_folders(store):
        slot = int(slot_folder.name)
        if slot >= first_free and slot not in whole:
            publish.remove(slot_folder)
    return [receipts[part] for part in plan if part in receipts]


def _unnamed_parts(store: Path, base: Store | None, planned: Iterable[str]) -> list[Path]:
    """Folders of parts that neither a version nor the plan names; none where a version cannot be read to say what it names."""
    named = {part["id"] for part in base.manifest["parts"]} if base else set()
    for path in version_files(store):
        try:
            named |= {part["id"] for part in read_document(path)["attributes"]["scenemill"]["parts"]}
        except StoreError:
            return []
    return [folder for folder in _folders(store / "parts") if folder.name not in named | set(planned)]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _slot_folders(store: Path) -> list[Path]:
    """Every ``FIELD/c/SLOT`` folder of the store."""
    return [path for chunks in sorted(store.glob("*/c")) for path in _folders(chunks) if path.name.isdigit()]


def _empty(folder: Path) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        publish.remove(path)


@dataclass(frozen=True)
class Cleaned:
    """What a clean-up removed."""

    versions: int
    paths: tuple[str, ...]
    freed_byte: int


def clean(store: Place, keep_versions: int | None = None) -> Cleaned:
    """Remove what no version names: leftovers of killed runs, and, if asked, versions older than the newest ``keep_versions``.

    Args:
        store: the folder, locked by the caller.
        keep_versions: how many of the newest versions to keep; None for all.

    Raises:
        NotPublished: nothing is published.
        Corrupt: a version's document is damaged; then nothing is removed.
        ConfigError: a store elsewhere: another run may be writing what no version names yet.
    """
    if isinstance(store, Remote):
        raise ConfigError(f"store {store}: only stores on a disk are cleaned, where a lock keeps other runs away")
    kept = history(store)[:keep_versions]
    named = {"zarr.json", *(f"versions/{version.version}.json" for version in kept)}
    for version in kept:
        named |= {table["path"] for table in version.manifest["tables"].values()}
        for part in version.manifest["parts"]:
            named |= {f"parts/{part['id']}/receipt.json", *version.receipt(part["id"]).files}
    current = kept[0]
    rows = rows_of_manifest(current.layout, current.manifest)
    for field in current.layout.fields:
        publish.write_whole(store / field.name / ROOT, to_bytes(array_document(current.layout, field, rows)))
        named.add(f"{field.name}/{ROOT}")
    if current.layout.frustum:
        named |= {FRUSTUM_CHUNK, f"{FRUSTUM}/{ROOT}"}
    before = {path.stem for path in version_files(store)}
    freed, removed = 0, []
    for folder in ("versions", "tables", "parts", FRUSTUM, publish.WORK, *(field.name for field in current.layout.fields)):
        for path in sorted((store / folder).rglob("*")):
            relative = path.relative_to(store).as_posix()
            if path.is_file() and relative not in named:
                freed += publish.remove(path)
                removed.append(relative)
        _remove_empty(store / folder)
    return Cleaned(len(before - {version.version for version in kept}), tuple(removed), freed)


def _remove_empty(folder: Path) -> None:
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        if not any(path.iterdir()):
            publish.remove(path)
