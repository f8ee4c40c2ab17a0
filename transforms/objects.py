"""Folders and files in object stores, ``s3://bucket/key`` and ``gs://bucket/key``, with the names that ``pathlib`` has for the same.

Writes are conditional, and so safe to repeat: an object is created where none is, or swapped against the very bytes that were seen.
The services apply the condition as one step: of several writers, one wins. Source: conditional writes of Amazon S3 (``If-None-Match``
and ``If-Match``), request preconditions of Google Cloud Storage (``x-goog-if-generation-match``).
"""

import hashlib
import mmap
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from scenemill.schemas.errors import ConfigError, Conflict
from scenemill.schemas.places import NO_CREDENTIALS, Place, Remote, Status, has_credentials
from scenemill.transforms.object_clients import SCHEMES, call, client

if TYPE_CHECKING:
    from obstore.store import GCSStore, S3Store

_URI: Final = re.compile(r"(\w[\w+.-]*)://([^/]*)/*(.*)\Z", re.DOTALL)
_TAKEN_FOR_PATHS: Final = tuple((f"{scheme}:",) for scheme in SCHEMES)
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]\Z")
_ODD: Final = re.compile(r"[\\%#?*\[\]{}|^`<>\"]")  # mean something to shells, addresses or the library
_KEY_BYTE: Final = 1024  # of both services
_ONE_PUT_BYTE: Final = 5 << 30  # of S3: the largest object that one conditional write can carry
_PAGE: Final = 1000  # of both services: the most keys in one answer
_FOLDER: Final = Status(-1, "", 0)

_T = TypeVar("_T")


def place_of(uri: str | Place) -> Place:
    """What a URI or a path names; a URI that was taken for a path of folders is a URI again.

    Raises:
        ConfigError: another scheme, or a bucket or key that is none.

    >>> place_of("s3://bucket/a/b/"), str(place_of("s3://bucket/a/b/") / "c")
    (ObjectPath(scheme='s3', bucket='bucket', key='a/b'), 's3://bucket/a/b/c')
    >>> place_of("/data/a")
    PosixPath('/data/a')
    """
    if isinstance(uri, Path) and uri.parts[:1] in _TAKEN_FOR_PATHS:
        uri = "://".join(str(uri).split(":/", 1))
    if not isinstance(uri, str):
        return uri
    match = _URI.match(uri)
    if match is None:
        return Path(uri)
    scheme, bucket, key = match.groups()
    if has_credentials(uri):
        raise ConfigError(f"{scheme}://{bucket.rpartition('@')[2][:80]}: {NO_CREDENTIALS}")
    if scheme not in SCHEMES or not _BUCKET.match(bucket):
        raise ConfigError(
            f"{scheme}://{bucket[:80]!r}: give a folder, or {' or '.join(f'{known}://BUCKET/KEY' for known in SCHEMES)}"
        )
    return _checked(scheme, bucket, key.rstrip("/"))


