"""Fuzz targets: what people write. Settings, schedules, jobs, label maps, places, questions in SQL."""

import json
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from scenemill.pipelines import query
from scenemill.pipelines.experiments.specs import default_spec, list_specs, read_spec, resolved, spec_text
from scenemill.pipelines.jobs.roots import JobRoots
from scenemill.pipelines.jobs.specs import check_spec, make_command, schema_of, without_secrets
from scenemill.pipelines.schedule.files import load_schedule
from scenemill.pipelines.tables import append_run
from scenemill.schemas.dataset import DatasetConfig
from scenemill.schemas.errors import ConfigError
from scenemill.schemas.jobs import KINDS
from scenemill.schemas.tables import COUNTS, SCORES, table_of
from scenemill.trainers.sidefiles import label_map_of
from scenemill.transforms.objects import ObjectPath, place_of
from tests.faults.fuzz_target import SECRET, FuzzTarget, Wrong, part, parted, right

_YAML_WORDS: Final = (
    *(
        b"- ",
        b": ",
        b"{",
        b"}",
        b"[",
        b"]",
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!python/object/apply:os.system ",
        b"!!binary ",
        b"!!set ",
        b"!!int ",
        b"!!float ",
    ),
    *(
        b"!!timestamp ",
        b"? ",
        b"| \n",
        b"> \n",
        b"%YAML 1.1\n---\n",
        b"---\n",
        b"...\n",
        b"\t",
        b"\n  ",
        b"2026-01-01",
        b"1:30:00",
        b"0o17",
        b"0x1f",
        b".inf",
        b".nan",
    ),
    *(
        b"${oc.env:HOME}",
        b"???",
        b"~",
        b"'",
        b'"',
        b"\\x00",
        b"\\ud800",
        b"\xc2\x85",
        b"\xe2\x80\xa8",
        b"\xef\xbb\xbf",
        b"\x00",
        b"[" * 60,
        b"{" * 60,
        b"=",
        b".",
        b"# ",
    ),
)


def spec(folder: Path) -> FuzzTarget:
    """A file of settings, and settings in their place: one a line."""
    names = sorted({word for name in list_specs() for word in spec_text(name).replace(":", " ").split() if word.isidentifier()})

    def read(data: bytes) -> None:
        text, overrides = (one.decode("utf-8", "replace") for one in part(data, 2))
        config = read_spec(text, overrides.split("\n") if overrides else [])
        again = resolved(config)
        right(resolved(read_spec(again)) == again, "written out and read back it is another")

    seeds = tuple(parted((default_spec(action).encode()[:3000], b"")) for action in ("train",))
    seeds = (
        b"train: {num_epochs: 3}\nresults_dir: out\n",
        parted((b"model: {}\n", b"train.num_epochs=3\nresults_dir=a b")),
        *seeds,
    )
    shipped = tuple(spec_text(name).encode() for name in ("tiny_front3d_2d",) if name in list_specs())
    return FuzzTarget(
        "spec", seeds + shipped, read, (ConfigError,), _YAML_WORDS + tuple(map(str.encode, names))[:200], 3000, light=30
    )


def schedule(folder: Path) -> FuzzTarget:
    """A file of a schedule."""
    path = folder / "nightly.yaml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        found = load_schedule(path)
        right(bool(found.name) and Path(found.input).is_absolute() and Path(found.output).is_absolute(), f"{found}")

    begun = b"source: front3d\ninput: raw\noutput: store\nstart: 2026-01-01\n"
    seeds = (
        begun + b"cron: '0 3 * * *'\n",
        begun + b"every: 2h\ntimezone: Europe/Berlin\nretries: 3\nbackfill: {end: 2026-02-01}\n",
        begun + b"every: 1d\nalerts: {url: 'https://example.com/x'}\nsplits: [train]\nmax_rejected: 0.01\n",
    )
    fields = (
        "source",
        "input",
        "output",
        "cron",
        "every",
        "start",
        "timezone",
        "alerts",
        "backfill",
        "retries",
        "timeout",
        "url",
        "command",
        "name",
    )
    words = tuple(f"{name}: ".encode() for name in fields)
    more = (
        b"'* * * * *'",
        b"'61 25 32 13 9'",
        b"'*/0 * * * *'",
        b"'@daily'",
        b"99999999999d",
        b"-1h",
        b"{start}",
        b"{0.__class__}",
        b"{",
        b"../../..",
        b"9999-12-31",
    )
    return FuzzTarget("schedule", seeds, read, (ConfigError,), _YAML_WORDS + words + more, 1024)


