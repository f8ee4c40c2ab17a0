"""Checksums of raw views, remembered: a file is read again only when its size, times or place have changed."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from scenemill.schemas.errors import Corrupt, SourceError
from scenemill.transforms import publish
from scenemill.transforms.folders import sha256
from scenemill.transforms.rows import read_rows, to_parquet
from scenemill.transforms.sources import Listed, Source, digest_of, raw_files, read_bytes

SUMS: Final = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("key", "fingerprint", "digest", "content")]
    + [pa.field("raw_byte", pa.int64(), nullable=False)]
)


@dataclass(frozen=True)
class Sums:
    """Checksums of one view.

    Attributes:
        fingerprint: over path, size and times of its files: what is compared to know whether to read them again.
        digest: over the bytes of its files.
        content: over what tells views apart (``Source.telling_files``) alone: equal for two copies of one view; "" where one is missing.
        raw_byte: size of its files.
    """

    fingerprint: str
    digest: str
    content: str
    raw_byte: int


def fingerprint_of(source: Source, listed: Listed) -> str:
    """What the file system says of a view's files, as one checksum."""
    parts = []
    for kind, path in raw_files(source, listed).items():
        try:
            status = os.stat(source.root / path)
            parts.append(f"{kind} {path} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}")
        except (OSError, ValueError):
            parts.append(f"{kind} {path} -")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def sums_of(source: Source, listed: Listed) -> Sums:
    """Read a view's files and sum them; one that cannot be read counts as "unreadable", as in ``read_sample``."""
    fingerprint = fingerprint_of(source, listed)
    sums: dict[str, str] = {}
    raw_byte = 0
    for file in source.files:
        try:
            data = read_bytes(source, listed, file)
        except SourceError:
            sums[file.kind] = "unreadable"
            continue
        if data is not None:
            sums[file.kind] = sha256(data)
            raw_byte += len(data)
    same = {kind: sums[kind] for kind in source.telling_files if sums.get(kind, "unreadable") != "unreadable"}
    return Sums(fingerprint, digest_of(sums), digest_of(same) if len(same) == len(source.telling_files) else "", raw_byte)


def sums_tables(source: Source, samples: Sequence[Listed]) -> tuple[pa.Table]:
    """``sums_of`` for some views, as a table: what one worker returns."""
    rows = [(listed.key, *astuple(sums_of(source, listed))) for listed in samples]
    return (pa.Table.from_pylist([dict(zip(SUMS.names, row, strict=True)) for row in rows], schema=SUMS),)


def sums_from(table: pa.Table) -> dict[str, Sums]:
    """Key -> sums, from such a table."""
    columns = [table[name].to_pylist() for name in SUMS.names]
    return {key: Sums(*rest) for key, *rest in zip(*columns, strict=True)}


def _memories(store: Path) -> list[Path]:
    """Files of remembered sums, named by their content; beside all else that depends on time and place."""
    return sorted((store / "runs").glob("sums-*.parquet"))


def _memory_name(data: bytes) -> str:
    return f"sums-{sha256(data)[:16]}.parquet"


def recall(store: Path | None) -> dict[str, Sums]:
    """What earlier runs on a store remembered; a damaged memory is no memory."""
    for path in _memories(store) if store is not None else ():
        try:
            if path.name == _memory_name(path.read_bytes()):
                return sums_from(read_rows(path, SUMS))
        except (Corrupt, OSError):
            continue
    return {}


def remember(store: Path, sums: Mapping[str, Sums]) -> None:
    """Keep sums for the next run, in the place of those kept before."""
    rows = [dict(zip(SUMS.names, (key, *astuple(sums[key])), strict=True)) for key in sorted(sums)]
    data = to_parquet(pa.Table.from_pylist(rows, schema=SUMS))
    path = store / "runs" / _memory_name(data)
    publish.write_whole(path, data)
    for old in _memories(store):
        if old != path:
            publish.remove(old)
    publish.reached("sums written")
