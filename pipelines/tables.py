"""The metric tables: Delta tables that grow by whole runs, and whose readers only ever see whole runs.

Delta commits one table at a time, so the tables of a run are committed in a fixed order with ``scores`` last: **a run is finished
once it is in scores**, and rows of other runs do not count. Each commit carries the run id as application transaction, which makes
a repeated commit recognisable. Two equal ones at once are impossible as long as one looks and writes on the same snapshot: Delta
compares a commit with those after its snapshot alone, so a run that is already in the snapshot would be added again.

There is no lock. Processes of one machine or of several meet at the log, whose entries are placed where none is yet: by hard link, and
in S3 by a conditional write.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Field, Schema, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from scenemill.pipelines.tables_flush import flush_commits, marks, settled
from scenemill.schemas.errors import ConfigError, Conflict, Corrupt, NotPublished, SceneMillError
from scenemill.schemas.places import Place, Remote
from scenemill.schemas.published import PREFIX, published_scores
from scenemill.schemas.steps import reached
from scenemill.schemas.tables import COUNTS, DEPTHS, FITS, RENDERS, SCORES
from scenemill.transforms.object_clients import delta_options, meaning
from scenemill.transforms.objects import ObjectPath

TABLES: Final[Mapping[str, pa.Schema]] = {"counts": COUNTS, "depths": DEPTHS, "renders": RENDERS, "fits": FITS, "scores": SCORES}
"""In the order they are committed: scores last, for they make the run visible."""

_P = ParamSpec("_P")
_T = TypeVar("_T")

_SETTINGS: Final = {"delta.appendOnly": "true"}
_COMMIT_TRIES: Final = 100  # another writer's commit costs one try; the library's own 15 were enough for 8 writers at once
_LOOKS: Final = 3  # at a table, each after a change that the library's tries cannot get over
_ONE_TRY: Final = CommitProperties(max_commit_retries=0)  # a creation tried again is committed beside the first, as a change of it
_FORBIDDEN: Final = frozenset(r"%[\]^|")  # deltalake 1.6 decodes % twice and takes folders with the others for no valid address


def _told(function: Callable[Concatenate[Place, _P], _T]) -> Callable[Concatenate[Place, _P], _T]:
    """What fails in an object store, as our errors, without the library's words: they may hold secrets."""

    @wraps(function)
    def told(folder: Place, /, *given: _P.args, **named: _P.kwargs) -> _T:
        try:
            return function(folder, *given, **named)
        except SceneMillError:
            raise
        except (DeltaError, OSError) as error:
            if isinstance(folder, Path):
                raise
            failure = meaning(str(folder), error)
        raise failure  # out here, so that the library's own error is not chained to it

    return told


@_told
def append_run(folder: Place, run: str, tables: Mapping[str, pa.Table]) -> None:
    """Add one run's rows to the tables of a folder; they are visible when this returns, and all at once.

    Run again after a kill, it completes what is missing; of a finished run it adds nothing. Other processes may append other runs
    meanwhile. A folder without tables gets them, with the published results in ``scores``; tables of an older version get the columns
    that they lack, null in the rows that are there.

    Args:
        folder: where the tables are, or shall be.
        run: the id of the run, in every row.
        tables: rows by table name, of exactly the schemas in ``schemas/tables.py``; ``scores`` must be among them, and what is
            left out has no rows.

    Raises:
        ConfigError: a table, a row or the folder's name is not as it must be; nothing was written.
        Conflict: another attempt at the run left other rows than these, or too many writers were at it.
    """
    _check(run, tables)
    _address(folder, "scores")
    with settled(folder, tuple(TABLES)) if isinstance(folder, Path) else nullcontext():
        _create(folder)
        reached("metric tables made")
        if _open(folder, "scores").transaction_version(run) is not None:
            return
        for name, schema in TABLES.items():
            rows = tables.get(name, schema.empty_table())
            if not _commit(folder, name, run, rows) and name != "scores":  # two attempts' scores differ, by their time
                _compare(folder, name, run, rows)
            reached("metric rows committed")


@_told
def datasets(folder: Place) -> dict[str, ds.Dataset]:
    """The tables of a folder at one moment, by name: the rows of finished runs alone.

    Raises:
        NotPublished: no tables there.
    """
    scores = _read(folder, "scores", _open(folder, "scores"))  # first: of the runs seen here, all other rows are there already
    finished = pc.field("run").isin(pc.unique(scores["run"].combine_chunks()))
    others = {name: _dataset(folder, name).filter(finished) for name in TABLES if name != "scores"}
    return {**others, "scores": ds.dataset(scores)}  # not deltalake's, which takes nulls of files without the column for values