def job_spec(folder: Path) -> FuzzTarget:
    """What a client of the job service asks for: kind, spec and kind of the parent, in JSON."""
    root, home = folder / "root", folder / "home"
    root.mkdir()
    (root / "raw").mkdir()
    (root / "link").symlink_to("/")
    roots = JobRoots([root], home)

    def read(data: bytes) -> None:
        try:
            asked = json.loads(data)
            kind, given, parent = asked["kind"], asked["spec"], asked.get("parent")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError("no request") from error  # the service refuses it before it asks for more
        named = all(isinstance(name, str) and name in KINDS for name in (kind, *(() if parent is None else (parent,))))
        if not named or not isinstance(given, dict):
            raise ConfigError("no request")
        check_spec(kind, given, roots, parent)
        right(
            "hunter2" not in json.dumps(without_secrets(kind, given)) or "hunter2" not in str(given.get("encryption_key")),
            "a secret is told",
        )
        if parent is None:
            command = make_command(kind, given, roots, roots.folder("0" * 16), {})
            right(all(isinstance(one, str) and "\0" not in one for one in command.arguments), "an argument that is none")

    inside = {"input": f"{root}/raw", "source": "front3d", "output": f"{root}/store"}
    asked: list[dict[str, Any]] = [
        {"kind": "ingest", "spec": inside},
        {
            "kind": "train",
            "spec": {"encryption_key": "hunter2", "train": {"num_epochs": 3}, "dataset": {"train": {"base_dir": f"{root}/raw"}}},
        },
        {"kind": "evaluate", "spec": {"evaluate": {"checkpoint": "{parent.checkpoint}"}}, "parent": "train"},
        {"kind": "evaluate", "spec": {"evaluate": {"checkpoint": f"{root}/a*/[b].pth"}}},
        {"kind": "fit", "spec": {"store": f"{root}/raw"}},
        {"kind": "ingest", "spec": {**inside, "input": f"{root}/link/etc"}},
    ]
    names = {name for kind in KINDS for name in schema_of(kind)["properties"]}
    words = (
        *(f'"{name}": '.encode() for name in sorted(names)),
        b"{parent.store}",
        b"{parent.checkpoint}/../..",
        str(root).encode(),
    )
    more = (
        b"../",
        b"/etc",
        b"/link/",
        b"**",
        b"*",
        b"[!a]",
        b"**/" * 3,
        b"*/" * 60,
        b"a" * 300,
        b"[" * 600 + b"1" + b"]" * 600,
        b"s3://bucket/key",
        b"\\u0000",
        b"\\ud800",
        b"~",
        b"//",
        b"null",
        b"[",
        b"{",
    )
    seeds = tuple(json.dumps(one).encode() for one in asked)
    return FuzzTarget("job_spec", seeds, read, (ConfigError,), words + more, 3000, light=100)


def label_map(folder: Path) -> FuzzTarget:
    """A file of classes."""
    number = iter(range(1 << 62))
    held = folder / "held"
    held.mkdir()

    def read(data: bytes) -> None:
        path = held / f"{next(number)}.json"  # read once a process
        path.write_bytes(data)
        try:
            found = label_map_of(DatasetConfig(label_map=str(path), contiguous_id=data[-1:] == b"\n"))
        finally:
            path.unlink()
        right(all(0 <= one <= 255 for one in found.learned), f"{found.learned}")
        right(all(isinstance(one.name, str) and len(one.color) == 3 for one in found.labels), "names and colours")

    rows = [{"id": n, "trainId": n, "isthing": n % 2, "name": f"thing {n}", "color": [n, 2, 3]} for n in range(1, 4)]
    words = (
        b'"id": ',
        b'"trainId": ',
        b'"isthing": ',
        b'"name": ',
        b'"color": ',
        b"true",
        b"null",
        b"1.0",
        b"\\ud800",
        b"[" * 60,
        b"wall",
        b"255",
    )
    whole = json.dumps(rows).encode()
    return FuzzTarget("label_map", (whole, whole + b"\n", json.dumps(rows[:1]).encode()), read, (ConfigError,), words, 1024)


