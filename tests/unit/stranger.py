"""A reader of stores written from ``docs/store-format.md`` alone: JSON, plain bytes, blosc and Parquet; nothing of scenemill."""

import hashlib
import itertools
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

FORMAT = "scenemill-store/1"
ABSENT = 2**64 - 1


class NotWhole(Exception):
    """The store is not as its documents say."""


def canonical(document: Any) -> bytes:
    """Canonical JSON."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode() + b"\n"


def name_of(document: Any) -> str:
    """First 16 hex digits of the SHA-256 of a document's canonical JSON."""
    return hashlib.sha256(canonical(document)).hexdigest()[:16]


class Stranger:
    """One version of a store."""

    def __init__(self, root: Path, version: str | None = None) -> None:
        self.root = root
        document = root / (f"versions/{version}.json" if version else "zarr.json")
        held = json.loads(document.read_bytes())
        self.manifest: dict[str, Any] = held["attributes"]["scenemill"]
        self.arrays: dict[str, Any] = held["consolidated_metadata"]["metadata"]
        if self.manifest["format"] != FORMAT:
            raise NotWhole(f"format {self.manifest['format']}")
        if canonical(held) != document.read_bytes():
            raise NotWhole("the group document is not canonical JSON")
        if name_of({name: value for name, value in self.manifest.items() if name != "version"}) != self.manifest["version"]:
            raise NotWhole("the manifest differs from its name")
        self.samples = {row["key"]: row for row in self.table("samples")}
        self.parts = {part["slot"]: part for part in self.manifest["parts"]}

    def table(self, name: str) -> list[dict[str, Any]]:
        """Rows of a table of the version."""
        held = self.manifest["tables"][name]
        self._check(held["path"], held)
        rows: list[dict[str, Any]] = pq.read_table(self.root / held["path"]).to_pylist()
        if len(rows) != held["rows"]:
            raise NotWhole(f"{held['path']} has {len(rows)} rows")
        return rows

    def receipt(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """What a part came to."""
        path = f"parts/{part['id']}/receipt.json"
        self._check(path, {"sha256": part["receipt_sha256"]})
        held: dict[str, Any] = json.loads((self.root / path).read_bytes())
        return held

    def check_all(self) -> int:
        """Compare every file with its checksum; say how many."""
        files = [file for part in self.manifest["parts"] for file in self.receipt(part)["files"].items()]
        for path, held in files:
            self._check(path, held)
        for name in self.manifest["tables"]:
            self.table(name)
        if self.manifest["layout"]["frustum"]:
            self._check("frustum/c/0/0/0", {"sha256": self.manifest["layout"]["frustum"]})
        return len(files)

    def part_id(self, part: Mapping[str, Any], listed_paths: Mapping[str, str]) -> str:
        """The id of a part, from what decides its bytes."""
        planned = [[key, digest, listed_paths.get(key, "")] for key, digest in self.receipt(part)["samples"]]
        decides = {name: self.manifest[name] for name in ("format", "conversion", "checks", "layout")}
        return name_of({**decides, "slot": part["slot"], "samples": planned})

    def read(self, key: str) -> dict[str, NDArray[Any]]:
        """Every array of a sample, distances in voxels."""
        facts = self.samples[key]
        return {name: self._read(name, facts["row"]) for name in facts["fields"]}

    def frustum(self) -> NDArray[Any] | None:
        """The frustum that all samples share, if they share one."""
        if not self.manifest["layout"]["frustum"]:
            return None
        self._check("frustum/c/0/0/0", {"sha256": self.manifest["layout"]["frustum"]})
        document = self.arrays["frustum"]
        return _decoded((self.root / "frustum/c/0/0/0").read_bytes(), document, document["shape"])

    def _read(self, name: str, row: int) -> NDArray[Any]:
        document, per_part = self.arrays[name], self.manifest["layout"]["samples_per_part"]
        slot, place = divmod(row, per_part)
        path = "/".join([name, "c", str(slot), *["0"] * (len(document["shape"]) - 1)])
        self._check(path, self.receipt(self.parts[slot])["files"][path])
        stored = _from_shard((self.root / path).read_bytes(), document, per_part, place)
        scale = document["attributes"].get("scale_factor")
        return stored if scale is None else stored * np.float32(scale) + np.float32(document["attributes"]["add_offset"])

    def _check(self, path: str, held: Mapping[str, Any]) -> None:
        data = (self.root / path).read_bytes()
        if len(data) != held.get("size_byte", len(data)) or hashlib.sha256(data).hexdigest() != held["sha256"]:
            raise NotWhole(path)


def _from_shard(data: bytes, document: Mapping[str, Any], per_part: int, place: int) -> NDArray[Any]:
    """One sample of a shard."""
    shape = document["shape"][1:]
    settings = document["codecs"][0]["configuration"]
    size = settings["chunk_shape"][1:]
    chunks = math.prod(-(-axis // step) for axis, step in zip(shape, size, strict=True))
    index = _summed(data[-(per_part * chunks * 16 + 4) :])
    whole = np.full(shape, _fill(document), _dtype(document))
    for number, corner in enumerate(_corners(shape, size)):
        start, length = struct.unpack_from("<QQ", index, (place * chunks + number) * 16)
        if (start, length) != (ABSENT, ABSENT):
            window = tuple(slice(at, at + step) for at, step in zip(corner, size, strict=True))
            whole[window] = _decoded(data[start : start + length], document, size)
    return whole


def _corners(shape: list[int], size: list[int]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(0, axis, step) for axis, step in zip(shape, size, strict=True)))


def _decoded(chunk: bytes, document: Mapping[str, Any], shape: list[int]) -> NDArray[Any]:
    values = np.frombuffer(numcodecs.Blosc().decode(_summed(chunk)), _dtype(document))
    return values.reshape(shape)


def _summed(data: bytes) -> bytes:
    """Bytes without the CRC-32C behind them."""
    if google_crc32c.value(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise NotWhole("a CRC-32C differs")
    return data[:-4]


def _dtype(document: Mapping[str, Any]) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(document["data_type"])
    return dtype.newbyteorder("<")


def _fill(document: Mapping[str, Any]) -> Any:
    fill = document["fill_value"]
    return float(fill) if isinstance(fill, str) else fill
