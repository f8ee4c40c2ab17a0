"""Questions to the metric tables in SQL, which can read them and nothing else.

``query`` takes anybody's SQL. It is one SELECT (or EXPLAIN) against views in memory, in a process of its own that has no way to files,
network or settings, and that ends when its time or memory is used up: the engine by itself stops neither one long-running function
nor all that such a function allocates. ``session`` is for our own SQL: the same views, in this process.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from scenemill.pipelines.tables import datasets
from scenemill.schemas.errors import ConfigError, NotPublished, SceneMillError

TIMEOUT_S: Final = 60.0
RESULT_LIMIT_BYTE: Final = 1 << 30

_ADDRESS_SPACE_BYTE: Final = 4 << 30
_BATCH: Final = 1 << 14
_ALLOWED: Final = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
_SETTINGS: Final[dict[str, str | bool | int | float | list[str]]] = {
    "enable_external_access": False,  # no files, no network, no other databases
    "autoload_known_extensions": False,
    "autoinstall_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,  # variables of this program are not tables
    "temp_directory": "",  # nothing spills into the folder one happens to be in
    "memory_limit": "1GB",
    "threads": 2,
}


def query(folder: Path, sql: str, limit: int | None = None, timeout_s: float = TIMEOUT_S) -> pa.Table:
    """Ask the tables of a folder: ``counts``, ``depths`` and ``scores``, of finished runs alone.

    Args:
        folder: where the tables are.
        sql: one SELECT, WITH, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE or EXPLAIN. ``group`` is a word of SQL: write ``"group"``.
        limit: at most this many rows of the answer.
        timeout_s: how long it may take.

    Returns:
        The answer; of columns with one name, all but the first get a number.

    Raises:
        ConfigError: not one such statement, a mistake in it, something it may not touch, or more time or memory than it may use.
        NotPublished: no tables there.
    """
    if (limit is not None and limit < 0) or timeout_s <= 0:
        raise ConfigError(f"limit {limit}, timeout {timeout_s:g} s: the limit is not negative, the timeout above zero")
    asked = json.dumps({"folder": str(folder.absolute()), "sql": sql, "limit": limit})
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__], input=asked.encode(), capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"query: stopped after {timeout_s:g} s. Ask for less, or give it more time") from error
    return _answer(done)


def _answer(done: "subprocess.CompletedProcess[bytes]") -> pa.Table:
    if done.returncode == 0:
        return pa.ipc.open_stream(done.stdout).read_all()
    try:
        told = json.loads(done.stdout)
    except ValueError as error:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        raise ConfigError(f"query: the process that ran it died ({last[0]}). Ask for less at once") from error
    raise (NotPublished if told["error"] == NotPublished.__name__ else ConfigError)(told["message"])


@contextmanager
def session(folder: Path) -> Iterator[Callable[[str], pa.Table]]:
    """A function that answers SQL on the tables of a folder as they are now, for several questions to the same rows.

    Raises:
        NotPublished: no tables there.
    """
    with _connect(folder) as connection:
        yield lambda sql: connection.sql(sql).to_arrow_table()


@contextmanager
def _connect(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:", config=_SETTINGS) as connection:
        for name, dataset in datasets(folder).items():
            connection.register(name, dataset)
        connection.execute("SET TimeZone = 'UTC'; SET lock_configuration = true")
        yield connection


def _child() -> int:
    """Answer the question on standard input with an Arrow stream on standard output, or with a JSON object on what is wrong."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTE, _ADDRESS_SPACE_BYTE))
    asked = json.load(sys.stdin)
    try:
        table = _ask(Path(asked["folder"]), asked["sql"], asked["limit"])
    except SceneMillError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        return 2
    with pa.ipc.new_stream(sys.stdout.buffer, table.schema) as stream:
        stream.write_table(table)
    return 0


def _ask(folder: Path, sql: str, limit: int | None) -> pa.Table:
    with _connect(folder) as connection:
        try:
            statement = _statement(connection, sql)
            connection.execute("BEGIN TRANSACTION READ ONLY")
            return _read(connection.sql(statement), limit)
        except (duckdb.CatalogException, duckdb.BinderException) as error:
            raise ConfigError(f"query: {error}\n{_columns(connection)}") from error
        except (duckdb.Error, RuntimeError, MemoryError, pa.ArrowException) as error:
            raise ConfigError(f"query: {error}") from error


def _statement(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """The one statement of ``sql``, if it is of a kind that only reads."""
    try:
        statements = connection.extract_statements(sql)
        kinds = [statement.type for statement in statements]
    except ValueError as error:  # a kind of statement that the library's own list does not know
        raise ConfigError(f"query: {error} The tables can only be read") from error
    if len(statements) != 1:
        raise ConfigError(f"query: {len(statements)} statements; give one")
    if kinds[0] not in _ALLOWED:
        raise ConfigError(f"query: a statement of kind {kinds[0].name}; the tables can only be read, with SELECT and its like")
    return statements[0]


def _read(answer: duckdb.DuckDBPyRelation, limit: int | None) -> pa.Table:
    """At most ``limit`` rows, read in batches so that a boundless answer is noticed in time."""
    reader = answer.to_arrow_reader(_BATCH)
    batches: list[pa.RecordBatch] = []
    rows = size_byte = 0
    for batch in reader:
        if limit is not None and rows >= limit:
            break
        batches.append(batch)
        rows += batch.num_rows
        size_byte += batch.nbytes
        if size_byte > RESULT_LIMIT_BYTE:
            raise ConfigError(f"query: its answer is larger than {RESULT_LIMIT_BYTE >> 30} GiB. Ask for less, or give a limit")
    return pa.Table.from_batches(batches, reader.schema).slice(0, limit).rename_columns(_distinct(reader.schema.names))


def _distinct(names: list[str]) -> list[str]:
    """Names with a number after all but the first of the same.

    >>> _distinct(["run", "rule", "run", "run"])
    ['run', 'rule', 'run_1', 'run_2']
    """
    distinct: list[str] = []
    for name in names:
        number, new = 0, name
        while new in distinct:
            number += 1
            new = f"{name}_{number}"
        distinct.append(new)
    return distinct


def _columns(connection: duckdb.DuckDBPyConnection) -> str:
    """What there is to ask about, for someone who misspelt it."""
    listed: list[tuple[Any, ...]] = connection.execute("SHOW ALL TABLES").fetchall()
    return "\n".join(f"{row[2]}: {', '.join(row[3])}" for row in sorted(listed, key=lambda row: str(row[2])))


if __name__ == "__main__":
    sys.exit(_child())
