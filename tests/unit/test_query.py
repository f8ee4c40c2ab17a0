"""SQL on the metric tables reads them, says clearly what is wrong, touches nothing else, and always ends."""

import io
import json
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from scenemill.pipelines.cli import app
from scenemill.pipelines.query import query, query_all
from scenemill.pipelines.reports.results import SHOWN, print_table, to_bytes
from scenemill.pipelines.tables import append_run
from scenemill.schemas.errors import ConfigError, NotPublished
from scenemill.schemas.tables import COUNTS, SCORES, table_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables with one run of two samples; tests must not change them."""
    where = tmp_path_factory.mktemp("query") / "tables"
    same = {"run": "a", "store_version": "v", "split": "test", "metric": "prq", "rule": "reference"}
    chair = {**same, "class_id": 3, "class_name": "chair"}
    counts = [
        {**chair, "key": "s/1", "tp": 2, "fp": 1, "fn": 0, "iou_sum": 1.5},
        {**chair, "key": "s/2", "tp": 0, "fp": 0, "fn": 1, "iou_sum": 0.0},
    ]
    score = {**same, "model": "m", "source": "front3d", "group": "all", "quality": 0.5, "published": False, "origin": "test"}
    scores = [{**score, "created": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)}]
    append_run(where, "a", {"counts": table_of(COUNTS, counts), "scores": table_of(SCORES, scores)})
    return where


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT key, tp FROM counts WHERE tp > 0", [{"key": "s/1", "tp": 2}]),
        ("FROM counts SELECT sum(iou_sum) AS iou", [{"iou": 1.5}]),
        ("WITH ours AS (FROM scores WHERE NOT published) SELECT quality FROM ours", [{"quality": 0.5}]),
        ("SELECT \"group\" FROM scores WHERE run = 'a' -- a comment; with a semicolon", [{"group": "all"}]),
        ("SHOW TABLES;", [{"name": name} for name in ("counts", "depths", "fits", "renders", "scores")]),
        ("VALUES (1)", [{"col0": 1}]),
        ("SELECT count(*) AS rows FROM depths", [{"rows": 0}]),
        ("SELECT created FROM scores WHERE run = 'a'", [{"created": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)}]),
    ],
)
def test_questions_are_answered(folder: Path, sql: str, expected: list[dict[str, Any]]) -> None:
    assert query(folder, sql).to_pylist() == expected


def test_tables_describe_themselves(folder: Path) -> None:
    assert query(folder, "DESCRIBE counts")["column_name"].to_pylist() == COUNTS.names
    assert query(folder, "SUMMARIZE counts").num_rows == len(COUNTS.names)
    assert query(folder, "EXPLAIN SELECT * FROM counts").num_rows == 1


def test_a_limit_and_several_questions(folder: Path) -> None:
    assert query(folder, "SELECT * FROM range(100000000000)", limit=3).to_pylist() == [{"range": n} for n in range(3)]
    assert query(folder, "SELECT * FROM counts", limit=0).num_rows == 0
    assert [table.num_columns for table in query_all(folder, ["SELECT 1", "SELECT 1, 2", "SHOW TABLES"])] == [1, 2, 1]


def test_columns_of_one_name_are_told_apart(folder: Path) -> None:
    table = query(folder, "SELECT a.key, b.key, 1 AS key_1 FROM counts a JOIN counts b USING (key)")
    assert table.column_names == ["key", "key_1", "key_1_1"]


HOSTILE = [
    "COPY scores TO 'stolen.csv'",
    "COPY (SELECT 1) TO '/tmp/stolen.parquet'",
    "COPY scores FROM '/etc/passwd'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM read_parquet('**/*.parquet')",
    "SELECT * FROM read_json('https://example.com/x.json')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM 'x.parquet'",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM parquet_metadata('x.parquet')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM enable_logging(storage='file', storage_path='log')",
    "SELECT * FROM enable_profiling(save_location='profile.json')",
    "SELECT * FROM arrow_scan(1, 2, 3)",
    "SELECT * FROM pandas_scan(1)",
    "SELECT * FROM hidden",
    "ATTACH 'stolen.db'",
    "ATTACH ':memory:' AS other",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '/tmp/evil.so'",
    "UPDATE EXTENSIONS",
    "CREATE SECRET (TYPE s3)",
    "PRAGMA threads = 64",
    "PRAGMA version",
    "SET lock_configuration = false",
    "SET enable_external_access = true",
    "RESET memory_limit",
    "SET VARIABLE x = 1",
    "EXPORT DATABASE 'stolen'",
    "IMPORT DATABASE 'stolen'",
    "CREATE TABLE mine AS SELECT * FROM scores",
    "CREATE OR REPLACE VIEW scores AS SELECT 1",
    "CREATE MACRO f(x) AS x",
    "INSERT INTO scores SELECT * FROM scores",
    "UPDATE scores SET quality = 1",
    "DELETE FROM scores",
    "DROP VIEW scores",
    "ALTER VIEW scores RENAME TO mine",
    "MERGE INTO scores USING scores s ON true WHEN MATCHED THEN DELETE",
    "CALL pragma_version()",
    "PREPARE x AS SELECT 1",
    "EXECUTE x",
    "BEGIN",
    "COMMIT",
    "CHECKPOINT",
    "VACUUM",
    "USE memory",
    "EXPLAIN ANALYZE COPY scores TO 'stolen.csv'",
    "EXPLAIN ANALYZE CREATE TABLE mine AS SELECT 1",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY scores TO 'stolen.csv'",
    "",
    " ; ; ",
    "-- nothing",
    "SELEC quality FROM scores",
    "SELECT " + "(" * 50_000 + "1" + ")" * 50_000,
    "SELECT '\x00",
]


@pytest.mark.parametrize(
    "sql", [pytest.param(sql, id=f"{number}", marks=pytest.mark.full if number % 3 else ()) for number, sql in enumerate(HOSTILE)]
)
def test_nothing_but_reading_the_tables_is_possible(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    """A hostile statement is refused, and nothing came into being in the folder one is in, nor in the tables."""
    monkeypatch.chdir(tmp_path)
    before = snapshot(folder)
    with pytest.raises(ConfigError, match=r"^query: "):
        query(folder, sql)
    assert list(tmp_path.iterdir()) == []
    assert snapshot(folder) == before


def test_statements_that_may_run_change_nothing(folder: Path) -> None:
    before = snapshot(folder)
    query(folder, "EXPLAIN ANALYZE DROP VIEW scores")
    assert query(folder, "SELECT count(*) > 0 AS there FROM scores").to_pylist() == [{"there": True}]
    assert snapshot(folder) == before


def test_mistakes_are_explained(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r'"qualty" not found.*(?s:.*)scores: run, model, .*quality'):
        query(folder, "SELECT qualty FROM scores")
    with pytest.raises(ConfigError, match=r"Table with name score does not exist(?s:.*)counts: run"):
        query(folder, "SELECT * FROM score")
    with pytest.raises(ConfigError, match=r'syntax error(?s:.*)scores: .* rule, "group", quality'):
        query(folder, "SELECT group FROM scores")
    with pytest.raises(ConfigError, match="a statement of kind DROP; the tables can only be read"):
        query(folder, "DROP VIEW scores")
    with pytest.raises(ConfigError, match="2 statements; give one"):
        query(folder, "SELECT 1; SELECT 2")
    with pytest.raises(ConfigError, match="Conversion Error"):
        query(folder, "SELECT CAST(run AS INTEGER) FROM scores")


def test_no_tables(tmp_path: Path) -> None:
    with pytest.raises(NotPublished, match="no metric tables here"):
        query(tmp_path, "SELECT 1")


@pytest.mark.parametrize(("limit", "timeout_s"), [(-1, 1.0), (None, 0.0)])
def test_senseless_bounds(folder: Path, limit: int | None, timeout_s: float) -> None:
    with pytest.raises(ConfigError, match="the limit is not negative"):
        query(folder, "SELECT 1", limit, timeout_s)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM range(100000000000) a, range(1000) b",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
        "SELECT max(levenshtein(repeat('ab', 200000), repeat('ba', 200000)))",
    ],
)
def test_a_query_that_runs_away_is_stopped(folder: Path, sql: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match="stopped after 2 s"):
        query(folder, sql, timeout_s=2)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT list_sum(range(1000000000))",  # by itself the engine takes 20 GB for it, whatever its memory limit
        "SELECT a.range FROM range(1000000000) a ORDER BY random()",
        "SELECT * FROM range(100000000000)",
    ],
)
def test_a_query_that_wants_too_much_memory_is_stopped(folder: Path, sql: str) -> None:
    with pytest.raises(ConfigError, match=r"[Mm]emory|larger than 1 GiB|died"):
        query(folder, sql)


def test_a_query_whose_process_dies_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ConfigError, match="the process that ran it died"):
        query(folder, "SELECT 1")


ANSWER = pa.table(
    {
        "run": ["a", 'b,\n"c" é', None],
        "quality": [0.5, float("nan"), None],
        "tp": pa.array([Decimal(3), None, Decimal(12)], pa.decimal128(38, 0)),
        "bins": pa.array([[1, 2], [], None], pa.list_(pa.int64())),
        "created": pa.array([datetime(2026, 1, 2, tzinfo=UTC), None, None], pa.timestamp("us", "UTC")),
    }
)


def test_json() -> None:
    assert json.loads(to_bytes(ANSWER, "json")) == [
        {"run": "a", "quality": 0.5, "tp": 3, "bins": [1, 2], "created": "2026-01-02T00:00:00+00:00"},
        {"run": 'b,\n"c" é', "quality": None, "tp": None, "bins": [], "created": None},
        {"run": None, "quality": None, "tp": 12, "bins": None, "created": None},
    ]


def test_csv() -> None:
    assert to_bytes(ANSWER, "csv").decode() == (
        'run,quality,tp,bins,created\na,0.5,3,"[1, 2]",2026-01-02 00:00:00+00:00\n"b,\n""c"" é",nan,,[],\n,,12,,\n'
    )


def test_parquet() -> None:
    found = pq.read_table(io.BytesIO(to_bytes(ANSWER, "parquet")), use_threads=False)
    assert found.schema.equals(ANSWER.schema)
    assert found["bins"].equals(ANSWER["bins"])


def test_no_such_format() -> None:
    with pytest.raises(ConfigError, match=r"use table \(on a terminal\), csv, json, parquet"):
        to_bytes(ANSWER, "xml")


def drawn(table: pa.Table, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_table(console, table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_table_for_a_person() -> None:
    text = drawn(pa.table({"name": ["a", "[bold]b\x1b[2J"], "quality": [0.123456, None], "number": [1, 20]}))
    lines = [line.strip() for line in text.splitlines()]
    assert lines == [
        "name            quality  number",
        "a                0.1235       1",
        "[bold]b\\x1b[2J     null      20",
        "2 rows",
    ]


def test_numbers_are_drawn_with_the_decimals_that_their_column_needs() -> None:
    text = drawn(pa.table({"prq": [89.7, 100.0], "iou": [0.5, 1 / 3], "chamfer": [1e-7, 2e-7], "whole": [3.0, None]}))
    assert [line.split() for line in text.splitlines()[1:3]] == [
        ["89.7", "0.5000", "1.000e-07", "3"],
        ["100.0", "0.3333", "2.000e-07", "null"],
    ]


def test_an_answer_is_written_as_the_name_of_its_file_says(folder: Path, tmp_path: Path) -> None:
    def ask(name: str, *words: str) -> Any:
        return CliRunner().invoke(app, ["query", str(folder), "SELECT 1 AS a", "--out", str(tmp_path / name), *words])

    assert ask("a.csv").exit_code == ask("a.json").exit_code == ask("b.txt", "--format", "csv").exit_code == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.txt").read_text() == "a\n1\n"
    assert json.loads((tmp_path / "a.json").read_text()) == [{"a": 1}]
    assert isinstance(ask("a.txt").exception, ConfigError)


def test_a_wide_table_is_drawn_row_by_row() -> None:
    text = drawn(pa.table({f"column_{number}": [number] for number in range(30)}), width=60)
    assert "row 1 ──" in text
    assert "column_29  29" in text
    assert max(map(len, text.splitlines())) <= 60


def test_a_long_table_says_what_it_left_out() -> None:
    assert f"{SHOWN + 1} rows (the first {SHOWN} are shown)" in drawn(pa.table({"n": list(range(SHOWN + 1))}))
