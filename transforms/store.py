"""A published store, as its readers see it: one version, whole, whatever is published meanwhile.

The arrays are plain sharded Zarr v3: any reader opens them. ``Store`` adds what a plain reader does not know: which row is which
sample, which fields a sample has, and that every file is as long as its receipt says. It reads shards directly; plain Zarr gives
the same values and is there to be asked.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, ObjectStore, WrapperStore

from scenemill.schemas.errors import ConfigError, Corrupt, NotPublished, TransientError, WrongVersion
from scenemill.schemas.fields import Field, raw_orientation
from scenemill.schemas.places import Place
from scenemill.schemas.sample import Sample
from scenemill.schemas.tables import FINDINGS, RUNS, SAMPLES
from scenemill.transforms.documents import check_manifest
from scenemill.transforms.folders import sha256
from scenemill.transforms.layout import (
    FRUSTUM_CHUNK,
    ROOT,
    Layout,
    group_document,
    rows_of_manifest,
    shard_path,
    to_bytes,
    version_id,
)
from scenemill.transforms.objects import ObjectPath, ObjectRanges, place_of
from scenemill.transforms.parts import Receipt, read_receipt
from scenemill.transforms.ranges import LocalRanges, RangeReader, RemoteRanges
from scenemill.transforms.reader import Box, ShardReader
from scenemill.transforms.rows import read_rows
from scenemill.transforms.shards import decode_chunk

if TYPE_CHECKING:
    import xarray

_DOCUMENT_KEY: Final = "scenemill"
_ADVICE: Final = '"scenemill ingest ... --repair" restores it'


def _how_to_make(root: Place) -> str:
    """The command that makes a store: at a place without one, or of a raw folder that was taken for one."""
    if (root / "data").is_dir():
        return f'it holds data/ as raw folders do: "scenemill ingest SOURCE --input {root} --output STORE" makes a store of it'
    return f'"scenemill ingest SOURCE --input DIR --output {root}" makes one'


def open_store(uri: str | Place, version: str | None = None) -> "Store":
    """Open a published store for reading.

    Args:
        uri: its folder, or where it is in an object store: ``s3://bucket/store``, ``gs://bucket/store``.
        version: id of an older version, or the first digits of one; None for the newest.

    Raises:
        NotPublished: nothing is published there, or no such version.
        Corrupt: the manifest is damaged.
        WrongVersion: written by another format version.
    """
    root = place_of(uri)
    if version is None:
        path = root / ROOT
        if not path.is_file():
            root.is_dir()  # of a bucket that does not exist, this says so
            raise NotPublished(f"store {root}: nothing published here; {_how_to_make(root)}")
        return Store(root, path)
    found = sorted(path for path in version_files(root) if path.stem.startswith(version))
    if len(found) != 1:
        raise NotPublished(f'store {root}: {len(found)} versions start with {version!r}; "scenemill versions {root}" lists them')
    return Store(root, found[0])


def version_files(root: Place) -> list[Place]:
    """The documents of all versions written, published or not."""
    return sorted((root / "versions").glob("*.json"))


def read_document(path: Place) -> dict[str, Any]:
    """The group document of one version, its manifest checked against its id.

    Raises:
        Corrupt: no such document, or altered.
    """
    return _parsed(path, _read(path))


def _read(path: Place) -> bytes:
    try:
        return path.read_bytes()
    except TransientError:
        raise
    except OSError as error:
        raise Corrupt(f"manifest {path}: cannot be read ({type(error).__name__}: {error}); {_ADVICE}") from error


def _parsed(path: Place, data: bytes) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(data)
        manifest = document["attributes"][_DOCUMENT_KEY]
        altered = version_id(manifest) != manifest["version"]
        layout = Layout.from_manifest(manifest)  # first: another format has other members
        check_manifest(manifest)
        expected = group_document(layout, rows_of_manifest(layout, manifest), _without_version(manifest))
        altered = altered or to_bytes(document) != to_bytes(expected)
    except WrongVersion:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Corrupt(f"manifest {path}: cannot be read ({type(error).__name__}: {str(error)[:200]}); {_ADVICE}") from error
    if altered:
        raise Corrupt(f"manifest {path}: differs from what was published; {_ADVICE}")
    return document


def _without_version(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if name != "version"}


class _PinnedStore(WrapperStore[ZarrStore]):
    """The store's files with the group document of one version, so that Zarr readers see exactly that version."""

    def __init__(self, store: ZarrStore, document: bytes = b"") -> None:
        super().__init__(store)
        self._document = document

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if key == ROOT and byte_range is None:
            return prototype.buffer.from_bytes(self._document)
        return await self._store.get(key, prototype, byte_range)


