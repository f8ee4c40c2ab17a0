"""Questions to the metric tables in SQL, which can read them and nothing else.

A question is one SELECT (or its like) on views in memory. It is answered by a process of its own that has no way to files, network or
settings, and that ends when its time or memory is used up: the engine by itself stops neither a function that runs long nor one that
allocates much.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from scenemill.pipelines.tables import TABLES, datasets
from scenemill.schemas.errors import ConfigError, NotPublished, SceneMillError, TransientError
from scenemill.schemas.places import Place
from scenemill.transforms.objects import place_of

TIMEOUT_S: Final = 60.0
RESULT_LIMIT_BYTE: Final = 1 << 30

_MEMORY_BYTE: Final = 4 << 30
_THREADS: Final = 2
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
    "threads": _THREADS,
}


def query(folder: Place, sql: str, limit: int | None = None, timeout_s: float = TIMEOUT_S) -> pa.Table:
    """Ask the tables of a folder: those of ``pipelines.tables.TABLES``, rows of finished runs alone.

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
    return query_all(folder, [sql], limit, timeout_s)[0]


def query_all(folder: Place, questions: Sequence[str], limit: int | None = None, timeout_s: float = TIMEOUT_S) -> list[pa.Table]:
    """Answers to several questions on the same rows, whatever is appended meanwhile; otherwise as ``query``.

    Raises:
        ConfigError, NotPublished, TransientError: as ``query``.
    """
    if (limit is not None and limit < 0) or timeout_s <= 0:
        raise ConfigError(f"limit {limit}, timeout {timeout_s:g} s: the limit is not negative, the timeout above zero")
    asked = json.dumps(
        {"folder": str(folder.absolute() if isinstance(folder, Path) else folder), "questions": list(questions), "limit": limit}
    )
    few = {**os.environ, "OMP_NUM_THREADS": str(_THREADS)}  # on many cores the libraries' threads alone would use up the memory
    command = [sys.executable, "-P", "-m", __name__]
    try:
        done = subprocess.run(command, input=asked.encode(), env=few, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"query: stopped after {timeout_s:g} s. Ask for less, or give it more time") from error
    if done.returncode != 0:
        raise _problem(done)
    answers = pa.BufferReader(done.stdout)
    return [pa.ipc.open_stream(answers).read_all() for _ in questions]


def _problem(done: "subprocess.CompletedProcess[bytes]") -> SceneMillError:
    try:
        told = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        return ConfigError(f"query: the process that ran it died ({last[0]}). Ask for less at once")
    kinds = {kind.__name__: kind for kind in (NotPublished, TransientError)}
    return kinds.get(told["error"], ConfigError)(told["message"])


def _child() -> int:
    """Answer what is asked on standard input with Arrow streams on standard output, or with a JSON object on what is wrong."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTE, _MEMORY_BYTE))
    asked = json.load(sys.stdin)
    try:
        with _connect(place_of(asked["folder"])) as connection:
            answers = [_ask(connection, sql, asked["limit"]) for sql in asked["questions"]]
    except SceneMillError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)
        return 2
    for answer in answers:
        with pa.ipc.new_stream(sys.stdout.buffer, answer.schema) as stream:
            stream.write_table(answer)
    sys.stdout.buffer.flush()
    return 0


@contextmanager
def _connect(folder: Place) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:", config=_SETTINGS) as connection:
        for name, dataset in datasets(folder).items():
            connection.register(name, dataset)
        connection.execute("SET TimeZone = 'UTC'; SET lock_configuration = true; BEGIN TRANSACTION READ ONLY")
        yield connection


def _ask(connection: duckdb.DuckDBPyConnection, sql: str, limit: int | None) -> pa.Table:
    try:
        return _read(connection.sql(_statement(connection, sql)), limit)
    except (duckdb.ParserException, duckdb.CatalogException, duckdb.BinderException) as error:
        raise ConfigError(f"query: {error}\n\n{_listed()}") from error
    except (duckdb.Error, RuntimeError, MemoryError, pa.ArrowException) as error:
        raise ConfigError(f"query: {error}") from error


def _listed() -> str:
    """The tables and their columns as SQL wants them written: ``group`` is a word of its own."""
    return "\n".join(
        f"{name}: " + ", ".join('"group"' if column == "group" else column for column in schema.names)
        for name, schema in TABLES.items()
    )


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
        batch.validate(full=True)  # texts of damaged files may be none
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


if __name__ == "__main__":
    os._exit(_child())  # not sys.exit: threads of Arrow that still read now and then crash an interpreter that takes itself apart
