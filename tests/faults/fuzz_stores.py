"""Fuzz targets: the documents and shards of a store.

Whatever differs from its checksum is refused soon. So a document is also *sealed*: the checksums that name it are made right again, as
one would who forges a store; then what it says is read, and must be refused in words or make sense. Where nothing is sealed, what is not
refused must be what was written, to the bit.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np

from scenemill.schemas.errors import Corrupt, SceneMillError, StoreError
from scenemill.schemas.fields import fields_of
from scenemill.schemas.tables import RUNS
from scenemill.transforms.folders import sha256
from scenemill.transforms.layout import ROOT, Layout, group_document, rows_of_manifest, shard_path, to_bytes, version_id
from scenemill.transforms.ranges import LocalRanges
from scenemill.transforms.reader import ShardReader
from scenemill.transforms.shards import index_size_byte
from scenemill.transforms.store import history, open_store
from scenemill.transforms.verify import _check_documents, verify_store
from tests.faults.fuzz_target import FuzzTarget, right

GOLDEN: Final = Path(__file__).parents[1] / "golden" / "stores"
"""Small stores of a grid of 16 voxels and images of 6 x 8 pixels, two parts and three samples."""

_PER_PART: Final = 2
_STRANGE: Final = (
    *(SceneMillError, ValueError, LookupError, TypeError, AttributeError, RecursionError, ArithmeticError, MemoryError),
)
"""What making documents of nonsense ends in."""
JSON_WORDS: Final = (
    *(b"null", b"true", b"[]", b"{}", b'""', b"NaN", b"-1", b"1e999", b"1" * 400, b"[" * 60, b'"\\ud800"', b'"\\u0000"', b'"x"'),
    *(b'"../outside/secret.parquet"', b'"/etc/passwd"', b'".."', b'"../.."', b'"."', b'"~"', b'"s3://bucket/key"'),
)


def copy_golden(source: str, store: Path) -> Path:
    """A kept store of a source, at a place of its own."""
    return Path(shutil.copytree(GOLDEN / source, store))


class Victim:
    """A store of which documents are written over, and put back."""

    def __init__(self, folder: Path, source: str = "front3d") -> None:
        self.root = copy_golden(source, folder / "store")
        (folder / "outside").mkdir()
        self.document: Mapping[str, Any] = json.loads((self.root / ROOT).read_bytes())
        self.manifest: Mapping[str, Any] = self.document["attributes"]["scenemill"]
        self.whole = self.observed()

    @contextmanager
    def with_files(self, files: Mapping[str, bytes]) -> Iterator[None]:
        """The store with other bytes in some of its files, or with more of them."""
        before = {path: (self.root / path).read_bytes() if (self.root / path).exists() else None for path in files}
        try:
            for path, data in files.items():
                (self.root / path).write_bytes(data)
            yield
        finally:
            for path, held in before.items():
                if held is None:
                    (self.root / path).unlink(missing_ok=True)
                else:
                    (self.root / path).write_bytes(held)

    def observed(self) -> list[object]:
        """All that readers see of the store.

        Raises:
            StoreError: it is refused.
        """
        store = open_store(self.root)
        frustum = store.frustum
        seen: list[object] = [store.version, store.keys, store.findings.to_pylist(), None if frustum is None else frustum.tobytes()]
        for key in store.keys[:1]:
            read = store.read(key)
            shapes = {field.name: field.shape(store.layout.grid, store.layout.image) for field in store.layout.fields}
            right({name: array.shape for name, array in read.arrays.items()}.items() <= shapes.items(), "arrays of another shape")
            seen += [read.facts, {name: array.tobytes() for name, array in read.arrays.items()}]
        return seen

    def sealed(self, manifest: Mapping[str, Any]) -> dict[str, bytes]:
        """The documents that publish a manifest, its checksums made right; as well as it can be done for one that makes no sense."""
        content = {name: value for name, value in manifest.items() if name != "version"}
        try:
            layout = Layout.from_manifest(manifest)
            data = to_bytes(group_document(layout, rows_of_manifest(layout, manifest), content))
        except _STRANGE:
            data = json.dumps({**self.document, "attributes": {"scenemill": manifest}}).encode()
        return {ROOT: data, f"versions/{self._version_of(content)}.json": data}

    def _version_of(self, content: Mapping[str, Any]) -> str:
        try:
            return version_id(content)
        except _STRANGE:
            return "0" * 16

    def part_of(self, number: int) -> Mapping[str, Any]:
        """What the manifest says of a part."""
        named: Mapping[str, Any] = self.manifest["parts"][number]
        return named


def _check_all(root: Path, path: str) -> None:
    """Verify the store, and go through its versions and its runs: where readers look further."""
    verified = verify_store(root)
    right(all(one.problem and isinstance(one.path, str) for one in verified.broken), "something broken that is not told")
    for version in history(root):
        right(isinstance(version.version, str) and version.runs.schema == RUNS, path)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def manifest(folder: Path) -> FuzzTarget:
    """The root document of a store as it lies there, or the manifest in it, sealed."""
    victim = Victim(folder)

    def read(data: bytes) -> None:
        found = _json(data)
        if isinstance(found, dict) and "attributes" not in found:
            with victim.with_files(victim.sealed(found)):
                victim.observed()
                _check_all(victim.root, ROOT)
            return
        with victim.with_files({ROOT: data}):
            right(victim.observed() == victim.whole, "other values than were written")
            _check_all(victim.root, ROOT)

    plain = to_bytes({**victim.manifest, "labels": victim.manifest["labels"][:2]})
    own = {**victim.manifest, "layout": {**victim.manifest["layout"], "source": "own", "own": _own_fields()}, "labels": []}
    seeds = (plain, to_bytes(victim.document), to_bytes(own))
    names = {name for held in (victim.manifest, victim.manifest["layout"], victim.part_of(0)) for name in held}
    words = tuple(f'"{name}":'.encode() for name in sorted(names)) + JSON_WORDS
    return FuzzTarget("manifest", seeds, read, (StoreError,), words, 12_000, inside="store", light=60)


def _own_fields() -> dict[str, Any]:
    """Fields of a source of one's own, as a manifest has them."""
    field = next(one for one in fields_of("front3d") if one.name == "rgb")
    about = {"name": "rgb", "axes": list(field.axes), "dtype": field.dtype, "unit": "", "fill": 0, "codec": list(field.codec)}
    return {"fields": [{**about, "origin": "rgb", "meaning": "colours", "required": True}], "labels": []}