class Store:
    """One version of a published store; read-only.

    Attributes:
        root: its folder.
        published: the bytes of its document, as they were read.
        version: id of this version.
        manifest: what the version is made of.
        layout: sizes, source and precision.
    """

    def __init__(self, root: Place, document_path: Place) -> None:
        self.published = _read(document_path)
        document = _parsed(document_path, self.published)
        self.root = root
        self.manifest: Mapping[str, Any] = document["attributes"][_DOCUMENT_KEY]
        self.version: str = self.manifest["version"]
        self.layout = Layout.from_manifest(self.manifest)
        self._document = document
        self._receipts: dict[str, Receipt] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (open_store, (self.root, self.version))

    @property
    def content(self) -> dict[str, Any]:
        """The manifest without the id that is made from it."""
        return _without_version(self.manifest)

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r}, version={self.version!r}, source={self.layout.source!r}, samples={len(self)})"

    def __len__(self) -> int:
        return int(self.manifest["tables"]["samples"]["rows"])

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    @cached_property
    def samples(self) -> pa.Table:
        """The samples table, a row per sample, sorted by key (``schemas.tables.SAMPLES``)."""
        return self._table("samples", SAMPLES)

    @cached_property
    def findings(self) -> pa.Table:
        """The findings table: what was found wrong, and which samples were rejected for it (``schemas.tables.FINDINGS``)."""
        return self._table("findings", FINDINGS)

    @property
    def runs(self) -> pa.Table:
        """The runs table: one row per run on this store, oldest first (``schemas.tables.RUNS``)."""
        files: list[Place] = sorted((self.root / "runs").glob("*/run.parquet"))
        return pa.concat_tables([RUNS.empty_table(), *(read_rows(file, RUNS) for file in files)])

    def _table(self, name: str, schema: pa.Schema) -> pa.Table:
        held = self.manifest["tables"][name]
        return read_rows(self.root / held["path"], schema, held["sha256"])

    @cached_property
    def keys(self) -> list[str]:
        """Keys of all samples, sorted."""
        return cast(list[str], self.samples["key"].to_pylist())

    @cached_property
    def _places(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self.keys)}

    def keys_of(self, split: str) -> list[str]:
        """Keys of the samples that a split list names, sorted."""
        return [key for key, splits in zip(self.keys, self.samples["splits"].to_pylist(), strict=True) if split in splits]

    @cached_property
    def group(self) -> zarr.Group:
        """This version's arrays as a Zarr group: plain Zarr, all rows, also those that hold no sample."""
        files = _zarr_files(self.root)
        return zarr.open_group(_PinnedStore(files, json.dumps(self._document).encode()), mode="r")

    def array(self, name: str) -> "zarr.Array[Any]":
        """One field of all rows as a Zarr array; the samples table says which row is which sample.

        Raises:
            ConfigError: no such field.
        """
        if name not in {field.name for field in self.layout.fields}:
            raise ConfigError(
                f"store {self.root} has no field {name!r}; it has {', '.join(field.name for field in self.layout.fields)}"
            )
        return cast("zarr.Array[Any]", self.group[name])

    @cached_property
    def frustum(self) -> NDArray[np.bool_] | None:
        """(X, Y, Z) bool, True inside the frustum that all samples share; None where each carries its own in ``outside``.

        Raises:
            Corrupt: its file differs from its checksum, or is of another grid.
        """
        if not self.layout.frustum:
            return None
        path = self.root / FRUSTUM_CHUNK
        data = path.read_bytes() if path.is_file() else b""
        if sha256(data) != self.layout.frustum:
            raise Corrupt(f'{path}: differs from its checksum. Run "scenemill ingest ... --repair"')
        mask = np.empty((self.layout.grid,) * 3, np.bool_)
        try:
            decode_chunk(data, mask)
        except ValueError as error:  # of another grid
            raise Corrupt(f'{path}: {error}. Run "scenemill ingest ... --repair"') from error
        return mask

    def facts(self, key: str) -> dict[str, Any]:
        """A sample's row of the samples table.

        Raises:
            ConfigError: no such sample in this version.
        """
        if key not in self._places:
            raise ConfigError(f"sample {key!r}: not in version {self.version} of {self.root}; {self._hint(key)}")
        return cast(dict[str, Any], self.samples.slice(self._places[key], 1).to_pylist()[0])

    def _hint(self, key: str) -> str:
        """What to do about a key that is not here."""
        if key in self.findings["key"].to_pylist():
            return "it was rejected, and the findings table says why"
        near = difflib.get_close_matches(key, self._places, 1, 0.8) or list(self._places)[:1]
        return f"a key is SCENE/IMAGE, for example {near[0]}" if near else "it holds no sample"

    def read(
        self,
        key: str,
        fields: Sequence[str] | None = None,
        *,
        box: Box | None = None,
        raw_volumes: bool = False,
        by_zarr: bool = False,
    ) -> Sample:
        """Read one sample.

        Args:
            key: ``scene/image``.
            fields: names of the fields to read; None for all it has.
            box: ((first, behind the last) voxel along x, y, z) of volumes; only the chunks it touches are read. None for all.
            raw_volumes: True for volumes in the raw files' orientation instead of image-aligned.
            by_zarr: True to read by plain Zarr instead of directly from the shards: slower, the same values.

        Returns:
            The sample, in the field table's dtypes, with its row of the samples table as facts.

        Raises:
            ConfigError: no such sample or field; a box outside the volumes, or together with ``raw_volumes``.
            Corrupt: a file is missing, of another length, or fails a checksum.
        """
        facts = self.facts(key)
        self._check_box(box, raw_volumes)
        if unknown := sorted(set(fields or ()) - set(facts["fields"])):
            raise ConfigError(f"sample {key!r} has no field {', '.join(unknown)}; it has {', '.join(facts['fields'])}")
        wanted = [field for field in self.layout.fields if field.name in (facts["fields"] if fields is None else fields)]
        read = self._read_by_zarr if by_zarr else self._read_directly
        arrays = {field.name: read(field, facts, box if field.is_volume else None) for field in wanted}
        if raw_volumes:
            axes = raw_orientation(self.layout.source)
            arrays.update({field.name: np.flip(arrays[field.name], axes) for field in wanted if field.is_volume})
        return Sample(key, arrays, facts)

    def to_xarray(self, chunked: bool | None = None) -> "xarray.Dataset":
        """All samples as one dataset that reads when it is asked: of a volume only the chunks that a slice touches.

        Args:
            chunked: whether its arrays are Dask's, a sample in each chunk; None for where Dask is installed.

        Returns:
            A variable for each field, (sample, ...) in the field table's axes and dtypes, with units and meaning. ``sample`` is the
            index of keys, in their order; ``x``, ``y``, ``z`` count voxels, ``row`` and ``column`` pixels. A sample that lacks a field,
            by ``samples["fields"]``, holds its fill value there.

        Raises:
            ConfigError: xarray is not installed.
            Corrupt: when values are read; a file is missing, of another length, or fails a checksum.
        """
        try:
            from scenemill.transforms.xarrays import to_xarray
        except ModuleNotFoundError as error:
            raise ConfigError(
                f'{error.name} is not installed; a store as xarray needs it: pip install "scenemill[exchange]"'
            ) from error
        return to_xarray(self, chunked)

    def _check_box(self, box: Box | None, raw_volumes: bool) -> None:
        if box is None:
            return
        if raw_volumes:
            raise ConfigError("a box is image-aligned: ask for it without raw_volumes")
        ends = (
            [tuple(ends) for ends in box] if isinstance(box, Sequence) and all(isinstance(ends, Sequence) for ends in box) else []
        )
        whole = all(isinstance(end, int) for pair in ends for end in pair) and {len(pair) for pair in ends} == {2}
        if len(ends) != 3 or not whole or not all(0 <= low < high <= self.layout.grid for low, high in ends):
            raise ConfigError(f"box {box!r}: give (first, behind the last) for x, y and z, within 0..{self.layout.grid}")

    def _read_directly(self, field: Field, facts: Mapping[str, Any], box: Box | None) -> NDArray[Any]:
        with self.guarded(facts["key"], facts["row"], [field]):
            return self.reader.array(field, facts["row"], box)

    def _read_by_zarr(self, field: Field, facts: Mapping[str, Any], box: Box | None) -> NDArray[Any]:
        slot = facts["row"] // self.layout.samples_per_part
        part, path = self._part_at(slot), shard_path(field, slot)
        self.check_file(part, path)
        place = (facts["row"], *(slice(low, high) for low, high in box or ()))
        try:
            stored = np.asarray(self.array(field.name)[place])
        except (ValueError, RuntimeError, OSError, KeyError, TypeError) as error:
            raise self._corrupt(part, path, f"sample {facts['key']} cannot be decoded ({error})") from error
        return self.layout.storage(field).decode(stored, field.dtype)

    @cached_property
    def reader(self) -> ShardReader:
        """Reads fields by row, straight from the shards; errors name no sample: see ``guarded``."""
        return ShardReader(_ranges_of(self.root), self.layout, self._size_of)

    @cached_property
    def _parts(self) -> dict[str, Mapping[str, Any]]:
        return {part["id"]: part for part in self.manifest["parts"]}

    @cached_property
    def _part_of_slot(self) -> dict[int, str]:
        return {part["slot"]: name for name, part in self._parts.items()}

    def _part_at(self, slot: int) -> str:
        if slot not in self._part_of_slot:
            raise Corrupt(f"store {self.root}: a sample in slot {slot}, which no part of version {self.version} has; {_ADVICE}")
        return self._part_of_slot[slot]

    def _size_of(self, slot: int, path: str) -> int:
        return int(self.receipt(self._part_at(slot)).files[path]["size_byte"])

    @contextmanager
    def guarded(self, key: str, row: int, fields: Sequence[Field]) -> Iterator[None]:
        """Turns what ``reader`` raises while reading a sample into an error that names part, files and sample.

        Raises:
            Corrupt: a file is missing, of another length, or fails a checksum.
        """
        try:
            yield
        except (ConfigError, Corrupt, TransientError):
            raise
        except (OSError, ValueError) as error:
            self.__dict__.pop("reader", None)  # a repaired file is opened anew
            slot = row // self.layout.samples_per_part
            paths = ", ".join(shard_path(field, slot) for field in fields)
            what = "is missing" if isinstance(error, FileNotFoundError) else str(error)
            raise self._corrupt(self._part_at(slot), paths, f"{what}; sample {key} cannot be read") from error

    def check_file(self, part: str, path: str) -> None:
        """Refuse a file that is missing or of another length than its part's receipt says: Zarr would read it as fill values.

        Raises:
            Corrupt: it is.
        """
        expected = self.receipt(part).files[path]["size_byte"]
        file = self.root / path
        found = file.stat().st_size if file.is_file() else -1
        if found != expected:
            raise self._corrupt(part, path, "is missing" if found < 0 else f"has {found} bytes, its receipt says {expected}")

    def receipt(self, part: str) -> Receipt:
        """A part's receipt.

        Raises:
            Corrupt: missing or damaged.
        """
        if part not in self._receipts:
            if part not in self._parts:
                raise Corrupt(
                    f"store {self.root}: a sample of part {part[:40]!r}, which version {self.version} does not have; {_ADVICE}"
                )
            named = self._parts[part]
            receipt = read_receipt(self.root, part, named["receipt_sha256"])
            if receipt is None:
                raise self._corrupt(part, f"parts/{part}/receipt.json", "is missing")
            if receipt.slot != named["slot"] or set(receipt.files) != self._files_of(part, receipt.slot):
                raise self._corrupt(part, f"parts/{part}/receipt.json", "names other files than a part of this store has")
            self._receipts[part] = receipt
        return self._receipts[part]

    def _files_of(self, part: str, slot: int) -> set[str]:
        shards = {shard_path(field, slot) for field in self.layout.fields}
        return shards | {f"parts/{part}/{table}.parquet" for table in ("samples", "findings")}

    def _corrupt(self, part: str, path: str, what: str) -> Corrupt:
        advice = f'"scenemill verify {self.root}" says what is whole, "scenemill ingest ... --repair" rebuilds it'
        return Corrupt(f"part {part}: {path} {what}. {advice}")


def _zarr_files(root: Place) -> ZarrStore:
    return ObjectStore(root.client, read_only=True) if isinstance(root, ObjectPath) else LocalStore(str(root), read_only=True)


def _ranges_of(root: Place) -> RangeReader:
    if isinstance(root, ObjectPath):
        return RemoteRanges(ObjectRanges(root), "")
    assert isinstance(root, Path)
    return LocalRanges(root)


def history(root: Place) -> list[Store]:
    """The published versions, newest first: the current one and its ancestors that are still there.

    Raises:
        NotPublished: none.
    """
    versions = [open_store(root)]
    while (parent := versions[-1].manifest["parent"]) is not None and (root / "versions" / f"{parent}.json").is_file():
        versions.append(open_store(root, parent))
    return versions
