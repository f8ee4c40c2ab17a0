"""Checksums of raw views, remembered: a file is read again only when its size, times or place have changed; an object, when its size,
time or tag have."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Final

import pyarrow as pa

from scenemill.schemas.errors import Corrupt, SourceError, TransientError
from scenemill.schemas.places import Place, Remote, Status
from scenemill.schemas.steps import reached
from scenemill.transforms import publish
from scenemill.transforms.folders import sha256
from scenemill.transforms.rows import read_rows, to_parquet
from scenemill.transforms.sources import Listed, Source, digest_of, raw_files, read_bytes

SUMS: Final = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("key", "fingerprint", "digest", "content")]
    + [pa.field("raw_byte", pa.int64(), nullable=False)]
)


_LISTINGS: Final = 8  # folders of one scene lie together


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


class Glance:
    """What is known of raw files without reading them: of a disk, file by file; of an object store, by listing a folder at a time.

    A listing is kept for views of the same scene that follow; make a new one for each pass over a folder.

    Args:
        root: the raw folder.
    """

    def __init__(self, root: Place) -> None:
        self._root = root
        self._listed: OrderedDict[Remote, dict[str, Status]] = OrderedDict()

    def of(self, path: str) -> str:
        """What changes when the file does, as text; "-" where there is none."""
        try:
            if isinstance(self._root, Remote):
                held = self._listing((self._root / path).parent)[path.rpartition("/")[2]]
                return f"{held.st_size} {held.modified} {held.tag}"
            status = os.stat(self._root / path)
            return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
        except TransientError:
            raise
        except (OSError, ValueError, KeyError):
            return "-"

    def _listing(self, folder: Remote) -> dict[str, Status]:
        if folder not in self._listed:
            self._listed[folder] = {path.name: path.stat() for path in folder.iterdir() if path.is_file()}
            while len(self._listed) > _LISTINGS:
                self._listed.popitem(last=False)
        return self._listed[folder]


def fingerprint_of(source: Source, listed: Listed, glance: Glance | None = None) -> str:
    """What the file system or the service says of a view's files, as one checksum; other code of one's own may take other files."""
    glance = glance or Glance(source.root)
    parts = [f"{kind} {path} {glance.of(path)}" for kind, path in raw_files(source, listed).items()]
    own = [f"code {source.digest}"] if source.digest else []
    return hashlib.sha256("\n".join([*parts, *own]).encode()).hexdigest()


def sums_of(source: Source, listed: Listed, glance: Glance | None = None) -> Sums:
    """Read a view's files and sum them; one that cannot be read counts as "unreadable", as in ``read_sample``."""
    fingerprint = fingerprint_of(source, listed, glance)
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
    glance = Glance(source.root)
    rows = [(listed.key, *astuple(sums_of(source, listed, glance))) for listed in samples]
    return (pa.Table.from_pylist([dict(zip(SUMS.names, row, strict=True)) for row in rows], schema=SUMS),)


def sums_from(table: pa.Table) -> dict[str, Sums]:
    """Key -> sums, from such a table."""
    columns = [table[name].to_pylist() for name in SUMS.names]
    return {key: Sums(*rest) for key, *rest in zip(*columns, strict=True)}


def _memories(store: Place) -> list[Place]:
    """Files of remembered sums, named by their content; beside all else that depends on time and place."""
    return sorted((store / "runs").glob("sums-*.parquet"))


def _memory_name(data: bytes) -> str:
    return f"sums-{sha256(data)[:16]}.parquet"


def recall(store: Place | None) -> dict[str, Sums]:
    """What earlier runs on a store remembered; a damaged memory is no memory."""
    for path in _memories(store) if store is not None else ():
        try:
            if path.name == _memory_name(path.read_bytes()):
                return sums_from(read_rows(path, SUMS))
        except (Corrupt, OSError):
            continue
    return {}


def remember(store: Place, sums: Mapping[str, Sums]) -> None:
    """Keep sums for the next run, in the place of those kept before."""
    rows = [dict(zip(SUMS.names, (key, *astuple(sums[key])), strict=True)) for key in sorted(sums)]
    data = to_parquet(pa.Table.from_pylist(rows, schema=SUMS))
    path = store / "runs" / _memory_name(data)
    publish.write_whole(path, data)
    for old in _memories(store):
        if old != path:
            publish.remove(old)
    reached("sums written")