def receipt(folder: Path) -> FuzzTarget:
    """The receipt of a part, sealed."""
    victim = Victim(folder)
    path = f"parts/{victim.part_of(0)['id']}/receipt.json"

    def read(data: bytes) -> None:
        first, *others = victim.manifest["parts"]
        named = {**victim.manifest, "parts": [{**first, "receipt_sha256": sha256(data)}, *others]}
        with victim.with_files({**victim.sealed(named), path: data}):
            seen = victim.observed()
            right(seen[1:] == victim.whole[1:], "other values than were written")
            _check_all(victim.root, path)

    whole = (victim.root / path).read_bytes()
    held = _json(whole)
    words = tuple(f'"{name}":'.encode() for name in (*held, *list(held["files"])[:4], "sha256", "size_byte"))
    return FuzzTarget("receipt", (whole,), read, (StoreError,), words + JSON_WORDS, 2500, inside="store", light=60)


def array_document(folder: Path) -> FuzzTarget:
    """The document of one array, which readers open that know of no manifest; those of stores have it in the root document."""
    victim = Victim(folder)
    path = f"depth/{ROOT}"

    def read(data: bytes) -> None:
        with victim.with_files({path: data}):
            broken = [one.path for one in _check_documents(open_store(victim.root), newest=True)]
            right(broken in ([], [path]), f"broken: {broken}")
            right(bool(broken) or _json(data)["codecs"] == _json(whole)["codecs"], "another document, and nothing is broken")

    whole = (victim.root / path).read_bytes()
    words = tuple(f'"{name}":'.encode() for name in _json(whole)) + JSON_WORDS
    return FuzzTarget("array_document", (whole,), read, (StoreError,), words, 1024, inside="store", light=40)


