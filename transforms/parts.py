"""Parts: some samples written once, together, by one worker, and never changed after. The unit of work, retry and checksum.

A part's id is a checksum of all that decides its bytes; its receipt is written last and is the proof that it is whole.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import pyarrow as pa

from scenemill.schemas.errors import Corrupt
from scenemill.schemas.fields import Field
from scenemill.schemas.places import Place
from scenemill.schemas.sample import Sample
from scenemill.schemas.steps import reached
from scenemill.schemas.tables import FINDINGS, SAMPLES, Finding, table_of
from scenemill.transforms import publish
from scenemill.transforms.documents import check_receipt
from scenemill.transforms.layout import CONVERSION, FORMAT, Layout, hash_of, shard_path, to_bytes
from scenemill.transforms.rows import read_rows, write_rows
from scenemill.transforms.shards import ShardWriter
from scenemill.transforms.sources import Listed


@dataclass(frozen=True)
class Planned:
    """A sample that a part shall hold: what the lists say of it, and the checksum of its raw files."""

    listed: Listed
    digest: str


@dataclass(frozen=True)
class PartPlan:
    """One part to build.

    Attributes:
        id: checksum of all that decides its bytes.
        slot: its shard's index on the sample axis; row ``slot * samples_per_part`` is its first.
        samples: in row order.
    """

    id: str
    slot: int
    samples: tuple[Planned, ...]


@dataclass(frozen=True)
class Receipt:
    """What one part came to.

    Attributes:
        id, slot: of the part.
        planned, stored, rejected: samples.
        raw_byte, stored_byte: read and written.
        error_max_voxel: largest rounding of a distance, 0.0 where storage is lossless.
        samples: (key, digest) of every planned sample, in row order.
        files: path below the store -> size_byte and sha256.
    """

    id: str
    slot: int
    planned: int
    stored: int
    rejected: int
    raw_byte: int
    stored_byte: int
    error_max_voxel: float
    samples: tuple[tuple[str, str], ...]
    files: Mapping[str, Mapping[str, Any]]


def plan_parts(layout: Layout, samples: Sequence[Planned], first_slot: int, checks: str) -> list[PartPlan]:
    """Group samples, in the order given, into parts.

    Args:
        layout: of the store.
        samples: what to build.
        first_slot: index of the first free shard.
        checks: version of the checks that will judge the samples.
    """
    size = layout.samples_per_part
    parts = []
    for slot, start in enumerate(range(0, len(samples), size), first_slot):
        group = tuple(samples[start : start + size])
        held = [[sample.listed.key, sample.digest, sample.listed.rgb_path] for sample in group]
        decides = {
            "format": FORMAT,
            "conversion": CONVERSION,
            "checks": checks,
            "layout": layout.to_json(),
            "slot": slot,
            "samples": held,
        }
        parts.append(PartPlan(hash_of(decides), slot, group))
    return parts


def part_folder(store: Place, part: str) -> Place:
    """Where a part's receipt and tables are."""
    return store / "parts" / part


def read_receipt(store: Place, part: str, checksum: str | None = None) -> Receipt | None:
    """The receipt of a finished part; None where the part is not finished.

    Raises:
        Corrupt: it is damaged, or not the one ``checksum`` names.
    """
    path = part_folder(store, part) / "receipt.json"
    if not path.exists():
        return None
    if checksum is not None and publish.checksum_of(path) != checksum:
        raise Corrupt(f'part {part}: receipt differs from its checksum. Run "scenemill verify {store}"')
    try:
        held = json.loads(path.read_bytes())
        check_receipt(held, part)
        held["samples"] = tuple((key, digest) for key, digest in held["samples"])
        return Receipt(**held)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise Corrupt(f'part {part}: receipt cannot be read ({str(error)[:200]}). Run "scenemill verify {store}"') from error


def finished_part(store: Place, part: str) -> Receipt | None:
    """The receipt of a part all of whose files are there, as long as it says; None for any other part."""
    try:
        receipt = read_receipt(store, part)
    except Corrupt:
        return None
    if receipt is None or not all(_has_size(store / path, held["size_byte"]) for path, held in receipt.files.items()):
        return None
    return receipt


def _has_size(path: Place, size_byte: int) -> bool:
    return path.is_file() and path.stat().st_size == size_byte


def read_part_tables(store: Place, receipt: Receipt) -> tuple[pa.Table, pa.Table]:
    """A finished part's samples and findings.

    Raises:
        Corrupt: a table differs from the receipt.
    """
    folder = f"parts/{receipt.id}"
    samples, findings = (
        read_rows(store / f"{folder}/{name}.parquet", schema, receipt.files[f"{folder}/{name}.parquet"]["sha256"])
        for name, schema in (("samples", SAMPLES), ("findings", FINDINGS))
    )
    return samples, findings


