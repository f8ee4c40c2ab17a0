"""Tables as Parquet files, byte for byte the same for the same rows."""

import pyarrow as pa
import pyarrow.parquet as pq

from scenemill.schemas.errors import Corrupt, TransientError
from scenemill.schemas.places import Place
from scenemill.transforms import publish
from scenemill.transforms.folders import sha256


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=1 << 14)
    return bytes(sink.getvalue())


def write_rows(path: Place, table: pa.Table) -> dict[str, object]:
    """Write a table whole or not at all.

    Returns:
        ``size_byte``, ``sha256`` and ``rows`` of what was written.
    """
    data = to_parquet(table)
    publish.write_whole(path, data)
    return {"size_byte": len(data), "sha256": sha256(data), "rows": table.num_rows}


def read_rows(path: Place, schema: pa.Schema, checksum: str | None = None) -> pa.Table:
    """Read a table back; a column that may be empty and that its writer did not know yet is empty.

    Raises:
        Corrupt: missing, damaged, of another schema, or not the bytes that ``checksum`` names.
    """
    try:
        data = path.read_bytes()
    except TransientError:
        raise
    except OSError as error:
        raise Corrupt(f'table {path}: cannot be read ({error}). Run "scenemill verify" on the store') from error
    if checksum is not None and sha256(data) != checksum:
        raise Corrupt(f'table {path}: differs from its checksum. Run "scenemill verify" on the store')
    try:
        # one thread: with Arrow's pool, a process that ends soon after now and then dies in its destructors
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        for column in schema:
            if column.nullable and column.name not in table.column_names:
                table = table.append_column(column, pa.nulls(table.num_rows, column.type))
        table = table.cast(schema)
        table.validate(full=True)  # a text that is none would be an error of whoever looks at it
        return table
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Corrupt(f"table {path}: no readable table of this version ({error})") from error
