"""Reading a store again, all of it, against its checksums."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scenemill.schemas.errors import Corrupt, StoreError
from scenemill.schemas.places import Place
from scenemill.transforms import publish
from scenemill.transforms.layout import (
    FRUSTUM,
    FRUSTUM_CHUNK,
    ROOT,
    array_document,
    frustum_document,
    group_document,
    rows_of_manifest,
    to_bytes,
)
from scenemill.transforms.parts import read_part_tables
from scenemill.transforms.store import Store, open_store


@dataclass(frozen=True)
class Broken:
    """One thing of a store that is not as it was published.

    Attributes:
        part: id of the part, or "" for what belongs to none.
        path: below the store.
        problem: in words.
        keys: samples that cannot be trusted for it.
    """

    part: str
    path: str
    problem: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verified:
    """What a verification saw.

    Attributes:
        versions: versions read.
        parts, files, size_byte: read again and compared.
        broken: everything that differs.
    """

    versions: int
    parts: int
    files: int
    size_byte: int
    broken: tuple[Broken, ...]


def verify_store(root: Place, on_part: Callable[[int, int], None] = lambda done, total: None) -> Verified:
    """Compare every file that a version names with its checksum.

    Args:
        root: the store.
        on_part: called with (parts done, parts in all).

    Raises:
        NotPublished: nothing is published.
        Corrupt: the newest manifest itself cannot be read.
    """
    versions, broken = _lineage(root)
    files = size_byte = 0
    for version in versions:
        broken += _check_documents(version, newest=version is versions[0])
        files += 1
    parts = {part["id"]: version for version in reversed(versions) for part in version.manifest["parts"]}
    for done, (part, version) in enumerate(sorted(parts.items()), 1):
        found, read_files, read_byte = _check_part(version, part)
        broken += found
        files, size_byte = files + read_files, size_byte + read_byte
        on_part(done, len(parts))
    return Verified(len(versions), len(parts), files, size_byte, tuple(broken))


def _lineage(root: Place) -> tuple[list[Store], list[Broken]]:
    """The readable versions, newest first, and the ancestor that cannot be read, if one cannot."""
    versions = [open_store(root)]
    while (parent := versions[-1].manifest["parent"]) is not None and (root / "versions" / f"{parent}.json").is_file():
        try:
            versions.append(open_store(root, parent))
        except StoreError as error:
            return versions, [Broken("", f"versions/{parent}.json", str(error))]
    return versions, []


def _check_documents(version: Store, *, newest: bool) -> list[Broken]:
    root, manifest = version.root, version.manifest
    rows = rows_of_manifest(version.layout, manifest)
    expected = to_bytes(group_document(version.layout, rows, version.content))
    documents = {f"versions/{version.version}.json": expected}
    if newest:
        documents[ROOT] = expected
    broken = [Broken("", path, _difference(root / path)) for path, data in documents.items() if _read(root / path) != data]
    for field in version.layout.fields if newest else ():
        path = f"{field.name}/{ROOT}"
        if not _is_document(_read(root / path), array_document(version.layout, field, rows)):
            broken.append(Broken("", path, _difference(root / path)))
    if (checksum := version.layout.frustum) and not (
        (root / FRUSTUM_CHUNK).is_file() and publish.checksum_of(root / FRUSTUM_CHUNK) == checksum
    ):
        broken.append(Broken("", FRUSTUM_CHUNK, _difference(root / FRUSTUM_CHUNK)))
    if version.layout.frustum and _read(root / FRUSTUM / ROOT) != to_bytes(frustum_document(version.layout)):
        broken.append(Broken("", f"{FRUSTUM}/{ROOT}", _difference(root / FRUSTUM / ROOT)))
    for held in manifest["tables"].values():
        path = root / held["path"]
        if not path.is_file() or publish.checksum_of(path) != held["sha256"]:
            broken.append(Broken("", held["path"], _difference(path)))
    if broken:
        return broken
    if version.samples.num_rows != manifest["stored"] or len(set(version.keys)) != manifest["stored"]:
        broken.append(
            Broken(
                "",
                manifest["tables"]["samples"]["path"],
                f"holds {version.samples.num_rows} rows, the manifest says {manifest['stored']}",
            )
        )
    return broken


def _check_part(version: Store, part: str) -> tuple[list[Broken], int, int]:
    try:
        receipt = version.receipt(part)
    except StoreError as error:
        return [Broken(part, f"parts/{part}/receipt.json", str(error), _keys_of(version, part))], 1, 0
    keys = tuple(key for key, _ in receipt.samples)
    broken = []
    for path, held in receipt.files.items():
        file = version.root / path
        if not file.is_file() or publish.checksum_of(file) != held["sha256"]:
            broken.append(Broken(part, path, _difference(file, held["size_byte"]), keys))
    if not broken:
        try:
            samples, _ = read_part_tables(version.root, receipt)
            if samples.num_rows != receipt.stored or receipt.stored + receipt.rejected != receipt.planned:
                broken.append(
                    Broken(part, f"parts/{part}/samples.parquet", f"{samples.num_rows} rows, receipt says {receipt.stored}", keys)
                )
        except Corrupt as error:
            broken.append(Broken(part, f"parts/{part}", str(error), keys))
    return broken, len(receipt.files) + 1, sum(held["size_byte"] for held in receipt.files.values())


def _keys_of(version: Store, part: str) -> tuple[str, ...]:
    try:
        return tuple(row["key"] for row in version.samples.select(["key", "part"]).to_pylist() if row["part"] == part)
    except Corrupt:
        return ()


def _difference(path: Place, size_byte: int | None = None) -> str:
    if not path.is_file():
        return "missing"
    found = path.stat().st_size
    return f"{found} bytes instead of {size_byte}" if size_byte not in (None, found) else "other bytes than published"


def _is_document(data: bytes | None, expected: dict[str, Any]) -> bool:
    """Whether an array's own document is the published one; a run under way, or killed, may have made it longer."""
    try:
        found = json.loads(data or b"")
        rows = found["shape"][0]
        return bool(rows >= expected["shape"][0] and {**found, "shape": [expected["shape"][0], *found["shape"][1:]]} == expected)
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


def _read(path: Place) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