def sample_row(sample: Sample, facts: Mapping[str, Any], findings: Sequence[Finding]) -> dict[str, Any]:
    """A row of the samples table for a sample that is not (yet) in a store: no part, no row, no split."""
    scene, _, image = sample.key.partition("/")
    row = {
        **sample.facts,
        **facts,
        "key": sample.key,
        "scene": scene,
        "image": image,
        "split": "",
        "splits": [],
        "part": "",
        "row": -1,
        "warnings": sum(finding.severity == "warning" for finding in findings),
        "geometry_error_max_voxel": 0.0,
        "stored_byte": 0,
    }
    return {name: row.get(name) for name in SAMPLES.names}


def finding_rows(sample: Sample, findings: Sequence[Finding], *, rejected: bool) -> list[dict[str, Any]]:
    """Rows of the findings table."""
    return [{"key": sample.key, "digest": sample.facts["digest"], "rejected": rejected, **asdict(finding)} for finding in findings]


class PartWriter:
    """Writes one part: samples one at a time, then tables, then the receipt. Nothing counts before the receipt stands."""

    def __init__(self, store: Place, layout: Layout, part: PartPlan) -> None:
        self._store = store
        self._layout = layout
        self._part = part
        self._shards = {field: ShardWriter(publish.work_path(store), layout, field) for field in layout.fields}
        self._rows: list[dict[str, Any]] = []
        self._findings: list[dict[str, Any]] = []
        self._raw_byte = 0

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for shard in self._shards.values():
            shard.close_file()
            publish.remove(shard.path)

    def append(self, position: int, sample: Sample, facts: Mapping[str, Any], findings: Sequence[Finding]) -> None:
        """Write a sample that passed as the ``position``-th of the part."""
        stored_byte = sum(
            self._append(position, field, shard, sample) for field, shard in self._shards.items() if field.name in sample
        )
        row = sample_row(sample, facts, findings)
        row["part"] = self._part.id
        row["row"] = self._part.slot * self._layout.samples_per_part + position
        row["stored_byte"] = stored_byte
        row["geometry_error_max_voxel"] = max(shard.error_max for shard in self._shards.values())
        for shard in self._shards.values():
            shard.error_max = 0.0
        self._rows.append(row)
        self._raw_byte += row["raw_byte"]
        self._findings.extend(finding_rows(sample, findings, rejected=False))

    def _append(self, position: int, field: Field, shard: ShardWriter, sample: Sample) -> int:
        with publish.naming(shard.path):
            return shard.append(position, sample[field.name])

    def reject(self, sample: Sample, findings: Sequence[Finding]) -> None:
        """Note why a sample is not written; its row stays empty."""
        self._raw_byte += sample.facts["raw_byte"]
        self._findings.extend(finding_rows(sample, findings, rejected=True))

    def finish(self) -> Receipt:
        """Give every file its place, then write tables and receipt.

        Raises:
            Conflict: another run wrote to the same slot.
        """
        files: dict[str, Mapping[str, Any]] = {}
        for field, shard in self._shards.items():
            with publish.naming(shard.path):
                files[shard_path(field, self._part.slot)] = shard.close()
        reached("shards written")
        for field, shard in self._shards.items():
            path = shard_path(field, self._part.slot)
            publish.place(shard.path, self._store / path, files[path]["sha256"])
            reached("shard placed")
        for name, schema, rows in (("samples", SAMPLES, self._rows), ("findings", FINDINGS, self._findings)):
            path = f"parts/{self._part.id}/{name}.parquet"
            written = write_rows(self._store / path, table_of(schema, rows))
            files[path] = {"size_byte": written["size_byte"], "sha256": written["sha256"]}
        reached("part tables written")
        receipt = Receipt(
            id=self._part.id,
            slot=self._part.slot,
            planned=len(self._part.samples),
            stored=len(self._rows),
            rejected=len(self._part.samples) - len(self._rows),
            raw_byte=self._raw_byte,
            stored_byte=sum(file["size_byte"] for file in files.values()),
            error_max_voxel=max((row["geometry_error_max_voxel"] for row in self._rows), default=0.0),
            samples=tuple((planned.listed.key, planned.digest) for planned in self._part.samples),
            files=files,
        )
        publish.write_whole(part_folder(self._store, self._part.id) / "receipt.json", to_bytes(asdict(receipt)))
        reached("receipt written")
        return receipt
