"""Tables have the schema they are published with, and refuse rows that lack a value."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from scenemill.schemas.errors import Corrupt
from scenemill.schemas.tables import FINDINGS, RUNS, SAMPLES, TABLE_VERSION, Finding, table_of
from scenemill.transforms.folders import sha256
from scenemill.transforms.rows import read_rows, to_parquet, write_rows

ROW = {
    "key": "s/1",
    "digest": "ab",
    "rejected": True,
    "check": "shape",
    "field": "rgb",
    "severity": "error",
    "observed": "3",
    "expected": "4",
}


def value_of(kind: pa.DataType) -> Any:
    """Some value of a type."""
    if pa.types.is_list(kind):
        return [value_of(kind.value_type)]
    if pa.types.is_struct(kind):
        return {kind.field(i).name: value_of(kind.field(i).type) for i in range(kind.num_fields)}
    if pa.types.is_string(kind):
        return "text"
    if pa.types.is_boolean(kind):
        return True
    if pa.types.is_floating(kind):
        return 0.5
    if pa.types.is_timestamp(kind):
        return datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    assert pa.types.is_integer(kind)
    return 7


@pytest.mark.parametrize("schema", [SAMPLES, FINDINGS, RUNS], ids=["samples", "findings", "runs"])
def test_a_full_row_comes_out_as_it_went_in(schema: pa.Schema) -> None:
    row = {column.name: value_of(column.type) for column in schema}
    table = table_of(schema, [row, row])
    assert table.schema.equals(schema, check_metadata=True)
    assert table.to_pylist() == [row, row]


@pytest.mark.parametrize("schema", [SAMPLES, FINDINGS, RUNS], ids=["samples", "findings", "runs"])
def test_a_row_that_lacks_a_value_is_refused_and_names_the_column(schema: pa.Schema) -> None:
    row = {column.name: value_of(column.type) for column in schema}
    name = schema.metadata[b"scenemill.table"].decode()
    for column in schema:
        for short in ({**row, column.name: None}, {other: value for other, value in row.items() if other != column.name}):
            if column.nullable:
                assert table_of(schema, [short]).to_pylist()[0][column.name] is None
            else:
                with pytest.raises(ValueError, match=f"column '{column.name}' of table '{name}' has no value"):
                    table_of(schema, [row, short])


def test_the_optional_columns_are_the_pose_and_the_version_of_a_run() -> None:
    assert [column.name for schema in (SAMPLES, FINDINGS, RUNS) for column in schema if column.nullable] == [
        "world_from_camera",
        "campose",
        "version",
        "runner",
        "list_seconds",
        "build_seconds",
        "judge_seconds",
        "publish_seconds",
    ]


def test_tables_without_rows_keep_their_schema() -> None:
    table = table_of(FINDINGS, iter(()))
    assert table.num_rows == 0 and table.schema.equals(FINDINGS, check_metadata=True)


def test_schemas_say_their_name_and_version() -> None:
    for schema, name in ((SAMPLES, "samples"), (FINDINGS, "findings"), (RUNS, "runs")):
        assert schema.metadata == {b"scenemill.table": name.encode(), b"scenemill.version": TABLE_VERSION.encode()}


def test_only_errors_block() -> None:
    finding = Finding("shape", "rgb", "error", "3", "4")
    assert finding.blocks
    assert not Finding("shape", "rgb", "warning", "3", "4").blocks and not Finding("shape", "rgb", "info", "3", "4").blocks


def test_findings_are_sorted_by_check_then_field() -> None:
    rows = [Finding(check, field, "info", "", "") for check, field in (("b", "a"), ("a", "b"), ("a", "a"))]
    assert [(finding.check, finding.field) for finding in sorted(rows)] == [("a", "a"), ("a", "b"), ("b", "a")]


# --- as files


def test_a_table_comes_back_from_its_file_and_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    table = table_of(FINDINGS, [ROW, {**ROW, "key": ""}])
    written = write_rows(tmp_path / "one.parquet", table)
    data = (tmp_path / "one.parquet").read_bytes()
    assert written == {"size_byte": len(data), "sha256": sha256(data), "rows": 2}
    assert data == to_parquet(table_of(FINDINGS, [ROW, {**ROW, "key": ""}]))
    back = read_rows(tmp_path / "one.parquet", FINDINGS, str(written["sha256"]))
    assert back.equals(table) and back.schema.equals(FINDINGS)


def test_a_file_that_is_no_such_table_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    with pytest.raises(Corrupt, match="cannot be read"):
        read_rows(path, FINDINGS)
    data = to_parquet(table_of(FINDINGS, [ROW]))
    for damaged in (b"", b"PAR1", data[:-1], data[: len(data) // 2], b"no table" * 100, to_parquet(pa.table({"key": ["s/1"]}))):
        path.write_bytes(damaged)
        with pytest.raises(Corrupt, match="no readable table"):
            read_rows(path, FINDINGS)


def test_a_table_that_differs_from_its_checksum_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    path.write_bytes(to_parquet(table_of(FINDINGS, [ROW])))
    with pytest.raises(Corrupt, match="differs from its checksum"):
        read_rows(path, FINDINGS, sha256(b"other bytes"))