@dataclass(frozen=True)
class ObjectPath(Remote):
    """An object, or all objects below a prefix.

    Attributes:
        scheme: "s3" or "gs".
        bucket: its name.
        key: of the object, or the prefix without its last slash; "" for the whole bucket. Checked where it comes from us (``place_of``,
            ``/``); what a listing tells is taken as it is.
    """

    scheme: str
    bucket: str
    key: str
    _listed: Status | None = field(default=None, compare=False, repr=False)  # what a listing told of it

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}"

    def __lt__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and (self.scheme, self.bucket, self.key) < (other.scheme, other.bucket, other.key)

    def __truediv__(self, below: str) -> "ObjectPath":
        """An object below; ConfigError for a name with "..", empty parts, or characters that mean something else elsewhere."""
        return _checked(self.scheme, self.bucket, f"{self.key}/{below}" if self.key else below)

    @property
    def name(self) -> str:
        """The last part of the key; of a whole bucket, its name."""
        return self.key.rpartition("/")[2] or self.bucket

    @property
    def parent(self) -> "ObjectPath":
        """The prefix it is in."""
        return ObjectPath(self.scheme, self.bucket, self.key.rpartition("/")[0])

    def call(self, function: Callable[..., _T], *given: Any, **named: Any) -> _T:
        """Call a function of obstore with this object's connection and key; errors as in ``object_clients.call``."""
        return call(str(self), function, client(self.scheme, self.bucket), self.key, *given, **named)

    @property
    def client(self) -> "S3Store | GCSStore":
        """A connection that sees the objects below this prefix alone, and their keys without it: for Zarr."""
        return client(self.scheme, self.bucket, self.key)

    def is_file(self) -> bool:
        """Whether there is an object of this key."""
        if self._listed is not None:
            return self._listed != _FOLDER
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether there is an object below this prefix."""
        return self._listed == _FOLDER or (self._listed is None and next(self._below(), None) is not None)

    def stat(self) -> Status:
        """Size, tag and time of the object: of now, or of when it was listed."""
        import obstore

        if self._listed is not None and self._listed != _FOLDER:
            return self._listed
        return _status(self.call(obstore.head))

    def read_bytes(self) -> bytes:
        """All of the object."""
        import obstore

        return bytes(self.call(_whole, obstore.get))

    def iterdir(self) -> Iterator["ObjectPath"]:
        """The prefixes and objects one level below, with what the listing says of them."""
        import obstore

        listing = self.call(lambda store, key: obstore.list_with_delimiter(store, key or None))
        for prefix in listing["common_prefixes"]:
            yield self._sibling(str(prefix).rstrip("/"), _FOLDER)
        for held in listing["objects"]:
            if held["path"] != self.key:  # an empty object that consoles make to show a folder
                yield self._sibling(str(held["path"]), _status(held))

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """As ``Remote.glob`` says; every object below is listed where the pattern has several parts."""
        wanted = pattern.split("/")
        for path in self.iterdir() if len(wanted) == 1 else self._below():
            parts = path.key[len(self.key) :].strip("/").split("/")
            if len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted)) and path.is_file():
                yield path

    def walk(self) -> Iterator["ObjectPath"]:
        """Every object below, but for the empty ones that consoles make to show a folder."""
        return (path for path in self._below() if not path.key.endswith("/"))

    def below(self, folder: Remote) -> str:
        """The key without that of a prefix it is below."""
        return str(self).removeprefix(f"{str(folder).rstrip('/')}/")

    def _below(self) -> Iterator["ObjectPath"]:
        """Every object below, in the order of keys."""
        import obstore

        last: str | None = None
        while page := self.call(_page, obstore.list, last):
            yield from (self._sibling(str(held["path"]), _status(held)) for held in page)
            last = str(page[-1]["path"])

    def _sibling(self, key: str, listed: Status) -> "ObjectPath":
        return ObjectPath(self.scheme, self.bucket, key, listed)

    def checksum(self) -> str:
        """SHA-256 of the object, a piece at a time."""
        import obstore

        return self.call(_summed, obstore.get)

    def fetch(self, target: Path) -> None:
        """As ``Remote.fetch`` says."""
        import obstore

        self.call(_fetched, obstore.get, target)

    def create(self, data: bytes | Path) -> None:
        """As ``Remote.create`` says; a file is sent without a copy of it in memory.

        Raises:
            ConfigError: more bytes than one write carries.
            Conflict: the object is there, with other bytes.
        """
        size_byte, checksum = _measured(data)
        if size_byte > _ONE_PUT_BYTE:
            raise ConfigError(f"{self}: {size_byte} bytes, one write carries {_ONE_PUT_BYTE}; take fewer --samples-per-part")
        try:
            self._put(data, "create")
        except FileExistsError:
            if self.checksum() != checksum:
                raise Conflict(f"{self}: another run wrote other bytes there; run again") from None

    def swap(self, data: bytes, expected: bytes | None) -> None:
        """As ``Remote.swap`` says; that the object holds ``data`` already is a success.

        Raises:
            Conflict: the object holds neither ``expected`` nor ``data``.
        """
        found, version = self._current()
        if found == data:
            return  # by an earlier try whose answer was lost, or by another run that came to the same
        if found == expected:
            try:
                self._put(data, version or "create")
                return
            except FileExistsError:  # another writer, or an earlier try of this very write
                found, _ = self._current()
        if found != data:
            raise Conflict(f"{self}: another run published first; run again")

    def _current(self) -> tuple[bytes | None, dict[str, str] | None]:
        """The bytes, and what names just them in a condition; None for no object."""
        import obstore

        try:
            held, data = self.call(_versioned, obstore.get)
        except FileNotFoundError:
            return None, None
        return data, _version_of(held)

    def _put(self, data: bytes | Path, mode: str | dict[str, str]) -> None:
        """One conditional write, in one request: what is cut off leaves nothing.

        Raises:
            FileExistsError: the condition does not hold, or no more, after an earlier try.
        """
        import obstore

        try:
            self.call(obstore.put, _buffer(data), mode=mode, use_multipart=False)
        except FileNotFoundError as error:
            raise ConfigError(f"{self}: no such bucket; make it first") from error

    def replace(self, data: bytes | Path, check: Callable[[], object]) -> None:
        """As ``Remote.replace`` says. What is too large for one request goes in several, which count together and at the last one:
        whole or not at all, but not under a condition.

        Raises:
            Conflict: as ``Remote.replace``.
        """
        import obstore

        seen = self._seen()
        check()
        size_byte = len(data) if isinstance(data, bytes) else data.stat().st_size
        if size_byte > _ONE_PUT_BYTE:
            self.call(obstore.put, data, use_multipart=True)
            return
        try:
            self._put(data, seen or "create")
        except FileExistsError:  # another writer, or an earlier try of this very write
            if self.checksum() != _measured(data)[1]:
                raise Conflict(f"{self}: another run wrote it meanwhile; run again") from None

    def _seen(self) -> dict[str, str] | None:
        """What names in a condition the bytes that are there; None for no object."""
        import obstore

        try:
            return _version_of(self.call(obstore.head))
        except FileNotFoundError:
            return None

    def unlink(self) -> None:
        """Remove the object, if it is there."""
        import obstore

        with suppress(FileNotFoundError):
            self.call(obstore.delete)


class ObjectRanges:
    """What ``ranges.RemoteRanges`` asks of a file system, for the objects below a prefix.

    Args:
        root: the prefix.
    """

    def __init__(self, root: ObjectPath) -> None:
        self._root = root
        self._sizes: dict[str, int] = {}

    def cat_ranges(self, paths: Sequence[str], starts: Sequence[int], ends: Sequence[int], on_error: str) -> list[bytes]:
        """The bytes of each range, all of one object, asked for at once.

        Args:
            paths: below the prefix, with a leading slash; the same for every range.
            starts, ends: first byte and byte behind the last of each.
            on_error: "return", as file systems have it; errors are raised all the same.

        Raises:
            ValueError: the object ends before a range does.
            FileNotFoundError, ConfigError, TransientError: as ``object_clients.call``.
        """
        import obstore

        if on_error != "return":
            raise ValueError(f"on_error={on_error!r}: allowed is 'return'")
        if not paths:
            return []
        (name,) = set(paths)
        path = self._root / name.lstrip("/")
        if name not in self._sizes:  # asked once: the library does not survive a range that ends behind the object
            self._sizes[name] = path.stat().st_size
        if max(ends) > self._sizes[name]:
            raise ValueError(f"has {self._sizes[name]} bytes, less than its receipt says")
        return [bytes(data) for data in path.call(obstore.get_ranges, starts=starts, ends=ends, coalesce=0)]


def _checked(scheme: str, bucket: str, key: str) -> ObjectPath:
    parts = key.split("/") if key else []
    odd = any(part in ("", ".", "..") or _ODD.search(part) or not part.isprintable() for part in parts)
    if odd or len(key.encode(errors="replace")) > _KEY_BYTE:
        raise ConfigError(f"{scheme}://{bucket}: {key[:200]!r} is no key for scenemill; give plain names between slashes")
    return ObjectPath(scheme, bucket, key)


def _status(held: Any) -> Status:
    return Status(int(held["size"]), str(held["e_tag"] or held["version"]), round(held["last_modified"].timestamp() * 1e9))


def _version_of(held: Any) -> dict[str, str]:
    """What names just these bytes of an object in a condition."""
    return {name: held[name] for name in ("e_tag", "version") if held[name] is not None}


def _whole(store: Any, key: str, get: Callable[..., Any]) -> Any:
    return get(store, key).bytes()


def _page(store: Any, key: str, listing: Callable[..., Any], last: str | None) -> Any:
    """The objects behind the last one seen, as many as one request tells; empty at the end."""
    return next(iter(listing(store, key or None, offset=last, chunk_size=_PAGE)), [])


def _versioned(store: Any, key: str, get: Callable[..., Any]) -> tuple[Any, bytes]:
    result = get(store, key)
    return result.meta, bytes(result.bytes())


def _summed(store: Any, key: str, get: Callable[..., Any]) -> str:
    total = hashlib.sha256()
    for piece in get(store, key).stream(min_chunk_size=1 << 20):
        total.update(piece)
    return total.hexdigest()


def _fetched(store: Any, key: str, get: Callable[..., Any], target: Path) -> None:
    with target.open("wb") as file:
        for piece in get(store, key).stream(min_chunk_size=1 << 20):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _measured(data: bytes | Path) -> tuple[int, str]:
    if isinstance(data, bytes):
        return len(data), hashlib.sha256(data).hexdigest()
    with data.open("rb") as file:
        return data.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _buffer(data: bytes | Path) -> bytes | mmap.mmap:
    """A file's bytes without a copy of them in memory."""
    if isinstance(data, bytes):
        return data
    if not data.stat().st_size:
        return b""  # nothing cannot be mapped
    with data.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