@_told
def read_table(folder: Place, name: str) -> pa.Table:
    """All rows of finished runs in one table, in no particular order.

    Raises:
        ConfigError: no such table.
        NotPublished: no tables there.
        Corrupt: a table cannot be read.
    """
    if name not in TABLES:
        raise ConfigError(f"table {name!r}: no such table; there are {', '.join(sorted(TABLES))}")
    runs = _runs(folder, _open(folder, "scores"))
    if not _is_there(folder, name):
        return TABLES[name].empty_table()
    return _read(folder, name, _open(folder, name)).filter(pc.field("run").isin(runs))


def _dataset(folder: Place, name: str) -> ds.Dataset:
    """A table; an empty one where the folder is older than the table."""
    if not _is_there(folder, name):
        return ds.dataset(TABLES[name].empty_table())
    table = _open(folder, name)
    return table.to_pyarrow_dataset() if isinstance(folder, Path) else ds.dataset(_read(folder, name, table))


def _is_there(folder: Place, name: str) -> bool:
    where = _address(folder, name)
    return (folder / name / "_delta_log").is_dir() and (isinstance(folder, Remote) or DeltaTable.is_deltatable(where))


def _runs(folder: Place, scores: DeltaTable) -> pa.Array:
    return pc.unique(_read(folder, "scores", scores, ["run"])["run"].combine_chunks())


