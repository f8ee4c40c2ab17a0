"""Fuzz targets: tables, of stores in Parquet, and of metrics in Delta Lake."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from scenemill.pipelines.tables import datasets, read_table
from scenemill.pipelines.viewer.store import StoreRoot
from scenemill.pipelines.viewer.tables import TablesRoot
from scenemill.schemas.errors import ConfigError, Corrupt, SceneMillError, StoreError
from scenemill.schemas.tables import COUNTS, FINDINGS, RUNS, SAMPLES
from scenemill.transforms.folders import sha256
from scenemill.transforms.rows import read_rows, to_parquet
from scenemill.transforms.store import open_store
from tests.faults.fuzz_stores import JSON_WORDS, Victim, copy_golden
from tests.faults.fuzz_target import FuzzTarget, part, parted, right
from tests.faults.fuzz_texts import make_tables


def sample_row(folder: Path) -> FuzzTarget:
    """Values of the first row of a samples table, as JSON; the table and the manifest that names it are sealed."""
    victim = Victim(folder)
    rows = open_store(victim.root).samples.to_pylist()

    def read(data: bytes) -> None:
        held = _patched(rows, data)
        path = f"tables/samples-{sha256(held)[:16]}.parquet"
        named = {"path": path, "sha256": sha256(held), "size_byte": len(held), "rows": len(rows)}
        sealed = {**victim.manifest, "tables": {**victim.manifest["tables"], "samples": named}}
        with victim.with_files({**victim.sealed(sealed), path: held}):
            victim.observed()
            store = open_store(victim.root)
            right(store.read(store.keys[0], ["rgb"], by_zarr=True) == store.read(store.keys[0], ["rgb"]), "two readers differ")
            _look(StoreRoot("store", victim.root))

    plain = {name: value for name, value in rows[0].items() if name not in ("campose", "files", "world_from_camera")}
    seeds = (
        json.dumps(plain).encode(),
        b'{"row": 1, "key": "scene/0009", "fields": ["rgb"]}',
        b'{"split": "train", "warnings": 2}',
    )
    words = (*(f'"{name}": '.encode() for name in rows[0]), b'"rgb"', b'"intrinsics"', b'"scene/0001"', b"9223372036854775807")
    return FuzzTarget("sample_row", seeds, read, (SceneMillError,), words + JSON_WORDS, 2048, inside="store", light=40)


def _patched(rows: list[dict[str, Any]], data: bytes) -> bytes:
    """The file of a samples table with other values in its first row.

    Raises:
        ConfigError: they are none that the columns can hold.
    """
    try:
        given = json.loads(data)
        return to_parquet(pa.Table.from_pylist([{**rows[0], **given}, *rows[1:]], SAMPLES))
    except (ValueError, TypeError, RecursionError, OverflowError, pa.ArrowException) as error:
        raise ConfigError("no row of a samples table") from error


def _look(root: StoreRoot) -> None:
    """All that the viewer says of a store and of its first sample, as JSON takes it."""
    told = root.describe(), root.samples("a", "train", 0), root.findings("a", "", 0), root.sample(root.store.keys[0])
    right(json.dumps(told, allow_nan=False) != "", "no JSON")
    root.plane(root.store.keys[0], "rgb", "", 0).encode()


def store_table(folder: Path) -> FuzzTarget:
    """Tables in Parquet: of samples, findings and runs, the last of which has no checksum."""
    store = open_store(copy_golden("front3d", folder / "store"))
    path = folder / "store" / "table.parquet"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for schema in (SAMPLES, FINDINGS, RUNS):
            try:
                table = read_rows(path, schema)
            except Corrupt:
                continue
            right(table.schema == schema, "another schema")
            table.validate(full=True)
            table.to_pylist()
            return
        raise Corrupt("refused under every schema")

    short = FINDINGS.empty_table()
    seeds = (to_parquet(store.findings), to_parquet(short), to_parquet(RUNS.empty_table()), _plain(store.findings))
    words = (
        b"PAR1",
        b"ARROW:schema",
        b"key",
        b"digest",
        b"\x15\x00",
        b"\xff\xff\xff\x7f",
        b"parquet-cpp-arrow",
        b"\x19\x1c",
        b"PARE",
    )
    return FuzzTarget("store_table", seeds, read, (Corrupt,), words, 8192, inside="store", light=60)


def _plain(table: pa.Table) -> bytes:
    """A Parquet file without compression, dictionaries and statistics, so that damage gets at its values."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
    return bytes(sink.getvalue())


def metric_table(folder: Path) -> FuzzTarget:
    """The log of a metric table, and one of its files; rows of a file outside of the tables must not be told."""
    tables, outside = folder / "store", folder / "outside.parquet"
    make_tables(tables)
    counts = tables / "counts"
    log, file = sorted((counts / "_delta_log").glob("*.json"))[-1], next(counts.glob("*.parquet"))
    rows = pq.ParquetFile(file).read()
    pq.write_table(rows.set_column(rows.column_names.index("key"), "key", pa.array(["secret/1"])), outside)

    def read(data: bytes) -> None:
        entry, held = part(data, 2)
        log.write_bytes(entry)
        file.write_bytes(held)
        right("secret/1" not in _keys_in(datasets(tables)["counts"]), "rows of another file are told to questions")
        found = read_table(tables, "counts")
        right(found.schema == COUNTS and "secret/1" not in found["key"].to_pylist(), "rows of another file, or of another form")
        root = TablesRoot("tables", tables)
        for row in found.slice(0, 2).to_pylist():
            told = root.sample(row["key"]), root.worst(row["run"], row["metric"], row["rule"], 0)
            right(json.dumps(told, allow_nan=False) != "", "no JSON")

    plain, size = _plain(rows), file.stat().st_size
    whole = log.read_bytes().replace(f'"size":{size}'.encode(), f'"size":{len(plain)}'.encode())
    inside, led = (parted((text, plain)) for text in (whole, whole.replace(file.name.encode(), b"../../outside.parquet")))
    words = (
        b'"add":',
        b'"path":',
        b'"remove":',
        b'"metaData":',
        b'"protocol":',
        b'"size":',
        b'"stats":',
        b'"partitionValues":',
        b"\n",
    )
    more = (
        b'"deletionVector":',
        b'"minReaderVersion":',
        b'"schemaString":',
        b'"txn":',
        outside.as_uri().encode(),
        file.name.encode(),
    )
    return FuzzTarget(
        "metric_table", (inside, led), read, (StoreError,), words + more + JSON_WORDS, 12_000, inside="store", light=20
    )


def _keys_in(dataset: Any) -> list[str]:
    """Keys of the rows of a dataset, as questions in SQL read it; none of one that is refused, which ``query`` tells in Arrow's words."""
    try:
        table = dataset.to_table(columns=["key"], use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError):
        return []
    keys: list[str] = table["key"].to_pylist()
    return keys


TARGETS: Final[dict[str, Callable[[Path], FuzzTarget]]] = {
    "sample_row": sample_row,
    "store_table": store_table,
    "metric_table": metric_table,
}