def _with_checksum(data: bytes) -> bytes:
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")


def _sealed_shard(data: bytes, index_byte: int) -> bytes:
    """A shard with right checksums of its index and of the chunks that this names, wherever they lie."""
    start_of_index = len(data) - index_byte
    body, index = bytearray(data[:start_of_index]), data[start_of_index:-4]
    for start, length in np.frombuffer(index, "<u8").reshape(-1, 2).tolist():
        if length > 4 and start + length <= len(body):
            body[start : start + length] = _with_checksum(bytes(body[start : start + length - 4]))
    return bytes(body) + _with_checksum(index)


def shard(folder: Path) -> FuzzTarget:
    """A shard: as it is, and with right checksums where its last byte is even."""
    victim = Victim(folder)
    layout = open_store(victim.root).layout
    fields = {field.name: field for field in layout.fields}
    names = ("geometry", "instance_3d", "rgb", "intrinsics")
    numbers = {name: len(ShardReader(LocalRanges(victim.root), layout, lambda *_: 0)._forms[name][1]) for name in names}

    def read(data: bytes) -> None:
        name = names[data[0] % len(names)] if data else names[0]
        path, given = shard_path(fields[name], 0), data[1:]
        index_byte = index_size_byte(_PER_PART, numbers[name])
        sealed = len(given) >= index_byte and not given[-1] & 1
        held = _sealed_shard(given, index_byte) if sealed else given
        with victim.with_files({path: held}):
            if not sealed:
                right(victim.observed() == victim.whole, "other values than were written")
                return
            _read_forged(ShardReader(LocalRanges(victim.root), layout, lambda slot, path: len(held)), fields[name], layout)

    def seed(name: str, even: bool) -> bytes:
        data = (victim.root / shard_path(fields[name], 0)).read_bytes()
        return bytes([names.index(name)]) + (data[:-1] + b"\0" if even else data)

    seeds = tuple(seed(name, even) for even in (True, False) for name in names)
    words = (
        b"\xff" * 16,
        bytes(16),
        b"\xff" * 8,
        b"\x00\x10\x00\x00",
        b"\x02\x01",
        b"\x01\x00\x00\x00\x00\x00\x00\x00",
        b"\x28\xb5\x2f\xfd",
    )
    return FuzzTarget("shard", seeds, read, (StoreError,), words, 2048, inside="store", light=150)


def _read_forged(reader: ShardReader, field: Any, layout: Layout) -> None:
    """Read both rows by every way there is; what a shard does not hold is a ValueError, as declared.

    Raises:
        Corrupt: the reader refuses it.
    """
    try:
        for row in range(_PER_PART):
            array = reader.array(field, row)
            right(
                array.shape == field.shape(layout.grid, layout.image) and array.dtype == field.dtype, f"{array.shape} {array.dtype}"
            )
            right(reader.stored_byte(field, row) >= 0, "less than no bytes")
            if field.is_volume:
                box = reader.array(field, row, ((2, 5), (0, 16), (15, 16)))
                right(box.tobytes() == array[2:5, :, 15:16].tobytes(), "a box differs from its volume")
                reader.voxels([field], row)
    except ValueError as error:
        raise Corrupt("refused by the reader of shards") from error


TARGETS: Final[dict[str, Callable[[Path], FuzzTarget]]] = {
    "manifest": manifest,
    "receipt": receipt,
    "array_document": array_document,
    "shard": shard,
}