def _read(folder: Place, name: str, table: DeltaTable, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a table, file by file: a dataset reads with threads that now and then crash a process which ends soon after."""
    schema = TABLES[name] if columns is None else pa.schema([TABLES[name].field(column) for column in columns])
    files = [folder / name / uri.rpartition("/")[2] for uri in table.file_uris()]
    try:
        read = [pq.ParquetFile(pa.BufferReader(file.read_bytes())).read(schema.names, use_threads=False) for file in files]
        rows = pa.concat_tables([schema.empty_table(), *(_completed(part, schema) for part in read)])
        rows.validate(full=True)  # damaged values are noticed where they are no text
        return rows
    except SceneMillError:
        raise
    except (OSError, pa.ArrowException, KeyError, UnicodeDecodeError) as error:  # the last two of damaged names of columns
        raise _unreadable(folder, name, error) from error


def _completed(part: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows of a file in today's form: null in columns that it lacks, since it is older than they are."""
    for column in schema:
        if column.nullable and column.name not in part.column_names:
            part = part.append_column(column, pa.nulls(part.num_rows, column.type))
    return part.select(schema.names).cast(schema)


def _check(run: str, tables: Mapping[str, pa.Table]) -> None:
    if not run or run.split("/", maxsplit=1)[0] == PREFIX:
        raise ConfigError(f"run {run!r}: a run id is not empty, and begins with {PREFIX!r} only for published results")
    if unknown := sorted(set(tables) - set(TABLES)):
        raise ConfigError(f"run {run!r}: no table is called {', '.join(unknown)}; there are {', '.join(sorted(TABLES))}")
    if "scores" not in tables or not tables["scores"].num_rows:
        raise ConfigError(f"run {run!r}: it has no scores; a run without a row there would never be seen")
    for name, table in tables.items():
        if not table.schema.equals(TABLES[name]):
            raise ConfigError(f"run {run!r}, table {name}: {_difference(table.schema, TABLES[name])}. Build it with table_of")
        if empty := [column.name for column in TABLES[name] if not column.nullable and table[column.name].null_count]:
            raise ConfigError(f"run {run!r}, table {name}: no value in a row of {', '.join(empty)}")
        if strange := sorted(set(pc.unique(table["run"]).to_pylist()) - {run}):
            raise ConfigError(f"run {run!r}, table {name}: holds rows of {strange[0]!r}; append each run by itself")


def _difference(found: pa.Schema, wanted: pa.Schema) -> str:
    """The first column in which two schemas differ."""
    columns = [[str(column) for column in schema] for schema in (found, wanted)]
    lacks = [column for column in columns[1] if column not in columns[0]]
    extra = [column for column in columns[0] if column not in columns[1]]
    if not lacks and not extra:
        return "its columns are in another order"
    return f"it lacks {lacks[0]!r}" if lacks else f"{extra[0]!r} is no column of it"


def _create(folder: Place) -> None:
    """Make what is missing of the tables, and add the published results, as one transaction of their own."""
    for name, schema in TABLES.items():
        where = _address(folder, name)
        if _is_there(folder, name):
            _extend(folder, name)
            continue
        try:
            DeltaTable.create(
                where,
                schema,
                mode="ignore",
                name=name,
                configuration=_SETTINGS,
                storage_options=_options(folder),
                commit_properties=_ONE_TRY,
            )
        except CommitFailedError:
            if not _is_there(folder, name):  # else another process made it first
                raise
        _flush(folder, name, -1)
    _commit(folder, "scores", PREFIX, published_scores())


def _extend(folder: Place, name: str) -> None:
    """Add the columns that a table of an older version lacks."""
    table = _open(folder, name)
    if not (lacks := _lacking(table, name)):
        return
    try:
        table.alter.add_columns(lacks, commit_properties=CommitProperties(max_commit_retries=_COMMIT_TRIES))
    except CommitFailedError as error:
        if _lacking(_open(folder, name), name):  # else another process added them first
            raise Conflict(
                f"tables {folder}: {name} could not get its new columns ({_why(folder, error)}). Run the same again"
            ) from error


def _lacking(table: DeltaTable, name: str) -> list[Field]:
    there = {column.name for column in table.schema().fields}
    return [column for column in Schema.from_arrow(TABLES[name]).fields if column.name not in there]


def _commit(folder: Place, name: str, run: str, rows: pa.Table) -> bool:
    """Add rows once; False where they, or another attempt's, are there already."""
    once = CommitProperties(app_transactions=[Transaction(run, 1)], max_commit_retries=_COMMIT_TRIES)
    refused = None
    for _ in range(_LOOKS):
        table = _open(folder, name)
        if table.transaction_version(run) is not None:
            return False
        before = table.version()
        try:
            write_deltalake(table, rows, mode="append", commit_properties=once)  # the snapshot looked at: see the top of this file
        except CommitFailedError as error:  # the same run came between, or other columns
            refused = error
        else:
            _flush(folder, name, before)
            return True
    raise Conflict(
        f"tables {folder}: run {run!r} could not be added to {name} ({_why(folder, refused)}). Run the same again"
    ) from refused


def _compare(folder: Place, name: str, run: str, rows: pa.Table) -> None:
    """Refuse to finish a run with other rows than it began with."""
    there = _read(folder, name, _open(folder, name)).filter(pc.field("run") == run)
    order = [(column, "ascending") for column in rows.column_names]
    if not there.sort_by(order).equals(rows.sort_by(order)):
        raise Conflict(f"tables {folder}: an unfinished run {run!r} has other rows in {name}. Give this run an id of its own")


def _open(folder: Place, name: str) -> DeltaTable:
    if not _is_there(folder, name):
        raise NotPublished(f'tables {folder}: no metric tables here; "scenemill score" and "scenemill evaluate" make them')
    try:
        return DeltaTable(_address(folder, name), storage_options=_options(folder))
    except DeltaError as error:
        raise _unreadable(folder, name, error) from error


def _unreadable(folder: Place, name: str, error: Exception) -> Corrupt:
    why = _why(folder, error).partition("\n")[0]
    advice = (
        "Score the run again that was under way"
        if isinstance(folder, Path) and marks(folder)
        else "Restore it from a copy, or score the runs into another folder"
    )
    return Corrupt(f"tables {folder}: {name} cannot be read ({why}). {advice}.")


def _why(folder: Place, error: Exception | None) -> str:
    return str(error) if isinstance(folder, Path) else type(error).__name__


def _flush(folder: Place, name: str, since: int) -> None:
    if isinstance(folder, Path):
        flush_commits(folder / name, since)


def _options(folder: Place) -> dict[str, str] | None:
    return delta_options(folder.scheme, folder.bucket) if isinstance(folder, ObjectPath) else None


def _address(folder: Place, name: str) -> str:
    if isinstance(folder, Remote):
        return str(folder / name)
    path = (folder / name).absolute()
    if strange := sorted(_FORBIDDEN & set(str(path)) | {sign for sign in str(path) if not sign.isprintable()}):
        raise ConfigError(f"tables {path.parent}: the path has {strange[0]!r} in it, which Delta tables cannot; use another folder")
    return path.as_uri()
