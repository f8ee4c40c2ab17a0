"""Tables in Parquet, read back: what is no table of a schema is refused before anybody looks at its values."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scenemill.schemas.errors import Corrupt
from scenemill.schemas.tables import FINDINGS, table_of
from scenemill.transforms.rows import read_rows, write_rows

ROW = {"key": "s/1", "digest": "d", "rejected": True, "check": "presence", "field": "depth", "severity": "error"}
TABLE = table_of(FINDINGS, [{**ROW, "observed": "no such file", "expected": "a file"}])


def plain(table: pa.Table) -> bytes:
    """A file in which values lie as they are."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
    return bytes(sink.getvalue())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "table.parquet", TABLE)
    assert read_rows(tmp_path / "table.parquet", FINDINGS).equals(TABLE)


def test_text_that_is_none_is_refused(tmp_path: Path) -> None:
    data = plain(TABLE)
    assert data.count(b"presence") == 1
    (tmp_path / "table.parquet").write_bytes(data.replace(b"presence", b"\xff\xfeesence"))
    with pytest.raises(Corrupt, match="UTF8"):
        read_rows(tmp_path / "table.parquet", FINDINGS)


def test_nothing_in_place_of_a_value_is_refused(tmp_path: Path) -> None:
    empty = pa.table({name: pa.array([None], FINDINGS.field(name).type) for name in FINDINGS.names})
    (tmp_path / "table.parquet").write_bytes(plain(empty))
    with pytest.raises(Corrupt, match="null"):
        read_rows(tmp_path / "table.parquet", FINDINGS)