def place(folder: Path) -> FuzzTarget:
    """Addresses of folders and objects."""

    def read(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        found = place_of(text)
        if isinstance(found, ObjectPath):
            parts = found.key.split("/")
            right(".." not in parts and "." not in parts and ("" not in parts or not found.key), f"{found}")
            right(found.key.isprintable() and len(found.key.encode()) <= 1024, f"{found!r}")
            right(place_of(str(found)) == found == place_of(Path(str(found))), f"{found} is read back as another")
            below = found / "more"
            right(below.parent == found and below.name == "more", f"{below}")
        else:
            right("://" not in text.split("/", 1)[0] + "//" or found == Path(text), f"{found}")

    seeds = (b"s3://bucket/a/b", b"gs://bucket-1/a.b/c d/", b"/data/store", b"C:\\x", b"s3:/bucket/key", b"s3://bucket")
    words = (
        b"s3://",
        b"gs://",
        b"http://",
        b"file://",
        b"..",
        b"/./",
        b"//",
        b"?",
        b"#",
        b"%2e%2e",
        b"\xe2\x80\xae",
        b"\xff",
        b"\0",
        b"@",
        b":8080",
        b"bucket",
    )
    return FuzzTarget("place", seeds, read, (ConfigError,), words, 1200)


class _Asked:
    """A connection as ``query`` makes it for one question; a new one after each that went wrong."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._held = folder, ExitStack()
        self._connection: Any = None

    def ask(self, sql: str) -> Any:
        if self._connection is None:
            self._connection = self._held.enter_context(query._connect(self._folder))
        watch = threading.Timer(3.0, self._connection.interrupt)  # the product ends the process instead
        watch.start()
        try:
            return query._ask(self._connection, sql, 1000)
        except BaseException:
            self._connection = None
            self._held.close()
            raise
        finally:
            watch.cancel()


def make_tables(folder: Path) -> None:
    """Tables of one run of one sample."""
    same = {"run": "a", "store_version": "v", "split": "test", "metric": "prq", "rule": "reference"}
    count = {**same, "class_id": 3, "class_name": "chair", "key": "s/1", "tp": 2, "fp": 1, "fn": 0, "iou_sum": 1.5}
    score = {**same, "model": "m", "source": "front3d", "group": "all", "quality": 0.5, "published": False, "origin": "test"}
    scores = [{**score, "created": datetime(2026, 1, 2, tzinfo=UTC)}]
    append_run(folder, "a", {"counts": table_of(COUNTS, [count]), "scores": table_of(SCORES, scores)})


_SQL_WORDS: Final = (
    "SELECT |FROM |scores|counts|depths|WHERE |read_csv(|read_text(|read_blob(|read_json(|read_parquet(|glob(|getvariable(|COPY |"
    " TO |EXPORT DATABASE |IMPORT DATABASE |ATTACH |INSTALL |LOAD |SET |RESET |PRAGMA |CALL |CREATE |SECRET |MACRO |DELETE FROM |"
    "INSERT INTO |UPDATE |DROP TABLE |ALTER |PREPARE a AS |EXECUTE a|VACUUM|CHECKPOINT|COMMIT|ROLLBACK|BEGIN|USE |; |--|/*|*/|$$|'|\"|"
    "(|)|range(10)|generate_series(1, 3)|repeat('a', 10)|UNION ALL |WITH RECURSIVE |PIVOT |::|sqlite_scan(|parquet_metadata(|"
    "duckdb_settings()|duckdb_secrets()|query(|query_table(|which_secret(|write_log(|json_execute_serialized_sql(|'/etc/passwd'|"
    "EXPLAIN |LATERAL |LIMIT |ORDER BY |SIMILAR TO |CAST(|STRUCT_PACK(|list_transform("
)
"""What questions are made of, between bars."""


def sql(folder: Path) -> FuzzTarget:
    """A question to the tables."""
    tables = folder / "tables"
    make_tables(tables)
    (folder / "secret.csv").write_bytes(b"a\n" + SECRET)
    asked = _Asked(tables)
    before = _files(folder)

    def read(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        answer = asked.ask(text)
        right(answer.num_rows <= 1000, f"{answer.num_rows} rows")
        if SECRET.decode() in str(answer.to_pylist()) and SECRET.decode() not in text:
            raise Wrong("the secret of a file is told")
        right(_files(folder) == before, "files have changed")

    outside = str(folder / "secret.csv")
    seeds = (
        b"SELECT model, rule, quality FROM scores WHERE metric = 'prq' AND \"group\" = 'all'",
        b"WITH a AS (SELECT run, count(*) AS n FROM scores GROUP BY run) SELECT * FROM a ORDER BY n LIMIT 3",
        b"DESCRIBE scores",
        b"FROM counts SELECT max(iou_sum) OVER (PARTITION BY run)",
        f"SELECT * FROM read_csv('{outside}')".encode(),
        f"SELECT * FROM '{outside}'".encode(),
        f"COPY (SELECT 1) TO '{folder}/out.csv'".encode(),
        b"EXPLAIN ANALYZE SELECT 1",
        b"SUMMARIZE scores",
        b"VALUES (1, 'a')",
        f"ATTACH '{folder}/x.db'".encode(),
        b"INSTALL httpfs; LOAD httpfs",
        b"PRAGMA database_list",
        b"SET enable_external_access = true",
        b"SELECT getenv('HOME'), current_setting('temp_directory')",
        f"SELECT content FROM read_text('{outside}')".encode(),
        f"SELECT * FROM glob('{folder}/*')".encode(),
    )
    words = tuple(word.encode() for word in (*_SQL_WORDS.split("|"), outside, "\u00a0", "\0"))
    return FuzzTarget("sql", seeds, read, (ConfigError,), words, 512, light=40)


def _files(folder: Path) -> list[str]:
    return sorted(map(str, folder.rglob("*")))


TARGETS: Final[dict[str, Callable[[Path], FuzzTarget]]] = {
    "spec": spec,
    "schedule": schedule,
    "job_spec": job_spec,
    "label_map": label_map,
    "place": place,
    "sql": sql,
}
